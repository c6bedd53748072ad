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
