//! The thread that hears what other processes ask for, and what the kernel says of devices.
//!
//! `daxtier drain` and `daxtier add` connect to a name of the abstract namespace that goes with the process (`client`); the same
//! user or root may. `events` reads what the kernel tells: a device that goes is out of use before anything touches it, and one
//! that was released is offered when it comes. The thread
//! starts when slow memory of the kind that the setting `control` names is first used, so programs that never use any
//! have none. Uses the pools; used by `source`, which says when memory is used.
//!
//! # Protocol
//! `STARTED_IN` is the process whose thread runs, or could not be started: it is tried once. A forked child has none; it gives
//! the parent's sockets back in its fork handler, and starts its own thread at its own first use.
//!
//! A program that has tightened its seccomp filter since its pool was opened gets no thread: the filter may end it for a
//! system call that it does not make itself.

mod client;
mod events;

pub use client::{ControlError, add_device_to, drain_device_of, remove_device_of, resume_device_of};

use super::Pool;
use super::config::{Control, SlowSpec};
use super::pool;
use crate::device::DeviceKind;
use crate::sync::{StaticMutex, service};
use crate::sys::descriptors::{self, Own};
use crate::sys::file::effective_uid;
use crate::sys::thread::{self, Urgency};
use crate::sys::{process, socket};
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The process whose thread runs, or was tried to start. Relaxed: looked at again under the lock.
static STARTED_IN: AtomicU32 = AtomicU32::new(0);
static STATE: StaticMutex<State> = StaticMutex::new(State { listener: None, events: None });

/// The sockets of this process's thread.
struct State {
    listener: Option<Own>,
    events: Option<Own>,
}

/// How long the other side may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a process listens under, by its own number in its own namespace.
fn name_of(pid: u32) -> String {
    format!("daxtier.control.{pid}")
}

/// Takes note that memory of a device was handed out: starts the thread where the setting wants it. Runs in service.
#[inline]
pub(super) fn note_use(control: Control, kind: DeviceKind) {
    let is_wanted = match (control, kind) {
        (Control::Off, _) | (_, DeviceKind::Dram) => false,
        (Control::Auto, kind) => kind == DeviceKind::Dax,
        (Control::On, _) => true,
    };
    if is_wanted && STARTED_IN.load(Ordering::Relaxed) == 0 {
        start();
    }
}

/// Starts the thread, once a process. Where it can't be had the program does without.
#[cold]
fn start() {
    // A worker of the migration opens nothing for others; another thread's use of memory comes.
    if descriptors::has_own_table() {
        return;
    }
    let mut state = STATE.lock();
    if STARTED_IN.swap(std::process::id(), Ordering::Relaxed) != 0 || pool::has_tightened_filters() {
        return;
    }
    let enter = |socket: OwnedFd| descriptors::enter(socket).ok();
    let Some(listener) = socket::listen(name_of(std::process::id()).as_bytes()).ok().and_then(enter) else {
        return;
    };
    state.events = socket::device_events().ok().and_then(enter);
    state.listener = Some(listener);
    let argument = listener.index() << 32 | state.events.map_or(NO_EVENTS, Own::index);
    if thread::spawn_own(run, argument, Urgency::Background, None).is_err() {
        state.close();
    }
}

const NO_EVENTS: usize = u32::MAX as usize;

impl State {
    fn close(&mut self) {
        [self.listener.take(), self.events.take()].into_iter().flatten().for_each(Own::close);
    }
}

/// Gives the parent's sockets back. Called once in a forked child, which has one thread.
pub(super) fn after_fork_in_child() {
    STATE.lock().close();
    STARTED_IN.store(0, Ordering::Relaxed);
}

extern "C" fn run(argument: usize) {
    let listener = Own::from_index(argument >> 32);
    let events = Some(argument & NO_EVENTS).filter(|&index| index != NO_EVENTS).map(Own::from_index);
    loop {
        // Looked at each time: where the program has closed a number of ours it is nobody's, or the program's.
        let Ok(listener) = listener.lend() else { return };
        let events = events.and_then(|events| events.lend().ok());
        let Ok([asks, tells]) = socket::wait_for_either(listener.as_fd(), events.as_ref().map(AsFd::as_fd))
        else {
            return;
        };
        if tells && let Some(events) = &events {
            events::hear(events.as_fd());
        }
        if asks && let Ok(connection) = socket::accept(listener.as_fd()) {
            serve(&connection);
        }
    }
}

/// Answers one request: a line, to which the answer is lines of which the last begins with `end`.
fn serve(connection: &OwnedFd) {
    let connection = connection.as_fd();
    let may = socket::peer_user(connection).is_ok_and(|user| user == 0 || user == effective_uid());
    if !may || socket::set_timeout(connection, PATIENCE).is_err() {
        return;
    }
    let mut buffer = [0u8; 4096];
    let Some(line) = read_line(connection, &mut buffer) else { return };
    let answer = answer(line);
    let _ = socket::write(connection, answer.as_bytes());
    service::run(|| drop(answer));
}

fn read_line<'a>(connection: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut len = 0;
    loop {
        let nr = socket::read(connection, buffer.get_mut(len..)?).ok().filter(|&nr| nr > 0)?;
        len += nr;
        if let Some(end) = buffer[..len].iter().position(|&byte| byte == b'\n') {
            return std::str::from_utf8(&buffer[..end]).ok();
        }
    }
}

/// Does what a line asks for, on every pool that has the device. A device is added to one pool, the first that takes it.
fn answer(line: &str) -> String {
    let mut words = line.splitn(3, ' ');
    let (verb, timeout, device) = (words.next(), words.next(), words.next());
    let timeout = timeout.and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let (Some(verb), Some(timeout), Some(device)) = (verb, timeout, device) else {
        return service::run(|| "end error the request is not understood\n".to_owned());
    };
    let pools = service::run(pool::open_pools);
    let mut answer = service::run(String::new);
    let mut refusal = None;
    for pool in &pools {
        match one(pool, verb, timeout, device, &mut answer) {
            Ok(()) => {
                refusal = Some(None);
                if verb == "add" {
                    break;
                }
            }
            Err(error) if !matches!(refusal, Some(None)) => refusal = Some(Some(error)),
            Err(_) => {}
        }
    }
    service::run(|| {
        let _ = match refusal {
            Some(None) => writeln!(answer, "end ok"),
            Some(Some(error)) => writeln!(answer, "end error {error}"),
            None => writeln!(answer, "end error the process has no pool open"),
        };
        drop(pools);
        answer
    })
}

fn one(pool: &Pool, verb: &str, timeout: Duration, device: &str, answer: &mut String) -> Result<(), String> {
    let tell = |error: pool::DeviceChangeError| service::run(|| error.to_string());
    match verb {
        "drain" => {
            let report = pool.drain_device(device, timeout).map_err(tell)?;
            service::run(|| {
                let _ = writeln!(answer, "moved {}", report.moved_bytes);
                if let Some(reason) = &report.immovable {
                    let _ = writeln!(answer, "immovable {reason}");
                }
                for held in &report.held {
                    let _ = writeln!(answer, "held {held}");
                }
                drop(report);
            });
            Ok(())
        }
        "add" => {
            let spec = service::run(|| device.parse::<SlowSpec>().map_err(|error| error.to_string()))?;
            pool.add_device(&spec).map_err(tell)
        }
        "resume" => pool.resume_device(device).map_err(tell),
        "remove" => pool.remove_device(device).map_err(tell),
        _ => Err(service::run(|| format!("{verb:?} is no request"))),
    }
}

/// Returns how many seccomp filters the process has, unless the kernel does not tell.
pub(super) fn nr_filters() -> Option<u32> {
    process::status_field("Seccomp_filters")
}
