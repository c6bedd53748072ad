//! Completions and the manual page, made from the command line's own description.

use crate::print;
use clap::CommandFactory;
use std::path::PathBuf;
use std::process::ExitCode;

/// Prints a completion script for a shell.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Writes the manual pages, daxtier.1 and one per sub-command, into a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The directory, which exists.
    directory: PathBuf,
}

/// Prints the script.
pub(crate) fn completions(args: CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "daxtier", &mut script);
    print::out(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// Writes the pages.
pub(crate) fn man(args: ManArgs) -> ExitCode {
    match clap_mangen::generate_to(crate::Cli::command(), &args.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::complain(format_args!("{}: {error}", args.directory.display()));
            ExitCode::FAILURE
        }
    }
}
