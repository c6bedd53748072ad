use super::*;
use crate::sys::file::{self, FileId};
use crate::sys::testing::{ChildEnd, in_child};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;

fn file_id(fd: i32) -> Option<FileId> {
    file::stat(fd).ok().map(|stat| stat.id)
}

fn described() -> StatsPage {
    let page = StatsPage::create().unwrap();
    page.set_policy("interleave=3:1");
    page.describe_tier(0, "fast", "dram", &["dram"]);
    page.describe_tier(1, "slow", "emulated", &["emulated:2G", "emulated:1G"]);
    page.tier(0).capacity_bytes.store(64 << 20, Ordering::Relaxed);
    page.tier(0).peak_bytes.store(10 << 20, Ordering::Relaxed);
    page.tier(0).used_bytes.store(4 << 20, Ordering::Relaxed);
    page.tier(1).folios_by_order[18].store(7, Ordering::Relaxed);
    page
}

/// The page of this process that holds `marker` as its policy: tests share the process, and each has its own.
fn find(pid: u32, marker: &str) -> Option<PoolStats> {
    stats_of_process(pid).unwrap().into_iter().find(|stats| stats.policy == marker)
}

#[test]
fn another_reader_sees_what_the_owner_sees() {
    let page = described();
    page.set_policy("marker of the first test");
    page.note_failure("no room for 4 MiB");
    let own = page.snapshot();
    let read = find(std::process::id(), "marker of the first test").unwrap();
    assert_eq!(read, own);
    assert_eq!((read.failures, read.last_failure.as_deref()), (1, Some("no room for 4 MiB")));
    assert_eq!((read.tiers[0].used_bytes, read.tiers[0].peak_bytes), (4 << 20, 10 << 20));
    assert_eq!(read.tiers[1].devices, ["emulated:2G", "emulated:1G"]);
    assert_eq!(read.tiers[1].folios_by_order[18], 7);
}

#[test]
fn a_dropped_page_is_gone() {
    let page = described();
    page.set_policy("marker of a page to drop");
    let pid = std::process::id();
    assert!(find(pid, "marker of a page to drop").is_some());
    let fd = Own::from_index(page.descriptor.load(Ordering::Relaxed)).number();
    let id = file_id(fd);
    drop(page);
    assert_ne!(file_id(fd), id, "the descriptor is still open");
    let pages = stats_of_process(pid).unwrap_or_default();
    assert!(pages.iter().all(|stats| stats.policy != "marker of a page to drop"));
}

#[test]
fn a_descriptor_of_the_program_under_our_number_is_left_alone() {
    let page = described();
    let fd = Own::from_index(page.descriptor.load(Ordering::Relaxed)).number();
    let other = page::sealed_memfd(c"daxtier-other", 4096).unwrap();
    let end = in_child(|| {
        // SAFETY: dup2 takes two numbers and no pointer; the page's descriptor is expected to be replaced.
        unsafe { libc::dup2(other.as_raw_fd(), fd) };
        page.close_descriptor();
        i32::from(file_id(fd) != file_id(other.as_raw_fd()))
    });
    assert_eq!(end, ChildEnd::Exited(0));
}

#[test]
fn names_that_do_not_fit_are_cut_and_said_to_be() {
    let page = StatsPage::create().unwrap();
    let long = "ä".repeat(700);
    let names: Vec<String> = (0..200).map(|ix| format!("/dev/dax{ix}.0")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    page.describe_tier(3, &long, "a\nb", &names);
    page.note_failure(&long);
    let stats = page.snapshot();
    assert_eq!(stats.tiers.len(), 4);
    assert_eq!(stats.tiers[3].name, "ä".repeat(16));
    let devices = &stats.tiers[3].devices;
    assert_eq!((devices[0].as_str(), devices[devices.len() - 1].as_str()), ("/dev/dax0.0", "..."));
    assert!(devices.iter().rev().skip(1).zip(names[..devices.len() - 1].iter().rev()).all(|(a, b)| a == b));
    page.describe_tier(3, "n", "k", &["new\nline"]);
    assert_eq!(page.snapshot().tiers[3].devices, ["new line"]);
}

#[test]
fn texts_are_read_whole_while_they_change() {
    let page = StatsPage::create().unwrap();
    let stop = AtomicBool::new(false);
    let (a, b) = ("a".repeat(256), "b".repeat(256));
    page.note_failure(&a);
    let fd = Own::from_index(page.descriptor.load(Ordering::Relaxed)).number() as u32;
    let outside = |bytes: &mut [u8]| peer::read_descriptor(std::process::id(), fd, bytes);
    let torn = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Writers that never rest would starve the readers, which then take what there is.
            for text in [&a, &b].into_iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                page.note_failure(text);
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        let inside = (0..2000).map(|_| page.snapshot().last_failure.unwrap_or_default());
        let outside =
            (0..2000).map(|_| read_page(1, outside).ok().and_then(|s| s.last_failure).unwrap_or_default());
        let torn = inside.chain(outside).find(|seen| *seen != a && *seen != b);
        stop.store(true, Ordering::Relaxed);
        torn
    });
    assert_eq!(torn, None);
}

#[test]
fn any_bytes_can_be_read_without_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let mut bytes = vec![0u8; PAGE_BYTES];
        bytes.fill_with(|| if round % 2 == 0 { 0xff } else { random() as u8 });
        let reader = |bytes: &[u8], out: &mut [u8]| {
            let len = out.len().min(bytes.len());
            out[..len].copy_from_slice(&bytes[..len]);
            Ok(len)
        };
        assert!(matches!(read_page(1, |out| reader(&bytes, out)), Err(ReadFailure::NotAPage)));
        bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        bytes[8..12].copy_from_slice(&(VERSION + 1).to_ne_bytes());
        assert!(matches!(read_page(1, |out| reader(&bytes, out)), Err(ReadFailure::OtherVersion(2))));
        bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_ne_bytes());
        let stats = read_page(1, |out| reader(&bytes, out)).ok().unwrap();
        assert!(stats.tiers.len() <= MAX_TIERS);
        let _ = (stats.to_json(), stats.to_text());
        assert!(matches!(read_page(1, |out| reader(&bytes[..100], out)), Err(ReadFailure::NotAPage)));
    }
}

#[test]
fn processes_that_cannot_be_read_are_told_apart() {
    let gone = u32::MAX >> 1;
    assert_eq!(stats_of_process(gone), Err(StatsReadError::NoSuchProcess { pid: gone }));
    let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = sleeper.id();
    let seen = stats_of_process(pid);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(seen, Err(StatsReadError::NoPage { pid }));
}

/// Runs `child` in a forked process, which tells the parent when it is done and waits to be killed. `child` must
/// not allocate: other threads of this process may have held any lock at the fork.
fn with_child(child: impl FnOnce() -> bool, parent: impl FnOnce(u32)) {
    let (mut from_child, to_parent) = std::io::pipe().unwrap();
    // SAFETY: the child calls nothing but `child`, which does not allocate, write, pause and _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let done = [u8::from(child())];
        // SAFETY: write reads one byte of `done`, which outlives the call.
        unsafe { libc::write(to_parent.as_raw_fd(), done.as_ptr().cast(), 1) };
        loop {
            // SAFETY: pause takes no arguments and waits for a signal.
            unsafe { libc::pause() };
        }
    }
    drop(to_parent);
    let mut done = [0];
    let read = std::io::Read::read_exact(&mut from_child, &mut done);
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parent(pid as u32)));
    // SAFETY: the process is this one's child and was not waited for, so the number is still its.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: waitpid accepts a NULL status.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    read.unwrap();
    assert_eq!(done, [1], "the child failed");
    checked.unwrap();
}

#[test]
fn a_forked_child_counts_for_itself() {
    let page = described();
    page.set_policy("marker of the fork test");
    let before = page.snapshot();
    let address = page.page;
    let child = || {
        let replaced = page.replace_in_child().is_ok();
        page.tier(0).used_bytes.fetch_add(1 << 20, Ordering::Relaxed);
        page.note_failure("in the child");
        replaced && page.page == address
    };
    with_child(child, |pid| {
        assert_eq!(page.snapshot(), before, "the child wrote to its parent's page");
        let of_child = find(pid, "marker of the fork test").unwrap();
        let count =
            stats_of_process(pid).unwrap().iter().filter(|s| s.policy == "marker of the fork test").count();
        assert_eq!(count, 1, "the parent's page is still open in the child");
        assert_eq!(of_child.pid, pid);
        assert_eq!(of_child.tiers[0].used_bytes, before.tiers[0].used_bytes + (1 << 20));
        assert_eq!(of_child.last_failure.as_deref(), Some("in the child"));
    });
}

#[test]
fn a_program_that_closed_our_descriptor_is_found_by_its_mapping() {
    let page = described();
    page.set_policy("marker of the closed descriptor");
    let child = || {
        let replaced = page.replace_in_child().is_ok();
        // SAFETY: close_range takes numbers and no pointer; the pipe and nothing else is needed below 64.
        let rc = unsafe { libc::syscall(libc::SYS_close_range, 64, u32::MAX, 0) };
        replaced && rc == 0
    };
    with_child(child, |pid| {
        let stats = find(pid, "marker of the closed descriptor").unwrap();
        assert_eq!(stats.tiers[1].devices, ["emulated:2G", "emulated:1G"]);
    });
}

#[test]
fn without_a_descriptor_a_child_still_counts_apart() {
    let page = described();
    let before = page.snapshot();
    let child = || {
        let none = libc::rlimit { rlim_cur: 3, rlim_max: 3 };
        // SAFETY: setrlimit reads one struct rlimit, which outlives the call.
        let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) };
        let replaced = page.replace_in_child().is_ok();
        page.tier(0).used_bytes.fetch_add(1 << 20, Ordering::Relaxed);
        let expected = before.tiers[0].used_bytes + (1 << 20);
        let kept = page.tier(0).used_bytes.load(Ordering::Relaxed) == expected;
        rc == 0 && replaced && kept && page.descriptor.load(Ordering::Relaxed) == NO_DESCRIPTOR
    };
    with_child(child, |_| assert_eq!(page.snapshot(), before, "the child wrote to its parent's page"));
}
