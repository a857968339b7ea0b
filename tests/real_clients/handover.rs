//! A stop that a start follows: who can wait for it notices nothing (protocol section 3.9).

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::venv;
use crate::support::{Client, Need, Proxy, Server, Stopped, assert_converged, needs, wait_until};

/// SIGTERM, and kill -9.
const ENDS: [fn(Server) -> Stopped; 2] = [Server::stop, Server::kill];

#[test]
fn who_drags_goes_on_dragging() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    for end in ENDS {
        let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
            return;
        };
        alice.select(&["Object:Cube"]);
        bob.await_owner("Object:Cube", "Alice");
        alice.start_drag(&["Object:Cube"], 30, 5.0);
        thread::sleep(Duration::from_millis(1200));
        let stopped = end(server);
        thread::sleep(Duration::from_millis(700));
        let server = stopped.start(&[]);
        alice.finish_drag();
        assert_converged(&[&alice, &bob]);
        bob.await_owner("Object:Cube", "Alice");
        alice.edit("Object:Cube", "d['location'][0] = 7.0");
        bob.await_value("Object:Cube", "d['location'][0]", 7.0);
        server.assert_works(&[&alice, &bob]);
    }
}

#[test]
fn a_restart_is_announced_in_the_chat() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let stopped = server.stop();
    for client in [&alice, &bob] {
        wait_until("the announcement", || {
            let own = &client.users()[&client.name]["metadata"]["chat_messages"];
            let own = own.as_str().unwrap_or_default();
            own.contains("SERVER") && own.contains("server restarting")
        });
    }
    let server = stopped.start(&[]);
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn tcp_clients_are_told_and_dealers_stay() {
    let flags = ["--versions", "0.9.10,0.9.12"];
    let Some(server) = Server::start_for(&venv::CURRENT, &flags) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.join("Bob");
    let tim = server.client("Tim").using(&venv::V0_9_12).connect();
    tim.await_active();
    alice.select(&["Object:Cube"]);
    tim.select(&["Object:Cone"]);
    bob.await_owner("Object:Cube", "Alice");
    bob.await_owner("Object:Cone", "Tim");
    let stopped = server.stop();
    let reason = tim.await_exit();
    assert!(reason.contains("connect again in a moment"), "{reason}");
    tim.assert_no_problems();
    let server = stopped.start(&flags);
    bob.await_owner("Object:Cone", "COMMON");
    bob.await_owner("Object:Cube", "Alice");
    tim.connect(json!({"name": "Tim", "port": server.ports.command}));
    tim.await_active();
    tim.edit("Object:Cone", "d['location'][0] = 3.0");
    alice.await_value("Object:Cone", "d['location'][0]", 3.0);
    server.assert_works(&[&alice, &bob, &tim]);
}

#[test]
fn four_socket_clients_are_told() {
    let Some(server) = Server::start_for(&venv::FOUR_SOCKET, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let stopped = server.stop();
    for client in [&alice, &bob] {
        let reason = client.await_exit();
        assert!(reason.contains("connect again in a moment"), "{reason}");
        client.assert_no_problems();
    }
    let server = stopped.start(&[]);
    let carol = server.join("Carol");
    server.assert_works(&[&carol]);
}

/// A client that reads and says things only now and then, as one whose Blender renders, must not be left waiting for ever with
/// what it says when its session has ended.
#[test]
fn a_busy_client_hears_that_it_is_out() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((mut server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    // What is in front of the news takes him some turns, in each of which he says something, too.
    bob.call("turn", json!({"ms": 100}));
    bob.pause(2.5);
    for x in 0..40 {
        alice.metadata(&format!("{{'frame_current': {x}}}"));
        thread::sleep(Duration::from_millis(60));
    }
    server.console("kick Bob lunch");
    bob.start_drag(&["Object:Cube"], 30, 3.0);
    let reason = bob.await_exit();
    assert!(reason.contains("lunch"), "{reason}");
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn who_logs_in_meanwhile_gets_in() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    for end in ENDS {
        let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
            return;
        };
        bob.leave();
        let port = server.ports.command;
        let stopped = end(server);
        bob.connect(json!({"name": "Bob", "port": port}));
        thread::sleep(Duration::from_millis(300));
        let server = stopped.start(&[]);
        bob.await_active();
        server.assert_works(&[&alice, &bob]);
    }
}

#[test]
fn two_restarts_in_quick_succession() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    alice.select(&["Object:Cube"]);
    bob.await_owner("Object:Cube", "Alice");
    alice.start_drag(&["Object:Cube"], 30, 6.0);
    thread::sleep(Duration::from_millis(500));
    let server = server.stop().start(&[]);
    let server = server.stop().start(&[]);
    thread::sleep(Duration::from_millis(400));
    let server = server.crash_and_restart();
    let server = server.stop().start(&[]);
    alice.finish_drag();
    bob.await_owner("Object:Cube", "Alice");
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn whoever_is_not_in_yet_is_told_to_connect_again() {
    if !needs(&[Need::WaitingForRestarts]) {
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
    let server = server.stop().start(&[]);
    let reason = bob.await_exit();
    bob.assert_no_problems();
    assert!(!reason.is_empty());
    bob.connect(json!({"name": "Bob", "port": server.ports.command}));
    bob.await_active();
    server.assert_works(&[&alice, &bob]);
}

#[test]
fn a_restart_while_a_scene_is_sent() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    for end in ENDS {
        let Some(server) = Server::start() else {
            return;
        };
        let alice = server.client("Alice").admin().connect();
        let bob = server.client("Bob").connect();
        alice.await_lobby();
        bob.await_lobby();
        let objects: Vec<String> = (0..300).map(|n| format!("Object{n}")).collect();
        let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
        alice.init(&objects, 200);
        let server = end(server).start(&[]);
        // Either the scene was there in time, or it is begun anew.
        if server.log.find("Session restored from disk").is_none() {
            for client in [&alice, &bob] {
                client.await_exit();
                client.assert_no_problems();
            }
            alice.connect(
                json!({"name": "Alice", "port": server.ports.command, "admin_password": "admin"}),
            );
            alice.await_lobby();
            alice.init(&["Cube"], 8);
            alice.await_active();
        }
        let carol = server.join("Carol");
        server.assert_works(&[&carol]);
    }
}

#[test]
fn locks_of_those_who_do_not_return_come_free_after_the_grace_time() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    for end in ENDS {
        let Some((server, mut alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
            return;
        };
        alice.select(&["Object:Cube"]);
        bob.await_owner("Object:Cube", "Alice");
        let stopped = end(server);
        alice.crash();
        let server = stopped.start(&["--grace", "3"]);
        wait_until("Bob to be back", || server.log.find("is back").is_some());
        assert_eq!(bob.owner("Object:Cube"), "Alice", "until the grace ends");
        bob.await_owner("Object:Cube", "COMMON");
        server.assert_works(&[&bob]);
    }
}

#[test]
fn who_was_refused_a_lock_gets_it_after_the_restart() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    alice.select(&["Object:Cube"]);
    bob.await_owner("Object:Cube", "Alice");
    bob.raw(
        "command",
        "[P(5), b'Bob', P({'uuid': [uid('Object:Cube')], 'owner': 'Bob'})]",
    );
    bob.edit("World", "d['stamp'] = 'asked'");
    alice.await_value("World", "d['stamp']", "asked");
    thread::sleep(Duration::from_millis(300));
    let server = server.stop().start(&[]);
    bob.await_owner("Object:Cube", "Alice");
    wait_until("Alice to be back", || {
        server
            .log
            .lines()
            .iter()
            .filter(|line| line.contains("is back"))
            .count()
            >= 2
    });
    alice.select(&[]);
    alice.await_owner("Object:Cube", "Bob");
    bob.await_owner("Object:Cube", "Bob");
    server.assert_works(&[&alice, &bob]);
}

fn nodes_received(client: &Client) -> usize {
    client.count_received(&[("type", "Node")])
}

#[test]
fn after_a_stop_in_order_the_scene_is_not_sent_again() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let objects: Vec<String> = (0..40).map(|n| format!("Object{n}")).collect();
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    let alice = server.host("Alice", &objects);
    let bob = server.join("Bob");
    server.assert_works(&[&alice, &bob]);
    // Longer than an edit counts as recent.
    thread::sleep(Duration::from_secs(11));
    let before = nodes_received(&bob);
    let server = server.stop().start(&[]);
    server.assert_works(&[&alice, &bob]);
    let sent = nodes_received(&bob) - before;
    assert!(sent < 20, "{sent} of more than 80 nodes were sent again");
    let before = nodes_received(&bob);
    let server = server.crash_and_restart();
    server.assert_works(&[&alice, &bob]);
    assert!(nodes_received(&bob) - before > 80);
}

#[test]
fn what_a_slow_line_still_owes_comes_after_the_restart() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    for end in ENDS {
        let Some(server) = Server::start() else {
            return;
        };
        let alice = server.host("Alice", &["Cube", "Cone", "Torus"]);
        let proxy = Proxy::to(&server);
        let bob = server.client("Bob").through(&proxy).connect();
        bob.await_active();
        proxy.bandwidth(100_000);
        // Some minutes of it for such a line, were every change sent.
        for round in 0..60 {
            for object in ["Cube", "Cone", "Torus"] {
                let code = format!("d['blob'] = '{round:04}' + 'x' * 300000");
                alice.push_full(&format!("Object:{object}"), &code);
            }
        }
        alice.delete("Object:Torus");
        alice.await_gone("Object:Torus");
        let server = end(server).start(&[]);
        proxy.bandwidth(0);
        bob.await_gone("Object:Torus");
        server.assert_works(&[&alice, &bob]);
    }
}
