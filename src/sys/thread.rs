//! The threads of the process.
//!
//! Nothing here allocates but `spawn_own`: the rest serves a fork, when the heap is at rest.

use super::file;
use crate::error::SysError;
use libc::{c_int, c_void, pid_t};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Returns how many threads the process has, unless the kernel does not tell.
pub(crate) fn count() -> Option<u64> {
    // SAFETY: an all-zero stat is a valid value that the call overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the buffer is a stat.
    let rc = unsafe { libc::stat(c"/proc/self/task".as_ptr(), &raw mut stat) };
    // The directory has one link a thread, and two of its own.
    (rc == 0).then(|| (stat.st_nlink as u64).saturating_sub(2))
}

/// Returns the kernel's number of the calling thread.
pub(crate) fn own_id() -> u32 {
    // SAFETY: takes no argument.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Whether a thread of this process has not ended. May change `errno`.
pub(crate) fn is_alive(tid: u32) -> bool {
    // SAFETY: takes no argument.
    let own_process = unsafe { libc::getpid() };
    // Signal 0 is sent to nobody.
    // SAFETY: takes numbers only.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, own_process, tid as pid_t, 0) };
    rc == 0 || super::errno::get() != libc::ESRCH
}

/// Makes a key whose value `destructor` gets when a thread ends that has set one; `None` when there are no more keys.
pub(crate) fn make_key(destructor: unsafe extern "C" fn(*mut c_void)) -> Option<u32> {
    let mut key: libc::pthread_key_t = 0;
    // SAFETY: the key is writable; the caller's destructor is a function of this library, which is never unloaded.
    (unsafe { libc::pthread_key_create(&raw mut key, Some(destructor)) } == 0).then_some(key)
}

/// Returns the calling thread's value of a key; NULL before it has set one.
pub(crate) fn key_value(key: u32) -> *mut c_void {
    // SAFETY: takes any number; one that is no key has the value NULL.
    unsafe { libc::pthread_getspecific(key) }
}

/// Sets the calling thread's value of a key. Returns whether there was memory for it.
pub(crate) fn set_key_value(key: u32, value: *mut c_void) -> bool {
    // SAFETY: takes any number and any value; the key's maker answers for what its destructor does with it.
    unsafe { libc::pthread_setspecific(key, value) == 0 }
}

/// Whether a thread of this process sleeps in the system call that locks use; `false` where the kernel does not tell.
pub(crate) fn waits_for_lock(tid: u32) -> bool {
    let mut path = [0u8; 64];
    let mut text = [0u8; 32];
    let Some(text) =
        task_file(tid, b"/syscall\0", &mut path).and_then(|path| file::read_start(path, &mut text))
    else {
        return false;
    };
    // The call's number comes first, in decimal; "running" for a thread that does not sleep.
    let digits = text.split(|&byte| byte == b' ').next().unwrap_or_default();
    parse_number(digits).map(i64::from) == Some(libc::SYS_futex)
}

/// Writes the path of a file in a thread's folder of /proc; `name` ends with NUL.
pub(super) fn task_file<'a>(tid: u32, name: &[u8], path: &'a mut [u8; 64]) -> Option<&'a CStr> {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = tid;
    while rest > 0 || at == digits.len() {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let mut len = 0;
    for part in [b"/proc/self/task/".as_slice(), &digits[at..], name] {
        path.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    CStr::from_bytes_with_nul(&path[..len]).ok()
}

/// Whether a thread of this process has ended and is only still listed.
pub(crate) fn is_dead(tid: pid_t) -> bool {
    let mut path = [0u8; 64];
    let mut text = [0u8; 64];
    let Some(text) =
        task_file(tid as u32, b"/stat\0", &mut path).and_then(|path| file::read_start(path, &mut text))
    else {
        return false;
    };
    // number (name) state ..., where the name has 15 bytes at most.
    let behind_name = text.iter().rposition(|&byte| byte == b')').and_then(|at| text.get(at + 2));
    matches!(behind_name, Some(b'Z' | b'X'))
}

/// Up to `MOST` threads that were met already.
pub(crate) struct Seen<const MOST: usize> {
    tids: [pid_t; MOST],
    len: usize,
}

impl<const MOST: usize> Seen<MOST> {
    /// Makes an empty set.
    pub(crate) fn new() -> Seen<MOST> {
        Seen { tids: [0; MOST], len: 0 }
    }

    /// Whether a thread was met already.
    pub(crate) fn contains(&self, tid: pid_t) -> bool {
        self.tids[..self.len].contains(&tid)
    }

    /// Adds a thread; returns whether it is new. A set that is full takes no more.
    pub(crate) fn insert(&mut self, tid: pid_t) -> bool {
        if self.len == MOST || self.contains(tid) {
            return false;
        }
        self.tids[self.len] = tid;
        self.len += 1;
        true
    }
}

/// Calls `visit` with every thread of the process but the calling one and the library's own; returns how often it said
/// true, or `None` where the kernel does not list them.
pub(crate) fn for_each_other(mut visit: impl FnMut(pid_t) -> bool) -> Option<u32> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let dir = unsafe { libc::open(c"/proc/self/task".as_ptr(), flags) };
    if dir < 0 {
        return None;
    }
    let own = own_id() as pid_t;
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
            if let Some(tid) = parse_number(name).filter(|&tid| tid != own && !is_own(tid))
                && visit(tid)
            {
                said_true += 1;
            }
        }
    }
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(dir) };
    Some(said_true)
}

/// The most threads that the library starts.
const MOST_OWN: usize = 16;

/// The niceness of threads that the program waits for, where it may be below the program's.
const WAITED_FOR_NICE: c_int = -10;

/// How a thread of the library's stands to those of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Threads of the program wait for it, so it should not wait for a processor.
    WaitedFor,
    /// It does what nobody waits for. No less than the program's own threads, since it holds locks of theirs.
    Background,
}

/// The threads that the library started, each with the number of its process in the upper half: a forked child has none
/// of its parent's. They run only library code, so nobody needs to stop them.
static OWN: [AtomicU64; MOST_OWN] = [const { AtomicU64::new(0) }; MOST_OWN];

fn is_own(tid: pid_t) -> bool {
    let word = own_word(tid);
    // Acquire: pairs with the Release of `spawn_own`; nothing else is read.
    OWN.iter().any(|own| own.load(Ordering::Acquire) == word)
}

fn own_word(tid: pid_t) -> u64 {
    u64::from(std::process::id()) << 32 | u64::from(tid as u32)
}

/// Processors.
#[derive(Clone, Copy)]
pub(crate) struct CpuSet(libc::cpu_set_t);

impl CpuSet {
    /// Collects processors, of numbers below 1024.
    pub(crate) fn new(cpus: impl IntoIterator<Item = u16>) -> CpuSet {
        // SAFETY: an all-zero set is a valid value.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in cpus {
            // SAFETY: checks the number against the size of the set.
            unsafe { libc::CPU_SET(cpu.into(), &mut set) };
        }
        CpuSet(set)
    }
}

/// Starts a thread of the library's own: all signals blocked, known to [`for_each_other`], on `cpus` only where given.
/// Returns when it runs.
///
/// # Errors
/// The refusal of pthread_create, `EAGAIN` when the library has as many as it can have, or the refusal of
/// sched_setaffinity: `EINVAL` when there is none of the processors, or the process may use none of them.
pub(crate) fn spawn_own(
    body: extern "C" fn(usize),
    argument: usize,
    urgency: Urgency,
    cpus: Option<&CpuSet>,
) -> Result<(), SysError> {
    const NO_PLACE: u32 = 2;
    const NO_CPU: u32 = 3;
    struct Start<'a> {
        body: extern "C" fn(usize),
        argument: usize,
        urgency: Urgency,
        cpus: Option<&'a CpuSet>,
        /// 0 until the thread runs; then 1, [`NO_PLACE`] when there was none for it, or [`NO_CPU`].
        state: AtomicU32,
    }
    extern "C" fn run(start: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the starter keeps the structure until the state changes.
        let start = unsafe { &*start.cast::<Start<'_>>() };
        if let Some(cpus) = start.cpus {
            // SAFETY: reads a set of this size; 0 is the calling thread.
            if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus.0) } != 0 {
                // Release: as below.
                start.state.store(NO_CPU, Ordering::Release);
                return std::ptr::null_mut();
            }
        }
        let (body, argument) = (start.body, start.argument);
        let word = own_word(own_id() as pid_t);
        let is_stale = |own: u64| own >> 32 != word >> 32;
        let place = OWN.iter().find(|own| {
            // Release: pairs with the Acquire of `is_own`.
            own.fetch_update(Ordering::Release, Ordering::Relaxed, |own| is_stale(own).then_some(word))
                .is_ok()
        });
        let has_place = place.is_some();
        if start.urgency == Urgency::WaitedFor {
            // Without the right to it the thread runs like others.
            // SAFETY: takes numbers only; 0 is the calling thread.
            let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, WAITED_FOR_NICE) };
        }
        // Release: pairs with the Acquire of the starter, whose structure is gone after it.
        start.state.store(if has_place { 1 } else { NO_PLACE }, Ordering::Release);
        if has_place {
            body(argument);
            // Not known any more; the number may be another thread's soon.
            if let Some(own) = place {
                own.store(0, Ordering::Release);
            }
        }
        std::ptr::null_mut()
    }
    let start = Start { body, argument, urgency, cpus, state: AtomicU32::new(0) };
    // SAFETY: all-zero sets are valid values.
    let (mut all, mut former): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a local.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both sets are locals. The new thread inherits the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut former) };
    let mut thread = std::mem::MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: the function takes a pointer to the structure, which outlives the wait below.
    let errno = unsafe {
        libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), run, (&raw const start).cast_mut().cast())
    };
    // SAFETY: as for the first call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const former, std::ptr::null_mut()) };
    if errno != 0 {
        return Err(SysError { call: "pthread_create", errno });
    }
    // SAFETY: pthread_create returned success and filled it.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: nobody joins the thread.
    unsafe { libc::pthread_detach(thread) };
    // Acquire: pairs with the Release of the thread.
    while start.state.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    match start.state.load(Ordering::Acquire) {
        1 => Ok(()),
        NO_CPU => Err(SysError { call: "sched_setaffinity", errno: libc::EINVAL }),
        _ => Err(SysError { call: "pthread_create", errno: libc::EAGAIN }),
    }
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

fn parse_number(digits: &[u8]) -> Option<pid_t> {
    digits.iter().try_fold(0 as pid_t, |tid, &digit| {
        let digit = digit.is_ascii_digit().then(|| pid_t::from(digit - b'0'))?;
        tid.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_threads_are_found_and_counted() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(own_id() as pid_t).expect("the test waits");
            let _ = stopped.recv();
        });
        let tid = told.recv().expect("the thread tells its number");
        let mut seen = Seen::<64>::new();
        for_each_other(|tid| seen.insert(tid));
        assert!(!seen.insert(tid), "the thread was not found");
        assert!(count() >= Some(2));
        drop(stop);
        thread.join().expect("the thread ends");
    }
}
