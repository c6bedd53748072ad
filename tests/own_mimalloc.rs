//! A program that has mimalloc as its own allocator, and pools beside it.

use daxtier::{AllocOptions, Config, Pool};
use std::collections::BTreeMap;

#[global_allocator]
static OWN: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[test]
fn pools_work_beside_a_programs_own_mimalloc() {
    let pool =
        Pool::open(&Config::parse("fast=32M slow=emulated:64M").expect("it is right")).expect("it opens");
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let pool = &pool;
            scope.spawn(move || {
                let mut own = BTreeMap::new();
                let mut blocks = Vec::new();
                for round in 0..5_000usize {
                    own.insert(round * 31 % 997, vec![thread as u8; round % 700]);
                    let size = 1 + round * 7 % 3_000;
                    let block = pool.malloc(size, 16, AllocOptions::default()).expect("there is room");
                    // SAFETY: the block is live and `size` bytes long.
                    unsafe { block.write_bytes(thread as u8, size) };
                    blocks.push((block, size));
                    if blocks.len() > 500 {
                        let (block, size) = blocks.swap_remove(round % 500);
                        // SAFETY: the block is live and `size` bytes long.
                        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
                        assert!(bytes.iter().all(|&byte| byte == thread as u8));
                        // SAFETY: the block is live and unused from here on.
                        unsafe { pool.free(block) }.expect("it is the pool's");
                    }
                }
                assert!(own.values().flatten().all(|&byte| byte == thread as u8));
                assert!(
                    own.values().all(|bytes| bytes.is_empty() || pool.where_is(bytes.as_ptr()).is_none())
                );
                for (block, _) in blocks {
                    // SAFETY: the block is live and unused from here on.
                    unsafe { pool.free(block) }.expect("it is the pool's");
                }
            });
        }
    });
    pool.close().expect("nothing is in use");
}
