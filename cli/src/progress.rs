//! One line on a terminal that says how far a scrub is.

use daxtier::device::{Dax, Device, DeviceError, Scrubbed};
use daxtier::units::Bytes;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shows nothing before this: most devices are cleared sooner.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a line stands.
const STEP: Duration = Duration::from_millis(100);

/// Clears what nobody uses of a device, by so many threads or as many as is usual, and shows how far it is.
pub(crate) fn scrub(dax: &Dax, what: &str, threads: Option<u8>) -> Result<Scrubbed, DeviceError> {
    let mut progress = Progress::of(what, dax.len_bytes());
    let note = &mut |done| progress.note(done);
    let done = match threads {
        Some(threads) => dax.scrub_free_by(threads.into(), note),
        None => dax.scrub_free(note),
    };
    progress.end();
    done
}

/// The line on standard error; nothing where that is no terminal.
#[derive(Debug)]
struct Progress {
    what: String,
    len_bytes: u64,
    start: Instant,
    shown: Option<Instant>,
    is_shown: bool,
}

impl Progress {
    /// Begins to clear `len_bytes` of a device.
    fn of(what: impl Into<String>, len_bytes: u64) -> Progress {
        let is_shown = std::io::stderr().is_terminal();
        Progress { what: what.into(), len_bytes, start: Instant::now(), shown: None, is_shown }
    }

    /// Takes note of what was done so far.
    fn note(&mut self, done: Scrubbed) {
        let is_due = self.shown.map_or(self.start.elapsed() > PATIENCE, |shown| shown.elapsed() > STEP);
        if self.is_shown && is_due {
            self.shown = Some(Instant::now());
            let line = line(&self.what, done.seen_bytes(), self.len_bytes, self.start.elapsed());
            // The end of a longer line before is wiped out.
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        }
    }

    /// Wipes the line out.
    fn end(self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, seen: u64, len_bytes: u64, elapsed: Duration) -> String {
    let percent = u128::from(seen) * 100 / u128::from(len_bytes.max(1));
    let rate = seen as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = (len_bytes.saturating_sub(seen) as f64 / rate.max(1.0)).ceil();
    format!(
        "{what}: {percent} % of {}, {:.1} GiB/s, {left} s left",
        Bytes(len_bytes),
        rate / f64::from(1u32 << 30)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line("clearing", 16 << 30, 64 << 30, 4 * second),
            "clearing: 25 % of 64 GiB, 4.0 GiB/s, 12 s left"
        );
        assert_eq!(
            line("clearing", 64 << 30, 64 << 30, second),
            "clearing: 100 % of 64 GiB, 64.0 GiB/s, 0 s left"
        );
        // Nothing done, no time, no length.
        assert!(line("clearing", 0, 1 << 60, Duration::ZERO).starts_with("clearing: 0 % of"));
        assert!(line("clearing", 0, 0, Duration::ZERO).starts_with("clearing: 0 % of"));
    }
}
