//! Users, their metadata, chat: protocol sections 3.8 and 3.12.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Need, Server, assert_converged, needs, wait_until};

#[test]
fn metadata_reaches_everybody_and_late_joiners() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    wait_until("the first pushes to settle", || {
        ["Alice", "Bob"]
            .iter()
            .all(|name| alice.users()[name]["metadata"].get("color").is_some())
    });
    bob.metadata("{'frame_current': 42}");
    bob.select(&["Object:Cube"]);
    let cube = bob.uuid("Object:Cube");
    // Its author's next view move pushes his whole table: nothing of it may be stale.
    wait_until("Bob's own table to follow", || {
        let own = &bob.users()["Bob"]["metadata"];
        own["frame_current"] == 42 && own["selected_objects"] == json!([cube])
    });
    bob.call("look", json!({"x": 7.0}));
    let complete = |metadata: &serde_json::Value| {
        metadata["frame_current"] == 42
            && metadata["selected_objects"] == json!([cube])
            && metadata["view_corners"][0][0] == 7.0
            && metadata["color"] == json!([0.1, 0.5, 0.25, 1])
    };
    wait_until("Alice to see it", || {
        complete(&alice.users()["Bob"]["metadata"])
    });
    let carol = server.join("Carol");
    wait_until("Carol, who came later, to see it", || {
        complete(&carol.users()["Bob"]["metadata"])
    });
    bob.metadata("{'frame_current': 43}");
    wait_until("Bob's own table to follow", || {
        bob.users()["Bob"]["metadata"]["frame_current"] == 43
    });
    bob.call("look", json!({"x": 8.0}));
    wait_until("the move to arrive", || {
        carol.users()["Bob"]["metadata"]["view_corners"][0][0] == 8.0
    });
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        carol.users()["Bob"]["metadata"]["frame_current"],
        43,
        "no frame comes back"
    );
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn metadata_from_the_first_moment_throws_nobody_out() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let mut joiners = Vec::new();
    for i in 0..4 {
        let joiner = server.client(&format!("Joiner{i}")).connect();
        // While it joins, perhaps before the others have heard of this user.
        joiner.await_login();
        joiner.metadata("{'frame_current': 7, 'color': (1.0, 0.0, 0.0, 1), 'scene_current': 'Scene', 'mode_current': 'OBJECT'}");
        alice.metadata("{'frame_current': 3}");
        joiners.push(joiner);
    }
    for joiner in &joiners {
        joiner.await_active();
        joiner.metadata("{'frame_current': 8}");
    }
    joiners[0].leave();
    joiners[1].metadata("{'frame_current': 9}");
    wait_until("the last frame to arrive", || {
        alice.users()["Joiner1"]["metadata"]["frame_current"] == 9
    });
    wait_until("who left to vanish", || !alice.sees_user("Joiner0"));
    server.assert_settled(&[&alice, &joiners[1], &joiners[2], &joiners[3]]);
}

#[test]
fn the_sender_cannot_speak_for_another() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube"], ["Bob", "Carol"]) else {
        return;
    };
    // Until he sees his own colour he pushes everything again and again.
    wait_until("Bob to have introduced himself", || {
        bob.users()["Bob"]["metadata"]["color"].is_array()
    });
    bob.raw("command", "[P(13), b'Alice', P({'frame_current': 666})]");
    bob.raw("command", "[P(13), b'Nobody', P({'frame_current': 667})]");
    wait_until("it to count for Bob", || {
        carol.users()["Bob"]["metadata"]["frame_current"] == 667
    });
    assert_ne!(
        carol.users()["Alice"]["metadata"]["frame_current"],
        json!(666)
    );
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn chat_reaches_everybody_and_late_joiners() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let line = |id: &str, text: &str| {
        let message = json!({"id": id, "username": "Bob", "message": text, "msg_type": "text", "metadata": {}, "timestamp": 1.5});
        format!("{{'chat_messages': {:?}}}", json!([message]).to_string())
    };
    bob.metadata(&line("one", "hello"));
    let says = |client: &crate::support::Client, text: &str| {
        client.users().as_object().unwrap().values().any(|user| {
            user["metadata"]["chat_messages"]
                .as_str()
                .is_some_and(|log| log.contains(text))
        })
    };
    wait_until("Alice to read it", || says(&alice, "hello"));
    bob.metadata(&line("two", "anybody there?"));
    wait_until("Alice to read on", || says(&alice, "anybody there?"));
    let carol = server.join("Carol");
    wait_until("Carol to read what was said before she came", || {
        says(&carol, "anybody there?")
    });
    assert_converged(&[&alice, &bob, &carol]);
}

#[test]
fn latency_is_measured() {
    let Some((_server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    for client in [&alice, &bob] {
        wait_until("latencies of both", || {
            ["Alice", "Bob"].iter().all(|name| {
                client.users()[name]["latency"]
                    .as_i64()
                    .is_some_and(|ms| ms < 999)
            })
        });
    }
    alice.assert_in_session();
    bob.assert_in_session();
}

#[test]
fn the_lobby_has_company() {
    if !needs(&[Need::LobbyPresence]) {
        return;
    }
    let Some(server) = Server::start() else {
        return;
    };
    let bob = server.client("Bob").connect();
    let carol = server.client("Carol").connect();
    bob.await_lobby();
    carol.await_lobby();
    bob.metadata("{'frame_current': 12}");
    wait_until("Carol to see Bob's frame", || {
        carol.users()["Bob"]["metadata"]["frame_current"] == 12
    });
    wait_until("Bob to see Carol's colour", || {
        bob.users()["Carol"]["metadata"].get("color").is_some()
    });
    let alice = server.host("Alice", &["Cube"]);
    bob.await_active();
    carol.await_active();
    wait_until("Alice to see Bob's frame", || {
        alice.users()["Bob"]["metadata"]["frame_current"] == 12
    });
    server.assert_settled(&[&alice, &bob, &carol]);
}
