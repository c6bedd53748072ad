//! How much memory the machine can give, read without allocating.

/// Returns MemAvailable of /proc/meminfo in bytes; `u64::MAX` where it can't be read.
pub(crate) fn available_bytes() -> u64 {
    let mut buffer = [0u8; 2048];
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(c"/proc/meminfo".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return u64::MAX;
    }
    // SAFETY: the buffer is writable for its length.
    let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    // SAFETY: the descriptor was opened above.
    unsafe { libc::close(fd) };
    let text = &buffer[..usize::try_from(read).unwrap_or(0)];
    field_kib(text, b"MemAvailable:").map_or(u64::MAX, |kib| kib * 1024)
}

fn field_kib(text: &[u8], name: &[u8]) -> Option<u64> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    let digits = line.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    digits.copied().try_fold(None, |value: Option<u64>, digit| {
        value.unwrap_or(0).checked_mul(10)?.checked_add(u64::from(digit - b'0')).map(Some)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_and_read() {
        let text = b"MemTotal:       24000000 kB\nMemAvailable:   12345678 kB\nBuffers: 1 kB\n";
        assert_eq!(field_kib(text, b"MemAvailable:"), Some(12_345_678));
        assert_eq!(field_kib(text, b"SwapFree:"), None);
        assert_eq!(field_kib(b"MemAvailable: kB", b"MemAvailable:"), None);
        assert!(available_bytes() > 0);
    }
}
