//! Client states and metadata (docs/protocol.md, 3.8 and 3.12).
//!
//! What changes is merged per receiver and sent at most once a tick: a receiver only ever wants the latest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tracing::warn;

use crate::wire::message::{ClientState, Outbound, Outgoing, UserName};
use crate::wire::pickle::{self, Value};

use super::client::{Client, State, User};
use super::noticeboard::{chat_lines, tasks};
use super::{ClientId, Effect, Session, Time};

/// One user's metadata, in the order in which the keys came.
pub type Metadata = Vec<(Arc<str>, Value)>;

/// More keys than any add-on has, and more bytes of them, pickled: everybody's table holds all of it.
const KEYS: usize = 64;
const BYTES: usize = 512 * 1024;

/// With more bytes than this waiting on the command channel presence is merged until later: on a slow line it must not pile up
/// in front of locks and deletes.
const ROOM: usize = 64 * 1024;

/// Messages about others' metadata to one receiver per tick.
const PER_TICK: usize = 2;

/// Keys that a client does not keep up to date in its own table and so pushes stale with its next view move.
const STALE_KEYS: [&str; 4] = ["frame_current", "selected_objects", CHAT, TASK_LIST];
const CHAT: &str = "chat_messages";
const TASK_LIST: &str = "tasks";

/// How long after it has been told otherwise a client may still push an old value: a push crosses the answer to another one.
const ECHO: Duration = Duration::from_secs(5);
/// An animation that plays changes the frame some 24 times a second.
const ECHOES: usize = 128;
/// Bytes of them, pickled; the latest is kept in any case.
const ECHO_BYTES: usize = 256 * 1024;

/// What a status number of docs/protocol.md, section 2, means.
const SYNCING: i64 = 1;
const ACTIVE: i64 = 2;
const SRV_SYNC: i64 = 7;
const LOBBY: i64 = 10;

const UNKNOWN_LATENCY: i64 = 999;

/// What one user shows of itself, and what it has been told about itself and others.
#[derive(Debug, Default)]
pub struct Presence {
    metadata: Metadata,
    told: Told,
    /// Whom its table names.
    known: HashSet<UserName>,
    /// News of others, to be sent.
    pending: HashMap<UserName, Metadata>,
    /// Whose news comes first.
    order: VecDeque<UserName>,
    table_owed: bool,
}

/// Values that a client's own table shows it, or showed it not long ago, of the keys that it pushes stale.
#[derive(Debug, Default)]
struct Told(VecDeque<(Arc<str>, Value, Option<Time>)>);

/// Bytes of a value when it is pickled, which is what it is bounded by.
fn size(value: &Value) -> usize {
    pickle::encode(value).len()
}

impl Told {
    fn tell(&mut self, now: Time, key: &Arc<str>, value: &Value) {
        let shown = |(name, _, until): &&mut (Arc<str>, Value, Option<Time>)| {
            until.is_none() && name == key
        };
        if let Some((_, current, until)) = self.0.iter_mut().find(shown) {
            if current == value {
                return;
            }
            *until = Some(now);
        }
        self.0.retain(|(_, _, until)| {
            until.is_none_or(|until| now.saturating_duration_since(until) < ECHO)
        });
        if self.0.len() >= ECHOES {
            self.0.pop_front();
        }
        let mut bytes: usize =
            self.0.iter().map(|(_, told, _)| size(told)).sum::<usize>() + size(value);
        while bytes > ECHO_BYTES
            && let Some((_, oldest, _)) = self.0.pop_front()
        {
            bytes -= size(&oldest);
        }
        self.0.push_back((key.clone(), value.clone(), None));
    }

    fn contains(&self, key: &str, value: &Value) -> bool {
        self.0
            .iter()
            .any(|(name, told, _)| &**name == key && told == value)
    }
}

impl Presence {
    pub fn owe_table(&mut self) {
        self.table_owed = true;
    }

    /// What others may see: the add-on fails over a colour without scene and mode.
    fn shown(&self) -> Metadata {
        let complete = get(&self.metadata, "scene_current").is_some()
            && get(&self.metadata, "mode_current").is_some();
        self.metadata
            .iter()
            .filter(|(key, _)| complete || &**key != "color")
            .cloned()
            .collect()
    }

    fn add_news(&mut self, owner: &UserName, changes: &Metadata) {
        let news = match self.pending.get_mut(owner) {
            Some(news) => news,
            None => {
                self.order.push_back(owner.clone());
                self.pending.entry(owner.clone()).or_default()
            }
        };
        for (key, value) in changes {
            set(news, key, value);
        }
    }
}

fn get<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a Value> {
    metadata
        .iter()
        .find(|(name, _)| &**name == key)
        .map(|(_, value)| value)
}

fn set(metadata: &mut Metadata, key: &Arc<str>, value: &Value) {
    match metadata.iter_mut().find(|(name, _)| name == key) {
        Some(entry) => entry.1 = value.clone(),
        None => metadata.push((key.clone(), value.clone())),
    }
}

impl Session {
    /// UpdateUserMetadata from a client, about itself whatever it says.
    pub(super) fn metadata(&mut self, now: Time, id: ClientId, pushed: Metadata) {
        self.shows_it_has_joined(now, id);
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let knows_metadata = client.dialect.knows_metadata();
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        let name = user.name.clone();
        let presence = &mut user.presence;
        let before = presence.shown();
        let whole = pushed.len() > 1;
        let mut bytes: usize = presence.metadata.iter().map(|(_, v)| size(v)).sum();
        let mut dropped = 0;
        for (key, value) in &pushed {
            let current = get(&presence.metadata, key);
            if current == Some(value) {
                continue;
            }
            // In a push of the whole table, what equals that table is an echo.
            let stale = STALE_KEYS.contains(&&**key);
            if stale && whole && presence.told.contains(key, value) {
                continue;
            }
            let with_this = bytes - current.map_or(0, size) + size(value);
            if with_this > BYTES || (current.is_none() && presence.metadata.len() >= KEYS) {
                dropped += 1;
                continue;
            }
            bytes = with_this;
            let news = match &**key {
                CHAT => self.noticeboard.merge_chat(value),
                TASK_LIST => self.noticeboard.merge_tasks(current, value),
                _ => Vec::new(),
            };
            self.effects.extend(news.into_iter().map(Effect::Record));
            set(&mut presence.metadata, key, value);
        }
        if dropped > 0 {
            warn!(
                user = &*name,
                dropped,
                "more than {KEYS} metadata keys or {BYTES} bytes of metadata, the rest is dropped"
            );
        }
        let after = presence.shown();
        let changes: Metadata = after
            .into_iter()
            .filter(|(key, value)| get(&before, key) != Some(value))
            .collect();
        if changes.is_empty() {
            return;
        }
        let first_push = changes.iter().any(|(key, _)| &**key == "color");
        let own: Metadata = changes
            .iter()
            .filter(|(key, _)| STALE_KEYS.contains(&&**key))
            .cloned()
            .collect();
        for (&other, client) in &mut self.clients {
            if other == id {
                continue;
            }
            if let Some(user) = client.user.as_deref_mut()
                && user.presence.known.contains(&name)
            {
                if client.dialect.knows_metadata() {
                    user.presence.add_news(&name, &changes);
                } else {
                    user.presence.owe_table();
                }
            }
        }
        if first_push {
            // The client repeats it every 50 ms until its table shows it.
            if let Some(user) = self.user_mut(id) {
                user.presence.owe_table();
            }
            self.post_table(now, id);
        } else if !knows_metadata
            || (!own.is_empty() && !self.clients.get(&id).is_some_and(has_room))
        {
            if let Some(user) = self.user_mut(id) {
                user.presence.owe_table();
            }
        } else if !own.is_empty()
            && let Some(user) = self.user_mut(id)
            && user.presence.known.contains(&name)
        {
            for (key, value) in &own {
                user.presence.told.tell(now, key, value);
            }
            self.tell(
                now,
                id,
                Outbound::Metadata {
                    owner: name,
                    data: own,
                },
            );
        }
    }

    /// The table of clients goes to everybody at once.
    pub(super) fn post_table_now(&mut self, now: Time) {
        self.noticeboard.table_posted(now);
        for id in self.users() {
            if let Some(user) = self.user_mut(id) {
                user.presence.owe_table();
            }
            self.post_table(now, id);
        }
    }

    pub(super) fn tick_presence(&mut self, now: Time) {
        if self.noticeboard.is_due(now) {
            self.post_table_now(now);
        }
        for id in self.users() {
            self.post_table(now, id);
            self.post_news(now, id);
        }
    }

    /// Sends a client its table if that is owed and there is room.
    fn post_table(&mut self, now: Time, id: ClientId) {
        let entries: Vec<ClientState> = match self.clients.get(&id) {
            Some(client)
                if has_room(client)
                    && client
                        .user
                        .as_deref()
                        .is_some_and(|user| user.presence.table_owed) =>
            {
                self.table_for(id)
            }
            _ => return,
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        let presence = &mut user.presence;
        presence.table_owed = false;
        presence.known = entries.iter().map(|entry| entry.name.clone()).collect();
        presence.pending.clear();
        presence.order.clear();
        if let Some(own) = entries.iter().find(|entry| entry.name == user.name) {
            for (key, value) in &own.metadata {
                if STALE_KEYS.contains(&&**key) {
                    presence.told.tell(now, key, value);
                }
            }
        }
        client.tell(
            now,
            &mut self.effects,
            &Outgoing::new(Outbound::ClientsState(entries)),
        );
    }

    /// The table as this client is to see it: its own line carries chat and tasks whose authors have left.
    fn table_for(&self, id: ClientId) -> Vec<ClientState> {
        let mut entries = Vec::new();
        for (&other, client) in &self.clients {
            let Some(user) = client.user.as_deref() else {
                continue;
            };
            let mut metadata = user.presence.shown();
            if other == id {
                self.add_left_behind(&mut metadata);
                // A client that does not find its own colour pushes it at once, if it has finished joining.
                if matches!(&user.state, State::Joining(join) if join.is_undecided()) {
                    metadata.retain(|(key, _)| &**key != "color");
                }
            }
            entries.push(ClientState {
                name: user.name.clone(),
                admin: user.admin,
                latency: user
                    .heartbeat
                    .latency()
                    .map_or(UNKNOWN_LATENCY, |ms| ms.try_into().unwrap_or(i64::MAX)),
                status: status(user),
                metadata,
            });
        }
        entries
    }

    fn add_left_behind(&self, own: &mut Metadata) {
        let shown: HashSet<String> = self
            .pushed(CHAT)
            .flat_map(chat_lines)
            .map(|(id, _)| id)
            .collect();
        let left: Vec<&(String, Json)> = self
            .noticeboard
            .chat
            .iter()
            .filter(|(id, _)| !shown.contains(id))
            .collect();
        if !left.is_empty() {
            let mut lines: Vec<Json> = left.into_iter().map(|(_, line)| line.clone()).collect();
            lines.extend(
                get(own, CHAT)
                    .map(chat_lines)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(_, line)| line),
            );
            set(
                own,
                &CHAT.into(),
                &Value::str(Json::Array(lines).to_string()),
            );
        }
        let shown: HashSet<String> = self
            .pushed(TASK_LIST)
            .flat_map(|pushed| tasks(pushed).into_keys())
            .collect();
        let left: Vec<(&String, &Json)> = self
            .noticeboard
            .tasks
            .iter()
            .filter(|(id, _)| !shown.contains(*id))
            .collect();
        if !left.is_empty() {
            let mut all: serde_json::Map<String, Json> = left
                .into_iter()
                .map(|(id, task)| (id.clone(), task.clone()))
                .collect();
            all.extend(get(own, TASK_LIST).map(tasks).unwrap_or_default());
            set(
                own,
                &TASK_LIST.into(),
                &Value::str(Json::Object(all).to_string()),
            );
        }
    }

    /// What everybody here has pushed under a key.
    fn pushed<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Value> {
        self.clients
            .values()
            .filter_map(|client| client.user.as_deref())
            .filter_map(move |user| get(&user.presence.metadata, key))
    }

    /// Sends a client some of the news about others.
    fn post_news(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        for _ in 0..PER_TICK {
            if !has_room(client) {
                return;
            }
            let Some(user) = client.user.as_deref_mut() else {
                return;
            };
            let Some(owner) = user.presence.order.pop_front() else {
                return;
            };
            if let Some(data) = user.presence.pending.remove(&owner) {
                client.tell(
                    now,
                    &mut self.effects,
                    &Outgoing::new(Outbound::Metadata { owner, data }),
                );
            }
        }
    }
}

/// Whether there is room on the command channel for what can be merged until later.
pub(super) fn has_room(client: &Client) -> bool {
    client
        .command
        .as_ref()
        .is_some_and(|link| link.has_room(ROOM))
}

fn status(user: &User) -> i64 {
    match user.state {
        State::Lobby => LOBBY,
        State::Initialising => SRV_SYNC,
        State::Joining(_) => SYNCING,
        State::Active => ACTIVE,
    }
}
