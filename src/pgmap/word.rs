//! The word that says everything about a folio, as pure transitions.
//!
//! One 64-bit word at the folio's first page (or first 2 MiB block) holds its reference count, order, owner and
//! generation, so they change together. The functions map an old word to the new one, or to what was observed
//! instead; compare-and-swap loops in `table` apply them.
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0..27 | count | references to a head; 0 otherwise |
//! | 27 | addressed | somebody asked for the folio's own address, so its bytes may be in use there |
//! | 28..33 | order | of the folio, in heads, tails and quarantined words |
//! | 33..36 | kind | see [`Kind`] |
//! | 36..52 | owner | id of the pgmap, a check against stray writes |
//! | 52..64 | generation | of the request; tells a reference from one to an earlier folio in the same place |
//!
//! # Protocol
//! | from | to | by |
//! |---|---|---|
//! | idle (0) | head, count 1 | request, under the lock of every block of the run |
//! | head, count n | head, count n + 1 or n - 1 (n > 1) | get and put, any reference holder, lock-free |
//! | head, count 1 | idle (0) | the last put, under the lock of every block of the run |
//! | head | forked | the child's side of fork, one thread |
//! | anything but its owner's | quarantined | whoever finds it, under the lock of the block |

use crate::sync::abort_on_overflow;
use crate::units::Order;

const COUNT_BITS: u32 = 27;
const ADDRESSED: u64 = 1 << COUNT_BITS;
const ORDER_SHIFT: u32 = 28;
const KIND_SHIFT: u32 = 33;
const OWNER_SHIFT: u32 = 36;
const GENERATION_SHIFT: u32 = 52;

/// The most references that a folio can have: 134 million. One more aborts.
pub(crate) const MAX_REFS: u32 = (1 << COUNT_BITS) - 1;
/// Generations are counted modulo this.
pub(crate) const GENERATIONS: u16 = 1 << 12;

/// What a word describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody uses the page or block. The whole word is 0.
    Idle,
    /// The first page or block of a live folio.
    Head,
    /// A later one.
    Tail,
    /// A block whose pages have words of their own.
    Split,
    /// Taken out of use because its metadata was wrong.
    Quarantined,
    /// The head of a folio that belongs to the parent of this process.
    Forked,
    /// No kind at all: a stray write.
    Unknown,
}

/// A folio word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

/// Why a reference does not fit the word that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A page or block of the run is in use.
    Busy,
    /// The folio of this generation is gone (or no folio begins here).
    Stale,
    /// The folio is the parent process's.
    Forked,
    /// The word names another owner or makes no sense.
    Corrupt,
    /// The page or block was quarantined.
    Quarantined,
}

impl Word {
    pub(crate) const IDLE: Word = Word(0);

    /// Makes the word of a head with one reference.
    pub(crate) const fn head(order: Order, owner: u16, generation: u16) -> Word {
        Word::new(Kind::Head, order.get(), owner, generation, 1)
    }

    /// Makes the word of a tail.
    pub(crate) const fn tail(order: Order, owner: u16, generation: u16) -> Word {
        Word::new(Kind::Tail, order.get(), owner, generation, 0)
    }

    /// Makes the word of a split block.
    pub(crate) const fn split(owner: u16) -> Word {
        Word::new(Kind::Split, 0, owner, 0, 0)
    }

    /// Makes the word of a quarantined page or block.
    pub(crate) const fn quarantined(order: Order, owner: u16) -> Word {
        Word::new(Kind::Quarantined, order.get(), owner, 0, 0)
    }

    const fn new(kind: Kind, order: u8, owner: u16, generation: u16, count: u32) -> Word {
        Word(
            count as u64
                | (order as u64) << ORDER_SHIFT
                | (kind as u64) << KIND_SHIFT
                | (owner as u64) << OWNER_SHIFT
                | (generation as u64) << GENERATION_SHIFT,
        )
    }

    pub(crate) const fn count(self) -> u32 {
        self.0 as u32 & MAX_REFS
    }

    /// Returns the order, or `None` when the field holds none.
    pub(crate) const fn order(self) -> Option<Order> {
        match Order::new((self.0 >> ORDER_SHIFT & 31) as u8) {
            Ok(order) => Some(order),
            Err(_) => None,
        }
    }

    pub(crate) const fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT & 7 {
            0 if self.0 == 0 => Kind::Idle,
            1 => Kind::Head,
            2 => Kind::Tail,
            3 => Kind::Split,
            4 => Kind::Quarantined,
            5 => Kind::Forked,
            _ => Kind::Unknown,
        }
    }

    pub(crate) const fn owner(self) -> u16 {
        (self.0 >> OWNER_SHIFT) as u16
    }

    pub(crate) const fn generation(self) -> u16 {
        (self.0 >> GENERATION_SHIFT) as u16
    }

    /// Returns whether the word is one that `owner` could have written.
    pub(crate) fn is_sound(self, owner: u16) -> bool {
        match self.kind() {
            Kind::Idle => true,
            Kind::Unknown => false,
            Kind::Head => self.owner() == owner && self.order().is_some() && self.count() > 0,
            Kind::Tail | Kind::Split | Kind::Quarantined | Kind::Forked => {
                self.owner() == owner && self.order().is_some()
            }
        }
    }

    /// Checks that this is the live head of `generation` and returns its order.
    pub(crate) fn live(self, owner: u16, generation: u16) -> Result<Order, Fault> {
        if !self.is_sound(owner) {
            return Err(Fault::Corrupt);
        }
        match self.kind() {
            Kind::Head if self.generation() == generation => self.order().ok_or(Fault::Corrupt),
            Kind::Forked if self.generation() == generation => Err(Fault::Forked),
            Kind::Quarantined => Err(Fault::Quarantined),
            _ => Err(Fault::Stale),
        }
    }

    /// One more reference. Aborts on overflow, as `Arc` does.
    pub(crate) fn with_get(self) -> Word {
        if self.count() == MAX_REFS {
            abort_on_overflow();
        }
        Word(self.0 + 1)
    }

    /// One reference less, or `None` when it is the last.
    pub(crate) fn with_put(self) -> Option<Word> {
        (self.count() > 1).then(|| Word(self.0 - 1))
    }

    /// The same folio, known to be in use at its own address.
    pub(crate) fn addressed(self) -> Word {
        Word(self.0 | ADDRESSED)
    }

    pub(crate) fn is_addressed(self) -> bool {
        self.0 & ADDRESSED != 0
    }

    /// The same folio, as the parent's.
    pub(crate) fn forked(self) -> Word {
        Word(self.0 & !(7 << KIND_SHIFT) | (Kind::Forked as u64) << KIND_SHIFT)
    }
}

impl Kind {
    /// Returns what a request finds when a word of its run has this kind.
    pub(crate) fn as_obstacle(self) -> Fault {
        match self {
            Kind::Quarantined => Fault::Quarantined,
            Kind::Forked => Fault::Forked,
            Kind::Unknown => Fault::Corrupt,
            Kind::Idle | Kind::Head | Kind::Tail | Kind::Split => Fault::Busy,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_fields_do_not_overlap() {
        for order in 0..=18 {
            let order = Order::new(order).expect("valid");
            for (owner, generation) in [(1, 0), (u16::MAX, GENERATIONS - 1), (0x1234, 0x567)] {
                let word = Word::head(order, owner, generation).with_get();
                assert!(!word.is_addressed() && word.addressed().is_addressed());
                assert_eq!(word.addressed().count(), 2);
                assert_eq!((word.count(), word.order(), word.kind()), (2, Some(order), Kind::Head));
                assert_eq!((word.owner(), word.generation()), (owner, generation));
                assert_eq!(word.forked().kind(), Kind::Forked);
                assert_eq!(word.forked().order(), Some(order));
            }
        }
    }

    #[test]
    fn the_last_put_is_told_from_the_others() {
        let one = Word::head(Order::HUGE, 7, 3);
        assert_eq!(one.with_put(), None);
        assert_eq!(one.with_get().with_put(), Some(one));
    }

    #[test]
    fn a_reference_fits_its_own_generation_and_owner_only() {
        let word = Word::head(Order::PAGE, 7, 3);
        assert_eq!(word.live(7, 3), Ok(Order::PAGE));
        assert_eq!(word.live(7, 4), Err(Fault::Stale));
        assert_eq!(word.live(8, 3), Err(Fault::Corrupt));
        assert_eq!(Word::IDLE.live(7, 3), Err(Fault::Stale));
        assert_eq!(Word::tail(Order::HUGE, 7, 3).live(7, 3), Err(Fault::Stale));
        assert_eq!(Word(1).live(7, 3), Err(Fault::Corrupt), "a count without a kind");
        assert_eq!(word.forked().live(7, 3), Err(Fault::Forked));
    }
}
