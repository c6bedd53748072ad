//! The static library: one object whose only global symbols are the functions of the header.
//!
//! The archive that rustc makes holds the standard library and mimalloc, with their symbols: a program with a
//! mimalloc of its own would not link, or mix the two. So everything that the interface reaches is linked into one
//! object (`ld -r`), and all other symbols are made local (`objcopy`).

use crate::process::Task;
use std::fs;
use std::path::Path;

/// Makes the archive `to` from rustc's, with these functions.
///
/// # Errors
/// The tool of binutils that is missing or failed.
pub(super) fn make(from: &Path, to: &Path, functions: &[String]) -> Result<(), String> {
    let work = to.with_extension("work");
    fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let outcome = make_in(&work, from, to, functions);
    // Left-overs do no harm.
    let _ = fs::remove_dir_all(&work);
    outcome
}

fn make_in(work: &Path, from: &Path, to: &Path, functions: &[String]) -> Result<(), String> {
    let file = |name: &str| work.join(name).display().to_string();
    let mut link = Task::new("ld -r -o").arg(file("all.o"));
    for function in functions {
        link = link.arg("-u").arg(function.as_str());
    }
    link.arg(from.display().to_string()).run()?;
    fs::write(work.join("symbols"), functions.join("\n") + "\n")
        .map_err(|error| format!("{}: {error}", work.display()))?;
    // The standard library's objects carry their bitcode, on which tools with another LLVM stumble.
    Task::new("objcopy --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd")
        .arg(format!("--keep-global-symbols={}", file("symbols")))
        .arg(file("all.o"))
        .arg(file("daxtier.o"))
        .run()?;
    // An archive is replaced, not extended.
    let _ = fs::remove_file(to);
    Task::new("ar crs").arg(to.display().to_string()).arg(file("daxtier.o")).run()
}
