//! A few seconds of each fuzz target in `fuzz/targets`.
//!
//! libFuzzer and the compiler's coverage pass, with the address sanitizer; no further tool is needed.

use super::HOST;
use crate::process::{Task, cargo, target_dir};

const SECONDS: u32 = 10;

const FLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Builds all targets and runs one after the other.
///
/// # Errors
/// The first target that finds something; libFuzzer has then printed the input and the file that holds it.
pub(super) fn run() -> Result<(), String> {
    let folder = target_dir().join("fuzz");
    cargo("build --quiet --locked --release --manifest-path fuzz/Cargo.toml")
        .words(&format!("--target {HOST} --target-dir"))
        .arg(folder.display().to_string())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS)
        .run()?;
    for target in targets()? {
        println!("    fuzzing {target} for {SECONDS} s");
        Task::program(folder.join(HOST).join("release").join(&target).display().to_string())
            .words(&format!("-max_total_time={SECONDS} -verbosity=0 -print_final_stats=1 -timeout=10"))
            .arg(format!("-artifact_prefix={}/found-{target}-", folder.display()))
            .run()?;
    }
    Ok(())
}

/// Returns the names of the targets: one for each file.
fn targets() -> Result<Vec<String>, String> {
    let folder = crate::root().join("fuzz/targets");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    if names.is_empty() { Err(format!("{} has no targets", folder.display())) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_program_of_the_fuzz_package() {
        let manifest = std::fs::read_to_string(crate::root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
        }
    }
}
