//! A step that hangs fails, and says where it hung.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Longer than any step takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Runs `body`. When it takes longer than any step should, prints what its processes were waiting in, kills them, and lets
/// `body` fail of that.
pub(super) fn limited<T>(body: impl FnOnce() -> T) -> T {
    limited_to(LIMIT, body)
}

fn limited_to<T>(limit: Duration, body: impl FnOnce() -> T) -> T {
    let (done, watched) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("not finished after {} s; what runs still:", limit.as_secs());
                end_descendants(std::process::id());
            }
        });
        let result = body();
        drop(done);
        result
    })
}

/// Describes and kills the processes that came from `parent`, children first, so that nothing takes their place.
fn end_descendants(parent: u32) {
    for child in children(parent) {
        end_descendants(child);
        eprintln!("{}", describe(child));
        // A process that ended meanwhile is none that we could miss.
        _ = crate::process::Task::new(&format!("kill -KILL {child}")).output();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// One line for the process and one for each of its threads: its name, and what it waits for in the kernel.
fn describe(pid: u32) -> String {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    let mut text = format!("process {pid}: {line}");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        text += &format!("\n  thread {}: waits in {}", read("comm").trim(), read("wchan"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Task;

    #[test]
    fn what_hangs_is_ended_and_what_does_not_is_left_alone() {
        assert_eq!(limited_to(Duration::from_secs(60), || Task::new("true").run()), Ok(()));
        // The tests beside this one start programs too, and these must live.
        let pid = std::process::Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn().unwrap().id();
        while children(pid).is_empty() {
            std::thread::yield_now();
        }
        assert!(describe(pid).contains("sh -c sleep"), "{}", describe(pid));
        let sleeper = children(pid)[0];
        end_descendants(pid);
        while fs::read_to_string(format!("/proc/{sleeper}/cmdline")).is_ok_and(|line| line.contains("sleep"))
        {
            std::thread::yield_now();
        }
    }
}
