//! `daxtier drain`: has a running process leave a device.

use crate::print;
use daxtier::runtime::control::{ControlError, drain_device_of, remove_device_of, resume_device_of};
use daxtier::units::Bytes;
use std::process::ExitCode;
use std::time::Duration;

/// Has a running process move its memory off a device.
///
/// Nothing more is placed there, what is there is moved to other devices or DRAM, and what can't be moved is listed with its
/// holder and address. Exit code 0 when nothing is left. The process goes on all the while.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The device, by the name that the process was started with, such as /dev/dax0.0
    #[arg(value_name = "DEV")]
    device: String,
    /// The process, which runs under daxtier
    pid: u32,
    /// How long to try, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "resume")]
    timeout: u32,
    /// Give the device up afterwards, so that other processes can have its claims
    #[arg(long, conflicts_with = "resume")]
    remove: bool,
    /// Use the device again instead
    #[arg(long)]
    resume: bool,
}

/// Asks the process and prints what it says.
pub(crate) fn run(args: Args) -> ExitCode {
    match drain(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print::complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Returns whether nothing is left.
fn drain(args: &Args) -> Result<bool, ControlError> {
    let device = &args.device;
    if args.resume {
        resume_device_of(args.pid, device)?;
        print::out(&format!("{device}: process {} uses it again\n", args.pid));
        return Ok(true);
    }
    let report = drain_device_of(args.pid, device, Duration::from_secs(args.timeout.into()))?;
    let moved = Bytes(report.moved_bytes);
    let mut text = if report.held.is_empty() {
        format!("{device}: drained, {moved} moved away\n")
    } else {
        format!("{device}: {moved} moved away, {} pieces are left\n", report.held.len())
    };
    if let Some(reason) = &report.immovable {
        text += &format!("blocks can't be moved: {reason}\n");
    }
    for held in &report.held {
        text += &format!("  {held}\n");
    }
    print::out(&text);
    if !report.held.is_empty() {
        return Ok(false);
    }
    if args.remove {
        remove_device_of(args.pid, device)?;
        print::out(&format!("{device}: process {} has given it up\n", args.pid));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_listen_is_named() {
        let args = |pid| Args { device: "/dev/dax0.0".into(), pid, timeout: 1, remove: false, resume: false };
        let own = std::process::id();
        assert_eq!(drain(&args(own)), Err(ControlError::NotListening { pid: own }));
        let gone = u32::MAX >> 1;
        assert_eq!(drain(&args(gone)), Err(ControlError::NoSuchProcess { pid: gone }));
    }
}
