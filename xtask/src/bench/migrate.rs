//! What moving a slot of 2 MiB costs: beside copies of the same bytes, and beside the conventional mprotect and SIGSEGV.
//!
//! A real device has huge pages, and an emulated one has them where the kernel is told so. So the sysfs file that tells it
//! is changed while the bench runs, where it may be; the bench says when it may not.

use super::Row;
use super::contest::{Contest, measure_alone};
use crate::process::{Task, cargo, target_dir};
use std::fs;

/// Ours, and what it is set beside.
const CASES: &[(&str, &str)] = &[
    ("demote", "nt-copy"),
    ("promote", "nt-copy"),
    ("demote", "memcpy"),
    ("promote", "memcpy"),
    ("protect-demote", "nt-copy"),
    ("demote", "sigsegv"),
    ("demote-total", "nt-copy"),
    ("protect-demote-total", "nt-copy"),
    ("promote-total", "nt-copy"),
    ("demote-whole", "nt-copy"),
    ("protect-demote-whole", "nt-copy"),
    ("promote-whole", "nt-copy"),
    ("stall-demote", "nt-copy"),
    ("stall-protect-demote", "nt-copy"),
    ("stall-promote", "nt-copy"),
    ("stall-demote-p99", "nt-copy"),
    ("stall-protect-demote-p99", "nt-copy"),
    ("stall-promote-p99", "nt-copy"),
    ("stall-demote-max", "nt-copy"),
    ("stall-promote-max", "nt-copy"),
    ("read-stall-demote", "nt-copy"),
    ("read-stall-protect-demote", "nt-copy"),
    ("read-stall-protect-demote-p99", "nt-copy"),
    ("read-stall-promote", "nt-copy"),
    ("throughput-1", "copy-1"),
    ("throughput-2", "copy-2"),
    ("demote-all-1", "copy-1"),
    ("demote-all-2", "copy-2"),
    ("promote-all-1", "copy-1"),
    ("promote-all-2", "copy-2"),
];

/// How many times as much processor time malloc churn may take where memory could move and does not.
const IDLE: &[(&str, f64)] = &[("before", 1.01), ("after", 1.03)];

/// Where the kernel is told whether memfds have huge pages.
const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Measures every case.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-programs").run()?;
    let _huge = HugeShmem::enable();
    let program = target_dir().join("release/bench-migrate").display().to_string();
    let is_urgent = can_be_urgent();
    if !is_urgent {
        eprintln!("chrt is missing or refused: stalls include waits for a processor");
    }
    let task = |what: &str| {
        let is_stall = what.starts_with("stall-") || what.starts_with("read-stall-");
        let task = if is_stall && is_urgent {
            Task::program("chrt").arg("-f").arg("10").arg(&program)
        } else {
            Task::program(&program)
        };
        task.arg(what)
    };
    let moves = CASES.iter().map(|(ours, peer)| {
        Contest { ours: task(ours), peer_name: (*peer).to_owned(), peer: task(peer) }.run(rounds)
    });
    let idle = target_dir().join("release/bench-idle").display().to_string();
    let idle = IDLE
        .iter()
        .map(|&(when, limit)| measure_alone(&Task::program(&idle).arg(when), rounds, "limit", limit));
    moves.chain(idle).collect()
}

/// Whether a program may run before all others (SCHED_FIFO), so that its threads have a processor each. With a single
/// processor they would keep it from one another.
fn can_be_urgent() -> bool {
    let has_two = std::thread::available_parallelism().is_ok_and(|nr| nr.get() > 1);
    has_two && Task::program("chrt").words("-f 10 true").output().is_ok()
}

/// Huge pages for memfds that ask for them, until this is dropped.
struct HugeShmem {
    /// What was chosen before, if it was changed.
    former: Option<String>,
}

impl HugeShmem {
    fn enable() -> HugeShmem {
        let chosen = chosen(&fs::read_to_string(SHMEM).unwrap_or_default());
        let is_there = matches!(chosen.as_deref(), Some("always" | "advise" | "within_size" | "force"));
        let former = chosen.filter(|_| !is_there && fs::write(SHMEM, "advise").is_ok());
        if !is_there && former.is_none() {
            eprintln!("{SHMEM} can't be set to advise: the emulated device has small pages");
        }
        HugeShmem { former }
    }
}

impl Drop for HugeShmem {
    fn drop(&mut self) {
        if let Some(former) = &self.former
            && let Err(error) = fs::write(SHMEM, former)
        {
            eprintln!("{SHMEM}: {error}: write {former} there");
        }
    }
}

/// The word in brackets.
fn chosen(choices: &str) -> Option<String> {
    let word = choices.split_once('[')?.1.split_once(']')?.0;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(chosen("always within_size advise [never] deny force\n").as_deref(), Some("never"));
        assert_eq!(chosen("always never"), None);
    }
}
