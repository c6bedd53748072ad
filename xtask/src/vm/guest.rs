//! One run of a guest: starts QEMU, shows what the command prints, and returns its exit code.

use super::machine::Route;
use super::packages::Kernel;
use crate::process::Task;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What the guest prints when the command begins, and with its exit code when it ends.
const BEGIN: &str = "VM: up ";
const END: &str = "VM: exit ";

/// A guest to run.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) route: Route,
    pub(super) cpus: u32,
    /// Ordinary RAM, in QEMU's words. The routes hmem and numa have a layout of their own.
    pub(super) memory: String,
    pub(super) time_limit: Duration,
    /// Whether the kernel's messages are shown as well.
    pub(super) verbose: bool,
}

/// How a run ended.
pub(super) struct Report {
    pub(super) exit_code: i32,
    pub(super) took: Duration,
}

impl Guest {
    pub(super) fn new(route: Route) -> Guest {
        let time_limit = Duration::from_secs(600);
        Guest { route, cpus: 2, memory: "2G".to_owned(), time_limit, verbose: false }
    }

    /// Boots, runs `command` and powers off.
    ///
    /// # Errors
    /// A guest that could not be started, took too long or died before the command ended.
    pub(super) fn run(&self, kernel: &Kernel, command: &str) -> Result<Report, String> {
        self.run_seeing(kernel, command, &mut |_| ())
    }

    /// As [`run`](Guest::run), and hands each line that the command prints to `see`.
    ///
    /// # Errors
    /// As for [`run`](Guest::run).
    pub(super) fn run_seeing(
        &self,
        kernel: &Kernel,
        command: &str,
        see: &mut dyn FnMut(&str),
    ) -> Result<Report, String> {
        let share = Share::make(&kernel.cache)?;
        share.write("command", command)?;
        share.write("folder", &crate::root().display().to_string())?;
        let start = Instant::now();
        let outcome = self.watch(&self.task(kernel, &share.path), see)?;
        let took = start.elapsed();
        match outcome {
            Some(exit_code) => Ok(Report { exit_code, took }),
            None if took >= self.time_limit => {
                Err(format!("the guest took more than {} s and was ended", self.time_limit.as_secs()))
            }
            None => Err("the guest died before the command ended; --verbose shows its console".to_owned()),
        }
    }

    /// As [`run_seeing`](Guest::run_seeing), and takes an exit code other than 0 for a failure.
    ///
    /// # Errors
    /// As for [`run`](Guest::run), and the exit code.
    pub(super) fn run_script(
        &self,
        kernel: &Kernel,
        script: &str,
        see: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        match self.run_seeing(kernel, script, see)?.exit_code {
            0 => Ok(()),
            code => Err(format!("the script of route {} ended with {code}", self.route.name())),
        }
    }

    /// QEMU runs with the libraries that it came with.
    fn task(&self, kernel: &Kernel, share: &Path) -> Task {
        let usr = kernel.unpacked.join("usr");
        let lib = usr.join("lib/x86_64-linux-gnu");
        let libraries =
            ["", "pulseaudio", "blas", "lapack"].map(|folder| lib.join(folder).display().to_string());
        let path = |path: PathBuf| path.display().to_string();
        let folder = |id: &str, tag: &str, at: &Path, rest: &str| {
            format!(
                "-fsdev local,id={id},path={},security_model=none,multidevs=remap{rest} \
                 -device virtio-9p-pci,bus=pcie.0,fsdev={id},mount_tag={tag}",
                at.display()
            )
        };
        Task::new("timeout --kill-after=5")
            .arg(self.time_limit.as_secs().to_string())
            .arg(path(usr.join("lib64/ld-linux-x86-64.so.2")))
            .arg("--library-path")
            .arg(libraries.join(":"))
            .arg(path(usr.join("bin/qemu-system-x86_64")))
            .words(&format!("-L {0}/qemu -L {0}/seabios", usr.join("share").display()))
            .words("-nodefaults -no-user-config -display none -serial stdio -no-reboot")
            .words(&self.route.hardware(&self.memory, self.cpus))
            .words(&folder("shared", "share", share, ""))
            .words(&folder("host", "hostfs", Path::new("/"), ",readonly=on"))
            .arg("-kernel")
            .arg(path(kernel.image.clone()))
            .arg("-initrd")
            .arg(path(kernel.initrd.clone()))
            .arg("-append")
            .arg(self.kernel_command_line())
    }

    fn kernel_command_line(&self) -> String {
        // Under emulation the guest's time-stamp counter is the host's: told rather than calibrated, since on a loaded host
        // the calibration can be far off.
        let tsc = time_stamp_khz().map_or_else(String::new, |khz| format!("tsc_early_khz={khz}"));
        format!(
            "console=ttyS0 panic=-1 quiet loglevel=4 tsc=reliable {tsc} random.trust_cpu=on {} vm.modules={} vm.route={}",
            self.route.kernel_words(),
            self.route.modules().replace(' ', ","),
            self.route.script().unwrap_or_default()
        )
    }

    /// Runs QEMU and shows what the command prints; returns the exit code that the guest reported.
    fn watch(&self, task: &Task, see: &mut dyn FnMut(&str)) -> Result<Option<i32>, String> {
        let mut command = task.command();
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("QEMU could not be started: {error}"))?;
        let (mut exit_code, mut is_up) = (None, false);
        let stdout = child.stdout.take().map(BufReader::new);
        for line in stdout.into_iter().flat_map(|stdout| stdout.split(b'\n')) {
            let line = line.map_err(|error| format!("the guest's console: {error}"))?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            is_up |= line.starts_with(BEGIN);
            if let Some(code) = line.strip_prefix(END) {
                exit_code = code.split(' ').next().and_then(|code| code.parse().ok());
                is_up = false;
            }
            let is_commands = is_up && !line.starts_with(BEGIN);
            if is_commands {
                see(line);
            }
            if is_commands || self.verbose || line.contains("Kernel panic") {
                println!("{line}");
            }
        }
        child.wait().map_err(|error| format!("QEMU: {error}"))?;
        Ok(exit_code)
    }
}

/// Measures the frequency of this machine's time-stamp counter in kHz.
#[cfg(target_arch = "x86_64")]
fn time_stamp_khz() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and it has no effect on memory.
    let count = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), count());
    std::thread::sleep(Duration::from_millis(100));
    let (took, last) = (start.elapsed(), count());
    Some((last.wrapping_sub(first) as f64 / took.as_secs_f64() / 1000.0) as u64)
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp_khz() -> Option<u64> {
    None
}

/// A folder that host and guest share for one run. It goes when the run ends, if the guest left nothing in it.
struct Share {
    path: PathBuf,
}

impl Share {
    fn make(cache: &Path) -> Result<Share, String> {
        let path = cache.join(format!("share-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Share { path })
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let file = self.path.join(name);
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for name in ["command", "folder"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        if fs::remove_dir(&self.path).is_err() {
            println!("the guest left files in {}", self.path.display());
        }
    }
}
