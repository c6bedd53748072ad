//! The C library's list of streams, and messages that must not allocate.

use std::sync::OnceLock;

type LockFn = unsafe extern "C" fn();

/// The C library's lock on its list of streams is held until this is dropped.
///
/// A fork takes this lock after the prepare handlers, so who stops threads before a fork must hold it first. The
/// lock is recursive: the fork takes it again.
pub(crate) struct StreamLock {
    unlock: LockFn,
}

impl StreamLock {
    /// Takes the lock; `None` where the C library has no such functions.
    pub(crate) fn take() -> Option<StreamLock> {
        static FUNCTIONS: OnceLock<Option<(LockFn, LockFn)>> = OnceLock::new();
        let (lock, unlock) =
            (*FUNCTIONS.get_or_init(|| Some((find(c"_IO_list_lock")?, find(c"_IO_list_unlock")?))))?;
        // SAFETY: the function takes no argument; glibc exports it for this purpose.
        unsafe { lock() };
        Some(StreamLock { unlock })
    }
}

impl Drop for StreamLock {
    fn drop(&mut self) {
        // SAFETY: the lock was taken by this thread, or by the one that it is the forked copy of.
        unsafe { (self.unlock)() };
    }
}

fn find(name: &std::ffi::CStr) -> Option<LockFn> {
    // SAFETY: the name is NUL-terminated; RTLD_DEFAULT needs no handle.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: glibc's functions of these names take and return nothing; NULL becomes None.
    unsafe { std::mem::transmute::<*mut libc::c_void, Option<LockFn>>(found) }
}

/// Writes a message to standard error, without allocating and without a lock.
pub(crate) fn complain(message: &str) {
    super::descriptors::write_error(message.as_bytes());
}
