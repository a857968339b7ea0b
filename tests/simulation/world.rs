//! The session, its simulated clients and the network between them, under one clock that the test drives.

use std::collections::{HashMap, HashSet};
use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

use blender_multiuser::admin::{AdminCommand, AdminReply, Status};
use blender_multiuser::net::ConnId;
use blender_multiuser::password::Secret;
use blender_multiuser::session::{Effect, Event, FoldJob, Session, Settings, TICK};
use blender_multiuser::wire::message::{Inbound, NodeId, Outbound, Outgoing};
use blender_multiuser::wire::{Channel, Dialect};
use bytes::Bytes;

use super::client::{Client, State};
use super::look::brief_out;
use super::network::{Line, Wire};
use super::spelling;

pub struct Rng(pub u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    /// At least `from`, less than `to`.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from).max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.range(0, 100) < percent
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.range(0, items.len() as u64) as usize])
    }
}

/// Names one simulated client; stays valid after it has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Who(pub usize);

/// A client with its connections.
pub struct Station {
    pub client: Client,
    pub identity: Bytes,
    pub wires: [Wire; 4],
    pub line: Line,
    /// Blender renders: nothing is handled.
    pub paused_until: Instant,
    pub next_turn: Instant,
    /// Milliseconds between two turns of the main loop.
    pub turns: (u64, u64),
    pub(super) ttl_heard: Instant,
    pub ttl_answers: bool,
    pub(super) auth_since: Instant,
    /// Its sockets have been closed after its end.
    pub(super) closed: bool,
}

pub const COMMAND: usize = 0;
pub const DATA: usize = 1;
pub const TTL: usize = 2;
/// Of four-socket clients only.
pub const PUBLISH: usize = 3;
pub const CHANNELS: [Channel; 4] = [
    Channel::Command,
    Channel::Data,
    Channel::Ttl,
    Channel::Publish,
];

pub struct World {
    pub session: Session,
    pub(super) settings: Settings,
    pub now: Instant,
    pub(super) start: Instant,
    next_tick: Instant,
    pub(super) next_conn: u64,
    pub stations: Vec<Station>,
    pub(super) conns: HashMap<ConnId, (usize, usize)>,
    pub(super) folds: Vec<(Instant, FoldJob)>,
    pub fold_delay: (u64, u64),
    pub rng: Rng,
    pub trace: bool,
    pub spelled: bool,
    /// The most bytes that ever waited for one client.
    pub peak: usize,
    /// Nodes whose first message was lost on its way up: nobody but their author can know of them.
    pub lost_births: HashSet<NodeId>,
    /// The clock advances by so much at once.
    pub stride: Duration,
}

impl Index<Who> for World {
    type Output = Client;
    fn index(&self, who: Who) -> &Client {
        &self.stations[who.0].client
    }
}

impl IndexMut<Who> for World {
    fn index_mut(&mut self, who: Who) -> &mut Client {
        &mut self.stations[who.0].client
    }
}

pub fn settings() -> Settings {
    Settings {
        admin_password: Secret::new("admin"),
        server_password: None,
        timeout: Duration::from_secs(5),
        grace: Duration::from_secs(5),
        port: 5555,
        versions: [].into(),
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        World::with(seed, settings())
    }

    pub fn with(seed: u64, settings: Settings) -> Self {
        let now = Instant::now() + Duration::from_secs(3600);
        World {
            session: Session::new(now, settings.clone()),
            settings,
            now,
            start: now,
            next_tick: now,
            next_conn: 0,
            stations: Vec::new(),
            conns: HashMap::new(),
            folds: Vec::new(),
            fold_delay: (0, 300),
            rng: Rng::new(seed),
            trace: false,
            spelled: false,
            peak: 0,
            lost_births: HashSet::new(),
            stride: Duration::from_millis(5),
        }
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:8.3} {}", (self.now - self.start).as_secs_f64(), text());
        }
    }

    pub fn ms(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(self.rng.range(from, to + 1))
    }

    /// A client that connects and logs in.
    pub fn arrive(&mut self, client: Client) -> Who {
        self.arrive_over(client, Line::default())
    }

    pub fn arrive_over(&mut self, mut client: Client, line: Line) -> Who {
        let who = Who(self.stations.len());
        let login = client.login.clone();
        client.command(Inbound::Auth(login));
        let mut wires: [Wire; 4] = Default::default();
        let count = if client.is_four_socket() { 4 } else { 3 };
        for wire in &mut wires[..count] {
            wire.opens_at = Some(self.now + self.ms((0, 20)));
        }
        wires[TTL].outbox.push_back(Inbound::HeartbeatInit);
        let mut identity = vec![0u8; 16];
        identity[..8].copy_from_slice(&(who.0 as u64 + 1).to_le_bytes());
        self.stations.push(Station {
            client,
            identity: identity.into(),
            wires,
            line,
            paused_until: self.now,
            next_turn: self.now,
            turns: (10, 40),
            ttl_heard: self.now,
            ttl_answers: true,
            auth_since: self.now,
            closed: false,
        });
        who
    }

    pub fn user(&mut self, name: &str) -> Who {
        self.arrive(Client::new(name, false))
    }

    pub fn admin(&mut self, name: &str) -> Who {
        self.arrive(Client::new(name, true))
    }

    pub fn command(&mut self, command: AdminCommand) -> AdminReply {
        let reply = self.session.admin(self.now, command);
        self.take_effects();
        reply
    }

    pub fn status(&self) -> Status {
        self.session.status(self.now)
    }

    // Time.

    pub fn run(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.step();
        }
    }

    /// Until it holds, 20 s at most.
    pub fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        let limit = self.now + Duration::from_secs(20);
        while !holds(self) {
            assert!(self.now < limit, "{what} does not happen");
            self.step();
        }
    }

    pub fn until_active(&mut self, who: &[Who]) {
        self.until("everybody is active", |world| {
            who.iter().all(|who| world[*who].is_active())
        });
    }

    pub fn step(&mut self) {
        self.step_without_ticks();
        if self.now >= self.next_tick {
            self.next_tick = self.now + TICK;
            self.session.tick(self.now);
            self.take_effects();
            for station in &self.stations {
                for wire in &station.wires {
                    self.peak = self.peak.max(wire.unwritten());
                }
            }
        }
    }

    pub(super) fn step_without_ticks(&mut self) {
        self.now += self.stride;
        let due: Vec<FoldJob>;
        (due, self.folds) = {
            let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.folds)
                .into_iter()
                .partition(|(at, _)| *at <= self.now);
            (due.into_iter().map(|(_, job)| job).collect(), rest)
        };
        for job in due {
            self.session.folded(self.now, job.run());
            self.take_effects();
        }
        let count = self.stations.len();
        let first = self.rng.range(0, count.max(1) as u64) as usize;
        for i in 0..count {
            let index = (first + i) % count;
            for channel in 0..CHANNELS.len() {
                self.network(index, channel);
            }
            self.turn(index);
        }
    }

    pub(super) fn event(&mut self, conn: ConnId, event: Event) {
        self.session.handle(self.now, conn, event);
        self.take_effects();
    }

    fn turn(&mut self, index: usize) {
        let now = self.now;
        let station = &mut self.stations[index];
        if station.client.state == State::Gone {
            if !station.closed {
                self.hang_up(index);
            }
            return;
        }
        if station.ttl_heard + Duration::from_secs(6) < now {
            station.client.end("Server lost".into());
            return;
        }
        if station.client.state == State::Auth && station.auth_since + Duration::from_secs(5) < now
        {
            station
                .client
                .end("Connection failed, server not found".into());
            return;
        }
        if station.paused_until > now || station.next_turn > now {
            return;
        }
        let data = &mut station.wires[DATA].received;
        if let Some(None) = data.front() {
            // Its main loop stands still until something comes that it takes for the chunk.
            let Some(eaten) = data.get(1) else { return };
            if let Some(Outbound::Node(_) | Outbound::JoinNode(_)) =
                eaten.as_ref().map(|message| message.message())
            {
                let fault = "a node was taken for the chunk of another".into();
                station.client.faults.push(fault);
            }
            data.drain(..2);
        }
        let command = station.wires[COMMAND].received.pop_front().flatten();
        let update = match station.wires[DATA].received.front() {
            Some(Some(_)) => station.wires[DATA].received.pop_front().flatten(),
            _ => None,
        };
        if self.trace {
            let name = self.stations[index].client.name.clone();
            for message in [&command, &update].into_iter().flatten() {
                self.say(|| format!("{name} <- {}", brief_out(message.message())));
            }
        }
        let (spelled, dialect) = (self.spelled, self.stations[index].client.dialect);
        let read = |message: Option<std::sync::Arc<Outgoing>>| {
            message.map(|message| {
                if spelled {
                    match (
                        message.message(),
                        spelling::read(dialect, message.chunks(dialect)),
                    ) {
                        (Outbound::JoinNode(_), Outbound::Node(node)) => Outbound::JoinNode(node),
                        (_, read) => read,
                    }
                } else {
                    message.message().clone()
                }
            })
        };
        let (command, update) = (read(command), read(update));
        let client = &mut self.stations[index].client;
        client.turn(command.as_ref(), update.as_ref());
        let pause = self.ms(self.stations[index].turns);
        self.stations[index].next_turn = now + pause;
        self.flush(index);
    }

    /// Takes what clients have to send.
    pub fn flush(&mut self, index: usize) {
        let out = std::mem::take(&mut self.stations[index].client.out);
        let updates = match self.stations[index].client.update_channel() {
            Channel::Publish => PUBLISH,
            _ => DATA,
        };
        for (on_data, message) in out {
            self.send(index, if on_data { updates } else { COMMAND }, message);
        }
    }

    /// The client does something; what it sends goes out at once.
    pub fn does<R>(&mut self, who: Who, action: impl FnOnce(&mut Client) -> R) -> R {
        let result = action(&mut self.stations[who.0].client);
        self.flush(who.0);
        result
    }

    /// All its sockets close: what it sent before still arrives.
    fn hang_up(&mut self, index: usize) {
        let (name, ended) = (
            self.stations[index].client.name.clone(),
            self.stations[index].client.ended.clone(),
        );
        self.say(|| format!("{name} ends: {ended:?}"));
        self.stations[index].closed = true;
        for channel in 0..CHANNELS.len() {
            let last = self.stations[index].wires[channel].last_up;
            let wire = &mut self.stations[index].wires[channel];
            wire.over = true;
            let pending = std::mem::take(&mut wire.up);
            let conn = wire.conn;
            let after = last.map_or(Duration::ZERO, |last| {
                last.saturating_duration_since(self.now)
            });
            wire.cut(self.now, after + Duration::from_millis(10), None);
            // Simplified: what was on its way up arrives now.
            if let Some(conn) = conn {
                for (_, message) in pending {
                    self.event(conn, Event::Message(message));
                }
            }
        }
    }

    pub fn quit(&mut self, who: Who) {
        self[who].end("quit by its user".into());
        self.hang_up(who.0);
    }

    /// Blender is killed; its TTL process goes with it, or lives on for a while.
    pub fn kill(&mut self, who: Who, ttl_lives: bool) {
        self[who].end("killed".into());
        self.stations[who.0].closed = true;
        for channel in [COMMAND, DATA, PUBLISH, TTL] {
            if channel == TTL && ttl_lives {
                continue;
            }
            let wire = &mut self.stations[who.0].wires[channel];
            wire.over = true;
            wire.cut(self.now, Duration::from_millis(10), None);
        }
    }

    /// The machine is gone: nobody closes anything.
    pub fn lose(&mut self, who: Who) {
        self[who].end("machine lost".into());
        self.stations[who.0].closed = true;
        for wire in &mut self.stations[who.0].wires {
            wire.over = true;
            wire.cut(self.now, Duration::from_secs(3600), None);
        }
    }

    pub fn cut(&mut self, who: Who, channel: usize, noticed_ms: u64, back_ms: u64) {
        self.say(|| {
            format!(
                "{}'s {:?} breaks, back in {back_ms} ms",
                self[who].name, CHANNELS[channel]
            )
        });
        let now = self.now;
        for (_, message) in &self.stations[who.0].wires[channel].up {
            if let Inbound::Node(node) = message {
                self.lost_births.insert(node.id.clone());
            }
        }
        let station = &mut self.stations[who.0];
        let resumes = station.client.dialect != Dialect::Tcp;
        if !resumes && channel == TTL {
            station.client.end("Server lost".into());
        }
        let wire = &mut station.wires[channel];
        let half_a_node = wire.down.front().is_some_and(|flight| {
            let message = flight.message.message();
            flight.due.is_some() && matches!(message, Outbound::Node(_) | Outbound::JoinNode(_))
        });
        if station.client.is_four_socket() && half_a_node && noticed_ms.is_multiple_of(2) {
            wire.received.push_back(None);
        }
        // Where nothing comes back, what the client sends from now on vanishes.
        wire.over |= !resumes;
        let back = Some(Duration::from_millis(back_ms)).filter(|_| resumes);
        wire.cut(now, Duration::from_millis(noticed_ms), back);
    }

    pub fn pause(&mut self, who: Who, ms: u64) {
        self.stations[who.0].paused_until = self.now + Duration::from_millis(ms);
    }

    fn take_effects(&mut self) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Send(conn, message) => self.carry(conn, message),
                Effect::Trust(_) | Effect::Record(_) | Effect::Save(_) => {}
                Effect::Speak(conn, dialect) => self.speak(conn, dialect),
                Effect::Close(conn, reason) => self.close(conn, reason),
                Effect::Fold(job) => {
                    let at = self.now + self.ms(self.fold_delay);
                    self.folds.push((at, job));
                }
            }
        }
    }
}
