//! What tests need of the kernel: a forked child whose end can be looked at.

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildEnd {
    /// It returned this exit code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Runs `child` in a forked process, which exits with the number that it returns, and waits for its end.
///
/// The test harness has threads, so `child` must keep to what a child of a threaded process may do: no
/// allocation where it matters, no locks that another thread may have held.
pub(crate) fn in_child(child: impl FnOnce() -> i32) -> ChildEnd {
    // SAFETY: the child runs only `child` and _exit; callers keep `child` to what is allowed after fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: _exit does not return and runs no handlers of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waitpid writes one int that outlives the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if libc::WIFEXITED(status) {
        ChildEnd::Exited(libc::WEXITSTATUS(status))
    } else {
        ChildEnd::Killed(libc::WTERMSIG(status))
    }
}
