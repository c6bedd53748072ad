//! What the library tells a person: why the program stops, and the figures at exit.

use super::config::{EXIT_CONFIG, RUN_PID, StatsTarget};
use super::{PoolError, process};
use crate::sync::service;
use crate::sys::{environment, stdio, text};
use std::sync::OnceLock;

/// Where the figures go at exit.
static TARGET: OnceLock<StatsTarget> = OnceLock::new();

/// Ends the program before it starts, with one message and the exit code of a wrong configuration.
pub(super) fn stop(error: &PoolError) -> ! {
    stdio::complain(&format!("daxtier: {error}\n"));
    // SAFETY: ends the process at once; no handler of the program runs, since it has not started.
    unsafe { libc::_exit(EXIT_CONFIG) }
}

/// Has the figures written when the program exits.
pub(super) fn at_exit(target: StatsTarget) {
    if TARGET.set(target).is_ok() {
        // Many programs close standard error on their way out, before the handler runs.
        text::keep_stderr();
        // SAFETY: the handler is a function of this library, which is not unloaded before exit.
        unsafe { libc::atexit(write) };
    }
}

/// Writes the figures to where the configuration wants them.
extern "C" fn write() {
    let (Some(target), Some(pool)) = (TARGET.get(), process::pool()) else { return };
    service::run(|| {
        if !is_ours_to_write(target) {
            return;
        }
        if let Err(error) = pool.stats().write_to(target) {
            text::write_stderr(format!("daxtier: {error}\n").as_bytes());
        }
    });
}

/// Under `daxtier run` one file without a process number in its name belongs to the process that was started; its
/// children would only overwrite it.
fn is_ours_to_write(target: &StatsTarget) -> bool {
    let pid = std::process::id();
    if target.path_for(pid) != target.path_for(pid.wrapping_add(1)) {
        return true;
    }
    let started = environment::variables().find(|(name, _)| *name == RUN_PID.as_bytes());
    started.is_none_or(|(_, value)| value == pid.to_string().as_bytes())
}
