//! `daxtier selftest`: checks on this machine that nothing is lost while memory moves.

use crate::print;
use daxtier::runtime::Outcome;
use daxtier::runtime::selftest::{Findings, Options, migrate};
use std::process::ExitCode;
use std::time::Duration;

/// Checks that this machine keeps the promises that the library makes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Move memory between the tiers while threads and system calls use it, and look for lost updates.
    #[arg(long, required = true)]
    migrate: bool,
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86400))]
    seconds: u64,
    /// The slow device.
    #[arg(long, value_name = "DEV", default_value = "emulated:128M")]
    slow: String,
    /// How many threads move it.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    workers: u8,
    /// How memory leaves DRAM: `pin-safe`, or `protect`, which lets readers go on.
    #[arg(long, value_name = "WAY", default_value = "pin-safe", value_parser = ["pin-safe", "protect"])]
    demote: String,
}

/// Runs the check; exit code 1 when something was lost or it could not be made.
pub(crate) fn run(args: Args) -> ExitCode {
    let mut options = Options::default();
    options.time = Duration::from_secs(args.seconds);
    options.config =
        format!("fast=64M slow={} migrate=on,workers={},demote={}", args.slow, args.workers, args.demote);
    match migrate(&options) {
        Ok(found) => {
            print::out(&text(&found));
            let has_moved = found.moves.get(Outcome::Moved) > 0;
            if found.is_clean() && has_moved { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            print::complain(error);
            ExitCode::FAILURE
        }
    }
}

fn text(found: &Findings) -> String {
    let outcomes: Vec<String> =
        found.moves.iter().map(|(outcome, count)| format!("{count} {}", outcome.as_str())).collect();
    format!(
        "slots of 2 MiB: {}\n\
         stores:         {}, {} lost, {} seen wrong while running\n\
         additions:      {}, {} lost; {} handovers of a lock\n\
         system calls:   {}, {} failed\n\
         longest stall:  {:.1} ms for 64 stores\n\
         {}\n",
        outcomes.join(", "),
        found.stores,
        found.lost_stores,
        found.mismatches,
        found.additions,
        found.lost_additions,
        found.handovers,
        found.calls,
        found.failed_calls,
        found.longest_stall.as_secs_f64() * 1e3,
        if found.is_clean() { "nothing was lost" } else { "UPDATES WERE LOST" }
    )
}
