//! `daxtier add`: has a running process use another device.

use crate::print;
use daxtier::runtime::control::add_device_to;
use std::process::ExitCode;

/// Has a running process use another slow device.
///
/// Memory is placed there from now on; what the process has stays where it is. It opens the device with its own rights. `daxtier drain`
/// has it leave a device.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The device with its options, as for run --slow: /dev/daxX.Y, emulated:SIZE or node:N[:SIZE]
    #[arg(value_name = "DEV")]
    device: String,
    /// The process, which runs under daxtier
    pid: u32,
}

/// Asks the process and prints what it says.
pub(crate) fn run(args: Args) -> ExitCode {
    match add_device_to(args.pid, &args.device) {
        Ok(()) => {
            print::out(&format!("{}: process {} uses it from now on\n", args.device, args.pid));
            ExitCode::SUCCESS
        }
        Err(error) => {
            print::complain(error);
            ExitCode::FAILURE
        }
    }
}
