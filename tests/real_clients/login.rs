//! Server info, login, lobby and initialising: protocol sections 3.1 to 3.3.

use serde_json::json;

use crate::support::{CHANNELS, Client, Need, Proxy, Server, needs, state, wait_until};

#[test]
fn initialise_and_join() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    assert_eq!(bob.value("Cube", "d['location'][2]"), json!(1.5));
    assert!(alice.users()["Alice"]["admin"].as_bool().unwrap());
    wait_until("everybody to see Bob active", || {
        alice.users()["Bob"]["status"] == state::ACTIVE
    });
    assert_eq!(alice.users()["Bob"]["admin"], json!(false));
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn server_info_tells_version_and_privacy() {
    if !needs(&[Need::ServerInfo]) {
        return;
    }
    let Some(open) = Server::start() else { return };
    let Some(private) = Server::start_with(&["--server-password", "gate"]) else {
        return;
    };
    // With which one is asked back: of the same sockets the newest, then the session's.
    let newest = if open.python.spec.is_tcp() {
        "0.10.2"
    } else {
        "0.9.11"
    };
    for (server, is_private) in [(&open, false), (&private, true)] {
        let asker = Client::spawn(&server.python, "Asker");
        let address = format!("127.0.0.1:{}", server.ports.command);
        assert_eq!(
            asker.call("info", json!({"address": address})),
            json!({"private": is_private, "version": newest})
        );
    }
    // The list of servers is asked again and again, also while a session runs.
    let alice = open.host("Alice", &["Cube"]);
    let address = format!("127.0.0.1:{}", open.ports.command);
    assert_eq!(
        alice.call("info", json!({"address": address}))["version"],
        open.python.spec.version
    );
    open.assert_settled(&[&alice]);
}

#[test]
fn wrong_passwords_and_versions_are_refused_in_the_known_words() {
    if !needs(&[Need::TwoPasswords]) {
        return;
    }
    let Some(server) = Server::start_with(&["--server-password", "gate"]) else {
        return;
    };
    let refused = |login: crate::support::client::Login<'_>| login.expect_refusal();
    let wrong_admin = "FAILED: wrong admin password";
    let wrong_server = "FAILED: wrong server password";
    assert_eq!(
        refused(
            server
                .client("A")
                .admin_password("no")
                .server_password("gate")
        ),
        wrong_admin
    );
    assert_eq!(refused(server.client("B")), wrong_server);
    assert_eq!(
        refused(server.client("C").server_password("no")),
        wrong_server
    );
    assert_eq!(
        refused(server.client("D").server_password("")),
        wrong_server
    );
    // Nobody learns about the admin password who does not know the first one.
    assert_eq!(
        refused(
            server
                .client("E")
                .admin_password("no")
                .server_password("no")
        ),
        wrong_server
    );

    let alice = server
        .client("Alice")
        .admin()
        .server_password("gate")
        .connect();
    alice.await_lobby();
    alice.init(&["Cube"], 8);
    alice.await_active();
    assert_eq!(
        refused(server.client("F").server_password("gate").version("0.9.9")),
        format!(
            "FAILED: wrong client version (0.9.9 != {})",
            server.python.spec.version
        )
    );
    assert_eq!(
        refused(server.client("G").server_password("no").version("0.9.9")),
        wrong_server
    );
    let bob = server.client("Bob").server_password("gate").connect();
    bob.await_active();
    crate::support::assert_converged(&[&alice, &bob]);
    assert_eq!(
        alice.users().as_object().unwrap().len(),
        2,
        "the refused are nobody's company"
    );
}

#[test]
fn an_open_server_takes_every_empty_password() {
    if !needs(&[Need::TwoPasswords]) {
        return;
    }
    let Some((server, alice, [none])) = Server::studio(&["Cube"], ["NoneAtAll"]) else {
        return;
    };
    let empty = server.client("Empty").server_password("").connect();
    let text = server
        .client("NoneAsText")
        .server_password("None")
        .connect();
    let any = server
        .client("Any")
        .server_password("left over in the preset")
        .connect();
    // The admin box ticked, no password given: an ordinary user.
    let ticked = server
        .client("Ticked")
        .server_password("")
        .admin_password("")
        .connect();
    for client in [&none, &empty, &text, &any, &ticked] {
        client.await_active();
    }
    wait_until("Ticked in the table", || alice.sees_user("Ticked"));
    assert_eq!(alice.users()["Ticked"]["admin"], json!(false));
    server.assert_settled(&[&alice, &none, &empty, &text, &any, &ticked]);
}

#[test]
fn an_empty_password_flag_is_an_open_server() {
    let Some(server) = Server::start_with(&["--server-password", ""]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.client("Bob").server_password("").connect();
    bob.await_active();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_name_is_taken_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    assert_eq!(
        server.client("Alice").expect_refusal(),
        "FAILED: client already logged in"
    );
    let bob = server.join("Bob");
    assert_eq!(
        server.client("Bob").expect_refusal(),
        "FAILED: client already logged in"
    );
    server.assert_works(&[&bob, &alice]);
}

#[test]
fn names_that_would_confuse_are_refused() {
    let Some(server) = Server::start() else {
        return;
    };
    let too_long = "x".repeat(65);
    for name in [
        "", "COMMON", "server", "client", "guest", "Bob\n", &too_long,
    ] {
        if name.is_empty() && server.python.spec.is_four_socket() {
            continue; // its library does not even try
        }
        let refusal = server.client(name).expect_refusal();
        assert!(refusal.starts_with("FAILED: "), "{name:?}: {refusal}");
        assert!(
            refusal.len() <= 80 && !refusal.contains("LOBBY") && !refusal.contains("RUNNING"),
            "{refusal}"
        );
    }
    let alice = server.host("Älice 😀", &["Cube"]);
    server.assert_settled(&[&alice]);
}

#[test]
fn the_lobby_gets_the_scene_when_somebody_initialises() {
    let Some(server) = Server::start() else {
        return;
    };
    let bob = server.client("Bob").connect();
    let carol = server.client("Carol").connect();
    bob.await_lobby();
    carol.await_lobby();
    let alice = server.host("Alice", &["Cube"]);
    bob.await_active();
    carol.await_active();
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn only_admins_initialise() {
    let Some(server) = Server::start() else {
        return;
    };
    let bob = server.client("Bob").connect();
    bob.await_lobby();
    bob.init(&["Intruder"], 8);
    wait_until("the rejection", || {
        bob.count_received(&[("type", "ServerSnapshot"), ("state", "REJECTED")]) == 1
    });
    bob.await_lobby();
    bob.assert_no_problems();
    bob.leave();

    let alice = server.host("Alice", &["Cube"]);
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    assert!(!alice.has("Intruder"));
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn initialising_a_running_session_is_rejected() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let carol = server.client("Carol").admin().connect();
    carol.await_active();
    carol.call("eval", json!({"code": "session.init()"}));
    wait_until("the rejection", || {
        carol.count_received(&[("type", "ServerSnapshot"), ("state", "REJECTED")]) == 1
    });
    // Rejected clients sit in the lobby; a session runs, so Carol gets it again.
    carol.await_active();
    server.assert_works(&[&alice, &bob, &carol]);
}

#[test]
fn two_initialise_at_once_and_one_wins() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let proxy = Proxy::to(&server);
    proxy.bandwidth(200_000);
    let alice = server.client("Alice").admin().through(&proxy).connect();
    let bob = server.client("Bob").admin().connect();
    alice.await_lobby();
    bob.await_lobby();
    let names: Vec<String> = (0..20).map(|i| format!("Cube{i}")).collect();
    alice.init(&names.iter().map(String::as_str).collect::<Vec<_>>(), 1000);
    alice.await_state(state::SRV_SYNC);
    wait_until("Alice to be accepted", || {
        alice.count_received(&[("state", "ACCEPTED")]) == 1
    });
    bob.call("eval", json!({"code": "setattr(session, '_state', 7)"})); // as `session.init()` leaves it
    bob.call(
        "raw",
        json!({"channel": "command", "expr": "[P(8), b'server', P({'STATE': 'INIT', 'SIZE': 1, 'NODES': ['x']})]"}),
    );
    wait_until("the rejection", || {
        bob.count_received(&[("type", "ServerSnapshot"), ("state", "REJECTED")]) == 1
    });
    alice.await_active();
    bob.await_active();
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn an_initialiser_killed_half_way_makes_room_for_another() {
    let Some(server) = Server::start() else {
        return;
    };
    let proxy = Proxy::to(&server);
    proxy.bandwidth(60_000);
    let carol = server.client("Carol").connect();
    let bob = server.client("Bob").admin().connect();
    carol.await_lobby();
    bob.await_lobby();
    let mut alice = server.client("Alice").admin().through(&proxy).connect();
    alice.await_lobby();
    let names: Vec<String> = (0..30).map(|i| format!("Lost{i}")).collect();
    alice.init(&names.iter().map(String::as_str).collect::<Vec<_>>(), 2000);
    wait_until("Alice to be accepted", || {
        alice.count_received(&[("state", "ACCEPTED")]) == 1
    });
    alice.crash();
    proxy.cut(&CHANNELS);

    // Rejected while Alice may still come back, then accepted.
    wait_until("Bob to become the initialiser", || {
        if bob.state() == state::LOBBY {
            bob.init(&["Cube"], 8);
            wait_until("an answer to INIT", || bob.state() != state::SRV_SYNC);
        }
        bob.state() == state::ACTIVE
    });
    carol.await_active();
    assert!(!carol.has("Lost0"), "the half scene is forgotten");
    server.assert_works(&[&bob, &carol]);
}
