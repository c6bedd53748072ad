//! What the guest is made of: Debian packages, unpacked into a cache folder.
//!
//! A private apt state beside the packages keeps this machine's own apt out of it; the mirror is the one that this
//! machine's own sources name. Debian's stable release brings the kernel and the tools, its backports the newest QEMU and
//! newer kernels. Each kernel is unpacked once, and packed once for each state of what goes
//! with it ([`initramfs`]): checkouts share the cache.

use super::initramfs;
use crate::process::{Task, find_program};
use std::fs;
use std::path::{Path, PathBuf};

/// The release that the guest is made of.
const SUITE: &str = "trixie";
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-trixie-stable.gpg",
];
/// What runs in the guest besides the host's own programs.
const TOOLS: &str = "ndctl cxl daxctl numactl busybox-static";

/// The folder with everything that was fetched.
pub(super) struct Cache {
    root: PathBuf,
}

/// What boots: a kernel, the initial file system with its modules, and the QEMU to run them.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) initrd: PathBuf,
    /// Where the packages were unpacked; QEMU runs from here with its own libraries.
    pub(super) unpacked: PathBuf,
    pub(super) cache: PathBuf,
}

impl Cache {
    /// Opens the cache: `XTASK_VM`, or `daxtier/vm` in the user's cache folder.
    ///
    /// # Errors
    /// Why the guest cannot be had on this machine.
    pub(super) fn open() -> Result<Cache, String> {
        if let Some(missing) = missing() {
            return Err(missing);
        }
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = folder("XTASK_VM")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("daxtier/vm")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/daxtier/vm")))
            .ok_or("set XTASK_VM to a folder for what the guest is made of (about 600 MiB)")?;
        fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(Cache { root })
    }

    /// Fetches what is not there yet and returns what boots: the release's own kernel, or the newest one whose version
    /// begins with `wanted`.
    ///
    /// # Errors
    /// What could not be fetched or packed.
    pub(super) fn prepare(&self, wanted: Option<&str>) -> Result<Kernel, String> {
        let unpacked = self.root.join("root");
        let stamp = self.root.join("packages-are-complete");
        if !stamp.exists() {
            println!("fetching the guest's packages into {}: a minute or two, once", self.root.display());
            self.set_up_apt()?;
            self.fetch_and_unpack(&self.names(&format!("{SUITE}-backports"), "qemu-system-x86")?, true)?;
            self.fetch_and_unpack(&self.names(SUITE, TOOLS)?, false)?;
            write(&stamp, "")?;
        }
        let version = self.kernel_version(wanted)?;
        let image = self.root.join(format!("vmlinuz-{version}"));
        let initrd = self.root.join(format!("initrd-{version}-{:016x}.img", initramfs::fingerprint()));
        if !initrd.exists() {
            if self.module_folder(&version).is_none() {
                self.fetch_and_unpack(&self.kernel_packages(&version)?, true)?;
            }
            let modules = self
                .module_folder(&version)
                .ok_or_else(|| format!("no modules came with kernel {version}"))?;
            initramfs::pack(&unpacked, &modules, &version, &initrd)?;
            let boot = [unpacked.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
            let found = boot.iter().find(|file| file.exists());
            let found = found.ok_or_else(|| format!("no image came with kernel {version}"))?;
            fs::copy(found, &image).map_err(|error| format!("{}: {error}", image.display()))?;
        }
        Ok(Kernel { image, initrd, unpacked, cache: self.root.clone() })
    }

    fn kernel_version(&self, wanted: Option<&str>) -> Result<String, String> {
        let known = self.root.join(format!("kernel-{}", wanted.unwrap_or("default")));
        if let Ok(version) = fs::read_to_string(&known) {
            return Ok(version.trim().to_owned());
        }
        let names = self.apt("apt-cache").words("pkgnames linux-image-").output()?;
        let mut versions: Vec<&str> = names.lines().filter_map(plain_kernel).collect();
        versions.sort_by_key(|version| sort_key(version));
        let stable = self.stable_kernel()?;
        let version = match wanted {
            None => stable.as_str(),
            Some(wanted) => {
                versions.iter().rfind(|version| begins_with(version, wanted)).ok_or_else(|| {
                    let newest: Vec<&str> = versions.iter().rev().take(8).copied().collect();
                    format!("no kernel begins with {wanted:?}; the newest are {}", newest.join(", "))
                })?
            }
        };
        write(&known, version)?;
        Ok(version.to_owned())
    }

    /// Returns the version that the release's `linux-image-amd64` stands for.
    fn stable_kernel(&self) -> Result<String, String> {
        let text = self.apt("apt-cache").words("depends linux-image-amd64").output()?;
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let version = names.find_map(plain_kernel).ok_or("linux-image-amd64 names no kernel")?;
        Ok(version.to_owned())
    }

    /// Returns the packages that hold a kernel: one in older releases, image and modules apart in newer ones.
    fn kernel_packages(&self, version: &str) -> Result<Vec<String>, String> {
        let text = self.apt("apt-cache").words("pkgnames").output()?;
        let split = [format!("linux-binary-{version}"), format!("linux-modules-{version}")];
        let has = |name: &String| text.lines().any(|line| line == name);
        Ok(if has(&split[1]) { split.into() } else { vec![format!("linux-image-{version}")] })
    }

    fn module_folder(&self, version: &str) -> Option<PathBuf> {
        let folders = ["usr/lib/modules", "lib/modules"];
        folders
            .iter()
            .map(|folder| self.root.join("root").join(folder).join(version))
            .find(|path| path.join("kernel").is_dir())
    }

    /// Returns the packages that an installation of `packages` on an empty system would bring.
    fn names(&self, release: &str, packages: &str) -> Result<Vec<String>, String> {
        let text =
            self.apt("apt-get").words("install --simulate -t").arg(release).words(packages).output()?;
        let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    fn fetch_and_unpack(&self, packages: &[String], from_backports: bool) -> Result<(), String> {
        let folder = self.root.join("debs");
        // What an interrupted run left is fetched again.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut task = self.apt("apt-get").words("-qq download");
        if from_backports {
            task = task.words(&format!("-t {SUITE}-backports"));
        }
        let task = packages.iter().fold(task, |task, package| task.arg(package));
        task.run_in(&folder)?;
        let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for package in entries.flatten() {
            let unpacked = self.root.join("root");
            Task::new("dpkg -x")
                .arg(package.path().display().to_string())
                .arg(unpacked.display().to_string())
                .run()?;
        }
        let _ = fs::remove_dir_all(&folder);
        Ok(())
    }

    fn apt(&self, program: &str) -> Task {
        Task::new(program).env("APT_CONFIG", self.root.join("apt/apt.conf").display().to_string())
    }

    /// Writes an apt configuration that knows the guest's release and nothing of this machine, and fetches its lists.
    fn set_up_apt(&self) -> Result<(), String> {
        let apt = self.root.join("apt");
        for folder in ["lists/partial", "cache/archives/partial", "none"] {
            fs::create_dir_all(apt.join(folder)).map_err(|error| format!("{}: {error}", apt.display()))?;
        }
        let (mirror, security) =
            mirrors().ok_or("this machine's apt names no Debian mirror to fetch the guest from")?;
        let keyring = KEYRINGS.iter().find(|file| Path::new(file).exists());
        let keyring =
            keyring.ok_or_else(|| format!("{} is missing: install debian-archive-keyring", KEYRINGS[0]))?;
        let mut sources = String::new();
        for suite in [SUITE.to_owned(), format!("{SUITE}-updates"), format!("{SUITE}-backports")] {
            sources += &format!("deb [arch=amd64 signed-by={keyring}] {mirror} {suite} main\n");
        }
        if let Some(security) = security {
            sources += &format!("deb [arch=amd64 signed-by={keyring}] {security} {SUITE}-security main\n");
        }
        write(&apt.join("sources.list"), &sources)?;
        write(&apt.join("status"), "")?;
        let at = apt.display();
        let config = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::Etc::sourceparts \"{at}/none\";\n\
             Dir::State::lists \"{at}/lists\"; Dir::State::status \"{at}/status\"; Dir::Cache \"{at}/cache\";\n\
             Acquire::Languages \"none\"; APT::Install-Recommends \"0\"; APT::Architecture \"amd64\";\n\
             APT::Sandbox::User \"\";\n"
        );
        write(&apt.join("apt.conf"), &config)?;
        self.apt("apt-get").words("-qq update").run()
    }
}

/// Returns why the guest cannot be made here, if so.
fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the guest is set up for x86-64 machines only".to_owned());
    }
    let programs = ["apt-get", "apt-cache", "dpkg", "xz", "gzip", "readelf", "timeout"];
    let program = programs.into_iter().find(|program| find_program(program).is_none())?;
    Some(format!(
        "{program} is missing: the guest is made of Debian packages, and needs apt, xz-utils and binutils"
    ))
}

/// Returns the mirror of Debian, and of its security updates where there is one, from this machine's apt sources.
fn mirrors() -> Option<(String, Option<String>)> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").ok();
    let files = folder.into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = files
        .chain([PathBuf::from("/etc/apt/sources.list")])
        .filter_map(|file| fs::read_to_string(file).ok());
    let uris: Vec<String> = texts.flat_map(|text| uris(&text).collect::<Vec<_>>()).collect();
    let named = |end: &str| uris.iter().find(|uri| uri.trim_end_matches('/').ends_with(end)).cloned();
    Some((named("/debian")?, named("/debian-security")))
}

/// Returns the addresses in a sources file of either format.
fn uris(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(|line| line.split_whitespace().filter(|word| word.contains("://")))
        .map(str::to_owned)
}

/// Returns the version in the name of a package that holds an ordinary kernel.
fn plain_kernel(name: &str) -> Option<&str> {
    let version = name.strip_prefix("linux-image-")?;
    let is_plain = version.starts_with(|c: char| c.is_ascii_digit())
        && version.ends_with("-amd64")
        && !["cloud", "rt-", "unsigned"].iter().any(|other| version.contains(other));
    is_plain.then_some(version)
}

/// Returns whether a version is `wanted` or continues it at a point, so that 7.1 is not 7.13.
fn begins_with(version: &str, wanted: &str) -> bool {
    version.strip_prefix(wanted).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Returns the numbers in a version, which sort as versions do.
fn sort_key(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let text =
            "# URIs: no\nURIs: a://b/debian\nSuites: x\ndeb [signed-by=/k] c://d/debian-security y main\n";
        assert_eq!(uris(text).collect::<Vec<_>>(), ["a://b/debian", "c://d/debian-security"]);
    }

    #[test]
    fn ordinary_kernels_are_told_and_sorted() {
        assert_eq!(plain_kernel("linux-image-6.12.9+deb13-amd64"), Some("6.12.9+deb13-amd64"));
        for other in ["linux-image-amd64", "linux-image-6.12.9+deb13-rt-amd64", "linux-image-6.1-cloud-amd64"]
        {
            assert_eq!(plain_kernel(other), None, "{other}");
        }
        assert!(sort_key("6.12.118+deb13-amd64") > sort_key("6.12.9+deb13-amd64"));
        assert!(begins_with("7.1.13+deb13-amd64", "7.1") && !begins_with("7.13.1+deb13-amd64", "7.1"));
    }
}
