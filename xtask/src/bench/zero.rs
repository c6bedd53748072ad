//! What 2 MiB of zeroes cost: cleared when asked for or ahead, beside a huge page's fault and memset.

use super::Row;
use super::contest::Contest;
use crate::process::{Task, cargo, target_dir};

/// Ours, and what it is set beside.
const CASES: &[(&str, &str)] = &[
    ("fresh", "fault"),
    ("fresh", "memset"),
    ("prezeroed", "fault"),
    ("prezeroed", "fresh"),
    ("prezeroed", "plain"),
];

/// Measures every case.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-programs").run()?;
    let program = target_dir().join("release/bench-zero").display().to_string();
    let task = |what: &str| Task::program(&program).arg(what);
    CASES
        .iter()
        .map(|(ours, peer)| {
            Contest { ours: task(ours), peer_name: (*peer).to_owned(), peer: task(peer) }.run(rounds)
        })
        .collect()
}
