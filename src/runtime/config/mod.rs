//! The configuration: one grammar for the environment, a C string, the command line and a file.
//!
//! | setting | variable | value |
//! |---|---|---|
//! | `fast` | `DAXTIER_FAST` | `SIZE` or `N%` of what is available; 80% by default |
//! | `slow` | `DAXTIER_SLOW` | `DEV[,size=SIZE][,range=OFFSET+LENGTH][,scrub=WHEN][,exclusive][,force][,allow-persistent]`, several joined by `;`; none by default. WHEN is `on-claim` (default), `on-release` or `never` |
//! | `policy` | `DAXTIER_POLICY` | `fill` (default), `interleave=F:S`, `bind=TIER`, `preferred=TIER` |
//! | `stats` | `DAXTIER_STATS` | a path (`%p` is the process id), or `-` or `stderr`; none by default |
//! | `on_error` | `DAXTIER_ON_ERROR` | `stop` (default) or `passthrough` |
//! | `migrate` | `DAXTIER_MIGRATE` | `on[,workers=N][,cpus=LIST]` (default `on`: one thread, on any processor) or `off` |
//! | `on_loss` | `DAXTIER_ON_LOSS` | `sigbus` (default) or `zero-fill` |
//! | `control` | `DAXTIER_CONTROL` | `auto` (default), `on` or `off` |
//!
//! `DAXTIER_CONF` holds several at once, `fast=64M slow=emulated:2G`, or `@FILE`; the single variables stand
//! above it. [`Config`] is the result, [`Effective`] the same with the [`Origin`] of each setting,
//! [`ConfigError`] what was wrong, and [`AvailableMemory`] turns a share into bytes. Reading a configuration
//! touches nothing but an `@FILE`. Uses `units`, `policy` and device names; used by the pool and all programs.

mod choice;
mod effective;
mod error;
mod key;
mod memory;
mod migrate;
mod text;
mod value;

pub use choice::{Control, OnError, OnLoss};
pub use effective::{Effective, Origin};
pub use error::{ConfigError, EXIT_CONFIG, ValueError};
pub use key::{CONF, INTERNAL_PREFIX, Key, PREFIX, RUN_PID, VARIABLES};
pub use memory::{AvailableMemory, CgroupLimit, CommitLimit};
pub use migrate::{Demotion, Migrate, Workers};
pub use value::{FastSize, MIN_TIER_BYTES, SLOT_BYTES, SlowSpec, StatsTarget};

use crate::policy::Policy;
use std::fmt;

/// What a pool is made of.
///
/// ```
/// use daxtier::runtime::config::{Config, FastSize};
///
/// let config = Config::parse("fast=64M slow=emulated:2G")?;
/// assert_eq!(config.fast, FastSize::Bytes(64 << 20));
/// assert_eq!(config.to_string(), "fast=64M slow=emulated:2G policy=fill on_error=stop");
/// # Ok::<(), daxtier::runtime::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// How much fast memory to use.
    pub fast: FastSize,
    /// The slow devices, in the order in which they fill. Without any, all memory is fast.
    pub slow: Vec<SlowSpec>,
    /// How memory is divided between the tiers.
    pub policy: Policy,
    /// Where the figures go at exit.
    pub stats: Option<StatsTarget>,
    /// What a wrong configuration leads to.
    pub on_error: OnError,
    /// Whether memory may be moved between the tiers after it was placed.
    pub migrate: Migrate,
    /// What a program gets that touches memory of a device that is gone.
    pub on_loss: OnLoss,
    /// Whether other processes may ask for changes.
    pub control: Control,
}

impl Config {
    /// Reads and checks a configuration string, or the file that `@FILE` names. An empty string is an error:
    /// the default configuration is [`Config::default`].
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut effective = Effective::default();
        effective.apply_text(text, "configuration string")?;
        effective.validate()?;
        Ok(effective.into_config())
    }

    /// Reads and checks the environment, given as names and values. Nothing in the environment is changed, and
    /// it may be called before `main`; it allocates.
    ///
    /// # Errors
    /// The first [`ConfigError`] found. [`OnError::in_force`] says what to do then.
    pub fn from_environment<K, V>(variables: impl IntoIterator<Item = (K, V)>) -> Result<Config, ConfigError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut effective = Effective::default();
        effective.apply_environment(variables)?;
        effective.validate()?;
        Ok(effective.into_config())
    }

    /// Checks every value, and what several must agree on: a policy that speaks of the slow tier needs a slow
    /// device. What was read from text has passed already; a program that fills in the fields has not.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Effective::from_program(self.clone()).validate()
    }
}

impl OnError {
    /// Returns what to do about a configuration that could not be read, from as much of the same environment as
    /// can be: the variable of its own, else what `DAXTIER_CONF` or its file says. Anything unclear means stop.
    pub fn in_force<K, V>(variables: impl IntoIterator<Item = (K, V)>) -> OnError
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut from_conf = OnError::Stop;
        for (name, value) in variables {
            let Ok(value) = std::str::from_utf8(value.as_ref()) else { continue };
            if name.as_ref() == Key::OnError.variable().as_bytes() {
                return value.parse().unwrap_or_default();
            }
            if name.as_ref() == CONF.as_bytes() {
                from_conf = effective::on_error_of(value).unwrap_or_default();
            }
        }
        from_conf
    }
}

impl fmt::Display for Config {
    /// Prints a configuration string that reads back to the same configuration; a default fast size, absent
    /// statistics, `migrate=on`, `on_loss=sigbus` and `control=auto` are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effective = Effective::from_program(self.clone());
        let mut blank = "";
        for key in Key::ALL {
            let value = effective.value(key);
            let is_default = match key {
                Key::Fast => self.fast == FastSize::Default,
                Key::Migrate => self.migrate == Migrate::default(),
                Key::OnLoss => self.on_loss == OnLoss::Sigbus,
                Key::Control => self.control == Control::Auto,
                _ => false,
            };
            if value.is_empty() || is_default {
                continue;
            }
            write!(f, "{blank}{}={}", key.name(), text::Quoted(value))?;
            blank = " ";
        }
        Ok(())
    }
}
