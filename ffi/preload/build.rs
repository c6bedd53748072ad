//! Gives the preload library its SONAME and an old glibc. Its symbols have no versions: the program asks for those of
//! the C library.

use daxtier_linking::Cdylib;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cdylib::new("libdaxtier_preload.so").emit() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
