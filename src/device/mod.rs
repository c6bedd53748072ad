//! Devices: what can be mapped and handed out as folios.
//!
//! A [`Device`] is a flat range of bytes with a mapping granule. Four kinds exist: device-dax nodes
//! (`/dev/daxX.Y`), emulated devices (a memfd with the same contract), anonymous memory, and anonymous memory
//! bound to a NUMA node. A device knows nothing of folios: a pgmap claims ranges of it and maps them.
//! Uses `sys` and `topology`; used by `pgmap`.

mod claim;
mod dax;
mod descriptor;
mod discovery;
mod dram;
mod emulated;
mod error;
mod node;
mod nodes;
mod open;
mod origin;
mod range;
mod release;
mod scrub;
mod scrub_policy;
mod spec;
mod strangers;

pub use claim::Holder;
pub use dax::{Dax, DaxOptions};
pub use discovery::{DaxInfo, DaxMapping, DaxRegion, DaxState, discover};
pub use dram::Dram;
pub use emulated::Emulated;
pub use error::DeviceError;
pub use node::NodeMemory;
pub use open::open;
pub use origin::{CxlMemdev, Origin};
pub use release::{RELEASED_PATH, Release, ReleaseError, list_releases, release, released, revoke};
pub(crate) use scrub::Pieces;
pub use scrub::Scrubbed;
pub use scrub_policy::ScrubPolicy;
pub use spec::{DeviceSpec, DeviceSpecError};

use crate::error::SysError;
use std::fmt::Debug;
use std::ops::Range;
use std::ptr::NonNull;

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Private anonymous memory of any node.
    Dram,
    /// A memfd that behaves like a device-dax node.
    Emulated,
    /// A device-dax node.
    Dax,
    /// Private anonymous memory bound to one NUMA node.
    Node,
}

impl DeviceKind {
    /// Returns the word that stands for the kind in statistics and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceKind::Dram => "dram",
            DeviceKind::Emulated => "emulated",
            DeviceKind::Dax => "dax",
            DeviceKind::Node => "node",
        }
    }
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whether every byte of the range is known to be zero. Otherwise a former owner's bytes may be there, and
    /// the claimant does what the device's [`ScrubPolicy`] says before it hands any of it out.
    pub is_zero: bool,
}

/// What became of a device in a forked child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFork {
    /// The memory is private to each process: nothing changed.
    Private,
    /// The child has a fresh, empty device of the same size; what the parent had claimed is the child's too, with
    /// zeroes in it.
    Fresh,
    /// What the parent had claimed stays the parent's; the child may claim other ranges.
    Foreign,
}

/// Something that can be mapped in granules.
///
/// All offsets and lengths are in bytes from the start of the device and multiples of
/// [`align_bytes`](Device::align_bytes).
pub trait Device: Send + Sync + Debug {
    /// Returns what the device is made of.
    fn kind(&self) -> DeviceKind;

    /// Returns the name that a user gave or would give: `/dev/dax0.0`, `emulated:2G`, `dram`, `node:1`.
    fn name(&self) -> &str;

    /// Returns the usable length.
    fn len_bytes(&self) -> u64;

    /// Returns the mapping granule: a power of two, at least a page.
    fn align_bytes(&self) -> u64;

    /// Returns the NUMA node of the memory, where it is known.
    fn node(&self) -> Option<u32>;

    /// Returns the NUMA node that accesses to the memory go through: its own, or the one that a device hangs on.
    fn near_node(&self) -> Option<u32> {
        self.node()
    }

    /// Returns who clears what a claim does not promise to be zero.
    fn scrub_policy(&self) -> ScrubPolicy {
        ScrubPolicy::OnClaim
    }

    /// Claims a range for this process. Blocks on nothing but the kernel.
    ///
    /// # Errors
    /// [`DeviceError::Claimed`] when another process holds a part of it, or the refusal of the kernel.
    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError>;

    /// Gives a claimed range back. Nothing maps it any more.
    fn release(&self, range: Range<u64>);

    /// Maps `[offset, offset + len_bytes)` of the device over `[addr, addr + len_bytes)`, readable and writable.
    /// Private kinds map fresh zeroed memory there; shared kinds map the device's own bytes.
    ///
    /// # Safety
    /// The address range is the caller's reservation, nobody uses what is mapped there now, and the device range
    /// is claimed.
    ///
    /// # Errors
    /// The refusal of the kernel; the old mapping is then still in place.
    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError>;

    /// Has private memory of this process that lies elsewhere be this device's from now on, and moves its pages. Accesses to
    /// a page wait while it is moved.
    ///
    /// # Safety
    /// `[addr, addr + len_bytes)` is mapped by a private kind of device, and its policy is the caller's to change.
    ///
    /// # Errors
    /// `EIO` when pages could not be moved (pinned ones), `ENOMEM` when there is no memory for them, `EOPNOTSUPP` from devices
    /// whose memory is not private.
    unsafe fn adopt(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        let _ = (addr, len_bytes);
        Err(SysError { call: "mbind", errno: libc::EOPNOTSUPP })
    }

    /// Gives the memory behind an idle range back where the device can; afterwards the range reads as zero.
    /// Returns `false` where the bytes stay as they are (device-dax).
    fn discard(&self, range: Range<u64>) -> bool;

    /// Brings the device to the state that a forked child must see. Called once in the child, which has one
    /// thread. Must not allocate.
    fn after_fork_in_child(&self) -> AfterFork;
}
