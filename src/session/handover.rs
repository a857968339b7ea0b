//! A stop that another start is to follow (docs/protocol.md, 3.9): who can wait for it is handed over and is not told to leave.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tracing::info;

use crate::admin::AdminReply;
use crate::store::{HandOver, HandedOver};
use crate::wire::message::{NodeId, Outbound};

use super::client::{Client, User};
use super::graph::Graph;
use super::link::{Link, Trace};
use super::{ClientId, Session, Time};

/// What is said to those who cannot wait, be it because their dialect never comes back or because they were not in yet.
const COME_AGAIN: &str = "the server restarts, please connect again in a moment";

/// After a crash nobody knows how many data messages a client has not read yet. One that was not rendering has read all but a
/// few; each costs it a turn of its main loop (docs/protocol.md, 3.11).
const UNREAD_AFTER_CRASH: usize = 100;

/// After a crash those who were there are told of the last deletions, of which they may not have heard. Somebody may have more unread
/// than that, old Nodes among it, which bring back what is deleted; so they are told again, so long after the start.
const REMINDERS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// One at a time: each is a command, and a slow client handles 20 in a second. All at once would be before every lock for a minute.
const REMINDER_EVERY: Duration = Duration::from_millis(100);

/// Deletions from before a crash, and when there will be reminders of them.
#[derive(Debug, Default)]
pub(super) struct Reminders {
    /// Latest last.
    deleted: Vec<NodeId>,
    due: VecDeque<Time>,
    /// Those of which this round still has to tell, and when it did last.
    left: Vec<NodeId>,
    told_at: Option<Time>,
}

impl Reminders {
    fn still_to_be_told(&self) -> &[NodeId] {
        match self.due.is_empty() {
            true => &self.left,
            false => &self.deleted,
        }
    }
}

impl Session {
    /// Gets everybody ready for the next start. What comes in from now on still counts, but nobody new enters.
    pub(super) fn restart(&mut self, now: Time, at: SystemTime) -> AdminReply {
        self.stopping = true;
        self.settle_deletes(now);
        // Not recorded: to the next run it is no news, and a backup would be made of it alone.
        drop(self.say(at, "server restarting"));
        let (mut waiting, mut told) = (0, 0);
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in ids {
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            match client.user.as_deref() {
                Some(user) if user.is_active() && client.dialect.waits_for_restart() => {
                    waiting += 1
                }
                Some(_) => {
                    told += 1;
                    self.end(now, id, COME_AGAIN, "server restarts");
                }
                None => self.refuse_held_login(now, id, COME_AGAIN),
            }
        }
        self.post_table_now(now);
        info!(
            waiting,
            told, "everybody has been told that the server restarts"
        );
        AdminReply::Done(format!(
            "{waiting} users wait for the next start, {told} have to connect again"
        ))
    }

    /// What the next run has to know about those who are to come back, beside [`Session::state`]. To be taken when the
    /// connections have ended and nothing more comes in.
    pub fn hand_over(&self) -> HandOver {
        let mut handover = HandOver::default();
        for client in self.clients.values() {
            if let Some(user) = client.user.as_deref().filter(|user| user.is_active()) {
                let mut owed = owed(client, user);
                // What they hold of a node whose edits crossed is healed only now and then, and a fold under way is lost.
                owed.extend(self.healing.iter().cloned());
                owed.extend(self.graph.folding().cloned());
                if user.since <= self.started {
                    owed.extend(self.reminders.still_to_be_told().iter().cloned());
                }
                handover.clients.push(HandedOver {
                    identity: client.identity.clone(),
                    owed: owed.into_iter().collect(),
                    unread: user.unread(),
                });
            }
        }
        handover.waiting = self
            .graph
            .waiting()
            .filter_map(|(node, asker)| {
                let client = self.clients.get(&asker)?;
                Some((client.identity.clone(), node.clone()))
            })
            .collect();
        handover
    }

    /// The same on the other side of the restart: of those who are expected back, who is owed what.
    /// `recent`: nodes that were changed last, latest first.
    pub(super) fn take_over(&mut self, now: Time, handover: Option<HandOver>, recent: &[NodeId]) {
        let HandOver { clients, waiting } = handover.unwrap_or_default();
        let mut clients: HashMap<Bytes, HandedOver> = clients
            .into_iter()
            .map(|client| (client.identity.clone(), client))
            .collect();
        let mut crashed = false;
        for id in self.users() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            let known = clients.remove(&client.identity);
            let Some(user) = client.user.as_deref_mut() else {
                continue;
            };
            match known {
                Some(known) => {
                    user.expect_unread(now, known.unread);
                    for node in known.owed {
                        owe(user, &self.graph, &node);
                        // Repaired like what its connection has lost: an edit of it may be on its way.
                        user.has_edited(now, &node);
                    }
                }
                // A crash: what was lost with it nobody knows.
                None => {
                    user.expect_unread(now, UNREAD_AFTER_CRASH);
                    // What was changed last is most likely to be missing.
                    let recent = recent.iter().filter(|node| self.graph.contains(node));
                    for node in recent.chain(self.graph.ids()) {
                        owe(user, &self.graph, node);
                    }
                    crashed = true;
                }
            }
        }
        if crashed {
            self.reminders = Reminders {
                deleted: self.deleted.iter().cloned().collect(),
                due: REMINDERS.map(|after| now + after).into(),
                ..Reminders::default()
            };
        }
        for (identity, node) in waiting {
            self.wait_again(&identity, &node);
        }
    }

    pub(super) fn tick_reminders(&mut self, now: Time) {
        let reminders = &mut self.reminders;
        if reminders.left.is_empty() && reminders.due.front().is_some_and(|due| *due <= now) {
            reminders.due.pop_front();
            reminders.left.clone_from(&reminders.deleted);
        }
        let too_early = |at| now.saturating_duration_since(at) < REMINDER_EVERY;
        if reminders.told_at.is_some_and(too_early) {
            return;
        }
        let Some(node) = reminders.left.pop() else {
            return;
        };
        reminders.told_at = Some(now);
        if self.graph.contains(&node) {
            return;
        }
        for client in self.clients.values_mut() {
            let user = client.user.as_deref_mut();
            if let Some(user) = user.filter(|user| user.since <= self.started && user.is_active()) {
                user.debts.deletion(&node);
            }
        }
    }

    fn wait_again(&mut self, identity: &Bytes, node: &NodeId) {
        if let Some(asker) = self.identities.get(identity)
            && let Some(entry) = self.graph.get_mut(node)
            && !entry.is_common()
        {
            entry.waiting.push_back(*asker);
        }
    }

    fn refuse_held_login(&mut self, now: Time, id: ClientId, reason: &str) {
        let held = self
            .clients
            .get_mut(&id)
            .and_then(|client| client.held.take());
        if let Some(held) = held {
            self.refuse_login(now, id, &held.login.name, reason.into());
        }
    }
}

fn owe(user: &mut User, graph: &Graph, node: &NodeId) {
    if graph.contains(node) {
        user.debts.content(node);
        user.debts.owner(node);
    } else {
        user.debts.deletion(node);
    }
}

/// Nodes that a client may hold otherwise than the scene does: what it is owed, what may be lost on its way to it, and what it
/// has changed so lately that a change of it may be lost on its way here.
fn owed(client: &Client, user: &User) -> BTreeSet<NodeId> {
    let mut owed: BTreeSet<NodeId> = user.debts.nodes().cloned().collect();
    owed.extend(user.edited.iter().map(|(_, node)| node.clone()));
    let under_way = [&client.data, &client.command].into_iter().flatten();
    let traces = under_way
        .flat_map(Link::unconfirmed)
        .chain(&user.lost_updates)
        .chain(&user.lost_commands);
    for trace in traces {
        match trace {
            Trace::Update(footprint) => drop(owed.insert(footprint.node.clone())),
            Trace::Deletion(node) => drop(owed.insert(node.clone())),
            Trace::Owners(right) => {
                if let Outbound::Right { nodes, .. } = right.message() {
                    owed.extend(nodes.iter().cloned());
                }
            }
            Trace::Auth | Trace::Join | Trace::Other => {}
        }
    }
    owed
}
