//! `daxtier stat`: the figures of a running process, from outside.

use crate::print;
use daxtier::runtime::stats_of_process;
use std::process::ExitCode;

/// Shows where the memory of a running process is.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The process, which runs under daxtier.
    pid: u32,
    /// Print JSON: one object per pool (docs/STATS.md lists the keys).
    #[arg(long)]
    json: bool,
}

/// Reads and prints the figures; exit code 1 when there are none to read.
pub(crate) fn run(args: Args) -> ExitCode {
    match stats_of_process(args.pid) {
        Ok(pools) => {
            for pool in pools {
                print::out(&if args.json { pool.to_json() } else { pool.to_text() });
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            print::complain(error);
            ExitCode::FAILURE
        }
    }
}
