//! Where the preload library is, and how the dynamic loader is told.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The library's file name.
pub(crate) const NAME: &str = "libdaxtier_preload.so";
/// Where it is looked for, from the directory of this program.
const PLACES: [&str; 3] = [".", "../lib", "../lib/daxtier"];

/// Why the library cannot be preloaded.
#[derive(Debug)]
pub(crate) enum PreloadError {
    /// It is in none of the places.
    NotFound {
        /// The directory of this program.
        beside: PathBuf,
    },
    /// The file that `--preload` names is not there or cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The loader could not be told this path: it takes it apart at blanks and colons, and expands `$`.
    OddPath {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for PreloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PreloadError::NotFound { beside } => {
                let places = PLACES.map(|place| beside.join(place).display().to_string());
                write!(f, "{NAME} is in none of {}: build it, or name it with --preload", places.join(", "))
            }
            PreloadError::Unreadable { path, error } => write!(f, "--preload {}: {error}", path.display()),
            PreloadError::OddPath { path } => write!(
                f,
                "{}: the dynamic loader cannot preload from a path with blanks, colons or $ in it: move the library \
                 and name it with --preload",
                path.display()
            ),
        }
    }
}

/// Finds the library: the one that is named, else the one beside this program, which lies at `program`.
///
/// # Errors
/// [`PreloadError`] when there is none that could be loaded.
pub(crate) fn find(named: Option<&Path>, program: &Path) -> Result<PathBuf, PreloadError> {
    let path = match named {
        Some(path) => {
            let readable = std::fs::File::open(path).and_then(|_| path.canonicalize());
            readable.map_err(|error| PreloadError::Unreadable { path: path.to_owned(), error })?
        }
        None => {
            let beside = program.parent().unwrap_or(Path::new("/"));
            let candidates = PLACES.iter().map(|place| beside.join(place).join(NAME));
            let found = candidates.filter_map(|path| path.canonicalize().ok()).find(|path| path.is_file());
            found.ok_or_else(|| PreloadError::NotFound { beside: beside.to_owned() })?
        }
    };
    let odd = path.as_os_str().as_bytes().iter().any(|b| b.is_ascii_whitespace() || matches!(b, b':' | b'$'));
    if odd { Err(PreloadError::OddPath { path }) } else { Ok(path) }
}

/// Returns the value of `LD_PRELOAD` with `library` in front of what is there already.
pub(crate) fn list(library: &Path, before: Option<&OsStr>) -> OsString {
    let ours = library.as_os_str().as_bytes();
    let rest = before.unwrap_or_default().as_bytes().split(|&b| b == b':' || b == b' ');
    // Under another `daxtier run` the library is in the list already; once is enough.
    let rest = rest.filter(|entry| !entry.is_empty() && *entry != ours);
    let entries: Vec<&[u8]> = std::iter::once(ours).chain(rest).collect();
    OsString::from_vec(entries.join(&b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_preloaded_already_stays_behind_ours() {
        let list =
            |before: &str| list(Path::new("/lib/our.so"), Some(OsStr::new(before))).into_string().unwrap();
        assert_eq!(super::list(Path::new("/lib/our.so"), None), "/lib/our.so");
        assert_eq!(list(""), "/lib/our.so");
        assert_eq!(list("a.so b.so:c.so"), "/lib/our.so:a.so:b.so:c.so");
        assert_eq!(list(":a.so:/lib/our.so:"), "/lib/our.so:a.so");
    }

    #[test]
    fn the_library_lies_beside_the_program_or_is_named() {
        let root = std::env::temp_dir().join(format!("daxtier-cli-preload-{}", std::process::id()));
        for directory in ["bin", "lib/daxtier", "odd dir"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        let root = root.canonicalize().unwrap();
        let program = root.join("bin/daxtier");
        assert!(matches!(find(None, &program), Err(PreloadError::NotFound { .. })));
        // From the last place that is looked at to the first: each hides the one before.
        for place in ["lib/daxtier", "lib", "bin"] {
            let library = root.join(place).join(NAME);
            std::fs::write(&library, b"").unwrap();
            assert_eq!(find(None, &program).unwrap(), library);
        }
        let odd = root.join("odd dir").join(NAME);
        assert!(matches!(find(Some(&odd), &program), Err(PreloadError::Unreadable { .. })));
        std::fs::write(&odd, b"").unwrap();
        assert!(matches!(find(Some(&odd), &program), Err(PreloadError::OddPath { .. })));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
