//! What malloc costs under the preload library with DRAM only, and under a library that forwards malloc straight to the
//! same mimalloc. One iteration is a hundred thousand operations of `bench-malloc`, in a process of its own.
//!
//! `cargo xtask bench preload` takes the same measurements in turns; this one has criterion's statistics.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const OPERATIONS: u64 = 100_000;

fn malloc(criterion: &mut Criterion) {
    let folder = build();
    for pattern in ["pair-64", "churn", "batch"] {
        let mut group = criterion.benchmark_group(pattern);
        group.throughput(Throughput::Elements(OPERATIONS)).sample_size(20);
        for (name, library) in [("daxtier", "libdaxtier_preload.so"), ("mimalloc", "libpeer_mimalloc.so")] {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_custom(|iterations| run(&folder, library, pattern, iterations * OPERATIONS));
            });
        }
        group.finish();
    }
}

/// Builds what is measured with the profile of this bench; returns where it lies.
fn build() -> PathBuf {
    let this = std::env::current_exe().expect("a bench knows its own file");
    let folder = this.parent().and_then(Path::parent).expect("cargo keeps benches two folders down");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "daxtier-preload"])
        .args(["--package", "daxtier-peer-mimalloc", "--package", "daxtier-bench-programs", "--target-dir"])
        .arg(folder.parent().expect("a profile lies in a target folder"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo starts");
    assert!(status.success(), "what is measured must build");
    folder.to_path_buf()
}

/// Runs the bench program under a library; returns the time that all operations took.
fn run(folder: &Path, library: &str, pattern: &str, operations: u64) -> Duration {
    let output = Command::new(folder.join("bench-malloc"))
        .args([pattern, "1", &operations.to_string()])
        .env("LD_PRELOAD", folder.join(library))
        .env("DAXTIER_FAST", "1G")
        .output()
        .expect("the bench program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let value = text.split(' ').nth(2).and_then(|value| value.parse::<f64>().ok());
    let ns = value.unwrap_or_else(|| panic!("no value: {text}{}", String::from_utf8_lossy(&output.stderr)));
    Duration::from_nanos((ns * operations as f64) as u64)
}

criterion_group!(benches, malloc);
criterion_main!(benches);
