//! What a large studio costs the session: thirty users, ten thousand nodes.

use std::time::{Duration, Instant};

use blender_multiuser::wire::message::{Inbound, NodeId};

use super::client::State;
use super::stories::id;
use super::world::World;

/// Prints times; asserts nothing, since machines differ. `cargo test --release --test simulation -- --ignored --nocapture studio`
#[test]
#[ignore = "prints figures"]
fn figures_of_a_large_studio() {
    let mut world = World::new(1);
    let alice = world.admin("alice");
    world.does(alice, |alice| {
        let mut objects = Vec::new();
        for n in 0..5_000 {
            let mesh = alice.add(&format!("{n:08x}-mesh"), "Mesh", &[]);
            objects.push(alice.add(&format!("{n:08x}-object"), "Object", &[mesh]));
        }
        for (n, chunk) in objects.chunks(100).enumerate() {
            alice.add(&format!("collection{n}"), "Collection", chunk);
        }
    });
    world.until("in the lobby", |w| w[alice].state == State::Lobby);
    world.stations[alice.0].turns = (5, 5);
    world.does(alice, |alice| alice.init());
    world.until_active(&[alice]);
    let mut users = vec![alice];
    for n in 0..29 {
        users.push(world.user(&format!("user{n}")));
    }
    for who in &users {
        world.stations[who.0].turns = (5, 5);
    }
    let limit = world.now + Duration::from_secs(300);
    while !users.iter().all(|who| world[*who].is_active()) {
        assert!(world.now < limit);
        world.step();
    }
    world.run(3_000);
    let time =
        |what: &str, count: u32, world: &mut World, action: &mut dyn FnMut(&mut World, u32)| {
            let mut spent = Duration::ZERO;
            for n in 0..count {
                let begun = Instant::now();
                action(world, n);
                spent += begun.elapsed();
                while world.session.poll_effect().is_some() {}
            }
            eprintln!("{what}: {:?}", spent / count);
        };
    time(
        "tick when nothing happens",
        100,
        &mut world,
        &mut |world, _| {
            let now = world.now;
            world.session.tick(now);
        },
    );
    let conn = world.stations[alice.0].wires[0].conn.unwrap();
    let data = world.stations[alice.0].wires[1].conn.unwrap();
    use blender_multiuser::session::Event;
    time("commit", 200, &mut world, &mut |world, n| {
        let now = world.now;
        let node = id(&format!("{n:08x}-object"));
        let held = &world[alice].graph[&node];
        let raw = super::delta::raw(&held.data, &super::delta::Change::Append(1));
        let commit = super::delta::commit(&node, held.dependencies.clone(), raw);
        world
            .session
            .handle(now, data, Event::Message(Inbound::Commit(commit)));
    });
    time("delete", 200, &mut world, &mut |world, n| {
        let now = world.now;
        let node = NodeId::from(&*format!("{:08x}-object", n + 1000));
        world
            .session
            .handle(now, conn, Event::Message(Inbound::Delete(node)));
    });
    time("metadata", 200, &mut world, &mut |world, n| {
        let now = world.now;
        let push = vec![(
            "view_matrix".into(),
            blender_multiuser::wire::pickle::Value::Int(n.into()),
        )];
        world
            .session
            .handle(now, conn, Event::Message(Inbound::Metadata(push)));
    });
    time(
        "lock and unlock 100 nodes",
        50,
        &mut world,
        &mut |world, n| {
            let now = world.now;
            let nodes: Vec<NodeId> = (0..100)
                .map(|k| id(&format!("{:08x}-object", 2000 + k)))
                .collect();
            let owner = if n % 2 == 0 { "alice" } else { "COMMON" };
            world.session.handle(
                now,
                conn,
                Event::Message(Inbound::Right {
                    nodes,
                    owner: owner.into(),
                }),
            );
        },
    );
    time("tick afterwards", 100, &mut world, &mut |world, _| {
        world.now += Duration::from_millis(50);
        let now = world.now;
        world.session.tick(now);
    });
}
