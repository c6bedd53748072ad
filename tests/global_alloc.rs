//! A Rust program whose every allocation comes from the process's pool. The test starts itself again under a
//! configuration, since the pool is opened by the first allocation.

use std::process::Command;

#[global_allocator]
static MEMORY: daxtier::GlobalAlloc = daxtier::GlobalAlloc::new();

const ROLE: &str = "GLOBAL_ALLOC_TEST_ROLE";

fn run_again(test: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(std::env::current_exe().expect("the test knows itself"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, "child");
    command.envs(variables.iter().copied()).output().expect("the test starts")
}

#[test]
fn a_programs_memory_fills_the_fast_tier_and_then_the_slow_one() {
    if std::env::var_os(ROLE).is_none() {
        let output = run_again(
            "a_programs_memory_fills_the_fast_tier_and_then_the_slow_one",
            &[("DAXTIER_FAST", "32M"), ("DAXTIER_SLOW", "emulated:256M")],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let blocks: Vec<Vec<u8>> = (0..100u8).map(|at| vec![at; 1 << 20]).collect();
    let threads: Vec<_> =
        (0..4).map(|_| std::thread::spawn(|| vec![1u64; 100_000].iter().sum::<u64>())).collect();
    assert!(threads.into_iter().all(|thread| thread.join().expect("it ends") == 100_000));
    let pool = daxtier::runtime::process::pool().expect("the pool is open");
    let tier = |block: &[u8]| pool.where_is(block.as_ptr()).expect("it is in the pool").tier_name;
    assert_eq!((tier(&blocks[0]), tier(&blocks[99])), ("fast", "slow"));
    assert!(blocks.iter().enumerate().all(|(at, block)| block.iter().all(|&byte| byte == at as u8)));
    let mut grown = blocks;
    grown.iter_mut().for_each(|block| block.resize(3 << 19, 0xee));
    assert!(grown.iter().all(|block| block[(1 << 20) - 1] != 0xee && block[1 << 20] == 0xee));
    let stats = pool.stats();
    assert!(stats.tiers[0].peak_bytes <= 32 << 20 && stats.tiers[1].used_bytes > 100 << 20, "{stats:?}");
}

#[test]
fn a_wrong_configuration_stops_the_program_before_it_starts() {
    if std::env::var_os(ROLE).is_some() {
        return;
    }
    let output =
        run_again("a_wrong_configuration_stops_the_program_before_it_starts", &[("DAXTIER_POLICY", "fil")]);
    assert_eq!(output.status.code(), Some(78));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("DAXTIER_POLICY") && message.contains("fill"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}
