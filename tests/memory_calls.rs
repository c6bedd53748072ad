//! Programs that protect, lock, discard or unmap blocks of malloc which lie on a device, and programs that close descriptors
//! which they did not open.

mod common;

use common::Run;

fn run(name: &str, argument: &str, migrate: &str) -> Option<common::Ran> {
    let run = Run::with(&["--policy", "bind=slow"], "64M", "emulated:1G").env("DAXTIER_MIGRATE", migrate);
    let binary = run.compile_c("memory_calls", name)?;
    Some(run.args([&binary]).args([argument]).output())
}

#[test]
fn memory_calls_on_slow_blocks_do_what_they_say() {
    if let Some(ran) = run("blocks", "on", "on") {
        assert_eq!(ran.stdout(), "correct\n");
    }
}

#[test]
fn where_nothing_can_be_moved_they_do_so_or_fail() {
    if let Some(ran) = run("blocks", "off", "off") {
        assert_eq!(ran.stdout(), "correct\n");
    }
}

#[test]
fn programs_that_close_everything_close_nothing_of_ours_and_get_every_number() {
    if let Some(ran) = run("descriptors", "polite", "on") {
        assert_eq!((ran.stdout().as_str(), ran.stderr().as_str()), ("correct\n", ""));
    }
}

#[test]
fn bare_system_calls_that_close_ours_end_migration_and_lose_nothing() {
    let Some(ran) = run("descriptors", "bare", "on") else { return };
    assert_eq!(ran.stdout(), "correct\n");
    let said = ran.stderr();
    assert!(said.contains("nothing moves any more") && said.lines().count() == 1, "{said}");
}
