//! Compiles what is written in C: `src/heap/*.c`, against the very mimalloc that is linked, whose structures it works on,
//! and a thread's variables. Tells the preload library where to find `engine.h` and mimalloc's headers.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    const SOURCES: [&str; 4] =
        ["src/heap/census.c", "src/heap/engine.c", "src/sync/here.c", "src/sync/shortcut.c"];
    const HEADERS: [&str; 2] = ["src/heap/engine.h", "src/sync/shortcut.h"];
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo::rerun-if-changed={file}");
    }
    let Ok(include) = env::var("DEP_MIMALLOC_INCLUDE_DIR") else {
        eprintln!("libmimalloc-sys did not say where its headers are: daxtier needs its version 0.1.49");
        return ExitCode::FAILURE;
    };
    println!("cargo::metadata=include={}", concat!(env!("CARGO_MANIFEST_DIR"), "/src/heap"));
    println!("cargo::metadata=mimalloc_include={include}");
    cc::Build::new()
        .files(SOURCES)
        .include(include)
        .std("gnu11")
        // As mimalloc itself: the address of a thread's variables is known without a call.
        .flag("-ftls-model=initial-exec")
        // A few processors decode a branch that crosses such a boundary anew each time.
        .flag_if_supported("-Wa,-mbranches-within-32B-boundaries")
        .compile("daxtier_engine");
    ExitCode::SUCCESS
}
