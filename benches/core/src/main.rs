//! Goes through the catalogue once and prints `NAME THREADS CONTENDER VALUE UNIT` for each value.
//!
//! `bench-core [--round N] [--quick] [--cpu-time] [GROUP]`. `--cpu-time` counts what the threads run, for busy machines. The number of the round decides who goes first; `cargo xtask bench core` runs a
//! process for each round, so that also what a process is dealt once, as the places of its memory, differs between them.

use daxtier_bench_core::Budget;
use daxtier_bench_core::catalogue::{Scale, cases};
use daxtier_bench_core::threads::count_cpu_time;
use std::process::ExitCode;
use std::time::Duration;

/// Enough for medians, and short enough for all cases.
const TIME: Duration = Duration::from_millis(12);

fn main() -> ExitCode {
    let (mut round, mut scale, mut time, mut group) = (0, Scale::FULL, TIME, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (scale, time) = (Scale::QUICK, Duration::from_micros(100)),
            "--cpu-time" => count_cpu_time(),
            "--round" => match arguments.next().and_then(|number| number.parse().ok()) {
                Some(number) => round = number,
                None => return usage(),
            },
            name if !name.starts_with('-') => group = Some(argument),
            _ => return usage(),
        }
    }
    let budget = Budget { operations: u64::MAX, time };
    for case in cases().iter().filter(|case| group.as_ref().is_none_or(|group| case.group == group)) {
        let nr_contenders = case.contenders.len();
        for turn in 0..nr_contenders {
            let who = case.contenders[(turn + round) % nr_contenders];
            let value = case.measure(who, scale, budget);
            println!("{} {} {who} {value:.3} {}", case.name, case.threads, case.unit);
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: bench-core [--round N] [--quick] [--cpu-time] [offset|refcount|pgmap|fragmentation|metadata]"
    );
    ExitCode::FAILURE
}
