//! What the kernel says of dax devices: one that goes is out of use before anything touches it, and one that comes is offered.
//!
//! Nothing comes into use by itself: a device that the administrator released is named to the user, with the command that adds it;
//! of any other nothing is said, and it is not touched.

use crate::device::{DaxInfo, DeviceKind, Origin, RELEASED_PATH, released};
use crate::pgmap::Pgmap;
use crate::sync::service;
use crate::sys::{socket, stdio};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// What an event says of a dax device, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News<'a> {
    Gone(&'a str),
    /// A driver has taken it, so it can be mapped.
    Bound(&'a str),
}

/// Reads the events that are there. Longer ones than the kernel makes do not come.
pub(super) fn hear(socket: BorrowedFd<'_>) {
    let mut buffer = [0u8; 4096];
    while let Some(event) = socket::receive_event(socket, &mut buffer) {
        match news(event) {
            Some(News::Gone(device)) => service::run(|| note_gone(device)),
            Some(News::Bound(device)) => service::run(|| offer(device)),
            None => {}
        }
    }
}

/// Reads an event: a header, and words `KEY=VALUE` that end with NUL.
fn news(event: &[u8]) -> Option<News<'_>> {
    let word = |key: &str| {
        let words = event.split(|&byte| byte == 0);
        words.filter_map(|word| word.strip_prefix(key.as_bytes())?.strip_prefix(b"=")).next()
    };
    let action = word("ACTION")?;
    if word("SUBSYSTEM")? != b"dax" {
        return None;
    }
    let path = std::str::from_utf8(word("DEVPATH")?).ok()?;
    let device = path.rsplit('/').next().filter(|name| name.starts_with("dax"))?;
    match action {
        b"remove" | b"unbind" | b"offline" => Some(News::Gone(device)),
        b"bind" => Some(News::Bound(device)),
        _ => None,
    }
}

/// Kills the pgmaps of a device, by the name of its node.
fn note_gone(device: &str) {
    pgmaps_of(device).for_each(|pgmap| pgmap.note_gone());
}

fn pgmaps_of(device: &str) -> impl Iterator<Item = Pgmap> {
    Pgmap::all().into_iter().filter(move |pgmap| {
        let of = pgmap.device();
        of.kind() == DeviceKind::Dax && of.name().rsplit('/').next() == Some(device)
    })
}

/// Tells the user of a device that has come, if the administrator released it. A list that can't be read releases nothing.
fn offer(device: &str) {
    let released = released(Path::new("/"), Path::new(RELEASED_PATH)).unwrap_or_default();
    let is_in_use = pgmaps_of(device).next().is_some();
    if let Some(info) = released.iter().find(|info| info.name == device)
        && let Some(line) = offered(info, is_in_use, std::process::id())
    {
        stdio::complain(&line);
    }
}

/// Returns what the user is told of a released device that has come; nothing of one that blocks can't lie on. Whether the process
/// may open it shows when it is added: what sets the rights of a new node may come later than the kernel's word.
fn offered(info: &DaxInfo, is_in_use: bool, pid: u32) -> Option<String> {
    if info.heap_obstacle().is_some() {
        return None;
    }
    let path = info.path.display();
    let option = if matches!(info.origin, Origin::Pmem { .. }) { ",allow-persistent" } else { "" };
    let first = if is_in_use { format!("daxtier drain --remove {path} {pid}; ") } else { String::new() };
    Some(format!(
        "daxtier: {path}, which the administrator released, is there; to use it: {first}daxtier add {path}{option} {pid}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DaxState;
    use crate::topology::tree::Tree;

    #[test]
    fn devices_that_come_and_go_are_told_from_other_news() {
        let event = |action: &str, subsystem: &str| {
            format!(
                "{action}@/devices/platform/hmem.0/dax0.0\0ACTION={action}\0DEVPATH=/devices/platform/hmem.0/dax0.0\0\
                 SUBSYSTEM={subsystem}\0MAJOR=252\0SEQNUM=1000\0"
            )
        };
        for action in ["remove", "unbind"] {
            assert_eq!(news(event(action, "dax").as_bytes()), Some(News::Gone("dax0.0")));
        }
        assert_eq!(news(event("bind", "dax").as_bytes()), Some(News::Bound("dax0.0")));
        // There is no driver yet that could be asked.
        assert_eq!(news(event("add", "dax").as_bytes()), None);
        assert_eq!(news(event("remove", "block").as_bytes()), None);
        assert_eq!(news(event("bind", "cxl").as_bytes()), None);
        assert_eq!(news(b"libudev\0\xfe\xed\xca\xfe"), None);
        assert_eq!(news(b""), None);
        assert_eq!(news(b"ACTION=remove\0SUBSYSTEM=dax\0DEVPATH=/devices/x/region0\0"), None);
    }

    #[test]
    fn a_device_is_offered_with_the_command_that_adds_it() {
        let of = |recorded| crate::device::discover(Tree::recorded(recorded).root()).remove(0);
        let line = offered(&of("cxl-devdax"), false, 7).unwrap();
        assert!(line.ends_with("to use it: daxtier add /dev/dax0.0 7\n"), "{line}");
        let line = offered(&of("pmem"), true, 7).unwrap();
        let commands = "daxtier drain --remove /dev/dax0.0 7; daxtier add /dev/dax0.0,allow-persistent 7\n";
        assert!(line.ends_with(commands), "{line}");
        let mut giant = of("hmem-giant-pages");
        giant.state = DaxState::Free;
        assert_eq!(offered(&giant, false, 7), None);
    }
}
