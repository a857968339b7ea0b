//! What is saved and comes back: the scene, chat, tasks and who is logged in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use crate::wire::delta::DeltaError;
use crate::wire::message::{COMMON, Commit, Node, NodeId, UserName};
use crate::wire::pickle::{self, Value};

use super::record::{HandOver, Record, SavedClient, commit_of};

/// Chat lines that are kept, as many as a client keeps (docs/protocol.md, 3.12).
const CHAT_LINES: usize = 10;

/// Everything that outlives the server.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// `None`: everybody waits in the lobby.
    pub scene: Option<SavedScene>,
    /// The last lines by id, oldest first.
    pub chat: Vec<(String, Json)>,
    pub tasks: Vec<(String, Json)>,
    pub clients: Vec<SavedClient>,
    /// Nodes that were deleted lately: clients that come back after a crash may not have heard of it.
    pub deleted: Vec<NodeId>,
    /// Nodes that were changed last, latest first: the same clients are likely to miss these.
    pub recent: Vec<NodeId>,
}

/// A scene.
#[derive(Debug, Clone, Default)]
pub struct SavedScene {
    /// The add-on version that it belongs to; `None`: the next client decides.
    pub version: Option<String>,
    /// How its clients spell messages; empty: unknown, as after an import.
    pub dialect: String,
    /// Every node in full, with the commits after it that could not be folded here.
    pub nodes: Vec<(Node, Vec<Commit>)>,
}

impl State {
    /// The records that put this scene, and what was said in it, in the place of whatever is there. Nobody is logged in.
    pub(super) fn records(&self, reason: &str, author: &UserName) -> Vec<Record> {
        let scene = self.scene.iter();
        let mut records: Vec<_> = scene
            .flat_map(|scene| scene.records(reason, author))
            .collect();
        let chat = self.chat.iter().cloned();
        records.extend(chat.map(|(id, line)| Record::Chat { id, line }));
        let tasks = self.tasks.iter().cloned();
        records.extend(tasks.map(|(id, task)| Record::Task {
            id,
            task: Some(task),
        }));
        records
    }
}

impl SavedScene {
    /// Bytes of node data.
    pub fn bytes(&self) -> usize {
        let node = |(node, commits): &(Node, Vec<Commit>)| {
            node.data.len() + commits.iter().map(|commit| commit.raw.len()).sum::<usize>()
        };
        self.nodes.iter().map(node).sum()
    }

    /// Gives every node back to everybody, as befits a scene whose people are not there.
    pub fn release(&mut self) {
        for (node, _) in &mut self.nodes {
            node.owner = COMMON.into();
        }
    }

    /// The records that put this scene in the place of whatever is there.
    pub fn records(&self, reason: &str, author: &UserName) -> Vec<Record> {
        let mut records = vec![Record::SceneStart {
            version: self.version.clone(),
            dialect: self.dialect.clone(),
            reason: reason.to_owned(),
        }];
        for (node, commits) in &self.nodes {
            records.push(Record::node(node, author.clone()));
            records.extend(
                commits
                    .iter()
                    .map(|commit| Record::commit(commit, author.clone())),
            );
        }
        records.push(Record::SceneComplete);
        records
    }
}

/// A state into which records are being folded.
#[derive(Default)]
pub(super) struct Fold {
    scene: Option<FoldScene>,
    /// A scene that has begun and is not complete.
    next: Option<FoldScene>,
    chat: Vec<(String, Json)>,
    tasks: Vec<(String, Json)>,
    clients: Vec<SavedClient>,
    /// Deleted before the first record.
    deleted: Vec<NodeId>,
    /// Changed last before the first record.
    recent: Vec<NodeId>,
    notes: Vec<String>,
    /// Of a stop in order, as long as nothing has come after it.
    handover: Option<HandOver>,
    /// Counts records, to tell what came before what.
    clock: u64,
}

#[derive(Default)]
struct FoldScene {
    version: Option<String>,
    dialect: String,
    nodes: BTreeMap<NodeId, FoldNode>,
    /// When nodes were last deleted.
    deleted: HashMap<NodeId, u64>,
    /// Commits that have no node they fit.
    stray: u64,
}

struct FoldNode {
    owner: UserName,
    kind: Option<Arc<str>>,
    dependencies: Vec<NodeId>,
    /// When the dependencies were last told: what is deleted later is none of them any more.
    told: u64,
    data: Bytes,
    commits: Vec<(Vec<NodeId>, Bytes)>,
    /// Something is missing between its data and now, so commits would not fit.
    stale: bool,
}

impl Fold {
    pub fn new(state: State) -> Fold {
        let scene = state.scene.map(|scene| {
            let nodes = scene.nodes.into_iter().map(|(node, commits)| {
                let commits = commits
                    .into_iter()
                    .map(|commit| (commit.dependencies, commit.raw));
                let fold = FoldNode {
                    owner: node.owner,
                    kind: node.kind,
                    dependencies: node.dependencies,
                    told: 0,
                    data: node.data,
                    commits: commits.collect(),
                    stale: false,
                };
                (node.id, fold)
            });
            FoldScene {
                version: scene.version,
                dialect: scene.dialect,
                nodes: nodes.collect(),
                ..FoldScene::default()
            }
        });
        Fold {
            scene,
            chat: state.chat,
            tasks: state.tasks,
            clients: state.clients,
            deleted: state.deleted,
            recent: state.recent,
            ..Fold::default()
        }
    }

    pub fn record(&mut self, record: Record) {
        self.clock += 1;
        self.handover = None;
        match record {
            Record::SceneStart {
                version, dialect, ..
            } => {
                self.next = Some(FoldScene {
                    version,
                    dialect,
                    ..FoldScene::default()
                });
            }
            Record::SceneComplete => {
                if let Some(next) = self.next.take() {
                    self.scene = Some(next);
                    // Nobody who is there knows the scene of before.
                    self.deleted.clear();
                    self.recent.clear();
                }
            }
            Record::SceneDropped { .. } => {
                self.scene = None;
                self.next = None;
                self.deleted.clear();
                self.recent.clear();
            }
            Record::Chat { id, line } => {
                put(&mut self.chat, id, line);
                let surplus = self.chat.len().saturating_sub(CHAT_LINES);
                self.chat.drain(..surplus);
            }
            Record::Task {
                id,
                task: Some(task),
            } => put(&mut self.tasks, id, task),
            Record::Task { id, task: None } => self.tasks.retain(|(known, _)| *known != id),
            Record::Login(client) => {
                self.clients
                    .retain(|known| known.identity != client.identity);
                self.clients.push(client);
            }
            Record::Left { identity, .. } => {
                self.clients.retain(|known| known.identity != identity);
            }
            Record::Gap { lost } => {
                self.notes.push(format!(
                    "journal: {lost} changes were never written, because the disk failed or was too slow"
                ));
                self.next = None;
                let nodes = self
                    .scene
                    .iter_mut()
                    .flat_map(|scene| scene.nodes.values_mut());
                nodes.for_each(|node| node.stale = true);
            }
            // Whoever began another scene has gone without completing it, and this run goes on with the one before.
            Record::ServerStarted { .. } => self.next = None,
            Record::ServerStopped { handover, .. } => self.handover = Some(handover),
            change => {
                if let Some(scene) = self.next.as_mut().or(self.scene.as_mut()) {
                    scene.record(self.clock, change);
                }
            }
        }
    }

    /// What the last run has handed over, if it ended in order and nothing is missing since.
    pub fn take_handover(&mut self) -> Option<HandOver> {
        self.handover.take().filter(|_| self.notes.is_empty())
    }

    /// Folds what can be folded. Also returns what an operator should know.
    pub fn finish(mut self) -> (State, Vec<String>) {
        let mut notes = std::mem::take(&mut self.notes);
        if self.next.is_some() {
            notes.push("journal: a new scene was not complete, so the one before is kept".into());
        }
        let mut recent = self.scene.as_ref().map_or(Vec::new(), FoldScene::changed);
        recent.append(&mut self.recent);
        let mut deleted = self.deleted;
        if let Some(scene) = &self.scene {
            let mut latest: Vec<_> = scene.deleted.iter().collect();
            latest.sort_by_key(|(_, at)| **at);
            deleted.extend(latest.into_iter().map(|(id, _)| id.clone()));
        }
        let state = State {
            deleted,
            recent,
            scene: self.scene.map(|scene| scene.finish(&mut notes)),
            chat: self.chat,
            tasks: self.tasks,
            clients: self.clients,
        };
        (state, notes)
    }
}

fn put(list: &mut Vec<(String, Json)>, id: String, value: Json) {
    match list.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known = value,
        None => list.push((id, value)),
    }
}

impl FoldScene {
    fn record(&mut self, clock: u64, record: Record) {
        match record {
            Record::Node {
                id,
                owner,
                dependencies,
                data,
                kind,
                ..
            } => {
                let node = FoldNode {
                    owner,
                    kind,
                    dependencies,
                    told: clock,
                    data,
                    commits: Vec::new(),
                    stale: false,
                };
                self.nodes.insert(id, node);
            }
            Record::Commit {
                id,
                dependencies,
                raw,
                ..
            } => match self.nodes.get_mut(&id) {
                Some(node) if !node.stale => {
                    node.dependencies.clone_from(&dependencies);
                    node.told = clock;
                    node.commits.push((dependencies, raw));
                }
                _ => self.stray += 1,
            },
            Record::Delete { id, .. } => {
                self.nodes.remove(&id);
                self.deleted.insert(id, clock);
            }
            Record::Right { nodes, owner, .. } => {
                for id in nodes {
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.owner.clone_from(&owner);
                    }
                }
            }
            Record::Pin { version, dialect } => {
                self.version = version;
                if let Some(dialect) = dialect {
                    self.dialect = dialect;
                }
            }
            _ => {}
        }
    }

    /// Nodes that records have changed, latest first.
    fn changed(&self) -> Vec<NodeId> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.told > 0);
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by_key(|(_, node)| std::cmp::Reverse(node.told));
        nodes.into_iter().map(|(id, _)| id.clone()).collect()
    }

    fn finish(self, notes: &mut Vec<String>) -> SavedScene {
        if self.stray > 0 {
            notes.push(format!(
                "journal: {} changes had no node that they fit and were left out",
                self.stray
            ));
        }
        let deleted = self.deleted;
        let nodes = self.nodes.into_iter().map(|(id, mut node)| {
            node.dependencies
                .retain(|id| deleted.get(id).is_none_or(|at| *at < node.told));
            node.finish(id, notes)
        });
        SavedScene {
            nodes: nodes.collect(),
            version: self.version,
            dialect: self.dialect,
        }
    }
}

impl FoldNode {
    fn finish(self, id: NodeId, notes: &mut Vec<String>) -> (Node, Vec<Commit>) {
        let mut value = None;
        let mut unfolded = Vec::new();
        for (dependencies, raw) in self.commits {
            let Some(commit) = commit_of(id.clone(), dependencies, raw) else {
                notes.push(format!(
                    "journal: a change of node {id} cannot be read and was left out"
                ));
                continue;
            };
            if !unfolded.is_empty() {
                unfolded.push(commit);
                continue;
            }
            match fold(value.as_ref(), &self.data, &commit) {
                Ok(folded) => value = Some(folded),
                Err(DeltaError::Unsupported(_)) => unfolded.push(commit),
                // It was not accepted when it came, either.
                Err(DeltaError::Raises(_)) => {}
            }
        }
        let node = Node {
            id,
            owner: self.owner,
            kind: self.kind,
            dependencies: self.dependencies,
            data: value.map_or(self.data, |value| pickle::encode(&value).into()),
        };
        (node, unfolded)
    }
}

fn fold(value: Option<&Value>, data: &Bytes, commit: &Commit) -> Result<Value, DeltaError> {
    let folded = match value {
        Some(value) => commit.delta.apply(value),
        None => {
            let base = pickle::decode(data).map_err(|e| DeltaError::Unsupported(e.to_string()))?;
            commit.delta.apply(&base)
        }
    }?;
    // Clients raise on a node without it, so it would have been refused.
    if folded.get("type_id").and_then(Value::as_str).is_none() {
        return Err(DeltaError::Raises("no type_id".into()));
    }
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(id: &str, dependencies: &[&str]) -> Record {
        Record::Node {
            id: id.into(),
            owner: COMMON.into(),
            dependencies: dependencies.iter().map(|id| NodeId::from(*id)).collect(),
            author: "Ada".into(),
            kind: None,
            data: Bytes::from_static(b"data"),
        }
    }

    fn begin() -> Record {
        Record::SceneStart {
            version: None,
            dialect: "dealer".into(),
            reason: "initialised".into(),
        }
    }

    fn delete(id: &str) -> Record {
        Record::Delete {
            id: id.into(),
            author: "Ada".into(),
        }
    }

    fn folded(records: impl IntoIterator<Item = Record>) -> (State, Vec<String>) {
        let mut fold = Fold::default();
        records.into_iter().for_each(|record| fold.record(record));
        fold.finish()
    }

    fn ids(state: &State) -> Vec<String> {
        let nodes = state.scene.iter().flat_map(|scene| &scene.nodes);
        nodes.map(|(node, _)| node.id.to_string()).collect()
    }

    #[test]
    fn a_scene_counts_when_it_is_complete() {
        let old = || [begin(), put("old", &[]), Record::SceneComplete];
        let (state, notes) = folded(old().into_iter().chain([begin(), put("new", &[])]));
        assert_eq!((ids(&state), notes.len()), (vec!["old".into()], 1));
        let complete = [begin(), put("new", &[]), Record::SceneComplete];
        let (state, notes) = folded(old().into_iter().chain(complete));
        assert_eq!((ids(&state), notes.len()), (vec!["new".into()], 0));
        let dropped = Record::SceneDropped {
            reason: "new".into(),
        };
        assert!(folded(old().into_iter().chain([dropped])).0.scene.is_none());
    }

    #[test]
    fn a_deleted_node_is_no_dependency_until_it_is_told_again() {
        let (state, _) = folded([
            begin(),
            put("a", &[]),
            put("parent", &["a", "b"]),
            put("later", &[]),
            Record::SceneComplete,
            delete("a"),
            put("a", &[]),
            put("later", &["a"]),
        ]);
        let nodes = state.scene.unwrap().nodes;
        let dependencies: Vec<_> = nodes
            .iter()
            .map(|(node, _)| node.dependencies.clone())
            .collect();
        assert_eq!(dependencies, [vec![], vec!["a".into()], vec!["b".into()]]);
    }

    #[test]
    fn what_was_changed_last_is_known() {
        let scene = |id: &str| {
            let Record::Node { id, data, .. } = put(id, &[]) else {
                unreachable!()
            };
            let node = Node {
                id,
                owner: COMMON.into(),
                dependencies: Vec::new(),
                data,
                kind: None,
            };
            (node, Vec::new())
        };
        let mut fold = Fold::new(State {
            scene: Some(SavedScene {
                nodes: ["a", "b", "c", "d"].map(scene).into(),
                ..SavedScene::default()
            }),
            recent: vec!["d".into(), "b".into()],
            ..State::default()
        });
        for id in ["c", "b", "c"] {
            fold.record(put(id, &[]));
        }
        let recent: Vec<NodeId> = ["c", "b", "d", "b"].map(NodeId::from).into();
        assert_eq!(fold.finish().0.recent, recent);
    }

    #[test]
    fn who_is_there_and_what_was_said() {
        let client = |identity: &'static [u8]| SavedClient {
            identity: Bytes::from_static(identity),
            name: "Ada".into(),
            admin: false,
            version: "0.9.10".into(),
            dialect: "dealer".into(),
        };
        let said = |n: usize| Record::Chat {
            id: n.to_string(),
            line: json!(n),
        };
        let task = |id: &str, task| Record::Task {
            id: id.into(),
            task,
        };
        let (state, _) = folded(
            [Record::Login(client(b"1")), Record::Login(client(b"2"))]
                .into_iter()
                .chain((0..15).map(said))
                .chain([
                    Record::Left {
                        identity: Bytes::from_static(b"1"),
                        reason: "left".into(),
                    },
                    task("a", Some(json!(1))),
                    task("b", Some(json!(1))),
                    task("a", Some(json!(2))),
                    task("b", None),
                ]),
        );
        assert_eq!(state.clients, [client(b"2")]);
        assert_eq!(
            (state.chat.len(), state.chat[0].1.clone()),
            (CHAT_LINES, json!(5))
        );
        assert_eq!(state.tasks, [("a".to_owned(), json!(2))]);
    }

    #[test]
    fn after_a_gap_only_whole_nodes_count() {
        let commit = |id: &str| Record::Commit {
            id: id.into(),
            dependencies: Vec::new(),
            author: "Ada".into(),
            raw: Bytes::from_static(b"no delta"),
        };
        let (_, notes) = folded([
            begin(),
            put("a", &[]),
            Record::SceneComplete,
            Record::Gap { lost: 2 },
            commit("a"),
        ]);
        assert_eq!(notes.len(), 2, "{notes:?}");
        let (_, notes) = folded([
            begin(),
            put("a", &[]),
            Record::SceneComplete,
            Record::Gap { lost: 2 },
            put("a", &[]),
            commit("a"),
        ]);
        assert!(notes[1].contains("cannot be read"), "{notes:?}");
    }
}
