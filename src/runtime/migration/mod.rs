//! The engine that moves memory between tiers: a queue, threads that work it off, and what came of it.
//!
//! One engine serves the process. It starts at the first request: a reader of the userfaultfd, without which a
//! promotion would not end, and one worker. A [`Request`] is a range of slots and a tier; the worker takes one slot after the
//! other, looks at what stands in its way, takes a folio in the tier, and lets [`migrate::relocate`] do the rest. There
//! is no policy here: nothing moves that nobody asked for. Uses `migrate`, `space` and the pools' tiers; used by the pool.
//!
//! # Protocol
//! The threads have tables of descriptors of their own, where the kernel lets them: the userfaultfds are in these alone, out of
//! the program's reach. Elsewhere they are among the program's, and looked after like the devices' ([`descriptors`]). A program that
//! closes one of ours all the same, by a bare system call, ends all migration ([`give_up`]).
//!
//! `STATE` is locked in service only, so it is free at a fork. A forked child has none of the threads: the state
//! remembers the process that it is of, and begins anew at the child's first request. A worker sleeps on `WORK`, which
//! every submission changes.

mod request;
mod stats;

pub(crate) use request::Request;
pub use request::Ticket;
pub use stats::{Histogram, MigrationCounts, MigrationStats, Outcome};

use super::source::Tiers;
use crate::device::DeviceKind;
use crate::error::SysError;
use crate::folio::RawFolio;
use crate::migrate::{self, DemoteWay, Kit, Refusal, Ways};
use crate::space::{self, Mapping, SLOT_BYTES, Space};
use crate::sync::{StaticMutex, service};
use crate::sys::descriptors::{self, Own};
use crate::sys::thread::{self, Urgency};
use crate::sys::{futex, page, pinners, stdio};
use crate::units::PAGE_SIZE;
use stats::Figures;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many requests wait at most.
pub(super) const MOST_REQUESTS: usize = 64;
/// How long a slow folio stays out of use after a promotion: a device may still read it.
const QUARANTINE: Duration = Duration::from_secs(2);
/// How old a look at the process's descriptors and mappings may be.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Mappings that are left to the program.
const MARGIN: usize = 4096;

/// Why nothing can be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The kernel refuses a userfaultfd, or its features.
    Userfaultfd(SysError),
    /// The kernel refuses a thread.
    Thread(SysError),
    /// The queue is full.
    Busy,
}

struct State {
    /// The process that this is the state of; 0 before the first request.
    pid: u32,
    kit: Option<&'static Kit>,
    queue: VecDeque<Arc<Request>>,
    /// Slow folios that were left by promotions, the oldest first.
    quarantine: VecDeque<(Instant, RawFolio, Mapping)>,
}

static STATE: StaticMutex<State> =
    StaticMutex::new(State { pid: 0, kit: None, queue: VecDeque::new(), quarantine: VecDeque::new() });
/// Changes with every submission. Release there, Acquire in the worker: who sees the change finds the request.
static WORK: AtomicU32 = AtomicU32::new(0);
static FIGURES: Figures = Figures::new();
/// Bytes a second; 0 for no limit. Relaxed: a setting for itself.
static BUDGET: AtomicU64 = AtomicU64::new(0);
/// Milliseconds that a slow folio is quarantined. Relaxed: a setting for itself.
static QUARANTINE_MS: AtomicU64 = AtomicU64::new(QUARANTINE.as_millis() as u64);
/// Whether nothing moves any more. Relaxed: a flag for itself.
static HAS_GIVEN_UP: AtomicBool = AtomicBool::new(false);
/// How many threads have set themselves up ([`SET_UP`] each), and how ([`IN_OWN_TABLE`], [`WITHOUT_KIT`]). Release by the
/// threads, Acquire by who started them.
static SET_UPS: AtomicU32 = AtomicU32::new(0);
const SET_UP: u32 = 1;
const IN_OWN_TABLE: u32 = 1 << 8;
const WITHOUT_KIT: u32 = 1 << 16;
/// The threads of an engine.
const NR_THREADS: u32 = 2;
/// Whether the program was ever seen with a descriptor that pins memory. Never taken back: what it pinned may stay
/// pinned after the descriptor is gone.
static MAY_PIN: AtomicBool = AtomicBool::new(false);

/// Limits how many bytes are moved a second; 0 for no limit.
pub(super) fn set_budget(bytes_per_second: u64) {
    BUDGET.store(bytes_per_second, Ordering::Relaxed);
}

/// Sets how long a slow folio stays out of use after a promotion.
pub(super) fn set_quarantine(time: Duration) {
    QUARANTINE_MS.store(time.as_millis() as u64, Ordering::Relaxed);
}

/// Returns what came of all requests of this process.
pub(super) fn stats() -> MigrationStats {
    FIGURES.snapshot()
}

/// Returns how long the last move took: blocked, and in all.
pub(super) fn last_times() -> (Duration, Duration) {
    FIGURES.last_times()
}

/// Queues a request, starting the engine if need be. Runs in service.
pub(super) fn submit(request: Arc<Request>) -> Result<(), Unavailable> {
    let mut state = STATE.lock();
    start(&mut state)?;
    if state.queue.len() >= MOST_REQUESTS {
        return Err(Unavailable::Busy);
    }
    state.queue.push_back(request);
    drop(state);
    WORK.fetch_add(1, Ordering::Release);
    futex::wake(&WORK, i32::MAX);
    Ok(())
}

/// Opens the descriptors and starts the threads, once a process.
fn start(state: &mut State) -> Result<(), Unavailable> {
    let pid = std::process::id();
    if state.pid == pid && state.kit.is_some() {
        return Ok(());
    }
    // The parent's requests and folios are the parent's, and dropping them would touch what is not ours.
    std::mem::forget(std::mem::take(&mut state.queue));
    std::mem::forget(std::mem::take(&mut state.quarantine));
    if let Some(parents) = state.kit.take() {
        parents.descriptors().into_iter().for_each(Own::close);
    }
    let kit = leak(Kit::open().map_err(Unavailable::Userfaultfd)?).map_err(Unavailable::Userfaultfd)?;
    start_threads(kit).map_err(Unavailable::Thread)?;
    HAS_GIVEN_UP.store(false, Ordering::Relaxed);
    state.queue.reserve(MOST_REQUESTS);
    state.kit = Some(kit);
    state.pid = pid;
    Ok(())
}

/// Starts the threads and waits until they have the kit's descriptors, each in a table of its own if it can be.
fn start_threads(kit: &'static Kit) -> Result<(), SysError> {
    SET_UPS.store(0, Ordering::Relaxed);
    for body in [read as extern "C" fn(usize), work] {
        thread::spawn_own(body, std::ptr::from_ref(kit) as usize, Urgency::WaitedFor)?;
    }
    let mut seen = SET_UPS.load(Ordering::Acquire);
    while seen % IN_OWN_TABLE < NR_THREADS * SET_UP {
        futex::wait(&SET_UPS, seen, None);
        seen = SET_UPS.load(Ordering::Acquire);
    }
    if seen >= WITHOUT_KIT {
        return Err(SysError { call: "userfaultfd", errno: libc::EBADF });
    }
    if seen / IN_OWN_TABLE == NR_THREADS {
        // Nobody needs them in this one any more.
        kit.descriptors().into_iter().for_each(Own::leave_common_table);
    }
    Ok(())
}

/// Gives the calling thread a table of descriptors of its own. Returns `false` when it has lost the kit's.
fn set_up(kit: &'static Kit) -> bool {
    let how = match descriptors::take_table(kit.descriptors()) {
        Ok(true) => IN_OWN_TABLE,
        Ok(false) => 0,
        Err(_) => WITHOUT_KIT,
    };
    SET_UPS.fetch_add(SET_UP + how, Ordering::Release);
    futex::wake(&SET_UPS, 1);
    how != WITHOUT_KIT
}

/// Moves nothing any more, and says so: what the program does behind our back could lose data.
#[cold]
fn give_up() {
    if !HAS_GIVEN_UP.swap(true, Ordering::Relaxed) {
        stdio::complain(
            "daxtier: migration: a descriptor of the library was closed by a bare system call; nothing moves any more\n",
        );
    }
}

/// Puts the kit in memory that no allocator of the process hands out, for good.
fn leak(kit: Kit) -> Result<&'static Kit, SysError> {
    const { assert!(size_of::<Kit>() <= PAGE_SIZE) };
    let place = page::map_somewhere(PAGE_SIZE, None)?.cast::<Kit>();
    // SAFETY: a fresh page, large and aligned enough, that nobody else knows.
    unsafe { place.write(kit) };
    // SAFETY: written above, and never unmapped.
    Ok(unsafe { place.as_ref() })
}

/// The reader's thread.
extern "C" fn read(kit: usize) {
    let kit = kit_of(kit);
    if set_up(kit) {
        migrate::read_events(kit);
    }
}

/// The worker's thread.
extern "C" fn work(kit: usize) {
    let kit = kit_of(kit);
    if !set_up(kit) {
        return;
    }
    let mut look = Look::new();
    loop {
        // Acquire: pairs with the Release of `submit`.
        let seen = WORK.load(Ordering::Acquire);
        match service::run(|| step(kit, &mut look)) {
            Step::Moved => {
                if let Some(bytes) = std::num::NonZeroU64::new(BUDGET.load(Ordering::Relaxed)) {
                    std::thread::sleep(Duration::from_secs_f64(SLOT_BYTES as f64 / bytes.get() as f64));
                }
            }
            Step::Looked => {}
            Step::Idle(limit) => futex::wait(&WORK, seen, limit),
        }
    }
}

fn kit_of(kit: usize) -> &'static Kit {
    // SAFETY: `start` passed the address of a leaked kit.
    unsafe { &*std::ptr::with_exposed_provenance::<Kit>(kit) }
}

/// What a worker did.
enum Step {
    /// It moved a slot.
    Moved,
    /// It looked at a slot, or took care of the queue.
    Looked,
    /// There is nothing to do, until then.
    Idle(Option<Duration>),
}

/// Does one slot of the first request. Runs in service.
fn step(kit: &'static Kit, look: &mut Look) -> Step {
    let (request, due, next_due) = {
        let mut state = STATE.lock();
        let age = Duration::from_millis(QUARANTINE_MS.load(Ordering::Relaxed));
        let due = state.quarantine.front().is_some_and(|(left, ..)| left.elapsed() >= age);
        let due = if due { state.quarantine.pop_front() } else { None };
        let next_due = state.quarantine.front().map(|(left, ..)| age.saturating_sub(left.elapsed()));
        (state.queue.front().cloned(), due, next_due)
    };
    if let Some((_, raw, mapping)) = due {
        space::release(raw, mapping);
    }
    let Some(request) = request else {
        return if due.is_some() { Step::Looked } else { Step::Idle(next_due) };
    };
    let Some(index) = request.next_slot() else {
        let mut state = STATE.lock();
        if state.queue.front().is_some_and(|front| Arc::ptr_eq(front, &request)) {
            state.queue.pop_front();
        }
        return Step::Looked;
    };
    let outcome = if request.is_cancelled() {
        Outcome::Cancelled
    } else {
        look.refresh();
        move_slot(kit, look, &request.tiers, request.to, index)
    };
    FIGURES.note(outcome);
    request.note(outcome);
    request.tiers.publish();
    if outcome == Outcome::Moved { Step::Moved } else { Step::Looked }
}

/// Moves one slot to a tier, if nothing stands in the way.
fn move_slot(kit: &'static Kit, look: &mut Look, tiers: &Tiers, to: usize, index: usize) -> Outcome {
    let Some(space) = space::existing() else { return Outcome::Gone };
    let (raw, mapping, pins) = {
        let state = space.slot(index).lock();
        (state.folio, state.mapping, state.pins)
    };
    let Some(raw) = raw else { return Outcome::Gone };
    let Some(from) = tiers.tier_of(raw.pgmap()) else { return Outcome::Gone };
    if from == to {
        return Outcome::Already;
    }
    if pins > 0 {
        return Outcome::Kept;
    }
    if HAS_GIVEN_UP.load(Ordering::Relaxed) {
        return Outcome::Device;
    }
    let ways = match (mapping, look.may_pin) {
        (Mapping::Shared, true) => return Outcome::DirectIo,
        (Mapping::Private, true) if kit.best().demote != DemoteWay::MoveOut => return Outcome::DirectIo,
        _ => kit.best(),
    };
    if look.is_at_limit() {
        return Outcome::MapLimit;
    }
    let is_dax = [from, to].iter().any(|&tier| tiers.as_slice()[tier].kind() == DeviceKind::Dax);
    if is_dax && pinners::huge_pages_are_off() {
        return Outcome::Device;
    }
    let attempt = |ways| attempt(kit, ways, tiers, to, space, index, raw);
    let outcome = attempt(ways);
    match outcome {
        // What a child shares can't be moved out, only copied; nothing is pinned, as far as anybody can see.
        Outcome::Forked if mapping == Mapping::Private && !look.may_pin => {
            attempt(Ways { demote: DemoteWay::Protect, ..ways })
        }
        other => other,
    }
}

fn attempt(
    kit: &'static Kit,
    ways: Ways,
    tiers: &Tiers,
    to: usize,
    space: &Space,
    index: usize,
    raw: RawFolio,
) -> Outcome {
    let Some(target) = tiers.take_in(to) else { return Outcome::NoSpace };
    match migrate::relocate(kit, ways, space, index, raw, target) {
        Ok(done) => {
            let (old, mapping) = done.old;
            if mapping == Mapping::Shared {
                STATE.lock().quarantine.push_back((Instant::now(), old, mapping));
            } else {
                space::release(old, mapping);
            }
            FIGURES.note_times(done.times.blocked, done.times.total);
            Outcome::Moved
        }
        Err(refusal) => {
            if refusal == Refusal::Lost {
                give_up();
            }
            Outcome::of(&refusal)
        }
    }
}

/// Gives the quarantined folios of some pgmaps back. For a pool that closes. Runs in service.
pub(super) fn end_quarantine(is_of_pool: impl Fn(u16) -> bool) {
    let mut ended = Vec::new();
    {
        let mut state = STATE.lock();
        if state.pid != std::process::id() {
            return;
        }
        state.quarantine.retain(|&(_, raw, mapping)| {
            let ends = is_of_pool(raw.pgmap());
            if ends {
                ended.push((raw, mapping));
            }
            !ends
        });
    }
    ended.into_iter().for_each(|(raw, mapping)| space::release(raw, mapping));
}

/// What the worker knows of the process, at most [`LOOK_AGAIN`] old.
struct Look {
    seen: Option<Instant>,
    may_pin: bool,
    /// How many more mappings there may be.
    room: usize,
}

impl Look {
    fn new() -> Look {
        Look { seen: None, may_pin: false, room: 0 }
    }

    fn refresh(&mut self) {
        if self.seen.is_some_and(|seen| seen.elapsed() < LOOK_AGAIN) {
            return;
        }
        if !descriptors::all_are_there() {
            give_up();
        }
        if !MAY_PIN.load(Ordering::Relaxed) && pinners::may_pin() {
            MAY_PIN.store(true, Ordering::Relaxed);
        }
        self.may_pin = MAY_PIN.load(Ordering::Relaxed);
        // Where it can't be counted the kernel's own refusal has to do, which leaves everything in place.
        self.room = pinners::mappings()
            .map_or(usize::MAX, |(count, limit)| limit.saturating_sub(count + MARGIN.min(limit / 8)));
        self.seen = Some(Instant::now());
    }

    /// Whether a move could take a mapping that is left to the program. Each move may split one in three.
    fn is_at_limit(&mut self) -> bool {
        const A_MOVE: usize = 4;
        if self.room < A_MOVE {
            return true;
        }
        self.room -= 2;
        false
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
