//! A buddy allocator with lists for each processor, as Linux `mm/page_alloc.c` has it: the peer that kernels use.
//!
//! One *zone* behind a lock keeps free runs of each order in lists that are linked through arrays, one entry a page. In front of
//! it each processor keeps, for small orders and that of 2 MiB, a list behind a lock of its own, which is filled and
//! drained by batches. A request that fails drains all lists and tries again.

use crossbeam::utils::CachePadded;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// Orders 0 to 18.
const NR_ORDERS: usize = 19;
/// The orders that processors keep lists of: those that ours keeps ready too.
const LISTED: [usize; 6] = [0, 1, 2, 3, 4, 9];
/// How many runs move between a list and the zone at once.
const BATCH: usize = 63;
/// How many runs a list holds at most; beyond that a batch goes back.
const HIGH: usize = 6 * BATCH;
/// As many of order 9 would hoard gigabytes.
const BATCH_HUGE: usize = 4;

/// No page.
const NONE: u32 = u32::MAX;

/// The allocator.
pub struct Buddy {
    zone: Spin<Zone>,
    /// Per processor, the lists of `LISTED`.
    lists: Vec<CachePadded<Spin<[VecDeque<u32>; LISTED.len()]>>>,
}

impl Buddy {
    /// Makes one with all pages free.
    ///
    /// # Panics
    /// When a page's number does not fit.
    pub fn new(nr_pages: u64) -> Buddy {
        let nr_pages = u32::try_from(nr_pages).expect("at most 16 TiB");
        let mut zone = Zone {
            heads: [NONE; NR_ORDERS],
            // Zeroes cost nothing until they are touched.
            order_of: vec![0; nr_pages as usize],
            next: vec![0; nr_pages as usize],
            previous: vec![0; nr_pages as usize],
        };
        // The lowest run comes to the front.
        let mut end = nr_pages;
        while end > 0 {
            let order = (NR_ORDERS - 1).min(end.trailing_zeros() as usize);
            end -= 1 << order;
            zone.push(end, order);
        }
        // SAFETY: no memory is touched.
        let nr_cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1) as usize;
        let list =
            || CachePadded::new(Spin::new(std::array::from_fn(|_| VecDeque::with_capacity(HIGH + BATCH))));
        Buddy { zone: Spin::new(zone), lists: (0..nr_cpus).map(|_| list()).collect() }
    }

    /// Takes a run.
    #[inline]
    pub fn alloc(&self, order: usize) -> Option<u32> {
        let taken = match listed(order) {
            Some(list) => self.alloc_listed(list, order),
            None => self.zone.lock().alloc(order),
        };
        taken.or_else(|| {
            self.drain();
            self.zone.lock().alloc(order)
        })
    }

    /// Gives a run back.
    #[inline]
    pub fn free(&self, page: u32, order: usize) {
        let Some(list) = listed(order) else { return self.zone.lock().free(page, order) };
        let mut lists = self.lists[self.cpu()].lock();
        let list = &mut lists[list];
        list.push_front(page);
        let (batch, high) = bounds(order);
        if list.len() >= high {
            // The coldest go.
            let mut zone = self.zone.lock();
            list.drain(list.len() - batch..).for_each(|page| zone.free(page, order));
        }
    }

    #[inline]
    fn alloc_listed(&self, list: usize, order: usize) -> Option<u32> {
        let mut lists = self.lists[self.cpu()].lock();
        let list = &mut lists[list];
        if list.is_empty() {
            let mut zone = self.zone.lock();
            list.extend((0..bounds(order).0).map_while(|_| zone.alloc(order)));
        }
        list.pop_front()
    }

    fn drain(&self) {
        for lists in &self.lists {
            let mut lists = lists.lock();
            let mut zone = self.zone.lock();
            for (list, order) in lists.iter_mut().zip(LISTED) {
                list.drain(..).for_each(|page| zone.free(page, order));
            }
        }
    }

    #[inline]
    fn cpu(&self) -> usize {
        // SAFETY: no memory is touched.
        let cpu = unsafe { libc::sched_getcpu() };
        cpu.max(0) as usize % self.lists.len()
    }
}

/// Returns the place in `LISTED` of an order.
#[inline]
fn listed(order: usize) -> Option<usize> {
    match order {
        0..=4 => Some(order),
        9 => Some(5),
        _ => None,
    }
}

/// Returns batch and limit of a list.
#[inline]
fn bounds(order: usize) -> (usize, usize) {
    if order == 9 { (BATCH_HUGE, 2 * BATCH_HUGE) } else { ((BATCH >> order).max(1), (HIGH >> order).max(2)) }
}

struct Zone {
    /// Per order, the first free run.
    heads: [u32; NR_ORDERS],
    /// Per page, 1 + the order of the free run that begins there, or 0.
    order_of: Vec<u8>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Zone {
    fn alloc(&mut self, order: usize) -> Option<u32> {
        let found = (order..NR_ORDERS).find(|&order| self.heads[order] != NONE)?;
        let page = self.heads[found];
        self.remove(page, found);
        // The upper halves stay free.
        (order..found).rev().for_each(|half| self.push(page + (1 << half), half));
        Some(page)
    }

    fn free(&mut self, mut page: u32, mut order: usize) {
        while order < NR_ORDERS - 1 {
            let buddy = page ^ 1 << order;
            if self.order_of.get(buddy as usize) != Some(&(order as u8 + 1)) {
                break;
            }
            self.remove(buddy, order);
            page &= buddy;
            order += 1;
        }
        self.push(page, order);
    }

    fn push(&mut self, page: u32, order: usize) {
        let next = std::mem::replace(&mut self.heads[order], page);
        if next != NONE {
            self.previous[next as usize] = page;
        }
        self.next[page as usize] = next;
        self.previous[page as usize] = NONE;
        self.order_of[page as usize] = order as u8 + 1;
    }

    fn remove(&mut self, page: u32, order: usize) {
        let (next, previous) = (self.next[page as usize], self.previous[page as usize]);
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        if previous == NONE {
            self.heads[order] = next;
        } else {
            self.next[previous as usize] = next;
        }
        self.order_of[page as usize] = 0;
    }
}

/// A spin lock, as the kernel's: the C library's would cost a locked instruction more.
struct Spin<T> {
    is_locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is touched under the lock only.
unsafe impl<T: Send> Sync for Spin<T> {}

impl<T> Spin<T> {
    fn new(value: T) -> Spin<T> {
        Spin { is_locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    fn lock(&self) -> Guard<'_, T> {
        // Acquire: pairs with the Release of the last holder.
        while self.is_locked.swap(true, Ordering::Acquire) {
            let mut nr_looks = 0u32;
            // Relaxed: the swap decides.
            while self.is_locked.load(Ordering::Relaxed) {
                nr_looks += 1;
                if nr_looks.is_multiple_of(128) {
                    // The holder may have lost its processor, which the kernel prevents.
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
        Guard(self)
    }
}

struct Guard<'a, T>(&'a Spin<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed for as long as the reference lives.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: publishes what was done under the lock.
        self.0.is_locked.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_joins_again() {
        let buddy = Buddy::new(3 << 18);
        let pages: Vec<u32> = std::iter::from_fn(|| buddy.alloc(0)).collect();
        assert_eq!(pages.len(), 3 << 18);
        // Every other page first, so that everything has to join at the end.
        pages.iter().filter(|page| *page % 2 == 0).for_each(|page| buddy.free(*page, 0));
        assert_eq!(buddy.alloc(1), None);
        pages.iter().filter(|page| *page % 2 == 1).for_each(|page| buddy.free(*page, 0));
        let mut runs: Vec<u32> = std::iter::from_fn(|| buddy.alloc(18)).collect();
        runs.sort_unstable();
        assert_eq!(runs, [0, 1 << 18, 2 << 18]);
    }

    #[test]
    fn a_request_fails_only_when_nothing_fits() {
        // All is in the lists when the last page is asked for.
        let buddy = Buddy::new(64);
        let pages: Vec<u32> = std::iter::from_fn(|| buddy.alloc(0)).collect();
        pages.iter().for_each(|page| buddy.free(*page, 0));
        assert_eq!(buddy.alloc(6), Some(0));
        assert_eq!(buddy.alloc(0), None);
    }
}
