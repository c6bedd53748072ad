//! A program that ends, or becomes another, in the middle of moves.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use daxtier::{AllocOptions, Config, MigrateError, Pool, TierName};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

const SLOT: usize = 2 << 20;
const SLOTS: usize = 20;
const VARIABLE: &str = "MIGRATION_ENDS";

/// Runs the test `name` again in processes of its own, in which `work` ends the process with status 7 while everything moves.
fn ends_well(name: &str, work: fn()) {
    if std::env::var_os(VARIABLE).is_none() {
        for _ in 0..10 {
            let own = std::env::current_exe().unwrap();
            let mut child = Command::new(own).args([name, "--exact"]).env(VARIABLE, "1").spawn().unwrap();
            let start = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if start.elapsed() > Duration::from_secs(60) {
                    child.kill().unwrap();
                    panic!("{name} hangs");
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(status.code(), Some(7), "{status}");
        }
        return;
    }
    let config = "fast=64M slow=emulated:64M migrate=on,workers=2";
    let pool: &'static Pool = Box::leak(Box::new(Pool::open(&Config::parse(config).unwrap()).unwrap()));
    let options = AllocOptions { tier: Some(TierName::Fast), zero: true, ..AllocOptions::default() };
    let block = pool.malloc(SLOTS * SLOT, SLOT, options).unwrap();
    if let Err(MigrateError::Off(refusal)) = pool.migrate(block.as_ptr(), 1, TierName::Fast) {
        eprintln!("skipped: {refusal}");
        std::process::exit(7);
    }
    let addr = block.as_ptr().expose_provenance();
    for to in [TierName::Slow, TierName::Fast] {
        std::thread::spawn(move || {
            loop {
                let _ = pool.migrate(std::ptr::with_exposed_provenance(addr), SLOTS * SLOT, to);
            }
        });
    }
    std::thread::spawn(move || {
        let words = std::ptr::with_exposed_provenance_mut::<u64>(addr);
        for page in (0..SLOTS * 512).cycle() {
            let word = words.wrapping_add(page * 512);
            // SAFETY: inside the block, and of this thread alone.
            unsafe { word.write_volatile(page as u64) };
        }
    });
    // A moment that differs from one run to the next.
    std::thread::sleep(Duration::from_micros(2000 + u64::from(std::process::id()) % 64 * 100));
    work();
    panic!("the process goes on");
}

#[test]
fn a_program_that_executes_another_in_the_middle_of_moves_becomes_it() {
    ends_well("a_program_that_executes_another_in_the_middle_of_moves_becomes_it", || {
        let refused = Command::new("/bin/sh").args(["-c", "exit 7"]).exec();
        panic!("{refused}");
    });
}

#[test]
fn a_program_that_exits_in_the_middle_of_moves_is_gone() {
    ends_well("a_program_that_exits_in_the_middle_of_moves_is_gone", || std::process::exit(7));
}
