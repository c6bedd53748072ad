//! What happens around a fork.
//!
//! Slots that are mapped from a device would be shared with the child. Before the fork this module closes the
//! [gate](crate::sync::gate), so that nothing of the library or its heap engine is in the middle of a change, stops the
//! other threads, and copies these slots ([`Snapshot`]); the child begins with the copies in the slots' places, and
//! every device is brought to the state that a child must see. A process without such slots pays for the gate alone.
//! `vfork` and `posix_spawn` run no handlers and need none: the child shares all memory until it executes another
//! program.
//!
//! # Protocol
//! prepare (parent, before): the C library's stream lock -> gate -> pgmaps' locks -> stop -> snapshot, whose
//! copies are then in the slots' places -> gate lent. parent: gate taken back -> device mappings back -> threads go on ->
//! pgmaps -> gate -> stream lock. child: copies kept -> pgmaps -> figures -> gate -> stream lock. The stream lock comes
//! first because the fork takes it after our handler, and a stopped thread may hold it.
//!
//! The fork takes more locks of the C library after our handler, those of its malloc among them, and where malloc is not
//! ours a stopped thread may hold one. Then the fork is stuck until stopped threads lose patience: one of them calls it off
//! ([`call_off`]), which puts the device's mappings back and lets all go. `STAGE` decides who puts them back:
//!
//! | stage | copies in place | leaves to |
//! |---|---|---|
//! | `IDLE` | no | `READY`, by prepare |
//! | `READY` | yes | `IDLE`, by parent or child; `CALLING_OFF`, by a stopped thread |
//! | `CALLING_OFF` | some | `CALLED_OFF`, by that thread |
//! | `CALLED_OFF` | no | `IDLE`, by parent |
//!
//! A child that is cloned at `READY` has its copies: its page tables were made before the first mapping went back, for that
//! waits until they are complete. One that sees a later stage is refused.
//!
//! # Refusal
//! A handler can't make a fork fail. Where the child can't be given what is its own, it is told so ([`REFUSED`]) and
//! ends in its handler, before any code of the program; [`fork`], which the preload library puts in the place of the C
//! library's, then takes it away and fails, as a fork without resources does.

use super::config::AvailableMemory;
use super::stop::{self, Stopped};
use super::{control, source};
use crate::heap;
use crate::pgmap;
use crate::space::{self, Snapshot, Space};
use crate::sync::{gate, service};
use crate::sys::{futex, process, stdio};
use libc::{c_int, pid_t};
use std::cell::{Cell, UnsafeCell};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the handlers hand on to each other.
struct Held {
    streams: Option<stdio::StreamLock>,
    stopped: Option<Stopped>,
    snapshot: Option<Snapshot>,
}

struct HeldCell(UnsafeCell<Held>);

// SAFETY: only the handlers touch the cell, and only between closing the gate (prepare) and opening it (parent,
// child), so by one thread at a time; and the one thread that made `STAGE` CALLING_OFF, which parent waits for.
unsafe impl Sync for HeldCell {}

static HELD: HeldCell = HeldCell(UnsafeCell::new(Held { streams: None, stopped: None, snapshot: None }));

const IDLE: u32 = 0;
const READY: u32 = 1;
const CALLING_OFF: u32 = 2;
const CALLED_OFF: u32 = 3;

/// See the module. SeqCst everywhere: rare.
static STAGE: AtomicU32 = AtomicU32::new(IDLE);

/// Why a child may not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The forking thread is inside the gate itself: a signal handler that interrupted the library.
    Inside,
    /// A thread could not be stopped and would go on writing.
    Unstopped,
    /// There is no memory for the child's copies.
    NoRoom,
    /// A stopped thread held a lock that the fork takes.
    Stuck,
}

thread_local! {
    /// Why the fork that this thread makes is refused.
    static REFUSED: Cell<Option<Refusal>> = const { Cell::new(None) };
    /// Whether the fork that this thread makes was begun by [`fork`].
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// How often a fork that got stuck is begun again.
const MOST_TRIES: usize = 4;
/// The exit status of a child that may not live: EX_TEMPFAIL.
const EXIT_REFUSED: c_int = 75;

/// Has the handlers run around every fork from now on. Called when a pool is opened; handlers that a program
/// registers later run outside of ours, so their locks are not in our way.
pub fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded while a pool exists.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        heap::end_threads_inside_the_gate();
    });
}

/// Makes a child with the C library's `fork`, which is `next`. Fails, with `errno` set and -1, as fork(2) does:
/// `ENOMEM` when the child's copies of slow memory would not fit in what the machine and the control group have
/// available; `EAGAIN` in a signal handler that interrupted the library, and when a thread can't be stopped.
///
/// # Safety
/// As fork(2) demands of programs with several threads.
pub(crate) unsafe fn fork(next: unsafe extern "C" fn() -> pid_t) -> pid_t {
    if let Err(refusal) = check() {
        return refusal.fail();
    }
    let mut tries = 0;
    loop {
        tries += 1;
        REFUSED.set(None);
        IS_OURS.set(true);
        // SAFETY: the caller's argument carries over.
        let child = unsafe { next() };
        IS_OURS.set(false);
        let Some(refusal) = REFUSED.take().filter(|_| child > 0) else { return child };
        process::reap(child);
        if refusal != Refusal::Stuck || tries == MOST_TRIES {
            return refusal.fail();
        }
    }
}

/// Gives up the fork under way, if its copies are in place and it has not come to its clone: puts the device's mappings
/// back and lets the stopped threads go. Called by one of them, in its signal handler.
pub(super) fn call_off() {
    if STAGE.compare_exchange(READY, CALLING_OFF, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return;
    }
    // SAFETY: the stage is this thread's, and the handlers leave the cell alone until it has changed.
    let held = unsafe { &mut *HELD.0.get() };
    let stopped = held.stopped.take();
    put_back(held.snapshot.take());
    STAGE.store(CALLED_OFF, Ordering::SeqCst);
    drop(stopped);
}

fn put_back(snapshot: Option<Snapshot>) {
    if let (Some(space), Some(snapshot)) = (space::existing(), snapshot)
        && snapshot.undo(space).is_err()
    {
        stdio::complain(
            "daxtier: fork: the kernel refused to map slow memory again; the program ends here\n",
        );
        std::process::abort();
    }
}

impl Refusal {
    fn fail(self) -> pid_t {
        crate::sys::errno::set(match self {
            Refusal::Inside | Refusal::Unstopped | Refusal::Stuck => libc::EAGAIN,
            Refusal::NoRoom => libc::ENOMEM,
        });
        -1
    }

    fn explain(self) -> &'static str {
        match self {
            Refusal::Inside => {
                "daxtier: fork inside a signal handler that interrupted the library; the child ends here\n"
            }
            Refusal::Unstopped => "daxtier: fork: a thread could not be stopped; the child ends here\n",
            Refusal::Stuck => {
                "daxtier: fork: a stopped thread held a lock of the C library; the child ends here\n"
            }
            Refusal::NoRoom => {
                "daxtier: fork: no memory for the child's copies of slow memory; it ends here\n"
            }
        }
    }
}

/// Tells beforehand what can be told.
fn check() -> Result<(), Refusal> {
    if gate::is_inside() {
        return Err(Refusal::Inside);
    }
    let Some(space) = space::existing() else { return Ok(()) };
    let needed_bytes = service::run(|| Snapshot::count(space) * space::SLOT_BYTES) as u64;
    if needed_bytes == 0 {
        return Ok(());
    }
    let available_bytes = service::run(|| AvailableMemory::read(Path::new("/")).usable_bytes());
    // Where nothing can be read the kernel decides.
    if available_bytes.is_some_and(|available_bytes| needed_bytes > available_bytes) {
        return Err(Refusal::NoRoom);
    }
    Ok(())
}

extern "C" fn prepare() {
    if !IS_OURS.get() {
        REFUSED.set(check().err());
    }
    if REFUSED.get() == Some(Refusal::Inside) {
        return;
    }
    let streams = stdio::StreamLock::take();
    gate::close();
    // SAFETY: the gate was just closed.
    let held = unsafe { &mut *HELD.0.get() };
    held.streams = streams;
    pgmap::fork::before_fork();
    if REFUSED.get().is_none()
        && let Some(space) = space::existing().filter(|space| Snapshot::count(space) > 0)
        && let Err(refusal) = take_copies(held, space)
    {
        REFUSED.set(Some(refusal));
    }
    gate::lend();
}

fn take_copies(held: &mut Held, space: &Space) -> Result<(), Refusal> {
    let stopped = stop::stop().map_err(|_| Refusal::Unstopped)?;
    held.snapshot = Some(Snapshot::take(space).map_err(|_| Refusal::NoRoom)?);
    held.stopped = Some(stopped);
    STAGE.store(READY, Ordering::SeqCst);
    Ok(())
}

extern "C" fn parent() {
    if REFUSED.get() == Some(Refusal::Inside) {
        return;
    }
    gate::take_back();
    while STAGE.compare_exchange(READY, IDLE, Ordering::SeqCst, Ordering::SeqCst) == Err(CALLING_OFF) {
        futex::wait(&STAGE, CALLING_OFF, Some(Duration::from_millis(1)));
    }
    if STAGE.swap(IDLE, Ordering::SeqCst) == CALLED_OFF {
        REFUSED.set(Some(Refusal::Stuck));
    }
    // SAFETY: prepare closed the gate in this thread, and nobody calls the fork off any more.
    let held = unsafe { &mut *HELD.0.get() };
    let streams = held.streams.take();
    put_back(held.snapshot.take());
    drop(held.stopped.take());
    pgmap::fork::after_fork_in_parent();
    gate::open();
    drop(streams);
}

extern "C" fn child() {
    if STAGE.swap(IDLE, Ordering::SeqCst) > READY {
        REFUSED.set(Some(Refusal::Stuck));
    }
    if let Some(refusal) = REFUSED.get() {
        if !IS_OURS.get() {
            stdio::complain(refusal.explain());
        }
        process::exit_now(EXIT_REFUSED);
    }
    // SAFETY: prepare closed the gate in the thread that this one was cloned from; no other exists.
    let held = unsafe { &mut *HELD.0.get() };
    let streams = held.streams.take();
    if let Some(stopped) = held.stopped.take() {
        stopped.forget_in_child();
    }
    if let Some(space) = space::existing() {
        if let Some(snapshot) = held.snapshot.take() {
            snapshot.keep(space);
        }
        service::run(|| space.keep_attributes_in_child());
    }
    pgmap::fork::after_fork_in_child();
    control::after_fork_in_child();
    if source::after_fork_in_child().is_err() {
        stdio::complain("daxtier: fork: the kernel refused the child a page for its figures; it ends here\n");
        std::process::abort();
    }
    gate::open_in_child();
    drop(streams);
}
