//! The guest's first file system: busybox, the tools for CXL and dax with their libraries, kernel modules, our scripts.

use crate::process::Task;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The modules that some route needs; what they depend on comes along.
const MODULES: &[&str] = &[
    "9p",
    "9pnet_virtio",
    "virtio_pci",
    "nd_e820",
    "nd_pmem",
    "libnvdimm",
    "nfit",
    "dax_pmem",
    "device_dax",
    "dax_hmem",
    "dax_cxl",
    "kmem",
    "cxl_acpi",
    "cxl_pci",
    "cxl_mem",
    "cxl_pmem",
    "cxl_port",
    "cxl_core",
    "hwpoison_inject",
    "brd",
    "ext4",
];
const TOOLS: &[&str] = &["cxl", "ndctl", "daxctl", "numactl"];
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "usr/lib64"];

/// The scripts that the guest runs, by the name that they have there.
const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("guest/init.sh")),
    ("sbin/in-host", include_str!("guest/in-host.sh")),
    ("route/cxl", include_str!("guest/route-cxl.sh")),
    ("route/hmem", include_str!("guest/route-hmem.sh")),
    ("route/pmem", include_str!("guest/route-pmem.sh")),
];

/// Returns a number that changes with whatever is packed beside the packages.
pub(super) fn fingerprint() -> u64 {
    let mut hasher = DefaultHasher::new();
    (SCRIPTS, include_str!("initramfs.rs")).hash(&mut hasher);
    hasher.finish()
}

/// Packs the file system for a kernel whose modules lie in `modules` into the file `initrd`.
///
/// # Errors
/// What is missing among the unpacked packages, or could not be written.
pub(super) fn pack(unpacked: &Path, modules: &Path, version: &str, initrd: &Path) -> Result<(), String> {
    let own = |what: &str| initrd.with_extension(format!("{what}-{}", std::process::id()));
    let tree = own("tree");
    let _ = fs::remove_dir_all(&tree);
    let busybox = ["usr/bin/busybox", "bin/busybox"].map(|file| unpacked.join(file));
    let busybox =
        busybox.iter().find(|file| file.exists()).ok_or("busybox is not among the guest's packages")?;
    for folder in ["bin", "dev", "proc", "sys", "tmp", "run", "share", "host", "root"] {
        make(&tree.join(folder))?;
    }
    copy(busybox, &tree.join("bin/busybox"))?;
    add_tools(unpacked, &tree)?;
    add_modules(modules, &tree.join("lib/modules").join(version))?;
    for (name, text) in SCRIPTS {
        let file = tree.join(name);
        make(file.parent().unwrap_or(&tree))?;
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        set_executable(&file)?;
    }
    let busybox = tree.join("bin/busybox").display().to_string();
    Task::program(&busybox).arg("depmod").arg("-b").arg(tree.display().to_string()).arg(version).run()?;
    let fresh = own("new");
    let script = format!("find . | LC_ALL=C sort | {busybox} cpio -o -H newc 2>/dev/null | gzip -1 > \"$0\"");
    Task::new("sh -c").arg(script).arg(fresh.display().to_string()).run_in(&tree)?;
    fs::rename(&fresh, initrd).map_err(|error| format!("{}: {error}", initrd.display()))?;
    let _ = fs::remove_dir_all(&tree);
    Ok(())
}

/// Adds the tools, the libraries that they name, and the loader.
fn add_tools(unpacked: &Path, tree: &Path) -> Result<(), String> {
    let libraries = tree.join("lib/x86_64-linux-gnu");
    let (mut wanted, mut added) = (Vec::new(), BTreeSet::new());
    for tool in TOOLS {
        let file = unpacked.join("usr/bin").join(tool);
        copy(&file, &tree.join("usr/bin").join(tool))?;
        wanted.extend(needed_libraries(&file)?);
    }
    while let Some(name) = wanted.pop() {
        if !added.insert(name.clone()) {
            continue;
        }
        let file =
            LIBRARIES.iter().map(|folder| unpacked.join(folder).join(&name)).find(|file| file.exists());
        let file = file.ok_or_else(|| format!("{name} is not among the guest's packages"))?;
        copy(&file, &libraries.join(&name))?;
        wanted.extend(needed_libraries(&file)?);
    }
    copy(&unpacked.join(LOADER), &tree.join("lib64/ld-linux-x86-64.so.2"))
}

fn needed_libraries(file: &Path) -> Result<Vec<String>, String> {
    let text = Task::new("readelf -d").arg(file.display().to_string()).output()?;
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    Ok(lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect())
}

/// Adds the modules and what they depend on, uncompressed.
fn add_modules(modules: &Path, to: &Path) -> Result<(), String> {
    let mut index = BTreeMap::new();
    index_modules(&modules.join("kernel"), &mut index)?;
    let (mut wanted, mut added) =
        (MODULES.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(), BTreeSet::new());
    while let Some(name) = wanted.pop() {
        // What is not there is built in, or not of this kernel's time: the guest says what it misses.
        let Some(file) = index.get(&name).filter(|_| added.insert(name.clone())) else { continue };
        let bytes = if file.extension().is_some_and(|extension| extension == "xz") {
            Task::new("xz -dc").arg(file.display().to_string()).output_bytes()?
        } else {
            fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?
        };
        wanted.extend(dependencies(&bytes));
        let target = to.join("kernel").join(format!("{name}.ko"));
        make(&to.join("kernel"))?;
        fs::write(&target, bytes).map_err(|error| format!("{}: {error}", target.display()))?;
    }
    for list in ["modules.builtin", "modules.order"] {
        if modules.join(list).exists() {
            copy(&modules.join(list), &to.join(list))?;
        }
    }
    Ok(())
}

/// Finds every module file below `folder`, by its name with underscores.
fn index_modules(folder: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            index_modules(&path, index)?;
        } else if let Some((name, _)) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".ko"))
        {
            index.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// Returns the modules that a module's own information names as needed.
fn dependencies(module: &[u8]) -> Vec<String> {
    let fields = module.split(|&byte| byte == 0);
    let lists = fields
        .filter_map(|field| field.strip_prefix(b"depends=").or_else(|| field.strip_prefix(b"softdep=")));
    let names = lists.flat_map(|list| list.split(|&byte| byte == b',' || byte == b' '));
    names
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty() && !name.ends_with(':'))
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    make(to.parent().unwrap_or(to))?;
    fs::copy(from, to).map(|_| ()).map_err(|error| format!("{}: {error}", from.display()))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn set_executable(file: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(file, mode).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_a_module_are_found() {
        let module = b"\x7fELF\0license=GPL\0depends=cxl_core,libnvdimm\0softdep=pre: dax-cxl\0name=x\0";
        assert_eq!(dependencies(module), ["cxl_core", "libnvdimm", "dax_cxl"]);
        assert!(dependencies(b"depends=\0").is_empty());
    }
}
