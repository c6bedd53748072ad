//! Pages, orders and sizes: the units that every layer shares.
//!
//! A *page* is 4 KiB. An *order* is the base-2 logarithm of a number of pages, 0 (4 KiB) to 18 (1 GiB). An
//! *offset* is a page index inside a pgmap and is carried as a plain `u64`; it is never a pointer. Sizes that
//! people write (`512M`, `4G`, `1T`) are parsed and printed here, in powers of 1024.

use std::fmt;

/// Base-2 logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: 4096.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// The largest order: 2^18 pages, 1 GiB.
pub const MAX_ORDER: u8 = 18;

/// The size of a folio, as the base-2 logarithm of its number of pages: 0 (4 KiB) to 18 (1 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// One page, 4 KiB.
    pub const PAGE: Order = Order(0);
    /// 2 MiB, the granule of CXL memory and of huge pages.
    pub const HUGE: Order = Order(9);
    /// 1 GiB, the largest folio.
    pub const GIANT: Order = Order(MAX_ORDER);

    /// Makes an order from a number.
    ///
    /// # Errors
    /// [`OrderError`] when `order` is above [`MAX_ORDER`].
    pub const fn new(order: u8) -> Result<Order, OrderError> {
        if order <= MAX_ORDER { Ok(Order(order)) } else { Err(OrderError { order }) }
    }

    /// Returns the smallest order whose folio holds `len_bytes`, or `None` above 1 GiB. Zero bytes need a page.
    pub const fn fitting(len_bytes: u64) -> Option<Order> {
        let nr_pages = len_bytes.div_ceil(PAGE_SIZE as u64);
        if nr_pages > 1 << MAX_ORDER {
            return None;
        }
        let mut order = 0;
        while 1u64 << order < nr_pages {
            order += 1;
        }
        Some(Order(order))
    }

    /// Returns the order as a number, 0..=18.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the number of pages in a folio of this order.
    pub const fn nr_pages(self) -> u64 {
        1 << self.0
    }

    /// Returns the number of bytes in a folio of this order.
    pub const fn len_bytes(self) -> u64 {
        self.nr_pages() << PAGE_SHIFT
    }

    /// Returns whether `offset` (in pages) is a multiple of this order's number of pages.
    pub const fn is_aligned(self, offset: u64) -> bool {
        offset & (self.nr_pages() - 1) == 0
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {} ({})", self.0, Bytes(self.len_bytes()))
    }
}

/// An order above [`MAX_ORDER`] was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("order {order} is above the largest, {MAX_ORDER} (1 GiB)")]
pub struct OrderError {
    /// The order that was asked for.
    pub order: u8,
}

/// A number of bytes that prints itself in the largest unit that keeps it exact, or with two decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const UNITS: [(u64, &str); 5] =
    [(1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in UNITS {
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{} {name}", self.0 / unit)
                } else {
                    write!(f, "{:.2} {name}", self.0 as f64 / unit as f64)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A number of bytes that prints itself the way a configuration spells it: exact, in the largest unit that
/// divides it (`64M`, `1537M`, `4097`). [`parse_size`] reads it back to the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExactBytes(pub u64);

impl fmt::Display for ExactBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in UNITS {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{}", self.0 / unit, &name[..1]);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A size that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// The text is not a number with an optional unit.
    #[error("{text:?} is not a size: write a number with K, M, G or T behind it, such as 512M or 4G")]
    Malformed {
        /// What was read.
        text: String,
    },
    /// The size does not fit in 63 bits.
    #[error("{text:?} is larger than any address space")]
    TooLarge {
        /// What was read.
        text: String,
    },
}

/// Parses a size such as `4096`, `512M`, `4G`, `1.5T` or `64MiB`, in powers of 1024.
///
/// # Errors
/// [`SizeError`] names the text when it is not a size or does not fit in 63 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed { text: text.to_owned() };
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(malformed()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || fraction.contains('.')
        || (number.contains('.') && (fraction.is_empty() || shift == 0))
    {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge { text: text.to_owned() };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let scale = 10u128
            .checked_pow(fraction.len() as u32)
            .filter(|_| fraction.len() <= 18)
            .ok_or_else(malformed)?;
        let part: u128 = fraction.parse().map_err(|_| malformed())?;
        bytes += (part << shift) / scale;
    }
    u64::try_from(bytes).ok().filter(|&b| b <= i64::MAX as u64).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("64MiB", 64 << 20),
            ("4G", 4 << 30),
            (" 1T ", 1 << 40),
            ("1.5G", 3 << 29),
            ("2 GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_sizes_are_named() {
        for text in ["", "G", "1X", "-1G", "1.G", "1..5G", "1.5", "0x10", "1G2", ".5G", "½G"] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed { text: text.into() }), "{text}");
        }
        for text in ["9999999999999T", "99999999999999999999999999999999999999999999", "8192P"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge { text: text.into() }), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_their_largest_unit() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (3 << 29, "1.50 GiB"), (1 << 40, "1 TiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn exact_sizes_read_back_to_themselves() {
        for (bytes, text) in [
            (0, "0"),
            (4097, "4097"),
            (64 << 20, "64M"),
            (1537 << 20, "1537M"),
            (1 << 40, "1T"),
            (6 << 30, "6G"),
        ] {
            assert_eq!(ExactBytes(bytes).to_string(), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn an_order_fits_what_it_says() {
        assert_eq!(Order::fitting(0), Some(Order::PAGE));
        assert_eq!(Order::fitting(4096), Some(Order::PAGE));
        assert_eq!(Order::fitting(4097).map(Order::get), Some(1));
        assert_eq!(Order::fitting(2 << 20), Some(Order::HUGE));
        assert_eq!(Order::fitting(1 << 30), Some(Order::GIANT));
        assert_eq!(Order::fitting((1 << 30) + 1), None);
        assert_eq!(Order::new(19), Err(OrderError { order: 19 }));
    }
}
