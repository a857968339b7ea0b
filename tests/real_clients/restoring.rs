//! The operator changes the scene under everybody's hands: `restore`, `new` and `unpin` (issue 5).

use serde_json::json;

use crate::support::venv;
use crate::support::{Client, Need, Server, assert_converged, needs, wait_until};

fn told(server: &Server, text: &str) {
    wait_until(&format!("the console to say {text:?}"), || {
        server.log.find(text).is_some()
    });
}

/// Makes a backup and returns its name.
fn save(server: &mut Server, note: &str) -> String {
    server.console(&format!("save {note}"));
    told(server, "saved as ");
    let line = server.log.find("saved as ").unwrap();
    let (_, name) = line.rsplit_once('/').unwrap();
    name.trim().to_owned()
}

#[test]
fn a_restore_has_everybody_connect_again_to_the_restored_scene() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let objects: Vec<String> = (0..20).map(|n| format!("Object{n}")).collect();
    let mut objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    objects.extend(["Cube", "Cone"]);
    let alice = server.host("Alice", &objects);
    let bob = server.join("Bob");
    alice.edit("Object:Cone", "d['location'][0] = 1.0");
    bob.await_value("Object:Cone", "d['location'][0]", 1.0);
    let name = save(&mut server, "the good one");

    alice.edit("Object:Cone", "d['location'][0] = 2.0");
    alice.add("Lamp");
    bob.await_value("Object:Lamp", "d['name']", "Lamp");
    bob.delete("Object:Object3");
    alice.await_gone("Object:Object3");
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    bob.start_drag(&["Object:Cube"], 30, 3.0);
    let carol = server.client("Carol").turn(60).connect();
    carol.await_syncing();
    let dave = server.client("Dave").connect();

    server.console(&format!("restore {name}"));
    told(&server, "is restored");
    // An add-on that got other nodes bit by bit would publish its own scene again.
    for client in [alice, bob, carol, dave] {
        let reason = client.await_exit();
        assert!(reason.contains("please connect again"), "{reason}");
    }
    let alice = server.join("Alice");
    let bob = server.join("Bob");
    for client in [&alice, &bob] {
        assert!(!client.has("Object:Lamp"));
        client.await_value("Object:Cone", "d['location'][0]", 1.0);
        client.await_value("Object:Object3", "d['name']", "Object3");
        assert_eq!(client.owner("Object:Cube"), "COMMON");
    }
    server.assert_works(&[&alice, &bob]);

    // What was there before has been saved.
    server.console("backups");
    told(&server, "before a restore");
    let restored = |server: &Server| {
        let lines = server.log.lines();
        lines
            .iter()
            .filter(|line| line.contains("is restored"))
            .count()
    };
    alice.edit("Object:Cone", "d['location'][0] = 3.0");
    bob.await_value("Object:Cone", "d['location'][0]", 3.0);
    // That is the one that was made of the restored scene, not the one that the command itself makes.
    server.console("restore latest");
    wait_until("the second restore", || restored(&server) == 2);
    alice.await_exit();
    bob.await_exit();
    let bob = server.join("Bob");
    bob.await_value("Object:Cone", "d['location'][0]", 1.0);

    // It is what a restart begins with.
    bob.leave();
    let server = server.crash_and_restart();
    let bob = server.join("Bob");
    bob.await_value("Object:Cone", "d['location'][0]", 1.0);
    server.assert_works(&[&bob]);
}

#[test]
fn the_oldest_backup_can_be_restored_though_another_one_is_made_first() {
    let Some(mut server) = Server::start_with(&["--max-backups", "1"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    alice.edit("Object:Cube", "d['location'][0] = 1.0");
    let bob = server.join("Bob");
    let name = save(&mut server, "the only one");
    bob.edit("Object:Cube", "d['location'][0] = 2.0");
    alice.await_value("Object:Cube", "d['location'][0]", 2.0);
    server.console(&format!("restore {name}"));
    alice.await_exit();
    bob.await_exit();
    let alice = server.join("Alice");
    alice.await_value("Object:Cube", "d['location'][0]", 1.0);
    server.assert_works(&[&alice]);
}

#[test]
fn nothing_is_restored_that_is_not_there() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    server.console("restore yesterday");
    told(&server, "there is no backup named yesterday");
    server.assert_works(&[&alice]);
}

#[test]
fn a_new_scene_begins_with_everybody_told() {
    let Some((mut server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");
    bob.start_drag(&["Object:Cube"], 30, 10.0);
    server.console("new");
    for client in [&alice, &bob] {
        let reason = client.await_exit();
        assert!(reason.contains("a new scene begins"), "{reason}");
        client.assert_no_problems();
    }
    let port = server.ports.command;
    let again = |client: &Client| {
        client.connect(json!({"name": client.name, "port": port, "admin_password": "admin"}));
        client.await_lobby();
    };
    again(&alice);
    again(&bob);
    alice.init(&["Torus"], 8);
    for client in [&alice, &bob] {
        client.await_active();
        assert!(client.has("Object:Torus") && !client.has("Object:Cube"));
    }
    server.assert_works(&[&alice, &bob]);
    // The old one is in a backup.
    server.console("backups");
    told(&server, "before a new scene");
}

#[test]
fn who_waits_for_a_start_that_restores_another_scene_connects_again() {
    if !needs(&[Need::WaitingForRestarts]) {
        return;
    }
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone", "Torus"]);
    let bob = server.join("Bob");
    let name = save(&mut server, "the good one");
    alice.delete("Object:Cone");
    bob.await_gone("Object:Cone");
    bob.select(&["Object:Cube"]);
    alice.await_owner("Object:Cube", "Bob");

    let stopped = server.stop();
    let data = stopped.data_dir.path();
    std::fs::copy(
        data.join("backups").join(name),
        data.join("session_restore.db"),
    )
    .unwrap();
    let server = stopped.start(&[]);
    // An add-on that got the scene bit by bit would take what it has deleted itself for orphans, and delete it for good.
    for client in [alice, bob] {
        let reason = client.await_exit();
        assert!(reason.contains("another scene"), "{reason}");
    }
    let alice = server.join("Alice");
    let bob = server.join("Bob");
    assert!(alice.has("Object:Cone"));
    assert_eq!(alice.owner("Object:Cube"), "COMMON");
    server.assert_works(&[&alice, &bob]);
    // Nobody is still expected after the next one.
    let server = server.crash_and_restart();
    server.assert_works(&[&alice, &bob]);
    assert!(alice.has("Object:Cone"));
}

#[test]
fn after_unpin_the_next_version_has_the_session() {
    let Some(mut server) = Server::start_for(&venv::CURRENT, &[]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let refusal = server.client("Bob").using(&venv::V0_9_11).expect_refusal();
    assert!(refusal.contains("wrong client version"), "{refusal}");
    alice.leave();
    wait_until("Alice to be gone", || server.log.find("left").is_some());
    server.console("unpin");
    told(&server, "the next client decides");
    // Another version, but not another kind of scene.
    let refusal = server
        .client("Old")
        .using(&venv::FOUR_SOCKET)
        .expect_refusal();
    assert!(refusal.contains("wrong client version"), "{refusal}");
    let bob = server.client("Bob").using(&venv::V0_9_11).connect();
    bob.await_active();
    bob.await_value("Object:Cube", "d['name']", "Cube");
    let refusal = server.client("Carol").expect_refusal();
    assert!(refusal.contains("wrong client version"), "{refusal}");
    assert_converged(&[&bob]);
    let server = server.crash_and_restart();
    server.client("Carol").expect_refusal();
    bob.edit("World", "d['stamp'] = 1");
    assert_converged(&[&bob]);
}

#[test]
fn a_file_is_imported_once() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let name = save(&mut server, "to begin with");
    alice.leave();
    let file = server.data_dir.path().join("backups").join(name);
    let flags = ["--import", file.to_str().unwrap()];
    let mut other = Server::start_with(&flags).unwrap();
    let bob = other.join("Bob");
    assert!(bob.has("Object:Cube"));
    other.console("new");
    bob.await_exit();
    // As a service does whose unit has the flag, in the middle of the night.
    let other = other.stop().start(&flags);
    told(&other, "not imported");
    let port = other.ports.command;
    alice.connect(json!({"name": "Alice", "port": port, "admin_password": "admin"}));
    alice.await_lobby();
    alice.init(&["Torus"], 8);
    alice.await_active();
    assert!(!alice.has("Object:Cube"));
    other.assert_works(&[&alice]);
}
