//! Another scene takes the place of the running one.

use blender_multiuser::wire::message::COMMON;

use super::client::Client;
use super::stories::{id, studio};

#[test]
fn who_has_another_scene_is_told_to_connect_again() {
    let (mut world, [alice, bob]) = studio(["alice", "bob"]);
    world.run(6_000);
    world.does(alice, |alice| alice.lock(&[id("cube")]));
    world.run(300);
    let saved = world.session.state().scene.unwrap();
    world.does(bob, |bob| bob.append(&id("world"), 1));
    world.does(alice, |alice| alice.delete(&id("cube")));
    world.run(1_000);
    // What is under way is about the scene of before.
    world.does(bob, |bob| bob.append(&id("world"), 2));
    let now = world.now;
    let told = world.session.replace_scene(now, saved.clone(), "restored");
    assert_eq!(told, Ok(2));
    world.run(3_000);
    for who in [alice, bob] {
        let reason = world[who].ended.clone().unwrap_or_default();
        assert!(reason.contains("connect again"), "{reason}");
    }
    let late = world.arrive(Client::new("alice", false));
    world.until_active(&[late]);
    world.run(1_000);
    assert_eq!(&*world[late].graph[&id("cube")].owner, COMMON);
    let restored = world.session.state().scene.unwrap();
    assert_eq!(restored.nodes.len(), saved.nodes.len());
    world.assert_converged();
}
