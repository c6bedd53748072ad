//! How the shared libraries of daxtier are linked. For build scripts only.
//!
//! [`Cdylib`] says what a library wants: a SONAME, a version script, and nothing newer than a given glibc at load.
//! [`Cdylib::emit`] prints the link arguments for Cargo. Two things need more than an argument:
//!
//! - **Old glibc.** A library that is linked on a new system asks for the newest version of each symbol
//!   (`pthread_create@GLIBC_2.34`), and does not load on an older one. `glibc` makes *stub* libraries, which list
//!   the symbols of the libraries that are installed here at the versions that the old glibc had, and the library is
//!   linked against the stubs. What the old glibc lacked is undefined: a weak reference stays one that is resolved at
//!   load, any other fails the link (`-z defs`).
//! - **Symbol versions.** rustc hands the linker an anonymous version script, which cannot stand beside a named one.
//!   `version_script` makes a linker front that leaves rustc's out.
//!
//! Used by the build scripts of `ffi` and `ffi/preload`.

use std::env;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

mod glibc;
mod version_script;

pub use glibc::GlibcVersion;

/// What a shared library wants from its linker.
#[derive(Clone, Debug)]
pub struct Cdylib {
    soname: String,
    oldest_glibc: GlibcVersion,
    version_script: Option<PathBuf>,
    exports_c: bool,
}

impl Cdylib {
    /// Describes a library that loads with glibc 2.28 and newer and stays loaded once it is.
    pub fn new(soname: &str) -> Cdylib {
        Cdylib {
            soname: soname.to_owned(),
            oldest_glibc: GlibcVersion(2, 28),
            version_script: None,
            exports_c: false,
        }
    }

    /// Exports exactly what this version script says, at the versions that it says.
    #[must_use]
    pub fn version_script(mut self, path: &Path) -> Cdylib {
        self.version_script = Some(path.to_owned());
        self
    }

    /// The version script names functions that are written in C, of which rustc's own list knows nothing: without GNU ld
    /// the library can't be linked.
    #[must_use]
    pub fn exports_c(mut self) -> Cdylib {
        self.exports_c = true;
        self
    }

    /// Prints the link arguments for Cargo. Does nothing for targets other than `*-linux-gnu`.
    ///
    /// # Errors
    /// [`LinkingError`] names the tool or the file that failed.
    pub fn emit(&self) -> Result<(), LinkingError> {
        println!("cargo::rerun-if-changed=build.rs");
        if variable("CARGO_CFG_TARGET_OS")? != "linux" || variable("CARGO_CFG_TARGET_ENV")? != "gnu" {
            return Ok(());
        }
        let out_dir = PathBuf::from(variable("OUT_DIR")?);
        link_arg(&format!("-Wl,-soname,{}", self.soname));
        // Threads, thread-local destructors and other libraries hold pointers into the library.
        link_arg("-Wl,-z,nodelete");
        link_arg("-Wl,-z,defs");
        let stubs = out_dir.join("glibc-stubs");
        glibc::make_stubs(self.oldest_glibc, &stubs)?;
        link_arg(&format!("-L{}", stubs.display()));
        if let Some(script) = &self.version_script {
            println!("cargo::rerun-if-changed={}", script.display());
            if !version_script::apply(script, &out_dir.join("linker-front"))? {
                if self.exports_c {
                    return Err(LinkingError::NoGnuLd { library: self.soname.clone() });
                }
                println!(
                    "cargo::warning=GNU ld is not installed: the symbols of the library carry no versions"
                );
            }
        }
        Ok(())
    }
}

fn link_arg(arg: &str) {
    println!("cargo::rustc-cdylib-link-arg={arg}");
}

fn variable(name: &'static str) -> Result<String, LinkingError> {
    env::var(name).map_err(|_| LinkingError::NotInBuildScript { name })
}

/// A library whose link could not be prepared.
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkingError {
    /// A variable that Cargo sets for build scripts is missing.
    NotInBuildScript {
        /// The variable.
        name: &'static str,
    },
    /// A file could not be read or written.
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not an ELF library, or not one that is understood.
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: object::read::Error,
    },
    /// GNU ld is needed and not installed.
    NoGnuLd {
        /// The library that needs it.
        library: String,
    },
    /// A tool could not be run or failed.
    Tool {
        /// The command line.
        command: String,
        /// What it printed, or why it did not start.
        output: String,
    },
}

impl fmt::Display for LinkingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkingError::NotInBuildScript { name } => {
                write!(f, "{name} is not set: this runs in build scripts only")
            }
            LinkingError::File { path, source } => write!(f, "{}: {source}", path.display()),
            LinkingError::Elf { path, source } => write!(f, "{}: {source}", path.display()),
            LinkingError::NoGnuLd { library } => {
                write!(
                    f,
                    "GNU ld (ld.bfd) is not installed, and {library} can't be linked without: install binutils"
                )
            }
            LinkingError::Tool { command, output } => write!(f, "{command}: {output}"),
        }
    }
}

impl std::error::Error for LinkingError {}
