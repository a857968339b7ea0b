//! Nodes and commits: who may change what, folding, and the healing of edits that cross (docs/protocol.md, 3.5 and 3.7).

use std::time::Duration;

use tracing::{debug, info, warn};

use crate::store::Record;
use crate::wire::Dialect;
use crate::wire::delta::{Flavour, Fragility};
use crate::wire::message::{COMMON, Commit, Node, NodeId};

use super::client::State;
use super::delivery::Relayed;
use super::graph::{FoldOutcome, Source};
use super::{ClientId, Effect, Folded, Scene, Session, Time};

/// Edits of one node by two sides within this time may have crossed.
pub const CROSSING: Duration = Duration::from_secs(2);

/// A node whose edits crossed is sent to everybody once nobody has changed it for this long.
const QUIET: Duration = Duration::from_millis(400);

/// A node comes before what names it, except in a circle. One that has been named and does not come for so long is lost.
const LOST: Duration = Duration::from_secs(5);

/// So many of them are remembered of one client.
const NAMED_IN_VAIN: usize = 1_000;

/// Whether a client with this deepdiff can load and will rightly fold a delta of that flavour. What nobody has told is taken to
/// be the common case, the add-on's own deepdiff 8.
pub(super) fn reads(client: Option<Flavour>, delta: Flavour) -> bool {
    match delta {
        Flavour::Either => true,
        Flavour::V5 => client == Some(Flavour::V5),
        Flavour::V8 => client != Some(Flavour::V5),
    }
}

impl Session {
    /// A full Node on the data channel.
    pub(super) fn node(&mut self, now: Time, id: ClientId, mut node: Node) {
        if matches!(self.scene, Scene::Initialising(_)) && self.publishes(id) {
            return self.init_node(now, id, node);
        }
        if !self.may_edit_scene(now, id) {
            return;
        }
        self.updates += 1;
        let known = self.graph.contains(&node.id);
        if known {
            if !self.may_change(now, id, &node.id) {
                return self.refuse_edit(now, id, &node.id);
            }
        } else if self.graph.is_buried(&node.id) {
            // Clients make a new uuid for whatever comes back, so this was sent without knowing of the Delete.
            debug!(node = %node.id, "a Node crossed the Delete of it and is dropped");
            return self.answer_unknown(now, id, &node.id);
        } else if self.name_of(id).is_none_or(|name| name != node.owner) && &*node.owner != COMMON {
            node.owner = COMMON.into();
            if let Some(user) = self.user_mut(id) {
                user.debts.owner(&node.id);
            }
        }
        let mut stored = node.clone();
        stored.owner = match self.graph.get(&node.id) {
            Some(entry) => entry.owner.clone(),
            None => node.owner,
        };
        let node_id = node.id.clone();
        self.note_unknown(now, id, &stored.dependencies);
        self.record(Record::node(&stored, self.author(id)));
        let new = self.graph.put(now, stored.clone(), Some(id));
        stored.dependencies = self.graph.existing(&stored.dependencies);
        self.relay(now, Some(id), &node_id, new, Relayed::Node(stored));
        if new {
            self.node_appeared(now, &node_id);
        }
        self.note_edit(now, id, &node_id);
        self.pump(now, id);
    }

    /// A Commit on the data channel.
    pub(super) fn commit(&mut self, now: Time, id: ClientId, commit: Commit) {
        if !self.may_edit_scene(now, id) {
            return;
        }
        self.updates += 1;
        if !self.graph.contains(&commit.id) {
            // The client registers the datablock anew once it hears that its node is unknown.
            return self.answer_unknown(now, id, &commit.id);
        }
        if !self.may_change(now, id, &commit.id) {
            return self.refuse_edit(now, id, &commit.id);
        }
        if let Some(user) = self.user_mut(id)
            && commit.delta.flavour() != Flavour::Either
        {
            user.flavour = Some(commit.delta.flavour());
        }
        let outcome = self.graph.fold(now, id, &commit);
        self.folded_commit(now, id, commit, outcome);
    }

    /// The result of a fold that was done elsewhere.
    pub fn folded(&mut self, now: Time, folded: Folded) {
        let Some(mut commits) = self.graph.take_folding(&folded.node, folded.generation) else {
            return;
        };
        let Some((author, commit)) = commits.pop_front() else {
            return;
        };
        let outcome = self.graph.finish_fold(now, &commit, folded.result);
        self.folded_commit(now, author, commit, outcome);
        for (author, commit) in commits {
            let outcome = self.graph.fold(now, author, &commit);
            self.folded_commit(now, author, commit, outcome);
        }
        for id in self.users() {
            self.pump(now, id);
        }
    }

    fn folded_commit(
        &mut self,
        now: Time,
        author: ClientId,
        mut commit: Commit,
        outcome: FoldOutcome,
    ) {
        match outcome {
            FoldOutcome::Folded => {}
            FoldOutcome::Later(job) => return self.effects.push_back(Effect::Fold(job)),
            FoldOutcome::Queued => return,
            FoldOutcome::Kept(why) => {
                let first = self
                    .graph
                    .get_mut(&commit.id)
                    .is_some_and(|entry| !std::mem::replace(&mut entry.told_unfolded, true));
                if first {
                    warn!(node = %commit.id, why, "a commit could not be folded here and is kept as it is");
                } else {
                    debug!(node = %commit.id, why, "a commit could not be folded here and is kept as it is");
                }
            }
            FoldOutcome::Refused(why) => {
                info!(node = %commit.id, why, "a commit is refused and answered with the node as it is");
                return self.refuse_edit(now, author, &commit.id);
            }
        }
        let node = commit.id.clone();
        self.note_unknown(now, author, &commit.dependencies);
        if let Some(entry) = self.graph.get(&node) {
            commit.dependencies.clone_from(&entry.dependencies);
        }
        self.record(Record::commit(&commit, self.author(author)));
        let in_full = self.should_go_in_full(now, author, &commit);
        commit.dependencies = self.graph.existing(&commit.dependencies);
        let mut update = Relayed::Commit(commit);
        if in_full
            && let Some((full, unfolded)) = self.graph.full(&node)
            && unfolded.is_empty()
        {
            update = Relayed::Node(full);
        }
        self.relay(now, Some(author), &node, false, update);
        self.note_edit(now, author, &node);
    }

    /// Whether this client's nodes come on a connection of their own, those of the first scene too.
    fn publishes(&self, id: ClientId) -> bool {
        self.clients
            .get(&id)
            .is_some_and(|client| client.dialect == Dialect::FourSocket)
    }

    /// Whether this client's changes of the scene are heard at all.
    pub(super) fn may_edit_scene(&mut self, now: Time, id: ClientId) -> bool {
        if !matches!(self.scene, Scene::Running) {
            return false;
        }
        let Some(user) = self.user_mut(id) else {
            return false;
        };
        match &user.state {
            State::Active => true,
            // Its DONE is on the other connection and may come later.
            State::Joining(join) if join.all_sent() => {
                self.join_done(now, id);
                true
            }
            _ => {
                debug!(
                    user = &*user.name,
                    "an edit before the end of joining is dropped"
                );
                false
            }
        }
    }

    /// Whether this client may delete a node: its owner, anybody while it is COMMON, and an admin.
    pub(super) fn may_delete(&self, id: ClientId, node: &NodeId) -> bool {
        let (Some(entry), Some(client)) = (self.graph.get(node), self.clients.get(&id)) else {
            return false;
        };
        let Some(user) = client.user.as_deref() else {
            return false;
        };
        entry.is_common() || entry.owner == user.name || user.admin
    }

    /// Whether this client may change a node: who may delete it, and its last owner for a moment, since an edit can cross
    /// its own unlock, which travels on another connection.
    fn may_change(&self, now: Time, id: ClientId, node: &NodeId) -> bool {
        self.may_delete(id, node)
            || self.graph.get(node).is_some_and(|entry| {
                entry.former_owner.is_some_and(|(former, until)| {
                    former == id && now.saturating_duration_since(until) < CROSSING
                })
            })
    }

    /// Whether a receiver whose own edit of the node is still on its way here might raise on this commit. It is folded already.
    fn should_go_in_full(&self, now: Time, author: ClientId, commit: &Commit) -> bool {
        let Some(entry) = self.graph.get(&commit.id) else {
            return false;
        };
        let alone = entry
            .recent
            .iter()
            .all(|(source, _)| *source == Source::Client(author));
        match commit.delta.fragility() {
            Fragility::Sturdy => false,
            Fragility::Careful => !alone,
            // Only the author can have edits under way if it has had the node locked for a while.
            Fragility::Fragile => {
                let locked = self.name_of(author).is_some_and(|name| name == entry.owner);
                !alone || !locked || now.saturating_duration_since(entry.owned_since) < CROSSING
            }
        }
    }

    /// The sender has applied an edit that does not count: it gets the node as it is.
    fn refuse_edit(&mut self, now: Time, id: ClientId, node: &NodeId) {
        debug!(%node, user = self.name_of(id).as_deref(), "an edit is refused and answered with the node as it is");
        self.answer_with_node(now, id, node);
    }

    /// Remembers an accepted edit, and has the node healed if it may have crossed another one.
    fn note_edit(&mut self, now: Time, id: ClientId, node: &NodeId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        user.has_edited(now, node);
        let behind = user.is_behind_on(node);
        // With a slow line, what the author had seen is older.
        let window = CROSSING + user.heartbeat.round_trip().unwrap_or_default();
        let Some(entry) = self.graph.get_mut(node) else {
            return;
        };
        entry
            .recent
            .retain(|(_, at)| now.saturating_duration_since(*at) < window.max(CROSSING));
        let crossed = entry.recent.iter().any(|(source, _)| match source {
            Source::Client(other) | Source::ServerTo(other) if *other == id => {
                matches!(source, Source::ServerTo(_))
            }
            Source::ServerTo(_) => false,
            Source::Client(_) | Source::ServerToAll => true,
        });
        entry.came_from(now, Source::Client(id));
        if crossed || behind || entry.heal_at.is_some() {
            entry.heal_at = Some(now + QUIET);
            self.healing.insert(node.clone());
        }
    }

    /// Takes note of what a client names that is not here, if that may be lost.
    fn note_unknown(&mut self, now: Time, id: ClientId, dependencies: &[NodeId]) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut().filter(|user| user.has_lost) else {
            return;
        };
        for node in dependencies {
            // What has been deleted its author is told anyway.
            let known = self.graph.knows(node);
            let named = || user.named_in_vain.iter().any(|(_, named)| named == node);
            if !known && user.named_in_vain.len() < NAMED_IN_VAIN && !named() {
                user.named_in_vain.push_back((now, node.clone()));
            }
        }
    }

    /// A node that its author has and nobody else, since it was lost with a broken connection, goes there too: the add-on
    /// registers its datablock anew.
    pub(super) fn tick_lost(&mut self, now: Time) {
        for id in self.users() {
            let is_due = |(named, _): &(Time, NodeId)| now.saturating_duration_since(*named) > LOST;
            while let Some(user) = self.user_mut(id)
                && user.named_in_vain.front().is_some_and(is_due)
                && let Some((_, node)) = user.named_in_vain.pop_front()
            {
                if !self.graph.knows(&node) {
                    info!(%node, user = self.name_of(id).as_deref(), "a node was lost with a broken connection; its author registers it anew");
                    self.give_up(now, id, &node);
                }
            }
        }
    }

    /// Has a node sent to everybody soon, its authors included.
    pub(super) fn heal_soon(&mut self, now: Time, node: &NodeId) {
        if let Some(entry) = self.graph.get_mut(node) {
            entry.heal_at = Some(now + QUIET);
            self.healing.insert(node.clone());
        }
    }

    /// A node is known from now on: what named it before must be sent again with it, and a Right may have been waiting.
    pub(super) fn node_appeared(&mut self, now: Time, node: &NodeId) {
        for parent in self.graph.parents(node) {
            self.heal_soon(now, &parent);
        }
        self.apply_early_rights(now, node);
    }

    pub(super) fn tick_heals(&mut self, now: Time) {
        let due: Vec<NodeId> = self
            .healing
            .iter()
            .filter(|node| match self.graph.get(node) {
                Some(entry) => entry.heal_at.is_none_or(|at| at <= now) && entry.folding.is_none(),
                None => true,
            })
            .cloned()
            .collect();
        for node in due {
            self.healing.remove(&node);
            let Some(entry) = self.graph.get_mut(&node) else {
                continue;
            };
            entry.heal_at = None;
            entry.recent.clear();
            entry.recent.push((Source::ServerToAll, now));
            self.last_heal = Some(now);
            debug!(%node, "edits of a node crossed: everybody gets it in full");
            for id in self.users() {
                if let Some(user) = self.user_mut(id)
                    && user.follows_scene()
                {
                    user.debts.content(&node);
                }
            }
        }
    }

    /// Whether nodes have been, or are about to be, sent to their own authors.
    pub(super) fn is_healing(&self, now: Time) -> bool {
        !self.healing.is_empty()
            || self
                .last_heal
                .is_some_and(|at| now.saturating_duration_since(at) < CROSSING)
    }
}
