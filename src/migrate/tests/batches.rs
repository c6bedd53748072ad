//! Several slots at once: what they share, and what one of them does not do to the others.
//!
//! Each runs in a process of its own: another test's fork would cut a batch short.

use super::*;

const MODULE: &str = "migrate::tests::batches";

/// Writes a word to some pages of every slot; returns what finds out whether they are still there.
fn fill(bench: &Bench, salt: u64) -> impl Fn() -> bool + '_ {
    let pages = move || (0..bench.slots * 512).step_by(7);
    pages().for_each(|page| bench.word(page).store(page as u64 + salt, Ordering::Relaxed));
    move || pages().all(|page| bench.word(page).load(Ordering::Relaxed) == page as u64 + salt)
}

#[test]
fn a_batch_moves_together_and_takes_the_pages_that_are_ready() {
    if runs_in_own_process(&format!("{MODULE}::a_batch_moves_together_and_takes_the_pages_that_are_ready")) {
        return;
    }
    let Some(kit) = kit() else { return };
    for ways in WAYS {
        let (bench, mut stage) = (Bench::of_slots(MOST_MOVES), Stage::new());
        for round in 0..3 {
            let holds = fill(&bench, round);
            let done = bench.relocate_all(kit, ways, &mut stage, &bench.slow);
            assert!(done.iter().all(Result::is_ok), "{ways:?} {round}: {done:?}");
            assert_eq!(bench.tiers(), "s".repeat(MOST_MOVES));
            assert!(holds(), "{ways:?} {round}: demoted");
            assert_eq!(stage.kept_bytes(), 0, "somebody may still read what was moved out");
            // Where nothing was moved out or in yet there is no stage.
            let is_open =
                ways.demote == DemoteWay::MoveOut || ways.promote == PromoteWay::MoveIn && round > 0;
            let nr_prepared = (0..).take_while(|_| stage.prepare_one(5)).count();
            assert_eq!((nr_prepared, stage.kept_bytes()), if is_open { (5, 5 * SLOT_BYTES) } else { (0, 0) });
            let done = bench.relocate_all(kit, ways, &mut stage, &bench.fast);
            assert!(done.iter().all(Result::is_ok), "{ways:?} {round}: {done:?}");
            assert_eq!((bench.tiers(), bench.used()), ("f".repeat(MOST_MOVES), (MOST_MOVES as u64, 0)));
            assert!(holds(), "{ways:?} {round}: promoted");
            if ways.promote == PromoteWay::MoveIn {
                assert_eq!(stage.kept_bytes(), 0, "the pages are the slots' now");
            }
            stage.empty();
            assert_eq!(stage.kept_bytes(), 0);
        }
    }
}

#[test]
fn what_stands_in_the_way_of_one_slot_stops_no_other_of_its_batch() {
    if runs_in_own_process(&format!(
        "{MODULE}::what_stands_in_the_way_of_one_slot_stops_no_other_of_its_batch"
    )) {
        return;
    }
    let Some(kit) = kit() else { return };
    for ways in WAYS {
        let (bench, mut stage) = (Bench::of_slots(7), Stage::new());
        let holds = fill(&bench, 1);
        let pin = |slots: &[usize], pins| {
            slots.iter().for_each(|at| bench.space.slot(bench.index + at).lock().pins = pins);
        };
        pin(&[2, 6], 1);
        let done = bench.relocate_all(kit, ways, &mut stage, &bench.slow);
        assert_eq!(bench.tiers(), "ssfsssf", "{ways:?}: {done:?}");
        assert_eq!((&done[2], &done[6]), (&Err(Some(Refusal::Kept)), &Err(Some(Refusal::Kept))));
        pin(&[2, 6], 0);
        pin(&[1, 4], 1);
        // Two of them are there already.
        let done = bench.relocate_all(kit, ways, &mut stage, &bench.fast);
        assert_eq!(bench.tiers(), "fsffsff", "{ways:?}: {done:?}");
        assert_eq!(done[2], Err(Some(Refusal::Kind)));
        pin(&[1, 4], 0);
        assert!(holds(), "{ways:?}");
        assert_eq!(bench.used(), (5, 2));
    }
}

#[test]
fn a_device_that_goes_in_the_middle_of_a_batch_takes_what_was_not_moved_yet() {
    if runs_in_own_process(&format!(
        "{MODULE}::a_device_that_goes_in_the_middle_of_a_batch_takes_what_was_not_moved_yet"
    )) {
        return;
    }
    let Some(kit) = kit() else { return };
    for ways in WAYS.iter().take(2) {
        let (bench, mut stage) = (Bench::of_slots(6), Stage::new());
        let _ = fill(&bench, 1);
        let third = bench.addr().addr() + 2 * SLOT_BYTES;
        let gone = sabotage::sabotage(third..third + SLOT_BYTES, Defect::DeviceGoes(bench.device));
        let done = bench.relocate_all(kit, *ways, &mut stage, &bench.slow);
        drop(gone);
        assert_eq!(bench.tiers(), "ssffff", "{ways:?}: {done:?}");
        assert!(done[2..].iter().all(|done| matches!(done, Err(Some(Refusal::Unanswered(_))))), "{done:?}");
        let is_there = |page: usize| bench.word(page).load(Ordering::Relaxed) == page as u64 + 1;
        assert!((2 * 512..6 * 512).filter(|page| page % 7 == 0).all(is_there), "{ways:?}");
    }
}

#[test]
fn a_device_that_goes_while_neighbours_are_blocked_is_mapped_again_where_it_was() {
    if runs_in_own_process(&format!(
        "{MODULE}::a_device_that_goes_while_neighbours_are_blocked_is_mapped_again_where_it_was"
    )) {
        return;
    }
    let Some(kit) = kit() else { return };
    for ways in WAYS.iter().take(2) {
        let (bench, mut stage) = (Bench::of_slots(6), Stage::new());
        let _ = fill(&bench, 1);
        let done = bench.relocate_all(kit, *ways, &mut stage, &bench.slow);
        assert!(done.iter().all(Result::is_ok), "{ways:?}: {done:?}");
        let third = bench.addr().addr() + 2 * SLOT_BYTES;
        let gone = sabotage::sabotage(third..third + SLOT_BYTES, Defect::DeviceGoes(bench.device));
        let done = bench.relocate_all(kit, *ways, &mut stage, &bench.fast);
        drop(gone);
        assert_eq!(bench.tiers(), "ffssss", "{ways:?}: {done:?}");
        let is_there = |page: usize| bench.word(page).load(Ordering::Relaxed) == page as u64 + 1;
        assert!((0..2 * 512).filter(|page| page % 7 == 0).all(is_there), "{ways:?}");
        for slot in 2..6 {
            let byte = bench.addr().wrapping_add(slot * SLOT_BYTES);
            // SAFETY: the slot is mapped.
            let read = || _ = unsafe { byte.read_volatile() };
            // SAFETY: a read drops nothing.
            let read = unsafe { bus_error::guarded(byte.addr()..byte.addr() + SLOT_BYTES, read) };
            assert_eq!(read, Err(BusError { addr: byte.addr(), is_damaged: false }), "not zeroes: {slot}");
        }
    }
}

#[test]
fn a_fork_that_wants_to_begin_cuts_a_batch_short() {
    if runs_in_own_process(&format!("{MODULE}::a_fork_that_wants_to_begin_cuts_a_batch_short")) {
        return;
    }
    let Some(kit) = kit() else { return };
    let bench = Bench::of_slots(MOST_MOVES);
    let (holds, stop) = (fill(&bench, 1), Stop(AtomicBool::new(false)));
    let mut nr_waiting = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                crate::sync::gate::alone(|| ());
            }
        });
        let _guard = stop.guard();
        for round in 0..200 {
            let to = if round % 2 == 0 { &bench.slow } else { &bench.fast };
            let done = bench.relocate_all(kit, kit.best(), &mut Stage::new(), to);
            assert_ne!(done[0], Err(None), "the first of a batch is always done");
            let first = done.iter().position(|done| *done == Err(None)).unwrap_or(MOST_MOVES);
            // Those which the former batch left are in the tier that they go to now.
            let is_left =
                |done: &Result<Times, Option<Refusal>>| matches!(done, Err(None | Some(Refusal::Kind)));
            assert!(done[first..].iter().all(is_left), "{done:?}");
            nr_waiting += done.iter().filter(|done| **done == Err(None)).count();
            if nr_waiting > 0 && round > 4 {
                break;
            }
        }
    });
    assert!(nr_waiting > 0, "no batch was cut short");
    assert!(holds());
}
