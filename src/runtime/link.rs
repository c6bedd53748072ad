//! How the copies of daxtier in one process find each other.
//!
//! A process may hold several: the preload library, the C library, the crate inside the program or inside another
//! library. Each has its own pools. They meet through one data symbol, `daxtier_runtime_v1`, which the preload
//! library and the C library export: a [`RuntimeV1`], a table of functions with the C calling convention. The first
//! one in the loader's order is the *primary* ([`primary`]); LD_PRELOAD comes before every library that a program
//! names, so under the preload it is the preload's. The others attach their own table to it ([`join`]), and whoever
//! meets a pointer that is not its own asks the primary whose it is ([`owner_of`]).
//!
//! A copy writes its side once, as an implementation of [`Runtime`], and builds the table with [`RuntimeV1::of`]. The
//! layout of the table is fixed for good: it grows at its end, `size_bytes` says how far, and another layout takes
//! another symbol. Uses `sys::dl`; used by the pool, the C library and the preload library.
//!
//! # Invariants
//! - I1: a table that was attached is never freed and its library never unloaded (`keep_loaded`).
//! - I2: entries of `Peers` only go from null to a table.

mod moving;

pub use moving::{LinkMigrationStats, LinkMoves, MOST_OUTCOMES, Moving, MovingV1};

use crate::sys::dl;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The name of the exported table.
pub const RUNTIME_SYMBOL: &std::ffi::CStr = c"daxtier_runtime_v1";

/// A refusal: an `errno` value, positive.
pub type Errno = c_int;

/// Where a byte lies, as it crosses between copies.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPlacement {
    /// Index of the tier, 0 the fastest.
    pub tier: u32,
    /// Order of the folio.
    pub order: u32,
    /// Number of the pgmap.
    pub pgmap: u64,
    /// First page of the folio in the pgmap.
    pub offset: u64,
    /// Name of the tier, NUL-terminated.
    pub tier_name: [u8; 16],
    /// Name of the device, NUL-terminated, cut where it is longer.
    pub device: [u8; 128],
}

/// The figures of one tier, as they cross between copies.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTierStats {
    /// Name of the tier, NUL-terminated.
    pub name: [u8; 16],
    /// Kind of its memory, NUL-terminated.
    pub kind: [u8; 16],
    /// Bytes that the tier may hold.
    pub capacity_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Most bytes that were in use at once.
    pub peak_bytes: u64,
    /// Bytes of the library's own bookkeeping.
    pub metadata_bytes: u64,
    /// Successful allocations.
    pub allocations: u64,
    /// Refused allocations.
    pub failures: u64,
    /// Live folios of each order.
    pub folios_by_order: [u64; 19],
}

/// What one copy of daxtier does for the others, on its own pools alone.
///
/// The functions may be called from any thread at any time, and must not panic; a panic becomes `EIO`.
pub trait Runtime: Moving {
    /// Returns the table of this copy.
    fn table() -> &'static RuntimeV1;

    /// Returns whether `ptr` points into memory that this copy handed out or may hand out. Does not block or
    /// allocate.
    fn owns(ptr: *const u8) -> bool;

    /// Returns the number of bytes that the allocation at `ptr` may use.
    ///
    /// # Errors
    /// `EINVAL` when no allocation of this copy starts at `ptr`.
    fn usable_size(ptr: NonNull<u8>) -> Result<usize, Errno>;

    /// Allocates from the default pool of this copy. `flags` are those of the C interface.
    ///
    /// # Errors
    /// `ENODEV` when there is no default pool, `ENOMEM` when it is exhausted, `EINVAL` for a wrong argument.
    fn malloc(size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Errno>;

    /// Resizes an allocation of this copy within its pool.
    ///
    /// # Errors
    /// As for [`malloc`](Runtime::malloc); the old allocation is then untouched.
    ///
    /// # Safety
    /// `ptr` is a live allocation of this copy, and nobody uses it meanwhile.
    unsafe fn realloc(ptr: NonNull<u8>, size: usize, align: usize, flags: u64) -> Result<NonNull<u8>, Errno>;

    /// Frees an allocation of this copy.
    ///
    /// # Errors
    /// `EINVAL` when no allocation of this copy starts at `ptr`.
    ///
    /// # Safety
    /// `ptr` is a live allocation of this copy, and nobody uses it afterwards.
    unsafe fn free(ptr: NonNull<u8>) -> Result<(), Errno>;

    /// Says where the byte at `ptr` lies now.
    fn where_is(ptr: *const u8) -> Option<LinkPlacement>;

    /// Returns the figures of a tier of the default pool, `None` past the last.
    fn tier_stats(tier: u32) -> Option<LinkTierStats>;
}

/// The table of one copy. Functions return 0 or a negative `errno` value, and write their outputs only with 0.
#[repr(C)]
#[derive(Debug)]
pub struct RuntimeV1 {
    /// Length of this structure in the library that built it.
    pub size_bytes: u32,
    /// 1.
    pub abi: u32,
    /// Version of the library that built it: major, minor, patch as `0x00MMmmpp`.
    pub version: u32,
    /// Zero.
    pub reserved: u32,
    /// See [`Runtime::owns`]: 1 or 0.
    pub owns: unsafe extern "C" fn(ptr: *const c_void) -> c_int,
    /// See [`Runtime::usable_size`].
    pub usable_size: unsafe extern "C" fn(ptr: *const c_void, size: *mut usize) -> c_int,
    /// See [`Runtime::malloc`].
    pub malloc: unsafe extern "C" fn(size: usize, align: usize, flags: u64, out: *mut *mut c_void) -> c_int,
    /// See [`Runtime::realloc`].
    pub realloc: unsafe extern "C" fn(
        ptr: *mut c_void,
        size: usize,
        align: usize,
        flags: u64,
        out: *mut *mut c_void,
    ) -> c_int,
    /// See [`Runtime::free`].
    pub free: unsafe extern "C" fn(ptr: *mut c_void) -> c_int,
    /// See [`Runtime::where_is`]; `ENOENT` for `None`.
    pub where_is: unsafe extern "C" fn(ptr: *const c_void, out: *mut LinkPlacement) -> c_int,
    /// See [`Runtime::tier_stats`]; `ENOENT` for `None`.
    pub tier_stats: unsafe extern "C" fn(tier: u32, out: *mut LinkTierStats) -> c_int,
    /// Attaches the table of another copy; `ENOSPC` when there are too many.
    pub attach: unsafe extern "C" fn(peer: *const RuntimeV1) -> c_int,
    /// Returns the table of the copy that owns `ptr`: this one, an attached one, or null.
    pub owner_of: unsafe extern "C" fn(ptr: *const c_void) -> *const RuntimeV1,
    /// Name of what this copy is part of: `preload`, `library` or `crate`; NUL-terminated, static.
    pub name: *const c_char,
    /// The address of something that each copy has once: two tables with the same one are of the same copy. The
    /// table's own address does not tell, since an exported symbol means the first of its name.
    pub copy: *const c_void,
    /// Moves memory of the default pool.
    pub moving: MovingV1,
}

// SAFETY: a table is immutable; one pointer leads to a static string, the other is only compared.
unsafe impl Sync for RuntimeV1 {}

impl RuntimeV1 {
    /// Returns whether the table is of the copy that asks.
    pub fn is_of_this_copy(&self) -> bool {
        ptr::addr_eq(self.copy, &raw const PEERS)
    }

    /// Builds the table of the copy that `R` implements.
    pub const fn of<R: Runtime>(name: &'static std::ffi::CStr, version: u32) -> RuntimeV1 {
        RuntimeV1 {
            size_bytes: size_of::<RuntimeV1>() as u32,
            abi: 1,
            version,
            reserved: 0,
            owns: owns::<R>,
            usable_size: usable_size::<R>,
            malloc: malloc::<R>,
            realloc: realloc::<R>,
            free: free::<R>,
            where_is: where_is::<R>,
            tier_stats: tier_stats::<R>,
            attach,
            owner_of: owner_of_here::<R>,
            name: name.as_ptr(),
            copy: (&raw const PEERS).cast(),
            moving: MovingV1::of::<R>(),
        }
    }
}

/// Returns the primary table of the process, unless this process has none. The loader is asked once; may allocate
/// then.
pub fn primary() -> Option<&'static RuntimeV1> {
    static PRIMARY: OnceLock<Option<&'static RuntimeV1>> = OnceLock::new();
    *PRIMARY.get_or_init(|| {
        let table = dl::find_symbol(RUNTIME_SYMBOL)?.cast::<RuntimeV1>();
        // SAFETY: whoever exports the symbol exports a table that begins with these two fields, and keeps it for
        // good (I1).
        let [size_bytes, abi] = unsafe { table.cast::<[u32; 2]>().read() };
        if abi != 1 || (size_bytes as usize) < size_of::<RuntimeV1>() {
            return None;
        }
        // SAFETY: the table is long enough for every field, immutable, and stays (I1).
        Some(unsafe { table.as_ref() })
    })
}

/// Attaches the table of this copy to the primary, when there is one and it is another copy's. Call it on the control
/// path, before this copy hands out memory; later calls do nothing.
pub fn join(own: &'static RuntimeV1) {
    static JOINED: OnceLock<()> = OnceLock::new();
    JOINED.get_or_init(|| {
        let Some(primary) = primary() else { return };
        if primary.is_of_this_copy() {
            return;
        }
        dl::keep_loaded(ptr::from_ref(own).cast());
        // SAFETY: `own` is static and its library stays (I1). A refusal leaves both copies working, apart from
        // each other.
        unsafe { (primary.attach)(own) };
    });
}

/// Returns the table of the other copy that owns `ptr`, if any: the primary knows them all.
pub fn owner_of(ptr: *const u8) -> Option<&'static RuntimeV1> {
    let primary = primary()?;
    // SAFETY: the function takes any pointer.
    let owner = unsafe { (primary.owner_of)(ptr.cast()) };
    // SAFETY: what the primary names is its own table or an attached one, and those stay (I1).
    unsafe { owner.as_ref() }.filter(|owner| !owner.is_of_this_copy())
}

/// Returns the table of the copy that attached to this one and owns `ptr`, if any. For the primary, on the path of
/// `free`: it does not block or allocate.
pub fn attached_owner(ptr: *const u8) -> Option<&'static RuntimeV1> {
    // SAFETY: the function takes any pointer.
    PEERS.iter().find(|peer| unsafe { (peer.owns)(ptr.cast()) } != 0)
}

/// The tables that other copies attached to this one.
struct Peers([AtomicPtr<RuntimeV1>; 8]);

static PEERS: Peers = Peers([const { AtomicPtr::new(ptr::null_mut()) }; 8]);

impl Peers {
    fn attach(&self, peer: NonNull<RuntimeV1>) -> Result<(), Errno> {
        for entry in &self.0 {
            // Release pairs with the Acquire in `iter`: whoever finds the entry finds the table behind it built.
            let taken =
                entry.compare_exchange(ptr::null_mut(), peer.as_ptr(), Ordering::Release, Ordering::Relaxed);
            match taken {
                Ok(_) => return Ok(()),
                Err(other) if other == peer.as_ptr() => return Ok(()),
                Err(_) => {}
            }
        }
        Err(libc::ENOSPC)
    }

    fn iter(&self) -> impl Iterator<Item = &'static RuntimeV1> {
        // Acquire pairs with the Release in `attach`. Entries fill from the front (I2), so the first null ends.
        let tables = self.0.iter().map_while(|entry| NonNull::new(entry.load(Ordering::Acquire)));
        // SAFETY: an attached table is immutable and stays (I1).
        tables.map(|table| unsafe { table.as_ref() })
    }
}

/// Runs `body` behind the C calling convention: a panic does not leave it.
fn guarded(body: impl FnOnce() -> Result<(), Errno>) -> c_int {
    // A panic can leave nothing half done here: the bodies only pass values through.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(errno)) => -errno,
        Err(_) => -libc::EIO,
    }
}

/// Runs `body` as `guarded` does, and writes what it returns to `out` unless that is null.
fn guarded_into<T>(out: *mut T, body: impl FnOnce() -> Result<T, Errno>) -> c_int {
    guarded(|| {
        if out.is_null() {
            return Err(libc::EINVAL);
        }
        let value = body()?;
        // SAFETY: the caller of the table's function passes null or room for one value.
        unsafe { out.write(value) };
        Ok(())
    })
}

unsafe extern "C" fn owns<R: Runtime>(ptr: *const c_void) -> c_int {
    catch_unwind(|| R::owns(ptr.cast())).unwrap_or(false).into()
}

unsafe extern "C" fn usable_size<R: Runtime>(ptr: *const c_void, size: *mut usize) -> c_int {
    guarded_into(size, || R::usable_size(NonNull::new(ptr.cast_mut().cast()).ok_or(libc::EINVAL)?))
}

unsafe extern "C" fn malloc<R: Runtime>(
    size: usize,
    align: usize,
    flags: u64,
    out: *mut *mut c_void,
) -> c_int {
    guarded_into(out, || Ok(R::malloc(size, align, flags)?.as_ptr().cast()))
}

unsafe extern "C" fn realloc<R: Runtime>(
    ptr: *mut c_void,
    size: usize,
    align: usize,
    flags: u64,
    out: *mut *mut c_void,
) -> c_int {
    guarded_into(out, || {
        let ptr = NonNull::new(ptr.cast()).ok_or(libc::EINVAL)?;
        // SAFETY: the caller of the table's function has the same duties.
        let moved = unsafe { R::realloc(ptr, size, align, flags) }?;
        Ok(moved.as_ptr().cast())
    })
}

unsafe extern "C" fn free<R: Runtime>(ptr: *mut c_void) -> c_int {
    guarded(|| {
        let ptr = NonNull::new(ptr.cast()).ok_or(libc::EINVAL)?;
        // SAFETY: the caller of the table's function has the same duties.
        unsafe { R::free(ptr) }
    })
}

unsafe extern "C" fn where_is<R: Runtime>(ptr: *const c_void, out: *mut LinkPlacement) -> c_int {
    guarded_into(out, || R::where_is(ptr.cast()).ok_or(libc::ENOENT))
}

unsafe extern "C" fn tier_stats<R: Runtime>(tier: u32, out: *mut LinkTierStats) -> c_int {
    guarded_into(out, || R::tier_stats(tier).ok_or(libc::ENOENT))
}

unsafe extern "C" fn attach(peer: *const RuntimeV1) -> c_int {
    guarded(|| PEERS.attach(NonNull::new(peer.cast_mut()).ok_or(libc::EINVAL)?))
}

unsafe extern "C" fn owner_of_here<R: Runtime>(ptr: *const c_void) -> *const RuntimeV1 {
    match catch_unwind(|| R::owns(ptr.cast())) {
        Ok(true) => R::table(),
        Ok(false) => attached_owner(ptr.cast()).map_or(ptr::null(), ptr::from_ref),
        Err(_) => ptr::null(),
    }
}

/// Copies `text` into a NUL-terminated field, cut at a character's boundary where it is longer.
pub fn text_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let mut len = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

/// Returns the text of a NUL-terminated field.
pub fn field_text(field: &[u8]) -> &str {
    let len = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..len]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    static BYTES: [u8; 64] = [0; 64];
    static FREED: AtomicUsize = AtomicUsize::new(0);

    /// Owns `BYTES`, and panics when asked for 13 bytes.
    struct Fake;

    static TABLE: RuntimeV1 = RuntimeV1::of::<Fake>(c"crate", 1);

    impl Moving for Fake {
        fn migrate(_: *const u8, len_bytes: usize, tier: u32) -> Result<u64, Errno> {
            if tier == 2 { Ok(len_bytes as u64) } else { Err(libc::EINVAL) }
        }
        fn wait(request: u64, _: u32) -> Result<LinkMoves, Errno> {
            Ok(LinkMoves { is_done: 1, counts: [request; MOST_OUTCOMES] })
        }
    }

    impl Runtime for Fake {
        fn table() -> &'static RuntimeV1 {
            &TABLE
        }
        fn owns(ptr: *const u8) -> bool {
            BYTES.as_ptr_range().contains(&ptr)
        }
        fn usable_size(_: NonNull<u8>) -> Result<usize, Errno> {
            Ok(64)
        }
        fn malloc(size: usize, _: usize, _: u64) -> Result<NonNull<u8>, Errno> {
            assert_ne!(size, 13);
            if size > 64 { Err(libc::ENOMEM) } else { Ok(NonNull::from(&BYTES[0])) }
        }
        unsafe fn realloc(
            _: NonNull<u8>,
            size: usize,
            align: usize,
            flags: u64,
        ) -> Result<NonNull<u8>, Errno> {
            Self::malloc(size, align, flags)
        }
        unsafe fn free(_: NonNull<u8>) -> Result<(), Errno> {
            FREED.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn where_is(_: *const u8) -> Option<LinkPlacement> {
            None
        }
        fn tier_stats(_: u32) -> Option<LinkTierStats> {
            None
        }
    }

    /// Owns nothing; a stranger's pointer is looked up among the attached.
    struct Empty;

    static EMPTY_TABLE: RuntimeV1 = RuntimeV1::of::<Empty>(c"preload", 1);

    impl Moving for Empty {}

    impl Runtime for Empty {
        fn table() -> &'static RuntimeV1 {
            &EMPTY_TABLE
        }
        fn owns(_: *const u8) -> bool {
            false
        }
        fn usable_size(_: NonNull<u8>) -> Result<usize, Errno> {
            Err(libc::EINVAL)
        }
        fn malloc(_: usize, _: usize, _: u64) -> Result<NonNull<u8>, Errno> {
            Err(libc::ENODEV)
        }
        unsafe fn realloc(_: NonNull<u8>, _: usize, _: usize, _: u64) -> Result<NonNull<u8>, Errno> {
            Err(libc::EINVAL)
        }
        unsafe fn free(_: NonNull<u8>) -> Result<(), Errno> {
            Err(libc::EINVAL)
        }
        fn where_is(_: *const u8) -> Option<LinkPlacement> {
            None
        }
        fn tier_stats(_: u32) -> Option<LinkTierStats> {
            None
        }
    }

    #[test]
    fn an_attached_copy_is_found_by_its_pointers() {
        let inside: *const u8 = &BYTES[5];
        // SAFETY: the table is static.
        assert_eq!(unsafe { (EMPTY_TABLE.attach)(&raw const TABLE) }, 0);
        // SAFETY: attaching twice is allowed and changes nothing.
        assert_eq!(unsafe { (EMPTY_TABLE.attach)(&raw const TABLE) }, 0);
        assert_eq!(PEERS.iter().count(), 1);
        // SAFETY: the function takes any pointer.
        let owner = unsafe { (EMPTY_TABLE.owner_of)(inside.cast()) };
        assert!(ptr::eq(owner, &raw const TABLE));
        // SAFETY: as above.
        assert!(unsafe { (EMPTY_TABLE.owner_of)((&raw const FREED).cast()) }.is_null());
        // SAFETY: the owner is a static table.
        let owner = unsafe { &*owner };
        // SAFETY: `Fake` only counts.
        assert_eq!(unsafe { (owner.free)(inside.cast_mut().cast()) }, 0);
        assert_eq!(FREED.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn refusals_and_panics_come_back_as_errno() {
        let mut out = ptr::null_mut();
        // SAFETY: `out` has room for a pointer, here and below.
        assert_eq!(unsafe { (TABLE.malloc)(65, 1, 0, &raw mut out) }, -libc::ENOMEM);
        // SAFETY: as above.
        assert_eq!(unsafe { (TABLE.malloc)(13, 1, 0, &raw mut out) }, -libc::EIO);
        assert!(out.is_null(), "nothing is written on failure");
        // SAFETY: a null output is refused.
        assert_eq!(unsafe { (TABLE.malloc)(1, 1, 0, ptr::null_mut()) }, -libc::EINVAL);
        // SAFETY: a null pointer is refused.
        assert_eq!(unsafe { (TABLE.free)(ptr::null_mut()) }, -libc::EINVAL);
        // SAFETY: as for the first.
        assert_eq!(unsafe { (TABLE.malloc)(1, 1, 0, &raw mut out) }, 0);
        assert_eq!(out.cast_const(), BYTES.as_ptr().cast());
    }

    #[test]
    fn requests_to_move_cross_as_numbers() {
        let (mut request, mut moves) = (0, LinkMoves::default());
        // SAFETY: the outputs have room, here and below.
        assert_eq!(unsafe { (TABLE.moving.migrate)(ptr::null(), 7, 1, &raw mut request) }, -libc::EINVAL);
        // SAFETY: as above.
        assert_eq!(unsafe { (TABLE.moving.migrate)(ptr::null(), 7, 2, &raw mut request) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { (TABLE.moving.wait)(request, 0, &raw mut moves) }, 0);
        assert_eq!((moves.is_done, moves.counts[0]), (1, 7));
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { (TABLE.moving.cancel)(request) }, -libc::ENODEV, "not implemented by this copy");
        // SAFETY: a null output is refused.
        assert_eq!(unsafe { (TABLE.moving.migration_stats)(ptr::null_mut()) }, -libc::EINVAL);
    }

    #[test]
    fn a_process_without_an_exported_table_has_no_primary() {
        assert!(primary().is_none());
        assert!(owner_of(BYTES.as_ptr()).is_none());
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(field_text(&text_field::<8>("fast")), "fast");
        assert_eq!(field_text(&text_field::<8>("1234567é")), "1234567");
        assert_eq!(field_text(&text_field::<8>("123456é")), "123456");
        assert_eq!(field_text(&text_field::<1>("x")), "");
    }
}
