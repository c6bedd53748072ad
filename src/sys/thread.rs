//! The threads of the process, and a signal borrowed to reach them.
//!
//! Nothing here allocates: it serves a fork, when the heap is at rest.

use libc::{c_int, pid_t};

/// Returns how many threads the process has; 1 where /proc is not to be had.
pub(crate) fn count() -> u64 {
    // SAFETY: an all-zero stat is a valid value that the call overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the buffer is a stat.
    let rc = unsafe { libc::stat(c"/proc/self/task".as_ptr(), &raw mut stat) };
    // The directory has one link a thread, and two of its own.
    if rc == 0 { (stat.st_nlink as u64).saturating_sub(2).max(1) } else { 1 }
}

/// The most threads that a [`Seen`] remembers.
const MOST_THREADS: usize = 4096;

/// Threads that were met already.
pub(crate) struct Seen {
    tids: [pid_t; MOST_THREADS],
    len: usize,
}

impl Seen {
    /// Makes an empty set.
    pub(crate) fn new() -> Seen {
        Seen { tids: [0; MOST_THREADS], len: 0 }
    }

    /// Adds a thread; returns whether it is new. A set that is full takes no more.
    pub(crate) fn insert(&mut self, tid: pid_t) -> bool {
        if self.len == MOST_THREADS || self.tids[..self.len].contains(&tid) {
            return false;
        }
        self.tids[self.len] = tid;
        self.len += 1;
        true
    }
}

/// Calls `visit` with every thread of the process but the calling one; returns how often it said true.
pub(crate) fn for_each_other(mut visit: impl FnMut(pid_t) -> bool) -> u32 {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let dir = unsafe { libc::open(c"/proc/self/task".as_ptr(), flags) };
    if dir < 0 {
        return 0;
    }
    // SAFETY: takes no argument.
    let own = unsafe { libc::syscall(libc::SYS_gettid) } as pid_t;
    let mut buffer = [0u64; 512];
    let mut said_true = 0;
    loop {
        // SAFETY: the buffer is writable for the length that is passed.
        let filled =
            unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), size_of_val(&buffer)) };
        let Some(filled) = usize::try_from(filled).ok().filter(|&filled| filled > 0) else { break };
        // SAFETY: the kernel filled so many bytes of the buffer.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled) };
        for name in names(bytes) {
            if let Some(tid) = parse_tid(name).filter(|&tid| tid != own)
                && visit(tid)
            {
                said_true += 1;
            }
        }
    }
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(dir) };
    said_true
}

/// The names in a buffer of `struct linux_dirent64`: the record's length is at byte 16, its name from byte 19 on.
fn names(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes([*rest.get(16)?, *rest.get(17)?]));
        let name = rest.get(19..len)?;
        rest = rest.get(len..)?;
        Some(name.split(|&byte| byte == 0).next().unwrap_or_default())
    })
}

fn parse_tid(name: &[u8]) -> Option<pid_t> {
    name.iter().try_fold(0 as pid_t, |tid, &digit| {
        let digit = digit.is_ascii_digit().then(|| pid_t::from(digit - b'0'))?;
        tid.checked_mul(10)?.checked_add(digit)
    })
}

/// A real-time signal that the program does not use, with a handler of ours.
///
/// The handler stays for good: a thread that blocks the signal may get it much later, and the default action would
/// end the process.
pub(crate) struct BorrowedSignal {
    number: c_int,
}

impl BorrowedSignal {
    /// Finds a signal that has no handler, or ours from before, and installs `handler`, which may only do what a signal handler may.
    pub(crate) fn take(handler: extern "C" fn(c_int)) -> Option<BorrowedSignal> {
        for number in (libc::SIGRTMIN()..libc::SIGRTMAX()).rev() {
            // SAFETY: all-zero sigactions are valid values.
            let (mut former, mut own): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
            // SAFETY: asks for the present action only.
            let rc = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut former) };
            own.sa_sigaction = handler as *const () as usize;
            if rc == 0 && former.sa_sigaction == own.sa_sigaction {
                return Some(BorrowedSignal { number });
            }
            if rc != 0 || former.sa_sigaction != libc::SIG_DFL {
                continue;
            }
            own.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            // SAFETY: the set is a field of a valid sigaction.
            unsafe { libc::sigfillset(&raw mut own.sa_mask) };
            // SAFETY: both pointers are valid; the handler is what the caller vouched for.
            if unsafe { libc::sigaction(number, &raw const own, std::ptr::null_mut()) } == 0 {
                return Some(BorrowedSignal { number });
            }
        }
        None
    }

    /// Sends the signal to a thread of this process; returns whether the thread was there.
    pub(crate) fn send(&self, tid: pid_t) -> bool {
        // SAFETY: takes no argument.
        let own = unsafe { libc::getpid() };
        // SAFETY: takes no pointer.
        unsafe { libc::syscall(libc::SYS_tgkill, own, tid, self.number) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_threads_are_found_and_counted() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: takes no argument.
            tell.send(unsafe { libc::syscall(libc::SYS_gettid) } as pid_t).expect("the test waits");
            let _ = stopped.recv();
        });
        let tid = told.recv().expect("the thread tells its number");
        let mut seen = Seen::new();
        for_each_other(|tid| seen.insert(tid));
        assert!(!seen.insert(tid), "the thread was not found");
        assert!(count() >= 2);
        drop(stop);
        thread.join().expect("the thread ends");
    }
}
