//! Running other programs: one builder that prints what it runs, times it and says how to repeat it.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program to run from the root of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Task {
    /// Starts from a command line as one would type it: words, separated by spaces.
    pub(crate) fn new(line: &str) -> Task {
        let (program, args) = line.split_once(' ').unwrap_or((line, ""));
        Task::program(program).words(args)
    }

    /// Starts from a program, spaces in its path and all.
    pub(crate) fn program(program: impl Into<String>) -> Task {
        Task { program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    /// Adds the words of a line as arguments.
    pub(crate) fn words(mut self, line: &str) -> Task {
        self.args.extend(line.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds one argument, spaces and all.
    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Task {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable for the program.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Task {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Returns the line that repeats this in a shell.
    pub(crate) fn line(&self) -> String {
        let mut words: Vec<String> = self.env.iter().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
        words.push(quoted(&self.program));
        words.extend(self.args.iter().map(|arg| quoted(arg)));
        words.join(" ")
    }

    /// Returns the command, ready to be started from the root of the repository without input.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        command.current_dir(crate::root()).stdin(Stdio::null());
        command
    }

    /// Runs to the end with output passed through.
    ///
    /// # Errors
    /// A message with the line to repeat, when the program cannot be started or fails.
    pub(crate) fn run(&self) -> Result<(), String> {
        let status = self.command().status().map_err(|e| self.not_started(&e))?;
        if status.success() { Ok(()) } else { Err(self.failed(&status.to_string())) }
    }

    /// Runs to the end in `folder` with output passed through.
    ///
    /// # Errors
    /// As for [`Task::run`].
    pub(crate) fn run_in(&self, folder: &Path) -> Result<(), String> {
        let status = self.command().current_dir(folder).status().map_err(|e| self.not_started(&e))?;
        if status.success() { Ok(()) } else { Err(self.failed(&format!("{status} in {}", folder.display()))) }
    }

    /// Runs to the end, passes standard output through line by line and hands each line to `see`.
    ///
    /// # Errors
    /// As for [`Task::run`].
    pub(crate) fn run_seeing(&self, mut see: impl FnMut(&str)) -> Result<(), String> {
        let mut child = self.command().stdout(Stdio::piped()).spawn().map_err(|e| self.not_started(&e))?;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.map_err(|e| self.failed(&e.to_string()))?;
                let text = String::from_utf8_lossy(&line);
                println!("{text}");
                see(&text);
            }
        }
        let status = child.wait().map_err(|e| self.failed(&e.to_string()))?;
        if status.success() { Ok(()) } else { Err(self.failed(&status.to_string())) }
    }

    /// Runs to the end and returns standard output; standard error is passed through.
    ///
    /// # Errors
    /// As for [`Task::run`].
    pub(crate) fn output(&self) -> Result<String, String> {
        self.output_bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`output`](Task::output), for output that is no text.
    ///
    /// # Errors
    /// As for [`Task::run`].
    pub(crate) fn output_bytes(&self) -> Result<Vec<u8>, String> {
        let output = self.command().stderr(Stdio::inherit()).output().map_err(|e| self.not_started(&e))?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failed(&output.status.to_string())) }
    }

    fn not_started(&self, error: &std::io::Error) -> String {
        format!("{} could not be started: {error}", self.program)
    }

    fn failed(&self, how: &str) -> String {
        format!("{how}\n  repeat it with: {}", self.line())
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Returns where a program of this name lies on the PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file: &PathBuf| {
        file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Returns whether standard output is a terminal that can be redrawn.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints the heading of a step, runs it and prints how long it took.
///
/// # Errors
/// The step's own, with its name in front.
pub(crate) fn step(name: &str, body: impl FnOnce() -> Result<(), String>) -> Result<Duration, String> {
    println!("==> {name}");
    // A closed standard output shows again at the next line; nothing is lost here.
    let _ = std::io::stdout().flush();
    let start = Instant::now();
    body().map_err(|message| format!("{name} failed: {message}"))?;
    let took = start.elapsed();
    println!("    {name}: {}\n", seconds(took));
    Ok(took)
}

/// Prints a duration as `12.3 s` or `4 min 05 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// Returns the cargo that started us, with `args` as its arguments.
pub(crate) fn cargo(args: &str) -> Task {
    Task::program(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())).words(args)
}

/// Returns the folder that cargo builds into.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || crate::root().join("target"),
        |dir| {
            let dir = Path::new(&dir).to_path_buf();
            if dir.is_absolute() { dir } else { crate::root().join(dir) }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_task_says_how_to_repeat_it() {
        let task = Task::new("false").arg("a b").env("X", "it's");
        let message = task.run().unwrap_err();
        assert!(message.contains(r"X='it'\''s' false 'a b'"), "{message}");
    }

    #[test]
    fn lines_of_a_task_are_seen() {
        let mut seen = Vec::new();
        Task::new("printf").arg("a\nb\n").run_seeing(|line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(245)), "4 min 05 s");
    }
}
