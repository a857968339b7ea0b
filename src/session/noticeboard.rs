//! Chat and tasks, which stay when their authors leave, and whether the table of clients is to go out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use crate::store::Record;
use crate::wire::pickle::Value;

use super::{Session, Time};

/// Tables that only tell other latencies go out this far apart at least.
const LATENCY_INTERVAL: Duration = Duration::from_secs(1);

/// Chat lines that late joiners get, as many as a client itself keeps in its list.
const CHAT_LINES: usize = 10;
const TASKS: usize = 1_000;

/// Bytes of one chat line or task that is kept when its author leaves, and of all such tasks.
const LINE_BYTES: usize = 16 * 1024;
const TASK_BYTES: usize = 256 * 1024;

/// Chat lines or tasks by id.
type Lines = Vec<(String, Json)>;

/// What belongs to the session and not to a user: chat and tasks stay when their author leaves.
#[derive(Debug, Default)]
pub struct Noticeboard {
    /// The table of clients has changed and is owed to everybody.
    changed: bool,
    /// Only latencies in it have.
    latency: bool,
    /// When everybody was last sent it.
    posted: Option<Time>,
    pub(super) chat: VecDeque<(String, Json)>,
    pub(super) tasks: BTreeMap<String, Json>,
}

impl Noticeboard {
    pub fn changed(&mut self) {
        self.changed = true;
    }

    pub fn latency_changed(&mut self) {
        self.latency = true;
    }

    /// Whether the table is to go out now.
    pub(super) fn is_due(&self, now: Time) -> bool {
        let rests = self
            .posted
            .is_none_or(|at| now.saturating_duration_since(at) >= LATENCY_INTERVAL);
        self.changed || (self.latency && rests)
    }

    pub(super) fn table_posted(&mut self, now: Time) {
        self.changed = false;
        self.latency = false;
        self.posted = Some(now);
    }

    /// An id for a line of the server's own. Of two lines with one id clients keep one.
    fn free_id(&self, from: u128) -> String {
        let id = |number| format!("server-{number}");
        let taken = |number: &u128| self.chat.iter().any(|(known, _)| *known == id(*number));
        let mut number = from;
        while taken(&number) {
            number += 1;
        }
        id(number)
    }

    /// One more chat line.
    pub fn say(&mut self, id: String, line: Json) -> Record {
        self.chat.push_back((id.clone(), line.clone()));
        while self.chat.len() > CHAT_LINES {
            self.chat.pop_front();
        }
        Record::Chat { id, line }
    }

    /// Merges a user's list of the last chat lines that it knows.
    pub(super) fn merge_chat(&mut self, pushed: &Value) -> Vec<Record> {
        let mut news = Vec::new();
        for (id, line) in chat_lines(pushed) {
            if self.chat.iter().all(|(known, _)| *known != id)
                && line.to_string().len() <= LINE_BYTES
            {
                news.push(Record::Chat {
                    id: id.clone(),
                    line: line.clone(),
                });
                self.chat.push_back((id, line));
            }
        }
        while self.chat.len() > CHAT_LINES {
            self.chat.pop_front();
        }
        news
    }

    /// Merges a user's tasks: those that it changed, added or dropped since its last push.
    pub(super) fn merge_tasks(&mut self, before: Option<&Value>, pushed: &Value) -> Vec<Record> {
        let before = before.map(tasks).unwrap_or_default();
        let pushed = tasks(pushed);
        let mut news = Vec::new();
        for id in before.keys().filter(|id| !pushed.contains_key(*id)) {
            if self.tasks.remove(id).is_some() {
                news.push(Record::Task {
                    id: id.clone(),
                    task: None,
                });
            }
        }
        let size = |id: &str, task: &Json| id.len() + task.to_string().len();
        let mut bytes: usize = self.tasks.iter().map(|(id, task)| size(id, task)).sum();
        for (id, task) in pushed {
            let old = self.tasks.get(&id).map(|old| size(&id, old));
            let with_this = bytes - old.unwrap_or(0) + size(&id, &task);
            if before.get(&id) != Some(&task)
                && (self.tasks.len() < TASKS || old.is_some())
                && size(&id, &task) <= LINE_BYTES
                && with_this <= TASK_BYTES
            {
                bytes = with_this;
                news.push(Record::Task {
                    id: id.clone(),
                    task: Some(task.clone()),
                });
                self.tasks.insert(id, task);
            }
        }
        news
    }

    /// What is saved of it: chat lines, oldest first, and tasks, by id.
    pub fn saved(&self) -> (Lines, Lines) {
        let tasks = self
            .tasks
            .iter()
            .map(|(id, task)| (id.clone(), task.clone()));
        (self.chat.iter().cloned().collect(), tasks.collect())
    }

    pub fn restore(&mut self, chat: Lines, tasks: Lines) {
        self.chat = chat.into();
        while self.chat.len() > CHAT_LINES {
            self.chat.pop_front();
        }
        self.tasks = tasks.into_iter().collect();
    }
}

fn parsed(pushed: &Value) -> Option<Json> {
    serde_json::from_str(pushed.as_str()?).ok()
}

pub(super) fn chat_lines(pushed: &Value) -> Vec<(String, Json)> {
    let Some(Json::Array(lines)) = parsed(pushed) else {
        return Vec::new();
    };
    lines
        .into_iter()
        .filter_map(|line| Some((line.get("id")?.as_str()?.to_owned(), line)))
        .collect()
}

pub(super) fn tasks(pushed: &Value) -> BTreeMap<String, Json> {
    match parsed(pushed) {
        Some(Json::Object(tasks)) => tasks.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

impl Session {
    /// A chat line of the server's own, to everybody. It stays on the board until others have pushed it off.
    pub fn announce(&mut self, at: SystemTime, text: &str) {
        let record = self.say(at, text);
        self.record(record);
    }

    /// The same, to be recorded or not.
    pub(super) fn say(&mut self, at: SystemTime, text: &str) -> Record {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = self.noticeboard.free_id(since.as_millis());
        let line = json!({
            "id": id,
            "username": "SERVER",
            "message": text,
            "msg_type": "text",
            "metadata": {},
            "timestamp": since.as_secs_f64(),
        });
        self.noticeboard.changed();
        self.noticeboard.say(id, line)
    }
}
