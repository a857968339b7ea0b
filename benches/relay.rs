//! The same load on this server and on upstream's Python one, as ratios: `cargo bench --bench relay`.
//!
//! CPU is the server process's own (`/proc/PID`), so a busy machine blurs it little; messages
//! per second also hold the load generator, which is Python and shares the machine.
#![allow(clippy::unwrap_used)] // a bench that cannot run says so by a panic

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::venv::{self, Python};
use support::{Ports, Proxy, Server};

/// What a drag of objects is like, and a sculpted mesh.
const LOADS: [(&str, usize, usize, &str, usize); 4] = [
    // what, receivers, messages, kind, bytes
    ("commits of 300 B to 1", 1, 20_000, "commit", 300),
    ("commits of 300 B to 8", 8, 10_000, "commit", 300),
    ("commits of 300 B to 24", 24, 4000, "commit", 300),
    ("nodes of 100 KB to 4", 4, 400, "node", 100_000),
];

/// Nodes of the scene that joiners fetch; 1.7 KB is the median of real ones.
const JOIN_NODES: usize = 200;
const JOIN_NODE_BYTES: usize = 1700;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ours,
    Upstream,
}

impl Kind {
    fn start(self, python: &Python) -> Server {
        match self {
            Kind::Ours => Server::start_with(&["--log-level", "info"]).expect("python is here"),
            Kind::Upstream => Server::start_upstream(python.clone(), &[]),
        }
    }
}

/// A load generator process.
struct Load {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    fn start(python: &Path, arguments: &Value) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/load.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(arguments.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the load generator starts");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            stdin,
            stdout,
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("the load generator can be read");
        serde_json::from_str(&line).expect("the load generator speaks JSON; its error is above")
    }

    fn go(&mut self) {
        writeln!(self.stdin).expect("the load generator listens");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process so far, in seconds: in nanoseconds per thread where the kernel tells, else in ticks of 10 ms.
fn cpu_seconds(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the server runs, on Linux");
    let nanoseconds = |task: fs::DirEntry| {
        let line = fs::read_to_string(task.path().join("schedstat")).ok()?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let sum: u64 = tasks.flatten().filter_map(nanoseconds).sum();
    if sum > 0 {
        return sum as f64 / 1e9;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs, on Linux");
    // Fields 14 and 15 of the line, counted behind the name, which may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0 // USER_HZ, the same on every Linux
}

struct Relayed {
    per_second: f64,
    cpu_us: f64,
    lost: i64,
}

fn relay(
    kind: Kind,
    python: &Python,
    receivers: usize,
    messages: usize,
    what: &str,
    size: usize,
) -> Relayed {
    let server = kind.start(python);
    let mut load = Load::start(
        python,
        &json!({"mode": "relay", "port": server.ports.command, "receivers": receivers, "messages": messages,
                "size": size, "kind": what, "nodes": 32, "node_size": 1700}),
    );
    assert_eq!(load.next()["phase"], "ready");
    let before = cpu_seconds(server.pid());
    load.go();
    let done = load.next();
    let cpu = cpu_seconds(server.pid()) - before;
    let deliveries = done["deliveries"].as_f64().unwrap().max(1.0);
    Relayed {
        per_second: done["sent"].as_f64().unwrap() / done["wall"].as_f64().unwrap(),
        cpu_us: cpu * 1e6 / deliveries,
        lost: done["lost"].as_i64().unwrap(),
    }
}

/// The median time to join, in seconds, over a line with this delay each way.
fn join(kind: Kind, python: &Python, one_way: Duration, rounds: usize) -> f64 {
    let server = kind.start(python);
    let mut host = Load::start(
        python,
        &json!({"mode": "host", "port": server.ports.command, "nodes": JOIN_NODES, "size": JOIN_NODE_BYTES}),
    );
    assert_eq!(host.next()["phase"], "ready");
    let proxy = Proxy::to(&server);
    proxy.latency(one_way);
    let Ports { command: port, .. } = if one_way.is_zero() {
        server.ports
    } else {
        proxy.ports
    };
    let mut joiner = Load::start(
        python,
        &json!({"mode": "join", "port": port, "rounds": rounds}),
    );
    let done = joiner.next();
    assert_eq!(done["nodes"], JOIN_NODES);
    let mut seconds: Vec<f64> = done["seconds"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    // `cargo test --all-targets` runs benches too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("a bench: cargo bench --bench relay");
        return;
    }
    let Some(python) = venv::python(&venv::CURRENT) else {
        return;
    };

    println!(
        "{:<26} {:>12} {:>12} {:>8}   {:>10} {:>10} {:>8}",
        "", "upstream", "ours", "ratio", "upstream", "ours", "ratio"
    );
    println!(
        "{:<26} {:>34}   {:>30}",
        "relaying", "server CPU, us per delivery", "messages per second"
    );
    for (what, receivers, messages, kind, size) in LOADS {
        let theirs = relay(Kind::Upstream, &python, receivers, messages, kind, size);
        // More for this server, so that its share is long enough to be measured.
        let ours = relay(Kind::Ours, &python, receivers, messages * 5, kind, size);
        println!(
            "{what:<26} {:>12.2} {:>12.2} {:>7.1}x   {:>10.0} {:>10.0} {:>7.1}x{}",
            theirs.cpu_us,
            ours.cpu_us,
            theirs.cpu_us / ours.cpu_us.max(0.001),
            theirs.per_second,
            ours.per_second,
            ours.per_second / theirs.per_second,
            if theirs.lost + ours.lost > 0 {
                format!("   lost {}/{}", theirs.lost, ours.lost)
            } else {
                String::new()
            },
        );
    }
    println!(
        "\n{:<26} {:>34}",
        format!("joining, {JOIN_NODES} nodes"),
        "seconds"
    );
    for (what, one_way, rounds) in [("0 ms round trip", 0, 5), ("150 ms round trip", 75, 1)] {
        let theirs = join(
            Kind::Upstream,
            &python,
            Duration::from_millis(one_way),
            rounds,
        );
        let ours = join(Kind::Ours, &python, Duration::from_millis(one_way), rounds);
        println!(
            "{what:<26} {theirs:>12.3} {ours:>12.3} {:>7.1}x",
            theirs / ours
        );
    }
}
