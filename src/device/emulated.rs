//! A memfd that behaves like a device-dax node, for machines without one.
//!
//! [`Emulated`] has a length, a granule, shared mappings and bytes that stay when a mapping goes, as the real
//! device has. Pages appear when touched, so a terabyte costs nothing until it is used. The memfd belongs to this
//! process; a forked child gets an empty one of its own at its first mapping.
//!
//! Where the kernel refuses memory that it could not keep (`vm.overcommit_memory` is 2), a page that it has not got is a bus
//! error for who touches it. There a slot's memory is asked for when it is mapped, which can be refused.
//!
//! Huge pages: the mapping asks for them, and the kernel gives them where
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is `advise`, `within_size` or `always`.
//! Uses `descriptor`; used by `pgmap` through [`Device`].

use super::descriptor::Descriptor;
use super::range::{HUGE_BYTES, check_len, check_range, check_span};
use super::{AfterFork, Claim, Device, DeviceError, DeviceKind};
use crate::error::SysError;
use crate::sys::descriptors::Lent;
use crate::sys::file;
use crate::sys::mm;
use crate::units::ExactBytes;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// A memfd with the contract of a device-dax node.
#[derive(Debug)]
pub struct Emulated {
    name: String,
    len_bytes: u64,
    align_bytes: u64,
    memfd: Descriptor,
    /// Whether the kernel refuses memory that it could not keep.
    is_strict: bool,
    /// Whether a released range may still hold bytes because the kernel refused to drop them.
    has_stale_bytes: AtomicBool,
}

impl Emulated {
    /// The granule when none is asked for: 2 MiB, as CXL memory has.
    pub const DEFAULT_ALIGN_BYTES: u64 = HUGE_BYTES;

    /// Makes a device of `len_bytes` (sparse) in granules of `align_bytes`, a power of two from 4 KiB to 1 GiB.
    ///
    /// # Errors
    /// [`DeviceError`] when the length is zero or no multiple of the granule, or the refusal of the kernel.
    pub fn new(len_bytes: u64, align_bytes: u64) -> Result<Emulated, DeviceError> {
        let name = format!("emulated:{}", ExactBytes(len_bytes));
        check_len(&name, len_bytes, align_bytes)?;
        let refused = |source| DeviceError::Sys { device: name.clone(), source };
        let memfd = open_memfd(len_bytes).and_then(Descriptor::new).map_err(refused)?;
        let has_stale_bytes = AtomicBool::new(false);
        Ok(Emulated {
            name,
            len_bytes,
            align_bytes,
            memfd,
            is_strict: mm::counts_what_is_unused(),
            has_stale_bytes,
        })
    }

    fn file(&self) -> Result<Lent<'_>, SysError> {
        self.memfd.get(|| open_memfd(self.len_bytes))
    }

    /// Returns the descriptor, by which a test cuts the device short.
    #[cfg(test)]
    pub(crate) fn descriptor(&self) -> std::os::fd::RawFd {
        use std::os::fd::{AsFd, AsRawFd};
        self.file().expect("open").as_fd().as_raw_fd()
    }

    fn refused(&self, source: SysError) -> DeviceError {
        match source.errno {
            libc::EBADF => DeviceError::DescriptorLost { device: self.name.clone() },
            _ => DeviceError::Sys { device: self.name.clone(), source },
        }
    }
}

fn open_memfd(len_bytes: u64) -> Result<OwnedFd, SysError> {
    file::memfd(c"daxtier", len_bytes)
}

impl Device for Emulated {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Emulated
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
        None
    }

    fn claim(&self, range: Range<u64>) -> Result<Claim, DeviceError> {
        check_range(&self.name, &range, self.len_bytes, self.align_bytes)?;
        // Relaxed: the releasing thread hands the range over through the claimant's own synchronisation.
        Ok(Claim { is_zero: !self.has_stale_bytes.load(Ordering::Relaxed) })
    }

    /// Gives the memory of the range back to the kernel.
    fn release(&self, range: Range<u64>) {
        if !self.discard(range) {
            // Relaxed: as in `claim`.
            self.has_stale_bytes.store(true, Ordering::Relaxed);
        }
    }

    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        check_span(&self.name, offset, len_bytes, self.len_bytes, self.align_bytes)?;
        let node = self.file().map_err(|source| self.refused(source))?;
        // A slot. Whole extents of folios stay sparse: most of their pages may never be used.
        if self.is_strict && len_bytes as u64 <= HUGE_BYTES {
            file::allocate(node.as_fd(), offset, len_bytes as u64).map_err(|source| self.refused(source))?;
        }
        // SAFETY: the caller owns the address range, and nobody uses what is mapped there.
        unsafe { mm::map_shared(addr, len_bytes, node.as_fd(), offset) }
            .map_err(|source| self.refused(source))?;
        if self.align_bytes >= HUGE_BYTES {
            // A kernel without huge pages refuses the advice; small pages do the same work.
            // SAFETY: the range was just mapped for this caller, and the advice drops no data.
            let _ = unsafe { mm::advise(addr, len_bytes, libc::MADV_HUGEPAGE) };
        }
        // The range is a mapping of its own here (its neighbours have the flag already), so the advice splits
        // nothing and does not fail for want of mappings.
        // SAFETY: the range was just mapped for this caller, and the advice drops no data.
        unsafe { mm::advise(addr, len_bytes, libc::MADV_DONTFORK) }.map_err(|source| self.refused(source))
    }

    fn discard(&self, range: Range<u64>) -> bool {
        if check_range(&self.name, &range, self.len_bytes, self.align_bytes).is_err() {
            return false;
        }
        if !self.memfd.is_open() {
            // A forked child without a memfd yet: every byte is zero.
            return true;
        }
        self.file().is_ok_and(|node| file::punch_hole(node, range.start, range.end - range.start).is_ok())
    }

    /// Lets go of the parent's memfd. The child's own appears at its first mapping.
    fn after_fork_in_child(&self) -> AfterFork {
        self.memfd.close();
        // Relaxed: the child has one thread.
        self.has_stale_bytes.store(false, Ordering::Relaxed);
        AfterFork::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mm::Reservation;
    use crate::sys::testing::{ChildEnd, in_child};
    use std::time::{Duration, Instant};

    const HUGE: usize = HUGE_BYTES as usize;

    fn mapped(device: &Emulated, offset: u64) -> Reservation {
        let space = Reservation::new(HUGE, HUGE).unwrap();
        // SAFETY: the reservation is this test's own.
        unsafe { device.map_at(space.base(), offset, HUGE) }.unwrap();
        space
    }

    #[test]
    fn a_strict_kernel_is_asked_for_a_slots_memory_when_it_is_mapped() {
        use std::os::unix::fs::MetadataExt;
        let used = |is_strict| {
            let mut device = Emulated::new(2 * HUGE_BYTES, HUGE_BYTES).unwrap();
            device.is_strict = is_strict;
            let _space = mapped(&device, HUGE_BYTES);
            let memfd = format!("/proc/self/fd/{}", device.descriptor());
            std::fs::metadata(memfd).expect("the memfd is open").blocks() * 512
        };
        assert_eq!([used(false), used(true)], [0, HUGE_BYTES]);
    }

    fn read(space: &Reservation) -> u8 {
        // SAFETY: the tests map the first byte of each reservation.
        unsafe { space.base().as_ptr().read_volatile() }
    }

    fn write(space: &Reservation, value: u8) {
        // SAFETY: as in `read`.
        unsafe { space.base().as_ptr().write_volatile(value) }
    }

    #[test]
    fn names_read_as_people_write_sizes() {
        for (len, name) in
            [(2 << 30, "emulated:2G"), (512 << 20, "emulated:512M"), (3 << 29, "emulated:1536M")]
        {
            assert_eq!(Emulated::new(len, HUGE_BYTES).unwrap().name(), name);
        }
    }

    #[test]
    fn a_terabyte_binds_at_once() {
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            drop(Emulated::new(1 << 40, HUGE_BYTES).unwrap());
            fastest = fastest.min(start.elapsed());
        }
        assert!(fastest < Duration::from_millis(1), "{fastest:?}");
        let device = Emulated::new(1 << 40, HUGE_BYTES).unwrap();
        let space = mapped(&device, (1 << 40) - HUGE_BYTES);
        write(&space, 1);
    }

    #[test]
    fn bytes_stay_when_the_mapping_goes_and_vanish_with_the_claim() {
        let device = Emulated::new(4 * HUGE_BYTES, HUGE_BYTES).unwrap();
        assert_eq!(device.claim(0..HUGE_BYTES), Ok(Claim { is_zero: true }));
        write(&mapped(&device, 0), 5);
        let again = mapped(&device, 0);
        assert_eq!(read(&again), 5);
        assert_eq!(read(&mapped(&device, HUGE_BYTES)), 0);
        drop(again);
        device.release(0..HUGE_BYTES);
        assert_eq!(device.claim(0..HUGE_BYTES), Ok(Claim { is_zero: true }));
        assert_eq!(read(&mapped(&device, 0)), 0);
    }

    #[test]
    fn discarded_ranges_read_as_zero_under_their_mapping() {
        let device = Emulated::new(2 * HUGE_BYTES, HUGE_BYTES).unwrap();
        let (first, second) = (mapped(&device, 0), mapped(&device, HUGE_BYTES));
        write(&first, 1);
        write(&second, 2);
        assert!(device.discard(0..HUGE_BYTES));
        assert_eq!((read(&first), read(&second)), (0, 2));
        assert!(!device.discard(0..4096), "half a granule is not the device's to discard");
        assert!(!device.discard(0..4 * HUGE_BYTES));
    }

    #[test]
    fn a_forked_child_faults_on_the_parents_mapping() {
        let device = Emulated::new(HUGE_BYTES, HUGE_BYTES).unwrap();
        let space = mapped(&device, 0);
        write(&space, 9);
        let end = in_child(|| i32::from(read(&space)));
        assert_eq!(end, ChildEnd::Killed(libc::SIGSEGV));
    }

    #[test]
    fn a_forked_child_has_an_empty_device_of_its_own() {
        let device = Emulated::new(2 * HUGE_BYTES, HUGE_BYTES).unwrap();
        let space = mapped(&device, 0);
        write(&space, 9);
        let number = device.memfd.number();
        let end = in_child(|| {
            if device.after_fork_in_child() != AfterFork::Fresh || device.memfd.is_open() {
                return 1;
            }
            // SAFETY: the reservation is the child's copy, and nothing of it is mapped (DONTFORK).
            if unsafe { device.map_at(space.base(), 0, HUGE) }.is_err() || read(&space) != 0 {
                return 2;
            }
            write(&space, 3);
            0
        });
        assert_eq!(end, ChildEnd::Exited(0));
        assert_eq!(read(&space), 9, "the child wrote into the parent's device");
        assert_eq!(device.memfd.number(), number);
    }

    #[test]
    fn a_descriptor_that_the_program_took_over_is_never_mapped_or_closed() {
        let device = Emulated::new(HUGE_BYTES, HUGE_BYTES).unwrap();
        let space = Reservation::new(HUGE, HUGE).unwrap();
        let number = device.memfd.number().unwrap();
        let other = file::memfd(c"program", HUGE_BYTES).unwrap();
        let end = in_child(|| {
            // SAFETY: dup2 takes plain numbers; it replaces the device's descriptor, as a careless program may.
            unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&other), number) };
            // SAFETY: the reservation is this test's own.
            let refused = unsafe { device.map_at(space.base(), 0, HUGE) };
            if !matches!(refused, Err(DeviceError::DescriptorLost { .. })) {
                return 1;
            }
            device.after_fork_in_child();
            i32::from(file::stat(number).is_err()) * 2
        });
        assert_eq!(end, ChildEnd::Exited(0));
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        assert!(matches!(Emulated::new(0, HUGE_BYTES), Err(DeviceError::Empty { .. })));
        assert!(matches!(Emulated::new(HUGE_BYTES + 4096, HUGE_BYTES), Err(DeviceError::NotAligned { .. })));
        assert!(matches!(Emulated::new(HUGE_BYTES, 3 << 20), Err(DeviceError::BadAlign { .. })));
        let device = Emulated::new(HUGE_BYTES, HUGE_BYTES).unwrap();
        let space = Reservation::new(HUGE, HUGE).unwrap();
        // SAFETY: the reservation is this test's own.
        let mapped = unsafe { device.map_at(space.base(), HUGE_BYTES, HUGE) };
        assert!(matches!(mapped, Err(DeviceError::BeyondEnd { .. })));
        assert!(matches!(device.claim(0..4096), Err(DeviceError::NotAligned { .. })));
    }
}
