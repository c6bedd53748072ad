//! Reference counts: the pgmap's, a folio's, and what programs use elsewhere.

use crate::buddy::Buddy;
use crate::patterns::PAIRS_A_STEP;
use crate::threads::{self, Budget, Timing, Turn};
use crossbeam::epoch;
use crossbeam::utils::CachePadded;
use daxtier::device::Emulated;
use daxtier::pgmap::OffsetTracking;
use daxtier::{Lifetime, Order, Pgmap, PgmapOptions};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What is taken and given back; one of each is an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A reference to the one pgmap.
    Pgmap,
    /// A folio of this order, which begins to live and ends.
    Alloc(u8),
    /// A folio of a page, at an offset that the caller chose, beside one that lives.
    Request,
    /// The same in a 2 MiB block that is idle otherwise, so that metadata for its pages comes to be and ceases.
    RequestAlone,
    /// A reference to a folio that all threads have.
    SharedFolio,
    /// A reference to a folio of the thread's own.
    OwnFolio,
    /// A reference to a folio of which only the offset is known.
    TryGet,
}

impl Subject {
    /// All of them.
    pub const ALL: [Subject; 8] = [
        Subject::SharedFolio,
        Subject::OwnFolio,
        Subject::TryGet,
        Subject::Pgmap,
        Subject::Alloc(0),
        Subject::Alloc(9),
        Subject::Request,
        Subject::RequestAlone,
    ];

    /// Returns the bench's group and the name in results.
    pub fn name(self) -> (&'static str, String) {
        match self {
            Subject::Pgmap => ("pgmap", "pgmap-get-put".to_owned()),
            Subject::Alloc(order) => ("pgmap", format!("folio-alloc-put-{order}")),
            Subject::Request => ("pgmap", "folio-request-put".to_owned()),
            Subject::RequestAlone => ("pgmap", "folio-request-put-alone".to_owned()),
            Subject::SharedFolio => ("refcount", "folio-get-put-shared".to_owned()),
            Subject::OwnFolio => ("refcount", "folio-get-put-own".to_owned()),
            Subject::TryGet => ("refcount", "folio-try-get-put".to_owned()),
        }
    }

    /// Returns who stands beside ours: `arc` and `weak` of the standard library; `atomic`, one shared word; `epoch`,
    /// crossbeam's, which protects and does not count; `percpu-buddy` with a count a page; `floor`, a number of the thread's own.
    pub fn peers(self) -> &'static [&'static str] {
        match self {
            Subject::Pgmap | Subject::SharedFolio => &["arc", "atomic", "epoch", "floor"],
            Subject::OwnFolio => &["arc", "atomic", "floor"],
            Subject::TryGet => &["weak", "atomic", "epoch"],
            Subject::Alloc(_) => &["arc", "percpu-buddy"],
            Subject::Request | Subject::RequestAlone => &["arc", "atomic"],
        }
    }
}

/// Measures ours (`daxtier`) or a peer.
///
/// # Panics
/// When no emulated device can be made, or for a name that is not among the peers.
pub fn run(subject: Subject, who: &str, threads: usize, budget: Budget) -> Timing {
    match (subject, who) {
        (_, "daxtier") => return ours(subject, threads, budget),
        (Subject::Alloc(order), "percpu-buddy") => return with_buddy(order, threads, budget),
        _ => (),
    }
    let shared = Arc::new(7u64);
    let count = CachePadded::new(AtomicU64::new(1));
    let bump = |count: &AtomicU64| {
        // As Arc's: Relaxed up, Release down.
        count.fetch_add(1, Ordering::Relaxed);
        black_box(count.fetch_sub(1, Ordering::Release));
    };
    threads::run(threads, budget, |turn| match (subject, who) {
        (Subject::Alloc(_) | Subject::Request | Subject::RequestAlone, "arc") => {
            pairs(turn, || drop(black_box(Arc::new(7u64))))
        }
        (Subject::OwnFolio, "arc") => {
            let own = Arc::new(CachePadded::new(7u64));
            pairs(turn, || drop(black_box(Arc::clone(&own))))
        }
        (_, "arc") => pairs(turn, || drop(black_box(Arc::clone(&shared)))),
        (_, "weak") => {
            let weak: Weak<u64> = Arc::downgrade(&shared);
            pairs(turn, || drop(black_box(weak.upgrade())))
        }
        (Subject::Request | Subject::RequestAlone, "atomic") => {
            // From 0 to 1 and back, a page for each thread.
            let own = CachePadded::new(AtomicU64::new(0));
            pairs(turn, || {
                black_box(own.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok());
                black_box(own.fetch_sub(1, Ordering::Release));
            })
        }
        (Subject::TryGet, "atomic") => pairs(turn, || {
            // Up from what is not 0.
            let tryget = |count: u64| (count != 0).then_some(count + 1);
            black_box(count.fetch_update(Ordering::Acquire, Ordering::Relaxed, tryget).is_ok());
            black_box(count.fetch_sub(1, Ordering::Release));
        }),
        (Subject::OwnFolio, "atomic") => {
            let own = CachePadded::new(AtomicU64::new(1));
            pairs(turn, || bump(&own))
        }
        (_, "atomic") => pairs(turn, || bump(&count)),
        (_, "epoch") => pairs(turn, || drop(black_box(epoch::pin()))),
        (_, "floor") => {
            let own = Cell::new(1u64);
            pairs(turn, || {
                black_box(&own).set(own.get() + 1);
                black_box(&own).set(own.get() - 1);
            })
        }
        _ => panic!("{who} is no peer for {subject:?}"),
    })
}

fn ours(subject: Subject, threads: usize, budget: Budget) -> Timing {
    let device = Emulated::new(1 << 30, Emulated::DEFAULT_ALIGN_BYTES).expect("a memfd can be made");
    // Who chooses offsets keeps track of them.
    let is_request = matches!(subject, Subject::Request | Subject::RequestAlone);
    let offsets = if is_request { OffsetTracking::Own } else { OffsetTracking::Provided };
    let options = PgmapOptions { offsets, ..PgmapOptions::default() };
    let pgmap = Pgmap::bind(Arc::new(device), options).expect("an emulated device binds");
    let alloc = |order| pgmap.alloc_folio(order, Lifetime::Short).expect("there is room");
    let request = |offset| pgmap.request_folio(offset, Order::PAGE).expect("it is idle");
    let shared = request(0);
    threads::run(threads, budget, |turn| match subject {
        Subject::Pgmap => pairs(turn, || _ = black_box(black_box(&pgmap).get_and_put())),
        Subject::Alloc(order) => {
            let order = Order::new(order).expect("an order");
            pairs(turn, || drop(black_box(alloc(order))))
        }
        Subject::Request | Subject::RequestAlone => {
            let offset = 1024 * (1 + turn.thread as u64);
            let _beside = (subject == Subject::Request).then(|| request(offset + 1));
            pairs(turn, || drop(black_box(request(offset))))
        }
        Subject::SharedFolio => pairs(turn, || drop(black_box(shared.clone()))),
        Subject::OwnFolio => {
            let own = alloc(Order::PAGE);
            pairs(turn, || drop(black_box(own.clone())))
        }
        Subject::TryGet => {
            let offset = black_box(shared.offset());
            pairs(turn, || drop(black_box(pgmap.try_get_folio(offset)).expect("it is live")))
        }
    })
}

/// A folio as the kernel has it: the count lies with the page, and the last put gives the run back.
fn with_buddy(order: u8, threads: usize, budget: Budget) -> Timing {
    const NR_PAGES: u64 = 1 << 18;
    let buddy = Buddy::new(NR_PAGES);
    let counts: Vec<AtomicU32> = (0..NR_PAGES).map(|_| AtomicU32::new(0)).collect();
    let order = usize::from(order);
    threads::run(threads, budget, |turn| {
        pairs(turn, || {
            let page = buddy.alloc(order).expect("there is room");
            let count = black_box(&counts[page as usize]);
            // Release: whoever comes by the page's number sees it prepared.
            count.store(1, Ordering::Release);
            if count.fetch_sub(1, Ordering::AcqRel) == 1 {
                buddy.free(page, order);
            }
        })
    })
}

#[inline(always)]
fn pairs(turn: &Turn, pair: impl Fn()) -> Timing {
    turn.time(PAIRS_A_STEP, || {
        (0..PAIRS_A_STEP).for_each(|_| pair());
        true
    })
}
