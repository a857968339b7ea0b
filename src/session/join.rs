//! Joining a running session: one consistent cut, streamed ahead of the client's questions (docs/protocol.md, 3.4).

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tracing::{debug, info};

use crate::logging::seconds;
use crate::wire::dialect;
use crate::wire::message::{MESSAGE_OVERHEAD, Node, NodeId, Outbound, Outgoing};

use super::client::{RECEIVE_QUEUE, State};
use super::delivery::{NO_OP, SOFT_LIMIT};
use super::link::Trace;
use super::{ClientId, Scene, Session, Time};

/// Bytes of nodes sent ahead of the client's confirmations: enough to keep a fast line of 300 ms busy.
const WINDOW: usize = 4 * 1024 * 1024;

/// A client whose connection broke at the end of its join, all nodes sent, tells within this time after it is back
/// whether it has finished, unless it lacks a node and waits for it, or stands still: it loads what it got.
const SILENCE: Duration = Duration::from_secs(2);

/// The same for a peer that does not tell what has arrived, of which one can never be sure.
const UNSURE_SILENCE: Duration = Duration::from_secs(10);

/// A client on its way into the session.
#[derive(Debug)]
pub struct Join {
    since: Time,
    total: usize,
    bytes: usize,
    /// Nodes of the cut still to be sent, in the order in which the client asks for them.
    unsent: VecDeque<Node>,
    sent: Vec<NodeId>,
    /// Nodes sent whose receipt the next GET confirms: uuid and bytes.
    unconfirmed: VecDeque<(NodeId, usize)>,
    in_flight: usize,
    /// The scene is empty: the catalog names one node that does not exist.
    phantom: Option<NodeId>,
    /// Nodes of the cut that have commits which the client must fold itself, after the join.
    unfolded: Vec<NodeId>,
    /// It has asked for a node, so it has had the catalog. Before that no node is sent: on another channel it could come before
    /// the catalog, and a client that has not asked has certainly not finished, should its connection break.
    asked: bool,
    undecided: Option<Undecided>,
}

/// The connection broke and is back, and the client may have finished meanwhile. If it has, another Snapshot would end its
/// session.
#[derive(Debug)]
struct Undecided {
    /// Since when nothing has come from it.
    since: Time,
    /// It has been sent everything and all of that has arrived, so it finishes by itself.
    has_all: bool,
    /// Once so many messages have arrived on its connection it has handled everything that came before.
    handled_at: Option<u64>,
}

impl Join {
    /// Whether the client has been sent everything, so that it may be done at any moment.
    pub fn all_sent(&self) -> bool {
        self.unsent.is_empty() && self.phantom.is_none()
    }

    /// Whether the client may have finished without our knowledge.
    pub fn is_undecided(&self) -> bool {
        self.undecided.is_some()
    }

    /// How much is known to have been handled: nodes of how many, and percent of their bytes.
    pub fn progress(&self) -> (usize, usize, usize) {
        let unsent: usize = self.unsent.iter().map(|node| node.data.len()).sum();
        let overhead = MESSAGE_OVERHEAD * self.unconfirmed.len();
        let left = unsent + self.in_flight.saturating_sub(overhead);
        let handled = self.bytes.saturating_sub(left);
        (
            self.total - self.unsent.len() - self.unconfirmed.len(),
            self.total,
            (handled * 100).checked_div(self.bytes).unwrap_or(0),
        )
    }
}

impl Session {
    /// REQUEST_INIT.
    pub(super) fn join_start(&mut self, now: Time, id: ClientId) {
        let Some(user) = self.user_mut(id) else {
            return;
        };
        // A client in the lobby of a running session is being asked already, or waits for the first node.
        if matches!(user.state, State::Lobby) && matches!(self.scene, Scene::Running) {
            self.start_join(now, id);
        }
    }

    /// Takes the cut and begins to send it. Also starts a join anew whose connection broke.
    pub(super) fn start_join(&mut self, now: Time, id: ClientId) {
        let empty = self.graph.is_empty();
        let Some(user) = self.user_mut(id) else {
            return;
        };
        user.awaits_first_node = empty && !dialect::knows_removed(&user.version);
        if user.awaits_first_node {
            return debug!(
                user = &*user.name,
                "a client of this version cannot join an empty scene and stays in the lobby"
            );
        }
        let (nodes, unfolded) = self.graph.cut();
        let phantom = nodes
            .is_empty()
            .then(|| NodeId::from("00000000-0000-0000-0000-000000000000"));
        let mut catalog: Vec<NodeId> = nodes.iter().map(|node| node.id.clone()).collect();
        // The client takes the last one first.
        catalog.reverse();
        catalog.extend(phantom.clone());
        let join = Join {
            since: now,
            total: nodes.len(),
            bytes: nodes.iter().map(|node| node.data.len()).sum(),
            unsent: nodes.into(),
            sent: Vec::new(),
            unconfirmed: VecDeque::new(),
            in_flight: 0,
            phantom,
            unfolded,
            asked: false,
            undecided: None,
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        if let State::Joining(broken) =
            std::mem::replace(&mut user.state, State::Joining(Box::new(join)))
        {
            user.holds.extend(broken.sent);
        }
        user.debts.clear();
        // A SET neither removes nodes that the client has nor changes their owners.
        for node in &user.holds {
            if self.graph.contains(node) {
                user.debts.owner(node);
            } else {
                user.debts.deletion(node);
            }
        }
        user.nothing_unread();
        self.tell(now, id, Outbound::JoinCatalog(catalog));
        self.stream_join(now, id);
        self.noticeboard.changed();
    }

    /// Sends nodes ahead of the client's questions, a window of bytes.
    pub(super) fn stream_join(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let channel = client.dialect.scene_channel();
        loop {
            let room = client
                .link_mut(channel)
                .is_some_and(|link| link.outstanding < SOFT_LIMIT);
            let Some(State::Joining(join)) = client.user.as_deref_mut().map(|user| &mut user.state)
            else {
                return;
            };
            if !room || !join.asked || join.in_flight >= WINDOW || join.undecided.is_some() {
                return;
            }
            let message = if join.phantom.take().is_some() {
                Outbound::JoinRemoved
            } else if let Some(node) = join.unsent.pop_front() {
                let bytes = node.data.len() + MESSAGE_OVERHEAD;
                join.in_flight += bytes;
                join.sent.push(node.id.clone());
                join.unconfirmed.push_back((node.id.clone(), bytes));
                Outbound::JoinNode(node)
            } else {
                return;
            };
            client.tell_scene(now, &mut self.effects, &Outgoing::new(message));
        }
    }

    /// GET: the client has handled everything before the node that it asks for.
    pub(super) fn join_get(&mut self, now: Time, id: ClientId, node: &NodeId) {
        let Some(State::Joining(join)) = self.user_mut(id).map(|user| &mut user.state) else {
            return;
        };
        join.asked = true;
        if let Some(undecided) = &mut join.undecided {
            undecided.since = now;
        }
        let asked = join.unconfirmed.iter().position(|(sent, _)| sent == node);
        // What it asks for may not have been sent yet, and then all that was sent is confirmed.
        let confirmed = match asked {
            Some(index) => index,
            None if join.unsent.front().is_some_and(|next| next.id == *node) => {
                join.unconfirmed.len()
            }
            None => return,
        };
        for (_, bytes) in join.unconfirmed.drain(..confirmed) {
            join.in_flight -= bytes;
        }
        self.stream_join(now, id);
    }

    /// DONE: the client has the cut and gets what changed since.
    pub(super) fn join_done(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        if !matches!(user.state, State::Joining(_)) {
            return;
        }
        let State::Joining(join) = std::mem::replace(&mut user.state, State::Active) else {
            return;
        };
        user.holds = HashSet::new();
        // Nodes that it claims to be done without.
        for node in &join.unsent {
            user.debts.content(&node.id);
        }
        for node in &join.unfolded {
            user.debts.content(node);
        }
        user.nothing_unread();
        info!(
            user = &*user.name,
            nodes = join.total,
            bytes = join.bytes,
            seconds = seconds(now.saturating_duration_since(join.since)),
            changed_meanwhile = user.debts.len(),
            "joined"
        );
        self.record_login(id);
        self.noticeboard.changed();
        self.pump(now, id);
    }

    /// The command connection of a client is back that was not active yet. Where everything had been sent nobody knows whether
    /// it has finished, and if it has, another Snapshot would end its session: it gets time to tell.
    pub(super) fn resume_join(&mut self, now: Time, id: ClientId, lost: &[Trace]) {
        let running = matches!(self.scene, Scene::Running);
        let all_arrived = !lost.iter().any(|trace| matches!(trace, Trace::Join));
        let Some(user) = self.user_mut(id) else {
            return;
        };
        match &mut user.state {
            // It may not even be in the lobby; it shows when it is.
            State::Joining(join) if join.all_sent() || user.may_not_know => {
                let lacked = join
                    .undecided
                    .as_ref()
                    .is_some_and(|before| !before.has_all);
                join.undecided = Some(Undecided {
                    since: now,
                    has_all: all_arrived && join.all_sent() && !lacked,
                    handled_at: None,
                });
            }
            State::Joining(join) if all_arrived && join.asked => {
                // Its GETs may be lost.
                join.unconfirmed.clear();
                join.in_flight = 0;
                self.stream_join(now, id);
            }
            State::Joining(_) => self.start_join(now, id),
            // Its REQUEST_INIT may be lost.
            State::Lobby if running && !user.may_not_know => self.start_join(now, id),
            _ => {}
        }
    }

    /// A client that may not have had the answer to its Auth shows that it has. Before that, a Snapshot would end its session.
    pub(super) fn knows_it_is_in(&mut self, now: Time, id: ClientId) {
        let running = matches!(self.scene, Scene::Running);
        let Some(user) = self.user_mut(id) else {
            return;
        };
        user.heard = true;
        if !std::mem::take(&mut user.may_not_know) {
            return;
        }
        match &mut user.state {
            State::Lobby if running => self.start_join(now, id),
            // It cannot have finished.
            State::Joining(join) if !join.all_sent() => self.start_join(now, id),
            State::Joining(join) => {
                if let Some(undecided) = &mut join.undecided {
                    undecided.since = now;
                }
            }
            _ => {}
        }
    }

    /// A client that may have finished joining has said something that only an active one says.
    pub(super) fn shows_it_has_joined(&mut self, now: Time, id: ClientId) {
        if let Some(State::Joining(join)) = self.user_mut(id).map(|user| &user.state)
            && join.undecided.is_some()
            && join.all_sent()
        {
            self.join_done(now, id);
        }
    }

    pub(super) fn tick_join(&mut self, now: Time, id: ClientId) {
        let empty = self.graph.is_empty();
        let Some(user) = self.user_mut(id) else {
            return;
        };
        match &user.state {
            State::Joining(join) => {
                let has_all = join.undecided.as_ref().is_some_and(|it| it.has_all);
                let only_done_was_lost = has_all && !user.may_not_know;
                match self.will_not_tell(now, id) {
                    true if only_done_was_lost => self.join_done(now, id),
                    true => self.start_join(now, id),
                    false => {}
                }
            }
            State::Lobby if user.awaits_first_node && !empty => self.start_join(now, id),
            _ => {}
        }
    }

    /// Whether a client that may have finished joining has handled all that it was sent, and said nothing. One that stands still
    /// has not handled it, so its queue is filled: what comes after that arrives only once all before has been read.
    fn will_not_tell(&mut self, now: Time, id: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return false;
        };
        // While it is away it cannot.
        let (Some(link), Some(user)) = (client.command.as_ref(), client.user.as_deref_mut()) else {
            return false;
        };
        let (arrived, confirms) = (link.arrived, link.confirms);
        let State::Joining(join) = &mut user.state else {
            return false;
        };
        let Some(undecided) = &mut join.undecided else {
            return false;
        };
        let silent_for = now.saturating_duration_since(undecided.since);
        if !confirms {
            return silent_for > UNSURE_SILENCE;
        }
        if let Some(number) = undecided.handled_at {
            return arrived >= number;
        }
        if silent_for > SILENCE {
            undecided.handled_at = Some(link.sent + RECEIVE_QUEUE as u64 + 1);
            for _ in 0..=RECEIVE_QUEUE {
                client.tell(now, &mut self.effects, &NO_OP);
            }
        }
        false
    }
}
