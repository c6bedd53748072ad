//! Comes by 2 MiB of zeroes in one of several ways.
//!
//! `bench-zero CASE` prints `CASE 1 VALUE us`: the time for one piece, the median of several batches. The cases are those of
//! `zero_cases`.

#[path = "../zero_cases.rs"]
mod zero_cases;

use std::process::ExitCode;

const NR_BATCHES: usize = 9;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match measure(&name) {
        Ok(micros) => {
            println!("{name} 1 {micros:.4} us");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-zero: {error}; usage: bench-zero {}", zero_cases::NAMES.join("|"));
            ExitCode::FAILURE
        }
    }
}

fn measure(name: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let mut batch = zero_cases::case(name)?;
    // The first one brings in pages and buffers.
    batch();
    let mut times: Vec<f64> = (0..NR_BATCHES)
        .map(|_| batch())
        .map(|(took, pieces)| took.as_secs_f64() * 1e6 / pieces as f64)
        .collect();
    times.sort_by(f64::total_cmp);
    Ok(times[NR_BATCHES / 2])
}
