//! What the kernel says of dax devices: one that goes is out of use before anything touches it.

use crate::device::DeviceKind;
use crate::pgmap::Pgmap;
use crate::sync::service;
use crate::sys::socket;
use std::os::fd::BorrowedFd;

/// Reads the events that are there. Longer ones than the kernel makes do not come.
pub(super) fn hear(socket: BorrowedFd<'_>) {
    let mut buffer = [0u8; 4096];
    while let Some(event) = socket::receive_event(socket, &mut buffer) {
        if let Some(device) = gone(event) {
            service::run(|| note_gone(device));
        }
    }
}

/// Returns the name of the dax device that an event says is gone: a header, and words `KEY=VALUE` that end with NUL.
fn gone(event: &[u8]) -> Option<&str> {
    let word = |key: &str| {
        let words = event.split(|&byte| byte == 0);
        words.filter_map(|word| word.strip_prefix(key.as_bytes())?.strip_prefix(b"=")).next()
    };
    let is_gone = matches!(word("ACTION")?, b"remove" | b"unbind" | b"offline");
    if !is_gone || word("SUBSYSTEM")? != b"dax" {
        return None;
    }
    let path = std::str::from_utf8(word("DEVPATH")?).ok()?;
    path.rsplit('/').next().filter(|name| name.starts_with("dax"))
}

/// Kills the pgmaps of a device, by the name of its node.
fn note_gone(device: &str) {
    for pgmap in Pgmap::all() {
        let of = pgmap.device();
        if of.kind() == DeviceKind::Dax && of.name().rsplit('/').next() == Some(device) {
            pgmap.note_gone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_go_are_told_from_other_news() {
        let event = |action: &str, subsystem: &str| {
            format!(
                "{action}@/devices/platform/hmem.0/dax0.0\0ACTION={action}\0DEVPATH=/devices/platform/hmem.0/dax0.0\0\
                 SUBSYSTEM={subsystem}\0MAJOR=252\0SEQNUM=1000\0"
            )
        };
        for action in ["remove", "unbind"] {
            assert_eq!(gone(event(action, "dax").as_bytes()), Some("dax0.0"));
        }
        assert_eq!(gone(event("add", "dax").as_bytes()), None);
        assert_eq!(gone(event("remove", "block").as_bytes()), None);
        assert_eq!(gone(b"libudev\0\xfe\xed\xca\xfe"), None);
        assert_eq!(gone(b""), None);
        assert_eq!(gone(b"ACTION=remove\0SUBSYSTEM=dax\0DEVPATH=/devices/x/region0\0"), None);
    }
}
