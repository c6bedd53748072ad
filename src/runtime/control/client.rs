//! Asking another process to take a device, to drain it, resume or remove it.

use super::name_of;
use crate::error::SysError;
use crate::sys::{process, socket};
use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

/// A request that the other process could not be asked, or refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The process.
        pid: u32,
    },
    /// The process does not listen.
    #[error(
        "process {pid} does not listen: it uses no dax device under daxtier, or has control=off (DAXTIER_CONTROL=on makes \
         programs listen whatever their slow device is)"
    )]
    NotListening {
        /// The process.
        pid: u32,
    },
    /// The process belongs to somebody else.
    #[error("process {pid} takes requests of its own user and of root only")]
    NotPermitted {
        /// The process.
        pid: u32,
    },
    /// The process refused.
    #[error("process {pid}: {reason}")]
    Refused {
        /// The process.
        pid: u32,
        /// What it says.
        reason: String,
    },
    /// The kernel refused a call.
    #[error("process {pid} can't be asked: {source}")]
    Sys {
        /// The process.
        pid: u32,
        /// The refused call.
        source: SysError,
    },
}

/// What another process says of a drained device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteDrained {
    /// Bytes that were moved away.
    pub moved_bytes: u64,
    /// What is left, a line each: where it is, who holds it.
    pub held: Vec<String>,
    /// Why blocks could not be moved at all, if that was so.
    pub immovable: Option<String>,
}

/// Has process `pid` place nothing more on a device, and move away what is there. Blocks for as long as that takes, at most
/// about `timeout`.
///
/// # Errors
/// [`ControlError`].
pub fn drain_device_of(pid: u32, device: &str, timeout: Duration) -> Result<RemoteDrained, ControlError> {
    let mut report = RemoteDrained::default();
    for line in ask(pid, "drain", timeout, device)? {
        match line.split_once(' ') {
            Some(("moved", bytes)) => report.moved_bytes += bytes.parse::<u64>().unwrap_or(0),
            Some(("held", what)) => report.held.push(what.to_owned()),
            Some(("immovable", why)) => report.immovable = Some(why.to_owned()),
            // A later version may say more.
            _ => {}
        }
    }
    Ok(report)
}

/// Has process `pid` take a slow device: `device` is what its configuration would say (`/dev/dax1.0`, with options). The process
/// opens it by its own rights and in its own file system.
///
/// # Errors
/// [`ControlError`].
pub fn add_device_to(pid: u32, device: &str) -> Result<(), ControlError> {
    ask(pid, "add", Duration::ZERO, device).map(drop)
}

/// Has process `pid` use a device again.
///
/// # Errors
/// [`ControlError`].
pub fn resume_device_of(pid: u32, device: &str) -> Result<(), ControlError> {
    ask(pid, "resume", Duration::ZERO, device).map(drop)
}

/// Has process `pid` give up a drained device.
///
/// # Errors
/// [`ControlError`].
pub fn remove_device_of(pid: u32, device: &str) -> Result<(), ControlError> {
    ask(pid, "remove", Duration::ZERO, device).map(drop)
}

/// Makes a request and returns the lines of the answer.
fn ask(pid: u32, verb: &str, timeout: Duration, device: &str) -> Result<Vec<String>, ControlError> {
    if fs::metadata(format!("/proc/{pid}")).is_err() {
        return Err(ControlError::NoSuchProcess { pid });
    }
    let request = format!("{verb} {} {}\n", timeout.as_millis(), device.replace('\n', " "));
    let answer = converse(pid, &request, timeout).map_err(|source| match source.errno {
        libc::ECONNREFUSED => ControlError::NotListening { pid },
        _ => ControlError::Sys { pid, source },
    })?;
    let mut lines: Vec<String> = answer.lines().map(str::to_owned).collect();
    let end = lines.pop().unwrap_or_default();
    match end.strip_prefix("end ") {
        Some("ok") => Ok(lines),
        Some(error) => {
            let reason = error.strip_prefix("error ").unwrap_or(error).to_owned();
            Err(ControlError::Refused { pid, reason })
        }
        // It closes the connection without a word.
        None if answer.is_empty() => Err(ControlError::NotPermitted { pid }),
        None => Err(ControlError::Refused { pid, reason: "it ended in the middle of its answer".to_owned() }),
    }
}

/// Sends a request and reads to the end of the answer. In a thread of its own where the other process has another network
/// namespace, to which abstract names belong.
fn converse(pid: u32, request: &str, timeout: Duration) -> Result<String, SysError> {
    /// More than the other process takes for moving a slot, beyond the time that it was given.
    const PATIENCE: Duration = Duration::from_secs(30);
    let name = name_of(process::own_number_of(pid).unwrap_or(pid));
    let talk = || {
        let connection = socket::connect(name.as_bytes())?;
        socket::set_timeout(connection.as_fd(), timeout.saturating_add(PATIENCE))?;
        socket::write(connection.as_fd(), request.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            match socket::read(connection.as_fd(), &mut buffer) {
                Ok(0) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
                Ok(nr) => answer.extend_from_slice(&buffer[..nr]),
                // The other side closed before it read.
                Err(refusal) if refusal.errno == libc::ECONNRESET => return Ok(String::new()),
                Err(refusal) => return Err(refusal),
            }
        }
    };
    if process::shares_network_with(pid) {
        return talk();
    }
    std::thread::scope(|scope| {
        let apart = scope.spawn(|| process::join_network_of(pid).and_then(|()| talk()));
        apart.join().unwrap_or(Err(SysError { call: "setns", errno: libc::EIO }))
    })
}
