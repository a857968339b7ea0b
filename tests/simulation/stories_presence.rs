//! Stories of client states, metadata, chat and tasks (docs/protocol.md, 3.8 and 3.12).

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use blender_multiuser::wire::message::{Inbound, Outbound};
use blender_multiuser::wire::pickle::Value;

use super::client::{Client, State};
use super::stories::{keep_log, studio};
use super::user::first_push;
use super::world::World;

fn metadata_about<'a>(client: &'a Client, user: &'a str) -> impl Iterator<Item = &'a Outbound> {
    client
        .log
        .iter()
        .filter(move |m| matches!(m, Outbound::Metadata { owner, .. } if &**owner == user))
}

fn line(id: &str) -> String {
    format!(
        r#"{{"id": "{id}", "username": "x", "message": "hello {id}", "msg_type": "text", "metadata": {{}}, "timestamp": 1}}"#
    )
}

#[test]
fn the_first_push_is_answered_at_once() {
    let mut world = World::new(1);
    let mut client = Client::new("alice", true);
    client.shows_presence = false;
    let alice = world.arrive(client);
    world.run(500);
    keep_log(&mut world, &[alice]);
    world.does(alice, |alice| {
        alice.command(Inbound::Metadata(first_push()))
    });
    world.run(60);
    assert!(world[alice].metadata_of("alice", "color").is_some());
}

#[test]
fn a_colour_waits_for_scene_and_mode() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let mut client = Client::new("carol", false);
    client.shows_presence = false;
    let carol = world.arrive(client);
    world.until_active(&[carol]);
    world.does(carol, |carol| carol.push("color", Value::Int(1)));
    world.run(300);
    assert!(world[bob].metadata_of("carol", "color").is_none());
    world.does(carol, |carol| {
        carol.command(Inbound::Metadata(first_push()))
    });
    world.run(300);
    assert!(world[bob].metadata_of("carol", "color").is_some());
    assert!(world[alice].is_active());
    world.assert_converged();
}

#[test]
fn metadata_is_its_senders_whoever_it_names_and_never_comes_before_the_table() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..10 {
        let carol = world.user(&format!("carol{n}"));
        world.run(100);
        world.does(carol, |carol| carol.push("frame_current", Value::Int(n)));
        world.does(bob, |bob| bob.push("frame_current", Value::Int(n)));
        world.run(30);
        world.quit(carol);
    }
    world.run(2_000);
    assert!(world[alice].is_active() && world[bob].is_active());
    world.assert_converged();
}

#[test]
fn twenty_pushes_a_second_become_few_messages_with_the_latest_value() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    world.pause(carol, 3_000);
    keep_log(&mut world, &[bob, carol]);
    for x in 0..100 {
        world.does(alice, |alice| alice.push("view_matrix", Value::Int(x)));
        world.run(10);
    }
    world.run(4_000);
    let got = metadata_about(&world[bob], "alice").count();
    assert!((5..60).contains(&got), "{got} messages");
    for who in [bob, carol] {
        assert_eq!(
            world[who].metadata_of("alice", "view_matrix"),
            Some(&Value::Int(99))
        );
    }
}

#[test]
fn only_what_changed_is_passed_on() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    keep_log(&mut world, &[bob]);
    world.does(alice, |alice| alice.move_view(5));
    world.run(300);
    let messages: Vec<_> = metadata_about(&world[bob], "alice").collect();
    assert!(
        matches!(&messages[..], [Outbound::Metadata { data, .. }] if data.len() == 1 && &*data[0].0 == "view_corners")
    );
}

#[test]
fn a_stale_table_does_not_bring_the_old_frame_back() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| alice.push("frame_current", Value::Int(40)));
    // Her own table still says 1 when her view moves, and both arrive.
    world.does(alice, |alice| alice.move_view(1));
    world.run(500);
    assert_eq!(
        world[bob].metadata_of("alice", "frame_current"),
        Some(&Value::Int(40))
    );
    // And she has been told, so that later pushes carry the true one.
    assert_eq!(
        world[alice].metadata_of("alice", "frame_current"),
        Some(&Value::Int(40))
    );
    world.does(alice, |alice| alice.push("frame_current", Value::Int(1)));
    world.run(300);
    assert_eq!(
        world[bob].metadata_of("alice", "frame_current"),
        Some(&Value::Int(1))
    );
}

#[test]
fn a_late_joiner_sees_the_chat_of_a_user_who_left() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| {
        bob.push("chat_messages", Value::str(format!("[{}]", line("m1"))))
    });
    world.run(300);
    world.quit(bob);
    world.run(7_000);
    let carol = world.user("carol");
    world.until_active(&[carol]);
    world.run(300);
    let seen = world[carol]
        .online
        .values()
        .flat_map(|entry| entry.metadata.clone())
        .filter(|(key, _)| &**key == "chat_messages")
        .any(|(_, value)| value.as_str().is_some_and(|text| text.contains("hello m1")));
    assert!(seen);
}

#[test]
fn lines_of_the_server_of_one_moment_are_all_read() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let said = ["the disk is full", "nothing is kept", "the disk is well"];
    for text in said {
        world.session.announce(at, text);
    }
    world.run(300);
    let pushed = world[bob].metadata_of("bob", "chat_messages").unwrap();
    let lines: serde_json::Value = serde_json::from_str(pushed.as_str().unwrap()).unwrap();
    // As the add-on keeps them: by id.
    let read: BTreeMap<&str, &str> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (
                line["id"].as_str().unwrap(),
                line["message"].as_str().unwrap(),
            )
        })
        .collect();
    let read: Vec<&str> = read.into_values().collect();
    assert_eq!(read, said);
}

#[test]
fn chat_that_is_no_chat_harms_nobody() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for junk in [
        Value::str("[1, {}, null"),
        Value::Int(3),
        Value::str("{\"a\": 1}"),
        Value::None,
    ] {
        world.does(bob, |bob| {
            bob.push("chat_messages", junk.clone());
            bob.push("tasks", junk);
        });
        world.run(100);
    }
    assert!(world[alice].is_active() && world[bob].is_active());
}

#[test]
fn nothing_is_sent_while_nothing_happens() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(3_000);
    keep_log(&mut world, &[alice, bob]);
    world.run(10_000);
    assert!(world[alice].log.len() <= 3, "{:?}", world[alice].log.len());
}

#[test]
fn a_join_is_seen_by_the_others() {
    let (world, [alice, bob]) = studio(["alice", "bob"]);
    assert_eq!(world[alice].online["bob"].status, 2);
    assert!(world[bob].online["alice"].admin && !world[alice].online["bob"].admin);
    assert!(world[alice].online["bob"].latency < 999);
}

#[test]
fn how_far_somebody_has_joined_is_told_in_percent_of_the_bytes() {
    let mut world = World::new(1);
    let alice = world.admin("alice");
    world.does(alice, |alice| {
        for i in 0..200 {
            alice.add(&format!("object-{i}"), "Object", &[]);
        }
    });
    world.until("the lobby", |w| w[alice].state == State::Lobby);
    world.does(alice, |alice| alice.init());
    world.until_active(&[alice]);
    let bob = world.user("bob");
    let mut told: Vec<u32> = Vec::new();
    while !world[bob].is_active() {
        world.step();
        let users = world.status().users;
        let state = users
            .iter()
            .find_map(|user| user.state.strip_prefix("joining "));
        if let Some((percent, nodes)) = state.and_then(|state| state.split_once(" % (")) {
            assert!(nodes.ends_with("/200)"), "{nodes}");
            told.push(percent.parse().unwrap());
        }
    }
    assert!(told.is_sorted(), "{told:?}");
    assert!(told[0] < 10 && told[told.len() - 1] > 90, "{told:?}");
    told.dedup();
    assert!(told.len() > 10, "{told:?}");
}
