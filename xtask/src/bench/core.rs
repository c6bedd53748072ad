//! The folio core beside its peers: every case of `bench-core`, and what binding a large device costs.
//!
//! A round is a process that goes through all cases once, each contender of a case right after the other.

use super::contest::median;
use super::{Row, bind};
use crate::process::{Task, cargo, seconds, target_dir};
use std::time::Instant;

/// One value that `bench-core` printed.
#[derive(Clone, Debug, PartialEq)]
struct Value {
    bench: String,
    threads: u32,
    who: String,
    value: f64,
    unit: String,
}

/// Who we are in what `bench-core` prints.
const OURS: &str = "daxtier";

/// Measures every case. For cases with one thread and with two, of which the floor is one, it adds how well they scale.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-bench-core").run()?;
    let program = target_dir().join("release/bench-core").display().to_string();
    let mut values = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        let task = Task::program(&program).arg("--round").arg(round.to_string());
        values.extend(task.output()?.lines().map(parse).collect::<Result<Vec<Value>, String>>()?);
        eprintln!("round {} of {rounds}: {}", round + 1, seconds(start.elapsed()));
    }
    let mut rows = rows(&values)?;
    rows.extend(scaling(&rows));
    rows.extend(bind::run(rounds)?);
    Ok(rows)
}

fn parse(line: &str) -> Result<Value, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let value = || {
        let [bench, threads, who, value, unit] = words[..] else { return None };
        Some(Value {
            bench: bench.to_owned(),
            threads: threads.parse().ok()?,
            who: who.to_owned(),
            value: value.parse().ok().filter(|value: &f64| value.is_finite())?,
            unit: unit.to_owned(),
        })
    };
    value().ok_or_else(|| format!("bench-core printed {line:?}, which is no value"))
}

/// Makes a row of each peer in each case, with medians, in the order in which they were first seen.
fn rows(values: &[Value]) -> Result<Vec<Row>, String> {
    let of = |bench: &str, threads: u32, who: &str| {
        let same = |value: &&Value| value.bench == bench && value.threads == threads && value.who == who;
        median(values.iter().filter(same).map(|value| value.value))
    };
    let mut rows: Vec<Row> = Vec::new();
    for Value { bench, threads, who, unit, .. } in values {
        let is_same = |row: &Row| row.bench == *bench && row.threads == *threads && row.peer == *who;
        if who == OURS || rows.iter().any(is_same) {
            continue;
        }
        let ours = of(bench, *threads, OURS);
        if ours.is_nan() {
            return Err(format!("bench-core has no value of ours for {bench}"));
        }
        let peer_value = of(bench, *threads, who);
        let (bench, peer, unit) = (bench.clone(), who.clone(), unit.clone());
        rows.push(Row { bench, threads: *threads, ours, peer, peer_value, unit });
    }
    Ok(rows)
}

/// How many times quicker two threads are than one, ours beside the floor, which shares nothing.
fn scaling(rows: &[Row]) -> Vec<Row> {
    let floors = || rows.iter().filter(|row| row.peer == "floor");
    let pairs = floors().filter(|row| row.threads == 1).filter_map(|one| {
        floors().find(|two| two.threads == 2 && two.bench == one.bench).map(|two| (one, two))
    });
    pairs
        .map(|(one, two)| Row {
            bench: format!("scaling-{}", one.bench),
            ours: one.ours / two.ours,
            peer_value: one.peer_value / two.peer_value,
            unit: "x".to_owned(),
            ..two.clone()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(lines: &str) -> Vec<Value> {
        lines.lines().map(|line| parse(line).unwrap()).collect()
    }

    #[test]
    fn rounds_become_medians_and_each_peer_a_row() {
        let values = values(
            "a 1 daxtier 5 ns\na 1 floor 1 ns\na 1 arc 10 ns\na 1 floor 3 ns\na 1 daxtier 1 ns\n\
             a 1 arc 30 ns\na 1 daxtier 4 ns\na 1 floor 2 ns\na 1 arc 8 ns",
        );
        let rows = rows(&values).unwrap();
        let seen: Vec<_> = rows.iter().map(|row| (row.peer.as_str(), row.ours, row.peer_value)).collect();
        assert_eq!(seen, [("floor", 4.0, 2.0), ("arc", 4.0, 10.0)]);
        assert_eq!(rows[1].ratio(), 2.5);
    }

    #[test]
    fn scaling_is_told_beside_the_floor() {
        let values = values(
            "a 1 daxtier 6 ns\na 1 floor 2 ns\na 2 daxtier 4 ns\na 2 floor 1 ns\nb 2 daxtier 1 ns\nb 2 floor 1 ns",
        );
        let rows = scaling(&rows(&values).unwrap());
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].bench.as_str(), rows[0].ours, rows[0].peer_value), ("scaling-a", 1.5, 2.0));
        assert_eq!(rows[0].ratio(), 0.75);
    }

    #[test]
    fn lines_that_are_no_values_are_refused() {
        assert!(parse("a 1 daxtier 1").is_err());
        assert!(parse("a 1 daxtier NaN ns").is_err());
        assert!(rows(&values("a 1 arc 1 ns")).is_err());
    }
}
