//! `daxtier allow`: the devices that programs may use without naming one.
//!
//! Keeps `/etc/daxtier/devices` through `daxtier::device`; the entries hold what stays the same over reboots. A
//! device that is not in the list, and that nobody names, is never touched.

use clap::Args as ClapArgs;
use daxtier::device::{
    self, DaxInfo, Origin, RELEASED_PATH, Release, ReleaseError, list_releases, release, revoke,
};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Releases a dax device for programs that name none.
#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// The device to release, such as /dev/dax0.0
    #[arg(value_name = "DEV", required_unless_present_any = ["remove", "list"])]
    device: Option<PathBuf>,
    /// Take a device, or entry number N of --list, off the list
    #[arg(long, value_name = "DEV|N", conflicts_with_all = ["device", "list"])]
    remove: Option<String>,
    /// Print the list
    #[arg(long, conflicts_with = "device")]
    list: bool,
    /// Release persistent memory too; what is stored on it will be overwritten
    #[arg(long, requires = "device")]
    allow_persistent: bool,
}

/// Why the list was not changed.
#[derive(Debug, PartialEq, Eq)]
enum AllowError {
    /// No dax device is at this path.
    NoSuchDevice { device: String, known: Vec<String> },
    /// The device is persistent memory.
    Persistent { device: String },
    /// Nothing in the list answers to this.
    NotListed { what: String },
    /// The list could not be read or written.
    List(ReleaseError),
}

impl fmt::Display for AllowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllowError::NoSuchDevice { device, known } if known.is_empty() => {
                write!(f, "{device} is no dax device; this machine has none (daxtier list)")
            }
            AllowError::NoSuchDevice { device, known } => {
                write!(f, "{device} is no dax device; this machine's are {}", known.join(", "))
            }
            AllowError::Persistent { device } => write!(
                f,
                "{device} is persistent memory: what is stored on it would be overwritten; if that is meant, \
                 daxtier allow --allow-persistent {device}"
            ),
            AllowError::NotListed { what } => {
                write!(f, "{what} is not in the list of released devices (daxtier allow --list)")
            }
            AllowError::List(error) => write!(f, "{error}"),
        }
    }
}

impl From<ReleaseError> for AllowError {
    fn from(error: ReleaseError) -> AllowError {
        AllowError::List(error)
    }
}

/// Changes or prints the list of released devices.
pub(crate) fn run(args: Args) -> ExitCode {
    match act(&args, Path::new("/"), Path::new(RELEASED_PATH)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("daxtier: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what `args` ask for, on the machine under `root`, and returns what to print.
fn act(args: &Args, root: &Path, list_path: &Path) -> Result<String, AllowError> {
    if args.list {
        return print_list(root, list_path);
    }
    if let Some(what) = &args.remove {
        return remove(what, root, list_path);
    }
    let device = args.device.as_deref().unwrap_or(Path::new(""));
    let info = find(device, root)?;
    let name = info.path.display();
    if matches!(info.origin, Origin::Pmem { .. }) && !args.allow_persistent {
        return Err(AllowError::Persistent { device: name.to_string() });
    }
    let is_new = release(&info, list_path)?;
    let mut text = if is_new {
        format!("{name} is released: programs that name no device may use it, and overwrite what is on it\n")
    } else {
        format!("{name} was released already\n")
    };
    if let Some(mend) = info.mend() {
        text += &format!("it cannot be used yet: {}\n  to use it: {mend}\n", info.state);
    }
    Ok(text)
}

fn find(device: &Path, root: &Path) -> Result<DaxInfo, AllowError> {
    let devices = device::discover(root);
    let known = devices.iter().map(|info| info.path.display().to_string()).collect();
    let is_it = |info: &DaxInfo| info.path == device || Path::new(&info.name) == device;
    devices
        .into_iter()
        .find(is_it)
        .ok_or_else(|| AllowError::NoSuchDevice { device: device.display().to_string(), known })
}

fn remove(what: &str, root: &Path, list_path: &Path) -> Result<String, AllowError> {
    let number = what.parse::<usize>().ok();
    let info = match number {
        Some(_) => None,
        None => Some(find(Path::new(what), root)?),
    };
    let is_it = |index: usize, entry: &Release| match &info {
        Some(info) => info.is_released_by(entry),
        None => number == Some(index + 1),
    };
    if revoke(list_path, is_it)? {
        Ok(format!("{what} is off the list; programs that use it now keep it until they end\n"))
    } else {
        Err(AllowError::NotListed { what: what.to_owned() })
    }
}

fn print_list(root: &Path, list_path: &Path) -> Result<String, AllowError> {
    let entries = list_releases(list_path)?;
    if entries.is_empty() {
        return Ok("no device is released; daxtier allow DEV releases one\n".to_owned());
    }
    let devices = device::discover(root);
    let mut text = String::new();
    for (index, entry) in entries.iter().enumerate() {
        let here = devices.iter().find(|info| info.is_released_by(entry));
        let now =
            here.map_or("not here now".to_owned(), |info| format!("{}, {}", info.path.display(), info.state));
        text += &format!("{}  {entry}\n   {now}\n", index + 1);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn allow(tree: &Tree, words: &[&str]) -> Result<String, AllowError> {
        let words = [&["allow"], words].concat();
        let args = Command::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args;
        act(&args, tree.root(), &tree.path("etc/daxtier/devices"))
    }

    #[test]
    fn a_device_is_released_listed_and_taken_back() {
        let tree = Tree::recorded("cxl-two");
        assert!(allow(&tree, &["--list"]).unwrap().contains("no device is released"));
        let text = allow(&tree, &["/dev/dax1.0"]).unwrap();
        assert!(text.contains("/dev/dax1.0 is released") && text.contains("cannot be used yet"), "{text}");
        assert!(allow(&tree, &["dax1.0"]).unwrap().contains("already"));
        let list = allow(&tree, &["--list"]).unwrap();
        assert!(list.contains("1  cxl serial=0x2") && list.contains("/dev/dax1.0"), "{list}");
        assert_eq!(
            allow(&tree, &["--remove", "/dev/dax0.0"]),
            Err(AllowError::NotListed { what: "/dev/dax0.0".into() })
        );
        assert!(allow(&tree, &["--remove", "/dev/dax1.0"]).unwrap().contains("off the list"));
        assert!(allow(&tree, &["--list"]).unwrap().contains("no device is released"));
    }

    #[test]
    fn a_device_that_is_gone_is_taken_back_by_its_number() {
        let tree = Tree::recorded("cxl-two");
        allow(&tree, &["/dev/dax0.0"]).unwrap();
        allow(&tree, &["/dev/dax1.0"]).unwrap();
        tree.remove("sys/bus/dax/devices/dax0.0");
        assert!(allow(&tree, &["--list"]).unwrap().contains("not here now"));
        assert!(allow(&tree, &["--remove", "3"]).is_err());
        allow(&tree, &["--remove", "1"]).unwrap();
        let list = allow(&tree, &["--list"]).unwrap();
        assert!(list.contains("serial=0x2") && !list.contains("serial=0x1"), "{list}");
    }

    #[test]
    fn what_is_no_dax_device_is_refused_with_those_there_are() {
        let tree = Tree::recorded("cxl-two");
        for device in ["/dev/sda", "/dev/dax2.0", "dax", "/", "/etc/passwd"] {
            let error = allow(&tree, &[device]).unwrap_err();
            assert!(error.to_string().contains("/dev/dax0.0, /dev/dax1.0"), "{device}: {error}");
        }
        let none = Tree::recorded("one-node");
        assert!(allow(&none, &["/dev/dax0.0"]).unwrap_err().to_string().contains("has none"));
    }

    #[test]
    fn persistent_memory_is_not_released_by_accident() {
        let tree = Tree::recorded("pmem");
        let error = allow(&tree, &["/dev/dax0.0"]).unwrap_err();
        assert!(matches!(error, AllowError::Persistent { .. }), "{error}");
        assert!(allow(&tree, &["--allow-persistent", "/dev/dax0.0"]).is_ok());
    }

    #[test]
    fn words_that_contradict_each_other_are_refused() {
        for words in [&[][..], &["--list", "/dev/dax0.0"], &["--remove", "1", "--list"], &["--remove"]] {
            assert!(Command::try_parse_from([&["allow"], words].concat()).is_err(), "{words:?}");
        }
    }
}
