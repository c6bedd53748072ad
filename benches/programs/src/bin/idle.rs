//! What it costs a program that memory could move while nothing does: malloc churn with purges, where moving is allowed beside
//! where it is not.
//!
//! `bench-idle before|after` prints how many times as much processor time the churn takes in a pool with `migrate=on` as in one
//! with `migrate=off`: before anything has moved in the process, or after all blocks of the first pool have gone down and up again
//! several times. Both pools are in this process and take turns of a few milliseconds; of each, the lower quartile of the
//! thread's own processor time counts. Half of the rounds open the one pool first, half the other, so that what differs by place
//! cancels out.

use daxtier::{AllocOptions, Config, Outcome, Pool, TierName};
use std::error::Error;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::time::Duration;

/// How often pools are opened anew, each order as often.
const ROUNDS: usize = 4;
/// Turns of each pool in a round.
const TURNS: usize = 150;
/// How often everything moves down and up.
const MOVES: usize = 5;
/// Blocks that live through turns.
const LIVE: usize = 20_000;
/// Longer than pages for the next move are kept.
const QUIET: Duration = Duration::from_millis(800);

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let has_moved = match what.as_str() {
        "before" => false,
        "after" => true,
        _ => {
            eprintln!("bench-idle: before or after?");
            return ExitCode::FAILURE;
        }
    };
    match measure(has_moved) {
        Ok(value) => {
            println!("idle-{what} 1 {value:.4} times");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-idle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(has_moved: bool) -> Result<f64, Box<dyn Error>> {
    let mut logs = Vec::new();
    for round in 0..=ROUNDS {
        let is_on_first = round % 2 == 0;
        let mut first = Churn::open(is_on_first)?;
        let mut second = Churn::open(!is_on_first)?;
        if has_moved {
            (if is_on_first { &mut first } else { &mut second }).move_all()?;
            std::thread::sleep(QUIET);
        }
        let mut times = [Vec::new(), Vec::new()];
        for turn in 0..TURNS {
            // Who comes first changes too.
            for at in [turn % 2, 1 - turn % 2] {
                times[at].push([&mut first, &mut second][at].turn()?);
            }
        }
        let [first, second] = times.map(lower_quartile);
        let (on, off) = if is_on_first { (first, second) } else { (second, first) };
        // A process that starts has small pages first.
        if round > 0 {
            logs.push((on / off).ln());
        }
    }
    Ok((logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

fn lower_quartile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 4]
}

/// A pool and what a program does with it.
struct Churn {
    pool: Pool,
    live: Vec<NonNull<u8>>,
    random: u64,
}

impl Churn {
    fn open(is_on: bool) -> Result<Churn, Box<dyn Error>> {
        let config = format!("fast=256M slow=emulated:256M migrate={}", if is_on { "on" } else { "off" });
        let pool = Pool::open(&Config::parse(&config)?)?;
        pool.set_migration_quarantine(Duration::from_millis(1));
        let mut churn = Churn { pool, live: Vec::with_capacity(LIVE), random: 0x9e37_79b9_7f4a_7c15 };
        for _ in 0..LIVE {
            let block = churn.small()?;
            churn.live.push(block);
        }
        // What the first turns have to make is made.
        for _ in 0..20 {
            churn.turn()?;
        }
        Ok(churn)
    }

    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % end as u64) as usize
    }

    fn take(&mut self, size: usize, align: usize) -> Result<NonNull<u8>, Box<dyn Error>> {
        let options = AllocOptions { tier: Some(TierName::Fast), ..AllocOptions::default() };
        let block = self.pool.malloc(size, align, options)?;
        for at in (0..size).step_by(4096) {
            // SAFETY: inside the block.
            let byte = unsafe { block.add(at) };
            // SAFETY: as above.
            unsafe { byte.write_volatile(at as u8) };
        }
        Ok(block)
    }

    fn small(&mut self) -> Result<NonNull<u8>, Box<dyn Error>> {
        let size = 16 << self.below(9);
        self.take(size, 16)
    }

    fn give(&mut self, block: NonNull<u8>) -> Result<(), Box<dyn Error>> {
        // SAFETY: the block is live and nobody uses it.
        Ok(unsafe { self.pool.free(block) }?)
    }

    /// Replaces small blocks, and takes and frees large ones, whose memory goes back; returns the processor time.
    fn turn(&mut self) -> Result<f64, Box<dyn Error>> {
        let start = processor_time();
        for _ in 0..10_000 {
            let at = self.below(LIVE);
            let fresh = self.small()?;
            let old = std::mem::replace(&mut self.live[at], fresh);
            self.give(old)?;
        }
        let large: Vec<_> = (0..32).map(|_| self.take(256 << 10, 16)).collect::<Result<_, _>>()?;
        large.into_iter().try_for_each(|block| self.give(block))?;
        for _ in 0..2 {
            // Whole slots, which are purged at once.
            let block = self.take(4 << 20, 2 << 20)?;
            self.give(block)?;
        }
        Ok(processor_time() - start)
    }

    /// Moves every slot that has small blocks down and up, several times.
    fn move_all(&mut self) -> Result<(), Box<dyn Error>> {
        let mut slots: Vec<usize> = self.live.iter().map(|block| block.as_ptr().addr() >> 21).collect();
        slots.sort_unstable();
        slots.dedup();
        for turn in 0..2 * MOVES {
            let to = if turn % 2 == 0 { TierName::Slow } else { TierName::Fast };
            for &slot in &slots {
                let counts = self.pool.migrate(std::ptr::without_provenance(slot << 21), 1, to)?;
                if counts.get(Outcome::Moved) != 1 {
                    return Err(format!("{counts:?}").into());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        for block in std::mem::take(&mut self.live) {
            let _ = self.give(block);
        }
    }
}

/// Returns the processor time of this thread in seconds.
fn processor_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
