//! `cargo xtask setup`: what a build needs from the system, installed where we may, else named.
//!
//! Each [`Need`] knows how to tell whether it is met. What is missing is installed through apt-get when we are
//! root or sudo asks for no password; otherwise the exact command is printed and the run stops.

use crate::process::{Task, cargo, find_program};
use std::path::Path;

/// Something that must be on the machine: what for, how to tell, and the Debian packages that bring it.
pub(crate) struct Need {
    what: &'static str,
    is_met: fn() -> bool,
    packages: &'static [&'static str],
}

/// What every build needs.
pub(crate) const BUILD: &[Need] = &[
    Need { what: "a C compiler", is_met: || has("cc"), packages: &["gcc", "libc6-dev"] },
    Need { what: "pkg-config", is_met: || has("pkg-config"), packages: &["pkg-config"] },
    Need { what: "the hwloc library", is_met: has_hwloc, packages: &["libhwloc-dev"] },
];

/// What the demonstration runs.
pub(crate) const DEMO: &[Need] =
    &[Need { what: "python3", is_met: || has("python3"), packages: &["python3"] }];

/// What the tests compile and run besides.
pub(crate) const TEST: &[Need] = &[
    Need { what: "a C++ compiler", is_met: || has("c++"), packages: &["g++"] },
    Need { what: "python3", is_met: || has("python3"), packages: &["python3"] },
];

/// What only the long tests use.
pub(crate) const TEST_ALL: &[Need] =
    &[Need { what: "valgrind", is_met: || has("valgrind"), packages: &["valgrind"] }];

/// Installs what a build, the demonstration and the tests need.
///
/// # Errors
/// As for [`meet`].
pub(crate) fn run(_args: &[String]) -> Result<(), String> {
    meet(&[BUILD, DEMO, TEST])?;
    println!("everything is there");
    Ok(())
}

/// Installs what is missing of `needs`, without asking.
///
/// # Errors
/// The command that the user has to run, where we may not install.
pub(crate) fn meet(needs: &[&[Need]]) -> Result<(), String> {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|need| !(need.is_met)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what: Vec<&str> = missing.iter().map(|need| need.what).collect();
    let mut packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    println!("missing: {}; installing {}", what.join(", "), packages.join(" "));
    let by_hand = format!("apt-get install {}", packages.join(" "));
    let Some(apt) = apt_get() else {
        return Err(format!(
            "{} missing, and this account may not install packages. As root run\n  {by_hand}\nor install the \
             same with your distribution's own tool, then start again",
            what.join(", ")
        ));
    };
    // A stale list only matters when the installation then fails, and that says so itself.
    let _ = apt.clone().words("update -qq").run();
    let mut install = apt.words("install -qq -y --no-install-recommends");
    for package in &packages {
        install = install.arg(*package);
    }
    install.run()?;
    match missing.iter().find(|need| !(need.is_met)()) {
        None => Ok(()),
        Some(need) => Err(format!("{} is still missing after `{by_hand}`", need.what)),
    }
}

/// Returns apt-get as this account can run it without a question, or `None`.
fn apt_get() -> Option<Task> {
    find_program("apt-get")?;
    let is_root = Task::new("id -u").output().is_ok_and(|uid| uid.trim() == "0");
    let task = if is_root {
        Task::new("apt-get")
    } else if find_program("sudo").is_some() && Task::new("sudo -n true").output().is_ok() {
        Task::new("sudo -n DEBIAN_FRONTEND=noninteractive apt-get")
    } else {
        return None;
    };
    Some(task.env("DEBIAN_FRONTEND", "noninteractive").arg("-o").arg("DPkg::Lock::Timeout=300"))
}

fn has(program: &str) -> bool {
    find_program(program).is_some()
}

fn has_hwloc() -> bool {
    has("pkg-config") && Task::new("pkg-config --exists hwloc").run().is_ok()
}

/// Adds a component of the toolchain (`clippy`, `rustfmt`) where rustup left it out.
///
/// # Errors
/// What to install, where rustup is not there to do it.
pub(crate) fn toolchain_component(component: &str, subcommand: &str) -> Result<(), String> {
    let probe = cargo(subcommand).arg("--version");
    if probe.command().output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    if !has("rustup") {
        return Err(format!("cargo {subcommand} is missing: install the Rust component {component}"));
    }
    Task::new("rustup component add").arg(component).run()
}

/// Adds the sources of the standard library where rustup left them out.
///
/// # Errors
/// What to install, where rustup is not there to do it.
pub(crate) fn library_sources() -> Result<(), String> {
    let sysroot = Task::new("rustc --print sysroot").output()?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library").is_dir() {
        return Ok(());
    }
    if !has("rustup") {
        return Err(
            "the sources of the standard library are missing: install the Rust component rust-src".to_owned()
        );
    }
    Task::new("rustup component add rust-src").run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_met_need_installs_nothing() {
        const MET: &[Need] = &[Need { what: "nothing", is_met: || true, packages: &["no-such-package"] }];
        assert_eq!(meet(&[MET]), Ok(()));
    }
}
