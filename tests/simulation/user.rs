//! What the user of a simulated client does, and what the add-on makes of it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use blender_multiuser::wire::message::{COMMON, Inbound, Node, NodeId, UserName};
use blender_multiuser::wire::pickle::Value;

use super::client::{Client, Held, State, fields, node_data};
use super::delta::{self, Change};

impl Client {
    pub fn full(&self, id: &NodeId) -> Node {
        self.on_the_wire(id, &self.graph[id])
    }

    pub fn may_modify(&self, id: &NodeId) -> bool {
        self.graph
            .get(id)
            .is_some_and(|held| held.owner == self.name || &*held.owner == COMMON)
    }

    /// Adds a node to its own graph only.
    pub fn add(&mut self, id: &str, type_id: &str, dependencies: &[NodeId]) -> NodeId {
        let id = NodeId::from(id);
        let mut data = node_data(type_id, &id);
        if !dependencies.is_empty() {
            let children = Value::list(dependencies.iter().map(|id| Value::str(id.as_str())));
            fields(&mut data)
                .insert(Value::str("children"), children)
                .unwrap();
        }
        self.graph.insert(
            id.clone(),
            Held {
                owner: COMMON.into(),
                dependencies: dependencies.to_vec(),
                data,
            },
        );
        id
    }

    /// Adds a node and sends it.
    pub fn create(&mut self, id: &str, type_id: &str, dependencies: &[NodeId]) -> NodeId {
        let id = self.add(id, type_id, dependencies);
        self.send_full(&id);
        id
    }

    pub fn send_full(&mut self, id: &NodeId) {
        let node = self.full(id);
        self.data(Inbound::Node(node));
    }

    /// Changes a node: applied here first, then sent as a Commit. Not sent where deepdiff raises: the author has the data.
    pub fn change(&mut self, id: &NodeId, change: &Change) {
        let held = self.graph.get_mut(id).unwrap();
        let raw = delta::raw(&held.data, change);
        let Ok(data) = delta::apply(&raw, &held.data) else {
            return;
        };
        held.data = data;
        let dependencies = held.dependencies.clone();
        if self.is_four_socket() {
            return self.send_full(id);
        }
        let commit = delta::commit(id, dependencies, raw);
        self.data(Inbound::Commit(commit));
    }

    pub fn append(&mut self, id: &NodeId, x: i64) {
        self.change(id, &Change::Append(x));
    }

    /// Another list of children: the dependencies follow the data.
    pub fn set_children(&mut self, id: &NodeId, children: Vec<NodeId>) {
        let list = Value::list(children.iter().map(|id| Value::str(id.as_str())));
        let known: Vec<NodeId> = children
            .into_iter()
            .filter(|child| self.graph.contains_key(child))
            .collect();
        self.graph.get_mut(id).unwrap().dependencies = known;
        self.change(id, &Change::Set("children".into(), list));
    }

    pub fn link(&mut self, parent: &NodeId, child: &NodeId) {
        let mut children = self.graph[parent].dependencies.clone();
        if !children.contains(child) {
            children.push(child.clone());
        }
        self.set_children(parent, children);
    }

    pub fn unlink(&mut self, parent: &NodeId, child: &NodeId) {
        let mut children = self.graph[parent].dependencies.clone();
        children.retain(|id| id != child);
        self.set_children(parent, children);
    }

    /// The nodes and all that they depend on; raises where one is missing.
    fn with_dependencies(&mut self, ids: &[NodeId]) -> Option<Vec<NodeId>> {
        let mut all: Vec<NodeId> = ids.to_vec();
        let mut seen: HashSet<NodeId> = HashSet::new();
        let mut queue: VecDeque<NodeId> = ids.iter().cloned().collect();
        while let Some(id) = queue.pop_front() {
            if !seen.insert(id.clone()) {
                continue;
            }
            let Some(held) = self.graph.get(&id) else {
                if self.removed.contains(&id) {
                    all.retain(|known| *known != id);
                    continue;
                }
                self.raise(format!("a dependency is not in the graph: {id}"));
                return None;
            };
            queue.extend(held.dependencies.iter().cloned());
            if !all.contains(&id) && self.may_modify(&id) {
                all.push(id);
            }
        }
        Some(all)
    }

    pub fn lock(&mut self, ids: &[NodeId]) {
        self.right(ids, self.name.clone());
    }

    pub fn unlock(&mut self, ids: &[NodeId]) {
        self.right(ids, COMMON.into());
    }

    pub fn right(&mut self, ids: &[NodeId], owner: UserName) {
        if let Some(nodes) = self.with_dependencies(ids) {
            self.send_right(nodes, owner);
        }
    }

    pub fn delete(&mut self, id: &NodeId) {
        if self.is_four_socket() && self.graph.contains_key(id) {
            self.carry_out_delete(id);
            self.removed.insert(id.clone());
        }
        self.command(Inbound::Delete(id.clone()));
    }

    /// What the add-on does after a scene or collection has changed.
    pub fn purge(&mut self) {
        let mut reached: HashSet<NodeId> = HashSet::new();
        let mut queue: Vec<NodeId> = self
            .graph
            .iter()
            .filter(|(_, held)| held.type_id() == "Scene")
            .map(|(id, _)| id.clone())
            .collect();
        while let Some(id) = queue.pop() {
            if let Some(held) = self.graph.get(&id)
                && reached.insert(id)
            {
                queue.extend(held.dependencies.iter().cloned());
            }
        }
        let orphans: Vec<NodeId> = self
            .graph
            .keys()
            .filter(|id| !reached.contains(*id) && self.may_modify(id))
            .cloned()
            .collect();
        for id in orphans {
            self.delete(&id);
        }
    }

    /// Starts to initialise the session with what it has.
    pub fn init(&mut self) {
        self.command(Inbound::InitStart(self.graph.keys().cloned().collect()));
        self.state = State::SrvSync;
    }

    pub fn push(&mut self, key: &str, value: Value) {
        self.command(Inbound::Metadata(vec![(key.into(), value)]));
    }

    pub fn own_metadata(&self) -> Option<&Vec<(Arc<str>, Value)>> {
        Some(&self.online.get(&self.name)?.metadata)
    }

    pub fn metadata_of(&self, user: &str, key: &str) -> Option<&Value> {
        self.online
            .get(user)?
            .metadata
            .iter()
            .find(|(k, _)| &**k == key)
            .map(|(_, value)| value)
    }

    pub(super) fn present_itself(&mut self) {
        // Four-socket clients hand on what waits only once they are in.
        if !(self.is_active() || self.state == State::Lobby && !self.is_four_socket()) {
            return;
        }
        let Some(own) = self.own_metadata() else {
            return;
        };
        if own.iter().all(|(key, _)| &**key != "color") {
            self.command(Inbound::Metadata(first_push()));
        }
    }

    /// The user moves the view: the whole table of its own, stale as it is, goes out.
    pub fn move_view(&mut self, x: i64) {
        if self.own_metadata().is_none() {
            return;
        }
        let own = &mut self.online.get_mut(&self.name).unwrap().metadata;
        match own.iter_mut().find(|(key, _)| &**key == "view_corners") {
            Some(entry) => entry.1 = Value::Int(x),
            None => return,
        }
        let whole = own.clone();
        self.command(Inbound::Metadata(whole));
    }
}

pub fn first_push() -> Vec<(Arc<str>, Value)> {
    vec![
        ("view_corners".into(), Value::None),
        ("view_matrix".into(), Value::None),
        (
            "color".into(),
            Value::tuple([
                Value::Float(0.5),
                Value::Float(0.25),
                Value::Float(0.0),
                Value::Int(1),
            ]),
        ),
        ("frame_current".into(), Value::Int(1)),
        ("scene_current".into(), Value::str("Scene")),
        ("mode_current".into(), Value::str("OBJECT")),
    ]
}
