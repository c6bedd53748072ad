//! Every contender of every case, once and briefly.

use daxtier::Order;
use daxtier::offset::Lifetime;
use daxtier_bench_core::Budget;
use daxtier_bench_core::buddy::Buddy;
use daxtier_bench_core::catalogue::{Scale, cases};
use daxtier_bench_core::offsets::{self, Bitmap, BuddySystem, Floor, Locked, OffsetCrate, Offsets};
use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

#[test]
fn every_contender_of_every_case_gives_a_value() {
    let budget = Budget { operations: 256, time: Duration::from_millis(1) };
    let mut names = HashSet::new();
    for case in cases() {
        assert!(names.insert((case.name.clone(), case.threads)), "{} appears twice", case.name);
        assert_eq!(case.contenders[0], "daxtier");
        for who in &case.contenders {
            let value = case.measure(who, Scale::QUICK, budget);
            assert!(value.is_finite() && value >= 0.0, "{} {who}: {value}", case.name);
            assert!(case.unit != "%" || value <= 100.0, "{} {who}: {value}", case.name);
        }
    }
}

#[test]
fn the_program_prints_a_value_a_line() {
    for arguments in [&["--quick", "fragmentation"][..], &["--quick", "--round", "1", "metadata"]] {
        let program = env!("CARGO_BIN_EXE_bench-core");
        let output = Command::new(program).args(arguments).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        let group = arguments[arguments.len() - 1];
        let nr_values: usize =
            cases().iter().filter(|case| case.group == group).map(|case| case.contenders.len()).sum();
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(text.lines().count(), nr_values, "{text}");
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(words.len() == 5 && words[3].parse::<f64>().is_ok(), "{line}");
        }
    }
}

/// What a bench measures must be an allocator: one that hands out a page twice is quick.
#[test]
fn no_contender_hands_out_a_page_twice() {
    for order in [0, 4, 9, 12].map(|order| Order::new(order).unwrap()) {
        let nr_pages = 1 << 16;
        hands_out_all_once(&offsets::daxtier(nr_pages), nr_pages, order);
        hands_out_all_once(&Buddy::new(nr_pages), nr_pages, order);
        hands_out_all_once(&Locked::new(nr_pages, order), nr_pages, order);
        hands_out_all_once(&Floor::new(nr_pages, order, 1), nr_pages, order);
        hands_out_all_once(&BuddySystem::new(nr_pages), nr_pages, order);
        hands_out_all_once(&OffsetCrate::new(nr_pages, order), nr_pages, order);
        if order == Order::PAGE {
            hands_out_all_once(&Bitmap::new(nr_pages), nr_pages, order);
        }
    }
}

fn hands_out_all_once(offsets: &impl Offsets, nr_pages: u64, order: Order) {
    let get = || offsets.get(0, order, Lifetime::Short);
    // Some who hand out a run twice never end.
    let mut held: Vec<u64> = std::iter::from_fn(get).take(2 * nr_pages as usize).collect();
    for _ in 0..3 {
        let distinct: HashSet<u64> = held.iter().copied().collect();
        assert_eq!(distinct.len() as u64, nr_pages >> order.get(), "order {order}");
        assert!(distinct.iter().all(|offset| order.is_aligned(*offset) && *offset < nr_pages));
        // Every third one goes and comes back.
        for slot in held.iter_mut().step_by(3) {
            offsets.put(0, order, *slot);
            *slot = u64::MAX;
        }
        held.iter_mut().filter(|slot| **slot == u64::MAX).for_each(|slot| {
            *slot = get().expect("as many are free");
        });
        assert_eq!(get(), None);
    }
}
