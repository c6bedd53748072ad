//! `cargo xtask test`: set-up, then every check of the repository, in order of cost; `--all` adds the long ones, `--vm` runs
//! the device tests in a guest with a real `/dev/dax0.0` (alone, or after the others with `--all --vm`).
//!
//! Stops at the first failure with the line that repeats it. Prints the time of each step and at the end one
//! line with the number of tests.

mod fuzz;
mod limit;
mod long;

use crate::process::{Task, cargo, seconds, step};
use crate::vm::suite;
use crate::{header, layers, setup};
use std::time::{Duration, Instant};

/// The target of the steps that need their own flags for the code alone and not for build scripts.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// How long the quick half may take on two cores.
const QUICK_LIMIT: Duration = Duration::from_secs(600);

/// What the steps so far have counted.
#[derive(Default)]
struct Tally {
    steps: usize,
    passed: u64,
    ignored: u64,
}

/// Runs the suite.
///
/// # Errors
/// The first step that fails, and how to repeat it.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let (mut all, mut in_guest) = (false, false);
    for arg in args {
        match arg.as_str() {
            "--all" => all = true,
            "--vm" => in_guest = true,
            other => return Err(format!("{other:?} is not understood; the options are --all and --vm")),
        }
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    tally.step("set-up", |_| set_up(all))?;
    // The guest alone, unless all is asked for.
    if all || !in_guest {
        quick(&mut tally)?;
    }
    let quick_took = start.elapsed();
    if all {
        long::run(&mut tally)?;
    }
    if in_guest {
        let mut parts = Vec::new();
        tally.step("guests", |_| {
            parts = suite::prepare()?;
            Ok(())
        })?;
        for part in parts {
            tally.step(&part.name(), |tally| part.run(&mut |line| _ = tally.count(line)))?;
        }
    }
    let Tally { steps, passed, ignored } = tally;
    println!(
        "test result: ok. {passed} passed; 0 failed; {ignored} ignored; {steps} steps finished in {}",
        seconds(start.elapsed())
    );
    if quick_took > QUICK_LIMIT {
        println!("note: the quick steps took {}, more than ten minutes", seconds(quick_took));
    }
    Ok(())
}

fn set_up(all: bool) -> Result<(), String> {
    setup::toolchain_component("rustfmt", "fmt")?;
    setup::toolchain_component("clippy", "clippy")?;
    setup::meet(&[setup::BUILD, setup::TEST])?;
    if all { setup::meet(&[setup::TEST_ALL]) } else { Ok(()) }
}

fn quick(tally: &mut Tally) -> Result<(), String> {
    tally.step("format", |_| cargo("fmt --all --check").run())?;
    tally.step("layers", |_| layers::run(&[]))?;
    tally.step("header", |_| header::run(&["--check".to_owned()]))?;
    tally.step("clippy", |_| cargo("clippy --locked --workspace --all-targets -- -D warnings").run())?;
    tally.step("documentation", |_| {
        cargo("doc --locked --no-deps --package daxtier --package daxtier-preload --package xtask")
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    })?;
    tally.step("build", |_| cargo("build --locked --workspace").run())?;
    tally.step("unit tests", |tally| {
        tally.tests(cargo("test --locked --workspace --lib --bins --examples"))
    })?;
    tally.step("doc tests", |tally| tally.tests(cargo("test --locked --workspace --doc")))?;
    tally.step("integration and end-to-end tests", |tally| {
        tally.tests(cargo("test --locked --workspace --test *"))
    })?;
    // Once through each; criterion counts no tests.
    tally.step("benches", |_| {
        cargo("test --locked --quiet --package daxtier --package daxtier-bench-core")
            .words("--bench bind --bench offset --bench pgmap --bench refcount")
            .run()
    })
}

impl Tally {
    fn step(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Tally) -> Result<(), String>,
    ) -> Result<(), String> {
        self.steps += 1;
        step(name, || limit::limited(|| body(self))).map(|_| ())
    }

    /// Adds up what a line says, if it is the summary of a test program; returns how many tests it ran.
    fn count(&mut self, line: &str) -> u64 {
        let Some(Summary { passed, failed, ignored }) = Summary::parse(line) else { return 0 };
        self.passed += passed;
        self.ignored += ignored;
        passed + failed
    }

    /// Runs `cargo test` and adds up what its summaries say.
    ///
    /// # Errors
    /// As for [`Task::run`], and when not a single test ran: a filter that matches nothing must not pass.
    fn tests(&mut self, task: Task) -> Result<(), String> {
        let mut ran = 0;
        task.run_seeing(|line| {
            ran += self.count(line);
        })?;
        if ran == 0 { Err(format!("no test ran\n  repeat it with: {}", task.line())) } else { Ok(()) }
    }
}

/// The numbers in a `test result:` line of libtest.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Summary {
    fn parse(line: &str) -> Option<Summary> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |name: &str| {
            let field = numbers.split("; ").find(|field| field.ends_with(name))?;
            field.split(' ').next()?.parse().ok()
        };
        Some(Summary { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_a_test_run_is_read() {
        let line =
            "test result: ok. 12 passed; 1 failed; 3 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(Summary::parse(line), Some(Summary { passed: 12, failed: 1, ignored: 3 }));
        assert_eq!(Summary::parse("test result: none"), None);
    }

    #[test]
    fn a_run_without_a_test_fails() {
        let mut tally = Tally::default();
        let none =
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0s\n";
        assert!(tally.tests(Task::new("printf").arg(none)).is_err());
        assert_eq!(tally.tests(Task::new("printf").arg(none.replace("0 passed", "7 passed"))), Ok(()));
        assert_eq!(tally.passed, 7);
    }

    #[test]
    fn a_failing_step_stops_the_suite() {
        let mut tally = Tally::default();
        let error =
            tally.step("fine", |_| Ok(())).and_then(|()| tally.step("broken", |_| Task::new("false").run()));
        assert!(error.unwrap_err().starts_with("broken failed: "));
    }
}
