//! The library's own descriptors, in a process whose program may close or re-use any number.
//!
//! [`enter`] takes a descriptor over and gives an [`Own`] for it: a place in a table that holds its number and which file
//! must be there. Each use looks first ([`Own::lend`]), so that a program which closed the number by a bare system call and
//! opened a file of its own under it never meets us there. The preload library's close and its like ask [`is_own`] and
//! [`first_in`], and [`move_away`] makes room for a dup2.
//!
//! A thread of the library may have a table of descriptors for itself ([`take_table`]), which the program's calls do not
//! reach. What it uses of the common table it fetches for the length of the use.
//!
//! # Invariants
//! - O1: an entry is free (0), taken and not written yet ([`TAKEN`]), or the process and the number of a descriptor that
//!   this module keeps open for its owner.
//! - O2: `dev` and `ino` are written while the entry is [`TAKEN`].
//! - O3: an entry of process 0 is a descriptor that only threads with a table of their own have.
//! - O4: entries of another process are inherited by a fork: the descriptors are copies that the child may close.
//!
//! Nothing here allocates, and what the preload library calls is async-signal-safe.

use super::file::{self, FIRST_OWN_DESCRIPTOR, FileId};
use crate::error::SysError;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// The most descriptors that the library keeps.
const MOST: usize = 1024;

/// An entry that is being written.
const TAKEN: u64 = u64::MAX;

struct Entry {
    /// See O1: the process in the upper half, the number in the lower. Release when written, Acquire when read: goes with
    /// the file.
    word: AtomicU64,
    /// Relaxed, as `ino`: published by `word`.
    dev: AtomicU64,
    ino: AtomicU64,
    /// Whether the owner is closing it. SeqCst: rare.
    is_ending: AtomicBool,
}

impl Entry {
    const fn free() -> Entry {
        Entry {
            word: AtomicU64::new(0),
            dev: AtomicU64::new(0),
            ino: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
        }
    }
}

static ENTRIES: [Entry; MOST] = [const { Entry::free() }; MOST];
/// No entry above was ever used. Relaxed, as `LOWEST`: raised before the entry is published, and who does not see it yet
/// can't know the entry.
static NR_USED: AtomicUsize = AtomicUsize::new(0);
/// No number of ours was ever lower.
static LOWEST: AtomicI32 = AtomicI32::new(i32::MAX);

/// A descriptor that the library keeps, until [`close`](Own::close).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    index: usize,
}

/// A descriptor for the length of a use.
#[derive(Debug)]
pub(crate) enum Lent<'a> {
    /// That of this thread's table.
    Here(BorrowedFd<'a>),
    /// A copy, for a thread with a table of its own.
    Fetched(Fetched),
}

/// A copy of a descriptor, closed on drop. By the system call: in another table its number may be one of ours.
#[derive(Debug)]
pub(crate) struct Fetched(RawFd);

impl Drop for Fetched {
    fn drop(&mut self) {
        close_number(self.0);
    }
}

impl AsFd for Lent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Lent::Here(fd) => *fd,
            // SAFETY: it is open until the drop.
            Lent::Fetched(fd) => unsafe { BorrowedFd::borrow_raw(fd.0) },
        }
    }
}

/// Keeps a descriptor.
///
/// # Errors
/// `EMFILE` when the library keeps as many as it can; the refusal of fstat.
pub(crate) fn enter(fd: OwnedFd) -> Result<Own, SysError> {
    let id = file::stat(fd.as_raw_fd())?.id;
    let free =
        |entry: &Entry| entry.word.compare_exchange(0, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    let index = ENTRIES.iter().position(free).ok_or(SysError { call: "dup", errno: libc::EMFILE })?;
    let entry = &ENTRIES[index];
    entry.dev.store(id.dev, Ordering::Relaxed);
    entry.ino.store(id.ino, Ordering::Relaxed);
    NR_USED.fetch_max(index + 1, Ordering::Relaxed);
    entry.is_ending.store(false, Ordering::SeqCst);
    entry.publish(std::process::id(), fd.into_raw_fd());
    Ok(Own { index })
}

impl Entry {
    fn publish(&self, process: u32, number: RawFd) {
        LOWEST.fetch_min(number, Ordering::Relaxed);
        self.word.store(u64::from(process) << 32 | number as u64, Ordering::Release);
    }

    /// The number, unless the entry is not in use.
    fn number(&self) -> Option<RawFd> {
        let word = self.word.load(Ordering::Acquire);
        (word != 0 && word != TAKEN).then_some(word as RawFd)
    }

    fn is_of_this_process(&self) -> bool {
        self.word.load(Ordering::Acquire) >> 32 == u64::from(std::process::id())
    }

    /// See O3.
    fn is_private(&self) -> bool {
        self.word.load(Ordering::Acquire) >> 32 == 0
    }

    fn is_file(&self, id: FileId) -> bool {
        id.dev == self.dev.load(Ordering::Relaxed) && id.ino == self.ino.load(Ordering::Relaxed)
    }

    fn lend<'a>(&self) -> Result<Lent<'a>, SysError> {
        let lost = SysError { call: "fstat", errno: libc::EBADF };
        let number = self.number().ok_or(lost.clone())?;
        if file::stat(number).is_ok_and(|stat| self.is_file(stat.id)) {
            // SAFETY: fstat just saw our file open under this number, and `Own::lend` says until when.
            return Ok(Lent::Here(unsafe { BorrowedFd::borrow_raw(number) }));
        }
        let fetched = fetch(number).ok_or(lost.clone())?;
        if !self.is_file(file::stat(fetched.0)?.id) {
            return Err(lost);
        }
        Ok(Lent::Fetched(fetched))
    }
}

impl Own {
    /// Makes one of a number that [`index`](Own::index) gave.
    pub(crate) fn from_index(index: usize) -> Own {
        Own { index }
    }

    /// Returns a number that stands for the descriptor.
    pub(crate) fn index(self) -> usize {
        self.index
    }

    fn entry(self) -> &'static Entry {
        &ENTRIES[self.index]
    }

    /// Returns the descriptor if the file is still there that it was entered for.
    ///
    /// The owner keeps it while it is lent; only a program that closes numbers by bare system calls can end it earlier,
    /// which is noticed for what happened before. In service it is not moved away either.
    ///
    /// # Errors
    /// `EBADF` when the number is closed or another file's.
    pub(crate) fn lend<'a>(self) -> Result<Lent<'a>, SysError> {
        self.entry().lend()
    }

    /// Closes the descriptor, unless the number is the program's by now. Called once.
    pub(crate) fn close(self) {
        let entry = self.entry();
        entry.is_ending.store(true, Ordering::SeqCst);
        let number = entry.number();
        let is_there = |number: &RawFd| file::stat(*number).is_ok_and(|stat| entry.is_file(stat.id));
        // What the common table does not have any more is not there to close.
        if let Some(number) = number.filter(|_| !entry.is_private()).filter(is_there) {
            close_number(number);
        }
        // Last: until here the number was not the program's to close.
        entry.word.store(0, Ordering::Release);
    }

    /// Closes the descriptor in the common table, for threads that have it in tables of their own ([`take_table`]). It keeps
    /// its number, which may be the program's in the common table from now on.
    pub(crate) fn leave_common_table(self) {
        if let Some(number) = self.entry().number() {
            close_number(number);
            self.entry().publish(0, number);
        }
    }

    /// Returns the number, without a look whether our file is there; -1 when it was closed.
    pub(crate) fn number(self) -> RawFd {
        self.entry().number().unwrap_or(-1)
    }
}

/// Closes a number of ours. By the system call: the preload library's close takes it for not open.
fn close_number(number: RawFd) {
    // SAFETY: the number refers to a file of ours, whose owner gives it up.
    unsafe { libc::syscall(libc::SYS_close, number) };
}

/// Whether a number is ours in this process.
#[inline]
pub(crate) fn is_own(number: RawFd) -> bool {
    number >= LOWEST.load(Ordering::Relaxed) && find(number).is_some()
}

fn used() -> &'static [Entry] {
    &ENTRIES[..NR_USED.load(Ordering::Relaxed)]
}

/// Finds the entry of a number. The process is only asked for where the number fits: that is a system call.
fn find(number: RawFd) -> Option<&'static Entry> {
    used().iter().find(|entry| entry.number() == Some(number) && entry.is_of_this_process())
}

/// Returns the lowest number of ours in a range.
pub(crate) fn first_in(first: RawFd, last: RawFd) -> Option<RawFd> {
    if last < LOWEST.load(Ordering::Relaxed) {
        return None;
    }
    let ours = used().iter().filter(|entry| entry.number().is_some_and(|at| first <= at && at <= last));
    ours.filter(|entry| entry.is_of_this_process()).filter_map(Entry::number).min()
}

/// Gives a descriptor of ours another number, so that the program can have this one; it is still open here too. Nobody has
/// it lent: the caller has closed the gate.
///
/// # Errors
/// The refusal of fcntl.
pub(crate) fn move_away(number: RawFd) -> Result<(), SysError> {
    let Some(entry) = find(number) else { return Ok(()) };
    if !file::stat(number).is_ok_and(|stat| entry.is_file(stat.id)) {
        // The program's already.
        return Ok(());
    }
    let lowest = FIRST_OWN_DESCRIPTOR.max(number.saturating_add(1));
    let mut moved = duplicate(number, lowest);
    if moved.is_err() {
        moved = duplicate(number, 3);
    }
    entry.publish(std::process::id(), moved?.into_raw_fd());
    Ok(())
}

fn duplicate(number: RawFd, lowest: RawFd) -> Result<OwnedFd, SysError> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, lowest) };
    if fd < 0 {
        return Err(SysError::last("fcntl"));
    }
    // SAFETY: fcntl just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether every descriptor of ours is where it was entered. In service: then none is moved away meanwhile.
pub(crate) fn all_are_there() -> bool {
    used().iter().all(|entry| {
        let is_ours = || entry.number().is_some() && entry.is_of_this_process();
        !is_ours() || entry.lend().is_ok() || entry.is_ending.load(Ordering::SeqCst) || !is_ours()
    })
}

/// In a table of a thread's own: the process, of whose first thread descriptors are fetched.
const PROCESS: RawFd = 0;

thread_local! {
    static HAS_OWN_TABLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the calling thread has a table of its own: what it opens is not in the common one, so it must not [`enter`] it.
pub(crate) fn has_own_table() -> bool {
    HAS_OWN_TABLE.get()
}

/// Copies a number of the common table into this thread's own. `None` in a thread without one.
fn fetch(number: RawFd) -> Option<Fetched> {
    fetch_from(PROCESS, number)
}

fn fetch_from(process: RawFd, number: RawFd) -> Option<Fetched> {
    // SAFETY: takes numbers only; where the first is no process the call fails.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
    (fd >= 0).then_some(Fetched(fd as RawFd))
}

/// Calls `look` with a number of the common table as the calling thread may use it, if it is open. The file must not be the
/// worse for the use.
pub(super) fn with_common<T>(number: RawFd, look: impl FnOnce(RawFd) -> T) -> Option<T> {
    if has_own_table() {
        return fetch(number).map(|fetched| look(fetched.0));
    }
    Some(look(number))
}

/// Writes a message to the program's standard error, from a thread with a table of its own too.
pub(super) fn write_error(message: &[u8]) {
    let write = |number: RawFd| {
        // SAFETY: the buffer is valid for its length.
        unsafe { libc::write(number, message.as_ptr().cast(), message.len()) }
    };
    if write(libc::STDERR_FILENO) < 0
        && super::errno::get() == libc::EBADF
        && let Some(fetched) = fetch(libc::STDERR_FILENO)
    {
        write(fetched.0);
    }
}

/// Gives the calling thread a table of descriptors of its own, with nothing in it but `keep`, under the numbers that they have.
/// Returns `false`, with everything as before, where the kernel does not let it (before Linux 5.9, or under a filter).
///
/// # Errors
/// `EBADF` when somebody closed `keep` meanwhile: the thread has an empty table then.
pub(crate) fn take_table<const N: usize>(keep: [Own; N]) -> Result<bool, SysError> {
    let numbers = keep.map(Own::number);
    if !can_take_table(numbers) {
        return Ok(false);
    }
    // SAFETY: takes numbers only. It is this thread's table that loses its descriptors, after it was parted from the others'.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } != 0 {
        return Ok(false);
    }
    let is_filled = open_process().is_some_and(|process| {
        let is_in_place = process.0 == PROCESS;
        std::mem::forget(process);
        is_in_place && numbers.into_iter().all(keep_fetched)
    });
    HAS_OWN_TABLE.set(true);
    if is_filled { Ok(true) } else { Err(SysError { call: "pidfd_getfd", errno: libc::EBADF }) }
}

/// Tries what [`take_table`] does, since there is no way back. The process's first thread may have another table, or none.
fn can_take_table<const N: usize>(numbers: [RawFd; N]) -> bool {
    // The lowest numbers are taken on the way.
    if numbers.iter().any(|&number| number < 3) {
        return false;
    }
    let Some(process) = open_process() else { return false };
    let id = |number| file::stat(number).map(|stat| stat.id);
    numbers.into_iter().all(|number| {
        fetch_from(process.0, number)
            .is_some_and(|fetched| id(fetched.0).is_ok() && id(fetched.0) == id(number))
    })
}

/// Fetches a number to the same number.
fn keep_fetched(number: RawFd) -> bool {
    let Some(fetched) = fetch(number) else { return false };
    // SAFETY: takes numbers only; nothing is open under the second.
    let placed = unsafe { libc::syscall(libc::SYS_dup3, fetched.0, number, libc::O_CLOEXEC) };
    placed == number as libc::c_long
}

fn open_process() -> Option<Fetched> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    (fd >= 0).then_some(Fetched(fd as RawFd))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::sys::testing::{ChildEnd, in_child, runs_in_own_process};

    fn file() -> OwnedFd {
        file::memfd(c"daxtier-own-test", 4096).unwrap()
    }

    #[test]
    fn a_descriptor_is_ours_until_it_is_closed_and_in_this_process_only() {
        // Beside other tests, a fork may keep descriptors of theirs, and a number that was closed may be theirs next.
        const NAME: &str =
            "sys::descriptors::tests::a_descriptor_is_ours_until_it_is_closed_and_in_this_process_only";
        if runs_in_own_process(NAME) {
            return;
        }
        let own = enter(file()).unwrap();
        let number = own.number();
        assert!(is_own(number) && !is_own(libc::STDERR_FILENO));
        assert_eq!(first_in(number, number), Some(number));
        assert!(first_in(0, number).is_some_and(|first| first <= number));
        assert_eq!(
            in_child(|| i32::from(is_own(number) || first_in(0, i32::MAX).is_some())),
            ChildEnd::Exited(0)
        );
        own.close();
        assert!(!is_own(number) && first_in(number, number).is_none());
    }

    #[test]
    fn ours_are_numbered_high_as_far_as_the_limit_lets_them() {
        for limit in [4096, 40, 12] {
            let end = in_child(|| {
                let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                // What the tests have open.
                // SAFETY: takes numbers only; the child has its own table.
                unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
                // SAFETY: the structure is a local.
                unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
                file::memfd(c"daxtier-limit-test", 4096).map_or(-1, |fd| fd.as_raw_fd() / 4)
            });
            assert_eq!(end, ChildEnd::Exited((limit as i32 / 2).min(FIRST_OWN_DESCRIPTOR) / 4), "{limit}");
        }
    }

    #[test]
    fn a_number_that_is_another_files_is_neither_lent_nor_closed() {
        let own = enter(file()).unwrap();
        let (number, other) = (own.number(), file());
        let end = in_child(|| {
            if own.lend().is_err() {
                return 1;
            }
            // SAFETY: takes numbers only; a careless program does this.
            unsafe { libc::dup2(other.as_raw_fd(), number) };
            if own.lend().is_ok() {
                return 2;
            }
            own.close();
            i32::from(file::stat(number).is_err()) * 3
        });
        assert_eq!(end, ChildEnd::Exited(0));
        own.close();
    }

    #[test]
    fn a_descriptor_that_was_moved_away_is_the_same_file() {
        let own = enter(file()).unwrap();
        let before = own.number();
        move_away(before).unwrap();
        assert!(own.number() > before && !is_own(before));
        assert!(own.lend().is_ok());
        close_number(before);
        own.close();
    }

    #[test]
    fn a_thread_with_its_own_table_keeps_what_others_close_and_fetches_the_rest() {
        let [common, first, second] = [(); 3].map(|()| enter(file()).unwrap());
        let kept = [first, second];
        let numbers = kept.map(Own::number);
        let ids = numbers.map(|number| file::stat(number).unwrap().id);
        let (tell, told) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let took = take_table(kept).unwrap();
            tell.send(took).unwrap();
            gone.recv().unwrap();
            if took {
                assert_eq!(numbers.map(|number| file::stat(number).unwrap().id), ids);
                assert!(matches!(common.lend(), Ok(Lent::Fetched(_))), "{:?}", common.lend());
                assert!(all_are_there());
                let open = (0..4096).filter(|&number| file::stat(number).is_ok()).count();
                assert_eq!(open, 3, "nothing of the program's is kept open");
            }
        });
        if !told.recv().unwrap() {
            eprintln!("skipped: no table of its own for a thread here");
        } else {
            kept.into_iter().for_each(Own::leave_common_table);
            assert!(numbers.iter().all(|&number| !is_own(number)));
        }
        go.send(()).unwrap();
        thread.join().unwrap();
        assert!(matches!(common.lend(), Ok(Lent::Here(_))));
        common.close();
        kept.into_iter().for_each(Own::close);
    }
}
