//! Stories of clients that do not speak the dealer dialect (docs/protocol.md, sections 6 and 8).

use super::client::{Client, State};
use super::restarts::Stop;
use super::stories::{furnish, id};
use super::world::{COMMAND, DATA, PUBLISH, TTL, Who, World, settings};

/// A studio whose members have these versions; the first one has initialised it.
fn studio<const N: usize>(members: [(&str, &str); N]) -> (World, [Who; N]) {
    let mut settings = settings();
    settings.versions = members
        .iter()
        .map(|(_, version)| (*version).into())
        .collect();
    let mut world = World::with(N as u64, settings);
    world.trace = std::env::var("TRACE").is_ok();
    let mut first = true;
    let who = members.map(|(name, version)| {
        let who = world.arrive(Client::new(name, first).of_version(version));
        if std::mem::take(&mut first) {
            world.does(who, furnish);
            world.until("the lobby", |w| w[who].state == State::Lobby);
            world.does(who, |admin| admin.init());
        }
        world.until_active(&[who]);
        who
    });
    world.run(2_500);
    (world, who)
}

const FOUR_SOCKET: [(&str, &str); 2] = [("alice", "0.1.13"), ("bob", "0.1.13")];

/// Two and a third who does not come back from a crash: until he is given up, Deletes wait.
fn studio_after_a_crash() -> (World, [Who; 2]) {
    let (mut world, [alice, bob, gone]) =
        studio([FOUR_SOCKET[0], FOUR_SOCKET[1], ("gone", "0.1.13")]);
    world.run(6_000);
    world.lose(gone);
    world.restart(Stop::Kill, 300);
    world.run(1_500);
    assert!(world[alice].is_active() && world[bob].is_active());
    (world, [alice, bob])
}

#[test]
fn a_publication_that_is_lost_is_made_good() {
    // Whether the server notices the break before the publisher is back, or only afterwards.
    for noticed in [10, 2_000] {
        let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
        world.does(alice, |alice| alice.append(&id("cube"), 1));
        world.run(300);
        world.does(alice, |alice| alice.append(&id("cube"), 2));
        world.cut(alice, PUBLISH, noticed, 500);
        world.run(4_000);
        assert!(world[alice].is_active() && world[bob].is_active());
        world.assert_converged();
    }
}

#[test]
fn a_scene_that_is_lost_on_its_way_is_asked_for_again() {
    let mut world = World::new(1);
    let alice = world.arrive(Client::new("alice", true).of_version("0.1.13"));
    world.does(alice, furnish);
    world.until("the lobby", |w| w[alice].state == State::Lobby);
    world.does(alice, |alice| alice.init());
    world.until("the scene is on its way", |w| {
        !w.stations[alice.0].wires[PUBLISH].up.is_empty()
    });
    world.cut(alice, PUBLISH, 50, 300);
    world.until_active(&[alice]);
    world.assert_converged();
}

#[test]
fn a_header_without_its_chunk_stops_nobody() {
    let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
    world.does(alice, |alice| alice.append(&id("cube"), 1));
    world.until("the node is on its way", |w| {
        !w.stations[bob.0].wires[DATA].down.is_empty()
    });
    world.cut(bob, DATA, 50 * 2, 300);
    let wire = &world.stations[bob.0].wires[DATA];
    assert!(wire.received.iter().any(Option::is_none));
    world.run(3_000);
    world.assert_converged();
}

#[test]
fn a_tcp_client_without_one_of_its_connections_has_left() {
    for channel in [COMMAND, DATA, TTL] {
        let (mut world, [alice, bob]) = studio([("alice", "0.9.10"), ("bob", "0.9.12")]);
        world.does(bob, |bob| bob.lock(&[id("cube")]));
        world.run(300);
        assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob");
        world.cut(bob, channel, 100, 0);
        world.run(1_000);
        assert_eq!(&*world[alice].graph[&id("cube")].owner, "COMMON");
        assert_eq!(world[bob].state, State::Gone);
        world.assert_converged();
    }
}

#[test]
fn dealer_and_tcp_clients_edit_together() {
    let (mut world, [alice, bob]) = studio([("alice", "0.9.12"), ("bob", "0.9.10")]);
    for x in 0..20 {
        world.does(alice, |alice| alice.append(&id("collection"), x));
        world.does(bob, |bob| bob.append(&id("collection"), 100 + x));
        world.run(30);
    }
    world.run(3_000);
    world.assert_converged();
}

#[test]
fn a_right_that_is_lost_after_it_was_carried_out_is_made_good() {
    let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    world.does(alice, |alice| {
        alice.unlock(&[id("cube")]);
        alice.lock(&[id("world")]);
    });
    world.cut(alice, COMMAND, 50, 300);
    world.run(2_000);
    assert!(world[alice].is_active() && world[bob].is_active());
    world.assert_converged();
}

#[test]
fn a_delete_that_is_lost_after_it_was_carried_out_is_made_good() {
    let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
    world.does(alice, |alice| alice.delete(&id("cube")));
    assert!(!world[alice].graph.contains_key(&id("cube")));
    world.cut(alice, COMMAND, 50, 300);
    world.run(2_000);
    assert!(world[alice].is_active() && world[bob].is_active());
    assert!(world[bob].graph.contains_key(&id("cube")));
    world.assert_converged();
}

#[test]
fn a_lock_does_not_overtake_the_node_that_undoes_a_delete() {
    let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
    world.does(alice, |alice| alice.create("mesh", "Mesh", &[]));
    world.run(1_000);
    world.pause(bob, 2_000);
    for x in 0..30 {
        world.does(alice, |alice| alice.append(&id("world"), x));
        world.run(20);
    }
    // It is too young to be deleted by anybody but alice, and bob has carried that out already.
    world.does(bob, |bob| bob.delete(&id("mesh")));
    world.run(200);
    world.does(alice, |alice| alice.lock(&[id("mesh")]));
    world.run(6_000);
    assert_eq!(&*world[bob].graph[&id("mesh")].owner, "alice");
    world.assert_converged();
}

#[test]
fn who_deletes_what_it_is_about_to_be_told_of_is_told_again() {
    let (mut world, [alice, bob]) = studio(FOUR_SOCKET);
    world.pause(alice, 7_000);
    world.does(bob, |bob| {
        let mesh = bob.create("mesh", "Mesh", &[]);
        bob.create("object", "Object", &[mesh]);
    });
    world.until("alice has the mesh", |w| {
        w[alice].graph.contains_key(&id("mesh"))
    });
    assert!(!world[alice].graph.contains_key(&id("object")));
    world.does(alice, |alice| alice.delete(&id("mesh")));
    world.run(6_000);
    assert!(!world[bob].graph.contains_key(&id("mesh")));
    world.assert_converged();
}

#[test]
fn who_has_deleted_something_after_a_crash_reads_of_nothing_that_names_it() {
    let (mut world, [alice, bob]) = studio_after_a_crash();
    // Her Delete is there before the collection without it, and bob knows of neither.
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(200);
    world.does(bob, |bob| bob.append(&id("collection"), 1));
    world.run(10_000);
    assert!(world[alice].is_active() && world[bob].is_active());
    assert!(world[alice].graph.contains_key(&id("cube")));
    world.assert_converged();
}

#[test]
fn whoever_has_deleted_what_is_in_use_after_a_crash_gets_it_back() {
    let (mut world, [alice, bob]) = studio_after_a_crash();
    for who in [alice, bob] {
        world.does(who, |client| client.delete(&id("cube-mesh")));
    }
    world.run(10_000);
    for who in [alice, bob] {
        assert!(world[who].graph.contains_key(&id("cube-mesh")));
    }
    world.assert_converged();
}
