//! The engine that moves memory between tiers: a queue, threads that work it off, and what came of it.
//!
//! One engine serves the process. It starts at the first request: a reader of the userfaultfd, without which a
//! promotion would not end, and workers, as many and on such processors as the configuration of the pool says whose request
//! that is; later pools have no say. Where all of a pool's memory is private (DRAM and NUMA nodes) the kernel moves it, no
//! userfaultfd is asked for, and so no privilege: workers start without a kit, for such requests only. If a pool that
//! needs the kit comes later, workers that have it join them and take every request. A [`Request`] is a range of slots and a tier; a worker takes a batch of them ([`queue`]), looks at what stands in
//! its way ([`look`]), takes folios in the tier, and lets [`migrate::relocate`] do the rest ([`worker`]). There is no policy
//! here: nothing moves that nobody asked for. Uses `migrate`, `space` and the pools' tiers; used by the pool.
//!
//! # Who has what
//! | what | whose | until |
//! |---|---|---|
//! | a slot that somebody wants moved | the first request's that names it (Q2 of [`queue`]) | something has come of it |
//! | a batch, 16 neighbours at most | the one worker's that took it (Q1) | something has come of each slot |
//! | a slot's state and mapping | the worker's that holds the slot's lock, which it takes for one slot, or the few that it blocks together, in ascending order | the slot is released; nothing is blocked when a worker takes a lock |
//! | the stage, the alias, the blanks | one worker's | the stage for good, the others as long as the batch |
//! | the userfaultfds | all workers', which use them for slots and stages of their own | the end of the process |
//! | a folio that a promotion has left | the quarantine's | its time is up, and a demotion or its tier takes it |
//!
//! - *Pins*: `pin` sets them under the slot's lock, under which a worker looks at them last. So when it returns no worker
//!   has the slot blocked, and none will.
//! - *Fork*: a worker is in service from taking a batch to noting what came of it, so no fork finds a slot on the move. A
//!   worker whose batch is under way when a fork wants to begin leaves service after the slots that it has blocked, and takes the
//!   rest of the batch up afterwards.
//! - *Cancel*: looked at before each batch. One that is under way is ended.
//! - *Budget*: every batch is charged when it ends, and none begins before what was moved is paid for. So workers together keep to
//!   it, but for a batch each.
//!
//! # Protocol
//! The threads have tables of descriptors of their own, where the kernel lets them: the userfaultfds are in these alone, out of
//! the program's reach. Elsewhere they are among the program's, and looked after like the devices' ([`descriptors`]). A program that
//! closes one of ours all the same, by a bare system call, ends all migration ([`give_up`]).
//!
//! `STATE` is locked in service only, so it is free at a fork. A forked child has none of the threads: the state
//! remembers the process that it is of, and begins anew at the child's first request. A worker sleeps on `WORK`, which
//! changes with everything that it may wait for: a submission, the end of a request that others wait for, another budget.

mod look;
mod quarantine;
mod queue;
mod request;
mod stats;
mod worker;

pub(super) use quarantine::set_quarantine;
pub(super) use queue::MOST_REQUESTS;
pub(crate) use request::Request;
pub use request::Ticket;
pub use stats::{Histogram, MigrationCounts, MigrationStats, Outcome};

use super::config::Workers;
use crate::error::SysError;
use crate::folio::Folio;
use crate::migrate::{self, Kit, MOST_MOVES};
use crate::space::SLOT_BYTES;
use crate::sync::{StaticMutex, service};
use crate::sys::descriptors::{self, Own};
use crate::sys::thread::{self, CpuSet, Urgency};
use crate::sys::{futex, page, stdio};
use crate::units::PAGE_SIZE;
use quarantine::Quarantine;
use queue::{Batch, Queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use worker::Worker;

/// Why nothing can be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The kernel refuses a userfaultfd, or its features.
    Userfaultfd(SysError),
    /// The kernel refuses a thread, or its processors.
    Thread(SysError),
    /// The queue is full.
    Busy,
}

struct State {
    /// The process that this is the state of; 0 before the first request.
    pid: u32,
    /// What the workers have that can block slots; `None` as long as there are none.
    kit: Option<&'static Kit>,
    /// Whether there are workers without a kit.
    has_kitless: bool,
    queue: Queue,
    quarantine: Quarantine,
    /// When what was moved is paid for.
    paced: Option<Instant>,
}

static STATE: StaticMutex<State> = StaticMutex::new(State {
    pid: 0,
    kit: None,
    has_kitless: false,
    queue: Queue::new(),
    quarantine: Quarantine::new(),
    paced: None,
});
/// Changes with everything that a worker may wait for. Release there, Acquire in the worker: who sees the change finds what
/// came with it.
static WORK: AtomicU32 = AtomicU32::new(0);
/// How many workers there are. Relaxed: a hint.
static CREW: AtomicU32 = AtomicU32::new(0);
/// How long the last move took, in nanoseconds: blocked, and in all. Relaxed: for measurements.
static LAST_NS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Bytes a second; 0 for no limit. Relaxed: a setting for itself.
static BUDGET: AtomicU64 = AtomicU64::new(0);
/// Whether nothing moves any more. Relaxed: a flag for itself.
static HAS_GIVEN_UP: AtomicBool = AtomicBool::new(false);
/// How many threads have set themselves up ([`SET_UP`] each), and how ([`IN_OWN_TABLE`], [`WITHOUT_KIT`]). Release by the
/// threads, Acquire by who started them.
static SET_UPS: AtomicU32 = AtomicU32::new(0);
const SET_UP: u32 = 1;
const IN_OWN_TABLE: u32 = 1 << 8;
const WITHOUT_KIT: u32 = 1 << 16;

/// Limits how many bytes are moved a second; 0 for no limit.
pub(super) fn set_budget(bytes_per_second: u64) {
    BUDGET.store(bytes_per_second, Ordering::Relaxed);
    service::run(|| STATE.lock().paced = None);
    tell_workers(i32::MAX);
}

/// Returns how long the last move took: blocked, and in all.
pub(super) fn last_times() -> (Duration, Duration) {
    let [blocked, total] = &LAST_NS;
    let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
    (time(blocked), time(total))
}

/// Queues a request, starting the engine with `workers` if need be. Runs in service.
pub(super) fn submit(mut request: Request, workers: &Workers) -> Result<Ticket, Unavailable> {
    request.demotion = workers.demotion();
    let request = Arc::new(request);
    let mut state = STATE.lock();
    begin_anew_in_child(&mut state);
    if request.needs_kit() {
        start_with_kit(&mut state, workers)?;
    } else {
        start_without_kit(&mut state, workers)?;
    }
    if !state.queue.push(Arc::clone(&request)) {
        return Err(Unavailable::Busy);
    }
    // Of two kinds of workers the one that is woken might not be able to do it.
    let is_for_one = request.is_short() && !(state.has_kitless && state.kit.is_some());
    drop(state);
    tell_workers(if is_for_one { 1 } else { i32::MAX });
    Ok(Ticket::new(request))
}

/// Forgets what was the parent's, and so the first request of any process finds nothing.
fn begin_anew_in_child(state: &mut State) {
    let pid = std::process::id();
    if state.pid == pid {
        return;
    }
    // The parent's requests and folios are the parent's, and dropping them would touch what is not ours.
    std::mem::forget(std::mem::replace(&mut state.queue, Queue::new()));
    std::mem::forget(std::mem::replace(&mut state.quarantine, Quarantine::new()));
    state.queue.reserve();
    state.paced = None;
    state.has_kitless = false;
    if let Some(parents) = state.kit.take() {
        parents.descriptors().into_iter().for_each(Own::close);
    }
    HAS_GIVEN_UP.store(false, Ordering::Relaxed);
    CREW.store(0, Ordering::Relaxed);
    state.pid = pid;
}

/// Opens the userfaultfds and starts the threads that use them, once a process.
fn start_with_kit(state: &mut State, workers: &Workers) -> Result<(), Unavailable> {
    if state.kit.is_some() {
        return Ok(());
    }
    let kit = leak(Kit::open().map_err(Unavailable::Userfaultfd)?).map_err(Unavailable::Userfaultfd)?;
    if let Err(refusal) = start_threads(kit, workers) {
        kit.descriptors().into_iter().for_each(Own::close);
        return Err(Unavailable::Thread(refusal));
    }
    state.kit = Some(kit);
    Ok(())
}

/// Starts workers for what the kernel moves itself, unless there are any.
fn start_without_kit(state: &mut State, workers: &Workers) -> Result<(), Unavailable> {
    if state.kit.is_some() || state.has_kitless {
        return Ok(());
    }
    let cpus = cpus_of(workers);
    for _ in 0..workers.count() {
        thread::spawn_own(work, 0, Urgency::WaitedFor, cpus.as_ref()).map_err(Unavailable::Thread)?;
        CREW.fetch_add(1, Ordering::Relaxed);
        // Now, for the next may be refused.
        state.has_kitless = true;
    }
    Ok(())
}

/// The processors that workers are to run on; `None` for any.
fn cpus_of(workers: &Workers) -> Option<CpuSet> {
    workers.cpus().next().map(|_| CpuSet::new(workers.cpus()))
}

/// Starts the threads and waits until they have the kit's descriptors, each in a table of its own if it can be.
fn start_threads(kit: &'static Kit, workers: &Workers) -> Result<(), SysError> {
    SET_UPS.store(0, Ordering::Relaxed);
    let nr_threads = 1 + u32::from(workers.count());
    let kit_addr = std::ptr::from_ref(kit).expose_provenance();
    let cpus = cpus_of(workers);
    for _ in 1..nr_threads {
        thread::spawn_own(work, kit_addr, Urgency::WaitedFor, cpus.as_ref())?;
    }
    CREW.fetch_add(workers.count().into(), Ordering::Relaxed);
    thread::spawn_own(read, kit_addr, Urgency::WaitedFor, None)?;
    let mut seen = SET_UPS.load(Ordering::Acquire);
    while seen % IN_OWN_TABLE < nr_threads * SET_UP {
        futex::wait(&SET_UPS, seen, None);
        seen = SET_UPS.load(Ordering::Acquire);
    }
    if seen >= WITHOUT_KIT {
        return Err(SysError { call: "userfaultfd", errno: libc::EBADF });
    }
    if seen / IN_OWN_TABLE == nr_threads {
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
    if let Some(kit) = kit_of(kit).filter(|kit| set_up(kit)) {
        migrate::read_events(kit);
    }
}

/// A worker's thread. It has a kit or, where it was started with 0, none.
extern "C" fn work(kit: usize) {
    let kit = kit_of(kit);
    let is_set_up = match kit {
        Some(kit) => set_up(kit),
        None => {
            // What it opens for a look at the process is out of the program's way then, and where it can't be it is not.
            let _ = descriptors::take_table([]);
            true
        }
    };
    if is_set_up {
        Worker::new(kit).run();
    }
}

fn kit_of(kit: usize) -> Option<&'static Kit> {
    // SAFETY: who started the thread passed the address of a leaked kit, or 0.
    unsafe { std::ptr::with_exposed_provenance::<Kit>(kit).as_ref() }
}

/// Takes a batch out of the queue, or says when there may be one again. Runs in service.
fn next_batch(has_kit: bool) -> Result<Batch, Option<Duration>> {
    let mut state = STATE.lock();
    let budget = BUDGET.load(Ordering::Relaxed);
    let now = Instant::now();
    if budget > 0
        && let Some(wait) = state.paced.and_then(|paced| paced.checked_duration_since(now))
        && !wait.is_zero()
    {
        return Err(Some(wait));
    }
    // A hundredth of a second's worth, so that a small budget is not spent in bursts.
    let most = if budget == 0 { MOST_MOVES } else { (budget / 100) as usize / SLOT_BYTES };
    state.queue.take(most, has_kit).ok_or(None)
}

/// Takes note of a batch that was worked off as far as it could be: of the budget, and for workers that wait for the end of
/// its request.
fn end_batch(request: &Request, nr_moved: usize) {
    let budget = BUDGET.load(Ordering::Relaxed);
    if budget > 0 {
        let mut state = STATE.lock();
        let now = Instant::now();
        let paced = state.paced.map_or(now, |paced| paced.max(now));
        let cost = Duration::from_secs_f64((nr_moved * SLOT_BYTES) as f64 / budget as f64);
        state.paced = Some(paced + cost);
    }
    if request.is_done() && CREW.load(Ordering::Relaxed) > 1 {
        tell_workers(i32::MAX);
    }
}

/// Wakes workers that found nothing to do.
fn tell_workers(most: i32) {
    // Release: pairs with the Acquire in `Worker::run`.
    WORK.fetch_add(1, Ordering::Release);
    futex::wake(&WORK, most);
}

/// Takes folios of the request's tier for as many slots: such as promotions have left, else fresh ones.
fn take_targets(request: &Request, targets: &mut [Option<Folio>]) {
    let tiers = request.tiers();
    {
        let mut state = STATE.lock();
        for target in targets.iter_mut() {
            *target = state.quarantine.take(|pgmap| tiers.tier_of(pgmap) == Some(request.to));
            if target.is_none() {
                break;
            }
        }
    }
    for target in targets.iter_mut().filter(|target| target.is_none()) {
        *target = tiers.take_in(request.to);
        if target.is_none() {
            break;
        }
    }
}

/// Gives quarantined folios back that nobody wanted. Returns when the next is going to be one. Runs in service.
fn release_due() -> Option<Duration> {
    loop {
        let unwanted = STATE.lock().quarantine.take_unwanted();
        match unwanted {
            Ok(raw) => quarantine::release(raw),
            Err(wait) => return wait,
        }
    }
}

/// Returns the offsets of a pgmap's folios that are out of use for a while after they were left. Runs in service.
pub(super) fn quarantined_of(pgmap: u16) -> Vec<u64> {
    let state = STATE.lock();
    let is_ours = state.pid == std::process::id();
    if is_ours { state.quarantine.offsets_of(pgmap) } else { Vec::new() }
}

/// Gives the quarantined folios of some pgmaps back. For a pool that closes. Runs in service.
pub(super) fn end_quarantine(is_of_pool: impl Fn(u16) -> bool) {
    let ended = {
        let mut state = STATE.lock();
        if state.pid != std::process::id() {
            return;
        }
        state.quarantine.take_all(is_of_pool)
    };
    ended.into_iter().for_each(quarantine::release);
}
