//! Each policy puts bytes where its name says, under a real program.

mod common;

use common::{Ran, Run, clean, daxtier, describe, program};
use std::process::Command;

/// Runs python3 with 150 MB of blocks over 256 MiB of DRAM and as much slow memory, under a policy.
fn under(policy: &str) -> Option<Ran> {
    program("python3")?;
    let run = Run::with(&["--policy", policy], "256M", "emulated:256M");
    let ran = run.args(["python3", "-c", "x=[bytes(1000) for _ in range(150000)]; print(len(x))"]).output();
    assert_eq!(ran.stdout(), "150000\n");
    Some(ran)
}

#[test]
fn fill_keeps_to_the_fast_tier_while_it_has_room() {
    let Some(ran) = under("fill") else { return };
    assert_eq!(ran.stats().peak_mib("slow"), 0, "{}", ran.stats().0);
    assert!(ran.stats().peak_mib("fast") >= 140, "{}", ran.stats().0);
}

#[test]
fn interleave_divides_by_its_weights() {
    let Some(ran) = under("interleave=1:3") else { return };
    let (fast, slow) = (ran.stats().count("fast", "peak_bytes"), ran.stats().count("slow", "peak_bytes"));
    let share = slow as f64 / (fast + slow) as f64;
    assert!((0.65..0.82).contains(&share), "{share} of it was slow: {}", ran.stats().0);
}

#[test]
fn bind_uses_one_tier_only() {
    let Some(ran) = under("bind=slow") else { return };
    assert!(ran.stats().peak_mib("slow") >= 140, "{}", ran.stats().0);
    // The heap's own description of its arenas lies in DRAM.
    assert!(ran.stats().peak_mib("fast") <= 8, "{}", ran.stats().0);
    let Some(ran) = under("bind=fast") else { return };
    assert_eq!(ran.stats().peak_mib("slow"), 0, "{}", ran.stats().0);
}

#[test]
fn bind_fails_rather_than_spills() {
    if program("python3").is_none() {
        return;
    }
    let script = "x=[]\ntry:\n  for _ in range(4000): x.append(bytes(100000))\nexcept MemoryError: pass\n\
        n=len(x); x=None; print(n)";
    let ran = Run::with(&["--policy", "bind=slow"], "512M", "emulated:128M")
        .args(["python3", "-c", script])
        .output();
    let blocks: u64 = ran.stdout().trim().parse().unwrap();
    assert!((500..1343).contains(&blocks), "{blocks} blocks of 100 kB fitted in 128 MiB");
    assert!(ran.stats().count("slow", "peak_bytes") <= 128 << 20, "{}", ran.stats().0);
}

#[test]
fn preferred_spills_when_its_tier_is_full() {
    if program("python3").is_none() {
        return;
    }
    let run = Run::with(&["--policy", "preferred=slow"], "256M", "emulated:64M");
    let ran = run.args(["python3", "-c", "x=[bytes(1000) for _ in range(150000)]; print(len(x))"]).output();
    assert_eq!(ran.stdout(), "150000\n");
    assert!((48..=64).contains(&ran.stats().peak_mib("slow")), "{}", ran.stats().0);
    assert!(ran.stats().peak_mib("fast") >= 80, "{}", ran.stats().0);
}

#[test]
fn several_slow_devices_fill_one_after_the_other() {
    if program("python3").is_none() {
        return;
    }
    let run = Run::with(&["--slow", "emulated:64M"], "32M", "emulated:128M");
    let ran = run.args(["python3", "-c", "x=[bytes(1000) for _ in range(150000)]; print(len(x))"]).output();
    assert_eq!(ran.stdout(), "150000\n");
    assert_eq!(ran.stats().count("slow", "capacity_bytes"), 192 << 20, "{}", ran.stats().0);
    assert!(ran.stats().peak_mib("slow") >= 110, "{}", ran.stats().0);
}

#[test]
fn statistics_on_standard_error_name_both_tiers() {
    let output = clean(Command::new(daxtier()))
        .args(["run", "--fast", "16M", "--slow", "emulated:64M", "--stats", "--", "true"])
        .output()
        .expect("daxtier starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", describe(&output));
    assert!(said.contains("fast") && said.contains("slow") && said.contains("emulated:64M"), "{said}");
}
