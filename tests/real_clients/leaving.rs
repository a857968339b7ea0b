//! Kick, exit, crash: protocol section 3.9.

use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use serde_json::json;

use crate::support::{Server, wait_until};

#[test]
fn admins_kick() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let carol = server.join("Carol");
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    alice.call("kick", json!({"user": "Bob"}));
    let reason = bob.await_exit();
    assert!(
        reason.len() > 4 && reason != "user" && !reason.contains('{'),
        "a reason to read: {reason}"
    );
    alice.await_owner("Object:Cube", "COMMON");
    wait_until("Bob to be gone for all", || {
        !alice.sees_user("Bob") && !carol.sees_user("Bob")
    });
    // Kicked is not banned.
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn others_do_not_kick() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let carol = server.join("Carol");
    bob.call("kick", json!({"user": "Carol", "cheat": true}));
    bob.call("kick", json!({"user": "Alice", "cheat": true}));
    bob.raw("command", "[P(11), b'Alice', P({'user': 'Carol'})]"); // the owner field proves nothing
    alice.call("kick", json!({"user": "Nobody", "cheat": true}));
    server.assert_works(&[&carol, &alice, &bob]);
}

#[test]
fn the_console_kicks_with_a_reason() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    server.console("kick Bob lunch is ready");
    assert!(bob.await_exit().contains("lunch is ready"));
    server.console("users");
    wait_until("the console to answer", || {
        server.log.find("Alice").is_some()
    });
    server.assert_works(&[&alice]);
}

#[test]
fn exit_tells_everybody_why() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let carol = server.client("Carol").connect();
    carol.await_active();
    server.console("exit");
    for client in [&alice, &bob, &carol] {
        let reason = client.await_exit();
        assert!(
            !reason.contains("Server lost"),
            "{} was told nothing",
            client.name
        );
        assert!(
            reason.to_lowercase().contains("server"),
            "{}: {reason}",
            client.name
        );
        client.assert_no_problems();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn ctrl_c_tells_everybody_why() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.client("Bob").connect();
    bob.await_active();
    server.close_console(); // its end stops nothing
    server.assert_works(&[&alice, &bob]);
    let interrupt = ["-s", "INT", &server.pid().to_string()];
    assert!(
        Command::new("kill")
            .args(interrupt)
            .status()
            .unwrap()
            .success()
    );
    for client in [&alice, &bob] {
        let reason = client.await_exit();
        assert!(reason.contains("the server is shutting down"), "{reason}");
        client.assert_no_problems();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn sigterm_ends_nobodys_session() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0));
    for client in [&alice, &bob] {
        client.assert_in_session();
        assert_eq!(client.count_received(&[("type", "Disconnect")]), 0);
    }
    // Where no start follows they find out by themselves.
    for client in [&alice, &bob] {
        assert!(client.await_exit().contains("Server lost"));
    }
}

#[test]
fn a_crashed_client_is_back_within_a_second() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let mut bob = server.join("Bob");
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    bob.crash(); // its TTL process answers on
    let bob = server.join("Bob");
    alice.await_owner("Object:Cube", "COMMON");
    bob.await_owner("Object:Cube", "COMMON");
    bob.select(&["Object:Cube"]);
    bob.drag("Object:Cube");
    bob.select(&[]);
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_crashed_client_leaves_after_the_grace_time() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let mut bob = server.join("Bob");
    bob.crash();
    wait_until("Bob to be gone, though his TTL process lives", || {
        !alice.sees_user("Bob")
    });
    server.assert_works(&[&alice]);
}

#[test]
fn a_client_that_went_without_a_word_frees_its_name() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    bob.leave();
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn passwords_stay_out_of_log_and_data() {
    let Some(mut server) =
        Server::start_with(&["--server-password", "sesame-3141", "--log-level", "trace"])
    else {
        return;
    };
    let alice = server
        .client("Alice")
        .admin()
        .server_password("sesame-3141")
        .connect();
    alice.await_lobby();
    alice.init(&["Cube"], 8);
    alice.await_active();
    server
        .client("Bob")
        .server_password("guess-2718")
        .expect_refusal();
    server.console("exit");
    alice.await_exit();
    assert_eq!(server.wait_exit().code(), Some(0));
    thread::sleep(Duration::from_millis(100));
    for secret in ["sesame-3141", "guess-2718"] {
        assert_eq!(server.log.find(secret), None);
    }
    for entry in fs::read_dir(server.data_dir.path()).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains("sesame-3141"));
    }
}
