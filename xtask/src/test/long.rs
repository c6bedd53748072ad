//! The long half of `cargo xtask test --all`: model checking, sanitizers, fuzz targets.
//!
//! The sanitizers need unstable flags of rustc; `RUSTC_BOOTSTRAP=1` allows them on the stable compiler. Each flavour
//! builds into its own folder, so that the others' artefacts stay.

use super::{HOST, Tally, fuzz};
use crate::process::{Task, cargo};
use crate::setup;

/// Runs the long steps.
///
/// # Errors
/// The first step that fails, and how to repeat it.
pub(super) fn run(tally: &mut Tally) -> Result<(), String> {
    tally.step("loom", |tally| tally.tests(loom()))?;
    if cfg!(target_arch = "x86_64") {
        tally.step("thread sanitizer", |tally| {
            if let Err(missing) = setup::library_sources() {
                println!("skipped: {missing}");
                return Ok(());
            }
            // The standard library is built along: the one that comes with the compiler synchronises through fences,
            // which this sanitizer does not see. Nor does it see into restartable sequences: without the C library's areas the
            // compare-and-swap ways run in their place.
            let task = sanitized("thread", "-Zbuild-std", "stress");
            tally.tests(task.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0"))
        })?;
        tally.step("address sanitizer", |tally| {
            // Left out are tests that count the process's memory, which the sanitizer's own quarantine raises. Some
            // others expect a child to die of a bad access, so the signals stay the kernel's. And frames that a bus error
            // abandons leave the sanitizer's marks on the stack, so tests of that are left out too.
            let task = sanitized("address", "", "")
                .words("-- --skip leak_nothing --skip bus_error --skip a_device_that_goes");
            tally.tests(task.env("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0"))
        })?;
        tally.step("fuzz targets", |_| fuzz::run())?;
    } else {
        println!("skipped: the sanitizer and fuzz steps are set up for {HOST} only");
    }
    tally.step("C tests under address sanitizer and valgrind", |tally| {
        tally.tests(cargo("test --locked --package daxtier-ffi --test c_programs -- --ignored"))
    })
}

/// The models of the concurrent structures; they live beside them in test modules named `loom`.
fn loom() -> Task {
    cargo("test --locked --release --package daxtier --lib loom --target-dir target/loom")
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", "3")
}

fn sanitized(sanitizer: &str, option: &str, filter: &str) -> Task {
    cargo(&format!(
        "test {option} --locked --release --package daxtier --lib {filter} --target {HOST} --target-dir target/{sanitizer}"
    ))
    .env("RUSTC_BOOTSTRAP", "1")
    .env("RUSTFLAGS", format!("-Zsanitizer={sanitizer} -Cunsafe-allow-abi-mismatch=sanitizer"))
}
