//! The lost-update checker, in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use daxtier::runtime::selftest::{Options, SelftestError, migrate};
use daxtier::{MigrateError, Outcome};
use std::time::Duration;

#[test]
fn nothing_is_lost_while_everything_moves() {
    check("pin-safe");
}

#[test]
fn nothing_is_lost_where_readers_go_on() {
    check("protect");
}

fn check(demote: &str) {
    let mut options = Options::default();
    options.time = Duration::from_secs(4);
    options.config = format!("fast=64M slow=emulated:128M migrate=on,workers=2,demote={demote}");
    let found = match migrate(&options) {
        Err(SelftestError::Migrate(error @ MigrateError::Off(_))) => {
            eprintln!("skipped: {error}");
            return;
        }
        outcome => outcome.unwrap(),
    };
    assert!(found.is_clean(), "{found:?}");
    assert!(found.moves.get(Outcome::Moved) > 20, "{found:?}");
    assert!(found.stores > 0 && found.additions > 0 && found.handovers > 0 && found.calls > 0, "{found:?}");
}
