//! The picture of a tiered process: one bar for each tier, redrawn in place on a terminal.
//!
//! Without a terminal one plain line is printed every few seconds, so that a log stays readable.

use crate::stats::{Tier, human};
use std::io::Write;
use std::time::Duration;

/// Keeps a line within 80 columns: one that wraps would not be redrawn in place.
const BAR_CELLS: usize = 32;
/// Room for what the program said last.
const NOTE_CHARS: usize = 64;
/// What a whole bar stands for at the least.
const LEAST_SCALE: u64 = 512 << 20;
/// Time between two plain lines.
const PLAIN_PERIOD: Duration = Duration::from_secs(2);

/// Draws the same process again and again.
pub(super) struct Picture {
    is_terminal: bool,
    drawn_lines: usize,
    next_plain: Duration,
}

impl Picture {
    pub(super) fn new(is_terminal: bool) -> Picture {
        Picture { is_terminal, drawn_lines: 0, next_plain: Duration::ZERO }
    }

    /// Draws the tiers as they are while the program runs; `note` is the last thing it said.
    pub(super) fn draw(&mut self, tiers: &[Tier], note: &str, elapsed: Duration) {
        if self.is_terminal {
            let mut lines: Vec<String> =
                tiers.iter().map(|tier| bar(tier, tier.used_bytes, scale(tiers))).collect();
            let note: String = note.chars().take(NOTE_CHARS).collect();
            lines.push(format!("    {:>5.1} s  {note}", elapsed.as_secs_f64()));
            self.erase();
            self.drawn_lines = lines.len();
            print(&lines.join("\n"));
        } else if elapsed >= self.next_plain {
            self.next_plain = elapsed + PLAIN_PERIOD;
            let used: Vec<String> =
                tiers.iter().map(|tier| format!("{} {}", tier.name, human(tier.used_bytes))).collect();
            print(&format!("    {:>5.1} s  {}  {note}", elapsed.as_secs_f64(), used.join(", ")));
        }
    }

    /// Draws the last picture: the peak of each tier.
    pub(super) fn finish(&mut self, tiers: &[Tier]) {
        self.erase();
        print("    where the bytes were, at the peak:");
        for tier in tiers {
            print(&bar(tier, tier.peak_bytes, scale(tiers)));
        }
    }

    /// Takes back what the last drawing printed.
    fn erase(&mut self) {
        if self.drawn_lines > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn_lines);
            self.drawn_lines = 0;
        }
    }
}

/// Prints a line at once. A reader that went away does not stop the demonstration.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Returns the bytes that one whole bar stands for: the same for all tiers, so that lengths compare.
fn scale(tiers: &[Tier]) -> u64 {
    let peak = tiers.iter().map(|tier| tier.peak_bytes.max(tier.used_bytes)).max().unwrap_or(0);
    peak.checked_next_power_of_two().unwrap_or(u64::MAX).max(LEAST_SCALE)
}

/// Draws `bytes` of a tier: full cells for bytes in use, dots up to the tier's capacity where it ends in the picture.
fn bar(tier: &Tier, bytes: u64, scale: u64) -> String {
    let cells = |bytes: u64| {
        let cells = (bytes as u128 * BAR_CELLS as u128).div_ceil(u128::from(scale.max(1)));
        usize::try_from(cells).unwrap_or(BAR_CELLS).min(BAR_CELLS)
    };
    let full = cells(bytes);
    let room = cells(tier.capacity_bytes).saturating_sub(full);
    let rest = BAR_CELLS - full - room;
    format!(
        "    {:<5} {:<9} |{}{}{}| {:>8} of {}",
        tier.name,
        tier.kind,
        "█".repeat(full),
        "·".repeat(room),
        " ".repeat(rest),
        human(bytes),
        human(tier.capacity_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &str, capacity_bytes: u64, peak_bytes: u64) -> Tier {
        Tier { name: name.to_owned(), kind: "dram".to_owned(), capacity_bytes, used_bytes: 0, peak_bytes }
    }

    #[test]
    fn bars_of_all_tiers_share_one_scale() {
        let tiers = [tier("fast", 128 << 20, 128 << 20), tier("slow", 2 << 30, 512 << 20)];
        let full = |tier: &Tier| bar(tier, tier.peak_bytes, scale(&tiers)).matches('█').count();
        assert_eq!((full(&tiers[0]), full(&tiers[1])), (8, 32));
    }

    #[test]
    fn a_bar_has_the_same_width_whatever_it_shows() {
        for (bytes, capacity) in [(0, 0), (1, 1 << 30), (1 << 40, 1 << 30), (u64::MAX, u64::MAX)] {
            let drawn = bar(&tier("fast", capacity, 0), bytes, 256 << 20);
            let inside = drawn.split('|').nth(1).unwrap().chars().count();
            assert_eq!(inside, BAR_CELLS, "{drawn}");
            assert!(bytes > 1 << 30 || drawn.chars().count() <= 80, "{drawn}");
        }
    }
}
