//! Compiles malloc and free, and gives the preload library its SONAME, its list of exports and an old glibc.

use daxtier_linking::Cdylib;
use std::env;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = compile_malloc() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("libdaxtier_preload.map");
    match Cdylib::new("libdaxtier_preload.so").version_script(&script).exports_c().emit() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Compiles `malloc.c` to an object that is linked whole: in a library, malloc would only be taken if somebody asked for it
/// before the C library.
fn compile_malloc() -> Result<(), String> {
    let include =
        |name: &str| env::var(name).map_err(|_| format!("{name} is not set: the crate daxtier sets it"));
    let engine = include("DEP_DAXTIER_ENGINE_INCLUDE")?;
    for file in ["src/malloc.c", &format!("{engine}/engine.h"), &format!("{engine}/../sync/shortcut.h")] {
        println!("cargo::rerun-if-changed={file}");
    }
    let objects = cc::Build::new()
        .file("src/malloc.c")
        .include(engine)
        .include(include("DEP_DAXTIER_ENGINE_MIMALLOC_INCLUDE")?)
        .std("gnu11")
        // As the engine itself: the address of a thread's variables is known without a call.
        .flag("-ftls-model=initial-exec")
        // What stands in for malloc must not be taken for what the compiler knows of malloc.
        .flag("-fno-builtin")
        // A few processors decode a branch that crosses such a boundary anew each time.
        .flag_if_supported("-Wa,-mbranches-within-32B-boundaries")
        .try_compile_intermediates()
        .map_err(|error| error.to_string())?;
    for object in objects {
        println!("cargo::rustc-cdylib-link-arg={}", object.display());
    }
    Ok(())
}
