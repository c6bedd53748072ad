//! Pgmaps that C opens: a device range that hands out folios, with a life cycle.
//!
//! The table [`PGMAPS`] holds them under the core's own numbers, so that a folio's pgmap is found by number. Pgmaps of
//! pools are not in it: their numbers have no generation (`Table::outsider`), and C may look at them and request
//! folios of them, but not end them. Uses the core's `Pgmap`; used by `folio` and `pool`.

use crate::alloc::{Purpose, options, order};
use crate::error::*;
use crate::folio::{Bulk, DaxtierFolio, DaxtierFolioInfo, FolioList, folio_failure};
use crate::handle::Table;
use crate::pool::non_null;
use crate::sized::{self, SizedStruct};
use crate::text;
use daxtier_core::device;
use daxtier_core::folio::{FolioFree, FreedFolio};
use daxtier_core::pgmap::{DrainError, OffsetTracking, Pgmap, PgmapError, PgmapOptions, PgmapState};
use daxtier_core::runtime::config::SlowSpec;
use daxtier_core::runtime::register_fork_handlers;
use daxtier_core::units::PAGE_SIZE;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

/// A pgmap: a range of a device that hands out folios. The number of a closed pgmap is never given again.
pub type DaxtierPgmap = u64;

/// Offsets: the library chooses them on request, and any idle offset may be requested by number too.
pub const DAXTIER_OFFSETS_PROVIDED: u32 = 0;
/// Offsets: the caller keeps track of them. Only daxtier_folio_request() hands out folios.
pub const DAXTIER_OFFSETS_OWN: u32 = 1;

/// State of a pgmap: it hands out folios.
pub const DAXTIER_PGMAP_LIVE: u32 = 1;
/// State of a pgmap: killed, with folios still in use.
pub const DAXTIER_PGMAP_DYING: u32 = 2;
/// State of a pgmap: killed, and no folio is in use.
pub const DAXTIER_PGMAP_DRAINED: u32 = 3;
/// State of a pgmap: its device has been given back.
pub const DAXTIER_PGMAP_DEAD: u32 = 4;
/// State of a pgmap: it is the parent's, from which this process was forked.
pub const DAXTIER_PGMAP_FORKED: u32 = 5;

/// What a free callback learns. Later versions may add fields at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierFreedFolio {
    /// Length of this structure in the library that is running.
    pub size: usize,
    /// The pgmap.
    pub pgmap: DaxtierPgmap,
    /// First page of the folio in the pgmap.
    pub offset: u64,
    /// The user word that the folio had.
    pub user: u64,
    /// Order that the folio had.
    pub order: u32,
    /// 0.
    pub reserved: u32,
}

/// Called when the last reference to a folio of the pgmap was put, exactly once.
///
/// Runs on the thread that put the last reference, inside that call, with no lock of the library held; the folio is
/// idle already. It may call any function of this interface, so it may request the same offset again. It must not
/// throw or longjmp out. `freed` is valid during the call. `context` is what daxtier_pgmap_open() was given; it must
/// stay valid until daxtier_pgmap_close() succeeds. Does not run in a forked child for the parent's folios.
pub type DaxtierFolioFree =
    Option<unsafe extern "C" fn(context: *mut c_void, freed: *const DaxtierFreedFolio)>;

/// How a pgmap is opened. All zero but for the size means the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierPgmapOptions {
    /// Set by the caller: sizeof(struct daxtier_pgmap_options).
    pub size: usize,
    /// A name for messages, or NULL for the device's.
    pub name: *const c_char,
    /// Called for each folio that becomes free, or NULL.
    pub on_free: DaxtierFolioFree,
    /// The first argument of `on_free`.
    pub context: *mut c_void,
    /// The most pages that may be in use at once; 0 for no limit but the device's length.
    pub limit_pages: u64,
    /// Smallest order that is handed out.
    pub min_order: u32,
    /// DAXTIER_OFFSETS_PROVIDED or DAXTIER_OFFSETS_OWN.
    pub offsets: u32,
    /// 1 when freed folios keep their memory, for the next folio in their place; 0 when it goes back to the system. Memory
    /// of device-dax, and of folios below order 9, is always kept.
    pub retain_memory: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C); five words and four halves leave no padding; all zeroes are NULL, None and 0.
unsafe impl SizedStruct for DaxtierPgmapOptions {
    const NAME: &'static str = "daxtier_pgmap_options";
    const FIRST_SIZE: usize = 48;
}

/// Figures of a pgmap.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DaxtierPgmapStats {
    /// Set by the caller: sizeof(struct daxtier_pgmap_stats).
    pub size: usize,
    /// Number of pages.
    pub nr_pages: u64,
    /// Bytes that may be in use at once.
    pub capacity_bytes: u64,
    /// Bytes of the device that this process holds.
    pub claimed_bytes: u64,
    /// Bytes in folios.
    pub used_bytes: u64,
    /// Most bytes that were in folios at once.
    pub peak_bytes: u64,
    /// Bytes of bookkeeping.
    pub metadata_bytes: u64,
    /// Bytes out of use because their bookkeeping was found overwritten.
    pub quarantined_bytes: u64,
    /// Requests served.
    pub allocations: u64,
    /// Requests refused for want of memory.
    pub failures: u64,
    /// Live folios of each order, from order 0.
    pub folios_by_order: [u64; 19],
    /// A DAXTIER_PGMAP_ state, or 0 for one that this header does not know.
    pub state: u32,
    /// Smallest order that is handed out.
    pub min_order: u32,
    /// Name of the pgmap; cut where it is longer.
    pub name: [c_char; 64],
    /// Name of the device, such as "/dev/dax0.0"; cut where it is longer.
    pub device: [c_char; 128],
    /// Bytes that are free and zero already, see daxtier_pgmap_keep_zeroed().
    pub prezeroed_bytes: u64,
}

// SAFETY: repr(C); 30 words, two halves, texts of 64 and 128 leave no padding; integers only.
unsafe impl SizedStruct for DaxtierPgmapStats {
    const NAME: &'static str = "daxtier_pgmap_stats";
    const FIRST_SIZE: usize = 432;
}

const _: () = {
    assert!(size_of::<DaxtierPgmapOptions>() == DaxtierPgmapOptions::FIRST_SIZE + 8);
    assert!(size_of::<DaxtierPgmapStats>() == DaxtierPgmapStats::FIRST_SIZE + 8);
};

/// The pgmaps that C has open, by the core's numbers.
static PGMAPS: Table<Pgmap> = Table::new(0xD2, "pgmap");

/// Opens a device as a pgmap. Nothing of the device is claimed before the first folio.
///
/// `device` is written as in a configuration: "/dev/dax0.0", "emulated:2G", "node:1:4G", with ",size=SIZE" and
/// ",range=OFFSET+LENGTH" where only a part is wanted. `options` may be NULL.
///
/// Threads: any number at once. Blocks: on the kernel. After fork: the pgmap is the parent's; in the child calls for
/// it return DAXTIER_EFORKED, unless its memory is private to each process (node:N).
/// Signal handlers: not allowed. Lifetime: `device`, `options` and its name are not used after the call, `context` is
/// until daxtier_pgmap_close() succeeds.
/// Returns 0; DAXTIER_ENULL; DAXTIER_ECONFIG for a device that cannot be read; DAXTIER_ENODEV, DAXTIER_EBUSY or another
/// negative errno value when it cannot be had; DAXTIER_ESIZE; DAXTIER_E2BIG; DAXTIER_EORDER; DAXTIER_ECHOICE;
/// DAXTIER_EINVAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_pgmap_open(
    device: *const c_char,
    options: *const DaxtierPgmapOptions,
    pgmap: *mut DaxtierPgmap,
) -> c_int {
    guard(|| {
        non_null(pgmap, "pgmap")?;
        // SAFETY: the C contract: NULL or a NUL-terminated text that nobody writes to.
        let device = unsafe { text::read(device, "device") }?;
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let options = unsafe { sized::read(options) }?;
        let spec: SlowSpec = device.parse().map_err(|error| failure!(DAXTIER_ECONFIG, "{error}"))?;
        // SAFETY: the C contract, again for the name in the options.
        let mut options = unsafe { pgmap_options(options) }?;
        options.limit_pages = smaller(options.limit_pages, spec.size.map(|bytes| bytes / PAGE_SIZE as u64));
        let device = device::open(&spec.device, spec.size, spec.dax_options())
            .map_err(|error| Failure::errno(error.errno(), format_args!("{error}")))?;
        register_fork_handlers();
        let opened = Pgmap::bind(device, options).map_err(|error| pgmap_failure(&error))?;
        let handle = PGMAPS.insert_at(opened.id(), opened)?;
        // SAFETY: the C contract: room for one handle; checked not to be NULL.
        unsafe { pgmap.write(handle) };
        Ok(())
    })
}

/// Kills a pgmap: from now on requests return DAXTIER_EDYING. Folios in use stay valid.
///
/// Threads: any number at once; the first kills. Blocks: no. After fork: DAXTIER_EFORKED in the child.
/// Signal handlers: not allowed. Lifetime: the pgmap stays open until daxtier_pgmap_close().
/// Returns 0; DAXTIER_EDYING if it was killed before; DAXTIER_EPERM for a pgmap of a pool; DAXTIER_EHANDLE;
/// DAXTIER_EFORKED.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_pgmap_kill(pgmap: DaxtierPgmap) -> c_int {
    guard(|| own(pgmap)?.kill().map_err(|error| pgmap_failure(&error)))
}

/// Waits until no folio of a killed pgmap is in use, at most `timeout_ms` milliseconds.
///
/// With DAXTIER_ETIMEDOUT `holders` receives up to `capacity` of the folios in use, and `nr_holders` how many there
/// are, which may be more. Set holders[0].size: it says how long each element is. Both may be NULL, `holders` only
/// with capacity 0.
///
/// Threads: any number at once. Blocks: up to `timeout_ms`. After fork: DAXTIER_EFORKED in the child.
/// Signal handlers: not allowed. Lifetime: `holders` is not used after the call.
/// Returns 0; DAXTIER_ETIMEDOUT; DAXTIER_EINVAL for a pgmap that was not killed; DAXTIER_EPERM for a pgmap of a pool;
/// DAXTIER_EHANDLE; DAXTIER_EFORKED; DAXTIER_ENULL, DAXTIER_ESIZE for `holders`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_pgmap_drain(
    pgmap: DaxtierPgmap,
    timeout_ms: u32,
    holders: *mut DaxtierFolioInfo,
    capacity: usize,
    nr_holders: *mut usize,
) -> c_int {
    guard(|| {
        // SAFETY: the C contract: room for `capacity` elements, each as long as the first says, and for a count.
        let list = unsafe { FolioList::new(holders, capacity, nr_holders) }?;
        match own(pgmap)?.drain(Duration::from_millis(timeout_ms.into())) {
            Ok(()) => Ok(()),
            Err(error) => {
                if let DrainError::TimedOut { holders, .. } = &error {
                    // SAFETY: as above.
                    unsafe { list.fill(holders, |_| None) };
                }
                Err(drain_failure(&error))
            }
        }
    })
}

/// Closes a pgmap and gives its device back, unless folios of it are in use. A live pgmap is killed first; with
/// DAXTIER_EBUSY it is live again.
///
/// Threads: one, while no other call for this pgmap is under way. Blocks: on the kernel. After fork: in the child it
/// gives the number back and nothing else. Signal handlers: not allowed. Lifetime: with success the pgmap's number
/// and the `context` of its callback end.
/// Returns 0; DAXTIER_EBUSY while folios are in use; DAXTIER_EPERM for a pgmap of a pool; DAXTIER_EHANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_pgmap_close(pgmap: DaxtierPgmap) -> c_int {
    guard(|| {
        refuse_pools(pgmap)?;
        PGMAPS.close_with(pgmap, |pgmap| match close(&pgmap) {
            Ok(()) => Ok(()),
            Err(failure) => Err((Some(pgmap), failure)),
        })
    })
}

/// Keeps up to `count` folios of order 9 (2 MiB) ready that are zero already, for requests with DAXTIER_ZERO; a pool's
/// pgmap included. A thread of the library clears free memory for it in the background. 0 ends it.
///
/// What is ready counts as free, and a request that finds nothing else gets it; it does occupy memory of the machine. The
/// figure `prezeroed_bytes` says how much is ready now.
///
/// Threads: any number at once. Blocks: for the time that it takes to clear one folio. After fork: nothing is ready in
/// the child; the call returns DAXTIER_EFORKED for the parent's pgmaps. Signal handlers: not allowed. Lifetime: until
/// the next call or the end of the pgmap.
/// Returns 0; DAXTIER_ENOTSUP for a pgmap whose offsets the caller tracks; DAXTIER_EORDER when it has no folios of
/// order 9; DAXTIER_EDYING; DAXTIER_EFORKED; DAXTIER_EHANDLE; another negative errno value when the thread is refused.
#[unsafe(no_mangle)]
pub extern "C" fn daxtier_pgmap_keep_zeroed(pgmap: DaxtierPgmap, count: usize) -> c_int {
    guard(|| {
        with_any(pgmap, |pgmap| {
            if pgmap.state() == PgmapState::Forked {
                return Err(failure!(DAXTIER_EFORKED, "pgmap {} is the parent process's", pgmap.name()));
            }
            pgmap.keep_zeroed(count).map_err(|error| folio_failure(&error))
        })
    })
}

/// Writes figures of a pgmap, a pool's included.
///
/// Threads: any number at once. Blocks: briefly, on the pgmap's locks. After fork: works; the state is
/// DAXTIER_PGMAP_FORKED for the parent's. Signal handlers: not allowed. Lifetime: `stats` is not used after the call.
/// Returns 0; DAXTIER_EHANDLE; DAXTIER_ENULL; DAXTIER_ESIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_pgmap_stats(pgmap: DaxtierPgmap, stats: *mut DaxtierPgmapStats) -> c_int {
    guard(|| {
        // SAFETY: the C contract: NULL or a structure that begins with its size.
        let size = unsafe { sized::check_out(stats) }?;
        let value = with_any(pgmap, |pgmap| Ok(DaxtierPgmapStats::of(pgmap)))?;
        // SAFETY: `size` bytes are there, as the structure says itself.
        unsafe { sized::write(stats, size, &value) };
        Ok(())
    })
}

/// Allocates `count` folios of one order from a pgmap, at offsets that the library chooses, as many as there are.
///
/// `flags`: DAXTIER_ZERO, one DAXTIER_HINT_ flag. Each folio has one reference, the caller's. The folios never move.
///
/// Threads: any number at once. Blocks: no, but for short locks and, where an extent is used for the first time, on
/// the kernel. After fork: DAXTIER_EFORKED in the child for the parent's pgmaps. Signal handlers: not allowed.
/// Lifetime: a folio is the caller's until daxtier_folio_put().
/// Returns 0 if at least one was allocated, and then `nr_folios` says how many; DAXTIER_ENOMEM; DAXTIER_EDYING;
/// DAXTIER_EORDER; DAXTIER_EFLAGS; DAXTIER_ECHOICE; DAXTIER_ENOTSUP for a pgmap whose offsets the caller tracks;
/// DAXTIER_EINVAL for count 0; DAXTIER_EHANDLE; DAXTIER_EFORKED; DAXTIER_ENULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daxtier_pgmap_alloc(
    pgmap: DaxtierPgmap,
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
        let options = options(flags, Purpose::PgmapFolio)?;
        with_any(pgmap, |pgmap| {
            let mut out = |folio| bulk.push(folio);
            let allocated = if options.zero {
                pgmap.alloc_folios_zeroed(order, options.lifetime, count, &mut out)
            } else {
                pgmap.alloc_folios(order, options.lifetime, count, &mut out)
            };
            match allocated {
                Ok(_) => bulk.hand_out(),
                Err(error) => return bulk.end(folio_failure(&error)),
            }
            Ok(())
        })
    })
}

/// Runs `body` with a pgmap that C opened or that a pool owns.
pub(crate) fn with_any<R>(
    pgmap: DaxtierPgmap,
    body: impl FnOnce(&Pgmap) -> Result<R, Failure>,
) -> Result<R, Failure> {
    match PGMAPS.outsider_index(pgmap).and_then(Pgmap::from_id) {
        Some(pgmap) => body(&pgmap),
        None => body(PGMAPS.get(pgmap)?),
    }
}

/// Returns the number that C knows a pgmap by.
pub(crate) fn number_of(id: u16) -> DaxtierPgmap {
    match PGMAPS.handle_at(id) {
        0 => PGMAPS.outsider(id),
        handle => handle,
    }
}

/// Returns a pgmap that C opened, and so may end.
fn own(pgmap: DaxtierPgmap) -> Result<&'static Pgmap, Failure> {
    refuse_pools(pgmap)?;
    PGMAPS.get(pgmap)
}

fn refuse_pools(pgmap: DaxtierPgmap) -> Result<(), Failure> {
    match PGMAPS.outsider_index(pgmap).and_then(Pgmap::from_id) {
        Some(pgmap) => {
            Err(failure!(DAXTIER_EPERM, "pgmap {} belongs to a pool, which alone may end it", pgmap.name()))
        }
        None => Ok(()),
    }
}

fn close(pgmap: &Pgmap) -> Result<(), Failure> {
    let was_live = match pgmap.state() {
        PgmapState::Forked => return Ok(()),
        PgmapState::Live => {
            pgmap.kill().map_err(|error| pgmap_failure(&error))?;
            true
        }
        _ => false,
    };
    match pgmap.drain(Duration::ZERO) {
        Ok(()) => Ok(()),
        Err(DrainError::TimedOut { holders, .. }) => {
            if was_live {
                pgmap.resurrect().map_err(|error| pgmap_failure(&error))?;
            }
            Err(failure!(DAXTIER_EBUSY, "{} folios of {} are in use", holders.len(), pgmap.name()))
        }
        Err(error) => Err(drain_failure(&error)),
    }
}

/// # Safety
/// The name in `options` is NULL or a NUL-terminated text that nobody writes to.
unsafe fn pgmap_options(options: Option<DaxtierPgmapOptions>) -> Result<PgmapOptions, Failure> {
    let Some(options) = options else { return Ok(PgmapOptions::default()) };
    let offsets = match options.offsets {
        DAXTIER_OFFSETS_PROVIDED => OffsetTracking::Provided,
        DAXTIER_OFFSETS_OWN => OffsetTracking::Own,
        other => return Err(failure!(DAXTIER_ECHOICE, "offsets is {other}: use a DAXTIER_OFFSETS_ number")),
    };
    let name = if options.name.is_null() {
        ""
    } else {
        // SAFETY: the caller argued it.
        unsafe { text::read(options.name, "name") }?
    };
    let retain_memory = match options.retain_memory {
        flag @ 0..=1 => flag == 1,
        other => return Err(failure!(DAXTIER_ECHOICE, "retain_memory is {other}: use 0 or 1")),
    };
    if options.reserved != 0 {
        return Err(failure!(DAXTIER_EINVAL, "reserved is {}: it must be 0", options.reserved));
    }
    let context = options.context;
    Ok(PgmapOptions {
        name: name.to_owned(),
        min_order: order(options.min_order)?,
        limit_pages: (options.limit_pages > 0).then_some(options.limit_pages),
        offsets,
        retain_memory,
        on_free: options
            .on_free
            .map(|function| Arc::new(Callback { function, context }) as Arc<dyn FolioFree>),
    })
}

/// A callback of the C side.
struct Callback {
    function: unsafe extern "C" fn(context: *mut c_void, freed: *const DaxtierFreedFolio),
    context: *mut c_void,
}

// SAFETY: the C contract says that the function runs on any thread with this context.
unsafe impl Send for Callback {}
// SAFETY: as for Send.
unsafe impl Sync for Callback {}

impl FolioFree for Callback {
    fn folio_free(&self, freed: FreedFolio) {
        let freed = DaxtierFreedFolio {
            size: size_of::<DaxtierFreedFolio>(),
            pgmap: number_of(freed.pgmap),
            offset: freed.offset,
            user: freed.user,
            order: freed.order.get().into(),
            reserved: 0,
        };
        // SAFETY: the C contract: the function and its context are valid until the pgmap is closed.
        unsafe { (self.function)(self.context, &raw const freed) };
    }
}

impl DaxtierPgmapStats {
    fn of(pgmap: &Pgmap) -> DaxtierPgmapStats {
        let figures = pgmap.stats();
        DaxtierPgmapStats {
            size: size_of::<DaxtierPgmapStats>(),
            nr_pages: pgmap.nr_pages(),
            capacity_bytes: figures.capacity_bytes,
            claimed_bytes: figures.claimed_bytes,
            used_bytes: figures.used_bytes,
            peak_bytes: figures.peak_bytes,
            metadata_bytes: figures.metadata_bytes,
            quarantined_bytes: figures.quarantined_bytes,
            allocations: figures.allocations,
            failures: figures.failures,
            folios_by_order: figures.folios_by_order,
            state: match pgmap.state() {
                PgmapState::Live => DAXTIER_PGMAP_LIVE,
                PgmapState::Dying => DAXTIER_PGMAP_DYING,
                PgmapState::Drained => DAXTIER_PGMAP_DRAINED,
                PgmapState::Dead => DAXTIER_PGMAP_DEAD,
                PgmapState::Forked => DAXTIER_PGMAP_FORKED,
                _ => 0,
            },
            min_order: pgmap.min_order().get().into(),
            name: text::field(pgmap.name()),
            device: text::field(pgmap.device().name()),
            prezeroed_bytes: figures.prezeroed_bytes,
        }
    }
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn pgmap_failure(error: &PgmapError) -> Failure {
    match error {
        PgmapError::Dying { .. } => return failure!(DAXTIER_EDYING, "{error}"),
        PgmapError::MinOrderTooLarge { .. } => return failure!(DAXTIER_EORDER, "{error}"),
        PgmapError::TooMany => return failure!(DAXTIER_ELIMIT, "{error}"),
        _ => {}
    }
    Failure::errno(error.errno(), format_args!("{error}"))
}

fn drain_failure(error: &DrainError) -> Failure {
    match error {
        DrainError::TimedOut { .. } => failure!(DAXTIER_ETIMEDOUT, "{error}"),
        _ => Failure::errno(error.errno(), format_args!("{error}")),
    }
}
