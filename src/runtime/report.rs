//! What the library tells a person: why the program stops, and the figures at exit.

use super::config::{EXIT_CONFIG, RUN_PID, StatsTarget};
use super::{Pool, PoolError, process};
use crate::sync::{gate, service};
use crate::sys::process::exit_now;
use crate::sys::{environment, stdio, text};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the figures go at exit.
static TARGET: OnceLock<StatsTarget> = OnceLock::new();

/// Ends the program before it starts, with one message and the exit code of a wrong configuration.
pub(super) fn stop(error: &PoolError) -> ! {
    stdio::complain(&format!("daxtier: {error}\n"));
    // No handler of the program is left out, since it has not started.
    exit_now(EXIT_CONFIG)
}

/// Ends the program where the kernel has no memory for the library's own data: `before_main` as [`stop`] does, else by
/// SIGABRT. Allocates nothing.
#[cold]
pub(super) fn stop_for_want_of_memory(before_main: bool) -> ! {
    stdio::complain(
        "daxtier: the kernel refuses memory for the library's own data: raise the limits (`ulimit -d unlimited -v unlimited`)\n",
    );
    if before_main {
        exit_now(EXIT_CONFIG);
    }
    std::process::abort();
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

/// Writes the figures of a program that leaves without running its exit handlers. May be called in a signal handler, so it
/// does nothing where the handler interrupted the library, nor in the child of a vfork, whose memory is its parent's.
pub(super) fn on_leaving() {
    let is_own = |pool: &Pool| pool.publishes_for(std::process::id());
    if TARGET.get().is_some() && !gate::is_inside() && process::pool().is_some_and(is_own) {
        write();
    }
}

/// Writes the figures to where the configuration wants them, once.
extern "C" fn write() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let (Some(target), Some(pool)) = (TARGET.get(), process::pool()) else { return };
    // Relaxed: nothing hangs on it but that this is done once.
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
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
