//! Ownership: protocol section 3.7.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Need, Server, assert_converged, needs, wait_until};

#[test]
fn selecting_locks_and_deselecting_frees() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    bob.select(&["Object:Cube"]);
    for client in [&alice, &bob] {
        client.await_owner("Object:Cube", "Bob");
        client.await_owner("Mesh:Cube.mesh", "Bob"); // dependencies go along
    }
    assert!(
        alice
            .try_call(
                "edit",
                json!({"ref": "Object:Cube", "code": "d['location'][0] = 1.0"})
            )
            .is_err()
    );
    assert!(bob.drag("Object:Cube") > 20);
    server.assert_settled(&[&alice, &bob]);
    bob.select(&[]);
    for client in [&alice, &bob] {
        client.await_owner("Object:Cube", "COMMON");
        client.await_owner("Mesh:Cube.mesh", "COMMON");
    }
}

#[test]
fn an_object_that_is_not_registered_yet_is_selected_along_with_others() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.join("Bob");
    bob.select(&["", "Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    bob.select(&["Object:Cone"]);
    alice.await_owner("Object:Cube", "COMMON");
    alice.await_owner("Object:Cone", "Bob");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_lock_cannot_be_stolen_but_is_inherited() {
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube", "Cone"], ["Bob", "Carol"])
    else {
        return;
    };
    bob.select(&["Object:Cube"]);
    carol.await_owner("Object:Cube", "Bob");

    carol.lock(&["Object:Cube"]); // the library sends it all the same
    wait_until("Carol to be told the true owner", || {
        carol.count_received(&[("type", "Right")]) >= 2
    });
    thread::sleep(Duration::from_millis(300));
    for client in [&alice, &bob, &carol] {
        assert_eq!(
            client.owner("Object:Cube"),
            "Bob",
            "as {} sees it",
            client.name
        );
    }
    // What Carol asked for becomes hers when it comes free, since she will not ask again.
    bob.select(&[]);
    for client in [&alice, &bob, &carol] {
        client.await_owner("Object:Cube", "Carol");
    }
    carol.unlock(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "COMMON");
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn a_mixed_request_is_judged_node_by_node() {
    let Some((_server, alice, [bob, carol])) = Server::studio(&["Cube", "Cone"], ["Bob", "Carol"])
    else {
        return;
    };
    bob.call(
        "lock",
        json!({"refs": ["Object:Cube"], "dependencies": false}),
    );
    carol.await_owner("Object:Cube", "Bob");
    carol.call(
        "lock",
        json!({"refs": ["Object:Cube", "Object:Cone"], "dependencies": false}),
    );
    for client in [&alice, &bob, &carol] {
        client.await_owner("Object:Cone", "Carol");
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(carol.owner("Object:Cube"), "Bob");
    assert_converged(&[&alice, &bob, &carol]);
}

#[test]
fn what_belongs_to_another_cannot_be_edited_unlocked_or_deleted() {
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube"], ["Bob", "Carol"]) else {
        return;
    };
    bob.select(&["Object:Cube"]);
    carol.await_owner("Object:Cube", "Bob");
    alice.await_owner("Object:Cube", "Bob");

    carol.edit_without_right("Object:Cube", "d['location'][0] = 66.0"); // by delta
    carol.await_value("Object:Cube", "d['location'][0]", 0.0); // healed
    carol.call(
        "push_full",
        json!({"ref": "Object:Cube", "code": "d['location'][0] = 77.0", "cheat": true}),
    );
    carol.await_value("Object:Cube", "d['location'][0]", 0.0);
    if needs(&[Need::RawFrames]) {
        let cube = carol.uuid("Object:Cube");
        for frames in [
            format!("[P(4), b'Bob', P('{cube}')]"),
            format!("[P(5), b'Bob', P({{'uuid': R('{cube}'), 'owner': 'COMMON'}})]"),
            format!("[P(5), b'Alice', P({{'uuid': R('{cube}'), 'owner': 'Nobody'}})]"),
        ] {
            carol.raw("command", &frames);
        }
        // The owner field of a full node proves nothing either.
        carol.raw("data", "(lambda c: [c[0], c[1], b'Carol', c[3], P(dict(node('Object:Cube').data, location=[5.0, 5.0, 5.0]))])(raw('Object:Cube'))");
    }
    thread::sleep(Duration::from_millis(600));
    assert_converged(&[&alice, &bob, &carol]);
    assert_eq!(alice.owner("Object:Cube"), "Bob");
    assert_eq!(alice.value("Object:Cube", "d['location'][0]"), json!(0.0));
    bob.edit("Object:Cube", "d['location'][0] = 1.0");
    carol.await_value("Object:Cube", "d['location'][0]", 1.0);
    bob.assert_in_session();
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn admins_override_and_hand_over() {
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube", "Cone"], ["Bob", "Carol"])
    else {
        return;
    };
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    alice.edit_without_right("Object:Cube", "d['location'][0] = 3.0");
    carol.await_value("Object:Cube", "d['location'][0]", 3.0);
    bob.await_value("Object:Cube", "d['location'][0]", 3.0);

    alice.call("lock", json!({"refs": ["Object:Cone"], "owner": "Carol"}));
    bob.await_owner("Object:Cone", "Carol");
    if needs(&[Need::RawFrames]) {
        let cone = alice.uuid("Object:Cone");
        let frames = format!("[P(5), b'Alice', P({{'uuid': R('{cone}'), 'owner': 'Nobody'}})]");
        alice.raw("command", &frames);
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        bob.owner("Object:Cone"),
        "Carol",
        "nobody who is not there owns anything"
    );
    carol.drag("Object:Cone");
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn an_edit_that_crosses_its_own_unlock_counts() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    // Four-socket clients carry their Rights out before they send them, so what they see of their own proves nothing.
    let carol = server.join("Carol");
    for round in 1..=5 {
        bob.select(&["Object:Cube"]);
        for witness in [&alice, &carol] {
            witness.await_owner("Object:Cube", "Bob");
        }
        bob.edit("Object:Cube", &format!("d['location'][0] = {round}.0"));
        bob.select(&[]);
        if server.python.spec.is_four_socket() {
            alice.await_owner("Object:Cube", "COMMON"); // it asks for nothing else
        }
        alice.select(&["Object:Cube"]);
        for witness in [&bob, &carol] {
            witness.await_owner("Object:Cube", "Alice");
        }
        alice.await_value("Object:Cube", "d['location'][0]", f64::from(round));
        alice.select(&[]);
        for witness in [&bob, &carol] {
            witness.await_owner("Object:Cube", "COMMON");
        }
    }
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn a_lock_on_a_newborn_holds() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    for i in 0..5 {
        let name = format!("New{i}");
        bob.add(&name);
        bob.select(&[&format!("Object:{name}")]); // may overtake the node: another connection
    }
    alice.await_owner("Object:New4", "Bob");
    alice.await_owner("Object:New3", "COMMON");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn no_lock_outlives_its_owner() {
    let Some((server, alice, [mut bob, carol])) =
        Server::studio(&["Cube", "Cone", "Lamp"], ["Bob", "Carol"])
    else {
        return;
    };
    bob.select(&["Object:Cube"]);
    carol.select(&["Object:Cone"]);
    alice.await_owner("Object:Cube", "Bob");
    alice.await_owner("Object:Cone", "Carol");
    carol.leave();
    alice.await_owner("Object:Cone", "COMMON");
    bob.crash();
    alice.await_owner("Object:Cube", "COMMON");
    alice.await_owner("Mesh:Cube.mesh", "COMMON");
    wait_until("the table to empty", || {
        !alice.sees_user("Bob") && !alice.sees_user("Carol")
    });
    server.assert_settled(&[&alice]);
}
