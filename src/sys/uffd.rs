//! userfaultfd: blocking accesses to a range of memory until we let them go on.
//!
//! A [`Uffd`] is one descriptor with its features agreed on. Ranges are registered with it; accesses to missing
//! pages (or writes to protected ones) of a registered range then wait, those from system calls included, until
//! the page is there or [`wake`](Uffd::wake) is called. Nothing here allocates. `abi` has the kernel's structures and numbers.
//!
//! A descriptor that serves only faults of user mode is never opened: a system call into a blocked page would fail
//! with EFAULT there.

mod abi;

use super::descriptors::{self, Own};
use super::file::move_high;
use crate::error::SysError;
use abi::{
    UFFD_API, UFFDIO_API, UFFDIO_COPY, UFFDIO_MOVE, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT, USERFAULTFD_IOC_NEW, UffdMsg, UffdioApi, UffdioCopy, UffdioMove, UffdioRange,
    UffdioRegister, UffdioWriteprotect, address,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

/// What a descriptor can be asked to do, as bits of `struct uffdio_api`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(u64);

impl Features {
    /// Nothing beyond the oldest interface.
    #[cfg(test)]
    pub(crate) const NONE: Features = Features(0);
    /// Faults on write-protected pages are told apart.
    pub(crate) const PAGEFAULT_FLAG_WP: Features = Features(1 << 0);
    /// mremap of a registered range waits until its event was read.
    pub(crate) const EVENT_REMAP: Features = Features(1 << 2);
    /// Pages that do not exist yet can be write-protected (Linux 6.4).
    pub(crate) const WP_UNPOPULATED: Features = Features(1 << 13);
    /// UFFDIO_MOVE (Linux 6.8).
    pub(crate) const MOVE: Features = Features(1 << 16);

    /// Returns the features of both.
    pub(crate) const fn and(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Returns the features that both have.
    pub(crate) const fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// Whether every feature of `other` is here too.
    pub(crate) const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which accesses to a registered range wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those to pages that are not there.
    Missing = 1,
    /// Writes to protected pages.
    WriteProtect = 2,
}

/// What [`Uffd::move_pages`] does beyond moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveMode {
    /// The source must have every page; threads that wait at the destination go on.
    Whole = 0,
    /// The source may have holes, which are passed over; waiting threads go on.
    WithHoles = 2,
    /// As `WithHoles`, and nobody is woken.
    WithHolesQuietly = 3,
}

/// What happened to a registered range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits at this address.
    Fault {
        /// The page's address.
        addr: usize,
        /// Whether it wants to write.
        is_write: bool,
        /// Whether it waits for a protected page, not for a missing one.
        is_protected: bool,
    },
    /// A registered mapping was moved.
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// Its length.
        len_bytes: usize,
    },
    /// Another event of the kernel's, by its number.
    Other(u8),
}

/// A userfaultfd, non-blocking, close-on-exec and numbered high.
#[derive(Debug)]
pub(crate) struct Uffd {
    own: Own,
}

impl Uffd {
    /// Opens a descriptor with exactly `features`.
    ///
    /// # Errors
    /// `EPERM` when neither a capability, nor the sysctl, nor `/dev/userfaultfd` permits it, `EINVAL` when the kernel
    /// lacks a feature, `ENOSYS` when it has no userfaultfd.
    pub(crate) fn open(features: Features) -> Result<Uffd, SysError> {
        let fd = new_descriptor()?;
        let mut api = UffdioApi { api: UFFD_API, features: features.0, ioctls: 0 };
        call(fd.as_raw_fd(), UFFDIO_API, &raw mut api, "ioctl(UFFDIO_API)")?;
        Ok(Uffd { own: descriptors::enter(move_high(fd))? })
    }

    /// Returns the features that the kernel has.
    ///
    /// # Errors
    /// As for [`open`](Uffd::open).
    pub(crate) fn supported() -> Result<Features, SysError> {
        let fd = new_descriptor()?;
        let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
        call(fd.as_raw_fd(), UFFDIO_API, &raw mut api, "ioctl(UFFDIO_API)")?;
        Ok(Features(api.features))
    }

    /// Returns the descriptor.
    pub(crate) fn descriptor(&self) -> Own {
        self.own
    }

    /// Registers a range: accesses of the mode wait from now on.
    ///
    /// # Safety
    /// The range is mapped and the caller's, who lets every thread that will wait go on.
    ///
    /// # Errors
    /// `EINVAL` for a kind of memory that can't be registered (device-dax), `EBUSY` for one that is registered
    /// elsewhere, `ENOMEM` at the limit of mappings.
    pub(crate) unsafe fn register(
        &self,
        addr: NonNull<u8>,
        len_bytes: usize,
        mode: Mode,
    ) -> Result<(), SysError> {
        let mut register =
            UffdioRegister { range: UffdioRange::new(addr, len_bytes), mode: mode as u64, ioctls: 0 };
        call(self.own.number(), UFFDIO_REGISTER, &raw mut register, "ioctl(UFFDIO_REGISTER)")
    }

    /// Ends the registration of a range. Does not reliably let a thread go on that is about to wait:
    /// [`wake`](Uffd::wake) the range afterwards.
    ///
    /// # Errors
    /// The refusal of the kernel.
    pub(crate) fn unregister(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        let mut range = UffdioRange::new(addr, len_bytes);
        call(self.own.number(), UFFDIO_UNREGISTER, &raw mut range, "ioctl(UFFDIO_UNREGISTER)")
    }

    /// Lets every thread go on that waits in a range. Threads look again at what is mapped there.
    ///
    /// # Errors
    /// The refusal of the kernel.
    pub(crate) fn wake(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        let mut range = UffdioRange::new(addr, len_bytes);
        call(self.own.number(), UFFDIO_WAKE, &raw mut range, "ioctl(UFFDIO_WAKE)")
    }

    /// Protects a registered range from writes. When the call returns, no processor writes there any more.
    ///
    /// # Errors
    /// `ENOENT` when the range is not registered for write protection any more.
    pub(crate) fn write_protect(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        self.set_protection(addr, len_bytes, 1)
    }

    /// Ends the protection of a range and lets threads go on that wait in it.
    ///
    /// # Errors
    /// As for [`write_protect`](Uffd::write_protect).
    pub(crate) fn write_unprotect(&self, addr: NonNull<u8>, len_bytes: usize) -> Result<(), SysError> {
        self.set_protection(addr, len_bytes, 0)
    }

    fn set_protection(&self, addr: NonNull<u8>, len_bytes: usize, mode: u64) -> Result<(), SysError> {
        let mut protect = UffdioWriteprotect { range: UffdioRange::new(addr, len_bytes), mode };
        call(self.own.number(), UFFDIO_WRITEPROTECT, &raw mut protect, "ioctl(UFFDIO_WRITEPROTECT)")
    }

    /// Fills the missing pages of `[dst, dst + len_bytes)` with a copy of what is at `src` and lets waiting threads go
    /// on.
    ///
    /// # Safety
    /// `dst` is registered with this descriptor and the caller's; `src` is readable for `len_bytes`.
    ///
    /// # Errors
    /// `EEXIST` when a page is there already, `ENOMEM`; pages before it are filled then.
    pub(crate) unsafe fn copy(
        &self,
        dst: NonNull<u8>,
        src: NonNull<u8>,
        len_bytes: usize,
    ) -> Result<(), SysError> {
        in_steps(len_bytes, |done| {
            let mut copy = UffdioCopy {
                dst: address(dst) + done as u64,
                src: address(src) + done as u64,
                len: (len_bytes - done) as u64,
                mode: 0,
                copied: 0,
            };
            (try_call(self.own.number(), UFFDIO_COPY, &raw mut copy, "ioctl(UFFDIO_COPY)"), copy.copied)
        })
        .map_err(|stopped| stopped.refusal)
    }

    /// Moves the pages of `[src, src + len_bytes)` to the missing pages of `[dst, dst + len_bytes)` without copying
    /// them. When the call returns, no processor uses them at `src` any more. A huge page that is aligned at both ends
    /// is moved whole.
    ///
    /// # Safety
    /// `dst` is registered with this descriptor; both ranges are private anonymous memory of the caller's, who accounts
    /// for those that use either address.
    ///
    /// # Errors
    /// [`MoveStopped`] says how much was moved before the refusal: `EBUSY` when a page is pinned or shared with a
    /// forked child, `EEXIST` when a page is at the destination, `ENOENT` at a hole, `EINVAL` when the mappings do not
    /// match (locked, protected).
    pub(crate) unsafe fn move_pages(
        &self,
        dst: NonNull<u8>,
        src: NonNull<u8>,
        len_bytes: usize,
        mode: MoveMode,
    ) -> Result<(), MoveStopped> {
        in_steps(len_bytes, |done| {
            let mut moving = UffdioMove {
                dst: address(dst) + done as u64,
                src: address(src) + done as u64,
                len: (len_bytes - done) as u64,
                mode: mode as u64,
                moved: 0,
            };
            (try_call(self.own.number(), UFFDIO_MOVE, &raw mut moving, "ioctl(UFFDIO_MOVE)"), moving.moved)
        })
    }

    /// Returns the next event, or `None` when there is none now.
    ///
    /// # Errors
    /// The refusal of read: `EBADF` when the program closed the descriptor.
    pub(crate) fn read_event(&self) -> Result<Option<Event>, SysError> {
        let mut message = UffdMsg { event: 0, reserved: [0; 7], words: [0; 3] };
        loop {
            // SAFETY: the kernel writes one message of 32 bytes at most, which outlives the call.
            let nr =
                unsafe { libc::read(self.own.number(), (&raw mut message).cast(), size_of::<UffdMsg>()) };
            if nr == size_of::<UffdMsg>() as isize {
                return Ok(Some(message.event()));
            }
            if nr >= 0 {
                return Err(SysError { call: "read(userfaultfd)", errno: libc::EIO });
            }
            let error = SysError::last("read(userfaultfd)");
            match error.errno {
                libc::EAGAIN => return Ok(None),
                libc::EINTR => {}
                _ => return Err(error),
            }
        }
    }

    /// Sleeps until there is an event or the time is up.
    ///
    /// # Errors
    /// The refusal of poll; a signal ends the sleep without one.
    pub(crate) fn wait_event(&self, timeout: Duration) -> Result<(), SysError> {
        let mut wanted = libc::pollfd { fd: self.own.number(), events: libc::POLLIN, revents: 0 };
        let timeout_ms = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: poll reads and writes one pollfd, which outlives the call.
        let rc = unsafe { libc::poll(&raw mut wanted, 1, timeout_ms) };
        if rc < 0 {
            let error = SysError::last("poll");
            return if error.errno == libc::EINTR { Ok(()) } else { Err(error) };
        }
        if wanted.revents & (libc::POLLNVAL | libc::POLLERR) != 0 {
            return Err(SysError { call: "poll", errno: libc::EBADF });
        }
        Ok(())
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        self.own.close();
    }
}

/// A move of pages that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MoveStopped {
    /// What is at the destination now.
    pub(crate) moved_bytes: usize,
    /// Why it went no further.
    pub(crate) refusal: SysError,
}

/// Repeats a call that may do a part of its work, until all of it is done. The kernel interrupts itself with EAGAIN
/// while the address space changes.
fn in_steps(
    len_bytes: usize,
    mut step: impl FnMut(usize) -> (Result<(), SysError>, i64),
) -> Result<(), MoveStopped> {
    let mut done = 0;
    while done < len_bytes {
        let (outcome, progress) = step(done);
        // On failure the field is the negative errno when nothing was done.
        done += usize::try_from(progress).unwrap_or(0);
        match outcome {
            Ok(()) => return Ok(()),
            Err(SysError { errno: libc::EAGAIN | libc::EINTR, .. }) => give_way(),
            Err(refusal) => return Err(MoveStopped { moved_bytes: done, refusal }),
        }
    }
    Ok(())
}

/// Lets others run: the kernel interrupts itself while an event waits to be read, and its reader may want this processor.
fn give_way() {
    // SAFETY: takes no argument.
    unsafe { libc::sched_yield() };
}

/// Makes a call that is repeated whole while the kernel interrupts it.
fn call<T>(fd: RawFd, request: libc::c_ulong, arg: *mut T, name: &'static str) -> Result<(), SysError> {
    loop {
        match try_call(fd, request, arg, name) {
            Err(SysError { errno: libc::EAGAIN | libc::EINTR, .. }) => give_way(),
            outcome => return outcome,
        }
    }
}

/// `arg` points to the structure that `request` takes; every caller passes its own, on its stack.
fn try_call<T>(fd: RawFd, request: libc::c_ulong, arg: *mut T, name: &'static str) -> Result<(), SysError> {
    // SAFETY: the request's structure is `T`, which outlives the call; the ranges inside are argued by the callers.
    let rc = unsafe { libc::ioctl(fd, request as libc::Ioctl, arg) };
    if rc == 0 { Ok(()) } else { Err(SysError::last(name)) }
}

/// Opens a descriptor that serves faults of system calls too: by the system call, which needs a capability or the
/// sysctl, or by the device node, which needs its permissions.
fn new_descriptor() -> Result<OwnedFd, SysError> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the system call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd >= 0 {
        // SAFETY: the kernel just made this descriptor; nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    }
    let refusal = SysError::last("userfaultfd");
    // SAFETY: the path is NUL-terminated.
    let node = unsafe { libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if node < 0 {
        return Err(refusal);
    }
    // SAFETY: open just returned this descriptor; nobody else owns it.
    let node = unsafe { OwnedFd::from_raw_fd(node) };
    // SAFETY: the request takes flags in place of a pointer.
    let fd = unsafe { libc::ioctl(node.as_raw_fd(), USERFAULTFD_IOC_NEW as libc::Ioctl, flags) };
    if fd < 0 {
        return Err(SysError::last("ioctl(USERFAULTFD_IOC_NEW)"));
    }
    // SAFETY: the kernel just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::sys::mm::{self, Reservation};
    use std::sync::atomic::{AtomicU64, Ordering};

    const HUGE: usize = 2 << 20;
    const PAGE: usize = 4096;

    /// Opens a descriptor, or prints why there is none.
    fn open(features: Features) -> Option<Uffd> {
        // Beside other tests, one that moves the library's descriptors may move this one in the middle of a call.
        // In a harness without threads of its own a test is called "main", and is alone.
        let test = std::thread::current().name().map(str::to_owned).filter(|test| test != "main");
        if test.is_some_and(|test| crate::sys::testing::runs_in_own_process(&test)) {
            return None;
        }
        match Uffd::open(features) {
            Ok(uffd) => Some(uffd),
            Err(refusal) => {
                eprintln!("skipped: {refusal}");
                None
            }
        }
    }

    fn anonymous() -> Reservation {
        let range = Reservation::new(HUGE, HUGE).unwrap();
        // SAFETY: the reservation is this test's own.
        unsafe { mm::map_anonymous(range.base(), HUGE) }.unwrap();
        range
    }

    fn word(range: &Reservation, page: usize) -> &AtomicU64 {
        // SAFETY: the page lies in the range.
        let at = unsafe { range.base().as_ptr().add(page * PAGE) };
        // SAFETY: the tests map every range that they pass, and it outlives the borrow.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Waits for an event of the descriptor.
    fn next(uffd: &Uffd) -> Event {
        for _ in 0..1000 {
            uffd.wait_event(Duration::from_millis(10)).unwrap();
            if let Some(event) = uffd.read_event().unwrap() {
                return event;
            }
        }
        panic!("no event in ten seconds");
    }

    #[test]
    fn a_thread_waits_at_a_missing_page_until_a_copy_is_there() {
        let Some(uffd) = open(Features::NONE) else { return };
        let (range, from) = (anonymous(), anonymous());
        word(&from, 0).store(7, Ordering::Relaxed);
        // SAFETY: the range is this test's own, and the copy below lets its thread go on.
        unsafe { uffd.register(range.base(), HUGE, Mode::Missing) }.unwrap();
        let seen = std::thread::scope(|scope| {
            let reader = scope.spawn(|| word(&range, 0).load(Ordering::Relaxed));
            let event = next(&uffd);
            let addr = range.base().as_ptr().addr();
            assert_eq!(event, Event::Fault { addr, is_write: false, is_protected: false });
            // SAFETY: both ranges are this test's own.
            unsafe { uffd.copy(range.base(), from.base(), PAGE) }.unwrap();
            reader.join().unwrap()
        });
        assert_eq!(seen, 7);
    }

    #[test]
    fn a_write_waits_at_a_protected_page_and_a_read_does_not() {
        let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else { return };
        let range = anonymous();
        word(&range, 0).store(1, Ordering::Relaxed);
        // SAFETY: the range is this test's own, and the protection is ended below.
        unsafe { uffd.register(range.base(), HUGE, Mode::WriteProtect) }.unwrap();
        uffd.write_protect(range.base(), HUGE).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| word(&range, 0).store(2, Ordering::Relaxed));
            assert!(matches!(next(&uffd), Event::Fault { is_write: true, is_protected: true, .. }));
            assert_eq!(word(&range, 0).load(Ordering::Relaxed), 1);
            uffd.write_unprotect(range.base(), HUGE).unwrap();
        });
        assert_eq!(word(&range, 0).load(Ordering::Relaxed), 2);
    }

    #[test]
    fn pages_are_moved_and_what_stops_a_move_is_told() {
        let Some(uffd) = open(Features::MOVE) else { return };
        let (range, from) = (anonymous(), anonymous());
        word(&from, 0).store(7, Ordering::Relaxed);
        word(&from, 3).store(8, Ordering::Relaxed);
        // SAFETY: the range is this test's own; no other thread uses it.
        unsafe { uffd.register(range.base(), HUGE, Mode::Missing) }.unwrap();
        // SAFETY: both ranges are this test's own.
        unsafe { uffd.move_pages(range.base(), from.base(), HUGE, MoveMode::WithHoles) }.unwrap();
        assert_eq!(word(&from, 0).load(Ordering::Relaxed), 0, "the page is gone from where it was");
        assert_eq!(word(&range, 0).load(Ordering::Relaxed), 7);
        assert_eq!(word(&range, 3).load(Ordering::Relaxed), 8);
        // SAFETY: as above.
        let stopped = unsafe { uffd.move_pages(range.base(), from.base(), PAGE, MoveMode::Whole) };
        assert_eq!(stopped.map_err(|stopped| stopped.refusal.errno), Err(libc::EEXIST));
    }

    #[test]
    fn a_moved_mapping_is_told() {
        let Some(uffd) = open(Features::EVENT_REMAP) else { return };
        let (range, to) = (anonymous(), Reservation::new(HUGE, HUGE).unwrap());
        // SAFETY: the range is this test's own; no other thread uses it.
        unsafe { uffd.register(range.base(), HUGE, Mode::Missing) }.unwrap();
        let event = std::thread::scope(|scope| {
            let reader = scope.spawn(|| next(&uffd));
            // SAFETY: both ranges are this test's own.
            unsafe { mm::move_mapping(range.base(), HUGE, to.base()) }.unwrap();
            reader.join().unwrap()
        });
        let (from, to) = (range.base().as_ptr().addr(), to.base().as_ptr().addr());
        assert_eq!(event, Event::Remap { from, to, len_bytes: HUGE });
    }

    #[test]
    fn a_kernel_without_a_feature_refuses_it() {
        let Some(_) = open(Features::NONE) else { return };
        assert_eq!(Uffd::open(Features(1 << 63)).map_err(|error| error.errno).err(), Some(libc::EINVAL));
        assert!(Uffd::supported().unwrap().has(Features::PAGEFAULT_FLAG_WP));
    }
}
