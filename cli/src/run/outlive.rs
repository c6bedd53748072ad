//! Staying until the program has ended, to clear what it left on its devices.
//!
//! With `scrub=on-release` the program is a child of this process rather than its successor: only who outlives a
//! process can clear what that used to its last instruction, and what one leaves that is killed. Signals that others send to this
//! process go on to the program; those of the terminal reach both, and the program decides. What it returns is returned.
//!
//! What is cleared is what nobody has claimed by then, so a process that the program left behind keeps what it has.

use super::{RUN_PID, execute};
use crate::{print, progress};
use daxtier::device::{Dax, DeviceSpec, ScrubPolicy};
use daxtier::runtime::config::SlowSpec;
use daxtier::units::Bytes;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::ptr;

/// Signals by which others tell a program to do something.
const PASSED_ON: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Returns the devices that are to be cleared behind the program.
pub(super) fn to_clear(slow: &[SlowSpec]) -> Vec<SlowSpec> {
    let is_meant = |spec: &&SlowSpec| spec.scrub == ScrubPolicy::OnRelease;
    slow.iter().filter(is_meant).cloned().collect()
}

/// Runs the program, clears the devices, and returns what the program returned.
pub(super) fn run(
    command: &[OsString],
    environment: &[(OsString, OsString)],
    devices: &[SlowSpec],
) -> ExitCode {
    let code = match start(command, environment) {
        Ok(code) => code,
        Err(error) => {
            print::complain(format_args!("{}: {error}", command[0].display()));
            return ExitCode::FAILURE;
        }
    };
    devices.iter().for_each(clear);
    ExitCode::from(code)
}

/// Runs the program to its end, and returns its exit code, or 128 and the number of the signal that ended it.
fn start(command: &[OsString], environment: &[(OsString, OsString)]) -> std::io::Result<u8> {
    let mut waited_for = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut former = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes to a set that outlives the call.
    unsafe { libc::sigemptyset(waited_for.as_mut_ptr()) };
    for signal in PASSED_ON.into_iter().chain([libc::SIGCHLD]) {
        // SAFETY: as above, with the number of a signal.
        unsafe { libc::sigaddset(waited_for.as_mut_ptr(), signal) };
    }
    // Held back from before the program exists, so that none is missed.
    // SAFETY: both sets outlive the call.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, waited_for.as_ptr(), former.as_mut_ptr()) };
    // A parent that ignores it would never hear of the end. The program gets what there was.
    // SAFETY: sets the default for a signal.
    let former_chld = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let go_back = || {
        // SAFETY: what was in force before.
        unsafe { libc::signal(libc::SIGCHLD, former_chld) };
        // SAFETY: the set was written by the kernel.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut()) };
    };
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child < 0 {
        let error = std::io::Error::last_os_error();
        go_back();
        return Err(error);
    }
    if child == 0 {
        go_back();
        let mut environment = environment.to_vec();
        environment.retain(|(name, _)| name != RUN_PID);
        environment.push((RUN_PID.into(), std::process::id().to_string().into()));
        let refused = execute(command, &environment);
        print::complain(&refused);
        // SAFETY: ends the child without what the parent would do at its end.
        unsafe { libc::_exit(i32::from(refused.exit_code_number())) };
    }
    let status = wait(child, &waited_for);
    go_back();
    status.map(code_of)
}

/// Waits for the end of the program, and passes signals on meanwhile.
fn wait(child: libc::pid_t, signals: &MaybeUninit<libc::sigset_t>) -> std::io::Result<libc::c_int> {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the set is one, and the structure outlives the call.
        let signal = unsafe { libc::sigwaitinfo(signals.as_ptr(), info.as_mut_ptr()) };
        if signal > 0 && signal != libc::SIGCHLD {
            // SAFETY: the kernel wrote it, and all zeroes are valid too.
            let info = unsafe { info.assume_init() };
            // What the terminal sends goes to all of its foreground.
            if info.si_code != libc::SI_KERNEL {
                // SAFETY: the child was not waited for, so the number is still its own.
                unsafe { libc::kill(child, signal) };
            }
            continue;
        }
        let mut status = 0;
        // SAFETY: the child is ours, the status writable.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended == child {
            return Ok(status);
        }
        let error = std::io::Error::last_os_error();
        if ended < 0 && error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

fn code_of(status: libc::c_int) -> u8 {
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    code as u8
}

/// Clears what nobody uses of a device.
fn clear(spec: &SlowSpec) {
    let DeviceSpec::Dax(path) = &spec.device else { return };
    let device = path.display();
    let cleared = Dax::open(path, spec.dax_options())
        .and_then(|dax| progress::scrub(&dax, &format!("clearing {device}"), None));
    match cleared {
        Ok(done) if done.damaged_bytes > 0 => print::complain(format_args!(
            "{device}: {} with damaged memory were not wholly cleared",
            Bytes(done.damaged_bytes)
        )),
        Ok(_) => {}
        Err(error) => {
            print::complain(format_args!("{device} was not wholly cleared behind the program: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_be_clear_is_cleared() {
        let specs: Vec<SlowSpec> = ["/dev/dax0.0", "/dev/dax1.0,scrub=on-release", "/dev/dax2.0,scrub=never"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(to_clear(&specs), [specs[1].clone()]);
        assert_eq!(to_clear(&["emulated:64M".parse().unwrap()]), []);
    }

    #[test]
    fn an_end_by_a_signal_reads_as_a_shell_has_it() {
        assert_eq!([code_of(7 << 8), code_of(0), code_of(9), code_of(11 | 0x80)], [7, 0, 137, 139]);
    }
}
