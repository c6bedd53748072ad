//! What the preload library costs: the same program under ours with DRAM only, and under a library that forwards
//! malloc straight to the same mimalloc.

use super::Row;
use super::contest::Contest;
use crate::process::{Task, cargo, target_dir};

/// Pattern, threads, operations: each run takes a fraction of a second.
const CASES: &[(&str, u32, u64)] = &[
    ("pair-64", 1, 20_000_000),
    ("pair-64", 2, 20_000_000),
    ("churn", 1, 8_000_000),
    ("churn", 2, 8_000_000),
    ("batch", 1, 10_000_000),
    ("large", 1, 100_000),
    ("handover", 1, 8_000_000),
    ("handover", 2, 4_000_000),
];

/// Measures every case.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-preload").run()?;
    cargo("build --locked --release --package daxtier-peer-mimalloc --package daxtier-bench-programs")
        .run()?;
    CASES.iter().map(|case| contest(*case).run(rounds)).collect()
}

fn contest((pattern, threads, operations): (&str, u32, u64)) -> Contest {
    let folder = target_dir().join("release");
    let program = |library: &str| {
        Task::program(folder.join("bench-malloc").display().to_string())
            .arg(pattern)
            .arg(threads.to_string())
            .arg(operations.to_string())
            .env("LD_PRELOAD", folder.join(library).display().to_string())
    };
    Contest {
        ours: program("libdaxtier_preload.so").env("DAXTIER_FAST", "2G"),
        peer_name: "mimalloc".to_owned(),
        peer: program("libpeer_mimalloc.so"),
    }
}
