//! Offsets taken and given back, ours beside the peers. `cargo xtask bench core` has the same in one table.

mod group;

criterion::criterion_group!(benches, offset);
criterion::criterion_main!(benches);

fn offset(criterion: &mut criterion::Criterion) {
    group::run(criterion, "offset");
}
