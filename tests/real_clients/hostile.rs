//! What strangers and rogues send: protocol sections 3.11, 4 and 9. Afterwards the session still works.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Need, Server, needs, state, wait_until};

/// A file that exists only if somebody executed a stranger's pickle.
struct Marker(tempfile::TempDir);

impl Marker {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("executed")
    }

    /// A Python expression for an object that creates the file where it is unpickled.
    fn evil(&self) -> String {
        format!("Evil({:?})", self.path().display().to_string())
    }

    fn assert_untouched(&self) {
        assert!(!self.path().exists(), "a stranger's pickle was executed");
    }
}

#[test]
fn a_malicious_node_goes_nowhere_and_its_sender_goes() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let marker = Marker::new();
    let evil = marker.evil();
    let attacks = [
        // data of a full node, nested; dependencies; a delta; metadata; a right; the type number itself
        (
            "data",
            format!(
                "[P(2), uid('Object:Cube').encode(), b'COMMON', P([]), P({{'type_id': 'Object', 'x': [{evil}]}})]"
            ),
        ),
        (
            "data",
            format!(
                "[P(2), uid('Object:Cube').encode(), b'COMMON', P([{evil}]), P({{'type_id': 'Object'}})]"
            ),
        ),
        (
            "data",
            format!("[P(1), uid('Object:Cube').encode(), P([]), P({{'values_changed': {evil}}})]"),
        ),
        (
            "command",
            format!("[P(13), b'Mallory', P({{'frame_current': {evil}}})]"),
        ),
        (
            "command",
            format!("[P(5), b'Mallory', P({{'uuid': R({evil}), 'owner': 'COMMON'}})]"),
        ),
        ("command", format!("[P({evil}), b'Mallory', P({{}})]")),
        (
            "command",
            "[P(13), b'Mallory', P({'f': os.getcwd})]".to_owned(),
        ),
    ];
    for (channel, frames) in attacks {
        let mallory = server.join("Mallory");
        mallory.raw(channel, &frames);
        mallory.await_exit();
        wait_until("Mallory to be gone", || !alice.sees_user("Mallory"));
    }
    marker.assert_untouched();
    server.assert_works(&[&alice, &bob]);
    marker.assert_untouched();
}

#[test]
fn a_malicious_initialisation_is_not_taken() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let marker = Marker::new();
    let mallory = server.client("Mallory").admin().connect();
    let bob = server.client("Bob").admin().connect();
    mallory.await_lobby();
    bob.await_lobby();
    mallory.call("eval", json!({"code": "setattr(session, '_state', 7)"}));
    mallory.raw(
        "command",
        "[P(8), b'server', P({'STATE': 'INIT', 'SIZE': 1, 'NODES': ['x']})]",
    );
    let node = format!(
        "[P(2), b'x', b'COMMON', P([]), P({{'type_id': 'Scene', 'x': {}}})]",
        marker.evil()
    );
    mallory.raw(
        "command",
        &format!("[P(8), b'server', P({{'STATE': 'SET', 'DATA': {node}}})]"),
    );
    mallory.await_exit();
    wait_until("Bob to initialise", || {
        if bob.state() == state::LOBBY {
            bob.init(&["Cube"], 8);
            bob.await_state(state::SRV_SYNC);
            wait_until("an answer to INIT", || bob.state() != state::SRV_SYNC);
        }
        bob.state() == state::ACTIVE
    });
    server.assert_works(&[&bob]);
    marker.assert_untouched();
}

#[test]
fn malicious_pickles_before_login() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let marker = Marker::new();
    let evil = marker.evil();
    let stranger = server.stranger("Stranger");
    let attacks = [
        (server.ports.command, format!("[P(9), b'x', P({evil})]")),
        (
            server.ports.command,
            format!(
                "[P(9), b'x', P({{'AUTH_TYPE': 'CLIENT', 'AUTH_ID': {evil}, 'VERSION': '0.9.10'}})]"
            ),
        ),
        (server.ports.command, format!("[P({evil})]")),
        (
            server.ports.command,
            format!("[P(14), b'guest', P({evil})]"),
        ),
        (
            server.ports.data,
            format!("[P(2), b'x', b'COMMON', P([]), P({{'type_id': {evil}}})]"),
        ),
        (server.ports.data, format!("[P({evil})]")),
        (server.ports.ttl, format!("P({evil})")),
    ];
    for (index, (port, frames)) in attacks.iter().enumerate() {
        let key = index.to_string();
        stranger.open(&key, *port);
        stranger.send(&key, frames);
    }
    thread::sleep(Duration::from_millis(300));
    marker.assert_untouched();
    server.assert_works(&[&alice]);
    marker.assert_untouched();
}

#[test]
fn other_protocols_on_every_port() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40);
    let http = b"GET / HTTP/1.1\r\nHost: blender\r\nConnection: keep-alive\r\n\r\n".to_vec();
    let noise: Vec<u8> = (0u32..4096)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let greeting_then_noise = [
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".as_slice(),
        &[0; 48],
        &noise,
    ]
    .concat();
    // A frame that claims 2^60 bytes.
    let endless = [
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".as_slice(),
        &[0; 48],
        b"\x02\x10\0\0\0\0\0\0\0",
    ]
    .concat();
    let tcp_dialect_lie = b"\0\0\0\x10AAAAAAAAAAAAAAAAC\xff\xff\xff\xff\xff\xff\xff\xff".to_vec();
    let mut silent = Vec::new();
    for port in [
        server.ports.command,
        server.ports.data,
        server.ports.ttl,
        server.ports.ttl + 1,
    ] {
        for bytes in [
            &tls_hello,
            &http,
            &noise,
            &greeting_then_noise,
            &endless,
            &tcp_dialect_lie,
        ] {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            let _ = stream.write_all(bytes);
            stream
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            let _ = stream.read(&mut [0; 256]);
        }
        silent.extend(TcpStream::connect(("127.0.0.1", port))); // says nothing, stays
    }
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn odd_frames_on_the_ttl_port() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let stranger = server.stranger("Stranger");
    for (index, frames) in [
        "[b'INIT', b'INIT']",
        "[b'']",
        "[b'', b'', b'']",
        "[b'x' * 100_000]",
        "[b'PONG']",
    ]
    .iter()
    .enumerate()
    {
        let key = index.to_string();
        stranger.open(&key, server.ports.ttl);
        stranger.send(&key, frames);
    }
    stranger.open("quiet", server.ports.ttl); // never INIT, never logged in
    stranger.send("quiet", "b'INIT'");
    // The heartbeat of the others must go on: longer than any timeout.
    thread::sleep(Duration::from_secs(7));
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn strangers_are_not_heard() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let before = alice.graph();
    let cube = alice.uuid("Object:Cube");
    let stranger = server.stranger("Stranger");
    let data = "{'type_id': 'Object', 'uuid': 'x', 'name': 'x'}";
    let commands = [
        "[P(11), b'Alice', P({'user': 'Bob'})]".to_owned(),
        "[P(11), b'Alice', P({})]".to_owned(),
        format!("[P(4), b'client', P('{cube}')]"),
        format!("[P(5), b'Alice', P({{'uuid': ['{cube}'], 'owner': 'Alice'}})]"),
        "[P(8), b'server', P({'STATE': 'INIT', 'SIZE': 1, 'NODES': ['x']})]".to_owned(),
        format!(
            "[P(8), b'server', P({{'STATE': 'SET', 'DATA': [P(2), b'x', b'COMMON', P([]), P({data})]}})]"
        ),
        "[P(8), b'server', P({'STATE': 'END'})]".to_owned(),
        "[P(7), b'Alice', P({'STATE': 'REQUEST_INIT'})]".to_owned(),
        format!("[P(7), b'Alice', P({{'STATE': 'GET', 'ID': '{cube}'}})]"),
        "[P(7), b'Alice', P({'STATE': 'DONE'})]".to_owned(),
        "[P(13), b'Alice', P({'frame_current': 666})]".to_owned(),
        "[P(10), b'server', P('bye')]".to_owned(),
        "[P(12), b'server', P({})]".to_owned(),
    ];
    let nodes = [
        format!("[P(2), b'{cube}', b'COMMON', P([]), P({data})]"),
        format!("[P(2), b'new', b'COMMON', P([]), P({data})]"),
        format!("[P(1), b'{cube}', P([]), Delta(DeepDiff({{'a': 1}}, {{'a': 2}})).dumps()]"),
    ];
    let attacks = commands.iter().map(|frames| (server.ports.command, frames));
    let attacks = attacks.chain(nodes.iter().map(|frames| (server.ports.data, frames)));
    let mut heard = Vec::new();
    for (index, (port, frames)) in attacks.enumerate() {
        let key = index.to_string();
        stranger.open(&key, port);
        stranger.send(&key, frames);
        heard.push(key);
    }
    for key in heard {
        let answers = stranger.receive(&key, 0.05);
        assert!(
            answers
                .iter()
                .all(|m| m["type"] != "Snapshot" && m["type"] != "Node"),
            "told a stranger: {answers:?}"
        );
    }
    assert_eq!(alice.graph(), before);
    assert!(alice.sees_user("Bob"));
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn a_stranger_cannot_borrow_an_identity_for_data() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    // An identity that logged in on no command connection.
    let stranger = server.stranger("Stranger");
    let identity = stranger.open("data", server.ports.data);
    stranger.open_as("ttl", server.ports.ttl, &identity);
    stranger.send("ttl", "b'INIT'");
    stranger.send(
        "data",
        "[P(2), b'new', b'COMMON', P([]), P({'type_id': 'Object', 'uuid': 'new', 'name': 'new'})]",
    );
    thread::sleep(Duration::from_millis(300));
    assert!(!alice.has("new"));
    assert!(stranger.receive("data", 0.1).is_empty());
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn malformed_commands_of_a_user() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let malformed = [
        "[P(4), b'client', P('')]",
        "[P(4), b'client', P(None)]",
        "[P(4), b'client', P([uid('Object:Cube')])]",
        "[P(5), b'M', P({'uuid': 'not a list', 'owner': 'Mallory'})]",
        "[P(5), b'M', P({'uuid': [1, None], 'owner': 'Mallory'})]",
        "[P(5), b'M', P({'uuid': [uid('Object:Cube')], 'owner': None})]",
        "[P(5), b'M', P({})]",
        "[P(5), b'M', P(None)]",
        "[P(7), b'M', P({'STATE': 'GET'})]",
        "[P(7), b'M', P({'STATE': 'GET', 'ID': 'unknown'})]",
        "[P(7), b'M', P({'STATE': 'NONSENSE'})]",
        "[P(7), b'M', P([])]",
        "[P(8), b'M', P({'STATE': 'SET'})]",
        "[P(8), b'M', P({'STATE': 'SET', 'DATA': [P(2), b'x', b'COMMON', P([]), P({'type_id': 'Object'})]})]",
        "[P(8), b'M', P({'STATE': 'END'})]",
        "[P(11), b'M', P({})]",
        "[P(11), b'M', P('Alice')]",
        "[P(13), b'M', P('not a dict')]",
        "[P(13), b'M', P({1: 2})]",
        "[P(12), b'M', P({})]",
        "[P(10), b'M', P('bye')]",
        "[P(6), b'M', P({})]",
        "[P(3), b'M', P({})]",
        "[P(99), b'M', P({})]",
        "[P('one'), b'M', P({})]",
        "[b'', b'', b'']",
        "[b'not a pickle', b'M', P({})]",
        "[P(13), b'M', b'\\x80\\x04']",
        "[P(13), b'M', P({'deep': None})[:-1]]",
        "[P(13), b'M', b'\\x80\\x04' + b'(' * 5000 + b'.']",
        "[P(13), b'M', b'\\x80\\x04\\x8d' + b'\\xff' * 7 + b'\\x7f' + b'.']",
        "[P(13)]",
    ];
    // Some of these cost Mallory the session; whoever is there sends the next.
    let mut mallory = server.join("Mallory");
    for frames in malformed {
        if mallory
            .try_call("raw", json!({"channel": "command", "expr": frames}))
            .is_err()
            || mallory.exit().is_some()
        {
            drop(mallory);
            mallory = server.join("Mallory");
            mallory.raw("command", frames);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let on_data = [
        "[P(13), b'Mallory', P({'frame_current': 1})]",
        "[P(4), b'client', P(uid('Object:Cube'))]",
        "[P(2), b'', b'COMMON', P([]), P({'type_id': 'Object'})]",
        "[P(2), b'fresh', b'COMMON', P([]), P({'no_type': 1})]",
        "[P(2), b'fresh', b'COMMON', P([]), P([])]",
        "[P(2), b'fresh', b'COMMON', P('deps'), P({'type_id': 'Object', 'uuid': 'fresh', 'name': 'n'})]",
        "[P(2), b'fresh', b'COMMON', P(['missing']), P({'type_id': 'Mesh', 'uuid': 'fresh', 'name': 'n'})]",
        "[P(2), b'\\xff\\xfe', b'COMMON', P([]), P({'type_id': 'Object'})]",
        "[P(2), b'fresh']",
        "[P(1), uid('World').encode(), P([])]",
        "[P(1), uid('World').encode(), P([]), b'garbage']",
        "[P(1), uid('World').encode(), P([]), P({'iterable_item_added': {\"root['name'][0]\": 1}, 'values_changed': 7})]",
        "[P(1), uid('World').encode(), P([]), P({'set_item_added': {\"root['color']\": {1}}})]",
        "[P(1), uid('World').encode(), P(7), P({'values_changed': {\"root['use_nodes']\": {'new_value': 2}}})]",
        "[P(1), uid('World').encode(), P([]), P({'dictionary_item_removed': {\"root['type_id']\": 'World'}})]",
    ];
    for frames in on_data {
        if mallory
            .try_call("raw", json!({"channel": "data", "expr": frames}))
            .is_err()
            || mallory.exit().is_some()
        {
            drop(mallory);
            mallory = server.join("Mallory");
            mallory.raw("data", frames);
        }
        thread::sleep(Duration::from_millis(20));
    }
    drop(mallory);
    wait_until("Mallory to be gone", || !alice.sees_user("Mallory"));
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn a_second_login_on_one_connection_changes_nothing() {
    if !needs(&[Need::BareLogin]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bare = Client::spawn(&server.python, "Bare");
    let identity = bare.open("command", server.ports.command);
    bare.open_as("data", server.ports.data, &identity);
    bare.open_as("ttl", server.ports.ttl, &identity);
    bare.send("ttl", "b'INIT'");
    bare.send("command", &server.login_frames("Bare", None));
    bare.send("command", &server.login_frames("Other", None));
    let replies = bare.receive("command", 1.0);
    assert_eq!(
        replies.iter().filter(|m| m["type"] == "Auth").count(),
        1,
        "{replies:#?}"
    );
    assert!(!alice.sees_user("Other"));
    server.assert_works(&[&alice]);
}

#[test]
fn many_connections_that_say_nothing() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let idle: Vec<TcpStream> = (0..200)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", server.ports.command)).ok())
        .collect();
    let bob = server.join("Bob");
    drop(idle);
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn who_was_kicked_stays_out_even_if_he_does_not_leave() {
    if !needs(&[Need::BareLogin]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let rogue = Client::spawn(&server.python, "Rogue");
    let identity = rogue.open("command", server.ports.command);
    rogue.open_as("data", server.ports.data, &identity);
    rogue.open_as("ttl", server.ports.ttl, &identity);
    rogue.send("ttl", "b'INIT'");
    rogue.send("command", &server.login_frames("Rogue", None));
    wait_until("Rogue to be in", || alice.sees_user("Rogue"));
    alice.call("kick", json!({"user": "Rogue"}));
    let last_words = rogue.receive("command", 0.5);
    assert!(
        last_words.iter().any(|m| m["type"] == "Disconnect"),
        "{last_words:#?}"
    );
    rogue.send("command", "[P(13), b'Rogue', P({'frame_current': 1})]");
    rogue.send("command", "[P(4), b'client', P('anything')]");
    rogue.send(
        "data",
        "[P(2), b'new', b'COMMON', P([]), P({'type_id': 'Object', 'uuid': 'new', 'name': 'new'})]",
    );
    rogue.open_as("again", server.ports.command, &identity);
    rogue.send("again", "[P(7), b'Rogue', P({'STATE': 'REQUEST_INIT'})]");
    let answers = rogue.receive("again", 0.5);
    assert!(
        answers.iter().all(|m| m["type"] == "Disconnect"),
        "{answers:#?}"
    );
    assert!(!alice.has("new") && !alice.sees_user("Rogue"));
    server.assert_works(&[&alice, &bob]);
}

/// What the server cannot fold it cannot check either: a delta that hides an action on which deepdiff raises behind one of that kind.
#[test]
fn a_delta_that_cannot_be_checked_throws_nobody_out() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some((server, alice, [bob, mallory])) = Server::studio(&["Cube"], ["Bob", "Mallory"])
    else {
        return;
    };
    let _ = mallory.try_call(
        "raw",
        json!({"channel": "data", "expr": "[P(1), uid('World').encode(), P([]), P({'iterable_item_moved': {'x': {'new_path': 'y'}}, 'set_item_added': {\"root['gone']\": {1}}})]"}),
    );
    thread::sleep(Duration::from_millis(500));
    drop(mallory);
    wait_until("Mallory to be gone", || !alice.sees_user("Mallory"));
    // Nobody has lost the session, and others can still join it.
    let carol = server.join("Carol");
    server.assert_works(&[&alice, &bob, &carol]);
}
