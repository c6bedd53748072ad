//! Folios: request by offset, alloc by order, references, and what a folio is.
//!
//! A folio in C is the core's `RawFolio`: a plain number that names the pgmap, the offset and the generation, so that
//! a reference to a folio that is gone is told from one to its successor in the same place. Uses `pgmap` and `pool`.

use crate::alloc::{Purpose, options, order};
use crate::error::*;
use crate::pgmap::{self, DaxtierPgmap};
use crate::pool::{DaxtierPool, POOLS, alloc_failure, foreign, non_null};
use crate::sized::{self, SizedStruct};
use daxtier_core::folio::{Folio, FolioError, FolioInfo, RawFolio};
use daxtier_core::pgmap::Pgmap;
use daxtier_core::runtime::Pool;
use daxtier_core::tier::Tier;
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr;

/// A folio: 2^order pages in a row, naturally aligned, with a reference count. The number names this folio and no
/// later one in the same place. Never 0.
pub type DaxtierFolio = u64;

/// What a folio is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierFolioInfo {
    /// Set by the caller: sizeof(struct daxtier_folio_info).
    pub size: usize,
    /// The folio; 0 in a list if it was gone when the list was written.
    pub folio: DaxtierFolio,
    /// The pgmap that it is of.
    pub pgmap: DaxtierPgmap,
    /// Its first page in the pgmap.
    pub offset: u64,
    /// Its user word, see daxtier_folio_set_user().
    pub user: u64,
    /// Its first byte, or NULL in a list if it was never used through an address.
    pub address: *mut c_void,
    /// Its order: it is 4096 << order bytes long.
    pub order: u32,
    /// References to it at this moment.
    pub ref_count: u32,
    /// Number of the tier that its pgmap is in, 0 the fastest; -1 when the pgmap is in no pool.
    pub tier: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); six words and four halves leave no padding; integers and a pointer.
unsafe impl SizedStruct for DaxtierFolioInfo {
    const NAME: &'static str = "daxtier_folio_info";
    const FIRST_SIZE: usize = 64;
}

const _: () = assert!(size_of::<DaxtierFolioInfo>() == DaxtierFolioInfo::FIRST_SIZE);

/// Requests the folio of one order at one offset, which must be idle: all its pages go from unused to one reference,
/// the caller's. The folio never moves, so it may be used for direct I/O, io_uring or RDMA.
///
/// Threads: any number at once; of two requests for the same pages one gets them. Blocks: no, but for short locks and,
/// where an extent is used for the first time, on the kernel. After fork: DAXTIER_EFORKED in the child for the
/// parent's pgmaps. Signal handlers: not allowed. Lifetime: the folio is the caller's until daxtier_folio_put(), and
/// keeps its pgmap open.
/// Returns 0; DAXTIER_EBUSY when a page is in use; DAXTIER_EOFFSET beyond the end; DAXTIER_EALIGN for an offset that is
/// no multiple of the folio's pages; DAXTIER_EORDER; DAXTIER_EDYING; DAXTIER_ENOMEM at the pgmap's limit;
/// DAXTIER_ECORRUPT; DAXTIER_EFORKED; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_request(
    pgmap: DaxtierPgmap,
    offset: u64,
    order: u32,
    folio: *mut DaxtierFolio,
) -> c_int {
    guard(|| {
        non_null(folio, "folio")?;
        let order = self::order(order)?;
        let requested = pgmap::with_any(pgmap, |pgmap| {
            pgmap.request_folio(offset, order).map_err(|error| folio_failure(&error))
        })?;
        // SAFETY: the C contract: room for one folio; checked not to be NULL.
        unsafe { folio.write(requested.into_raw().to_bits()) };
        Ok(())
    })
}

/// Allocates a folio of a pool where its policy says.
///
/// `flags`: DAXTIER_ZERO, DAXTIER_MOVABLE (orders 9 and above), one DAXTIER_TIER_ flag, one DAXTIER_HINT_ flag.
/// Without DAXTIER_MOVABLE the folio never moves.
///
/// Threads: any number at once. Blocks: no, but for short locks and, where memory is used for the first time, on the
/// kernel. After fork: the folio is the parent's; in the child calls for it return DAXTIER_EFORKED where its memory is
/// not private. Signal handlers: not allowed. Lifetime: the folio is the caller's until daxtier_folio_put(); the pool
/// cannot be closed before.
/// Returns 0; DAXTIER_ENOMEM; DAXTIER_EORDER; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_ENODEV when the pool has no
/// such tier; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_alloc(
    pool: DaxtierPool,
    order: u32,
    flags: u64,
    folio: *mut DaxtierFolio,
) -> c_int {
    guard(|| {
        non_null(folio, "folio")?;
        let order = self::order(order)?;
        let options = options(flags, Purpose::Folio(order))?;
        let allocated =
            POOLS.get(pool)?.alloc_folio(order, options).map_err(|error| alloc_failure(&error))?;
        // SAFETY: the C contract: room for one folio; checked not to be NULL.
        unsafe { folio.write(allocated.into_raw().to_bits()) };
        Ok(())
    })
}

/// Allocates `count` folios of one order from a pool, as many as there are. Otherwise as daxtier_folio_alloc().
///
/// Threads: any number at once. Blocks: as daxtier_folio_alloc(). After fork: as daxtier_folio_alloc().
/// Signal handlers: not allowed. Lifetime: each folio is the caller's until its daxtier_folio_put().
/// Returns 0 if at least one was allocated, and then `nr_folios` says how many; DAXTIER_EINVAL for count 0; the codes
/// of daxtier_folio_alloc().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_alloc_bulk(
    pool: DaxtierPool,
    order: u32,
    flags: u64,
    count: usize,
    folios: *mut DaxtierFolio,
    nr_folios: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL, or room for `count` folios and for a count.
        let mut bulk = unsafe { Bulk::new(folios, count, nr_folios) }?;
        let order = self::order(order)?;
        let options = options(flags, Purpose::Folio(order))?;
        let pool = POOLS.get(pool)?;
        while !bulk.is_full() {
            match pool.alloc_folio(order, options) {
                Ok(folio) => bulk.push(folio),
                Err(error) => return bulk.end(alloc_failure(&error)),
            }
        }
        bulk.hand_out();
        Ok(())
    })
}

/// Where a call puts folios that it hands out in bulk.
pub(crate) struct Bulk {
    folios: *mut DaxtierFolio,
    nr_folios: *mut usize,
    capacity: usize,
    got: usize,
}

impl Bulk {
    /// Checks the outputs of such a call.
    ///
    /// # Errors
    /// `DAXTIER_ENULL`, or `DAXTIER_EINVAL` for a count of 0.
    ///
    /// # Safety
    /// Each is NULL or has room, `folios` for `count` elements, until the `Bulk` is gone.
    pub(crate) unsafe fn new(
        folios: *mut DaxtierFolio,
        count: usize,
        nr_folios: *mut usize,
    ) -> Result<Bulk, Failure> {
        non_null(folios, "folios")?;
        non_null(nr_folios, "nr_folios")?;
        if count == 0 {
            return Err(failure!(DAXTIER_EINVAL, "count is 0"));
        }
        Ok(Bulk { folios, nr_folios, capacity: count, got: 0 })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.got == self.capacity
    }

    /// Hands a folio out.
    ///
    /// # Panics
    /// When there are more than were asked for.
    pub(crate) fn push(&mut self, folio: Folio) {
        assert!(!self.is_full(), "no more folios come than were asked for");
        // SAFETY: there is room for `capacity` folios, as `new` was told, and `got` is below that.
        let out = unsafe { self.folios.add(self.got) };
        // SAFETY: as above.
        unsafe { out.write(folio.into_raw().to_bits()) };
        self.got += 1;
    }

    /// Ends the call with a refusal, which is a success with fewer folios if there was one at all.
    pub(crate) fn end(self, failure: Failure) -> Result<(), Failure> {
        if self.got == 0 {
            return Err(failure);
        }
        self.hand_out();
        Ok(())
    }

    /// Says how many folios there are.
    pub(crate) fn hand_out(self) {
        // SAFETY: there is room for a count, as `new` was told.
        unsafe { self.nr_folios.write(self.got) };
    }
}

/// Adds a reference to a folio that the caller has a reference to.
///
/// Threads: any number at once. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's folios.
/// Signal handlers: not allowed. Lifetime: each reference needs its own daxtier_folio_put().
/// Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
/// DAXTIER_ECORRUPT.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_folio_get(folio: DaxtierFolio) -> c_int {
    guard(|| raw(folio)?.get().map_err(|error| folio_failure(&error)))
}

/// Takes a reference to the live folio that covers a page, if there is one.
///
/// Threads: any number at once, against any put. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's
/// pgmaps. Signal handlers: not allowed. Lifetime: the reference needs its own daxtier_folio_put().
/// Returns 0; DAXTIER_ENOENT when the page is idle or the offset lies beyond the end; DAXTIER_EHANDLE; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_try_get(
    pgmap: DaxtierPgmap,
    offset: u64,
    folio: *mut DaxtierFolio,
) -> c_int {
    guard(|| {
        non_null(folio, "folio")?;
        let found = pgmap::with_any(pgmap, |pgmap| {
            pgmap.try_get_folio(offset).ok_or_else(|| {
                failure!(DAXTIER_ENOENT, "no live folio of {} covers page {offset}", pgmap.name())
            })
        })?;
        // SAFETY: the C contract: room for one folio; checked not to be NULL.
        unsafe { folio.write(found.into_raw().to_bits()) };
        Ok(())
    })
}

/// Puts one reference. The last put frees the folio and then runs the free callback of its pgmap once, inside this
/// call and on this thread.
///
/// Threads: any number at once; any thread may put. Blocks: no, but for short locks, and for as long as the callback
/// takes. After fork: DAXTIER_EFORKED in the child for the parent's folios, and nothing happens.
/// Signal handlers: not allowed. Lifetime: the caller's reference ends with success; after the last one every call
/// with this number returns DAXTIER_ESTALE.
/// Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
/// DAXTIER_ECORRUPT.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_folio_put(folio: DaxtierFolio) -> c_int {
    guard(|| raw(folio)?.put().map_err(|error| folio_failure(&error)))
}

/// Writes what a folio is: address, pgmap, offset, order, tier, user word.
///
/// Threads: any number at once. Blocks: no, but for the kernel where an extent is mapped for the first time.
/// After fork: DAXTIER_EFORKED in the child for the parent's folios. Signal handlers: not allowed.
/// Lifetime: the address is valid as long as the caller has a reference. `info` is not used after the call.
/// Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED;
/// DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_info(folio: DaxtierFolio, info: *mut DaxtierFolioInfo) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(info) }?;
        let raw = raw(folio)?;
        let found = raw.info().map_err(|error| folio_failure(&error))?;
        let mut value = DaxtierFolioInfo::of(&found, folio, tier_of(found.pgmap));
        // SAFETY: the C contract: the caller has a reference, which keeps the folio; it is only borrowed here.
        let borrowed = ManuallyDrop::new(unsafe { Folio::from_raw(raw) });
        // This maps the folio where it was not mapped yet, and notes that its bytes are in use.
        let address = borrowed.address().map_err(|error| folio_failure(&error))?;
        value.address = address.as_ptr().cast();
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(info, size, &value) };
        Ok(())
    })
}

/// Takes a reference to the live folio that holds the byte at `address`: an address from daxtier_folio_info(), or one
/// past it inside the folio. Blocks of daxtier_malloc() are in no folio of the caller's; use daxtier_where() for them.
///
/// Threads: any number at once, against any put. Blocks: no. After fork: DAXTIER_EFORKED in the child for the parent's
/// folios. Signal handlers: not allowed. Lifetime: the reference needs its own daxtier_folio_put().
/// Returns 0; DAXTIER_EFOREIGN when the address is in no pgmap; DAXTIER_ENOENT when its page is idle; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_folio_from_address(
    address: *const c_void,
    folio: *mut DaxtierFolio,
) -> c_int {
    guard(|| {
        non_null(folio, "folio")?;
        let address = address.cast::<u8>();
        let at = Pgmap::all().into_iter().find_map(|pgmap| {
            let offset = pgmap.offset_of(address)?;
            Some((pgmap, offset))
        });
        let (pgmap, offset) = at.ok_or_else(|| foreign(address))?;
        let found = pgmap.try_get_folio(offset).ok_or_else(|| {
            failure!(DAXTIER_ENOENT, "page {offset} of {}, at {:#x}, is idle", pgmap.name(), address.addr())
        })?;
        // SAFETY: the C contract: room for one folio; checked not to be NULL.
        unsafe { folio.write(found.into_raw().to_bits()) };
        Ok(())
    })
}

/// Sets the user word of a folio: any number of the caller's, 0 at first. The free callback receives the last one.
///
/// Threads: any number at once; the last one stays. Blocks: no. After fork: DAXTIER_EFORKED in the child for the
/// parent's folios. Signal handlers: not allowed. Lifetime: until the folio is gone.
/// Returns 0; DAXTIER_ESTALE when the folio is gone; DAXTIER_EHANDLE for a number that is no folio; DAXTIER_EFORKED.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_folio_set_user(folio: DaxtierFolio, user: u64) -> c_int {
    guard(|| raw(folio)?.set_user(user).map_err(|error| folio_failure(&error)))
}

impl DaxtierFolioInfo {
    fn of(info: &FolioInfo, folio: DaxtierFolio, tier: Option<i32>) -> DaxtierFolioInfo {
        let address = info.address.unwrap_or(0);
        DaxtierFolioInfo {
            size: size_of::<DaxtierFolioInfo>(),
            folio,
            pgmap: pgmap::number_of(info.pgmap),
            offset: info.offset,
            user: info.user,
            address: ptr::with_exposed_provenance_mut(address),
            order: info.order.get().into(),
            ref_count: info.ref_count,
            tier: tier.unwrap_or(-1),
            reserved: 0,
        }
    }
}

/// Returns the number of the tier that a pgmap is in, in whichever pool has it.
fn tier_of(id: u16) -> Option<i32> {
    POOLS.find_map(|_, pool| tier_in(pool, id))
}

/// Returns the number of the tier that a pgmap is in, if it is this pool's.
pub(crate) fn tier_in(pool: &Pool, id: u16) -> Option<i32> {
    let has_it = |tier: &Tier| tier.pgmaps().iter().any(|pgmap| pgmap.id() == id);
    pool.tiers().iter().position(has_it).map(|tier| tier as i32)
}

/// An array of the caller's that receives the folios in use.
pub(crate) struct FolioList {
    folios: *mut DaxtierFolioInfo,
    element_size: usize,
    capacity: usize,
    nr_folios: *mut usize,
}

impl FolioList {
    /// Checks the caller's array before any work is done.
    ///
    /// # Safety
    /// `folios` is NULL or points to `capacity` elements, each as long as the size field of the first says;
    /// `nr_folios` is NULL or has room for a count.
    pub(crate) unsafe fn new(
        folios: *mut DaxtierFolioInfo,
        capacity: usize,
        nr_folios: *mut usize,
    ) -> Result<FolioList, Failure> {
        let element_size = if capacity == 0 {
            0
        } else {
            // SAFETY: the caller argued it.
            unsafe { sized::check_out(folios) }?
        };
        Ok(FolioList { folios, element_size, capacity, nr_folios })
    }

    /// Fills the array and the count. `tier_of` says which tier of its pool a pgmap is in.
    ///
    /// # Safety
    /// The pointers given to `new` are still valid.
    pub(crate) unsafe fn fill(&self, infos: &[FolioInfo], tier_of: impl Fn(u16) -> Option<i32>) {
        for (at, info) in infos.iter().take(self.capacity).enumerate() {
            let value = DaxtierFolioInfo::of(info, raw_of(info), tier_of(info.pgmap));
            // SAFETY: `at` is below the capacity, and the elements were measured by `new`.
            unsafe { sized::write_element(self.folios, self.element_size, at, &value) };
        }
        if !self.nr_folios.is_null() {
            // SAFETY: the caller argued it.
            unsafe { self.nr_folios.write(infos.len()) };
        }
    }
}

/// Reads a folio's number.
fn raw(folio: DaxtierFolio) -> Result<RawFolio, Failure> {
    // SAFETY: the C contract: a number that this library handed out. The core checks what it names.
    unsafe { RawFolio::from_bits(folio) }.ok_or_else(|| failure!(DAXTIER_EHANDLE, "0 is no folio"))
}

/// Returns the number of the folio that a list names, or 0 if it is gone or its pgmap is dying.
fn raw_of(info: &FolioInfo) -> DaxtierFolio {
    let folio = Pgmap::from_id(info.pgmap).and_then(|pgmap| pgmap.try_get_folio(info.offset));
    folio.map_or(0, |folio| {
        let raw = folio.into_raw();
        // The reference was only taken to learn the number. Whoever holds the folio still does.
        let _ = raw.put();
        raw.to_bits()
    })
}

/// Returns the code of a refusal.
pub(crate) fn folio_code(error: &FolioError) -> i32 {
    match error {
        FolioError::OutOfBounds { .. } => DAXTIER_EOFFSET,
        FolioError::Misaligned { .. } => DAXTIER_EALIGN,
        FolioError::OrderTooSmall { .. } | FolioError::OrderTooLarge { .. } => DAXTIER_EORDER,
        FolioError::Busy { .. } => DAXTIER_EBUSY,
        FolioError::Dying { .. } => DAXTIER_EDYING,
        FolioError::Exhausted { .. } | FolioError::LimitReached { .. } => DAXTIER_ENOMEM,
        FolioError::NotClaimed { .. } => DAXTIER_ENOENT,
        FolioError::OwnOffsets { .. } => DAXTIER_ENOTSUP,
        FolioError::Stale { .. } => DAXTIER_ESTALE,
        FolioError::Corrupt { .. } | FolioError::Quarantined { .. } => DAXTIER_ECORRUPT,
        FolioError::Forked { .. } => DAXTIER_EFORKED,
        other => -other.errno(),
    }
}

pub(crate) fn folio_failure(error: &FolioError) -> Failure {
    failure!(folio_code(error), "{error}")
}
