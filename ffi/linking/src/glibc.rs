//! Stub libraries that stand for an old glibc at link time.
//!
//! For every library of glibc that is installed here, a stub with the same SONAME lists each symbol at its newest
//! version that the old glibc had. glibc 2.34 merged `libpthread`, `libdl`, `librt` and `libutil` into `libc`; a
//! merged symbol is listed in the library that the old glibc had it in, so that the linked library names that one
//! as needed. (The new glibc keeps those libraries as empty shells, so this holds on both sides.) What the old
//! glibc kept in its static part, `stat64` and its family, comes from `shims.c`, as hidden functions.

use crate::{LinkingError, variable};
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, Sym as _};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A version of glibc: major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlibcVersion(pub u32, pub u32);

impl fmt::Display for GlibcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The version in which glibc merged its small libraries into `libc`.
const MERGED: GlibcVersion = GlibcVersion(2, 34);

/// The libraries that rustc names on the link line: the `-l` name and the file.
const LIBRARIES: [(&str, &str); 6] = [
    ("c", "libc.so.6"),
    ("pthread", "libpthread.so.0"),
    ("dl", "libdl.so.2"),
    ("m", "libm.so.6"),
    ("rt", "librt.so.1"),
    ("util", "libutil.so.1"),
];

/// The dynamic loader of each architecture; `libc.so` names it for `__tls_get_addr`.
const LOADERS: [(&str, &str); 5] = [
    ("x86_64", "ld-linux-x86-64.so.2"),
    ("aarch64", "ld-linux-aarch64.so.1"),
    ("riscv64", "ld-linux-riscv64-lp64d.so.1"),
    ("powerpc64", "ld64.so.2"),
    ("s390x", "ld64.so.1"),
];

/// A symbol as a stub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Symbol {
    version: String,
    is_function: bool,
    size: u64,
}

/// The symbols of one library, by name.
type Symbols = BTreeMap<String, Symbol>;

/// Fills `dir` with stubs of the libraries of glibc as they were in `oldest`, and with the linker script `libc.so`.
pub(crate) fn make_stubs(oldest: GlibcVersion, dir: &Path) -> Result<(), LinkingError> {
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    fs::create_dir_all(dir).map_err(|source| LinkingError::File { path: dir.to_owned(), source })?;
    let mut libraries = BTreeMap::new();
    for (_, file) in LIBRARIES {
        let Some(path) = find(file)? else { continue };
        println!("cargo::rerun-if-changed={}", path.display());
        merge(&mut libraries, file, read_symbols(&path)?, oldest);
    }
    for (name, file) in LIBRARIES {
        if let Some(symbols) = libraries.get(file) {
            // `libc.so` is a linker script, below.
            let output = if name == "c" { file.to_owned() } else { format!("lib{name}.so") };
            link_stub(dir, &output, file, symbols)?;
        }
    }
    let mut group = format!("{}/libc.so.6", dir.display());
    if let Some(path) = find("libc_nonshared.a")? {
        write!(group, " {}", path.display()).expect("writing to a String succeeds");
    }
    write!(group, " {}", compile_shims(dir)?.display()).expect("writing to a String succeeds");
    if let Some((_, file)) = LOADERS.iter().find(|(name, _)| *name == arch)
        && let Some(path) = find(file)?
    {
        let mut loader = BTreeMap::new();
        merge(&mut loader, file, read_symbols(&path)?, oldest);
        link_stub(dir, file, file, &loader.remove(*file).unwrap_or_default())?;
        write!(group, " AS_NEEDED ( {}/{file} )", dir.display()).expect("writing to a String succeeds");
    }
    write_file(&dir.join("libc.so"), &format!("GROUP ( {group} )\n"))
}

/// Asks the C compiler where it finds a library.
fn find(file: &str) -> Result<Option<PathBuf>, LinkingError> {
    let mut command = compiler()?;
    command.arg(format!("-print-file-name={file}"));
    let path = PathBuf::from(run(&mut command)?.trim());
    // The compiler repeats the name when it finds nothing.
    Ok(path.is_absolute().then_some(path))
}

/// Sorts the symbols of `file` into the libraries that the old glibc had them in.
fn merge(
    libraries: &mut BTreeMap<String, Symbols>,
    file: &str,
    all: BTreeMap<String, Vec<Symbol>>,
    oldest: GlibcVersion,
) {
    libraries.entry(file.to_owned()).or_default();
    for (name, versions) in all {
        let known: Vec<_> =
            versions.iter().filter_map(|symbol| Some((parse_version(&symbol.version)?, symbol))).collect();
        let is_old = |(version, _): &&(FullVersion, _)| GlibcVersion(version[0], version[1]) <= oldest;
        let Some((_, symbol)) = known.iter().filter(is_old).max_by_key(|(version, _)| *version) else {
            continue;
        };
        let has_moved =
            known.iter().any(|entry| !is_old(&entry) && GlibcVersion(entry.0[0], entry.0[1]) <= MERGED);
        let home = if file == "libc.so.6" && has_moved { home_of(&name) } else { file };
        libraries.entry(home.to_owned()).or_default().insert(name, (*symbol).clone());
    }
}

/// Returns the library that held a symbol before the merge. Symbols of `libpthread` that were in `libc` as well
/// did not move, and are not asked for.
fn home_of(name: &str) -> &'static str {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if starts(&["pthread_", "__pthread_", "sem_", "_pthread_"]) {
        "libpthread.so.0"
    } else if starts(&["dlopen", "dlsym", "dlvsym", "dlclose", "dlerror", "dladdr", "dlinfo", "dlmopen"]) {
        "libdl.so.2"
    } else if starts(&["mq_", "aio_", "lio_", "shm_", "timer_"]) {
        "librt.so.1"
    } else if ["openpty", "forkpty", "login", "login_tty", "logout", "logwtmp"].contains(&name) {
        "libutil.so.1"
    } else {
        "libc.so.6"
    }
}

/// A symbol's version, up to three numbers.
type FullVersion = [u32; 3];

/// Reads `GLIBC_2.3.4`. `GLIBC_PRIVATE` and others are `None`.
fn parse_version(version: &str) -> Option<FullVersion> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?])
}

/// Reads what a library defines: for each name its versions, without thread-local objects.
fn read_symbols(path: &Path) -> Result<BTreeMap<String, Vec<Symbol>>, LinkingError> {
    let data = fs::read(path).map_err(|source| LinkingError::File { path: path.to_owned(), source })?;
    parse_symbols(&data).map_err(|source| LinkingError::Elf { path: path.to_owned(), source })
}

fn parse_symbols(data: &[u8]) -> object::read::Result<BTreeMap<String, Vec<Symbol>>> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
    let mut found = BTreeMap::<String, Vec<Symbol>>::new();
    let Some(versions) = sections.versions(endian, data)? else { return Ok(found) };
    for (index, symbol) in symbols.enumerate() {
        if symbol.is_undefined(endian) || symbol.st_type() == elf::STT_TLS {
            continue;
        }
        let Some(version) = versions.version(versions.version_index(endian, index))? else { continue };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if symbols.symbol_name(endian, symbol)? == version.name() {
            // A version's own entry.
            continue;
        }
        found.entry(text(symbols.symbol_name(endian, symbol)?)).or_default().push(Symbol {
            version: text(version.name()),
            is_function: matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC),
            size: symbol.st_size(endian),
        });
    }
    Ok(found)
}

/// Links the stub of one library.
fn link_stub(dir: &Path, output: &str, soname: &str, symbols: &Symbols) -> Result<(), LinkingError> {
    let source = dir.join(format!("{soname}.s"));
    let script = dir.join(format!("{soname}.map"));
    write_file(&source, &assembly(symbols))?;
    write_file(&script, &version_script(symbols))?;
    let mut command = compiler()?;
    command
        .args(["-shared", "-nostdlib", "-o"])
        .arg(dir.join(output))
        .arg(&source)
        .arg(format!("-Wl,-soname,{soname}"))
        .arg(format!("-Wl,--version-script,{}", script.display()));
    run(&mut command).map(drop)
}

fn assembly(symbols: &Symbols) -> String {
    let mut text = String::new();
    for (name, symbol) in symbols {
        let (section, kind) = if symbol.is_function { (".text", "function") } else { (".data", "object") };
        let size = symbol.size.max(1);
        writeln!(
            text,
            "{section}\n.globl \"{name}\"\n.type \"{name}\", %{kind}\n.size \"{name}\", {size}\n\"{name}\":\n.zero {}",
            if symbol.is_function { 1 } else { size }
        )
        .expect("writing to a String succeeds");
    }
    text.push_str(".section .note.GNU-stack,\"\",%progbits\n");
    text
}

fn version_script(symbols: &Symbols) -> String {
    let mut by_version = BTreeMap::<&str, Vec<&str>>::new();
    for (name, symbol) in symbols {
        by_version.entry(&symbol.version).or_default().push(name);
    }
    let mut text = String::new();
    for (version, names) in by_version {
        writeln!(text, "{version} {{ global: {}; }};", names.join("; "))
            .expect("writing to a String succeeds");
    }
    if text.is_empty() {
        text.push_str("{ local: *; };\n");
    }
    text
}

/// Compiles the functions that the old glibc had in `libc_nonshared.a`.
fn compile_shims(dir: &Path) -> Result<PathBuf, LinkingError> {
    let source = dir.join("shims.c");
    write_file(&source, include_str!("shims.c"))?;
    let object = dir.join("shims.o");
    let archive = dir.join("libshims.a");
    let mut command = compiler()?;
    command.args(["-O2", "-fPIC", "-fvisibility=hidden", "-c", "-o"]).arg(&object).arg(&source);
    run(&mut command)?;
    // An archive is replaced, not extended.
    let _ = fs::remove_file(&archive);
    let mut command = cc::Build::new()
        .try_get_archiver()
        .map_err(|error| LinkingError::Tool { command: "ar".to_owned(), output: error.to_string() })?;
    run(command.arg("crs").arg(&archive).arg(&object))?;
    Ok(archive)
}

pub(crate) fn compiler() -> Result<Command, LinkingError> {
    let tool = cc::Build::new()
        .cargo_metadata(false)
        .try_get_compiler()
        .map_err(|error| LinkingError::Tool { command: "cc".to_owned(), output: error.to_string() })?;
    Ok(tool.to_command())
}

pub(crate) fn run(command: &mut Command) -> Result<String, LinkingError> {
    let message = match command.output() {
        Ok(output) if output.status.success() => {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    Err(LinkingError::Tool { command: words.join(" "), output: message })
}

pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), LinkingError> {
    fs::write(path, text).map_err(|source| LinkingError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(version: &str) -> Symbol {
        Symbol { version: version.to_owned(), is_function: true, size: 1 }
    }

    fn old_libraries(name: &str, versions: &[&str]) -> BTreeMap<String, Symbols> {
        let mut libraries = BTreeMap::new();
        let all = BTreeMap::from([(name.to_owned(), versions.iter().map(|v| symbol(v)).collect())]);
        merge(&mut libraries, "libc.so.6", all, GlibcVersion(2, 28));
        libraries
    }

    #[test]
    fn a_merged_symbol_goes_back_to_its_old_library() {
        let libraries = old_libraries("pthread_create", &["GLIBC_2.2.5", "GLIBC_2.34"]);
        assert_eq!(libraries["libpthread.so.0"]["pthread_create"].version, "GLIBC_2.2.5");
        let libraries = old_libraries("dlsym", &["GLIBC_2.2.5", "GLIBC_2.34"]);
        assert_eq!(libraries["libdl.so.2"]["dlsym"].version, "GLIBC_2.2.5");
    }

    #[test]
    fn a_symbol_that_was_always_in_libc_stays_there() {
        let libraries = old_libraries("pthread_self", &["GLIBC_2.2.5"]);
        assert_eq!(libraries["libc.so.6"]["pthread_self"].version, "GLIBC_2.2.5");
    }

    #[test]
    fn the_newest_version_that_is_old_enough_is_taken() {
        let libraries = old_libraries("realpath", &["GLIBC_2.3.4", "GLIBC_2.3.2", "GLIBC_2.29"]);
        assert_eq!(libraries["libc.so.6"]["realpath"].version, "GLIBC_2.3.4");
        let libraries = old_libraries("memcpy", &["GLIBC_2.2.5", "GLIBC_2.14"]);
        assert_eq!(libraries["libc.so.6"]["memcpy"].version, "GLIBC_2.14");
    }

    #[test]
    fn a_symbol_that_is_too_new_or_private_is_left_out() {
        for version in ["GLIBC_2.30", "GLIBC_PRIVATE"] {
            assert!(old_libraries("gettid", &[version])["libc.so.6"].is_empty(), "{version}");
        }
    }
}
