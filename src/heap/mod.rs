//! The heap: blocks of any size in the space, from mimalloc's arenas.
//!
//! A [`Heap`] allocates from a growing list of [`arena::Arena`]s whose slots a [`SlotSource`] backs; a pool has one
//! heap for its policy and one for each tier that blocks are bound to. Blocks that an arena can't hold (very large,
//! or aligned above 64 KiB) are [`runs`] of whole slots. Uses `space`; knows nothing of tiers or migration.
//!
//! The engine is quick because its fast path never leaves the thread; everything here is the path beside it.

mod arena;
mod engine;
mod runs;
mod thread_exit;

pub(crate) use engine::{Found, free_or, malloc_or, open_shortcut};
pub(crate) use runs::Runs;
pub(crate) use thread_exit::register as end_threads_inside_the_gate;

use crate::space::{SlotSource, Space};
use crate::sync::{gate, service};
use arena::Arena;
use engine::mi_heap_t;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The largest alignment that the engine serves inside an arena.
pub(crate) const LARGEST_ARENA_ALIGN: usize = 64 << 10;

/// With arenas that grow to [`arena::MOST_CHUNKS`], 1.5 TiB of addresses.
const MAX_ARENAS: usize = 128;

/// Blocks from arenas that one source backs.
pub(crate) struct Heap {
    space: &'static Space,
    /// The engine's heap that served last; NULL before the first arena. Hot path: read on every allocation.
    current: AtomicPtr<mi_heap_t>,
    /// Whether the engine's shortest path follows `current`.
    is_leading: AtomicBool,
    arenas: [AtomicPtr<Arena>; MAX_ARENAS],
    nr_arenas: AtomicUsize,
    /// Held while an arena is added.
    growth: Mutex<()>,
    description: Arc<dyn SlotSource + Send>,
    blocks: Arc<dyn SlotSource + Send>,
}

impl Heap {
    /// Makes a heap without an arena. `description` backs what the engine writes about its arenas, `blocks` the
    /// blocks.
    pub(crate) fn new(
        space: &'static Space,
        description: Arc<dyn SlotSource + Send>,
        blocks: Arc<dyn SlotSource + Send>,
    ) -> Heap {
        Heap {
            space,
            current: AtomicPtr::new(ptr::null_mut()),
            is_leading: AtomicBool::new(false),
            arenas: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_ARENAS],
            nr_arenas: AtomicUsize::new(0),
            growth: Mutex::new(()),
            description,
            blocks,
        }
    }

    /// Allocates `len_bytes` with `align` (a power of two up to [`LARGEST_ARENA_ALIGN`]). Returns `None` when no
    /// arena has room and none can be added.
    #[inline(always)]
    pub(crate) fn alloc(&self, len_bytes: usize, align: usize, zero: bool) -> Option<NonNull<u8>> {
        // Relaxed: the engine's heap was published by `grow` below with Release through the same word, and a
        // dependent read through the pointer is ordered on every machine that Linux runs on; Acquire says so.
        let heap = self.current.load(Ordering::Acquire);
        if !heap.is_null() {
            // SAFETY: `current` only ever holds live heaps of this pool's arenas.
            let block = unsafe { engine::malloc(heap, len_bytes, align, zero) };
            if let Some(block) = NonNull::new(block) {
                return Some(block);
            }
        }
        self.alloc_slow(len_bytes, align, zero)
    }

    #[cold]
    fn alloc_slow(&self, len_bytes: usize, align: usize, zero: bool) -> Option<NonNull<u8>> {
        let mut seen = self.nr_arenas.load(Ordering::Acquire);
        if let Some(block) = self.alloc_from_any(seen, len_bytes, align, zero) {
            return Some(block);
        }
        if seen > 0 {
            // A refused commit may only mean that freed blocks were not given back yet.
            engine::collect();
            if let Some(block) = self.alloc_from_any(seen, len_bytes, align, zero) {
                return Some(block);
            }
        }
        // Another arena costs memory for its description: only when its room is what is missing.
        if len_bytes > arena::LARGEST_BLOCK || !self.blocks.has_room(len_bytes as u64) {
            return None;
        }
        seen = self.grow(seen)?;
        self.alloc_from_any(seen, len_bytes, align, zero)
    }

    /// Tries every arena, the latest first.
    fn alloc_from_any(
        &self,
        nr_arenas: usize,
        len_bytes: usize,
        align: usize,
        zero: bool,
    ) -> Option<NonNull<u8>> {
        for at in (0..nr_arenas).rev() {
            let heap = self.arena(at).heap();
            // SAFETY: the arena is this pool's and attached, so its heap is live.
            let block = unsafe { engine::malloc(heap, len_bytes, align, zero) };
            if let Some(block) = NonNull::new(block) {
                self.set_current(heap);
                return Some(block);
            }
        }
        None
    }

    /// Adds an arena unless another thread did so since `seen` were counted. Returns how many there are now.
    fn grow(&self, seen: usize) -> Option<usize> {
        service::run(|| {
            let _growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
            let nr_arenas = self.nr_arenas.load(Ordering::Relaxed);
            if nr_arenas > seen {
                return Some(nr_arenas);
            }
            if nr_arenas == MAX_ARENAS {
                return None;
            }
            // As much again as there is, so that a small program gets a small arena and a large one few of them.
            let chunks = (0..nr_arenas).map(|at| self.arena(at).nr_chunks()).sum::<usize>();
            let arena = Arena::attach(
                self.space,
                chunks.clamp(1, arena::MOST_CHUNKS),
                Arc::clone(&self.description),
                Arc::clone(&self.blocks),
            )?;
            self.arenas[nr_arenas].store(ptr::from_ref(arena).cast_mut(), Ordering::Release);
            // Release: pairs with the Acquire of `alloc_slow`, which then sees the arena's pointer.
            self.nr_arenas.store(nr_arenas + 1, Ordering::Release);
            Some(nr_arenas + 1)
        })
    }

    /// Makes [`malloc_or`] allocate from this heap from now on, as soon as it has an arena.
    ///
    /// # Safety
    /// One heap of the process leads, and it is never detached.
    pub(crate) unsafe fn lead(&self) {
        // Relaxed: the caller is the only one who knows the heap yet.
        self.is_leading.store(true, Ordering::Relaxed);
    }

    fn set_current(&self, heap: *mut mi_heap_t) {
        self.current.store(heap, Ordering::Release);
        if self.is_leading.load(Ordering::Relaxed) {
            // SAFETY: the pool that made this heap prepared the engine, and a heap that leads is never detached.
            unsafe { engine::lead(heap, &self.space.heap_zone()) };
        }
    }

    fn arena(&self, at: usize) -> &'static Arena {
        let arena = self.arenas[at].load(Ordering::Acquire);
        // SAFETY: entries below `nr_arenas` hold leaked records.
        unsafe { &*arena }
    }

    /// Returns the bytes in live blocks.
    ///
    /// # Safety
    /// No other thread uses the heap or is inside the gate.
    pub(crate) unsafe fn live_bytes(&self) -> usize {
        (0..self.nr_arenas.load(Ordering::Acquire))
            .filter_map(|at| NonNull::new(self.arena(at).heap()))
            // SAFETY: the heap is live, and the caller argued that it is quiet.
            .map(|heap| unsafe { engine::live_bytes(heap) })
            .sum()
    }

    /// Frees every block and gives all slots back.
    ///
    /// # Safety
    /// Nobody uses the heap or its blocks any more, and no other thread is inside the gate.
    pub(crate) unsafe fn detach(&self) {
        debug_assert!(!self.is_leading.load(Ordering::Relaxed), "a heap that leads is never detached");
        self.current.store(ptr::null_mut(), Ordering::Relaxed);
        for at in 0..self.nr_arenas.swap(0, Ordering::AcqRel) {
            // SAFETY: the caller argued it.
            unsafe { self.arena(at).detach() };
        }
    }
}

/// Allocates from the leading heap what [`malloc_or`] left to its `slow`. Returns NULL when the arena is exhausted or no heap
/// leads.
#[inline(always)]
pub(crate) fn malloc_slow(len_bytes: usize, align: usize, zero: bool) -> *mut u8 {
    // SAFETY: a heap that leads is never detached.
    engine::leading()
        .map_or(ptr::null_mut(), |heap| unsafe { engine::malloc_slow(heap.as_ptr(), len_bytes, align, zero) })
}

/// Makes the heap ready for its first use. Returns `false` when the engine was built with features that it can't be used
/// with: then no heap may be made.
pub(crate) fn prepare() -> bool {
    gate::prepare();
    engine::prepare()
}

/// Whether `addr` lies where arenas are carved; such an address belongs to the engine.
#[inline(always)]
pub(crate) fn in_heap_zone(zone: &Range<usize>, addr: usize) -> bool {
    addr.wrapping_sub(zone.start) < zone.end - zone.start
}

/// Says what begins at an address in the heap zone. Exact as long as nobody else frees that block meanwhile.
#[inline]
pub(crate) fn find(addr: *const u8) -> Found {
    engine::find(addr)
}

/// Frees a block of any heap of this process. Returns what was found; unless it is a live block, nothing changes.
///
/// # Safety
/// If a live block of the heap zone begins at `addr`, nobody uses it any more.
#[inline]
pub(crate) unsafe fn free(addr: NonNull<u8>) -> Found {
    let found = find(addr.as_ptr());
    if found == Found::Live {
        // SAFETY: just found, and the caller argued the rest.
        unsafe { engine::free(addr.as_ptr()) };
    }
    found
}

/// Frees a block of the private heap.
///
/// # Safety
/// `block` is a live block of the private heap that nobody uses any more.
pub(crate) unsafe fn free_private(block: NonNull<u8>) {
    // SAFETY: the caller argued it.
    unsafe { engine::free_private(block.as_ptr()) };
}

/// Returns how many bytes a block holds.
///
/// # Safety
/// `block` is a live block in the heap zone or of the private heap.
#[inline(always)]
pub(crate) unsafe fn block_len(block: NonNull<u8>) -> usize {
    // SAFETY: the caller argued it.
    unsafe { engine::usable_size(block.as_ptr()) }
}

/// Whether the engine knows a block at this address.
pub(crate) fn is_block(addr: *const u8) -> bool {
    engine::heap_of(addr).is_some()
}

/// Makes the engine give free memory back to the tiers.
pub(crate) fn collect() {
    engine::collect();
}

/// Allocates from the private heap, which lies in ordinary memory and serves the library itself.
pub(crate) fn alloc_private(len_bytes: usize, align: usize, zero: bool) -> Option<NonNull<u8>> {
    // SAFETY: the private heap lives as long as the process.
    NonNull::new(unsafe { engine::malloc_slow(engine::private_heap(), len_bytes, align, zero) })
}
