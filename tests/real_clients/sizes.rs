//! Scenes of unusual size, all the way: client, journal, backup, restart, export.

use std::fs;
use std::time::Duration;

use blender_multiuser::store::{State, read_session_file};
use blender_multiuser::wire::pickle::{self, Value as Pickled};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Client, Load, Server, wait_within};

const DIGEST: &str = "__import__('hashlib').sha256(d['blob']).hexdigest() if 'blob' in d else ''";

/// For anything that takes as long as it is large, on any machine.
const LONG: Duration = Duration::from_secs(300);

fn await_digest(client: &Client, digest: &Value) {
    wait_within(LONG, "the large node to come", || {
        (client.value("World", DIGEST) == *digest).then_some(())
    });
}

fn await_line(server: &Server, text: &str) {
    wait_within(LONG, text, || server.log.find(text));
}

/// The most memory that a server has had, in MB.
#[cfg(target_os = "linux")]
fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1000
}

#[cfg(not(target_os = "linux"))]
fn peak(_: &Server) -> u64 {
    0
}

fn digest_of(state: &State) -> Option<String> {
    let nodes = &state.scene.as_ref()?.nodes;
    nodes.iter().find_map(|(node, _)| {
        let data = pickle::decode(&node.data).unwrap();
        let digest = Sha256::digest(data.get("blob").and_then(Pickled::as_bytes)?);
        Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    })
}

/// One node of so many MB.
fn goes_all_the_way(megabytes: u64) {
    let Some(mut server) = Server::start_with(&["--save-interval", "0"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let make = format!("d['blob'] = __import__('os').urandom({megabytes} * 1000 * 1000)");
    alice.push_full("World", &make);
    let digest = alice.value("World", DIGEST);
    await_digest(&bob, &digest);
    // A small change of it, and everything that goes on beside it.
    bob.edit("World", "d['stamp'] = 1");
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    wait_within(LONG, "both changes to arrive", || {
        let arrived = alice.value("World", "d.get('stamp')") == 1
            && bob.value("Object:Cube", "d['location'][0]") == 5.0;
        arrived.then_some(())
    });
    let carol = server.client("Carol").connect();
    await_digest(&carol, &digest);
    server.console("save the large one");
    await_line(&server, "Session saved to disk (reason: the large one)");
    let first = peak(&server);

    let stopped = server.kill();
    let mut server = stopped.start(&["--save-interval", "0"]);
    let dora = server.client("Dora").connect();
    await_digest(&dora, &digest);
    dora.await_active();
    assert_eq!(dora.value("World", "d['stamp']"), 1);
    // Its other nodes may come after the large one.
    wait_within(LONG, "the rest of the scene", || {
        (dora.value("Object:Cube", "d['location'][0]") == 5.0).then_some(())
    });
    let file = server.data_dir.path().join("large.db");
    server.console(&format!("export {}", file.display()));
    wait_within(LONG, "the export", || file.exists().then_some(()));
    let exported = read_session_file(&file, 1 << 30).unwrap();
    assert_eq!(digest_of(&exported.state).map(Value::from), Some(digest));
    let second = peak(&server);
    println!(
        "{megabytes} MB in one node: server at most {first} MB, after the restart {second} MB"
    );
    for peak in [first, second] {
        assert!(
            peak < 200 + megabytes * 6,
            "{peak} MB for a node of {megabytes}"
        );
    }
    for client in [&alice, &bob, &dora] {
        client.assert_no_problems();
    }
}

#[test]
fn a_node_of_30_mb_goes_all_the_way() {
    goes_all_the_way(30);
}

/// `cargo test --release --test real_clients -- --ignored --nocapture 300_mb`
#[test]
#[ignore = "takes 10 GB of memory, most of it the clients', and minutes in a debug build"]
fn a_node_of_300_mb_goes_all_the_way() {
    goes_all_the_way(300);
}

#[test]
fn ten_thousand_nodes_come_back() {
    let Some(server) = Server::start_with(&["--save-interval", "0"]) else {
        return;
    };
    let (port, python) = (server.ports.command, server.python.clone());
    let mut host = Load::start(
        &python,
        &json!({"mode": "host", "port": port, "nodes": 10_000, "size": 1700}),
    );
    assert_eq!(host.next()["phase"], "ready");
    await_line(&server, "Session saved to disk (reason: initialised)");
    let server = server.crash_and_restart();
    drop(host);
    let nodes = || {
        let join = json!({"mode": "join", "port": port, "rounds": 1});
        Load::start(&python, &join).next()["nodes"].clone()
    };
    assert_eq!(nodes(), 10_000);
    let _server = server.stop().start(&[]);
    assert_eq!(nodes(), 10_000);
}
