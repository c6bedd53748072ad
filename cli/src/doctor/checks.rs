//! The checks, each from a file or two under a root path.

use super::probe::Probe;
use super::{Check, Status};
use daxtier::device::{self, DaxState, list_releases};
use daxtier::units::Bytes;
use std::path::Path;

/// Runs all checks on the machine under `root`.
pub(super) fn all(root: &Path, released_path: &Path, probe: &Probe) -> Vec<Check> {
    let machine = Machine { root };
    let mut checks = dax(root, released_path);
    checks.push(userfaultfd(&machine));
    checks.push(perf(&machine));
    checks.extend(huge_pages(&machine));
    checks.push(max_map_count(&machine));
    checks.extend(limits(&machine));
    checks.push(overcommit(&machine));
    checks.extend(probed(probe));
    checks
}

/// The files of a machine.
struct Machine<'a> {
    root: &'a Path,
}

impl Machine<'_> {
    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// Reads a line of `/proc/self/status`.
    fn status(&self, key: &str) -> Option<String> {
        let text = self.text("proc/self/status")?;
        text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
    }

    fn has_capability(&self, number: u32) -> bool {
        let set = self.status("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok());
        set.is_some_and(|set| set & 1 << number != 0)
    }

    /// Reads the soft limit of a line of `/proc/self/limits`; `u64::MAX` stands for none.
    fn limit(&self, name: &str) -> Option<u64> {
        let text = self.text("proc/self/limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        match line.split_whitespace().next()? {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        }
    }

    /// Reads the word in brackets of an attribute such as `always [madvise] never`.
    fn choice(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
    }

    /// Reads the kernel's version as two numbers.
    fn kernel(&self) -> Option<(u32, u32)> {
        let text = self.text("proc/sys/kernel/osrelease")?;
        let mut numbers = text.split(['.', '-']);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;

fn dax(root: &Path, released_path: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    let releases = match list_releases(released_path) {
        Ok(releases) => releases,
        Err(error) => {
            let mend =
                format!("sudo mv {0} {0}.damaged, then daxtier allow DEV again", released_path.display());
            checks.push(Check::fail("released", error.to_string(), mend));
            Vec::new()
        }
    };
    let devices = device::discover(root);
    if devices.is_empty() {
        checks.push(Check::warn(
            "dax",
            "no dax device; an emulated one serves, and node:N where the kernel has the memory as a node",
            "if there is CXL memory: sudo modprobe -a cxl_acpi cxl_pci cxl_mem dax_cxl device_dax; \
             then cxl list -M -R, and cxl create-region where it has no region",
        ));
    }
    for info in &devices {
        let is_released = releases.iter().any(|entry| info.is_released_by(entry));
        let seen = |state: &DaxState| format!("{} ({}): {state}", info.path.display(), Bytes(info.len_bytes));
        checks.push(match info.mend() {
            None if is_released => Check::ok("dax", seen(&info.state) + "; released"),
            None => Check::ok(
                "dax",
                seen(&info.state) + "; used where it is named; daxtier allow releases it for all runs",
            ),
            // The administrator meant it to be used, and it cannot be.
            Some(mend) if is_released => Check::fail("dax", seen(&info.state) + "; released", mend),
            Some(mend) => Check::warn("dax", seen(&info.state), mend),
        });
    }
    let is_missing = |entry: &&device::Release| !devices.iter().any(|info| info.is_released_by(entry));
    for entry in releases.iter().filter(is_missing) {
        checks.push(Check::warn(
            "released",
            format!("{entry} is released, but not recognised here"),
            "daxtier allow --list, and as root, who sees addresses; daxtier allow --remove N if it is gone",
        ));
    }
    checks
}

fn userfaultfd(machine: &Machine<'_>) -> Check {
    const NAME: &str = "userfaultfd";
    let Some(sysctl) = machine.number("proc/sys/vm/unprivileged_userfaultfd") else {
        return Check::warn(
            NAME,
            "this kernel has none: memory is placed, and moves to NUMA nodes only",
            "use a kernel with CONFIG_USERFAULTFD=y",
        );
    };
    let way = if machine.has_capability(CAP_SYS_PTRACE) {
        "this process has CAP_SYS_PTRACE"
    } else if sysctl == 1 {
        "vm.unprivileged_userfaultfd is 1"
    } else if may_write(&machine.root.join("dev/userfaultfd")) {
        "/dev/userfaultfd may be opened"
    } else {
        return Check::warn(
            NAME,
            "not permitted: memory is placed, and moves to NUMA nodes only",
            "sudo sysctl -w vm.unprivileged_userfaultfd=1",
        );
    };
    match machine.kernel() {
        Some(version) if version < (6, 8) => Check::warn(
            NAME,
            format!(
                "{way}; kernel {}.{} has no UFFDIO_MOVE, so pages pinned for I/O are not told apart",
                version.0, version.1
            ),
            "use kernel 6.8 or newer",
        ),
        _ => Check::ok(NAME, way),
    }
}

fn may_write(path: &Path) -> bool {
    // Opening /dev/userfaultfd has no effect but the descriptor.
    std::fs::OpenOptions::new().read(true).write(true).open(path).is_ok()
}

fn perf(machine: &Machine<'_>) -> Check {
    const NAME: &str = "perf";
    match machine.number("proc/sys/kernel/perf_event_paranoid") {
        None => Check::warn(
            NAME,
            "this kernel has no perf events: access is found by scanning alone",
            "use a kernel with CONFIG_PERF_EVENTS=y",
        ),
        Some(level) if level <= 2 => Check::ok(NAME, format!("perf_event_paranoid is {level}")),
        Some(level) if machine.has_capability(CAP_PERFMON) || machine.has_capability(CAP_SYS_ADMIN) => {
            Check::ok(NAME, format!("perf_event_paranoid is {level}, and this process has CAP_PERFMON"))
        }
        Some(level) => Check::warn(
            NAME,
            format!("perf_event_paranoid is {level}: access is found by scanning alone"),
            "sudo sysctl -w kernel.perf_event_paranoid=2",
        ),
    }
}

fn huge_pages(machine: &Machine<'_>) -> Vec<Check> {
    const DIR: &str = "sys/kernel/mm/transparent_hugepage";
    let of = |name: &'static str, attribute: &str, good: &[&str], lacking: &str, wanted: &str| {
        let path = format!("{DIR}/{attribute}");
        match machine.choice(&path) {
            None => Check::warn(
                name,
                format!("/{path} cannot be read: {lacking} has small pages"),
                "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y",
            ),
            Some(choice) if good.contains(&choice.as_str()) => {
                Check::ok(name, format!("{attribute} is {choice}"))
            }
            Some(choice) => Check::warn(
                name,
                format!("{attribute} is {choice}: {lacking} has small pages"),
                format!("echo {wanted} | sudo tee /{path}"),
            ),
        }
    };
    let mut checks = vec![
        of("thp", "enabled", &["always", "madvise"], "DRAM", "madvise"),
        of(
            "thp shared",
            "shmem_enabled",
            &["always", "within_size", "advise", "force"],
            "an emulated device",
            "advise",
        ),
    ];
    if machine.status("THP_enabled").as_deref() == Some("0") {
        checks.push(Check::fail(
            "thp process",
            "huge pages are off for this process and its children (PR_SET_THP_DISABLE): \
             each first touch of a dax device ends in SIGBUS",
            "start from another shell or service; in a unit file, look for what calls prctl(PR_SET_THP_DISABLE)",
        ));
    }
    checks
}

/// The kernel's default, at which placement works and promotion goes in runs.
const DEFAULT_MAP_COUNT: i64 = 65530;

fn max_map_count(machine: &Machine<'_>) -> Check {
    const NAME: &str = "max_map_count";
    const MEND: &str = "sudo sysctl -w vm.max_map_count=1048576";
    match machine.number("proc/sys/vm/max_map_count") {
        None => Check::warn(NAME, "/proc/sys/vm/max_map_count cannot be read", "mount proc at /proc"),
        Some(count) if count < DEFAULT_MAP_COUNT => Check::warn(
            NAME,
            format!("{count} mappings: few, less than the kernel's default {DEFAULT_MAP_COUNT}"),
            MEND,
        ),
        Some(count) => Check::ok(NAME, format!("{count} mappings")),
    }
}

fn limits(machine: &Machine<'_>) -> Vec<Check> {
    const MEMLOCK_BYTES: u64 = 8 << 20;
    const OPEN_FILES: u64 = 1024;
    // The library takes 3 GiB at least, and the program wants some too.
    const ENOUGH_ADDRESSES: u64 = 4 << 30;
    let mut checks = Vec::new();
    checks.push(match machine.limit("Max locked memory") {
        None => Check::warn("memlock", "/proc/self/limits cannot be read", "mount proc at /proc"),
        Some(u64::MAX) => Check::ok("memlock", "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_BYTES || machine.has_capability(14) => {
            Check::ok("memlock", format!("{} of locked memory", Bytes(bytes)))
        }
        Some(bytes) => Check::warn(
            "memlock",
            format!(
                "{} of locked memory: too little for perf buffers, and for programs that pin theirs",
                Bytes(bytes)
            ),
            "ulimit -l 8192 (as root, or with a line in /etc/security/limits.conf)",
        ),
    });
    if let Some(bytes) = machine.limit("Max address space").filter(|&bytes| bytes != u64::MAX) {
        let seen = format!("limited to {}; daxtier reserves far more than it uses", Bytes(bytes));
        checks.push(if bytes < ENOUGH_ADDRESSES {
            Check::fail("address space", seen, "ulimit -v unlimited")
        } else {
            Check::warn("address space", seen, "ulimit -v unlimited")
        });
    }
    if let Some(count) = machine.limit("Max open files").filter(|&count| count < OPEN_FILES) {
        checks.push(Check::warn(
            "open files",
            format!(
                "limited to {count}; descriptors of daxtier's own take numbers that the program may want"
            ),
            "ulimit -n 1024",
        ));
    }
    checks
}

fn overcommit(machine: &Machine<'_>) -> Check {
    const NAME: &str = "overcommit";
    match machine.number("proc/sys/vm/overcommit_memory") {
        None => Check::warn(NAME, "/proc/sys/vm/overcommit_memory cannot be read", "mount proc at /proc"),
        Some(2) => Check::warn(
            NAME,
            "2: the kernel refuses memory beyond its commit limit, so DRAM may end before its budget",
            "sudo sysctl -w vm.overcommit_memory=0",
        ),
        Some(mode) => Check::ok(NAME, mode.to_string()),
    }
}

fn probed(probe: &Probe) -> Vec<Check> {
    const PRIVATE_EXPEDITED: u32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32;
    let mut checks = Vec::new();
    checks.extend(probe.membarrier.map(|answer| match answer {
        Ok(commands) if commands & PRIVATE_EXPEDITED != 0 => Check::ok("membarrier", "private expedited"),
        Ok(commands) => Check::warn(
            "membarrier",
            format!("commands {commands:#x}, none private expedited: slower reference counts"),
            "use kernel 4.14 or newer",
        ),
        Err(errno) => Check::warn(
            "membarrier",
            format!("{}: slower reference counts", std::io::Error::from_raw_os_error(errno)),
            "allow the system call membarrier in the container's seccomp profile",
        ),
    }));
    checks.extend(probe.rseq_bytes.map(|bytes| match bytes {
        0 => Check::warn(
            "rseq",
            "the C library registers none: slower allocation with many threads",
            "use glibc 2.35 or newer, without GLIBC_TUNABLES=glibc.pthread.rseq=0",
        ),
        bytes => Check::ok("rseq", format!("registered by the C library, {bytes} bytes")),
    }));
    checks.extend(probe.binding.as_ref().map(|answer| match answer {
        Ok(()) => Check::ok("node binding", "memory can be bound to nodes"),
        Err(reason) => Check {
            name: "node binding",
            status: Status::Warn,
            seen: format!("{reason}; node:N cannot be used"),
            mend: Some("in a container, start it with --cap-add SYS_NICE".to_owned()),
        },
    }));
    checks
}

#[cfg(test)]
mod tests;
