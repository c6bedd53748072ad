//! A worker: takes batches of slots and moves them.
//!
//! All that a batch needs is on the worker's stack or its own (see *In the window* of `migrate`). Between two slots it asks
//! whether a fork wants to begin, and then leaves service, so that a fork waits for a few slots at most.

use super::look::Look;
use super::quarantine::KEEP;
use super::queue::Batch;
use super::stats::{self, Outcome};
use super::{
    HAS_GIVEN_UP, LAST_NS, Request, STATE, WORK, end_batch, give_up, next_batch, release_due, take_targets,
};
use crate::device::DeviceKind;
use crate::folio::RawFolio;
use crate::migrate::{self, DemoteWay, Kit, MOST_MOVES, Means, Move, Refusal, Stage, Told};
use crate::runtime::config::Demotion;
use crate::runtime::source::Tiers;
use crate::space::{self, Mapping, Space};
use crate::sync::service;
use crate::sys::{futex, pinners};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What a worker did.
enum Step {
    /// It did something, and may find more to do.
    Worked,
    /// There is nothing to do, until then.
    Idle(Option<Duration>),
}

/// What a worker has for itself.
pub(super) struct Worker {
    /// Without one it moves only what the kernel moves itself.
    kit: Option<&'static Kit>,
    look: Look,
    stage: Stage,
    /// A batch that was cut short.
    rest: Option<Batch>,
    /// How many slots its last batch promoted: so many huge pages are made ahead.
    nr_promoted: usize,
    /// When it was last seen that there was something to do.
    worked: Instant,
    /// What it has told of its stage, in the figures of the pool for which it worked last. A pool may be closed meanwhile.
    staged_bytes: usize,
    staged_for: Weak<Tiers>,
}

impl Worker {
    pub(super) fn new(kit: Option<&'static Kit>) -> Worker {
        Worker {
            kit,
            look: Look::new(),
            stage: Stage::new(),
            rest: None,
            nr_promoted: 0,
            worked: Instant::now(),
            staged_bytes: 0,
            staged_for: Weak::new(),
        }
    }

    /// Works for ever.
    pub(super) fn run(&mut self) -> ! {
        loop {
            // Acquire: pairs with the Release of `submit`.
            let seen = WORK.load(Ordering::Acquire);
            if let Step::Idle(limit) = service::run(|| self.step()) {
                futex::wait(&WORK, seen, limit);
            }
        }
    }

    /// Does one batch, or takes care of what is left from earlier ones. Runs in service.
    fn step(&mut self) -> Step {
        let step = match self.rest.take().map_or_else(|| next_batch(self.kit.is_some()), Ok) {
            Ok(batch) => {
                self.work(batch);
                self.worked = Instant::now();
                Step::Worked
            }
            Err(limit) => self.rest_a_while(limit),
        };
        let staged_bytes = self.stage.kept_bytes();
        if let Some(tiers) = self.staged_for.upgrade() {
            stats::note_staged(tiers.migration(), self.staged_bytes, staged_bytes);
        }
        self.staged_bytes = staged_bytes;
        step
    }

    /// Prepares for the next batch while there is none, and gives back what was kept for it in vain.
    fn rest_a_while(&mut self, limit: Option<Duration>) -> Step {
        let is_over = self.worked.elapsed() >= KEEP;
        if is_over {
            self.stage.empty();
        } else if self.stage.prepare_one(self.nr_promoted) {
            return Step::Worked;
        }
        let next_due = release_due();
        let own = (self.stage.kept_bytes() > 0).then(|| KEEP.saturating_sub(self.worked.elapsed()));
        Step::Idle([limit, next_due, own].into_iter().flatten().min())
    }

    /// Moves a batch, or as much of it as a fork lets it.
    fn work(&mut self, mut batch: Batch) {
        let mut outcomes = [None; MOST_MOVES];
        let outcomes = &mut outcomes[..batch.slots.len()];
        if batch.request.is_cancelled() {
            outcomes.fill(Some(Outcome::Cancelled));
        } else {
            self.look.refresh();
            self.move_slots(&batch, outcomes);
        }
        self.count_stage_for(batch.request.tiers());
        let mut nr_moved = 0;
        batch.request.tiers().publish();
        for (is_done, outcome) in batch.is_done.iter_mut().zip(outcomes.iter().copied()) {
            let Some(outcome) = outcome.filter(|_| !*is_done) else { continue };
            *is_done = true;
            nr_moved += usize::from(outcome == Outcome::Moved);
            batch.request.note(outcome);
        }
        end_batch(&batch.request, nr_moved);
        // The first that is left is never left again, so this comes to an end.
        if !batch.is_done[..batch.slots.len()].iter().all(|is_done| *is_done) {
            self.rest = Some(batch);
        }
    }

    /// Has the stage counted for another pool from now on.
    fn count_stage_for(&mut self, tiers: &Arc<Tiers>) {
        if std::ptr::eq(self.staged_for.as_ptr(), Arc::as_ptr(tiers)) {
            return;
        }
        if let Some(former) = self.staged_for.upgrade() {
            stats::note_staged(former.migration(), self.staged_bytes, 0);
        }
        self.staged_bytes = 0;
        self.staged_for = Arc::downgrade(tiers);
    }

    /// Moves slots of a batch that nothing has come of yet. Those that a fork left for later keep `None`.
    fn move_slots(&mut self, batch: &Batch, outcomes: &mut [Option<Outcome>]) {
        let Some(space) = space::existing() else { return outcomes.fill(Some(Outcome::Gone)) };
        let mut wanted = [const { None }; MOST_MOVES];
        for (at, outcome) in outcomes.iter_mut().enumerate().filter(|&(at, _)| !batch.is_done[at]) {
            match self.look_at(&batch.request, space, batch.slots.start + at) {
                Ok(seen) => wanted[at] = Some(seen),
                Err(reason) => *outcome = Some(reason),
            }
        }
        let means = self.means(&batch.request);
        self.attempt(batch, means, space, &wanted, outcomes);
        // What a child shares can't be moved out, only copied; nothing is pinned, as far as anybody can see.
        let is_shared = |outcome: &Option<Outcome>| *outcome == Some(Outcome::Forked);
        if let Some(mut means) = means
            && means.ways.demote == DemoteWay::MoveOut
            && !self.look.may_pin
            && outcomes.iter().any(is_shared)
        {
            for (wanted, outcome) in wanted.iter_mut().zip(outcomes.iter()) {
                *wanted = wanted.take().filter(|seen| seen.mapping == Mapping::Private && is_shared(outcome));
            }
            means.ways.demote = DemoteWay::Protect;
            self.attempt(batch, Some(means), space, &wanted, outcomes);
        }
    }

    /// What slots of a request are moved with, and how: as the pool wants it unless something may be pinned.
    fn means(&self, request: &Request) -> Option<Means> {
        let kit = self.kit?;
        let mut ways = kit.best();
        if request.demotion == Demotion::Protect && !self.look.may_pin {
            ways.demote = DemoteWay::Protect;
        }
        Some(Means { kit, ways })
    }

    /// Looks what stands in the way of moving a slot.
    fn look_at(&mut self, request: &Request, space: &Space, index: usize) -> Result<Seen, Outcome> {
        let (raw, mapping, pins) = {
            let state = space.slot(index).lock();
            (state.folio, state.mapping, state.pins)
        };
        let raw = raw.ok_or(Outcome::Gone)?;
        if request.only.is_some_and(|pgmap| pgmap != raw.pgmap()) {
            return Err(Outcome::Gone);
        }
        let tiers = request.tiers();
        let from = tiers.tier_of(raw.pgmap()).ok_or(Outcome::Gone)?;
        if from == request.to {
            return Err(Outcome::Already);
        }
        if pins > 0 {
            return Err(Outcome::Kept);
        }
        if HAS_GIVEN_UP.load(Ordering::Relaxed) {
            return Err(Outcome::Device);
        }
        let kind = |tier: usize| tiers.as_slice()[tier].kind();
        match (mapping, Mapping::of(kind(request.to)), self.kit) {
            // The kernel moves it, and sees what is pinned.
            (Mapping::Private, Mapping::Private, _) => {}
            // A device came into the pool after the request.
            (_, _, None) => return Err(Outcome::Kind),
            (Mapping::Private, _, Some(kit)) if kit.best().demote == DemoteWay::MoveOut => {}
            _ if self.look.may_pin => return Err(Outcome::DirectIo),
            _ => {}
        }
        if self.look.is_at_limit() {
            return Err(Outcome::MapLimit);
        }
        if [from, request.to].iter().any(|&tier| kind(tier) == DeviceKind::Dax)
            && pinners::huge_pages_are_off()
        {
            return Err(Outcome::Device);
        }
        Ok(Seen { raw, mapping })
    }

    /// Moves the slots that are `wanted` and notes what came of each.
    fn attempt(
        &mut self,
        batch: &Batch,
        means: Option<Means>,
        space: &Space,
        wanted: &[Option<Seen>; MOST_MOVES],
        outcomes: &mut [Option<Outcome>],
    ) {
        let mut targets = [const { None }; MOST_MOVES];
        take_targets(&batch.request, &mut targets[..wanted.iter().flatten().count()]);
        let mut targets = targets.into_iter().flatten();
        let mut moves = [const { Move::none() }; MOST_MOVES];
        let mut places = [0; MOST_MOVES];
        let mut nr_moves = 0;
        for (at, seen) in wanted.iter().enumerate().filter_map(|(at, seen)| Some((at, seen.as_ref()?))) {
            let Some(target) = targets.next() else {
                outcomes[at] = Some(Outcome::NoSpace);
                continue;
            };
            moves[nr_moves] = Move::new(batch.slots.start + at, seen.raw, target);
            places[nr_moves] = at;
            nr_moves += 1;
        }
        let moves = &mut moves[..nr_moves];
        migrate::relocate(means, space, &mut self.stage, moves);
        self.nr_promoted = 0;
        for (a_move, &at) in moves.iter_mut().zip(&places) {
            outcomes[at] = match a_move.tell() {
                Told::Waits => None,
                Told::Refused(refusal) => {
                    if refusal == Refusal::Lost {
                        give_up();
                    }
                    Some(Outcome::of(&refusal))
                }
                Told::Moved(done) => {
                    match done.old {
                        Some((old, Mapping::Shared)) => {
                            self.nr_promoted += 1;
                            STATE.lock().quarantine.put(old);
                        }
                        Some((old, mapping)) => space::release(old, mapping),
                        None => {}
                    }
                    let times = [done.times.blocked, done.times.total];
                    stats::note_times(batch.request.tiers().migration(), times[0], times[1]);
                    for (last, time) in LAST_NS.iter().zip(times) {
                        last.store(time.as_nanos() as u64, Ordering::Relaxed);
                    }
                    Some(Outcome::Moved)
                }
            };
        }
    }
}

impl Outcome {
    fn of(refusal: &Refusal) -> Outcome {
        match refusal {
            Refusal::Gone => Outcome::Gone,
            Refusal::Kept => Outcome::Kept,
            Refusal::Kind => Outcome::Kind,
            Refusal::Pinned => Outcome::Pinned,
            Refusal::Forked => Outcome::Forked,
            Refusal::Locked => Outcome::Locked,
            Refusal::MapLimit => Outcome::MapLimit,
            Refusal::NoMemory => Outcome::NoMemory,
            Refusal::Device | Refusal::Lost | Refusal::Unanswered(_) => Outcome::Device,
            Refusal::Sys(_) => Outcome::Refused,
        }
    }
}

/// What a slot was seen to be.
struct Seen {
    raw: RawFolio,
    mapping: Mapping,
}
