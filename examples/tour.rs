//! The tour of the README: a pool of two tiers, a folio and a block.

use daxtier::{AllocOptions, Config, Order, Pool, TierName};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::open(&Config::parse("fast=64M slow=emulated:1G")?)?;
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };

    // A folio: 2 MiB of the slow tier that never move. It is freed with the last reference to it.
    let mut folio = pool.alloc_folio(Order::HUGE, slow)?;
    folio.as_mut_slice().ok_or("somebody else holds it")?[0] = 7;

    // A block of any size, from the tier that the policy chooses.
    let block = pool.malloc(1000, 16, AllocOptions::default())?;
    println!("{}", pool.where_is(block.as_ptr()).ok_or("not ours")?.tier_name);
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }?;

    for tier in pool.stats().tiers {
        println!("{}: {} of {} bytes", tier.name, tier.used_bytes, tier.capacity_bytes);
    }
    drop(folio);
    pool.close()?;
    Ok(())
}
