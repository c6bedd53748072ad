//! Why a device could not be made, opened, claimed or mapped: what was seen, and what to do about it.

use super::discovery::DaxState;
use crate::error::SysError;
use crate::sys::bus_error::BusError;
use crate::units::Bytes;

/// A device that could not be opened, claimed or mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The granule is no power of two from 4 KiB to 1 GiB.
    #[error("{device}: an alignment of {align_bytes} bytes is no power of two from 4K to 1G")]
    BadAlign {
        /// The device's name.
        device: String,
        /// The alignment asked for.
        align_bytes: u64,
    },
    /// The size is zero.
    #[error("{device}: the size is 0; give one such as 512M or 4G")]
    Empty {
        /// The device's name.
        device: String,
    },
    /// A range ends where it starts, or before.
    #[error("{device}: the range {start:#x}..{end:#x} is empty")]
    EmptyRange {
        /// The device's name.
        device: String,
        /// First byte asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
    },
    /// A size or an end of a range is not a multiple of the granule.
    #[error("{device}: the {what}, {value} bytes, is not a multiple of the alignment, {}", Bytes(*.align_bytes))]
    NotAligned {
        /// The device's name.
        device: String,
        /// Which value it is: "size", "start of the range" or "end of the range".
        what: &'static str,
        /// The value.
        value: u64,
        /// The device's granule.
        align_bytes: u64,
    },
    /// A range reaches beyond the end of the device.
    #[error("{device}: bytes {start:#x}..{end:#x} reach beyond its end, {len_bytes:#x} ({})", Bytes(*.len_bytes))]
    BeyondEnd {
        /// The device's name.
        device: String,
        /// First byte asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
        /// The device's length.
        len_bytes: u64,
    },
    /// No file has this path.
    #[error("{device}: there is no such file; {}", known_devices(.known))]
    Missing {
        /// The path.
        device: String,
        /// The dax devices that the machine has.
        known: Vec<String>,
    },
    /// The file is not a dax device.
    #[error("{device} is {found}, not a dax device; {}", known_devices(.known))]
    NotDax {
        /// The path.
        device: String,
        /// What it is.
        found: String,
        /// The dax devices that the machine has.
        known: Vec<String>,
    },
    /// The dax device is there but cannot be used.
    #[error("{device}: {state}; {mend}")]
    Unusable {
        /// The path.
        device: String,
        /// What was observed.
        state: DaxState,
        /// The command or step that makes it usable.
        mend: String,
    },
    /// The device was removed, or unbound from its driver, after it was opened.
    #[error("{device}: the device is gone: it was removed or unbound from its driver")]
    Gone {
        /// The path.
        device: String,
    },
    /// A part of a device was asked for, of a kind that has no parts to share.
    #[error("{device}: only dax devices have ranges; leave range= out, or give a smaller size")]
    NoRanges {
        /// The device's name.
        device: String,
    },
    /// The size to use is more than the device has.
    #[error("{device}: {} were asked for, but it has {}", Bytes(*.size_bytes), Bytes(*.len_bytes))]
    SizeBeyondEnd {
        /// The device's name.
        device: String,
        /// The size asked for.
        size_bytes: u64,
        /// The device's length.
        len_bytes: u64,
    },
    /// Another process holds a part of the range.
    #[error("{device}: bytes {start:#x}..{end:#x} are claimed by {holder}")]
    Claimed {
        /// The device's name.
        device: String,
        /// First byte asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
        /// Who holds it, as far as it can be told ("pid 1234", "another process").
        holder: String,
    },
    /// Another process maps a part of the range and has claimed nothing: its data would be overwritten.
    #[error(
        "{device}: bytes {start:#x}..{end:#x} are mapped by process {pid}, which holds no claim: its data would be \
         overwritten; end it, name another part (range=OFFSET+LENGTH), or say force ({device},force) to use them all the same"
    )]
    Mapped {
        /// The device's name.
        device: String,
        /// First byte of what the process maps.
        start: u64,
        /// Its end.
        end: u64,
        /// The process.
        pid: u32,
    },
    /// A process has the device open through another node, whose claims can't be seen from here.
    #[error(
        "{device}: process {pid} uses the device through another node ({}), and claims on one node are not seen on the other: \
         bind-mount the same node, give each side a part of its own (range=OFFSET+LENGTH), or say exclusive ({device},exclusive) if \
         nobody behind the other node will use it", node.display()
    )]
    OtherNode {
        /// The device's name.
        device: String,
        /// The process.
        pid: u32,
        /// The node as that process calls it.
        node: std::path::PathBuf,
    },
    /// The device is persistent memory, and nobody said that it may be overwritten.
    #[error(
        "{device}: it is persistent memory, and what is stored on it would be overwritten; if that is meant, say \
         {device},allow-persistent"
    )]
    Persistent {
        /// The device's name.
        device: String,
    },
    /// The device begins with a header of a known format: there is data on it.
    #[error(
        "{device}: it holds {found}, which would be overwritten; say force ({device},force) to use it all the same"
    )]
    HoldsData {
        /// The device's name.
        device: String,
        /// The format.
        found: &'static str,
    },
    /// The machine has found a page of the device damaged.
    #[error(
        "{device}: the memory at byte {offset:#x} is damaged (a memory error of the machine); it is left out of use"
    )]
    Damaged {
        /// The device's name.
        device: String,
        /// Where, in bytes from the device's start.
        offset: u64,
    },
    /// No NUMA node with memory has this number.
    #[error("{device}: there is no node {node} with memory; this machine has {known:?}")]
    NoSuchNode {
        /// The device's name.
        device: String,
        /// The node asked for.
        node: u32,
        /// The nodes that have memory.
        known: Vec<u32>,
    },
    /// The kernel does not let this process bind memory to the node.
    #[error(
        "{device}: memory cannot be bound to node {node} ({source}); look for it in Mems_allowed_list of \
         /proc/self/status, and for a seccomp filter that refuses mbind (containers need CAP_SYS_NICE)"
    )]
    NodeRefused {
        /// The device's name.
        device: String,
        /// The node asked for.
        node: u32,
        /// The refused call.
        source: SysError,
    },
    /// The node has less memory than was asked for.
    #[error("{device}: {} were asked for, but node {node} has {}", Bytes(*.len_bytes), Bytes(*.has_bytes))]
    NodeTooSmall {
        /// The device's name.
        device: String,
        /// The node asked for.
        node: u32,
        /// The size asked for.
        len_bytes: u64,
        /// The node's memory.
        has_bytes: u64,
    },
    /// The program closed the device's descriptor, or put a file of its own under the same number.
    #[error("{device}: the program has closed the device's descriptor; nothing more can be mapped from it")]
    DescriptorLost {
        /// The device's name.
        device: String,
    },
    /// The kernel refused.
    #[error("{device}: {source}")]
    Sys {
        /// The device's name.
        device: String,
        /// The refused call.
        source: SysError,
    },
}

impl DeviceError {
    /// Returns the `errno` value that stands for this error in the C ABI.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceError::BadAlign { .. }
            | DeviceError::Empty { .. }
            | DeviceError::EmptyRange { .. }
            | DeviceError::NotAligned { .. } => libc::EINVAL,
            DeviceError::BeyondEnd { .. } => libc::ERANGE,
            DeviceError::Claimed { .. } | DeviceError::Mapped { .. } | DeviceError::OtherNode { .. } => {
                libc::EBUSY
            }
            DeviceError::HoldsData { .. } | DeviceError::Persistent { .. } => libc::EEXIST,
            DeviceError::Missing { .. } => libc::ENOENT,
            DeviceError::NoSuchNode { .. } | DeviceError::NotDax { .. } => libc::ENODEV,
            DeviceError::Unusable { state, .. } => state.errno(),
            DeviceError::Gone { .. } => libc::ENXIO,
            DeviceError::Damaged { .. } => libc::EHWPOISON,
            DeviceError::NoRanges { .. } => libc::EINVAL,
            DeviceError::SizeBeyondEnd { .. } => libc::ERANGE,
            DeviceError::NodeTooSmall { .. } => libc::ENOMEM,
            DeviceError::DescriptorLost { .. } => libc::EBADF,
            DeviceError::NodeRefused { source, .. } | DeviceError::Sys { source, .. } => source.errno,
        }
    }
}

impl DeviceError {
    /// What an access means that a device did not answer, `offset` bytes from its start.
    pub(crate) fn unanswered(device: &str, offset: u64, error: BusError) -> DeviceError {
        let device = device.to_owned();
        if error.is_damaged { DeviceError::Damaged { device, offset } } else { DeviceError::Gone { device } }
    }
}

fn known_devices(known: &[String]) -> String {
    if known.is_empty() {
        "this machine has no dax devices: an emulated one works everywhere (emulated:2G)".to_owned()
    } else {
        let paths: Vec<String> = known.iter().map(|name| format!("/dev/{name}")).collect();
        format!("this machine's dax devices are {} (daxtier list)", paths.join(", "))
    }
}
