use super::*;
use std::fs;

const M: u64 = 1 << 20;
const G: u64 = 1 << 30;

/// A machine made of files.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str, files: &[(&str, &str)]) -> Machine {
        let root = std::env::temp_dir().join(format!("daxtier-memory-{name}-{}", std::process::id()));
        for (path, contents) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        Machine(root)
    }

    fn read(&self) -> AvailableMemory {
        AvailableMemory::read(&self.0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MEMINFO: (&str, &str) =
    ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   10485760 kB\n");
const MOUNT_V2: (&str, &str) = (
    "proc/self/mountinfo",
    "22 1 0:5 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
);

#[test]
fn without_groups_the_machine_counts() {
    let memory = Machine::new("plain", &[MEMINFO]).read();
    assert_eq!(
        (memory.total_bytes, memory.available_bytes, memory.group.clone()),
        (Some(16 * G), Some(10 * G), None)
    );
    assert_eq!(FastSize::Default.resolve(&memory), Ok(8 * G));
    assert_eq!(FastSize::Percent(1).resolve(&memory), Ok(102 * M), "10 GiB / 100, whole slots");
    assert_eq!(FastSize::Bytes(16 * G).resolve(&memory), Ok(16 * G));
    let error = FastSize::Bytes(17 * G).resolve(&memory).unwrap_err();
    assert_eq!(
        error.to_string(),
        "fast=17G is more than the memory of this machine, 16 GiB: ask for less, or for a share such as fast=80%"
    );
}

#[test]
fn the_tightest_group_up_to_the_root_counts() {
    let machine = Machine::new(
        "v2",
        &[
            MEMINFO,
            MOUNT_V2,
            ("proc/self/cgroup", "0::/user.slice/job.scope\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/user.slice/memory.high", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "3221225472\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", "anon 5\ninactive_file 1073741824\nactive_file 7\n"),
            ("sys/fs/cgroup/user.slice/job.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/job.scope/memory.high", "8589934592\n"),
            ("sys/fs/cgroup/user.slice/job.scope/memory.current", "1073741824\n"),
        ],
    );
    let memory = machine.read();
    let group = memory.group.clone().unwrap();
    assert!(group.group.ends_with("sys/fs/cgroup/user.slice"));
    assert_eq!((group.limit_bytes, group.headroom_bytes), (4 * G, 2 * G), "page cache can be dropped");
    assert_eq!(FastSize::Percent(50).resolve(&memory), Ok(G));
    let Err(ConfigError::FastAboveMachine { limit_bytes, .. }) = FastSize::Bytes(5 * G).resolve(&memory)
    else {
        panic!("more than the group's limit was granted");
    };
    assert_eq!(limit_bytes, 4 * G);
}

#[test]
fn version_1_and_its_word_for_unlimited_are_understood() {
    let mounts = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                  31 23 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                  32 23 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n";
    let machine = Machine::new(
        "v1",
        &[
            MEMINFO,
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", "9:cpu,cpuacct:/job\n4:memory:/job\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1610612736\n"),
            ("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 536870912\n"),
        ],
    );
    let group = machine.read().group.unwrap();
    assert_eq!((group.limit_bytes, group.headroom_bytes), (2 * G, G));
}

#[test]
fn a_group_outside_the_mounted_part_is_its_root() {
    let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    for path in ["/docker/abc", "/elsewhere", "/../.."] {
        let machine = Machine::new(
            &format!("part{}", path.len()),
            &[
                MEMINFO,
                ("proc/self/mountinfo", mounts),
                ("proc/self/cgroup", &format!("0::{path}\n")),
                ("sys/fs/cgroup/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/memory.current", "2147483648\n"),
            ],
        );
        let memory = machine.read();
        let group = memory.group.clone().unwrap();
        assert_eq!((group.limit_bytes, group.headroom_bytes), (G, 0), "{path}");
        assert!(matches!(FastSize::Default.resolve(&memory), Err(ConfigError::TooLittleMemory { .. })));
    }
}

#[test]
fn without_proc_only_a_size_can_be_had() {
    let memory = AvailableMemory::read(Path::new("/nonexistent"));
    assert_eq!(memory, AvailableMemory::default());
    assert_eq!(FastSize::Bytes(G).resolve(&memory), Ok(G));
    assert_eq!(FastSize::Default.resolve(&memory), Err(ConfigError::UnknownMemory));
}

#[test]
fn nonsense_in_the_files_counts_as_nothing() {
    let machine = Machine::new(
        "nonsense",
        &[
            ("proc/meminfo", "MemTotal\nMemTotal: x kB\nMemAvailable: 99999999999999999999999 kB\n"),
            (
                "proc/self/mountinfo",
                "\n - \nx - cgroup2\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/self/cgroup", "\n0\n0:\n0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "-5\n"),
            ("sys/fs/cgroup/memory.max", "lots\n"),
        ],
    );
    assert_eq!(machine.read(), AvailableMemory::default());
}

#[test]
fn this_machine_can_be_read() {
    let memory = AvailableMemory::read(Path::new("/"));
    assert!(memory.available_bytes <= memory.total_bytes && memory.available_bytes > Some(0));
    assert!(FastSize::Percent(100).resolve(&memory).unwrap() <= memory.usable_bytes().unwrap());
}

#[test]
fn where_the_kernel_refuses_what_it_could_not_keep_that_limit_counts() {
    let meminfo = "MemTotal: 16777216 kB\nMemAvailable: 10485760 kB\nCommitLimit: 8388608 kB\nCommitted_AS: 6291456 kB\n";
    let machine = |mode: &str| {
        Machine::new(
            &format!("commit{mode}"),
            &[("proc/meminfo", meminfo), ("proc/sys/vm/overcommit_memory", &format!("{mode}\n"))],
        )
        .read()
    };
    for mode in ["0", "1"] {
        assert_eq!((machine(mode).commit, machine(mode).usable_bytes()), (None, Some(10 * G)));
    }
    let strict = machine("2");
    assert_eq!(strict.commit, Some(CommitLimit { limit_bytes: 8 * G, left_bytes: 2 * G }));
    assert_eq!(FastSize::Percent(50).resolve(&strict), Ok(G));
    assert_eq!(FastSize::Bytes(8 * G).resolve(&strict), Ok(8 * G), "others may give theirs back");
    let error = FastSize::Bytes(9 * G).resolve(&strict).unwrap_err().to_string();
    assert!(error.contains("the commit limit of this machine") && error.contains("8 GiB"), "{error}");
}
