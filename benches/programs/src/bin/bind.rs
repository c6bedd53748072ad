//! Binds an emulated device of 1 TiB and takes one folio from it, in a process that has done nothing else.
//!
//! `bench-bind time` prints `bind-1T 1 VALUE ms`, `bench-bind memory` prints `bind-1T-memory 1 VALUE MiB`: by how much the
//! resident memory of the process grew.

use daxtier::device::Emulated;
use daxtier::{Lifetime, Order, Pgmap, PgmapOptions};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LEN_BYTES: u64 = 1 << 40;
const ALIGN_BYTES: u64 = 2 << 20;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let line = measure().map(|(took, grown_bytes)| match what.as_str() {
        "time" => format!("bind-1T 1 {:.4} ms", took.as_secs_f64() * 1e3),
        "memory" => format!("bind-1T-memory 1 {:.4} MiB", grown_bytes as f64 / f64::from(1 << 20)),
        _ => "usage: bench-bind time|memory".to_owned(),
    });
    match line {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-bind: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the time of the bind, and the resident bytes that it and a first folio of a page cost.
fn measure() -> Result<(Duration, u64), Box<dyn std::error::Error>> {
    let before = resident_bytes()?;
    let device = Arc::new(Emulated::new(LEN_BYTES, ALIGN_BYTES)?);
    let start = Instant::now();
    let pgmap = Pgmap::bind(device, PgmapOptions::default())?;
    let took = start.elapsed();
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::default())?;
    let grown = resident_bytes()?.saturating_sub(before);
    drop(folio);
    Ok((took, grown))
}

/// Reads what of the process is in memory, exactly.
fn resident_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).ok_or("no Rss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}
