//! References to folios, ours beside the peers. `cargo xtask bench core` has the same in one table.

mod group;

criterion::criterion_group!(benches, refcount);
criterion::criterion_main!(benches);

fn refcount(criterion: &mut criterion::Criterion) {
    group::run(criterion, "refcount");
}
