//! Memory that fails under an access: SIGBUS becomes an error in the library's own code, and a message in the program's.
//!
//! A device that was unbound or removed, a page with a memory error and a file that was cut short answer an access with
//! SIGBUS. [`guarded`] runs a piece of the library's own code that may meet one, and returns it as an error. In code
//! of the program the handler says what was lost, in one line for the process, and hands the signal on to whoever had
//! it before: the program's own handler, or the default, which ends the process. Where the user wants it, lost memory is
//! replaced by zeroes instead, and the access made again ([`loss`]).
//!
//! # Protocol
//! A thread that is guarded owns one of [`GUARDS`]: it takes one by putting its number there, and nobody else writes to
//! it until it puts 0 back. The handler runs on the thread that faults, so what it finds under that thread's number is
//! whole. It makes the thread go on at [`abandon`](frame::abandon) with the stack pointer that [`enter`](frame::enter)
//! left in the guard: the frames of the work are gone, as after longjmp.
//!
//! The handler is installed by the first that may need it, and looked after by each guarded section: a program that has
//! installed one since becomes the one to hand on to. One that hands on to the former handler in turn, which is ours,
//! meets the default: a thread that already hands on is noted in [`HANDING_ON`].
//!
//! # Invariants
//! - B1: a guard's fields other than `thread` are written by its owner, or by the handler on the owner's thread.
//! - B2: nothing here allocates, and the handler waits for nobody for long.

mod damage;
mod frame;
mod loss;
mod mapped;

pub(crate) use damage::{forget as forget_damage, is_damaged};
pub use loss::{LossHandler, RETRY, SIGBUS, ZERO_FILL};
pub(crate) use loss::{set_handler, set_zero_fill};

use super::{errno, thread, zero};
use libc::{c_int, c_void, siginfo_t};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// An access that the memory did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusError {
    /// Where the access was.
    pub(crate) addr: usize,
    /// Whether the machine has found the memory damaged; otherwise nothing is there any more.
    pub(crate) is_damaged: bool,
}

/// A thread in a guarded section.
struct Guard {
    /// The kernel's number of the thread, 0 while nobody is guarded by this one.
    thread: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    /// The stack pointer to go on with; 0 before the section and after its fault.
    frame: AtomicUsize,
    /// Where the access was that ended the section, and what the kernel said of it.
    addr: AtomicUsize,
    code: AtomicU32,
}

/// More than threads of the library run at once; a further one waits for its turn.
static GUARDS: [Guard; 16] = [const {
    Guard {
        thread: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        frame: AtomicUsize::new(0),
        addr: AtomicUsize::new(0),
        code: AtomicU32::new(0),
    }
}; 16];

/// Threads that are in the handler to which ours handed on.
static HANDING_ON: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

/// What to hand on to: a function's address, SIG_DFL or SIG_IGN, and whether it takes three arguments.
static FORMER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static FORMER_TAKES_INFO: AtomicBool = AtomicBool::new(false);

/// Runs `work`, whose accesses to `memory` may fail. Blocks no longer than `work` does, keeps `errno`.
///
/// # Safety
/// `work` may be abandoned at any access to `memory`: it has nothing to drop, does not panic, and holds nothing then that
/// somebody waits for.
///
/// # Errors
/// The first access that failed. What `work` did before has happened.
pub(crate) unsafe fn guarded<F: FnMut()>(memory: Range<usize>, mut work: F) -> Result<(), BusError> {
    extern "C" fn call<F: FnMut()>(work: *mut c_void) {
        // SAFETY: `work` below, which outlives the call.
        unsafe { (*work.cast::<F>())() }
    }
    let errno = errno::get();
    watch();
    let guard = Guard::take(&memory);
    let blocked = unblock();
    // SAFETY: the function takes the pointer for what it is; the frame it may come back in is this one's callee.
    let is_whole = unsafe { frame::enter(call::<F>, (&raw mut work).cast(), guard.frame.as_ptr()) } == 0;
    block_again(&blocked);
    let error = BusError {
        addr: guard.addr.load(Ordering::Relaxed),
        is_damaged: guard.code.load(Ordering::Relaxed) as c_int != libc::BUS_ADRERR,
    };
    guard.give_back();
    errno::set(errno);
    if is_whole { Ok(()) } else { Err(error) }
}

/// Overwrites memory that may fail with zeroes.
///
/// # Safety
/// The range is mapped writable, and nobody else uses it.
///
/// # Errors
/// As for [`guarded`].
pub(crate) unsafe fn clear(addr: NonNull<u8>, len_bytes: usize) -> Result<(), BusError> {
    let start = addr.as_ptr().addr();
    // SAFETY: the caller argued the range.
    let clear = || unsafe { zero::zero(addr, len_bytes) };
    // SAFETY: it drops nothing.
    unsafe { guarded(start..start + len_bytes, clear) }
}

/// Overwrites memory that may fail with zeroes where it is not zero already.
///
/// # Safety
/// As for [`clear`], and the range begins and ends on a page.
///
/// # Errors
/// As for [`guarded`].
pub(crate) unsafe fn clear_unless_zero(addr: NonNull<u8>, len_bytes: usize) -> Result<(), BusError> {
    let start = addr.as_ptr().addr();
    // SAFETY: the caller argued the range.
    let clear = || unsafe { zero::zero_unless_zero(addr, len_bytes) };
    // SAFETY: it drops nothing.
    unsafe { guarded(start..start + len_bytes, clear) }
}

impl Guard {
    fn take(memory: &Range<usize>) -> &'static Guard {
        let own = thread::own_id();
        loop {
            // Acquire: pairs with the Release of the former owner.
            let take = |guard: &&Guard| {
                guard.thread.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed).is_ok()
            };
            if let Some(guard) = GUARDS.iter().find(take) {
                // Relaxed: read by the handler on this very thread.
                guard.start.store(memory.start, Ordering::Relaxed);
                guard.end.store(memory.end, Ordering::Relaxed);
                return guard;
            }
            std::thread::yield_now();
        }
    }

    fn give_back(&self) {
        self.frame.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire of the next owner.
        self.thread.store(0, Ordering::Release);
    }

    /// The guard of a thread that is inside `work` and whose memory holds `addr`.
    fn of(thread: u32, addr: usize) -> Option<&'static Guard> {
        // Relaxed: a number of ours was stored by this thread, and so was the rest.
        GUARDS.iter().find(|guard| {
            guard.thread.load(Ordering::Relaxed) == thread
                && guard.frame.load(Ordering::Relaxed) != 0
                && guard.start.load(Ordering::Relaxed) <= addr
                && addr < guard.end.load(Ordering::Relaxed)
        })
    }
}

/// Installs the handler where it is not in force. Called before memory that may fail is handed out.
pub(crate) fn watch() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction writes to a structure that outlives the call.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), action.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: written by the kernel, and all zeroes are valid too.
    let former = unsafe { action.assume_init() };
    let ours = on_signal as *const () as usize;
    if former.sa_sigaction == ours {
        return;
    }
    FORMER_TAKES_INFO.store(former.sa_flags & libc::SA_SIGINFO != 0, Ordering::Relaxed);
    // Release: with the address comes how to call it.
    FORMER.store(former.sa_sigaction, Ordering::Release);
    // SAFETY: all zeroes are a valid structure: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler keeps to what a handler may do. A refusal leaves the former one in force.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
}

/// A thread that blocks SIGBUS is ended by a fault: lets it through, and returns the former mask.
fn unblock() -> MaybeUninit<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut former = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes to the set, which outlives the call.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGBUS) };
    // SAFETY: both sets outlive the call.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), former.as_mut_ptr()) };
    former
}

fn block_again(former: &MaybeUninit<libc::sigset_t>) {
    // SAFETY: the mask is one that the kernel gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut()) };
}

extern "C" fn on_signal(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = errno::get();
    let own = thread::own_id();
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // A signal that somebody sent has no address; it is the former handler's.
    if code > 0 {
        // SAFETY: as above.
        let info_ref = unsafe { &*info };
        // SAFETY: a fault has an address.
        let addr = unsafe { info_ref.si_addr() }.addr();
        if let Some(guard) = Guard::of(own, addr) {
            // A device that is there all the same is not to be taken for lost.
            if mapped::heal(addr, code) {
                return errno::set(errno);
            }
            guard.addr.store(addr, Ordering::Relaxed);
            guard.code.store(code as u32, Ordering::Relaxed);
            let frame = guard.frame.swap(0, Ordering::Relaxed);
            // SAFETY: the thread is inside `enter`, whose frame this is, and the kernel passes a valid context.
            unsafe { frame::go_on_at(context, frame) };
            return errno::set(errno);
        }
        if mapped::heal(addr, code) {
            return errno::set(errno);
        }
        let is_damaged = code != libc::BUS_ADRERR;
        match mapped::find(addr, code) {
            mapped::Found::Foreign => {}
            mapped::Found::Replaced => return errno::set(errno),
            mapped::Found::OfDevice(mapping) => {
                // SAFETY: the kernel passes the shift with a memory error.
                let shift = if is_damaged { u32::from(unsafe { shift_of(info) }) } else { 0 };
                if is_damaged {
                    damage::note(addr, shift);
                }
                // Nobody has read it yet, and nobody is going to get it: the program goes on.
                if code == libc::BUS_MCEERR_AO || goes_on(addr, &mapping, is_damaged.then_some(shift)) {
                    return errno::set(errno);
                }
            }
        }
    }
    hand_on(own, number, info, context, code);
    errno::set(errno);
}

/// Asks what becomes of an access to lost memory, of which a damaged part has 2^shift bytes. Returns whether it may be made
/// again.
fn goes_on(addr: usize, mapping: &Range<usize>, shift: Option<u32>) -> bool {
    if !loss::may_go_on() {
        return false;
    }
    let damaged_bytes = shift.map(|shift| 1 << shift.clamp(12, 21));
    let lost = loss::lost_with(addr, mapping, damaged_bytes);
    match loss::decide(&lost, shift.is_some()) {
        loss::ZERO_FILL => mapped::fill(addr, &lost, shift.is_some()),
        loss::RETRY => true,
        _ => false,
    }
}

/// Returns the binary logarithm of how much memory an error concerns.
///
/// # Safety
/// The signal tells of a memory error.
unsafe fn shift_of(info: *const siginfo_t) -> u16 {
    /// `siginfo_t` of a fault, up to `si_addr_lsb`.
    #[repr(C)]
    struct Fault {
        head: [i32; 3],
        padding: i32,
        addr: usize,
        shift: u16,
    }
    // SAFETY: the caller argued which of its forms the structure has.
    unsafe { (*info.cast::<Fault>()).shift }
}

/// Calls the former handler, or lets the default come: at the access, which is made again, or at once if nobody made one.
fn hand_on(own: u32, number: c_int, info: *mut siginfo_t, context: *mut c_void, code: c_int) {
    // Acquire: pairs with the Release of `watch`.
    let former = FORMER.load(Ordering::Acquire);
    let is_back = HANDING_ON.iter().any(|thread| thread.load(Ordering::Relaxed) == own);
    let is_fault = code > 0 && code != libc::BUS_MCEERR_AO;
    match former {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => end(number, is_fault),
        _ if is_back => end(number, is_fault),
        handler => {
            let note = HANDING_ON
                .iter()
                .find(|thread| thread.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed).is_ok());
            if FORMER_TAKES_INFO.load(Ordering::Relaxed) {
                // SAFETY: the program installed it as a function of three arguments.
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(number, info, context);
            } else {
                // SAFETY: the program installed it as a function of one argument.
                let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
                handler(number);
            }
            if let Some(note) = note {
                note.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Puts the default back. The access that is made again ends the process, as does a signal that was sent.
fn end(number: c_int, is_fault: bool) {
    // SAFETY: sets the default; signal and raise may be called in a handler.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    if !is_fault {
        // SAFETY: as above. It comes when the handler has returned.
        unsafe { libc::raise(number) };
    }
}

#[cfg(test)]
mod tests;
