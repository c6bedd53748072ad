//! How memory is asked for: the flags that folios and blocks share.

use crate::error::{DAXTIER_ECHOICE, DAXTIER_EFLAGS, DAXTIER_EORDER, Failure, failure};
use daxtier_core::offset::Lifetime;
use daxtier_core::policy::TierName;
use daxtier_core::runtime::AllocOptions;
use daxtier_core::units::{MAX_ORDER, Order};

/// Bytes in a page, the unit of offsets.
pub const DAXTIER_PAGE_SIZE: u64 = 4096;
/// The largest order: 2^18 pages, 1 GiB. Order 0 is a page, order 9 is 2 MiB.
pub const DAXTIER_MAX_ORDER: u32 = 18;
/// Number of orders; length of arrays that count folios by order.
pub const DAXTIER_NR_ORDERS: usize = 19;

/// Flag: every byte is zero.
pub const DAXTIER_ZERO: u64 = 1;
/// Flag of daxtier_folio_alloc() for orders 9 and above: the library may move the folio to another tier while it is
/// in use. Its address stays the same; direct I/O, io_uring and RDMA must not use it. Without this flag a folio
/// never moves. This version moves none yet.
pub const DAXTIER_MOVABLE: u64 = 1 << 1;
/// Flag: use the fast tier and no other; fail rather than spill. Without a tier flag the pool's policy decides.
pub const DAXTIER_TIER_FAST: u64 = 1 << 8;
/// Flag: use the slow tier and no other; fail rather than spill.
pub const DAXTIER_TIER_SLOW: u64 = 2 << 8;
/// Flag, a hint: soon given back. Short- and long-lived memory is kept apart.
pub const DAXTIER_HINT_SHORT: u64 = 1 << 12;
/// Flag, a hint: kept for most of the program's life.
pub const DAXTIER_HINT_LONG: u64 = 2 << 12;

const TIER_MASK: u64 = 0xF00;
const HINT_MASK: u64 = 0xF000;

const _: () = {
    assert!(DAXTIER_MAX_ORDER == MAX_ORDER as u32);
    assert!(DAXTIER_NR_ORDERS == DAXTIER_MAX_ORDER as usize + 1);
    assert!(DAXTIER_PAGE_SIZE == daxtier_core::units::PAGE_SIZE as u64);
};

/// What a request is for; each takes other flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A folio of a pool, of this order.
    Folio(Order),
    /// A folio of a pgmap.
    PgmapFolio,
    /// A block of the heap.
    Block,
}

/// Turns flags into options.
pub(crate) fn options(flags: u64, purpose: Purpose) -> Result<AllocOptions, Failure> {
    let unknown = flags & !(DAXTIER_ZERO | DAXTIER_MOVABLE | TIER_MASK | HINT_MASK);
    if unknown != 0 {
        return Err(failure!(DAXTIER_EFLAGS, "flags {unknown:#x} are unknown to this version"));
    }
    let tier = match flags & TIER_MASK {
        0 => None,
        DAXTIER_TIER_FAST => Some(TierName::Fast),
        DAXTIER_TIER_SLOW => Some(TierName::Slow),
        other => {
            return Err(failure!(DAXTIER_ECHOICE, "{other:#x} names no tier: use one DAXTIER_TIER_ flag"));
        }
    };
    let lifetime = match flags & HINT_MASK {
        0 => Lifetime::default(),
        DAXTIER_HINT_SHORT => Lifetime::Short,
        DAXTIER_HINT_LONG => Lifetime::Long,
        other => return Err(failure!(DAXTIER_ECHOICE, "{other:#x} is no hint: use one DAXTIER_HINT_ flag")),
    };
    let movable = flags & DAXTIER_MOVABLE != 0;
    match purpose {
        Purpose::Folio(order) if movable && order < Order::HUGE => {
            Err(failure!(DAXTIER_EORDER, "a movable folio has at least order 9, not {}", order.get()))
        }
        Purpose::PgmapFolio | Purpose::Block if movable => Err(failure!(
            DAXTIER_EFLAGS,
            "DAXTIER_MOVABLE is for daxtier_folio_alloc: blocks are the library's to move, folios of a pgmap never move"
        )),
        Purpose::PgmapFolio if tier.is_some() => {
            Err(failure!(DAXTIER_EFLAGS, "a pgmap is of one tier: DAXTIER_TIER_ flags are for pools"))
        }
        _ => Ok(AllocOptions { tier, zero: flags & DAXTIER_ZERO != 0, movable, lifetime }),
    }
}

/// Turns a number into an order.
pub(crate) fn order(order: u32) -> Result<Order, Failure> {
    u8::try_from(order).ok().and_then(|order| Order::new(order).ok()).ok_or_else(|| {
        failure!(DAXTIER_EORDER, "order {order} is above the largest, {DAXTIER_MAX_ORDER} (1 GiB)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::guard;

    fn code(flags: u64, purpose: Purpose) -> i32 {
        guard(|| options(flags, purpose).map(drop))
    }

    #[test]
    fn flags_are_read() {
        let all = DAXTIER_ZERO | DAXTIER_MOVABLE | DAXTIER_TIER_SLOW | DAXTIER_HINT_LONG;
        let options = options(all, Purpose::Folio(Order::HUGE)).expect("these go together");
        assert!(options.zero && options.movable);
        assert_eq!((options.tier, options.lifetime), (Some(TierName::Slow), Lifetime::Long));
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for (flags, purpose, expected) in [
            (0x4, Purpose::Block, DAXTIER_EFLAGS),
            (1 << 63, Purpose::Block, DAXTIER_EFLAGS),
            (DAXTIER_TIER_FAST | DAXTIER_TIER_SLOW, Purpose::Block, DAXTIER_ECHOICE),
            (0x400, Purpose::Block, DAXTIER_ECHOICE),
            (DAXTIER_HINT_SHORT | DAXTIER_HINT_LONG, Purpose::Block, DAXTIER_ECHOICE),
            (DAXTIER_MOVABLE, Purpose::Block, DAXTIER_EFLAGS),
            (DAXTIER_MOVABLE, Purpose::PgmapFolio, DAXTIER_EFLAGS),
            (DAXTIER_TIER_FAST, Purpose::PgmapFolio, DAXTIER_EFLAGS),
            (DAXTIER_MOVABLE, Purpose::Folio(Order::PAGE), DAXTIER_EORDER),
        ] {
            assert_eq!(code(flags, purpose), expected, "{flags:#x} {purpose:?}");
        }
    }

    #[test]
    fn orders_end_at_18() {
        assert_eq!(order(18).ok(), Some(Order::GIANT));
        for wrong in [19, 256, u32::MAX] {
            assert_eq!(guard(|| order(wrong).map(drop)), DAXTIER_EORDER, "{wrong}");
        }
    }
}
