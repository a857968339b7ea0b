//! The server ends and starts again: protocol section 3.9.

use std::time::{Duration, UNIX_EPOCH};

use blender_multiuser::admin::AdminCommand;
use blender_multiuser::wire::message::{COMMON, Outbound};
use blender_multiuser::wire::pickle::Value;

use super::client::{Client, State, fields};
use super::restarts::Stop;
use super::stories::{deletes, furnish, id, keep_log, staff, studio, updates_of};
use super::world::{COMMAND, DATA, TTL, World, settings};

const STOPS: [Stop; 2] = [Stop::Terminate, Stop::Kill];

#[test]
fn nobody_is_thrown_out_and_locks_stay() {
    for stop in STOPS {
        let (mut world, [alice, bob]) = studio(["alice", "bob"]);
        world.does(bob, |bob| bob.lock(&[id("cube")]));
        world.run(300);
        world.restart(stop, 800);
        // Unaware of it, both go on.
        world.does(bob, |bob| bob.append(&id("cube"), 1));
        world.does(alice, |alice| alice.append(&id("world"), 2));
        world.run(6_000);
        assert!(
            world[alice].is_active() && world[bob].is_active(),
            "{stop:?}"
        );
        assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob", "{stop:?}");
        world.does(bob, |bob| bob.append(&id("cube"), 3));
        world.run(1_000);
        world.assert_converged();
    }
}

#[test]
fn a_stop_in_order_tells_only_those_who_cannot_wait() {
    let mut settings = settings();
    settings.versions = ["0.9.10".into(), "0.9.12".into()].into();
    let mut world = World::with(1, settings);
    let [alice, bob] = staff(&mut world, ["alice", "bob"]);
    let tcp = world.arrive(Client::new("tcp", false).of_version("0.9.12"));
    world.until_active(&[tcp]);
    world.does(tcp, |tcp| tcp.lock(&[id("cube")]));
    world.run(300);
    let late = world.arrive(Client::new("late", false));
    world.stations[late.0].turns = (400, 400);
    world.until("the late one is joining", |world| {
        world[late].state == State::Syncing
    });
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    world.command(AdminCommand::Restart { at });
    world.run(1_000);
    let lines = world[bob].metadata_of("bob", "chat_messages").unwrap();
    assert!(lines.as_str().unwrap().contains("server restarting"));
    world.restart(Stop::Terminate, 500);
    world.run(6_000);
    assert!(world[tcp].ended.is_some());
    let told = world[late].ended.clone().unwrap_or_default();
    assert!(told.contains("restarts, please connect again"), "{told}");
    assert!(world[alice].is_active() && world[bob].is_active());
    assert_eq!(&*world[alice].graph[&id("cube")].owner, COMMON);
    world.assert_converged();
}

#[test]
fn after_a_stop_in_order_only_what_may_be_missing_is_sent() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..50 {
        world.does(alice, |alice| {
            alice.create(&format!("mesh{n}"), "Mesh", &[])
        });
    }
    // Longer than an edit counts as recent.
    world.run(13_000);
    for channel in [COMMAND, DATA, TTL] {
        world.cut(bob, channel, 0, 1_000);
    }
    world.run(100);
    world.does(alice, |alice| {
        alice.lock(&[id("mesh7")]);
        alice.append(&id("mesh8"), 1);
        alice.delete(&id("mesh9"));
    });
    world.run(200);
    keep_log(&mut world, &[bob]);
    world.restart(Stop::Terminate, 800);
    world.run(5_000);
    assert!(world[bob].is_active());
    let sent = |node: &str| updates_of(&world[bob], node);
    assert!(sent("mesh8") > 0);
    assert_eq!((0..7).map(|n| sent(&format!("mesh{n}"))).sum::<usize>(), 0);
    world.assert_converged();
}

#[test]
fn after_a_crash_everything_is_sent() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.run(13_000);
    keep_log(&mut world, &[bob]);
    world.restart(Stop::Kill, 500);
    world.run(5_000);
    assert!(updates_of(&world[bob], "cube-mesh") > 0);
    world.assert_converged();
}

/// Nodes in the order in which a client has got them.
fn order(client: &Client) -> Vec<String> {
    let ids = client.log.iter().filter_map(|message| match message {
        Outbound::Node(node) => Some(node.id.to_string()),
        Outbound::Commit(commit) => Some(commit.id.to_string()),
        _ => None,
    });
    ids.collect()
}

#[test]
fn after_a_crash_who_is_at_work_does_not_wait_for_the_whole_scene() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..60 {
        world.does(alice, |alice| {
            let mesh = alice.add(&format!("mesh{n:02}"), "Mesh", &[]);
            let data = fields(&mut alice.graph.get_mut(&mesh).unwrap().data);
            let bulk = Value::bytes(vec![n; 100_000]);
            data.insert(Value::str("bulk"), bulk).unwrap();
            alice.send_full(&mesh);
        });
        world.run(100);
    }
    world.run(13_000);
    world.does(alice, |alice| alice.append(&id("mesh41"), 1));
    world.run(200);
    keep_log(&mut world, &[bob]);
    // A thin line: 100 KB/s.
    world.stations[bob.0].line.kernel = 20_000;
    world.stations[bob.0].line.delay = (200, 200);
    world.restart(Stop::Kill, 300);
    world.until("the scene is on its way", |world| {
        !order(&world[bob]).is_empty()
    });
    world.does(alice, |alice| {
        alice.append(&id("mesh33"), 7);
        alice.lock(&[id("mesh57")]);
    });
    world.until("bob has seen the edit", |world| {
        updates_of(&world[bob], "mesh33") > 0
    });
    let sent = order(&world[bob]);
    assert_eq!(sent[0], "mesh41");
    assert!(sent.len() < 20, "{sent:?}");
    // Its Node may be news to him, and only then the Right is.
    world.until("bob has seen the lock", |world| {
        &*world[bob].graph[&id("mesh57")].owner == "alice"
    });
    let sent = order(&world[bob]);
    assert!(sent.len() < 40, "{sent:?}");
    world.run(60_000);
    world.assert_converged();
}

#[test]
fn what_was_deleted_before_a_crash_stays_deleted_at_who_is_far_behind() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.pause(bob, 20_000);
    for n in 0..400 {
        world.does(alice, |alice| alice.append(&id("world"), n));
        world.run(20);
    }
    world.does(alice, |alice| alice.create("late", "Mesh", &[]));
    world.run(6_000);
    world.does(alice, |alice| alice.delete(&id("late")));
    while world.scene().contains_key(&id("late")) {
        world.step();
    }
    world.restart(Stop::Kill, 500);
    world.run(40_000);
    assert!(world[bob].graph.contains_key(&id("late")), "no test");
    world.run(30_000);
    assert!(!world[bob].graph.contains_key(&id("late")));
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn what_a_slow_client_was_owed_is_not_forgotten() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    // Bob has read nothing for a minute, and what fits on the way to him is full.
    world.stations[bob.0].line.kernel = 2_000;
    world.stations[bob.0].line.high_water = 5;
    world.pause(bob, 62_000);
    for n in 0..60 {
        world.does(alice, |alice| {
            alice.append(&id("world"), n);
            alice.append(&id("cube-mesh"), n);
        });
        world.run(1_000);
    }
    world.restart(Stop::Terminate, 500);
    world.run(1_000);
    world.restart(Stop::Terminate, 200);
    world.run(10_000);
    assert!(world[bob].is_active(), "{:?}", world[bob].ended);
    world.assert_converged();
}

#[test]
fn a_delete_after_a_restart_does_not_overtake_what_was_sent_before_it() {
    for stop in STOPS {
        let (mut world, [alice, bob]) = studio(["alice", "bob"]);
        world.pause(bob, 6_000);
        for n in 0..40 {
            world.does(alice, |alice| alice.append(&id("cube"), n));
            world.run(50);
        }
        world.restart(stop, 300);
        world.run(1_500);
        world.does(alice, |alice| {
            alice.unlink(&id("collection"), &id("cube"));
            alice.delete(&id("cube"));
        });
        world.run(10_000);
        assert!(world[bob].is_active(), "{stop:?}: {:?}", world[bob].ended);
        assert!(!world[bob].graph.contains_key(&id("cube")));
        world.assert_converged();
    }
}

#[test]
fn what_looks_like_an_orphan_to_one_is_not_deleted_after_a_restart() {
    for stop in STOPS {
        let (mut world, [alice, bob]) = studio(["alice", "bob"]);
        world.run(6_000);
        world.does(alice, |alice| {
            let mesh = alice.create("torus-mesh", "Mesh", &[]);
            alice.create("torus", "Object", &[mesh]);
        });
        world.run(300);
        world.restart(stop, 500);
        world.stations[alice.0].wires[DATA].opens_at = Some(world.now + Duration::from_secs(2));
        // Bob's scene has changed, too, and what alice has not linked yet looks like orphans to him.
        world.does(alice, |alice| alice.link(&id("collection"), &id("torus")));
        world.does(bob, |bob| {
            bob.delete(&id("torus"));
            bob.delete(&id("torus-mesh"));
        });
        world.run(10_000);
        for who in [alice, bob] {
            assert!(world[who].is_active(), "{stop:?}");
            assert!(world[who].graph.contains_key(&id("torus")), "{stop:?}");
            assert!(world[who].graph.contains_key(&id("torus-mesh")), "{stop:?}");
        }
        world.assert_converged();
    }
}

#[test]
fn who_waits_for_a_lock_gets_it_after_the_restart() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    // The selection has changed, so the add-on asks, once.
    world.does(bob, |bob| {
        bob.send_right(vec![id("cube")], "bob".into());
    });
    world.run(300);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "alice");
    world.restart(Stop::Terminate, 500);
    world.run(3_000);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "alice");
    world.does(alice, |alice| alice.unlock(&[id("cube")]));
    world.run(500);
    for who in [alice, bob] {
        assert_eq!(&*world[who].graph[&id("cube")].owner, "bob");
    }
}

#[test]
fn locks_of_those_who_do_not_return_come_free_after_the_grace_time() {
    for stop in STOPS {
        let (mut world, [alice, bob]) = studio(["alice", "bob"]);
        world.does(bob, |bob| bob.lock(&[id("cube")]));
        world.run(300);
        world.restart(stop, 300);
        world.kill(bob, true);
        world.run(3_000);
        assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob", "{stop:?}");
        world.run(4_000);
        assert_eq!(&*world[alice].graph[&id("cube")].owner, COMMON, "{stop:?}");
        assert!(!world[alice].online.contains_key("bob"));
    }
}

#[test]
fn a_scene_that_is_being_sent_is_begun_anew() {
    for stop in STOPS {
        let mut world = World::new(7);
        let alice = world.admin("alice");
        world.does(alice, furnish);
        world.until("alice is in the lobby", |world| {
            world[alice].state == State::Lobby
        });
        world.does(alice, |alice| alice.init());
        world.restart(stop, 200);
        world.run(8_000);
        assert!(world[alice].ended.is_some(), "{stop:?}");
        let again = world.admin("alice");
        world.does(again, furnish);
        world.until("alice is in the lobby again", |world| {
            world[again].state == State::Lobby
        });
        world.does(again, |alice| alice.init());
        world.until_active(&[again]);
        world.assert_converged();
    }
}

#[test]
fn a_slow_client_that_is_out_hears_so_before_it_is_left_alone() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.pause(bob, 4_500);
    world.does(alice, |alice| alice.append(&id("world"), 1));
    world.run(1_000);
    world.command(AdminCommand::Kick {
        user: "bob".into(),
        reason: Some("lunch".into()),
    });
    // Long since its connections have been closed, and opened again.
    world.run(2_500);
    world.does(bob, |bob| bob.append(&id("cube"), 2));
    world.run(3_000);
    assert_eq!(world[bob].ended.as_deref(), Some("kicked: lunch"));
    assert!(world[alice].is_active());
    world.assert_converged();
}

#[test]
fn a_node_that_comes_after_its_delete_and_a_restart_stays_away() {
    for stop in STOPS {
        let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
        world.cut(bob, DATA, 0, 3_000);
        world.run(100);
        world.does(bob, |bob| {
            let brief = bob.create("brief", "Mesh", &[]);
            bob.delete(&brief);
        });
        world.run(500);
        world.restart(stop, 300);
        world.stations[bob.0].wires[DATA].opens_at = Some(world.now + Duration::from_secs(2));
        world.run(8_000);
        assert!(world[bob].is_active(), "{stop:?}");
        world.assert_converged();
    }
}

#[test]
fn a_heartbeat_that_is_back_late_after_a_restart_is_no_closed_port() {
    for stop in STOPS {
        let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
        world.restart(stop, 300);
        world.stations[bob.0].wires[TTL].opens_at = Some(world.now + Duration::from_millis(4_500));
        world.run(8_000);
        assert!(world[bob].is_active(), "{stop:?}: {:?}", world[bob].ended);
        world.assert_converged();
    }
}

#[test]
fn what_a_client_still_has_to_say_is_heard_before_its_nodes_are_sent_again() {
    for stop in STOPS {
        let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
        world.does(bob, |bob| {
            let mesh = bob.create("new-mesh", "Mesh", &[]);
            bob.create("new", "Object", &[mesh]);
        });
        world.run(100);
        world.restart(stop, 300);
        world.does(bob, |bob| bob.link(&id("collection"), &id("new")));
        // His data connection is the last one to come back, and he purges orphans all the time.
        world.stations[bob.0].wires[DATA].opens_at = Some(world.now + Duration::from_millis(900));
        for _ in 0..300 {
            world.does(bob, |bob| bob.purge());
            world.run(10);
        }
        world.run(5_000);
        world.assert_converged();
        assert!(world[bob].graph.contains_key(&id("new")), "{stop:?}");
    }
}

#[test]
fn reminders_of_deletions_do_not_hold_up_locks() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..1_000 {
        world.does(alice, |alice| {
            let brief = alice.create(&format!("brief{n}"), "Mesh", &[]);
            alice.delete(&brief);
        });
        world.run(50);
    }
    world.run(30_000);
    keep_log(&mut world, &[bob]);
    world.restart(Stop::Kill, 300);
    for (wait, owner) in [(5_000, "alice"), (45_000, COMMON), (120_000, "alice")] {
        world.run(wait);
        let began = world.now;
        world.does(alice, |alice| alice.right(&[id("cube")], owner.into()));
        world.until("bob has seen it", |world| {
            &*world[bob].graph[&id("cube")].owner == owner
        });
        assert!(world.now - began < Duration::from_secs(3));
    }
    assert!(deletes(&world[bob], "brief0") > 0 && deletes(&world[bob], "brief999") > 0);
}

#[test]
fn a_stop_right_after_a_crash_forgets_no_deletion() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for n in 0..60 {
        world.does(alice, |alice| {
            alice.create(&format!("mesh{n}"), "Mesh", &[])
        });
    }
    world.run(6_000);
    world.pause(bob, 3_000);
    for channel in [COMMAND, DATA, TTL] {
        world.cut(bob, channel, 0, 2_000);
    }
    world.does(alice, |alice| {
        for n in 0..60 {
            alice.delete(&id(&format!("mesh{n}")));
        }
    });
    world.run(1_500);
    world.restart(Stop::Kill, 500);
    world.run(2_500);
    world.restart(Stop::Terminate, 500);
    world.run(20_000);
    assert!(world[bob].is_active());
    assert_eq!(world[bob].graph.len(), world.scene().len());
    world.assert_converged();
}

#[test]
fn a_delete_that_waits_is_not_forgotten_over_another_restart() {
    let (mut world, [alice, bob, gone]) = studio(["alice", "bob", "gone"]);
    world.run(6_000);
    // Until he is given up, Deletes wait.
    world.lose(gone);
    world.restart(Stop::Terminate, 300);
    world.run(1_500);
    world.does(alice, |alice| {
        alice.unlink(&id("collection"), &id("cube"));
        alice.delete(&id("cube"));
    });
    world.run(1_000);
    assert!(world[alice].graph.contains_key(&id("cube")), "no test");
    world.restart(Stop::Terminate, 300);
    world.run(10_000);
    for who in [alice, bob] {
        assert!(!world[who].graph.contains_key(&id("cube")));
    }
    world.assert_converged();
}
