//! Who hands out runs of pages: ours, and what stands beside it.
//!
//! The crates have no concurrency of their own and stand behind a lock.

use crate::buddy::Buddy;
use bitmap_allocator::{BitAlloc, BitAlloc256M};
use crossbeam::utils::CachePadded;
use daxtier::offset::{EXTENT_PAGES, Lifetime, OffsetAllocator};
use daxtier::units::Order;
use std::alloc::Layout;
use std::sync::{Mutex, MutexGuard};

/// Something that hands out naturally aligned runs of 2^order pages.
pub trait Offsets: Sync {
    /// Takes a run, for the thread of this number.
    fn get(&self, thread: usize, order: Order, lifetime: Lifetime) -> Option<u64>;
    /// Gives it back.
    fn put(&self, thread: usize, order: Order, offset: u64);
}

/// Makes ours, with all its extents.
///
/// # Panics
/// When the kernel refuses the address space.
pub fn daxtier(nr_pages: u64) -> OffsetAllocator {
    let offsets = OffsetAllocator::new(nr_pages, Order::PAGE).expect("there is address space");
    for index in 0..nr_pages.div_ceil(EXTENT_PAGES) {
        offsets.add_extent(index as usize).expect("there is memory for its metadata");
    }
    offsets
}

impl Offsets for OffsetAllocator {
    #[inline]
    fn get(&self, _thread: usize, order: Order, lifetime: Lifetime) -> Option<u64> {
        self.alloc(order, lifetime).ok()
    }

    #[inline]
    fn put(&self, _thread: usize, order: Order, offset: u64) {
        self.free(offset, order).expect("it was handed out");
    }
}

impl Offsets for Buddy {
    #[inline]
    fn get(&self, _thread: usize, order: Order, _lifetime: Lifetime) -> Option<u64> {
        self.alloc(usize::from(order.get())).map(u64::from)
    }

    #[inline]
    fn put(&self, _thread: usize, order: Order, offset: u64) {
        self.free(offset as u32, usize::from(order.get()));
    }
}

/// Returns the runs of an order in a range, the lowest last, which is the top of a stack.
fn stacked(range: std::ops::Range<u64>, order: Order) -> Vec<u64> {
    range.step_by(order.nr_pages() as usize).collect::<Vec<u64>>().into_iter().rev().collect()
}

/// One stack of runs of one order, behind a lock.
pub struct Locked(Mutex<Vec<u64>>);

impl Locked {
    /// Makes a stack of all runs.
    pub fn new(nr_pages: u64, order: Order) -> Locked {
        Locked(Mutex::new(stacked(0..nr_pages, order)))
    }
}

impl Offsets for Locked {
    #[inline]
    fn get(&self, _thread: usize, _order: Order, _lifetime: Lifetime) -> Option<u64> {
        lock(&self.0).pop()
    }

    #[inline]
    fn put(&self, _thread: usize, _order: Order, offset: u64) {
        lock(&self.0).push(offset);
    }
}

/// A stack for each thread, which checks nothing and shares nothing: what no allocator can undercut.
pub struct Floor(Vec<CachePadded<Private>>);

struct Private(std::cell::UnsafeCell<Vec<u64>>);

// SAFETY: each thread touches the stack of its own number only.
unsafe impl Sync for Private {}

impl Floor {
    /// Shares all runs out among the stacks of `threads` threads.
    pub fn new(nr_pages: u64, order: Order, threads: usize) -> Floor {
        let share = nr_pages / threads as u64;
        let stack = |thread: u64| stacked(thread * share..(thread + 1) * share, order);
        Floor((0..threads as u64).map(|thread| CachePadded::new(Private(stack(thread).into()))).collect())
    }
}

impl Offsets for Floor {
    #[inline]
    fn get(&self, thread: usize, _order: Order, _lifetime: Lifetime) -> Option<u64> {
        // SAFETY: no other thread has this number.
        let stack = unsafe { &mut *self.0[thread].0.get() };
        stack.pop()
    }

    #[inline]
    fn put(&self, thread: usize, _order: Order, offset: u64) {
        // SAFETY: no other thread has this number.
        let stack = unsafe { &mut *self.0[thread].0.get() };
        stack.push(offset);
    }
}

/// The crate `buddy_system_allocator`.
pub struct BuddySystem(Mutex<buddy_system_allocator::FrameAllocator<19>>);

impl BuddySystem {
    /// Makes one with all pages free.
    pub fn new(nr_pages: u64) -> BuddySystem {
        let mut frames = buddy_system_allocator::FrameAllocator::new();
        frames.add_frame(0, nr_pages as usize);
        BuddySystem(Mutex::new(frames))
    }
}

impl Offsets for BuddySystem {
    #[inline]
    fn get(&self, _thread: usize, order: Order, _lifetime: Lifetime) -> Option<u64> {
        lock(&self.0).alloc(order.nr_pages() as usize).map(|offset| offset as u64)
    }

    #[inline]
    fn put(&self, _thread: usize, order: Order, offset: u64) {
        lock(&self.0).dealloc(offset as usize, order.nr_pages() as usize);
    }
}

/// The crate `offset-allocator`. It frees by what it handed out, so that is kept beside it; it knows no alignment, which
/// runs of one order alone have.
pub struct OffsetCrate(Mutex<OffsetCrateInner>);

struct OffsetCrateInner {
    allocator: offset_allocator::Allocator,
    handed_out: Vec<Option<offset_allocator::Allocation>>,
}

impl OffsetCrate {
    /// Makes one for runs of one order.
    pub fn new(nr_pages: u64, order: Order) -> OffsetCrate {
        let nr_runs = (nr_pages >> order.get()) as u32;
        OffsetCrate(Mutex::new(OffsetCrateInner {
            // Its free list needs a node beyond those of the runs.
            allocator: offset_allocator::Allocator::with_max_allocs(nr_pages as u32, nr_runs + 2),
            handed_out: vec![None; nr_runs as usize],
        }))
    }
}

impl Offsets for OffsetCrate {
    #[inline]
    fn get(&self, _thread: usize, order: Order, _lifetime: Lifetime) -> Option<u64> {
        let mut inner = lock(&self.0);
        let allocation = inner.allocator.allocate(order.nr_pages() as u32)?;
        inner.handed_out[allocation.offset as usize >> order.get()] = Some(allocation);
        Some(u64::from(allocation.offset))
    }

    #[inline]
    fn put(&self, _thread: usize, order: Order, offset: u64) {
        let mut inner = lock(&self.0);
        let allocation = inner.handed_out[offset as usize >> order.get()].take();
        inner.allocator.free(allocation.expect("it was handed out"));
    }
}

/// The crate `bitmap-allocator`.
pub struct Bitmap(Mutex<Box<BitAlloc256M>>);

impl Bitmap {
    /// Makes one with all pages free.
    pub fn new(nr_pages: u64) -> Bitmap {
        // It is too large for a stack.
        let layout = Layout::new::<BitAlloc256M>();
        // SAFETY: the layout has a size.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BitAlloc256M>();
        assert!(!memory.is_null(), "there is memory");
        // SAFETY: the memory was allocated as a box would; a bitmap is words, and one of zeroes has nothing free.
        let mut bitmap = unsafe { Box::from_raw(memory) };
        bitmap.insert(0..nr_pages as usize);
        Bitmap(Mutex::new(bitmap))
    }
}

impl Offsets for Bitmap {
    #[inline]
    fn get(&self, _thread: usize, order: Order, _lifetime: Lifetime) -> Option<u64> {
        let mut bitmap = lock(&self.0);
        let offset = match order {
            Order::PAGE => bitmap.alloc(),
            _ => bitmap.alloc_contiguous(None, order.nr_pages() as usize, usize::from(order.get())),
        };
        offset.map(|offset| offset as u64)
    }

    #[inline]
    fn put(&self, _thread: usize, order: Order, offset: u64) {
        let mut bitmap = lock(&self.0);
        let was_taken = match order {
            Order::PAGE => bitmap.dealloc(offset as usize),
            _ => bitmap.dealloc_contiguous(offset as usize, order.nr_pages() as usize),
        };
        assert!(was_taken, "it was handed out");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with the lock")
}
