//! How somebody's session ends: by a kick, by the server, or for good after a broken connection (docs/protocol.md, 3.9).

use tracing::{info, warn};

use crate::store::Record;
use crate::wire::message::Outbound;

use super::client::State;
use super::{ClientId, Effect, Retired, Scene, Session, Time};

/// How many identities are remembered that must not come back.
const RETIRED: usize = 4096;

/// A client whose session has ended is told so again where its line broke before it read that.
const REMINDERS: u8 = 5;

impl Session {
    /// KICK from a client.
    pub(super) fn kick_request(&mut self, now: Time, id: ClientId, user: &str) {
        let Some(sender) = self.user_mut(id) else {
            return;
        };
        let name = sender.name.clone();
        if !sender.admin {
            return warn!(user = &*name, target = user, "kick refused: not an admin");
        }
        match self.named(user) {
            Some(target) => {
                info!(user = &*name, target = user, "kick");
                self.end(now, target, "kicked by admin", "kicked");
            }
            None => warn!(
                user = &*name,
                target = user,
                "kick: nobody of that name is here"
            ),
        }
    }

    /// Ends a client's session: tells it why, frees its name and locks, and never lets this identity back.
    pub(super) fn end(&mut self, now: Time, id: ClientId, reason: &str, log: &str) {
        self.tell(
            now,
            id,
            Outbound::Disconnect {
                reason: reason.into(),
            },
        );
        self.hang_up(id);
        self.leave(now, id, reason, log);
    }

    /// The user has left. The client structure goes with it, connections included.
    fn leave(&mut self, now: Time, id: ClientId, reason: &str, log: &str) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.identities.remove(&client.identity);
        for link in client.links() {
            self.connections.remove(&link.conn);
        }
        self.retire(Retired {
            identity: client.identity.clone(),
            reason: reason.to_owned(),
            dialect: client.dialect,
            reminders: REMINDERS,
        });
        let Some(user) = client.user else {
            return;
        };
        self.record(Record::Left {
            identity: client.identity,
            reason: log.to_owned(),
        });
        info!(
            user = &*user.name,
            minutes = now.saturating_duration_since(user.since).as_secs() / 60,
            reason = log,
            "left"
        );
        if matches!(user.state, State::Initialising) {
            self.abandon_init(id);
        }
        self.graph.forget_asker(id);
        self.release_all(now, &user.name);
        self.noticeboard.changed();
        if matches!(self.scene, Scene::Running) {
            self.effects
                .push_back(Effect::Save(format!("user_disconnect:{}", user.name)));
        }
    }

    fn retire(&mut self, retired: Retired) {
        if self.retired.len() >= RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back(retired);
    }

    /// Closes all connections of a client, after what is queued. Only strangers are kept from coming back: whoever has been in
    /// the session may still say things before it reads that it is out, and where a connection is not to come back libzmq lets it
    /// wait for ever with that.
    pub(super) fn hang_up(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let stranger = client.user.is_none() && !client.astray;
        for link in client.links_mut() {
            if !std::mem::replace(&mut link.closing, true) {
                let refuse = stranger.then(|| "session ended".into());
                self.effects.push_back(Effect::Close(link.conn, refuse));
            }
        }
    }
}
