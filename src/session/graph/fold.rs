//! Folding commits into nodes (docs/protocol.md, section 5).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::wire::delta::{Delta, DeltaError, Fragility};
use crate::wire::message::{Commit, NodeId};
use crate::wire::pickle::Value;

use super::super::{ClientId, FoldBase, FoldJob, Time};
use super::{Entry, Folding, Graph, decode};

/// Data or deltas of more bytes are folded off the session's task, and so is what takes long all the same
/// ([`Delta::apply_quickly`]).
const LARGE: usize = 256 * 1024;

/// Commits of one node that wait for a fold, or that cannot be folded here, and their bytes. With more than that the next
/// ones are refused, and their authors get the node as it is.
const KEPT_COMMITS: usize = 1_000;

const KEPT_BYTES: usize = 64 * 1024 * 1024;

/// In so many values of a node's data it is looked for what the node depends on, which takes about a millisecond.
const NAMES_SOUGHT: usize = 200_000;

/// What came of folding a commit.
pub enum FoldOutcome {
    Folded,
    /// To be folded elsewhere.
    Later(FoldJob),
    /// Waits for such a fold of the same node.
    Queued,
    /// Clients can fold it, this server cannot: kept as it is. Never of the fragile kinds.
    Kept(String),
    /// It must not be relayed: deepdiff would raise in every client, or might where that cannot be checked, or too much
    /// waits already.
    Refused(String),
}

impl Graph {
    /// Folds a commit into its node, here if that is cheap. Dependencies are taken over with the data; see also
    /// [`Entry::dependencies_after`].
    pub fn fold(&mut self, now: Time, author: ClientId, commit: &Commit) -> FoldOutcome {
        let Some(entry) = self.nodes.get_mut(&commit.id) else {
            return FoldOutcome::Refused("the node does not exist".into());
        };
        let waiting = entry
            .folding
            .iter()
            .flat_map(|folding| folding.commits.iter().map(|(_, commit)| commit));
        if is_full(waiting) || is_full(entry.body.unfolded.iter()) {
            return FoldOutcome::Refused("too many commits of this node wait to be folded".into());
        }
        if let Some(folding) = &mut entry.folding {
            folding.commits.push_back((author, commit.clone()));
            return FoldOutcome::Queued;
        }
        if !entry.body.unfolded.is_empty() {
            let why = "an earlier commit of this node could not be folded";
            return self.keep(now, commit, why.into());
        }
        if entry.body.base.len() <= LARGE && commit.raw.len() <= LARGE {
            let value = match &entry.body.value {
                Some(value) => Ok(value.clone()),
                None => decode(&entry.body.base),
            };
            let result = match value {
                Ok(value) => commit.delta.apply_quickly(&value),
                Err(error) => Some(Err(error)),
            };
            if let Some(result) = result {
                return self.finish_fold(now, commit, result);
            }
        }
        self.generation += 1;
        entry.folding = Some(Folding {
            generation: self.generation,
            commits: VecDeque::from([(author, commit.clone())]),
        });
        FoldOutcome::Later(entry.job(commit.id.clone(), self.generation, commit.delta.clone()))
    }

    /// Takes in the result of a fold.
    pub fn finish_fold(
        &mut self,
        now: Time,
        commit: &Commit,
        result: Result<Value, DeltaError>,
    ) -> FoldOutcome {
        let Some(entry) = self.nodes.get_mut(&commit.id) else {
            return FoldOutcome::Refused("the node does not exist".into());
        };
        match result {
            Ok(value) if value.get("type_id").and_then(Value::as_str).is_none() => {
                FoldOutcome::Refused("the node would lose its type_id".into())
            }
            Ok(value) => {
                if let Some(kind) = value.get("type_id").and_then(Value::as_str)
                    && entry.kind.as_deref() != Some(kind)
                {
                    entry.kind = Some(kind.into());
                }
                let dependencies = entry.dependencies_after(commit, &value);
                entry.body.value = Some(value);
                entry.body.stale = true;
                entry.changed = now;
                self.decoded.insert(commit.id.clone());
                self.depend(&commit.id, dependencies);
                FoldOutcome::Folded
            }
            Err(DeltaError::Raises(why)) => FoldOutcome::Refused(why),
            Err(DeltaError::Unsupported(why)) => self.keep(now, commit, why),
        }
    }

    /// Keeps a commit that this server cannot fold, for clients to fold. What cannot be folded cannot be checked either, so
    /// it must be of a kind that deepdiff carries out or skips.
    fn keep(&mut self, now: Time, commit: &Commit, why: String) -> FoldOutcome {
        if commit.delta.fragility() >= Fragility::Fragile {
            return FoldOutcome::Refused(format!("{why}, and clients might raise"));
        }
        if let Some(entry) = self.nodes.get_mut(&commit.id) {
            entry.keep(now, commit);
        }
        self.depend(&commit.id, commit.dependencies.clone());
        FoldOutcome::Kept(why)
    }

    /// Whether updates of this node wait for a fold.
    pub fn is_folding(&self, id: &NodeId) -> bool {
        self.nodes
            .get(id)
            .is_some_and(|entry| entry.folding.is_some())
    }

    /// The commit that a finished fold was about, if the node still waits for it.
    pub fn take_folding(
        &mut self,
        id: &NodeId,
        generation: u64,
    ) -> Option<VecDeque<(ClientId, Commit)>> {
        let entry = self.nodes.get_mut(id)?;
        if entry.folding.as_ref()?.generation != generation {
            return None;
        }
        Some(entry.folding.take()?.commits)
    }
}

/// Whether as many commits of one node are kept as may be.
fn is_full<'a>(commits: impl Iterator<Item = &'a Commit>) -> bool {
    let (mut count, mut bytes) = (0, 0);
    commits.for_each(|commit| {
        count += 1;
        bytes += commit.raw.len();
    });
    count >= KEPT_COMMITS || bytes >= KEPT_BYTES
}

/// Which of these uuids occur somewhere in the data; none if that takes too long to find out.
fn named_in<'a>(data: &Value, uuids: impl Iterator<Item = &'a NodeId>) -> Vec<NodeId> {
    let mut unseen: HashMap<&str, &NodeId> = uuids.map(|uuid| (uuid.as_str(), uuid)).collect();
    let mut named = Vec::new();
    let (mut stack, mut work) = (vec![data], 0);
    while let Some(value) = stack.pop()
        && !unseen.is_empty()
    {
        work += 1;
        stack.extend(value.children().take(NAMES_SOUGHT));
        if work + stack.len() > NAMES_SOUGHT {
            return Vec::new();
        }
        named.extend(value.as_str().and_then(|text| unseen.remove(text)).cloned());
    }
    named
}

impl Entry {
    /// What the node depends on with this commit, whose author tells all that it knows of. What somebody else has added meanwhile
    /// is not among that, but the folded data names it, and clients that are not told of it may load the node first, without what
    /// it names, and then take that for removed.
    fn dependencies_after(&self, commit: &Commit, folded: &Value) -> Vec<NodeId> {
        let mut dependencies = commit.dependencies.clone();
        if self.dependencies != dependencies {
            let told: HashSet<&NodeId> = commit.dependencies.iter().collect();
            let known = self.dependencies.iter();
            let untold = known.filter(|dependency| !told.contains(dependency));
            dependencies.extend(named_in(folded, untold));
        }
        dependencies
    }

    pub(super) fn keep(&mut self, now: Time, commit: &Commit) {
        self.body.encode();
        self.body.value = None;
        self.body.unfolded.push(commit.clone());
        self.changed = now;
    }

    /// A job that folds `delta` into the current data.
    pub fn job(&self, node: NodeId, generation: u64, delta: Arc<Delta>) -> FoldJob {
        let base = match &self.body.value {
            Some(value) => FoldBase::Decoded(value.clone()),
            None => FoldBase::Pickled(self.body.base.clone()),
        };
        FoldJob {
            node,
            generation,
            base,
            delta,
        }
    }
}
