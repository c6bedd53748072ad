//! What binding an emulated device of 1 TiB costs, beside the limits that we set ourselves.

use super::Row;
use super::contest::measure_alone;
use crate::process::{Task, cargo, target_dir};

/// What is measured, and its limit in the unit that the program prints.
const LIMITS: &[(&str, f64)] = &[("time", 5.0), ("memory", 1.0)];

/// Measures time and memory, each in fresh processes.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-programs").run()?;
    let program = target_dir().join("release/bench-bind").display().to_string();
    LIMITS
        .iter()
        .map(|(what, limit)| measure_alone(&Task::program(&program).arg(*what), rounds, "limit", *limit))
        .collect()
}
