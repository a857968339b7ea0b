//! Kick, exit, crash: protocol section 3.9.

use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use serde_json::json;

use crate::support::{Need, Server, needs, venv, wait_until};

#[test]
fn admins_kick() {
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube"], ["Bob", "Carol"]) else {
        return;
    };
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
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube"], ["Bob", "Carol"]) else {
        return;
    };
    bob.call("kick", json!({"user": "Carol", "cheat": true}));
    bob.call("kick", json!({"user": "Alice", "cheat": true}));
    if needs(&[Need::RawFrames]) {
        bob.raw("command", "[P(11), b'Alice', P({'user': 'Carol'})]"); // the owner field proves nothing
    }
    alice.call("kick", json!({"user": "Nobody", "cheat": true}));
    server.assert_works(&[&carol, &alice, &bob]);
}

#[test]
fn the_console_kicks_with_a_reason() {
    let Some((mut server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
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
    let Some((mut server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
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
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((mut server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
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
    let Some((server, alice, [mut bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
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
    let Some((server, alice, [mut bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    bob.crash();
    wait_until("Bob to be gone, though his TTL process lives", || {
        !alice.sees_user("Bob")
    });
    server.assert_works(&[&alice]);
}

#[test]
fn a_client_that_went_without_a_word_frees_its_name() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    bob.leave();
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn passwords_stay_out_of_log_and_data() {
    if !needs(&[Need::TwoPasswords]) {
        return;
    }
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

#[test]
fn ctl_kicks_and_check_is_no_guest() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let binary = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"))
            .args(arguments)
            .arg("--data-dir")
            .arg(server.data_dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let address = format!("127.0.0.1:{}", server.ports.command);
    let (code, text) = binary(&["check", &address]);
    assert_eq!(code, Some(0), "{text}");
    let version = format!("add-ons need replication {}", venv::chosen().version);
    assert!(text.contains(&version), "{text}");
    assert_eq!(alice.users().as_object().unwrap().len(), 2);
    let (code, text) = binary(&["ctl", "users"]);
    assert!(
        code == Some(0) && text.contains("Alice") && text.contains("Bob"),
        "{text}"
    );
    let (code, text) = binary(&["ctl", "kick", "bob"]);
    assert!(
        code == Some(1) && text.contains("do you mean \"Bob\"?"),
        "{text}"
    );
    let (code, text) = binary(&["ctl", "kick", "Bob", "lunch is", "ready"]);
    assert_eq!((code, &*text), (Some(0), "Bob has been kicked\n"));
    assert!(bob.await_exit().contains("lunch is ready"));
    server.assert_works(&[&alice]);
}

#[test]
fn check_knows_the_python_server() {
    let Some(python) = venv::python(&venv::CURRENT) else {
        return;
    };
    let server = Server::start_upstream(python, &["--server-password", "tops3cret"]);
    let alice = server
        .client("Alice")
        .server_password("tops3cret")
        .admin()
        .connect();
    alice.await_lobby();
    let check = |password: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"))
            .args(["check", &format!("127.0.0.1:{}", server.ports.command)])
            .args(["--server-password", password])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = check("tops3cret");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("probably the Python server"), "{text}");
    let (code, text) = check("wrong");
    assert!(
        code == Some(1) && text.contains("Wrong server password"),
        "{text}"
    );
    assert_eq!(alice.users().as_object().unwrap().len(), 1);
}
