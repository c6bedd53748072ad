//! `daxtier scrub`: clears what nobody uses of a device.

use crate::progress;
use clap::Args as ClapArgs;
use daxtier::device::{Dax, DaxOptions, DeviceError, Scrubbed};
use daxtier::runtime::MAX_SCRUB_THREADS;
use daxtier::units::Bytes;
use std::path::PathBuf;
use std::process::ExitCode;

/// Clears the parts of a dax device that no process uses.
#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// The device to clear, such as /dev/dax0.0
    #[arg(value_name = "DEV")]
    device: PathBuf,
    /// Clear persistent memory too
    #[arg(long)]
    allow_persistent: bool,
    /// Clear it although it holds a PMDK pool or a famfs file system, or a process maps it without a claim
    #[arg(long)]
    force: bool,
    /// How many threads clear it, up to 8 [default: 4, or as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MAX_SCRUB_THREADS as i64))]
    threads: Option<u8>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    match scrub(&args) {
        Ok(done) => {
            println!("{}", summary(done));
            if done.damaged_bytes == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            eprintln!("daxtier scrub: {message}");
            ExitCode::FAILURE
        }
    }
}

fn scrub(args: &Args) -> Result<Scrubbed, String> {
    let options =
        DaxOptions { force: args.force, allow_persistent: args.allow_persistent, ..DaxOptions::default() };
    let dax = Dax::open(&args.device, options).map_err(|error| told(&error, args))?;
    progress::scrub(&dax, "clearing", args.threads).map_err(|error| error.to_string())
}

/// Names the option of this command where the error names that of a configuration.
fn told(error: &DeviceError, args: &Args) -> String {
    let device = args.device.display();
    match error {
        DeviceError::HoldsData { found, .. } => format!(
            "{device} holds {found}, which would be overwritten; if that is meant, daxtier scrub --force {device}"
        ),
        DeviceError::Persistent { .. } => format!(
            "{device} is persistent memory: what is stored on it would be overwritten; if that is meant, \
             daxtier scrub --allow-persistent {device}"
        ),
        other => other.to_string(),
    }
}

fn summary(done: Scrubbed) -> String {
    let mut text = format!("cleared {}", Bytes(done.cleared_bytes));
    if done.used_bytes > 0 {
        text += &format!(", left {} that processes use", Bytes(done.used_bytes));
    }
    if done.damaged_bytes > 0 {
        text += &format!(", {} with damaged memory not wholly cleared", Bytes(done.damaged_bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_dax_device_is_refused() {
        for (path, word) in [("/dev/null", "/dev/null"), ("/dev/dax99.9", "dax99.9")] {
            let args = Args { device: path.into(), allow_persistent: false, force: false, threads: None };
            let refusal = scrub(&args).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
    }

    #[test]
    fn the_summary_says_what_was_left() {
        let mut done = Scrubbed::default();
        done.cleared_bytes = 3 << 30;
        assert_eq!(summary(done), "cleared 3 GiB");
        done.used_bytes = 2 << 20;
        done.damaged_bytes = 64 << 20;
        assert_eq!(
            summary(done),
            "cleared 3 GiB, left 2 MiB that processes use, 64 MiB with damaged memory not wholly cleared"
        );
    }
}
