//! Looking at a world: what the server has, where clients differ from it, and messages in a line each.

use std::collections::BTreeMap;

use blender_multiuser::wire::message::{Inbound, NodeId, Outbound};
use blender_multiuser::wire::pickle;

use super::client::Held;
use super::delta;
use super::dialects::held_data;
use super::world::{Who, World};

impl World {
    /// Whether some client has not handled everything that it has received.
    pub fn is_reading(&self) -> bool {
        self.stations.iter().any(|station| {
            station.client.ended.is_none()
                && station.wires[..2]
                    .iter()
                    .any(|wire| !wire.received.is_empty() || !wire.down.is_empty())
        })
    }

    /// The server's graph, commits that it does not fold applied as clients do.
    pub fn scene(&mut self) -> BTreeMap<NodeId, Held> {
        self.session
            .scene()
            .into_iter()
            .map(|(node, commits)| {
                let mut data = held_data(&node);
                for commit in commits {
                    data = delta::apply(&commit.raw, &data).unwrap();
                }
                let held = Held {
                    owner: node.owner,
                    dependencies: node.dependencies,
                    data,
                };
                (node.id, held)
            })
            .collect()
    }

    /// Where the client's graph differs from the server's.
    pub fn differences(&mut self, who: Who) -> Vec<String> {
        let scene = self.scene();
        let client = &self[who];
        let mut found = Vec::new();
        for (id, held) in &scene {
            match client.graph.get(id) {
                None => found.push(format!("{id} is missing at {}", client.name)),
                Some(own) => {
                    if own.owner != held.owner {
                        found.push(format!(
                            "owner of {id} is {} and {} at {}",
                            held.owner, own.owner, client.name
                        ));
                    }
                    let mut own_dependencies = own.dependencies.clone();
                    own_dependencies
                        .retain(|id| scene.contains_key(id) || !self.lost_births.contains(id));
                    if own_dependencies != held.dependencies {
                        found.push(format!(
                            "dependencies of {id} are {:?} and {:?} at {}",
                            held.dependencies, own.dependencies, client.name
                        ));
                    }
                    if !own.data.identical(&held.data) {
                        found.push(format!(
                            "data of {id} is {:?} and {:?} at {}",
                            held.data, own.data, client.name
                        ));
                    }
                }
            }
        }
        for id in client.graph.keys().filter(|id| !scene.contains_key(*id)) {
            if self.lost_births.contains(id) {
                continue;
            }
            found.push(format!("{id} is too much at {}", client.name));
        }
        found
    }

    /// Everything that is wrong when nobody does anything any more.
    pub fn faults(&mut self) -> Vec<String> {
        let mut found: Vec<String> = self
            .stations
            .iter()
            .flat_map(|station| station.client.faults.clone())
            .collect();
        let active: Vec<Who> = (0..self.stations.len())
            .map(Who)
            .filter(|who| self[*who].is_active())
            .collect();
        for &who in &active {
            found.extend(self.differences(who));
        }
        let names: Vec<_> = active.iter().map(|who| self[*who].name.clone()).collect();
        for (id, held) in self.scene() {
            if &*held.owner != "COMMON" && !names.contains(&held.owner) {
                found.push(format!("{id} is locked by {}, who is not here", held.owner));
            }
        }
        found
    }

    pub fn assert_converged(&mut self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

pub fn brief_in(message: &Inbound) -> String {
    match message {
        Inbound::Node(node) => format!("Node {} {:?} {}", node.id, node.dependencies, node.owner),
        Inbound::InitNode(node) => format!("InitNode {}", node.id),
        Inbound::Commit(commit) => format!(
            "Commit {} {:?} {:?}",
            commit.id,
            commit.dependencies,
            pickle::decode(&commit.raw).map_or_else(|_| String::new(), |v| format!("{v:?}"))
        ),
        other => format!("{other:?}"),
    }
}

pub fn brief_out(message: &Outbound) -> String {
    match message {
        Outbound::Node(node) => format!(
            "Node {} {:?} {} {:?}",
            node.id,
            node.dependencies,
            node.owner,
            pickle::decode(&node.data).unwrap()
        ),
        Outbound::JoinNode(node) => {
            format!("SET {} {:?} {}", node.id, node.dependencies, node.owner)
        }
        Outbound::Commit(commit) => format!(
            "Commit {} {:?} {:?}",
            commit.id,
            commit.dependencies,
            pickle::decode(&commit.raw).map_or_else(|_| String::new(), |v| format!("{v:?}"))
        ),
        Outbound::ClientsState(table) => format!(
            "ClientsState {:?}",
            table
                .iter()
                .map(|entry| (&entry.name, entry.status))
                .collect::<Vec<_>>()
        ),
        other => format!("{other:?}"),
    }
}
