//! What the preload library costs: the same program under ours with DRAM only, and under a library that forwards
//! malloc straight to the same mimalloc.

use super::Row;
use super::contest::Contest;
use crate::process::{Task, cargo, find_program, target_dir};

/// Pattern, threads, operations: each run takes a fraction of a second.
const CASES: &[(&str, u32, u64)] = &[
    ("pair-64", 1, 20_000_000),
    ("pair-64", 2, 20_000_000),
    ("churn", 1, 8_000_000),
    ("churn", 2, 8_000_000),
    ("batch", 1, 10_000_000),
    ("large", 1, 100_000),
    ("handover", 1, 8_000_000),
    ("handover", 2, 4_000_000),
];

/// Programs that call malloc for whatever they make, and say how long they took: their own time on the processor.
const PROGRAMS: &[(&str, &str, &str)] = &[("python3", "-c", PYTHON), ("perl", "-e", PERL)];

const PYTHON: &str = "
import json, time
start = time.process_time()
for _ in range(3):
    words = ['word %d' % i for i in range(100000)]
    index = {word: (i, [word, i * 1.5]) for i, word in enumerate(words)}
    assert json.loads(json.dumps(index))['word 7'][0] == 7
print('python3 1 %.1f ms' % ((time.process_time() - start) * 1000))
";

const PERL: &str = r#"
my ($start) = times;
for (1 .. 3) {
    my %index;
    $index{"word $_"} = ["x" x ($_ % 200), $_] for 1 .. 100000;
    delete $index{"word $_"} for grep { $_ % 3 } 1 .. 100000;
    die unless keys %index == 33333;
}
my ($end) = times;
printf("perl 1 %.1f ms\n", ($end - $start) * 1000);
"#;

/// Measures every case.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>, String> {
    cargo("build --locked --release --package daxtier-preload").run()?;
    cargo("build --locked --release --package daxtier-peer-mimalloc --package daxtier-bench-programs")
        .run()?;
    let patterns = CASES.iter().map(|(pattern, threads, operations)| {
        Task::program(target_dir().join("release/bench-malloc").display().to_string())
            .arg(*pattern)
            .arg(threads.to_string())
            .arg(operations.to_string())
    });
    let programs = PROGRAMS.iter().filter_map(|(program, option, script)| {
        let path = find_program(program);
        if path.is_none() {
            println!("skipped: there is no {program}");
        }
        Some(
            Task::program(path?.display().to_string())
                .arg(*option)
                .arg(*script)
                .env("PYTHONMALLOC", "malloc"),
        )
    });
    patterns.chain(programs).map(|program| contest(&program).run(rounds)).collect()
}

fn contest(program: &Task) -> Contest {
    let with = |library: &str| {
        let library = target_dir().join("release").join(library);
        program.clone().env("LD_PRELOAD", library.display().to_string())
    };
    Contest {
        ours: with("libdaxtier_preload.so").env("DAXTIER_FAST", "2G"),
        peer_name: "mimalloc".to_owned(),
        peer: with("libpeer_mimalloc.so"),
    }
}
