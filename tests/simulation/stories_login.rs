//! Stories of entering, leaving and coming back (docs/protocol.md, 3.1, 3.2, 3.9, 3.10).

use std::time::Duration;

use blender_multiuser::admin::AdminCommand;
use blender_multiuser::password::Secret;
use blender_multiuser::wire::message::{COMMON, Inbound, Outbound};

use super::client::{Client, State};
use super::network::Line;
use super::stories::{auths, furnish, id, keep_log, staff, studio};
use super::world::{COMMAND, DATA, TTL, Who, World, settings};

/// The answer to a login.
fn answer(world: &mut World, change: impl FnOnce(&mut Client)) -> String {
    let mut client = Client::new("carol", false);
    client.keep_log = true;
    change(&mut client);
    client.name = client.login.name.as_str().into();
    let who = world.arrive(client);
    world.until("an answer", |world| !auths(&world[who]).is_empty());
    let answers = auths(&world[who]).join(", ");
    world.quit(who);
    world.run(6_000);
    answers
}

fn guarded() -> World {
    let mut settings = settings();
    settings.server_password = Some(Secret::new("door"));
    World::with(1, settings)
}

#[test]
fn refusals_come_in_an_order_that_tells_strangers_nothing() {
    let mut world = guarded();
    let everything_wrong = |client: &mut Client| {
        client.login.server_password = "?".into();
        client.login.version = "0.1.2".into();
        client.login.wants_admin = true;
        client.login.admin_password = "?".into();
        client.login.name = "COMMON".into();
    };
    assert_eq!(
        answer(&mut world, everything_wrong),
        "FAILED: wrong server password"
    );
    let version = |client: &mut Client| {
        everything_wrong(client);
        client.login.server_password = "door".into();
    };
    assert_eq!(
        answer(&mut world, version),
        "FAILED: wrong client version (0.1.2 != 0.1.1-0.1.31, 0.7-0.10)"
    );
    let admin = |client: &mut Client| {
        version(client);
        client.login.version = "0.9.10".into();
    };
    assert_eq!(answer(&mut world, admin), "FAILED: wrong admin password");
    let name = |client: &mut Client| {
        admin(client);
        client.login.admin_password = "admin".into();
    };
    assert!(answer(&mut world, name).starts_with("FAILED: this user name is reserved"));
    let right = |client: &mut Client| {
        name(client);
        client.login.name = "carol".into();
    };
    assert_eq!(answer(&mut world, right), "LOBBY");
}

#[test]
fn an_open_server_takes_any_password_and_an_empty_admin_password_is_a_user() {
    let mut world = World::new(1);
    assert_eq!(
        answer(&mut world, |client| client.login.server_password =
            "any".into()),
        "LOBBY"
    );
    let empty_admin = |client: &mut Client| client.login.wants_admin = true;
    assert_eq!(answer(&mut world, empty_admin), "LOBBY");
}

#[test]
fn names_that_cannot_be() {
    let mut world = World::new(1);
    for name in [
        "",
        "COMMON",
        "server",
        "client",
        "guest",
        "a\nb",
        &"x".repeat(65),
    ] {
        let answer = answer(&mut world, |client| client.login.name = name.into());
        assert!(answer.starts_with("FAILED: "), "{name:?}: {answer}");
        assert!(answer.len() < 70);
    }
}

#[test]
fn a_hostile_version_cannot_fake_an_answer() {
    let mut world = World::new(1);
    let version = |client: &mut Client| client.login.version = "RUNNING\nLOBBY".repeat(50);
    let answer = answer(&mut world, version);
    assert!(
        answer.starts_with("FAILED") && !answer.contains("RUNNING") && !answer.contains("LOBBY")
    );
}

#[test]
fn other_versions_are_told_which_one_the_session_has() {
    let (mut world, _) = studio(["alice"]);
    let version = |client: &mut Client| client.login.version = "0.9.9".into();
    assert_eq!(
        answer(&mut world, version),
        "FAILED: wrong client version (0.9.9 != 0.9.10)"
    );
}

#[test]
fn anybody_may_ask_what_this_server_is() {
    for (mut world, private) in [(guarded(), true), (World::new(1), false)] {
        let guest = world.user("guest");
        world[guest].keep_log = true;
        world[guest].out = vec![(false, Inbound::ServerInfo)];
        world.run(200);
        assert!(matches!(
            &world[guest].log[..],
            [Outbound::ServerInfo { private: p, version }] if *p == private && version == "0.9.11"
        ));
    }
}

#[test]
fn the_table_comes_before_the_answer_and_holds_the_receiver() {
    let mut world = World::new(1);
    let mut client = Client::new("alice", false);
    client.keep_log = true;
    let alice = world.arrive(client);
    world.run(1_000);
    let log = &world[alice].log;
    assert!(matches!(&log[0], Outbound::ClientsState(table) if &*table[0].name == "alice"));
    assert!(matches!(&log[1], Outbound::Auth(answer) if answer == "LOBBY"));
}

#[test]
fn a_blocked_data_port_is_told_after_three_seconds() {
    let mut world = World::new(1);
    let alice = world.user("alice");
    world.stations[alice.0].wires[DATA].blocked = true;
    world.run(2_800);
    assert_eq!(world[alice].state, State::Auth);
    world.run(600);
    assert_eq!(
        world[alice].ended.as_deref(),
        Some("FAILED: port 5556 (data) unreachable")
    );
}

#[test]
fn a_blocked_ttl_port_is_told_after_four_seconds() {
    let mut world = World::new(1);
    let alice = world.user("alice");
    world.stations[alice.0].wires[TTL].blocked = true;
    world.run(3_800);
    assert_eq!(world[alice].state, State::Lobby);
    world.run(600);
    assert_eq!(
        world[alice].ended.as_deref(),
        Some("port 5557 (TTL) unreachable")
    );
}

#[test]
fn heartbeat_and_data_may_come_before_auth() {
    let mut world = World::new(1);
    let alice = world.user("alice");
    let soon = world.now + Duration::from_millis(500);
    world.stations[alice.0].wires[COMMAND].opens_at = Some(soon);
    world.run(9_000);
    assert_eq!(world[alice].state, State::Lobby);
}

#[test]
fn a_second_auth_is_ignored() {
    let (mut world, [alice]) = studio(["alice"]);
    keep_log(&mut world, &[alice]);
    let login = world[alice].login.clone();
    world.does(alice, |alice| alice.command(Inbound::Auth(login)));
    world.run(1_000);
    assert!(world[alice].is_active() && auths(&world[alice]).is_empty());
}

#[test]
fn a_name_is_not_given_twice() {
    let (mut world, [alice]) = studio(["alice"]);
    let second = world.user("alice");
    world.run(1_000);
    assert_eq!(
        world[second].ended.as_deref(),
        Some("FAILED: client already logged in")
    );
    assert!(world[alice].is_active());
}

#[test]
fn who_crashed_is_back_under_its_name_at_once_and_its_locks_are_free() {
    for ttl_lives in [false, true] {
        let (mut world, [alice, bob]) = studio(["alice", "bob"]);
        world.does(bob, |bob| bob.lock(&[id("cube")]));
        world.run(300);
        world.kill(bob, ttl_lives);
        world.run(200);
        let again = world.user("bob");
        world.until_active(&[again]);
        world.run(500);
        assert_eq!(&*world[alice].graph[&id("cube")].owner, COMMON);
        world.assert_converged();
    }
}

#[test]
fn a_vanished_machine_frees_its_name_after_two_pings() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.lose(bob);
    world.run(3_500);
    let again = world.user("bob");
    world.until_active(&[again]);
    world.run(500);
    world.assert_converged();
}

#[test]
fn a_taken_over_identity_is_told_when_it_comes_back() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    for channel in [COMMAND, DATA, TTL] {
        world.cut(bob, channel, 0, 3_000);
    }
    world.run(500);
    let second = world.user("bob");
    world.until_active(&[second]);
    world.run(4_000);
    assert_eq!(
        world[bob].ended.as_deref(),
        Some("you logged in again from elsewhere")
    );
    assert!(world[second].is_active());
    world.assert_converged();
}

#[test]
fn away_keeps_name_and_locks_for_the_grace_time_only() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(300);
    world.kill(bob, true);
    world.run(4_500);
    assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob");
    world.run(1_500);
    assert_eq!(&*world[alice].graph[&id("cube")].owner, COMMON);
    assert!(!world[alice].online.contains_key("bob"));
}

#[test]
fn a_connection_that_comes_back_is_resumed_and_both_sides_are_equal() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(5_000);
    keep_log(&mut world, &[bob]);
    for channel in [COMMAND, DATA, TTL] {
        world.cut(bob, channel, 700, 400 + 400 * channel as u64);
    }
    // Both go on working, unaware.
    world.does(bob, |bob| bob.append(&id("scene"), 1));
    world.does(alice, |alice| {
        alice.append(&id("scene"), 2);
        alice.create("new", "Mesh", &[]);
        alice.unlink(&id("collection"), &id("cube"));
        alice.delete(&id("cube"));
        alice.lock(&[id("world")]);
    });
    world.run(4_000);
    assert!(world[bob].is_active() && auths(&world[bob]).is_empty());
    assert!(world[bob].graph.contains_key(&id("new")));
    world.assert_converged();
}

#[test]
fn an_edit_lost_on_the_way_up_is_undone_at_its_author() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(300);
    world.does(bob, |bob| {
        bob.append(&id("cube"), 1);
        bob.append(&id("world"), 1);
    });
    // The line dies with them on it.
    world.cut(bob, DATA, 100, 300);
    world.run(3_000);
    world.assert_converged();
}

#[test]
fn the_heartbeat_is_pinged_unasked_after_a_break() {
    let (mut world, [alice]) = studio(["alice"]);
    world.cut(alice, TTL, 0, 2_000);
    world.run(20_000);
    assert!(world[alice].is_active());
}

#[test]
fn silence_of_the_heartbeat_is_leaving() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.stations[bob.0].ttl_answers = false;
    world.run(7_500);
    assert!(
        world[bob]
            .ended
            .as_deref()
            .unwrap()
            .starts_with("no heartbeat")
    );
    assert!(!world[alice].online.contains_key("bob"));
}

#[test]
fn who_renders_for_minutes_is_alive() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.pause(bob, 180_000);
    for x in 0..60 {
        world.does(alice, |alice| alice.append(&id("scene"), x));
        world.run(3_000);
    }
    world.run(5_000);
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn only_admins_kick() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    world.does(bob, |bob| {
        bob.command(Inbound::Kick {
            user: "carol".into(),
        })
    });
    world.run(500);
    assert!(world[carol].is_active());
    world.does(alice, |alice| {
        alice.command(Inbound::Kick {
            user: "carol".into(),
        })
    });
    world.run(500);
    assert_eq!(world[carol].ended.as_deref(), Some("kicked by admin"));
    assert!(!world[bob].online.contains_key("carol"));
    // The same identity never comes back.
    assert!(world.status().users.iter().all(|user| user.name != "carol"));
}

#[test]
fn the_operator_kicks_with_a_reason_and_everybody_is_told_at_the_end() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.command(AdminCommand::Kick {
        user: "bob".into(),
        reason: Some("lunch".into()),
    });
    world.run(500);
    assert_eq!(world[bob].ended.as_deref(), Some("kicked: lunch"));
    world.command(AdminCommand::Exit {
        reason: "maintenance".into(),
    });
    world.run(500);
    assert_eq!(world[alice].ended.as_deref(), Some("maintenance"));
}

#[test]
fn an_initialiser_that_dies_half_way_leaves_the_lobby_open() {
    let mut world = World::new(1);
    let (alice, bob) = (world.admin("alice"), world.admin("bob"));
    for who in [alice, bob] {
        world.does(who, furnish);
    }
    world.until("both wait", |w| {
        [alice, bob].iter().all(|who| w[*who].state == State::Lobby)
    });
    world.does(alice, |alice| {
        alice.init();
        let node = alice.full(&id("cube"));
        alice.command(Inbound::InitNode(node));
    });
    world.run(20);
    world.kill(alice, false);
    world.run(200);
    // The name and the right to initialise are hers for the grace time, unless she logs in anew.
    world.does(bob, |bob| bob.init());
    world.run(500);
    assert_eq!(world[bob].state, State::Lobby, "rejected");
    world.run(6_000);
    world.does(bob, |bob| bob.init());
    world.until_active(&[bob]);
    world.run(1_000);
    world.assert_converged();
}

#[test]
fn whoever_comes_second_is_rejected_and_joins_without_its_own_scene() {
    let mut world = World::new(1);
    let (alice, bob) = (world.admin("alice"), world.admin("bob"));
    world.does(alice, furnish);
    world.does(bob, |bob| {
        bob.add("bobs-own", "Mesh", &[]);
        bob.add("cube", "Object", &[]);
    });
    world.until("both wait", |w| {
        [alice, bob].iter().all(|who| w[*who].state == State::Lobby)
    });
    world.does(alice, |alice| alice.init());
    world.pause(alice, 500);
    world.run(50);
    world[bob].keep_log = true;
    world.does(bob, |bob| bob.init());
    world.until_active(&[alice, bob]);
    assert!(
        world[bob]
            .log
            .iter()
            .any(|m| matches!(m, Outbound::InitRejected))
    );
    world.run(1_000);
    assert!(!world[bob].graph.contains_key(&id("bobs-own")));
    world.assert_converged();
}

#[test]
fn a_user_who_is_no_admin_cannot_initialise() {
    let mut world = World::new(1);
    let bob = world.user("bob");
    world[bob].keep_log = true;
    world.does(bob, furnish);
    world.until("in the lobby", |w| w[bob].state == State::Lobby);
    world.does(bob, |bob| bob.init());
    world.run(500);
    assert_eq!(world[bob].state, State::Lobby);
    assert!(
        world[bob]
            .log
            .iter()
            .any(|m| matches!(m, Outbound::InitRejected))
    );
}

#[test]
fn a_scene_with_nodes_missing_is_asked_for_again() {
    let mut world = World::new(1);
    let alice = world.admin("alice");
    world.does(alice, furnish);
    world.until("in the lobby", |w| w[alice].state == State::Lobby);
    world.does(alice, |alice| {
        alice.init();
        alice.command(Inbound::InitEnd);
    });
    world.until_active(&[alice]);
    world.run(1_000);
    world.assert_converged();
}

#[test]
fn waiting_in_the_lobby_ends_with_the_scene() {
    let mut world = World::new(1);
    let early: [Who; 2] = [world.user("early"), world.user("bird")];
    world.run(500);
    let [alice] = staff(&mut world, ["alice"]);
    world.until_active(&early);
    world.run(1_000);
    assert!(world[alice].is_active());
    world.assert_converged();
}

#[test]
fn joining_under_edits_gives_the_exact_scene() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let mut joiners = Vec::new();
    for x in 0..60 {
        world.does(alice, |alice| alice.append(&id("scene"), x));
        world.does(bob, |bob| {
            let new = bob.create(&format!("m{x}"), "Mesh", &[]);
            if x % 3 == 0 {
                bob.delete(&new);
            }
        });
        if x % 6 == 0 {
            joiners.push(world.user(&format!("joiner{x}")));
        }
        world.run(30);
    }
    world.until_active(&joiners);
    world.run(5_000);
    world.assert_converged();
}

#[test]
fn an_empty_scene_is_joined_through_a_removed_node() {
    let (mut world, [alice]) = studio(["alice"]);
    for node in ["cube", "cube-mesh", "collection", "world", "scene"] {
        world.does(alice, |alice| alice.delete(&id(node)));
    }
    world.run(500);
    let bob = world.user("bob");
    world.until_active(&[bob]);
    assert!(world[bob].graph.is_empty());
}

#[test]
fn versions_that_cannot_join_an_empty_scene_wait_for_its_first_node() {
    let mut world = World::new(1);
    let old = |name: &str, admin| {
        let mut client = Client::new(name, admin);
        client.login.version = "0.9.5".into();
        client
    };
    let alice = world.arrive(old("alice", true));
    world.does(alice, |alice| {
        alice.add("only", "Scene", &[]);
    });
    world.until("in the lobby", |w| w[alice].state == State::Lobby);
    world.does(alice, |alice| alice.init());
    world.until_active(&[alice]);
    world.does(alice, |alice| alice.delete(&id("only")));
    world.run(500);
    let bob = world.arrive(old("bob", false));
    world.run(2_000);
    assert_eq!(world[bob].state, State::Lobby);
    world.does(alice, |alice| {
        alice.create("first", "Scene", &[]);
    });
    world.until_active(&[bob]);
    world.run(500);
    world.assert_converged();
}

#[test]
fn a_join_over_a_long_line_takes_a_handful_of_round_trips() {
    let mut world = World::new(1);
    let alice = world.admin("alice");
    world.does(alice, |alice| {
        for n in 0..300 {
            alice.add(&format!("n{n}"), "Mesh", &[]);
        }
    });
    world.until("in the lobby", |w| w[alice].state == State::Lobby);
    world.stations[alice.0].turns = (5, 5);
    world.does(alice, |alice| alice.init());
    world.until_active(&[alice]);
    let bob = world.user("bob");
    world.stations[bob.0].line.delay = (150, 150);
    world.stations[bob.0].turns = (5, 5);
    let begun = world.now;
    world.until_active(&[bob]);
    // 300 nodes take 300 turns of 5 ms; one round trip each would be 90 s.
    assert!(
        world.now - begun < Duration::from_secs(4),
        "{:?}",
        world.now - begun
    );
}

#[test]
fn a_join_whose_connection_breaks_finishes() {
    for after in [5u64, 15, 30, 60, 90, 120, 150, 180, 220, 260, 300, 400] {
        for back in [30, 500, 1500] {
            let (mut world, [_alice]) = studio(["alice"]);
            let bob = world.user("bob");
            world.until("logged in", |w| w[bob].state != State::Auth);
            world.run(after);
            world.cut(bob, COMMAND, 50, back);
            world.run(15_000);
            assert!(
                world[bob].is_active(),
                "cut {after} ms after login, back after {back} ms"
            );
            world.assert_converged();
        }
    }
}

#[test]
fn who_stands_still_when_its_join_breaks_is_not_sent_another_scene() {
    for after in (5..120).step_by(5) {
        for pause in [1_000, 4_000, 8_000, 30_000] {
            let (mut world, [_alice]) = studio(["alice"]);
            let bob = world.user("bob");
            world.until("joining", |w| w[bob].state == State::Syncing);
            world.run(after);
            // Everything is in his queue, and nobody is told so.
            world.cut(bob, COMMAND, 50, 500);
            world.pause(bob, pause);
            world.run(pause + 60_000);
            assert!(
                world[bob].is_active(),
                "cut after {after} ms, still for {pause} ms: {:?}",
                world[bob].ended
            );
            world.assert_converged();
        }
    }
}

#[test]
fn who_has_joined_without_our_knowledge_is_not_sent_another_scene() {
    let (mut world, [_alice]) = studio(["alice"]);
    let line = Line {
        delay: (300, 300),
        ..Line::default()
    };
    let bob = world.arrive_over(Client::new("bob", false), line);
    world.until_active(&[bob]);
    // Nothing that he has said while he handled it has arrived.
    world.cut(bob, COMMAND, 50, 500);
    world.run(60_000);
    assert!(world[bob].is_active(), "{:?}", world[bob].ended);
    world.assert_converged();
}

#[test]
fn wrong_passwords_are_slowed_down() {
    let mut world = guarded();
    for _ in 0..8 {
        let who = world.user("eve");
        // All from one address.
        world.until("an answer", |w| w[who].state == State::Gone);
    }
    let honest = |client: &mut Client| client.login.server_password = "door".into();
    assert_eq!(answer(&mut world, honest), "LOBBY");
}
