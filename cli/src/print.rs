//! Printing that does not mind a reader who has left.

use std::io::Write;
use std::process::ExitCode;

/// The exit code of a wrong configuration.
pub(crate) fn exit_config() -> ExitCode {
    ExitCode::from(daxtier::runtime::config::EXIT_CONFIG as u8)
}

/// Prints to standard output.
pub(crate) fn out(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints one message, with the program's name before it, to standard error.
pub(crate) fn complain(message: impl std::fmt::Display) {
    // One write, so that messages of several processes do not mix.
    let _ = std::io::stderr().write_all(format!("daxtier: {message}\n").as_bytes());
}
