//! `daxtier run`: becomes another program, with the preload library and its configuration in the environment.
//!
//! Everything is checked before: the settings through the same parser that the library will use, the memory that
//! is asked for, the library, the program. Then the environment is put together and execve replaces this process,
//! so the process number, terminal, signals and descriptors are what they were. Where a device is to be cleared behind the
//! program (`scrub=on-release`), this process stays until the program has ended (`outlive`).

mod outlive;
mod preload;
mod program;
mod slow;

use crate::{config, print};
use daxtier::runtime::config::{
    AvailableMemory, CONF, ConfigError, EXIT_CONFIG, Effective, Key, Origin, RUN_PID, SlowSpec, StatsTarget,
};
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
const LD_PRELOAD: &str = "LD_PRELOAD";

/// Runs a program over two tiers of memory.
///
/// Options stand above the environment (DAXTIER_FAST and so on). Without --slow and DAXTIER_SLOW, devices that the
/// administrator released are used, else an emulated device.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How much fast memory to use: a size such as 512M, or a share of what is available such as 50% [default: 80%]
    #[arg(long, value_name = "SIZE")]
    fast: Option<String>,
    /// A slow device: /dev/daxX.Y, emulated:SIZE or node:N[:SIZE], with [,size=SIZE][,range=OFFSET+LENGTH]
    /// [,scrub=on-claim|on-release|never][,exclusive][,force][,allow-persistent]; may be repeated
    #[arg(long, value_name = "DEV")]
    pub(crate) slow: Vec<String>,
    /// How memory is divided: fill, interleave=F:S, bind=TIER or preferred=TIER [default: fill]
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// At exit, print where the memory was to standard error, or write it to FILE as JSON (%p is the process id)
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub(crate) stats: Option<String>,
    /// A configuration string, or @FILE, in place of DAXTIER_CONF
    #[arg(long, value_name = "STRING")]
    conf: Option<String>,
    /// The preload library, when it does not lie beside this program
    #[arg(long, value_name = "FILE")]
    preload: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Why nothing was started.
#[derive(Debug)]
enum RunError {
    Config(ConfigError),
    Preload(preload::PreloadError),
    NothingLeft(slow::NothingLeft),
    /// No file of this name can be run.
    NotFound {
        command: OsString,
    },
    /// The kernel refused to run it.
    Refused {
        command: OsString,
        error: std::io::Error,
    },
}

impl From<ConfigError> for RunError {
    fn from(error: ConfigError) -> RunError {
        RunError::Config(error)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Config(error) => write!(f, "{error}"),
            RunError::Preload(error) => write!(f, "{error}"),
            RunError::NothingLeft(error) => write!(f, "{error}"),
            RunError::NotFound { command } => write!(f, "{}: command not found", command.display()),
            RunError::Refused { command, error } => write!(f, "{}: {error}", command.display()),
        }
    }
}

impl RunError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_code_number())
    }

    fn exit_code_number(&self) -> u8 {
        match self {
            RunError::NotFound { .. } => EXIT_NOT_FOUND,
            RunError::Refused { .. } => EXIT_NOT_EXECUTABLE,
            _ => EXIT_CONFIG as u8,
        }
    }
}

/// Becomes the program; returns when that cannot be, or when it stayed to clear devices behind it.
pub(crate) fn run(args: Args) -> ExitCode {
    let error = match prepare(&args, std::env::vars_os().collect()) {
        Ok(plan) => {
            for note in &plan.notes {
                print::complain(note);
            }
            if !plan.to_clear.is_empty() {
                return outlive::run(&args.command, &plan.environment, &plan.to_clear);
            }
            execute(&args.command, &plan.environment)
        }
        Err(error) => error,
    };
    print::complain(&error);
    error.exit_code()
}

/// Variables for the library, by name.
type Variables = Vec<(&'static str, OsString)>;

/// What the program will find.
struct Plan {
    environment: Vec<(OsString, OsString)>,
    /// What the user is told before it starts.
    notes: Vec<String>,
    /// What is cleared when it has ended.
    to_clear: Vec<SlowSpec>,
}

fn prepare(args: &Args, inherited: Vec<(OsString, OsString)>) -> Result<Plan, RunError> {
    let mut notes = Vec::new();
    let memory = AvailableMemory::read(Path::new("/"));
    let (effective, mut variables) = settings(args, &inherited, &memory, &mut notes)?;

    let this = std::env::current_exe().unwrap_or_default();
    let library = preload::find(args.preload.as_deref(), &this).map_err(RunError::Preload)?;
    let before = value_of(&inherited, LD_PRELOAD);
    variables.push((LD_PRELOAD, preload::list(&library, before)));
    // The process number stays when the program takes this process over.
    variables.push((RUN_PID, std::process::id().to_string().into()));

    let search = value_of(&inherited, "PATH");
    let command = args.command[0].as_os_str();
    // A name that is not found here may still be: execvp has the last word, and a default PATH.
    let found = program::find(command, search);
    let obstacle = found.and_then(|path| program::obstacle(&path, search));
    notes.extend(obstacle.map(|obstacle| obstacle.to_string()));
    notes.extend(effective.config().stats.as_ref().and_then(missing_directory));
    let to_clear = outlive::to_clear(&effective.config().slow);
    Ok(Plan { environment: merge(inherited, variables), notes, to_clear })
}

/// Works out the settings, and which variables tell the library what the environment does not.
fn settings(
    args: &Args,
    inherited: &[(OsString, OsString)],
    memory: &AvailableMemory,
    notes: &mut Vec<String>,
) -> Result<(Effective, Variables), RunError> {
    let mut effective = config::in_force(args.conf.as_deref(), inherited.iter().cloned())?;
    let slow = (!args.slow.is_empty()).then(|| args.slow.join(";"));
    let flags = [
        (Key::Fast, args.fast.as_deref()),
        (Key::Slow, slow.as_deref()),
        (Key::Policy, args.policy.as_deref()),
        (Key::Stats, args.stats.as_deref()),
    ];
    for (key, value) in flags {
        if let Some(value) = value {
            effective.set(key, value, Origin::Flag(key.flag()))?;
        }
    }
    let fast_bytes = effective.config().fast.resolve(memory)?;
    if effective.config().slow.is_empty() {
        let choice = slow::choose(fast_bytes, memory).map_err(RunError::NothingLeft)?;
        let specs: Vec<String> = choice.slow.iter().map(ToString::to_string).collect();
        effective.set(Key::Slow, &specs.join(";"), Origin::Program)?;
        notes.extend(choice.reasons);
    }
    // A relative path means this directory, wherever the program goes.
    if let (Some(target), Ok(here)) = (&effective.config().stats, std::env::current_dir()) {
        let (anchored, origin) = (target.anchored(&here).to_string(), effective.origin(Key::Stats).clone());
        if anchored != target.to_string() {
            effective.set(
                Key::Stats,
                &anchored,
                match origin {
                    Origin::Flag(_) => origin,
                    _ => Origin::Program,
                },
            )?;
        }
    }
    effective.validate()?;
    let mut variables = Variables::new();
    for key in Key::ALL {
        if matches!(effective.origin(key), Origin::Flag(_) | Origin::Program) {
            variables.push((key.variable(), effective.value(key).into()));
        }
    }
    if let Some(conf) = &args.conf {
        variables.push((CONF, conf.into()));
    }
    Ok((effective, variables))
}

/// Warns of figures that have nowhere to go, while there is time to mend that.
fn missing_directory(target: &StatsTarget) -> Option<String> {
    let path = target.path_for(std::process::id())?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    (!directory.is_dir())
        .then(|| format!("warning: --stats: there is no directory {} yet", directory.display()))
}

fn value_of<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
}

/// Replaces and adds variables; the others keep their order.
fn merge(mut environment: Vec<(OsString, OsString)>, variables: Variables) -> Vec<(OsString, OsString)> {
    environment.retain(|(name, _)| variables.iter().all(|(ours, _)| name != ours));
    environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value)));
    environment
}

/// Becomes the program. Returns what kept it from that.
fn execute(command: &[OsString], environment: &[(OsString, OsString)]) -> RunError {
    let name = || command[0].clone();
    let entry = |(name, value): &(OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let strings =
        |strings: &mut dyn Iterator<Item = Vec<u8>>| strings.map(CString::new).collect::<Result<Vec<_>, _>>();
    let words = strings(&mut command.iter().map(|word| word.clone().into_vec()));
    let entries = strings(&mut environment.iter().map(entry));
    let (Ok(words), Ok(entries)) = (words, entries) else {
        // A command line and an environment come as NUL-terminated strings; --conf and the like from there too.
        return RunError::Refused { command: name(), error: std::io::ErrorKind::InvalidInput.into() };
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, variables) = (pointers(&words), pointers(&entries));
    // SAFETY: both arrays end with a NULL, all strings are NUL-terminated, and everything outlives the call.
    unsafe { libc::execvpe(arguments[0], arguments.as_ptr(), variables.as_ptr()) };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) if !command[0].as_bytes().contains(&b'/') => {
            RunError::NotFound { command: name() }
        }
        Some(libc::ENOENT | libc::ENOTDIR) if program::find(&command[0], None).is_none() => {
            RunError::NotFound { command: name() }
        }
        _ => RunError::Refused { command: name(), error },
    }
}
