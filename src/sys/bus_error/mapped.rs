//! What is mapped where an access failed, as `/proc/self/maps` tells it; read without a lock and without memory.

use super::super::maps::Line;
use super::super::stdio;
use super::loss;
use libc::c_int;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

const MAPS: &CStr = c"/proc/self/maps";
/// Longer than any line: two paths' length. A longer one is cut, and its name with it.
const LINE_BYTES: usize = 8192;

/// Room for what is read and for what is written: the stack of a handler may be a small one of its own.
struct Room {
    is_taken: AtomicBool,
    texts: UnsafeCell<Texts>,
}

struct Texts {
    read: [u8; LINE_BYTES],
    written: Text,
}

// SAFETY: the texts are touched only by who has set `is_taken`.
unsafe impl Sync for Room {}

static ROOM: Room = Room {
    is_taken: AtomicBool::new(false),
    texts: UnsafeCell::new(Texts { read: [0; LINE_BYTES], written: Text { bytes: [0; 512], len: 0 } }),
};

impl Room {
    /// Runs `work` with the room, or returns `None` when another thread keeps it for long: that may be one which this
    /// thread interrupted, or one that a fork left behind.
    fn with<T>(&self, work: impl FnOnce(&mut Texts) -> Option<T>) -> Option<T> {
        const LONGEST_TURNS: usize = 10_000;
        // Acquire: pairs with the Release below.
        (0..LONGEST_TURNS)
            .any(|_| {
                let is_free = !self.is_taken.swap(true, Ordering::Acquire);
                if !is_free {
                    std::thread::yield_now();
                }
                is_free
            })
            .then_some(())?;
        // SAFETY: ours since `is_taken` was clear.
        let result = work(unsafe { &mut *self.texts.get() });
        self.is_taken.store(false, Ordering::Release);
        result
    }
}

/// A line of text to be written.
struct Text {
    bytes: [u8; 512],
    len: usize,
}

impl Text {
    fn add(&mut self, more: &[u8]) -> &mut Text {
        let room = self.bytes.len() - self.len;
        let more = &more[..more.len().min(room)];
        self.bytes[self.len..self.len + more.len()].copy_from_slice(more);
        self.len += more.len();
        self
    }

    fn add_hex(&mut self, value: u64) -> &mut Text {
        let mut digits = [b'0'; 18];
        digits[1] = b'x';
        let nr_digits = (64 - value.leading_zeros()).div_ceil(4).max(1) as usize;
        for (i, digit) in digits[2..2 + nr_digits].iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(value >> (4 * i) & 15) as usize];
        }
        self.add(&digits[..2 + nr_digits])
    }
}

/// Whether a mapping is memory of a kind that the library hands out.
fn is_of_a_device(line: &Line<'_>) -> bool {
    line.name.starts_with(b"/dev/dax") || line.name.starts_with(b"/memfd:daxtier")
}

/// Hands the line of the mapping at `addr` to `see`; `None` when there is none, or the file can't be read.
fn line_at<T>(addr: usize, see: impl FnOnce(&Line<'_>, &mut Text) -> T) -> Option<T> {
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(MAPS.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    let found = ROOM.with(|texts| {
        let Texts { read, written } = texts;
        find_line(fd, read, addr, |line| see(line, written))
    });
    // SAFETY: opened above.
    unsafe { libc::close(fd) };
    found
}

fn find_line<T>(
    fd: c_int,
    buffer: &mut [u8; LINE_BYTES],
    addr: usize,
    see: impl FnOnce(&Line<'_>) -> T,
) -> Option<T> {
    let mut len = 0;
    loop {
        let room = &mut buffer[len..];
        // SAFETY: read writes into the rest of the buffer.
        let nr = unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) };
        len += usize::try_from(nr).ok().filter(|&nr| nr > 0)?;
        while let Some(line_len) = buffer[..len].iter().position(|&byte| byte == b'\n') {
            if let Some(line) = Line::parse(&buffer[..line_len]).filter(|line| line.addresses.end > addr) {
                return (line.addresses.start <= addr).then(|| see(&line));
            }
            buffer.copy_within(line_len + 1..len, 0);
            len -= line_len + 1;
        }
        if len == LINE_BYTES {
            return None;
        }
    }
}

/// Mends what made a device's memory fail and can be mended: huge pages that are switched off for the process.
/// Returns whether the access may be made again.
pub(super) fn heal(addr: usize, code: c_int) -> bool {
    // SAFETY: the option takes zeroes.
    let is_off = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } > 0;
    if !is_off
        || code != libc::BUS_ADRERR
        || line_at(addr, |line, _| line.name.starts_with(b"/dev/dax")) != Some(true)
    {
        return false;
    }
    // SAFETY: the option takes zeroes.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) } != 0 {
        return false;
    }
    stdio::complain(
        "daxtier: huge pages were switched off for this process (PR_SET_THP_DISABLE); a dax device fails without them, \
         so they are switched on again\n",
    );
    true
}

/// What is known of a failed access.
pub(super) enum Found {
    /// The memory is not of a kind that the library hands out.
    Foreign,
    /// What was lost has been replaced since, by another thread.
    Replaced,
    /// The mapping of a device.
    OfDevice(Range<usize>),
}

/// Looks at what is mapped where an access failed, and says what is lost, once.
pub(super) fn find(addr: usize, code: c_int) -> Found {
    static DID: AtomicBool = AtomicBool::new(false);
    let found = line_at(addr, |line, text| {
        if !is_of_a_device(line) {
            // Memory without a file does not fail.
            let is_plain = line.name.is_empty() && line.file.ino == 0;
            return if is_plain && loss::may_go_on() { Found::Replaced } else { Found::Foreign };
        }
        // Relaxed: nothing hangs on it but that this is said once.
        if !DID.swap(true, Ordering::Relaxed) {
            message(text, line, addr, code);
            // SAFETY: the buffer is valid for its length; a failed write has no remedy.
            unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len) };
        }
        Found::OfDevice(line.addresses.clone())
    });
    found.unwrap_or(Found::Foreign)
}

/// Puts zeroed memory in the place of what is lost, unless another thread did. Returns whether the access may be made again.
///
/// One at a time, since the second of two would take away what the first has begun to fill: the look and the replacement
/// are in one section of the room.
pub(super) fn fill(addr: usize, lost: &Range<usize>, is_damaged: bool) -> bool {
    let is_filled = line_at(addr, |line, _| {
        !is_of_a_device(line) || loss::replace(lost, &line.addresses, is_damaged).is_ok()
    });
    is_filled == Some(true)
}

fn message(text: &mut Text, line: &Line<'_>, addr: usize, code: c_int) {
    text.len = 0;
    let what: &[u8] = if code == libc::BUS_ADRERR {
        b" is not there any more: it was unbound, removed or cut short, and what was in it is lost"
    } else {
        b" has a memory error, and what was in the page is lost"
    };
    let name = if line.name.starts_with(b"/memfd:daxtier-lost") {
        b"what the parent process had on a device".as_slice()
    } else {
        line.name
    };
    text.add(b"daxtier: ").add(name).add(what);
    text.add(b" (address ").add_hex(addr as u64);
    text.add(b", offset ").add_hex((addr - line.addresses.start) as u64 + line.offset);
    let what: &[u8] = match code {
        _ if loss::may_go_on() => b"goes on as on_loss or its handler says\n",
        libc::BUS_MCEERR_AO => b"gets SIGBUS if it touches it\n",
        _ => b"gets SIGBUS now\n",
    };
    text.add(b"); the program ").add(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_devices_is_told_from_other_memory() {
        let is_of_a_device = |line: &str| is_of_a_device(&Line::parse(line.as_bytes()).unwrap());
        assert!(is_of_a_device("7f00-8f00 rw-s 00200000 00:05 123                        /dev/dax0.0"));
        assert!(is_of_a_device("7f00-8f00 rw-s 00200000 00:01 9 /memfd:daxtier (deleted)"));
        assert!(!is_of_a_device("7f00-8f00 rw-p 00000000 00:00 0"));
    }

    #[test]
    fn what_is_mapped_at_an_address_is_found() {
        let value = 1;
        let addr = (&raw const value).addr();
        let is_inside = line_at(addr, |line, _| line.addresses.contains(&addr));
        assert_eq!(is_inside, Some(true));
        assert!(line_at(1, |_, _| ()).is_none(), "nothing is mapped there");
    }

    #[test]
    fn the_message_names_the_device_the_address_and_the_offset() {
        let line = Line::parse(b"1000-9000 rw-s 00200000 00:05 1 /dev/dax1.0").unwrap();
        let mut text = Text { bytes: [0; 512], len: 0 };
        let mut message = |code| {
            message(&mut text, &line, 0x1abc, code);
            String::from_utf8(text.bytes[..text.len].to_vec()).unwrap()
        };
        let lost = message(libc::BUS_ADRERR);
        assert!(
            lost.contains("/dev/dax1.0") && lost.contains("0x1abc") && lost.contains("0x200abc"),
            "{lost}"
        );
        assert!(message(libc::BUS_MCEERR_AR).contains("memory error"));
    }
}
