//! Another scene takes the place of the running one.

use blender_multiuser::wire::message::COMMON;

use super::stories::{id, studio};
use super::world::COMMAND;

#[test]
fn a_restored_node_outlives_the_delete_that_somebody_has_not_read() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    let saved = world.session.state().scene.unwrap();
    world.pause(bob, 10_000);
    for x in 0..20 {
        world.does(alice, |alice| alice.push("frame_current", x.into()));
        world.run(100);
    }
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(1_000);
    assert!(!world[alice].graph.contains_key(&id("cube")));
    let now = world.now;
    world.session.replace_scene(now, saved, "restored").unwrap();
    world.run(20_000);
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn a_delete_lost_before_a_restore_does_not_keep_the_node_from_being_sent() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.does(alice, |alice| alice.append(&id("cube"), 1));
    world.run(6_000);
    let saved = world.session.state().scene.unwrap();
    world.does(alice, |alice| alice.append(&id("cube"), 2));
    world.run(1_000);
    world.cut(bob, COMMAND, 500, 2_000);
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(1_000);
    let now = world.now;
    world.session.replace_scene(now, saved, "restored").unwrap();
    world.run(8_000);
    assert!(world[bob].is_active());
    world.assert_converged();
}

#[test]
fn a_lock_of_the_day_before_yesterday_is_not_restored() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    world.does(alice, |alice| alice.lock(&[id("cube"), id("world")]));
    world.run(300);
    let saved = world.session.state().scene.unwrap();
    world.does(alice, |alice| alice.unlock(&[id("cube"), id("cube-mesh")]));
    world.run(300);
    world.does(bob, |bob| bob.delete(&id("cube")));
    world.run(300);
    let now = world.now;
    world.session.replace_scene(now, saved, "restored").unwrap();
    world.run(8_000);
    assert_eq!(&*world[bob].graph[&id("cube")].owner, COMMON);
    assert_eq!(&*world[bob].graph[&id("world")].owner, "alice");
    world.assert_converged();
}

#[test]
fn edits_that_cross_a_restore_end_alike_everywhere() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    let saved = world.session.state().scene.unwrap();
    for x in 0..40 {
        if x == 20 {
            let now = world.now;
            let saved = saved.clone();
            world.session.replace_scene(now, saved, "restored").unwrap();
        }
        world.does(alice, |alice| alice.append(&id("world"), x));
        world.does(bob, |bob| bob.append(&id("cube-mesh"), x));
        world.run(17);
    }
    world.run(10_000);
    world.assert_converged();
}
