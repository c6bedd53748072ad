//! The C tests and examples: compiled by every compiler that is here, as C11 and as C++, and run.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Compiler, Linkage, compile, compilers, installed, is_installed, root, run, sources};

/// What the tests are called that run under the preload library, and only there.
const PRELOADED: &str = "preloaded";

/// Whether a test moves memory between tiers. Not under valgrind: it runs one thread at a time, and none during a mremap,
/// which waits for another thread there.
fn moves_memory(source: &Path) -> bool {
    source.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("migrate"))
}

fn is_preloaded(source: &Path) -> bool {
    source.file_stem().is_some_and(|name| name.to_string_lossy().starts_with(PRELOADED))
}

/// Returns the command that runs a test program, under the preload library where that is what it tests.
fn command_for(source: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_preloaded(source) {
        command.env("LD_PRELOAD", installed().join("lib/libdaxtier_preload.so"));
        command.envs([
            ("DAXTIER_FAST", "64M"),
            ("DAXTIER_SLOW", "emulated:128M"),
            ("DAXTIER_POLICY", "preferred=slow"),
            ("DAXTIER_MIGRATE", "on,workers=2"),
        ]);
    }
    command
}

fn first_compiler() -> Compiler {
    compilers()[0]
}

#[test]
fn tests_pass_with_every_compiler_and_language() {
    for compiler in compilers() {
        for source in sources("ffi/tests/c") {
            let program = compile(compiler, &source, Linkage::Shared, &[]);
            run(&mut command_for(&source, &program));
        }
    }
}

#[test]
fn tests_pass_with_the_static_library() {
    for source in sources("ffi/tests/c") {
        let program = compile(first_compiler(), &source, Linkage::Static, &[]);
        run(&mut command_for(&source, &program));
    }
}

#[test]
#[ignore = "long: runs with --all"]
fn ten_thousand_pools_leave_nothing_behind() {
    let source = root().join("ffi/tests/c/cycles.c");
    // The flag gives it a name of its own: the other tests compile it too, at the same time.
    let program = compile(first_compiler(), &source, Linkage::Shared, &["-O2"]);
    run(Command::new(program).arg("10000"));
}

#[test]
fn examples_run_as_they_are() {
    for compiler in compilers() {
        for source in sources("examples/c") {
            let output = run(&mut Command::new(compile(compiler, &source, Linkage::Shared, &[])));
            assert!(!output.stdout.is_empty(), "{} prints nothing", source.display());
        }
    }
}

#[test]
fn programs_of_the_readme_run_as_they_are() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the repository has a README");
    let programs: Vec<&str> =
        readme.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!programs.is_empty(), "the README shows no C program");
    for (at, program) in programs.into_iter().enumerate() {
        let source = installed().join(format!("readme{at}.c"));
        std::fs::write(&source, program).expect("the target folder can be written to");
        for compiler in compilers() {
            run(&mut Command::new(compile(compiler, &source, Linkage::Shared, &[])));
        }
    }
}

#[test]
fn a_cmake_project_finds_both_libraries() {
    if !is_installed("cmake") {
        println!("skipped: cmake is not installed");
        return;
    }
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cmake-project");
    std::fs::create_dir_all(&project).expect("the target folder can be written to");
    let source = root().join("ffi/tests/c/version.c");
    let text = format!(
        "cmake_minimum_required(VERSION 3.13)\nproject(finds_daxtier C)\nfind_package(daxtier 0.1 CONFIG REQUIRED)\n\
         foreach(kind daxtier daxtier_static)\n  add_executable(with_${{kind}} {})\n  \
         target_link_libraries(with_${{kind}} PRIVATE daxtier::${{kind}})\nendforeach()\n",
        source.display()
    );
    std::fs::write(project.join("CMakeLists.txt"), text).expect("the project can be written");
    let build = project.join("build");
    let _ = std::fs::remove_dir_all(&build);
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", installed().display());
    run(Command::new("cmake").arg("-S").arg(&project).arg("-B").arg(&build).arg(prefix));
    run(Command::new("cmake").arg("--build").arg(&build));
    for kind in ["daxtier", "daxtier_static"] {
        run(&mut Command::new(build.join(format!("with_{kind}"))));
    }
    // A version that this is not.
    let text = "cmake_minimum_required(VERSION 3.13)\nproject(wants_more C)\nfind_package(daxtier 0.2 CONFIG REQUIRED)\n";
    std::fs::write(project.join("CMakeLists.txt"), text).expect("the project can be written");
    let _ = std::fs::remove_dir_all(&build);
    let mut wants_more = Command::new("cmake");
    wants_more.arg("-S").arg(&project).arg("-B").arg(&build);
    wants_more.arg(format!("-DCMAKE_PREFIX_PATH={}", installed().display()));
    assert!(!wants_more.output().expect("cmake starts").status.success());
}

#[test]
#[ignore = "long: runs with --all"]
fn tests_are_clean_under_address_sanitizer() {
    let compiler = first_compiler();
    // Under the preload library malloc is not the sanitizer's.
    for source in sources("ffi/tests/c").iter().filter(|source| !is_preloaded(source)) {
        let program = compile(compiler, source, Linkage::Shared, &["-fsanitize=address,undefined"]);
        run(Command::new(program).env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0"));
    }
}

#[test]
#[ignore = "long: runs with --all"]
fn tests_are_clean_under_valgrind() {
    if !is_installed("valgrind") {
        println!("skipped: valgrind is not installed");
        return;
    }
    let suppressions = format!("--suppressions={}", root().join("ffi/tests/c/valgrind.supp").display());
    let checked = |source: &&PathBuf| !is_preloaded(source) && !moves_memory(source);
    for source in sources("ffi/tests/c").iter().filter(checked) {
        let program = compile(first_compiler(), source, Linkage::Shared, &[]);
        let mut valgrind = Command::new("valgrind");
        valgrind.args([
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ]);
        run(valgrind.arg(&suppressions).arg(program));
    }
}
