//! The repository's own commands: `cargo xtask demo`, `cargo xtask test` and what they are made of.
//!
//! Each command is a module with a `run` function that takes the arguments behind its name. Beside the standard library
//! the crate depends on cbindgen alone, so that it builds in seconds on a machine that has nothing yet.

mod bench;
mod demo;
mod header;
mod install;
mod json;
mod layers;
mod process;
mod setup;
mod stats;
mod test;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a command leaves: nothing, or the message that the user reads.
type Outcome = Result<(), String>;

/// A command: its name, the line that `cargo xtask help` prints, and its function.
struct Command {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Outcome,
}

const COMMANDS: &[Command] = &[
    Command { name: "demo", about: "run real programs over DRAM and emulated CXL memory", run: demo::run },
    Command { name: "test", about: "run the test suite (--all: the long ones too)", run: test::run },
    Command { name: "bench", about: "measure against a peer (--list names the benches)", run: bench::run },
    Command { name: "vm", about: "run a command in a guest with an emulated CXL expander", run: vm::run },
    Command {
        name: "record",
        about: "record the guest's machines for the tests of discovery",
        run: vm::record::run,
    },
    Command { name: "setup", about: "install the system packages that a build needs", run: setup::run },
    Command { name: "check-layers", about: "check that no layer imports one above it", run: layers::run },
    Command { name: "header", about: "write include/daxtier.h (--check: compare it)", run: header::run },
    Command {
        name: "install",
        about: "install libraries, header and program (--prefix DIR)",
        run: install::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("help", String::as_str);
    if matches!(name, "help" | "--help" | "-h") {
        print_help();
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: there is no command {name:?}; `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    match (command.run)(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {name}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn print_help() {
    println!("cargo xtask COMMAND\n");
    for command in COMMANDS {
        println!("  {:<14}{}", command.name, command.about);
    }
}

/// Returns the root of the repository.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
