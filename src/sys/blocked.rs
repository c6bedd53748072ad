//! What a thread waits for in the kernel, and how it goes on waiting after a signal of ours.
//!
//! A signal interrupts some calls (poll, select, epoll_wait, sleeping until a point in time) even where its handler asks for
//! a restart: the program would meet `EINTR` that no signal of its own explains. So who is about to send a signal notes
//! with [`note`] what the thread waits for, as /proc tells, and the handler's [`resume`] sets the thread back to before the
//! call. Only calls that begin anew without a difference are resumed: those without a time limit, or with a point in time as
//! the limit. Others return `EINTR`, as signal(7) allows at any time. So do all on machines other than x86-64.

use super::{file, thread};
use libc::{c_void, pid_t};
use std::sync::atomic::{AtomicU64, Ordering};

/// The most threads that are noted at once.
const MOST: usize = 4096;

/// A call that a thread waits in: its number, six arguments, stack pointer and the address behind the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: u64,
    args: [u64; 6],
    stack: u64,
    next: u64,
}

/// The thread's number and the nine words of a [`Call`]. Relaxed: an entry that is read while it changes agrees with no
/// thread's registers, and so is ignored.
struct Entry([AtomicU64; 10]);

static ENTRIES: [Entry; MOST] = [const { Entry([const { AtomicU64::new(0) }; 10]) }; MOST];

/// Notes in entry `at` what a thread of this process waits for. Allocates nothing.
pub(crate) fn note(at: usize, tid: pid_t) {
    let Some(Entry(words)) = ENTRIES.get(at) else { return };
    words[0].store(0, Ordering::Relaxed);
    let mut path = [0u8; 64];
    let mut text = [0u8; 256];
    let text = thread::task_file(tid as u32, b"/syscall\0", &mut path)
        .and_then(|path| file::read_start(path, &mut text));
    let Some(call) = text.and_then(parse) else { return };
    let [_, number, args @ .., stack, next] = words;
    number.store(call.number, Ordering::Relaxed);
    args.iter().zip(call.args).for_each(|(word, arg)| word.store(arg, Ordering::Relaxed));
    stack.store(call.stack, Ordering::Relaxed);
    next.store(call.next, Ordering::Relaxed);
    words[0].store(tid as u64, Ordering::Relaxed);
}

/// Reads `NUMBER ARG... STACK NEXT`, all but the number with 0x; a thread that runs has another text.
fn parse(text: &[u8]) -> Option<Call> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let args = [hex()?, hex()?, hex()?, hex()?, hex()?, hex()?];
    Some(Call { number, args, stack: hex()?, next: hex()? })
}

/// Has the calling thread, which is in a handler with this context, begin the call anew that was noted in entry `at`, if
/// the signal interrupted that call and nothing else wants the thread's attention.
///
/// # Safety
/// `context` is what the kernel passed to the handler.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
pub(crate) unsafe fn resume(at: usize, context: *mut c_void) {
    use libc::{REG_R8, REG_R9, REG_R10, REG_RAX, REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP};
    /// The bytes of the instruction `syscall`.
    const SYSCALL_BYTES: i64 = 2;
    let Some(call) = noted(at) else { return };
    // SAFETY: the caller argued it.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let get = |register: libc::c_int| registers[register as usize] as u64;
    let seen = Call {
        number: call.number,
        args: [get(REG_RDI), get(REG_RSI), get(REG_RDX), get(REG_R10), get(REG_R8), get(REG_R9)],
        stack: get(REG_RSP),
        next: get(REG_RIP),
    };
    let is_interrupted = registers[REG_RAX as usize] == -i64::from(libc::EINTR) && seen == call;
    if is_interrupted && begins_anew(&call) && !is_wanted(&context.uc_sigmask) {
        registers[REG_RIP as usize] -= SYSCALL_BYTES;
        registers[REG_RAX as usize] = call.number as i64;
    }
}

/// # Safety
/// None beside other machines, where this does nothing.
#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
pub(crate) unsafe fn resume(_at: usize, _context: *mut c_void) {}

/// What was noted in entry `at` of the calling thread.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only there calls are resumed"))]
fn noted(at: usize) -> Option<Call> {
    let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let [tid, number, args @ .., stack, next] = &ENTRIES.get(at)?.0;
    let args: &[AtomicU64; 6] = args;
    let call =
        Call { number: word(number), args: args.each_ref().map(word), stack: word(stack), next: word(next) };
    (word(tid) == u64::from(thread::own_id())).then_some(call)
}

/// Whether a call that a signal interrupts though its handler asks for a restart may begin anew.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only there calls are resumed"))]
fn begins_anew(call: &Call) -> bool {
    let [_, second, third, fourth, fifth, _] = call.args;
    match call.number as i64 {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => (third as i32) < 0,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => fifth == 0,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => (fourth as i32) < 0,
        libc::SYS_ppoll => third == 0,
        libc::SYS_pselect6 => fifth == 0,
        libc::SYS_epoll_pwait => (fourth as i32) < 0,
        libc::SYS_epoll_pwait2 => fourth == 0,
        libc::SYS_clock_nanosleep => second as i32 & libc::TIMER_ABSTIME != 0,
        libc::SYS_futex => second as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT_BITSET,
        libc::SYS_rt_sigtimedwait => third == 0,
        _ => false,
    }
}

/// Whether a signal of the program waits for the thread to leave the handler: it may be what is to end the call.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only there calls are resumed"))]
fn is_wanted(blocked: &libc::sigset_t) -> bool {
    // SAFETY: an all-zero set is a valid value.
    let mut pending: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a local.
    if unsafe { libc::sigpending(&raw mut pending) } != 0 {
        return true;
    }
    // SAFETY: both sets are valid, and the numbers are those of signals.
    let is_in = |set: &libc::sigset_t, number| unsafe { libc::sigismember(set, number) } == 1;
    (1..=libc::SIGRTMAX()).any(|number| is_in(&pending, number) && !is_in(blocked, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_is_told_from_a_running_one() {
        let call =
            parse(b"7 0x7ffd 0x1 0xffffffff 0x0 0x8 0x0 0x7ffc0010 0x7fa70362b2ad\n").expect("it waits");
        assert_eq!((call.number, call.args[2], call.next), (7, 0xffff_ffff, 0x7fa7_0362_b2ad));
        assert_eq!(parse(b"running\n"), None);
        assert_eq!(parse(b"-1 0x7ffc0010 0x7fa70362b2ad\n"), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn only_waits_without_a_length_begin_anew() {
        let call = |number: i64, args| Call { number: number as u64, args, stack: 0, next: 0 };
        assert!(begins_anew(&call(libc::SYS_poll, [0, 1, 0xffff_ffff, 0, 0, 0])));
        assert!(!begins_anew(&call(libc::SYS_poll, [0, 1, 100, 0, 0, 0])));
        assert!(begins_anew(&call(libc::SYS_clock_nanosleep, [1, 1, 5, 0, 0, 0])));
        assert!(!begins_anew(&call(libc::SYS_clock_nanosleep, [1, 0, 5, 0, 0, 0])));
        assert!(!begins_anew(&call(libc::SYS_read, [0; 6])));
    }
}
