//! A batch: slots that are moved together, step by step.

use super::Refusal;
use super::demote;
use super::kit::{DemoteWay, Kit, Means, PromoteWay};
use super::place::Place;
use super::promote::{self, MOST_BLOCKED, Pages, Prepared};
use super::rebind::rebind;
use super::stage::Stage;
use crate::folio::{Folio, RawFolio};
use crate::pgmap::Pgmap;
use crate::space::{self, Mapping, SlotState, Space};
use crate::sync::{MutexGuard, gate};
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
/// shared. Runs in service; when a fork wants to begin the rest is left for later ([`Told::Waits`]). `means` are what with and
/// how, without which only such slots move as the kernel moves itself; `stage` is the caller's own.
pub(crate) fn relocate(means: Option<Means>, space: &Space, stage: &mut Stage, moves: &mut [Move]) {
    debug_assert!(crate::sync::service::is_set() && moves.len() <= MOST_MOVES);
    let start = Instant::now();
    let is_cut_short = rebind_all(space, moves);
    let is_down = moves.iter().find_map(Move::target).is_some_and(is_shared);
    let outcome = match means {
        _ if is_cut_short => Ok(()),
        Some(Means { kit, ways }) if is_down => demote_all(kit, ways.demote, space, stage, moves),
        Some(Means { kit, ways }) => promote_all(kit, ways.promote, space, stage, moves),
        None => Err(Refusal::Kind),
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

/// Moves those slots whose memory is private and stays so. Returns whether a fork wants to begin, but not when a slot before them
/// still waits for its turn: of each batch the first is moved at once, so that it comes to an end.
fn rebind_all(space: &Space, moves: &mut [Move]) -> bool {
    let (mut nr_done, mut is_first_left) = (0, false);
    for a_move in moves {
        if a_move.target().is_none_or(is_shared) {
            continue;
        }
        let state = match a_move.lock(space, Mapping::Private) {
            Ok(state) => state,
            // A promotion, for which its turn comes.
            Err(Refusal::Kind) => {
                is_first_left |= nr_done == 0;
                continue;
            }
            Err(refusal) => {
                a_move.refuse(refusal);
                continue;
            }
        };
        if nr_done > 0 && !is_first_left && gate::is_wanted() {
            return true;
        }
        nr_done += 1;
        // SAFETY: the slot's lock is held and its state names the folio.
        let old = state.folio.and_then(|raw| unsafe { borrowed(raw) });
        let slot = space.slot_address(a_move.index);
        let outcome = match (&old, a_move.target()) {
            (Some(old), Some(target)) => rebind(slot, old, target),
            _ => Err(Refusal::Gone),
        };
        a_move.settle(state, Mapping::Private, outcome);
    }
    false
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
