//! What tests need of the kernel: a forked child whose end can be looked at, and patience with what other tests' children
//! and forks hold for a moment.

use std::time::Duration;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildEnd {
    /// It returned this exit code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Whether something comes true within ten seconds.
pub(crate) fn soon(mut is_true: impl FnMut() -> bool) -> bool {
    (0..1000).any(|_| {
        let is_true = is_true();
        if !is_true {
            std::thread::sleep(Duration::from_millis(10));
        }
        is_true
    })
}

/// Runs the test of this path alone in another process, and returns `true`; there it returns `false`. For tests that change
/// what the whole process does at a fork.
pub(crate) fn runs_in_own_process(test: &str) -> bool {
    const ALONE: &str = "TEST_IS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let ended = std::process::Command::new(program)
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && stdout.contains("1 passed"), "{}\n{stdout}\n{stderr}", ended.status);
    true
}

/// Runs `child` in a forked process, which exits with the number that it returns, and waits for its end.
///
/// Where fork handlers are registered and a pool has memory on a device, a fork stops the threads of the process, and is called off when it
/// meets one inside the C library's malloc: the child ends with [`CALLED_OFF`] before it runs, and is made again.
///
/// The test harness has threads, so `child` must keep to what a child of a threaded process may do: no
/// allocation where it matters, no locks that another thread may have held.
pub(crate) fn in_child(mut child: impl FnMut() -> i32) -> ChildEnd {
    const MOST_TRIES: usize = 10;
    (1..MOST_TRIES)
        .map(|_| child_once(&mut child))
        .find(|end| *end != ChildEnd::Exited(CALLED_OFF))
        .unwrap_or_else(|| child_once(&mut child))
}

/// What a child ends with whose fork was called off.
const CALLED_OFF: i32 = 75;

fn child_once(child: &mut impl FnMut() -> i32) -> ChildEnd {
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
