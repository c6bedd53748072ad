mod batches;

use super::sabotage::{Defect, Wait};
use super::*;
use crate::device::{Device, Dram, Emulated};
use crate::folio::RawFolio;
use crate::offset::Lifetime;
use crate::pgmap::{Pgmap, PgmapOptions, PgmapState};
use crate::space::{self, Mapping, SLICE_BYTES, SlotSource, Space, space};
use crate::sync::service;
use crate::sys::bus_error::{self, BusError};
use crate::sys::testing::runs_in_own_process;
use crate::units::{Order, PAGE_SIZE};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

/// Returns the kit of this process, with its reader, or prints why there is none.
fn kit() -> Option<&'static Kit> {
    static KIT: OnceLock<Option<Kit>> = OnceLock::new();
    let opened = KIT.get_or_init(|| Kit::open().inspect_err(|refusal| eprintln!("skipped: {refusal}")).ok());
    static READER: OnceLock<()> = OnceLock::new();
    let kit = opened.as_ref()?;
    READER.get_or_init(|| {
        std::thread::spawn(|| read_events(kit));
    });
    Some(kit)
}

const WAYS: [Ways; 4] = [
    Ways { demote: DemoteWay::MoveOut, promote: PromoteWay::MoveIn },
    Ways { demote: DemoteWay::MoveOut, promote: PromoteWay::RemapIn },
    Ways { demote: DemoteWay::Protect, promote: PromoteWay::MoveIn },
    Ways { demote: DemoteWay::Protect, promote: PromoteWay::RemapIn },
];

/// Neighbouring slots of the run zone, one as a rule, and two tiers for them.
struct Bench {
    /// The descriptor of the slow tier's device.
    device: RawFd,
    space: &'static Space,
    index: usize,
    slots: usize,
    fast: Pgmap,
    slow: Pgmap,
}

impl SlotSource for Pgmap {
    fn take(&self, _before: Option<RawFolio>) -> Option<Folio> {
        self.alloc_folio(Order::HUGE, Lifetime::Movable).ok()
    }

    fn has_room(&self, _len_bytes: u64) -> bool {
        true
    }

    fn settled(&self) {}
}

impl Bench {
    /// Commits all of a fresh slot, in the fast tier.
    fn new() -> Bench {
        Bench::of_slots(1)
    }

    /// Commits all of fresh slots, in the fast tier.
    fn of_slots(slots: usize) -> Bench {
        let len_bytes = ((2 * slots).max(4) * SLOT_BYTES) as u64;
        let bind = |device: Arc<dyn Device>| Pgmap::bind(device, PgmapOptions::default()).unwrap();
        let slow = Emulated::new(len_bytes, Emulated::DEFAULT_ALIGN_BYTES).unwrap();
        let device = slow.descriptor();
        let bench = Bench {
            device,
            space: space().unwrap(),
            index: service::run(|| space().unwrap().take_run_chunks(1)).unwrap(),
            slots,
            fast: bind(Arc::new(Dram::new(len_bytes, None).unwrap())),
            slow: bind(Arc::new(slow)),
        };
        service::run(|| bench.space.commit(bench.addr().addr(), slots * SLOT_BYTES, &bench.fast)).unwrap();
        bench
    }

    fn addr(&self) -> *mut u8 {
        self.space.slot_address(self.index).as_ptr()
    }

    fn word(&self, page: usize) -> &AtomicU64 {
        // SAFETY: the page lies in the slot.
        let at = unsafe { self.addr().add(page * PAGE_SIZE) };
        // SAFETY: the slot is committed as long as the bench is.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    fn relocate(&self, kit: &'static Kit, ways: Ways, to: &Pgmap) -> Result<Relocated, Refusal> {
        let expected = self.space.slot(self.index).lock().folio.unwrap();
        relocate_one(kit, ways, self.space, self.index, expected, to)
    }

    /// Demotes the slot. Other tests fork, and a page that a child shares is only copied.
    fn demote(&self, kit: &'static Kit, ways: Ways) -> Result<Relocated, Refusal> {
        match self.relocate(kit, ways, &self.slow) {
            Err(Refusal::Forked) => {
                self.relocate(kit, Ways { demote: DemoteWay::Protect, ..ways }, &self.slow)
            }
            outcome => outcome,
        }
    }

    /// Promotes the slot; tries again when another test forked in the middle of it.
    fn promote(&self, kit: &'static Kit, ways: Ways) -> Result<Relocated, Refusal> {
        match self.relocate(kit, ways, &self.fast) {
            Err(Refusal::Forked) => self.relocate(kit, ways, &self.fast),
            outcome => outcome,
        }
    }

    /// Moves all slots as one batch, with a stage; says of each what came of it. Left folios are given back.
    fn relocate_all(
        &self,
        kit: &'static Kit,
        ways: Ways,
        stage: &mut Stage,
        to: &Pgmap,
    ) -> Vec<Result<Times, Option<Refusal>>> {
        service::run(|| {
            let mut moves: Vec<Move> = (self.index..self.index + self.slots)
                .map(|index| {
                    let expected = self.space.slot(index).lock().folio.unwrap();
                    Move::new(index, expected, to.alloc_folio(Order::HUGE, Lifetime::Movable).unwrap())
                })
                .collect();
            relocate(Some(Means { kit, ways }), self.space, stage, &mut moves);
            let tell = |a_move: &mut Move| match a_move.tell() {
                Told::Moved(done) => {
                    let (old, mapping) = done.old.unwrap();
                    space::release(old, mapping);
                    Ok(done.times)
                }
                Told::Refused(refusal) => Err(Some(refusal)),
                Told::Waits => Err(None),
            };
            moves.iter_mut().map(tell).collect()
        })
    }

    /// The tiers in which the slots are: `f` and `s`.
    fn tiers(&self) -> String {
        let tier = |index| match self.space.slot(index).lock().mapping {
            Mapping::Private => 'f',
            _ => 's',
        };
        (self.index..self.index + self.slots).map(tier).collect()
    }

    fn used(&self) -> (u64, u64) {
        (self.fast.stats().used_bytes >> 21, self.slow.stats().used_bytes >> 21)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        service::run(|| {
            self.space.decommit(self.addr().addr(), self.slots * SLOT_BYTES);
            self.space.give_run_chunks(self.index, 1);
        });
        assert_eq!(self.used(), (0, 0), "a folio was lost on the way");
    }
}

/// Moves one slot, as a batch of its own with a fresh stage, and gives the folio back that it leaves.
fn relocate_one(
    kit: &'static Kit,
    ways: Ways,
    space: &Space,
    index: usize,
    expected: RawFolio,
    to: &Pgmap,
) -> Result<Relocated, Refusal> {
    service::run(|| {
        let target = to.alloc_folio(Order::HUGE, Lifetime::Movable).unwrap();
        let mut moves = [Move::new(index, expected, target)];
        relocate(Some(Means { kit, ways }), space, &mut Stage::new(), &mut moves);
        match moves[0].tell() {
            Told::Moved(done) => {
                let (old, mapping) = done.old.unwrap();
                space::release(old, mapping);
                Ok(done)
            }
            Told::Refused(refusal) => Err(refusal),
            Told::Waits => panic!("the first of a batch does not wait"),
        }
    })
}

/// Tells threads to stop when the test's body ends, by a panic too.
struct Stop(AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn guard(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a Stop);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(self)
    }
}

/// Returns a field in KiB of the mapping that begins at `addr`.
fn smaps_kib(addr: usize, field: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let holds = |line: &str| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        range.and_then(|(start, end)| Some((hex(start)?..hex(end)?).contains(&addr))).unwrap_or(false)
    };
    let line = smaps.lines().skip_while(|line| !holds(line)).find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_slot_keeps_its_bytes_and_its_address_both_ways() {
    let Some(kit) = kit() else { return };
    for ways in WAYS {
        let bench = Bench::new();
        // Pages in between stay untouched.
        (0..512).step_by(3).for_each(|page| bench.word(page).store(page as u64 + 1, Ordering::Relaxed));
        let holds = || {
            (0..512).all(|page| {
                let expected = if page % 3 == 0 { page as u64 + 1 } else { 0 };
                bench.word(page).load(Ordering::Relaxed) == expected
            })
        };
        for round in 0..3 {
            let times = bench.demote(kit, ways).unwrap().times;
            assert!(times.blocked > Duration::ZERO && times.blocked < times.total);
            assert_eq!(bench.used(), (0, 1), "{ways:?} {round}");
            assert_eq!(bench.space.slot(bench.index).lock().mapping, Mapping::Shared);
            assert!(holds(), "{ways:?} {round}: demoted");
            bench.promote(kit, ways).unwrap();
            assert_eq!(bench.used(), (1, 0), "{ways:?} {round}");
            assert!(holds(), "{ways:?} {round}: promoted");
        }
    }
}

#[test]
fn a_promoted_slot_is_one_huge_page() {
    let Some(kit) = kit() else { return };
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !enabled.contains("[always]") && !enabled.contains("[madvise]") {
        eprintln!("skipped: huge pages are off");
        return;
    }
    for ways in WAYS {
        let bench = Bench::new();
        bench.word(0).store(1, Ordering::Relaxed);
        bench.demote(kit, ways).unwrap();
        bench.promote(kit, ways).unwrap();
        assert!(smaps_kib(bench.addr().addr(), "AnonHugePages") >= 2048, "{ways:?}");
    }
}

#[test]
fn stores_go_on_through_moves_and_none_is_lost() {
    let Some(kit) = kit() else { return };
    for ways in WAYS {
        let bench = Bench::new();
        let stop = Stop(AtomicBool::new(false));
        let added = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut added = 0u64;
                        while !stop.is_set() {
                            bench.word(added as usize % 512).fetch_add(1, Ordering::Relaxed);
                            added += 1;
                        }
                        added
                    })
                })
                .collect();
            let guard = stop.guard();
            for _ in 0..50 {
                bench.demote(kit, ways).unwrap();
                bench.promote(kit, ways).unwrap();
            }
            drop(guard);
            writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>()
        });
        let found: u64 = (0..512).map(|page| bench.word(page).load(Ordering::Relaxed)).sum();
        assert_eq!(found, added, "{ways:?}");
    }
}

/// Uses a slot all the time while it is demoted; returns how often it was used between block and copy. `wait` is new.
fn uses_in_window(
    kit: &'static Kit,
    wait: &'static Wait,
    demote: DemoteWay,
    limit_ms: u64,
    use_it: fn(&AtomicU64),
) -> u64 {
    let (bench, stop) = (Bench::new(), Stop(AtomicBool::new(false)));
    wait.limit_ms.store(limit_ms, Ordering::Relaxed);
    bench.word(3).store(1, Ordering::Relaxed);
    let addr = bench.addr().addr();
    let _waits = sabotage::sabotage(addr..addr + SLOT_BYTES, Defect::Waits(wait));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                use_it(bench.word(3));
                wait.uses.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _guard = stop.guard();
        while wait.uses.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        // The first that is not put off by another test's fork.
        let ways = Ways { demote, ..kit.best() };
        while let Err(refusal) = bench.relocate(kit, ways, &bench.slow) {
            assert_eq!(refusal, Refusal::Forked);
        }
    });
    wait.uses_in_window.load(Ordering::Relaxed)
}

#[test]
fn readers_go_on_in_a_slot_that_is_write_protected_and_in_no_other() {
    const MODULE: &str = "migrate::tests::readers_go_on_in_a_slot_that_is_write_protected_and_in_no_other";
    if runs_in_own_process(MODULE) {
        return;
    }
    let Some(kit) = kit() else { return };
    static WAITS: LazyLock<[Wait; 3]> = LazyLock::new(Default::default);
    let read = |word: &AtomicU64| _ = word.load(Ordering::Relaxed);
    let store = |word: &AtomicU64| _ = word.fetch_add(1, Ordering::Relaxed);
    assert!(uses_in_window(kit, &WAITS[0], DemoteWay::Protect, 20_000, read) >= 1000, "readers wait");
    // The access that the block came between with its count may still end.
    assert!(uses_in_window(kit, &WAITS[1], DemoteWay::Protect, 200, store) <= 1, "a store went on");
    if kit.best().demote == DemoteWay::MoveOut {
        assert!(uses_in_window(kit, &WAITS[2], DemoteWay::MoveOut, 200, read) <= 1, "a read went on");
    }
}

#[test]
fn without_means_no_slot_moves_that_would_have_to_be_blocked() {
    let bench = Bench::new();
    bench.word(7).store(7, Ordering::Relaxed);
    service::run(|| {
        let expected = bench.space.slot(bench.index).lock().folio.unwrap();
        let target = bench.slow.alloc_folio(Order::HUGE, Lifetime::Movable).unwrap();
        let mut moves = [Move::new(bench.index, expected, target)];
        relocate(None, bench.space, &mut Stage::new(), &mut moves);
        assert!(matches!(moves[0].tell(), Told::Refused(Refusal::Kind)));
    });
    assert_eq!((bench.used(), bench.word(7).load(Ordering::Relaxed)), ((1, 0), 7));
}

#[test]
fn a_pinned_slot_and_one_that_changed_stay_where_they_are() {
    let Some(kit) = kit() else { return };
    let bench = Bench::new();
    bench.word(7).store(7, Ordering::Relaxed);
    bench.space.slot(bench.index).lock().pins = 1;
    assert_eq!(bench.demote(kit, kit.best()).err(), Some(Refusal::Kept));
    assert_eq!(bench.used(), (1, 0), "the target was not given back");
    bench.space.slot(bench.index).lock().pins = 0;
    let seen = bench.space.slot(bench.index).lock().folio.unwrap();
    bench.demote(kit, kit.best()).unwrap();
    let stale = relocate_one(kit, kit.best(), bench.space, bench.index, seen, &bench.fast);
    assert_eq!(stale.err(), Some(Refusal::Gone));
    assert_eq!(bench.word(7).load(Ordering::Relaxed), 7);
    assert_eq!(bench.demote(kit, kit.best()).err(), Some(Refusal::Kind), "it is there already");
}

#[test]
fn a_locked_slot_is_refused_and_goes_on() {
    let Some(kit) = kit() else { return };
    let ways = Ways { demote: DemoteWay::MoveOut, ..kit.best() };
    let bench = Bench::new();
    bench.word(7).store(7, Ordering::Relaxed);
    // By a bare system call: the address sanitizer makes mlock do nothing.
    // SAFETY: the page is mapped and stays so.
    assert_eq!(unsafe { libc::syscall(libc::SYS_mlock, bench.word(9).as_ptr(), PAGE_SIZE) }, 0);
    assert_eq!(bench.demote(kit, ways).err(), Some(Refusal::Locked));
    bench.word(300).fetch_add(1, Ordering::Relaxed);
    assert_eq!(bench.word(7).load(Ordering::Relaxed), 7);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::syscall(libc::SYS_munlock, bench.word(9).as_ptr(), PAGE_SIZE) }, 0);
    bench.demote(kit, ways).unwrap();
    assert_eq!(bench.word(300).load(Ordering::Relaxed), 1);
}

#[test]
fn pages_that_a_child_shares_are_not_moved_out_but_can_be_copied() {
    let Some(kit) = kit() else { return };
    let bench = Bench::new();
    bench.word(7).store(7, Ordering::Relaxed);
    let (mut ends, mut told) = ([0; 2], 0u8);
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the child only reads a byte and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: closes the child's copy, so that the parent's end is the last.
        unsafe { libc::close(ends[1]) };
        // SAFETY: the buffer is one byte long.
        unsafe { libc::read(ends[0], (&raw mut told).cast(), 1) };
        let kept = bench.word(7).load(Ordering::Relaxed) == 7;
        // SAFETY: ends the child without handlers.
        unsafe { libc::_exit(i32::from(!kept)) };
    }
    let moving = Ways { demote: DemoteWay::MoveOut, ..kit.best() };
    let refused = bench.relocate(kit, moving, &bench.slow);
    assert_eq!(refused.err(), Some(Refusal::Forked));
    bench.word(8).store(8, Ordering::Relaxed);
    bench.demote(kit, Ways { demote: DemoteWay::Protect, ..kit.best() }).unwrap();
    bench.word(7).store(9, Ordering::Relaxed);
    assert_eq!(bench.word(8).load(Ordering::Relaxed), 8);
    // SAFETY: closes our end, which lets the child go on.
    unsafe { libc::close(ends[1]) };
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0, "the child's page changed");
    // SAFETY: the descriptor is this test's.
    unsafe { libc::close(ends[0]) };
}

#[test]
fn commits_and_decommits_meet_moves() {
    let Some(kit) = kit() else { return };
    let bench = Bench::new();
    let stop = Stop(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for half in 1..3usize {
            let (bench, stop) = (&bench, &stop);
            scope.spawn(move || {
                let addr = bench.addr().addr() + half * 8 * SLICE_BYTES;
                let mut round = 0u64;
                while !stop.is_set() {
                    round += 1;
                    service::run(|| bench.space.decommit(addr, 8 * SLICE_BYTES));
                    service::run(|| bench.space.commit(addr, 8 * SLICE_BYTES, &bench.fast)).unwrap();
                    bench.word(half * 128).store(round, Ordering::Relaxed);
                    std::thread::yield_now();
                    assert_eq!(bench.word(half * 128).load(Ordering::Relaxed), round);
                }
            });
        }
        let _guard = stop.guard();
        for _ in 0..100 {
            bench.demote(kit, kit.best()).unwrap();
            bench.promote(kit, kit.best()).unwrap();
        }
    });
}

#[test]
fn the_kernel_is_asked_for_its_best_way() {
    let Some(kit) = kit() else { return };
    let offered = crate::sys::uffd::Uffd::supported().unwrap();
    let has_move = offered.has(crate::sys::uffd::Features::MOVE);
    assert_eq!(kit.best().demote == DemoteWay::MoveOut, has_move);
}

#[test]
fn a_device_that_goes_in_a_demotion_takes_nothing_with_it() {
    let Some(kit) = kit() else { return };
    for ways in WAYS.iter().step_by(2) {
        for is_early in [true, false] {
            let bench = Bench::new();
            (0..512).for_each(|page| bench.word(page).store(page as u64 + 1, Ordering::Relaxed));
            let addr = bench.addr().addr();
            let _gone = if is_early {
                // SAFETY: cuts the file of the bench's device; no pointer is passed.
                assert_eq!(unsafe { libc::ftruncate(bench.device, 0) }, 0);
                None
            } else {
                Some(sabotage::sabotage(addr..addr + SLOT_BYTES, Defect::DeviceGoes(bench.device)))
            };
            let refusal = bench.demote(kit, *ways).err();
            assert!(
                matches!(refusal, Some(Refusal::Unanswered(BusError { is_damaged: false, .. }))),
                "{ways:?} {is_early}: {refusal:?}"
            );
            (0..512).for_each(|page| {
                assert_eq!(bench.word(page).fetch_add(1, Ordering::Relaxed), page as u64 + 1);
            });
            assert_eq!(bench.used(), (1, 0), "the target went back");
            assert_eq!(bench.slow.state(), PgmapState::Drained, "nothing is placed there any more");
        }
    }
}

#[test]
fn a_device_that_goes_in_a_promotion_fails_the_program_as_it_would_have_without() {
    let Some(kit) = kit() else { return };
    for ways in WAYS.iter().take(2) {
        let bench = Bench::new();
        bench.demote(kit, *ways).unwrap();
        let addr = bench.addr().addr();
        let _gone = sabotage::sabotage(addr..addr + SLOT_BYTES, Defect::DeviceGoes(bench.device));
        let refusal = bench.promote(kit, *ways).err();
        assert!(matches!(refusal, Some(Refusal::Unanswered(_))), "{ways:?}: {refusal:?}");
        assert_eq!(bench.slow.state(), PgmapState::Dying);
        assert_eq!(bench.used(), (0, 1), "the slot is where it was");
        let byte = bench.addr();
        // SAFETY: the slot is mapped.
        let read = || _ = unsafe { byte.read_volatile() };
        // SAFETY: a read drops nothing.
        let read = unsafe { bus_error::guarded(addr..addr + SLOT_BYTES, read) };
        assert_eq!(read, Err(BusError { addr, is_damaged: false }), "not zeroes");
    }
}
