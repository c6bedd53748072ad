//! The page that a pool publishes, and how another process reads it.
//!
//! A [`StatsPage`] is a memfd named `daxtier-stats`, mapped shared; the tiers' counters live inside it, so that
//! publishing costs nothing. [`stats_of_process`] finds the page of another process through `/proc/PID/fd`, or
//! through its mappings when the program closed our descriptor, and takes a copy. Uses `sys` and `counters`;
//! used by the pool and by `daxtier stat`.
//!
//! # Protocol
//! `magic` is stored last (Release), when the page is complete. Counters are independent words. The texts
//! (names, policy, last failure) change under `sequence`, odd while somebody writes: a writer goes from even to
//! odd with a compare-and-swap, a reader copies and tries again when it saw an odd or a changed number. A writer
//! that died half-way leaves it odd: readers give up waiting and take what there is, which is checked anyway.
//!
//! # Invariants
//! - I1: every byte pattern is a valid [`Page`]: it is made of atomic words only.
//! - I2: `magic`, `version`, `len_bytes` keep their places for all versions.
//! - I3: nothing read from a page is used as a length, an index or a pointer without a check.

use super::migration::MigrationStats;
use super::stats::{PoolStats, TierStats};
use crate::counters::{MigrationCounters, TierCounters};
use crate::error::SysError;
use crate::sys::descriptors::{self, Own};
use crate::sys::{page, peer};
use std::ffi::CStr;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// How many tiers a page has room for.
pub(crate) const MAX_TIERS: usize = 4;
const PAGE_BYTES: usize = size_of::<Page>();
const MAGIC: u64 = u64::from_le_bytes(*b"daxtier\x01");
const VERSION: u32 = 1;
const NAME: &CStr = c"daxtier-stats";
const LINK: &[u8] = b"/memfd:daxtier-stats";

const _: () = assert!(PAGE_BYTES == 8192, "the page is two pages of memory");
const _: () = assert!(offset_of!(Page, magic) == 0 && offset_of!(Page, version) == 8);
const _: () = assert!(offset_of!(Page, len_bytes) == 12);

/// What is published.
#[repr(C, align(4096))]
struct Page {
    /// [`MAGIC`] once everything else is in place; written by the owner, read by anybody.
    magic: AtomicU64,
    /// [`VERSION`].
    version: AtomicU32,
    /// The length of the whole.
    len_bytes: AtomicU32,
    /// The owner, as it sees itself.
    pid: AtomicU32,
    /// How many of `tiers` are in use.
    nr_tiers: AtomicU32,
    /// Odd while a text is being written; see the protocol above.
    sequence: AtomicU32,
    unused: AtomicU32,
    /// Allocations that no tier could serve.
    failures: AtomicU64,
    policy: Text<8>,
    last_failure: Text<32>,
    tiers: [TierPart; MAX_TIERS],
    /// What came of moving the pool's memory. A forked child begins anew.
    migration: MigrationCounters,
}

#[repr(C)]
struct TierPart {
    counters: TierCounters,
    name: Text<4>,
    kind: Text<4>,
    /// The devices' names, each ended by a newline.
    devices: Text<120>,
}

/// A text of at most `8 * WORDS` bytes, in words so that reading while it changes is no data race.
#[repr(C)]
struct Text<const WORDS: usize> {
    len_bytes: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Text<WORDS> {
    const CAPACITY: usize = 8 * WORDS;

    const fn new() -> Text<WORDS> {
        Text { len_bytes: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// Stores as much of `text` as fits, cut between characters. Only under the sequence.
    fn store(&self, text: &str) {
        let bytes = &text.as_bytes()[..boundary(text, Self::CAPACITY)];
        for (word, chunk) in self.words.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            // Relaxed, as all accesses to texts: the sequence orders them.
            word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
        }
        self.len_bytes.store(bytes.len() as u64, Ordering::Relaxed);
    }

    fn load(&self) -> String {
        let len = (self.len_bytes.load(Ordering::Relaxed) as usize).min(Self::CAPACITY);
        let words = self.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let bytes: Vec<u8> = words.take(len).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn copy_from(&self, other: &Text<WORDS>) {
        self.len_bytes.store(other.len_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        for (to, from) in self.words.iter().zip(&other.words) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Returns the largest length up to `at` that cuts `text` between characters.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&ix| text.is_char_boundary(ix)).unwrap_or(0)
}

impl Page {
    const fn new() -> Page {
        const fn tier() -> TierPart {
            TierPart {
                counters: TierCounters::new(),
                name: Text::new(),
                kind: Text::new(),
                devices: Text::new(),
            }
        }
        Page {
            magic: AtomicU64::new(0),
            version: AtomicU32::new(0),
            len_bytes: AtomicU32::new(0),
            pid: AtomicU32::new(0),
            nr_tiers: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
            unused: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            policy: Text::new(),
            last_failure: Text::new(),
            tiers: [const { tier() }; MAX_TIERS],
            migration: MigrationCounters::new(),
        }
    }

    /// Copies everything but `magic` and the sequence. Only while nobody writes to `self`.
    fn copy_from(&self, other: &Page) {
        let single = [
            (&self.version, &other.version),
            (&self.len_bytes, &other.len_bytes),
            (&self.pid, &other.pid),
            (&self.nr_tiers, &other.nr_tiers),
        ];
        for (to, from) in single {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.failures.store(other.failures.load(Ordering::Relaxed), Ordering::Relaxed);
        self.policy.copy_from(&other.policy);
        self.last_failure.copy_from(&other.last_failure);
        for (to, from) in self.tiers.iter().zip(&other.tiers) {
            to.counters.copy_from(&from.counters);
            to.name.copy_from(&from.name);
            to.kind.copy_from(&from.kind);
            to.devices.copy_from(&from.devices);
        }
        self.migration.copy_from(&other.migration);
    }

    /// Makes the page complete for readers.
    fn seal(&self, pid: u32) {
        self.version.store(VERSION, Ordering::Relaxed);
        self.len_bytes.store(PAGE_BYTES as u32, Ordering::Relaxed);
        self.pid.store(pid, Ordering::Relaxed);
        // Release: a reader that finds the magic (Acquire, or a copy by the kernel) finds the rest.
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// Tries to begin writing texts; the caller ends it with [`end_texts`](Page::end_texts).
    fn try_begin_texts(&self) -> bool {
        let sequence = self.sequence.load(Ordering::Relaxed);
        // Acquire on success pairs with the Release of `end_texts`: texts of the writer before are in place.
        let begun = sequence.is_multiple_of(2)
            && self
                .sequence
                .compare_exchange(sequence, sequence.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        // Release fence: a reader that sees one of the texts that follow also sees the odd number, once it
        // looks again behind its own Acquire fence.
        fence(Ordering::Release);
        begun
    }

    fn end_texts(&self) {
        // Release: whoever sees the even number sees the texts.
        self.sequence.fetch_add(1, Ordering::Release);
    }

    fn to_stats(&self) -> PoolStats {
        // Relaxed: figures, each for itself.
        let get = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let failures = get(&self.failures);
        let last_failure = self.last_failure.load();
        let nr_tiers = (self.nr_tiers.load(Ordering::Relaxed) as usize).min(MAX_TIERS);
        let tiers = self.tiers[..nr_tiers].iter().map(|tier| TierStats {
            name: tier.name.load(),
            kind: tier.kind.load(),
            devices: tier.devices.load().lines().map(str::to_owned).collect(),
            capacity_bytes: get(&tier.counters.capacity_bytes),
            used_bytes: get(&tier.counters.used_bytes),
            peak_bytes: get(&tier.counters.peak_bytes),
            metadata_bytes: get(&tier.counters.metadata_bytes),
            folios_by_order: std::array::from_fn(|order| get(&tier.counters.folios_by_order[order])),
            allocations: get(&tier.counters.allocations),
            failures: get(&tier.counters.failures),
        });
        PoolStats {
            pid: self.pid.load(Ordering::Relaxed),
            policy: self.policy.load(),
            tiers: tiers.collect(),
            failures,
            last_failure: (!last_failure.is_empty()).then_some(last_failure),
            migration: MigrationStats::of(&self.migration),
        }
    }
}

/// A page of this process.
///
/// Counters are written by any thread at any time. Texts are written by any thread too; one that would have to
/// wait for another drops a failure's text (never its count) and waits for names.
pub(crate) struct StatsPage {
    page: NonNull<Page>,
    /// The place of our descriptor, by which others find the page, or [`NO_DESCRIPTOR`]. Written when the page is made and
    /// in a forked child, which has one thread.
    descriptor: AtomicUsize,
}

const NO_DESCRIPTOR: usize = usize::MAX;

// SAFETY: the page is made of atomic words, and the mapping lives as long as the StatsPage.
unsafe impl Send for StatsPage {}
// SAFETY: as for Send; all methods take shared references and use atomic accesses only.
unsafe impl Sync for StatsPage {}

impl StatsPage {
    /// Makes a page and publishes it. Where the process may not create a memfd (descriptors used up, system call
    /// filtered) the page is private: it counts, and nobody else can read it.
    ///
    /// # Errors
    /// The refusal of mmap.
    pub(crate) fn create() -> Result<StatsPage, SysError> {
        let fd = page::sealed_memfd(NAME, PAGE_BYTES).ok();
        let at = page::map_somewhere(PAGE_BYTES, fd.as_ref().map(AsFd::as_fd))?;
        let page = StatsPage { page: at.cast(), descriptor: AtomicUsize::new(NO_DESCRIPTOR) };
        page.adopt(fd);
        page.page().seal(std::process::id());
        Ok(page)
    }

    /// Returns the process that the page is of, as it sees itself.
    pub(crate) fn owner(&self) -> u32 {
        // Relaxed: written when the page was made, and in a child before it has a second thread.
        self.page().pid.load(Ordering::Relaxed)
    }

    /// Returns the counters of a tier.
    ///
    /// # Panics
    /// When `tier` is [`MAX_TIERS`] or above.
    pub(crate) fn tier(&self, tier: usize) -> &TierCounters {
        &self.page().tiers[tier].counters
    }

    /// Returns the counters of moves.
    pub(crate) fn migration(&self) -> &MigrationCounters {
        &self.page().migration
    }

    /// Says what a tier is called and made of, and makes it visible. Blocks while another thread writes a text.
    ///
    /// # Panics
    /// When `tier` is [`MAX_TIERS`] or above.
    pub(crate) fn describe_tier(&self, tier: usize, name: &str, kind: &str, devices: &[&str]) {
        let page = self.page();
        let part = &page.tiers[tier];
        let mut joined = String::new();
        for device in devices {
            const MORE: &str = "...\n";
            if joined.len() + device.len() + 1 + MORE.len() > Text::<120>::CAPACITY {
                joined.push_str(MORE);
                break;
            }
            // A newline ends a name on the page and has no place inside one.
            joined.extend(device.chars().map(|c| if c == '\n' { ' ' } else { c }).chain(['\n']));
        }
        self.write_texts(|| {
            part.name.store(name);
            part.kind.store(kind);
            part.devices.store(&joined);
        });
        // Relaxed: a reader that sees the number early finds empty names at worst.
        page.nr_tiers.fetch_max(tier as u32 + 1, Ordering::Relaxed);
    }

    /// Says which policy places memory. Blocks while another thread writes a text.
    pub(crate) fn set_policy(&self, policy: &str) {
        self.write_texts(|| self.page().policy.store(policy));
    }

    /// Counts an allocation that no tier could serve, and keeps the reason. Never blocks, never allocates.
    pub(crate) fn note_failure(&self, reason: &str) {
        let page = self.page();
        // Relaxed: a figure for itself.
        page.failures.fetch_add(1, Ordering::Relaxed);
        if page.try_begin_texts() {
            page.last_failure.store(reason);
            page.end_texts();
        }
    }

    /// Returns what the page says. Allocates. Under a storm of failures a text may come out half old, half new.
    pub(crate) fn snapshot(&self) -> PoolStats {
        const ATTEMPTS: u32 = 1000;
        let page = self.page();
        let copy = Page::new();
        for _ in 0..ATTEMPTS {
            // Acquire pairs with the Release of `end_texts`: an even number brings its texts with it.
            let before = page.sequence.load(Ordering::Acquire);
            copy.copy_from(page);
            // Acquire fence, with the Release fence of `try_begin_texts`: if one of the texts just read was
            // written under a newer number, the load that follows sees that number.
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && before == page.sequence.load(Ordering::Relaxed) {
                break;
            }
            std::thread::yield_now();
        }
        copy.to_stats()
    }

    /// Gives a forked child a page of its own, at the same address and with the same contents. Called once in
    /// the child, while it has one thread. Does not allocate; uses 8 KiB of stack.
    ///
    /// # Errors
    /// The refusal of mmap; the page is then still the parent's, and the child must not write to it.
    pub(crate) fn replace_in_child(&self) -> Result<(), SysError> {
        let copy = Page::new();
        copy.copy_from(self.page());
        copy.migration.reset();
        let fd = page::sealed_memfd(NAME, PAGE_BYTES).ok();
        // SAFETY: the mapping was made by `create` and is this object's; the child has no other thread that
        // could be using it, and its contents are put back below.
        unsafe { page::map_over(self.page.cast(), PAGE_BYTES, fd.as_ref().map(AsFd::as_fd)) }?;
        self.page().copy_from(&copy);
        self.page().seal(std::process::id());
        self.close_descriptor();
        self.adopt(fd);
        Ok(())
    }

    fn page(&self) -> &Page {
        // SAFETY: `page` points to a mapping of PAGE_BYTES bytes, aligned to a memory page, that lives as long as
        // `self`; any contents are valid (I1), and all accesses are atomic.
        unsafe { self.page.as_ref() }
    }

    fn write_texts(&self, write: impl FnOnce()) {
        while !self.page().try_begin_texts() {
            std::thread::yield_now();
        }
        write();
        self.page().end_texts();
    }

    fn adopt(&self, fd: Option<OwnedFd>) {
        if let Some(own) = fd.and_then(|fd| descriptors::enter(fd).ok()) {
            // Relaxed: written before the page is shared or in a child with one thread.
            self.descriptor.store(own.index(), Ordering::Relaxed);
        }
    }

    fn close_descriptor(&self) {
        // Relaxed: as for `adopt`.
        let place = self.descriptor.swap(NO_DESCRIPTOR, Ordering::Relaxed);
        if place != NO_DESCRIPTOR {
            Own::from_index(place).close();
        }
    }
}

impl Drop for StatsPage {
    fn drop(&mut self) {
        self.close_descriptor();
        // SAFETY: the mapping is this object's, and references into it cannot outlive the object.
        unsafe { page::unmap(self.page.cast(), PAGE_BYTES) };
    }
}

impl std::fmt::Debug for StatsPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatsPage").field("page", &self.page).field("descriptor", &self.descriptor).finish()
    }
}

/// Reads the figures of all pools of process `pid`. Does not disturb it.
///
/// # Errors
/// [`StatsReadError`] names what kept them from being read.
pub fn stats_of_process(pid: u32) -> Result<Vec<PoolStats>, StatsReadError> {
    let refused = |source: SysError| match source.errno {
        libc::ENOENT | libc::ESRCH => StatsReadError::NoSuchProcess { pid },
        libc::EACCES | libc::EPERM => StatsReadError::NotPermitted { pid },
        _ => StatsReadError::Sys { pid, source },
    };
    let mut found = Vec::new();
    for fd in peer::descriptors(pid, LINK).map_err(refused)? {
        match read_page(pid, |bytes| peer::read_descriptor(pid, fd, bytes)) {
            Ok(stats) => found.push(stats),
            // The descriptor was closed since it was listed.
            Err(ReadFailure::Sys(source)) if source.errno == libc::ENOENT => {}
            Err(failure) => return Err(failure.of(pid, refused)),
        }
    }
    if found.is_empty() {
        for range in peer::mappings(pid, LINK).map_err(refused)? {
            let read = |bytes: &mut [u8]| {
                let len = bytes.len().min(range.len());
                peer::read_memory(pid, range.start, &mut bytes[..len])
            };
            found.push(read_page(pid, read).map_err(|failure| failure.of(pid, refused))?);
        }
    }
    if found.is_empty() { Err(StatsReadError::NoPage { pid }) } else { Ok(found) }
}

/// Why one page could not be read.
enum ReadFailure {
    Sys(SysError),
    NotAPage,
    OtherVersion(u32),
}

impl ReadFailure {
    fn of(self, pid: u32, refused: impl Fn(SysError) -> StatsReadError) -> StatsReadError {
        match self {
            ReadFailure::Sys(source) => refused(source),
            ReadFailure::NotAPage => StatsReadError::NotAPage { pid },
            ReadFailure::OtherVersion(version) => {
                StatsReadError::OtherVersion { pid, seen: version, known: VERSION }
            }
        }
    }
}

/// Where a copy of another process's page goes.
#[repr(C, align(4096))]
struct Copied([u8; PAGE_BYTES]);

/// Copies a page with `read` until its texts hold still, and takes the figures from the copy.
fn read_page(
    pid: u32,
    read: impl Fn(&mut [u8]) -> Result<usize, SysError>,
) -> Result<PoolStats, ReadFailure> {
    const ATTEMPTS: u32 = 1000;
    let mut copied = Copied([0; PAGE_BYTES]);
    for attempt in 0..ATTEMPTS {
        let before = read_header(&read)?;
        if read(&mut copied.0).map_err(ReadFailure::Sys)? < PAGE_BYTES {
            return Err(ReadFailure::NotAPage);
        }
        let after = read_header(&read)?;
        if before == after && before.is_multiple_of(2) {
            break;
        }
        // A stopped process can leave the number odd for good; the last copy is then as good as any.
        if attempt > 10 {
            std::thread::yield_now();
        }
    }
    let first = copied.0.as_mut_ptr().cast::<Page>();
    // SAFETY: the buffer is as long and as aligned as a Page, every byte pattern is one (I1), and it is borrowed
    // through this pointer alone until the end.
    let page = unsafe { &*first };
    let mut stats = page.to_stats();
    // Inside a container the process knows itself by another number than the one that was asked for.
    stats.pid = pid;
    Ok(stats)
}

/// Checks the words that every version has, and returns the sequence.
fn read_header(read: impl Fn(&mut [u8]) -> Result<usize, SysError>) -> Result<u32, ReadFailure> {
    const HEADER_BYTES: usize = offset_of!(Page, unused);
    let mut header = [0; HEADER_BYTES];
    let len = read(&mut header).map_err(ReadFailure::Sys)?;
    let word = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        u32::from_ne_bytes(bytes)
    };
    if len < HEADER_BYTES || header[..8] != MAGIC.to_ne_bytes() {
        return Err(ReadFailure::NotAPage);
    }
    let version = word(offset_of!(Page, version));
    if version != VERSION {
        return Err(ReadFailure::OtherVersion(version));
    }
    if word(offset_of!(Page, len_bytes)) as usize != PAGE_BYTES {
        return Err(ReadFailure::NotAPage);
    }
    Ok(word(offset_of!(Page, sequence)))
}

/// Figures of another process that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatsReadError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The process that was asked for.
        pid: u32,
    },
    /// The kernel does not let us look into it.
    #[error(
        "process {pid} may not be looked into: run as its user, or as root with the right to trace (CAP_SYS_PTRACE)"
    )]
    NotPermitted {
        /// The process that was asked for.
        pid: u32,
    },
    /// The process publishes nothing.
    #[error(
        "process {pid} publishes no figures: it was not started with daxtier, or runs without the preload library"
    )]
    NoPage {
        /// The process that was asked for.
        pid: u32,
    },
    /// What it publishes is not a page of ours.
    #[error("process {pid} publishes something that is not a page of figures")]
    NotAPage {
        /// The process that was asked for.
        pid: u32,
    },
    /// The page was made by another version.
    #[error(
        "process {pid} publishes figures in version {seen} of the page, this program reads version {known}: use the daxtier that it runs with"
    )]
    OtherVersion {
        /// The process that was asked for.
        pid: u32,
        /// The page's version.
        seen: u32,
        /// Ours.
        known: u32,
    },
    /// The kernel refused for another reason.
    #[error("process {pid}: {source}")]
    Sys {
        /// The process that was asked for.
        pid: u32,
        /// The refused call.
        source: SysError,
    },
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
