//! Locks: who owns a node (docs/protocol.md, 3.7).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::debug;

use crate::store::Record;
use crate::wire::message::{COMMON, NodeId, Outbound, Outgoing, UserName};

use super::{ClientId, Session, Time};

/// A Right travels on another connection than its Node and may come first, by as long as that connection may be gone; it is kept
/// for so long.
const EARLY: Duration = Duration::from_secs(30);
const EARLY_RIGHTS: usize = 10_000;
/// Of one sender.
const EARLY_RIGHTS_EACH: usize = 1_000;

/// How long, besides a round trip, somebody may not have noticed a new lock.
const UNAWARE: Duration = Duration::from_millis(50);

/// A Right for a node that is not known yet.
pub struct EarlyRight {
    node: NodeId,
    from: ClientId,
    owner: UserName,
    at: Time,
}

/// What is to be done about one node that a Right names.
enum Verdict {
    Grant,
    /// Somebody else has it: the asker is told who, and gets it when it comes free.
    Wait,
    /// As `Wait`, but what was asked for will not happen later.
    Refuse,
    /// Nothing is said.
    Ignore,
}

impl Session {
    pub(super) fn right(&mut self, now: Time, id: ClientId, nodes: Vec<NodeId>, owner: UserName) {
        if !self.may_edit_scene(now, id) {
            return;
        }
        let acts_first = self
            .clients
            .get(&id)
            .is_some_and(|client| client.dialect.acts_first());
        let mut granted = Vec::new();
        let mut refused = Vec::new();
        let mut early = Vec::new();
        // Each once: a few bytes of pickle name a node again.
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        for node in nodes {
            if !self.graph.contains(&node) {
                early.push(node);
                continue;
            }
            match self.judge(now, id, &node, &owner) {
                Verdict::Grant => granted.push(node),
                Verdict::Wait => {
                    if let Some(entry) = self.graph.get_mut(&node)
                        && !entry.waiting.contains(&id)
                    {
                        entry.waiting.push_back(id);
                    }
                    refused.push(node);
                }
                Verdict::Refuse => refused.push(node),
                // It has carried it out already.
                Verdict::Ignore if acts_first => refused.push(node),
                Verdict::Ignore => {}
            }
        }
        self.keep_early_rights(now, id, early, &owner);
        self.tell_true_owners(now, id, refused);
        self.assign(now, granted, &owner, &self.author(id));
    }

    fn judge(&mut self, now: Time, id: ClientId, node: &NodeId, owner: &UserName) -> Verdict {
        let target = if &**owner == COMMON {
            None
        } else {
            self.named(owner)
        };
        let (Some(entry), Some(user)) = (
            self.graph.get_mut(node),
            self.clients
                .get(&id)
                .and_then(|client| client.user.as_deref()),
        ) else {
            return Verdict::Ignore;
        };
        let mine = entry.owner == user.name;
        // An admin who selects what somebody else has just selected, or deselects what has just been given to somebody who
        // waited for it, does not know of that yet and means no override: the add-ons of both would deselect it.
        let unaware = user.heartbeat.round_trip().unwrap_or_default() + UNAWARE;
        let overrides = user.admin && now.saturating_duration_since(entry.owned_since) > unaware;
        if &**owner == COMMON {
            entry.waiting.retain(|asker| *asker != id);
            return if mine || entry.is_common() || overrides {
                Verdict::Grant
            } else {
                Verdict::Ignore
            };
        }
        match target {
            None => Verdict::Refuse,
            Some(target) if target == id => {
                if mine || entry.is_common() || overrides {
                    Verdict::Grant
                } else {
                    Verdict::Wait
                }
            }
            Some(_) if mine || user.admin => Verdict::Grant,
            Some(_) => Verdict::Refuse,
        }
    }

    /// Gives nodes to their new owner and tells everybody; a node that comes free goes to whoever asked for it first.
    fn assign(&mut self, now: Time, nodes: Vec<NodeId>, owner: &UserName, author: &UserName) {
        if nodes.is_empty() {
            return;
        }
        let mut by_owner: BTreeMap<UserName, Vec<NodeId>> = BTreeMap::new();
        for node in nodes {
            let next = if &**owner == COMMON {
                self.next_in_line(&node)
            } else {
                None
            };
            let owner = next.unwrap_or_else(|| owner.clone());
            let former = self
                .graph
                .get(&node)
                .and_then(|entry| self.named(&entry.owner));
            if self.graph.own(now, &node, &owner)
                && let (Some(former), Some(entry)) = (former, self.graph.get_mut(&node))
            {
                entry.former_owner = Some((former, now));
                // An edit that it made before may be lost with its connection, and from now on nothing else tells of it.
                if let Some(user) = self.user_mut(former) {
                    user.has_edited(now, &node);
                }
            }
            by_owner.entry(owner).or_default().push(node);
        }
        for (owner, nodes) in by_owner {
            self.record(Record::Right {
                nodes: nodes.clone(),
                owner: owner.clone(),
                author: author.clone(),
            });
            self.announce_owner(now, &nodes, &owner);
        }
    }

    fn next_in_line(&mut self, node: &NodeId) -> Option<UserName> {
        while let Some(asker) = self.graph.get_mut(node)?.waiting.pop_front() {
            if let Some(name) = self.name_of(asker) {
                return Some(name);
            }
        }
        None
    }

    /// Frees everything that a client has locked.
    pub(super) fn release_all(&mut self, now: Time, owner: &UserName) {
        let nodes: Vec<NodeId> = self.graph.owned_by(owner).cloned().collect();
        self.assign(now, nodes, &COMMON.into(), owner);
    }

    fn tell_true_owners(&mut self, now: Time, id: ClientId, nodes: Vec<NodeId>) {
        let mut by_owner: BTreeMap<UserName, Vec<NodeId>> = BTreeMap::new();
        for node in nodes {
            if let Some(entry) = self.graph.get(&node) {
                by_owner.entry(entry.owner.clone()).or_default().push(node);
            }
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        for (owner, nodes) in by_owner {
            debug!(%owner, nodes = nodes.len(), "a Right is refused");
            if !super::presence::has_room(client) {
                if let Some(user) = client.user.as_deref_mut() {
                    nodes.iter().for_each(|node| user.debts.owner(node));
                }
                continue;
            }
            client.tell(
                now,
                &mut self.effects,
                &Outgoing::new(Outbound::Right { nodes, owner }),
            );
        }
    }

    fn keep_early_rights(
        &mut self,
        now: Time,
        from: ClientId,
        nodes: Vec<NodeId>,
        owner: &UserName,
    ) {
        if nodes.is_empty() {
            return;
        }
        let own = |early: &&EarlyRight| early.from == from;
        let kept = self.early_rights.iter().filter(own).count();
        for node in nodes
            .into_iter()
            .take(EARLY_RIGHTS_EACH.saturating_sub(kept))
        {
            if self.early_rights.len() >= EARLY_RIGHTS {
                self.early_rights.pop_front();
            }
            self.early_rights.push_back(EarlyRight {
                node,
                from,
                owner: owner.clone(),
                at: now,
            });
        }
    }

    pub(super) fn apply_early_rights(&mut self, now: Time, node: &NodeId) {
        if self.early_rights.iter().all(|early| early.node != *node) {
            return;
        }
        let (due, rest): (std::collections::VecDeque<_>, _) =
            std::mem::take(&mut self.early_rights)
                .into_iter()
                .partition(|early| early.node == *node);
        self.early_rights = rest;
        for early in due {
            self.right(now, early.from, vec![early.node], early.owner);
        }
    }

    pub(super) fn tick_rights(&mut self, now: Time) {
        while self
            .early_rights
            .front()
            .is_some_and(|early| now.saturating_duration_since(early.at) > EARLY)
        {
            self.early_rights.pop_front();
        }
    }
}
