//! Stories of peers that go to the limits.

use std::time::Duration;

use blender_multiuser::net::{ConnId, Peer};
use blender_multiuser::password::Secret;
use blender_multiuser::session::{Effect, Event, SOFT_LIMIT, Session};
use blender_multiuser::wire::message::{Inbound, Login, Outbound};
use blender_multiuser::wire::pickle::Value;
use blender_multiuser::wire::{Channel, Dialect};

use super::client::Client;
use super::stories::{id, studio};
use super::user::first_push;
use super::world::{COMMAND, DATA, World, settings};

/// The weight of the largest table that a newcomer is sent.
fn largest_table(client: &Client) -> usize {
    client
        .log
        .iter()
        .filter(|message| matches!(message, Outbound::ClientsState(_)))
        .map(|message| {
            blender_multiuser::wire::message::Outgoing::new(message.clone()).weight(Dialect::Dealer)
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn who_has_unlocked_a_node_does_not_delete_it_under_the_next_ones_hands() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.run(6_000);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    world.does(alice, |alice| alice.unlock(&[id("cube")]));
    world.run(300);
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(300);
    assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob");
    // On the connection on which she unlocked it: nothing crosses here.
    world.does(alice, |alice| alice.command(Inbound::Delete(id("cube"))));
    world.run(300);
    assert!(
        world[bob].graph.contains_key(&id("cube")),
        "bob's locked node is gone"
    );
}

#[test]
fn who_has_lost_its_data_connection_for_good_is_told() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    let now = world.now;
    world.stations[alice.0].wires[DATA].cut(now, Duration::ZERO, None);
    world.stride = Duration::from_millis(50);
    world.run(16 * 60 * 1000);
    assert!(!world[alice].is_active(), "alice sits there without data");
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "COMMON");
}

#[test]
fn one_users_metadata_does_not_swamp_everybodys_table() {
    let (mut world, [_admin, alice]) = studio(["admin", "alice"]);
    world.does(alice, |alice| {
        alice.command(Inbound::Metadata(first_push()))
    });
    world.run(300);
    for key in 0..60 {
        world.does(alice, |alice| {
            alice.push(&format!("key{key}"), Value::str("x".repeat(200_000)))
        });
        world.run(50);
    }
    let mut client = Client::new("carol", false);
    client.keep_log = true;
    let carol = world.arrive(client);
    world.run(3_000);
    let weight = largest_table(&world[carol]);
    assert!(
        weight < 2 << 20,
        "a table of {weight} bytes before the answer to Auth"
    );
}

#[test]
fn tasks_left_behind_do_not_grow_without_bound() {
    let (mut world, [_admin, _alice]) = studio(["admin", "alice"]);
    for n in 0..30 {
        let mallory = world.user(&format!("mallory{n}"));
        world.until_active(&[mallory]);
        let task = format!(r#"{{"t{n}": {{"title": "{}"}}}}"#, "x".repeat(200_000));
        world.does(mallory, |mallory| mallory.push("tasks", Value::str(task)));
        world.run(100);
        world.quit(mallory);
        world.run(5_500);
    }
    let mut client = Client::new("carol", false);
    client.keep_log = true;
    let carol = world.arrive(client);
    world.run(3_000);
    let weight = largest_table(&world[carol]);
    assert!(weight < 2 << 20, "a table of {weight} bytes, for ever");
}

#[test]
fn presence_does_not_pile_up_before_what_matters() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.stations[bob.0].line.kernel = 20_000;
    world.stations[bob.0].line.high_water = 2;
    world.pause(bob, 120_000);
    for x in 0..100 {
        // A whole table each: somebody comes and goes, or a ping changes.
        let matrix = Value::list((0..1000).map(|n| Value::Int(n + x * 1000)));
        world.does(alice, |alice| alice.push("view_matrix", matrix));
        world.run(100);
    }
    let waiting = world.stations[bob.0].wires[COMMAND].unwritten();
    assert!(
        waiting < 256 * 1024,
        "{waiting} bytes of stale presence wait in front of every Delete"
    );
}

#[test]
fn passwords_cannot_be_tried_faster_by_not_waiting_for_the_answer() {
    let mut settings = settings();
    settings.server_password = Some(Secret::new("door"));
    let mut world = World::with(1, settings);
    let session: &mut Session = &mut world.session;
    let start = world.now;
    let mut conn = 0;
    let mut let_in = None;
    for guess in 0..1_000u64 {
        // A millisecond each; the identity is a new one each time.
        let now = start + Duration::from_millis(guess);
        let mut open = |session: &mut Session, channel| {
            conn += 1;
            let peer = Peer {
                identity: guess.to_le_bytes().to_vec().into(),
                address: "192.0.2.1:1".parse().unwrap(),
                channel,
                dialect: Dialect::Dealer,
            };
            session.handle(now, ConnId(conn), Event::Opened(peer));
            ConnId(conn)
        };
        let data = open(session, Channel::Data);
        let command = open(session, Channel::Command);
        let password = if guess == 999 {
            "door".into()
        } else {
            format!("{guess}")
        };
        let login = Login {
            dialect: Dialect::Dealer,
            one_password: false,
            wants_admin: false,
            name: "mallory".into(),
            server_password: password,
            admin_password: String::new(),
            version: "0.9.10".into(),
        };
        session.handle(now, command, Event::Message(Inbound::Auth(login)));
        while let Some(effect) = session.poll_effect() {
            if let Effect::Send(_, message) = effect
                && let Outbound::Auth(text) = message.message()
                && text == "LOBBY"
            {
                let_in = Some(guess);
            }
        }
        // Does not wait for a late refusal.
        session.handle(now, command, Event::Closed(String::new()));
        session.handle(now, data, Event::Closed(String::new()));
    }
    assert_eq!(
        let_in, None,
        "a thousand guesses in a second, and the right one is told at once"
    );
}

#[test]
fn who_asks_to_initialise_again_and_again_fills_no_memory() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..500 {
        let name = format!("a-mesh-with-a-long-name-{n}");
        world.does(alice, |alice| alice.create(&name, "Mesh", &[]));
    }
    world.run(30_000);
    world.stations[bob.0].line.kernel = 2_000;
    world.stations[bob.0].line.high_water = 5;
    world.pause(bob, 10_000);
    world.does(bob, |bob| {
        for _ in 0..1_000 {
            bob.command(Inbound::InitStart(vec![id("cube")]));
        }
    });
    world.run(2_000);
    assert!(world.peak < 2 * SOFT_LIMIT, "{} bytes wait", world.peak);
}
