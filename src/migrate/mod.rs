//! Moving what backs a slot to another tier, while the program uses it.
//!
//! A slot's address never changes; [`relocate`] changes the folio behind it, from DRAM to a device ([`demote`]) or
//! back ([`promote`]), and the program's threads notice nothing but a pause. It takes a batch of [`Move`]s, for which it
//! prepares together what does not concern the program. [`Kit`] is what the kernel offers, [`Stage`] the huge pages that a
//! worker keeps between batches, [`Place`] addresses of our own. Uses `space` for the slots; the runtime decides what moves where
//! and runs the threads.
//!
//! # States of a slot in a move
//!
//! The slot's lock is held from before `block` to after `release`, so the slot's own state (folio and mapping) is seen before or
//! after a move and never in between, and commits, decommits and other moves of the slot wait. The process does not fork
//! meanwhile (the mover is in service). What a batch prepares before, it prepares without the locks: under each it looks whether
//! the slot is still what it prepared for.
//!
//! ```text
//!                 block                copy              swap              release
//!  demote   Resting ----> Blocked(fast) ----> Copied(fast) ----> Swapped(slow) ----> Resting(slow)
//!              ^            |                    |
//!              +--put_back--+------put_back------+
//!
//!  promote  Resting ----> Blocked(slow) ----> Copied(slow) ----> Swapped(fast) ----> Resting(fast)
//!              ^                                 |
//!              +---------map_slow_again----------+
//! ```
//!
//! | step | demote, pin-safe | demote, readers go on | promote | promote, older kernels |
//! |---|---|---|---|---|
//! | block | UFFDIO_MOVE the pages to a stage | UFFDIO_WRITEPROTECT the slot | mremap a registered blank over the slot | the same |
//! | copy | stage to alias | slot to alias | alias to stage | the same |
//! | swap | mremap the alias over the slot | the same | UFFDIO_MOVE the stage's pages in | mremap the stage over the slot |
//! | release | UFFDIO_WAKE | the same | UNREGISTER, UFFDIO_WAKE | UFFDIO_WAKE |
//!
//! The *alias* is a second mapping of the device's range, the *stage* private memory, the *blank* an empty private
//! mapping that is registered with the userfaultfd.
//!
//! # Batches
//! What costs most of a move beside the copy is to make pages and page tables: a huge page for the stage, the
//! alias. Both are ready before the first slot of a batch is blocked, the first as a rule from an earlier batch. Slots are
//! demoted one after the other. Of those that are promoted up to four neighbours are blocked by one mremap, since it waits for
//! another thread, and released one after the other. So a thread of the program waits for four copies at most. Between two
//! such steps nothing is blocked; there the mover takes the next locks, in ascending order, and stops if a fork wants to begin.
//!
//! Several movers may be at work, each with a batch, a stage and places of its own. They share the userfaultfds, whose calls
//! concern the ranges that they name, and the kernel's lock on mappings.
//!
//! # Why no store is lost
//!
//! - M1: when `block` returns, no processor can store to the slot's old bytes through the slot's address: the kernel
//!   has changed the page tables and flushed every TLB. (UFFDIO_MOVE and mremap leave nothing mapped, so reads wait too;
//!   write protection leaves reads.) Each of the three does so before it returns.
//! - M2: from then until `swap`, an access that M1 refuses waits: the address is registered, and the page missing or
//!   protected. It waits in the kernel, whether it comes from an instruction or from a system call, which so neither
//!   fails nor comes up short. The copy therefore sees every store that ever took effect, and none that is to come.
//! - M3: `swap` is one system call under the kernel's lock on mappings: an access finds the old state, and waits, or the
//!   new one, and takes effect there. The bytes are the same in both.
//! - M4: `release` is an explicit UFFDIO_WAKE *after* the swap, and after the registration ended where it does. A thread
//!   that is woken looks at the page tables again. (Ending a registration wakes too, but not those that are about to
//!   wait.)
//! - M5: an abort makes the old bytes reachable at the slot's address again, in the same page or mapping, then ends the
//!   registration, then wakes. What was copied is thrown away.
//! - M6: what the kernel does behind the page tables is the exception: a page that is *pinned* for direct I/O is
//!   written by its physical address. UFFDIO_MOVE refuses such pages (EBUSY), and the move aborts. Write protection and
//!   the promotion from a device can't see them; whoever calls them has made sure that there are none.
//!
//! # In the window
//!
//! Between `block` and `release`, threads of the program may wait with any lock of theirs, of the C library's and of the
//! heap engine's in their hands. So the mover there takes no lock, allocates nothing, and touches no memory but its
//! stack, the [`Kit`] (a static), its own mappings and `errno`: no thread-local of a library either, whose place may
//! be in memory that the program allocated. The reader of the userfaultfd ([`read_events`]), on which the promotion's
//! mremap waits, keeps to the same.

mod copy;
mod demote;
mod kit;
mod place;
mod promote;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod sabotage;
mod stage;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub(crate) use kit::{DemoteWay, Kit, PromoteWay, Ways, read_events};
pub(crate) use stage::Stage;

use crate::error::SysError;
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::{self, Mapping, SLOT_BYTES, SlotState, Space};
use crate::sync::{MutexGuard, gate};
use crate::sys::bus_error::BusError;
use crate::sys::pagemap;
use crate::units::PAGE_SHIFT;
use place::Place;
use promote::{MOST_BLOCKED, Pages, Prepared};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// The most slots that a batch has.
pub(crate) const MOST_MOVES: usize = 16;

/// A slot that is to be moved, and what came of it.
#[derive(Debug)]
pub(crate) struct Move {
    index: usize,
    expected: Option<RawFolio>,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Nothing came of it yet. The folio, of a slot's length, is for it alone.
    Waiting(Folio),
    Moved(Relocated),
    /// The folio is not needed any more. It is given back when nothing is blocked.
    Failed(Folio, Refusal),
    Refused(Refusal),
    /// What came of it was taken.
    Told,
}

/// What came of a [`Move`].
#[derive(Debug)]
pub(crate) enum Told {
    /// The slot was moved.
    Moved(Relocated),
    /// The slot is as it was.
    Refused(Refusal),
    /// The batch was cut short before its turn came.
    Waits,
}

/// A slot that was moved.
#[derive(Debug)]
pub(crate) struct Relocated {
    /// The folio that backed it, with how it was mapped. The caller gives it back with [`space::release`].
    pub(crate) old: Option<(RawFolio, Mapping)>,
    /// How long it took.
    pub(crate) times: Times,
}

/// How long a move took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// From the block to the release: what a thread that stores to the slot can wait.
    pub(crate) blocked: Duration,
    /// Its share of the batch's time, preparation included.
    pub(crate) total: Duration,
}

/// A slot that was not moved, and is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing backs the slot, or not what the caller saw there.
    Gone,
    /// The program pinned the slot through the interface.
    Kept,
    /// What backs the slot is not moved by this protocol: two devices, or a forked child's copy.
    Kind,
    /// A page is pinned for direct I/O.
    Pinned,
    /// A page is shared with a forked process.
    Forked,
    /// The program locked or protected a page.
    Locked,
    /// The kernel refused a mapping: the limit of mappings, or its memory for them.
    MapLimit,
    /// There is no memory for the copy.
    NoMemory,
    /// The device's memory can't be had.
    Device,
    /// The program closed the device's descriptor.
    Lost,
    /// The device did not answer.
    Unanswered(BusError),
    /// Another refusal of the kernel.
    Sys(SysError),
}

impl Move {
    /// A place for a move.
    pub(crate) const fn none() -> Move {
        Move { index: 0, expected: None, progress: Progress::Told }
    }

    /// Wants the slot `index` in `target`, a folio of a slot's length that nothing uses. `expected` is the folio that the
    /// caller saw there.
    pub(crate) fn new(index: usize, expected: RawFolio, target: Folio) -> Move {
        Move { index, expected: Some(expected), progress: Progress::Waiting(target) }
    }

    /// Says what came of it, once. A target that was not used is given back.
    pub(crate) fn tell(&mut self) -> Told {
        match std::mem::replace(&mut self.progress, Progress::Told) {
            Progress::Waiting(target) => {
                let mapping = Mapping::of(target.pgmap().device().kind());
                space::release(target.into_raw(), mapping);
                Told::Waits
            }
            Progress::Moved(done) => Told::Moved(done),
            Progress::Refused(refusal) | Progress::Failed(_, refusal) => Told::Refused(refusal),
            Progress::Told => Told::Refused(Refusal::Gone),
        }
    }

    /// The folio to move to, as long as nothing came of the move.
    fn target(&self) -> Option<&Folio> {
        match &self.progress {
            Progress::Waiting(target) => Some(target),
            _ => None,
        }
    }

    /// Takes note of what came of it, in the slot's state too, whose lock ends. Keeps to the rules of the window.
    fn settle(
        &mut self,
        mut state: MutexGuard<'_, SlotState>,
        mapping: Mapping,
        outcome: Result<Duration, Refusal>,
    ) {
        let Progress::Waiting(target) = std::mem::replace(&mut self.progress, Progress::Told) else { return };
        self.progress = match outcome {
            Ok(blocked) => {
                let was_mapped = std::mem::replace(&mut state.mapping, mapping);
                let old = state.folio.replace(target.into_raw()).map(|raw| (raw, was_mapped));
                Progress::Moved(Relocated { old, times: Times { blocked, total: Duration::ZERO } })
            }
            Err(refusal) => Progress::Failed(target, refusal),
        };
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.progress = match std::mem::replace(&mut self.progress, Progress::Told) {
            Progress::Waiting(target) => Progress::Failed(target, refusal),
            other => other,
        };
    }

    /// Gives the target of a refused move back.
    fn clean_up(&mut self) {
        self.progress = match std::mem::replace(&mut self.progress, Progress::Told) {
            Progress::Failed(target, refusal) => {
                give_back(target, self.expected, &refusal);
                Progress::Refused(refusal)
            }
            other => other,
        };
    }

    /// Locks the slot if it is still backed by what the caller saw, mapped so, and may move.
    fn lock<'a>(&self, space: &'a Space, mapping: Mapping) -> Result<MutexGuard<'a, SlotState>, Refusal> {
        let state = space.slot(self.index).lock();
        if state.folio.is_none() || state.folio != self.expected {
            return Err(Refusal::Gone);
        }
        if state.pins > 0 {
            return Err(Refusal::Kept);
        }
        if state.has_attributes() {
            return Err(Refusal::Locked);
        }
        if state.mapping != mapping {
            return Err(Refusal::Kind);
        }
        Ok(state)
    }
}

/// Moves slots, at most [`MOST_MOVES`], all to folios of one tier and in ascending order. Neighbours share what can be
/// shared. Runs in service; when a fork wants to begin the rest is left for later ([`Told::Waits`]). `ways` is how, and
/// `stage` the caller's own.
pub(crate) fn relocate(kit: &'static Kit, ways: Ways, space: &Space, stage: &mut Stage, moves: &mut [Move]) {
    debug_assert!(crate::sync::service::is_set() && moves.len() <= MOST_MOVES);
    let start = Instant::now();
    let is_down = moves.first().and_then(Move::target).is_some_and(is_shared);
    let outcome = if is_down {
        demote_all(kit, ways.demote, space, stage, moves)
    } else {
        promote_all(kit, ways.promote, space, stage, moves)
    };
    if let Err(refusal) = outcome {
        moves.iter_mut().for_each(|a_move| a_move.refuse(refusal.clone()));
    }
    let is_moved = |a_move: &&Move| matches!(a_move.progress, Progress::Moved(_));
    let nr_moved = moves.iter().filter(is_moved).count() as u32;
    for a_move in moves {
        a_move.clean_up();
        if let Progress::Moved(done) = &mut a_move.progress {
            done.times.total = start.elapsed() / nr_moved;
        }
    }
}

fn is_shared(folio: &Folio) -> bool {
    Mapping::of(folio.pgmap().device().kind()) == Mapping::Shared
}

/// Demotes slots one after the other. Each is locked for itself, and nothing is blocked when the next is locked.
fn demote_all(
    kit: &'static Kit,
    way: DemoteWay,
    space: &Space,
    stage: &mut Stage,
    moves: &mut [Move],
) -> Result<(), Refusal> {
    let mut alias = Place::reserve(moves.len())?;
    for (part, a_move) in moves.iter_mut().enumerate() {
        if let Err(refusal) = prepare_demotion(way, space, stage, a_move, &mut alias, part) {
            a_move.refuse(refusal);
        }
    }
    for (part, a_move) in moves.iter_mut().enumerate() {
        if a_move.target().is_none() {
            continue;
        }
        if part > 0 && gate::is_wanted() {
            break;
        }
        match a_move.lock(space, Mapping::Private) {
            Ok(state) => {
                let slot = space.slot_address(a_move.index);
                let outcome = demote::demote(kit, way, slot, &mut alias, part, stage);
                a_move.settle(state, Mapping::Shared, outcome);
            }
            Err(refusal) => a_move.refuse(refusal),
        }
    }
    Ok(())
}

/// Prepares what the demotion of one slot needs.
fn prepare_demotion(
    way: DemoteWay,
    space: &Space,
    stage: &mut Stage,
    a_move: &Move,
    alias: &mut Place,
    part: usize,
) -> Result<(), Refusal> {
    let target = a_move.target().filter(|target| is_shared(target)).ok_or(Refusal::Kind)?;
    if way == DemoteWay::MoveOut && !stage.is_open() {
        let state = a_move.lock(space, Mapping::Private)?;
        // SAFETY: the slot's lock is held and its state names the folio.
        let old = state.folio.and_then(|raw| unsafe { borrowed(raw) }).ok_or(Refusal::Gone)?;
        drop(state);
        stage.open(&old)?;
    }
    alias.map(part, target, true)
}

/// Promotes slots, a few neighbours at a time.
fn promote_all(
    kit: &'static Kit,
    way: PromoteWay,
    space: &Space,
    stage: &mut Stage,
    moves: &mut [Move],
) -> Result<(), Refusal> {
    let mut prepared = Prepared {
        alias: Place::reserve(moves.len())?,
        blank: Place::reserve(moves.len())?,
        pages: match way {
            PromoteWay::MoveIn => Pages::Staged(stage, [0; MOST_MOVES]),
            PromoteWay::RemapIn => Pages::Mapped(Place::reserve(moves.len())?),
        },
    };
    // The alias maps memory that must stay the slot's meanwhile.
    let mut held = [const { None }; MOST_MOVES];
    let mut chosen = [false; MOST_MOVES];
    for (part, a_move) in moves.iter_mut().enumerate() {
        match prepare_promotion(space, a_move, part, &mut prepared, &mut chosen) {
            Ok(old) => held[part] = Some(old),
            Err(refusal) => a_move.refuse(refusal),
        }
    }
    let mut part = 0;
    while part < moves.len() {
        if moves[part].target().is_none() {
            part += 1;
            continue;
        }
        if part > 0 && gate::is_wanted() {
            break;
        }
        part = promote_neighbours(kit, space, &mut prepared, moves, part);
    }
    Ok(())
}

/// Prepares what the promotion of one slot needs. Returns a reference to the folio that backs it.
fn prepare_promotion(
    space: &Space,
    a_move: &Move,
    part: usize,
    prepared: &mut Prepared<'_>,
    chosen: &mut [bool; MOST_MOVES],
) -> Result<Folio, Refusal> {
    let target = a_move.target().ok_or(Refusal::Gone)?;
    if is_shared(target) {
        return Err(Refusal::Kind);
    }
    let old = {
        let state = a_move.lock(space, Mapping::Shared)?;
        // SAFETY: the slot's lock is held and its state names the folio.
        state.folio.and_then(|raw| unsafe { borrowed(raw) }).ok_or(Refusal::Gone)?
    };
    prepared.alias.map(part, &old, false)?;
    prepared.blank.map_blank(part, target)?;
    match &mut prepared.pages {
        Pages::Staged(stage, parts) => {
            stage.open(target)?;
            parts[part] = stage.take_loaded(chosen)?;
        }
        Pages::Mapped(place) => place.map(part, target, true)?,
    }
    Ok(old)
}

/// Promotes the slot of part `first` and the waiting neighbours above it. Returns the part to go on with.
fn promote_neighbours(
    kit: &'static Kit,
    space: &Space,
    prepared: &mut Prepared<'_>,
    moves: &mut [Move],
    first: usize,
) -> usize {
    let mut states = [const { None }; MOST_BLOCKED];
    let mut end = first;
    // In ascending order, and nothing is blocked yet.
    while end < moves.len() && end - first < MOST_BLOCKED {
        let is_neighbour = moves[end].index == moves[first].index + (end - first);
        if moves[end].target().is_none() || !is_neighbour {
            break;
        }
        match moves[end].lock(space, Mapping::Shared) {
            Ok(state) => states[end - first] = Some(state),
            Err(refusal) => {
                moves[end].refuse(refusal);
                break;
            }
        }
        end += 1;
    }
    if end == first {
        return first + 1;
    }
    let slot = space.slot_address(moves[first].index);
    promote::promote(kit, slot, prepared, first..end, |part, outcome| {
        if let Some(state) = states[part - first].take() {
            moves[part].settle(state, Mapping::Private, outcome);
        }
    });
    end
}

/// Gives the target of a refused move back, and takes note of the device that did not answer: the target's, or that of
/// `old`, which backs the slot.
fn give_back(target: Folio, old: Option<RawFolio>, refusal: &Refusal) {
    let mapping = Mapping::of(target.pgmap().device().kind());
    match refusal {
        Refusal::Unanswered(error) if mapping == Mapping::Shared => {
            return target.pgmap().clone().note_bus_error(target, *error);
        }
        Refusal::Unanswered(error) if !error.is_damaged => {
            if let Some(pgmap) = old.and_then(|old| Pgmap::from_id(old.pgmap())) {
                pgmap.note_gone();
            }
        }
        _ => {}
    }
    space::release(target.into_raw(), mapping);
}

/// Takes another reference to a folio that a slot holds.
///
/// # Safety
/// The slot's lock is held and its state names the folio.
unsafe fn borrowed(raw: RawFolio) -> Option<Folio> {
    raw.get().ok()?;
    // SAFETY: the reference was just taken.
    Some(unsafe { Folio::from_raw(raw) })
}

impl Refusal {
    /// What a refused mapping means.
    fn of_mapping(refusal: SysError) -> Refusal {
        match refusal.errno {
            libc::ENOMEM => Refusal::MapLimit,
            libc::EINVAL => Refusal::Locked,
            // Nobody can pin what is in a place of ours; a child that was made behind our back shares it.
            libc::EBUSY => Refusal::Forked,
            _ => Refusal::Sys(refusal),
        }
    }

    /// What a refused move of the page at `addr` means, after everything was put back.
    fn of_page(refusal: SysError, addr: NonNull<u8>) -> Refusal {
        match refusal.errno {
            libc::EBUSY => match pagemap::is_exclusive(addr) {
                Some(false) => Refusal::Forked,
                _ => Refusal::Pinned,
            },
            libc::EINVAL => Refusal::Locked,
            libc::ENOMEM => Refusal::NoMemory,
            _ => Refusal::Sys(refusal),
        }
    }
}

/// The bytes from the start of a pgmap to a folio.
fn byte_offset(folio: &Folio) -> u64 {
    folio.offset() << PAGE_SHIFT
}

/// Ends the process: a slot's bytes are safe in a place of ours and the kernel refuses every way to put them back, so
/// the program would read zeroes.
#[cold]
fn cannot_restore() -> ! {
    crate::sys::stdio::complain(
        "daxtier: migration: the kernel refuses to map memory back that was being moved; the program ends here\n",
    );
    std::process::abort()
}

const _: () = assert!(SLOT_BYTES == 2 << 20, "a slot is one huge page");
