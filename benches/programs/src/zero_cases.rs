//! What `bench-zero` and the criterion bench `zero` measure: ways to come by 2 MiB of zeroes.
//!
//! A case runs in batches; a batch returns the time that it took to get so many pieces of 2 MiB, each touched once, and does
//! the rest untimed. Memory that is cleared was written all over before, so neither its pages nor its zeroes are there for
//! nothing; 256 MiB of it are gone through, so none of it is in the caches.

use daxtier::device::Dram;
use daxtier::{Folio, FolioError, Lifetime, Order, Pgmap, PgmapOptions};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The names of the cases.
pub(crate) const NAMES: &[&str] = &["fresh", "prezeroed", "plain", "memset", "fault"];

/// Bytes in a piece.
const LEN_BYTES: usize = Order::HUGE.len_bytes() as usize;
/// Pieces in a batch.
const NR_PIECES: usize = 128;
/// How many of them are kept ready.
const NR_READY: usize = 64;

/// One batch: how long it took, and for how many pieces.
pub(crate) type Batch = Box<dyn FnMut() -> (Duration, u64)>;

/// Sets a case up.
///
/// # Errors
/// An unknown name, no memory, or a system without huge pages, where the fault would not be one of a huge page.
pub(crate) fn case(name: &str) -> Result<Batch, Box<dyn std::error::Error>> {
    match name {
        // Zeroed when asked for.
        "fresh" => folios(0, NR_PIECES, Pgmap::alloc_folio_zeroed),
        // Zeroed before; at the half the library's thread begins to clear others.
        "prezeroed" => folios(NR_READY, NR_READY, Pgmap::alloc_folio_zeroed),
        // Not zeroed at all: what a folio costs beside its zeroes.
        "plain" => folios(0, NR_PIECES, Pgmap::alloc_folio),
        "memset" => memset(),
        "fault" => fault(),
        _ => Err(format!("there is no case {name:?}").into()),
    }
}

type Alloc = fn(&Pgmap, Order, Lifetime) -> Result<Folio, FolioError>;

/// Takes folios of DRAM that was in use before.
fn folios(nr_ready: usize, nr_pieces: usize, alloc: Alloc) -> Result<Batch, Box<dyn std::error::Error>> {
    let device = Dram::new((NR_PIECES * LEN_BYTES) as u64, None)?;
    let pgmap =
        Pgmap::bind(Arc::new(device), PgmapOptions { retain_memory: true, ..PgmapOptions::default() })?;
    let mut held: Vec<Folio> = Vec::with_capacity(NR_PIECES);
    for _ in 0..NR_PIECES {
        held.push(pgmap.alloc_folio(Order::HUGE, Lifetime::Short)?);
    }
    pgmap.keep_zeroed(nr_ready)?;
    Ok(Box::new(move || {
        for mut folio in held.drain(..) {
            folio.as_mut_slice().expect("mapped, and the only reference").fill(0xa5);
        }
        while pgmap.stats().prezeroed_bytes < (nr_ready * LEN_BYTES) as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        for _ in 0..nr_pieces {
            let folio = alloc(&pgmap, Order::HUGE, Lifetime::Short).expect("there is room");
            touch(folio.address().expect("mapped"));
            held.push(folio);
        }
        (start.elapsed(), nr_pieces as u64)
    }))
}

/// Clears memory that is there with the C library's memset.
fn memset() -> Result<Batch, Box<dyn std::error::Error>> {
    let room = Anonymous::new(NR_PIECES)?;
    Ok(Box::new(move || {
        for piece in 0..NR_PIECES {
            // SAFETY: the piece is the room's.
            unsafe { room.piece(piece).write_bytes(0xa5, LEN_BYTES) };
        }
        let start = Instant::now();
        for piece in 0..NR_PIECES {
            let piece = room.piece(piece);
            // SAFETY: the piece is the room's.
            unsafe { piece.write_bytes(0, LEN_BYTES) };
            touch(std::hint::black_box(piece));
        }
        (start.elapsed(), NR_PIECES as u64)
    }))
}

/// Has the kernel bring huge pages in.
fn fault() -> Result<Batch, Box<dyn std::error::Error>> {
    let room = Anonymous::new(1)?;
    touch(room.piece(0));
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    if !smaps.lines().any(|line| line.starts_with("AnonHugePages:") && !line.ends_with(" 0 kB")) {
        return Err("this system gives no huge pages: see /sys/kernel/mm/transparent_hugepage".into());
    }
    Ok(Box::new(|| {
        let room = Anonymous::new(NR_PIECES).expect("address space");
        let start = Instant::now();
        (0..NR_PIECES).for_each(|piece| touch(room.piece(piece)));
        (start.elapsed(), NR_PIECES as u64)
    }))
}

/// Writes to the first byte of a piece.
fn touch(piece: NonNull<u8>) {
    // SAFETY: callers pass memory of theirs.
    unsafe { piece.write_volatile(1) };
}

/// Private anonymous memory for which huge pages are asked.
struct Anonymous {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    first: NonNull<u8>,
}

impl Anonymous {
    fn new(nr_pieces: usize) -> Result<Anonymous, std::io::Error> {
        let mapped_bytes = (nr_pieces + 1) * LEN_BYTES;
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: the kernel chooses unused addresses.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never returns NULL here");
        // SAFETY: one piece more was mapped than is used.
        let first = unsafe { mapped.add(mapped.as_ptr().align_offset(LEN_BYTES)) };
        // SAFETY: the range was just mapped, and the advice drops nothing.
        unsafe { libc::madvise(first.as_ptr().cast(), nr_pieces * LEN_BYTES, libc::MADV_HUGEPAGE) };
        Ok(Anonymous { mapped, mapped_bytes, first })
    }

    fn piece(&self, piece: usize) -> NonNull<u8> {
        assert!((piece + 2) * LEN_BYTES <= self.mapped_bytes);
        // SAFETY: just checked to lie inside.
        unsafe { self.first.add(piece * LEN_BYTES) }
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and used by nobody any more.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}
