//! Binding and dropping an emulated device of 1 TiB: metadata must not cost what the device's size suggests.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use daxtier::device::Emulated;
use daxtier::{Pgmap, PgmapOptions};
use std::sync::Arc;

const LEN_BYTES: u64 = 1 << 40;
const ALIGN_BYTES: u64 = 2 << 20;

fn bind(criterion: &mut Criterion) {
    criterion.bench_function("bind 1 TiB", |bencher| {
        bencher.iter_batched(
            || Arc::new(Emulated::new(LEN_BYTES, ALIGN_BYTES).expect("a memfd can be made")),
            |device| Pgmap::bind(device, PgmapOptions::default()).expect("an emulated device binds"),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, bind);
criterion_main!(benches);
