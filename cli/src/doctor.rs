//! `daxtier doctor`: what this machine allows, and the command that mends each shortfall.
//!
//! Each [`Check`] has a name, a verdict, what was seen, and what to do. `fail` means that something the user set up, or
//! that every run needs, does not work; `warn` that daxtier runs with less. The exit code is 0 when nothing fails.
//! With `--json`: `{"checks": [{"name", "status", "seen", "mend"}], "failed": N}`.
//!
//! Checks read sysfs and procfs under a root path (`checks`); what only the running kernel and libc can tell is asked
//! in `probe` and handed in.

mod checks;
mod probe;

use clap::Args as ClapArgs;
use daxtier::device::RELEASED_PATH;
use probe::Probe;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Checks what this machine allows, and prints the command that mends each shortfall.
#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Read sysfs, procfs and device nodes below DIR instead of / (for a tree recorded on another machine)
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
}

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// daxtier works, with less.
    Warn,
    /// Something that is needed does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// A word or two for it.
    name: &'static str,
    /// The verdict.
    status: Status,
    /// What was seen, and what follows from it.
    seen: String,
    /// The command or step that mends it; `null` when nothing is to be done.
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, seen: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, seen: seen.into(), mend: None }
    }

    fn warn(name: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, status: Status::Warn, seen: seen.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, status: Status::Fail, seen: seen.into(), mend: Some(mend.into()) }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// All checks, in a fixed order.
    checks: Vec<Check>,
    /// How many of them failed.
    failed: usize,
}

/// Prints the report; the exit code is 0 when nothing fails.
pub(crate) fn run(args: Args) -> ExitCode {
    let probe = if args.root == Path::new("/") { Probe::of_this_process() } else { Probe::default() };
    let checks = checks::all(&args.root, Path::new(RELEASED_PATH), &probe);
    let failed = checks.iter().filter(|check| check.status == Status::Fail).count();
    let report = Report { checks, failed };
    let text = if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => {
                eprintln!("daxtier: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        report.to_text()
    };
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "ok  ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            text += &format!("{status}  {:<16} {}\n", check.name, check.seen);
            if let Some(mend) = &check.mend {
                text += &format!("      {:<16} -> {mend}\n", "");
            }
        }
        text
    }
}
