//! Unmodified programs over two tiers: they run unharmed, and their bytes lie where the command line says.

mod common;

use common::{Run, Scratch, clean, daxtier, describe, preload, program};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Two tiers that every small program fits in, with some of it in each.
fn small() -> Run {
    Run::new("16M", "emulated:1G")
}

#[test]
fn python_fills_the_fast_tier_and_goes_on_in_the_slow_one() {
    if program("python3").is_none() {
        return;
    }
    let ran = Run::new("64M", "emulated:2G")
        .args(["python3", "-c", "x=[bytes(1000) for _ in range(500000)]; print(len(x))"])
        .output();
    assert_eq!(ran.stdout(), "500000\n");
    let (fast, slow) = (ran.stats().count("fast", "peak_bytes"), ran.stats().peak_mib("slow"));
    assert!(fast <= 64 << 20, "the fast tier held {fast} bytes: {}", ran.stats().0);
    assert!(fast >= 32 << 20, "the fast tier was hardly used, {fast} bytes: {}", ran.stats().0);
    assert!((350..2048).contains(&slow), "the slow tier held {slow} MiB: {}", ran.stats().0);
}

#[test]
fn freed_memory_returns_to_its_tier() {
    if program("python3").is_none() {
        return;
    }
    // Ten rounds of 300 MB fit in 700 MB only if each round gives its memory back.
    let script = "for i in range(10):\n x=[bytes(1000) for _ in range(300000)]\n del x\nprint('done')";
    let ran = Run::new("64M", "emulated:700M").args(["python3", "-c", script]).output();
    assert_eq!(ran.stdout(), "done\n");
    assert!(ran.stats().peak_mib("slow") >= 150, "{}", ran.stats().0);
}

#[test]
fn python_sees_an_exhausted_pool_as_memory_error() {
    if program("python3").is_none() {
        return;
    }
    // At most 1 GB, so that a limit which does not hold fails the test and not the machine.
    let script = "x=[]\ntry:\n  for _ in range(10000): x.append(bytes(100000))\nexcept MemoryError: pass\n\
        n=len(x); x=None; print(n)";
    let ran = Run::new("32M", "emulated:128M").args(["python3", "-c", script]).output();
    let blocks: u64 = ran.stdout().trim().parse().unwrap();
    assert!((800..1600).contains(&blocks), "{blocks} blocks of 100 kB fitted in 160 MiB");
    let stats = ran.stats();
    assert!(stats.count("fast", "peak_bytes") <= 32 << 20, "{}", stats.0);
    assert!(stats.count("slow", "peak_bytes") <= 128 << 20, "{}", stats.0);
}

#[test]
fn sqlite_sorts_and_sums_correctly() {
    if program("sqlite3").is_none() {
        return;
    }
    let sql = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200000)
        INSERT INTO t SELECT i, printf('%0200d', (i*7919)%200003) FROM n;
        CREATE INDEX tb ON t(b);
        SELECT count(*), sum(a), min(b)=printf('%0200d',1), max(length(b)) FROM t;
        PRAGMA integrity_check;";
    let ran = small().args(["sqlite3", ":memory:", sql]).output();
    assert_eq!(ran.stdout(), "200000|20000100000|1|200\nok\n");
    assert!(ran.stats().peak_mib("slow") >= 40, "{}", ran.stats().0);
}

#[test]
fn git_commits_packs_and_checks() {
    if program("git").is_none() {
        return;
    }
    let script = "set -e
        mkdir tree && cd tree && git init -q . && git config user.email a@example.org && git config user.name a && git config gc.auto 0
        for i in 1 2 3 4 5; do seq $((i*20000)) > file$i; git add . ; git commit -qm c$i; done
        git gc -q --aggressive; git fsck --full; git log --oneline | wc -l; git diff HEAD~4 --stat | tail -1";
    let ran = small().args(["sh", "-c", script]).output();
    let said = ran.stdout();
    assert!(said.trim_start().starts_with('5') && said.contains("4 files changed"), "{said}");
}

#[test]
fn gcc_compiles_a_program_that_runs() {
    if program("gcc").is_none() {
        return;
    }
    let run = small();
    run.scratch().write(
        "main.c",
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint main(void) { char *p = malloc(1 << 20); \
         memset(p, 7, 1 << 20); printf(\"%d\\n\", p[99]); free(p); return 0; }\n",
    );
    let ran = run.args(["sh", "-c", "gcc -O2 -g main.c -o main && ./main"]).output();
    assert_eq!(ran.stdout(), "7\n");
}

#[test]
fn perl_sorts_and_hashes() {
    if program("perl").is_none() {
        return;
    }
    let script = "my %h; $h{$_*7919 % 1000003} = 'x' x ($_ % 97) for 1..300000; my $n = 0; $n += length $h{$_} \
        for sort { $a <=> $b } keys %h; print scalar(keys %h), ' ', $n, qq(\\n)";
    let expected = plainly(&["perl", "-e", script]);
    let ran = small().args(["perl", "-e", script]).output();
    assert_eq!(ran.stdout(), expected);
    assert!(ran.stats().peak_mib("slow") > 0, "{}", ran.stats().0);
}

#[test]
fn node_allocates_buffers_and_starts_workers() {
    if program("node").is_none() {
        return;
    }
    let script = "const { Worker } = require('worker_threads');
        const kept = []; for (let i = 0; i < 200; i++) kept.push(Buffer.alloc(1 << 20, i));
        let sum = 0; for (const b of kept) sum += b[12345];
        let left = 3; for (let i = 0; i < 3; i++)
          new Worker('require(\"worker_threads\").parentPort.postMessage(Buffer.alloc(1<<22, 3)[77])', { eval: true })
            .on('message', v => { sum += v; if (--left === 0) console.log(sum); });";
    let ran = small().args(["node", "-e", script]).output();
    assert_eq!(ran.stdout(), format!("{}\n", (0..200).sum::<u32>() + 9));
    assert!(ran.stats().peak_mib("slow") >= 100, "{}", ran.stats().0);
}

#[test]
fn java_compiles_itself_and_runs_threads() {
    if program("javac").is_none() || program("java").is_none() {
        return;
    }
    let source = "import java.util.*; import java.util.zip.*;
public class Main {
    public static void main(String[] a) throws Exception {
        Map<Integer, byte[]> map = new HashMap<>();
        for (int i = 0; i < 20000; i++) map.put(i, new byte[1000]);
        long[] sums = new long[4];
        Thread[] threads = new Thread[4];
        for (int k = 0; k < 4; k++) {
            int me = k;
            threads[k] = new Thread(() -> { for (int i = 0; i < 20000; i++) sums[me] += map.get(i).length; });
            threads[k].start();
        }
        for (Thread thread : threads) thread.join();
        Deflater deflater = new Deflater();
        deflater.setInput(new byte[1000000]);
        deflater.finish();
        System.out.println(Arrays.stream(sums).sum() + \" \" + deflater.deflate(new byte[100000]));
    }
}
";
    let run = small();
    run.scratch().write("Main.java", source);
    let ran = run.args(["sh", "-c", "javac -d classes Main.java && java -cp classes Main"]).output();
    assert_eq!(ran.stdout(), "80000000 991\n", "{}", ran.describe());
}

#[test]
fn sort_orders_a_large_file_with_threads() {
    let script = "seq 1 800000 | awk '{print ($1*7919)%800011}' > in; sort -n --parallel=4 -S 200M in > out; \
        sort -nc out && head -1 out && tail -1 out && wc -l < out";
    let ran = small().args(["sh", "-c", script]).output();
    assert_eq!(ran.stdout().split_whitespace().collect::<Vec<_>>(), ["1", "800010", "800000"]);
}

#[test]
fn shells_that_fork_and_exec_all_the_time_run_to_the_end() {
    let script = "i=0; while [ $i -lt 150 ]; do x=$(echo $i | sed s/^/n/ | tr n m); \
        (exec true) ; i=$((i+1)); done; echo $x";
    let ran = small().args(["sh", "-c", script]).output();
    assert_eq!(ran.stdout(), "m149\n");
}

#[test]
fn a_forked_child_neither_sees_nor_disturbs_its_parents_later_writes() {
    if program("python3").is_none() {
        return;
    }
    // Both sides rewrite what they share at the time of the fork; most of it lies in the slow tier.
    let script = "
import os
x = [bytearray(b'p' * 1000) for _ in range(60000)]
r, w = os.pipe()
child = os.fork()
if child == 0:
    ok = all(b == b'p' * 1000 for b in x)
    for b in x: b[:] = b'c' * 1000
    os.write(w, b'.')
    ok = ok and all(b == b'c' * 1000 for b in x)
    os._exit(0 if ok else 9)
os.read(r, 1)
ok = all(b == b'p' * 1000 for b in x)
for b in x: b[:] = b'q' * 1000
status = os.waitpid(child, 0)[1]
print(ok, os.waitstatus_to_exitcode(status), all(b == b'q' * 1000 for b in x))
";
    let ran = Run::new("16M", "emulated:512M").args(["python3", "-c", script]).output();
    assert_eq!(ran.stdout(), "True 0 True\n");
}

#[test]
fn a_program_with_many_threads_keeps_its_data() {
    let Some(compiler) = ["c++", "g++", "clang++"].into_iter().find_map(program) else { return };
    let run = Run::new("16M", "emulated:1G");
    let source = run.scratch().write("threads.cc", THREADS);
    let binary = run.scratch().path("threads");
    let compiled = Command::new(compiler)
        .args(["-O2", "-std=c++17", "-pthread", "-o"])
        .args([&binary, &source])
        .output()
        .expect("the compiler starts");
    assert!(compiled.status.success(), "{}", describe(&compiled));
    let ran = run.args([&binary]).output();
    assert_eq!(ran.stdout(), "correct\n");
    assert!(ran.stats().peak_mib("slow") >= 32, "{}", ran.stats().0);
}

/// Producers hand strings to consumers, which free them; a map grows beside; aligned and sized new are used; a thread
/// exits while others keep what it allocated.
const THREADS: &str = r#"
#include <atomic>
#include <cstdio>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <queue>
#include <string>
#include <thread>
#include <vector>
struct alignas(256) Wide { unsigned char bytes[512]; };
std::mutex lock;
std::queue<std::string *> queue;
std::atomic<int> producing{4};
std::atomic<long> wrong{0}, eaten{0};
void produce(int id) {
    std::vector<std::unique_ptr<Wide>> wide;
    std::map<int, std::string> map;
    for (int i = 0; i < 20000; i++) {
        auto *s = new std::string(50 + (i * 37 + id) % 3000, char('a' + i % 26));
        { std::lock_guard<std::mutex> g(lock); queue.push(s); }
        map[i * 7919 % 5003] = std::string(i % 500, 'm');
        if (i % 10 == 0) {
            wide.push_back(std::make_unique<Wide>());
            if (reinterpret_cast<uintptr_t>(wide.back().get()) % 256) wrong++;
        }
    }
    for (auto &e : map) for (char c : e.second) if (c != 'm') wrong++;
    producing--;
}
void consume() {
    for (;;) {
        std::string *s = nullptr;
        bool last = producing == 0;
        { std::lock_guard<std::mutex> g(lock); if (!queue.empty()) { s = queue.front(); queue.pop(); } }
        if (!s) { if (last) return; std::this_thread::yield(); continue; }
        for (char c : *s) if (c != (*s)[0]) wrong++;
        delete s;
        eaten++;
    }
}
int main() {
    std::vector<std::vector<int>> kept(8);
    std::vector<std::thread> makers;
    for (int i = 0; i < 8; i++) makers.emplace_back([&, i] { kept[i].assign(2 << 20, i); });
    for (auto &t : makers) t.join();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) { threads.emplace_back(produce, i); threads.emplace_back(consume); }
    for (auto &t : threads) t.join();
    for (int i = 0; i < 8; i++) for (int v : kept[i]) if (v != i) wrong++;
    if (wrong == 0 && eaten == 80000) puts("correct");
    else printf("%ld wrong, %ld eaten\n", wrong.load(), eaten.load());
}
"#;

#[test]
fn redis_loads_half_a_gigabyte_and_answers_correctly() {
    if ["redis-server", "redis-cli", "redis-benchmark"].iter().any(|name| program(name).is_none()) {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("redis.sock");
    let stats = scratch.path("stats.json");
    let mut server = clean(Command::new(daxtier()))
        .args(["run", "--fast", "64M", "--slow", "emulated:2G"])
        .arg(format!("--stats={}", stats.display()))
        .args(["--", "redis-server", "--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&socket)
        .current_dir(scratch.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("daxtier starts");
    let redis = |args: &[&str]| {
        let output =
            Command::new("redis-cli").arg("-s").arg(&socket).args(args).output().expect("redis-cli starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let start = Instant::now();
    while redis(&["PING"]) != "PONG" {
        assert!(start.elapsed() < Duration::from_secs(30), "redis-server does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    // 5000 lists of 100 elements of 1 KiB: each element repeats the number of its list, so that all can be compared.
    let fill = "for i=0,199 do local k=ARGV[1]*200+i; local v={} for j=1,100 do v[j]=string.rep(string.format('%08d',k),128) end \
        redis.call('DEL',k) redis.call('RPUSH',k,unpack(v)) end return redis.call('DBSIZE')";
    for round in 0..25 {
        assert_eq!(redis(&["EVAL", fill, "0", &round.to_string()]), ((round + 1) * 200).to_string());
    }
    let check = "local bad=0 for k=0,4999 do local want=string.rep(string.format('%08d',k),128) \
        for _,v in ipairs(redis.call('LRANGE',k,0,-1)) do if v~=want then bad=bad+1 end end end return bad";
    assert_eq!(redis(&["EVAL", check, "0"]), "0");
    assert_eq!(
        redis(&["EVAL", "local n=0 for k=0,4999 do n=n+redis.call('LLEN',k) end return n", "0"]),
        "500000"
    );
    redis(&["SHUTDOWN", "NOSAVE"]);
    assert!(server.wait().expect("the server was started").success());
    let stats = common::Stats(std::fs::read_to_string(&stats).expect("statistics were written"));
    assert!(stats.count("fast", "peak_bytes") <= 64 << 20, "{}", stats.0);
    assert!(stats.peak_mib("slow") >= 400, "{}", stats.0);
}

#[test]
fn an_earlier_preload_library_stays_behind_ours() {
    let ran = {
        let scratch = Scratch::new();
        let source = scratch.write("other.c", "int other_was_loaded(void) { return 7; }\n");
        let other = scratch.path("libother.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&other, &source])
            .output()
            .expect("cc starts");
        assert!(compiled.status.success(), "{}", describe(&compiled));
        let mut command = clean(Command::new(daxtier()));
        command.env("LD_PRELOAD", &other).args(["run", "--fast", "16M", "--slow", "emulated:64M", "--"]);
        command
            .args(["sh", "-c", "echo $LD_PRELOAD; grep -c libother.so /proc/self/maps"])
            .output()
            .expect("daxtier starts")
    };
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let ours = said.find("libdaxtier_preload.so").unwrap_or_else(|| panic!("{}", describe(&ran)));
    let theirs = said.find("libother.so").unwrap_or_else(|| panic!("{}", describe(&ran)));
    assert!(ours < theirs, "{said}");
}

#[test]
fn the_program_keeps_its_pid_its_exit_code_and_its_signals() {
    let run = |script: &str| {
        clean(Command::new(daxtier()))
            .args(["run", "--fast", "16M", "--slow", "emulated:64M", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("daxtier starts")
    };
    let child = run("echo $$; exit 37");
    let pid = child.id().to_string();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pid);
    assert_eq!(output.status.code(), Some(37));
    let killed = run("kill -TERM $$; sleep 9").wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed), Some(15));
}

#[test]
fn figures_are_written_by_programs_that_leave_without_exit_handlers() {
    let ran = small().args(["sh", "-c", "exit 3"]).output();
    assert_eq!(ran.output.status.code(), Some(3), "{}", ran.describe());
    ran.stats();
    if program("python3").is_none() {
        return;
    }
    let script = "
import os, subprocess
x = [bytes(1000) for _ in range(100000)]
# A child of a vfork leaves by _exit where there is nothing to execute, and must not write in its parent's place.
for _ in range(3):
    try: subprocess.Popen(['/nonexistent'], close_fds=False)
    except FileNotFoundError: pass
y = [bytes(1000) for _ in range(100000)]
os._exit(5)
";
    let ran = Run::new("16M", "emulated:512M").args(["python3", "-c", script]).output();
    assert_eq!(ran.output.status.code(), Some(5), "{}", ran.describe());
    assert!(ran.stats().peak_mib("slow") >= 150, "{}", ran.stats().0);
}

#[test]
fn threads_allocate_in_their_destructors_and_end_well() {
    let run = Run::new("16M", "emulated:512M");
    let Some(binary) = run.compile_c("exits", "destructors") else { return };
    let ran = run.args([&binary]).output();
    assert_eq!(ran.stdout(), "ended well\n", "{}", ran.describe());
}

#[test]
fn a_program_that_leaves_in_a_signal_handler_does_not_hang() {
    let scratch = Run::new("16M", "emulated:512M");
    let Some(binary) = scratch.compile_c("exits", "handler") else { return };
    let mut written = 0;
    for round in 0..40 {
        let stats = scratch.scratch().path(&format!("{round}.json"));
        let output = clean(Command::new("timeout"))
            .arg("20")
            .arg(daxtier())
            .args(["run", "--fast", "16M", "--slow", "emulated:512M"])
            .arg(format!("--stats={}", stats.display()))
            .args(["--".as_ref(), binary.as_os_str()])
            .arg((500 + round * 97).to_string())
            .output()
            .expect("timeout starts");
        assert_eq!(output.status.code(), Some(7), "{}", describe(&output));
        written += usize::from(stats.exists());
    }
    // The library does not write where the handler interrupted it, but that is not always.
    assert!(written > 0);
}

#[test]
fn the_library_works_without_the_program() {
    if program("python3").is_none() {
        return;
    }
    let scratch = Scratch::new();
    let stats = scratch.path("s-%p.json");
    let output = clean(Command::new("python3"))
        .args(["-c", "import os; x=[bytes(1000) for _ in range(100000)]; print(os.getpid())"])
        .env("LD_PRELOAD", preload())
        .env("DAXTIER_FAST", "16M")
        .env("DAXTIER_SLOW", "emulated:1G,size=512M")
        .env("DAXTIER_POLICY", "fill")
        .env("DAXTIER_STATS", &stats)
        .output()
        .expect("python3 starts");
    assert!(output.status.success(), "{}", describe(&output));
    let pid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let text = std::fs::read_to_string(scratch.path(&format!("s-{pid}.json"))).expect("%p becomes the pid");
    let stats = common::Stats(text);
    assert!(stats.peak_mib("fast") <= 16 && stats.peak_mib("slow") >= 60, "{}", stats.0);
    assert_eq!(stats.count("slow", "capacity_bytes"), 512 << 20, "{}", stats.0);
}

/// Returns what a program prints without us.
fn plainly(words: &[&str]) -> String {
    let output = clean(Command::new(words[0])).args(&words[1..]).output().expect("the program starts");
    assert!(output.status.success(), "{}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
