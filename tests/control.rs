//! A running program that is asked from outside to leave a device.

mod common;

use common::{Scratch, clean, daxtier, program};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

/// Starts a Python program over a little DRAM and an emulated device; returns it when it has said that it is ready.
fn start(scratch: &Scratch, control: &str) -> Option<(Child, BufReader<std::process::ChildStdout>)> {
    program("python3")?;
    let script = "
import sys
data = [bytes([i % 251]) * 5000 for i in range(20000)]
print('ready', flush=True)
for line in sys.stdin:
    ok = all(d == bytes([i % 251]) * 5000 for i, d in enumerate(data))
    print('whole' if ok else 'damaged', flush=True)
";
    let file = scratch.write("program.py", script);
    let mut child = clean(Command::new(daxtier()))
        .args(["run", "--fast", "64M", "--slow", "emulated:512M", "--policy", "preferred=slow", "--"])
        .args(["python3", "-u"])
        .arg(file)
        .env("DAXTIER_CONTROL", control)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("daxtier starts");
    let mut said = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("the pipe is readable");
    assert_eq!(line, "ready\n");
    Some((child, said))
}

fn ask(words: &[&str], pid: u32) -> Output {
    let words = words.iter().map(|word| if *word == "PID" { pid.to_string() } else { (*word).to_owned() });
    clean(Command::new(daxtier())).args(words).output().expect("daxtier starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Catches a program that is not reached, that goes on to use the device, or that loses data on the way.
#[test]
fn a_program_leaves_a_device_when_it_is_asked() {
    let scratch = Scratch::new();
    let Some((mut child, mut said)) = start(&scratch, "on") else { return };
    let pid = child.id();
    let mut check = |child: &mut Child| {
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("the program reads");
        let mut line = String::new();
        said.read_line(&mut line).expect("the pipe is readable");
        assert_eq!(line, "whole\n");
    };
    check(&mut child);
    let unknown = ask(&["drain", "/dev/dax9.9", "PID"], pid);
    assert!(!unknown.status.success() && text(&unknown).contains("emulated:512M"), "{}", text(&unknown));

    // DRAM has no room for all of it, so something is left, and said to be.
    let first = ask(&["drain", "--timeout", "3", "emulated:512M", "PID"], pid);
    let told = text(&first);
    if told.contains("blocks can't be moved") {
        println!("skipped: {told}");
    } else {
        assert!(!first.status.success() && told.contains("pieces are left"), "{told}");
        assert!(told.contains("address 0x") && told.contains("blocks of the program (tier full)"), "{told}");
        assert!(told.contains("MiB moved away"), "{told}");
    }
    check(&mut child);
    let refused = ask(&["stat", "--json", "PID"], pid);
    let json = text(&refused);
    assert!(json.contains("emulated:512M"), "{json}");
    let resumed = ask(&["drain", "--resume", "emulated:512M", "PID"], pid);
    assert!(resumed.status.success(), "{}", text(&resumed));
    check(&mut child);
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

/// Catches a device that is not used after it was added, and a refusal without a reason.
#[test]
fn a_program_takes_another_device_and_leaves_its_first_for_it() {
    let scratch = Scratch::new();
    let Some((mut child, mut said)) = start(&scratch, "on") else { return };
    let pid = child.id();
    for (device, reason) in
        [("/dev/dax9.9", "no such file"), ("emulated:many", "size"), ("dram", "not a device"), ("", "device")]
    {
        let refused = ask(&["add", device, "PID"], pid);
        assert!(!refused.status.success() && text(&refused).contains(reason), "{device}: {}", text(&refused));
    }
    let added = ask(&["add", "emulated:256M", "PID"], pid);
    assert!(added.status.success(), "{}", text(&added));
    let json = text(&ask(&["stat", "--json", "PID"], pid));
    assert!(json.contains("emulated:256M"), "{json}");

    let drained = ask(&["drain", "--timeout", "100", "emulated:512M", "PID"], pid);
    if text(&drained).contains("blocks can't be moved") {
        println!("skipped: {}", text(&drained));
    } else {
        // DRAM has no room for all of it.
        assert!(drained.status.success(), "{}", text(&drained));
    }
    child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("the program reads");
    let mut line = String::new();
    said.read_line(&mut line).expect("the pipe is readable");
    assert_eq!(line, "whole\n");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_program_that_does_not_listen_says_so_and_what_to_do() {
    let scratch = Scratch::new();
    let Some((mut child, _said)) = start(&scratch, "auto") else { return };
    let refused = ask(&["drain", "emulated:512M", "PID"], child.id());
    assert!(!refused.status.success() && text(&refused).contains("DAXTIER_CONTROL=on"), "{}", text(&refused));
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}
