//! Which worker moves which slot: the requests that are not done, and the batches that they are handed out in.
//!
//! A [`Batch`] is up to [`MOST_MOVES`] neighbouring slots of one request, for one worker. Used by the engine under its lock.
//!
//! # Invariants
//! - Q1: each slot of a request is in one batch, once.
//! - Q2: no batch has a slot that an earlier request still has, handed out or not. So a slot that several requests name
//!   moves in the order in which they came, whatever the number of workers.
//! - Q3: a request stays in the queue until something has come of each of its slots.

use super::request::Request;
use crate::migrate::MOST_MOVES;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// How many requests are in the queue at most.
pub(in super::super) const MOST_REQUESTS: usize = 64;

/// Slots that one worker moves.
pub(super) struct Batch {
    pub(super) request: Arc<Request>,
    pub(super) slots: Range<usize>,
    /// Of which slots something has come.
    pub(super) is_done: [bool; MOST_MOVES],
}

/// The requests that are not done, in the order in which they came.
pub(super) struct Queue {
    requests: VecDeque<Arc<Request>>,
}

impl Queue {
    pub(super) const fn new() -> Queue {
        Queue { requests: VecDeque::new() }
    }

    /// Allocates for as many requests as there can be.
    pub(super) fn reserve(&mut self) {
        self.requests.reserve(MOST_REQUESTS);
    }

    /// Adds a request unless there are too many.
    pub(super) fn push(&mut self, request: Arc<Request>) -> bool {
        self.drop_done();
        let has_room = self.requests.len() < MOST_REQUESTS;
        if has_room {
            self.requests.push_back(request);
        }
        has_room
    }

    /// Hands out the next batch, of at most `most` slots, if there is one that may be begun: to a worker without a kit only
    /// of a request that needs none.
    pub(super) fn take(&mut self, most: usize, has_kit: bool) -> Option<Batch> {
        self.drop_done();
        for (at, request) in self.requests.iter().enumerate() {
            let can = has_kit || !request.needs_kit();
            let is_free = can && !self.requests.range(..at).any(|earlier| earlier.overlaps(request));
            if is_free && let Some(slots) = request.take(most.clamp(1, MOST_MOVES)) {
                return Some(Batch { request: Arc::clone(request), slots, is_done: [false; MOST_MOVES] });
            }
        }
        None
    }

    fn drop_done(&mut self) {
        self.requests.retain(|request| !request.is_done());
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::super::stats::Outcome;
    use super::*;
    use crate::device::{Dram, Emulated};
    use crate::pgmap::{Pgmap, PgmapOptions};
    use crate::runtime::publish::StatsPage;
    use crate::runtime::source::Tiers;
    use crate::tier::Tier;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    /// A request of a pool that has an emulated device.
    fn request_with_device(slots: Range<usize>) -> Arc<Request> {
        let device = Arc::new(Emulated::new(8 << 20, Emulated::DEFAULT_ALIGN_BYTES).unwrap());
        let pgmap = Pgmap::bind(device, PgmapOptions::default()).unwrap();
        let tiers = vec![Tier::new("fast", vec![dram()], 0), Tier::new("slow", vec![pgmap], 1)];
        let tiers = Tiers::open(tiers, StatsPage::create().unwrap()).unwrap();
        Arc::new(Request::new(tiers, 0, slots))
    }

    fn dram() -> Pgmap {
        let dram = Arc::new(Dram::new(8 << 20, None).unwrap());
        Pgmap::bind(dram, PgmapOptions::default()).unwrap()
    }

    fn request(slots: Range<usize>) -> Arc<Request> {
        static TIERS: OnceLock<Arc<Tiers>> = OnceLock::new();
        let tiers = TIERS.get_or_init(|| {
            Tiers::open(vec![Tier::new("fast", vec![dram()], 0)], StatsPage::create().unwrap()).unwrap()
        });
        Arc::new(Request::new(Arc::clone(tiers), 0, slots))
    }

    fn finish(batch: &Batch) {
        batch.slots.clone().for_each(|_| batch.request.note(Outcome::Moved));
    }

    #[test]
    fn neighbours_come_together_and_each_slot_once() {
        let mut queue = Queue::new();
        queue.push(request(100..140));
        let batches: Vec<Batch> = std::iter::from_fn(|| queue.take(MOST_MOVES, true)).collect();
        let slots: Vec<Range<usize>> = batches.iter().map(|batch| batch.slots.clone()).collect();
        assert_eq!(slots, [100..116, 116..132, 132..140]);
        assert!(!batches[0].request.is_done());
        batches.iter().for_each(finish);
        assert!(batches[0].request.is_done() && queue.take(1, true).is_none());
        assert!(queue.requests.is_empty());
    }

    #[test]
    fn a_later_request_for_the_same_slots_waits_and_one_for_others_does_not() {
        let mut queue = Queue::new();
        for slots in [0..4, 3..6, 10..12, 11..12] {
            assert!(queue.push(request(slots)));
        }
        let first = queue.take(8, true).unwrap();
        let third = queue.take(8, true).unwrap();
        assert_eq!((first.slots.clone(), third.slots.clone()), (0..4, 10..12));
        assert!(queue.take(8, true).is_none());
        finish(&third);
        assert_eq!(queue.take(8, true).map(|batch| batch.slots), Some(11..12));
        finish(&first);
        assert_eq!(queue.take(8, true).map(|batch| batch.slots), Some(3..6));
    }

    #[test]
    fn a_worker_without_a_kit_gets_what_needs_none_and_nothing_before_its_turn() {
        let mut queue = Queue::new();
        assert!(queue.push(request_with_device(0..4)));
        for slots in [2..6, 8..9] {
            assert!(queue.push(request(slots)));
        }
        assert_eq!(queue.take(8, false).map(|batch| batch.slots), Some(8..9));
        assert!(queue.take(8, false).is_none());
        let first = queue.take(8, true).unwrap();
        assert_eq!(first.slots, 0..4);
        finish(&first);
        assert_eq!(queue.take(8, false).map(|batch| batch.slots), Some(2..6));
    }

    #[test]
    fn a_full_queue_takes_nothing() {
        let mut queue = Queue::new();
        assert!((0..MOST_REQUESTS).all(|slot| queue.push(request(slot..slot + 1))));
        assert!(!queue.push(request(1000..1001)));
        finish(&queue.take(1, true).unwrap());
        assert!(queue.push(request(1000..1001)));
    }

    proptest! {
        /// Beside an oracle that does one request after the other: for every slot the same requests in the same order.
        #[test]
        fn slots_move_in_the_order_of_the_requests(
            ranges in prop::collection::vec((0usize..40, 1usize..20), 1..12),
            turns in prop::collection::vec((0usize..3, 1usize..20), 400),
        ) {
            let requests: Vec<_> = ranges.iter().map(|&(first, len)| request(first..first + len)).collect();
            let mut queue = Queue::new();
            requests.iter().for_each(|request| assert!(queue.push(Arc::clone(request))));
            // The batches of three workers, which end in any order.
            let mut working: [Option<Batch>; 3] = [const { None }; 3];
            let mut order = vec![Vec::new(); 64];
            for (worker, most) in turns {
                match working[worker].take() {
                    Some(batch) => finish(&batch),
                    None => working[worker] = queue.take(most, true),
                }
                if let Some(batch) = &working[worker] {
                    let others = working.iter().enumerate().filter(|&(other, _)| other != worker);
                    for (_, other) in others.filter_map(|(at, other)| Some((at, other.as_ref()?))) {
                        let is_apart = batch.slots.end <= other.slots.start || other.slots.end <= batch.slots.start;
                        prop_assert!(is_apart, "two workers have one slot");
                    }
                    let number = requests.iter().position(|one| Arc::ptr_eq(one, &batch.request));
                    batch.slots.clone().for_each(|slot| order[slot].push(number.unwrap()));
                }
            }
            if requests.iter().all(|request| request.is_done()) {
                for (slot, seen) in order.iter().enumerate() {
                    let expected: Vec<usize> = (0..ranges.len())
                        .filter(|&at| (ranges[at].0..ranges[at].0 + ranges[at].1).contains(&slot))
                        .collect();
                    prop_assert_eq!(seen, &expected, "slot {}", slot);
                }
            }
            for seen in &order {
                prop_assert!(seen.is_sorted(), "{:?}", seen);
            }
        }
    }
}
