//! What a fork costs the parent, beside a copy of the same bytes and beside a fork of a process without slow memory.
//!
//! `bench-fork fork MIB` prints the median time that `fork` takes with so much memory in use on an emulated device, `plain MIB`
//! the same with ordinary memory, and `copy MIB` how long it takes to copy that much to fresh memory, which no fork can be
//! quicker than. `redis [LIBRARY]` prints what redis-server says that its fork for a background save took, with
//! 500 000 keys, under the preload library where one is named (`DAXTIER_` variables say how).

use daxtier::{AllocOptions, Config, Pool, TierName};
use std::error::Error;
use std::process::{Command, ExitCode, Stdio};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Forks or copies of each kind.
const ROUNDS: usize = 11;
const START_LIMIT: Duration = Duration::from_secs(20);
const SAVE_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match measure(&words) {
        Ok((name, micros)) => {
            println!("{name} 1 {micros:.1} us");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-fork: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(words: &[&str]) -> Result<(String, f64), Box<dyn Error>> {
    let (what, len) = match words {
        ["redis"] => return Ok(("redis-bgsave".to_owned(), redis(None)?)),
        ["redis", library] => return Ok(("redis-bgsave".to_owned(), redis(Some(library))?)),
        [what, mib] => (*what, mib.parse::<usize>()? << 20),
        _ => return Err("usage: bench-fork fork|plain|copy MIB, or redis [LIBRARY]".into()),
    };
    let median = match what {
        "fork" => {
            let pool = Pool::open(&Config::parse(&format!("fast=64M slow=emulated:{}", len + (64 << 20)))?)?;
            let options = AllocOptions { tier: Some(TierName::Slow), ..AllocOptions::default() };
            let block = pool.malloc(len, 2 << 20, options)?;
            fill(block, len);
            median(|| fork_once(block, len))?
        }
        "plain" => {
            let block = fresh(len)?;
            fill(block, len);
            median(|| fork_once(block, len))?
        }
        "copy" => {
            let block = fresh(len)?;
            fill(block, len);
            median(|| copy_once(block, len))?
        }
        _ => return Err("what is to be measured? see the source".into()),
    };
    Ok((format!("{what}-{}M", len >> 20), median))
}

/// Returns the median of what `once` measures, in microseconds.
fn median(once: impl Fn() -> Result<Duration, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut times = (0..ROUNDS).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    Ok(times[ROUNDS / 2].as_secs_f64() * 1e6)
}

/// Maps fresh private memory.
fn fresh(len: usize) -> Result<NonNull<u8>, Box<dyn Error>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel picks addresses that nobody uses.
    let block =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if block == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the memory was just mapped; the advice drops nothing, and only helps.
    unsafe { libc::madvise(block, len, libc::MADV_HUGEPAGE) };
    NonNull::new(block.cast()).ok_or_else(|| "mapped at 0".into())
}

fn fill(block: NonNull<u8>, len: usize) {
    // SAFETY: the block is that long, and nobody else has it.
    unsafe { block.write_bytes(1, len) };
}

/// Forks, and returns how long the parent was in it. The child looks at its copy and ends.
fn fork_once(block: NonNull<u8>, len: usize) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    // SAFETY: the child reads memory and ends.
    let child = unsafe { libc::fork() };
    let took = start.elapsed();
    if child == 0 {
        // SAFETY: the block is that long.
        let last = unsafe { block.add(len - 1) };
        // SAFETY: the byte is the child's copy, and nobody writes to it.
        let last = unsafe { last.read_volatile() };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if last == 1 { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if child < 0 || ended != child || status != 0 {
        return Err(format!("fork: {child}, status {status:#x}").into());
    }
    Ok(took)
}

fn copy_once(block: NonNull<u8>, len: usize) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let copy = fresh(len)?;
    // SAFETY: both blocks are that long, and the copy was just mapped.
    unsafe { block.copy_to_nonoverlapping(copy, len) };
    let took = start.elapsed();
    // SAFETY: the copy is ours, and nobody uses it any more.
    unsafe { libc::munmap(copy.as_ptr().cast(), len) };
    Ok(took)
}

/// Has redis-server save 500 000 keys in the background; returns how long its fork took.
fn redis(library: Option<&str>) -> Result<f64, Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("daxtier-bench-fork-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let socket = folder.join("socket").display().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--unixsocket", &socket, "--save", "", "--enable-debug-command", "yes"]);
    command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    let mut server = command.spawn()?;
    let measured = save(&socket).and_then(|micros| {
        // The loader goes on without a library that it can't find.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.id()))?;
        let is_there = library.is_none_or(|library| maps.contains(library));
        if is_there { Ok(micros) } else { Err("redis-server runs without the library".into()) }
    });
    server.kill()?;
    server.wait()?;
    std::fs::remove_dir_all(&folder)?;
    measured
}

fn save(socket: &str) -> Result<f64, Box<dyn Error>> {
    let call = |words: &[&str]| -> Result<String, Box<dyn Error>> {
        let mut client = Command::new("redis-cli");
        // The client is no part of what is measured.
        client.args(["-s", socket]).args(words).env_remove("LD_PRELOAD").stderr(Stdio::null());
        Ok(String::from_utf8(client.output()?.stdout)?)
    };
    let until = |limit: Duration, words: &[&str], wanted: &str| -> Result<(), Box<dyn Error>> {
        let start = Instant::now();
        while !call(words)?.contains(wanted) {
            if start.elapsed() > limit {
                return Err(format!("redis-server does not come to {wanted}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    until(START_LIMIT, &["ping"], "PONG")?;
    until(START_LIMIT, &["debug", "populate", "500000", "key", "200"], "OK")?;
    until(START_LIMIT, &["dbsize"], "500000")?;
    let answer = call(&["bgsave"])?;
    if !answer.contains("started") {
        return Err(format!("redis-server answered {answer:?} to bgsave").into());
    }
    until(SAVE_LIMIT, &["info", "persistence"], "rdb_bgsave_in_progress:0")?;
    until(SAVE_LIMIT, &["info", "persistence"], "rdb_last_bgsave_status:ok")?;
    let stats = call(&["info", "stats"])?;
    let line = stats.lines().find_map(|line| line.strip_prefix("latest_fork_usec:"));
    Ok(line.ok_or("redis-server does not say how long its fork took")?.trim().parse()?)
}
