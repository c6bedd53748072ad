//! Pools: tiers, a policy and a heap, opened from one configuration.
//!
//! A [`Pool`] is the library's front door. It hands out folios of its tiers and blocks of its heap, says where a
//! byte is, and keeps the figures. Several pools can be open at once; each has its own devices. `moving` has what moves
//! blocks between the tiers, `devices` how devices come and go.

mod devices;
mod moving;

pub use devices::{DeviceChangeError, Drained, Held, HeldBy};

use super::config::{AvailableMemory, Config, FastSize, Migrate, OnLoss, SlowSpec};
use super::error::{AllocError, CloseError, ForeignPointer, NotABlock, PoolError};
use super::migration;
use super::publish::StatsPage;
use super::source::{PlacedSource, Tiers};
use super::stats::PoolStats;
use super::{control, fork};
use crate::device::{self, Device, Dram};
use crate::folio::{Folio, FolioError, FolioInfo};
use crate::heap::{self, Heap, Runs};
use crate::offset::Lifetime;
use crate::pgmap::{Pgmap, PgmapOptions};
use crate::policy::{Placer, Policy, TierName};
use crate::space::{self, SLOT_BYTES, Space};
use crate::sync::{StaticMutex, gate, service};
use crate::sys::{self, mm};
use crate::tier::Tier;
use crate::units::{Bytes, Order, PAGE_SHIFT, PAGE_SIZE};
use std::collections::HashSet;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};

/// How memory is asked for. The default is: where the policy says, not cleared, any lifetime, never moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AllocOptions {
    /// The tier to use, strictly: the request fails rather than to spill. `None` leaves it to the policy.
    pub tier: Option<TierName>,
    /// Whether every byte must be zero.
    pub zero: bool,
    /// Whether the memory may be moved to another tier while it is in use. A folio without this never moves, so it
    /// may be the target of direct I/O, io_uring or RDMA. This version moves none.
    pub movable: bool,
    /// How long the memory is likely to live: a hint.
    pub lifetime: Lifetime,
}

impl AllocOptions {
    /// Reads the flags of the C interface: bit 0 zero, bit 1 movable, bits 8..12 the tier (1 fast, 2 slow), bits
    /// 12..16 the lifetime (1 short, 2 long). `None` when a bit or a value is unknown.
    pub fn from_bits(flags: u64) -> Option<AllocOptions> {
        const KNOWN: u64 = 0xff03;
        if flags & !KNOWN != 0 {
            return None;
        }
        let tier = match flags >> 8 & 0xf {
            0 => None,
            1 => Some(TierName::Fast),
            2 => Some(TierName::Slow),
            _ => return None,
        };
        let lifetime = match flags >> 12 & 0xf {
            0 => Lifetime::default(),
            1 => Lifetime::Short,
            2 => Lifetime::Long,
            _ => return None,
        };
        Some(AllocOptions { tier, zero: flags & 1 != 0, movable: flags & 2 != 0, lifetime })
    }
}

/// Where a byte is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placement {
    /// The tier's number in [`Pool::tiers`].
    pub tier: usize,
    /// The tier's name: `fast` or `slow`.
    pub tier_name: &'static str,
    /// The device's name.
    pub device: String,
    /// The pgmap's number.
    pub pgmap: u16,
    /// The offset in pages of the byte's page in the pgmap.
    pub offset: u64,
    /// The order of the folio that holds the page.
    pub order: Order,
}

/// What is going to happen to a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// It will be written soon: back every page now.
    Populate,
    /// Its contents are of no more use: whole pages inside read as zero afterwards.
    Discard,
}

/// Tiers, a policy and a heap. Clones are handles to one pool; the last one to go closes it if nothing is in use.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    policy: Policy,
    migrate: Migrate,
    space: &'static Space,
    tiers: Arc<Tiers>,
    /// By policy, then bound to each tier.
    sources: Vec<Arc<PlacedSource>>,
    heaps: Vec<Heap>,
    runs: Runs,
}

impl Pool {
    /// Opens a pool: binds its devices, takes nothing of them yet but a little fast memory for metadata.
    ///
    /// Blocks on nothing but the kernel. Starts no thread. Has handlers run around every later fork.
    ///
    /// # Errors
    /// [`PoolError`] names the setting, device or limit that stands in the way; nothing is left behind then.
    pub fn open(config: &Config) -> Result<Pool, PoolError> {
        service::run(|| Pool::open_in_service(config))
    }

    fn open_in_service(config: &Config) -> Result<Pool, PoolError> {
        config.validate()?;
        if !heap::prepare() {
            return Err(PoolError::Engine);
        }
        if config.on_loss == OnLoss::ZeroFill {
            sys::bus_error::set_zero_fill(true);
            sys::bus_error::watch();
        }
        let space =
            space::space().map_err(|source| PoolError::Space { source, limit_bytes: mm::address_limit() })?;
        let fast_bytes = resolve_fast(config.fast)?;
        let fast = bind(Arc::new(Dram::new(fast_bytes, None)?), None)?;
        let slow = config.slow.iter().map(open_slow).collect::<Result<Vec<_>, PoolError>>()?;
        let slow_bytes = slow.iter().map(|pgmap| pgmap.stats().capacity_bytes).sum();
        let mut tiers =
            vec![Tier::new(TierName::Fast.as_str(), vec![fast], watermark(fast_bytes, slow_bytes))];
        if !slow.is_empty() {
            tiers.push(Tier::new(TierName::Slow.as_str(), slow, 0));
        }
        let nr_tiers = tiers.len();
        let page = StatsPage::create().map_err(PoolError::Figures)?;
        page.set_policy(&config.policy.to_string());
        let tiers = Tiers::open(tiers, page).map_err(PoolError::Metadata)?;
        tiers.set_control(config.control);
        let source = |policy| Arc::new(PlacedSource::new(Arc::clone(&tiers), Placer::new(policy, nr_tiers)));
        let mut sources = vec![source(config.policy), source(Policy::Bind(TierName::Fast))];
        if nr_tiers > 1 {
            sources.push(source(Policy::Bind(TierName::Slow)));
        }
        // What the heap writes about its arenas belongs into DRAM, but a full fast tier must not make room in the
        // slow one useless.
        let description = source(Policy::Preferred(TierName::Fast));
        let heaps =
            sources.iter().map(|source| Heap::new(space, description.clone(), source.clone())).collect();
        fork::register();
        let inner = Inner {
            policy: config.policy,
            migrate: config.migrate.clone(),
            space,
            tiers,
            sources,
            heaps,
            runs: Runs::new(space),
        };
        let inner = Arc::new(inner);
        note_open(&inner);
        Ok(Pool { inner })
    }

    /// Closes the pool: its devices are given back.
    ///
    /// # Errors
    /// [`CloseError::Busy`] while folios or blocks are in use or other handles exist; it hands the pool back, which
    /// works as before.
    pub fn close(self) -> Result<(), CloseError> {
        let folios = self.explicit_folios();
        let handles = Arc::strong_count(&self.inner) - 1;
        // Others may use the heap through their handles, so it can't be looked through.
        let heap_bytes = if handles > 0 { 0 } else { self.inner.live_bytes() };
        if !folios.is_empty() || heap_bytes > 0 || handles > 0 {
            return Err(CloseError::Busy { pool: self, folios, heap_bytes, handles });
        }
        Ok(())
    }

    /// Returns the tiers, the fast one first.
    pub fn tiers(&self) -> &[Tier] {
        self.inner.tiers.as_slice()
    }

    /// Returns the policy by which the pool places memory.
    pub fn policy(&self) -> Policy {
        self.inner.policy
    }

    /// Hands out a folio.
    ///
    /// # Errors
    /// [`AllocError::Exhausted`] when the tiers that the options allow have no free run of this order.
    pub fn alloc_folio(&self, order: Order, options: AllocOptions) -> Result<Folio, AllocError> {
        let source = self.source(options.tier)?;
        let exhausted = |refusal| self.exhausted(order.len_bytes(), order.len_bytes(), options.tier, refusal);
        if !options.zero {
            return source.alloc(order, options.lifetime).map_err(exhausted);
        }
        let (folio, is_zero) = source.alloc_prezeroed(order, options.lifetime).map_err(exhausted)?;
        if !is_zero {
            folio.clear()?;
        }
        Ok(folio)
    }

    /// Allocates a block of `size` bytes whose address is a multiple of `align`, a power of two up to 1 GiB. A size
    /// of 0 gives a block of its own all the same. Alignments above 64 KiB cost whole slots of 2 MiB.
    ///
    /// # Errors
    /// [`AllocError`] when the alignment is no power of two or too large, or the tiers are exhausted.
    pub fn malloc(
        &self,
        size: usize,
        align: usize,
        options: AllocOptions,
    ) -> Result<NonNull<u8>, AllocError> {
        if !align.is_power_of_two() || align as u64 > Order::GIANT.len_bytes() {
            return Err(AllocError::Alignment { align });
        }
        let at = self.source_index(options.tier)?;
        if size <= isize::MAX as usize
            && align <= heap::LARGEST_ARENA_ALIGN
            && let Some(block) = self.inner.heaps[at].alloc(size, align, options.zero)
        {
            return Ok(block);
        }
        if size > isize::MAX as usize {
            return Err(self.exhausted(size as u64, align as u64, options.tier, None));
        }
        self.malloc_run(size, align, options)
    }

    /// Serves what no arena can hold from whole slots.
    #[cold]
    fn malloc_run(
        &self,
        size: usize,
        align: usize,
        options: AllocOptions,
    ) -> Result<NonNull<u8>, AllocError> {
        let small = size < SLOT_BYTES && align <= heap::LARGEST_ARENA_ALIGN;
        let run =
            if small { None } else { self.inner.runs.alloc(size, align, &**self.source(options.tier)?) };
        let Some((start, is_zero)) = run else {
            return Err(self.exhausted(size as u64, align as u64, options.tier, None));
        };
        if options.zero && !is_zero {
            // SAFETY: the run was just made for this caller and is at least `size` bytes long.
            unsafe { sys::zero::zero(start, size) };
        }
        Ok(start)
    }

    /// Resizes a block, in place or by copying it to a new one; the bytes up to the smaller size are kept.
    ///
    /// # Errors
    /// [`AllocError`] as for [`malloc`](Pool::malloc), or [`AllocError::NotABlock`]; nothing has changed then.
    ///
    /// # Safety
    /// - If `block` is a live block of this process's pools, nobody uses it meanwhile.
    /// - After success the old address is no longer used.
    pub unsafe fn realloc(
        &self,
        block: NonNull<u8>,
        size: usize,
        align: usize,
        options: AllocOptions,
    ) -> Result<NonNull<u8>, AllocError> {
        let old = self.usable_size(block)?;
        let aligned = align.is_power_of_two() && block.as_ptr().addr() & (align - 1) == 0;
        if aligned && size <= old && size >= old / 2 {
            return Ok(block);
        }
        // Zeroing covers the whole new block: what is not copied over must be zero.
        let fresh = self.malloc(size, align, options)?;
        // SAFETY: both blocks hold that many bytes, and a fresh one overlaps no live one.
        unsafe { block.copy_to_nonoverlapping(fresh, old.min(size)) };
        // SAFETY: the caller handed the block over.
        unsafe { self.free(block) }?;
        Ok(fresh)
    }

    /// Frees a block.
    ///
    /// # Errors
    /// [`NotABlock`] when no live block of a pool of this process begins there; nothing changes then. A block that was
    /// freed is told from a live one until its memory goes into other blocks. An address inside a block is not told when it
    /// is a multiple of 16 near blocks of a larger alignment.
    ///
    /// # Safety
    /// - If a live block of a pool of this process begins at `block`, it is the caller's, and nobody uses it any more.
    /// - Nobody else frees it at the same time.
    #[inline]
    pub unsafe fn free(&self, block: NonNull<u8>) -> Result<(), NotABlock> {
        let addr = block.as_ptr().addr();
        if heap::in_heap_zone(&self.inner.space.heap_zone(), addr) {
            // SAFETY: the caller argued it.
            return NotABlock::unless_live(block, unsafe { heap::free(block) });
        }
        self.inner.runs.free(addr).map_err(|_| NotABlock::Foreign { addr })
    }

    /// Returns how many bytes a block holds, at least what was asked for.
    ///
    /// # Errors
    /// [`NotABlock`] as for [`free`](Pool::free).
    pub fn usable_size(&self, block: NonNull<u8>) -> Result<usize, NotABlock> {
        let addr = block.as_ptr().addr();
        if heap::in_heap_zone(&self.inner.space.heap_zone(), addr) {
            NotABlock::unless_live(block, heap::find(block.as_ptr()))?;
            // SAFETY: just found.
            return Ok(unsafe { heap::block_len(block) });
        }
        Runs::len_bytes(self.inner.space, addr).map_err(|_| NotABlock::Foreign { addr })
    }

    /// Says where the byte at `addr` is, or `None` when it is in no folio of this pool.
    pub fn where_is(&self, addr: *const u8) -> Option<Placement> {
        service::run(|| {
            if let Some(index) = self.inner.space.slot_index(addr.addr()) {
                let raw = self.inner.space.slot(index).lock().folio?;
                let info = raw.info().ok()?;
                let page = (addr.addr() % SLOT_BYTES) as u64 >> PAGE_SHIFT;
                return self.placement(&info, info.offset + page);
            }
            let direct = self.tiers().iter().find_map(|tier| tier.direct_offset(addr));
            let (pgmap, offset) = direct?;
            let folio = pgmap.try_get_folio(offset)?;
            self.placement(&folio.info(), offset)
        })
    }

    fn placement(&self, info: &FolioInfo, offset: u64) -> Option<Placement> {
        let tier = self.inner.tiers.tier_of(info.pgmap)?;
        let tier_name = self.tiers()[tier].name();
        let device = Pgmap::from_id(info.pgmap)?.device().name().to_owned();
        Some(Placement { tier, tier_name, device, pgmap: info.pgmap, offset, order: info.order })
    }

    /// Gives advice about `[addr, addr + len_bytes)`, memory of this pool. Only whole pages inside are touched.
    ///
    /// # Errors
    /// [`ForeignPointer`] when a page of the range is in no folio of this pool; nothing changes then.
    ///
    /// # Safety
    /// With [`Advice::Discard`], nobody uses the range meanwhile, and it was allocated by the caller.
    pub unsafe fn advise(
        &self,
        addr: NonNull<u8>,
        len_bytes: usize,
        advice: Advice,
    ) -> Result<(), ForeignPointer> {
        let end = addr.as_ptr().addr().saturating_add(len_bytes);
        let first = addr.as_ptr().addr().next_multiple_of(PAGE_SIZE);
        let pages = (first..end.saturating_sub(PAGE_SIZE - 1)).step_by(PAGE_SIZE);
        for page in pages.clone() {
            if self.where_is(addr.as_ptr().with_addr(page)).is_none() {
                return Err(ForeignPointer { addr: page });
            }
        }
        for page in pages {
            let page = addr.as_ptr().with_addr(page);
            match advice {
                // SAFETY: the page is in a folio of ours, so it is mapped; adding zero changes no byte, even while
                // others write to it.
                Advice::Populate => unsafe {
                    std::sync::atomic::AtomicU8::from_ptr(page)
                        .fetch_add(0, std::sync::atomic::Ordering::Relaxed);
                },
                // SAFETY: as above, and the caller gave the contents up.
                Advice::Discard => unsafe { page.write_bytes(0, PAGE_SIZE) },
            }
        }
        Ok(())
    }

    /// Returns the figures. Gives free memory of the heap back first, so that they show what is in use.
    pub fn stats(&self) -> PoolStats {
        service::run(|| {
            heap::collect();
            self.inner.tiers.stats()
        })
    }

    /// Whether the published figures are those of process `pid`.
    pub(super) fn publishes_for(&self, pid: u32) -> bool {
        self.inner.tiers.owner() == pid
    }

    /// Returns the folios in use that neither the heap nor the books hold.
    fn explicit_folios(&self) -> Vec<FolioInfo> {
        service::run(|| {
            migration::end_quarantine(|pgmap| self.inner.tiers.tier_of(pgmap).is_some());
            let held: HashSet<(u16, u64)> =
                self.inner.space.folios().into_iter().chain(self.inner.tiers.metadata_folios()).collect();
            let pgmaps = self.tiers().iter().flat_map(Tier::pgmaps);
            pgmaps
                .flat_map(|pgmap| pgmap.live_folios())
                .filter(|folio| !held.contains(&(folio.pgmap, folio.offset)))
                .collect()
        })
    }

    fn source_index(&self, tier: Option<TierName>) -> Result<usize, AllocError> {
        let at = match tier {
            None => 0,
            Some(TierName::Fast) => 1,
            Some(TierName::Slow) => 2,
        };
        if at < self.inner.sources.len() { Ok(at) } else { Err(AllocError::NoSuchTier { tier: "slow" }) }
    }

    fn source(&self, tier: Option<TierName>) -> Result<&Arc<PlacedSource>, AllocError> {
        Ok(&self.inner.sources[self.source_index(tier)?])
    }

    #[cold]
    fn exhausted(
        &self,
        size: u64,
        align: u64,
        tier: Option<TierName>,
        refusal: Option<FolioError>,
    ) -> AllocError {
        service::run(|| {
            let tiers = self.describe(tier);
            let error = AllocError::Exhausted { requested_bytes: size, align_bytes: align, tiers, refusal };
            self.inner.tiers.note_failure(&error.to_string());
            error
        })
    }
}

impl Pool {
    /// Returns the heap that serves by policy.
    pub(super) fn default_heap(&self) -> &Heap {
        &self.inner.heaps[0]
    }

    /// Whether the byte at `ptr` is one of the addresses in which blocks of any pool lie. Neither blocks nor allocates.
    pub(super) fn has_address(&self, ptr: *const u8) -> bool {
        self.inner.space.contains(ptr.addr())
    }

    /// Returns the addresses in which blocks of any pool lie.
    pub(super) fn heap_zone(&self) -> std::ops::Range<usize> {
        self.inner.space.heap_zone()
    }

    /// Says how full the tiers are that a request may use.
    fn describe(&self, tier: Option<TierName>) -> String {
        let wanted = |name: &str| tier.is_none_or(|tier| tier.as_str() == name);
        let tiers = self.tiers().iter().filter(|tier| wanted(tier.name()));
        let states: Vec<String> = tiers
            .map(|tier| {
                format!("{} {} of {}", tier.name(), Bytes(tier.used_bytes()), Bytes(tier.capacity_bytes()))
            })
            .collect();
        format!("in use: {}; policy {}", states.join(", "), self.inner.policy)
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("policy", &self.policy).field("tiers", &self.tiers.as_slice()).finish()
    }
}

impl Inner {
    /// Returns the bytes in live blocks. For the holder of the only handle.
    fn live_bytes(&self) -> usize {
        // SAFETY: nobody else has a handle to allocate through, and nobody else is inside.
        let count = |heap: &Heap| unsafe { heap.live_bytes() };
        let in_heaps = gate::alone(|| self.heaps.iter().map(count).sum());
        // Who can't be alone, in code of the library's own, can't tell that a block is free.
        in_heaps.map_or(usize::MAX, |bytes: usize| bytes + self.runs.live_bytes())
    }
}

impl Drop for Inner {
    /// Gives everything back if no block is in use. Otherwise the blocks stay valid: their arenas hold on to the
    /// tiers, for good.
    fn drop(&mut self) {
        if self.live_bytes() > 0 {
            return;
        }
        service::run(|| migration::end_quarantine(|pgmap| self.tiers.tier_of(pgmap).is_some()));
        gate::alone(|| {
            service::run(|| {
                for heap in &self.heaps {
                    // SAFETY: this was the last handle and no block is live, so nobody uses the heap.
                    unsafe { heap.detach() };
                }
                // SAFETY: as above.
                unsafe { self.runs.detach() };
            });
        });
    }
}

/// The pools that are open. Locked in service only.
static OPEN: StaticMutex<Vec<Weak<Inner>>> = StaticMutex::new(Vec::new());
/// How many seccomp filters the process had when its first pool was opened.
static NR_FILTERS: OnceLock<Option<u32>> = OnceLock::new();

fn note_open(inner: &Arc<Inner>) {
    NR_FILTERS.get_or_init(control::nr_filters);
    let mut open = OPEN.lock();
    open.retain(|pool| pool.strong_count() > 0);
    open.push(Arc::downgrade(inner));
}

/// Returns handles of the pools that are open. Runs in service.
pub(super) fn open_pools() -> Vec<Pool> {
    OPEN.lock().iter().filter_map(Weak::upgrade).map(|inner| Pool { inner }).collect()
}

/// Whether the process has taken on seccomp filters since its first pool was opened.
pub(super) fn has_tightened_filters() -> bool {
    NR_FILTERS.get().is_some_and(|former| *former != control::nr_filters())
}

/// Turns the configured size of the fast tier into bytes.
fn resolve_fast(fast: FastSize) -> Result<u64, PoolError> {
    Ok(fast.resolve(&AvailableMemory::read(Path::new("/")))?)
}

/// Opens a slow device and binds it.
fn open_slow(spec: &SlowSpec) -> Result<Pgmap, PoolError> {
    let device = device::open(&spec.device, spec.size, spec.dax_options())?;
    let align_bytes = device.align_bytes();
    if align_bytes > SLOT_BYTES as u64 {
        return Err(PoolError::CoarseAlign { device: device.name().to_owned(), align_bytes });
    }
    bind(device, spec.size)
}

fn bind(device: Arc<dyn Device>, limit_bytes: Option<u64>) -> Result<Pgmap, PoolError> {
    let name = device.name().to_owned();
    let options = PgmapOptions {
        name,
        limit_pages: limit_bytes.map(|bytes| bytes >> PAGE_SHIFT),
        ..PgmapOptions::default()
    };
    Ok(Pgmap::bind(device, options)?)
}

/// What filling leaves free of the fast tier, in whole slots, for metadata that grows with the slow tier: 2 %, or 0.25 %
/// of the slow tier where that is more, though never more than a quarter.
fn watermark(fast_bytes: u64, slow_bytes: u64) -> u64 {
    (fast_bytes / 50).max(slow_bytes / 400).min(fast_bytes / 4).next_multiple_of(SLOT_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_grows_with_the_slow_tier_up_to_a_quarter() {
        let mib = |bytes: u64| bytes >> 20;
        assert_eq!(mib(watermark(16 << 20, 0)), 2);
        assert_eq!(mib(watermark(10 << 30, 0)), 206);
        assert_eq!(mib(watermark(64 << 20, 2 << 30)), 6);
        assert_eq!(mib(watermark(64 << 20, 1 << 40)), 16);
    }
}
