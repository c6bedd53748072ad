//! A device for tests: a memfd whose claims, zeroes and refusals the test decides.

use crate::device::{AfterFork, Claim, Device, DeviceError, DeviceKind};
use crate::error::SysError;
use crate::pgmap::{Pgmap, PgmapOptions};
use crate::sys::{file, mm};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A device of `kind` over a memfd (or anonymous memory, for private kinds).
#[derive(Debug)]
pub(crate) struct TestDevice {
    pub(crate) kind: DeviceKind,
    pub(crate) len_bytes: u64,
    pub(crate) align_bytes: u64,
    /// Whether claims promise zeroes.
    pub(crate) is_zero: bool,
    /// Whether bytes that are discarded read as zero.
    can_discard: bool,
    pub(crate) after_fork: AfterFork,
    fd: Arc<OwnedFd>,
    /// Which of the processes that have the device this one is.
    owner: usize,
    claims: Arc<Claims>,
    pub(crate) maps: AtomicUsize,
}

/// What is claimed of a device, and whose it is.
type Claims = Mutex<Vec<(usize, Range<u64>)>>;

/// A process that a test speaks for.
const ANOTHER: usize = usize::MAX;

impl TestDevice {
    pub(crate) fn new(len_bytes: u64) -> TestDevice {
        let fd = file::memfd(c"daxtier-test", len_bytes).expect("a sparse memfd");
        TestDevice {
            kind: DeviceKind::Emulated,
            len_bytes,
            align_bytes: 2 << 20,
            is_zero: true,
            can_discard: true,
            after_fork: AfterFork::Fresh,
            fd: Arc::new(fd),
            owner: 0,
            claims: Arc::default(),
            maps: AtomicUsize::new(0),
        }
    }

    /// A device that processes share, as a dax device: its bytes stay, and its claims promise nothing.
    pub(crate) fn shared(len_bytes: u64) -> TestDevice {
        TestDevice { kind: DeviceKind::Dax, ..TestDevice::new(len_bytes) }.seen_by(0, Arc::default())
    }

    /// The same device as another process has it, which can't claim what this one has.
    pub(crate) fn in_process(&self, owner: usize) -> TestDevice {
        self.seen_by(owner, self.claims.clone())
    }

    /// The same memory in a process that sees nobody's claims: the others were killed.
    pub(crate) fn left_behind(&self) -> TestDevice {
        self.seen_by(0, Arc::default())
    }

    fn seen_by(&self, owner: usize, claims: Arc<Claims>) -> TestDevice {
        TestDevice {
            kind: DeviceKind::Dax,
            is_zero: false,
            can_discard: false,
            after_fork: AfterFork::Foreign,
            fd: self.fd.clone(),
            owner,
            claims,
            maps: AtomicUsize::new(0),
            ..*self
        }
    }

    /// Ranges that this process holds.
    pub(crate) fn claimed(&self) -> Vec<Range<u64>> {
        let claims = self.claims.lock().unwrap();
        claims.iter().filter(|(owner, _)| *owner == self.owner).map(|(_, range)| range.clone()).collect()
    }

    pub(crate) fn claims(&self) -> usize {
        self.claimed().len()
    }

    pub(crate) fn hold_elsewhere(&self, range: Range<u64>) {
        self.claims.lock().unwrap().push((ANOTHER, range));
    }

    pub(crate) fn let_go_elsewhere(&self) {
        self.claims.lock().unwrap().retain(|(owner, _)| *owner != ANOTHER);
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Device for TestDevice {
    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn name(&self) -> &str {
        "test"
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
        assert!([range.start, range.end].iter().all(|at| at.is_multiple_of(self.align_bytes)));
        assert!(range.end <= self.len_bytes && !range.is_empty());
        let mut claims = self.claims.lock().unwrap();
        if let Some((owner, _)) = claims.iter().find(|(_, held)| overlaps(held, &range)) {
            assert_ne!(*owner, self.owner, "claimed twice");
            return Err(DeviceError::Claimed {
                device: "test".into(),
                start: range.start,
                end: range.end,
                holder: "another process".into(),
            });
        }
        claims.push((self.owner, range));
        Ok(Claim { is_zero: self.is_zero })
    }

    fn release(&self, range: Range<u64>) {
        let mut claims = self.claims.lock().unwrap();
        let index = claims.iter().position(|claim| *claim == (self.owner, range.clone()));
        claims.remove(index.expect("released as it was claimed"));
    }

    unsafe fn map_at(&self, addr: NonNull<u8>, offset: u64, len_bytes: usize) -> Result<(), DeviceError> {
        assert!([addr.as_ptr().addr() as u64, offset].iter().all(|at| at.is_multiple_of(self.align_bytes)));
        self.maps.fetch_add(1, Ordering::Relaxed);
        let wrap = |source: SysError| DeviceError::Sys { device: "test".into(), source };
        if self.kind == DeviceKind::Dram {
            // SAFETY: the caller owns the range.
            unsafe { mm::map_anonymous(addr, len_bytes) }.map_err(wrap)
        } else {
            // SAFETY: the caller owns the range.
            unsafe { mm::map_shared(addr, len_bytes, self.fd.as_fd(), offset) }.map_err(wrap)
        }
    }

    fn discard(&self, range: Range<u64>) -> bool {
        self.can_discard && file::punch_hole(self.fd.as_fd(), range.start, range.end - range.start).is_ok()
    }

    fn after_fork_in_child(&self) -> AfterFork {
        self.after_fork
    }
}

/// Binds a sparse emulated device of `len_bytes` with default options.
pub(crate) fn bind(len_bytes: u64) -> Pgmap {
    bind_with(TestDevice::new(len_bytes), PgmapOptions::default()).0
}

pub(crate) fn bind_with(device: TestDevice, options: PgmapOptions) -> (Pgmap, Arc<TestDevice>) {
    let device = Arc::new(device);
    (Pgmap::bind(device.clone(), options).expect("binds"), device)
}

pub(crate) fn order(order: u8) -> crate::units::Order {
    crate::units::Order::new(order).expect("a valid order")
}

/// Checks the allocator's counters and that it agrees with the folios that live.
pub(crate) fn validate(pgmap: &Pgmap) {
    let body = pgmap.body();
    let Some(allocator) = &body.allocator else { return };
    allocator.validate().expect("consistent");
    let mut live_pages = 0;
    for info in pgmap.live_folios() {
        assert_eq!(allocator.order_at(info.offset), Some(info.order), "{info:?}");
        live_pages += info.order.nr_pages();
    }
    let stats = pgmap.stats();
    assert_eq!(stats.used_bytes, live_pages * 4096);
    assert_eq!((stats.claimed_bytes - stats.prezeroed_bytes) / 4096 - allocator.free_pages(), live_pages);
}

/// Runs `f` in a forked child that has one thread, and reports its panic as ours. The fork handlers run around
/// the fork when `with_handlers`.
pub(crate) fn in_child(with_handlers: bool, f: impl FnOnce()) {
    use crate::pgmap::fork;
    // One fork at a time: other tests of this process hold locks of their own pgmaps only for moments, but must not
    // find two threads in the handlers.
    static FORKING: Mutex<()> = Mutex::new(());
    let forking = FORKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if with_handlers {
        fork::before_fork();
    }
    // SAFETY: the child only runs `f` and leaves; glibc keeps malloc usable in it.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        if with_handlers {
            fork::after_fork_in_child();
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        let code = match outcome {
            Ok(()) => 0,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
                let text = format!("in the child: {text}\n");
                // SAFETY: the text is valid for its length.
                unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
                1
            }
        };
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    if with_handlers {
        fork::after_fork_in_parent();
    }
    drop(forking);
    let mut status = 0;
    // SAFETY: `status` is valid, the child is ours.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0, "the child failed");
}

/// Returns the resident memory of this process.
pub(crate) fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Returns the number of mappings of this process.
pub(crate) fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("proc").lines().count()
}
