//! The settings whose values are a choice among words.

use super::error::{ValueError, cut};
use std::fmt;
use std::str::FromStr;

/// What a wrong configuration leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnError {
    /// The program stops before `main` with [`EXIT_CONFIG`](super::EXIT_CONFIG).
    #[default]
    Stop,
    /// The program runs on ordinary memory, after a line on standard error that says so.
    Passthrough,
}

impl FromStr for OnError {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<OnError, ValueError> {
        match text.trim() {
            "stop" => Ok(OnError::Stop),
            "passthrough" => Ok(OnError::Passthrough),
            other => Err(ValueError::UnknownChoice { text: cut(other) }),
        }
    }
}

impl fmt::Display for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnError::Stop => "stop",
            OnError::Passthrough => "passthrough",
        })
    }
}

/// What a program gets that touches memory of a device that is gone, or a page that is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLoss {
    /// SIGBUS, after a line that says what is lost.
    #[default]
    Sigbus,
    /// Zeroes: fresh memory takes the place of what is lost, after a line that says so.
    ZeroFill,
}

impl FromStr for OnLoss {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<OnLoss, ValueError> {
        match text.trim() {
            "sigbus" => Ok(OnLoss::Sigbus),
            "zero-fill" => Ok(OnLoss::ZeroFill),
            other => Err(ValueError::UnknownLoss { text: cut(other) }),
        }
    }
}

impl fmt::Display for OnLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnLoss::Sigbus => "sigbus",
            OnLoss::ZeroFill => "zero-fill",
        })
    }
}

/// Whether other processes may ask for changes (`daxtier drain`), and events of the machine are watched: a thread does that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Control {
    /// From the first use of a dax device on.
    #[default]
    Auto,
    /// From the first use of any slow device on.
    On,
    /// Never.
    Off,
}

impl FromStr for Control {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Control, ValueError> {
        match text.trim() {
            "auto" => Ok(Control::Auto),
            "on" => Ok(Control::On),
            "off" => Ok(Control::Off),
            other => Err(ValueError::UnknownControl { text: cut(other) }),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Control::Auto => "auto",
            Control::On => "on",
            Control::Off => "off",
        })
    }
}
