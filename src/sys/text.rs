//! Small files as wholes: read one, replace one.
//!
//! Made for configuration files, `/proc` and the statistics that a process leaves behind. Everything goes
//! through plain system calls, so a process whose `malloc` we are can use it at any time; buffers are ordinary
//! `Vec`s. Descriptors are close-on-exec and live only inside a call.

use super::file::{self, FIRST_OWN_DESCRIPTOR, FileId, FileStat};
use crate::error::SysError;
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// What reading a file found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// All of it.
    Bytes(Vec<u8>),
    /// A directory, a pipe, a device or a socket. Nothing was read from it.
    NotRegular,
    /// More than the limit.
    Longer,
}

/// Reads a regular file (`/proc` files are) of at most `limit` bytes.
///
/// # Errors
/// The refusal of open, fstat or read.
pub(crate) fn read_regular(path: &Path, limit: usize) -> Result<Contents, SysError> {
    // O_NONBLOCK keeps a pipe without a writer from blocking the open; it means nothing for regular files.
    let fd = open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY, 0)?;
    if file_type(&fd)? != libc::S_IFREG {
        return Ok(Contents::NotRegular);
    }
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        // SAFETY: read writes at most `chunk.len()` bytes into `chunk`, which outlives the call.
        let nr = unsafe { libc::read(fd.as_raw_fd(), chunk.as_mut_ptr().cast(), chunk.len()) };
        match usize::try_from(nr) {
            Ok(0) => return Ok(Contents::Bytes(bytes)),
            Ok(nr) if bytes.len() + nr > limit => return Ok(Contents::Longer),
            Ok(nr) => bytes.extend_from_slice(&chunk[..nr]),
            Err(_) => retry(SysError::last("read"))?,
        }
    }
}

/// What stands where a file was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A pipe, a device or a socket.
    Special,
}

/// Why a file was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplaceError {
    /// Something that is not a regular file stands there; it is untouched.
    InTheWay(Obstacle),
    /// The kernel refused; the old file, if any, is as it was.
    Sys(SysError),
}

impl From<SysError> for ReplaceError {
    fn from(source: SysError) -> ReplaceError {
        ReplaceError::Sys(source)
    }
}

/// Puts `bytes` into the file at `path`, in one step for whoever reads it: they go to a new file of mode 0600
/// beside it, which then takes the name. Only a regular file is replaced.
///
/// # Errors
/// [`ReplaceError`]; nothing is left behind then.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    if let Some(obstacle) = obstacle_at(path)? {
        return Err(ReplaceError::InTheWay(obstacle));
    }
    let (fd, temporary) = create_beside(path)?;
    let outcome = write_all(&fd, bytes).and_then(|()| rename(&temporary, path));
    if outcome.is_err() {
        let _ = unlink(&temporary);
    }
    Ok(outcome?)
}

/// Standard error as it was when [`keep_stderr`] was called, or -1. Many programs close theirs at exit, before
/// our last word; some open a file of their own under the number.
static KEPT: AtomicI32 = AtomicI32::new(-1);
/// Which file that was: the program may close this descriptor too.
static KEPT_FILE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Keeps a descriptor of standard error for [`write_stderr`], whatever the program does to its own. Called before
/// the program has threads.
pub(crate) fn keep_stderr() {
    let Ok(FileStat { id, .. }) = file::stat(libc::STDERR_FILENO) else { return };
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes a number and no pointer; it fails on a closed one.
    let fd = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR) };
    // Relaxed, all three: written before there are other threads.
    KEPT_FILE[0].store(id.dev, Ordering::Relaxed);
    KEPT_FILE[1].store(id.ino, Ordering::Relaxed);
    KEPT.store(fd, Ordering::Relaxed);
}

/// Writes to standard error and ignores refusals: there is nobody else to tell.
pub(crate) fn write_stderr(bytes: &[u8]) {
    // Relaxed, all three: see `keep_stderr`.
    let kept = KEPT.load(Ordering::Relaxed);
    let id = FileId { dev: KEPT_FILE[0].load(Ordering::Relaxed), ino: KEPT_FILE[1].load(Ordering::Relaxed) };
    let is_kept = kept >= 0 && file::stat(kept).is_ok_and(|stat| stat.id == id);
    let fd = if is_kept { kept } else { libc::STDERR_FILENO };
    // SAFETY: the descriptor is only borrowed for the write; when it is closed meanwhile the write fails.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let _ = write_all(&fd, bytes);
}

/// Creates a file that did not exist, with a hidden name of its own in the directory of `path`.
fn create_beside(path: &Path) -> Result<(OwnedFd, PathBuf), SysError> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    const ATTEMPTS: u32 = 100;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut outcome = Err(SysError { call: "open", errno: libc::EEXIST });
    for _ in 0..ATTEMPTS {
        // Relaxed: the number only has to differ from the others of this process.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        // The name is cut so that the whole stays within the 255 bytes of a file name.
        let mut hidden = vec![b'.'];
        hidden.extend_from_slice(&name[..name.len().min(200)]);
        hidden.extend_from_slice(format!(".{}.{serial}.tmp", std::process::id()).as_bytes());
        let temporary = path.with_file_name(OsString::from_vec(hidden));
        outcome = open(&temporary, flags, 0o600).map(|fd| (fd, temporary));
        // Left over from a process of the same number that was killed half-way: take the next name.
        if !matches!(&outcome, Err(error) if error.errno == libc::EEXIST) {
            break;
        }
    }
    outcome
}

fn obstacle_at(path: &Path) -> Result<Option<Obstacle>, SysError> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is NUL-terminated, and lstat writes one struct stat; both outlive the call.
    if unsafe { libc::lstat(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        let error = SysError::last("lstat");
        return if error.errno == libc::ENOENT { Ok(None) } else { Err(error) };
    }
    // SAFETY: lstat returned success and filled the struct.
    let mode = unsafe { stat.assume_init() }.st_mode;
    Ok(match mode & libc::S_IFMT {
        libc::S_IFREG => None,
        libc::S_IFLNK => Some(Obstacle::Symlink),
        libc::S_IFDIR => Some(Obstacle::Directory),
        _ => Some(Obstacle::Special),
    })
}

fn open(path: &Path, flags: libc::c_int, mode: libc::c_uint) -> Result<OwnedFd, SysError> {
    let path = c_path(path)?;
    loop {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
        if fd >= 0 {
            // SAFETY: open just returned this descriptor; nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        retry(SysError::last("open"))?;
    }
}

fn file_type(fd: &OwnedFd) -> Result<libc::mode_t, SysError> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes one struct stat, which outlives the call.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(SysError::last("fstat"));
    }
    // SAFETY: fstat returned success and filled the struct.
    Ok(unsafe { stat.assume_init() }.st_mode & libc::S_IFMT)
}

fn write_all(fd: &impl AsRawFd, mut bytes: &[u8]) -> Result<(), SysError> {
    while !bytes.is_empty() {
        // SAFETY: write reads at most `bytes.len()` bytes from `bytes`, which outlives the call.
        let nr = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(nr) {
            Ok(0) => return Err(SysError { call: "write", errno: libc::EIO }),
            Ok(nr) => bytes = &bytes[nr.min(bytes.len())..],
            Err(_) => retry(SysError::last("write"))?,
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), SysError> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let rc = unsafe { libc::rename(from.as_ptr(), to.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("rename")) }
}

fn unlink(path: &Path) -> Result<(), SysError> {
    let path = c_path(path)?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    let rc = unsafe { libc::unlink(path.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("unlink")) }
}

/// Passes a refusal on, unless a signal only interrupted the call.
fn retry(error: SysError) -> Result<(), SysError> {
    if error.errno == libc::EINTR { Ok(()) } else { Err(error) }
}

fn c_path(path: &Path) -> Result<CString, SysError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| SysError { call: "open", errno: libc::EINVAL })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    /// A directory that goes with its test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("daxtier-text-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn names(&self) -> Vec<String> {
            let entries =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = entries.collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = Scratch::new("replace");
        let path = dir.0.join("stats.json");
        replace(&path, b"first and longer").unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let old = fs::metadata(&path).unwrap().ino();
        replace(&path, b"second").unwrap();
        let new = fs::metadata(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), new.mode() & 0o777), (b"second".to_vec(), 0o600));
        assert_ne!(new.ino(), old, "a reader of the old file would see it change");
        assert_eq!(dir.names(), ["stats.json"]);
    }

    #[test]
    fn what_is_not_a_file_is_left_alone() {
        let dir = Scratch::new("obstacle");
        let (victim, link) = (dir.0.join("victim"), dir.0.join("link"));
        fs::write(&victim, b"precious").unwrap();
        symlink(&victim, &link).unwrap();
        symlink(dir.0.join("nowhere"), dir.0.join("dangling")).unwrap();
        for (name, seen) in [("link", Obstacle::Symlink), ("dangling", Obstacle::Symlink)] {
            assert_eq!(replace(&dir.0.join(name), b"x"), Err(ReplaceError::InTheWay(seen)));
        }
        assert_eq!(replace(&dir.0, b"x"), Err(ReplaceError::InTheWay(Obstacle::Directory)));
        assert_eq!(replace(Path::new("/dev/null"), b"x"), Err(ReplaceError::InTheWay(Obstacle::Special)));
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(dir.names(), ["dangling", "link", "victim"]);
    }

    #[test]
    fn a_refusal_names_the_call_and_leaves_nothing() {
        let dir = Scratch::new("refusal");
        let missing = dir.0.join("missing/stats.json");
        let seen = ReplaceError::Sys(SysError { call: "open", errno: libc::ENOENT });
        assert_eq!(replace(&missing, b"x"), Err(seen));
        assert_eq!(dir.names(), [] as [&str; 0]);
    }

    #[test]
    fn a_left_over_of_a_killed_process_is_no_obstacle() {
        let dir = Scratch::new("leftover");
        let path = dir.0.join("s");
        for serial in 0..50 {
            fs::write(dir.0.join(format!(".s.{}.{serial}.tmp", std::process::id())), b"old").unwrap();
        }
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn the_longest_file_name_can_be_written() {
        let dir = Scratch::new("long");
        let path = dir.0.join("n".repeat(255));
        replace(&path, b"x").unwrap();
        assert_eq!(read_regular(&path, 10), Ok(Contents::Bytes(b"x".to_vec())));
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = Scratch::new("read");
        let path = dir.0.join("f");
        fs::write(&path, vec![7u8; 5000]).unwrap();
        assert_eq!(read_regular(&path, 5000), Ok(Contents::Bytes(vec![7u8; 5000])));
        assert_eq!(read_regular(&path, 4999), Ok(Contents::Longer));
        assert_eq!(read_regular(&dir.0, 10), Ok(Contents::NotRegular));
        assert_eq!(read_regular(Path::new("/dev/zero"), 10), Ok(Contents::NotRegular));
        let missing = Err(SysError { call: "open", errno: libc::ENOENT });
        assert_eq!(read_regular(&dir.0.join("nothing"), 10), missing);
        assert!(
            matches!(read_regular(Path::new("/proc/meminfo"), 1 << 20), Ok(Contents::Bytes(b)) if !b.is_empty())
        );
    }
}
