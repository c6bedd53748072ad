//! The lines of `/proc/PID/maps`. Reads nothing and allocates nothing, so a signal handler may use it.

use super::file::FileId;
use std::ops::Range;

/// What a line says of a mapping.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Its addresses.
    pub(crate) addresses: Range<usize>,
    /// Where it begins in the file that is mapped.
    pub(crate) offset: u64,
    /// The file; zeroes for memory without one.
    pub(crate) file: FileId,
    /// The file's path, another name in brackets, or nothing.
    pub(crate) name: &'a [u8],
}

impl Line<'_> {
    /// Reads `START-END PERMISSIONS OFFSET DEVICE INODE [NAME]`.
    pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
        let mut words = line.splitn(6, |&byte| byte == b' ');
        let (start, end) = pair(words.next()?, b'-')?;
        let offset = number(words.nth(1)?, 16)?;
        let (major, minor) = pair(words.next()?, b':')?;
        let ino = number(words.next()?, 10)?;
        let name = words.next().unwrap_or_default().trim_ascii_start();
        let file = FileId { dev: libc::makedev(major as u32, minor as u32), ino };
        Some(Line { addresses: start as usize..end as usize, offset, file, name })
    }
}

/// Reads two hexadecimal numbers.
fn pair(text: &[u8], between: u8) -> Option<(u64, u64)> {
    let mut numbers = text.splitn(2, |&byte| byte == between);
    Some((number(numbers.next()?, 16)?, number(numbers.next()?, 16)?))
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = b"7f00-8f00 rw-s 00200000 00:05 123                        /dev/dax0.0";
        let line = Line::parse(line).unwrap();
        assert_eq!((line.addresses, line.offset), (0x7f00..0x8f00, 0x20_0000));
        assert_eq!(line.file, FileId { dev: libc::makedev(0, 5), ino: 123 });
        assert_eq!(line.name, b"/dev/dax0.0");
        for unnamed in [&b"7f00-8f00 rw-p 00000000 00:00 0 "[..], b"7f00-8f00 rw-p 00000000 00:00 0"] {
            assert!(Line::parse(unnamed).unwrap().name.is_empty());
        }
        for wrong in [&b""[..], b"nonsense", b"7f00 rw-p 00000000 00:00 0", b"7f00-8f00 rw-p 0 0 0"] {
            assert_eq!(Line::parse(wrong), None);
        }
    }
}
