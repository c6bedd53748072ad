//! Programs that fork while their memory lies in a device: parent and child keep what was theirs, whoever writes.

mod common;

use common::{Run, Scratch, clean, daxtier, describe, program};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most of what the programs here allocate lies in the slow tier.
fn mostly_slow() -> Run {
    Run::new("8M", "emulated:1G")
}

/// Compiles a C++ program into the run's folder; `None` without a compiler.
fn compile(run: &Run, name: &str, source: &str) -> Option<std::path::PathBuf> {
    let compiler = program("c++")?;
    let source = run.scratch().write(&format!("{name}.cc"), source);
    let binary = run.scratch().path(name);
    let compiled = Command::new(compiler)
        .args(["-O2", "-std=c++17", "-pthread", "-o"])
        .args([&binary, &source])
        .output()
        .expect("the compiler starts");
    assert!(compiled.status.success(), "{}", describe(&compiled));
    Some(binary)
}

#[test]
fn python_worker_processes_return_what_they_were_given() {
    if program("python3").is_none() {
        return;
    }
    let script = "
import multiprocessing as mp, zlib
data = [bytes([i % 251]) * 5000 for i in range(20000)]
def work(i): return zlib.crc32(data[i])
if __name__ == '__main__':
    mp.set_start_method('fork')
    with mp.Pool(4) as pool: got = pool.map(work, range(len(data)), 500)
    print(got == [zlib.crc32(d) for d in data])
";
    let ran = mostly_slow().args(["python3", "-c", script]).output();
    assert_eq!(ran.stdout(), "True\n");
    assert!(ran.stats().peak_mib("slow") >= 64, "{}", ran.stats().0);
}

#[test]
fn a_child_of_a_child_keeps_its_ancestors_data() {
    if program("python3").is_none() {
        return;
    }
    let script = "
import os, sys
x = [bytes([i % 256]) * 4000 for i in range(10000)]
def fine(): return all(b == bytes([i % 256]) * 4000 for i, b in enumerate(x))
depth = 0
while depth < 4:
    depth += 1
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        ok = fine() and os.waitstatus_to_exitcode(status) == 0
        if depth == 1: print(ok)
        sys.stdout.flush()
        os._exit(0 if ok else 1)
    y = [bytes([7]) * 4000 for _ in range(2000)]
    if not fine(): os._exit(2)
os._exit(0)
";
    // Each generation copies what it inherits, so the program's own exit is what counts here.
    let ran = mostly_slow().args(["python3", "-c", script]).output();
    assert_eq!(ran.stdout(), "True\n");
}

#[test]
fn forks_under_threads_that_write_lose_nothing() {
    let run = mostly_slow();
    let Some(binary) = compile(&run, "forks", FORKS) else { return };
    let ran = run.args([&binary]).output();
    assert_eq!(ran.stdout(), "correct\n");
}

/// Threads allocate, write and check without pause; the main thread forks children that check their copy of a table that
/// nobody writes and of per-thread counters that must be whole, allocate themselves, and exit.
const FORKS: &str = r#"
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>
static std::vector<std::string> table;
static std::atomic<bool> stop{false};
static std::atomic<long> wrong{0};
static bool fine() {
    for (size_t i = 0; i < table.size(); i++)
        if (table[i] != std::string(3000, char('a' + i % 26))) return false;
    return true;
}
static void churn(int id) {
    std::vector<std::vector<unsigned>> mine(64);
    for (unsigned n = 0; !stop; n++) {
        auto &v = mine[n % 64];
        for (unsigned x : v) if (x != v[0]) wrong++;
        v.assign(1000 + (n * 37 + id) % 5000, n);
        FILE *f = fopen("/dev/null", "w");
        if (f) { fprintf(f, "%u %s", n, std::string(200, 'x').c_str()); fclose(f); }
    }
}
int main() {
    for (int i = 0; i < 16000; i++) table.emplace_back(3000, char('a' + i % 26));
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) threads.emplace_back(churn, i);
    for (int round = 0; round < 25; round++) {
        fflush(stdout);
        pid_t child = fork();
        if (child < 0) { perror("fork"); wrong++; break; }
        if (child == 0) {
            if (!fine()) _exit(3);
            std::vector<std::string> own;
            for (int i = 0; i < 2000; i++) own.emplace_back(1500, 'c');
            for (auto &s : table) s[0] = '!';
            for (auto &s : own) if (s != std::string(1500, 'c')) _exit(4);
            FILE *f = fopen("/dev/null", "w");
            if (!f) _exit(5);
            fclose(f);
            exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) { printf("child %d: status %x\n", round, status); wrong++; }
        if (!fine()) { printf("parent changed after %d\n", round); wrong++; }
    }
    stop = true;
    for (auto &t : threads) t.join();
    puts(wrong == 0 ? "correct" : "wrong");
}
"#;

/// Compiles a C program of `tests/forks` and runs it over 16 MiB of DRAM and a large device.
fn run_c(name: &str, policy: &str, args: &[&str]) -> Option<common::Ran> {
    let run = Run::with(&["--policy", policy], "16M", "emulated:1G");
    let binary = run.compile_c("forks", name)?;
    Some(run.args([&binary]).args(args).output())
}

#[test]
fn children_of_threads_that_come_and_go_can_allocate() {
    for policy in ["bind=slow", "interleave=1:1", "fill"] {
        let Some(ran) = run_c("storm", policy, &["25", "2"]) else { return };
        assert_eq!(ran.stdout(), "correct\n", "{policy}");
    }
}

#[test]
fn threads_that_block_all_signals_are_stopped_and_meet_none() {
    let Some(ran) = run_c("blocked", "bind=slow", &["all"]) else { return };
    assert_eq!(ran.stdout(), "correct\n");
}

#[test]
fn a_fork_is_refused_where_a_thread_can_not_be_stopped() {
    let Some(ran) = run_c("blocked", "bind=slow", &["hard"]) else { return };
    assert_eq!(ran.stdout(), "correct\n");
}

#[test]
fn forks_while_other_threads_are_in_the_c_library_come_to_an_end() {
    for policy in ["bind=slow", "fill"] {
        let Some(ran) = run_c("library", policy, &["60"]) else { return };
        assert!(ran.output.status.success(), "{policy}: {}", ran.describe());
        assert_eq!(String::from_utf8_lossy(&ran.output.stderr), "correct\n", "{policy}");
    }
}

#[test]
fn waits_without_a_length_are_not_interrupted() {
    if cfg!(not(target_arch = "x86_64")) {
        println!("skipped: waits are interrupted on this machine");
        return;
    }
    let Some(ran) = run_c("waits", "bind=slow", &["restarted"]) else { return };
    assert_eq!(ran.stdout(), "correct\n");
}

#[test]
fn a_fork_in_a_signal_handler_is_made_or_refused() {
    let Some(ran) = run_c("handler", "bind=slow", &[]) else { return };
    assert_eq!(ran.stdout(), "correct\n");
}

#[test]
fn programs_started_from_a_large_one_start_quickly_and_cleanly() {
    if program("python3").is_none() {
        return;
    }
    // subprocess uses vfork or posix_spawn: nothing is copied, so thirty starts are a matter of a second or two.
    let script = "
import subprocess, time
x = [bytes(1000) for _ in range(300000)]
t = time.time()
out = [subprocess.run(['echo', str(i)], capture_output=True, text=True).stdout.strip() for i in range(30)]
print(out == [str(i) for i in range(30)], time.time() - t < 15)
";
    let ran = Run::new("32M", "emulated:1G").args(["python3", "-c", script]).output();
    assert_eq!(ran.stdout(), "True True\n");
}

#[test]
fn redis_saves_in_the_background_while_it_is_written_to() {
    if ["redis-server", "redis-cli"].iter().any(|name| program(name).is_none()) {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("redis.sock");
    let mut server = clean(Command::new(daxtier()))
        .args([
            "run",
            "--fast",
            "32M",
            "--slow",
            "emulated:1G",
            "--",
            "redis-server",
            "--port",
            "0",
            "--save",
            "",
        ])
        .arg("--unixsocket")
        .arg(&socket)
        .arg("--dir")
        .arg(scratch.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("daxtier starts");
    let redis = |args: &[&str]| {
        let output =
            Command::new("redis-cli").arg("-s").arg(&socket).args(args).output().expect("redis-cli starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let wait_for = |what: &str, is_there: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is_there() {
            assert!(start.elapsed() < Duration::from_secs(90), "no {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait_for("answer", &|| redis(&["PING"]) == "PONG");
    let fill =
        "for i=1,60000 do redis.call('SET','k'..i,string.rep(ARGV[1],1000)) end return redis.call('DBSIZE')";
    assert_eq!(redis(&["EVAL", fill, "0", "a"]), "60000");
    assert!(redis(&["BGSAVE"]).contains("Background saving started"));
    // The parent overwrites everything while the child writes what it was at the time of the fork.
    assert_eq!(redis(&["EVAL", fill, "0", "b"]), "60000");
    wait_for("end of the save", &|| redis(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0"));
    assert!(redis(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:ok"));
    let count = "local n=0 for i=1,60000 do if redis.call('GET','k'..i)==string.rep(ARGV[1],1000) then n=n+1 end end return n";
    assert_eq!(redis(&["EVAL", count, "0", "b"]), "60000");
    assert!(
        redis(&["DEBUG", "RELOAD", "NOSAVE"]).contains("OK")
            || redis(&["DEBUG", "HELP"]).contains("not allowed")
    );
    redis(&["SHUTDOWN", "NOSAVE"]);
    assert!(server.wait().expect("the server was started").success());
    // What the child saved is the state of the fork: a server without us reads it back.
    let mut plain = clean(Command::new("redis-server"))
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .arg("--dir")
        .arg(scratch.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server starts");
    wait_for("answer", &|| redis(&["PING"]) == "PONG");
    let saved = redis(&["EVAL", count, "0", "a"]);
    redis(&["SHUTDOWN", "NOSAVE"]);
    let _ = plain.wait();
    assert_eq!(saved, "60000");
}
