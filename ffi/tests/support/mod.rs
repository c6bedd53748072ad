//! What the tests of the C interface share: an installed tree, compilers, and running things.

// Each test file uses its own part of this module.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Returns the root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository")
}

/// Returns the prefix of a tree that `cargo xtask install` filled, made once for each test program from the build of
/// the running test.
pub(crate) fn installed() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let this = std::env::current_exe().expect("a test knows its own file");
        let name = this.file_stem().expect("a test program has a name");
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed").join(name);
        let mut install = Command::new(env!("CARGO"));
        install.args(["run", "--quiet", "--package", "xtask", "--", "install", "--prefix"]).arg(&prefix);
        if cfg!(debug_assertions) {
            install.arg("--debug");
        }
        run(install.current_dir(root()));
        prefix
    })
}

/// Runs a command to its end.
///
/// # Panics
/// When it fails; the message holds the command and what it printed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command and returns what it printed.
pub(crate) fn text_of(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("the output is UTF-8")
}

/// A compiler and the language that it is to take C sources for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compiler {
    pub(crate) program: &'static str,
    pub(crate) language: &'static [&'static str],
    /// A word for names of files.
    pub(crate) name: &'static str,
}

/// gcc and clang, as C11 and as C++.
const COMPILERS: [Compiler; 4] = [
    Compiler { program: "gcc", language: &["-x", "c", "-std=c11"], name: "gcc-c11" },
    Compiler { program: "g++", language: &["-x", "c++", "-std=c++17"], name: "gcc-c++" },
    Compiler { program: "clang", language: &["-x", "c", "-std=c11"], name: "clang-c11" },
    Compiler { program: "clang++", language: &["-x", "c++", "-std=c++17"], name: "clang-c++" },
];

/// Returns the compilers that are installed, and prints which are not.
pub(crate) fn compilers() -> Vec<Compiler> {
    let (found, missing): (Vec<_>, Vec<_>) =
        COMPILERS.into_iter().partition(|compiler| is_installed(compiler.program));
    for compiler in missing {
        println!("skipped: {} is not installed", compiler.program);
    }
    assert!(!found.is_empty(), "no C compiler is installed");
    found
}

/// Returns whether a program is on the PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// How a C program gets the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linkage {
    /// The installed shared library, found at run time where it was installed.
    Shared,
    /// The installed static library.
    Static,
}

/// Compiles a source with all warnings as errors, against the installed tree as pkg-config describes it.
pub(crate) fn compile(compiler: Compiler, source: &Path, linkage: Linkage, extra: &[&str]) -> PathBuf {
    let name = source.file_stem().expect("a source has a name").to_string_lossy();
    let tag = if extra.is_empty() { String::new() } else { format!("-{}", extra.join("")) };
    let folder = installed().join("programs");
    std::fs::create_dir_all(&folder).expect("the target folder can be written to");
    let program = folder.join(format!("{name}-{}-{linkage:?}{tag}", compiler.name).replace(['=', ','], "_"));
    let mut command = Command::new(compiler.program);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"]).args(extra);
    command.args(compiler.language).arg(source).args(["-x", "none"]);
    command.arg("-I").arg(root().join("ffi/tests/c")).arg("-o").arg(&program).arg("-pthread");
    match linkage {
        Linkage::Shared => {
            command.args(pkg_config(&["--cflags", "--libs"]));
            command.arg(format!("-Wl,-rpath,{}", installed().join("lib").display()));
        }
        Linkage::Static => {
            // pkg-config orders libraries by name alone; the archive is given by its path.
            let flags = pkg_config(&["--cflags", "--libs", "--static"]);
            let archive = installed().join("lib/libdaxtier.a").display().to_string();
            command
                .args(flags.into_iter().map(|flag| if flag == "-ldaxtier" { archive.clone() } else { flag }));
        }
    }
    run(&mut command);
    program
}

fn pkg_config(args: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", installed().join("lib/pkgconfig")).args(args).arg("daxtier");
    text_of(&mut command).split_whitespace().map(str::to_owned).collect()
}

/// Returns the C sources of a folder of the repository, sorted.
pub(crate) fn sources(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("the folder is there");
    let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    assert!(!sources.is_empty(), "{folder} holds no C source");
    sources
}
