//! Programs in a control group of little memory: what they are given fits in it, and what does not fit is refused with one
//! message. Nobody is killed for memory that the library offered.

mod common;

use common::{Scratch, Stats, clean, daxtier, describe, program};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;

/// A control group of this test, removed at its end.
struct Group {
    folder: PathBuf,
    limit_file: &'static str,
}

impl Group {
    /// Makes a group; says that the test skips where that is not allowed.
    fn new(name: &str) -> Option<Group> {
        let (root, limit_file) = if Path::new("/sys/fs/cgroup/memory/tasks").exists() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let folder = Path::new(root).join(format!("daxtier-test-{name}-{}", std::process::id()));
        if let Err(refusal) = std::fs::create_dir(&folder) {
            println!("skipped: no control group can be made in {root}: {refusal}");
            return None;
        }
        let group = Group { folder, limit_file };
        if !group.folder.join(limit_file).exists() {
            println!("skipped: groups in {root} have no memory limit (cgroup.subtree_control lacks memory)");
            return None;
        }
        Some(group)
    }

    /// Runs the program `daxtier` in the group, with `limit_bytes` of memory.
    fn run(&self, limit_bytes: u64, args: &[&str]) -> Output {
        std::fs::write(self.folder.join(self.limit_file), limit_bytes.to_string())
            .expect("the group is ours");
        // The shell enters the group and becomes the program.
        let script = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        let mut command = clean(Command::new("timeout"));
        command.args(["60", "sh", "-c", script]).arg(&self.folder).arg(daxtier()).args(args);
        command.output().expect("timeout starts")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A program of the group that has just ended can keep it for a moment.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Takes all memory there is, small blocks and large ones, and lets go of most of it.
const FILL: &str = "
x = []
try:
    while True: x.append(b'1' * 900000)
except MemoryError: pass
try:
    while True: x.append(b'1' * 900)
except MemoryError: pass
del x[1:]
print('filled')
";

#[test]
fn the_default_configuration_fits_in_a_small_group() {
    let Some(group) = Group::new("small") else { return };
    if program("python3").is_none() {
        return;
    }
    for limit_bytes in [40 * MIB, 60 * MIB, 128 * MIB, 512 * MIB] {
        let scratch = Scratch::new();
        let stats = scratch.path("stats.json");
        let output = group
            .run(limit_bytes, &["run", &format!("--stats={}", stats.display()), "--", "python3", "-c", FILL]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said == "filled\n", "{limit_bytes}: {}", describe(&output));
        let stats = Stats(std::fs::read_to_string(&stats).expect("statistics were written"));
        let [fast, slow] = ["fast", "slow"].map(|tier| stats.count(tier, "capacity_bytes"));
        assert!(fast <= limit_bytes * 8 / 10, "{limit_bytes}: {}", stats.0);
        // Code, stacks and the kernel's tables need room too.
        let beside = limit_bytes - fast - slow;
        assert!(beside >= 4 * MIB && beside >= limit_bytes / 25, "{limit_bytes}: {}", stats.0);
    }
}

#[test]
fn a_group_that_is_too_small_is_refused_with_one_message() {
    let Some(group) = Group::new("tiny") else { return };
    let output = group.run(10 * MIB, &["run", "--", "echo", "reached"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{}", describe(&output));
    assert!(output.stdout.is_empty() && said.trim_end().lines().count() == 1, "{}", describe(&output));
    assert!(said.contains("daxtier: ") && said.contains("--fast"), "{said}");
}

#[test]
fn more_than_the_groups_limit_is_refused() {
    let Some(group) = Group::new("above") else { return };
    let output =
        group.run(100 * MIB, &["run", "--fast", "102M", "--slow", "emulated:1G", "--", "echo", "reached"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{}", describe(&output));
    assert!(said.contains("control group") && said.contains("100 MiB"), "{said}");
}
