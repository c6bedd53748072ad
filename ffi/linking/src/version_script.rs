//! A version script with named versions, in place of rustc's.
//!
//! rustc limits what a cdylib exports with an anonymous version script. GNU ld refuses to combine that with a named
//! one, and lld prefers it silently. So the library is linked through a *front*: a script called `ld.bfd`, found by
//! the C compiler through `-B`, which leaves out every version script but ours and runs GNU ld. rustc's
//! `--no-undefined-version` stays: a name in our script that the library does not define fails the link.

use crate::glibc::{compiler, run, write_file};
use crate::{LinkingError, link_arg};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Links with `script` and through a front in `dir`. Returns `false` where GNU ld is missing; then rustc's list stays in
/// force: the same names are exported but for those written in C, without versions.
pub(crate) fn apply(script: &Path, dir: &Path) -> Result<bool, LinkingError> {
    let ld = PathBuf::from(run(compiler()?.arg("-print-prog-name=ld.bfd"))?.trim());
    let has_ld = if ld.is_absolute() {
        ld.exists()
    } else {
        // A bare name is looked up in PATH.
        run(std::process::Command::new(&ld).arg("--version")).is_ok()
    };
    if !has_ld {
        return Ok(false);
    }
    let file_error = |source| LinkingError::File { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(file_error)?;
    let front = dir.join("ld.bfd");
    write_file(&front, &front_script(&ld, script))?;
    fs::set_permissions(&front, fs::Permissions::from_mode(0o755)).map_err(file_error)?;
    link_arg(&format!("-B{}", dir.display()));
    link_arg("-fuse-ld=bfd");
    link_arg(&format!("-Wl,--version-script={}", script.display()));
    Ok(true)
}

fn front_script(ld: &Path, script: &Path) -> String {
    format!(
        "#!/bin/sh
# Runs GNU ld without the version script of rustc.
for arg do
    shift
    case $arg in
    '--version-script={}') set -- \"$@\" \"$arg\" ;;
    --version-script=*) ;;
    *) set -- \"$@\" \"$arg\" ;;
    esac
done
exec '{}' \"$@\"
",
        script.display(),
        ld.display()
    )
}
