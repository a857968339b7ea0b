//! What outlives the server: journal, checkpoint and backups.
//!
//! Three things on disk, each able to stand in for the one before:
//!
//! | what | holds | written |
//! | --- | --- | --- |
//! | `journal/` | every change since | before a change is relayed; synced twice a second |
//! | `state.sled/` | the checkpoint: everything, and the place in the journal that it stands for | now and then, what changed |
//! | `backups/` | the same as files that the add-on opens | now and then, in full |
//!
//! The session's task only ever hands over: [`Store`]'s methods return at once. A thread writes the journal, another one syncs
//! it, a third one makes checkpoints and backups (`worker`). Starting ([`open`]) takes the newest checkpoint that verifies,
//! else the newest such backup, and replays the journal after it.
//!
//! | file | what it does |
//! | --- | --- |
//! | `record` | what a change is, in MessagePack |
//! | `journal`, `replay` | writing and reading the segments |
//! | `state` | what is saved; folding records into it |
//! | `checkpoint`, `generation` | sled, which is fast but must not be trusted alone |
//! | `backup`, `session_file` | the add-on's `.db` files |
//! | `recover` | the start |
//! | `worker`, `sync`, `save` | the threads |
//! | `disk` | the filesystem, so that tests can put a bad one in its place |

mod backup;
mod checkpoint;
pub mod disk;
mod generation;
mod journal;
mod record;
mod recover;
mod replay;
mod save;
mod session_file;
mod state;
mod sync;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use crate::platform;

pub use backup::{BackupInfo, Verified, list, verify};
pub use journal::Position;
pub use record::{Entry, HandOver, HandedOver, Record, SavedClient};
pub use recover::{Recovered, in_use, open, open_on};
pub use session_file::{
    About, SessionFile, copy, export, export_session, read as read_session_file,
};
pub use state::{SavedScene, State};
pub use worker::DiskStore;

/// Where changes are kept. Methods never wait for a disk.
pub trait Store: Send + Sync {
    /// Appends to the journal, in order. The receipt comes as soon as the kernel has the records, or they are
    /// lost because the disk does not take them; waiting for it is up to the caller. To be called before the change is relayed.
    fn append(&self, records: Vec<Record>) -> oneshot::Receiver<Written>;

    /// Makes a checkpoint of `state`, in which everything appended so far must be contained, and nothing else.
    /// At most one save runs and one waits; a newer one takes the place of the one that waits.
    fn checkpoint(&self, state: State);

    /// The same, and writes a backup. Where a save that waits is overtaken, this answer is about the newer one.
    fn backup(&self, state: State, request: BackupRequest) -> oneshot::Receiver<SaveResult>;

    /// Answers when everything appended so far is durable.
    fn flush(&self) -> oneshot::Receiver<Result<(), String>>;

    fn status(&self) -> StoreStatus;
}

/// What became of appended records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The kernel has them: they survive the end of this process.
    Kernel,
    /// The disk does not take them; [`StoreStatus::journal`] says why.
    Lost,
}

/// Why a backup is made.
#[derive(Debug, Clone, Default)]
pub struct BackupRequest {
    /// `auto-save`, `user_disconnect:NAME`, `shutdown`, …
    pub reason: String,
    /// Names of those who are logged in.
    pub users: Vec<String>,
    /// Also when the scene is what it was at the last one.
    pub even_if_unchanged: bool,
    /// Another scene comes in the place of this one: no newer save can do for it.
    pub last_of_scene: bool,
}

pub type SaveResult = Result<Saved, String>;

/// What a save did.
#[derive(Debug, Clone)]
pub enum Saved {
    Backup(BackupInfo),
    /// Nothing had changed since the last one.
    Unchanged,
    /// There is no scene that could be saved.
    NoScene,
}

/// Settings of the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a written change may wait for being synced.
    pub sync_interval: Duration,
    /// Bytes of a segment of the journal.
    pub segment_bytes: u64,
    /// Bytes of journal after a checkpoint, or before the last backup, at which [`StoreStatus::wants_save`] asks for one.
    pub journal_bytes: u64,
    /// Bytes that may wait for a slow disk. What comes when they are spent is lost to the journal (not to the session).
    pub queue_bytes: usize,
    /// Backups that are kept, at least one.
    pub max_backups: usize,
    /// Bytes of a session file when it is unpacked.
    pub session_file_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            sync_interval: Duration::from_millis(500),
            segment_bytes: 64 << 20,
            journal_bytes: 1 << 30,
            queue_bytes: 256 << 20,
            max_backups: 10,
            session_file_bytes: 16 << 30,
        }
    }
}

/// Whether something works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Healthy,
    Failing {
        since: SystemTime,
        reason: String,
    },
}

impl Health {
    /// Takes in how the last attempt went. Returns whether that is news.
    fn note(&mut self, outcome: Result<(), String>) -> bool {
        match (outcome, &mut *self) {
            (Ok(()), Health::Healthy) => false,
            (Ok(()), failing) => {
                *failing = Health::Healthy;
                true
            }
            (Err(why), Health::Failing { reason, .. }) => {
                *reason = why;
                false
            }
            (Err(reason), healthy) => {
                let since = SystemTime::now();
                *healthy = Health::Failing { since, reason };
                true
            }
        }
    }
}

/// How the store is.
#[derive(Debug, Clone, Default)]
pub struct StoreStatus {
    pub journal: Health,
    pub checkpoints: Health,
    pub backups: Health,
    /// What the kernel has.
    pub written: Position,
    /// What a power cut leaves, and since when.
    pub durable: Position,
    pub durable_at: Option<SystemTime>,
    /// How long the oldest record that is not written yet has been waiting: a slow disk.
    pub behind: Duration,
    pub waiting_bytes: usize,
    /// Records that could not be written.
    pub lost: u64,
    pub journal_size: u64,
    pub last_checkpoint: Option<SystemTime>,
    pub last_backup: Option<BackupInfo>,
    /// The journal alone does not do any more: please call [`Store::backup`]. Says why.
    pub wants_save: Option<&'static str>,
    pub saving: bool,
    /// There has been no backup for so long that the journal was cut: only the checkpoint holds what came before it.
    pub checkpoint_alone: bool,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{0} is in use by another server; stop that one, or give this one a directory of its own with --data-dir"
    )]
    InUse(PathBuf),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// It may be whole, and without it the session would go on as it was before.
    #[error("cannot read {path}: {error}, and nothing is begun without what is in it: {cure}")]
    Unreadable {
        path: PathBuf,
        error: io::Error,
        /// What to do about it.
        cure: String,
    },
    #[error("cannot write to the data directory {path}: {error}: {cure}")]
    Denied {
        path: PathBuf,
        error: io::Error,
        /// What to do about it.
        cure: String,
    },
}

impl Layout {
    /// What went wrong with something in the data directory.
    fn error(&self, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let (root, path) = (self.root.clone(), path.to_owned());
        move |error| match platform::cure(&root, &error) {
            Some(cure) => StoreError::Denied {
                path: root,
                error,
                cure,
            },
            None => StoreError::Io { path, error },
        }
    }
}

/// Why a session file was refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is larger than {0} bytes unpacked")]
    TooLarge(u64),
    #[error("it is no session file: {0}")]
    Malformed(String),
    #[error("its checksum is wrong")]
    Checksum,
}

/// Keeps nothing: for tests, and to measure what the store costs.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoStore;

impl Store for NoStore {
    fn append(&self, _: Vec<Record>) -> oneshot::Receiver<Written> {
        answered(Written::Kernel)
    }

    fn checkpoint(&self, _: State) {}

    fn backup(&self, _: State, _: BackupRequest) -> oneshot::Receiver<SaveResult> {
        answered(Err("nothing is stored".into()))
    }

    fn flush(&self) -> oneshot::Receiver<Result<(), String>> {
        answered(Ok(()))
    }

    fn status(&self) -> StoreStatus {
        StoreStatus::default()
    }
}

/// Reads what the journal still holds, oldest first: who did what, and when. Also while a server is writing it.
pub fn history(data: &Path, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
    let journal = Layout::new(data).journal;
    let read = replay::read(&journal, Position::default(), visit);
    read.map(drop).map_err(|unreadable| unreadable.error)
}

fn answered<T>(answer: T) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    let _ = sender.send(answer);
    receiver
}

/// Unix time in ms.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Where things are in a data directory.
#[derive(Debug, Clone)]
struct Layout {
    root: PathBuf,
    journal: PathBuf,
    checkpoint: PathBuf,
    backups: PathBuf,
    metadata: PathBuf,
    restore: PathBuf,
    lock: PathBuf,
}

impl Layout {
    fn new(root: &Path) -> Layout {
        Layout {
            root: root.to_owned(),
            journal: root.join("journal"),
            checkpoint: root.join("state.sled"),
            backups: root.join("backups"),
            metadata: root.join("session_metadata.json"),
            restore: root.join("session_restore.db"),
            lock: root.join("lock"),
        }
    }
}

/// The disk that everything but tests uses.
fn real_disk() -> Arc<dyn disk::Disk> {
    Arc::new(disk::RealDisk)
}
