//! Tests of the checks on made-up machines.

use super::*;
use crate::tree::Tree;

const UNPRIVILEGED: &str = "Name:\tx\nCapEff:\t0000000000000000\nTHP_enabled:\t1\n";
const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1048576              1048576              files
Max locked memory         8388608              8388608              bytes
Max address space         unlimited            unlimited            bytes
";

/// A machine with a free dax device on which nothing is amiss.
fn good() -> Tree {
    let tree = Tree::recorded("cxl-devdax");
    let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
    std::fs::write(dir.join("dev"), "1:5\n").unwrap();
    tree.link("dev/dax0.0", "/dev/zero");
    for (path, text) in [
        ("proc/self/status", UNPRIVILEGED),
        ("proc/self/limits", LIMITS),
        ("proc/sys/vm/unprivileged_userfaultfd", "1\n"),
        ("proc/sys/vm/max_map_count", "65530\n"),
        ("proc/sys/vm/overcommit_memory", "0\n"),
        ("proc/sys/kernel/perf_event_paranoid", "2\n"),
        ("proc/sys/kernel/osrelease", "6.12.5-amd64\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        (
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "always within_size [advise] never deny force\n",
        ),
    ] {
        tree.write(path, text);
    }
    tree
}

fn checks(tree: &Tree) -> Vec<Check> {
    all(tree.root(), &tree.path("etc/daxtier/devices"), &Probe::default())
}

/// Returns the checks that are not well.
fn amiss(tree: &Tree) -> Vec<(&'static str, Status)> {
    let is_amiss = |check: &Check| check.status != Status::Ok;
    checks(tree).into_iter().filter(is_amiss).map(|check| (check.name, check.status)).collect()
}

#[test]
fn nothing_is_amiss_on_a_good_machine() {
    assert_eq!(amiss(&good()), []);
}

#[test]
fn each_shortfall_is_found_and_has_a_command() {
    for (path, text, found) in [
        ("proc/sys/vm/unprivileged_userfaultfd", "0", ("userfaultfd", Status::Warn)),
        ("proc/sys/kernel/osrelease", "6.1.0-20-amd64", ("userfaultfd", Status::Warn)),
        ("proc/sys/kernel/perf_event_paranoid", "3", ("perf", Status::Warn)),
        ("proc/sys/kernel/perf_event_paranoid", "x", ("perf", Status::Warn)),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]", ("thp", Status::Warn)),
        (
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "always within_size advise [never] deny force",
            ("thp shared", Status::Warn),
        ),
        ("sys/kernel/mm/transparent_hugepage/enabled", "", ("thp", Status::Warn)),
        ("proc/self/status", "CapEff:\t0\nTHP_enabled:\t0\n", ("thp process", Status::Fail)),
        ("proc/sys/vm/max_map_count", "1000", ("max_map_count", Status::Warn)),
        ("proc/sys/vm/overcommit_memory", "2", ("overcommit", Status::Warn)),
        (
            "proc/self/limits",
            "Max locked memory         65536                65536                bytes\n",
            ("memlock", Status::Warn),
        ),
        (
            "proc/self/limits",
            "Max locked memory         unlimited            unlimited            bytes\n\
             Max address space         2147483648           unlimited            bytes\n",
            ("address space", Status::Fail),
        ),
        (
            "proc/self/limits",
            "Max locked memory         unlimited            unlimited            bytes\n\
             Max address space         8589934592           unlimited            bytes\n",
            ("address space", Status::Warn),
        ),
        (
            "proc/self/limits",
            "Max locked memory         unlimited            unlimited            bytes\n\
             Max open files            256                  256                  files\n",
            ("open files", Status::Warn),
        ),
        ("etc/daxtier/devices", "dax0.0", ("released", Status::Fail)),
        ("etc/daxtier/devices", "hmem region=x size=0x1000 extents=all", ("released", Status::Warn)),
    ] {
        let tree = good();
        tree.write(path, text);
        assert_eq!(amiss(&tree), [found], "{path} = {text}");
        let check = checks(&tree).into_iter().find(|check| check.status != Status::Ok).unwrap();
        assert!(check.mend.is_some_and(|mend| !mend.is_empty()), "{path} = {text}");
    }
}

#[test]
fn missing_files_are_shortfalls_and_no_panic() {
    let found = amiss(&Tree::empty());
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["dax", "userfaultfd", "perf", "thp", "thp shared", "max_map_count", "memlock", "overcommit"]
    );
    assert!(found.iter().all(|(_, status)| *status == Status::Warn));
}

#[test]
fn privileges_make_up_for_closed_settings() {
    let tree = good();
    tree.write("proc/sys/vm/unprivileged_userfaultfd", "0");
    tree.write("proc/sys/kernel/perf_event_paranoid", "4");
    assert_eq!(amiss(&tree).len(), 2);
    // CAP_SYS_PTRACE is bit 19, CAP_PERFMON bit 38.
    tree.write("proc/self/status", "CapEff:\t0000004000080000\n");
    assert_eq!(amiss(&tree), []);
}

#[test]
fn a_device_that_cannot_be_used_fails_only_when_it_is_released() {
    let tree = good();
    tree.link("dev/dax0.0", "/dev/null");
    assert_eq!(amiss(&tree), [("dax", Status::Warn)]);
    tree.write("etc/daxtier/devices", "cxl serial=0x1 dpa=0x0 size=0x20000000 extents=all\n");
    assert_eq!(amiss(&tree), [("dax", Status::Fail)]);
    tree.link("dev/dax0.0", "/dev/zero");
    assert_eq!(amiss(&tree), []);
}

#[test]
fn answers_of_the_running_system_are_judged() {
    let bad = Probe {
        membarrier: Some(Err(libc::EPERM)),
        rseq_bytes: Some(0),
        binding: Some(Err("mbind: Operation not permitted".into())),
    };
    let found = probed(&bad);
    assert_eq!(found.iter().map(|check| check.status).collect::<Vec<_>>(), [Status::Warn; 3]);
    let good = Probe { membarrier: Some(Ok(u32::MAX)), rseq_bytes: Some(20), binding: Some(Ok(())) };
    assert!(probed(&good).iter().all(|check| check.status == Status::Ok));
    assert_eq!(probed(&Probe::of_this_process()).len(), 3);
}
