//! What the libraries export and ask of the system, and what the header promises about it.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use support::{installed, is_installed, root, run, text_of};

/// The oldest glibc that the libraries load with.
const OLDEST_GLIBC: [u32; 2] = [2, 28];

fn header() -> String {
    std::fs::read_to_string(root().join("include/daxtier.h")).expect("the header is committed")
}

/// Returns the header's functions, each with the comment above it.
fn functions() -> Vec<(String, String)> {
    let header = header();
    let mut functions = Vec::new();
    let mut comment = String::new();
    for part in header.split_inclusive("*/") {
        let (code, next_comment) = part.rsplit_once("/*").unwrap_or((part, ""));
        // A declaration: the name before the first parenthesis that follows it directly.
        for line in code.lines().filter(|line| !line.starts_with(['#', 't', ' ', '}'])) {
            let name = line.split('(').next().and_then(|before| before.rsplit([' ', '*']).next());
            if let Some(name) = name.filter(|name| name.starts_with("daxtier_") && line.contains('(')) {
                functions.push((name.to_owned(), comment.clone()));
            }
        }
        comment = next_comment.to_owned();
    }
    assert!(functions.len() >= 25, "the header declares only {functions:?}");
    functions
}

fn shared_library() -> PathBuf {
    installed().join("lib/libdaxtier.so.0")
}

fn preload_library() -> PathBuf {
    installed().join("lib/libdaxtier_preload.so")
}

/// Returns the names that nm lists, with their versions.
fn nm(args: &[&str], file: &PathBuf) -> BTreeSet<String> {
    let text = text_of(Command::new("nm").args(args).args(["-f", "posix"]).arg(file));
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_shared_library_exports_what_the_header_declares_and_no_more() {
    let mut expected: BTreeSet<String> = functions().into_iter().map(|(name, _)| name).collect();
    expected.insert("daxtier_runtime_v1".to_owned());
    let exported = nm(&["-D", "--defined-only"], &shared_library());
    let names = |suffix: &str| -> BTreeSet<String> {
        exported.iter().filter_map(|symbol| symbol.strip_suffix(suffix)).map(str::to_owned).collect()
    };
    assert_eq!(names("@@DAXTIER_0.1"), expected);
    // Besides the functions there is only the version's own entry.
    assert_eq!(exported.len(), expected.len() + 1, "{exported:?}");
}

#[test]
fn the_static_library_defines_what_the_header_declares_and_no_more() {
    let expected: BTreeSet<String> = functions().into_iter().map(|(name, _)| name).collect();
    let mut defined = nm(&["-g", "--defined-only"], &installed().join("lib/libdaxtier.a"));
    // The archive's and its member's names stand on lines of their own.
    defined.retain(|name| !name.ends_with(':') && !name.is_empty());
    assert_eq!(defined, expected);
}

#[test]
fn the_preload_library_exports_only_what_it_replaces() {
    // Without versions, which would keep programs from finding them.
    let expected = PRELOADED.split_whitespace().map(str::to_owned).collect();
    assert_eq!(nm(&["-D", "--defined-only"], &preload_library()), expected);
}

/// What the preload library replaces, and its table for other copies of the library.
const PRELOADED: &str = "
    malloc calloc realloc free cfree posix_memalign aligned_alloc memalign valloc pvalloc malloc_usable_size
    fork _exit _Exit quick_exit
    mprotect pkey_mprotect madvise posix_madvise mlock mlock2 munlock mlockall munlockall mbind munmap mremap vmsplice
    process_vm_writev
    close close_range closefrom dup2 dup3
    daxtier_runtime_v1
";

#[test]
fn the_libraries_load_with_an_old_glibc() {
    for library in [shared_library(), preload_library()] {
        let dynamic = text_of(Command::new("objdump").arg("-p").arg(&library));
        let needed = dynamic.lines().skip_while(|line| !line.starts_with("Version References"));
        let versions: Vec<&str> = needed.filter_map(|line| line.split(' ').next_back()).collect();
        assert!(versions.contains(&"GLIBC_2.2.5") || !cfg!(target_arch = "x86_64"), "{dynamic}");
        for version in versions.iter().filter_map(|version| version.strip_prefix("GLIBC_")) {
            let numbers: Vec<u32> = version.split('.').map(|n| n.parse().expect("a number")).collect();
            assert!(numbers[..2] <= OLDEST_GLIBC[..], "{} needs glibc {version}", library.display());
        }
        // What the old glibc does not have is a weak reference without a version, or not there.
        let undefined = text_of(Command::new("nm").args(["-D", "--undefined-only"]).arg(&library));
        for line in undefined.lines() {
            let (kind, name) = line.trim().split_once(' ').expect("nm prints kind and name");
            assert!(
                name.contains('@') || matches!(kind, "w" | "v"),
                "{} cannot be told to exist",
                line.trim()
            );
        }
    }
}

#[test]
fn the_libraries_are_named_for_their_interface() {
    let soname = |library: &PathBuf| {
        let text = text_of(Command::new("readelf").arg("-dW").arg(library));
        let line = text.lines().find(|line| line.contains("(SONAME)")).expect("the library has a SONAME");
        line.split(['[', ']']).nth(1).expect("readelf puts the name in brackets").to_owned()
    };
    assert_eq!(soname(&shared_library()), "libdaxtier.so.0");
    assert_eq!(soname(&preload_library()), "libdaxtier_preload.so");
    for (link, target) in [
        ("libdaxtier.so", "libdaxtier.so.0".to_owned()),
        ("libdaxtier.so.0", format!("libdaxtier.so.{}", env!("CARGO_PKG_VERSION"))),
    ] {
        let found = std::fs::read_link(installed().join("lib").join(link)).expect("the link is there");
        assert_eq!(found.to_str(), Some(target.as_str()));
    }
}

#[test]
fn every_function_states_its_contract() {
    for (name, comment) in functions() {
        for topic in ["Threads:", "Blocks:", "After fork:", "Signal handlers:", "Lifetime:"] {
            assert!(comment.contains(topic), "{name} says nothing about {topic}");
        }
    }
}

#[test]
fn every_code_of_the_header_has_a_text_of_its_own() {
    let header = header();
    let codes: Vec<&str> =
        header.lines().filter_map(|line| line.strip_prefix("#define DAXTIER_E")?.split(' ').next()).collect();
    assert!(codes.len() > 20, "{codes:?}");
    let calls: String =
        codes.iter().map(|code| format!("puts(daxtier_strerror(DAXTIER_E{code}));")).collect();
    let source = installed().join("codes.c");
    let text = format!("#include <daxtier.h>\n#include <stdio.h>\nint main(void) {{ {calls} return 0; }}\n");
    std::fs::write(&source, text).expect("the target folder can be written to");
    let program = support::compile(support::compilers()[0], &source, support::Linkage::Shared, &[]);
    let printed = text_of(&mut Command::new(program));
    let texts: BTreeSet<&str> = printed.lines().collect();
    assert_eq!(texts.len(), codes.len(), "two codes share a text: {printed}");
    assert!(!texts.contains("unknown code") && !texts.contains("the kernel refused a system call"));
}

#[test]
fn an_installation_into_a_destdir_names_the_prefix_only() {
    let destdir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("destdir");
    let _ = std::fs::remove_dir_all(&destdir);
    let mut install = Command::new(env!("CARGO"));
    install.args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--",
        "install",
        "--prefix=/opt/daxtier",
        "--libdir=lib64",
    ]);
    if cfg!(debug_assertions) {
        install.arg("--debug");
    }
    run(install.arg("--destdir").arg(&destdir).current_dir(root()));
    let tree = destdir.join("opt/daxtier");
    for file in ["bin/daxtier", "include/daxtier.h", "lib64/libdaxtier.a", "lib64/libdaxtier_preload.so"] {
        assert!(tree.join(file).is_file(), "{file} is missing");
    }
    let pc = std::fs::read_to_string(tree.join("lib64/pkgconfig/daxtier.pc")).expect("it is installed");
    assert!(pc.contains("prefix=/opt/daxtier\n") && !pc.contains("destdir"), "{pc}");
    if is_installed("pkg-config") {
        let mut query = Command::new("pkg-config");
        query.env("PKG_CONFIG_PATH", tree.join("lib64/pkgconfig")).args(["--static", "--libs", "daxtier"]);
        assert!(text_of(&mut query).contains("-ldl"));
    }
}
