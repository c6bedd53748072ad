//! Pools, as a Rust program uses them.

use daxtier::{AllocOptions, CloseError, Config, NotABlock, Order, Pool, TierName};
use std::ptr::NonNull;

const MIB: u64 = 1 << 20;

fn open(text: &str) -> Pool {
    Pool::open(&Config::parse(text).expect("the configuration is right")).expect("the pool opens")
}

fn tier_of(pool: &Pool, block: NonNull<u8>) -> &'static str {
    pool.where_is(block.as_ptr()).expect("the block is in a folio").tier_name
}

/// Allocates blocks of 1 MiB until the pool refuses, writes to all of them, and returns them.
fn fill(pool: &Pool, options: AllocOptions) -> Vec<NonNull<u8>> {
    let mut blocks = Vec::new();
    while let Ok(block) = pool.malloc(MIB as usize, 16, options) {
        // SAFETY: the block was just made and is 1 MiB long.
        unsafe { block.write_bytes(blocks.len() as u8, MIB as usize) };
        blocks.push(block);
    }
    blocks
}

fn free_all(pool: &Pool, blocks: Vec<NonNull<u8>>) {
    for block in blocks {
        // SAFETY: the blocks are live and unused from here on.
        unsafe { pool.free(block) }.expect("the block is the pool's");
    }
}

#[test]
fn filling_uses_the_fast_tier_first_and_never_exceeds_a_capacity() {
    let pool = open("fast=32M slow=emulated:64M");
    let blocks = fill(&pool, AllocOptions::default());
    assert_eq!(tier_of(&pool, blocks[0]), "fast");
    let stats = pool.stats();
    for tier in &stats.tiers {
        assert!(tier.used_bytes <= tier.capacity_bytes, "{tier:?}");
        assert!(tier.peak_bytes <= tier.capacity_bytes, "{tier:?}");
    }
    assert_eq!(stats.tiers[0].capacity_bytes, 32 * MIB);
    assert_eq!(stats.tiers[1].used_bytes, 64 * MIB, "exhaustion means that the slow tier is full");
    assert!(stats.failures >= 1);
    for (at, block) in blocks.iter().enumerate() {
        // SAFETY: the blocks are live and were written over their whole length.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), MIB as usize) };
        assert!(bytes.iter().all(|&byte| byte == at as u8), "block {at} was overwritten");
    }
    free_all(&pool, blocks);
    // The engine lets one thread at a time give memory back: while another test's does, ours does not.
    let is_returned = || {
        std::thread::sleep(std::time::Duration::from_millis(10));
        pool.stats().tiers[1].used_bytes == 0
    };
    assert!((0..500).any(|_| is_returned()), "freed memory returns to its tier");
    pool.close().expect("nothing is in use");
}

#[test]
fn even_the_smallest_blocks_are_aligned_as_asked() {
    let pool = open("fast=16M");
    for align in [1, 2, 4, 8, 16, 32, 64] {
        let blocks: Vec<_> = (0..16usize)
            .map(|size| pool.malloc(size, align, AllocOptions::default()).expect("there is room"))
            .collect();
        assert!(blocks.iter().all(|block| block.as_ptr().addr() % align == 0), "{align}: {blocks:?}");
        free_all(&pool, blocks);
    }
    pool.close().expect("nothing is in use");
}

#[test]
fn exhaustion_says_why() {
    let pool = open("fast=16M");
    let refusal = pool.malloc(64 << 20, 16, AllocOptions::default()).expect_err("64 MiB do not fit in 16");
    let text = refusal.to_string();
    assert!(text.contains("64 MiB") && text.contains("fast") && text.contains("16 MiB"), "{text}");
    assert_eq!(refusal.errno(), libc::ENOMEM);
}

#[test]
fn binding_fails_rather_than_spills() {
    let pool = open("fast=32M slow=emulated:32M policy=bind=slow");
    let blocks = fill(&pool, AllocOptions::default());
    assert!(!blocks.is_empty());
    assert!(blocks.iter().all(|&block| tier_of(&pool, block) == "slow"));
    free_all(&pool, blocks);
    let blocks = fill(&pool, AllocOptions { tier: Some(TierName::Fast), ..AllocOptions::default() });
    assert!(!blocks.is_empty());
    assert!(blocks.iter().all(|&block| tier_of(&pool, block) == "fast"));
    free_all(&pool, blocks);
}

#[test]
fn a_preferred_tier_spills_when_it_is_full() {
    let pool = open("fast=32M slow=emulated:32M policy=preferred=slow");
    let blocks = fill(&pool, AllocOptions::default());
    assert_eq!(tier_of(&pool, blocks[0]), "slow");
    assert!(blocks.iter().any(|&block| tier_of(&pool, block) == "fast"));
    free_all(&pool, blocks);
}

#[test]
fn an_interleave_divides_slots_by_weight() {
    let pool = open("fast=256M slow=emulated:512M policy=interleave=1:3");
    let blocks: Vec<_> = (0..200)
        .map(|_| pool.malloc(MIB as usize, 16, AllocOptions::default()).expect("there is room"))
        .collect();
    let slow = blocks.iter().filter(|&&block| tier_of(&pool, block) == "slow").count();
    assert!((130..=170).contains(&slow), "{slow} of 200 blocks are slow; three quarters were asked for");
    free_all(&pool, blocks);
}

#[test]
fn large_and_strongly_aligned_blocks_are_served_and_given_back() {
    let pool = open("fast=64M slow=emulated:1G");
    for (size, align) in
        [(700 << 20, 16), (1 << 20, 1 << 20), (3 << 20, 4 << 20), (100, 128 << 10), (5 << 20, 64 << 10)]
    {
        let zeroed = AllocOptions { zero: true, ..AllocOptions::default() };
        let block = pool.malloc(size, align, zeroed).expect("there is room");
        assert_eq!(block.as_ptr().addr() % align, 0, "{size} at {align}");
        assert!(pool.usable_size(block).expect("it is ours") >= size);
        // SAFETY: the block is live and `size` bytes long.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), size) };
        assert!(bytes.iter().step_by(509).all(|&byte| byte == 0));
        bytes.fill(0xa5);
        // SAFETY: the block is live and unused from here on.
        unsafe { pool.free(block) }.expect("it is ours");
    }
    let used: u64 = pool.stats().tiers.iter().map(|tier| tier.used_bytes).sum();
    assert!(used <= 16 * MIB, "{used} bytes are still in use");
}

#[test]
fn reallocation_keeps_the_bytes() {
    let pool = open("fast=64M slow=emulated:256M");
    let mut block = pool.malloc(10, 16, AllocOptions::default()).expect("there is room");
    // SAFETY: the block is live and 10 bytes long.
    unsafe { block.copy_from_nonoverlapping(NonNull::from(b"0123456789").cast(), 10) };
    for size in [100, 100_000, 10_000_000, 80 << 20, 1000, 10] {
        // SAFETY: the block is live and its old address is not used any more.
        block = unsafe { pool.realloc(block, size, 16, AllocOptions::default()) }.expect("there is room");
        // SAFETY: the block is live and at least 10 bytes long.
        assert_eq!(unsafe { std::slice::from_raw_parts(block.as_ptr(), 10) }, b"0123456789", "at {size}");
    }
    free_all(&pool, vec![block]);
}

#[test]
fn foreign_pointers_are_refused() {
    let pool = open("fast=16M");
    let mut outside = 0u64;
    let foreign = NonNull::from(&mut outside).cast::<u8>();
    // SAFETY: the pointer is in no pool, which is what is tested.
    let refusal = unsafe { pool.free(foreign) }.expect_err("it is not ours");
    assert_eq!(refusal, NotABlock::Foreign { addr: foreign.as_ptr().addr() });
    assert!(pool.usable_size(foreign).is_err());
    assert!(pool.where_is(foreign.as_ptr()).is_none());
    let run = pool.malloc(4 << 20, 1 << 20, AllocOptions::default()).expect("there is room");
    // SAFETY: the run is 4 MiB long.
    let inside = unsafe { run.add(1 << 20) };
    // SAFETY: an address inside a run is refused, which is what is tested.
    unsafe { pool.free(inside) }.expect_err("it is inside a block");
    // SAFETY: the run is live and unused from here on.
    unsafe { pool.free(run) }.expect("it is ours");
    // SAFETY: a run that was freed is refused, which is what is tested.
    unsafe { pool.free(run) }.expect_err("it was freed before");
}

#[test]
fn closing_lists_what_is_in_use() {
    let pool = open("fast=32M slow=emulated:32M");
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    let folio = pool.alloc_folio(Order::HUGE, slow).expect("there is room");
    let block = pool.malloc(1000, 16, AllocOptions::default()).expect("there is room");
    let CloseError::Busy { pool, folios, heap_bytes, handles } = pool.close().expect_err("it is in use")
    else {
        panic!("another error")
    };
    assert_eq!((folios.len(), folios[0].offset, handles), (1, folio.offset(), 0));
    assert!(heap_bytes >= 1000, "{heap_bytes}");
    drop(folio);
    free_all(&pool, vec![block]);
    let other = pool.clone();
    let CloseError::Busy { pool, handles, .. } = pool.close().expect_err("there is another handle") else {
        panic!("another error")
    };
    assert_eq!(handles, 1);
    drop(other);
    pool.close().expect("nothing is in use");
}

#[test]
fn a_block_that_another_thread_freed_does_not_keep_a_pool_open() {
    let pool = open("fast=16M slow=emulated:16M");
    let (allocated, freed) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let addresses = std::sync::Mutex::new(Vec::new());
    let allocate = |pool: Pool| {
        let blocks = (0..100).map(|_| pool.malloc(3000, 16, AllocOptions::default()).expect("there is room"));
        addresses.lock().expect("nobody panics").extend(blocks.map(NonNull::expose_provenance));
        drop(pool);
        allocated.wait();
        // It does not end, and so does not look at its blocks, before the pool is closed.
        freed.wait();
    };
    std::thread::scope(|scope| {
        let handle = pool.clone();
        scope.spawn(|| allocate(handle));
        allocated.wait();
        let addresses = std::mem::take(&mut *addresses.lock().expect("nobody panics"));
        let mut blocks: Vec<_> = addresses.into_iter().map(NonNull::with_exposed_provenance).collect();
        let last = blocks.split_off(99);
        free_all(&pool, blocks);
        let refused = pool.close().map_err(|error| match error {
            CloseError::Busy { pool, heap_bytes, .. } => (pool, heap_bytes),
            other => panic!("{other}"),
        });
        let (pool, heap_bytes) = refused.expect_err("one block is in use");
        assert!((3000..6000).contains(&heap_bytes), "{heap_bytes}");
        free_all(&pool, last);
        pool.close().expect("nothing is in use");
        freed.wait();
    });
}

#[test]
fn two_pools_keep_apart() {
    let one = open("fast=16M slow=emulated:64M policy=bind=slow");
    let two = open("fast=16M slow=emulated:32M policy=bind=slow");
    let (first, second) = (fill(&one, AllocOptions::default()), fill(&two, AllocOptions::default()));
    assert!(first.len() > second.len());
    assert!(two.where_is(first[0].as_ptr()).is_none());
    assert_ne!(
        one.where_is(first[0].as_ptr()).map(|place| place.pgmap),
        two.where_is(second[0].as_ptr()).map(|place| place.pgmap)
    );
    free_all(&one, first);
    free_all(&two, second);
}

#[test]
fn threads_share_a_pool() {
    let pool = open("fast=64M slow=emulated:256M policy=interleave=1:1");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let pool = &pool;
            scope.spawn(move || {
                let mut random = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut held: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
                for round in 0..20_000u32 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    if random % 3 != 0 || held.is_empty() {
                        let size =
                            if random % 97 == 0 { 3 << 20 } else { 16 + (random >> 20) as usize % 20_000 };
                        let Ok(block) = pool.malloc(size, 16, AllocOptions::default()) else { continue };
                        let stamp = round as u8;
                        // SAFETY: the block is live and `size` bytes long.
                        unsafe { block.write_bytes(stamp, size) };
                        held.push((block, size, stamp));
                    }
                    if held.len() > 100 {
                        let (block, size, stamp) = held.swap_remove(random as usize % held.len());
                        // SAFETY: the block is live and `size` bytes long.
                        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
                        assert!(bytes.iter().all(|&byte| byte == stamp), "a block was handed out twice");
                        free_all(pool, vec![(block)]);
                    }
                }
                free_all(pool, held.into_iter().map(|(block, ..)| block).collect());
            });
        }
    });
    pool.close().expect("nothing is in use");
}

#[test]
fn many_pools_one_after_another_leave_nothing_behind() {
    let mappings = || std::fs::read_to_string("/proc/self/maps").expect("/proc is there").lines().count();
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc is there").count();
    let cycle = || {
        let pool = open("fast=16M slow=emulated:16M");
        let block = pool.malloc(3 << 20, 16, AllocOptions::default()).expect("there is room");
        free_all(&pool, vec![block]);
        pool.close().expect("nothing is in use");
    };
    (0..50).for_each(|_| cycle());
    let before = (mappings(), descriptors());
    (0..1000).for_each(|_| cycle());
    let after = (mappings(), descriptors());
    // Other tests of this program run meanwhile; a leak of one a cycle would show as 1000.
    assert!(after.0 < before.0 + 300 && after.1 < before.1 + 100, "{before:?} became {after:?}");
}

/// The words at the starts of a block's pages.
fn page_starts(block: NonNull<u8>, len_bytes: usize) -> impl Iterator<Item = &'static mut u64> {
    // SAFETY: callers pass a live block of this length, and use it in one place at a time.
    let words = unsafe { std::slice::from_raw_parts_mut(block.cast::<u64>().as_ptr(), len_bytes / 8) };
    words.iter_mut().step_by(512)
}

#[test]
fn forked_children_are_isolated_in_both_directions() {
    const LEN: usize = 40 << 20;
    let pool = open("fast=16M slow=emulated:128M policy=bind=slow");
    let block = pool.malloc(LEN, 16, AllocOptions::default()).expect("there is room");
    let small = pool.malloc(1000, 16, AllocOptions::default()).expect("there is room");
    // SAFETY: the block is live and 1000 bytes long.
    unsafe { small.write_bytes(7, 1000) };
    // A child is refused (status 75) when another test was stopped inside the C library's malloc.
    let status = loop {
        page_starts(block, LEN).zip(0..).for_each(|(word, at)| *word = at);
        let mut pipe = [0; 2];
        // SAFETY: the array holds two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: the child only touches memory, reads a pipe and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut go = [0u8; 1];
            // SAFETY: the buffer is one byte long.
            let _ = unsafe { libc::read(pipe[0], go.as_mut_ptr().cast(), 1) };
            let seen = page_starts(block, LEN).zip(0..).all(|(word, at)| std::mem::replace(word, 1) == at);
            // The child's pool works: it frees what it inherited and allocates anew.
            // SAFETY: the block is live in the child too.
            let freed = unsafe { pool.free(block) }.is_ok();
            let fresh = pool.malloc(110 << 20, 16, AllocOptions { zero: true, ..AllocOptions::default() });
            let zero = fresh.is_ok_and(|fresh| {
                // SAFETY: the block was just made.
                let bytes = unsafe { std::slice::from_raw_parts_mut(fresh.as_ptr(), 110 << 20) };
                let zero = bytes.iter().all(|&byte| byte == 0);
                bytes.fill(9);
                zero && pool.where_is(fresh.as_ptr()).is_some_and(|place| place.tier_name == "slow")
            });
            // SAFETY: ends the child at once.
            unsafe {
                libc::_exit(if !seen {
                    1
                } else if !freed {
                    2
                } else if !zero {
                    3
                } else {
                    0
                })
            };
        }
        assert!(child > 0);
        // What the parent writes after the fork is not seen by the child.
        page_starts(block, LEN).zip(0u64..).for_each(|(word, at)| *word = !at);
        // SAFETY: the buffer is one byte long.
        assert_eq!(unsafe { libc::write(pipe[1], b"x".as_ptr().cast(), 1) }, 1);
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 75 {
            break status;
        }
    };
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0), "status {status:#x}");
    assert!(page_starts(block, LEN).zip(0u64..).all(|(word, at)| *word == !at), "the child's write is seen");
    // SAFETY: the block is live and 1000 bytes long.
    assert!(unsafe { std::slice::from_raw_parts(small.as_ptr(), 1000) }.iter().all(|&byte| byte == 7));
    free_all(&pool, vec![block, small]);
    pool.close().expect("nothing is in use");
}

#[test]
fn small_blocks_reach_nearly_all_of_a_slow_tier_that_is_large_beside_the_fast_one() {
    for policy in ["fill", "bind=slow", "interleave=1:1"] {
        let pool = open(&format!("fast=16M slow=emulated:4G policy={policy}"));
        let mut blocks = Vec::new();
        while let Ok(block) = pool.malloc(900 << 10, 16, AllocOptions::default()) {
            blocks.push(block);
        }
        let bytes = blocks.len() as u64 * (900 << 10);
        assert!(
            bytes > 3500 << 20,
            "{policy}: only {} MiB of 4 GiB could be used: {:?}",
            bytes >> 20,
            pool.stats()
        );
        free_all(&pool, blocks);
        pool.close().expect("nothing is in use");
    }
}

#[test]
fn capacities_of_every_size_serve_their_first_block() {
    for slow in ["64M", "100G", "200G", "1T", "8T"] {
        let pool = open(&format!("fast=16M slow=emulated:{slow}"));
        let block =
            pool.malloc(5, 1, AllocOptions::default()).unwrap_or_else(|error| panic!("{slow}: {error}"));
        free_all(&pool, vec![block]);
        pool.close().expect("nothing is in use");
    }
}

#[test]
fn blocks_that_do_not_fit_use_up_no_addresses() {
    // What is free is one slot, too little for the description of an arena; each attempt took 1 GiB of addresses.
    let tight = open("fast=4M");
    for _ in 0..9000 {
        assert!(tight.malloc(100, 16, AllocOptions::default()).is_err());
    }
    let pool = open("fast=32M");
    let block = pool.malloc(100, 16, AllocOptions::default()).expect("there is room and there are addresses");
    free_all(&pool, vec![block]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Blocks come and go in any order; after each step a wrong free is tried, which must be refused, and must not harm
    /// the blocks that live.
    #[test]
    fn a_second_free_and_an_address_inside_a_block_are_refused(
        steps in proptest::collection::vec(
            (0usize..9000, proptest::bool::ANY, 0usize..8, 0usize..100_000), 1..400)
    ) {
        let pool = open("fast=64M");
        let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
        for (number, (size, takes, align, pick)) in steps.into_iter().enumerate() {
            let (size, byte) = (size + 1, number as u8);
            if takes || live.is_empty() {
                let align = if align == 0 { 4096 } else { 16 };
                let block = pool.malloc(size, align, AllocOptions::default()).expect("64 MiB hold the blocks");
                // SAFETY: the block was just made and is that long.
                unsafe { block.write_bytes(byte, size) };
                live.push((block, size, byte));
            } else {
                let (block, size, byte) = live.swap_remove(pick % live.len());
                // SAFETY: the block is live and was filled.
                let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
                assert!(bytes.iter().all(|&found| found == byte), "somebody wrote into a block");
                // SAFETY: the block is live and unused from here on.
                unsafe { pool.free(block) }.expect("the block is live");
                // SAFETY: no live block begins there, so nothing may happen.
                let second = unsafe { pool.free(block) };
                // Which refusal it is depends on what the heap has done with the page meanwhile.
                assert!(second.is_err(), "freed twice");
                assert!(pool.usable_size(block).is_err());
            }
            if let Some(&(block, size, _)) = live.get(pick % live.len().max(1)) {
                // Odd addresses are inside whatever the alignment of the neighbours is.
                let inside = block.as_ptr().wrapping_add(1 + pick % size / 2 * 2);
                let inside = NonNull::new(inside).expect("not NULL");
                // SAFETY: no block begins there, so nothing may happen.
                let refused = unsafe { pool.free(inside) };
                assert!(matches!(refused, Err(NotABlock::Inside { .. })), "{refused:?}");
            }
        }
        for (block, size, byte) in live {
            // SAFETY: the block is live and was filled.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
            assert!(bytes.iter().all(|&found| found == byte), "somebody wrote into a block");
            // SAFETY: the block is live and unused from here on.
            unsafe { pool.free(block) }.expect("the block is live");
        }
        pool.close().expect("no block is left");
    }
}
