//! The folio core beside its peers: what is measured, and how.
//!
//! `threads` runs a body on pinned threads for as long as a [`Budget`] allows. `patterns` are bodies that take and give back
//! runs of pages through the trait [`Offsets`](offsets::Offsets), which `offsets` and `buddy` implement for ours and the
//! peers. `references` compares reference counts. `fragmentation` and `metadata` measure no time. `catalogue` names all cases
//! with those who take part. The program `bench-core` goes through the catalogue; the benches under `benches/` have
//! criterion do so.

pub mod buddy;
pub mod catalogue;
pub mod fragmentation;
pub mod metadata;
pub mod offsets;
pub mod patterns;
pub mod references;
pub mod threads;

pub use threads::{Budget, Timing};
