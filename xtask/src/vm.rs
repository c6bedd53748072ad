//! `cargo xtask vm [--route ROUTE] [--kernel K] -- CMD`: runs a command in a guest with an emulated CXL expander.
//!
//! The guest is QEMU in software emulation, so the real device_dax driver is there on any machine; it boots in about ten
//! seconds. Everything it is made of comes out of Debian packages into a cache folder ([`packages`]), and nothing is
//! installed. [`initramfs`] packs what boots, [`machine`] describes the hardware of each route, the scripts in `guest/` make
//! the route's `/dev/dax0.0`, and [`suite`] is what `cargo xtask test --vm` runs there.
//!
//! CMD runs as root in bash, in this checkout (read-only, as is all of the host's file system; `/tmp` is the guest's own),
//! so programs and libraries that were just built run there as they are. `/share` can be written and is a folder of the
//! host, which is printed when anything was left in it.

mod guest;
mod initramfs;
mod machine;
mod packages;
pub(crate) mod record;
pub(crate) mod suite;

use crate::process::{Task, seconds};
use guest::Guest;
use machine::Route;
use packages::Cache;
use std::time::Duration;

const USAGE: &str = "cargo xtask vm [--route cxl|cxl2|hmem|pmem|numa] [--kernel K] [--cpus N] [--memory 2G] [--time-limit SECONDS] \
     [--verbose] -- CMD";

/// Runs a command in a guest.
///
/// # Errors
/// What was wrong with the arguments, could not be fetched, or failed in the guest.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let (guest, kernel, command) = parse(args)?;
    let kernel = Cache::open()?.prepare(kernel.as_deref())?;
    let report = guest.run(&kernel, &command)?;
    println!("the guest ran for {}", seconds(report.took));
    if report.exit_code == 0 { Ok(()) } else { Err(format!("the command ended with {}", report.exit_code)) }
}

fn parse(args: &[String]) -> Result<(Guest, Option<String>, String), String> {
    let at = args.iter().position(|arg| arg == "--").ok_or_else(|| format!("say what to run: {USAGE}"))?;
    let (mut guest, mut kernel) = (Guest::new(Route::Cxl), None);
    let mut options = args[..at].iter();
    while let Some(name) = options.next() {
        let mut value = || options.next().ok_or_else(|| format!("{name} needs a value: {USAGE}"));
        match name.as_str() {
            "--route" => guest.route = value()?.parse()?,
            "--kernel" => kernel = Some(value()?.clone()),
            "--cpus" => guest.cpus = number(name, value()?)?,
            "--memory" => guest.memory = value()?.clone(),
            "--time-limit" => guest.time_limit = Duration::from_secs(number(name, value()?)?.into()),
            "--verbose" => guest.verbose = true,
            other => return Err(format!("{other:?} is not understood: {USAGE}")),
        }
    }
    let command = &args[at + 1..];
    match command {
        [] => Err(format!("say what to run after --: {USAGE}")),
        [line] => Ok((guest, kernel, line.clone())),
        // Words that our own caller's shell has split already.
        words => {
            let task = words[1..].iter().fold(Task::program(&words[0]), |task, word| task.arg(word));
            Ok((guest, kernel, task.line()))
        }
    }
}

fn number(name: &str, text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("{name} takes a number above 0, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_command_is_what_follows_the_dashes() {
        let (guest, kernel, command) = parse(&words("--route pmem --kernel 7 --cpus 3 -- ls -l")).unwrap();
        assert_eq!((guest.route, guest.cpus), (Route::Pmem, 3));
        assert_eq!((kernel.as_deref(), command.as_str()), (Some("7"), "ls -l"));
        let (_, _, command) = parse(&["--".to_owned(), "ls | wc".to_owned()]).unwrap();
        assert_eq!(command, "ls | wc", "a single word is a line for the shell");
    }

    #[test]
    fn bad_arguments_are_named() {
        for (line, named) in [
            ("ls", "say what to run"),
            ("--", "say what to run"),
            ("--route cxl3 -- ls", "no route \"cxl3\""),
            ("--cpus 0 -- ls", "--cpus takes a number above 0"),
            ("--kernel -- ls", "--kernel needs a value"),
            ("--color -- ls", "\"--color\" is not understood"),
        ] {
            let message = parse(&words(line)).expect_err(line);
            assert!(message.contains(named), "{line}: {message}");
        }
    }
}
