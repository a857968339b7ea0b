//! What the operator sees and does.

use tracing::info;

use crate::admin::{AdminCommand, AdminReply, SceneState, Status, UserStatus};

use crate::wire::message::{Commit, Node};

use super::client::{Client, State, User};
use super::{Scene, Session, Time};

impl Session {
    /// Carries out a command of the operator, as far as it concerns the session.
    pub fn admin(&mut self, now: Time, command: AdminCommand) -> AdminReply {
        match command {
            AdminCommand::Status => AdminReply::Status(Box::new(self.status(now))),
            AdminCommand::Kick { user, reason } => {
                let Some(id) = self.named(&user) else {
                    return AdminReply::Failed(self.nobody_named(&user));
                };
                // Under exactly the text `user` the add-on shows nothing.
                let reason = match reason.as_deref() {
                    None | Some("" | "user") => "kicked by admin".to_owned(),
                    Some(reason) => format!("kicked: {reason}"),
                };
                self.end(now, id, &reason, "kicked from the console");
                AdminReply::Done(format!("{user} has been kicked"))
            }
            AdminCommand::New => self.drop_scene(now),
            AdminCommand::Unpin => self.unpin(),
            AdminCommand::Store(_) => AdminReply::Failed("nothing is kept on disk here".into()),
            AdminCommand::Restart { at } => self.restart(now, at),
            AdminCommand::Exit { reason } => {
                self.stopping = true;
                let users = self.users();
                for &id in &users {
                    self.end(now, id, &reason, "server stops");
                }
                info!(
                    users = users.len(),
                    reason, "everybody has been told that the server stops"
                );
                AdminReply::Done(format!("stopping; users told: {}", users.len()))
            }
        }
    }

    /// What to say to somebody who asked for a user that is not here, with the one that may be meant.
    fn nobody_named(&self, asked: &str) -> String {
        let names = self.users().into_iter().filter_map(|id| self.name_of(id));
        let lower = asked.to_lowercase();
        let meant = names
            .map(|name| name.to_string())
            .find(|name| name.to_lowercase().starts_with(&lower));
        match meant {
            Some(name) => format!(
                "nobody named {asked:?} is here; do you mean \"{name}\"? Write kick \"{name}\""
            ),
            None => format!("nobody named {asked:?} is here; `users` lists everybody"),
        }
    }

    /// Whether there is a scene that people work in.
    pub fn has_scene(&self) -> bool {
        matches!(self.scene, Scene::Running)
    }

    pub fn status(&self, now: Time) -> Status {
        Status {
            scene: match self.scene {
                Scene::Empty => SceneState::Empty,
                Scene::Initialising(_) => SceneState::Initialising,
                Scene::Running => SceneState::Running,
            },
            nodes: self.graph.len(),
            bytes: self.graph.bytes(),
            version: self.version.clone(),
            users: self
                .clients
                .values()
                .filter_map(|client| Some(self.user_status(now, client, client.user.as_deref()?)))
                .collect(),
            strangers: self
                .clients
                .values()
                .filter(|client| client.user.is_none())
                .count(),
            uptime: now.saturating_duration_since(self.started).as_secs(),
            updates: self.updates,
            deliveries: self.deliveries,
            queued: self.clients.values().map(queued).sum(),
            storage: Vec::new(),
        }
    }

    fn user_status(&self, now: Time, client: &Client, user: &User) -> UserStatus {
        let state = match &user.state {
            _ if user.away.is_some() => "away".to_owned(),
            State::Lobby => "lobby".to_owned(),
            State::Initialising => "initialising".to_owned(),
            State::Joining(join) => {
                let (handled, total, percent) = join.progress();
                format!("joining {percent} % ({handled}/{total})")
            }
            State::Active if user.debts.is_empty() => "active".to_owned(),
            State::Active => format!("behind ({} nodes)", user.debts.len()),
        };
        UserStatus {
            name: user.name.to_string(),
            admin: user.admin,
            ping: user.heartbeat.latency(),
            state,
            address: user.address,
            dialect: client.dialect.name(),
            version: user.version.clone(),
            locks: self.graph.owned_by(&user.name).count(),
            since: now.saturating_duration_since(user.since).as_secs(),
            queued: queued(client),
        }
    }

    /// The scene as of now, dependencies first: every node in full, and after it the commits that could not be folded here.
    pub fn scene(&mut self) -> Vec<(Node, Vec<Commit>)> {
        self.graph.all()
    }
}

/// Bytes waiting to be sent to a client.
fn queued(client: &Client) -> usize {
    client.links().map(|link| link.outstanding).sum()
}
