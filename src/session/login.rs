//! Who may enter, and under which name (docs/protocol.md, 3.1, 3.2, 3.9).

use std::net::IpAddr;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::net::{ConnId, Peer, network};
use crate::wire::message::{COMMON, Login, Outbound, UserName};
use crate::wire::{Channel, Dialect, WireError};

use super::client::{Client, HeldLogin, User};
use super::link::Link;
use super::{ClientId, Effect, Scene, Session, Time};

/// How long a login waits for the client's data connection. The client itself gives up after 5 s by default.
const DATA_WAIT: Duration = Duration::from_secs(3);

/// How long after its login a client's heartbeat connection may take.
const TTL_WAIT: Duration = Duration::from_secs(4);

/// How long a user may be without its data connection, whose edits all stay at home. libzmq comes back within a second
/// where there is a way.
const WITHOUT_DATA: Duration = Duration::from_secs(30);

/// A connection that has not logged in within this time is closed.
const STRANGER_LIMIT: Duration = Duration::from_secs(30);

/// After a refusal the client closes by itself; if not, we do after this time.
const DISMISSED_LIMIT: Duration = Duration::from_secs(2);

/// A client whose heartbeat has been silent for two pings has lost its claim to its name.
const NAME_CLAIM: Duration = Duration::from_millis(2500);

/// So many wrong passwords from one network, each within a minute of the one before, and every answer to a login from there is
/// late until none has come for a minute.
const FREE_FAILURES: u32 = 5;
const FAILURE_MEMORY: Duration = Duration::from_secs(60);
const FAILURE_DELAY: Duration = Duration::from_secs(2);
/// Networks whose wrong passwords are remembered.
const FAILURES: usize = 10_000;

/// Refused messages of one user that are worth a warning.
const LOUD_REFUSALS: u32 = 10;

/// Bytes of answers that may wait for somebody who has not logged in.
const STRANGER_BUDGET: usize = 64 * 1024;

const NAME_LENGTH: usize = 64;
const NO_NAME: &str = "choose a user name";
const RESERVED_NAMES: [&str; 4] = [COMMON, "server", "client", "guest"];

fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some(NO_NAME)
    } else if RESERVED_NAMES.contains(&name) {
        Some("this user name is reserved, choose another one")
    } else if name.chars().any(char::is_control) {
        Some("control characters in the user name")
    } else if name.chars().count() > NAME_LENGTH {
        Some("user name longer than 64 characters")
    } else {
        None
    }
}

impl Session {
    pub(super) fn opened(&mut self, now: Time, conn: ConnId, peer: Peer) {
        let retired = self
            .retired
            .iter_mut()
            .find(|retired| retired.identity == peer.identity);
        let retired = match retired {
            // Two sockets of one identity would take turns for ever.
            Some(retired) if retired.reminders == 0 => {
                let refuse = Some("session ended".into());
                return self.effects.push_back(Effect::Close(conn, refuse));
            }
            Some(retired) => {
                if peer.channel == Channel::Command {
                    retired.reminders -= 1;
                }
                Some((retired.dialect, retired.reason.clone()))
            }
            None => None,
        };
        if peer.channel == Channel::Publish {
            self.publishers.insert(conn, (peer.address.ip(), now));
            return self.repair_publishers(now, peer.address.ip());
        }
        let id = match self.identities.get(&peer.identity) {
            Some(id) => *id,
            None => {
                let id = ClientId(self.next_client);
                self.next_client += 1;
                self.identities.insert(peer.identity.clone(), id);
                self.clients
                    .insert(id, Client::new(peer.identity.clone(), peer.dialect));
                id
            }
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        // The newest connection of an identity is the one that counts.
        if let Some(old) = client.slot(peer.channel).as_ref().map(|link| link.conn) {
            client.lost(now, peer.channel);
            self.connections.remove(&old);
            self.effects.push_back(Effect::Close(old, None));
        }
        if peer.dialect != client.dialect {
            self.effects.push_back(Effect::Speak(conn, client.dialect));
        }
        *client.slot(peer.channel) = Some(Link::new(now, conn, peer.address, client.dialect));
        self.connections.insert(conn, (id, peer.channel));
        if let Some((dialect, reason)) = retired {
            debug!(peer = %peer.address, reason, "somebody whose session has ended came back");
            (client.dismissed, client.astray) = (true, true);
            client.speak(&mut self.effects, dialect);
            if peer.channel == Channel::Command {
                self.tell(now, id, Outbound::Disconnect { reason });
            }
        } else if let Some(user) = client.user.as_deref_mut() {
            // A laptop may have moved, and after a restart nobody knows from where it comes.
            user.address = peer.address;
            self.effects.push_back(Effect::Trust(conn));
            self.resumed(now, id, peer.channel);
        } else {
            debug!(peer = %peer.address, channel = ?peer.channel, "connected");
            if peer.channel == Channel::Data {
                self.answer_held_login(now, id);
            }
        }
    }

    pub(super) fn closed(&mut self, now: Time, id: ClientId, channel: Channel, reason: &str) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if let Some(link) = client.slot(channel).as_ref() {
            self.connections.remove(&link.conn);
        }
        client.lost(now, channel);
        let resumes = client.dialect.resumes();
        match client.user.as_deref_mut() {
            Some(_) if !resumes => {
                let text = "one of your connections was lost, please connect again";
                self.end(now, id, text, &format!("{channel:?} connection: {reason}"));
            }
            Some(user) => {
                debug!(user = &*user.name, ?channel, reason, "connection lost");
                match channel {
                    Channel::Command => {
                        user.away = Some(now);
                        self.noticeboard.changed();
                    }
                    Channel::Data => user.without_data = Some(now),
                    Channel::Publish => {
                        let address = user.address.ip();
                        self.repair_publishers(now, address);
                    }
                    Channel::Ttl => {}
                }
            }
            None => {
                if channel == Channel::Command {
                    client.held = None;
                }
                self.forget_if_gone(id);
            }
        }
    }

    fn forget_if_gone(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get(&id)
            && client.user.is_none()
            && client.links().next().is_none()
        {
            self.identities.remove(&client.identity);
            self.clients.remove(&id);
        }
    }

    pub(super) fn server_info(&mut self, now: Time, id: ClientId) {
        // Whoever asks and asks without reading the answers is not answered.
        if self.clients.get(&id).is_none_or(|client| {
            let waiting = |link: &Link| link.outstanding > STRANGER_BUDGET;
            client.command.as_ref().is_none_or(waiting)
        }) {
            return;
        }
        let newest = self
            .clients
            .get(&id)
            .map_or("", |client| client.dialect.newest_version());
        let private = self.settings.server_password.is_some();
        let version = self.version.clone().unwrap_or_else(|| newest.into());
        self.tell(now, id, Outbound::ServerInfo { private, version });
    }

    pub(super) fn auth(&mut self, now: Time, id: ClientId, login: Login) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(address) = client.command.as_ref().map(|link| link.address) else {
            return;
        };
        // Exactly one answer: a second one ends the client's session.
        if client.user.is_some() || client.held.is_some() || client.dismissed {
            return debug!(peer = %address, "a second Auth is ignored");
        }
        if self.stopping {
            return debug!(peer = %address, "an Auth comes too late, the server stops");
        }
        // Of a version that is not served at least the framing is known, and with it how to tell that.
        let dialect = Dialect::of(&login.version).filter(|dialect| dialect.is_like(login.dialect));
        client.speak(&mut self.effects, dialect.unwrap_or(login.dialect));
        let admin = match self.verdict(now, &login) {
            Ok(admin) => admin,
            Err(reason) => return self.refuse_login(now, id, &login.name, reason),
        };
        let wait = self.failure_delay(now, address.ip());
        if let Some(client) = self.clients.get_mut(&id) {
            client.held = Some(HeldLogin {
                login,
                admin,
                since: now,
                not_before: now + wait,
            });
        }
        self.answer_held_login(now, id);
    }

    /// Whether this login is good, and then whether it is an admin's. In this order nothing leaks to strangers.
    fn verdict(&self, now: Time, login: &Login) -> Result<bool, String> {
        let is_admin = login.wants_admin
            && !login.admin_password.is_empty()
            && self.settings.admin_password.matches(&login.admin_password);
        let server_password_fits = match &self.settings.server_password {
            None => true,
            // Clients before 0.9 have no second password to give.
            Some(_) if login.one_password && is_admin => true,
            Some(password) => password.matches(&login.server_password),
        };
        let wrong = |which: &str| {
            if login.one_password {
                "wrong password".to_owned()
            } else {
                format!("wrong {which} password")
            }
        };
        let served = self.is_served(login);
        if !server_password_fits {
            return Err(wrong("server"));
        }
        if let Some(reason) = served.err().or_else(|| self.version_fault(login)) {
            return Err(reason);
        }
        let admin = login.wants_admin && !login.admin_password.is_empty();
        // The one password that such a client has was the server's.
        let spent = login.one_password && self.settings.server_password.is_some();
        if admin && !is_admin && !spent {
            return Err(wrong("admin"));
        }
        if let Some(fault) = name_fault(&login.name) {
            return Err(fault.into());
        }
        if let Some(holder) = self.named(&login.name)
            && !self.has_lost_claim(now, holder)
        {
            return Err("client already logged in".into());
        }
        Ok(is_admin)
    }

    /// A name is free for the next one when its holder is away, or silent for two pings.
    fn has_lost_claim(&self, now: Time, holder: ClientId) -> bool {
        self.clients
            .get(&holder)
            .and_then(|client| client.user.as_deref())
            .is_none_or(|user| user.away.is_some() || user.heartbeat.silent_for(now) > NAME_CLAIM)
    }

    pub(super) fn refuse_login(&mut self, now: Time, id: ClientId, name: &str, reason: String) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.held = None;
        client.dismissed = true;
        let address = client.command.as_ref().map(|link| link.address);
        let name: String = name.chars().take(NAME_LENGTH).collect();
        let text = format!("FAILED: {reason}");
        let mut wait = Duration::ZERO;
        if reason.ends_with("password")
            && let Some(address) = address
        {
            wait = self.note_failure(now, address.ip());
        }
        // Somebody who tries passwords does not fill the log; and who comes without a name, all else being right, has come to test
        // the server (`check`).
        if wait.is_zero() && reason != NO_NAME {
            warn!(
                user = &*name,
                peer = address.map(tracing::field::display),
                reason,
                "login refused"
            );
        } else {
            debug!(
                user = &*name,
                peer = address.map(tracing::field::display),
                reason,
                "login refused"
            );
        }
        if wait.is_zero() {
            self.tell(now, id, Outbound::Auth(text));
        } else {
            self.late_refusals.push_back((now + wait, id, text));
        }
    }

    fn note_failure(&mut self, now: Time, address: IpAddr) -> Duration {
        self.failures
            .retain(|_, (_, last)| now.saturating_duration_since(*last) < FAILURE_MEMORY);
        let network = network(address);
        if self.failures.len() >= FAILURES
            && !self.failures.contains_key(&network)
            && let Some(oldest) = self.failures.iter().min_by_key(|(_, (_, last))| *last)
        {
            let oldest = *oldest.0;
            self.failures.remove(&oldest);
        }
        let (count, last) = self.failures.entry(network).or_insert((0, now));
        *count = count.saturating_add(1);
        *last = now;
        self.failure_delay(now, address)
    }

    /// How long the answer to a login from this address waits, be the password right or wrong: whoever need not wait to
    /// learn that a guess was right does not wait for the answer to a wrong one.
    fn failure_delay(&self, now: Time, address: IpAddr) -> Duration {
        match self.failures.get(&network(address)) {
            Some((count, last))
                if *count > FREE_FAILURES
                    && now.saturating_duration_since(*last) < FAILURE_MEMORY =>
            {
                FAILURE_DELAY
            }
            _ => Duration::ZERO,
        }
    }

    /// Lets a good login in once its data connection is there.
    fn answer_held_login(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.data.is_none() || client.command.is_none() {
            return;
        }
        let Some(held) = client.held.take_if(|held| held.not_before <= now) else {
            return;
        };
        // Things may have changed while it waited.
        match self.verdict(now, &held.login) {
            Ok(_) => self.enter(now, id, held),
            Err(reason) => self.refuse_login(now, id, &held.login.name, reason),
        }
    }

    fn enter(&mut self, now: Time, id: ClientId, held: HeldLogin) {
        if let Some(holder) = self.named(&held.login.name) {
            info!(
                user = &*held.login.name,
                "a new login takes over the name from one that is away"
            );
            self.end(
                now,
                holder,
                "you logged in again from elsewhere",
                "taken over",
            );
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(address) = client.address() else {
            return;
        };
        let name = UserName::from(held.login.name.as_str());
        info!(user = &*name, peer = %address, admin = held.admin, dialect = client.dialect.name(), version = held.login.version, "logged in");
        let admin = held.admin;
        client.user = Some(Box::new(User::new(now, held, name.clone(), address)));
        let heartbeat_waits = std::mem::take(&mut client.heartbeat_waits);
        for link in client.links() {
            self.effects.push_back(Effect::Trust(link.conn));
        }
        self.pin_if_free(id);
        // Who knows the server's password must not be able to guess the admin's at leisure.
        if admin {
            self.failures.remove(&network(address.ip()));
        }
        self.post_table_now(now);
        let answer = match self.scene {
            Scene::Running => "RUNNING",
            Scene::Empty | Scene::Initialising(_) => "LOBBY",
        };
        self.tell(now, id, Outbound::Auth(answer.into()));
        if heartbeat_waits {
            self.ping(now, id);
        }
    }

    /// A connection that has not logged in says something else than Auth: perhaps its session ended without its knowledge.
    pub(super) fn stranger_spoke(&mut self, now: Time, id: ClientId, channel: Channel) {
        let likely = self.likely_dealer();
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.dismissed || client.held.is_some() || channel != Channel::Command {
            return;
        }
        client.dismissed = true;
        if let Some(link) = &client.command {
            info!(peer = %link.address, "a command came from somebody not logged in");
        }
        client.astray = true;
        // Which version it is has not been said.
        if client.dialect == Dialect::Dealer {
            client.speak(&mut self.effects, likely);
        }
        let reason = "not logged in, please connect again".into();
        self.tell(now, id, Outbound::Disconnect { reason });
    }

    /// The dialect of a ZeroMQ client from before a restart: that of the session. Where that is not known 0.9.11 counts, which raises
    /// on what the others say, while they show whatever comes.
    fn likely_dealer(&self) -> Dialect {
        let served = self.settings.versions.iter().map(String::as_str);
        let dialects: Vec<Dialect> = served
            .chain(self.version.as_deref())
            .filter_map(Dialect::of)
            .filter(|dialect| dialect.is_like(Dialect::Dealer))
            .collect();
        match dialects.first() {
            Some(first) if !dialects.contains(&Dialect::NewDealer) => *first,
            _ => Dialect::NewDealer,
        }
    }

    /// A message that cannot be accepted. Whoever sends pickles that clients never send is not given a second chance.
    pub(super) fn refused(&mut self, now: Time, id: ClientId, conn: ConnId, error: WireError) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let hostile = matches!(error, WireError::Pickle { .. });
        match client.user.as_deref_mut() {
            Some(user) => {
                user.refused = user.refused.saturating_add(1);
                if user.refused <= LOUD_REFUSALS {
                    warn!(user = %user.name, address = %user.address, %error, "a message is refused");
                } else {
                    debug!(user = %user.name, address = %user.address, %error, "a message is refused");
                }
                if hostile {
                    self.end(
                        now,
                        id,
                        "your client sent data that is not allowed here",
                        "refused data",
                    );
                }
            }
            None => {
                debug!(?conn, %error, "a message of a stranger is refused");
                client.dismissed = true;
                self.hang_up(id);
            }
        }
    }

    /// What a user is told whose data connection does not come.
    fn data_unreachable(&self, dialect: Dialect) -> String {
        match dialect.port_offset(Channel::Data) {
            0 => "data channel timeout".to_owned(),
            offset => {
                let port = self.settings.port.saturating_add(offset);
                format!("port {port} (data) unreachable")
            }
        }
    }

    pub(super) fn tick_logins(&mut self, now: Time) {
        while self
            .late_refusals
            .front()
            .is_some_and(|(at, _, _)| *at <= now)
        {
            if let Some((_, id, text)) = self.late_refusals.pop_front() {
                self.tell(now, id, Outbound::Auth(text));
            }
        }
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in ids {
            self.answer_held_login(now, id);
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            if let Some(held) = &client.held {
                if now.saturating_duration_since(held.since) >= DATA_WAIT {
                    let name = held.login.name.clone();
                    let reason = self.data_unreachable(client.dialect);
                    self.refuse_login(now, id, &name, reason);
                }
            } else if let Some(user) = client.user.as_deref() {
                if let Some(away) = user.away {
                    if now.saturating_duration_since(away) >= self.settings.grace {
                        self.end(
                            now,
                            id,
                            "the connection was lost for too long",
                            "connection closed",
                        );
                    }
                } else if user
                    .without_data
                    .is_some_and(|since| now.saturating_duration_since(since) >= WITHOUT_DATA)
                {
                    let reason = self.data_unreachable(client.dialect);
                    self.end(now, id, &reason, "no data connection");
                } else if client.ttl.is_none()
                    && user.heartbeat.never_pinged()
                    && now.saturating_duration_since(user.since) >= TTL_WAIT
                {
                    let offset = client.dialect.port_offset(Channel::Ttl);
                    let port = self.settings.port.saturating_add(offset);
                    let reason = format!("port {port} (TTL) unreachable");
                    self.end(now, id, &reason, "no heartbeat connection");
                }
            } else {
                let limit = if client.dismissed && !client.astray {
                    DISMISSED_LIMIT + FAILURE_DELAY
                } else {
                    STRANGER_LIMIT
                };
                if client
                    .links()
                    .any(|link| now.saturating_duration_since(link.opened) > limit)
                {
                    self.hang_up(id);
                }
            }
        }
    }

    pub(super) fn named(&self, name: &str) -> Option<ClientId> {
        self.clients
            .iter()
            .find(|(_, client)| {
                client
                    .user
                    .as_deref()
                    .is_some_and(|user| &*user.name == name)
            })
            .map(|(id, _)| *id)
    }

    pub(super) fn name_of(&self, id: ClientId) -> Option<UserName> {
        Some(self.clients.get(&id)?.user.as_deref()?.name.clone())
    }
}
