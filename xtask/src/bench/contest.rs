//! Two contenders in turns, or one beside a fixed value.
//!
//! A bench program prints `NAME THREADS VALUE UNIT` on a line of its own; everything else it prints is ignored.

use super::Row;
use crate::process::Task;

/// What is measured: our way and the peer's, as two programs that print one value each.
pub(super) struct Contest {
    pub(super) ours: Task,
    pub(super) peer_name: String,
    pub(super) peer: Task,
}

/// One value that a bench program printed.
#[derive(Clone, Debug, PartialEq)]
struct Value {
    bench: String,
    threads: u32,
    value: f64,
    unit: String,
}

impl Contest {
    /// Runs both `rounds` times, changing who goes first, and keeps the medians.
    ///
    /// # Errors
    /// A program that fails or prints no value.
    pub(super) fn run(&self, rounds: usize) -> Result<Row, String> {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            if round % 2 == 0 {
                ours.push(measure(&self.ours)?);
                peers.push(measure(&self.peer)?);
            } else {
                peers.push(measure(&self.peer)?);
                ours.push(measure(&self.ours)?);
            }
        }
        row(&ours, &self.peer_name, median(peers.iter().map(|value| value.value)))
    }
}

/// Runs one program `rounds` times and sets its median beside a fixed value.
///
/// # Errors
/// A program that fails or prints no value.
pub(super) fn measure_alone(task: &Task, rounds: usize, beside: &str, fixed: f64) -> Result<Row, String> {
    let ours = (0..rounds).map(|_| measure(task)).collect::<Result<Vec<Value>, String>>()?;
    row(&ours, beside, fixed)
}

fn row(ours: &[Value], peer: &str, peer_value: f64) -> Result<Row, String> {
    let Value { bench, threads, unit, .. } = ours.first().ok_or("not a single round was asked for")?.clone();
    let ours = median(ours.iter().map(|value| value.value));
    Ok(Row { bench, threads, ours, peer: peer.to_owned(), peer_value, unit })
}

fn measure(task: &Task) -> Result<Value, String> {
    let output = task.output()?;
    output.lines().find_map(parse).ok_or_else(|| format!("no value in {output:?}\n  from {}", task.line()))
}

fn parse(line: &str) -> Option<Value> {
    let words: Vec<&str> = line.split(' ').collect();
    let [bench, threads, value, unit] = words[..] else { return None };
    Some(Value {
        bench: bench.to_owned(),
        threads: threads.parse().ok()?,
        value: value.parse().ok().filter(|value: &f64| value.is_finite())?,
        unit: unit.to_owned(),
    })
}

/// Returns the middle value, of an even number the mean of the middle two.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_kept() {
        let say = |value: &str| Task::new("echo").words(&format!("pair 2 {value} ns"));
        let row = Contest { ours: say("4"), peer_name: "them".to_owned(), peer: say("6") }.run(3).unwrap();
        assert_eq!((row.ours, row.peer_value, row.threads), (4.0, 6.0, 2));
        assert_eq!(median([3.0, 1.0, 100.0].into_iter()), 3.0);
        assert_eq!(median([4.0, 2.0].into_iter()), 3.0);
    }

    #[test]
    fn a_program_without_a_value_fails_the_bench() {
        let contest = Contest {
            ours: Task::new("echo hello"),
            peer_name: String::new(),
            peer: Task::new("echo a 1 2 ns"),
        };
        assert!(contest.run(1).unwrap_err().contains("no value"));
    }
}
