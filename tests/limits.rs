//! Where the kernel gives little: a program either works as it does without the library, or is stopped before `main` with
//! one message. It neither hangs nor crashes.

mod common;

use common::{Run, Scratch, clean, describe, preload, program};
use std::process::{Command, Output};

/// The exit code of a program that was stopped before `main`.
const STOPPED: i32 = 78;

const BOTH: &[(&str, &str)] = &[("DAXTIER_FAST", "16M"), ("DAXTIER_SLOW", "emulated:256M")];
const FAST_ONLY: &[(&str, &str)] = &[("DAXTIER_FAST", "64M")];

/// A program that needs some memory, threads and a descriptor or two, and what it prints.
struct Work {
    scratch: Scratch,
    expected: String,
}

impl Work {
    fn new() -> Work {
        let scratch = Scratch::new();
        let sorted: Vec<String> = (100_000..200_000).map(|number| format!("{number}\n")).collect();
        let shuffled: String = sorted.iter().rev().map(String::as_str).collect();
        scratch.write("lines", &shuffled);
        Work { scratch, expected: sorted.concat() }
    }

    /// Runs `prelude` in a shell, which then becomes the program under the preload library.
    fn run(&self, prelude: &str, variables: &[(&str, &str)]) -> Output {
        let preload = preload();
        let script = format!("{prelude} LD_PRELOAD={} exec sort --parallel=2 lines", preload.display());
        let mut command = clean(Command::new("timeout"));
        command.args(["60", "sh", "-c", &script]).envs(variables.iter().copied());
        command.env("LC_ALL", "C").current_dir(self.scratch.path("")).output().expect("timeout starts")
    }

    fn works(&self, prelude: &str, variables: &[(&str, &str)]) {
        let output = self.run(prelude, variables);
        let right = output.stdout == self.expected.as_bytes();
        assert!(
            output.status.success() && right,
            "{prelude} {variables:?}: {}",
            describe(&Output { stdout: vec![], ..output })
        );
    }

    /// Checks that the program is stopped, in one line that holds all of `words`.
    fn is_stopped(&self, prelude: &str, variables: &[(&str, &str)], words: &[&str]) {
        let output = self.run(prelude, variables);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(STOPPED), "{prelude} {variables:?}: {}", describe(&output));
        assert_eq!(said.trim_end().lines().count(), 1, "{prelude}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{prelude}: {words:?} are not all in {said}");
    }
}

#[test]
fn too_few_addresses_stop_the_program_or_are_gone_without() {
    let work = Work::new();
    for kib in ["307200", "1048576", "3145728"] {
        let prelude = format!("ulimit -v {kib};");
        work.is_stopped(&prelude, BOTH, &["daxtier", "ulimit -v"]);
        work.is_stopped(&prelude, FAST_ONLY, &["daxtier", "ulimit -v"]);
        let passthrough = [BOTH, &[("DAXTIER_ON_ERROR", "passthrough")]].concat();
        work.works(&prelude, &passthrough);
    }
    for kib in ["3400000", "4194304", "16777216"] {
        work.works(&format!("ulimit -v {kib};"), BOTH);
    }
    // A device takes as many addresses as it has bytes, so a large one is named.
    let large = &[("DAXTIER_FAST", "16M"), ("DAXTIER_SLOW", "emulated:8G")];
    work.is_stopped("ulimit -v 8388608;", large, &["emulated:8G", "8 GiB", "ulimit -v"]);
    work.works("ulimit -v 16777216;", large);
}

#[test]
fn a_limit_on_data_is_lived_with() {
    let work = Work::new();
    for kib in ["150000", "400000"] {
        work.works(&format!("ulimit -d {kib};"), BOTH);
    }
    // Not even the library's own data.
    for kib in ["3000", "6000", "10000"] {
        let output = work.run(&format!("ulimit -d {kib};"), BOTH);
        let said = String::from_utf8_lossy(&output.stderr);
        let works = output.status.success();
        assert!(
            works || said.contains("daxtier: ") || said.contains("exhausted"),
            "{kib}: {}",
            describe(&output)
        );
    }
}

/// Takes all memory there is, and lets go of most of it.
const FILL: &str = "
x = []
try:
    while True: x.append(b'1' * 900000)
except MemoryError: pass
del x[1:]
print('filled')
";

#[test]
fn what_the_kernel_refuses_is_exhausted_and_the_other_tier_is_used_before() {
    if program("python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    for kib in ["100000", "400000"] {
        let stats = scratch.path("stats.json");
        // The limit ends private memory long before the tier is full. It concerns no device, but what the library writes about
        // each 128 MiB of one.
        let script = format!("ulimit -d {kib}; exec python3 -c \"$0\"");
        let output = clean(Command::new(common::daxtier()))
            .args(["run", "--fast", "1G", "--slow", "emulated:256M"])
            .arg(format!("--stats={}", stats.display()))
            .args(["--", "sh", "-c", &script, FILL])
            .output()
            .expect("daxtier starts");
        assert!(output.status.success() && output.stdout == b"filled\n", "{kib}: {}", describe(&output));
        let stats = common::Stats(std::fs::read_to_string(stats).expect("statistics were written"));
        assert!(stats.peak_mib("fast") < 500 && stats.peak_mib("slow") >= 120, "{kib}: {}", stats.0);
    }
}

#[test]
fn few_descriptors_are_enough() {
    let work = Work::new();
    for number in ["8", "16", "64"] {
        work.works(&format!("ulimit -n {number};"), BOTH);
    }
}

#[test]
fn a_limit_on_files_stops_an_emulated_device_and_nothing_else() {
    let work = Work::new();
    work.is_stopped("ulimit -f 0;", BOTH, &["emulated:256M", "ulimit -f"]);
    // The page of figures is a file too: the program goes without.
    work.works("ulimit -f 0;", FAST_ONLY);
}

#[test]
fn other_limits_make_no_difference() {
    let work = Work::new();
    for prelude in ["ulimit -l 0;", "ulimit -s 256;", "ulimit -c 0;"] {
        work.works(prelude, BOTH);
    }
}

#[test]
fn system_calls_that_are_refused_are_gone_without() {
    let run = Run::new("16M", "emulated:256M");
    let Some(deny) = run.compile_c("limits", "deny") else { return };
    let work = Work::new();
    let denied = |numbers: &[i64], errno: i32, variables: &[(&str, &str)], stops: Option<&[&str]>| {
        let numbers: String = numbers.iter().map(|number| format!("{number} ")).collect();
        let output = {
            let mut command = clean(Command::new("timeout"));
            let set = |(name, value): &(&str, &str)| format!("{name}={value} ");
            let settings: String = variables.iter().map(set).collect();
            let script = format!(
                "exec {} {errno} {numbers} -- env LD_PRELOAD={} {settings} sort --parallel=2 lines",
                deny.display(),
                preload().display()
            );
            command.args(["60", "sh", "-c", &script]).env("LC_ALL", "C");
            command.current_dir(work.scratch.path("")).output().expect("timeout starts")
        };
        let said = String::from_utf8_lossy(&output.stderr);
        match stops {
            None => {
                let right = output.stdout == work.expected.as_bytes();
                assert!(right && output.status.success(), "without {numbers}: {}: {said}", output.status);
            }
            Some(words) => {
                assert_eq!(output.status.code(), Some(STOPPED), "without {numbers}: {said}");
                assert!(words.iter().all(|word| said.contains(word)), "{said}");
            }
        }
    };
    for errno in [libc::EPERM, libc::ENOSYS] {
        for number in [
            libc::SYS_userfaultfd,
            libc::SYS_membarrier,
            libc::SYS_rseq,
            libc::SYS_getrandom,
            libc::SYS_statx,
            libc::SYS_sysinfo,
            libc::SYS_fallocate,
            libc::SYS_prctl,
        ] {
            denied(&[number], errno, BOTH, None);
        }
        denied(&[libc::SYS_memfd_create], errno, FAST_ONLY, None);
        denied(&[libc::SYS_memfd_create], errno, BOTH, Some(&["emulated:256M", "memfd_create"]));
    }
}

#[test]
fn a_container_without_proc_and_sys_will_do() {
    let Some(unshare) = program("unshare") else { return };
    let may = Command::new(&unshare).args(["-m", "true"]).output().expect("unshare starts");
    if !may.status.success() {
        println!("skipped: this user may not make a mount namespace");
        return;
    }
    let work = Work::new();
    let bare = |settings: &str| {
        let script = format!(
            "umount -l /dev/shm; umount -l /proc && mount -t tmpfs none /sys && LD_PRELOAD={} {settings} exec sort lines",
            preload().display()
        );
        let mut command = clean(Command::new(&unshare));
        command.args(["-m", "sh", "-c", &script]).env("LC_ALL", "C");
        command.current_dir(work.scratch.path("")).output().expect("unshare starts")
    };
    let output = bare("DAXTIER_FAST=16M DAXTIER_SLOW=emulated:256M");
    assert!(output.stdout == work.expected.as_bytes(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = bare("");
    assert_eq!(output.status.code(), Some(STOPPED));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc/meminfo"), "{}", describe(&output));
}
