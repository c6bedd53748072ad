//! A body on several threads at once, each on a processor of its own, timed.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// When a measurement ends: whichever comes first, for each thread.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Operations.
    pub operations: u64,
    /// Time, without what is prepared.
    pub time: Duration,
}

/// What a measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Of the thread that took longest.
    pub elapsed: Duration,
    /// Of all threads.
    pub operations: u64,
}

impl Timing {
    /// Returns the time for one operation, the threads' together.
    pub fn nanoseconds(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e9 / self.operations as f64
    }
}

/// What one thread is given.
pub struct Turn<'a> {
    /// The thread's number, from 0.
    pub thread: usize,
    /// How many threads there are.
    pub threads: usize,
    budget: Budget,
    start: &'a Barrier,
    meeting: &'a Meeting,
}

static IS_CPU_TIME: AtomicBool = AtomicBool::new(false);

/// From now on counts the time that each thread runs, and not what passes while other programs have its processor. For busy
/// machines: where threads wait for each other, or are stopped while they hold a lock, it says less than the truth.
pub fn count_cpu_time() {
    // Relaxed: told before any thread is started.
    IS_CPU_TIME.store(true, Ordering::Relaxed);
}

/// A moment on the clock of choice.
struct Instant(Duration);

impl Instant {
    fn now() -> Instant {
        // Relaxed: as above.
        let clock = if IS_CPU_TIME.load(Ordering::Relaxed) {
            libc::CLOCK_THREAD_CPUTIME_ID
        } else {
            libc::CLOCK_MONOTONIC
        };
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one timespec; both clocks exist.
        unsafe { libc::clock_gettime(clock, &raw mut now) };
        Instant(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Instant::now().0 - self.0
    }
}

/// The time between two looks at the clock, so that looking costs nothing.
const CHUNK: Duration = Duration::from_micros(50);

impl Turn<'_> {
    /// Waits until every thread is ready, then takes the time of `step` over and over, until the budget is spent or `step`
    /// has nothing left to do and returns false. Each step counts as `operations`.
    pub fn time(&self, operations: u64, mut step: impl FnMut() -> bool) -> Timing {
        self.start.wait();
        let start = Instant::now();
        let (mut chunk, mut done, mut elapsed) = (1u64, 0, Duration::ZERO);
        while done < self.budget.operations && elapsed < self.budget.time {
            let until = self.budget.operations.min(done + chunk * operations);
            let before = elapsed;
            let mut is_more = true;
            while done < until && is_more {
                is_more = step();
                done += if is_more { operations } else { 0 };
            }
            elapsed = start.elapsed();
            if !is_more {
                break;
            }
            if elapsed - before < CHUNK {
                chunk *= 2;
            }
        }
        Timing { elapsed, operations: done }
    }

    /// As [`time`](Turn::time), for two halves of a step: every thread ends `first` before any begins `second`, and all do as
    /// many steps.
    pub fn time_in_step(&self, operations: u64, mut first: impl FnMut(), mut second: impl FnMut()) -> Timing {
        self.start.wait();
        let start = Instant::now();
        let mut done = 0;
        loop {
            first();
            self.meeting.wait(self.threads);
            second();
            done += operations;
            if self.thread == 0 && (done >= self.budget.operations || start.elapsed() >= self.budget.time) {
                // Relaxed: the others meet us before they look. Nobody looks late: we come here again only after
                // the meeting of a next step.
                self.meeting.is_over.store(true, Ordering::Relaxed);
            }
            self.meeting.wait(self.threads);
            if self.meeting.is_over.load(Ordering::Relaxed) {
                return Timing { elapsed: start.elapsed(), operations: done };
            }
        }
    }
}

/// A barrier that spins. With more threads than processors it yields.
#[derive(Default)]
struct Meeting {
    arrived: AtomicUsize,
    is_over: AtomicBool,
}

impl Meeting {
    fn wait(&self, threads: usize) {
        // AcqRel: whoever leaves sees what the others did before they came.
        let round = self.arrived.fetch_add(1, Ordering::AcqRel) / threads;
        let mut nr_looks = 0u32;
        while self.arrived.load(Ordering::Acquire) / threads == round {
            nr_looks += 1;
            if nr_looks.is_multiple_of(1024) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Runs `body` on `threads` threads and adds up what they did.
///
/// # Panics
/// When a thread does.
pub fn run(threads: usize, budget: Budget, body: impl Fn(&Turn) -> Timing + Sync) -> Timing {
    let (start, meeting) = (Barrier::new(threads), Meeting::default());
    let parts: Vec<Timing> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| {
                let (body, start, meeting) = (&body, &start, &meeting);
                scope.spawn(move || {
                    pin(thread);
                    body(&Turn { thread, threads, budget, start, meeting })
                })
            })
            .collect();
        parts.into_iter().map(|part| part.join().expect("no measurement fails")).collect()
    });
    Timing {
        elapsed: parts.iter().map(|part| part.elapsed).max().unwrap_or_default(),
        operations: parts.iter().map(|part| part.operations).sum(),
    }
}

/// Keeps the calling thread on one of the processors that the process may use. Where that is refused it moves freely.
fn pin(thread: usize) {
    // SAFETY: a set of processors is plain bits.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size that it is told.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) } != 0 {
        return;
    }
    // SAFETY: every number is below the size of the set.
    let is_allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
    // SAFETY: as above.
    let mut wanted: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the size of the set; there is at least the processor that runs this.
    unsafe { libc::CPU_SET(cpus[thread % cpus.len()], &mut wanted) };
    // SAFETY: the set lives as long as the call.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const wanted) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_of_operations_is_kept_to() {
        let budget = Budget { operations: 1000, time: Duration::MAX };
        let timing = run(2, budget, |turn| turn.time(1, || true));
        assert_eq!(timing.operations, 2000);
    }

    #[test]
    fn a_step_with_nothing_to_do_is_not_counted() {
        let budget = Budget { operations: 1000, time: Duration::MAX };
        let timing = run(1, budget, |turn| {
            let mut left = 5;
            turn.time(1, || {
                left -= 1;
                left >= 0
            })
        });
        assert_eq!(timing.operations, 5);
    }

    #[test]
    fn a_budget_of_time_ends_a_measurement() {
        let budget = Budget { operations: u64::MAX, time: Duration::from_millis(1) };
        assert!(run(1, budget, |turn| turn.time(1, || true)).operations > 0);
    }

    #[test]
    fn no_thread_begins_the_second_half_before_all_ended_the_first() {
        let budget = Budget { operations: 1000, time: Duration::MAX };
        let steps = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let timing = run(2, budget, |turn| {
            let mut done = 0;
            turn.time_in_step(
                1,
                || _ = steps[turn.thread].fetch_add(1, Ordering::Relaxed),
                || {
                    done += 1;
                    assert_eq!(steps[1 - turn.thread].load(Ordering::Relaxed), done);
                },
            )
        });
        assert_eq!(timing.operations, 2000);
    }
}
