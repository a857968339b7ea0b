//! Random studios: clients that edit, lock, delete, render, break, crash and misbehave. Once everybody is quiet all graphs are
//! equal and nobody has been harmed.

use std::time::{Duration, Instant};

use blender_multiuser::wire::Dialect;
use blender_multiuser::wire::message::{COMMON, Inbound, NodeId};
use blender_multiuser::wire::pickle::Value;

use super::client::{Client, State, fields, node_data};
use super::delta::{self, Change};
use super::network::Line;
use super::restarts::Stop;
use super::world::{COMMAND, DATA, PUBLISH, TTL, Who, World, settings};

/// What a run may contain; later seeds are wilder.
#[derive(Debug, Clone, Copy)]
struct Kind {
    breaks: bool,
    restarts: bool,
    pauses: bool,
    misbehaviour: bool,
    comings_and_goings: bool,
    unsupported: bool,
    large: bool,
}

fn line(world: &mut World, may_keep_silent: bool) -> Line {
    let slow = world.rng.chance(30);
    if may_keep_silent && world.rng.chance(20) {
        // An old library that confirms nothing: only time tells what has arrived.
        return Line {
            confirms: false,
            ..Line::default()
        };
    }
    Line {
        delay: if slow { (20, 150) } else { (1, 15) },
        kernel: if world.rng.chance(30) { 4_000 } else { 1 << 20 },
        high_water: if world.rng.chance(20) { 10 } else { 1000 },
        confirms: true,
    }
}

/// The versions that meet in a studio: those of one data format may be mixed.
const STUDIOS: [&[&str]; 4] = [
    &["0.9.10"],
    &["0.9.10", "0.9.12"],
    &["0.1.13", "0.1.25"],
    &["0.7.3", "0.8.3"],
];

pub fn run(seed: u64, trace: bool) -> Vec<String> {
    // Twelve seeds in a row differ in what a run may contain.
    let versions = STUDIOS[(seed / 12) as usize % STUDIOS.len()];
    play(seed, trace, versions, false)
}

/// The same, and now and then the server ends and starts again.
pub fn run_with_restarts(seed: u64, trace: bool) -> Vec<String> {
    let versions: &[&str] = match seed % 4 {
        0 => &["0.9.10", "0.9.12"],
        1 => &["0.7.3"],
        _ => &["0.9.10"],
    };
    play(seed, trace, versions, true)
}

fn play(seed: u64, trace: bool, versions: &'static [&'static str], restarts: bool) -> Vec<String> {
    let mut settings = settings();
    settings.versions = versions.iter().map(|version| version.to_string()).collect();
    let mut world = World::with(seed, settings);
    world.trace = trace;
    world.spelled = seed % 8 == 7;
    let kind = Kind {
        breaks: seed % 2 == 1 || restarts,
        restarts,
        pauses: seed % 3 == 1,
        misbehaviour: seed % 5 >= 3,
        comings_and_goings: seed % 4 >= 2,
        unsupported: seed % 7 == 6,
        large: seed % 11 == 10,
    };
    let mut script = Script {
        restarted: world.now,
        world,
        kind,
        versions,
        serial: 0,
        expected_to_end: Vec::new(),
        unlucky: Vec::new(),
    };
    script.begin();
    let actions = 60 + script.world.rng.range(0, 100);
    for _ in 0..actions {
        script.act();
        let pause = if script.world.rng.chance(70) {
            (0, 40)
        } else {
            (50, 400)
        };
        let ms = script.world.ms(pause).as_millis() as u64;
        script.world.run(ms);
    }
    script.quiet()
}

struct Script {
    world: World,
    kind: Kind,
    versions: &'static [&'static str],
    serial: u64,
    restarted: Instant,
    /// Clients whose end the script has caused.
    expected_to_end: Vec<Who>,
    /// Clients that may end because a message to or from them was lost that nothing can bring back.
    unlucky: Vec<Who>,
}

impl Script {
    fn arrive(&mut self, name: &str, admin: bool) -> Who {
        let version = match self.versions {
            [one] => one,
            several => self.world.rng.pick(several).unwrap(),
        };
        let mut client = Client::new(name, admin).of_version(version);
        client.shows_presence = self.kind.breaks || self.world.rng.chance(50);
        let may_keep_silent = !self.kind.pauses && !self.kind.breaks;
        let mut line = line(&mut self.world, may_keep_silent);
        if client.dialect == Dialect::Tcp {
            line.confirms = false;
            // All that has come is read at once, and so long a line can be connected over.
            line.high_water = 100_000;
            line.delay.1 = line.delay.1.min(90);
        }
        let who = self.world.arrive_over(client, line);
        if self.world.rng.chance(30) {
            self.world.stations[who.0].turns = (20, 50);
        }
        who
    }

    fn begin(&mut self) {
        let alice = self.arrive("alice", true);
        self.world.does(alice, |alice| {
            for o in 0..3 {
                let mesh = alice.add(&format!("mesh{o}"), "Mesh", &[]);
                alice.add(&format!("object{o}"), "Object", &[mesh]);
            }
            let objects: Vec<NodeId> = (0..3)
                .map(|o| NodeId::from(&*format!("object{o}")))
                .collect();
            let collection = alice.add("collection", "Collection", &objects);
            alice.add("scene", "Scene", &[collection]);
            alice.add("world", "World", &[]);
            let children = vec!["collection".into(), "world".into()];
            alice
                .graph
                .get_mut(&NodeId::from("scene"))
                .unwrap()
                .dependencies = children;
        });
        if self.kind.large {
            let big = Value::bytes(vec![7u8; 300 * 1024]);
            let held = self.world[alice]
                .graph
                .get_mut(&NodeId::from("mesh0"))
                .unwrap();
            fields(&mut held.data)
                .insert(Value::str("vertices"), big)
                .unwrap();
        }
        let others = self.world.rng.range(1, 4);
        let early = self.world.rng.chance(30);
        if early {
            for n in 0..others {
                self.arrive(&format!("user{n}"), n == 0);
            }
        }
        self.world.until("alice is in the lobby", |world| {
            world[alice].state == State::Lobby
        });
        self.world.does(alice, |alice| alice.init());
        self.world.until_active(&[alice]);
        if !early {
            for n in 0..others {
                self.arrive(&format!("user{n}"), n == 0);
            }
        }
    }

    fn active(&mut self) -> Option<Who> {
        let active: Vec<Who> = (0..self.world.stations.len())
            .map(Who)
            .filter(|who| {
                self.world[*who].is_active()
                    && self.world.stations[who.0].paused_until <= self.world.now
            })
            .collect();
        self.world.rng.pick(&active).copied()
    }

    fn present(&mut self) -> Option<Who> {
        let present: Vec<Who> = (0..self.world.stations.len())
            .map(Who)
            .filter(|who| self.world[*who].state != State::Gone)
            .collect();
        self.world.rng.pick(&present).copied()
    }

    fn node_of(&mut self, who: Who, kinds: &[&str]) -> Option<NodeId> {
        let nodes: Vec<NodeId> = self.world[who]
            .graph
            .iter()
            .filter(|(_, held)| kinds.is_empty() || kinds.contains(&held.type_id()))
            .map(|(id, _)| id.clone())
            .collect();
        self.world.rng.pick(&nodes).cloned()
    }

    /// Whether the add-on would send an edit of this node: while connections break, nothing else can be made good.
    fn may_edit(&self, who: Who, id: &NodeId) -> bool {
        let client = &self.world[who];
        client.may_modify(id)
            && (!self.kind.breaks
                || client.graph[id].owner == client.name
                || ["Scene", "Collection", "World"].contains(&client.graph[id].type_id()))
    }

    fn fresh(&mut self) -> i64 {
        self.serial += 1;
        self.serial as i64
    }

    fn change(&mut self) -> Change {
        let x = self.fresh();
        match self.world.rng.range(0, 12) {
            0..4 => Change::Append(x),
            4..7 => Change::Set(format!("k{}", self.world.rng.range(0, 4)), Value::Int(x)),
            7..9 => Change::Remove(format!("k{}", self.world.rng.range(0, 4))),
            9 => Change::Tag(x),
            _ if self.kind.unsupported => Change::AppendUnsupported(x),
            _ => Change::Append(x),
        }
    }

    fn act(&mut self) {
        let roll = self.world.rng.range(0, 100);
        if self.kind.restarts && self.world.rng.chance(4) {
            return self.restart();
        }
        if self.kind.breaks && roll < 6 {
            return self.break_something();
        }
        if self.kind.pauses && roll < 9 {
            if let Some(who) = self.present() {
                let long = self.world.rng.chance(10);
                let ms = self.world.rng.range(200, if long { 15_000 } else { 4_000 });
                self.world
                    .say(|| format!("{} renders for {ms} ms", self.world[who].name));
                if self.world[who].state == State::Auth {
                    self.unlucky.push(who);
                }
                self.world.pause(who, ms);
            }
            return;
        }
        if self.kind.comings_and_goings && roll < 14 {
            return self.come_or_go();
        }
        let Some(who) = self.active() else { return };
        if self.kind.misbehaviour && self.world.rng.chance(15) {
            return self.misbehave(who);
        }
        match self.world.rng.range(0, 100) {
            0..40 => {
                let shared = self.world.rng.chance(50);
                let kinds: &[&str] = if shared {
                    &["Scene", "Collection", "World"]
                } else {
                    &[]
                };
                if let Some(id) = self.node_of(who, kinds)
                    && self.may_edit(who, &id)
                {
                    let change = self.change();
                    self.world.does(who, |client| client.change(&id, &change));
                }
            }
            40..48 => {
                if let Some(id) = self.node_of(who, &[])
                    && self.may_edit(who, &id)
                {
                    let x = self.fresh();
                    self.world.does(who, |client| {
                        let held = client.graph.get_mut(&id).unwrap();
                        let data = fields(&mut held.data);
                        data.insert(Value::str("k1"), Value::Int(x)).unwrap();
                        client.send_full(&id);
                    });
                }
            }
            48..60 => self.select(who),
            60..72 => self.create(who),
            72..80 => self.remove(who),
            80..85 => self.world.does(who, |client| client.purge()),
            85..93 => {
                let x = self.fresh();
                self.world.does(who, |client| client.move_view(x));
            }
            93..97 => {
                let x = self.fresh();
                self.world
                    .does(who, |client| client.push("frame_current", Value::Int(x)));
            }
            _ => {
                // Dragging: many commits in a row.
                if let Some(id) = self.node_of(who, &[])
                    && self.may_edit(who, &id)
                {
                    for _ in 0..self.world.rng.range(5, 40) {
                        let x = self.fresh();
                        self.world.does(who, |client| {
                            if client.graph.contains_key(&id) && client.is_active() {
                                client.append(&id, x);
                            }
                        });
                        self.world.run(10);
                    }
                }
            }
        }
    }

    fn select(&mut self, who: Who) {
        let name = self.world[who].name.clone();
        let own: Vec<NodeId> = self.world[who]
            .graph
            .iter()
            .filter(|(_, held)| held.owner == name)
            .map(|(id, _)| id.clone())
            .collect();
        if !own.is_empty() && self.world.rng.chance(50) {
            self.world.does(who, |client| client.unlock(&own));
        } else if let Some(id) = self.node_of(who, &["Object"]) {
            self.world.does(who, |client| client.lock(&[id]));
        }
    }

    fn create(&mut self, who: Who) {
        let n = self.fresh();
        let name = self.world[who].name.clone();
        let Some(collection) = self.node_of(who, &["Collection"]) else {
            return;
        };
        let object = self.world.does(who, |client| {
            let mesh = client.create(&format!("mesh-{name}-{n}"), "Mesh", &[]);
            client.create(&format!("object-{name}-{n}"), "Object", &[mesh])
        });
        if self.world.rng.chance(50) {
            self.world.run(30);
        }
        self.world.does(who, |client| {
            if client.is_active()
                && client.graph.contains_key(&collection)
                && client.graph.contains_key(&object)
            {
                client.link(&collection, &object);
            }
        });
        if self.world.rng.chance(30) {
            self.world.does(who, |client| {
                if client.is_active() && client.graph.contains_key(&object) {
                    client.lock(&[object]);
                }
            });
        }
    }

    fn remove(&mut self, who: Who) {
        let Some(object) = self.node_of(who, &["Object", "Mesh"]) else {
            return;
        };
        if !self.world[who].may_modify(&object) {
            return;
        }
        let parents: Vec<NodeId> = self.world[who]
            .graph
            .iter()
            .filter(|(_, held)| held.dependencies.contains(&object))
            .map(|(id, _)| id.clone())
            .collect();
        let allowed = parents.iter().all(|parent| self.may_edit(who, parent));
        self.world.does(who, |client| {
            if allowed {
                for parent in parents {
                    client.unlink(&parent, &object);
                }
                client.delete(&object);
            }
        });
    }

    fn restart(&mut self) {
        let stop = if self.world.rng.chance(60) {
            Stop::Terminate
        } else {
            Stop::Kill
        };
        let since = self.world.now - self.restarted;
        let soon = since < Duration::from_secs(5);
        if soon && self.world.rng.chance(80) {
            return;
        }
        self.restarted = self.world.now;
        let users = self.world.status().users;
        for index in 0..self.world.stations.len() {
            let client = &self.world.stations[index].client;
            let is_in = users.iter().any(|user| {
                let state = ["active", "behind", "away"]
                    .iter()
                    .any(|state| user.state.starts_with(state));
                state && user.name == *client.name
            });
            // Somebody else who is in under its name has taken its place while it was away, which it has not heard of yet.
            let later = self.world.stations.iter().skip(index + 1);
            let replaced = later
                .map(|station| &station.client)
                .any(|other| other.name == client.name && other.is_active());
            // Whoever is not in yet, or cannot come back, has to connect again.
            if !client.is_active() || !is_in || replaced || client.dialect == Dialect::Tcp {
                self.unlucky.push(Who(index));
            }
        }
        let gap = self.world.rng.range(0, if soon { 300 } else { 2_000 });
        self.world.restart(stop, gap);
    }

    fn break_something(&mut self) {
        let Some(who) = self.present() else { return };
        let state = self.world[who].state;
        if matches!(state, State::Auth | State::SrvSync | State::Lobby) {
            // A lost Auth, INIT or answer to it cannot be told from one that was never sent.
            self.unlucky.push(who);
        }
        let which = self.world.rng.range(0, 4);
        let long = self.world.rng.chance(15);
        let resumes = self.world[who].dialect != Dialect::Tcp;
        if !resumes {
            self.unlucky.push(who);
        }
        let publishes = self.world[who].is_four_socket();
        // Where there is a publisher it is what breaks as often as the others together: edits are lost there.
        let publisher = publishes && self.world.rng.chance(50);
        for channel in [COMMAND, DATA, TTL, PUBLISH] {
            let this = match channel {
                PUBLISH => publisher || (publishes && which == 3),
                _ => which == 3 || (!publisher && which == channel as u64),
            };
            if this {
                if channel == PUBLISH
                    && self.world.rng.chance(50)
                    && self.world[who].is_active()
                    && let Some(id) = self.node_of(who, &[])
                    && self.may_edit(who, &id)
                {
                    let change = self.change();
                    self.world.does(who, |client| client.change(&id, &change));
                }
                let back = if long {
                    self.world.rng.range(4000, 8000)
                } else {
                    self.world.rng.range(50, 1500)
                };
                // One that is gone already may be so for too long together.
                let gone = self.world.stations[who.0].wires[channel].conn.is_none();
                if channel == COMMAND && (gone || back > 4500) {
                    self.unlucky.push(who);
                }
                if channel == TTL && (gone || back > 3500) {
                    self.unlucky.push(who);
                }
                let noticed = self.world.rng.range(0, 2500);
                self.world.cut(who, channel, noticed, back);
            }
        }
    }

    fn come_or_go(&mut self) {
        let name = format!("user{}", self.world.rng.range(0, 4));
        match self.world.rng.range(0, 5) {
            4 => {
                let Some(who) = self.present() else { return };
                self.world.lose(who);
                self.expected_to_end.push(who);
            }
            0 => {
                let Some(who) = self.present() else { return };
                self.world.quit(who);
                self.expected_to_end.push(who);
            }
            1 => {
                let Some(who) = self.present() else { return };
                let ttl_lives = self.world.rng.chance(50);
                self.world.kill(who, ttl_lives);
                self.expected_to_end.push(who);
                // Back at once under its name.
                let name = self.world[who].name.to_string();
                self.world.run(100);
                let admin = self.world[who].admin;
                let again = self.arrive(&name, admin);
                self.unlucky.push(again);
            }
            _ => {
                let who = self.arrive(&name, false);
                // Somebody of that name may be there.
                self.unlucky.push(who);
            }
        }
    }

    fn misbehave(&mut self, who: Who) {
        let Some(id) = self.node_of(who, &[]) else {
            return;
        };
        let x = self.fresh();
        let name = self.world[who].name.clone();
        self.world.say(|| format!("{name} misbehaves with {id}"));
        let from = if self.kind.breaks { 2 } else { 0 };
        match self.world.rng.range(from, 8) {
            0 => self.world.does(who, |client| client.append(&id, x)),
            1 => self.world.does(who, |client| client.send_full(&id)),
            2 => self.world.does(who, |client| client.delete(&id)),
            3 => self.world.does(who, |client| {
                client.send_right(vec![id], name);
            }),
            4 => self.world.does(who, |client| {
                client.send_right(vec![id], "nobody".into());
            }),
            5 => {
                // A forged owner.
                let new = NodeId::from(&*format!("forged-{name}-{x}"));
                let owner = if x % 2 == 0 { "alice" } else { "nobody" };
                self.world.does(who, |client| {
                    client.add(new.as_str(), "Material", &[]);
                    let held = client.graph.get_mut(&new).unwrap();
                    held.owner = owner.into();
                    let mut node = client.full(&new);
                    if x % 3 != 0 {
                        node.dependencies.push("never-there".into());
                    }
                    client.out.push((true, Inbound::Node(node)));
                });
            }
            6 if !self.world[who].is_four_socket() => {
                let unknown = NodeId::from(&*format!("unknown-{x}"));
                let raw = delta::raw(&node_data("Mesh", &unknown), &Change::Append(x));
                self.world.does(who, |client| {
                    client
                        .out
                        .push((true, Inbound::Commit(delta::commit(&unknown, vec![], raw))));
                });
            }
            _ => self.world.does(who, |client| {
                client.send_right(vec![id], COMMON.into());
            }),
        }
    }

    fn quiet(mut self) -> Vec<String> {
        self.world.say(|| "quiet".into());
        for station in &mut self.world.stations {
            station.paused_until = self.world.now;
        }
        self.world.stride = Duration::from_millis(20);
        self.world.run(14_000);
        let late = self.arrive("latecomer", false);
        self.world.run(2_500);
        // Whoever has much to read reads it.
        let limit = self.world.now + Duration::from_secs(60);
        while self.world.now < limit
            && (self.world[late].state == State::Syncing || self.world.is_reading())
        {
            self.world.run(500);
        }
        // What follows a join has been sent by now.
        self.world.run(1_000);
        while self.world.now < limit && self.world.is_reading() {
            self.world.run(500);
        }
        let mut faults = self.world.faults();
        let empty = self.world.scene().is_empty();
        // A version that cannot join an empty scene waits for the first node.
        let waits =
            |client: &Client| empty && !client.knows_removed() && client.state == State::Lobby;
        // A client that misbehaved keeps its forged nodes to itself.
        for (index, station) in self.world.stations.iter().enumerate() {
            let who = Who(index);
            let name_taken =
                station.client.ended.as_deref() == Some("FAILED: client already logged in");
            let taken_over =
                station.client.ended.as_deref() == Some("you logged in again from elsewhere");
            let fine = name_taken
                || taken_over
                || station.client.is_active()
                || waits(&station.client)
                || self.expected_to_end.contains(&who)
                || self.unlucky.contains(&who);
            if !fine {
                faults.push(format!(
                    "{} is {:?}: {:?}",
                    station.client.name, station.client.state, station.client.ended
                ));
            }
        }
        if !self.world[late].is_active() && !waits(&self.world[late]) {
            faults.push(format!("the latecomer is {:?}", self.world[late].state));
        }
        let budget = 4 * 1024 * 1024 + 1024 * 1024;
        if self.world.peak > budget {
            faults.push(format!("{} bytes waited", self.world.peak));
        }
        faults
    }
}
