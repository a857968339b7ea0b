//! One connection of a client, and what may be lost on it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::net::ConnId;
use crate::wire::Dialect;
use crate::wire::message::{NodeId, Outbound, Outgoing};

use super::{Effect, Time};

/// How far back a loss may reach on a connection whose peer does not tell what has arrived.
pub(super) const UNCONFIRMED: Duration = Duration::from_secs(10);

/// So many messages are remembered that a peer has not confirmed.
pub(super) const UNCONFIRMED_LIMIT: usize = 20_000;

/// What an update is about. All that is remembered of it once it has been sent: its data may be large.
#[derive(Debug)]
pub struct Footprint {
    pub node: NodeId,
    pub dependencies: Vec<NodeId>,
}

/// What a message was about that may be lost.
#[derive(Debug)]
pub enum Trace {
    Update(Arc<Footprint>),
    Deletion(NodeId),
    /// A Right.
    Owners(Arc<Outgoing>),
    Auth,
    /// A Snapshot.
    Join,
    /// Nothing that is not sent again anyway.
    Other,
}

impl Trace {
    pub(super) fn of(command: &Arc<Outgoing>) -> Self {
        match command.message() {
            Outbound::Delete(node) => Trace::Deletion(node.clone()),
            Outbound::Right { nodes, .. } if !nodes.is_empty() => Trace::Owners(command.clone()),
            Outbound::Auth(_) => Trace::Auth,
            Outbound::JoinCatalog(_) | Outbound::JoinNode(_) | Outbound::JoinRemoved => Trace::Join,
            _ => Trace::Other,
        }
    }
}

/// One open connection of a client, and how far its messages have got.
#[derive(Debug)]
pub struct Link {
    pub conn: ConnId,
    pub address: SocketAddr,
    pub dialect: Dialect,
    pub opened: Time,
    /// Weight of what has been queued and not yet been handed to the kernel.
    pub outstanding: usize,
    /// Messages sent, and how many of them are known to have arrived in the peer's ZeroMQ library.
    pub sent: u64,
    pub arrived: u64,
    /// The peer has confirmed an arrival at least once, so it can be relied on to do so.
    pub(super) confirms: bool,
    /// The messages after those, and when they were sent: lost, perhaps, should the connection break.
    unconfirmed: VecDeque<(Time, Trace)>,
    /// Since when bytes are waiting without any having moved.
    stalled: Option<Time>,
    /// It is being closed.
    pub closing: bool,
}

impl Link {
    pub fn new(now: Time, conn: ConnId, address: SocketAddr, dialect: Dialect) -> Self {
        Link {
            conn,
            address,
            dialect,
            opened: now,
            outstanding: 0,
            sent: 0,
            arrived: 0,
            confirms: false,
            unconfirmed: VecDeque::new(),
            stalled: None,
            closing: false,
        }
    }

    pub fn send(
        &mut self,
        now: Time,
        effects: &mut VecDeque<Effect>,
        message: &Arc<Outgoing>,
        trace: Trace,
    ) {
        self.outstanding += message.weight(self.dialect);
        self.sent += 1;
        self.unconfirmed.push_back((now, trace));
        self.forget_old(now);
        self.stalled.get_or_insert(now);
        effects.push_back(Effect::Send(self.conn, message.clone()));
    }

    /// Whether no more than so many bytes are waiting.
    pub fn has_room(&self, limit: usize) -> bool {
        self.outstanding <= limit
    }

    pub fn written(&mut self, now: Time, weight: usize) {
        self.outstanding = self.outstanding.saturating_sub(weight);
        self.progressed(now);
    }

    pub fn progressed(&mut self, now: Time) {
        self.stalled = (self.outstanding > 0).then_some(now);
    }

    pub fn arrived(&mut self, messages: u64) {
        self.confirms = true;
        let arrived = messages.clamp(self.arrived, self.sent);
        for _ in self.arrived..arrived {
            self.unconfirmed.pop_front();
        }
        self.arrived = arrived;
    }

    fn forget_oldest(&mut self) {
        if self.unconfirmed.pop_front().is_some() {
            self.arrived += 1;
        }
    }

    /// A peer that does not tell what has arrived is taken to have what it was sent some time ago.
    fn forget_old(&mut self, now: Time) {
        if self.unconfirmed.len() > UNCONFIRMED_LIMIT {
            self.forget_oldest();
        }
        if self.confirms {
            return;
        }
        let moved = self.stalled.unwrap_or(now);
        while self
            .unconfirmed
            .front()
            .is_some_and(|(sent, _)| moved.saturating_duration_since(*sent) > UNCONFIRMED)
        {
            self.forget_oldest();
        }
    }

    /// How long bytes have been waiting without any having moved.
    pub fn stalled_for(&self, now: Time) -> Duration {
        self.stalled
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// What may not have arrived yet.
    pub fn unconfirmed(&self) -> impl Iterator<Item = &Trace> {
        self.unconfirmed.iter().map(|(_, trace)| trace)
    }

    /// The messages that may be lost now that the connection has broken.
    pub(super) fn into_lost(mut self, now: Time) -> impl Iterator<Item = Trace> {
        self.forget_old(now);
        self.unconfirmed.into_iter().map(|(_, trace)| trace)
    }
}
