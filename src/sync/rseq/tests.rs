//! Sections under threads that move, are pre-empted and are interrupted; nothing may be lost or counted twice.

use super::*;
use crate::sys::testing::{ChildEnd, in_child};
use std::sync::atomic::AtomicBool;

#[repr(align(64))]
struct Element(AtomicU64);

#[test]
fn no_step_is_lost_while_threads_move_between_processors() {
    if !is_available() {
        println!("skipped: no restartable sequences here");
        return;
    }
    let words: Vec<Element> = (0..1024).map(|_| Element(AtomicU64::new(0))).collect();
    let closed = AtomicU32::new(0);
    let step = |word: &[Element]| {
        let cpu = current_cpu();
        let old = word[cpu].0.load(Ordering::Relaxed);
        // SAFETY: the elements are 64 bytes long and live to the end of the test.
        unsafe {
            exchange_unless_closed::<6>(NonNull::from(&word[0].0), word.len() as u32, &closed, old, old + 1)
        }
    };
    let done: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..300_000).filter(|_| step(&words)).count() as u64)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    let sum: u64 = words.iter().map(|word| word.0.load(Ordering::Relaxed)).sum();
    assert_eq!(sum, done);
    assert!(done > 600_000, "most steps succeed: {done}");

    closed.store(1, Ordering::Release);
    fence().expect("the kernel restarts sections");
    assert!(!step(&words));
}

/// One count a processor, and what closes them.
struct Counts {
    elements: Vec<Element>,
    closed: AtomicU32,
}

impl Counts {
    fn new() -> Counts {
        let elements = (0..cpu::nr_shards()).map(|_| Element(AtomicU64::new(0))).collect();
        Counts { elements, closed: AtomicU32::new(0) }
    }

    fn add(&self, delta: u64) -> bool {
        let (first, len) = (NonNull::from(&self.elements[0].0), self.elements.len() as u32);
        // SAFETY: the elements are 64 bytes long and live as long as `self`.
        unsafe { add_unless_closed::<6>(first, len, &self.closed, delta) }
    }

    fn sum(&self) -> u64 {
        self.elements.iter().map(|element| element.0.load(Ordering::Relaxed)).sum()
    }
}

/// Says whether a test about sections says anything here.
fn has_sections() -> bool {
    if !is_available() {
        println!("skipped: no restartable sequences here");
    }
    is_available()
}

#[test]
fn additions_of_threads_that_move_are_exact() {
    if !has_sections() {
        return;
    }
    let counts = Counts::new();
    let add = || (0..300_000).filter(|_| counts.add(1)).count() as u64;
    let added: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(add)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(counts.sum(), added);
    assert!(added > 1_500_000, "sections are for the common case: {added}");
}

#[test]
fn an_array_without_elements_fails_every_section() {
    let closed = AtomicU32::new(0);
    // SAFETY: there is no element, so nothing is touched.
    assert!(!unsafe { add_unless_closed::<6>(NonNull::dangling(), 0, &closed, 1) });
}

#[test]
fn closed_counts_are_still_after_the_fence() {
    if !has_sections() {
        return;
    }
    let (counts, stop, outstanding) = (Counts::new(), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut mine = 0;
                while !stop.load(Ordering::Relaxed) {
                    mine += u64::from(counts.add(1));
                }
                outstanding.fetch_add(mine, Ordering::Relaxed);
            });
        }
        for _ in 0..1_000 {
            counts.closed.store(1, Ordering::Relaxed);
            fence().expect("the kernel restarts sections");
            // What is taken out here would come back, or be lost, if a section were still under way.
            for element in &counts.elements {
                outstanding.fetch_sub(element.0.load(Ordering::Relaxed), Ordering::Relaxed);
                element.0.store(0, Ordering::Relaxed);
                std::hint::spin_loop();
                assert_eq!(element.0.load(Ordering::Relaxed), 0);
            }
            counts.closed.store(0, Ordering::Release);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(outstanding.load(Ordering::Relaxed), counts.sum());
}

#[test]
fn signals_in_the_middle_lose_nothing() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    if !has_sections() {
        return;
    }
    let signal = libc::SIGRTMIN() + 7;
    // SAFETY: the handler does nothing, and nobody else uses this signal.
    unsafe { libc::signal(signal, nothing as *const () as libc::sighandler_t) };
    let (counts, stop, target) = (Counts::new(), AtomicBool::new(false), AtomicU64::new(0));
    let added = std::thread::scope(|scope| {
        let adder = scope.spawn(|| {
            // SAFETY: takes no argument.
            target.store(unsafe { libc::pthread_self() }, Ordering::Release);
            let mut added = 0;
            while !stop.load(Ordering::Relaxed) {
                added += u64::from(counts.add(1));
            }
            added
        });
        while target.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        for _ in 0..5_000 {
            // SAFETY: the thread runs until `stop` is set below.
            unsafe { libc::pthread_kill(target.load(Ordering::Relaxed), signal) };
        }
        stop.store(true, Ordering::Relaxed);
        adder.join().expect("the adder does not panic")
    });
    assert_eq!(counts.sum(), added);
}

#[test]
fn a_forked_child_has_sections_and_fences_of_its_own() {
    if !has_sections() {
        return;
    }
    let counts = Counts::new();
    let end = in_child(|| {
        let added = (0..1000).filter(|_| counts.add(1)).count() as u64;
        i32::from(!(added > 900 && counts.sum() == added && fence().is_ok()))
    });
    assert_eq!(end, ChildEnd::Exited(0));
    assert_eq!(counts.sum(), 0);
}

#[test]
fn a_process_without_areas_falls_back() {
    const ROLE: &str = "DAXTIER_TEST_WITHOUT_RSEQ";
    if std::env::var_os(ROLE).is_some() {
        assert!(!is_available() && fence().is_ok());
        assert!(!Counts::new().add(1));
        assert!(current_cpu() < cpu::nr_shards());
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("a test knows its file"))
        .args(["--exact", "sync::rseq::tests::a_process_without_areas_falls_back", "--nocapture"])
        .env(ROLE, "1")
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .output()
        .expect("the test starts itself");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
