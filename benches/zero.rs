//! Ways to come by 2 MiB of zeroes: a folio that is cleared now, one that was cleared before, a huge page's fault, memset.

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

#[path = "programs/src/zero_cases.rs"]
mod zero_cases;

fn zero(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero");
    // A batch takes milliseconds.
    group.sample_size(20);
    for &name in zero_cases::NAMES {
        let mut batch = match zero_cases::case(name) {
            Ok(batch) => batch,
            Err(error) => {
                println!("{name} is skipped: {error}");
                continue;
            }
        };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|wanted| {
                let (mut took, mut done) = (Duration::ZERO, 0);
                while done < wanted {
                    let (time, pieces) = batch();
                    took += time;
                    done += pieces;
                }
                took.mul_f64(wanted as f64 / done as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, zero);
criterion_main!(benches);
