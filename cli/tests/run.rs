//! `daxtier run` from outside: what the program that it becomes finds, and what is refused before.
//!
//! The library to preload is an empty file here, which the dynamic loader passes over with a complaint: these
//! tests are about the process, not about its memory.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A directory that goes with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("daxtier-run-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        fs::write(path.join("empty.so"), b"").expect("the scratch folder is writable");
        Scratch(path.canonicalize().expect("the scratch folder exists"))
    }

    fn library(&self) -> String {
        self.0.join("empty.so").display().to_string()
    }

    /// `daxtier run` with the empty library and none of our variables in the environment.
    fn run(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_daxtier"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DAXTIER_") || name == "LD_PRELOAD" {
                command.env_remove(name);
            }
        }
        command.args(["run", "--preload", &self.library()]).current_dir(&self.0).stdin(Stdio::null());
        command
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program's variables that have to do with us.
fn variables(output: &Output) -> Vec<String> {
    let lines = out(output);
    let ours = lines.lines().filter(|line| line.starts_with("DAXTIER_") || line.starts_with("LD_PRELOAD="));
    let mut ours: Vec<String> = ours.map(str::to_owned).collect();
    ours.sort();
    ours
}

#[test]
fn the_options_become_variables_of_the_program() {
    let dir = Scratch::new("variables");
    let mut command = dir.run();
    command.args([
        "--fast",
        "64M",
        "--slow",
        "emulated:1G",
        "--slow",
        "node:0:1G",
        "--stats=s.%p.json",
        "--",
        "env",
    ]);
    command
        .env("LD_PRELOAD", "/nonexistent/other.so")
        .env("DAXTIER_FAST", "10%")
        .env("DAXTIER_POLICY", "preferred=slow");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let expected = [
        "DAXTIER_FAST=64M".to_owned(),
        "DAXTIER_POLICY=preferred=slow".to_owned(),
        format!("DAXTIER_RUN_PID={pid}"),
        "DAXTIER_SLOW=emulated:1G;node:0:1G".to_owned(),
        format!("DAXTIER_STATS={}/s.%p.json", dir.0.display()),
        format!("LD_PRELOAD={}:/nonexistent/other.so", dir.library()),
    ];
    assert_eq!(variables(&child.wait_with_output().unwrap()), expected);
}

#[test]
fn without_a_named_device_the_choice_is_explained() {
    let dir = Scratch::new("choice");
    let output = dir.run().args(["--fast", "64M", "--", "env"]).output().unwrap();
    let slow: Vec<String> =
        variables(&output).into_iter().filter(|line| line.starts_with("DAXTIER_SLOW=")).collect();
    let [slow] = &slow[..] else { panic!("no slow device was chosen: {}", said(&output)) };
    let device = slow.strip_prefix("DAXTIER_SLOW=").unwrap().split(';').next().unwrap().to_owned();
    assert!(said(&output).contains(&format!("using {device}")), "{}", said(&output));
    let output =
        dir.run().env("DAXTIER_SLOW", "emulated:1G").args(["--fast", "64M", "--", "env"]).output().unwrap();
    assert!(!said(&output).contains("daxtier:"), "a named device needs no word: {}", said(&output));
}

#[test]
fn signals_and_descriptors_are_what_they_were() {
    let dir = Scratch::new("signals");
    let look = "grep -E 'SigIgn|SigBlk' /proc/self/status; ls /proc/self/fd | wc -l";
    for setting in [libc::SIG_DFL, libc::SIG_IGN] {
        let looks = |mut command: Command| {
            let prepare = move || {
                // SAFETY: signal may be called between fork and exec; it takes plain numbers.
                unsafe { libc::signal(libc::SIGPIPE, setting) };
                // SAFETY: close may be called between fork and exec; standard input is not used after.
                unsafe { libc::close(0) };
                Ok(())
            };
            // SAFETY: the closure makes two system calls and nothing else.
            unsafe { command.pre_exec(prepare) };
            out(&command.output().unwrap())
        };
        let mut plain = Command::new("sh");
        plain.args(["-c", look]);
        let mut ours = dir.run();
        ours.args(["--fast", "64M", "--slow", "emulated:64M", "--", "sh", "-c", look]);
        assert_eq!(looks(ours), looks(plain));
    }
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let dir = Scratch::new("codes");
    fs::write(dir.0.join("plain"), b"x").unwrap();
    let plain = dir.0.join("plain").display().to_string();
    for (words, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["no-such-program-anywhere"], 127),
        (&["./no-such-program"], 127),
        (&[plain.as_str()], 126),
        (&["/"], 126),
    ] {
        let output =
            dir.run().args(["--fast", "64M", "--slow", "emulated:64M", "--"]).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert!(
            code == 42 || said(&output).contains(&format!("daxtier: {}: ", words[0])),
            "{}",
            said(&output)
        );
    }
}

#[test]
fn a_wrong_configuration_starts_nothing() {
    let dir = Scratch::new("wrong");
    for (words, expected) in [
        (&["--fast", "63M"][..], "--fast: 63M is not a whole number of 2 MiB slots"),
        (&["--fast", "900T"], "900T is more than the"),
        (&["--slow", "emulated:1G;emulated:1M"], "--slow: \"emulated:1M\""),
        (&["--policy", "fil"], "--policy: \"fil\" is not a policy"),
        (&["--stats=/tmp/"], "--stats: \"/tmp/\" is not a file"),
        (&["--conf", "fats=1G"], "--conf: \"fats\" is not a setting: did you mean fast?"),
        (&["--preload", "/nonexistent.so"], "--preload /nonexistent.so: No such file"),
    ] {
        let mut command = dir.run();
        if words[0] == "--preload" {
            command = Command::new(env!("CARGO_BIN_EXE_daxtier"));
            command.arg("run");
        }
        let output = command.args(words).args(["--", "echo", "reached"]).output().unwrap();
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(78), ""), "{words:?}");
        assert!(
            said(&output).starts_with("daxtier: ") && said(&output).contains(expected),
            "{words:?}: {}",
            said(&output)
        );
    }
    let output = dir.run().env("DAXTIER_SLWO", "x").args(["--", "echo", "reached"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(said(&output).contains("DAXTIER_SLOW"), "{}", said(&output));
}

/// A device to be cleared behind the program. There is none of the name, which is said at the end.
const CLEARED_BEHIND: &str = "/dev/dax99.9,scrub=on-release";

/// Catches a process that stays and changes what the program returns, or what it finds.
#[test]
fn who_stays_to_clear_a_device_returns_what_the_program_returned() {
    let scratch = Scratch::new("outlive");
    let run = |words: &[&str]| {
        scratch.run().args(["--slow", CLEARED_BEHIND, "--"]).args(words).output().expect("daxtier starts")
    };
    let ended = run(&["sh", "-c", "echo $$ $DAXTIER_RUN_PID; exit 7"]);
    assert_eq!(ended.status.code(), Some(7), "{}", said(&ended));
    let words = out(&ended);
    let numbers: Vec<&str> = words.split_whitespace().collect();
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{words}");
    assert_eq!(
        said(&ended).matches("was not wholly cleared behind the program").count(),
        1,
        "{}",
        said(&ended)
    );
    assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).status.code(), Some(128 + libc::SIGKILL));
    let missing = run(&["no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", said(&missing));
    let text = scratch.run().args(["--slow", CLEARED_BEHIND, "--", "/dev/null"]).output().expect("starts");
    assert_eq!(text.status.code(), Some(126), "{}", said(&text));
}

/// Catches a process that stays and keeps signals to itself, or dies of them before the program.
#[test]
fn who_stays_passes_signals_on() {
    use std::io::{BufRead, BufReader};
    let scratch = Scratch::new("passed-on");
    let script = "for s in TERM HUP INT USR1; do trap \"echo got $s\" $s; done; trap 'exit 3' USR2; echo ready; \
                  while :; do sleep 0.02; done";
    let mut run = scratch.run();
    run.args(["--slow", CLEARED_BEHIND, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // A shell can't trap what it was started to ignore, as under nohup.
    let heed = || {
        for signal in [libc::SIGHUP, libc::SIGINT] {
            // SAFETY: sets the default for a signal.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: it calls what a forked child may call.
    unsafe { run.pre_exec(heed) };
    let mut child = run.spawn().expect("daxtier starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("the program lives").expect("text");
    assert_eq!(next(), "ready");
    let send = |signal| {
        // SAFETY: the process was started above and not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
    };
    for (signal, name) in
        [(libc::SIGTERM, "TERM"), (libc::SIGHUP, "HUP"), (libc::SIGINT, "INT"), (libc::SIGUSR1, "USR1")]
    {
        send(signal);
        assert_eq!(next(), format!("got {name}"));
    }
    send(libc::SIGUSR2);
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}
