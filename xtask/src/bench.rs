//! `cargo xtask bench NAME`: our numbers beside a peer's, from the same program in the same run.
//!
//! Each [`Suite`] runs ours and the peer in turns, round after round, so that what else the machine does meets
//! both, and keeps medians. Prints a Markdown table and writes `target/bench/NAME.json`, a list of objects with
//! `bench`, `threads`, `ours`, `peer`, `peer_value`, `unit` and `ratio`; a ratio above 1 means that we win.

mod bind;
mod contest;
mod core;
mod fork;
mod migrate;
mod preload;
mod zero;

use crate::json::Json;
use crate::process::target_dir;

/// One line of a result.
#[derive(Clone, Debug)]
struct Row {
    bench: String,
    threads: u32,
    ours: f64,
    peer: String,
    peer_value: f64,
    unit: String,
}

/// A named set of measurements.
struct Suite {
    name: &'static str,
    about: &'static str,
    run: fn(rounds: usize) -> Result<Vec<Row>, String>,
}

const SUITES: &[Suite] = &[
    Suite {
        name: "bind",
        about: "binding an emulated device of 1 TiB and taking a first page, beside the limits that we set",
        run: bind::run,
    },
    Suite {
        name: "core",
        about: "offsets, references, fragmentation and metadata of the folio core, beside other allocators and counts",
        run: core::run,
    },
    Suite {
        name: "fork",
        about: "fork with memory on an emulated device, beside a copy of the same bytes and a fork with ordinary memory",
        run: fork::run,
    },
    Suite {
        name: "migrate",
        about: "moving 2 MiB between DRAM and an emulated device, beside copies of the same bytes and mprotect with SIGSEGV",
        run: migrate::run,
    },
    Suite {
        name: "preload",
        about: "malloc through the preload library with DRAM only, against the mimalloc that it is built on",
        run: preload::run,
    },
    Suite {
        name: "zero",
        about: "2 MiB of zeroes, cleared when asked for or ahead, beside a huge page's fault and memset",
        run: zero::run,
    },
];

const DEFAULT_ROUNDS: usize = 9;

/// Runs a suite, or lists them (`--list`).
///
/// # Errors
/// An unknown name, or what could not be built or run.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let (name, rounds) = match args {
        [flag] if flag == "--list" => {
            SUITES.iter().for_each(|suite| println!("  {:<10}{}", suite.name, suite.about));
            return Ok(());
        }
        [name] => (name, DEFAULT_ROUNDS),
        [name, flag, rounds] if flag == "--rounds" => {
            let rounds = rounds.parse().ok().filter(|&rounds| rounds > 0);
            (name, rounds.ok_or("--rounds takes a number above 0")?)
        }
        _ => return Err("usage: cargo xtask bench NAME [--rounds N], or --list for the names".to_owned()),
    };
    let suite = SUITES.iter().find(|suite| suite.name == name);
    let suite = suite.ok_or_else(|| format!("there is no bench {name:?}; --list shows the names"))?;
    let rows = (suite.run)(rounds)?;
    println!("{}: {}; medians of {rounds} interleaved rounds\n", suite.name, suite.about);
    print!("{}", if suite.name == "core" { markdown_by_bench(&rows) } else { markdown(&rows) });
    let folder = target_dir().join("bench");
    let file = folder.join(format!("{}.json", suite.name));
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&file, Json::List(rows.iter().map(Row::json).collect()).line() + "\n"))
        .map_err(|e| format!("{}: {e}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

impl Row {
    /// Returns how many times better we are: the peer's value over ours for times and sizes, the other way round for
    /// rates, shares and speed-ups.
    fn ratio(&self) -> f64 {
        if self.unit.ends_with("/s") || matches!(self.unit.as_str(), "%" | "x") {
            self.ours / self.peer_value
        } else {
            self.peer_value / self.ours
        }
    }

    fn json(&self) -> Json {
        let text = |text: &str| Json::Text(text.to_owned());
        let members = [
            ("bench", text(&self.bench)),
            ("threads", Json::Number(f64::from(self.threads))),
            ("ours", Json::Number(self.ours)),
            ("peer", text(&self.peer)),
            ("peer_value", Json::Number(self.peer_value)),
            ("unit", text(&self.unit)),
            ("ratio", Json::Number(self.ratio())),
        ];
        Json::Object(members.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

/// As [`markdown`], with the peers of a bench in one line.
fn markdown_by_bench(rows: &[Row]) -> String {
    let mut table =
        "| bench | threads | ours | unit | peers: theirs (ratio) |\n|---|---:|---:|---|---|\n".to_owned();
    for peers in rows.chunk_by(|a, b| (&a.bench, a.threads) == (&b.bench, b.threads)) {
        let Row { bench, threads, ours, unit, .. } = &peers[0];
        let peers: Vec<String> = peers
            .iter()
            .map(|row| format!("{} {:.2} ({:.2})", row.peer, row.peer_value, row.ratio()))
            .collect();
        table.push_str(&format!("| {bench} | {threads} | {ours:.2} | {unit} | {} |\n", peers.join(", ")));
    }
    table
}

fn markdown(rows: &[Row]) -> String {
    let mut table =
        "| bench | threads | ours | peer | peer's | unit | ratio |\n|---|---:|---:|---|---:|---|---:|\n"
            .to_owned();
    for row in rows {
        table.push_str(&format!(
            "| {} | {} | {:.2} | {} | {:.2} | {} | {:.3} |\n",
            row.bench,
            row.threads,
            row.ours,
            row.peer,
            row.peer_value,
            row.unit,
            row.ratio()
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, peer_value: f64, unit: &str) -> Row {
        let (bench, peer) = ("pair".to_owned(), "them".to_owned());
        Row { bench, threads: 2, ours, peer, peer_value, unit: unit.to_owned() }
    }

    #[test]
    fn a_ratio_above_one_means_that_we_win() {
        assert_eq!(row(2.0, 3.0, "ns").ratio(), 1.5);
        assert_eq!(row(3.0, 2.0, "GB/s").ratio(), 1.5);
        assert_eq!(row(3.0, 2.0, "%").ratio(), 1.5);
    }

    #[test]
    fn the_peers_of_a_bench_share_a_line() {
        let other = Row { peer: "others".to_owned(), ..row(2.0, 1.0, "ns") };
        let table = markdown_by_bench(&[row(2.0, 3.0, "ns"), other]);
        assert!(
            table.ends_with("|\n| pair | 2 | 2.00 | ns | them 3.00 (1.50), others 1.00 (0.50) |\n"),
            "{table}"
        );
    }

    #[test]
    fn a_row_has_the_documented_keys() {
        let json = row(2.0, 3.0, "ns").json();
        for key in ["bench", "threads", "ours", "peer", "peer_value", "unit", "ratio"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(markdown(&[row(2.0, 3.0, "ns")]).contains("| pair | 2 | 2.00 | them | 3.00 | ns | 1.500 |"));
    }
}
