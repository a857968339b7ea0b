//! The central replication graph: nodes, their data, dependencies and owners.

mod fold;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::wire::delta::DeltaError;
use crate::wire::message::{COMMON, Commit, Node, NodeId, UserName};
use crate::wire::pickle::{self, Value};

use super::{ClientId, Time};

pub use fold::FoldOutcome;

/// How long a deleted node is remembered at least: a full Node that crosses its Delete must not bring it back, and a client
/// whose connection breaks must be told what went meanwhile.
const TOMBSTONE: Duration = Duration::from_secs(300);
const TOMBSTONES: usize = 100_000;

/// Kinds of nodes that the add-on changes without locking them (`type_id`; docs/protocol.md, 3.5).
const UNLOCKED_KINDS: [&str; 4] = ["Scene", "Collection", "World", "Action"];

/// A node edited by commits keeps its decoded data while it is being edited, for this long after the last one.
const KEEP_DECODED: Duration = Duration::from_secs(30);

/// Where the last updates of a node came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Client(ClientId),
    /// The server itself sent it in full to one client, or to everybody.
    ServerTo(ClientId),
    ServerToAll,
}

/// One node of the graph.
#[derive(Debug)]
pub struct Entry {
    pub owner: UserName,
    /// As its author sees them; some may not exist (any more) here.
    pub dependencies: Vec<NodeId>,
    /// Name of its type, as far as the decoder told.
    kind: Option<Arc<str>>,
    body: Body,
    pub born: Time,
    pub creator: Option<ClientId>,
    pub changed: Time,
    pub owned_since: Time,
    /// Who owned it until when: an edit may cross its own unlock.
    pub former_owner: Option<(ClientId, Time)>,
    /// Who asked for it while somebody else had it, in order.
    pub waiting: VecDeque<ClientId>,
    /// When which source last changed it, within the time in which edits can cross.
    pub recent: Vec<(Source, Time)>,
    /// When it is to be sent to everybody, if nobody changes it before.
    pub heal_at: Option<Time>,
    /// The log says already that commits of it could not be folded.
    pub told_unfolded: bool,
    /// A fold is under way elsewhere; updates wait for it.
    pub folding: Option<Folding>,
}

#[derive(Debug)]
pub struct Folding {
    pub generation: u64,
    /// The commit being folded and its author, then those that wait.
    pub commits: VecDeque<(ClientId, Commit)>,
}

/// A node's data: the last full value, and what has come since.
#[derive(Debug)]
struct Body {
    base: Bytes,
    /// The current value, decoded; newer than `base` where `stale` is set.
    value: Option<Value>,
    stale: bool,
    /// Commits since `base` that could not be folded here. Clients fold them themselves.
    unfolded: Vec<Commit>,
}

#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<NodeId, Entry>,
    /// Who names a node as a dependency, whether that exists or not.
    parents: HashMap<NodeId, BTreeSet<NodeId>>,
    deleted: HashMap<NodeId, Time>,
    deletions: VecDeque<(Time, NodeId)>,
    generation: u64,
    /// Nodes that may hold decoded data.
    decoded: BTreeSet<NodeId>,
}

/// Decodes node data for folding. It was validated when it came in, so a failure is a fault of this server.
pub(super) fn decode(bytes: &Bytes) -> Result<Value, DeltaError> {
    pickle::decode(bytes).map_err(|error| DeltaError::Unsupported(format!("stored data: {error}")))
}

impl Graph {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of node data.
    pub fn bytes(&self) -> usize {
        self.nodes.values().map(|entry| entry.body.base.len()).sum()
    }

    pub fn contains(&self, id: &NodeId) -> bool {
        self.nodes.contains_key(id)
    }

    pub fn get(&self, id: &NodeId) -> Option<&Entry> {
        self.nodes.get(id)
    }

    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut Entry> {
        self.nodes.get_mut(id)
    }

    pub fn clear(&mut self) {
        *self = Graph {
            generation: self.generation,
            ..Graph::default()
        };
    }

    /// Stores a full Node: a new one with the owner it names, or new data and dependencies for a known one.
    /// Returns whether it is new.
    pub fn put(&mut self, now: Time, node: Node, creator: Option<ClientId>) -> bool {
        let id = node.id.clone();
        let body = Body {
            base: node.data,
            value: None,
            stale: false,
            unfolded: Vec::new(),
        };
        let new = match self.nodes.get_mut(&node.id) {
            Some(entry) => {
                entry.body = body;
                entry.kind = node.kind;
                entry.changed = now;
                // What was being folded is overtaken.
                entry.folding = None;
                false
            }
            None => {
                self.nodes.insert(
                    node.id,
                    Entry {
                        owner: node.owner,
                        dependencies: Vec::new(),
                        kind: node.kind,
                        body,
                        born: now,
                        creator,
                        changed: now,
                        former_owner: None,
                        waiting: VecDeque::new(),
                        recent: Vec::new(),
                        heal_at: None,
                        owned_since: now,
                        told_unfolded: false,
                        folding: None,
                    },
                );
                true
            }
        };
        self.depend(&id, node.dependencies);
        new
    }

    /// Puts a node back as it was saved, with the commits that could not be folded.
    pub fn restore(&mut self, now: Time, node: Node, commits: Vec<Commit>) {
        let id = node.id.clone();
        self.put(now, node, None);
        for commit in commits {
            if let Some(entry) = self.nodes.get_mut(&id) {
                entry.keep(now, &commit);
            }
            self.depend(&id, commit.dependencies);
        }
    }

    /// Gives everybody's nodes back but those of these users.
    pub fn release_except(&mut self, now: Time, here: &[UserName]) {
        for entry in self.nodes.values_mut() {
            if !entry.is_common() && !here.contains(&entry.owner) {
                entry.owner = COMMON.into();
                entry.owned_since = now;
            }
        }
    }

    /// Removes a node, and its uuid from every node's dependencies.
    pub fn delete(&mut self, now: Time, id: &NodeId) -> Option<Entry> {
        let entry = self.nodes.remove(id)?;
        for dependency in &entry.dependencies {
            self.forget_parent(dependency, id);
        }
        for parent in self.parents.remove(id).unwrap_or_default() {
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.dependencies.retain(|dependency| dependency != id);
            }
        }
        self.decoded.remove(id);
        self.bury(now, id.clone());
        Some(entry)
    }

    /// Remembers that a node has been deleted.
    pub fn bury(&mut self, now: Time, id: NodeId) {
        self.deleted.insert(id.clone(), now);
        self.deletions.push_back((now, id));
        if self.deletions.len() > TOMBSTONES {
            self.exhume();
        }
    }

    fn exhume(&mut self) {
        if let Some((at, id)) = self.deletions.pop_front()
            && self.deleted.get(&id) == Some(&at)
        {
            self.deleted.remove(&id);
        }
    }

    /// Whether a node was deleted not long ago.
    pub fn is_buried(&self, id: &NodeId) -> bool {
        self.deleted.contains_key(id)
    }

    /// Whether the scene is one of four-socket add-ons, whose types have names of their own; `None`: there is no scene.
    pub fn is_four_socket(&self) -> Option<bool> {
        let own = |entry: &Entry| {
            let kind = entry.kind.as_deref();
            kind.is_some_and(|kind| kind.starts_with("Bl"))
        };
        (!self.nodes.is_empty()).then(|| self.nodes.values().any(own))
    }

    /// Nodes that this user may have been editing: its own, and those of the kinds that the add-on changes without a lock, whoever
    /// may have locked them since.
    pub fn may_be_edited_by(&self, user: &str) -> Vec<NodeId> {
        self.nodes
            .iter()
            .filter(|(_, entry)| &*entry.owner == user || entry.is_of_unlocked_kind())
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub fn ids(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    /// The nodes that were changed last, at most so many, latest first.
    pub fn latest(&self, count: usize) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.changed));
        let ids = nodes.into_iter().map(|(id, _)| id.clone());
        ids.take(count).collect()
    }

    /// Whether a node is there, or was deleted not long ago.
    pub fn knows(&self, id: &NodeId) -> bool {
        self.contains(id) || self.is_buried(id)
    }

    /// Nodes that name this one as a dependency.
    pub fn parents(&self, id: &NodeId) -> Vec<NodeId> {
        self.parents
            .get(id)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Gives a node its dependencies, in place of those it had.
    fn depend(&mut self, id: &NodeId, dependencies: Vec<NodeId>) {
        let Some(entry) = self.nodes.get_mut(id) else {
            return;
        };
        // Most commits change nothing here.
        if entry.dependencies == dependencies {
            return;
        }
        let former = std::mem::take(&mut entry.dependencies);
        entry.dependencies.clone_from(&dependencies);
        for dependency in &former {
            self.forget_parent(dependency, id);
        }
        for dependency in dependencies.into_iter().filter(|other| other != id) {
            self.parents
                .entry(dependency)
                .or_default()
                .insert(id.clone());
        }
    }

    fn forget_parent(&mut self, dependency: &NodeId, parent: &NodeId) {
        if let Some(parents) = self.parents.get_mut(dependency) {
            parents.remove(parent);
            if parents.is_empty() {
                self.parents.remove(dependency);
            }
        }
    }

    /// Those of the dependencies that exist.
    pub fn existing(&self, dependencies: &[NodeId]) -> Vec<NodeId> {
        dependencies
            .iter()
            .filter(|dependency| self.nodes.contains_key(*dependency))
            .cloned()
            .collect()
    }

    /// The node in full as a client may be sent it, with the commits that the client has to fold itself.
    pub fn full(&mut self, id: &NodeId) -> Option<(Node, Vec<Commit>)> {
        let entry = self.nodes.get_mut(id)?;
        entry.body.encode();
        let (owner, data) = (entry.owner.clone(), entry.body.base.clone());
        let kind = entry.kind.clone();
        let mut unfolded = entry.body.unfolded.clone();
        let entry = self.nodes.get(id)?;
        let dependencies = self.existing(&entry.dependencies);
        for commit in &mut unfolded {
            commit.dependencies.clone_from(&dependencies);
        }
        let node = Node {
            id: id.clone(),
            owner,
            dependencies,
            data,
            kind,
        };
        Some((node, unfolded))
    }

    /// All nodes in full as of now, dependencies before those that need them, and those among them that have unfolded commits.
    pub fn cut(&mut self) -> (Vec<Node>, Vec<NodeId>) {
        let mut unfolded = Vec::new();
        let nodes = self
            .all()
            .into_iter()
            .map(|(node, commits)| {
                if !commits.is_empty() {
                    unfolded.push(node.id.clone());
                }
                node
            })
            .collect();
        (nodes, unfolded)
    }

    /// All nodes in full, dependencies first, each with the commits that could not be folded here.
    pub fn all(&mut self) -> Vec<(Node, Vec<Commit>)> {
        self.dependencies_first()
            .iter()
            .filter_map(|id| self.full(id))
            .collect()
    }

    fn dependencies_first(&self) -> Vec<NodeId> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut seen: HashSet<&NodeId> = HashSet::with_capacity(self.nodes.len());
        let mut stack: Vec<(&NodeId, usize)> = Vec::new();
        for root in self.nodes.keys() {
            if !seen.insert(root) {
                continue;
            }
            stack.push((root, 0));
            while let Some((id, next)) = stack.last_mut() {
                let dependency = self
                    .nodes
                    .get(*id)
                    .and_then(|entry| entry.dependencies.get(*next));
                *next += 1;
                match dependency {
                    Some(dependency) => {
                        if let Some((dependency, _)) = self.nodes.get_key_value(dependency)
                            && seen.insert(dependency)
                        {
                            stack.push((dependency, 0));
                        }
                    }
                    None => {
                        order.push((*id).clone());
                        stack.pop();
                    }
                }
            }
        }
        order
    }

    /// Changes a node's owner. Returns whether it had another one.
    pub fn own(&mut self, now: Time, id: &NodeId, owner: &UserName) -> bool {
        let Some(entry) = self.nodes.get_mut(id) else {
            return false;
        };
        if entry.owner == *owner {
            return false;
        }
        entry.owner = owner.clone();
        entry.owned_since = now;
        true
    }

    /// Nobody waits for a node in the name of a client that has left.
    pub fn forget_asker(&mut self, client: ClientId) {
        for entry in self.nodes.values_mut() {
            entry.waiting.retain(|asker| *asker != client);
        }
    }

    /// Who waits for which node, for each node in the order in which they asked.
    pub fn waiting(&self) -> impl Iterator<Item = (&NodeId, ClientId)> {
        self.nodes
            .iter()
            .flat_map(|(id, entry)| entry.waiting.iter().map(move |asker| (id, *asker)))
    }

    /// Nodes of which a fold is under way.
    pub fn folding(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes
            .iter()
            .filter(|(_, entry)| entry.folding.is_some())
            .map(|(id, _)| id)
    }

    /// Nodes owned by this name.
    pub fn owned_by<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a NodeId> {
        self.nodes
            .iter()
            .filter(move |(_, entry)| &*entry.owner == owner)
            .map(|(id, _)| id)
    }

    /// Forgets old tombstones and the decoded data of nodes that nobody edits any more.
    pub fn tick(&mut self, now: Time) {
        while self
            .deletions
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > TOMBSTONE)
        {
            self.exhume();
        }
        let nodes = &mut self.nodes;
        self.decoded.retain(|id| {
            let Some(entry) = nodes.get_mut(id) else {
                return false;
            };
            if now.saturating_duration_since(entry.changed) < KEEP_DECODED {
                return true;
            }
            entry.body.encode();
            entry.body.value = None;
            false
        });
    }
}

impl Entry {
    pub fn is_common(&self) -> bool {
        &*self.owner == COMMON
    }

    /// Takes note of who sends this node now.
    pub fn came_from(&mut self, now: Time, source: Source) {
        match self.recent.iter_mut().find(|(other, _)| *other == source) {
            Some((_, at)) => *at = now,
            None => self.recent.push((source, now)),
        }
    }

    fn is_of_unlocked_kind(&self) -> bool {
        // The add-on's classes for its types have names that begin with Bl, which is what four-socket clients say.
        self.kind
            .as_deref()
            .is_some_and(|kind| UNLOCKED_KINDS.contains(&kind.strip_prefix("Bl").unwrap_or(kind)))
    }
}

impl Body {
    fn encode(&mut self) {
        if self.stale
            && let Some(value) = &self.value
        {
            self.base = pickle::encode(value).into();
            self.stale = false;
        }
    }
}
