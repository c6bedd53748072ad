//! What the README shows is what there is: its programs build and run, its commands and variables exist.

mod common;

use common::{Scratch, artefacts, clean, describe, program};
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// Returns the first fenced block of a language.
fn block(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let start = README.find(&fence).map(|at| at + fence.len()).expect("the README has such a block");
    let len = README[start..].find("```").expect("the block ends");
    &README[start..start + len]
}

#[test]
fn the_rust_program_is_the_example() {
    let example = include_str!("../examples/tour.rs");
    let (_, program) = example.split_once("\n\n").expect("a comment comes first");
    assert_eq!(block("rust"), program);
}

#[test]
fn the_c_program_compiles_without_a_warning_and_says_what_the_readme_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "daxtier-ffi", "--target-dir"])
        .arg(artefacts().parent().expect("a profile lies in a target folder"))
        .args(artefacts().ends_with("release").then_some("--release"))
        .current_dir(root)
        .status()
        .expect("cargo starts");
    assert!(built.success(), "the C library must build");
    for (compiler, flags) in [("cc", ["-std=c11", "-xc"]), ("c++", ["-std=c++17", "-xc++"])] {
        if program(compiler).is_none() {
            continue;
        }
        let scratch = Scratch::new();
        let source = scratch.write("tour.c", block("c"));
        let binary = scratch.path("tour");
        let compiled = Command::new(compiler)
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .arg(root.join("include"))
            .args(flags)
            .arg(&source)
            .args(["-xnone", "-L"])
            .arg(artefacts())
            .args(["-ldaxtier", "-o"])
            .arg(&binary)
            .output()
            .expect("the compiler starts");
        assert!(compiled.status.success(), "{compiler}: {}", describe(&compiled));
        // The loader looks for the library's SONAME, which the build folder has not: give it that name.
        std::os::unix::fs::symlink(artefacts().join("libdaxtier.so"), scratch.path("libdaxtier.so.0"))
            .unwrap();
        let ran = clean(Command::new(&binary))
            .env("LD_LIBRARY_PATH", scratch.path(""))
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{compiler}: {}", describe(&ran));
        assert!(
            said.starts_with("hello is in the slow tier, page ") && said.ends_with(" of emulated:1G\n"),
            "{said}"
        );
    }
}

#[test]
fn every_variable_is_in_the_table_and_the_table_has_no_other() {
    let documented: Vec<&str> = README
        .lines()
        .filter_map(|line| line.strip_prefix("| `DAXTIER_"))
        .filter_map(|rest| rest.split('`').next())
        .collect();
    assert_eq!(documented.len(), daxtier::runtime::config::VARIABLES.len());
    for variable in daxtier::runtime::config::VARIABLES {
        assert!(documented.iter().any(|name| variable == format!("DAXTIER_{name}")), "{variable}");
    }
}
