//! The device tests, run in the guest: `cargo xtask test --vm`, on every route and on two kernels.
//!
//! Each route runs `tests/real_device` on each of its devices (`tests/numa_tiers.rs` where they are a node), and then real
//! programs over them. What it runs was built
//! on the host and is seen through the guest's view of the host's file system.

use super::guest::Guest;
use super::machine::Route;
use super::packages::{Cache, Kernel};
use crate::process::{Task, cargo, target_dir};
use crate::setup;
use std::time::Duration;

/// The kernels that the tests run on: the release's own, and a newer one.
const KERNELS: [Option<&str>; 2] = [None, Some("7")];

/// One guest to run: a way that a device reaches the machine, on a kernel.
pub(crate) struct Part {
    route: Route,
    newer_kernel: Option<&'static str>,
    booted: Kernel,
    script: String,
}

/// Builds the test programs and fetches what the guests need. Prints why, and returns no part, where there can be no guest.
///
/// # Errors
/// Tests that can't be built.
pub(crate) fn prepare() -> Result<Vec<Part>, String> {
    let cache = match Cache::open() {
        Ok(cache) => cache,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(Vec::new());
        }
    };
    let tests = build()?;
    let mut parts = Vec::new();
    for newer_kernel in KERNELS {
        let booted = match cache.prepare(newer_kernel) {
            Ok(booted) => booted,
            Err(refusal) => {
                println!("skipped: the guest's packages cannot be had: {refusal}");
                return Ok(Vec::new());
            }
        };
        // The newer kernel differs in its CXL and dax drivers; the machine's other ways in are the same.
        let routes = if newer_kernel.is_none() { &Route::ALL[..] } else { &[Route::Cxl] };
        for &route in routes {
            // The long run of kills once.
            let rounds = if (route, newer_kernel) == (Route::Cxl, None) { 100 } else { 10 };
            let script = script(route, &tests, rounds);
            parts.push(Part { route, newer_kernel, booted: booted.clone(), script });
        }
    }
    Ok(parts)
}

impl Part {
    /// What distinguishes it from the others.
    pub(crate) fn name(&self) -> String {
        format!(
            "device tests in a guest, route {}, kernel {}",
            self.route.name(),
            self.newer_kernel.unwrap_or("of the release")
        )
    }

    /// Runs it and hands each line that the tests print to `see`.
    ///
    /// # Errors
    /// The first of its commands that fails.
    pub(crate) fn run(&self, see: &mut dyn FnMut(&str)) -> Result<(), String> {
        guest(self.route).run_script(&self.booted, &self.script, see)
    }
}

/// The test programs.
struct Tests {
    real_device: String,
    numa_tiers: String,
}

/// A guest that has the time for all of it: every instruction is emulated.
fn guest(route: Route) -> Guest {
    Guest { time_limit: Duration::from_secs(1440), ..Guest::new(route) }
}

/// Builds what runs in the guest.
fn build() -> Result<Tests, String> {
    setup::meet(&[setup::BUILD])?;
    cargo("build --locked --package daxtier-cli --package daxtier-preload").run()?;
    let built = "test --locked --package daxtier --test real_device --test numa_tiers --no-run";
    let lines = cargo(built).arg("--message-format=json").output()?;
    let program = |name: &str| {
        let found = lines.lines().rev().find_map(|line| {
            let is_the_test = line.contains(&format!("\"name\":\"{name}\""));
            is_the_test
                .then(|| Some(line.split_once("\"executable\":\"")?.1.split_once('"')?.0.to_owned()))?
        });
        found.ok_or_else(|| format!("cargo does not say where it put the test {name}"))
    };
    Ok(Tests { real_device: program("real_device")?, numa_tiers: program("numa_tiers")? })
}

/// What runs in the guest, as a shell script that ends at the first failure.
fn script(route: Route, tests: &Tests, rounds: u32) -> String {
    let daxtier = target_dir().join("debug/daxtier");
    let [test, numa_tiers, daxtier] =
        [tests.real_device.clone(), tests.numa_tiers.clone(), daxtier.display().to_string()]
            .map(|program| Task::program(program).line());
    // QEMU emulates every access to the second of two expanders, a microsecond each: there only what touches little.
    let (slow, filter) = match route {
        Route::Numa => ("node:1:512M", None),
        Route::Cxl2 => (
            "/dev/dax0.0,size=64M --slow /dev/dax1.0,size=128M",
            Some("discovery exhausted a_device_that_goes"),
        ),
        Route::Cxl | Route::Hmem => ("/dev/dax0.0", Some("")),
        Route::Pmem => ("/dev/dax0.0,allow-persistent", Some("")),
    };
    let mut script = format!("set -e\n{daxtier} list\n");
    if let Some(filter) = filter {
        script += &format!(
            "for device in /dev/dax*; do\n  DAXTIER_TEST_SHARED_ROUNDS={rounds} DAXTIER_TEST_DAX=$device {test} --test-threads=1 {filter}\ndone\n"
        );
    }
    if route == Route::Numa {
        script += &format!("{numa_tiers} --nocapture\n");
    }
    if route == Route::Pmem {
        script += &format!(
            "if {daxtier} run --slow /dev/dax0.0 -- true 2>/tmp/refusal; then echo 'persistent memory was used'; exit 1; fi\n\
             grep -q allow-persistent /tmp/refusal || {{ cat /tmp/refusal; exit 1; }}\n"
        );
    }
    if matches!(route, Route::Cxl | Route::Hmem | Route::Pmem) {
        script += &format!(
            "{daxtier} selftest --migrate --seconds 15 --slow {slow}\n\
             bash xtask/src/vm/guest/programs.sh {daxtier} {slow} /dev/dax0.0\n\
             bash xtask/src/vm/guest/scrub.sh {daxtier} {slow} /dev/dax0.0\n"
        );
    }
    if route == Route::Cxl {
        script += &strict(&daxtier);
    }
    script += &format!(
        "got=$({daxtier} run --fast 64M --slow {slow} --stats=/tmp/stats.json -- \
             python3 -c 'x=[bytes(1000) for _ in range(100000)]; print(len(x))')\n\
         [ \"$got\" = 100000 ] || {{ echo \"python3 printed $got\"; exit 1; }}\n\
         python3 -c 'import json; print([(t[\"kind\"], t[\"peak_bytes\"]) for t in json.load(open(\"/tmp/stats.json\"))[\"tiers\"]])'\n"
    );
    if route == Route::Cxl {
        // The last, for the device does not come back.
        script += &format!(
            "DAXTIER_TEST_PCI=1 DAXTIER_TEST_DAX=/dev/dax0.0 {test} --test-threads=1 pulled_out --nocapture\n"
        );
    }
    script
}

/// Programs on a kernel that refuses what it could not keep: what is refused is an error of malloc and ends nobody, and a
/// budget above the kernel's limit is none. A machine that others use too can't be put to that.
fn strict(daxtier: &str) -> String {
    let fill = "x = []\ntry:\n  while True: x.append(b\"1\" * 900000)\nexcept MemoryError: pass\ndel x[1:]\nprint(\"filled\")";
    format!(
        "sysctl -qw vm.overcommit_memory=2\n\
         for fast in '' '--fast 256M --slow /dev/dax0.0' '--fast 800M --slow /dev/dax0.0'; do\n\
         got=$({daxtier} run $fast -- python3 -c '{fill}')\n\
         [ \"$got\" = filled ] || {{ echo \"python3 $fast printed $got\"; exit 1; }}\n\
         done\n\
         {daxtier} run --fast 1800M --slow /dev/dax0.0 -- true && {{ echo 'more than the commit limit was granted'; exit 1; }}\n\
         sysctl -qw vm.overcommit_memory=0\n"
    )
}
