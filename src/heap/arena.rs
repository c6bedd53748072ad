//! Arenas: address ranges that the engine cuts into blocks, and whose commits come back to us.
//!
//! The engine can't let go of an arena, so records live for ever and are handed from a closed pool to the next:
//! [`Arena::detach`] frees the blocks and gives every slot back but the few in which something stays committed. That is
//! the engine's description of the arena, about 2.2 MiB for each GiB, and a slice for each thread that allocated from
//! the arena last and has allocated nothing elsewhere since: the engine keeps the thread's part of the heap until then.
//! These slots stay in private memory, charged to whichever pool owns the arena.
//!
//! # Invariants
//! - A1: `owner` is set from before the engine takes the arena until [`Arena::detach`] has collected it; only
//!   then may a pool that the owner refers to go away.

use crate::heap::engine::{self, mi_arena_id_t, mi_heap_t};
use crate::space::{CHUNK_BYTES, SLOT_BYTES, SlotSource, Space};
use crate::sync::service;
use libc::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// An arena and the heap that allocates from it.
pub(super) struct Arena {
    space: &'static Space,
    chunks: NonNull<u8>,
    nr_chunks: usize,
    /// From the first chunk's start to the end of the engine's description, in whole slots once the arena is made.
    description_bytes: AtomicUsize,
    id: AtomicPtr<c_void>,
    heap: AtomicPtr<mi_heap_t>,
    owner: RwLock<Option<Arc<dyn SlotSource + Send>>>,
}

// SAFETY: an Arena is shared through its atomics and its lock; `chunks` is an address that never changes.
unsafe impl Send for Arena {}
// SAFETY: as for Send.
unsafe impl Sync for Arena {}

/// Arenas whose pool was closed, and ranges that the engine did not take.
static IDLE: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());

impl Arena {
    /// Takes an idle arena of `nr_chunks` chunks or makes one, and gives it a heap. `description` backs the slots
    /// that the engine describes the arena in, `blocks` all others.
    ///
    /// An arena in which a thread still keeps something among the blocks is the last choice: its new blocks could share a
    /// slot with that, which `description` backs. A living thread keeps something in one arena at most.
    ///
    /// Returns `None` when there is no address space, no memory for the description, or no room in the engine's
    /// table of arenas.
    pub(super) fn attach(
        space: &'static Space,
        nr_chunks: usize,
        description: Arc<dyn SlotSource + Send>,
        blocks: Arc<dyn SlotSource + Send>,
    ) -> Option<&'static Arena> {
        let fits = |arena: &Arena| arena.nr_chunks == nr_chunks;
        let arena = Arena::take_idle(|arena| fits(arena) && arena.is_empty())
            .or_else(|| Arena::reserve(space, nr_chunks))
            .and_then(|arena| arena.prepare(&description))
            .or_else(|| Arena::take_idle(|arena| fits(arena) && !arena.is_empty())?.prepare(&description))?;
        arena.set_owner(Some(blocks));
        Some(arena)
    }

    fn take_idle(is_wanted: impl Fn(&Arena) -> bool) -> Option<&'static Arena> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().position(|arena| is_wanted(arena))?;
        Some(idle.swap_remove(at))
    }

    /// Gives the arena a heap. Returns `None` when that is refused; its addresses are not lost then, and the next one who
    /// asks tries again.
    fn prepare(&'static self, description: &Arc<dyn SlotSource + Send>) -> Option<&'static Arena> {
        let is_ready =
            if self.id().is_null() { self.make(description.clone()) } else { self.revive(&**description) };
        if is_ready {
            return Some(self);
        }
        self.set_owner(None);
        self.retire();
        None
    }

    /// Takes addresses for an arena that the engine does not know yet.
    fn reserve(space: &'static Space, nr_chunks: usize) -> Option<&'static Arena> {
        let chunks = space.take_heap_chunks(nr_chunks)?;
        Some(Box::leak(Box::new(Arena {
            space,
            chunks,
            nr_chunks,
            description_bytes: AtomicUsize::new(0),
            id: AtomicPtr::new(ptr::null_mut()),
            heap: AtomicPtr::new(ptr::null_mut()),
            owner: RwLock::new(None),
        })))
    }

    /// Makes the engine take the arena and gives it a heap. Returns `false`, with nothing left behind, when the
    /// engine has no room in its table or `description` none for what it writes about the arena.
    fn make(&'static self, description: Arc<dyn SlotSource + Send>) -> bool {
        let arg = ptr::from_ref(self).cast_mut().cast();
        // One unit less than the chunks hold, so that the start can move inside the first slot.
        let len_bytes = self.nr_chunks * CHUNK_BYTES - ENGINE_UNIT;
        // Without an owner the commit of the description is refused, and what was asked for tells its length. Then
        // the arena is made so that its description ends where a slot ends, and no block shares a slot with it.
        // SAFETY: the chunks are this record's for good, the engine does not know them, and the record is leaked.
        let refused = unsafe { engine::manage(self.chunks, len_bytes, commit, arg) };
        debug_assert!(refused.is_none());
        let described = self.description_bytes.load(Ordering::Relaxed);
        let lead = described.next_multiple_of(SLOT_BYTES) - described;
        self.description_bytes.store(lead + described, Ordering::Relaxed);
        self.set_owner(Some(description));
        // SAFETY: the lead is below a slot, which the chunks hold.
        let start = unsafe { self.chunks.add(lead) };
        // SAFETY: as for the first call; that one left nothing behind.
        let made = unsafe { engine::manage(start, len_bytes, commit, arg) };
        let (addr, len_bytes) = self.range();
        let Some(id) = made else {
            self.space.decommit(addr, len_bytes);
            return false;
        };
        self.id.store(id, Ordering::Relaxed);
        self.give_heap()
    }

    /// Charges the description's slots to a new owner and makes a fresh heap. Returns `false`, with nothing
    /// changed, when either is refused.
    fn revive(&self, description: &dyn SlotSource) -> bool {
        let (addr, len_bytes) = self.range();
        self.space.charge_orphans(addr, len_bytes, description) && self.give_heap()
    }

    fn give_heap(&self) -> bool {
        let Some(heap) = engine::new_heap(self.id()) else {
            let (addr, len_bytes) = self.range();
            self.space.orphan(addr, len_bytes);
            return false;
        };
        self.heap.store(heap.as_ptr(), Ordering::Relaxed);
        true
    }

    fn retire(&'static self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Frees all blocks and gives every slot back to its tier.
    ///
    /// # Safety
    /// Nobody uses the heap or its blocks any more, and no other thread is inside the gate: none is at its end, and none
    /// writes to what stays committed.
    pub(super) unsafe fn detach(&'static self) {
        if let Some(heap) = NonNull::new(self.heap.swap(ptr::null_mut(), Ordering::Relaxed)) {
            // SAFETY: the caller argued it.
            unsafe { engine::destroy_heap(heap) };
            engine::let_go_of_last_heap();
        }
        engine::collect();
        let (addr, len_bytes) = self.range();
        // Without memory for an orphan, the slot stays charged to the owner, which then stays too.
        if self.space.orphan(addr, len_bytes) {
            self.set_owner(None);
            self.retire();
        }
    }

    /// Returns the heap that allocates from the arena.
    pub(super) fn heap(&self) -> *mut mi_heap_t {
        self.heap.load(Ordering::Relaxed)
    }

    /// Whether nothing is left of former owners' blocks, nor of what threads kept beside them.
    fn is_empty(&self) -> bool {
        let (addr, len_bytes) = self.range();
        let blocks = addr + self.description_bytes.load(Ordering::Relaxed);
        self.space.is_blank(blocks, addr + len_bytes - blocks)
    }

    /// Returns how many chunks the arena spans.
    pub(super) fn nr_chunks(&self) -> usize {
        self.nr_chunks
    }

    fn id(&self) -> mi_arena_id_t {
        self.id.load(Ordering::Relaxed)
    }

    fn range(&self) -> (usize, usize) {
        (self.chunks.as_ptr().addr(), self.nr_chunks * CHUNK_BYTES)
    }

    fn set_owner(&self, owner: Option<Arc<dyn SlotSource + Send>>) {
        *self.owner.write().unwrap_or_else(PoisonError::into_inner) = owner;
    }
}

/// The engine's request to commit or decommit a range of an arena. Keeps `errno`, which `free` must not change.
///
/// # Safety
/// `arg` is a leaked [`Arena`], the range lies inside it, and `is_zero` is NULL or valid.
unsafe extern "C" fn commit(
    commit: bool,
    start: *mut c_void,
    size: usize,
    is_zero: *mut bool,
    arg: *mut c_void,
) -> bool {
    // SAFETY: the caller argued it.
    let arena = unsafe { &*arg.cast::<Arena>() };
    service::run(|| {
        let owner = arena.owner.read().unwrap_or_else(PoisonError::into_inner);
        if !commit {
            arena.space.decommit(start.addr(), size);
            if let Some(source) = owner.as_deref() {
                source.settled();
            }
            return true;
        }
        let Some(source) = owner.as_deref() else {
            arena.description_bytes.store(size, Ordering::Relaxed);
            return false;
        };
        let Some(zero) = arena.space.commit(start.addr(), size, source) else { return false };
        if !is_zero.is_null() {
            // SAFETY: the caller argued it.
            unsafe { *is_zero = zero };
        }
        true
    })
}

/// The unit in which the engine rounds the length of an arena down.
const ENGINE_UNIT: usize = 32 << 20;

/// The most chunks of an arena: the engine refuses one whose description is longer than 32 MiB.
pub(super) const MOST_CHUNKS: usize = 12;

/// The largest block that a fresh arena of one chunk surely holds.
pub(super) const LARGEST_BLOCK: usize = CHUNK_BYTES / 2;
