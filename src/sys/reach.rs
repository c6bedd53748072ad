//! A signal that reaches every thread of the process.
//!
//! glibc keeps signal 33 to itself, to make all threads change their user (setuid). Its functions leave it out of every
//! set of signals that a program blocks or waits for, so a thread that "blocks all signals" gets it all the same, and
//! no program meets it. [`Reach`] puts a handler of ours before glibc's: ours are told apart by what is queued with
//! them, and all others are handed on. Where nobody has a handler for it (another C library, or a process that never
//! started a thread through glibc), a real-time signal without a handler is borrowed instead, which a program can block.

use super::blocked;
use libc::{c_int, c_ulong, c_void, pid_t, siginfo_t};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// glibc's SIGSETXID.
const KEPT_BY_GLIBC: c_int = 33;

type Action = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// glibc's handler, or 0. Written before ours is installed.
static FORMER: AtomicUsize = AtomicUsize::new(0);
/// What our signals make a thread do, as a function's address. Written before the first is sent.
static WORK: AtomicUsize = AtomicUsize::new(0);

/// A signal whose handler is ours, for good: a thread may get one late.
pub(crate) struct Reach {
    number: c_int,
}

/// The kernel's `struct sigaction` on 64-bit machines.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelAction {
    handler: usize,
    flags: c_ulong,
    restorer: usize,
    mask: u64,
}

/// `siginfo_t` of a queued signal.
#[repr(C)]
struct Queued {
    number: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    pid: pid_t,
    uid: libc::uid_t,
    value: usize,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Queued>() == size_of::<siginfo_t>());

impl Reach {
    /// Finds a signal and installs the handler; `work` runs in it and may only do what a signal handler may.
    pub(crate) fn take(work: extern "C" fn()) -> Option<Reach> {
        // SeqCst: rare.
        WORK.store(work as *const () as usize, Ordering::SeqCst);
        if take_kept() { Some(Reach { number: KEPT_BY_GLIBC }) } else { borrow() }
    }

    /// Sends the signal to a thread of this process, which goes on with the call that [`blocked`] has in `entry`, if any; `false` when it has gone, or when too many signals are queued.
    pub(crate) fn send(&self, tid: pid_t, entry: u16) -> bool {
        // SAFETY: takes no argument.
        let (pid, uid) = (std::process::id() as pid_t, unsafe { libc::getuid() });
        let value = (&raw const FORMER).addr();
        let code = libc::SI_QUEUE;
        let queued = Queued {
            number: self.number,
            errno: entry.into(),
            code,
            padding: 0,
            pid,
            uid,
            value,
            rest: [0; 12],
        };
        // SAFETY: the kernel reads one siginfo, which outlives the call.
        unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, self.number, &raw const queued) == 0 }
    }
}

extern "C" fn on_signal(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let info_ref = unsafe { &*info };
    // SAFETY: the field is there for the code that is asked for first, and it is only compared.
    let is_ours = info_ref.si_code == libc::SI_QUEUE
        && unsafe { info_ref.si_value() }.sival_ptr.addr() == (&raw const FORMER).addr();
    if is_ours {
        // SAFETY: `take` stored a function of this type before it installed this handler.
        let work: extern "C" fn() = unsafe { transmute(WORK.load(Ordering::SeqCst)) };
        work();
        // The sender put the entry's number into a field that has no meaning in this signal.
        // SAFETY: the kernel passed the context.
        return unsafe { blocked::resume(info_ref.si_errno as usize, context) };
    }
    let former = FORMER.load(Ordering::SeqCst);
    if number == KEPT_BY_GLIBC && former != 0 {
        // SAFETY: glibc installed the function with SA_SIGINFO.
        let former: Action = unsafe { transmute(former) };
        former(number, info, context);
    }
}

/// Puts our handler before glibc's. The C library refuses to tell or to change this signal's action, so the kernel is
/// asked; how a handler returns stays as glibc arranged it.
fn take_kept() -> bool {
    let ours = on_signal as *const () as usize;
    let mut action = KernelAction::default();
    if !kernel_sigaction(ptr::null(), &raw mut action) || action.flags & libc::SA_SIGINFO as c_ulong == 0 {
        return false;
    }
    if action.handler == ours {
        return true;
    }
    FORMER.store(action.handler, Ordering::SeqCst);
    action.handler = ours;
    action.flags |= (libc::SA_RESTART | libc::SA_ONSTACK) as c_ulong;
    action.mask = u64::MAX;
    kernel_sigaction(&raw const action, ptr::null_mut())
}

fn kernel_sigaction(new: *const KernelAction, old: *mut KernelAction) -> bool {
    // SAFETY: both are NULL or valid; a new action is the present one but for a handler with the same duties.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, KEPT_BY_GLIBC, new, old, size_of::<u64>()) == 0 }
}

fn borrow() -> Option<Reach> {
    for number in (libc::SIGRTMIN()..libc::SIGRTMAX()).rev() {
        // SAFETY: all-zero sigactions are valid values.
        let (mut former, mut own): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        // SAFETY: asks for the present action only.
        let rc = unsafe { libc::sigaction(number, ptr::null(), &raw mut former) };
        own.sa_sigaction = on_signal as *const () as usize;
        if rc == 0 && former.sa_sigaction == own.sa_sigaction {
            return Some(Reach { number });
        }
        if rc != 0 || former.sa_sigaction != libc::SIG_DFL {
            continue;
        }
        own.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the set is a field of a valid sigaction.
        unsafe { libc::sigfillset(&raw mut own.sa_mask) };
        // SAFETY: both pointers are valid; the handler is ours.
        if unsafe { libc::sigaction(number, &raw const own, ptr::null_mut()) } == 0 {
            return Some(Reach { number });
        }
    }
    None
}
