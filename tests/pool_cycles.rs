//! Pools that are opened and closed ten thousand times. Alone in its program, since what the process has is counted.

use daxtier::{AllocOptions, Config, Order, Pool, TierName};
use std::ptr::NonNull;
use std::sync::mpsc;

/// A block's address, which may go to another thread.
struct Block(NonNull<u8>);

// SAFETY: a block is memory, of no thread in particular; who gets one is its only user.
unsafe impl Send for Block {}

fn open() -> Pool {
    let config = Config::parse("fast=16M slow=emulated:16M").expect("the configuration is right");
    Pool::open(&config).expect("the pool opens")
}

/// Uses the pool in every way, and returns the blocks.
fn use_all(pool: &Pool) -> Vec<Block> {
    let in_tier = |tier| AllocOptions { tier, ..AllocOptions::default() };
    let folio = pool.alloc_folio(Order::PAGE, in_tier(Some(TierName::Slow))).expect("there is room");
    drop(folio);
    let mut blocks = Vec::new();
    for tier in [None, Some(TierName::Fast), Some(TierName::Slow)] {
        for size in [10, 1000, 40_000] {
            blocks.push(Block(pool.malloc(size, 16, in_tier(tier)).expect("there is room")));
        }
    }
    blocks.push(Block(pool.malloc(3 << 20, 16, in_tier(Some(TierName::Slow))).expect("there is room")));
    // SAFETY: the blocks were just made, and the smallest has 10 bytes.
    blocks.iter().for_each(|block| unsafe { block.0.write_bytes(1, 10) });
    blocks
}

fn free_all(pool: &Pool, blocks: Vec<Block>) {
    for block in blocks {
        // SAFETY: the blocks are live and unused from here on.
        unsafe { pool.free(block.0) }.expect("the block is the pool's");
    }
}

/// A thread that allocates for others, and lives on with whatever the pools leave in it.
struct Worker {
    jobs: mpsc::Sender<Pool>,
    blocks: mpsc::Receiver<Vec<Block>>,
}

impl Worker {
    fn start() -> Worker {
        let (jobs, inbox) = mpsc::channel::<Pool>();
        let (outbox, blocks) = mpsc::channel();
        std::thread::spawn(move || {
            for pool in inbox {
                let made = use_all(&pool);
                drop(pool);
                outbox.send(made).expect("somebody waits for the blocks");
            }
        });
        Worker { jobs, blocks }
    }

    fn allocate(&self, pool: &Pool) -> Vec<Block> {
        self.jobs.send(pool.clone()).expect("the worker lives");
        self.blocks.recv().expect("the worker lives")
    }
}

/// What the process has.
#[derive(Clone, Copy, Debug)]
struct Process {
    mappings: usize,
    descriptors: usize,
    threads: u64,
    resident_kib: u64,
    addresses_kib: u64,
}

impl Process {
    fn now() -> Process {
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).expect("/proc is there");
        let status = read("status");
        let figure = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel says so");
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        Process {
            mappings: read("maps").lines().count(),
            descriptors: std::fs::read_dir("/proc/self/fd").expect("/proc is there").count(),
            threads: figure("Threads:"),
            resident_kib: figure("VmRSS:"),
            addresses_kib: figure("VmSize:"),
        }
    }
}

#[test]
fn ten_thousand_pools_leave_nothing_behind() {
    let workers: Vec<Worker> = (0..3).map(|_| Worker::start()).collect();
    let cycle = |at: usize| {
        let pool = open();
        match at % 5 {
            0 => free_all(&pool, use_all(&pool)),
            // Its blocks are freed here while it knows nothing of that, and it does nothing until its next turn.
            1 => free_all(&pool, workers[at / 5 % workers.len()].allocate(&pool)),
            2 => workers.iter().for_each(|worker| free_all(&pool, worker.allocate(&pool))),
            // The pool is closed while the thread is at its end.
            3 => std::thread::scope(|scope| {
                scope.spawn(|| free_all(&pool, use_all(&pool)));
            }),
            _ => {}
        }
        pool.close().expect("nothing is in use");
    };
    // Until every kind of cycle has met every worker, and the stacks of ended threads are kept.
    (0..500).for_each(cycle);
    let before = Process::now();
    (0..10_000).for_each(cycle);
    let after = Process::now();
    let grown = format!("{before:?} became {after:?}");
    // One page lost in each cycle is 40 MiB. Numbers of pgmaps are used in turn, and a table of 512 KiB has an entry for
    // each; stacks of threads come and go, and so do the ranges of 64 MiB that the C library reserves for a thread's blocks.
    assert!(after.resident_kib < before.resident_kib + 8192, "{grown}");
    assert!(after.addresses_kib < before.addresses_kib + 262_144, "{grown}");
    assert!(after.mappings < before.mappings + 30, "{grown}");
    assert_eq!(after.descriptors, before.descriptors, "{grown}");
    assert!(after.threads <= before.threads + 1, "{grown}");
}
