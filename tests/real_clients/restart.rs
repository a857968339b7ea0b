//! The server ends and comes back into the same session: protocol section 3.9.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::venv::{self, Spec};
use crate::support::{Client, Need, Server, needs, state, wait_until};

#[test]
fn a_crash_of_the_server_goes_unnoticed() {
    if !needs(&[Need::Reconnecting]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    alice.select(&["Object:Cube"]);
    bob.await_owner("Object:Cube", "Alice");
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    bob.edit("World", "d['stamp'] = 1");
    alice.await_value("World", "d['stamp']", 1);
    bob.await_value("Object:Cube", "d['location'][0]", 5.0);
    alice.start_drag(&["Object:Cube"], 30, 4.0);
    thread::sleep(Duration::from_millis(1500));
    let server = server.crash_and_restart();
    alice.finish_drag();
    // The lock is still hers, and her edits go on reaching the others.
    alice.edit("Object:Cube", "d['location'][0] = 7.0");
    bob.await_value("Object:Cube", "d['location'][0]", 7.0);
    bob.await_owner("Object:Cube", "Alice");
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn the_scene_outlives_everybody() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut alice = server.host("Alice", &["Cube", "Cone"]);
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    alice.add("Lamp");
    alice.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Alice");
    let before = alice.graph();
    alice.crash();
    let server = server.crash_and_restart();
    let bob = server.join("Bob");
    bob.await_owner("Object:Cube", "COMMON");
    assert_eq!(
        bob.graph().as_object().map(|nodes| nodes.len()),
        before.as_object().map(|nodes| nodes.len())
    );
    bob.await_value("Object:Cube", "d['location'][0]", 5.0);
    server.assert_works(&[&bob]);
}

#[test]
fn sigterm_and_a_start_lead_into_the_same_session() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    let says = |client: &Client, key: &str, text: &str| {
        client.users().as_object().unwrap().values().any(|user| {
            let said = user["metadata"][key].as_str();
            said.is_some_and(|said| said.contains(text))
        })
    };
    let line = json!([{"id": "one", "username": "Bob", "message": "see you tomorrow", "msg_type": "text",
                       "metadata": {}, "timestamp": 1.5}]);
    let tasks = json!({"t1": {"id": "t1", "title": "polish the cone", "status": "todo"}});
    bob.metadata(&format!("{{'chat_messages': {:?}}}", line.to_string()));
    bob.metadata(&format!("{{'tasks': {:?}}}", tasks.to_string()));
    wait_until("Alice to read both", || {
        says(&alice, "chat_messages", "tomorrow") && says(&alice, "tasks", "polish")
    });
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    bob.add("Lamp");
    bob.select(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "Bob");
    bob.unlock(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "COMMON");
    alice.await_value("Object:Lamp", "d['name']", "Lamp");
    bob.await_value("Object:Cube", "d['location'][0]", 5.0);
    let before = alice.graph();
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    let server = server.stop().start(&[]);
    assert!(server.log.find("Session restored from disk").is_some());
    wait_until("both to be back", || {
        let lines = server.log.lines();
        lines.iter().filter(|line| line.contains("is back")).count() >= 2
    });
    bob.unlock(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "COMMON");
    let carol = server.join("Carol");
    assert_eq!(carol.graph(), before);
    wait_until("what was said and planned to be there", || {
        says(&carol, "chat_messages", "tomorrow") && says(&carol, "tasks", "polish")
    });
    server.assert_works(&[&carol, &alice, &bob]);
}

/// Asks for a lock as a client does whose selection has changed.
fn ask_for(client: &Client, node: &str) {
    let frames = format!(
        "[P(5), b'{0}', P({{'uuid': R(uid('{node}')), 'owner': '{0}'}})]",
        client.name
    );
    client.raw("command", &frames);
}

#[test]
fn locks_wait_for_their_holders_and_no_longer_than_the_grace_time() {
    if !needs(&[Need::Reconnecting, Need::RawFrames]) {
        return;
    }
    let Some((server, mut alice, [bob, carol])) =
        Server::studio(&["Cube", "Cone", "Torus"], ["Bob", "Carol"])
    else {
        return;
    };
    alice.select(&["Object:Cube", "Object:Torus"]);
    carol.select(&["Object:Cone"]);
    for (node, owner) in [
        ("Object:Cube", "Alice"),
        ("Object:Torus", "Alice"),
        ("Object:Cone", "Carol"),
    ] {
        bob.await_owner(node, owner);
    }
    let stopped = server.kill();
    alice.crash();
    let server = stopped.start(&["--grace", "4"]);
    ask_for(&bob, "Object:Cube");
    ask_for(&bob, "Object:Cone");
    wait_until("Bob to be back", || server.log.find("is back").is_some());
    assert_eq!(carol.owner("Object:Cube"), "Alice", "until the grace ends");
    carol.await_owner("Object:Cube", "Bob");
    carol.await_owner("Object:Torus", "COMMON");
    bob.await_owner("Object:Cube", "Bob");
    bob.await_owner("Object:Cone", "Carol");
    carol.edit("Object:Cone", "d['location'][0] = 3.0");
    bob.await_value("Object:Cone", "d['location'][0]", 3.0);
    assert!(!bob.sees_user("Alice"));
    server.assert_works(&[&bob, &carol]);
}

/// Whoever was not in yet cannot go on, but hears so, or finds out within its own timeout.
fn enter_anew(server: &Server, client: &Client, admin: bool) {
    client.await_exit();
    client.assert_no_problems();
    let password = admin.then_some("admin");
    client.connect(
        json!({"name": client.name, "port": server.ports.command, "admin_password": password}),
    );
    client.await_login();
}

#[test]
fn a_restart_during_a_join() {
    if !needs(&[Need::Reconnecting, Need::OneThread]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let objects: Vec<String> = (0..20).map(|n| format!("Object{n}")).collect();
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    let alice = server.host("Alice", &objects);
    let bob = server.client("Bob").turn(150).connect();
    bob.await_syncing();
    assert_eq!(bob.state(), state::SYNCING, "this was to be slow");
    let server = server.crash_and_restart();
    enter_anew(&server, &bob, false);
    bob.await_active();
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn a_restart_while_people_wait_in_the_lobby() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.client("Alice").admin().connect();
    let bob = server.client("Bob").connect();
    alice.await_lobby();
    bob.await_lobby();
    let server = server.crash_and_restart();
    assert!(server.log.find("Session restored").is_none());
    enter_anew(&server, &alice, true);
    enter_anew(&server, &bob, false);
    alice.await_lobby();
    alice.init(&["Cube"], 8);
    alice.await_active();
    bob.await_active();
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn half_a_scene_is_forgotten() {
    if !needs(&[Need::BareLogin]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let bob = server.client("Bob").admin().connect();
    bob.await_lobby();
    // Bare sockets, since a real client sends a scene at once.
    let alice = Client::spawn(&server.python, "Alice");
    let identity = alice.open("command", server.ports.command);
    alice.open_as("data", server.ports.data, &identity);
    alice.open_as("ttl", server.ports.ttl, &identity);
    alice.send("ttl", "b'INIT'");
    alice.send("command", &server.login_frames("Alice", Some("admin")));
    alice.receive("command", 0.3);
    alice.send(
        "command",
        "[P(8), b'server', P({'STATE': 'INIT', 'SIZE': 2, 'NODES': ['first', 'second']})]",
    );
    let half = "[P(8), b'server', P({'STATE': 'SET', 'DATA': [P(2), b'first', b'COMMON', P([]), \
                P({'type_id': 'Object', 'uuid': 'first', 'name': 'Half'})]})]";
    alice.send("command", half);
    let answers = alice.receive("command", 0.3);
    assert!(
        answers
            .iter()
            .any(|answer| answer["data"]["STATE"] == "ACCEPTED"),
        "{answers:?}"
    );
    let server = server.crash_and_restart();
    alice.send("command", half);
    let answers = alice.receive("command", 1.0);
    assert!(
        answers.iter().any(|answer| answer["type"] == "Disconnect"),
        "{answers:?}"
    );
    enter_anew(&server, &bob, true);
    bob.await_lobby();
    bob.init(&["Cube"], 8);
    bob.await_active();
    assert!(!bob.has("first"));
    let carol = server.join("Carol");
    assert!(!carol.has("first"));
    server.assert_works(&[&bob, &carol]);
}

/// Clients of dialects that cannot resume join anew, into the scene as it was.
fn the_scene_outlives_the_server(spec: &'static Spec) {
    let Some(server) = Server::start_for(spec, &[]) else {
        return;
    };
    let mut alice = server.host("Alice", &["Cube", "Cone"]);
    let mut bob = server.join("Bob");
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    bob.add("Lamp");
    alice.await_value("Object:Lamp", "d['name']", "Lamp");
    bob.await_value("Object:Cube", "d['location'][0]", 5.0);
    let before = alice.graph();
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    let stopped = server.kill();
    alice.crash();
    bob.crash();
    let server = stopped.start(&["--grace", "2"]);
    let carol = server.join("Carol");
    carol.await_owner("Object:Cube", "COMMON");
    assert_eq!(carol.graph(), before);
    let bob = server.join("Bob");
    server.assert_works(&[&carol, &bob]);
    let server = server.stop().start(&[]);
    let dora = server.join("Dora");
    dora.await_value("Object:Cube", "d['location'][0]", 5.0);
    server.assert_works(&[&dora]);
}

#[test]
fn the_scene_outlives_the_server_of_four_socket_clients() {
    the_scene_outlives_the_server(&venv::FOUR_SOCKET);
}

#[test]
fn the_scene_outlives_the_server_of_tcp_clients() {
    the_scene_outlives_the_server(&venv::V0_9_12);
}
