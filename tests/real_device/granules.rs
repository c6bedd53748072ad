//! Devices that are mapped in granules of 4 KiB or of 1 GiB, where the kernel lets a device be changed to that.

use super::{SECRET, UnderTest, device, drive, options, take_all, words};
use daxtier::device::{Dax, DaxOptions, Device, DeviceError, discover};
use daxtier::{
    AllocOptions, Config, Lifetime, Order, Outcome, Pgmap, PgmapOptions, Pool, PoolError, TierName,
};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const SLOT: usize = 2 << 20;
const GIANT: u64 = 1 << 30;

/// The device under test in other granules. It gets its own back in the end, so what uses it is made after this.
struct Granules {
    path: PathBuf,
    own: String,
}

impl Granules {
    /// Unbinds the device and changes its alignment; says that the test skips where the kernel refuses.
    fn of(under_test: &UnderTest, align_bytes: u64) -> Option<Granules> {
        let own = fs::read_to_string(attribute(&under_test.path)).expect("discovery has read it");
        drive(&under_test.path, "unbind");
        let changed = fs::write(attribute(&under_test.path), align_bytes.to_string());
        drive(&under_test.path, "bind");
        if let Err(refusal) = changed {
            println!("skipped: this device can't have an alignment of {align_bytes} bytes: {refusal}");
            return None;
        }
        Some(Granules { path: under_test.path.clone(), own })
    }
}

impl Drop for Granules {
    fn drop(&mut self) {
        drive(&self.path, "unbind");
        let restored = fs::write(attribute(&self.path), &self.own);
        drive(&self.path, "bind");
        if !std::thread::panicking() {
            restored.expect("the alignment that it had");
        }
    }
}

fn attribute(path: &Path) -> PathBuf {
    Path::new("/sys/bus/dax/devices").join(path.file_name().expect("a device has a name")).join("align")
}

fn open_pool(path: &Path, rest: &str) -> Result<Pool, PoolError> {
    let config = format!("fast=64M slow={}{rest},allow-persistent", path.display());
    Pool::open(&Config::parse(&config).expect("a valid configuration"))
}

/// Reads the first word of a page of the device, through a mapping of its own of the granule that holds it.
fn word_on_device(path: &Path, page: u64, granule_bytes: u64) -> u64 {
    let node = fs::File::open(path).expect("the node opens");
    let (start, len) = (page * 4096 / granule_bytes * granule_bytes, granule_bytes as usize);
    // One granule more than is mapped, so that the mapping can begin at a multiple of the granule.
    // SAFETY: a mapping where the kernel likes.
    let room = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(room, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let skip = room.cast::<u8>().align_offset(len);
    let addr = room.cast::<u8>().wrapping_add(skip);
    // SAFETY: inside the room, which nobody else uses.
    let mapped = unsafe {
        libc::mmap(
            addr.cast(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED | libc::MAP_FIXED,
            node.as_raw_fd(),
            start as libc::off_t,
        )
    };
    assert_ne!(mapped, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the page lies in the granule, which was just mapped.
    let at = unsafe { addr.add((page * 4096 - start) as usize) };
    // SAFETY: as above; any bytes are a word, and a page is aligned for one.
    let word = unsafe { at.cast::<u64>().read_volatile() };
    // SAFETY: the room was made above.
    unsafe { libc::munmap(room, 2 * len) };
    word
}

/// Catches code that takes 2 MiB for the granule of every device: a part of the device that begins and ends off a multiple of
/// that, single pages at their places (a mapping that leaves the part's start out fails it), and blocks that move.
#[test]
fn a_device_of_small_granules_serves_folios_and_blocks() {
    let Some(under_test) = device() else { return };
    let Some(_granules) = Granules::of(&under_test, 4096) else { return };
    let range = 3 * 4096..3 * 4096 + (16 << 20) + 4096;
    let part = DaxOptions { range: Some(range.clone()), ..options() };
    for round in 0..2 {
        let dax = Dax::open(&under_test.path, part.clone()).expect("a part in pages");
        assert_eq!((dax.align_bytes(), dax.len_bytes()), (4096, range.end - range.start));
        let pgmap = Pgmap::bind(Arc::new(dax), PgmapOptions::default()).expect("the part binds");
        let mut folios = take_all(&pgmap, Order::PAGE);
        assert_eq!(folios.len(), 4097, "every page of the part");
        for folio in &mut folios {
            let offset = folio.offset();
            assert!(words(folio).iter().all(|&word| word == 0), "round {round}, page {offset:#x}");
            words(folio).fill(SECRET ^ offset);
        }
        for offset in [0, 1, 511, 4096] {
            assert_eq!(
                word_on_device(&under_test.path, 3 + offset, 4096),
                SECRET ^ offset,
                "page {offset:#x}"
            );
        }
    }

    let pool = open_pool(&under_test.path, ",size=32M").expect("the pool opens");
    pool.set_migration_quarantine(Duration::from_millis(1));
    let slow = AllocOptions { tier: Some(TierName::Slow), zero: true, ..AllocOptions::default() };
    let block = pool.malloc(3 * SLOT, SLOT, slow).expect("there is room");
    let words_of = |slot: usize| {
        // SAFETY: the block is longer.
        let at = unsafe { block.add(slot * SLOT) };
        // SAFETY: the slot is live, and used by this thread only.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr().cast::<u64>(), SLOT / 8) }
    };
    for slot in 0..3 {
        assert!(words_of(slot).iter().all(|&word| word == 0), "slot {slot}");
        words_of(slot).iter_mut().zip(0..).for_each(|(word, number)| *word = number << 8 | slot as u64);
    }
    for tier in [TierName::Fast, TierName::Slow] {
        match pool.migrate(block.as_ptr(), 3 * SLOT, tier) {
            Ok(counts) => assert_eq!(counts.get(Outcome::Moved), 3, "{counts:?}"),
            Err(refusal) => println!("nothing moves here: {refusal}"),
        }
        for slot in 0..3 {
            let is_whole = |(&word, number): (&u64, u64)| word == number << 8 | slot as u64;
            assert!(words_of(slot).iter().zip(0..).all(is_whole), "slot {slot} in {tier:?}");
        }
    }
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }.expect("ours");
    pool.close().expect("nothing is left");
}

/// Catches a claim of less than a granule, a folio that is not cleared or lies elsewhere, and a pool that takes a device whose
/// granules its blocks can't have, or does not say what to do.
#[test]
fn a_device_of_giant_granules_serves_folios_and_says_why_it_serves_no_blocks() {
    let Some(under_test) = device() else { return };
    let granules = Granules::of(&under_test, GIANT);
    if granules.is_none() {
        return;
    }
    let less = Dax::open(&under_test.path, DaxOptions { range: Some(0..SLOT as u64), ..options() });
    assert!(matches!(less, Err(DeviceError::NotAligned { align_bytes: GIANT, .. })), "{less:?}");
    for round in 0..2 {
        let pgmap = under_test.bind();
        let mut giant = pgmap.alloc_folio(Order::GIANT, Lifetime::Short).expect("the device has a granule");
        let page_of = |page: usize| page * 512;
        for page in (0..1 << 18).step_by(509) {
            let word = &mut words(&mut giant)[page_of(page)];
            assert_eq!(*word, 0, "round {round}, page {page:#x}");
            *word = SECRET ^ page as u64;
        }
        assert_eq!(word_on_device(&under_test.path, 509, GIANT), SECRET ^ 509);
        assert!(matches!(pgmap.request_folio(509, Order::PAGE), Err(daxtier::FolioError::Busy { .. })));
        drop(giant);
        let mut page = pgmap.request_folio(509, Order::PAGE).expect("the large folio is put");
        words(&mut page).fill(OWN);
        assert_eq!(word_on_device(&under_test.path, 509, GIANT), OWN);
    }
    let done = under_test.open().scrub_free(&mut |_| ()).expect("the device answers");
    assert_eq!((done.cleared_bytes, done.used_bytes), (under_test.open().len_bytes(), 0));

    let refusal = open_pool(&under_test.path, "").expect_err("blocks can't lie there");
    assert!(matches!(refusal, PoolError::CoarseAlign { align_bytes: GIANT, .. }), "{refusal}");
    assert!(refusal.to_string().contains("daxtier list"), "{refusal}");
    let all = discover(Path::new("/"));
    let info = all.iter().find(|info| info.path == under_test.path).expect("it is there");
    let mend = info.mend().expect("a command that changes it");
    // As a shell runs it; sudo is for who is not root.
    let mended = std::process::Command::new("sh").args(["-ec", &mend.replace("sudo ", "")]).output();
    assert!(mended.as_ref().is_ok_and(|output| output.status.success()), "{mend}: {mended:?}");
    open_pool(&under_test.path, "").expect("and then they can");
    drop(granules);
}

/// Written by who comes second.
const OWN: u64 = 0x1111_2222_3333_4444;
