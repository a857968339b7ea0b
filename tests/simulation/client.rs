//! A client as the add-on with `replication` 0.9.10 behaves (docs/protocol.md, section 3): what it handles per turn of its
//! main loop, what it drops and queues, and what makes it raise, which ends its session.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use blender_multiuser::wire::Dialect;
use blender_multiuser::wire::message::{
    ClientState, Commit, Inbound, Login, Node, NodeId, Outbound, UserName,
};
use blender_multiuser::wire::pickle::{Dict, Value};

use super::delta;
use super::dialects::held_data;
use super::rules;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Auth,
    Lobby,
    Syncing,
    Active,
    SrvSync,
    /// Ended, for the reason in `ended`.
    Gone,
}

/// A node in the client's own graph.
#[derive(Debug, Clone)]
pub struct Held {
    pub owner: UserName,
    pub dependencies: Vec<NodeId>,
    pub data: Value,
}

impl Held {
    pub fn type_id(&self) -> &str {
        self.data.get("type_id").and_then(Value::as_str).unwrap()
    }
}

#[derive(Debug)]
pub struct Client {
    pub name: UserName,
    pub admin: bool,
    pub login: Login,
    /// What its version speaks.
    pub dialect: Dialect,
    /// Nodes that it has removed before the server said so; what was under way to it may still name them.
    pub removed: HashSet<NodeId>,
    pub state: State,
    pub graph: BTreeMap<NodeId, Held>,
    pub online: BTreeMap<UserName, ClientState>,
    catalog: Vec<NodeId>,
    pub current: Option<NodeId>,
    pub(super) late_updates: VecDeque<Outbound>,
    /// What it wants to send, until the world takes it.
    pub out: Vec<(bool, Inbound)>,
    /// What it has received, for stories to look at.
    pub log: Vec<Outbound>,
    pub keep_log: bool,
    pub ended: Option<String>,
    /// An exception in it, or a message that must never be sent.
    pub faults: Vec<String>,
    pub commands_handled: usize,
    pub updates_handled: usize,
    /// Pushes its presence whenever it may, as the add-on does.
    pub shows_presence: bool,
}

/// The fields of a node's data, to change them; whoever else holds the same data keeps what it has.
pub fn fields(data: &mut Value) -> &mut Dict {
    match data {
        Value::Dict(dict) => Arc::make_mut(dict),
        other => panic!("node data is a dict, not {other:?}"),
    }
}

pub fn node_data(type_id: &str, id: &NodeId) -> Value {
    Value::dict([
        ("type_id", Value::str(type_id)),
        ("uuid", Value::str(id.as_str())),
        ("log", Value::list([])),
        ("tags", Value::set([Value::Int(0)]).unwrap()),
        ("k0", Value::Int(0)),
    ])
}

impl Client {
    pub fn new(name: &str, admin: bool) -> Self {
        Client {
            name: name.into(),
            admin,
            login: Login {
                dialect: Dialect::Dealer,
                one_password: false,
                wants_admin: admin,
                name: name.into(),
                server_password: String::new(),
                admin_password: if admin { "admin".into() } else { String::new() },
                version: "0.9.10".into(),
            },
            dialect: Dialect::Dealer,
            removed: HashSet::new(),
            state: State::Auth,
            graph: BTreeMap::new(),
            online: BTreeMap::new(),
            catalog: Vec::new(),
            current: None,
            late_updates: VecDeque::new(),
            out: Vec::new(),
            log: Vec::new(),
            keep_log: false,
            ended: None,
            faults: Vec::new(),
            commands_handled: 0,
            updates_handled: 0,
            shows_presence: true,
        }
    }

    pub fn is_active(&self) -> bool {
        self.state == State::Active
    }

    pub fn command(&mut self, message: Inbound) {
        self.out.push((false, message));
    }

    pub(super) fn data(&mut self, message: Inbound) {
        self.out.push((true, message));
    }

    pub fn raise(&mut self, why: String) {
        self.faults.push(format!("{} raised: {why}", self.name));
        self.end(why);
    }

    pub fn end(&mut self, why: String) {
        if self.state != State::Gone {
            self.state = State::Gone;
            self.ended = Some(why);
        }
    }

    /// One turn of its main loop: at most one command and one data message.
    pub fn turn(&mut self, command: Option<&Outbound>, update: Option<&Outbound>) {
        if let Some(command) = command {
            self.commands_handled += 1;
            self.receive(command, false);
        }
        if self.state != State::Gone
            && let Some(update) = update
        {
            self.updates_handled += 1;
            self.receive(update, true);
        }
        if self.shows_presence && self.state != State::Gone {
            self.present_itself();
        }
    }

    fn receive(&mut self, message: &Outbound, on_data: bool) {
        for (rule, check) in rules::RULES {
            if let Err(why) = check(self, message, on_data) {
                self.faults.push(format!("{}: {rule}: {why}", self.name));
            }
        }
        if self.keep_log {
            self.log.push(message.clone());
        }
        let handled = if on_data {
            self.handle_update(message)
        } else {
            self.handle_command(message)
        };
        if let Err(why) = handled {
            self.raise(why);
        }
    }

    fn assert_state(&self, states: &[State]) -> Result<(), String> {
        if states.contains(&self.state) {
            Ok(())
        } else {
            Err(format!("StateError in {:?}", self.state))
        }
    }

    fn handle_command(&mut self, message: &Outbound) -> Result<(), String> {
        match message {
            Outbound::Auth(answer) => {
                self.assert_state(&[State::Auth])?;
                if answer.contains("LOBBY") {
                    self.state = State::Lobby;
                }
                if answer.contains("RUNNING") {
                    self.state = State::Lobby;
                    self.command(Inbound::JoinStart);
                }
                if answer.contains("FAILED") {
                    self.end(answer.clone());
                }
            }
            Outbound::Disconnect { reason } => self.end(reason.clone()),
            Outbound::ClientsState(table) => {
                self.online = table
                    .iter()
                    .map(|entry| (entry.name.clone(), entry.clone()))
                    .collect();
            }
            Outbound::Metadata { owner, data } => {
                let user = self
                    .online
                    .get_mut(owner)
                    .ok_or(format!("metadata of unknown user {owner}"))?;
                for (key, value) in data {
                    match user.metadata.iter_mut().find(|(k, _)| k == key) {
                        Some(entry) => entry.1 = value.clone(),
                        None => user.metadata.push((key.clone(), value.clone())),
                    }
                }
            }
            Outbound::JoinCatalog(catalog) => {
                self.assert_state(&[State::Syncing, State::Lobby])?;
                self.catalog = catalog.clone();
                self.late_updates.clear();
                self.current = Some(self.catalog.pop().ok_or("pop from empty list")?);
                self.command(Inbound::JoinGet(self.current.clone().unwrap()));
                self.state = State::Syncing;
            }
            Outbound::JoinNode(node) => {
                self.assert_state(&[State::Syncing, State::Lobby])?;
                if Some(&node.id) != self.current.as_ref() {
                    // The join hangs from here.
                    return Ok(());
                }
                self.commit_node(node);
                self.next_of_catalog()?;
            }
            Outbound::JoinRemoved => {
                self.assert_state(&[State::Syncing, State::Lobby])?;
                self.next_of_catalog()?;
            }
            Outbound::InitAccepted => {
                self.assert_state(&[State::SrvSync])?;
                self.send_scene();
            }
            Outbound::InitRejected => {
                self.assert_state(&[State::SrvSync])?;
                self.state = State::Lobby;
            }
            Outbound::InitDone => {
                self.assert_state(&[State::SrvSync])?;
                self.state = State::Active;
            }
            Outbound::Delete(id) => {
                self.carry_out_delete(id);
                self.removed.remove(id);
            }
            Outbound::Right { nodes, owner } => {
                for id in nodes {
                    if let Some(held) = self.graph.get_mut(id) {
                        held.owner = owner.clone();
                    }
                }
            }
            Outbound::ServerInfo { .. } => {}
            Outbound::Node(_) | Outbound::Commit(_) | Outbound::Ping => {
                return Err("not a command".into());
            }
        }
        Ok(())
    }

    pub(super) fn next_of_catalog(&mut self) -> Result<(), String> {
        match self.catalog.pop() {
            Some(next) => {
                self.current = Some(next.clone());
                self.command(Inbound::JoinGet(next));
            }
            None => {
                for late in std::mem::take(&mut self.late_updates) {
                    self.apply(&late)?;
                }
                self.current = None;
                self.command(Inbound::JoinDone);
                self.state = State::Active;
            }
        }
        Ok(())
    }

    fn handle_update(&mut self, message: &Outbound) -> Result<(), String> {
        if self.is_four_socket() {
            return self.subscriber_got(message);
        }
        match self.state {
            State::Syncing => self.late_updates.push_back(message.clone()),
            State::Active => {
                self.apply(message)?;
                let id = match message {
                    Outbound::Node(node) => &node.id,
                    Outbound::Commit(commit) => &commit.id,
                    _ => return Err("not an update".into()),
                };
                if !self.graph.contains_key(id) {
                    return Err(format!("'NoneType' has no attribute 'state' ({id})"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, message: &Outbound) -> Result<(), String> {
        match message {
            Outbound::Node(node) | Outbound::JoinNode(node) => self.commit_node(node),
            Outbound::Commit(commit) => self.patch(commit)?,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn commit_node(&mut self, node: &Node) {
        let data = held_data(node);
        self.removed.remove(&node.id);
        match self.graph.get_mut(&node.id) {
            Some(held) => {
                held.data = data;
                held.dependencies = node.dependencies.clone();
            }
            None => {
                self.graph.insert(
                    node.id.clone(),
                    Held {
                        owner: node.owner.clone(),
                        dependencies: node.dependencies.clone(),
                        data,
                    },
                );
            }
        }
    }

    fn patch(&mut self, commit: &Commit) -> Result<(), String> {
        let Some(held) = self.graph.get_mut(&commit.id) else {
            return Ok(()); // logged; the caller fails right after
        };
        held.data = delta::apply(&commit.raw, &held.data)?;
        held.dependencies = commit.dependencies.clone();
        Ok(())
    }
}
