//! Gives the shared library its SONAME, its symbol versions and an old glibc.

use daxtier_linking::Cdylib;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("libdaxtier.map");
    match Cdylib::new("libdaxtier.so.0").version_script(&script).emit() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
