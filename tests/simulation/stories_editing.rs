//! Stories of editing and deleting (docs/protocol.md, 3.5, 3.6, 3.11).

use std::time::Duration;

use blender_multiuser::wire::message::{Inbound, NodeId, Outbound};
use blender_multiuser::wire::pickle::Value;

use super::client::{Client, State, fields};
use super::delta::{self, Change};
use super::network::Line;
use super::stories::{deletes, id, keep_log, studio, updates_of};
use super::world::{DATA, World};

#[test]
fn an_edit_reaches_everybody_but_its_author() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    keep_log(&mut world, &[alice, bob]);
    world.does(alice, |alice| alice.append(&id("cube"), 1));
    world.run(300);
    assert_eq!(updates_of(&world[bob], "cube"), 1);
    assert_eq!(updates_of(&world[alice], "cube"), 0);
    world.assert_converged();
}

#[test]
fn crossing_edits_heal_once_quiet_and_heal_again() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| alice.append(&id("scene"), 1));
    world.does(bob, |bob| bob.append(&id("scene"), 2));
    world.run(300);
    assert!(!world.differences(alice).is_empty() || !world.differences(bob).is_empty());
    world.run(700);
    world.assert_converged();
    // A commit that crosses the heal itself is healed again.
    world.does(alice, |alice| alice.append(&id("scene"), 3));
    world.does(bob, |bob| bob.append(&id("scene"), 4));
    world.run(395);
    world.does(bob, |bob| bob.append(&id("scene"), 5));
    world.run(10);
    world.does(alice, |alice| alice.append(&id("scene"), 6));
    world.run(2_500);
    world.assert_converged();
}

#[test]
fn edits_of_one_author_are_not_healed() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    keep_log(&mut world, &[alice]);
    for x in 0..20 {
        world.does(alice, |alice| alice.append(&id("scene"), x));
        world.run(40);
    }
    world.run(2_000);
    assert_eq!(updates_of(&world[alice], "scene"), 0);
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn a_commit_on_which_deepdiff_raises_is_not_relayed() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    // Bob's copy still has the tags when he adds one; the server's has lost them.
    world.does(alice, |alice| {
        alice.change(&id("world"), &Change::Remove("tags".into()))
    });
    let line = Line {
        delay: (100, 100),
        ..Line::default()
    };
    world.stations[bob.0].line = line;
    world.does(bob, |bob| {
        let raw = delta::raw(&bob.graph[&id("world")].data, &Change::Tag(7));
        let commit = delta::commit(&id("world"), vec![], raw);
        bob.out.push((true, Inbound::Commit(commit)));
    });
    world.run(3_000);
    assert!(world[carol].is_active());
    world.assert_converged();
}

#[test]
fn a_commit_that_the_server_cannot_fold_reaches_everybody_and_late_joiners() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| {
        alice.change(&id("scene"), &Change::AppendUnsupported(1))
    });
    world.does(alice, |alice| alice.append(&id("scene"), 2));
    world.run(300);
    let carol = world.user("carol");
    world.until_active(&[carol]);
    world.run(500);
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn a_commit_of_an_unknown_node_is_answered_with_its_delete() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    keep_log(&mut world, &[alice, bob]);
    world.does(alice, |alice| {
        alice.add("lost", "Mesh", &[]);
        alice.append(&id("lost"), 1);
    });
    world.run(500);
    assert!(!world[alice].graph.contains_key(&id("lost")));
    assert_eq!(updates_of(&world[bob], "lost"), 0);
    assert_eq!(deletes(&world[bob], "lost"), 0);
    world.assert_converged();
}

#[test]
fn a_commit_that_crosses_a_delete_harms_nobody() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    world.run(6_000);
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.does(bob, |bob| bob.append(&id("cube"), 1));
    world.run(1_000);
    for who in [alice, bob, carol] {
        assert!(world[who].is_active());
        assert!(!world[who].graph.contains_key(&id("cube")));
    }
    world.assert_converged();
}

#[test]
fn a_full_node_that_crosses_its_delete_does_not_bring_it_back() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    world.pause(bob, 5_000);
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(4_000);
    world.does(bob, |bob| bob.send_full(&id("cube")));
    world.run(3_000);
    assert!(!world[bob].graph.contains_key(&id("cube")));
    assert!(!world[alice].graph.contains_key(&id("cube")));
    world.assert_converged();
}

#[test]
fn a_dependency_that_has_gone_is_not_named() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    world.run(6_000);
    world.does(alice, |alice| alice.delete(&id("cube-mesh")));
    world.does(bob, |bob| bob.append(&id("cube"), 1));
    world.run(1_500);
    world.does(carol, |carol| carol.lock(&[id("cube")]));
    world.run(500);
    assert!(world[carol].is_active());
    world.assert_converged();
}

/// Adds an object to a collection as the add-on does.
fn put_in(client: &mut Client, collection: &NodeId, object: &str) {
    let object = client.create(object, "Object", &[]);
    let held = client.graph.get_mut(collection).unwrap();
    held.dependencies.push(object.clone());
    client.change(collection, &Change::Child(object));
}

#[test]
fn what_two_have_linked_at_once_is_depended_on() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    let collection = id("collection");
    world.does(alice, |alice| put_in(alice, &collection, "hers"));
    world.does(bob, |bob| put_in(bob, &collection, "his"));
    // Neither of the two could name both. Who loads the collection before them does so without them.
    world.run(200);
    for object in ["hers", "his"] {
        assert!(
            world[carol].graph[&collection]
                .dependencies
                .contains(&id(object))
        );
    }
    world.run(1_500);
    // Who takes one out after that is believed.
    world.does(alice, |alice| alice.unlink(&collection, &id("his")));
    world.run(1_000);
    assert_eq!(
        world[carol].graph[&collection].dependencies,
        [id("cube"), id("hers")]
    );
    world.assert_converged();
}

#[test]
fn parents_come_again_with_a_dependency_that_appears_late() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| {
        alice.add("late-mesh", "Mesh", &[]);
        alice.create("early-object", "Object", &[id("late-mesh")]);
    });
    world.run(300);
    assert_eq!(world[bob].graph[&id("early-object")].dependencies, []);
    world.does(alice, |alice| alice.send_full(&id("late-mesh")));
    world.run(1_000);
    assert_eq!(
        world[bob].graph[&id("early-object")].dependencies,
        [id("late-mesh")]
    );
    world.assert_converged();
}

#[test]
fn a_purge_of_somebodys_newborn_is_not_echoed() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let mesh = world.does(alice, |alice| alice.create("new-mesh", "Mesh", &[]));
    world.run(200);
    world.does(bob, |bob| bob.purge());
    world.run(300);
    for who in [alice, bob] {
        assert!(world[who].graph.contains_key(&mesh));
    }
    // It is an orphan for good: later the purge holds.
    world.run(5_000);
    world.does(bob, |bob| bob.purge());
    world.run(300);
    assert!(!world[alice].graph.contains_key(&mesh));
    world.assert_converged();
}

#[test]
fn its_creator_may_not_delete_a_newborn_before_it_has_read_what_names_it() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let collection = id("collection");
    world.pause(alice, 6_000);
    world.does(bob, |bob| bob.append(&collection, 1));
    world.run(100);
    world.does(alice, |alice| put_in(alice, &collection, "hers"));
    // Nothing is healed any more, but her Blender has read none of it: there it may be an orphan.
    world.run(3_500);
    world.does(alice, |alice| alice.delete(&id("hers")));
    world.run(500);
    assert!(world[bob].graph.contains_key(&id("hers")));
    world.run(5_000);
    world.does(alice, |alice| {
        alice.unlink(&collection, &id("hers"));
        alice.delete(&id("hers"));
    });
    world.run(1_000);
    assert!(!world[bob].graph.contains_key(&id("hers")));
    world.assert_converged();
}

#[test]
fn its_creator_may_delete_a_newborn() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let mesh = world.does(alice, |alice| alice.create("new-mesh", "Mesh", &[]));
    world.run(200);
    world.does(alice, |alice| alice.delete(&mesh));
    world.run(300);
    assert!(!world[bob].graph.contains_key(&mesh));
    world.assert_converged();
}

#[test]
fn a_delete_that_overtakes_its_own_node_wins() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.stations[alice.0].line = Line {
        delay: (0, 0),
        ..Line::default()
    };
    let node = world.does(alice, |alice| {
        let id = alice.add("brief", "Mesh", &[]);
        alice.delete(&id);
        alice.full(&id)
    });
    world.run(20);
    world.does(alice, |alice| alice.out.push((true, Inbound::Node(node))));
    world.run(500);
    assert!(!world[bob].graph.contains_key(&id("brief")));
    world.assert_converged();
}

#[test]
fn a_delete_does_not_overtake_commits_in_a_rendering_clients_queue() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    keep_log(&mut world, &[bob]);
    world.pause(bob, 4_000);
    for x in 0..30 {
        world.does(alice, |alice| alice.append(&id("cube"), x));
        world.run(20);
    }
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(200);
    assert!(
        !world[alice].graph.contains_key(&id("cube")),
        "its sender gets it at once"
    );
    world.run(8_000);
    assert!(world[bob].is_active());
    let no_ops = world[bob]
        .log
        .iter()
        .filter(|message| matches!(message, Outbound::Right { nodes, .. } if nodes.is_empty()))
        .count();
    assert!(no_ops > 0, "nothing held the Delete back");
    world.assert_converged();
}

#[test]
fn only_users_are_heard() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    // Each of these comes from a stranger that never logs in.
    let node = world[alice].full(&id("cube"));
    let commit = delta::commit(
        &id("cube"),
        vec![],
        delta::raw(&world[alice].graph[&id("cube")].data, &Change::Append(1)),
    );
    let messages = [
        (false, Inbound::Kick { user: "bob".into() }),
        (false, Inbound::Delete(id("cube"))),
        (
            false,
            Inbound::Right {
                nodes: vec![id("cube")],
                owner: "bob".into(),
            },
        ),
        (true, Inbound::Node(node.clone())),
        (true, Inbound::Commit(commit)),
        (false, Inbound::InitStart(vec![id("cube")])),
        (false, Inbound::InitNode(node)),
        (false, Inbound::InitEnd),
        (false, Inbound::JoinGet(id("cube"))),
        (false, Inbound::JoinDone),
        (false, Inbound::Metadata(vec![("x".into(), Value::Int(1))])),
    ];
    for message in messages {
        let stranger = world.user("stranger");
        world[stranger].out.clear();
        world[stranger].out.push(message);
        world.flush(stranger.0);
        world.run(300);
        assert_ne!(world[stranger].state, State::Active);
    }
    assert!(world[bob].is_active() && world[alice].is_active());
    assert_eq!(
        world.scene()[&id("cube")]
            .data
            .get("log")
            .unwrap()
            .as_list()
            .unwrap()
            .len(),
        0
    );
    world.assert_converged();
}

#[test]
fn commands_that_make_no_sense_harm_nobody() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    let node = world[alice].full(&id("cube"));
    for message in [
        Inbound::InitNode(node),
        Inbound::InitEnd,
        Inbound::JoinStart,
        Inbound::JoinGet(id("nothing")),
        Inbound::JoinDone,
        Inbound::Kick {
            user: "nobody".into(),
        },
        Inbound::Delete(id("nothing")),
        Inbound::Right {
            nodes: vec![],
            owner: "nobody".into(),
        },
        Inbound::Metadata(vec![]),
    ] {
        world.does(bob, |bob| bob.command(message));
    }
    world.run(1_000);
    assert!(world[alice].is_active());
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn clients_with_another_deepdiff_get_full_nodes() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    keep_log(&mut world, &[alice, bob]);
    world.does(alice, |alice| {
        alice.change(&id("scene"), &Change::SetV5("k9".into(), Value::Int(1)))
    });
    world.run(1_000);
    let got_full = |client: &Client| {
        client
            .log
            .iter()
            .any(|m| matches!(m, Outbound::Node(node) if node.id == id("scene")))
    };
    assert!(
        got_full(&world[bob]),
        "what bob's deepdiff would skip without a word"
    );
    assert!(world[bob].graph[&id("scene")].data.get("k9").is_some());
    world.assert_converged();
}

#[test]
fn a_large_fold_that_comes_late_keeps_the_order() {
    let (mut world, [alice, bob, carol]) = studio(["alice", "bob", "carol"]);
    world.fold_delay = (200, 200);
    world.does(alice, |alice| {
        let big = Value::bytes(vec![1u8; 400_000]);
        alice.change(&id("cube-mesh"), &Change::Set("vertices".into(), big));
    });
    for x in 0..5 {
        world.does(alice, |alice| alice.append(&id("cube-mesh"), x));
        world.run(30);
    }
    let dave = world.user("dave");
    world.does(bob, |bob| bob.append(&id("cube-mesh"), 9));
    world.run(4_000);
    assert!(world[carol].is_active() && world[dave].is_active());
    world.assert_converged();
}

#[test]
fn deleting_while_a_fold_is_under_way_harms_nobody() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.fold_delay = (500, 500);
    let big = world.does(alice, |alice| {
        let id = alice.add("big", "Mesh", &[]);
        let held = alice.graph.get_mut(&id).unwrap();
        let bytes = Value::bytes(vec![1u8; 300_000]);
        fields(&mut held.data)
            .insert(Value::str("v"), bytes)
            .unwrap();
        alice.send_full(&id);
        id
    });
    world.run(200);
    world.does(alice, |alice| {
        alice.append(&big, 1);
        alice.delete(&big);
    });
    world.run(2_000);
    assert!(!world[bob].graph.contains_key(&big));
    let nodes: Vec<NodeId> = world.scene().into_keys().collect();
    assert!(!nodes.contains(&big));
    world.assert_converged();
}

#[test]
fn who_does_not_read_ends_up_with_exactly_the_current_scene() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.stations[bob.0].line = Line {
        kernel: 20_000,
        high_water: 50,
        ..Line::default()
    };
    world.pause(bob, 60_000);
    let big = Value::bytes(vec![1u8; 100_000]);
    for x in 0..400 {
        world.does(alice, |alice| {
            let held = alice.graph.get_mut(&id("cube-mesh")).unwrap();
            let data = fields(&mut held.data);
            data.insert(Value::str("v"), big.clone()).unwrap();
            data.insert(Value::str("n"), Value::Int(x)).unwrap();
            alice.send_full(&id("cube-mesh"));
            alice.append(&id("scene"), x);
        });
        world.run(50);
    }
    // 40 MB were sent by alice; what waits for bob is bounded.
    assert!(world.peak < 5 * 1024 * 1024, "{} bytes waited", world.peak);
    world.run(60_000);
    assert!(world[bob].is_active());
    assert!(world[bob].updates_handled < 400);
    world.assert_converged();
}

#[test]
fn a_node_does_not_overtake_its_dependency_that_waits_for_room() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.stations[bob.0].line = Line {
        kernel: 20_000,
        high_water: 5,
        ..Line::default()
    };
    world.pause(bob, 4_000);
    for n in 0..60 {
        world.does(alice, |alice| {
            let filler = alice.add(&format!("filler{n}"), "Mesh", &[]);
            let data = &mut alice.graph.get_mut(&filler).unwrap().data;
            let bytes = Value::bytes(vec![1u8; 100_000]);
            fields(data).insert(Value::str("v"), bytes).unwrap();
            alice.send_full(&filler);
        });
        world.run(10);
    }
    let mesh = world.does(alice, |alice| alice.create("mesh", "Mesh", &[]));
    world.run(3_000);
    // There is room again, but not yet for what had to wait.
    let waiting = |world: &World| world.stations[bob.0].wires[DATA].unwritten();
    let limit = blender_multiuser::session::SOFT_LIMIT;
    while waiting(&world) > limit * 3 / 4 {
        world.step();
    }
    assert!(waiting(&world) > limit / 2);
    world.does(alice, |alice| alice.create("object", "Object", &[mesh]));
    world.run(10_000);
    assert!(world[bob].graph.contains_key(&id("object")));
    world.assert_converged();
}

#[test]
fn edits_that_were_long_under_way_prove_no_turns_of_a_rendering_client() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for x in 0..15 {
        world[bob].append(&id("world"), x);
    }
    let edits = std::mem::take(&mut world[bob].out);
    world.pause(bob, 20_000);
    for n in 0..10 {
        let name = format!("mesh{n}");
        world.does(alice, |alice| alice.create(&name, "Mesh", &[]));
    }
    world.run(2_000);
    // A slow line up: what he sent before he began to render arrives one after the other.
    let now = world.now;
    for (n, (_, edit)) in (1..).zip(edits) {
        let at = now + Duration::from_millis(300) * n;
        world.stations[bob.0].wires[DATA].up.push_back((at, edit));
    }
    world.run(6_000);
    world.does(alice, |alice| alice.delete(&id("mesh9")));
    world.run(30_000);
    assert!(!world[bob].graph.contains_key(&id("mesh9")));
    world.assert_converged();
}

#[test]
fn a_new_node_that_was_lost_with_its_line_is_registered_anew_once_it_is_named() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| {
        let mesh = bob.create("new-mesh", "Mesh", &[]);
        bob.create("new", "Object", &[mesh]);
    });
    world.cut(bob, DATA, 50, 300);
    world.run(1_000);
    world.does(bob, |bob| bob.link(&id("collection"), &id("new")));
    world.run(8_000);
    // He would have gone on with a node that nobody else has; without it the add-on registers its datablock under another uuid.
    assert!(!world[bob].graph.contains_key(&id("new")));
    world.does(bob, |bob| {
        bob.create("again", "Object", &[id("new-mesh")]);
        bob.link(&id("collection"), &id("again"));
    });
    world.run(8_000);
    world.lost_births.clear();
    world.assert_converged();
}

#[test]
fn nodes_that_name_each_other_are_not_taken_for_lost() {
    let (mut world, [_alice, bob]) = studio(["alice", "bob"]);
    world.cut(bob, DATA, 50, 300);
    world.run(1_000);
    world.does(bob, |bob| {
        bob.add("one", "Object", &[]);
        bob.add("other", "Object", &[id("one")]);
        bob.graph.get_mut(&id("one")).unwrap().dependencies = vec![id("other")];
        bob.send_full(&id("one"));
    });
    world.run(2_000);
    world.does(bob, |bob| bob.send_full(&id("other")));
    world.run(8_000);
    assert!(world[bob].graph.contains_key(&id("other")));
    world.assert_converged();
}
