//! The second act: redis-server under redis-benchmark, and values of our own that must come back unchanged.

use super::{Act, PERIOD, Stage};
use crate::process::find_program;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Keys of our own, checked byte by byte at the end.
const OWN_KEYS: u32 = 2000;
const START_LIMIT: Duration = Duration::from_secs(20);

/// Returns whether redis is installed.
pub(super) fn is_there() -> bool {
    find_program("redis-server").is_some() && find_program("redis-benchmark").is_some()
}

/// Runs the act.
pub(super) fn serve(stage: &Stage) -> Result<(), String> {
    let port = free_port()?.to_string();
    let mut command = stage.run("redis", "redis-server");
    // An empty directory argument and no saving: the server leaves no file behind.
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let mut act = Act::start(stage, "redis", command)?;
    let mut client = connect(&port)?;
    for number in 0..OWN_KEYS {
        client.call(&["SET", &format!("own:{number}"), &own_value(number)])?;
    }
    let mut load = Command::new("redis-benchmark")
        .args(["-p", &port, "-t", "set", "-n", "1200000", "-r", "600000", "-d", "1000", "-P", "32", "-q"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("redis-benchmark: {e}"))?;
    let status = loop {
        if let Some(status) = load.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        act.watch_once();
        std::thread::sleep(PERIOD);
    };
    if !status.success() {
        return Err(format!("redis-benchmark ended with {status}"));
    }
    for number in 0..OWN_KEYS {
        let found = client.call(&["GET", &format!("own:{number}")])?;
        if found != own_value(number) {
            return Err(format!("own:{number} came back damaged: {found:?}"));
        }
    }
    let keys = client.call(&["DBSIZE"])?;
    // The server closes the connection instead of answering.
    let _ = client.call(&["SHUTDOWN", "NOSAVE"]);
    act.watch_until_exit()?;
    act.finish()?;
    println!("    {OWN_KEYS} values of our own came back unchanged; the server held {keys} keys");
    Ok(())
}

fn own_value(number: u32) -> String {
    format!("value {number} ").repeat(1 + number as usize % 300)
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|e| e.to_string())
}

fn connect(port: &str) -> Result<Client, String> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(format!("127.0.0.1:{port}")) {
            Ok(stream) => return Ok(Client { stream: BufReader::new(stream) }),
            Err(e) if start.elapsed() > START_LIMIT => {
                return Err(format!("redis-server does not answer: {e}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A connection to the server, which speaks its protocol as far as we need it.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Sends one command and returns the answer: a status, a number or a value.
    fn call(&mut self, words: &[&str]) -> Result<String, String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        let mut head = String::new();
        self.stream.read_line(&mut head).map_err(|e| e.to_string())?;
        let head = head.trim_end();
        match (head.chars().next(), head.get(1..).unwrap_or_default()) {
            (Some('+' | ':'), answer) => Ok(answer.to_owned()),
            (Some('$'), length) => {
                let length: usize = length.parse().map_err(|_| format!("{} has no value", words[1]))?;
                let mut value = vec![0; length + 2];
                self.stream.read_exact(&mut value).map_err(|e| e.to_string())?;
                value.truncate(length);
                String::from_utf8(value).map_err(|e| e.to_string())
            }
            _ => Err(format!("redis-server answered {head:?} to {}", words[0])),
        }
    }
}
