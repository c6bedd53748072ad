//! What can be told about a program before it is started: whether the dynamic loader will preload anything into
//! it.
//!
//! Only a guess is made here, for a warning: the file may change, and the kernel decides. Scripts are judged by
//! their interpreter.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why a program would not run on our memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It has no dynamic loader.
    Static(PathBuf),
    /// It runs with the rights of its file's owner, group or capabilities.
    Privileged(PathBuf),
    /// It is for another kind of processor, or for 32 bits.
    OtherMachine(PathBuf),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, reason) = match self {
            Obstacle::Static(path) => (path, "is linked statically"),
            Obstacle::Privileged(path) => {
                (path, "runs with the rights of its file (setuid, setgid or capabilities)")
            }
            Obstacle::OtherMachine(path) => (path, "is built for another processor than the preload library"),
        };
        write!(
            f,
            "warning: {} {reason}: nothing is preloaded into it, and it runs on ordinary memory",
            path.display()
        )
    }
}

/// Finds the file that a shell would run for `command`.
pub(crate) fn find(command: &OsStr, search: Option<&OsStr>) -> Option<PathBuf> {
    let runs = |path: &Path| path.metadata().is_ok_and(|data| data.is_file() && data.mode() & 0o111 != 0);
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command)).filter(|path| runs(path));
    }
    std::env::split_paths(search?).map(|directory| directory.join(command)).find(|path| runs(path))
}

/// Looks at a program; `None` when nothing is known against it.
pub(crate) fn obstacle(program: &Path, search: Option<&OsStr>) -> Option<Obstacle> {
    /// As the kernel has it: a script may name a script, and so on.
    const LONGEST_CHAIN: usize = 5;
    let mut path = program.to_owned();
    for _ in 0..LONGEST_CHAIN {
        // A file that may be run and not read cannot be judged.
        let mut file = File::open(&path).ok()?;
        let mut head = Vec::new();
        file.by_ref().take(256).read_to_end(&mut head).ok()?;
        match interpreter(&head, search) {
            Some(next) => path = next,
            None => return judge(path, &file, &head),
        }
    }
    None
}

fn judge(path: PathBuf, file: &File, head: &[u8]) -> Option<Obstacle> {
    let elf = Elf::read(file, head)?;
    if elf.machine != OWN_MACHINE || !elf.is_64_bit {
        return Some(Obstacle::OtherMachine(path));
    }
    // The loader itself, run as a program, preloads and has no loader.
    let is_loader = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld"));
    if !elf.has_loader && !is_loader {
        return Some(Obstacle::Static(path));
    }
    is_privileged(&path, file).then_some(Obstacle::Privileged(path))
}

/// Returns the program that a `#!` line names; for `env`, the one that `env` would run.
fn interpreter(head: &[u8], search: Option<&OsStr>) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let program = Path::new(OsStr::from_bytes(words.next()?));
    if program.file_name() == Some(OsStr::new("env")) {
        let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))?;
        return find(OsStr::from_bytes(name), search);
    }
    Some(program.to_owned())
}

fn is_privileged(path: &Path, file: &File) -> bool {
    let Ok(data) = file.metadata() else { return false };
    // SAFETY: geteuid takes nothing and cannot fail.
    let own_user = unsafe { libc::geteuid() };
    // SAFETY: getegid takes nothing and cannot fail.
    let own_group = unsafe { libc::getegid() };
    let changes_user = data.mode() & libc::S_ISUID != 0 && data.uid() != own_user;
    let changes_group = data.mode() & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        && data.gid() != own_group;
    changes_user || changes_group || (own_user != 0 && has_capabilities(path))
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both names are NUL-terminated and outlive the call; with size 0 nothing is written.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// What an ELF file says of itself.
struct Elf {
    is_64_bit: bool,
    machine: u16,
    has_loader: bool,
}

#[cfg(target_arch = "x86_64")]
const OWN_MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const OWN_MACHINE: u16 = 183;
#[cfg(target_arch = "riscv64")]
const OWN_MACHINE: u16 = 243;

impl Elf {
    /// Reads the header and the program headers; `None` for what is not an ELF file of this byte order.
    fn read(file: &File, head: &[u8]) -> Option<Elf> {
        const PT_INTERP: u32 = 3;
        let own_order = if cfg!(target_endian = "little") { 1 } else { 2 };
        if head.get(..4)? != b"\x7fELF" || *head.get(5)? != own_order {
            return None;
        }
        let is_64_bit = *head.get(4)? == 2;
        let machine = u16::from_ne_bytes(bytes_at(head, 18)?);
        if !is_64_bit {
            return Some(Elf { is_64_bit, machine, has_loader: true });
        }
        let table = u64::from_ne_bytes(bytes_at(head, 32)?);
        let entry_bytes = u16::from_ne_bytes(bytes_at(head, 54)?);
        let nr_entries = u16::from_ne_bytes(bytes_at(head, 56)?);
        let mut has_loader = false;
        for ix in 0..u64::from(nr_entries) {
            let mut kind = [0; 4];
            let at = table.checked_add(ix * u64::from(entry_bytes))?;
            file.read_exact_at(&mut kind, at).ok()?;
            has_loader |= u32::from_ne_bytes(kind) == PT_INTERP;
        }
        Some(Elf { is_64_bit, machine, has_loader })
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("daxtier-cli-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn program(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// An ELF file with one program header of this kind.
    fn elf(class: u8, machine: u16, kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        bytes[18..20].copy_from_slice(&machine.to_ne_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_ne_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_ne_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_ne_bytes());
        bytes[64..68].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn programs_that_preload_nothing_are_recognised() {
        let dir = Scratch::new("obstacles");
        let look = |path: &Path| obstacle(path, None);
        let dynamic = dir.program("dynamic", &elf(2, OWN_MACHINE, 3));
        let fixed = dir.program("fixed", &elf(2, OWN_MACHINE, 1));
        let old = dir.program("old", &elf(1, 3, 3));
        let other = dir.program("other", &elf(2, 9999, 3));
        let loader = dir.program("ld-linux.so.2", &elf(2, OWN_MACHINE, 1));
        assert_eq!(look(&dynamic), None);
        assert_eq!(look(&fixed), Some(Obstacle::Static(fixed.clone())));
        assert_eq!(look(&old), Some(Obstacle::OtherMachine(old)));
        assert_eq!(look(&other), Some(Obstacle::OtherMachine(other)));
        assert_eq!(look(&loader), None);
        let script = dir.program("script", format!("#! {} -x\n", fixed.display()).as_bytes());
        assert_eq!(look(&script), Some(Obstacle::Static(fixed)));
        let looping = dir.0.join("loop");
        let looping = dir.program("loop", format!("#!{}\n", looping.display()).as_bytes());
        assert_eq!(look(&looping), None);
        let env = dir.program("envscript", b"#!/usr/bin/env -S A=b fixed -x\n");
        let seen = obstacle(&env, Some(dir.0.as_os_str()));
        assert_eq!(seen, Some(Obstacle::Static(dir.0.join("fixed"))));
    }

    #[test]
    fn nonsense_is_nothing_known() {
        let dir = Scratch::new("nonsense");
        let mut truncated = elf(2, OWN_MACHINE, 3);
        truncated[56..58].copy_from_slice(&u16::MAX.to_ne_bytes());
        let mut far = elf(2, OWN_MACHINE, 3);
        far[32..40].copy_from_slice(&u64::MAX.to_ne_bytes());
        for bytes in
            [&b""[..], b"#!", b"#!\n", b"#!/nonexistent", b"\x7fELF", b"\x7fELF\x02\x01", &truncated, &far]
        {
            assert_eq!(obstacle(&dir.program("x", bytes), None), None, "{bytes:?}");
        }
        assert_eq!(obstacle(Path::new("/nonexistent"), None), None);
    }

    #[test]
    fn a_setuid_program_of_another_user_is_recognised() {
        let dir = Scratch::new("setuid");
        let path = dir.program("setuid", &elf(2, OWN_MACHINE, 3));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
        assert_eq!(obstacle(&path, None), None, "our own");
        if std::os::unix::fs::chown(&path, Some(12345), None).is_err() {
            println!("skipped: only root can give a file away");
            return;
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
        assert_eq!(obstacle(&path, None), Some(Obstacle::Privileged(path)));
    }

    #[test]
    fn the_path_is_searched_as_a_shell_does() {
        let dir = Scratch::new("search");
        std::fs::create_dir_all(dir.0.join("a/tool")).unwrap();
        std::fs::create_dir_all(dir.0.join("b")).unwrap();
        std::fs::write(dir.0.join("b/tool"), b"not executable").unwrap();
        let tool = dir.program("tool", b"");
        let search = std::env::join_paths([dir.0.join("a"), dir.0.join("b"), dir.0.clone()]).unwrap();
        assert_eq!(find(OsStr::new("tool"), Some(&search)), Some(tool.clone()));
        assert_eq!(find(OsStr::new("nothing"), Some(&search)), None);
        assert_eq!(find(tool.as_os_str(), None), Some(tool));
    }
}
