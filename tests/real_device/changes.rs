//! Devices that are drained, shared with processes that die, and lost: what the program gets, and who is told.

use super::{SECRET, UnderTest, device, drive, take_all, wait_for, words};
use daxtier::device::{Dax, DaxOptions, Device, DeviceError};
use daxtier::pgmap::PgmapState;
use daxtier::{AllocOptions, Config, Folio, Lifetime, Order, Pgmap, PgmapOptions, Pool, TierName};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SLOT: usize = 2 << 20;
/// What the process that lives writes.
const OWN: u64 = 0x1111_2222_3333_4444;

fn pool(settings: &str, path: &Path) -> Pool {
    let config = format!("{settings} slow={},allow-persistent", path.display());
    Pool::open(&Config::parse(&config).expect("a valid configuration")).expect("the pool opens")
}

fn slow() -> AllocOptions {
    AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() }
}

/// Plays a role of this file; `false` when there is none of that name.
pub(super) fn play(role: &str, path: &Path) -> bool {
    match role {
        "zero fill" => zero_fill(path),
        "told" => told(path),
        "pci" => under_removal(path),
        "scrub" => scrub_until_gone(path),
        "small pages" => without_huge_pages(path),
        "own handler first" => with_own_handler(path, true),
        "own handler later" => with_own_handler(path, false),
        _ => return false,
    }
    true
}

/// A program that goes on with zeroes.
fn zero_fill(path: &Path) {
    let pool = pool("fast=64M on_loss=zero-fill", path);
    let block = pool.malloc(2 * SLOT, SLOT, slow()).expect("there is room").cast::<u64>();
    let word = |at: usize| {
        // SAFETY: the block is longer.
        let at = unsafe { block.add(at) };
        // SAFETY: the block is live, and used as atomic words only.
        unsafe { AtomicU64::from_ptr(at.as_ptr()) }
    };
    word(0).store(SECRET, Ordering::Relaxed);
    word(SLOT / 8).store(SECRET, Ordering::Relaxed);
    drive(path, "unbind");
    assert_eq!(word(0).load(Ordering::Relaxed), 0);
    word(SLOT / 8 + 1).store(5, Ordering::Relaxed);
    assert_eq!(word(SLOT / 8 + 1).load(Ordering::Relaxed), 5);
    assert_eq!(word(SLOT / 8).load(Ordering::Relaxed), 0);
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block.cast()) }.expect("ours");
    println!("goes on with zeroes");
}

/// A program that touches nothing of the device, and yet knows that it is gone.
fn told(path: &Path) {
    let pool = pool("fast=64M", path);
    let folio = pool.alloc_folio(Order::HUGE, slow()).expect("there is room");
    let pgmap = pool.tiers()[1].pgmaps().remove(0);
    assert_eq!(pgmap.state(), PgmapState::Live);
    drive(path, "unbind");
    let start = Instant::now();
    while pgmap.state() == PgmapState::Live && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_ne!(pgmap.state(), PgmapState::Live, "nobody told");
    println!("was told");
    std::mem::forget(folio);
}

/// A program that allocates and moves memory while the device is pulled out.
fn under_removal(path: &Path) {
    let pool = pool("fast=64M", path);
    pool.set_migration_quarantine(Duration::from_millis(1));
    let block = pool.malloc(4 * SLOT, SLOT, slow()).expect("there is room");
    let block = block.as_ptr().expose_provenance();
    let end = AtomicBool::new(false);
    let errors = std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let mut errors = 0u64;
            while !end.load(Ordering::Relaxed) {
                match pool.alloc_folio(Order::HUGE, AllocOptions { zero: true, ..slow() }) {
                    Ok(folio) => drop(folio),
                    Err(_) => errors += 1,
                }
            }
            errors
        });
        let mover = scope.spawn(|| {
            let addr = std::ptr::with_exposed_provenance::<u8>(block);
            let mut moved = 0u64;
            while !end.load(Ordering::Relaxed) {
                for tier in [TierName::Fast, TierName::Slow] {
                    let counts = pool.migrate(addr, 4 * SLOT, tier);
                    moved += counts.map_or(0, |counts| counts.get(daxtier::Outcome::Moved));
                }
            }
            moved
        });
        println!("under load");
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0; 1]);
        // A while longer, on a device that is gone.
        std::thread::sleep(Duration::from_secs(2));
        end.store(true, Ordering::Relaxed);
        (taker.join().expect("no panic"), mover.join().expect("no panic"))
    });
    println!("lives: {} errors, {} moved", errors.0, errors.1);
    std::process::exit(0);
}

/// A program that clears the device over and over, until that is gone.
fn scrub_until_gone(path: &Path) {
    let dax = Dax::open(path, DaxOptions { allow_persistent: true, ..DaxOptions::default() })
        .expect("the device can be used");
    println!("scrubs");
    loop {
        match dax.scrub_free(&mut |_| ()) {
            Ok(_) => {}
            Err(DeviceError::Gone { .. }) => return println!("sees that it is gone"),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A program for which huge pages are switched off, as by its parent.
fn without_huge_pages(path: &Path) {
    // SAFETY: the option takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    let pool = pool("fast=64M policy=bind=slow", path);
    let block = pool.malloc(8 * SLOT, SLOT, AllocOptions { zero: true, ..slow() }).expect("there is room");
    // SAFETY: the block is live and longer.
    let last = unsafe { block.add(8 * SLOT - 1) };
    // SAFETY: as above.
    assert_eq!(unsafe { last.read_volatile() }, 0);
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }.expect("ours");
    println!("can use it");
}

/// Where the program with its own handler is going to fault.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// What it ends with when its handler is called for that address.
const HEARD: i32 = 42;

/// A program that has a handler of its own for SIGBUS, from before the library's or installed over it.
fn with_own_handler(path: &Path, is_first: bool) {
    extern "C" fn own(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes it to a handler with SA_SIGINFO, and so must who hands on.
        let info = unsafe { &*info };
        // SAFETY: a fault has an address.
        let addr = unsafe { info.si_addr() }.addr();
        let code = if addr == LOST.load(Ordering::Relaxed) { HEARD } else { HEARD + 1 };
        // SAFETY: ends the process, which a handler may do.
        unsafe { libc::_exit(code) };
    }
    let install = || {
        // SAFETY: all zeroes are a valid structure: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = own as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler does nothing that a handler may not.
        assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) }, 0);
    };
    if is_first {
        install();
    }
    let pool = pool("fast=64M", path);
    let block = pool.malloc(SLOT, SLOT, slow()).expect("there is room");
    if !is_first {
        install();
        // The library takes its place again when it hands out more memory that may be lost.
        pool.malloc(SLOT, SLOT, slow()).expect("there is room");
    }
    LOST.store(block.as_ptr().addr(), Ordering::Relaxed);
    drive(path, "unbind");
    // SAFETY: the block is live; its device is not.
    let byte = unsafe { block.read_volatile() };
    println!("read {byte} from a device that is gone");
}

fn told_by(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Plays a role that takes the device away, and gives it back.
fn play_loss(under_test: &UnderTest, role: &str) -> String {
    let ended = under_test.play(role);
    drive(&under_test.path, "bind");
    let seen = told_by(&ended);
    assert!(ended.status.success(), "{role}: {seen}");
    seen
}

/// Catches a drain that leaves something on the device, loses stores, or keeps the claims (the lock's descriptor too: closing it
/// gives them back as well).
#[test]
fn a_drained_device_is_free_for_others() {
    let Some(under_test) = device() else { return };
    let pool = pool("fast=64M", &under_test.path);
    let name = under_test.path.display().to_string();
    let block = pool.malloc(4 * SLOT, SLOT, slow()).expect("there is room");
    let word = |slot: usize| {
        // SAFETY: the block is longer.
        let at = unsafe { block.add(slot * SLOT) };
        // SAFETY: the block is live, and used as atomic words only.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    };
    let counters: Vec<&AtomicU64> = (0..4).map(word).collect();
    let end = AtomicBool::new(false);
    let (report, rounds) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0u64;
            while !end.load(Ordering::Relaxed) {
                for counter in &counters {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                rounds += 1;
            }
            rounds
        });
        let report = pool.drain_device(&name, Duration::from_secs(60)).expect("the pool has it");
        end.store(true, Ordering::Relaxed);
        (report, writer.join().expect("no panic"))
    });
    if let Some(reason) = report.immovable {
        println!("skipped: {reason}");
        return;
    }
    assert!(report.is_complete() && report.moved_bytes == 4 * SLOT as u64, "{report:?}");
    assert!(counters.iter().all(|counter| counter.load(Ordering::Relaxed) == rounds), "a store was lost");
    assert_eq!(pool.where_is(block.as_ptr()).expect("ours").tier_name, "fast");
    let refusal = pool.alloc_folio(Order::HUGE, slow()).expect_err("nothing is placed on a drained device");
    assert!(refusal.to_string().contains("slow"), "{refusal}");
    pool.remove_device(&name).expect("nothing is left on it");
    let dax = under_test.open();
    dax.claim(0..dax.len_bytes()).expect("every claim was given back");
    dax.release(0..dax.len_bytes());
    // SAFETY: the block is live, and nobody uses it afterwards.
    unsafe { pool.free(block) }.expect("ours");
    pool.close().expect("nothing is left");
}

/// Catches bytes of a process that was killed, and extents that do not come back from it: a scrub left out fails it in its first
/// rounds. A lock that is not taken fails it only together with the look at what other processes map, which is there for those
/// without claims.
#[test]
fn two_processes_share_the_device_while_one_is_killed_over_and_over() {
    let Some(under_test) = device() else { return };
    let rounds: u64 =
        std::env::var("DAXTIER_TEST_SHARED_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    let device_pages = under_test.open().len_bytes() >> 12;
    let options = PgmapOptions { limit_pages: Some(device_pages / 2), ..PgmapOptions::default() };
    let pgmap = Pgmap::bind(Arc::new(under_test.open()), options).expect("the device binds");
    let mut held: Vec<Folio> = Vec::new();
    let mut random = 12345u64;
    for round in 0..rounds {
        let mut other = under_test.spawn("fill");
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        match round % 3 {
            0 => wait_for(&mut other, "filled"),
            1 => wait_for(&mut other, "holds an extent"),
            // Somewhere on the way: it may be claiming, scrubbing, or not have begun.
            _ => std::thread::sleep(Duration::from_millis(random >> 33 & 255)),
        }
        if held.len() > 8 {
            held.drain(..4);
        }
        if let Ok(mut folio) = pgmap.alloc_folio(Order::HUGE, Lifetime::Short) {
            let is_clean = |&word: &u64| word == 0 || word == OWN;
            assert!(words(&mut folio).iter().all(is_clean), "round {round}: a foreign byte");
            words(&mut folio).fill(OWN);
            held.push(folio);
        }
        other.kill().expect("the other is there");
        other.wait().expect("the other ends");
        let is_own = |folio: &mut Folio| words(folio).iter().all(|&word| word == OWN);
        assert!(held.iter_mut().all(is_own), "round {round}: a byte of ours has changed");
    }
    drop((held, pgmap));
    let pgmap = under_test.bind();
    let mut all = take_all(&pgmap, Order::HUGE);
    let capacity = pgmap.stats().capacity_bytes;
    assert_eq!(all.len() as u64 * SLOT as u64, capacity, "an extent was lost in {rounds} rounds");
    assert!(all.iter_mut().all(|folio| words(folio).iter().all(|&word| word == 0)), "foreign bytes");
    println!("{rounds} rounds");
}

/// Catches a setting without effect on the kernel's own driver, whose mappings can only be replaced in granules: without the
/// handler, or without what it maps there, the program ends by SIGBUS.
#[test]
fn lost_memory_reads_as_zeroes_where_that_is_wanted() {
    let Some(under_test) = device() else { return };
    let seen = play_loss(&under_test, "zero fill");
    assert!(seen.contains("goes on with zeroes") && seen.contains("as on_loss"), "{seen}");
}

/// Catches a device that is taken for lost because its driver answers with SIGBUS where huge pages are off: a handler that does not
/// switch them on again fails it.
#[test]
fn a_program_without_huge_pages_can_use_the_device() {
    let Some(under_test) = device() else { return };
    let ended = under_test.play("small pages");
    let seen = told_by(&ended);
    assert!(ended.status.success() && seen.contains("can use it"), "{seen}");
}

/// Catches a library that keeps the signal to itself: a program's own handler, whenever it was installed, is called with the
/// address, after the line that says what was lost.
#[test]
fn a_handler_of_the_program_is_called_for_what_is_lost() {
    let Some(under_test) = device() else { return };
    for role in ["own handler first", "own handler later"] {
        let ended = under_test.play(role);
        drive(&under_test.path, "bind");
        let seen = told_by(&ended);
        assert_eq!(ended.status.code(), Some(HEARD), "{role}: {seen}");
        let name = under_test.path.display().to_string();
        assert!(String::from_utf8_lossy(&ended.stderr).contains(&name), "{role}: {seen}");
    }
}

/// Catches a program that goes on to place memory on a device until it touches it: events that are not heard.
#[test]
fn a_device_that_goes_is_out_of_use_before_it_is_touched() {
    let Some(under_test) = device() else { return };
    let seen = play_loss(&under_test, "told");
    assert!(seen.contains("was told") && seen.contains("is not there any more"), "{seen}");
}

/// Catches code of the library that dies, waits for ever or panics when the hardware is pulled out under it: a scrub or a copy that
/// is not guarded ends by SIGBUS. The device does
/// not come back, so this runs alone and last.
#[test]
fn the_hardware_is_pulled_out_under_load() {
    if std::env::var_os("DAXTIER_TEST_PCI").is_none() {
        println!("skipped: DAXTIER_TEST_PCI does not say that the hardware may be removed");
        return;
    }
    let Some(under_test) = device() else { return };
    let memory = std::fs::canonicalize("/sys/bus/cxl/devices/mem0").expect("it is CXL memory");
    let pci: PathBuf = memory.parent().expect("a memory device hangs on a PCI device").join("remove");
    let mut user = under_test.spawn("pci");
    wait_for(&mut user, "under load");
    let mut cleaner = under_test.spawn("scrub");
    wait_for(&mut cleaner, "scrubs");
    std::thread::sleep(Duration::from_secs(2));
    std::fs::write(&pci, "1").unwrap_or_else(|error| panic!("{}: {error}", pci.display()));
    drop(user.stdin.take());
    for (child, word) in [(user, "lives: "), (cleaner, "sees that it is gone")] {
        let ended = child.wait_with_output().expect("it ends");
        let seen = told_by(&ended);
        assert!(ended.status.success() && seen.contains(word), "{seen} {:?}", ended.status.signal());
        println!("{seen}");
    }
    assert!(!under_test.path.exists(), "the device is there still");
}
