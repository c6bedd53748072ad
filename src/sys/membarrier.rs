//! Barriers that reach every thread of the process, and restart the restartable sequences that are under way.
//!
//! Linux `kernel/sched/membarrier.c`. Both functions keep `errno` as it was, because they run inside `malloc`.

use super::errno;
use crate::error::SysError;
use libc::{c_int, c_long};

const QUERY: c_int = 0;
const PRIVATE_EXPEDITED_RSEQ: c_int = 1 << 7;
const REGISTER_PRIVATE_EXPEDITED_RSEQ: c_int = 1 << 8;

/// Returns whether the kernel offers [`restart_sections`]: Linux 5.10 and newer, unless a filter forbids it.
pub(crate) fn can_restart_sections() -> bool {
    let commands = call(QUERY).unwrap_or(0);
    commands & c_long::from(PRIVATE_EXPEDITED_RSEQ) != 0
}

/// Makes every restartable sequence of the process's threads that is under way fail or have ended, and orders memory
/// between the caller and all of them. Blocks for 0.4 us when no other thread runs, else for some 15 us; the first call
/// registers the process, which takes up to 20 ms once it has threads.
///
/// # Errors
/// The kernel's refusal; nothing is ordered then.
pub(crate) fn restart_sections() -> Result<(), SysError> {
    match call(PRIVATE_EXPEDITED_RSEQ) {
        Err(SysError { errno: libc::EPERM, .. }) => {
            call(REGISTER_PRIVATE_EXPEDITED_RSEQ)?;
            call(PRIVATE_EXPEDITED_RSEQ).map(drop)
        }
        outcome => outcome.map(drop),
    }
}

fn call(command: c_int) -> Result<c_long, SysError> {
    let saved = errno::get();
    // SAFETY: membarrier takes numbers only: command, flags, CPU.
    let outcome = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    let outcome = if outcome < 0 { Err(SysError::last("membarrier")) } else { Ok(outcome) };
    errno::set(saved);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_can_be_restarted_where_the_kernel_says_so() {
        errno::set(libc::EIO);
        assert_eq!(restart_sections().is_ok(), can_restart_sections());
        assert_eq!(errno::get(), libc::EIO);
    }
}
