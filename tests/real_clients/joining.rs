//! Joining a running session: protocol section 3.4.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{CHANNELS, Client, Need, Proxy, Server, assert_converged, needs, wait_until};

#[test]
fn a_joiner_during_steady_edits_holds_the_same_scene() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone", "Lamp", "Rock"], ["Bob"])
    else {
        return;
    };
    alice.select(&["Object:Cube"]);
    bob.select(&["Object:Cone"]);
    alice.start_drag(&["Object:Cube", "World"], 30, 5.0);
    bob.start_drag(&["Object:Cone", "Collection"], 30, 5.0);
    let joiners: Vec<Client> = ["Carol", "Dave", "Erin"]
        .into_iter()
        .map(|name| {
            thread::sleep(Duration::from_millis(700));
            server.join(name)
        })
        .collect();
    assert!(
        alice.finish_drag() > 50 && bob.finish_drag() > 50,
        "the edits went on meanwhile"
    );
    let mut everybody = vec![&alice, &bob];
    everybody.extend(&joiners);
    server.assert_settled(&everybody);
}

#[test]
fn several_join_at_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone", "Lamp", "Rock"]);
    alice.start_drag(&["Object:Cube", "World"], 30, 2.0);
    let joiners: Vec<Client> = (0..5)
        .map(|i| server.client(&format!("Joiner{i}")).connect())
        .collect();
    for joiner in &joiners {
        joiner.await_active();
    }
    alice.finish_drag();
    let mut everybody = vec![&alice];
    everybody.extend(&joiners);
    server.assert_settled(&everybody);
}

#[test]
fn nodes_come_and_go_while_somebody_joins() {
    let Some(server) = Server::start() else {
        return;
    };
    let names: Vec<String> = (0..20).map(|i| format!("Rock{i}")).collect();
    let alice = server.host(
        "Alice",
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let proxy = Proxy::to(&server);
    proxy.bandwidth(30_000); // about 70 KB of scene and presence: the join takes a while
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_syncing();
    for i in 0..6 {
        alice.add(&format!("New{i}"));
        alice.delete(&format!("Object:Rock{}", i * 3));
    }
    alice.edit("Object:Rock1", "d['location'][0] = 9.0");
    bob.await_active();
    bob.await_value("Object:Rock1", "d['location'][0]", 9.0);
    bob.await_gone("Object:Rock0");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_scene_is_sent_ahead_of_the_questions() {
    if !needs(&[Need::BareLogin]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let names: Vec<String> = (0..12).map(|i| format!("Rock{i}")).collect();
    let alice = server.host(
        "Alice",
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let total = alice.graph().as_object().unwrap().len();

    // A bare client that asks for the first node only and then just reads.
    let bare = Client::spawn(&server.python, "Bare");
    let identity = bare.open("command", server.ports.command);
    bare.open_as("data", server.ports.data, &identity);
    bare.open_as("ttl", server.ports.ttl, &identity);
    bare.send("ttl", "b'INIT'");
    bare.send("command", &server.login_frames("Bare", None));
    let replies = bare.receive("command", 1.0);
    assert_eq!(
        replies
            .iter()
            .filter(|m| m["type"] == "Auth" && m["data"] == "RUNNING")
            .count(),
        1,
        "{replies:#?}"
    );
    bare.send("command", "[P(7), b'Bare', P({'STATE': 'REQUEST_INIT'})]");
    let mut got = bare.receive("command", 1.0);
    let init = got
        .iter()
        .find(|m| m["data"]["STATE"] == "INIT")
        .expect("a catalog");
    let catalog = init["data"]["CATALOG"].as_array().unwrap().clone();
    assert_eq!(catalog.len(), total);
    let first = catalog.last().unwrap().as_str().unwrap();
    bare.send(
        "command",
        &format!("[P(7), b'Bare', P({{'STATE': 'GET', 'ID': '{first}'}})]"),
    );
    got.extend(bare.receive("command", 1.0));
    let sets: Vec<_> = got.iter().filter(|m| m["data"]["STATE"] == "SET").collect();
    assert_eq!(
        sets.len(),
        total,
        "a small scene arrives at once, not one node per round trip"
    );
    assert!(
        bare.receive("data", 0.1).is_empty(),
        "nothing on the data channel before DONE"
    );
    alice.assert_in_session();
}

#[test]
fn joining_over_a_long_line() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone", "Lamp", "Rock"]);
    let proxy = Proxy::to(&server);
    proxy.latency(Duration::from_millis(150));
    alice.start_drag(&["Object:Cube", "World"], 20, 4.0);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    bob.start_drag(&["Object:Lamp", "World"], 20, 1.0);
    bob.finish_drag();
    alice.finish_drag();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_join_survives_a_broken_connection() {
    if !needs(&[Need::Reconnecting]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let names: Vec<String> = (0..20).map(|i| format!("Rock{i}")).collect();
    let alice = server.host(
        "Alice",
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let proxy = Proxy::to(&server);
    proxy.bandwidth(40_000);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_syncing();
    thread::sleep(Duration::from_millis(500));
    proxy.cut(&CHANNELS);
    alice.edit("Object:Rock3", "d['location'][0] = 7.0");
    thread::sleep(Duration::from_millis(300));
    proxy.bandwidth(0);
    bob.await_active();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn leaving_and_joining_again_and_again() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    for round in 0..3 {
        bob.select(&["Object:Cube"]);
        bob.edit("Object:Cube", &format!("d['location'][1] = {round} + 0.5"));
        alice.await_value("Object:Cube", "d['location'][1]", f64::from(round) + 0.5);
        bob.leave();
        bob.connect(json!({"name": "Bob", "port": server.ports.command}));
        bob.await_active();
        alice.await_owner("Object:Cube", "COMMON");
        assert_converged(&[&alice, &bob]);
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn the_server_outlives_its_last_user() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    alice.select(&["Object:Cube"]);
    alice.edit("Object:Cube", "d['location'][0] = 5.0");
    alice.await_owner("Object:Cube", "Alice");
    alice.leave();
    let bob = server.join("Bob");
    assert_eq!(bob.value("Object:Cube", "d['location'][0]"), json!(5.0));
    wait_until("the last user's locks to be freed", || {
        bob.owner("Object:Cube") == "COMMON"
    });
    server.assert_works(&[&bob]);
}

#[test]
fn an_empty_scene_can_be_joined() {
    if !needs(&[Need::EmptyScenes]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    for uuid in alice.graph().as_object().unwrap().keys() {
        alice.raw("command", &format!("[P(4), b'client', P('{uuid}')]"));
    }
    wait_until("everything to be gone", || alice.graph() == json!({}));
    let bob = server.join("Bob");
    assert_eq!(bob.graph(), json!({}));
    bob.call("add_scene", json!({"objects": ["Phoenix"]}));
    alice.await_value("World", "d['name']", "World");
    alice.await_value("Object:Phoenix", "d['name']", "Phoenix");
    server.assert_works(&[&alice, &bob]);
}
