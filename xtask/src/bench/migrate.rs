//! What moving a slot of 2 MiB costs: beside copies of the same bytes, and beside the conventional mprotect and SIGSEGV.

use super::Row;
use super::contest::Contest;
use crate::process::{Task, cargo, target_dir};

/// Ours, and what it is set beside.
const CASES: &[(&str, &str)] = &[
    ("demote", "nt-copy"),
    ("promote", "nt-copy"),
    ("demote", "memcpy"),
    ("promote", "memcpy"),
    ("demote", "sigsegv"),
    ("demote-total", "nt-copy"),
    ("promote-total", "nt-copy"),
    ("stall-demote", "nt-copy"),
    ("stall-promote", "nt-copy"),
    ("stall-demote-p99", "nt-copy"),
    ("stall-promote-p99", "nt-copy"),
    ("stall-demote-max", "nt-copy"),
    ("stall-promote-max", "nt-copy"),
];

/// Measures every case, and the throughput.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-programs").run()?;
    let program = target_dir().join("release/bench-migrate").display().to_string();
    let task = |what: &str| Task::program(&program).arg(what);
    CASES
        .iter()
        .map(|(ours, peer)| {
            Contest { ours: task(ours), peer_name: (*peer).to_owned(), peer: task(peer) }.run(rounds)
        })
        .chain(std::iter::once_with(|| {
            Contest { ours: task("throughput"), peer_name: "copy".to_owned(), peer: task("copy-throughput") }
                .run(rounds)
        }))
        .collect()
}
