//! Stories of locks (docs/protocol.md, 3.7).

use blender_multiuser::wire::message::{COMMON, Inbound, Outbound};

use super::stories::{id, keep_log, studio};
use super::world::DATA;

#[test]
fn a_right_before_its_node_is_kept() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.stations[alice.0].wires[DATA].cut(world.now, std::time::Duration::ZERO, None);
    world.does(alice, |alice| {
        alice.create("new-mesh", "Mesh", &[]);
        alice.lock(&[id("new-mesh")]);
    });
    world.run(1_000);
    world.stations[alice.0].wires[DATA].opens_at = Some(world.now);
    world.run(1_000);
    assert_eq!(&*world[bob].graph[&id("new-mesh")].owner, "alice");
    world.assert_converged();
}

#[test]
fn what_is_locked_only_its_owner_changes() {
    let (mut world, [_admin, alice, mallory]) = studio(["admin", "alice", "mallory"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    assert_eq!(&*world[mallory].graph[&id("cube")].owner, "alice");
    // Mallory edits, deletes, steals, gives away and sends it in full.
    world.does(mallory, |mallory| {
        mallory.append(&id("cube"), 666);
        mallory.delete(&id("cube"));
        let cube = vec![id("cube")];
        for owner in ["mallory", "admin", "nobody", COMMON] {
            mallory.command(Inbound::Right {
                nodes: cube.clone(),
                owner: owner.into(),
            });
        }
        mallory.send_full(&id("cube"));
    });
    world.run(3_000);
    let scene = world.scene();
    assert_eq!(&*scene[&id("cube")].owner, "alice");
    assert_eq!(
        scene[&id("cube")]
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
fn a_refused_take_is_remembered_and_granted() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    keep_log(&mut world, &[bob]);
    world.stations[bob.0].line.delay = (20, 30);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    // Bob selects it too before he hears of it.
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(500);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "alice");
    assert!(world[bob].log.iter().any(
        |message| matches!(message, Outbound::Right { owner, nodes } if &**owner == "alice" && nodes.contains(&id("cube")))
    ));
    world.does(alice, |alice| alice.unlock(&[id("cube")]));
    world.run(500);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "bob");
    assert_eq!(&*world[alice].graph[&id("cube")].owner, "bob");
    world.assert_converged();
}

#[test]
fn an_admin_who_unlocks_twice_takes_nothing_from_whoever_waited() {
    let (mut world, [admin, bob]) = studio(["admin", "bob"]);
    world.does(admin, |admin| admin.lock(&[id("cube")]));
    world.run(300);
    world.does(bob, |bob| {
        bob.send_right(vec![id("cube")], "bob".into());
    });
    world.run(300);
    // The add-on does so when nothing is selected any more.
    world.does(admin, |admin| {
        admin.unlock(&[id("cube")]);
        admin.unlock(&[id("cube")]);
    });
    world.run(500);
    for who in [admin, bob] {
        assert_eq!(&*world[who].graph[&id("cube")].owner, "bob");
    }
    // Later it is on purpose.
    world.does(admin, |admin| {
        admin.send_right(vec![id("cube")], "COMMON".into());
    });
    world.run(500);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "COMMON");
}

#[test]
fn who_has_deselected_is_not_given_it_later() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(300);
    let cube = vec![id("cube"), id("cube-mesh")];
    world.does(bob, |bob| {
        bob.command(Inbound::Right {
            nodes: cube,
            owner: COMMON.into(),
        });
    });
    world.run(300);
    assert_eq!(
        &*world[alice].graph[&id("cube")].owner,
        "alice",
        "an unlock by others does nothing"
    );
    world.does(alice, |alice| alice.unlock(&[id("cube")]));
    world.run(300);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, COMMON);
    world.assert_converged();
}

#[test]
fn an_unlock_by_somebody_else_is_silent() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    keep_log(&mut world, &[alice, bob]);
    world.does(bob, |bob| {
        bob.command(Inbound::Right {
            nodes: vec![id("cube")],
            owner: COMMON.into(),
        });
    });
    world.run(500);
    for who in [alice, bob] {
        assert!(
            !world[who]
                .log
                .iter()
                .any(|m| matches!(m, Outbound::Right { .. }))
        );
    }
}

#[test]
fn an_admin_may_override() {
    let (mut world, [admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    world.does(admin, |admin| {
        admin.command(Inbound::Right {
            nodes: vec![id("cube")],
            owner: "bob".into(),
        });
    });
    world.run(300);
    for who in [admin, alice, bob] {
        assert_eq!(&*world[who].graph[&id("cube")].owner, "bob");
    }
    world.assert_converged();
}

#[test]
fn an_edit_that_crosses_its_own_unlock_counts() {
    let (mut world, [_admin, alice, bob]) = studio(["admin", "alice", "bob"]);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    world.does(alice, |alice| alice.unlock(&[id("cube")]));
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(100);
    world.does(alice, |alice| alice.append(&id("cube"), 1));
    world.run(2_000);
    let log = world.scene()[&id("cube")].data.get("log").unwrap().clone();
    assert_eq!(log.as_list().unwrap().len(), 1);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, "bob");
    world.assert_converged();
}

#[test]
fn a_new_nodes_owner_is_its_sender_or_nobody() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    for owner in ["bob", "nobody", "alice"] {
        world.does(alice, |alice| {
            let new = alice.add(&format!("of-{owner}"), "Mesh", &[]);
            alice.graph.get_mut(&new).unwrap().owner = owner.into();
            alice.send_full(&new);
        });
    }
    world.run(500);
    let owner = |name: &str| world[bob].graph[&id(name)].owner.to_string();
    assert_eq!(
        (owner("of-bob"), owner("of-nobody"), owner("of-alice")),
        (COMMON.into(), COMMON.into(), "alice".into())
    );
    world.assert_converged();
}

#[test]
fn locks_of_the_last_user_to_leave_are_freed() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| bob.lock(&[id("cube")]));
    world.run(300);
    world.quit(alice);
    world.quit(bob);
    world.run(7_000);
    let carol = world.user("carol");
    world.until_active(&[carol]);
    world.run(500);
    assert_eq!(&*world[carol].graph[&id("cube")].owner, COMMON);
    world.assert_converged();
}

#[test]
fn an_edit_that_was_lost_is_undone_also_where_somebody_has_locked_the_node_since() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(bob, |bob| bob.append(&id("world"), 1));
    world.cut(bob, DATA, 50, 500);
    world.does(alice, |alice| alice.lock(&[id("world")]));
    world.run(2_000);
    world.does(alice, |alice| alice.unlock(&[id("world")]));
    world.run(3_000);
    world.assert_converged();
}
