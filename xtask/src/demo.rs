//! `cargo xtask demo`: runs real programs over a little DRAM and a larger emulated CXL device, and shows where
//! their bytes go.
//!
//! Each [`act`](Act) is a program under `daxtier run`; while it runs, the tiers are read from outside through
//! `daxtier stat` and drawn by [`picture`]. Afterwards the program's own check must have passed and the statistics
//! that it left must show what was promised: the fast tier kept to its size, and the rest lay in the slow one.

mod picture;
mod redis;

use crate::process::{Task, cargo, seconds, step, target_dir};
use crate::stats::{self, Tier, human};
use crate::{process, setup};
use picture::Picture;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const FAST: &str = "128M";
const FAST_BYTES: u64 = 128 << 20;
const SLOW: &str = "emulated:2G";
/// What every act brings into memory at the least, beyond what the fast tier holds.
const LEAST_SLOW_BYTES: u64 = 200 << 20;
/// How often the tiers are read while a program runs.
const PERIOD: Duration = Duration::from_millis(250);
/// An act that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the demonstration.
///
/// # Errors
/// What could not be set up or built, or the promise that was not kept.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    if let [unknown, ..] = args {
        return Err(format!("{unknown:?} is not understood; the demonstration takes no arguments"));
    }
    step("set-up", || setup::meet(&[setup::BUILD, setup::DEMO]))?;
    step("build", || {
        cargo("build --locked --release --package daxtier-cli --package daxtier-preload").run()
    })?;
    let stage = Stage::new()?;
    step("python3 builds an index", || build_index(&stage))?;
    if redis::is_there() {
        step("redis-server under load", || redis::serve(&stage))?;
    } else {
        println!("redis-server and redis-benchmark are not installed: the second act is left out\n");
    }
    println!("Every byte was checked by the programs themselves, and none of them was changed or rebuilt.");
    println!("Try your own:  {} run --fast 256M --slow {SLOW} --stats -- PROGRAM", stage.daxtier.display());
    Ok(())
}

fn build_index(stage: &Stage) -> Result<(), String> {
    // The interpreter itself: `python3` may be a wrapper script that starts several programs.
    let python = Task::new("python3 -c").arg("import sys; print(sys.executable)").output()?;
    let script = crate::root().join("examples/demo/build_index.py");
    let mut command = stage.run("index", python.trim());
    command.arg(script);
    let mut act = Act::start(stage, "index", command)?;
    act.watch_until_exit()?;
    if !act.last_line().starts_with("correct: ") {
        return Err(format!("the program did not find its data correct: {:?}", act.last_line()));
    }
    act.finish()
}

/// Where the demonstration takes place: the built program and a folder for what it writes.
struct Stage {
    daxtier: PathBuf,
    folder: PathBuf,
}

impl Stage {
    fn new() -> Result<Stage, String> {
        let folder = target_dir().join("demo");
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Stage { daxtier: target_dir().join("release/daxtier"), folder })
    }

    fn stats_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Returns the command that runs `program` over the demonstration's two tiers.
    fn run(&self, name: &str, program: &str) -> Command {
        let mut command = Command::new(&self.daxtier);
        let stats = format!("--stats={}", self.stats_file(name).display());
        command.args(["run", "--fast", FAST, "--slow", SLOW, &stats, "--", program]);
        command
    }

    /// Reads the tiers of a running process; `None` while it has none to show.
    fn stat(&self, pid: u32) -> Option<Vec<Tier>> {
        let output = Command::new(&self.daxtier)
            .args(["stat", &pid.to_string(), "--json"])
            .stdin(Stdio::null())
            .output()
            .ok()?;
        if !output.status.success() {
            return None;
        }
        stats::parse(&String::from_utf8_lossy(&output.stdout)).ok()
    }
}

/// A program that runs under `daxtier run` and is being watched.
struct Act<'a> {
    stage: &'a Stage,
    name: &'static str,
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
    picture: Picture,
    sightings: u32,
    start: Instant,
}

impl<'a> Act<'a> {
    fn start(stage: &'a Stage, name: &'static str, mut command: Command) -> Result<Act<'a>, String> {
        // What an earlier demonstration left must not pass for this one's.
        let _ = std::fs::remove_file(stage.stats_file(name));
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        println!("    daxtier {}", words.join(" "));
        command.current_dir(&stage.folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", stage.daxtier.display()))?;
        let said = Arc::new(Mutex::new(String::new()));
        let reader = child.stdout.take().map(|stdout| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(mut last) = said.lock() {
                        *last = line;
                    }
                }
            })
        });
        let picture = Picture::new(process::is_terminal());
        Ok(Act { stage, name, child, said, reader, picture, sightings: 0, start: Instant::now() })
    }

    fn last_line(&self) -> String {
        self.said.lock().map(|line| line.clone()).unwrap_or_default()
    }

    /// Draws the tiers as they are now.
    fn watch_once(&mut self) {
        if let Some(tiers) = self.stage.stat(self.child.id()) {
            self.sightings += 1;
            self.picture.draw(&tiers, &self.last_line(), self.start.elapsed());
        }
    }

    /// Draws the tiers again and again until the program ends.
    fn watch_until_exit(&mut self) -> Result<(), String> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                if let Some(reader) = self.reader.take() {
                    // The thread ends with the pipe; a panic in it only loses the last line, which is checked.
                    let _ = reader.join();
                }
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("the program ended with {status}"))
                };
            }
            if self.start.elapsed() > PATIENCE {
                return Err(format!("the program did not end within {}", seconds(PATIENCE)));
            }
            self.watch_once();
            std::thread::sleep(PERIOD);
        }
    }

    /// Draws where the bytes went and checks that it is what was promised.
    fn finish(&mut self) -> Result<(), String> {
        let tiers = stats::read(&self.stage.stats_file(self.name))?;
        self.picture.finish(&tiers);
        println!("    the program said: {}", self.last_line());
        if self.sightings == 0 {
            return Err("`daxtier stat` never saw the program while it ran".to_owned());
        }
        promise_kept(&tiers)
    }
}

impl Drop for Act<'_> {
    fn drop(&mut self) {
        // After a failure the program must not stay behind; after an exit both calls find nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks the statistics that a program left against what the command line promised.
fn promise_kept(tiers: &[Tier]) -> Result<(), String> {
    let tier = |name: &str| {
        tiers.iter().find(|tier| tier.name == name).ok_or(format!("the statistics have no tier {name:?}"))
    };
    let (fast, slow) = (tier("fast")?, tier("slow")?);
    if fast.peak_bytes > FAST_BYTES {
        return Err(format!("the fast tier held {}, more than its {FAST}", human(fast.peak_bytes)));
    }
    if fast.peak_bytes < FAST_BYTES / 2 {
        return Err(format!("the fast tier held only {} of its {FAST}", human(fast.peak_bytes)));
    }
    if slow.peak_bytes < LEAST_SLOW_BYTES {
        return Err(format!(
            "the slow tier held {} at its peak, less than the {} that cannot have fitted elsewhere",
            human(slow.peak_bytes),
            human(LEAST_SLOW_BYTES)
        ));
    }
    if slow.kind != "emulated" {
        return Err(format!("the slow tier is {:?} memory and not the emulated device", slow.kind));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(fast_peak: u64, slow_peak: u64) -> Vec<Tier> {
        let tier = |name: &str, kind: &str, peak_bytes| Tier {
            name: name.to_owned(),
            kind: kind.to_owned(),
            capacity_bytes: 0,
            used_bytes: 0,
            peak_bytes,
        };
        vec![tier("fast", "dram", fast_peak), tier("slow", "emulated", slow_peak)]
    }

    #[test]
    fn a_kept_promise_passes() {
        assert_eq!(promise_kept(&tiers(FAST_BYTES, 400 << 20)), Ok(()));
    }

    #[test]
    fn a_broken_promise_is_loud() {
        assert!(promise_kept(&tiers(FAST_BYTES + 1, 400 << 20)).is_err());
        assert!(promise_kept(&tiers(0, 400 << 20)).is_err());
        assert!(promise_kept(&tiers(FAST_BYTES, 10 << 20)).is_err());
        assert!(promise_kept(&tiers(FAST_BYTES, 400 << 20)[..1]).is_err());
        let mut dram = tiers(FAST_BYTES, 400 << 20);
        dram[1].kind = "dram".to_owned();
        assert!(promise_kept(&dram).is_err());
    }
}
