//! Broken, slow and half-closed lines, and clients that do not read: protocol sections 3.2, 3.9 and 3.10.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{CHANNELS, Channel, Need, Proxy, Server, needs, state, wait_until};

/// How long a client does not read. `PAUSE_SECONDS=60` is what the requirement says.
fn pause_seconds() -> f64 {
    std::env::var("PAUSE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10.0)
}

#[test]
fn a_client_that_renders_comes_back_to_the_current_scene() {
    if !needs(&[Need::OneThread]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let seconds = pause_seconds();
    let alice = server.host("Alice", &["Cube", "Cone", "Lamp"]);
    let bob = server.join("Bob");
    let renderer = server.join("Renderer");
    renderer.pause(seconds);
    alice.select(&["Object:Cube"]);
    alice.start_drag(&["Object:Cube", "World"], 60, seconds - 2.0);
    bob.start_drag(&["Object:Cone", "Collection"], 60, seconds - 2.0);
    bob.add("Tree");
    // Whole meshes, more than its sockets take in: 200 of 400 KB.
    for i in 0..200 {
        bob.push_full(
            "Mesh:Lamp.mesh",
            &format!("d['vertices']['co'] = bytes([{}]) * 400_000", i % 256),
        );
    }
    alice.finish_drag();
    bob.finish_drag();
    bob.delete("Object:Tree");
    renderer.await_resumed();
    server.assert_settled(&[&alice, &bob, &renderer]);
}

#[test]
fn all_connections_cut_for_a_second_while_dragging() {
    if !needs(&[Need::Reconnecting]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let (to_bob, to_carol) = (Proxy::to(&server), Proxy::to(&server));
    let bob = server.client("Bob").through(&to_bob).connect();
    let carol = server.client("Carol").through(&to_carol).connect();
    bob.await_active();
    carol.await_active();
    alice.select(&["Object:Cube"]);
    bob.select(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "Bob");
    alice.start_drag(&["Object:Cube", "World"], 30, 4.0);
    bob.start_drag(&["Object:Cone", "World"], 30, 4.0);
    thread::sleep(Duration::from_secs(1));
    for proxy in [&to_bob, &to_carol] {
        proxy.refuse(&CHANNELS);
    }
    thread::sleep(Duration::from_secs(1));
    alice.add("Meanwhile");
    for proxy in [&to_bob, &to_carol] {
        proxy.restore(&CHANNELS);
    }
    alice.finish_drag();
    bob.finish_drag();
    for client in [&bob, &carol] {
        client.await_value("Object:Meanwhile", "d['name']", "Meanwhile");
        assert!(
            alice.sees_user(&client.name),
            "{} stays a user",
            client.name
        );
    }
    assert_eq!(
        alice.owner("Object:Cone"),
        "Bob",
        "its lock outlives the break"
    );
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn single_connections_are_cut_while_dragging() {
    if !needs(&[Need::Reconnecting]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let proxy = Proxy::to(&server);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    for channel in CHANNELS {
        alice.start_drag(&["Object:Cube", "World"], 30, 1.5);
        bob.start_drag(&["Object:Cone", "World"], 30, 1.5);
        thread::sleep(Duration::from_millis(500));
        proxy.cut(&[channel]);
        bob.select(&["Object:Cone"]);
        alice.finish_drag();
        bob.finish_drag();
        bob.select(&[]);
        crate::support::assert_converged(&[&alice, &bob]);
    }
    // For a while, not only for a moment.
    alice.start_drag(&["Object:Cube", "World"], 30, 2.5);
    proxy.refuse(&[Channel::Data]);
    thread::sleep(Duration::from_millis(1200));
    bob.edit("Object:Cone", "d['props']['kept'] = 1");
    proxy.restore(&[Channel::Data]);
    alice.finish_drag();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn deletions_and_newborns_during_a_break_are_repaired() {
    if !needs(&[Need::Reconnecting]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone", "Lamp"]);
    let proxy = Proxy::to(&server);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    thread::sleep(Duration::from_millis(500));
    proxy.refuse(&CHANNELS);
    alice.delete("Object:Cube");
    alice.add("Tree");
    alice.select(&["Object:Cone"]);
    alice.edit("Object:Cone", "d['location'][0] = 8.0");
    bob.edit("Object:Lamp", "d['location'][0] = 3.0"); // into the broken line
    thread::sleep(Duration::from_millis(800));
    proxy.restore(&CHANNELS);
    bob.await_gone("Object:Cube");
    bob.await_owner("Object:Cone", "Alice");
    bob.await_value("Object:Tree", "d['name']", "Tree");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_blocked_data_port_is_told_at_login() {
    if !needs(&[Need::PortsOfTheirOwn]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let unreachable = format!("FAILED: port {} (data) unreachable", server.ports.data);
    let closed = Proxy::to(&server);
    closed.refuse(&[Channel::Data]);
    assert_eq!(
        server.client("Bob").through(&closed).expect_refusal(),
        unreachable
    );
    let firewalled = Proxy::to(&server);
    firewalled.swallow(&[Channel::Data]);
    assert_eq!(
        server.client("Bob").through(&firewalled).expect_refusal(),
        unreachable
    );
    // The name is free again.
    let bob = server.join("Bob");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_blocked_ttl_port_is_told_soon() {
    if !needs(&[Need::PortsOfTheirOwn]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let proxy = Proxy::to(&server);
    let (ttl, port) = server.ttl();
    proxy.swallow(&[ttl]);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    let reason = bob.await_exit();
    assert!(
        reason.contains(&format!("port {port} (TTL) unreachable")),
        "{reason}"
    );
    wait_until("Bob to be gone", || !alice.sees_user("Bob"));
    proxy.restore(&[ttl]);
    let bob = server.join("Bob");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_silent_heartbeat_is_a_leave() {
    if !needs(&[Need::PortsOfTheirOwn]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let proxy = Proxy::to(&server);
    let bob = server
        .client("Bob")
        .through(&proxy)
        .timeout(20_000)
        .connect();
    bob.await_active();
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    wait_until("Bob's heartbeat", || {
        alice.users()["Bob"]["latency"]
            .as_i64()
            .is_some_and(|ms| ms < 999)
    });
    proxy.stall(&[server.ttl().0], true);
    wait_until("Bob to be given up", || !alice.sees_user("Bob"));
    alice.await_owner("Object:Cube", "COMMON");
    bob.await_exit();
    server.assert_works(&[&alice]);
}

#[test]
fn a_long_line_is_a_line() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let proxy = Proxy::to(&server);
    proxy.latency(Duration::from_millis(75));
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    for client in [&alice, &bob] {
        client.start_drag(&["World", "Collection"], 30, 2.0);
    }
    for i in 0..4 {
        bob.add(&format!("Bob{i}"));
        alice.edit("Scene", &format!("d['note'] = {i}"));
    }
    alice.finish_drag();
    bob.finish_drag();
    for i in 0..4 {
        alice.await_value(&format!("Object:Bob{i}"), "d['name']", format!("Bob{i}"));
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_thin_line_gets_what_counts() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let proxy = Proxy::to(&server);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    proxy.bandwidth(40_000);
    // 4 MB in a second, for a line of 40 KB a second: only the newest of each counts.
    for i in 0..100 {
        alice.push_full(
            "Mesh:Cube.mesh",
            &format!("d['vertices']['co'] = bytes([{}]) * 40_000", i + 1),
        );
    }
    alice.edit("Object:Cone", "d['location'][0] = 2.0");
    proxy.bandwidth(400_000);
    bob.await_value("Mesh:Cube.mesh", "d['vertices']['co'][0]", 100);
    bob.await_value("Object:Cone", "d['location'][0]", 2.0);
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_slow_blender_keeps_up() {
    if !needs(&[Need::OneThread]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.client("Bob").turn(30).connect(); // some 30 messages of each kind a second
    bob.await_active();
    alice.start_drag(&["Object:Cube", "World", "Collection"], 60, 4.0);
    alice.add("Tree");
    alice.finish_drag();
    alice.delete("Object:Tree");
    alice.delete("Object:Cone");
    bob.await_gone("Object:Cone");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_connection_lost_for_good_is_a_leave() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let proxy = Proxy::to(&server);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    let lines = [&CHANNELS[..], &[Channel::FourSocketTtl]].concat();
    proxy.refuse(&lines);
    wait_until("Bob to be gone", || !alice.sees_user("Bob"));
    alice.await_owner("Object:Cube", "COMMON");
    let reason = bob.await_exit();
    assert!(
        reason.contains("Server lost") || reason.contains("connection timeout"),
        "{reason}"
    );
    // Should the old identity come back, its name may be another's by now.
    proxy.restore(&lines);
    let again = server.join("Bob");
    assert_eq!(again.state(), state::ACTIVE);
    bob.connect(json!({"name": "Robert", "port": proxy.ports.command}));
    bob.await_active();
    server.assert_settled(&[&alice, &again, &bob]);
}
