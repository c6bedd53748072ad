//! What a fork costs with memory on a device: beside a copy of the same bytes, and beside a fork without any.

use super::Row;
use super::contest::Contest;
use crate::process::{Task, cargo, find_program, target_dir};

/// How many MiB are in use.
const SIZES: [&str; 3] = ["16", "128", "1024"];

/// Measures every size, and redis-server where it is installed.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-programs --package daxtier-preload").run()?;
    let release = target_dir().join("release");
    let program = release.join("bench-fork").display().to_string();
    let task = |what: &str| Task::program(&program).arg(what);
    let mut rows = Vec::new();
    for mib in SIZES {
        for peer in ["copy", "plain"] {
            let contest = Contest {
                ours: task("fork").arg(mib),
                peer_name: peer.to_owned(),
                peer: task(peer).arg(mib),
            };
            rows.push(contest.run(rounds)?);
        }
    }
    if find_program("redis-server").is_none() || find_program("redis-cli").is_none() {
        println!("redis-server is not installed: its row is left out");
        return Ok(rows);
    }
    let library = release.join("libdaxtier_preload.so").display().to_string();
    let contest = Contest {
        ours: task("redis")
            .arg(library)
            .env("DAXTIER_FAST", "16M")
            .env("DAXTIER_SLOW", "emulated:1G")
            .env("DAXTIER_POLICY", "preferred=slow"),
        peer_name: "without the library".to_owned(),
        peer: task("redis"),
    };
    rows.push(contest.run(rounds)?);
    Ok(rows)
}
