//! Compiles what works on mimalloc's structures, `src/heap/*.c`, against the very mimalloc that is linked.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    const SOURCES: [&str; 2] = ["src/heap/census.c", "src/heap/engine.c"];
    SOURCES.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
    let Ok(include) = env::var("DEP_MIMALLOC_INCLUDE_DIR") else {
        eprintln!("libmimalloc-sys did not say where its headers are: daxtier needs its version 0.1.49");
        return ExitCode::FAILURE;
    };
    cc::Build::new()
        .files(SOURCES)
        .include(include)
        .std("gnu11")
        // As mimalloc itself: the address of a thread's variables is known without a call.
        .flag("-ftls-model=initial-exec")
        .compile("daxtier_engine");
    ExitCode::SUCCESS
}
