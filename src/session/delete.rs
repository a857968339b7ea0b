//! Deletes (docs/protocol.md, 3.6). A Delete that is not echoed has not happened, for its sender neither.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::debug;

use crate::store::Record;
use crate::wire::message::NodeId;

use super::{ClientId, Session, Time};

/// A node younger than this is deleted only by its creator: what refers to it may still be on its way to whoever
/// takes it for an orphan.
const NEWBORN: Duration = Duration::from_secs(5);

impl Session {
    pub(super) fn delete(&mut self, now: Time, id: ClientId, node: NodeId) {
        if !self.may_edit_scene(now, id) {
            return;
        }
        let Some(entry) = self.graph.get(&node) else {
            // Nobody else has it; the sender removes its own when it hears so.
            return self.give_up(now, id, &node);
        };
        if !self.may_delete(id, &node) {
            debug!(%node, "a Delete of somebody else's node is refused");
            return self.undo_delete(now, id, &node);
        }
        let young = now.saturating_duration_since(entry.born) < NEWBORN && entry.creator.is_some();
        let unaware = || self.is_healing(now) || self.has_yet_to_read_of(id, &node);
        if young && (entry.creator != Some(id) || unaware()) {
            debug!(%node, "a Delete of a newborn node is not carried out");
            return self.undo_delete(now, id, &node);
        }
        if self.resumed_at == Some(entry.born) {
            self.held_deletes.insert((node, id));
            return;
        }
        let stale = self.to_be_named_in_vain(id, &node);
        self.graph.delete(now, &node);
        self.record(Record::Delete {
            id: node.clone(),
            author: self.author(id),
        });
        self.healing.remove(&node);
        self.announce_deletion(now, &node);
        for parent in stale {
            self.answer_with_node(now, id, &parent);
        }
    }

    /// Whether something refers to the node that this client may not have read yet as it is: a collection that was sent before its own
    /// Commit of it had come does not name its new object.
    fn has_yet_to_read_of(&self, id: ClientId, node: &NodeId) -> bool {
        let user = self.clients.get(&id).and_then(|c| c.user.as_deref());
        let behind = |parent: &NodeId| user.is_some_and(|user| user.is_behind_on(parent));
        self.graph.parents(node).iter().any(behind)
    }

    /// Right after a restart nobody knows any more which nodes are newborn, and the first that comes is what clients have sent without
    /// hearing of one another: Deletes of what they take for orphans, and what refers to it, each on a connection of its own. That is
    /// over when everybody is back and has been listened to.
    fn is_settling(&self, now: Time) -> bool {
        let new = self
            .resumed_at
            .is_some_and(|at| now.saturating_duration_since(at) < NEWBORN);
        new && self.clients.values().any(|client| {
            let user = client.user.as_deref().filter(|user| user.is_active());
            user.is_some_and(|user| {
                client.data.is_none() || client.command.is_none() || user.listened_to_until > now
            })
        })
    }

    pub(super) fn tick_deletes(&mut self, now: Time) {
        if self.resumed_at.is_some() && !self.is_settling(now) {
            self.settle_deletes(now);
        }
    }

    /// Carries out the Deletes that have waited, but for those of nodes that something refers to: whoever asked did not know of that.
    pub(super) fn settle_deletes(&mut self, now: Time) {
        // None waits from now on.
        self.resumed_at = None;
        let mut held = std::mem::take(&mut self.held_deletes);
        loop {
            let (referred, orphans): (BTreeSet<_>, BTreeSet<_>) = held
                .into_iter()
                .partition(|(node, _)| !self.graph.parents(node).is_empty());
            held = referred;
            if orphans.is_empty() {
                break;
            }
            for (node, id) in orphans {
                // Of several who have asked for it the first one is enough.
                if self.graph.contains(&node) {
                    self.delete(now, id, node);
                }
            }
        }
        for (node, id) in held {
            debug!(%node, "a Delete of a node that is in use is not carried out");
            self.undo_delete(now, id, &node);
        }
    }

    /// Tells the only client that can have a node that it is gone. A Node of it may still be on its way on the other connection,
    /// and come after a restart, if that connection is broken: it stays away.
    pub(super) fn give_up(&mut self, now: Time, id: ClientId, node: &NodeId) {
        if !self.graph.is_buried(node) {
            self.graph.bury(now, node.clone());
            self.record(Record::Delete {
                id: node.clone(),
                author: self.author(id),
            });
        }
        self.answer_unknown(now, id, node);
    }

    /// Nodes that a client which has carried out its Delete already is still to read of as depending on the one that is gone.
    fn to_be_named_in_vain(&self, id: ClientId, node: &NodeId) -> Vec<NodeId> {
        let Some(client) = self.clients.get(&id).filter(|c| c.dialect.acts_first()) else {
            return Vec::new();
        };
        let behind = |parent: &NodeId| {
            let user = client.user.as_deref();
            user.is_some_and(|user| user.is_behind_on(parent))
        };
        let mut parents = self.graph.parents(node);
        parents.retain(behind);
        parents
    }

    /// A Delete is refused by not echoing it, except to a client that has carried it out already: it gets the node again, and after
    /// it those whose dependencies it has cleared of it.
    fn undo_delete(&mut self, now: Time, id: ClientId, node: &NodeId) {
        let acts_first = self
            .clients
            .get(&id)
            .is_some_and(|client| client.dialect.acts_first());
        if !acts_first {
            return;
        }
        let parents = self.graph.parents(node);
        for node in std::iter::once(node).chain(&parents) {
            self.answer_with_node(now, id, node);
        }
    }
}
