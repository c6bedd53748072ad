//! A group of the catalogue for criterion.

use criterion::{Criterion, SamplingMode};
use daxtier_bench_core::Budget;
use daxtier_bench_core::catalogue::{Case, Scale, cases};
use std::time::Duration;

/// Has criterion measure every contender of every case in a group.
pub(crate) fn run(criterion: &mut Criterion, name: &str) {
    // `cargo test` wants to see that it works; only `cargo bench` says `--bench`.
    let scale = if std::env::args().any(|arg| arg == "--bench") { Scale::FULL } else { Scale::QUICK };
    for case in cases().iter().filter(|case| case.group == name) {
        let mut group = criterion.benchmark_group(format!("{name}/{}/{}", case.name, case.threads));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
        for who in &case.contenders {
            group.bench_function(*who, |bencher| {
                bencher.iter_custom(|operations| time(case, who, scale, operations));
            });
        }
        group.finish();
    }
}

/// Repeats a case until that many operations are done; returns the time that they took, without what was prepared.
fn time(case: &Case, who: &str, scale: Scale, operations: u64) -> Duration {
    let (mut elapsed, mut done) = (Duration::ZERO, 0);
    while done < operations {
        let budget = Budget { operations: operations - done, time: Duration::MAX };
        let timing = case.time(who, scale, budget).expect("a case that takes time");
        elapsed += timing.elapsed;
        done += timing.operations;
    }
    // Some did more than they should.
    elapsed.mul_f64(operations as f64 / done as f64)
}
