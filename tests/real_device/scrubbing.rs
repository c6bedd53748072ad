//! What lies on the device after its owners, by scrub policy: seen as whoever may open the node can see it.

use super::{SECRET, UnderTest, device, options, take_all, wait_for, words};
use daxtier::device::{Dax, DaxOptions, Device, DeviceError, ScrubPolicy};
use daxtier::{Folio, Lifetime, Order, Pgmap, PgmapOptions};
use std::os::fd::AsRawFd;
use std::sync::Arc;

impl UnderTest {
    fn bind_with(&self, scrub: ScrubPolicy) -> Pgmap {
        let device = Dax::open(&self.path, DaxOptions { scrub, ..options() }).expect("it can be used");
        Pgmap::bind(Arc::new(device), PgmapOptions::default()).expect("the device binds")
    }

    /// Whether the device has a byte that is not zero, seen through the node and without a claim.
    fn has_bytes_left(&self) -> bool {
        let node = std::fs::File::open(&self.path).expect("the node opens");
        let len = self.open().len_bytes() as usize;
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a mapping where the kernel likes.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, node.as_raw_fd(), 0) };
        assert_ne!(addr, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: mapped for its length; nobody writes to it.
        let bytes = unsafe { std::slice::from_raw_parts(addr.cast::<u8>(), len) };
        let zeroes = vec![0; 2 << 20];
        let left = bytes.chunks(zeroes.len()).any(|chunk| *chunk != zeroes[..chunk.len()]);
        // SAFETY: the mapping was made above, and its words are of no more use.
        unsafe { libc::munmap(addr, len) };
        left
    }
}

/// Catches a release that leaves its bytes, and one that clears although nobody wants that.
#[test]
fn what_is_given_back_on_release_is_clean_for_everybody() {
    let Some(under_test) = device() else { return };
    for scrub in [ScrubPolicy::OnClaim, ScrubPolicy::OnRelease] {
        let pgmap = under_test.bind_with(scrub);
        let mut folios = take_all(&pgmap, Order::HUGE);
        assert!(!folios.is_empty());
        // All at their ends, and some of them wholly.
        folios.iter_mut().for_each(|folio| words(folio)[(1 << 18) - 5] = SECRET);
        folios.iter_mut().step_by(16).for_each(|folio| words(folio).fill(SECRET));
        drop((folios, pgmap));
        assert_eq!(under_test.has_bytes_left(), scrub == ScrubPolicy::OnClaim, "{scrub}");
    }
}

/// Catches a claim that believes a killed process's memory to be clean because the policy says so.
#[test]
fn what_a_killed_process_left_is_clean_before_it_is_handed_out_on_release() {
    let Some(under_test) = device() else { return };
    let mut other = under_test.spawn("fill");
    wait_for(&mut other, "filled");
    other.kill().expect("it lives");
    other.wait().expect("it ends");
    assert!(under_test.has_bytes_left(), "the other left something");
    let pgmap = under_test.bind_with(ScrubPolicy::OnRelease);
    let mut folios = take_all(&pgmap, Order::HUGE);
    let zeroes = vec![0; 2 << 20];
    let mut is_clean = |folio: &mut Folio| *folio.as_mut_slice().expect("one reference") == *zeroes;
    assert!(folios.iter_mut().all(&mut is_clean), "foreign bytes");
}

/// Catches a scrub that nobody wanted.
#[test]
fn what_is_never_cleared_stays() {
    let Some(under_test) = device() else { return };
    let fill = |scrub| {
        let pgmap = under_test.bind_with(scrub);
        let mut folio = pgmap.request_folio(0, Order::HUGE).expect("it is free");
        let seen = words(&mut folio)[5];
        words(&mut folio).fill(SECRET);
        seen
    };
    assert_eq!([fill(ScrubPolicy::OnClaim), fill(ScrubPolicy::Never)], [0, SECRET]);
    let pgmap = under_test.bind_with(ScrubPolicy::Never);
    let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short).expect("there is room");
    assert!(words(&mut folio).iter().all(|&word| word == 0), "asked for as zero");
}

/// Catches a scrub that clears what this very process uses.
#[test]
fn a_scrub_leaves_alone_what_this_process_has() {
    let Some(under_test) = device() else { return };
    let dax = Arc::new(under_test.open());
    let pgmap = Pgmap::bind(dax.clone(), PgmapOptions::default()).expect("the device binds");
    let mut folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect("there is room");
    words(&mut folio).fill(SECRET);
    for nr_threads in [1, 3] {
        let done = dax.scrub_free_by(nr_threads, &mut |_| ()).expect("the device answers");
        assert!(done.used_bytes > 0 && done.seen_bytes() == dax.len_bytes(), "{done:?}");
        assert!(words(&mut folio).iter().all(|&word| word == SECRET), "{nr_threads} threads");
    }
    let again = under_test.open().claim(0..2 << 20);
    assert!(matches!(again, Err(DeviceError::Claimed { .. })), "{again:?}");
}

/// Catches extents that a process keeps for good, and bytes that go to the next one with them.
#[test]
fn idle_extents_go_to_another_process_clean() {
    let Some(under_test) = device() else { return };
    let pgmap = under_test.bind();
    let mut folios = take_all(&pgmap, Order::HUGE);
    folios.iter_mut().step_by(8).for_each(|folio| words(folio).fill(SECRET));
    let kept = folios.pop().expect("the device has room");
    drop(folios);
    let dax = under_test.open();
    let extent = (kept.offset() << 12) & !((128 << 20) - 1);
    let extent_bytes = (128 << 20).min(dax.len_bytes() - extent);
    assert!(matches!(dax.claim(0..dax.len_bytes()), Err(DeviceError::Claimed { .. })));
    let released = pgmap.release_idle();
    assert_eq!(released, dax.len_bytes() - extent_bytes, "all but the extent with the folio");
    if released > 0 {
        let mut other = under_test.spawn("hold");
        // It looks at every byte that it gets.
        wait_for(&mut other, "holds an extent");
        drop(other.stdin.take());
        assert!(other.wait().expect("it ends").success());
    }
    assert_eq!(kept.ref_count(), 1);
    drop(kept);
    assert_eq!(pgmap.release_idle(), extent_bytes);
    dax.claim(0..dax.len_bytes()).expect("nothing is claimed any more");
    dax.release(0..dax.len_bytes());
}

/// A second node of the device, as container engines make one.
struct SecondNode(std::path::PathBuf);

impl SecondNode {
    fn of(under_test: &UnderTest) -> SecondNode {
        use std::os::unix::fs::MetadataExt;
        let rdev = std::fs::metadata(&under_test.path).expect("the device is there").rdev();
        let path = under_test.path.with_file_name(format!("dax-second-{}", std::process::id()));
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
        // SAFETY: the path is NUL-terminated.
        let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, rdev) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        SecondNode(path)
    }

    fn open(&self, more: DaxOptions) -> Dax {
        Dax::open(&self.0, DaxOptions { allow_persistent: true, ..more }).expect("it is the same device")
    }
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Catches two processes that use the same memory because neither sees the other's claims.
#[test]
fn a_device_that_is_used_through_another_node_is_not_claimed() {
    let Some(under_test) = device() else { return };
    let second = SecondNode::of(&under_test);
    let mut other = under_test.spawn("hold");
    wait_for(&mut other, "holds an extent");
    let dax = second.open(DaxOptions::default());
    let len_bytes = dax.len_bytes();
    let refused = dax.claim(0..len_bytes).expect_err("the other has a part of it");
    assert!(matches!(&refused, DeviceError::OtherNode { pid, .. } if *pid == other.id()), "{refused}");
    assert!(refused.to_string().contains("bind-mount the same node"), "{refused}");
    let refused = dax.scrub_free(&mut |_| ()).expect_err("it would clear what the other has");
    assert!(matches!(refused, DeviceError::OtherNode { .. }), "{refused}");
    let pgmap = Pgmap::bind(Arc::new(dax), PgmapOptions::default()).expect("binding claims nothing");
    assert!(pgmap.alloc_folio(Order::HUGE, Lifetime::Short).is_err());
    // Whoever says that it is meant gets it: the kernel sees no conflict.
    let half = (len_bytes / 2) & !((2 << 20) - 1);
    let part = second.open(DaxOptions { range: Some(half..len_bytes), ..DaxOptions::default() });
    part.claim(0..2 << 20).expect("a part of its own");
    second
        .open(DaxOptions { exclusive: true, ..DaxOptions::default() })
        .claim(0..2 << 20)
        .expect("as it says");
    drop(other.stdin.take());
    assert!(other.wait().expect("it ends").success());
    // The look is not repeated for a second.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    drop(pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect("nobody uses it now"));
}
