//! Tests of [`Dax`] without a dax device: `/dev/zero` stands for a node that opens and maps, and a regular file for a
//! node that processes share.

use super::*;
use crate::device::range::HUGE_BYTES;
use crate::sys::mm::Reservation;
use crate::sys::testing::{ChildEnd, in_child, soon};
use crate::topology::tree::Tree;
use std::path::PathBuf;

const HUGE: usize = HUGE_BYTES as usize;

/// Gives the recorded dax0.0 the device number of `stand_in` and returns its sysfs directory.
fn stand_in(tree: &Tree, dev: &str) -> PathBuf {
    let dir = std::fs::canonicalize(tree.path("sys/bus/dax/devices/dax0.0")).unwrap();
    std::fs::write(dir.join("dev"), dev).unwrap();
    dir
}

fn open_zero(tree: &Tree, range: Option<Range<u64>>) -> Result<Dax, DeviceError> {
    // Forced: away from its start the stand-in has nothing to be looked at.
    Dax::open_under(
        tree.root(),
        Path::new("/dev/zero"),
        DaxOptions { range, force: true, ..DaxOptions::default() },
    )
}

/// A device over a regular file of four granules.
fn over_file(path: &Path, range: Option<Range<u64>>) -> Result<Dax, DeviceError> {
    over_file_with(path, DaxOptions { range, ..DaxOptions::default() })
}

fn over_file_with(path: &Path, options: DaxOptions) -> Result<Dax, DeviceError> {
    over_file_of(path, 4 * HUGE_BYTES, options)
}

fn over_file_of(path: &Path, len_bytes: u64, options: DaxOptions) -> Result<Dax, DeviceError> {
    let tree = Tree::recorded("cxl-devdax");
    let mut info = DaxInfo::read(tree.root(), "dax0.0").unwrap();
    info.len_bytes = len_bytes;
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let node = file::open_read_write(&c_path).unwrap();
    let opened = file::stat(node.as_raw_fd()).unwrap();
    Dax::from_node(path.to_string_lossy().into_owned(), c_path, node, opened, &info, options)
}

fn shared_file() -> (Tree, PathBuf) {
    let tree = Tree::empty();
    tree.write("node", "");
    let path = tree.path("node");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4 * HUGE_BYTES).unwrap();
    (tree, path)
}

fn is_claimed<T>(result: &Result<T, DeviceError>) -> bool {
    matches!(result, Err(DeviceError::Claimed { .. }))
}

/// Claims once it can: a child that another test is forking holds our description for a moment.
fn claim_soon(device: &Dax, range: Range<u64>) -> bool {
    soon(|| device.claim(range.clone()).is_ok())
}

#[test]
fn a_device_of_the_dax_bus_opens_maps_and_is_never_known_to_be_zero() {
    let tree = Tree::recorded("cxl-devdax");
    stand_in(&tree, "1:5");
    let device = open_zero(&tree, None).unwrap();
    assert_eq!((device.name(), device.kind(), device.node()), ("/dev/zero", DeviceKind::Dax, Some(2)));
    assert_eq!((device.len_bytes(), device.align_bytes()), (512 << 20, HUGE_BYTES));
    let space = Reservation::new(HUGE, HUGE).unwrap();
    // SAFETY: the reservation is this test's own.
    unsafe { device.map_at(space.base(), 0, HUGE) }.unwrap();
    // SAFETY: the address was just mapped writable.
    unsafe { space.base().as_ptr().write_volatile(1) };
    assert!(!device.discard(0..HUGE_BYTES));
}

#[test]
fn files_that_are_no_dax_devices_are_refused_with_what_they_are() {
    let tree = Tree::recorded("cxl-devdax");
    let file = tree.path("sys/devices/system/cpu/online");
    let dir = tree.path("sys");
    for (path, is) in
        [(Path::new("/dev/null"), "character device 1:3"), (&file, "a regular file"), (&dir, "a directory")]
    {
        match Dax::open_under(tree.root(), path, DaxOptions::default()) {
            Err(error @ DeviceError::NotDax { .. }) => {
                let text = error.to_string();
                assert!(text.contains(is) && text.contains("/dev/dax0.0"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_missing_device_is_named_with_those_there_are() {
    let tree = Tree::recorded("cxl-two");
    match Dax::open_under(tree.root(), Path::new("/dev/dax7.0"), DaxOptions::default()) {
        Err(error @ DeviceError::Missing { .. }) => {
            assert_eq!(error.errno(), libc::ENOENT);
            assert!(error.to_string().contains("/dev/dax0.0, /dev/dax1.0"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let none = Tree::recorded("one-node");
    match Dax::open_under(none.root(), Path::new("/dev/dax0.0"), DaxOptions::default()) {
        Err(error @ DeviceError::Missing { .. }) => {
            assert!(error.to_string().contains("emulated:2G"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let below_a_file = Dax::open_under(none.root(), Path::new("/dev/zero/dax0.0"), DaxOptions::default());
    assert!(matches!(below_a_file, Err(DeviceError::Sys { .. })), "{below_a_file:?}");
}

#[test]
fn a_device_that_cannot_be_used_says_why_and_how_to_mend_it() {
    for (recorded, attribute, value, part) in [
        ("cxl-system-ram", "", "", "system-ram mode"),
        ("cxl-no-driver", "", "", "no driver"),
        ("cxl-devdax", "size", "0", "size is 0"),
        ("cxl-devdax", "size", "x", "size in sysfs cannot be read"),
    ] {
        let tree = Tree::recorded(recorded);
        let dir = stand_in(&tree, "1:5");
        if !attribute.is_empty() {
            std::fs::write(dir.join(attribute), value).unwrap();
        }
        match open_zero(&tree, None) {
            Err(error @ DeviceError::Unusable { .. }) => assert!(error.to_string().contains(part), "{error}"),
            other => panic!("{recorded}: {other:?}"),
        }
    }
}

#[test]
fn a_size_or_alignment_that_no_mapping_can_have_is_refused() {
    for (attribute, value) in [("align", "6291456"), ("align", "512"), ("size", "2097153")] {
        let tree = Tree::recorded("cxl-devdax");
        let dir = stand_in(&tree, "1:5");
        std::fs::write(dir.join(attribute), value).unwrap();
        let opened = open_zero(&tree, None);
        assert!(
            matches!(opened, Err(DeviceError::BadAlign { .. } | DeviceError::NotAligned { .. })),
            "{attribute} {value}: {opened:?}"
        );
    }
}

#[test]
fn ranges_are_checked_against_the_device() {
    let tree = Tree::recorded("cxl-devdax");
    stand_in(&tree, "1:5");
    let len = 512u64 << 20;
    let device = open_zero(&tree, Some(HUGE_BYTES..4 * HUGE_BYTES)).unwrap();
    assert_eq!(device.len_bytes(), 3 * HUGE_BYTES);
    assert!(matches!(device.claim(0..4 * HUGE_BYTES), Err(DeviceError::BeyondEnd { .. })));
    let error = |range| open_zero(&tree, Some(range)).unwrap_err();
    assert!(matches!(error(0..len + HUGE_BYTES), DeviceError::BeyondEnd { .. }));
    assert!(matches!(error(len..len + HUGE_BYTES), DeviceError::BeyondEnd { .. }));
    assert!(matches!(error(4096..HUGE_BYTES), DeviceError::NotAligned { value: 4096, .. }));
    assert!(matches!(error(0..HUGE_BYTES + 1), DeviceError::NotAligned { .. }));
    assert!(matches!(error(HUGE_BYTES..HUGE_BYTES), DeviceError::EmptyRange { .. }));
}

/// Runs `child` as a user without rights, or as this one if it has none.
fn without_rights(mut child: impl FnMut() -> i32) -> ChildEnd {
    in_child(|| {
        if file::effective_uid() == 0 {
            // SAFETY: setgroups with no groups reads no memory.
            unsafe { libc::setgroups(0, std::ptr::null()) };
            // SAFETY: setgid and setuid take plain numbers.
            unsafe { libc::setgid(65534) };
            // SAFETY: as above.
            unsafe { libc::setuid(65534) };
        }
        child()
    })
}

#[test]
fn a_node_without_permission_says_whose_it_is() {
    // /dev/kmsg may be read by all and written by root, /dev/mem neither, on machines that have them.
    for (path, dev) in [("/dev/kmsg", "1:11"), ("/dev/mem", "1:1")] {
        let tree = Tree::recorded("cxl-devdax");
        stand_in(&tree, dev);
        std::fs::set_permissions(tree.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        if !Path::new(path).exists() {
            eprintln!("skipped: no {path} here");
            continue;
        }
        let end = without_rights(|| {
            let (may_read, may_write) =
                (file::may_open(Path::new(path), false), file::may_open(Path::new(path), true));
            let state = match Dax::open_under(tree.root(), Path::new(path), DaxOptions::default()) {
                Ok(_) => return i32::from(!may_write),
                Err(DeviceError::Unusable { state, mend, .. }) if mend.contains("sudo chown") => state,
                Err(_) => return 2,
            };
            match state {
                DaxState::ReadOnly { .. } => i32::from(!may_read || may_write) * 3,
                DaxState::NotPermitted { .. } => i32::from(may_read) * 4,
                _ => 5,
            }
        });
        assert_eq!(end, ChildEnd::Exited(0), "{path}");
    }
}

#[test]
fn two_opens_cannot_claim_the_same_bytes() {
    let (_tree, path) = shared_file();
    let (one, two) = (over_file(&path, None).unwrap(), over_file(&path, None).unwrap());
    assert_eq!(one.claim(0..2 * HUGE_BYTES), Ok(Claim { is_zero: false }));
    let refused = two.claim(HUGE_BYTES..3 * HUGE_BYTES);
    assert!(is_claimed(&refused), "{refused:?}");
    assert_eq!(refused.unwrap_err().errno(), libc::EBUSY);
    assert!(two.claim(2 * HUGE_BYTES..3 * HUGE_BYTES).is_ok());
    one.release(HUGE_BYTES..2 * HUGE_BYTES);
    assert!(claim_soon(&two, HUGE_BYTES..2 * HUGE_BYTES));
    assert!(is_claimed(&two.claim(0..HUGE_BYTES)), "only the released part came free");
}

#[test]
fn ranges_of_a_device_are_claimed_where_they_lie_on_the_node() {
    let (_tree, path) = shared_file();
    let whole = over_file(&path, None).unwrap();
    let upper = over_file(&path, Some(2 * HUGE_BYTES..4 * HUGE_BYTES)).unwrap();
    upper.claim(0..HUGE_BYTES).unwrap();
    assert!(whole.claim(0..2 * HUGE_BYTES).is_ok());
    assert!(is_claimed(&whole.claim(2 * HUGE_BYTES..3 * HUGE_BYTES)));
    assert!(whole.claim(3 * HUGE_BYTES..4 * HUGE_BYTES).is_ok());
}

#[test]
fn two_processes_cannot_claim_the_same_extent() {
    let (_tree, path) = shared_file();
    let ours = over_file(&path, None).unwrap();
    ours.claim(0..HUGE_BYTES).unwrap();
    let end = in_child(|| {
        let theirs = over_file(&path, None).unwrap();
        if !is_claimed(&theirs.claim(0..HUGE_BYTES)) {
            return 1;
        }
        i32::from(theirs.claim(HUGE_BYTES..2 * HUGE_BYTES).is_err()) * 2
    });
    assert_eq!(end, ChildEnd::Exited(0));
    assert!(claim_soon(&ours, HUGE_BYTES..2 * HUGE_BYTES), "the child's claim went with the child");
}

#[test]
fn a_forked_child_neither_holds_nor_frees_its_parents_claims() {
    let (_tree, path) = shared_file();
    let device = over_file(&path, None).unwrap();
    device.claim(0..HUGE_BYTES).unwrap();
    let number = device.file.number().unwrap();
    let end = in_child(|| {
        if device.after_fork_in_child() != AfterFork::Foreign || file::stat(number).is_ok() {
            return 1;
        }
        device.release(0..HUGE_BYTES);
        if !is_claimed(&device.claim(0..HUGE_BYTES)) {
            return 2;
        }
        device.release(0..HUGE_BYTES);
        i32::from(device.claim(HUGE_BYTES..2 * HUGE_BYTES).is_err()) * 3
    });
    assert_eq!(end, ChildEnd::Exited(0));
    let other = over_file(&path, None).unwrap();
    assert!(is_claimed(&other.claim(0..HUGE_BYTES)), "the child gave its parent's claim away");
}

#[test]
fn a_child_that_finds_another_node_at_the_path_claims_nothing() {
    let (tree, path) = shared_file();
    let device = over_file(&path, None).unwrap();
    let end = in_child(|| {
        device.after_fork_in_child();
        std::fs::rename(&path, tree.path("moved")).unwrap();
        std::fs::write(&path, "").unwrap();
        match device.claim(0..HUGE_BYTES) {
            Err(DeviceError::Sys { source, .. }) => i32::from(source.errno != libc::ESTALE),
            _ => 2,
        }
    });
    assert_eq!(end, ChildEnd::Exited(0));
}

#[test]
fn bytes_are_shared_between_claims_and_not_with_a_forked_child() {
    let (_tree, path) = shared_file();
    let device = over_file(&path, Some(HUGE_BYTES..3 * HUGE_BYTES)).unwrap();
    let space = Reservation::new(HUGE, HUGE).unwrap();
    // SAFETY: the reservation is this test's own.
    unsafe { device.map_at(space.base(), 0, HUGE) }.unwrap();
    let byte = space.base().as_ptr();
    // SAFETY: the address was just mapped writable.
    unsafe { byte.write_volatile(77) };
    let end = in_child(|| {
        // SAFETY: the address is not mapped in the child, which is what the test is about: the read ends it.
        i32::from(unsafe { byte.read_volatile() })
    });
    assert_eq!(end, ChildEnd::Killed(libc::SIGSEGV));
    let whole = over_file(&path, None).unwrap();
    let other = Reservation::new(HUGE, HUGE).unwrap();
    // SAFETY: the reservation is this test's own.
    unsafe { whole.map_at(other.base(), HUGE_BYTES, HUGE) }.unwrap();
    // SAFETY: the address was just mapped readable.
    assert_eq!(unsafe { other.base().as_ptr().read_volatile() }, 77);
}

#[test]
fn what_a_process_maps_without_a_claim_is_not_claimed_unless_forced() {
    let (_tree, path) = shared_file();
    let device = over_file(&path, None).unwrap();
    let forced = over_file_with(&path, DaxOptions { force: true, ..DaxOptions::default() }).unwrap();
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the child makes system calls only, and waits to be killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the path is NUL-terminated.
        let file = unsafe { libc::open(c_path.as_ptr(), libc::O_RDWR) };
        let (prot, offset) = (libc::PROT_READ | libc::PROT_WRITE, HUGE_BYTES as i64);
        // SAFETY: a mapping where the kernel likes.
        unsafe { libc::mmap(std::ptr::null_mut(), HUGE, prot, libc::MAP_SHARED, file, offset) };
        // SAFETY: one byte of the path.
        unsafe { libc::write(ends[1], c_path.as_ptr().cast(), 1) };
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    let mut told = 0u8;
    // SAFETY: the buffer is one byte long.
    assert_eq!(unsafe { libc::read(ends[0], (&raw mut told).cast(), 1) }, 1);
    assert!(claim_soon(&device, 0..HUGE_BYTES), "nobody maps it");
    for range in [HUGE_BYTES..2 * HUGE_BYTES, HUGE_BYTES..4 * HUGE_BYTES] {
        let refused = device.claim(range).unwrap_err();
        let DeviceError::Mapped { start, end, pid, .. } = refused else { panic!("{refused}") };
        assert_eq!((start, end, pid), (HUGE_BYTES, 2 * HUGE_BYTES, child as u32));
    }
    assert!(claim_soon(&device, 2 * HUGE_BYTES..4 * HUGE_BYTES), "nobody maps it");
    assert!(
        claim_soon(&forced, HUGE_BYTES..2 * HUGE_BYTES),
        "the refusal kept no lock, and force looks at nobody"
    );
    forced.release(HUGE_BYTES..2 * HUGE_BYTES);
    // SAFETY: ends the child that was just made.
    unsafe { libc::kill(child, libc::SIGKILL) };
    // SAFETY: waits for it.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert!(claim_soon(&device, HUGE_BYTES..2 * HUGE_BYTES), "nobody maps it any more");
}

#[test]
fn a_device_that_holds_data_is_not_opened_unless_forced() {
    let (_tree, path) = shared_file();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"PMEMOBJ\0", 0).unwrap();
    let refused = over_file(&path, None).unwrap_err();
    assert!(matches!(refused, DeviceError::HoldsData { .. }), "{refused}");
    assert!(refused.to_string().contains("PMDK") && refused.to_string().contains(",force"), "{refused}");
    over_file(&path, Some(HUGE_BYTES..2 * HUGE_BYTES)).expect("the data is elsewhere");
    over_file_with(&path, DaxOptions { force: true, ..DaxOptions::default() }).expect("forced");
}

#[test]
fn what_nobody_uses_is_cleared_and_the_rest_left_alone() {
    let (_tree, path) = shared_file();
    let fill = vec![0xa5u8; 4 * HUGE];
    std::fs::write(&path, &fill).unwrap();
    let (device, other) = (over_file(&path, None).unwrap(), over_file(&path, None).unwrap());
    assert!(claim_soon(&other, HUGE_BYTES..2 * HUGE_BYTES));
    let mut steps = Vec::new();
    let done = device.scrub_free(&mut |done| steps.push(done)).unwrap();
    assert_eq!((done.cleared_bytes, done.used_bytes, done.damaged_bytes), (3 * HUGE_BYTES, HUGE_BYTES, 0));
    assert_eq!(steps.last(), Some(&done));
    let bytes = std::fs::read(&path).unwrap();
    for (granule, bytes) in bytes.chunks(HUGE).enumerate() {
        let expected = if granule == 1 { 0xa5 } else { 0 };
        assert!(bytes.iter().all(|&byte| byte == expected), "granule {granule}");
    }
    assert!(claim_soon(&other, 0..HUGE_BYTES), "nothing stays claimed");
    other.release(0..2 * HUGE_BYTES);
    // A part of a device keeps to its range.
    std::fs::write(&path, &fill).unwrap();
    let part = over_file(&path, Some(2 * HUGE_BYTES..3 * HUGE_BYTES)).unwrap();
    assert_eq!(part.scrub_free(&mut |_| ()).unwrap().cleared_bytes, HUGE_BYTES);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.iter().filter(|&&byte| byte == 0).count(), HUGE);
    assert!(bytes[2 * HUGE..3 * HUGE].iter().all(|&byte| byte == 0));
}

/// Catches a scrub that counts this process's own claims as its own to clear.
#[test]
fn what_this_process_has_claimed_is_in_use() {
    let (_tree, path) = shared_file();
    std::fs::write(&path, vec![0xa5u8; 4 * HUGE]).unwrap();
    let device = over_file(&path, None).unwrap();
    assert!(claim_soon(&device, HUGE_BYTES..3 * HUGE_BYTES));
    let done = device.scrub_free(&mut |_| ()).unwrap();
    assert_eq!((done.cleared_bytes, done.used_bytes), (2 * HUGE_BYTES, 2 * HUGE_BYTES));
    assert!(std::fs::read(&path).unwrap()[HUGE..3 * HUGE].iter().all(|&byte| byte == 0xa5));
    assert!(is_claimed(&over_file(&path, None).unwrap().claim(HUGE_BYTES..2 * HUGE_BYTES)), "still ours");
}

/// Catches a piece that no thread clears, or that two do.
#[test]
fn several_threads_clear_each_byte_once() {
    const LEN: u64 = 5 * (64 << 20) + 3 * HUGE_BYTES;
    for nr_threads in [1, 3, 100] {
        let tree = Tree::empty();
        tree.write("node", "");
        let path = tree.path("node");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(LEN).unwrap();
        let marks = (0..LEN).step_by(HUGE / 2 + 4096).chain([LEN - 1]);
        marks.for_each(|at| std::os::unix::fs::FileExt::write_all_at(&file, b"x", at).unwrap());
        let device = over_file_of(&path, LEN, DaxOptions::default()).unwrap();
        let mut seen = Vec::new();
        let done = device.scrub_free_by(nr_threads, &mut |done| seen.push(done.seen_bytes())).unwrap();
        assert_eq!((done.cleared_bytes, done.used_bytes, done.damaged_bytes), (LEN, 0, 0));
        assert!(seen.len() == 6 && seen.is_sorted() && seen.last() == Some(&LEN), "{seen:?}");
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0), "{nr_threads} threads");
    }
}

/// Catches a failure that leaves the other threads at work, or is taken for success.
#[test]
fn a_node_that_is_not_there_any_more_is_gone() {
    let (_tree, path) = shared_file();
    let device = over_file(&path, None).unwrap();
    std::fs::remove_file(&path).unwrap();
    let refused = device.scrub_free(&mut |_| ()).unwrap_err();
    assert!(matches!(refused, DeviceError::Gone { .. }), "{refused}");
}
