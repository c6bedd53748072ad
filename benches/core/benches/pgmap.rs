//! References to a pgmap, and the life of its folios, ours beside the peers. `cargo xtask bench core` has the same in one
//! table.

mod group;

criterion::criterion_group!(benches, pgmap);
criterion::criterion_main!(benches);

fn pgmap(criterion: &mut criterion::Criterion) {
    group::run(criterion, "pgmap");
}
