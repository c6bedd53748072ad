//! What is refused, and how: bad configurations stop a program before `main` with one clear message and harm nothing.

mod common;

use common::{Run, Scratch, clean, daxtier, describe, preload, program};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

/// The exit code of a configuration that cannot be used (EX_CONFIG of sysexits.h).
const BAD_CONFIGURATION: i32 = 78;

/// Runs `echo reached` under the preload library with these variables.
fn preloaded(variables: &[(&str, &str)]) -> Output {
    let mut command = clean(Command::new("/bin/echo"));
    command.arg("reached").env("LD_PRELOAD", preload()).envs(variables.iter().copied());
    command.output().expect("echo starts")
}

/// Checks that a configuration is refused before `main`, in one line that contains every one of `words`.
fn is_refused(variables: &[(&str, &str)], words: &[&str]) {
    let output = preloaded(variables);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION), "{variables:?}: {}", describe(&output));
    assert!(output.stdout.is_empty(), "{variables:?} reached main: {}", describe(&output));
    assert_eq!(said.trim_end().lines().count(), 1, "{variables:?}: one message is enough: {said}");
    assert!(said.contains("daxtier"), "{variables:?}: who speaks? {said}");
    for word in words {
        assert!(said.contains(word), "{variables:?}: the message does not name {word:?}: {said}");
    }
}

#[test]
fn a_sound_configuration_reaches_main() {
    let output = preloaded(&[("DAXTIER_FAST", "16M"), ("DAXTIER_SLOW", "emulated:64M")]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reached\n", "{}", describe(&output));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", describe(&output));
}

#[test]
fn unknown_names_are_refused_with_the_nearest_one() {
    is_refused(&[("DAXTIER_FASTT", "16M")], &["DAXTIER_FASTT", "DAXTIER_FAST"]);
    is_refused(&[("DAXTIER_POLICE", "fill")], &["DAXTIER_POLICE", "DAXTIER_POLICY"]);
    is_refused(&[("DAXTIER_POLICY", "fil")], &["fil", "fill"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M,sise=32M")], &["sise", "size"]);
    is_refused(&[("DAXTIER_CONF", "fasst=1G")], &["fasst", "fast"]);
}

#[test]
fn malformed_values_are_refused() {
    is_refused(&[("DAXTIER_FAST", "lots")], &["DAXTIER_FAST", "lots"]);
    is_refused(&[("DAXTIER_FAST", "16X")], &["16X"]);
    is_refused(&[("DAXTIER_FAST", "120%")], &["120%"]);
    is_refused(&[("DAXTIER_FAST", "99999T")], &["99999T"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:0")], &["emulated:0"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:")], &["emulated:"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:3M")], &["emulated:3M", "whole number", "4M"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M,size=33M")], &["33M", "whole number", "32M", "34M"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M,size=0")], &["size=0", "too small"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:8P")], &["emulated:8P", "8 PiB"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M;")], &["no device"]);
    is_refused(&[("DAXTIER_FAST", "0")], &["0 is too small"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M,size=128M")], &["128"]);
    is_refused(&[("DAXTIER_SLOW", "emulated:64M,range=1+2M")], &["DAXTIER_SLOW", "only a dax device"]);
    let start = "/dev/dax0.0,range=3M+8M";
    is_refused(&[("DAXTIER_SLOW", start)], &[start, "3M is none", "use 2M or 4M"]);
    is_refused(&[("DAXTIER_POLICY", "interleave=0:0")], &["interleave"]);
    is_refused(&[("DAXTIER_POLICY", "bind=medium")], &["medium"]);
    is_refused(&[("DAXTIER_POLICY", "interleave=1:99999999999")], &["not 99999999999"]);
    is_refused(&[("DAXTIER_CONF", "@/nonexistent/daxtier.conf")], &["/nonexistent/daxtier.conf"]);
    is_refused(&[("DAXTIER_CONF", "@")], &["@FILE"]);
    is_refused(&[("DAXTIER_CONF", "fast=64M fast=32M")], &["fast", "twice"]);
}

#[test]
fn devices_that_are_none_are_refused() {
    is_refused(&[("DAXTIER_SLOW", "/dev/dax99.0")], &["/dev/dax99.0"]);
    is_refused(&[("DAXTIER_SLOW", "/dev/null")], &["/dev/null"]);
    is_refused(&[("DAXTIER_SLOW", "/etc/passwd")], &["/etc/passwd"]);
    is_refused(&[("DAXTIER_SLOW", "node:999")], &["999"]);
    is_refused(&[("DAXTIER_SLOW", "floppy:1G")], &["floppy"]);
}

#[test]
fn a_second_free_is_told_once_and_does_no_harm() {
    let run = Run::new("16M", "emulated:64M");
    let Some(binary) = run.compile_c("frees", "twice") else { return };
    let ran = run.args([&binary]).output();
    assert_eq!(ran.stdout(), "went on\n");
    let said = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.starts_with("daxtier: ")).count(), 1, "{said}");
    assert!(said.contains("freed") && said.contains("no effect"), "{said}");
}

#[test]
fn a_program_that_never_allocates_is_stopped_too() {
    let compiler = ["cc", "gcc"].into_iter().find_map(program).expect("a build needs a C compiler");
    let scratch = Scratch::new();
    let source = scratch.write("main.c", "int main(void) { return 0; }\n");
    let binary = scratch.path("main");
    let compiled =
        Command::new(compiler).arg(&source).arg("-o").arg(&binary).output().expect("the compiler starts");
    assert!(compiled.status.success(), "{}", describe(&compiled));
    let mut command = clean(Command::new(&binary));
    let output =
        command.env("LD_PRELOAD", preload()).env("DAXTIER_FAST", "lots").output().expect("it starts");
    assert_eq!(output.status.code(), Some(BAD_CONFIGURATION), "{}", describe(&output));
}

#[test]
fn passthrough_runs_the_program_and_says_so_in_one_line() {
    let output = preloaded(&[("DAXTIER_FAST", "lots"), ("DAXTIER_ON_ERROR", "passthrough")]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reached\n", "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains("lots"), "{said}");
}

#[test]
fn run_refuses_before_it_starts_the_program() {
    for (args, words) in [
        (&["--fast", "lots"][..], &["lots"][..]),
        (&["--fast", "900T"], &["900"]),
        (&["--slow", "emulated:0"], &["emulated:0"]),
        (&["--slow", "/dev/dax99.0"], &["/dev/dax99.0"]),
        (&["--policy", "filll"], &["filll", "fill"]),
        (&["--speed", "9"], &["--speed"]),
    ] {
        let mut command = clean(Command::new(daxtier()));
        let output =
            command.arg("run").args(args).args(["--", "echo", "reached"]).output().expect("daxtier starts");
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {}", describe(&output));
        for word in words {
            assert!(
                String::from_utf8_lossy(&output.stderr).contains(word),
                "{args:?}: {}",
                describe(&output)
            );
        }
    }
}

#[test]
fn run_names_a_program_that_is_not_there() {
    let mut command = clean(Command::new(daxtier()));
    command.args(["run", "--fast", "16M", "--slow", "emulated:64M", "--", "no-such-program"]);
    let output = command.output().expect("daxtier starts");
    assert_eq!(output.status.code(), Some(127), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program"), "{}", describe(&output));
}

#[test]
fn a_statistics_file_is_private_and_follows_no_link() {
    let scratch = Scratch::new();
    let victim = scratch.write("victim", "precious");
    std::os::unix::fs::symlink(&victim, scratch.path("stats.json")).unwrap();
    let run = |file: &str| {
        let stats = format!("--stats={}", scratch.path(file).display());
        let mut command = clean(Command::new(daxtier()));
        command.args(["run", "--fast", "16M", "--slow", "emulated:64M", &stats, "--", "echo", "reached"]);
        let output = command.output().expect("daxtier starts");
        assert!(String::from_utf8_lossy(&output.stdout).contains("reached"), "{}", describe(&output));
    };
    run("stats.json");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    run("fresh.json");
    let mode = scratch.path("fresh.json").metadata().expect("statistics were written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_setuid_program_ignores_every_variable() {
    // The loader of a setuid program preloads only what the system's own folders hold, so this program links the
    // library instead, from a folder of absolute path, which a setuid program may do.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !is_root || program("setpriv").is_none() {
        println!("skipped: needs root and setpriv");
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.write(
        "main.c",
        "#include <stdio.h>\n#include <stdlib.h>\n#include <sys/auxv.h>\nint main(void) { void *p = malloc(99); \
         printf(\"secure %lu\\n\", getauxval(AT_SECURE)); free(p); return p == NULL; }\n",
    );
    let binary = scratch.path("main");
    std::fs::copy(preload(), scratch.path("libdaxtier_preload.so")).unwrap();
    let compiled = Command::new("cc")
        .arg(&source)
        .arg(scratch.path("libdaxtier_preload.so"))
        .arg(format!("-Wl,-rpath,{}", scratch.path("").display()))
        .arg("-o")
        .arg(&binary)
        .output()
        .expect("cc starts");
    assert!(compiled.status.success(), "{}", describe(&compiled));
    let run = |mode: u32| {
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(mode)).unwrap();
        clean(Command::new("setpriv"))
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&binary)
            .env("DAXTIER_FAST", "lots")
            .output()
            .expect("setpriv starts")
    };
    let plain = run(0o755);
    assert_eq!(plain.status.code(), Some(BAD_CONFIGURATION), "the variable matters: {}", describe(&plain));
    let setuid = run(0o4755);
    let said = String::from_utf8_lossy(&setuid.stdout);
    if said.contains("secure 0") {
        println!("skipped: {} does not honour setuid programs", scratch.path("").display());
        return;
    }
    assert!(
        setuid.status.success() && said == "secure 1\n" && setuid.stderr.is_empty(),
        "{}",
        describe(&setuid)
    );
}

#[test]
fn the_preload_library_exports_the_allocation_functions_and_nothing_else() {
    if program("nm").is_none() {
        return;
    }
    let output =
        Command::new("nm").args(["-D", "--defined-only"]).arg(preload()).output().expect("nm starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(|name| name.split('@').next().unwrap_or(name))
        .collect();
    names.sort_unstable();
    for name in
        ["aligned_alloc", "calloc", "free", "malloc", "malloc_usable_size", "memalign", "posix_memalign"]
    {
        assert!(names.binary_search(&name).is_ok(), "{name} is not exported: {names:?}");
    }
    for name in ["pvalloc", "realloc", "valloc", "cfree"] {
        assert!(names.binary_search(&name).is_ok(), "{name} is not exported: {names:?}");
    }
    for name in ["reallocarray", "strdup"] {
        assert!(names.binary_search(&name).is_err(), "{name} is exported");
    }
    let stray: Vec<&&str> = names
        .iter()
        .filter(|name| name.starts_with("mi_") || name.starts_with("_mi_") || name.contains("rust"))
        .collect();
    assert!(stray.is_empty(), "internal names are exported: {stray:?}");
}
