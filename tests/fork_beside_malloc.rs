//! Forks while other threads are inside the C library's malloc, whose locks a fork takes: a thread that was stopped with one
//! of them must not block the fork for good. A test of its own, for it ends the process if that happens.

use daxtier::{AllocOptions, Config, Pool, TierName};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a child that was refused ends with: EX_TEMPFAIL.
const REFUSED: i32 = 75;

#[test]
fn a_fork_beside_the_c_librarys_malloc_comes_to_an_end() {
    // SAFETY: takes no pointer; SIGALRM ends the process unless this test is over by then.
    unsafe { libc::alarm(120) };
    let pool =
        Pool::open(&Config::parse("fast=8M slow=emulated:64M").expect("valid")).expect("the pool opens");
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    let block = pool.malloc(4096, 16, slow).expect("there is room").cast::<u64>();
    let end = AtomicBool::new(false);
    let mut kept = 0;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    // Grows and shrinks the arena, which holds its lock over system calls.
                    let blocks: Vec<Vec<u8>> = (0..64).map(|i| vec![1; 1000 + i * 1900]).collect();
                    std::hint::black_box(blocks);
                }
            });
        }
        for round in 1..=25u64 {
            // SAFETY: the block is live and holds the word.
            unsafe { block.write_volatile(round) };
            // SAFETY: the child only reads a word and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: the child's own copy.
                let seen = unsafe { block.read_volatile() };
                // SAFETY: ends the child without running handlers.
                unsafe { libc::_exit(i32::from(seen != round)) };
            }
            assert!(child > 0, "the fork failed");
            let mut status = -1;
            // SAFETY: waits for the child that was just made.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert!(libc::WIFEXITED(status), "round {round}: the child died of {status:#x}");
            match libc::WEXITSTATUS(status) {
                0 => kept += 1,
                REFUSED => {}
                other => panic!("round {round}: the child did not see its own copy ({other})"),
            }
            // SAFETY: the block is live.
            assert_eq!(unsafe { block.read_volatile() }, round, "the parent lost a word");
        }
        end.store(true, Ordering::Relaxed);
    });
    assert!(kept > 0, "every single fork was refused");
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block.cast()) }.expect("ours");
    pool.close().expect("nothing is left");
}
