//! What must hold on a real dax device, driven by the kernel's device_dax.
//!
//! These tests overwrite the device, so they run only on one that `DAXTIER_TEST_DAX` names; `cargo xtask test --vm` sets it
//! in a guest with an emulated CXL expander. Each takes the whole device, one after the other. `changes` has devices that are
//! drained, shared with processes that die, and lost, `scrubbing` what owners leave on it, `granules` devices of another alignment.

mod changes;
mod granules;
mod scrubbing;

use daxtier::device::{Dax, DaxOptions, DaxState, Device, DeviceError, discover};
use daxtier::pgmap::DrainError;
use daxtier::{
    AllocOptions, Config, Folio, FolioError, Lifetime, Order, Outcome, Pgmap, PgmapOptions, Pool, PoolError,
    TierName,
};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Written all over memory that must not be seen by the next owner.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// Names what this test binary does when it is run as a process of its own.
const ROLE: &str = "DAXTIER_TEST_ROLE";

/// The device under test, and the right to use it.
struct UnderTest {
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Returns the device that the tests may overwrite; says that the test skips where none is named.
fn device() -> Option<UnderTest> {
    static ALONE: Mutex<()> = Mutex::new(());
    let Some(path) = std::env::var_os("DAXTIER_TEST_DAX").map(PathBuf::from) else {
        println!("skipped: DAXTIER_TEST_DAX names no dax device to overwrite (cargo xtask test --vm does)");
        return None;
    };
    Some(UnderTest { path, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) })
}

/// The device under test may be persistent memory, which is there to be overwritten.
fn options() -> DaxOptions {
    DaxOptions { allow_persistent: true, ..DaxOptions::default() }
}

impl UnderTest {
    fn open(&self) -> Dax {
        Dax::open(&self.path, options()).expect("the device under test can be used")
    }

    fn bind(&self) -> Pgmap {
        Pgmap::bind(Arc::new(self.open()), PgmapOptions::default()).expect("the device binds")
    }

    /// This test binary once more, to play `role` on the same device in a process of its own.
    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its own file"));
        command
            .args(["--exact", "plays_its_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env("DAXTIER_TEST_DAX", &self.path);
        command
    }

    /// Starts a process that plays `role` until it is killed or its input ends.
    fn spawn(&self, role: &str) -> Child {
        let mut command = self.command(role);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this test starts again")
    }

    /// Plays `role` to its end.
    fn play(&self, role: &str) -> Output {
        self.command(role).output().expect("this test starts again")
    }
}

fn words(folio: &mut Folio) -> &mut [u64] {
    let bytes = folio.as_mut_slice().expect("a fresh folio has one reference");
    // SAFETY: any bytes are valid words.
    let (before, words, after) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty() && after.is_empty(), "a folio is aligned to its size");
    words
}

/// Takes every folio of `order` that there is.
fn take_all(pgmap: &Pgmap, order: Order) -> Vec<Folio> {
    std::iter::from_fn(|| pgmap.alloc_folio(order, Lifetime::Short).ok()).collect()
}

/// Waits for a line that holds `word`.
fn wait_for(child: &mut Child, word: &str) {
    let stdout = child.stdout.as_mut().expect("standard output is a pipe");
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, stdout);
    while !line.contains(word) {
        line.clear();
        let len = reader.read_line(&mut line).expect("the pipe is readable");
        assert!(len > 0, "the other process ended before it said {word:?}");
    }
}

/// Takes the device away from its driver, or gives it back.
fn drive(path: &Path, verb: &str) {
    let name = path.file_name().expect("a device has a name");
    let file = Path::new("/sys/bus/dax/drivers/device_dax").join(verb);
    std::fs::write(&file, name.as_encoded_bytes())
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// A program whose device goes: what it has elsewhere goes on, and the first touch of what is lost ends it.
fn lose_blocks(path: &Path) {
    let config = format!("fast=64M slow={},allow-persistent policy=preferred=slow", path.display());
    let pool = Pool::open(&Config::parse(&config).expect("a valid configuration")).expect("the pool opens");
    let lost = pool.malloc(4 << 20, 16, AllocOptions::default()).expect("there is room");
    assert_eq!(pool.where_is(lost.as_ptr()).expect("ours").tier_name, "slow");
    drive(path, "unbind");
    // The library's own access comes first, and is an outcome.
    let moved = pool.migrate(lost.as_ptr(), 4 << 20, TierName::Fast).expect("it was tried");
    assert!(moved.get(Outcome::Device) > 0 && moved.get(Outcome::Moved) == 0, "{moved:?}");
    let mut folios: Vec<Folio> = (0..8)
        .map(|_| pool.alloc_folio(Order::HUGE, AllocOptions::default()).expect("the other tier has room"))
        .collect();
    folios.iter_mut().for_each(|folio| words(folio).fill(7));
    let dax = pool.tiers().iter().find(|tier| tier.name() == "slow").expect("there is one").pgmaps()[0].id();
    assert!(folios.iter().all(|folio| folio.info().pgmap != dax), "placed on a device that is gone");
    // The copies for a child are made of what is not there any more.
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child without running handlers.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert!(child > 0 && status == 0, "a child that touches nothing lost ended with {status:#x}");
    println!("goes on");
    // SAFETY: the block is live; its device is not.
    let byte = unsafe { lost.read_volatile() };
    println!("read {byte} from a device that is gone");
}

/// A program whose device goes while folios come and go: it gets errors, and lives.
fn lose_folios(path: &Path) {
    let device = Dax::open(path, options()).expect("the device can be used");
    let pgmap = Pgmap::bind(Arc::new(device), PgmapOptions::default()).expect("the device binds");
    let nr_errors = std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let mut held = Vec::new();
            let mut nr_errors = 0;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(3) {
                match pgmap.alloc_folio(Order::HUGE, Lifetime::Short) {
                    Ok(folio) => held.push(folio),
                    Err(FolioError::Exhausted { .. }) => held.clear(),
                    Err(_) => nr_errors += 1,
                }
            }
            nr_errors
        });
        std::thread::sleep(Duration::from_millis(50));
        drive(path, "unbind");
        taker.join().expect("no panic")
    });
    println!("lives: {nr_errors} errors");
}

/// Tells the kernel that a page is damaged. Returns whether it can be told.
fn poison(page: *mut u8) -> bool {
    // SAFETY: the page is mapped and nobody reads it again.
    unsafe { libc::madvise(page.cast(), 4096, libc::MADV_HWPOISON) == 0 }
}

/// A program that lives with memory errors: what is damaged is never handed out again.
fn damage(path: &Path) {
    extern "C" fn go_on(_: libc::c_int) {}
    // SAFETY: the handler does nothing. The kernel signals the error within the call that makes it.
    unsafe { libc::signal(libc::SIGBUS, go_on as *const () as usize) };
    let device = Dax::open(path, options()).expect("the device can be used");
    let pgmap = Pgmap::bind(Arc::new(device), PgmapOptions::default()).expect("the device binds");
    let mut folio = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect("there is room");
    words(&mut folio).fill(SECRET);
    let (offset, free_bytes) = (folio.offset(), pgmap.stats().capacity_bytes - folio.len_bytes() as u64);
    if !poison(folio.as_mut_slice().expect("one reference").as_mut_ptr()) {
        println!("this kernel takes no word of damage: {}", std::io::Error::last_os_error());
        return;
    }
    drop(folio);
    assert_eq!((pgmap.stats().quarantined_bytes, pgmap.stats().used_bytes), (2 << 20, 0));
    let rest = take_all(&pgmap, Order::HUGE);
    assert!(rest.iter().all(|folio| folio.offset() != offset), "handed out again");
    assert_eq!(rest.len() as u64, free_bytes >> 21, "and nothing else is left out");
    drop(rest);
    pgmap.kill().expect("live until now");
    pgmap.drain(Duration::from_secs(10)).expect("nothing is held");
    drop(pgmap);

    let config = format!("fast=8M slow={},allow-persistent policy=bind=slow", path.display());
    let pool = Pool::open(&Config::parse(&config).expect("a valid configuration")).expect("the pool opens");
    let block = pool.malloc(4 << 20, 16, AllocOptions::default()).expect("there is room");
    // Not in the first 2 MiB, which the heap shares with other blocks.
    // SAFETY: the page lies in the block.
    assert!(poison(unsafe { block.add(3 << 20) }.as_ptr()), "as before");
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }.expect("ours");
    let quarantined = || pool.tiers()[1].pgmaps()[0].stats().quarantined_bytes;
    let deadline = Instant::now() + Duration::from_secs(20);
    while quarantined() == 0 && Instant::now() < deadline {
        // The heap gives free memory back after a while, when it is used.
        std::thread::sleep(Duration::from_millis(20));
        let other = pool.malloc(1 << 20, 16, AllocOptions::default()).expect("there is room");
        // SAFETY: as above.
        unsafe { pool.free(other) }.expect("ours");
    }
    assert_eq!(quarantined(), 2 << 20);
    println!("lives");
}

/// A program that knows nothing of claims.
fn stranger(path: &Path) {
    const LEN: usize = 16 << 20;
    let node = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the node opens");
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a mapping where the kernel likes.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, node.as_raw_fd(), 0) };
    assert_ne!(addr, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: mapped for its length, of which nobody else should know.
    let words = unsafe { std::slice::from_raw_parts_mut(addr.cast::<u64>(), LEN / 8) };
    words.fill(SECRET);
    println!("maps the device");
    let _ = std::io::stdin().read(&mut [0; 1]);
    assert!(words.iter().all(|&word| word == SECRET), "overwritten");
    println!("has what it had");
}

/// Runs in the processes that other tests start.
#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var_os("DAXTIER_TEST_DAX").expect("the parent names the device"));
    match role.as_str() {
        "lose blocks" => return lose_blocks(&path),
        "lose folios" => return lose_folios(&path),
        "damage" => return damage(&path),
        "stranger" => return stranger(&path),
        other if changes::play(other, &path) => return,
        _ => {}
    }
    let device = Dax::open(&path, options()).expect("the device can be used");
    let pgmap = Pgmap::bind(Arc::new(device), PgmapOptions::default()).expect("the device binds");
    let mut first = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect("an extent can be claimed");
    assert!(words(&mut first).iter().all(|&word| word == 0), "a former owner's bytes were handed out");
    words(&mut first).fill(SECRET);
    println!("holds an extent");
    if role == "fill" {
        let mut more: Vec<Folio> =
            std::iter::from_fn(|| pgmap.alloc_folio(Order::HUGE, Lifetime::Short).ok()).take(40).collect();
        more.iter_mut().for_each(|folio| words(folio).fill(SECRET));
        println!("filled {}", more.len());
        std::mem::forget(more);
    }
    // Until it is killed, or the parent closes the pipe.
    let _ = std::io::stdin().read(&mut [0; 1]);
}

#[test]
fn discovery_tells_what_the_driver_demands() {
    let Some(under_test) = device() else { return };
    let all = discover(Path::new("/"));
    let info = all.iter().find(|info| info.path == under_test.path).expect("discovery finds the device");
    assert_eq!(info.state, DaxState::Free, "{info:?}");
    assert_eq!(info.driver.as_deref(), Some("device_dax"));
    assert!(
        info.align_bytes.is_power_of_two() && info.len_bytes.is_multiple_of(info.align_bytes),
        "{info:?}"
    );
    let device = under_test.open();
    assert_eq!((device.len_bytes(), device.align_bytes()), (info.len_bytes, info.align_bytes));
    for bad in [0..0, 0..info.len_bytes + info.align_bytes, 4096..info.align_bytes] {
        let refusal = Dax::open(&under_test.path, DaxOptions { range: Some(bad.clone()), ..options() });
        assert!(refusal.is_err(), "the range {bad:?} was taken");
    }
}

/// Catches a claim that hands bytes out before it clears them: a scrub left out fails it at the first page.
#[test]
fn no_byte_of_a_former_owner_is_handed_out() {
    let Some(under_test) = device() else { return };
    for _ in 0..2 {
        let pgmap = under_test.bind();
        let mut folios = take_all(&pgmap, Order::HUGE);
        let held: u64 = folios.iter().map(|folio| folio.len_bytes() as u64).sum();
        assert_eq!(held, pgmap.stats().capacity_bytes, "every 2 MiB of the device can be taken");
        for folio in &mut folios {
            assert!(words(folio).iter().all(|&word| word == 0), "page {:#x}", folio.offset());
            words(folio).fill(SECRET);
        }
    }
}

/// Catches offsets that are mapped to another place than they say: every page holds its own number, seen through another
/// mapping of the device.
#[test]
fn a_folio_is_where_its_offset_says() {
    let Some(under_test) = device() else { return };
    let pgmap = under_test.bind();
    let mut folios = Vec::new();
    for order in [0, 3, 9, 0, 5, 9, 1] {
        let order = Order::new(order).expect("in range");
        let mut folio = pgmap.alloc_folio(order, Lifetime::Short).expect("there is room");
        let offset = folio.offset();
        for (page, words) in words(&mut folio).chunks_mut(512).enumerate() {
            words.fill(offset + page as u64);
        }
        folios.push(folio);
    }
    for folio in &folios {
        let addr = folio.address().expect("a live folio is mapped");
        assert_eq!(pgmap.offset_of(addr.as_ptr()), Some(folio.offset()));
        for page in 0..folio.order().nr_pages() {
            // SAFETY: the page lies inside the folio, which is mapped at `addr`.
            let at = unsafe { addr.as_ptr().add(page as usize * 4096) };
            // SAFETY: the folio is held, and nobody writes to it.
            let word = unsafe { at.cast::<u64>().read() };
            assert_eq!(word, folio.offset() + page);
        }
    }
    let busy = folios[0].offset();
    assert!(matches!(pgmap.request_folio(busy, Order::PAGE), Err(FolioError::Busy { .. })));
    drop(folios);
    assert_eq!(pgmap.stats().used_bytes, 0);
}

/// Catches a claim that takes no lock: two processes would hold the same extent, and nobody would see the other's.
#[test]
fn two_processes_share_the_device_by_extents() {
    let Some(under_test) = device() else { return };
    let mut other = under_test.spawn("hold");
    wait_for(&mut other, "holds an extent");
    let info = discover(Path::new("/")).into_iter().find(|info| info.path == under_test.path);
    let DaxState::Claimed { holders } = info.expect("still there").state else {
        panic!("the other's claim is not seen")
    };
    assert!(holders.iter().any(|holder| holder.pid == Some(other.id())), "{holders:?}");
    let pgmap = under_test.bind();
    let mut mine = take_all(&pgmap, Order::HUGE);
    let device_bytes = under_test.open().len_bytes();
    let held: u64 = mine.iter().map(|folio| folio.len_bytes() as u64).sum();
    assert!(held < device_bytes, "all of the device was taken although another process holds a part");
    assert!(held > 0, "nothing was left for the second process");
    mine.iter_mut().for_each(|folio| words(folio).fill(1));
    let whole = under_test.open().claim(0..device_bytes);
    assert!(matches!(whole, Err(DeviceError::Claimed { .. })), "{whole:?}");
    drop(other.stdin.take());
    assert!(other.wait().expect("the other ends").success());
}

/// Catches claims that outlive their process, and extents that come back unscrubbed.
#[test]
fn the_extents_of_a_killed_process_come_back_clean() {
    let Some(under_test) = device() else { return };
    let rounds =
        std::env::var("DAXTIER_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    for round in 0..rounds {
        let mut other = under_test.spawn("fill");
        wait_for(&mut other, if round % 2 == 0 { "filled" } else { "holds an extent" });
        other.kill().expect("the other is there");
        other.wait().expect("the other ends");
    }
    let pgmap = under_test.bind();
    let mut folios = take_all(&pgmap, Order::HUGE);
    assert_eq!(
        folios.len() as u64 * Order::HUGE.len_bytes(),
        pgmap.stats().capacity_bytes,
        "an extent was lost"
    );
    assert!(folios.iter_mut().all(|folio| words(folio).iter().all(|&word| word == 0)), "foreign bytes");
}

/// Catches a kill that does not wait, and a drain that forgets who holds what.
#[test]
fn a_killed_pgmap_drains_when_its_last_folio_goes() {
    let Some(under_test) = device() else { return };
    let pgmap = under_test.bind();
    let folio = pgmap.alloc_folio(Order::PAGE, Lifetime::Short).expect("there is room");
    pgmap.kill().expect("live until now");
    assert!(matches!(pgmap.alloc_folio(Order::PAGE, Lifetime::Short), Err(FolioError::Dying { .. })));
    let timeout = pgmap.drain(Duration::from_millis(10)).expect_err("a folio is held");
    let DrainError::TimedOut { holders, .. } = timeout else { panic!("{timeout}") };
    assert_eq!(holders.iter().map(|info| info.offset).collect::<Vec<_>>(), [folio.offset()]);
    drop(folio);
    pgmap.drain(Duration::from_secs(10)).expect("nothing is held");
}

/// Catches memory that parent and child share: the driver only maps shared.
#[test]
fn a_forked_child_has_its_own_copy() {
    let Some(under_test) = device() else { return };
    let config = format!("fast=8M slow={},allow-persistent policy=bind=slow", under_test.path.display());
    let pool = Pool::open(&Config::parse(&config).expect("a valid configuration")).expect("the pool opens");
    let block = pool.malloc(1 << 20, 16, AllocOptions::default()).expect("there is room").cast::<u64>();
    assert_eq!(pool.where_is(block.as_ptr().cast()).expect("ours").tier_name, "slow");
    // SAFETY: the block is live and holds the word.
    unsafe { block.write_volatile(1) };
    // SAFETY: the child only touches its memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above; the child's own copy.
        let seen = unsafe { block.read_volatile() };
        // SAFETY: as above.
        unsafe { block.write_volatile(2) };
        // SAFETY: ends the child without running the test harness's exit handlers.
        unsafe { libc::_exit(i32::from(seen != 1)) };
    }
    assert!(child > 0, "the fork was refused");
    let mut status = -1;
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0, "the child did not see what the parent wrote before the fork");
    // SAFETY: the block is live.
    assert_eq!(unsafe { block.read_volatile() }, 1, "the child's write is seen by its parent");
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block.cast()) }.expect("ours");
    pool.close().expect("nothing is left");
}

/// Catches a pool that spills, or loses bytes, when the device is full.
#[test]
fn an_exhausted_device_is_an_error_and_takes_again_what_is_freed() {
    let Some(under_test) = device() else { return };
    let config =
        format!("fast=8M slow={},size=16M,allow-persistent policy=bind=slow", under_test.path.display());
    let pool = Pool::open(&Config::parse(&config).expect("a valid configuration")).expect("the pool opens");
    let slow = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
    let mut folios: Vec<Folio> = std::iter::from_fn(|| pool.alloc_folio(Order::HUGE, slow).ok()).collect();
    assert!((4..=8).contains(&folios.len()), "{} of 8 folios", folios.len());
    let refusal = pool.alloc_folio(Order::HUGE, slow).expect_err("the device's share is used up");
    assert!(refusal.to_string().contains("slow"), "{refusal}");
    folios.pop();
    folios.push(pool.alloc_folio(Order::HUGE, slow).expect("one was put"));
    drop(folios);
    pool.close().expect("nothing is left");
    let beyond = format!("fast=8M slow={},size=1T,allow-persistent", under_test.path.display());
    let refusal =
        Pool::open(&Config::parse(&beyond).expect("it reads well")).expect_err("larger than the device");
    assert!(matches!(refusal, PoolError::Device(_)), "{refusal}");
}

/// Catches a library that touches a device which is gone, or goes on to place memory there, and a death without a word: it fails
/// where the handler is not installed, and where an access of the library's own is not guarded.
#[test]
fn a_device_that_is_unbound_fails_what_was_on_it_and_nothing_else() {
    let Some(under_test) = device() else { return };
    for role in ["lose blocks", "lose folios"] {
        let ended = under_test.play(role);
        drive(&under_test.path, "bind");
        let (stdout, stderr) =
            (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        let seen = format!("{role}: {}\n{stdout}\n{stderr}", ended.status);
        if role == "lose folios" {
            assert!(ended.status.success() && stdout.contains("lives: "), "{seen}");
            continue;
        }
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{seen}");
        assert!(stdout.contains("goes on"), "{seen}");
        let name = under_test.path.display().to_string();
        for line in
            [format!("{name} is not there any more: nothing is placed there"), "gets SIGBUS".to_owned()]
        {
            assert_eq!(stderr.matches(&line).count(), 1, "{seen}");
        }
    }
    // As good as before.
    drop(under_test.bind().alloc_folio(Order::HUGE, Lifetime::Short).expect("the device is back"));
}

/// Catches a claimant that clears what another program has there, as one does that looks at locks alone.
#[test]
fn a_process_that_maps_the_device_without_a_claim_keeps_every_byte() {
    let Some(under_test) = device() else { return };
    let mut stranger = under_test.spawn("stranger");
    wait_for(&mut stranger, "maps the device");
    let pgmap = under_test.bind();
    let folios = take_all(&pgmap, Order::HUGE);
    // The stranger has the first extent; where that is the whole device, there is nothing.
    assert!(folios.iter().all(|folio| folio.offset() >= 4096), "a part of what another process maps");
    if folios.is_empty() {
        let refusal = pgmap.alloc_folio(Order::HUGE, Lifetime::Short).expect_err("nothing is free");
        assert!(refusal.to_string().contains("mapped by process"), "{refusal}");
    }
    drop(stranger.stdin.take());
    let ended = stranger.wait_with_output().expect("it ends");
    let stdout = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && stdout.contains("has what it had"), "{stdout}");
}

/// Catches damaged memory that is handed out again: a put that does not look for damage.
#[test]
fn what_the_machine_finds_damaged_is_never_handed_out_again() {
    let Some(under_test) = device() else { return };
    let ended = under_test.play("damage");
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let seen = format!("{}\n{stdout}\n{stderr}", ended.status);
    assert!(ended.status.success(), "{seen}");
    if !stdout.contains("takes no word of damage") {
        assert!(stdout.contains("lives") && stderr.contains("has a memory error"), "{seen}");
    }
    println!("{stdout}");
}

/// Catches a scrub that leaves bytes, or takes some that are in use.
#[test]
fn a_scrub_clears_what_nobody_uses() {
    let Some(under_test) = device() else { return };
    let mut user = under_test.spawn("fill");
    wait_for(&mut user, "filled");
    let dax = under_test.open();
    let done = dax.scrub_free(&mut |_| ()).expect("the device answers");
    assert_eq!(done.cleared_bytes + done.used_bytes, dax.len_bytes(), "{done:?}");
    assert!(done.used_bytes > 0, "another process has an extent");
    user.kill().expect("it lives");
    user.wait().expect("it ends");
    let done = dax.scrub_free(&mut |_| ()).expect("the device answers");
    assert_eq!((done.cleared_bytes, done.used_bytes), (dax.len_bytes(), 0));
    let node = std::fs::File::open(&under_test.path).expect("the node opens");
    let len = dax.len_bytes() as usize;
    // SAFETY: a mapping where the kernel likes.
    let addr = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, node.as_raw_fd(), 0)
    };
    assert_ne!(addr, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: mapped for its length; nobody writes to it.
    let words = unsafe { std::slice::from_raw_parts(addr.cast::<u64>(), len / 8) };
    assert!(words.iter().all(|&word| word == 0));
    // SAFETY: the mapping was made above, and its words are of no more use.
    unsafe { libc::munmap(addr, len) };
}
