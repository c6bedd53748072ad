//! The `daxtier` program: runs other programs over two tiers of memory, and shows what they and the machine do.
//!
//! Each sub-command is a module with its `Args` and a `run`. Exit codes: 0, 1 for a failure, 2 for a command line
//! that is not understood, 78 for a wrong configuration, and from `run` whatever the started program returns (126
//! and 127, as in a shell, when it cannot be started).
//!
//! The standard library's own entry is left out: it would ignore SIGPIPE and open closed standard descriptors, and
//! the program that `run` becomes must find both as they were.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, reason = "the tests begin elsewhere"))]

mod add;
mod allow;
mod config;
mod doctor;
mod drain;
mod generate;
mod list;
mod print;
mod progress;
mod run;
mod scrub;
mod selftest;
mod stat;
#[cfg(test)]
#[path = "../../tests/fixtures/tree.rs"]
mod tree;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs programs over two tiers of memory: fast DRAM, and CXL memory behind a device-dax node.
#[derive(Debug, Parser)]
#[command(name = "daxtier", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Stat(stat::Args),
    List(list::Args),
    Doctor(doctor::Args),
    Allow(allow::Args),
    Scrub(scrub::Args),
    Drain(drain::Args),
    Add(add::Args),
    Config(config::Args),
    Selftest(selftest::Args),
    #[command(hide = true)]
    Completions(generate::CompletionsArgs),
    #[command(hide = true)]
    Man(generate::ManArgs),
}

fn start(words: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Stat(args) => stat::run(args),
        Command::List(args) => list::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Allow(args) => allow::run(args),
        Command::Scrub(args) => scrub::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Add(args) => add::run(args),
        Command::Config(args) => config::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
    }
}

/// What the C library calls.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(nr_words: libc::c_int, words: *const *const libc::c_char) -> libc::c_int {
    use std::ffi::CStr;
    use std::os::unix::ffi::OsStrExt;

    let word = |ix| {
        // SAFETY: the C library passes `nr_words` pointers, and `ix` is below that.
        let word = unsafe { words.add(ix) };
        // SAFETY: as above: it points into the array.
        let word = unsafe { *word };
        // SAFETY: each is a NUL-terminated string that lives as long as the process.
        let word = unsafe { CStr::from_ptr(word) };
        std::ffi::OsStr::from_bytes(word.to_bytes()).to_owned()
    };
    let code = start((0..usize::try_from(nr_words).unwrap_or(0)).map(word).collect());
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // An ExitCode can be compared and not read.
    (0..=u8::MAX).find(|&number| ExitCode::from(number) == code).map_or(1, libc::c_int::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_to_run_keeps_its_own_options() {
        let words = [
            "daxtier", "run", "--fast", "64M", "--stats", "--slow", "a", "--slow", "b", "--", "ls", "--fast",
        ];
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(args.slow, ["a", "b"]);
        assert_eq!(args.stats.as_deref(), Some("-"));
        assert_eq!(args.command, ["ls", "--fast"]);
        let words = ["daxtier", "run", "--stats=s.json", "ls", "--stats", "-l"];
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(args.stats.as_deref(), Some("s.json"));
        assert_eq!(args.command, ["ls", "--stats", "-l"]);
        for words in [&["--", "git", "log", "--", "-f"][..], &["git", "log", "--", "-f"]] {
            let words = ["daxtier", "run"].iter().chain(words);
            let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
            assert_eq!(args.command, ["git", "log", "--", "-f"]);
        }
    }

    #[test]
    fn a_wrong_command_line_is_told() {
        for words in [
            &["daxtier", "run"][..],
            &["daxtier", "stat", "x"],
            &["daxtier", "run", "--speed", "9", "--", "ls"],
        ] {
            assert_eq!(Cli::try_parse_from(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }
}
