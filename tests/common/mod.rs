//! What the end-to-end tests share: the built program and preload library, scratch folders, and reading statistics.
//!
//! Tests of this package do not make cargo build other packages, so the artefacts are built here, once, with the
//! profile of the running test.

// Each test file uses its own part of this module.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs the test `name` again in a process of its own; returns whether this is that process. For tests that change what the
/// whole process is or may do.
pub(crate) fn is_own_process(name: &str) -> bool {
    const ALONE: &str = "TEST_IS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().expect("a test knows its own file");
    let mut again = Command::new(own);
    let ended = again.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    // Why it was skipped, if it was.
    eprint!("{stderr}");
    assert!(ended.status.success() && stdout.contains("1 passed"), "{}\n{stdout}", ended.status);
    false
}

/// Returns the folder that holds the built program and libraries.
pub(crate) fn artefacts() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // target/PROFILE/deps/THIS-TEST
        let this = std::env::current_exe().expect("a test knows its own file");
        let folder = this.parent().and_then(Path::parent).expect("cargo keeps tests two folders down");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "daxtier-cli", "--package", "daxtier-preload"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.arg("--target-dir").arg(folder.parent().expect("a profile lies in a target folder"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo starts");
        assert!(status.success(), "the program and the preload library must build");
        folder.to_path_buf()
    })
}

/// Returns the program `daxtier`.
pub(crate) fn daxtier() -> PathBuf {
    artefacts().join("daxtier")
}

/// Returns the preload library.
pub(crate) fn preload() -> PathBuf {
    artefacts().join("libdaxtier_preload.so")
}

/// Returns where a program lies on the PATH; prints that the test skips where it is not installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: {name} is not installed");
    }
    found
}

/// A folder of one test, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder that every user may enter.
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("daxtier-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, readable).expect("the folder is ours");
        Scratch(folder)
    }

    /// Returns the path of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in the folder and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("the scratch folder is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A command line of `daxtier run`.
pub(crate) struct Run {
    command: Command,
    scratch: Scratch,
}

/// What such a run left.
pub(crate) struct Ran {
    pub(crate) output: Output,
    pub(crate) stats: Option<Stats>,
    pub(crate) scratch: Scratch,
}

impl Run {
    /// Starts `daxtier run --fast FAST --slow SLOW --stats=FILE --` for the program named next.
    pub(crate) fn new(fast: &str, slow: &str) -> Run {
        Run::with(&[], fast, slow)
    }

    /// As [`Run::new`], with more options.
    pub(crate) fn with(options: &[&str], fast: &str, slow: &str) -> Run {
        let scratch = Scratch::new();
        let mut command = clean(Command::new(daxtier()));
        let stats = format!("--stats={}", scratch.path("stats.json").display());
        command
            .args(["run", "--fast", fast, "--slow", slow, &stats])
            .args(options)
            .arg("--")
            .stdin(Stdio::null());
        Run { command, scratch }
    }

    /// Adds words of the command line.
    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(mut self, args: I) -> Run {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Run {
        self.command.env(name, value);
        self
    }

    /// Compiles a C program of a folder below `tests` into the scratch folder; `None` without a compiler.
    pub(crate) fn compile_c(&self, folder: &str, name: &str) -> Option<PathBuf> {
        let compiler = program("cc")?;
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder).join(format!("{name}.c"));
        let binary = self.scratch.path(name);
        let compiled = Command::new(compiler)
            .args(["-O2", "-std=c11", "-Wall", "-Wextra", "-pthread", "-o"])
            .args([&binary, &source])
            .output()
            .expect("the compiler starts");
        assert!(compiled.status.success(), "{}", describe(&compiled));
        Some(binary)
    }

    /// Returns the folder that the program may write to.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Runs in the scratch folder.
    pub(crate) fn output(mut self) -> Ran {
        let output = self.command.current_dir(self.scratch.path("")).output().expect("daxtier starts");
        let stats = std::fs::read_to_string(self.scratch.path("stats.json")).ok().map(Stats);
        Ran { output, stats, scratch: self.scratch }
    }
}

impl Ran {
    /// Returns standard output of a run that must have ended well.
    pub(crate) fn stdout(&self) -> String {
        assert!(self.output.status.success(), "{}", self.describe());
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Returns what was said on standard error.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Returns the statistics, which must be there.
    pub(crate) fn stats(&self) -> &Stats {
        self.stats.as_ref().unwrap_or_else(|| panic!("no statistics were written; {}", self.describe()))
    }

    /// Returns how it ended and what it said.
    pub(crate) fn describe(&self) -> String {
        describe(&self.output)
    }
}

/// Returns how a program ended and what it said.
pub(crate) fn describe(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Takes what the caller's environment says about daxtier out of a command.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DAXTIER_") {
            command.env_remove(name);
        }
    }
    command.env_remove("LD_PRELOAD");
    command
}

/// The text of a statistics file.
pub(crate) struct Stats(pub(crate) String);

impl Stats {
    /// Returns a count of a tier, by the documented key.
    pub(crate) fn count(&self, tier: &str, key: &str) -> u64 {
        self.tier(tier)
            .and_then(|object| number_behind(object, key))
            .unwrap_or_else(|| panic!("no count {key:?} of tier {tier:?} in {}", self.0))
    }

    /// Returns the peak of a tier in MiB, rounded down.
    pub(crate) fn peak_mib(&self, tier: &str) -> u64 {
        self.count(tier, "peak_bytes") >> 20
    }

    /// Returns the text of the tier's object: from its name to the name of the next.
    fn tier(&self, name: &str) -> Option<&str> {
        let tiers = &self.0[self.0.find("\"tiers\"")?..];
        let starts: Vec<usize> = tiers.match_indices("\"name\"").map(|(at, _)| at).collect();
        starts.iter().enumerate().find_map(|(i, &start)| {
            let object = &tiers[start..starts.get(i + 1).copied().unwrap_or(tiers.len())];
            let value = object["\"name\"".len()..].trim_start_matches([':', ' ']);
            value.starts_with(&format!("{name:?}")).then_some(object)
        })
    }
}

fn number_behind(object: &str, key: &str) -> Option<u64> {
    let quoted = format!("{key:?}");
    let rest = object[object.find(&quoted)? + quoted.len()..].trim_start_matches([':', ' ']);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
