//! What each client is sent at once, and what it is owed until later.
//!
//! A client that is active, reads what it is sent and is owed nothing about a node gets changes of that node as they come.
//! Everybody else is *owed*: a joiner until it is done, a client that is away or does not keep up, a client
//! whose unread data messages a command must not overtake. A debt says only which node and which aspect; what is sent in the
//! end is the state as of then. So a debt of a node costs the same however often the node changes, and paying all
//! debts makes both sides equal.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tracing::warn;

use crate::wire::message::{COMMON, Commit, Node, NodeId, Outbound, Outgoing, UserName};

use super::client::{Client, User, Way};
use super::graph::{Graph, Source};
use super::link::{Footprint, Link};
use super::{ClientId, Effect, Session, Time};

/// With more bytes than this waiting on one channel, further changes become debts until half of it has gone out.
pub const SOFT_LIMIT: usize = 4 * 1024 * 1024;

/// What is owed is paid up to so many bytes that wait on a channel: a scene that is sent again over a thin line must not stand for a minute
/// before what somebody changes meanwhile.
const OWED_LIMIT: usize = 512 * 1024;

/// A client to which bytes are waiting and none has moved for so long is disconnected. Blender that renders or loads stops reading
/// for minutes, and its heartbeat goes on.
const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A client that is owed more than this is not answered about nodes that never were.
const UNKNOWN_LIMIT: usize = 100_000;

/// How many nodes one Right names at most.
const RIGHTS_AT_ONCE: usize = 500;

/// A Right about nothing: a command that takes one turn of a client's main loop, in which it handles one data message too.
pub(super) static NO_OP: LazyLock<Arc<Outgoing>> = LazyLock::new(|| {
    Outgoing::new(Outbound::Right {
        nodes: Vec::new(),
        owner: COMMON.into(),
    })
});

/// What a client is owed about one node that exists or has gone.
#[derive(Debug, Clone, Copy, Default)]
struct Debt {
    /// Its data and dependencies.
    content: bool,
    /// Its owner.
    owner: bool,
    /// The client has never been sent the node, so if it goes nothing is owed at all.
    new: bool,
    /// Somebody is at work on it: it comes before what is only to be made sure of.
    urgent: bool,
}

/// Everything a client is owed.
#[derive(Debug, Default)]
pub struct Debts {
    nodes: HashMap<NodeId, Debt>,
    /// The same nodes in the order in which they came to be owed; may name some that have been paid.
    order: VecDeque<NodeId>,
    /// Those that somebody is at work on, in the order in which they were changed; the same goes for these.
    urgent: VecDeque<NodeId>,
}

/// What is owed, paid and owed again leaves its place in the order each time.
fn tidy(order: &mut VecDeque<NodeId>, nodes: &HashMap<NodeId, Debt>) {
    if order.len() > 2 * nodes.len() + 64 {
        let mut listed = HashSet::with_capacity(nodes.len());
        order.retain(|id| nodes.contains_key(id) && listed.insert(id.clone()));
    }
}

impl Debts {
    pub fn contains(&self, id: &NodeId) -> bool {
        self.nodes.contains_key(id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    /// Whether updates of the node must wait for what is owed: all but its owner.
    fn hold_back(&self, id: &NodeId) -> bool {
        self.nodes
            .get(id)
            .is_some_and(|debt| debt.content || !debt.owner)
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    fn owes_new(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|debt| debt.new)
    }

    /// Whether one of these nodes is owed in full, so that the client may not know it yet.
    fn owe_any(&self, ids: &[NodeId]) -> bool {
        let owed = |id| self.nodes.get(id).is_some_and(|debt| debt.content);
        !self.nodes.is_empty() && ids.iter().any(owed)
    }

    fn entry(&mut self, id: &NodeId) -> &mut Debt {
        tidy(&mut self.order, &self.nodes);
        let order = &mut self.order;
        self.nodes.entry(id.clone()).or_insert_with(|| {
            order.push_back(id.clone());
            Debt::default()
        })
    }

    /// The node's data is owed.
    pub fn content(&mut self, id: &NodeId) {
        self.entry(id).content = true;
    }

    /// A node that the client does not know is owed.
    pub fn new_node(&mut self, id: &NodeId) {
        let known = self.nodes.contains_key(id);
        let debt = self.entry(id);
        debt.content = true;
        debt.new = !known;
        debt.owner = known;
    }

    pub fn owner(&mut self, id: &NodeId) {
        self.entry(id).owner = true;
    }

    /// The news that the node has gone is owed.
    pub fn deletion(&mut self, id: &NodeId) {
        if self.owes_new(id) {
            self.nodes.remove(id);
        } else {
            *self.entry(id) = Debt::default();
        }
    }

    /// What is owed about the node is news: it is paid before the rest.
    fn hurry(&mut self, id: &NodeId) {
        tidy(&mut self.urgent, &self.nodes);
        if let Some(debt) = self.nodes.get_mut(id)
            && !std::mem::replace(&mut debt.urgent, true)
        {
            self.urgent.push_back(id.clone());
        }
    }

    pub fn clear(&mut self) {
        *self = Debts::default();
    }
}

/// Outcome of an attempt to pay.
enum Payment {
    Paid,
    /// Not yet; others may be paid meanwhile.
    Later,
    /// The channel is full: nothing more can be sent now.
    Full,
}

impl Session {
    /// Relays an update of a node to everybody but its author.
    pub(super) fn relay(
        &mut self,
        now: Time,
        author: Option<ClientId>,
        node: &NodeId,
        new: bool,
        update: Relayed,
    ) {
        let mut relayed = RelayForms::new(update);
        for (&id, client) in &mut self.clients {
            if Some(id) == author {
                continue;
            }
            let Some(user) = client.user.as_deref_mut() else {
                continue;
            };
            if !user.follows_scene() {
                continue;
            }
            let unknown_dependency = user.debts.owe_any(relayed.dependencies());
            let owed = user.debts.hold_back(node) || unknown_dependency;
            if !owed && user.is_active() && client.takes_updates() {
                relayed.send(now, &mut self.effects, client, node, new, &mut self.graph);
                self.deliveries += 1;
            } else if let Some(user) = client.user.as_deref_mut() {
                if new {
                    user.debts.new_node(node);
                } else {
                    user.debts.content(node);
                }
                user.debts.hurry(node);
            }
        }
    }

    /// Sends the node in full to one client, as soon as that is possible; a commit of it by that client counts as crossing.
    pub(super) fn answer_with_node(&mut self, now: Time, id: ClientId, node: &NodeId) {
        if let Some(entry) = self.graph.get_mut(node) {
            entry.came_from(now, Source::ServerTo(id));
        }
        if let Some(user) = self.user_mut(id) {
            user.debts.content(node);
            user.debts.owner(node);
        }
        self.pump(now, id);
    }

    /// Tells everybody that a node has gone.
    pub(super) fn announce_deletion(&mut self, now: Time, node: &NodeId) {
        for id in self.users() {
            self.owe_deletion(now, id, node);
        }
    }

    /// Tells a client that a node does not exist which it takes to exist.
    pub(super) fn answer_unknown(&mut self, now: Time, id: ClientId, node: &NodeId) {
        if self
            .user_mut(id)
            .is_some_and(|user| user.debts.len() < UNKNOWN_LIMIT)
        {
            self.owe_deletion(now, id, node);
        }
    }

    pub(super) fn owe_deletion(&mut self, now: Time, id: ClientId, node: &NodeId) {
        if let Some(user) = self.user_mut(id)
            && user.follows_scene()
        {
            user.debts.deletion(node);
            user.debts.hurry(node);
            self.pump(now, id);
        }
    }

    /// Tells everybody who owns these nodes now.
    pub(super) fn announce_owner(&mut self, now: Time, nodes: &[NodeId], owner: &UserName) {
        let message = right(nodes.to_vec(), owner);
        for client in self.clients.values_mut() {
            let Some(user) = client.user.as_deref_mut() else {
                continue;
            };
            if !user.follows_scene() {
                continue;
            }
            let command_full = client
                .command
                .as_ref()
                .is_none_or(|link| !link.has_room(SOFT_LIMIT));
            let none_now = command_full || !user.is_active();
            let unborn = user.unborn();
            let wait =
                |node: &NodeId| none_now || user.debts.contains(node) || unborn.contains(node);
            if nodes.iter().any(wait) {
                let (later, at_once): (Vec<_>, Vec<_>) = nodes.iter().cloned().partition(wait);
                for node in later {
                    user.debts.owner(&node);
                    user.debts.hurry(&node);
                }
                if !at_once.is_empty() {
                    client.tell(now, &mut self.effects, &right(at_once, owner));
                }
            } else {
                client.tell(now, &mut self.effects, &message);
            }
        }
    }

    /// A channel has room again or a message has arrived: sends what waited for that.
    pub(super) fn resume_sending(&mut self, now: Time, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.settle_unread(now);
        }
        self.stream_join(now, id);
        self.pump(now, id);
    }

    /// Pays what a client is owed, as far as that is possible now.
    pub(super) fn pump(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        let has_room = |link: &Option<Link>, limit: usize| {
            link.as_ref().is_some_and(|link| link.has_room(limit))
        };
        if user.debts.is_empty()
            || user.listened_to_until > now
            || !user.is_active()
            || !has_room(&client.data, OWED_LIMIT / 2)
            || !has_room(&client.command, SOFT_LIMIT / 2)
        {
            return;
        }
        let mut pay = Paying {
            now,
            graph: &mut self.graph,
            effects: &mut self.effects,
            rights: Vec::new(),
            stuck: false,
            deliveries: 0,
        };
        let urgent = std::mem::take(&mut client.user_debts().urgent);
        let (mut urgent, full) = pay.in_order(client, urgent);
        if let Some(node) = full.and_then(|at| urgent.remove(at)) {
            // What it depends on may be half the scene, for which the others need not wait.
            urgent.push_back(node);
        } else {
            let order = std::mem::take(&mut client.user_debts().order);
            (client.user_debts().order, _) = pay.in_order(client, order);
        }
        client.user_debts().urgent = urgent;
        pay.rights(client);
        self.deliveries += pay.deliveries;
    }

    /// Disconnects clients that take nothing for too long.
    pub(super) fn tick_stalls(&mut self, now: Time) {
        for id in self.users() {
            let stalled = self.clients.get(&id).is_some_and(|client| {
                client
                    .links()
                    .any(|link| link.stalled_for(now) > STALL_LIMIT)
            });
            if stalled {
                self.end(
                    now,
                    id,
                    "your Blender took no data for 15 minutes",
                    "stalled",
                );
            }
        }
    }

    pub(super) fn user_mut(&mut self, id: ClientId) -> Option<&mut User> {
        self.clients.get_mut(&id)?.user.as_deref_mut()
    }
}

/// One round of paying debts to one client.
struct Paying<'a> {
    now: Time,
    graph: &'a mut Graph,
    effects: &'a mut VecDeque<Effect>,
    /// Owners to be told at the end of the round, many nodes at once.
    rights: Vec<NodeId>,
    /// A command waits for updates to arrive; those after it are not looked at in this round, which would take long.
    stuck: bool,
    deliveries: u64,
}

impl Paying<'_> {
    /// Pays for one node after the other until a channel is full. Returns what is left of them, and the place of the one for which
    /// there was no room.
    fn in_order(
        &mut self,
        client: &mut Client,
        mut nodes: VecDeque<NodeId>,
    ) -> (VecDeque<NodeId>, Option<usize>) {
        let mut unpaid = VecDeque::new();
        let mut full = None;
        while full.is_none()
            && let Some(node) = nodes.pop_front()
        {
            if matches!(self.with_dependencies(client, &node), Payment::Full) {
                full = Some(unpaid.len());
            }
            if client.user_debts().nodes.contains_key(&node) {
                unpaid.push_back(node);
            }
        }
        unpaid.append(&mut nodes);
        (unpaid, full)
    }

    /// Pays for a node, but first for those among its dependencies that the client does not know yet.
    fn with_dependencies(&mut self, client: &mut Client, root: &NodeId) -> Payment {
        let mut stack = vec![(root.clone(), false)];
        let mut visited = std::collections::HashSet::new();
        while let Some((id, ready)) = stack.pop() {
            if !ready && visited.insert(id.clone()) {
                stack.push((id.clone(), true));
                let debts = &client.user_debts().nodes;
                if debts.get(&id).is_some_and(|debt| debt.content)
                    && let Some(entry) = self.graph.get(&id)
                {
                    for dependency in &entry.dependencies {
                        if debts.get(dependency).is_some_and(|debt| debt.content)
                            && !visited.contains(dependency)
                        {
                            stack.push((dependency.clone(), false));
                        }
                    }
                }
            } else if ready {
                match self.pay(client, &id) {
                    Payment::Paid => {}
                    stop => return stop,
                }
            }
        }
        Payment::Paid
    }

    fn pay(&mut self, client: &mut Client, id: &NodeId) -> Payment {
        let Some(debt) = client.user_debts().nodes.get(id).copied() else {
            return Payment::Paid;
        };
        if !self.graph.contains(id) {
            if !self.clear(client, |user| user.way_for_deletion(id)) {
                return Payment::Later;
            }
            let message = Outgoing::new(Outbound::Delete(id.clone()));
            client.tell(self.now, self.effects, &message);
            client.user_debts().nodes.remove(id);
            return Payment::Paid;
        }
        if debt.content {
            if self.graph.is_folding(id) {
                return Payment::Later;
            }
            let data = client.data.as_ref();
            if data.is_none_or(|link| !link.has_room(OWED_LIMIT)) {
                return Payment::Full;
            }
            self.send_in_full(client, id, debt.new);
            let debt = client.user_debts().entry(id);
            (debt.content, debt.new) = (false, false);
        }
        if debt.owner {
            if !self.clear(client, |user| user.way_for_owner(id)) {
                return Payment::Later;
            }
            self.rights.push(id.clone());
        }
        client.user_debts().nodes.remove(id);
        Payment::Paid
    }

    /// Makes sure that a command about a node will be handled after the data messages about it: these must be in the client's
    /// queue, and as many turns of its main loop must be spent on commands about nothing.
    fn clear(&mut self, client: &mut Client, way: impl Fn(&User) -> Way) -> bool {
        let way = client.user.as_deref().filter(|_| !self.stuck).map(way);
        let Some(way) = way.filter(|way| way.arrived) else {
            self.stuck = true;
            return false;
        };
        for _ in 0..way.turns {
            client.tell(self.now, self.effects, &NO_OP);
        }
        true
    }

    fn send_in_full(&mut self, client: &mut Client, id: &NodeId, new: bool) {
        let Some((node, unfolded)) = self.graph.full(id) else {
            return;
        };
        let footprint = Arc::new(Footprint {
            node: node.id.clone(),
            dependencies: node.dependencies.clone(),
        });
        let message = Outgoing::new(Outbound::Node(node));
        // Whoever acts first may have removed it, and whoever has lost messages may never have had it.
        let lost = client.user.as_deref().is_some_and(|user| user.has_lost);
        let new = new || lost || client.dialect.acts_first();
        client.update(self.now, self.effects, new, &message, &footprint);
        self.deliveries += 1;
        for commit in unfolded {
            let message = Outgoing::new(Outbound::Commit(commit));
            client.update(self.now, self.effects, false, &message, &footprint);
            self.deliveries += 1;
        }
    }

    fn rights(&mut self, client: &mut Client) {
        let mut by_owner: HashMap<UserName, Vec<NodeId>> = HashMap::new();
        for id in self.rights.drain(..) {
            if let Some(entry) = self.graph.get(&id) {
                by_owner.entry(entry.owner.clone()).or_default().push(id);
            }
        }
        for (owner, nodes) in by_owner {
            for nodes in nodes.chunks(RIGHTS_AT_ONCE) {
                client.tell(self.now, self.effects, &right(nodes.to_vec(), &owner));
            }
        }
    }
}

/// An update on its way to everybody.
pub(super) enum Relayed {
    Node(Node),
    Commit(Commit),
}

/// The same update in the forms that different receivers need, each made once.
struct RelayForms {
    update: Relayed,
    plain: Arc<Outgoing>,
    footprint: Arc<Footprint>,
}

impl RelayForms {
    fn new(update: Relayed) -> Self {
        let (message, node, dependencies) = match &update {
            Relayed::Node(node) => (Outbound::Node(node.clone()), &node.id, &node.dependencies),
            Relayed::Commit(commit) => (
                Outbound::Commit(commit.clone()),
                &commit.id,
                &commit.dependencies,
            ),
        };
        let footprint = Arc::new(Footprint {
            node: node.clone(),
            dependencies: dependencies.clone(),
        });
        RelayForms {
            plain: Outgoing::new(message),
            footprint,
            update,
        }
    }

    fn dependencies(&self) -> &[NodeId] {
        &self.footprint.dependencies
    }

    fn send(
        &mut self,
        now: Time,
        effects: &mut VecDeque<Effect>,
        client: &mut Client,
        node: &NodeId,
        new: bool,
        graph: &mut Graph,
    ) {
        let reads = match &self.update {
            Relayed::Node(_) => true,
            Relayed::Commit(commit) => client
                .user
                .as_deref()
                .is_some_and(|user| super::edit::reads(user.flavour, commit.delta.flavour())),
        };
        if reads {
            client.update(now, effects, new, &self.plain, &self.footprint);
        } else if let Some((full, unfolded)) = graph.full(node) {
            // Another deepdiff than the author's: it would misread the delta or skip it without a word.
            let full = Outgoing::new(Outbound::Node(full));
            client.update(now, effects, new, &full, &self.footprint);
            if !unfolded.is_empty() {
                warn!(%node, "a commit could be sent neither as it is nor folded to a client with another deepdiff");
            }
        }
    }
}

fn right(nodes: Vec<NodeId>, owner: &UserName) -> Arc<Outgoing> {
    Outgoing::new(Outbound::Right {
        nodes,
        owner: owner.clone(),
    })
}

impl Client {
    /// The debts of a client that is known to be logged in.
    fn user_debts(&mut self) -> &mut Debts {
        &mut self
            .user
            .as_deref_mut()
            .expect("debts are paid to users only")
            .debts
    }
}
