//! A machine that hwloc makes up: two packages of two cores with two threads each, and caches on three levels.

use daxtier_hwloc::{Hwloc, HwlocError};

const MACHINE: &str =
    "pack:2 [numa(memory=1073741824)] l3:1(size=8388608) l2:2(size=1048576) l1:1(size=32768) core:1 pu:2";

/// The only test of this program, since the variable holds for the whole process.
#[test]
fn packages_cores_and_caches_of_a_made_up_machine_are_listed() {
    // SAFETY: the test harness's main thread waits for this test, and no other thread reads the environment.
    unsafe { std::env::set_var("HWLOC_SYNTHETIC", MACHINE) };
    let hwloc = Hwloc::load().unwrap();
    assert_eq!(hwloc.cpus(), (0..8).collect::<Vec<_>>());

    let packages = hwloc.packages();
    assert_eq!(packages.iter().map(|package| package.cores).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(packages[0].cpus, [0, 1, 2, 3]);
    assert_eq!(packages[1].cpus, [4, 5, 6, 7]);

    let of_level = |level| {
        let caches = hwloc.caches().into_iter().filter(move |cache| cache.level == level);
        caches.map(|cache| (cache.len_bytes, cache.cpus)).collect::<Vec<_>>()
    };
    assert_eq!(of_level(3), [(8 << 20, vec![0, 1, 2, 3]), (8 << 20, vec![4, 5, 6, 7])]);
    assert_eq!(of_level(2).len(), 4);
    assert_eq!(of_level(1)[3], (32 << 10, vec![6, 7]));
    assert_eq!(hwloc.caches()[0].level, 1, "the nearest caches come first");

    assert_eq!(hwloc.bind_current_thread(&[]), Err(HwlocError::NoCpus));
    assert_eq!(hwloc.bind_current_thread(&[8]), Err(HwlocError::NoSuchCpu { cpu: 8 }));

    // SAFETY: as above.
    unsafe { std::env::set_var("HWLOC_SYNTHETIC", "nonsense:::") };
    // hwloc falls back to the real machine or refuses; either way nothing breaks.
    if let Ok(hwloc) = Hwloc::load() {
        assert!(!hwloc.cpus().is_empty());
    }
}
