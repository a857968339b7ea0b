//! The first scene: one client sends all of it (docs/protocol.md, 3.3).

use std::collections::HashSet;
use std::time::Duration;

use tracing::{info, warn};

use crate::logging::seconds;
use crate::wire::message::{COMMON, Node, NodeId, Outbound, Outgoing};

use super::client::{Client, State};
use super::delivery::SOFT_LIMIT;
use super::link::Link;
use super::{ClientId, Scene, Session, Time};

/// How often an initialiser is asked to send everything again before it is given up.
const ATTEMPTS: u32 = 3;

/// How long a client's thread may take to tell its other one that it has sent INIT.
const THINKING_TIME: Duration = Duration::from_millis(100);

/// A scene that is being received.
pub struct Initialising {
    by: ClientId,
    since: Time,
    /// Announced and not received yet.
    expected: HashSet<NodeId>,
    attempts: u32,
}

impl Session {
    pub(super) fn init_start(&mut self, now: Time, id: ClientId, nodes: Vec<NodeId>) {
        let Some(user) = self.user_mut(id) else {
            return;
        };
        let refusal = if !user.admin {
            Some("only an admin may initialise the session")
        } else if nodes.is_empty() {
            Some("its scene is empty")
        } else {
            match self.scene {
                Scene::Empty => None,
                Scene::Initialising(_) => Some("somebody else is initialising"),
                Scene::Running => Some("the session is running"),
            }
        };
        let Some(user) = self.user_mut(id) else {
            return;
        };
        let name = user.name.clone();
        user.holds = nodes.iter().cloned().collect();
        if let Some(why) = refusal {
            warn!(user = &*name, why, "initialising refused");
            return self.answer_init(now, id, Outbound::InitRejected);
        }
        user.state = State::Initialising;
        info!(
            user = &*name,
            nodes = nodes.len(),
            "initialising the session"
        );
        self.graph.clear();
        self.scene = Scene::Initialising(Initialising {
            by: id,
            since: now,
            expected: nodes.into_iter().collect(),
            attempts: 1,
        });
        self.answer_init(now, id, Outbound::InitAccepted);
        self.noticeboard.changed();
    }

    /// Answers INIT, at once or as soon as the client is ready for it.
    fn answer_init(&mut self, now: Time, id: ClientId, answer: Outbound) {
        let threaded = self
            .clients
            .get(&id)
            .is_some_and(|client| client.dialect.is_threaded());
        if threaded {
            self.init_answers
                .push_back((now + THINKING_TIME, id, answer));
        } else {
            self.give_init_answer(now, id, answer);
        }
    }

    fn give_init_answer(&mut self, now: Time, id: ClientId, answer: Outbound) {
        let rejected = matches!(answer, Outbound::InitRejected);
        // Whoever asks and asks without reading the answers would get a catalog each time.
        let waiting = |link: &Link| link.outstanding > SOFT_LIMIT;
        let full = |client: &Client| client.command.as_ref().is_some_and(waiting);
        if rejected && self.clients.get(&id).is_some_and(full) {
            return;
        }
        self.tell(now, id, answer);
        if rejected && matches!(self.scene, Scene::Running) {
            self.start_join(now, id);
        }
    }

    pub(super) fn tick_init(&mut self, now: Time) {
        while self
            .init_answers
            .front()
            .is_some_and(|(at, _, _)| *at <= now)
        {
            if let Some((_, id, answer)) = self.init_answers.pop_front() {
                self.give_init_answer(now, id, answer);
            }
        }
    }

    pub(super) fn init_node(&mut self, now: Time, id: ClientId, mut node: Node) {
        let Scene::Initialising(init) = &mut self.scene else {
            return;
        };
        if init.by != id {
            return;
        }
        if !init.expected.remove(&node.id) && !self.graph.contains(&node.id) {
            warn!(node = %node.id, "a node that was not announced came with the scene");
        }
        // Owners of another session mean nothing here.
        node.owner = COMMON.into();
        self.graph.put(now, node, None);
        if init.expected.is_empty() {
            self.init_done(now, id);
        }
    }

    pub(super) fn init_end(&mut self, now: Time, id: ClientId) {
        let Scene::Initialising(init) = &mut self.scene else {
            return;
        };
        if init.by != id {
            return;
        }
        init.attempts += 1;
        let (missing, attempts) = (init.expected.len(), init.attempts);
        if attempts <= ATTEMPTS {
            warn!(
                missing,
                "the scene is incomplete, asking for all of it again"
            );
            self.tell(now, id, Outbound::InitAccepted);
        } else {
            warn!(missing, "the scene stays incomplete, giving it up");
            if let Some(user) = self.user_mut(id) {
                user.state = State::Lobby;
            }
            self.abandon_init(id);
            self.tell(now, id, Outbound::InitRejected);
        }
    }

    fn init_done(&mut self, now: Time, id: ClientId) {
        let Scene::Initialising(init) = std::mem::replace(&mut self.scene, Scene::Running) else {
            return;
        };
        if let Some(user) = self.user_mut(id) {
            user.state = State::Active;
            user.nothing_unread();
            user.debts.clear();
            user.holds = HashSet::new();
            let version = user.version.clone();
            info!(
                user = &*user.name,
                version,
                seconds = seconds(now.saturating_duration_since(init.since)),
                "the session is initialised"
            );
            let author = user.name.clone();
            self.version = Some(version);
            self.record_scene("initialised", &author);
            self.record_login(id);
        }
        info!(
            nodes = self.graph.len(),
            bytes = self.graph.bytes(),
            "the scene is here"
        );
        self.tell(now, id, Outbound::InitDone);
        self.noticeboard.changed();
        for other in self.users() {
            self.join_from_lobby(now, other);
        }
    }

    /// Whoever sat in the lobby joins, or hears why it cannot.
    fn join_from_lobby(&mut self, now: Time, id: ClientId) {
        let Some(user) = self.user_mut(id) else {
            return;
        };
        if !matches!(user.state, State::Lobby) {
            return;
        }
        let (version, may_not_know) = (user.version.clone(), user.may_not_know);
        if let Some(reason) = self.other_version(&version) {
            self.end(now, id, &reason, "wrong version");
        } else if !may_not_know {
            self.start_join(now, id);
        }
    }

    /// The initialiser has gone, or has given up: somebody else may try.
    pub(super) fn abandon_init(&mut self, id: ClientId) {
        if matches!(&self.scene, Scene::Initialising(init) if init.by == id) {
            warn!("initialising was not completed; the session has no scene");
            self.scene = Scene::Empty;
            self.graph.clear();
            self.noticeboard.changed();
        }
    }

    /// The initialiser's connection broke and is back: part of the scene may be lost, so it sends all again.
    pub(super) fn resume_init(&mut self, now: Time, id: ClientId) {
        if matches!(&self.scene, Scene::Initialising(init) if init.by == id) {
            self.tell(now, id, Outbound::InitAccepted);
        }
    }

    pub(super) fn tell(&mut self, now: Time, id: ClientId, message: Outbound) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.tell(now, &mut self.effects, &Outgoing::new(message));
        }
    }
}
