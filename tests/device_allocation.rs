//! Devices serve malloc, so claiming and mapping must not allocate.

use daxtier::device::{Device, Dram, Emulated};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: all calls go to the system's allocator; the counter is a plain thread-local number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's duties are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are those of `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

const LEN: usize = 8 << 20;

/// Reserves address space for a mapping, on a 2 MiB boundary; it stays for the life of the test.
fn reserve() -> NonNull<u8> {
    let layout = Layout::from_size_align(LEN, 2 << 20).expect("2 MiB is a power of two");
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { System.alloc(layout) }).expect("there is memory")
}

fn allocations_of_a_life(device: &dyn Device) -> u64 {
    let addr = reserve();
    let before = ALLOCATIONS.get();
    let claimed = device.claim(0..LEN as u64);
    // SAFETY: the range is this test's own, and nothing is in it.
    let mapped = unsafe { device.map_at(addr, 0, LEN) };
    // SAFETY: the range was just mapped writable.
    unsafe { addr.as_ptr().write_volatile(1) };
    device.discard(0..LEN as u64);
    device.release(0..LEN as u64);
    device.after_fork_in_child();
    // SAFETY: as above.
    let mapped_again = unsafe { device.map_at(addr, 0, LEN) };
    let after = ALLOCATIONS.get();
    assert!(claimed.is_ok() && mapped.is_ok() && mapped_again.is_ok());
    after - before
}

#[test]
fn claiming_mapping_and_releasing_allocate_nothing() {
    assert_eq!(allocations_of_a_life(&Emulated::new(LEN as u64, 2 << 20).unwrap()), 0);
    assert_eq!(allocations_of_a_life(&Dram::new(LEN as u64, None).unwrap()), 0);
}
