//! What is in force, and from where.
//!
//! [`Effective`] starts from the defaults; each source that is applied to it replaces what it names, and an
//! [`Origin`] is kept for every setting. The environment is two sources: `DAXTIER_CONF` (a string or `@FILE`)
//! and above it the single variables. Within one source a setting may stand once. Files are read here and
//! nowhere else in the configuration.

use super::error::{ConfigError, ValueError, cut};
use super::key::{CONF, INTERNAL_PREFIX, PREFIX, nearest_variable};
use super::text::{BadWord, Words};
use super::value::{check_slow, parse_slow};
use super::{Config, Key, OnError};
use crate::sys::text::{Contents, read_regular};
use std::fmt;
use std::path::Path;

/// The longest configuration file.
const MAX_FILE_BYTES: usize = 64 << 10;

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// An environment variable of its own.
    Variable(&'static str),
    /// A flag on the command line.
    Flag(&'static str),
    /// A configuration string or file.
    Text {
        /// The file's path, or what the string is called.
        source: String,
        /// The line, in a source of several.
        line: Option<u32>,
    },
    /// A program that filled in the [`Config`] itself.
    Program,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Variable(name) | Origin::Flag(name) => f.write_str(name),
            Origin::Text { source, line: None } => f.write_str(source),
            Origin::Text { source, line: Some(line) } => write!(f, "{source}:{line}"),
            Origin::Program => f.write_str("the program"),
        }
    }
}

/// A configuration whose settings remember where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    config: Config,
    origins: [Origin; Key::COUNT],
}

impl Default for Effective {
    fn default() -> Effective {
        Effective { config: Config::default(), origins: [const { Origin::Default }; Key::COUNT] }
    }
}

impl Effective {
    /// Returns the configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns where a setting comes from.
    pub fn origin(&self, key: Key) -> &Origin {
        &self.origins[key as usize]
    }

    /// Returns a setting as a configuration spells it; empty when nothing is set.
    pub fn value(&self, key: Key) -> String {
        let config = &self.config;
        match key {
            Key::Fast => config.fast.to_string(),
            Key::Slow => config.slow.iter().map(ToString::to_string).collect::<Vec<_>>().join(";"),
            Key::Policy => config.policy.to_string(),
            Key::Stats => config.stats.as_ref().map(ToString::to_string).unwrap_or_default(),
            Key::OnError => config.on_error.to_string(),
            Key::Migrate => config.migrate.to_string(),
            Key::OnLoss => config.on_loss.to_string(),
            Key::Control => config.control.to_string(),
        }
    }

    /// Gives one setting a value.
    ///
    /// # Errors
    /// [`ConfigError`] at `origin`; the setting is then unchanged.
    pub fn set(&mut self, key: Key, value: &str, origin: Origin) -> Result<(), ConfigError> {
        if value.trim().is_empty() {
            return Err(ConfigError::Empty { at: origin, key });
        }
        let config = &mut self.config;
        let outcome = match key {
            Key::Fast => value.parse().map(|fast| config.fast = fast),
            Key::Slow => parse_slow(value).map(|slow| config.slow = slow),
            Key::Policy => {
                cut(value).parse().map(|policy| config.policy = policy).map_err(ValueError::Policy)
            }
            Key::Stats => value.parse().map(|target| config.stats = Some(target)),
            Key::OnError => value.parse().map(|choice| config.on_error = choice),
            Key::Migrate => value.parse().map(|choice| config.migrate = choice),
            Key::OnLoss => value.parse().map(|choice| config.on_loss = choice),
            Key::Control => value.parse().map(|choice| config.control = choice),
        };
        match outcome {
            Ok(()) => {
                self.origins[key as usize] = origin;
                Ok(())
            }
            Err(error) => Err(ConfigError::Value { at: origin, key, error }),
        }
    }

    /// Applies a configuration string, or the file that `@FILE` names. `source` is what messages call a string.
    ///
    /// # Errors
    /// The first [`ConfigError`] in the text; settings before it are applied.
    pub fn apply_text(&mut self, text: &str, source: &str) -> Result<(), ConfigError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            let at = Origin::Text { source: source.to_owned(), line: None };
            return Err(ConfigError::EmptyText { at });
        }
        match trimmed.strip_prefix('@') {
            Some("") => {
                Err(ConfigError::NoFile { at: Origin::Text { source: source.to_owned(), line: None } })
            }
            Some(path) => self.apply_file(Path::new(path)),
            None => self.apply_words(trimmed, source, trimmed.contains('\n')),
        }
    }

    /// Applies a configuration file. Blocks on the file system.
    ///
    /// # Errors
    /// What kept the file from being read, or the first error in it.
    pub fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let owned = || path.to_owned();
        let bytes = match read_regular(path, MAX_FILE_BYTES) {
            Ok(Contents::Bytes(bytes)) => bytes,
            Ok(Contents::NotRegular) => return Err(ConfigError::NotAFile { path: owned() }),
            Ok(Contents::Longer) => return Err(ConfigError::LongFile { path: owned() }),
            Err(source) => return Err(ConfigError::File { path: owned(), source }),
        };
        let source = path.to_string_lossy();
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.apply_words(text, &source, true),
            Err(error) => {
                let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count() as u32;
                let at = Origin::Text { source: source.into_owned(), line: Some(line) };
                Err(ConfigError::NotText { at })
            }
        }
    }

    fn apply_words(&mut self, text: &str, source: &str, lines: bool) -> Result<(), ConfigError> {
        let mut seen = [false; Key::COUNT];
        for word in Words::new(text) {
            let at = Origin::Text { source: source.to_owned(), line: lines.then_some(word.line) };
            if word.value == Err(BadWord::NoValue) || word.key.is_empty() {
                let text = if word.key.is_empty() { "=" } else { word.key };
                return Err(ConfigError::NoValue { at, word: cut(text) });
            }
            let Some(key) = Key::from_name(word.key) else {
                let nearest = Key::nearest_name(word.key);
                return Err(ConfigError::UnknownKey { at, key: cut(word.key), nearest });
            };
            let Ok(value) = word.value else { return Err(ConfigError::OpenQuote { at, key }) };
            if std::mem::replace(&mut seen[key as usize], true) {
                return Err(ConfigError::Twice { at, key });
            }
            self.set(key, &value, at)?;
        }
        Ok(())
    }

    /// Applies the environment: `DAXTIER_CONF`, then the single variables above it. Variables that do not begin
    /// with `DAXTIER_` are none of our business; one that does and is not known is an error.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn apply_environment<K, V>(
        &mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<(), ConfigError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut conf = None;
        let mut single = [const { None }; Key::COUNT];
        for (name, value) in variables {
            let name = name.as_ref();
            if !name.starts_with(PREFIX.as_bytes()) || name.starts_with(INTERNAL_PREFIX.as_bytes()) {
                continue;
            }
            let key = Key::from_variable(name);
            let (slot, variable) = match key {
                Some(key) => (&mut single[key as usize], key.variable()),
                None if name == CONF.as_bytes() => (&mut conf, CONF),
                None => {
                    let name = cut(&String::from_utf8_lossy(name));
                    let nearest = nearest_variable(&name);
                    return Err(ConfigError::UnknownVariable { name, nearest });
                }
            };
            let at = Origin::Variable(variable);
            let Ok(text) = std::str::from_utf8(value.as_ref()) else {
                return Err(ConfigError::NotText { at });
            };
            if slot.replace(text.to_owned()).is_some() {
                return Err(ConfigError::VariableTwice { variable });
            }
        }
        if let Some(text) = conf {
            self.apply_text(&text, CONF)?;
        }
        for (key, text) in Key::ALL.into_iter().zip(single) {
            if let Some(text) = text {
                self.set(key, &text, Origin::Variable(key.variable()))?;
            }
        }
        Ok(())
    }

    /// Checks what several settings must agree on; see [`Config::validate`].
    ///
    /// # Errors
    /// [`ConfigError`] at the setting's origin.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: Key, error: ValueError| {
            Err(ConfigError::Value { at: self.origin(key).clone(), key, error })
        };
        let config = &self.config;
        if let Err(error) = config.fast.check() {
            return wrong(Key::Fast, error);
        }
        if let Err(error) = check_slow(&config.slow) {
            return wrong(Key::Slow, error);
        }
        if let Err(error) = config.policy.check() {
            return wrong(Key::Policy, error.into());
        }
        if let Some(Err(error)) = config.stats.as_ref().map(super::StatsTarget::check) {
            return wrong(Key::Stats, error);
        }
        if let Err(error) = config.migrate.check() {
            return wrong(Key::Migrate, error);
        }
        if config.policy.needs_slow() && config.slow.is_empty() {
            let at = self.origin(Key::Policy).clone();
            return Err(ConfigError::NoSlowDevice { at, policy: config.policy });
        }
        Ok(())
    }

    /// Takes a configuration that a program filled in itself.
    pub fn from_program(config: Config) -> Effective {
        Effective { config, origins: [const { Origin::Program }; Key::COUNT] }
    }

    /// Gives the configuration away.
    pub fn into_config(self) -> Config {
        self.config
    }
}

/// Finds `on_error` in a configuration string or its `@FILE`, whatever else is wrong with it.
pub(super) fn on_error_of(text: &str) -> Option<OnError> {
    let from_file = match text.trim().strip_prefix('@') {
        Some(path) => match read_regular(Path::new(path), MAX_FILE_BYTES) {
            Ok(Contents::Bytes(bytes)) => Some(String::from_utf8(bytes).ok()?),
            _ => return None,
        },
        None => None,
    };
    let mut words = Words::new(from_file.as_deref().unwrap_or(text));
    words.find(|word| word.key == Key::OnError.name())?.value.ok()?.parse().ok()
}

#[cfg(test)]
#[path = "effective_tests.rs"]
mod tests;
