//! All cases, with the names under which they appear in results.

use crate::buddy::Buddy;
use crate::fragmentation::{self, Scenario};
use crate::metadata::{self, Use};
use crate::offsets::{self, Bitmap, BuddySystem, Floor, Locked, OffsetCrate};
use crate::patterns::{self, Pattern};
use crate::references::{self, Subject};
use crate::threads::{Budget, Timing};
use daxtier::units::Order;

/// How much memory a case plays with. None of it is ever touched; the allocators' bookkeeping is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Pages for each thread, at least.
    pub nr_pages: u64,
    /// Runs of the order in question for each thread, at least.
    pub nr_runs: u64,
    /// Gigabytes whose metadata is weighed.
    pub nr_gib: u64,
}

impl Scale {
    /// What results are taken with: a gigabyte a thread, or 128 runs.
    pub const FULL: Scale = Scale { nr_pages: 1 << 18, nr_runs: 128, nr_gib: 64 };
    /// Enough to see that everything works.
    pub const QUICK: Scale = Scale { nr_pages: 1 << 14, nr_runs: 8, nr_gib: 1 };
}

/// One case and those who take part in it; the first is ours.
pub struct Case {
    /// The bench that it belongs to.
    pub group: &'static str,
    /// Its name, unique together with the number of threads.
    pub name: String,
    /// How many threads take part.
    pub threads: usize,
    /// What is measured.
    pub unit: &'static str,
    /// Who takes part.
    pub contenders: Vec<&'static str>,
    subject: What,
}

enum What {
    Offsets(Pattern, Order),
    References(Subject),
    Fragmentation(Scenario),
    Metadata(Use),
}

/// The orders of the offset patterns.
const ORDERS: [u8; 5] = [0, 4, 9, 12, 18];

/// Returns all cases, group by group.
pub fn cases() -> Vec<Case> {
    let patterns = Pattern::ALL.into_iter().flat_map(|pattern| {
        ORDERS.into_iter().flat_map(move |order| {
            // Handing over takes two.
            let threads = if pattern == Pattern::Handover { 2..=2 } else { 1..=2 };
            threads.map(move |threads| of_pattern(pattern, order, threads))
        })
    });
    let references =
        Subject::ALL.into_iter().flat_map(|subject| [1, 2].map(|threads| of_subject(subject, threads)));
    patterns.chain(references).chain(of_scenarios()).chain(of_metadata()).collect()
}

fn of_pattern(pattern: Pattern, order: u8, threads: usize) -> Case {
    let mut contenders =
        vec!["daxtier", "floor", "locked", "percpu-buddy", "buddy_system_allocator", "offset-allocator"];
    // Above order 0 it looks at every page from the first on: seconds once many are taken, milliseconds for a large run.
    if order == 0 || pattern == Pattern::Pair && order <= 9 {
        contenders.push("bitmap-allocator");
    }
    Case {
        group: "offset",
        name: format!("{}-{order}", pattern.name()),
        threads,
        unit: "ns",
        contenders,
        subject: What::Offsets(pattern, Order::new(order).expect("an order")),
    }
}

fn of_subject(subject: Subject, threads: usize) -> Case {
    let (group, name) = subject.name();
    let contenders = ["daxtier"].into_iter().chain(subject.peers().iter().copied()).collect();
    Case { group, name, threads, unit: "ns", contenders, subject: What::References(subject) }
}

fn of_scenarios() -> Vec<Case> {
    let peers = ["percpu-buddy", "buddy_system_allocator"];
    let case = |name: String, others: &[&'static str], scenario| Case {
        group: "fragmentation",
        name,
        threads: 1,
        unit: "%",
        contenders: ["daxtier"].into_iter().chain(others.iter().copied()).collect(),
        subject: What::Fragmentation(scenario),
    };
    let churn = [25, 50, 75, 90].map(|used_percent| {
        let target = if used_percent == 90 { &["target"][..] } else { &[] };
        let others = [target, &peers].concat();
        case(format!("blocks-churn-{used_percent}"), &others, Scenario::Churn { used_percent })
    });
    let others = [&["target"][..], &peers].concat();
    let recovery = case("blocks-recovery".to_owned(), &others, Scenario::Recovery);
    let others = [&["no-hint"][..], &peers].concat();
    let mixed = case("blocks-mixed".to_owned(), &others, Scenario::Mixed { is_hinted: true });
    churn.into_iter().chain([recovery, mixed]).collect()
}

fn of_metadata() -> Vec<Case> {
    let uses = [("whole", Use::Whole), ("split", Use::Split), ("split-in-orders", Use::SplitInOrders)];
    uses.map(|(name, how)| Case {
        group: "metadata",
        name: format!("metadata-{name}"),
        threads: 1,
        unit: "KiB/GiB",
        contenders: vec!["daxtier", "target"],
        subject: What::Metadata(how),
    })
    .into()
}

impl Case {
    /// Measures one contender; returns the value in the case's unit.
    ///
    /// # Panics
    /// When the contender fails, or does not take part.
    pub fn measure(&self, who: &str, scale: Scale, budget: Budget) -> f64 {
        if let Some(timing) = self.time(who, scale, budget) {
            return timing.nanoseconds();
        }
        match (&self.subject, who) {
            (What::Fragmentation(Scenario::Churn { .. }), "target") => 95.0,
            (What::Fragmentation(_), "target") => 99.0,
            (What::Metadata(Use::Whole), "target") => 1.0,
            (What::Metadata(_), "target") => 36.0,
            (What::Fragmentation(scenario), _) => share_of_ideal(who, scale.nr_pages, *scenario),
            (What::Metadata(how), "daxtier") => metadata::kib_a_gib(scale.nr_gib, *how),
            _ => panic!("{who} takes no part in {}", self.name),
        }
    }

    /// Takes the time of one contender; `None` where no time is measured.
    ///
    /// # Panics
    /// As for [`measure`](Case::measure).
    pub fn time(&self, who: &str, scale: Scale, budget: Budget) -> Option<Timing> {
        match self.subject {
            What::Offsets(pattern, order) => {
                Some(time_offsets(who, pattern, order, self.threads, scale, budget))
            }
            What::References(subject) => Some(references::run(subject, who, self.threads, budget)),
            What::Fragmentation(_) | What::Metadata(_) => None,
        }
    }
}

fn time_offsets(
    who: &str,
    pattern: Pattern,
    order: Order,
    threads: usize,
    scale: Scale,
    budget: Budget,
) -> Timing {
    let nr_runs = scale.nr_runs.max(scale.nr_pages >> order.get());
    let nr_pages = (nr_runs << order.get()) * threads as u64;
    // Each type has a copy of the patterns of its own, so that nobody pays for a call through a table.
    macro_rules! run {
        ($offsets:expr) => {
            patterns::run(&$offsets, pattern, order, nr_runs, threads, budget)
        };
    }
    match who {
        "daxtier" => run!(offsets::daxtier(nr_pages)),
        "floor" => run!(Floor::new(nr_pages, order, threads)),
        "locked" => run!(Locked::new(nr_pages, order)),
        "percpu-buddy" => run!(Buddy::new(nr_pages)),
        "buddy_system_allocator" => run!(BuddySystem::new(nr_pages)),
        "offset-allocator" => run!(OffsetCrate::new(nr_pages, order)),
        "bitmap-allocator" => run!(Bitmap::new(nr_pages)),
        _ => panic!("there is no contender {who}"),
    }
}

fn share_of_ideal(who: &str, nr_pages: u64, scenario: Scenario) -> f64 {
    match (who, scenario) {
        ("daxtier", _) => fragmentation::share_of_ideal(&offsets::daxtier(nr_pages), nr_pages, scenario),
        ("no-hint", Scenario::Mixed { .. }) => fragmentation::share_of_ideal(
            &offsets::daxtier(nr_pages),
            nr_pages,
            Scenario::Mixed { is_hinted: false },
        ),
        ("percpu-buddy", _) => fragmentation::share_of_ideal(&Buddy::new(nr_pages), nr_pages, scenario),
        ("buddy_system_allocator", _) => {
            fragmentation::share_of_ideal(&BuddySystem::new(nr_pages), nr_pages, scenario)
        }
        _ => panic!("there is no contender {who}"),
    }
}
