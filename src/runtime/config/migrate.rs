//! The setting `migrate`: whether memory moves between the tiers, and by which threads.
//!
//! `off`, or `on[,workers=N][,cpus=LIST][,demote=WAY]`, where `LIST` is written as the kernel writes it (`0-3,8`): what begins
//! with a digit behind a comma goes on with it. `WAY` is `pin-safe` or `protect`.

use super::error::{ValueError, cut};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Whether memory may be moved between the tiers after it was placed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Migrate {
    /// It is moved when the program asks for it, by these threads. Nothing moves by itself.
    On(Workers),
    /// It stays where it is, and requests to move it are refused.
    Off,
}

impl Default for Migrate {
    fn default() -> Migrate {
        Migrate::On(Workers::default())
    }
}

/// The threads that move memory, and how.
///
/// The threads are the process's: the first pool that moves memory decides how many there are, and where they run. How memory
/// leaves DRAM is each pool's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workers {
    count: u8,
    cpus: Vec<RangeInclusive<u16>>,
    demotion: Demotion,
}

/// How memory leaves DRAM for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Demotion {
    /// Its pages are taken out first (from Linux 6.8 on): the kernel refuses those that are pinned for I/O, and who reads
    /// or stores waits.
    #[default]
    PinSafe,
    /// It is write-protected while it is copied: who reads goes on, who stores waits. The kernel does not say what is pinned, so
    /// this is done as long as the program was not seen with a descriptor that pins memory, and what is pinned otherwise
    /// has to be named ([`Pool::pin`](crate::Pool::pin)). Pages that the program locks by mlock of its own, which are refused
    /// when they are taken out, are moved too and not locked afterwards.
    Protect,
}

impl Demotion {
    const ALL: [Demotion; 2] = [Demotion::PinSafe, Demotion::Protect];

    /// Returns the word in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Demotion::PinSafe => "pin-safe",
            Demotion::Protect => "protect",
        }
    }
}

impl Default for Workers {
    fn default() -> Workers {
        Workers { count: 1, cpus: Vec::new(), demotion: Demotion::PinSafe }
    }
}

impl Workers {
    /// The most threads.
    pub const MOST: u8 = 8;
    /// The largest number of a processor.
    pub const LAST_CPU: u16 = 1023;

    /// Makes `count` threads that run on the processors of `cpus`; on any where it is empty.
    ///
    /// # Errors
    /// [`ValueError`] when the count is not from 1 to [`MOST`](Workers::MOST), or a range is empty or goes beyond
    /// [`LAST_CPU`](Workers::LAST_CPU).
    pub fn new(count: u8, cpus: Vec<RangeInclusive<u16>>) -> Result<Workers, ValueError> {
        let workers = Workers { count, cpus, demotion: Demotion::PinSafe };
        workers.check().map(|()| workers)
    }

    /// Changes how memory leaves DRAM.
    #[must_use]
    pub fn demoting(self, demotion: Demotion) -> Workers {
        Workers { demotion, ..self }
    }

    /// Returns how memory leaves DRAM.
    pub fn demotion(&self) -> Demotion {
        self.demotion
    }

    /// Returns how many threads there are.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Returns the processors that they run on; none means any.
    pub fn cpus(&self) -> impl Iterator<Item = u16> + '_ {
        self.cpus.iter().cloned().flatten()
    }

    fn check(&self) -> Result<(), ValueError> {
        if !(1..=Workers::MOST).contains(&self.count) {
            return Err(ValueError::NotAWorkerCount { text: self.count.to_string() });
        }
        match self.cpus.iter().find(|range| range.is_empty() || *range.end() > Workers::LAST_CPU) {
            Some(range) => Err(ValueError::NotCpus { text: Cpus(range).to_string() }),
            None => Ok(()),
        }
    }

    fn from_parts<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Workers, ValueError> {
        let mut workers = Workers::default();
        let (mut has_count, mut is_in_cpus, mut has_way) = (false, false, false);
        for part in parts {
            let value = match part.split_once('=') {
                Some(("workers", _)) if has_count => {
                    return Err(ValueError::WorkersTwice { option: "workers" });
                }
                Some(("workers", value)) => {
                    (has_count, is_in_cpus) = (true, false);
                    let count = plain_number(value).and_then(|count| u8::try_from(count).ok());
                    workers.count = count.ok_or_else(|| ValueError::NotAWorkerCount { text: cut(value) })?;
                    continue;
                }
                Some(("demote", _)) if has_way => return Err(ValueError::WorkersTwice { option: "demote" }),
                Some(("demote", value)) => {
                    (has_way, is_in_cpus) = (true, false);
                    let way = Demotion::ALL.into_iter().find(|way| way.as_str() == value);
                    workers.demotion = way.ok_or_else(|| ValueError::NotADemotion { text: cut(value) })?;
                    continue;
                }
                Some(("cpus", _)) if !workers.cpus.is_empty() => {
                    return Err(ValueError::WorkersTwice { option: "cpus" });
                }
                Some(("cpus", value)) => value,
                None if is_in_cpus && part.starts_with(|c: char| c.is_ascii_digit()) => part,
                _ => return Err(ValueError::UnknownWorkersOption { text: cut(part) }),
            };
            is_in_cpus = true;
            workers.cpus.push(cpus(value)?);
        }
        workers.check().map(|()| workers)
    }
}

/// Reads `N` or `N-M`.
fn cpus(text: &str) -> Result<RangeInclusive<u16>, ValueError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = plain_number(first).zip(plain_number(last)).map(|(first, last)| first..=last);
    let range = range.filter(|range| !range.is_empty() && *range.end() <= Workers::LAST_CPU);
    range.ok_or_else(|| ValueError::NotCpus { text: cut(text) })
}

fn plain_number(text: &str) -> Option<u16> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

impl FromStr for Migrate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Migrate, ValueError> {
        let mut parts = text.split(',').map(str::trim);
        match (parts.next(), text.contains(',')) {
            (Some("on"), _) => Workers::from_parts(parts).map(Migrate::On),
            (Some("off"), false) => Ok(Migrate::Off),
            _ => Err(ValueError::UnknownSwitch { text: cut(text) }),
        }
    }
}

impl Migrate {
    pub(super) fn check(&self) -> Result<(), ValueError> {
        match self {
            Migrate::On(workers) => workers.check(),
            Migrate::Off => Ok(()),
        }
    }
}

impl fmt::Display for Migrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = match self {
            Migrate::Off => return f.write_str("off"),
            Migrate::On(workers) => workers,
        };
        f.write_str("on")?;
        if workers.count != 1 {
            write!(f, ",workers={}", workers.count)?;
        }
        for (at, range) in workers.cpus.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { ",cpus=" } else { "," }, Cpus(range))?;
        }
        if workers.demotion != Demotion::default() {
            write!(f, ",demote={}", workers.demotion.as_str())?;
        }
        Ok(())
    }
}

/// A range as the kernel writes it.
struct Cpus<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Cpus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_processors_are_read_and_printed() {
        for (text, count, cpus) in [
            ("on", 1, vec![]),
            ("on,workers=2", 2, vec![]),
            ("on,cpus=3", 1, vec![3]),
            ("on,workers=8,cpus=0-2,6", 8, vec![0, 1, 2, 6]),
        ] {
            let Ok(Migrate::On(workers)) = text.parse() else { panic!("{text}") };
            assert_eq!((workers.count(), workers.cpus().collect()), (count, cpus), "{text}");
            assert_eq!(Migrate::On(workers).to_string(), text);
        }
        let turned: Migrate = "on, cpus=1,2 ,workers=3".parse().unwrap();
        assert_eq!(turned.to_string(), "on,workers=3,cpus=1,2");
        let protecting: Migrate = "on,demote=protect,cpus=0,workers=2".parse().unwrap();
        assert_eq!(protecting.to_string(), "on,workers=2,cpus=0,demote=protect");
        let safe: Migrate = "on,demote=pin-safe".parse().unwrap();
        assert_eq!((safe.to_string().as_str(), &safe), ("on", &Migrate::default()));
        assert_eq!("off".parse(), Ok(Migrate::Off));
    }

    #[test]
    fn what_does_not_suit_is_named() {
        let refused = |text: &str| text.parse::<Migrate>().unwrap_err();
        for text in ["", "yes", "off,workers=2", "workers=2"] {
            assert_eq!(refused(text), ValueError::UnknownSwitch { text: text.into() });
        }
        for count in ["0", "9", "300", "", "+2", "two"] {
            let text = count.to_owned();
            assert_eq!(refused(&format!("on,workers={count}")), ValueError::NotAWorkerCount { text });
        }
        for cpus in ["", "3-1", "1024", "0-70000", "a", "1-"] {
            assert_eq!(refused(&format!("on,cpus={cpus}")), ValueError::NotCpus { text: cpus.into() });
        }
        for option in ["1", "workers", "cpu=1", "", "workers=2,3"] {
            assert!(
                matches!(refused(&format!("on,{option}")), ValueError::UnknownWorkersOption { .. }),
                "{option}"
            );
        }
        for way in ["", "safe", "Protect", "1"] {
            assert_eq!(refused(&format!("on,demote={way}")), ValueError::NotADemotion { text: way.into() });
        }
        for (option, value) in [("workers", "1"), ("cpus", "1"), ("demote", "protect")] {
            let text = format!("on,{option}={value},{option}={value}");
            assert_eq!(refused(&text), ValueError::WorkersTwice { option });
        }
        assert!(Workers::new(0, vec![]).is_err() && Workers::new(1, vec![0..=2000]).is_err());
    }
}
