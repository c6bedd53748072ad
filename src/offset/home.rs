//! Which processor takes from which extent, so that processors do not meet.
//!
//! An extent belongs to the processor that first took from it. Searches pass over what belongs to others, as
//! long as anything else is left; so each processor goes through extents of its own in ascending order. This is a hint: nothing is
//! refused for it.
//!
//! Ownership must end when its owner no longer takes: the low extents are to be filled first. So every now and then a
//! processor looks everywhere (it *visits*), and takes from the lowest place of all. If that is another's, it leaves a mark, which
//! the owner's next refill there clears. A mark that still stands at the next visit makes the visitor
//! the owner. Who finds an owner at work comes back after twice as long.

use super::extent::Locked;
use super::geometry::EXTENT_BLOCKS;
use super::magazine::Magazines;

/// A processor, as one byte; several of them may look like one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner(u8);

/// Where in the published flags the owner stands.
const SHIFT: u32 = 8;

impl Owner {
    pub(super) const NOBODY: Owner = Owner(0);

    pub(super) fn of_cpu(cpu: usize) -> Owner {
        Owner((cpu % 255) as u8 + 1)
    }

    pub(super) fn to_flags(self) -> u16 {
        u16::from(self.0) << SHIFT
    }

    /// Returns whether an extent with these flags is another's.
    pub(super) fn is_kept_out(self, flags: u16) -> bool {
        let owner = Owner((flags >> SHIFT) as u8);
        owner != Owner::NOBODY && owner != self
    }
}

/// When a processor visits next: the searches until then, and how many there were between the last two visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Visits {
    pub(super) left: u32,
    pub(super) every: u32,
}

impl Visits {
    const LEAST: u32 = 16;
    const MOST: u32 = 1024;

    pub(super) fn from_word(word: u64) -> Visits {
        Visits { left: word as u32, every: (word >> 32) as u32 }
    }

    pub(super) fn to_word(self) -> u64 {
        u64::from(self.every) << 32 | u64::from(self.left)
    }

    /// Counts a search.
    fn next(self) -> Visits {
        match self.left {
            0 => Visits { left: self.every.max(Visits::LEAST), every: self.every.max(Visits::LEAST) },
            left => Visits { left: left - 1, ..self },
        }
    }

    /// After a visit found somebody at work.
    fn rarer(self) -> Visits {
        let every = (self.every * 2).clamp(Visits::LEAST, Visits::MOST);
        Visits { left: every, every }
    }

    /// After a visit found somebody gone, who may have left more.
    fn at_once() -> Visits {
        Visits { left: 0, every: Visits::LEAST }
    }
}

impl Magazines {
    /// Counts a search of a processor; returns whether it is to look everywhere.
    pub(super) fn is_visit(&self, cpu: usize) -> bool {
        let visits = self.visits(cpu);
        self.set_visits(cpu, visits.next());
        visits.left == 0
    }
}

impl Locked<'_> {
    /// Notes that a processor has taken from here.
    pub(super) fn note_taker(&mut self, cpu: usize) {
        let me = Owner::of_cpu(cpu);
        let owner = self.header().owner;
        if owner == me || owner == Owner::NOBODY {
            // An idle extent has no owner.
            if self.header().is_open && (owner != me || self.header().is_claimed) {
                self.set_owner(me);
            }
            return;
        }
        let magazines = &self.offsets.magazines;
        if self.header().is_claimed {
            self.set_owner(me);
            magazines.set_visits(cpu, Visits::at_once());
        } else {
            self.header_mut().is_claimed = true;
            magazines.set_visits(cpu, magazines.visits(cpu).rarer());
        }
    }

    fn set_owner(&mut self, owner: Owner) {
        debug_assert!(EXTENT_BLOCKS <= 64 && self.header().is_open);
        let header = self.header_mut();
        header.owner = owner;
        header.is_claimed = false;
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::offset::{Lifetime, OffsetAllocator};
    use crate::sync::atomic::Ordering;
    use crate::units::Order;

    fn allocator() -> OffsetAllocator {
        let offsets = OffsetAllocator::new(1 << 15, Order::PAGE).expect("room");
        offsets.add_extent(0).expect("absent");
        offsets
    }

    #[test]
    fn an_owner_at_work_keeps_an_extent_and_one_that_is_gone_loses_it() {
        let offsets = allocator();
        let page = offsets.alloc(Order::PAGE, Lifetime::Short).expect("free");
        let mut extent = offsets.lock(0);
        extent.set_owner(Owner::of_cpu(0));
        // The page may have been this processor's first.
        offsets.magazines.set_visits(1, Visits { left: 0, every: Visits::LEAST });
        for _ in 0..3 {
            extent.note_taker(1);
            assert_eq!(extent.header().owner, Owner::of_cpu(0));
            extent.note_taker(0);
        }
        assert_eq!(offsets.magazines.visits(1), Visits { left: 128, every: 128 }, "rarer each time");
        extent.note_taker(1);
        extent.note_taker(1);
        assert_eq!(extent.header().owner, Owner::of_cpu(1));
        assert_eq!(offsets.magazines.visits(1).left, 0, "the next search looks for more");
        drop(extent);
        assert!(Owner::of_cpu(0).is_kept_out(offsets.flags(0).load(Ordering::Relaxed)));
        offsets.free(page, Order::PAGE).expect("ours");
        assert!(offsets.is_extent_idle(0));
        offsets.remove_extent(0).expect("idle");
        assert!(!Owner::of_cpu(0).is_kept_out(offsets.flags(0).load(Ordering::Relaxed)));
    }

    #[test]
    fn a_processor_visits_now_and_then() {
        let offsets = allocator();
        let visits = (0..170).filter(|_| offsets.magazines.is_visit(0)).count();
        assert_eq!(visits, 10);
    }

    #[test]
    fn processors_take_from_extents_of_their_own() {
        let offsets = OffsetAllocator::new(4 << 15, Order::PAGE).expect("room");
        (0..4).for_each(|index| offsets.add_extent(index).expect("absent"));
        // As if a processor that no thread runs on had all but the third.
        for index in [0, 1, 3] {
            let first = (index as u64) << 15;
            offsets.reserve(first, Order::PAGE).expect("free");
            offsets.lock(index).set_owner(Owner::of_cpu(250));
        }
        // No magazine holds runs of this order.
        let order = Order::new(10).expect("an order");
        let search = || offsets.alloc(order, Lifetime::Short).expect("free") >> 15;
        let found: Vec<u64> = (0..8).map(|_| search()).collect();
        // Each processor's first search visits; the thread may have been moved.
        assert!(found.iter().filter(|&&index| index == 2).count() >= 4, "{found:?}");
        assert!(!found.contains(&1) && !found.contains(&3), "{found:?}");
        offsets.validate().expect("consistent");
    }
}
