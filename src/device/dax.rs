//! A device-dax node: CXL memory, persistent memory or soft-reserved memory, mapped directly.
//!
//! [`Dax::open`] takes only a character device that sysfs lists on the dax bus, looked up by its device number, and
//! explains what is in the way otherwise. Claims are locks on byte ranges of the node that belong to our open file
//! description, so every process and every second open in this one sees them, and the kernel drops them with the
//! process. Bytes of former owners are in the memory: no claim is ever known to be zero.
//!
//! What the driver demands: shared mappings only, addresses, lengths and offsets in multiples of the device's
//! alignment, and never MADV_NOHUGEPAGE, after which a 2 MiB device faults with SIGBUS.
//!
//! In a forked child the inherited mappings are gone (MADV_DONTFORK) and the inherited description, whose locks
//! are the parent's, is closed; the child's first claim opens the node anew. Uses `descriptor`, `discovery` and
//! `sys::lock`; used by `pgmap` through [`Device`].

use super::descriptor::Descriptor;
use super::discovery::{DaxInfo, DaxState, describe_file, device_names, name_of_dev, node_state, rdev};
use super::nodes::{Elsewhere, elsewhere};
use super::origin::Origin;
use super::range::{check_len, check_range, check_span};
use super::strangers::{Mapped, known_header, mapped};
use super::{AfterFork, Claim, Device, DeviceError, DeviceKind, ScrubPolicy};
use crate::error::SysError;
use crate::sync::Mutex;
use crate::sys::descriptors::Lent;
use crate::sys::file::{self, FileStat};
use crate::sys::mm::Reservation;
use crate::sys::{bus_error, lock, mm};
use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// How a dax device is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaxOptions {
    /// The bytes of the device to use, in multiples of its alignment; all of it without.
    pub range: Option<Range<u64>>,
    /// Use the device although it holds data of a known format, or another process maps it without a claim. Such data is
    /// overwritten.
    pub force: bool,
    /// Use persistent memory. What is stored on it is overwritten.
    pub allow_persistent: bool,
    /// Use the device although a process has it open through another node. What both claim they write over.
    pub exclusive: bool,
    /// When its memory is cleared.
    pub scrub: ScrubPolicy,
}

/// A device-dax node, or a range of one.
#[derive(Debug)]
pub struct Dax {
    name: String,
    path: CString,
    /// What fstat said of the node when it was opened first; a child that opens it again must find the same.
    opened: FileStat,
    /// Where the device begins on the node.
    base: u64,
    len_bytes: u64,
    align_bytes: u64,
    target_node: Option<u32>,
    numa_node: Option<u32>,
    scrub: ScrubPolicy,
    file: Descriptor,
    /// Who maps the node without a claim, and when that was looked up; `None` when it does not matter.
    strangers: Option<Mutex<Seen>>,
    /// Who uses the device through another node; `None` when it does not matter.
    domain: Option<Mutex<Domain>>,
}

/// What is known of processes behind other nodes of the device.
#[derive(Debug)]
enum Domain {
    Unknown,
    /// There were none at the first claim. Who comes later finds us.
    One,
    /// There was this one then.
    Several(Instant, Elsewhere),
}

/// What others map of a node, at some time.
#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    mapped: Vec<Mapped>,
}

/// How old a look at other processes may be. A look takes milliseconds where there are hundreds of them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longer than a look at a device's first page takes.
const GLANCE: Duration = Duration::from_millis(5);

impl Dax {
    /// Opens the dax device at `path`. Claims and maps nothing yet.
    ///
    /// # Errors
    /// [`DeviceError`] says what was seen and what to do: no such file, no dax device, persistent memory that was not meant
    /// explicitly, a device in system-ram mode, without driver or without memory, a node that this process may not write, a range that is empty, off the
    /// device's alignment or beyond its end.
    pub fn open(path: &Path, options: DaxOptions) -> Result<Dax, DeviceError> {
        Dax::open_under(Path::new("/"), path, options)
    }

    /// Opens `path` by what the sysfs under `root` says of it.
    fn open_under(root: &Path, path: &Path, options: DaxOptions) -> Result<Dax, DeviceError> {
        let name = path.to_string_lossy().into_owned();
        let sys = |source| DeviceError::Sys { device: name.clone(), source };
        let info = identify(root, path)?;
        if matches!(info.origin, Origin::Pmem { .. }) && !options.allow_persistent {
            return Err(DeviceError::Persistent { device: name });
        }
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| DeviceError::Missing { device: name.clone(), known: device_names(root) })?;
        let node = file::open_read_write(&c_path).map_err(|source| match source.errno {
            // The driver let go of it since it was looked at, or it never had a device behind it.
            libc::ENXIO | libc::ENODEV => unusable(&name, info.clone(), DaxState::NoDriver),
            _ => sys(source),
        })?;
        let opened = file::stat(node.as_raw_fd()).map_err(sys)?;
        if info.dev != Some(opened.rdev) {
            // Another file took the path between the look and the open.
            let found = format!("character device {}:{}", opened.rdev.0, opened.rdev.1);
            return Err(DeviceError::NotDax { device: name, found, known: device_names(root) });
        }
        Dax::from_node(name, c_path, node, opened, &info, options)
    }

    fn from_node(
        name: String,
        path: CString,
        node: OwnedFd,
        opened: FileStat,
        info: &DaxInfo,
        options: DaxOptions,
    ) -> Result<Dax, DeviceError> {
        let (len_bytes, align_bytes) = (info.len_bytes, info.align_bytes);
        check_len(&name, len_bytes, align_bytes)?;
        // Who keeps to a part, or says that there is nobody, is believed.
        let is_guarded = options.range.is_none() && !options.exclusive && !options.force;
        let range = options.range.unwrap_or(0..len_bytes);
        check_range(&name, &range, len_bytes, align_bytes)?;
        let file =
            Descriptor::new(node).map_err(|source| DeviceError::Sys { device: name.clone(), source })?;
        let dax = Dax {
            name,
            path,
            opened,
            base: range.start,
            len_bytes: range.end - range.start,
            align_bytes,
            target_node: info.target_node,
            numa_node: info.numa_node,
            scrub: options.scrub,
            file,
            strangers: (!options.force).then(|| Mutex::new(Seen::default())),
            domain: is_guarded.then(|| Mutex::new(Domain::Unknown)),
        };
        if !options.force
            && let Some(found) = dax.known_data()?
        {
            return Err(DeviceError::HoldsData { device: dax.name, found });
        }
        Ok(dax)
    }

    /// Returns the format of the data on the device, if it is one that is known by its header. Reads the first page.
    fn known_data(&self) -> Result<Option<&'static str>, DeviceError> {
        let len_bytes = self.align_bytes as usize;
        let place = Reservation::new(len_bytes, len_bytes).map_err(|source| self.refused(source))?;
        let start = place.base().as_ptr().addr();
        // SAFETY: the reservation was just made, and nothing is written through the mapping.
        unsafe { self.map_at(place.base(), 0, len_bytes) }?;
        let mut first = [0u8; 64];
        let read = || {
            for (at, byte) in first.iter_mut().enumerate() {
                // SAFETY: a granule is longer.
                let from = unsafe { place.base().add(at) };
                // SAFETY: mapped. Another process may write to it, so each byte is read once.
                *byte = unsafe { from.read_volatile() };
            }
        };
        // SAFETY: the work drops nothing.
        unsafe { bus_error::guarded(start..start + len_bytes, read) }
            .map_err(|error| DeviceError::unanswered(&self.name, 0, error))?;
        Ok(known_header(&first))
    }

    /// Returns a process that maps a part of a range of the node without a claim. The range is locked, so whoever maps it
    /// has none.
    fn stranger_in(&self, range: &Range<u64>) -> Option<Mapped> {
        let mut seen = self.strangers.as_ref()?.lock();
        let find = |seen: &Seen| {
            seen.mapped.iter().find(|m| m.range.start < range.end && range.start < m.range.end).cloned()
        };
        let is_fresh = seen.at.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        if is_fresh && find(&seen).is_none() {
            return None;
        }
        let look = || Seen { at: Some(Instant::now()), mapped: mapped(Path::new("/proc"), self.opened.id) };
        *seen = look();
        find(&seen)?;
        // Who opens the device looks at its first page for a moment, as we did.
        std::thread::sleep(GLANCE);
        *seen = look();
        find(&seen)
    }

    /// Makes sure, once, that nobody uses the device through another node: claims would not be seen there.
    fn check_domain(&self) -> Result<(), DeviceError> {
        let Some(domain) = &self.domain else { return Ok(()) };
        let mut domain = domain.lock();
        let is_known = match &*domain {
            Domain::Unknown => false,
            Domain::One => true,
            Domain::Several(at, _) => at.elapsed() < LOOK_AGAIN,
        };
        if !is_known {
            *domain = match elsewhere(Path::new("/proc"), self.opened.rdev, self.opened.id) {
                Some(other) => Domain::Several(Instant::now(), other),
                None => Domain::One,
            };
        }
        match &*domain {
            Domain::Several(_, Elsewhere { pid, node }) => {
                Err(DeviceError::OtherNode { device: self.name.clone(), pid: *pid, node: node.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Returns the node's descriptor; in a forked child a description of its own, opened at the first call.
    fn file(&self) -> Result<Lent<'_>, DeviceError> {
        self.file.get(|| self.open_again()).map_err(|source| self.refused(source))
    }

    /// Opens the same part of the same node once more: what one of the two claims the other can't.
    ///
    /// # Errors
    /// The refusal to open the node; [`DeviceError::Gone`] when it is not there any more.
    pub(super) fn open_anew(&self) -> Result<Dax, DeviceError> {
        let open = || self.open_again().and_then(Descriptor::new);
        let file = open().map_err(|source| match source.errno {
            libc::ENOENT => DeviceError::Gone { device: self.name.clone() },
            _ => self.refused(source),
        })?;
        Ok(Dax {
            name: self.name.clone(),
            path: self.path.clone(),
            opened: self.opened,
            base: self.base,
            len_bytes: self.len_bytes,
            align_bytes: self.align_bytes,
            target_node: self.target_node,
            numa_node: self.numa_node,
            scrub: self.scrub,
            file,
            strangers: self.strangers.as_ref().map(|_| Mutex::new(Seen::default())),
            domain: self.domain.as_ref().map(|_| Mutex::new(Domain::Unknown)),
        })
    }

    fn open_again(&self) -> Result<OwnedFd, SysError> {
        let node = file::open_read_write(&self.path)?;
        let seen = file::stat(node.as_raw_fd())?;
        // Another node of the same device would not see the parent's locks.
        if (seen.id, seen.rdev) != (self.opened.id, self.opened.rdev) {
            return Err(SysError { call: "open", errno: libc::ESTALE });
        }
        Ok(node)
    }

    fn refused(&self, source: SysError) -> DeviceError {
        let device = self.name.clone();
        match source.errno {
            libc::EBADF => DeviceError::DescriptorLost { device },
            libc::ENXIO | libc::ENODEV => DeviceError::Gone { device },
            _ => DeviceError::Sys { device, source },
        }
    }

    /// Returns the range of the node that stands for a range of the device.
    fn on_node(&self, range: &Range<u64>) -> Range<u64> {
        self.base + range.start..self.base + range.end
    }
}

/// Finds the dax device behind `path` and checks that it can be used.
fn identify(root: &Path, path: &Path) -> Result<DaxInfo, DeviceError> {
    let device = path.to_string_lossy().into_owned();
    let by_name = path.file_name().and_then(|name| DaxInfo::read(root, name.to_str()?));
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return Err(match by_name {
                // The kernel has the device; only its node is not there.
                Some(info) if path.starts_with("/dev") && !matches!(info.state, DaxState::Free) => {
                    let state = info.state.clone();
                    unusable(&device, info, state)
                }
                _ if error.kind() == std::io::ErrorKind::NotFound => {
                    DeviceError::Missing { device, known: device_names(root) }
                }
                _ => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    DeviceError::Sys { device, source: SysError { call: "stat", errno } }
                }
            });
        }
    };
    let name = if metadata.file_type().is_char_device() { name_of_dev(root, rdev(&metadata)) } else { None };
    let Some(mut info) = name.and_then(|name| DaxInfo::read(root, &name)) else {
        let found = describe_file(&metadata);
        return Err(DeviceError::NotDax { device, found, known: device_names(root) });
    };
    // The device may be used through another node than the one in /dev, so the state of that one does not count.
    let state = match info.state.clone() {
        DaxState::Free
        | DaxState::NodeMissing
        | DaxState::NotItsNode { .. }
        | DaxState::NotPermitted { .. }
        | DaxState::ReadOnly { .. } => node_state(path, info.dev),
        other => other,
    };
    info.path = path.to_owned();
    if state.is_usable() { Ok(info) } else { Err(unusable(&device, info, state)) }
}

fn unusable(device: &str, mut info: DaxInfo, state: DaxState) -> DeviceError {
    info.state = state.clone();
    let mend = info.mend().unwrap_or_else(|| "try again".to_owned());
    DeviceError::Unusable { device: device.to_owned(), state, mend }
}

impl Device for Dax {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Dax
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    fn node(&self) -> Option<u32> {
        self.target_node
    }

    /// The memory's own node is not online while programs map it.
    fn near_node(&self) -> Option<u32> {
        self.numa_node
    }

    fn scrub_policy(&self) -> ScrubPolicy {
        self.scrub
    }

    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError> {
        check_range(&self.name, &range, self.len_bytes, self.align_bytes)?;
        self.check_domain()?;
        match lock::try_lock(self.file()?.as_fd(), &self.on_node(&range)) {
            Ok(true) => match self.stranger_in(&self.on_node(&range)) {
                None => Ok(Claim { is_zero: false }),
                Some(Mapped { pid, range: theirs }) => {
                    self.release(range);
                    let device = self.name.clone();
                    Err(DeviceError::Mapped { device, start: theirs.start, end: theirs.end, pid })
                }
            },
            Ok(false) => Err(DeviceError::Claimed {
                device: self.name.clone(),
                start: range.start,
                end: range.end,
                holder: "another process, or a second pool of this one".to_owned(),
            }),
            Err(source) => Err(self.refused(source)),
        }
    }

    fn release(&self, range: Range<u64>) {
        if check_range(&self.name, &range, self.len_bytes, self.align_bytes).is_err() || !self.file.is_open()
        {
            // A forked child before its first claim holds nothing.
            return;
        }
        if let Ok(node) = self.file() {
            // A lock that cannot be given back goes with the process.
            let _ = lock::unlock(node.as_fd(), &self.on_node(&range));
        }
    }

    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        check_span(&self.name, offset, len_bytes, self.len_bytes, self.align_bytes)?;
        let node = self.file()?;
        bus_error::watch();
        // SAFETY: the caller owns the address range, and nobody uses what is mapped there.
        unsafe { mm::map_shared(addr, len_bytes, node.as_fd(), self.base + offset) }
            .map_err(|source| self.refused(source))?;
        // The range is a mapping of its own here (its neighbours have the flag already), so the advice splits
        // nothing and does not fail for want of mappings.
        // SAFETY: the range was just mapped for this caller, and the advice drops no data.
        unsafe { mm::advise(addr, len_bytes, libc::MADV_DONTFORK) }.map_err(|source| self.refused(source))
    }

    /// Returns `false`: a device keeps its bytes.
    fn discard(&self, _range: Range<u64>) -> bool {
        false
    }

    /// Lets go of the parent's open file description, which carries the parent's locks.
    fn after_fork_in_child(&self) -> AfterFork {
        self.file.close();
        AfterFork::Foreign
    }
}

#[cfg(test)]
mod tests;
