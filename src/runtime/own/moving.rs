//! What this copy does for others that move memory of the process's own pool.

use super::OwnRuntime;
use crate::policy::TierName;
use crate::runtime::error::MigrateError;
use crate::runtime::link::{Errno, LinkMigrationStats, LinkMoves, MOST_OUTCOMES, Moving};
use crate::runtime::migration::{MigrationCounts, MigrationStats, Outcome, Ticket};
use crate::runtime::pool::Pool;
use crate::runtime::process;
use crate::sync::{StaticMutex, service};
use std::time::Duration;

/// How many requests others may have at once.
const MOST_REQUESTS: usize = 1024;

/// The requests that others have, by number. Locked in service only.
struct Requests {
    last: u64,
    tickets: Vec<(u64, Ticket)>,
}

static REQUESTS: StaticMutex<Requests> = StaticMutex::new(Requests { last: 0, tickets: Vec::new() });

impl Moving for OwnRuntime {
    fn migrate(ptr: *const u8, len_bytes: usize, tier: u32) -> Result<u64, Errno> {
        let tier = match tier {
            1 => TierName::Fast,
            2 => TierName::Slow,
            _ => return Err(libc::EINVAL),
        };
        let ticket = pool()?.migrate_async(ptr, len_bytes, tier).map_err(|error| errno(&error))?;
        service::run(|| {
            let mut requests = REQUESTS.lock();
            if requests.tickets.len() == MOST_REQUESTS {
                return Err(libc::EBUSY);
            }
            requests.last += 1;
            let number = requests.last;
            requests.tickets.push((number, ticket));
            Ok(number)
        })
    }

    fn wait(request: u64, timeout_ms: u32) -> Result<LinkMoves, Errno> {
        let ticket = find(request)?;
        let counts = ticket.wait(Duration::from_millis(timeout_ms.into()));
        Ok(LinkMoves { is_done: ticket.is_done().into(), counts: by_outcome(&counts) })
    }

    fn cancel(request: u64) -> Result<(), Errno> {
        find(request).map(|ticket| ticket.cancel())
    }

    fn forget(request: u64) -> Result<(), Errno> {
        let ticket = service::run(|| {
            let mut requests = REQUESTS.lock();
            let at = requests.tickets.iter().position(|(number, _)| *number == request);
            at.map(|at| requests.tickets.swap_remove(at))
        });
        ticket.map(drop).ok_or(libc::EINVAL)
    }

    fn pin(ptr: *const u8, len_bytes: usize, is_pinned: bool) -> Result<(), Errno> {
        let pool = pool()?;
        let done = if is_pinned { pool.pin(ptr, len_bytes) } else { pool.unpin(ptr, len_bytes) };
        done.map_err(|error| errno(&error))
    }

    fn migration_stats() -> Result<LinkMigrationStats, Errno> {
        Ok(LinkMigrationStats::from(&pool()?.migration_stats()))
    }
}

impl From<&MigrationStats> for LinkMigrationStats {
    fn from(stats: &MigrationStats) -> LinkMigrationStats {
        LinkMigrationStats {
            counts: by_outcome(&stats.counts),
            staged_bytes: stats.staged_bytes,
            blocked: *stats.blocked.buckets(),
            total: *stats.total.buckets(),
        }
    }
}

fn pool() -> Result<&'static Pool, Errno> {
    process::pool().ok_or(libc::ENODEV)
}

fn find(request: u64) -> Result<Ticket, Errno> {
    let find = || {
        let requests = REQUESTS.lock();
        requests.tickets.iter().find(|(number, _)| *number == request).map(|(_, ticket)| ticket.clone())
    };
    service::run(find).ok_or(libc::EINVAL)
}

/// Counts in the order in which they cross.
fn by_outcome(counts: &MigrationCounts) -> [u64; MOST_OUTCOMES] {
    let mut crossing = [0; MOST_OUTCOMES];
    for (count, outcome) in crossing.iter_mut().zip(Outcome::ALL) {
        *count = counts.get(outcome);
    }
    crossing
}

fn errno(error: &MigrateError) -> Errno {
    match error {
        MigrateError::NoSuchTier { .. } => libc::ENODEV,
        _ => error.errno(),
    }
}
