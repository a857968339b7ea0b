//! What is known of one client: its connections, its state, and what may still be unread at its end.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::wire::delta::Flavour;
use crate::wire::message::{Login, NodeId, Outgoing, UserName};
use crate::wire::{Channel, Dialect};

use super::delivery::Debts;
use super::join::Join;
use super::link::{Footprint, Link, Trace, UNCONFIRMED, UNCONFIRMED_LIMIT};
use super::presence::Presence;
use super::{Effect, Time};

/// libzmq's receive queue holds so many messages. It takes a further one only when one has been read, so of those that have
/// arrived all but the last so many have been handled.
pub(super) const RECEIVE_QUEUE: usize = 1_000;

/// Unread messages remembered for a peer that does not tell what has arrived, and edits of a client.
const MEMORY: usize = 4_000;

/// Commands that a client sends in one turn of its main loop arrive within this time. Usually it turns 20 to 200 times a
/// second (docs/protocol.md, 3.5); too few turns counted cost nothing but commands about nothing.
const TURN: Duration = Duration::from_millis(200);

/// A command may have been under way for so long, besides a round trip, so it proves nothing about what has arrived since.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// A data message that the client may not have handled yet.
#[derive(Debug)]
struct Unread {
    /// `None`: it was sent before a restart, and may be about any node.
    footprint: Option<Arc<Footprint>>,
    /// The receiver did not know the node before.
    new: bool,
    /// Number on its connection.
    number: u64,
    sent: Time,
    /// Since when it is known to be in the client's own queue, or lost with its connection. Those that are not come after
    /// all those that are.
    arrived: Option<Time>,
    /// The command in whose turn it will be handled at the latest, by its number. Those that have one come first.
    covered: Option<u64>,
}

/// What a command must wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// So many data messages must be handled first that no command sent so far makes sure of.
    pub turns: usize,
    /// They are in the client's own queue already.
    pub arrived: bool,
}

/// Nodes that a client may not know yet.
#[derive(Debug, Default)]
pub struct Unborn<'a> {
    nodes: HashSet<&'a NodeId>,
    any: bool,
}

impl Unborn<'_> {
    pub fn contains(&self, node: &NodeId) -> bool {
        self.any || self.nodes.contains(node)
    }
}

impl Unread {
    fn is_of(&self, node: &NodeId) -> bool {
        self.footprint
            .as_ref()
            .is_none_or(|footprint| footprint.node == *node)
    }

    /// Whether the receiver must not have lost the node before it handles this.
    fn needs(&self, node: &NodeId) -> bool {
        let names = |footprint: &Arc<Footprint>| footprint.dependencies.contains(node);
        self.is_of(node) || self.footprint.as_ref().is_some_and(names)
    }
}

/// How far a logged-in client has come.
#[derive(Debug)]
pub enum State {
    /// Waiting for a scene, or about to ask for it.
    Lobby,
    /// Sending its scene.
    Initialising,
    /// Receiving the scene.
    Joining(Box<Join>),
    Active,
}

/// Why a login is not answered yet.
#[derive(Debug)]
pub struct HeldLogin {
    pub login: Login,
    pub admin: bool,
    pub since: Time,
    /// Not answered before, so that a right password shows no sooner than a wrong one.
    pub not_before: Time,
}

/// One peer: all connections with the same identity.
#[derive(Debug)]
pub struct Client {
    pub identity: Bytes,
    pub command: Option<Link>,
    pub data: Option<Link>,
    /// What a four-socket client publishes comes in here.
    pub publish: Option<Link>,
    pub ttl: Option<Link>,
    /// As far as it is known; the version tells at login.
    pub dialect: Dialect,
    /// The heartbeat's INIT came before the login.
    pub heartbeat_waits: bool,
    pub held: Option<HeldLogin>,
    /// Its login was refused, or its session has been ended: it is not heard any more.
    pub dismissed: bool,
    /// It knows a session that has ended, or that this server does not know, and has been told so. It reads that after all that
    /// came before, and says things meanwhile: libzmq lets it wait for ever where a connection is not to come back.
    pub astray: bool,
    pub user: Option<Box<User>>,
}

/// What there is to know of a client that has logged in.
#[derive(Debug)]
pub struct User {
    pub name: UserName,
    pub admin: bool,
    pub version: String,
    pub address: SocketAddr,
    pub since: Time,
    pub state: State,
    /// Nodes that it may have before it joins: those of its own scene, or of a join that was cut short.
    pub holds: HashSet<NodeId>,
    /// Its version cannot join an empty scene.
    pub awaits_first_node: bool,
    /// Since when its command connection is gone.
    pub away: Option<Time>,
    /// Since when its data connection is gone.
    pub without_data: Option<Time>,
    /// Messages of it that could not be accepted.
    pub refused: u32,
    /// Messages that may have been lost with a connection that is not back yet.
    pub lost_commands: Vec<Trace>,
    pub lost_updates: Vec<Trace>,
    /// Until then it is not sent what it is owed: what it said while its connection was broken comes first.
    pub listened_to_until: Time,
    /// Its publisher's connection broke; what was published into it may be lost.
    pub lost_publisher: bool,
    /// It has said something, so it has had the answer to its Auth.
    pub heard: bool,
    /// That answer may have been lost, so it may not know that it is in.
    pub may_not_know: bool,
    pub debts: Debts,
    pub presence: Presence,
    pub heartbeat: super::heartbeat::Heartbeat,
    /// Which deepdiff it has, as far as its commits have told.
    pub flavour: Option<Flavour>,
    /// Its data connection has broken before, and nodes that it sent may be lost with it.
    pub has_lost: bool,
    /// Nodes that it has named since and that have not come, and since when.
    pub named_in_vain: VecDeque<(Time, NodeId)>,
    /// Nodes that it has changed lately, to be repaired should its connection break.
    pub edited: VecDeque<(Time, NodeId)>,
    unread: VecDeque<Unread>,
    /// When a turn of its main loop was counted last.
    last_turn: Time,
}

impl Client {
    pub fn new(identity: Bytes, dialect: Dialect) -> Self {
        Client {
            identity,
            command: None,
            data: None,
            publish: None,
            ttl: None,
            dialect,
            heartbeat_waits: false,
            held: None,
            dismissed: false,
            astray: false,
            user: None,
        }
    }

    pub fn slot(&mut self, channel: Channel) -> &mut Option<Link> {
        match channel {
            Channel::Command => &mut self.command,
            Channel::Data => &mut self.data,
            Channel::Publish => &mut self.publish,
            Channel::Ttl => &mut self.ttl,
        }
    }

    pub fn link_mut(&mut self, channel: Channel) -> Option<&mut Link> {
        self.slot(channel).as_mut()
    }

    pub fn links(&self) -> impl Iterator<Item = &Link> {
        [&self.command, &self.data, &self.publish, &self.ttl]
            .into_iter()
            .flatten()
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.links().next().map(|link| link.address)
    }

    /// Sends on the command channel. Where that is closed the message is lost, which a user that comes back must be told.
    pub fn tell(&mut self, now: Time, effects: &mut VecDeque<Effect>, message: &Arc<Outgoing>) {
        if let Some(singles) = self.one_by_one(message) {
            return singles.iter().for_each(|one| self.tell(now, effects, one));
        }
        match (self.command.as_mut(), self.user.as_mut()) {
            (Some(link), user) => {
                link.send(now, effects, message, Trace::of(message));
                if let Some(user) = user {
                    user.command_sent(link.sent);
                }
            }
            (None, Some(user)) if user.lost_commands.len() < UNCONFIRMED_LIMIT => {
                user.lost_commands.push(Trace::of(message));
            }
            (None, _) => {}
        }
    }

    /// Sends an update of a node on the data channel.
    pub fn update(
        &mut self,
        now: Time,
        effects: &mut VecDeque<Effect>,
        new: bool,
        message: &Arc<Outgoing>,
        footprint: &Arc<Footprint>,
    ) {
        let (Some(link), Some(user)) = (self.data.as_mut(), self.user.as_mut()) else {
            return;
        };
        link.send(now, effects, message, Trace::Update(footprint.clone()));
        if !link.confirms && user.unread.len() >= MEMORY {
            user.unread.pop_front();
        }
        user.unread.push_back(Unread {
            footprint: Some(footprint.clone()),
            new,
            number: link.sent,
            sent: now,
            arrived: None,
            covered: None,
        });
    }

    /// Whether more updates may be sent on the data channel.
    pub fn takes_updates(&self) -> bool {
        let data = self.data.as_ref();
        data.is_some_and(|link| link.has_room(super::delivery::SOFT_LIMIT))
    }

    /// Takes note of what has arrived on the data connection.
    pub fn settle_unread(&mut self, now: Time) {
        if let (Some(link), Some(user)) = (self.data.as_ref(), self.user.as_deref_mut()) {
            user.settle(now, link);
        }
    }

    /// The client has sent a command, which its main loop must have done.
    pub fn turned(&mut self, now: Time) {
        if let Some(user) = self.user.as_mut() {
            user.turned(now);
        }
    }

    /// A connection is gone: remembers how much of what was sent on it may be lost.
    pub fn lost(&mut self, now: Time, channel: Channel) {
        let Some(link) = self.slot(channel).take() else {
            return;
        };
        if let Some(user) = self.user.as_mut() {
            if matches!(channel, Channel::Data | Channel::Publish) {
                user.has_lost = true;
                user.named_in_vain.clear();
            }
            match channel {
                Channel::Command => {
                    for unread in &mut user.unread {
                        unread.covered.take_if(|command| *command > link.arrived);
                    }
                    // The numbers of the next connection start anew.
                    let covered = user.covered();
                    for unread in user.unread.range_mut(..covered) {
                        unread.covered = Some(0);
                    }
                    user.lost_commands.extend(link.into_lost(now));
                }
                Channel::Data => {
                    user.lost_updates.extend(link.into_lost(now));
                    for unread in &mut user.unread {
                        unread.arrived.get_or_insert(now);
                    }
                }
                Channel::Publish => user.lost_publisher = true,
                Channel::Ttl => {}
            }
        }
    }
}

impl User {
    pub fn new(now: Time, held: HeldLogin, name: UserName, address: SocketAddr) -> Self {
        User {
            name,
            admin: held.admin,
            version: held.login.version,
            address,
            since: now,
            state: State::Lobby,
            holds: HashSet::new(),
            awaits_first_node: false,
            away: None,
            without_data: None,
            refused: 0,
            lost_commands: Vec::new(),
            lost_updates: Vec::new(),
            listened_to_until: now,
            lost_publisher: false,
            heard: false,
            may_not_know: false,
            debts: Debts::default(),
            presence: Presence::default(),
            heartbeat: super::heartbeat::Heartbeat::new(now),
            flavour: None,
            has_lost: false,
            named_in_vain: VecDeque::new(),
            edited: VecDeque::new(),
            unread: VecDeque::new(),
            last_turn: now,
        }
    }

    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active)
    }

    /// Whether changes of the scene concern this client: it has a cut of it, or is being sent one.
    pub fn follows_scene(&self) -> bool {
        matches!(self.state, State::Active | State::Joining(_))
    }

    /// Remembers that the client changed a node itself.
    pub fn has_edited(&mut self, now: Time, node: &NodeId) {
        while self
            .edited
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > UNCONFIRMED)
        {
            self.edited.pop_front();
        }
        if self.edited.back().is_none_or(|(_, last)| last != node) {
            self.edited.push_back((now, node.clone()));
        } else if let Some(last) = self.edited.back_mut() {
            last.0 = now;
        }
        if self.edited.len() > MEMORY {
            self.edited.pop_front();
        }
    }

    /// One more command will be handled, and in the same turn of the main loop one data message, if one has arrived.
    fn command_sent(&mut self, number: u64) {
        let first = self.covered();
        if let Some(unread) = self.unread.get_mut(first)
            && unread.arrived.is_some()
        {
            unread.covered = Some(number);
        }
    }

    /// How many of the unread messages commands make sure of.
    fn covered(&self) -> usize {
        self.unread
            .partition_point(|unread| unread.covered.is_some())
    }

    /// A command from the client's main loop proves that it has turned, and handled one of the messages that were there.
    fn turned(&mut self, now: Time) {
        // Closer together they may come from one turn.
        if now.saturating_duration_since(self.last_turn) < TURN {
            return;
        }
        self.last_turn = now;
        let under_way = UNDER_WAY + self.heartbeat.round_trip().unwrap_or_default();
        let arrived = self.unread.front().and_then(|unread| unread.arrived);
        if arrived.is_some_and(|arrived| now.saturating_duration_since(arrived) >= under_way) {
            self.unread.pop_front();
        }
    }

    fn settle(&mut self, now: Time, link: &Link) {
        let first = self
            .unread
            .partition_point(|unread| unread.arrived.is_some());
        for unread in self.unread.iter_mut().skip(first) {
            // Where the peer does not tell, time must do.
            let arrived = if link.confirms {
                unread.number <= link.arrived
            } else {
                link.outstanding == 0 && now.saturating_duration_since(unread.sent) > UNDER_WAY
            };
            if !arrived {
                break;
            }
            unread.arrived = Some(now);
        }
        if link.confirms {
            let arrived = self
                .unread
                .partition_point(|unread| unread.arrived.is_some());
            self.unread.drain(..arrived.saturating_sub(RECEIVE_QUEUE));
        }
    }

    /// What a command must wait for after which the client does not have the node any more.
    pub fn way_for_deletion(&self, node: &NodeId) -> Way {
        self.way_past(|unread| unread.needs(node))
    }

    /// Nodes that the client does not know before it has handled what it was sent.
    pub fn unborn(&self) -> Unborn<'_> {
        let mut unborn = Unborn::default();
        for unread in self.unread.range(self.covered()..) {
            match &unread.footprint {
                Some(footprint) if unread.new => drop(unborn.nodes.insert(&footprint.node)),
                Some(_) => {}
                None => unborn.any = true,
            }
        }
        unborn
    }

    /// How many data messages it may not have handled yet.
    pub fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Takes note of data messages from before a restart.
    pub fn expect_unread(&mut self, now: Time, count: usize) {
        let before = |_| Unread {
            footprint: None,
            new: true,
            number: 0,
            sent: now,
            arrived: Some(now),
            covered: None,
        };
        self.unread.extend((0..count.min(MEMORY)).map(before));
    }

    /// What a command must wait for that needs the client to have the node.
    pub fn way_for_owner(&self, node: &NodeId) -> Way {
        self.way_past(|unread| unread.new && unread.is_of(node))
    }

    fn way_past(&self, concerned: impl Fn(&Unread) -> bool) -> Way {
        let free = Way {
            turns: 0,
            arrived: true,
        };
        let Some(last) = self.unread.iter().rposition(concerned) else {
            return free;
        };
        let covered = self.covered();
        if last < covered {
            return free;
        }
        Way {
            turns: last - covered + 1,
            arrived: self
                .unread
                .get(last)
                .is_some_and(|unread| unread.arrived.is_some()),
        }
    }

    /// Whether an update of this node by this client may not have taken into account what was sent to it.
    pub fn is_behind_on(&self, node: &NodeId) -> bool {
        self.debts.contains(node) || self.unread.iter().any(|unread| unread.is_of(node))
    }

    /// Everything sent has been handled: the client is at the end of a conversation that proves it.
    pub fn nothing_unread(&mut self) {
        self.unread.clear();
    }
}
