//! What keeping everything costs: relay latency with and without the journal, bytes written, start time, memory.
//! `SCENE_MB` is the size of the scene for the last two.

#[path = "../tests/support/mod.rs"]
#[allow(clippy::unwrap_used)]
mod support;

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use blender_multiuser::admin::{AdminCommand, Operator};
use blender_multiuser::config::Cli;
use blender_multiuser::password::{AdminPassword, Origin, Secret};
use blender_multiuser::server;
use blender_multiuser::store::{
    BackupRequest, NoStore, Recovered, SavedScene, Settings, State, Store, open,
};
use blender_multiuser::wire::message::Node;
use blender_multiuser::wire::pickle::{self, Value};
use clap::Parser;
use serde_json::json;
use support::{Load, Server, venv};

const NODE_BYTES: usize = 100_000;

fn main() {
    // `cargo test --all-targets` runs benches too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("a bench: cargo bench --bench store");
        return;
    }
    let Some(python) = venv::python(&venv::CURRENT) else {
        return;
    };
    latencies(&python);
    amplification(&python);
    let megabytes = std::env::var("SCENE_MB").map_or(200, |text| {
        text.parse().expect("SCENE_MB is a number of megabytes")
    });
    starts(&python, megabytes);
}

/// How long a commit of 300 bytes takes from one client to another, in µs: the median and the 99th of 100.
fn latencies(python: &Path) {
    println!("relay latency of a commit of 300 B, us     median       99 %");
    for round in 0..2 {
        for (what, stored) in [("without a journal", false), ("with the journal", true)] {
            let data = tempfile::tempdir().expect("temporary directory");
            let micros = latency(python, data.path(), stored);
            // The first round warms up.
            if round > 0 {
                let at = |share: usize| micros[micros.len() * share / 100];
                println!("  {what:<38} {:>8.0}   {:>8.0}", at(50), at(99));
            }
        }
    }
}

fn latency(python: &Path, data: &Path, stored: bool) -> Vec<f64> {
    let store: Box<dyn Store> = match stored {
        true => Box::new(open(data, Settings::default()).expect("a store").0),
        false => Box::new(NoStore),
    };
    let data = data.to_str().expect("a plain name");
    let arguments = [
        "server",
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
        "--data-dir",
        data,
    ];
    let config = Cli::try_parse_from(arguments).expect("known flags").config;
    let config = config.with_password_files().expect("no such files");
    let admin = AdminPassword {
        secret: Secret::new("admin"),
        origin: Origin::Given,
    };
    let (ready, started) = channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let (operator, requests) = Operator::new();
            let none = Recovered::default();
            server::run_on(store, none, config, admin, requests, move |ports| {
                Ok(ready.send((ports, operator))?)
            })
            .await
        })
    });
    let (ports, operator) = started.recv().expect("the server starts");
    let mut load = Load::start(
        python,
        &json!({"mode": "latency", "port": ports.command, "messages": 3000, "size": 300, "nodes": 32, "node_size": 1700}),
    );
    let done = load.next();
    let micros = done["micros"].as_array().expect("a list");
    let mut micros: Vec<f64> = micros
        .iter()
        .filter_map(serde_json::Value::as_f64)
        .collect();
    micros.sort_by(f64::total_cmp);
    let stop = AdminCommand::Exit {
        reason: "done".into(),
    };
    let _ = operator.ask_blocking(stop, Duration::from_secs(10));
    thread
        .join()
        .expect("no panic")
        .expect("the server ends well");
    micros
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Bytes that changes take in the journal, per byte that clients send.
fn amplification(python: &Path) {
    println!("\nbytes in the journal per byte changed");
    for (what, kind, bytes, messages) in [
        ("commits of 300 B", "commit", 300, 20_000),
        ("nodes of 100 KB", "node", 100_000, 400),
    ] {
        let server = Server::start_with(&["--save-interval", "0", "--log-level", "info"])
            .expect("python is here");
        let mut load = Load::start(
            python,
            &json!({"mode": "relay", "port": server.ports.command, "receivers": 1, "messages": messages, "size": bytes,
                    "kind": kind, "nodes": 32, "node_size": 1700}),
        );
        load.next();
        let journal = server.data_dir.path().join("journal");
        let before = size(&journal);
        load.go();
        let sent = load.next()["sent"].as_f64().expect("a number");
        let grown = (size(&journal) - before) as f64;
        println!("  {what:<38} {:>8.2}", grown / (sent * bytes as f64));
    }
}

/// Noise that packs as meshes do: about half.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at % 2 == 0 { 63 } else { (state >> 32) as u8 }
        })
        .collect()
}

fn scene(megabytes: usize) -> SavedScene {
    let nodes = (0..megabytes * 1_000_000 / NODE_BYTES).map(|n| {
        let data = Value::dict([
            ("type_id", Value::str("Mesh")),
            ("co", Value::bytes(noise(NODE_BYTES, n as u64))),
        ]);
        let node = Node {
            id: format!("node-{n:06}").as_str().into(),
            owner: "COMMON".into(),
            dependencies: Vec::new(),
            data: pickle::encode(&data).into(),
            kind: Some("Mesh".into()),
        };
        (node, Vec::new())
    });
    SavedScene {
        version: Some("0.9.10".into()),
        dialect: "dealer".into(),
        nodes: nodes.collect(),
    }
}

/// How long the program takes to serve a scene, and the memory it has then. The files are in the system's cache.
fn starts(python: &Path, megabytes: usize) {
    println!("\na scene of {megabytes} MB in nodes of 100 KB{:>18}", "s");
    let row = |what: &str, began: Instant| {
        println!("  {what:<38} {:>8.2}", began.elapsed().as_secs_f64());
    };
    let data = tempfile::tempdir().expect("temporary directory");
    let (store, _) = open(data.path(), Settings::default()).expect("a store");
    let state = State {
        scene: Some(scene(megabytes)),
        ..State::default()
    };
    let scene = state.scene.as_ref().expect("it was made just now");
    let began = Instant::now();
    drop(store.append(scene.records("initialised", &"Ada".into())));
    let flushed = store.flush().blocking_recv().expect("an answer");
    flushed.expect("a disk that works");
    row("written to the journal and synced", began);
    let journal = copy(data.path(), &["journal"]);
    let began = Instant::now();
    let request = BackupRequest {
        reason: "bench".into(),
        users: Vec::new(),
        even_if_unchanged: true,
        ..BackupRequest::default()
    };
    let saved = store.backup(state, request).blocking_recv();
    saved.expect("an answer").expect("a disk that works");
    row("first checkpoint and backup", began);
    drop(store);
    let checkpoint = copy(data.path(), &["journal", "state.sled", "backups"]);
    let backup = copy(data.path(), &["journal", "backups"]);
    drop(data);
    println!("  {:<38} {:>8}  memory, MB   at most", "", "");
    for (what, data) in [
        ("start from the checkpoint", checkpoint),
        ("start from a backup", backup),
        ("start from the journal", journal),
    ] {
        let began = Instant::now();
        let server = Server::start_in(data, &["--log-level", "info", "--save-interval", "0"]);
        let took = began.elapsed().as_secs_f64();
        let server = server.expect("python is here");
        assert!(server.log.find("Session restored from disk").is_some());
        let load = json!({"mode": "join", "port": server.ports.command, "rounds": 1});
        let nodes = Load::start(python, &load).next()["nodes"].clone();
        assert_eq!(nodes, megabytes * 1_000_000 / NODE_BYTES);
        println!(
            "  {what:<38} {took:>8.2}  {:>10}  {:>8}",
            memory(&server, "VmRSS"),
            memory(&server, "VmHWM")
        );
    }
}

/// Memory of the server in MB, now (`VmRSS`) or at most so far (`VmHWM`).
fn memory(server: &Server, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("Linux");
    let line = status.lines().find(|line| line.starts_with(what));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.expect("Linux tells") / 1000
}

/// Some parts of a data directory, in one of their own.
fn copy(data: &Path, parts: &[&str]) -> tempfile::TempDir {
    let target = tempfile::tempdir().expect("temporary directory");
    for part in parts {
        copy_tree(&data.join(part), &target.path().join(part));
    }
    target
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("it is there").flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("there is space")),
        }
    }
}
