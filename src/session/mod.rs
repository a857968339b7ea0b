//! The session: who is there, what the scene is, and who is told what.
//!
//! Plain synchronous code without sockets, clock or locks. Events go in through [`Session::handle`], [`Session::tick`] and
//! [`Session::admin`], always with the time; what is to be done comes out as [`Effect`]s. One task owns it, so every
//! race can be written down as a short test.
//!
//! | file | what it decides |
//! | --- | --- |
//! | `client` | what is known of one client: its connections, its state, what may be unread at its end |
//! | `link` | one connection, and what may be lost on it |
//! | `graph` | the nodes, their data, dependencies and owners |
//! | `login`, `leave` | who may enter, under which name, and how a session ends |
//! | `handover` | a restart, which only those hear of who cannot wait for it; what is told again after a crash |
//! | `resume` | what is repaired after a connection broke |
//! | `speech` | how one client is spoken to, by its dialect |
//! | `versions` | which client versions may work together |
//! | `publisher` | four-socket clients' connections for what they publish, and whose they are |
//! | `init` | the first scene |
//! | `join` | one consistent cut for everybody who enters a running session |
//! | `edit` | nodes and commits: acceptance, folding, crossing edits and their healing |
//! | `delete`, `rights` | deletes and locks |
//! | `delivery` | what is sent at once, what is owed until later, in which order |
//! | `presence` | client states and metadata |
//! | `noticeboard` | chat and tasks |
//! | `heartbeat` | pings, and what silence means |

mod client;
mod delete;
mod delivery;
mod edit;
mod graph;
mod handover;
mod heartbeat;
mod init;
mod join;
mod leave;
mod link;
mod login;
mod noticeboard;
mod persist;
mod presence;
mod publisher;
mod resume;
mod rights;
mod speech;
mod status;
mod versions;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::net::{ConnId, Peer};
use crate::password::Secret;
use crate::store::Record;
use crate::wire::delta::{Delta, DeltaError};
use crate::wire::message::{Inbound, NodeId, Outbound, Outgoing};
use crate::wire::pickle::Value;
use crate::wire::{Channel, Dialect, WireError};

pub use delivery::SOFT_LIMIT;

use client::Client;
use graph::Graph;
use init::Initialising;
use noticeboard::Noticeboard;

/// Time as the session knows it: given with every event, never read from a clock.
pub type Time = Instant;

/// How often [`Session::tick`] wants to be called. Presence is merged over this span: a client handles at most one command
/// per turn of its main loop, so more often than 20 times a second would only fill its queue.
pub const TICK: Duration = Duration::from_millis(50);

/// What the operator has set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub admin_password: Secret,
    /// `None`: an open server.
    pub server_password: Option<Secret>,
    /// A client whose heartbeat is silent for longer has left.
    pub timeout: Duration,
    /// How long name, locks and what was missed are kept for a client whose connection broke.
    pub grace: Duration,
    /// The first port number, for what users are told about closed ports.
    pub port: u16,
    /// Versions whose clients may work together; all others keep among themselves.
    pub versions: Arc<[String]>,
}

/// Something that happened to a connection.
#[derive(Debug)]
pub enum Event {
    Opened(Peer),
    Message(Inbound),
    /// A message that could not be accepted.
    Refused(WireError),
    /// Messages of this weight have been handed to the kernel.
    Written(usize),
    /// Part of a message has been handed to the kernel.
    Progress,
    /// The first n messages sent on this connection have arrived in the client's ZeroMQ library.
    Arrived(u64),
    /// A publisher says that it belongs to the client of this identity.
    Named(Bytes),
    Closed(String),
}

/// Something to be done outside.
#[derive(Debug)]
pub enum Effect {
    Send(ConnId, Arc<Outgoing>),
    /// Spell what is sent from now on in this dialect.
    Speak(ConnId, Dialect),
    /// The peer has logged in: read larger messages from it.
    Trust(ConnId),
    /// End the connection after what is queued has gone out; with a text, tell ZeroMQ not to come back.
    Close(ConnId, Option<String>),
    /// Keep this; before anything is sent that shows it.
    Record(Record),
    /// A good moment for a backup, and why.
    Save(String),
    /// Fold a large delta off the session's task and bring the result to [`Session::folded`].
    Fold(FoldJob),
}

/// A delta to be folded elsewhere because it, or its node, is large.
#[derive(Debug)]
pub struct FoldJob {
    pub node: NodeId,
    /// Which fold of that node this is; given back with the result.
    pub generation: u64,
    base: FoldBase,
    delta: Arc<Delta>,
}

#[derive(Debug)]
enum FoldBase {
    Pickled(Bytes),
    Decoded(Value),
}

impl FoldJob {
    /// Does the work. Takes as long as the node is large.
    pub fn run(self) -> Folded {
        let (base, delta) = (self.base, self.delta);
        let result = unless_it_panics(move || {
            let value = match base {
                FoldBase::Decoded(value) => value,
                FoldBase::Pickled(bytes) => graph::decode(&bytes)?,
            };
            delta.apply(&value)
        });
        Folded {
            node: self.node,
            generation: self.generation,
            result,
        }
    }
}

/// A fault of this server in one fold must not leave the node waiting for ever: its commit is refused.
fn unless_it_panics(fold: impl FnOnce() -> Result<Value, DeltaError>) -> Result<Value, DeltaError> {
    // What the fold may have left half-done is dropped with it; all else is copied on write.
    catch_unwind(AssertUnwindSafe(fold)).unwrap_or_else(|_| {
        let why = "nothing: the fold itself failed, which is a fault of this server";
        Err(DeltaError::Raises(why.into()))
    })
}

/// The outcome of a [`FoldJob`].
#[derive(Debug)]
pub struct Folded {
    node: NodeId,
    generation: u64,
    result: Result<Value, DeltaError>,
}

/// A client that must not come back.
struct Retired {
    identity: Bytes,
    /// Why its session ended, and how to tell it.
    reason: String,
    dialect: Dialect,
    /// How often it will still be told.
    reminders: u8,
}

/// Names one client for the life of the process; a client that logs in again is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ClientId(u64);

/// Whether there is a scene.
enum Scene {
    Empty,
    Initialising(Initialising),
    Running,
}

pub struct Session {
    settings: Settings,
    started: Time,
    scene: Scene,
    /// The add-on version that this session's data belongs to.
    version: Option<String>,
    graph: Graph,
    clients: BTreeMap<ClientId, Client>,
    identities: HashMap<Bytes, ClientId>,
    connections: HashMap<ConnId, (ClientId, Channel)>,
    /// Publishers that have not named their client yet: where they are, and since when.
    publishers: HashMap<ConnId, (IpAddr, Time)>,
    /// Identities that must not come back: kicked, taken over, left.
    retired: VecDeque<Retired>,
    /// Nodes that will be sent to everybody once they have been quiet.
    healing: BTreeSet<NodeId>,
    last_heal: Option<Time>,
    /// Rights that arrived before their node did.
    early_rights: VecDeque<rights::EarlyRight>,
    noticeboard: Noticeboard,
    /// Wrong passwords by network, and when the last one was.
    failures: HashMap<IpAddr, (u32, Time)>,
    /// Refusals that are told later, so that passwords cannot be tried quickly.
    late_refusals: VecDeque<(Time, ClientId, String)>,
    /// Answers to INIT that are given a little later.
    init_answers: VecDeque<(Time, ClientId, Outbound)>,
    next_client: u64,
    /// The last nodes that were deleted, for clients that a restart keeps from hearing of it.
    deleted: VecDeque<NodeId>,
    reminders: handover::Reminders,
    /// When this session went on from a saved one, as long as Deletes wait for what else comes after that.
    resumed_at: Option<Time>,
    /// Deletes that wait, and who has asked for them.
    held_deletes: BTreeSet<(NodeId, ClientId)>,
    effects: VecDeque<Effect>,
    /// The server is about to end: nobody enters any more.
    stopping: bool,
    updates: u64,
    deliveries: u64,
}

impl Session {
    pub fn new(now: Time, settings: Settings) -> Self {
        Session {
            settings,
            started: now,
            scene: Scene::Empty,
            version: None,
            graph: Graph::default(),
            clients: BTreeMap::new(),
            identities: HashMap::new(),
            connections: HashMap::new(),
            publishers: HashMap::new(),
            retired: VecDeque::new(),
            healing: BTreeSet::new(),
            last_heal: None,
            early_rights: VecDeque::new(),
            noticeboard: Noticeboard::default(),
            failures: HashMap::new(),
            late_refusals: VecDeque::new(),
            init_answers: VecDeque::new(),
            next_client: 0,
            deleted: VecDeque::new(),
            reminders: handover::Reminders::default(),
            resumed_at: None,
            held_deletes: BTreeSet::new(),
            effects: VecDeque::new(),
            stopping: false,
            updates: 0,
            deliveries: 0,
        }
    }

    /// What is to be done next, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes in what happened to a connection.
    pub fn handle(&mut self, now: Time, conn: ConnId, event: Event) {
        if let Event::Opened(peer) = event {
            self.opened(now, conn, peer);
            return;
        }
        if self.publishers.contains_key(&conn) {
            self.publisher(now, conn, event);
            return;
        }
        // A connection that was replaced or closed by us may still have reports under way.
        let Some(&(id, channel)) = self.connections.get(&conn) else {
            return;
        };
        match event {
            Event::Opened(_) | Event::Named(_) => {}
            Event::Message(message) => self.message(now, id, channel, message),
            Event::Refused(error) => self.refused(now, id, conn, error),
            Event::Written(weight) => {
                if let Some(link) = self.link_mut(id, channel) {
                    link.written(now, weight);
                }
                self.resume_sending(now, id);
            }
            Event::Progress => {
                if let Some(link) = self.link_mut(id, channel) {
                    link.progressed(now);
                }
            }
            Event::Arrived(messages) => {
                if let Some(link) = self.link_mut(id, channel) {
                    link.arrived(messages);
                }
                self.resume_sending(now, id);
            }
            Event::Closed(reason) => self.closed(now, id, channel, &reason),
        }
    }

    /// Lets time pass; to be called every [`TICK`].
    pub fn tick(&mut self, now: Time) {
        self.tick_logins(now);
        self.tick_publishers(now);
        self.tick_init(now);
        self.tick_heartbeats(now);
        self.tick_stalls(now);
        self.tick_rights(now);
        self.tick_reminders(now);
        self.tick_deletes(now);
        self.tick_heals(now);
        self.tick_lost(now);
        self.graph.tick(now);
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in ids {
            self.tick_join(now, id);
            self.resume_sending(now, id);
        }
        self.tick_presence(now);
    }

    fn message(&mut self, now: Time, id: ClientId, channel: Channel, message: Inbound) {
        match message {
            Inbound::HeartbeatInit => return self.heartbeat_init(now, id),
            Inbound::HeartbeatPong => return self.heartbeat_pong(now, id),
            Inbound::ServerInfo => return self.server_info(now, id),
            Inbound::Auth(login) => return self.auth(now, id, login),
            _ => {}
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.user.is_none() {
            return self.stranger_spoke(now, id, channel);
        }
        // An edit may be large, and then it has been under way for nobody knows how long.
        if channel == Channel::Command {
            client.turned(now);
        }
        if !matches!(message, Inbound::InitStart(_)) {
            self.knows_it_is_in(now, id);
        }
        match message {
            Inbound::InitStart(nodes) => self.init_start(now, id, nodes),
            Inbound::InitNode(node) => self.init_node(now, id, node),
            Inbound::InitEnd => self.init_end(now, id),
            Inbound::JoinStart => self.join_start(now, id),
            Inbound::JoinGet(node) => self.join_get(now, id, &node),
            Inbound::JoinDone => self.join_done(now, id),
            Inbound::Delete(node) => self.delete(now, id, node),
            Inbound::Right { nodes, owner } => self.right(now, id, nodes, owner),
            Inbound::Kick { user } => self.kick_request(now, id, &user),
            Inbound::Metadata(data) => self.metadata(now, id, data),
            Inbound::Node(node) => self.node(now, id, node),
            Inbound::Commit(commit) => self.commit(now, id, commit),
            Inbound::Nothing
            | Inbound::HeartbeatInit
            | Inbound::HeartbeatPong
            | Inbound::ServerInfo
            | Inbound::Auth(_) => {}
        }
    }

    fn link_mut(&mut self, id: ClientId, channel: Channel) -> Option<&mut link::Link> {
        self.clients.get_mut(&id)?.link_mut(channel)
    }

    /// The ids of everybody logged in, in order of login.
    fn users(&self) -> Vec<ClientId> {
        self.clients
            .iter()
            .filter(|(_, client)| client.user.is_some())
            .map(|(id, _)| *id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_that_panics_refuses_its_commit() {
        let result = unless_it_panics(|| panic!("on purpose"));
        assert!(matches!(result, Err(DeltaError::Raises(_))));
    }
}
