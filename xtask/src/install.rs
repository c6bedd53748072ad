//! `cargo xtask install --prefix DIR`: installs the libraries, the header, the preload library and the program.
//!
//! Builds what it installs, with the release profile (`--debug`: with the other). `--destdir ROOT` puts the tree
//! below ROOT, for packagers; `--libdir NAME` names the folder for libraries below the prefix, `lib` if it is left out.
//! The static library is made in [`archive`], what tells other builds where things are in [`metadata`].

mod archive;
mod metadata;

use crate::process::{Task, cargo, target_dir};
use crate::root;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The shared library's name at run time; its number changes with the interface.
const SONAME: &str = "libdaxtier.so.0";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the user asked for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Where the installed files will be found: absolute.
    prefix: PathBuf,
    /// What stands before the prefix while installing.
    destdir: Option<PathBuf>,
    /// The folder for libraries below the prefix.
    libdir: String,
    debug: bool,
}

/// Builds and installs.
///
/// # Errors
/// What could not be built or written.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let options = Options::parse(args)?;
    let built = build(options.debug)?;
    let tree = Tree::new(&options);
    let lib = tree.dir(&options.libdir)?;
    let versioned = format!("libdaxtier.so.{VERSION}");
    tree.copy(&built.join("libdaxtier.so"), &lib.join(&versioned), 0o755)?;
    tree.link(&versioned, &lib.join(SONAME))?;
    tree.link(SONAME, &lib.join("libdaxtier.so"))?;
    archive::make(&built.join("libdaxtier.a"), &lib.join("libdaxtier.a"), &exported_functions()?)?;
    tree.note(&lib.join("libdaxtier.a"));
    tree.copy(&built.join("libdaxtier_preload.so"), &lib.join("libdaxtier_preload.so"), 0o755)?;
    tree.copy(&built.join("daxtier"), &tree.dir("bin")?.join("daxtier"), 0o755)?;
    tree.copy(&root().join("include/daxtier.h"), &tree.dir("include")?.join("daxtier.h"), 0o644)?;
    let pkgconfig = tree.dir(&format!("{}/pkgconfig", options.libdir))?;
    tree.write(&pkgconfig.join("daxtier.pc"), &metadata::pkg_config(&options.prefix, &options.libdir))?;
    let cmake = tree.dir(&format!("{}/cmake/daxtier", options.libdir))?;
    tree.write(&cmake.join("daxtier-config.cmake"), &metadata::cmake_config(&options.libdir))?;
    tree.write(&cmake.join("daxtier-config-version.cmake"), &metadata::cmake_version())?;
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        tree.copy(&root().join(licence), &tree.dir("share/licenses/daxtier")?.join(licence), 0o644)?;
    }
    install_manual(&tree, &built.join("daxtier"))
}

impl Options {
    fn parse(args: &[String]) -> Result<Options, String> {
        let (mut prefix, mut destdir, mut libdir, mut debug) = (None, None, "lib".to_owned(), false);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            let mut value = || {
                let value = inline.clone().or_else(|| args.next().cloned());
                value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} needs a value"))
            };
            match name {
                "--prefix" => prefix = Some(PathBuf::from(value()?)),
                "--destdir" => destdir = Some(PathBuf::from(value()?)),
                "--libdir" => libdir = value()?,
                "--debug" if inline.is_none() => debug = true,
                _ => {
                    return Err(format!(
                        "{arg:?} is not understood: --prefix DIR [--destdir ROOT] [--libdir NAME] [--debug]"
                    ));
                }
            }
        }
        let prefix = prefix.ok_or("say where to: --prefix DIR")?;
        if !prefix.is_absolute() {
            return Err(format!("--prefix {} is not an absolute path", prefix.display()));
        }
        Ok(Options { prefix, destdir, libdir, debug })
    }
}

/// Builds all that is installed and returns the folder that holds it.
fn build(debug: bool) -> Result<PathBuf, String> {
    if debug {
        // The very build of the test suite, so that nothing is built twice.
        cargo("build --locked --workspace --quiet").run()?;
        Ok(target_dir().join("debug"))
    } else {
        cargo(
            "build --locked --release --package daxtier-ffi --package daxtier-preload --package daxtier-cli",
        )
        .run()?;
        Ok(target_dir().join("release"))
    }
}

/// Returns the functions that the library exports, from its version script; the table between copies of the library is
/// none of them.
fn exported_functions() -> Result<Vec<String>, String> {
    let path = root().join("ffi/libdaxtier.map");
    let script = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let names = script.lines().filter_map(|line| line.trim().strip_suffix(';'));
    let functions = names.filter(|name| name.starts_with("daxtier_") && *name != "daxtier_runtime_v1");
    Ok(functions.map(str::to_owned).collect())
}

/// Writes the manual pages, which the program knows itself.
fn install_manual(tree: &Tree, program: &Path) -> Result<(), String> {
    let pages = tree.dir("share/man/man1")?;
    let task = Task::program(program.display().to_string()).arg("man").arg(pages.display().to_string());
    // A failure shows in the pages that are missing.
    let _ = task.command().output();
    let entries = fs::read_dir(&pages).map_err(|error| format!("{}: {error}", pages.display()))?;
    let mut written: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    written.sort();
    if written.is_empty() {
        println!("  no manual pages: {} wrote none", program.display());
    }
    written.iter().for_each(|page| tree.note(page));
    Ok(())
}

/// The folders being filled.
struct Tree {
    base: PathBuf,
}

impl Tree {
    fn new(options: &Options) -> Tree {
        let base = match &options.destdir {
            Some(destdir) => {
                let below = options.prefix.strip_prefix("/").unwrap_or(&options.prefix);
                destdir.join(below)
            }
            None => options.prefix.clone(),
        };
        println!("installing daxtier {VERSION} into {}", base.display());
        Tree { base }
    }

    /// Makes a folder and returns it.
    fn dir(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.base.join(name);
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(dir)
    }

    /// Copies a file. A running program keeps the old one.
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), String> {
        let bytes = fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
        self.replace(to, &bytes, mode)
    }

    fn write(&self, to: &Path, text: &str) -> Result<(), String> {
        self.replace(to, text.as_bytes(), 0o644)
    }

    fn replace(&self, to: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
        let failed = |error| format!("{}: {error}", to.display());
        let mut fresh = to.as_os_str().to_owned();
        fresh.push(".new");
        fs::write(&fresh, bytes).map_err(failed)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(failed)?;
        fs::rename(&fresh, to).map_err(failed)?;
        self.note(to);
        Ok(())
    }

    fn link(&self, target: &str, link: &Path) -> Result<(), String> {
        // What is there already is replaced; that there is nothing is no failure.
        let _ = fs::remove_file(link);
        symlink(target, link).map_err(|error| format!("{}: {error}", link.display()))?;
        self.note(link);
        Ok(())
    }

    fn note(&self, path: &Path) {
        println!("  {}", path.strip_prefix(&self.base).unwrap_or(path).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_in_both_spellings() {
        let spaced = parse("--prefix /usr --destdir /tmp/x --libdir lib64 --debug");
        assert_eq!(spaced, parse("--debug --libdir=lib64 --destdir=/tmp/x --prefix=/usr"));
        let options = spaced.unwrap();
        assert_eq!(Tree::new(&options).base, Path::new("/tmp/x/usr"));
    }

    #[test]
    fn wrong_options_are_named() {
        for (line, named) in [
            ("", "--prefix"),
            ("--prefix", "--prefix"),
            ("--prefix usr", "absolute"),
            ("--prefix /usr --strip", "--strip"),
            ("--prefix /usr --debug=yes", "--debug=yes"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn the_version_script_names_the_functions() {
        let functions = exported_functions().unwrap();
        assert!(functions.iter().any(|name| name == "daxtier_open"));
        assert!(functions.iter().all(|name| name != "daxtier_runtime_v1"));
    }
}
