//! What the stories have in common.

use blender_multiuser::wire::message::{NodeId, Outbound};

use super::client::{Client, State};
use super::world::{Who, World};

pub fn id(name: &str) -> NodeId {
    NodeId::from(name)
}

/// What every story's scene holds.
pub fn furnish(client: &mut Client) {
    let mesh = client.add("cube-mesh", "Mesh", &[]);
    let cube = client.add("cube", "Object", &[mesh]);
    let collection = client.add("collection", "Collection", &[cube]);
    let world = client.add("world", "World", &[]);
    client.add("scene", "Scene", &[collection, world]);
}

/// The first one, an admin, has initialised the session, the others have joined.
pub fn studio<const N: usize>(names: [&str; N]) -> (World, [Who; N]) {
    let mut world = World::new(N as u64);
    let who = staff(&mut world, names);
    (world, who)
}

pub fn staff<const N: usize>(world: &mut World, names: [&str; N]) -> [Who; N] {
    world.trace = std::env::var("TRACE").is_ok();
    let mut first = None;
    let who = names.map(|name| {
        let who = match first {
            None => {
                let admin = world.admin(name);
                world.does(admin, furnish);
                world.until("the first one is in the lobby", |w| {
                    w[admin].state == State::Lobby
                });
                world.does(admin, |admin| admin.init());
                first = Some(admin);
                admin
            }
            Some(_) => world.user(name),
        };
        world.until_active(&[who]);
        who
    });
    world.run(2_500);
    who
}

pub fn keep_log(world: &mut World, who: &[Who]) {
    for who in who {
        world[*who].keep_log = true;
        world[*who].log.clear();
    }
}

pub fn updates_of(client: &Client, node: &str) -> usize {
    let about = |message: &&Outbound| match message {
        Outbound::Node(own) => own.id == id(node),
        Outbound::Commit(own) => own.id == id(node),
        _ => false,
    };
    client.log.iter().filter(about).count()
}

pub fn deletes(client: &Client, node: &str) -> usize {
    let about = |message: &&Outbound| matches!(message, Outbound::Delete(own) if *own == id(node));
    client.log.iter().filter(about).count()
}

/// The answers to Auth that a client has had.
pub fn auths(client: &Client) -> Vec<&str> {
    client
        .log
        .iter()
        .filter_map(|message| match message {
            Outbound::Auth(answer) => Some(answer.as_str()),
            _ => None,
        })
        .collect()
}
