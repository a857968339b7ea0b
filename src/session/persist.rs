//! What outlives the server: every change as a record for the journal, the whole as a state, and a session made from one.

use std::net::{Ipv4Addr, SocketAddr};

use tracing::info;

use crate::admin::AdminReply;
use crate::store::{HandOver, Record, SavedClient, SavedScene, State as SavedState};
use crate::wire::message::{COMMON, Login, UserName};
use crate::wire::{Channel, Dialect};

use super::client::{Client, HeldLogin, State, User};
use super::handover::Reminders;
use super::{ClientId, Effect, Scene, Session, Settings, Time};

/// So many deletions are told again after a restart. Only those of its last moment can be news to anybody.
const DELETIONS: usize = 1000;

/// So many nodes that were changed last come first where everything is sent again.
const RECENT: usize = 1000;

/// What those are told whose scene is not the session's any more.
const REPLACED: &str = "another scene has been put in the place of this one, please connect again";

impl Session {
    /// A session that goes on where a saved one ended. Whoever was logged in may come back within the grace time and keeps name
    /// and locks until then.
    pub fn restored(
        now: Time,
        settings: Settings,
        saved: SavedState,
        handover: Option<HandOver>,
    ) -> Session {
        let mut session = Session::new(now, settings);
        session.noticeboard.restore(saved.chat, saved.tasks);
        let Some(scene) = saved.scene else {
            return session;
        };
        session.scene = Scene::Running;
        session.resumed_at = Some(now);
        session.version = scene.version;
        for (node, commits) in scene.nodes {
            session.graph.restore(now, node, commits);
        }
        let skip = saved.deleted.len().saturating_sub(DELETIONS);
        session.deleted = saved.deleted.into_iter().skip(skip).collect();
        for node in &session.deleted {
            // A Node that was sent before its author had read of the Delete may come now.
            if !session.graph.contains(node) {
                session.graph.bury(now, node.clone());
            }
        }
        for client in saved.clients {
            session.expect_back(now, client);
        }
        let here: Vec<UserName> = session
            .users()
            .into_iter()
            .filter_map(|id| session.name_of(id))
            .collect();
        session.graph.release_except(now, &here);
        session.take_over(now, handover, &saved.recent);
        session
    }

    /// Puts another scene in the place of the one there is. Who has that one is told to connect again: an add-on that got other nodes
    /// bit by bit would take its own scene for changed meanwhile, publish that, and delete what it does not name. Who waits in the
    /// lobby joins. Says how many have been told.
    pub fn replace_scene(
        &mut self,
        now: Time,
        scene: SavedScene,
        reason: &str,
    ) -> Result<usize, &'static str> {
        if matches!(self.scene, Scene::Initialising(_)) {
            return Err("somebody is initialising the session just now; wait, or kick them");
        }
        if scene.nodes.is_empty() {
            return Err("there is no node in it");
        }
        let had_scene = matches!(self.scene, Scene::Running);
        // First, so that nobody's leaving is a reason for a backup.
        self.scene = Scene::Empty;
        let mut told = 0;
        for id in self.users() {
            if had_scene {
                self.end(now, id, REPLACED, "another scene");
                told += 1;
            }
        }
        self.forget_scene();
        for (mut node, commits) in scene.nodes {
            node.owner = COMMON.into();
            self.graph.restore(now, node, commits);
        }
        self.scene = Scene::Running;
        self.version = scene.version;
        for id in self.users() {
            let Some(user) = self.user_mut(id) else {
                continue;
            };
            let version = user.version.clone();
            // Who may not know that it is in shows when it does.
            let waits = !user.may_not_know;
            if let Some(reason) = self.other_version(&version) {
                self.end(now, id, &reason, "wrong version");
                told += 1;
            } else if waits {
                self.start_join(now, id);
            }
        }
        self.record_scene(reason, &"server".into());
        self.noticeboard.changed();
        Ok(told)
    }

    /// The same where it has happened while the server was stopped: who is expected back is told so when it comes.
    pub fn scene_was_replaced(&mut self, now: Time) {
        // So that nobody's leaving is a reason for a backup.
        let scene = std::mem::replace(&mut self.scene, Scene::Empty);
        for id in self.users() {
            self.end(now, id, REPLACED, "another scene");
        }
        self.scene = scene;
    }

    /// Back to the lobby: an active client can only get there by connecting again.
    pub(super) fn drop_scene(&mut self, now: Time) -> AdminReply {
        if matches!(self.scene, Scene::Empty) {
            return AdminReply::Failed(
                "there is no scene; whoever has the admin password can press Init".into(),
            );
        }
        // First, so that nobody's leaving is a reason for a backup.
        self.scene = Scene::Empty;
        let users = self.users();
        for &id in &users {
            self.end(
                now,
                id,
                "a new scene begins, please connect again",
                "new scene",
            );
        }
        self.version = None;
        self.forget_scene();
        self.record(Record::SceneDropped {
            reason: "new".into(),
        });
        AdminReply::Done(format!(
            "the scene is dropped (users told: {}); whoever has the admin password can press Init",
            users.len()
        ))
    }

    /// Nobody is there any more who knows it.
    fn forget_scene(&mut self) {
        self.graph.clear();
        self.healing.clear();
        self.deleted.clear();
        self.held_deletes.clear();
        self.early_rights.clear();
        self.reminders = Reminders::default();
    }

    pub(super) fn unpin(&mut self) -> AdminReply {
        let Some(version) = self.version.take() else {
            return AdminReply::Failed("the session belongs to no version yet".into());
        };
        self.record(Record::Pin {
            version: None,
            dialect: None,
        });
        AdminReply::Done(format!(
            "the session belongs to version {version} no more; the next client decides"
        ))
    }

    /// Keeps a place for somebody who was logged in before the restart.
    fn expect_back(&mut self, now: Time, saved: SavedClient) {
        let Some(dialect) = Dialect::of(&saved.version).filter(|dialect| dialect.resumes()) else {
            return;
        };
        let id = ClientId(self.next_client);
        self.next_client += 1;
        let login = Login {
            dialect,
            one_password: false,
            wants_admin: saved.admin,
            name: saved.name.to_string(),
            server_password: String::new(),
            admin_password: String::new(),
            version: saved.version,
        };
        let held = HeldLogin {
            login,
            admin: saved.admin,
            since: now,
            not_before: now,
        };
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut user = User::new(now, held, saved.name, nowhere);
        user.state = State::Active;
        user.away = Some(now);
        user.heartbeat.was_there(now);
        // What it published since may have come before it was back itself.
        user.lost_publisher = dialect.scene_channel() == Channel::Data;
        user.has_lost = true;
        let mut client = Client::new(saved.identity.clone(), dialect);
        client.user = Some(Box::new(user));
        self.identities.insert(saved.identity, id);
        self.clients.insert(id, client);
    }

    /// Everything that is to outlive the server, as of now.
    pub fn state(&mut self) -> SavedState {
        let scene = matches!(self.scene, Scene::Running).then(|| self.saved_scene());
        let (chat, tasks) = self.noticeboard.saved();
        SavedState {
            scene,
            chat,
            tasks,
            deleted: self.deleted.iter().cloned().collect(),
            recent: self.graph.latest(RECENT),
            clients: self
                .clients
                .values()
                .filter_map(|client| {
                    let user = client.user.as_deref().filter(|user| user.is_active())?;
                    Some(saved_client(client, user))
                })
                .collect(),
        }
    }

    fn saved_scene(&mut self) -> SavedScene {
        let dialect = self.version.as_deref().and_then(Dialect::of);
        SavedScene {
            version: self.version.clone(),
            dialect: dialect.map_or("", Dialect::name).to_owned(),
            nodes: self.graph.all(),
        }
    }

    /// Whom the journal names as the author of a change.
    pub(super) fn author(&self, id: ClientId) -> UserName {
        self.name_of(id).unwrap_or_else(|| "server".into())
    }

    pub(super) fn record(&mut self, record: Record) {
        if let Record::Delete { id, .. } = &record {
            if self.deleted.len() >= DELETIONS {
                self.deleted.pop_front();
            }
            self.deleted.push_back(id.clone());
        }
        self.effects.push_back(Effect::Record(record));
    }

    /// The scene is another one from now on.
    pub(super) fn record_scene(&mut self, reason: &str, author: &UserName) {
        for record in self.saved_scene().records(reason, author) {
            self.record(record);
        }
        self.effects.push_back(Effect::Save(reason.to_owned()));
    }

    /// A scene of no version, as after an import, belongs to that of the first client.
    pub(super) fn pin_if_free(&mut self, id: ClientId) {
        if self.version.is_some() || !matches!(self.scene, Scene::Running) {
            return;
        }
        if let Some(client) = self.clients.get(&id)
            && let Some(user) = client.user.as_deref()
        {
            let (version, dialect) = (user.version.clone(), client.dialect.name().to_owned());
            info!(version, "the session belongs to this version from now on");
            self.version = Some(version.clone());
            self.record(Record::Pin {
                version: Some(version),
                dialect: Some(dialect),
            });
        }
    }

    pub(super) fn record_login(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get(&id)
            && let Some(user) = client.user.as_deref()
        {
            let record = Record::Login(saved_client(client, user));
            self.record(record);
        }
    }
}

fn saved_client(client: &Client, user: &User) -> SavedClient {
    SavedClient {
        identity: client.identity.clone(),
        name: user.name.clone(),
        admin: user.admin,
        version: user.version.clone(),
        dialect: client.dialect.name().to_owned(),
    }
}
