//! What differs between clients of different dialects (docs/protocol.md, sections 6 and 8).

use std::sync::Arc;

use blender_multiuser::wire::dialect::knows_removed;
use blender_multiuser::wire::message::{Inbound, Node, NodeId, Outbound, UserName};
use blender_multiuser::wire::pickle::{self, Value};
use blender_multiuser::wire::{Channel, Dialect};

use super::client::{Client, Held, State, fields};

/// The data as the library keeps it: the type comes first. Where it travels outside of the data it is put in.
pub fn held_data(node: &Node) -> Value {
    let data = pickle::decode(&node.data).unwrap();
    match &node.kind {
        Some(kind) if data.get("type_id").is_none() => {
            with_type(kind.strip_prefix("Bl").unwrap(), &data)
        }
        _ => data,
    }
}

fn with_type(kind: &str, data: &Value) -> Value {
    let rest = data.as_dict().unwrap().iter();
    let rest = rest.map(|(key, value)| (key.as_str().unwrap().to_owned(), value.clone()));
    Value::dict(std::iter::once(("type_id".to_owned(), Value::str(kind))).chain(rest))
}

impl Client {
    /// The same client with another version of the library.
    pub fn of_version(mut self, version: &str) -> Self {
        self.dialect = Dialect::of(version).unwrap();
        self.login.version = version.into();
        // As its Auth is spelled.
        self.login.dialect = match self.dialect {
            dialect @ (Dialect::Tcp | Dialect::FourSocket) => dialect,
            _ => Dialect::Dealer,
        };
        if ["0.1.", "0.7.", "0.8."]
            .iter()
            .any(|old| version.starts_with(old))
        {
            self.login.one_password = true;
            self.login.server_password = self.login.admin_password.clone();
        }
        self
    }

    pub fn is_four_socket(&self) -> bool {
        self.dialect == Dialect::FourSocket
    }

    pub fn rights_one_by_one(&self) -> bool {
        matches!(self.dialect, Dialect::FourSocket | Dialect::OldDealer)
    }

    /// Where its nodes and commits go.
    pub fn update_channel(&self) -> Channel {
        if self.is_four_socket() {
            Channel::Publish
        } else {
            Channel::Data
        }
    }

    pub fn knows_removed(&self) -> bool {
        knows_removed(&self.login.version)
    }

    /// As it travels in this dialect.
    pub fn on_the_wire(&self, id: &NodeId, held: &Held) -> Node {
        let mut data = held.data.clone();
        let mut kind: Arc<str> = held.type_id().into();
        if self.is_four_socket() {
            kind = format!("Bl{kind}").into();
            fields(&mut data).remove(&Value::str("type_id"));
        }
        Node {
            id: id.clone(),
            owner: held.owner.clone(),
            dependencies: held.dependencies.clone(),
            data: pickle::encode(&data).into(),
            kind: Some(kind),
        }
    }

    /// Sends its whole scene: through the publisher, by commands from 0.1.23 on, and always so where nodes have a type inside.
    pub(super) fn send_scene(&mut self) {
        let by_publisher = self.login.version == "0.1.13";
        let nodes: Vec<NodeId> = self.graph.keys().cloned().collect();
        for id in nodes {
            let node = self.full(&id);
            if by_publisher {
                self.data(Inbound::Node(node));
            } else {
                self.command(Inbound::InitNode(node));
            }
        }
        self.command(if self.is_four_socket() {
            Inbound::Nothing
        } else {
            Inbound::InitEnd
        });
    }

    /// A message on the four-socket dialect's subscriber.
    pub(super) fn subscriber_got(&mut self, message: &Outbound) -> Result<(), String> {
        let (Outbound::Node(node) | Outbound::JoinNode(node)) = message else {
            return match message {
                // It is no header, and skipped.
                Outbound::Ping => Ok(()),
                _ => Err("not an update".into()),
            };
        };
        match self.state {
            State::Syncing if self.current.as_ref() == Some(&node.id) => {
                self.commit_node(node);
                self.next_of_catalog()?;
            }
            State::Syncing => self.late_updates.push_back(message.clone()),
            State::Active => self.commit_node(node),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn carry_out_delete(&mut self, id: &NodeId) {
        if self.graph.contains_key(id) {
            for held in self.graph.values_mut() {
                if let Some(at) = held.dependencies.iter().position(|dep| dep == id) {
                    held.dependencies.remove(at);
                }
            }
            self.graph.remove(id);
        }
    }

    /// A Right as this dialect has it: one node at a time, or carried out first.
    pub fn send_right(&mut self, nodes: Vec<NodeId>, owner: UserName) {
        if self.is_four_socket() {
            for id in &nodes {
                if let Some(held) = self.graph.get_mut(id) {
                    held.owner = owner.clone();
                }
            }
        }
        if self.rights_one_by_one() {
            for id in nodes {
                let (nodes, owner) = (vec![id], owner.clone());
                self.command(Inbound::Right { nodes, owner });
            }
        } else {
            self.command(Inbound::Right { nodes, owner });
        }
    }
}
