//! Every version that is served: the same stories with real clients of each, and versions that meet (protocol sections 1, 6 and 8).

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::venv::{self, Spec};
use crate::support::{CHANNELS, Channel, Client, Proxy, Server, assert_converged, wait_until};

/// Initialise, join, edit, lock, delete, leave, kick, crash.
fn a_day_at_work(spec: &'static Spec) {
    let Some(server) = Server::start_for(spec, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.join("Bob");
    let mut carol = server.join("Carol");
    assert_converged(&[&alice, &bob, &carol]);

    alice.edit("Cube", "d['location'][0] = 2.0");
    bob.await_value("Cube", "d['location'][0]", 2.0);
    bob.edit("Cone", "d['location'][1] = 3.0");
    bob.edit("World", "d['color'][0] = 0.5");
    alice.await_value("Cone", "d['location'][1]", 3.0);
    bob.add("Sphere");
    wait_until("Alice to have the sphere", || alice.has("Object:Sphere"));

    bob.select(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "Bob");
    alice.await_owner("Cone.mesh", "Bob");
    bob.drag("Object:Cone");
    bob.select(&[]);
    alice.await_owner("Object:Cone", "COMMON");

    alice.delete("Object:Cube");
    bob.await_gone("Object:Cube");
    alice.await_gone("Object:Cube");
    assert_converged(&[&alice, &bob, &carol]);

    alice.call("kick", json!({"user": "Bob"}));
    let reason = bob.await_exit();
    assert!(reason.contains("kicked by admin"), "{reason}");
    wait_until("Bob to be gone", || !alice.sees_user("Bob"));

    carol.select(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "Carol");
    carol.crash(); // its TTL process answers on
    alice.await_owner("Object:Cone", "COMMON");
    wait_until("Carol to be gone", || !alice.sees_user("Carol"));

    let dave = server.join("Dave");
    assert_converged(&[&alice, &dave]);
    dave.leave();
    wait_until("Dave to be gone", || !alice.sees_user("Dave"));
    server.assert_settled(&[&alice]);
}

/// Several edit at once, the same nodes among others, while others come.
fn a_busy_hour(spec: &'static Spec) {
    let Some(server) = Server::start_for(spec, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone", "Torus"]);
    let bob = server.join("Bob");
    let carol = server.join("Carol");
    alice.start_drag(&["Object:Cube", "World"], 25, 3.0);
    bob.start_drag(&["Object:Cone", "World", "Object:Cube"], 25, 3.0);
    carol.start_drag(&["Object:Torus", "Collection"], 25, 3.0);
    thread::sleep(Duration::from_millis(400));
    let (early, late) = thread::scope(|scope| {
        let early = scope.spawn(|| server.join("Early"));
        thread::sleep(Duration::from_millis(700));
        (early.join().unwrap(), server.join("Late"))
    });
    for client in [&alice, &bob, &carol] {
        assert!(client.finish_drag() > 0, "{} sent nothing", client.name);
    }
    server.assert_settled(&[&alice, &bob, &carol, &early, &late]);
}

macro_rules! stories {
    ($($name:ident: $spec:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn a_day_at_work() {
                super::a_day_at_work(&$spec);
            }

            #[test]
            fn a_busy_hour() {
                super::a_busy_hour(&$spec);
            }
        }
    )*};
}

stories! {
    v0_1_13: venv::FOUR_SOCKET;
    v0_1_26: venv::FOUR_SOCKET_LATE;
    v0_7_3: venv::V0_7;
    v0_8_3: venv::V0_8;
    v0_9_1: venv::V0_9_1;
    v0_9_11: venv::V0_9_11;
    v0_9_12: venv::V0_9_12;
    v0_10_3: venv::V0_10_3;
}

#[test]
fn dealer_and_tcp_clients_work_together_if_the_operator_says_so() {
    let flags = ["--versions", "0.9.10,0.9.11,0.10.2"];
    let Some(server) = Server::start_for(&venv::CURRENT, &flags) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.client("Bob").using(&venv::V0_10_3).connect();
    let carol = server.client("Carol").using(&venv::V0_9_11).connect();
    bob.await_active();
    carol.await_active();
    alice.start_drag(&["Object:Cube", "World"], 25, 2.0);
    bob.start_drag(&["Object:Cone", "World"], 25, 2.0);
    carol.start_drag(&["Collection"], 10, 2.0);
    let late = server.client("Late").using(&venv::V0_10_3).connect();
    late.await_active();
    for client in [&alice, &bob, &carol] {
        client.finish_drag();
    }
    bob.select(&["Object:Cone"]);
    alice.await_owner("Object:Cone", "Bob");
    // The end of a tcp client's connections is its leave, so nothing is kept for it.
    bob.leave();
    alice.await_owner("Object:Cone", "COMMON");
    // Versions that are not in the list stay outside.
    let refusal = server.client("Old").using(&venv::V0_9_1).expect_refusal();
    assert_eq!(refusal, "FAILED: wrong client version (0.9.1 != 0.9.10)");
    server.assert_settled(&[&alice, &carol, &late]);
}

#[test]
fn a_session_belongs_to_the_version_that_started_it() {
    let Some(mut server) = Server::start_for(&venv::FOUR_SOCKET, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    for (spec, words) in [
        (&venv::CURRENT, "wrong client version (0.9.10 != 0.1.13)"),
        (&venv::V0_10_3, "wrong client version (0.10.2 != 0.1.13)"),
        (&venv::V0_7, "wrong client version (0.7.3 != 0.1.13)"),
    ] {
        let refusal = server.client("Bob").using(spec).expect_refusal();
        assert_eq!(refusal, format!("FAILED: {words}"));
    }
    let asker = server.client("Bob").version("0.1.14").connect();
    assert!(
        asker
            .await_exit()
            .contains("wrong client version (0.1.14 != 0.1.13)")
    );
    server.console("users");
    wait_until("the console to name the dialect", || {
        server.log.find("four-socket  ").is_some()
    });
    server.assert_settled(&[&alice]);
}

#[test]
fn an_empty_server_refuses_what_it_does_not_serve() {
    let Some(server) = Server::start_for(&venv::V0_7, &[]) else {
        return;
    };
    for (spec, version) in [
        (&venv::V0_7, "0.6.6"),
        (&venv::CURRENT, "1.0.0"),
        (&venv::V0_10_3, "0.9.10"),
    ] {
        let refusal = server
            .client("Bob")
            .using(spec)
            .version(version)
            .expect_refusal();
        assert_eq!(
            refusal,
            format!("FAILED: wrong client version ({version} != 0.1.1-0.1.31, 0.7-0.10)")
        );
    }
    let client = server
        .client("Bob")
        .using(&venv::FOUR_SOCKET)
        .version("0.1.42")
        .connect();
    let reason = client.await_exit();
    assert!(
        reason.contains("wrong client version (0.1.42 != 0.1.1-0.1.31"),
        "{reason}"
    );
}

#[test]
fn one_password_of_older_clients_serves_both_purposes() {
    let Some(server) = Server::start_for(&venv::V0_8, &["--server-password", "gate"]) else {
        return;
    };
    let alice = server.client("Alice").admin().connect();
    alice.await_lobby();
    alice.init(&["Cube"], 8);
    alice.await_active();
    let bob = server.client("Bob").server_password("gate").connect();
    bob.await_active();
    assert!(!alice.users()["Bob"]["admin"].as_bool().unwrap_or(true));
    for login in [
        server.client("Eve"),
        server.client("Eve").admin_password("guess"),
    ] {
        let eve = login.connect();
        eve.await_exit();
        eve.assert_no_problems();
    }
    assert_converged(&[&alice, &bob]);
    assert!(server.log.find("wrong password").is_some());
}

/// What a four-socket client has carried out already is undone where it is refused.
#[test]
fn refusals_reach_four_socket_clients() {
    let Some(server) = Server::start_for(&venv::FOUR_SOCKET, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.join("Bob");
    alice.select(&["Object:Cube"]);
    bob.await_owner("Object:Cube", "Alice");

    bob.call("take", json!({"ref": "Object:Cube"}));
    bob.await_owner("Object:Cube", "Alice");
    bob.edit_without_right("Object:Cube", "d['location'][0] = 9.0");
    bob.await_value("Object:Cube", "d['location'][0]", 0.0);
    bob.call("rm", json!({"ref": "Object:Cube", "cheat": true}));
    wait_until("the cube to be back", || bob.has("Object:Cube"));
    bob.await_owner("Object:Cube", "Alice");
    assert_converged(&[&alice, &bob]);
    bob.call("kick", json!({"user": "Alice", "cheat": true}));
    server.assert_works(&[&bob, &alice]);
}

/// After each break both sides are equal again, whichever of the four connections it was.
#[test]
fn broken_lines_of_four_socket_clients_are_repaired() {
    let Some(server) = Server::start_for(&venv::FOUR_SOCKET, &[]) else {
        return;
    };
    let proxy = Proxy::to(&server);
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    bob.edit("World", "d['tags'] = [0]"); // so that its publisher is known
    for (round, channel) in [
        Channel::Command,
        Channel::Data,
        Channel::Ttl,
        Channel::FourSocketTtl,
    ]
    .into_iter()
    .enumerate()
    {
        alice.start_drag(&["Object:Cube", "World"], 25, 0.8);
        bob.start_drag(&["Object:Cone", "World"], 25, 0.8);
        thread::sleep(Duration::from_millis(300));
        proxy.cut(&[channel]);
        alice.finish_drag();
        bob.finish_drag();
        bob.edit("World", &format!("d['tags'] = [{round}]"));
    }
    server.assert_settled(&[&alice, &bob]);
    proxy.cut(&CHANNELS);
    server.assert_works(&[&alice, &bob]);
}

/// Nothing comes back by itself in the tcp dialect: the end of any connection is the end of the session, told if possible.
#[test]
fn a_broken_line_of_a_tcp_client_is_its_leave() {
    let Some(server) = Server::start_for(&venv::V0_10_3, &[]) else {
        return;
    };
    let proxy = Proxy::to(&server);
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.client("Bob").through(&proxy).connect();
    bob.await_active();
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    proxy.cut(&CHANNELS);
    bob.await_exit();
    alice.await_owner("Object:Cube", "COMMON");
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    // Its data connection alone: it would not notice, so it is told.
    bob.call("eval", json!({"code": "session.remote.data.close()"}));
    let reason = bob.await_exit();
    assert!(reason.contains("connect again"), "{reason}");
    server.assert_works(&[&alice]);
}

#[test]
fn a_tcp_login_without_a_data_channel_is_told_so() {
    let Some(server) = Server::start_for(&venv::V0_10_3, &[]) else {
        return;
    };
    let client = server.client("Bob").with("without_data", true).connect();
    let reason = client.await_exit();
    assert!(reason.contains("FAILED: data channel timeout"), "{reason}");
    let asker = Client::spawn(&server.python, "Asker");
    let address = format!("127.0.0.1:{}", server.ports.command);
    assert_eq!(
        asker.call("info", json!({"address": address})),
        json!({"private": false, "version": "0.10.2"})
    );
}
