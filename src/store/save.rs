//! The thread that makes checkpoints and backups, and removes what they make superfluous.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::checkpoint::Checkpoint;
use super::journal::{Position, segment_path, segments};
use super::session_file::About;
use super::state::State;
use super::worker::{Shared, lock};
use super::{BackupRequest, SaveResult, Saved, backup};

/// After a failed save, how long until another one is asked for.
const RETRY: Duration = Duration::from_secs(20);

/// Without a backup the journal is kept until it is so many times as long as it should be.
const PATIENCE: u64 = 4;

/// A backup and who waits for it.
pub(super) type AskedBackup = (BackupRequest, Vec<oneshot::Sender<SaveResult>>);

/// Whether a newer save does for one with this backup.
pub(super) fn may_be_overtaken(backup: Option<&AskedBackup>) -> bool {
    backup.is_none_or(|(request, _)| !request.last_of_scene)
}

/// What a newer save has to do where it takes the place of an older one.
pub(super) fn merged(
    older: Option<AskedBackup>,
    newer: Option<AskedBackup>,
) -> Option<AskedBackup> {
    let Some((old_request, answers)) = older else {
        return newer;
    };
    let (mut request, mut all) = newer.unwrap_or((old_request.clone(), Vec::new()));
    all.extend(answers);
    request.even_if_unchanged |= old_request.even_if_unchanged;
    Some((request, all))
}

/// Something to be saved.
pub(super) struct Job {
    pub state: State,
    pub position: Position,
    /// Changes up to then.
    pub changes: u64,
    /// The journal up to then is durable.
    pub synced: oneshot::Receiver<Result<(), String>>,
    pub backup: Option<AskedBackup>,
    pub at: SystemTime,
}

/// The save that waits while another one runs, and before it those that no newer one does for.
#[derive(Default)]
pub(super) struct Slot {
    waiting: VecDeque<Job>,
    running: bool,
    pub closed: bool,
}

impl Slot {
    /// A newer save does for one that has not begun.
    pub fn put(&mut self, mut job: Job) {
        let last = self.waiting.back();
        if last.is_some_and(|older| may_be_overtaken(older.backup.as_ref()))
            && let Some(older) = self.waiting.pop_back()
        {
            job.backup = merged(older.backup, job.backup.take());
        }
        self.waiting.push_back(job);
    }

    pub fn is_busy(&self) -> bool {
        self.running || !self.waiting.is_empty()
    }
}

pub(super) struct Saver {
    shared: Arc<Shared>,
    checkpoint: Checkpoint,
    /// Where in the journal they stand, as far as they were made and verified by this process.
    checkpointed: Option<Position>,
    backed_up: Option<Position>,
    /// The changes that they hold.
    checkpoint_changes: Option<u64>,
    backup_changes: Option<u64>,
}

impl Saver {
    pub fn new(
        shared: Arc<Shared>,
        checkpoint: Checkpoint,
        checkpointed: Position,
        backed_up: bool,
    ) -> Saver {
        Saver {
            shared,
            checkpoint,
            checkpointed: (checkpointed != Position::default()).then_some(checkpointed),
            backed_up: None,
            checkpoint_changes: None,
            backup_changes: backed_up.then_some(0),
        }
    }

    pub fn run(mut self) {
        let mut failed = false;
        while let Some(job) = self.next(failed) {
            failed = match job {
                None => {
                    lock(&self.shared.status).wants_save = Some("the last save failed");
                    false
                }
                Some(job) => !self.guarded_save(job),
            };
            lock(&self.shared.slot).running = false;
        }
    }

    /// The next job; `Some(None)` where none came for a while after a failure, `None` at the end.
    fn next(&self, failed: bool) -> Option<Option<Job>> {
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(job) = slot.waiting.pop_front() {
                slot.running = true;
                return Some(Some(job));
            }
            if slot.closed {
                return None;
            }
            if !failed {
                let waited = self.shared.to_save.wait(slot);
                slot = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.shared.to_save.wait_timeout(slot, RETRY);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return Some(None);
            }
            slot = guard;
        }
    }

    /// A fault of the server itself is a save that fails, and not the end of all saves.
    fn guarded_save(&mut self, job: Job) -> bool {
        let saved = panic::catch_unwind(AssertUnwindSafe(|| self.save(job)));
        saved.unwrap_or_else(|_| {
            // What it knew of the database may be half true.
            self.checkpoint.close();
            let reason = "a fault of the server, which the log shows; please report it";
            lock(&self.shared.status).backups.note(Err(reason.into()));
            error!(reason, "THE SESSION COULD NOT BE SAVED");
            false
        })
    }

    /// Returns whether everything went well.
    fn save(&mut self, job: Job) -> bool {
        // Otherwise the journal could end before the place that a checkpoint names.
        let _ = job.synced.blocking_recv();
        let mut well = true;
        if self.checkpoint_changes != Some(job.changes) {
            let result = self.checkpoint.save(&job.state, job.position);
            well &= result.is_ok();
            let mut status = lock(&self.shared.status);
            let news = status.checkpoints.note(result.clone());
            match result {
                Ok(()) => {
                    status.last_checkpoint = Some(job.at);
                    self.checkpointed = Some(job.position);
                    self.checkpoint_changes = Some(job.changes);
                }
                Err(reason) if news => error!(reason, "the checkpoint could not be written"),
                Err(_) => {}
            }
        }
        let Some((request, answers)) = job.backup else {
            self.trim();
            return well;
        };
        let result = self.backup(&job.state, job.position, job.changes, request);
        well &= result.is_ok();
        self.trim();
        // When everything is as it will be.
        for answer in answers {
            let _ = answer.send(result.clone());
        }
        well
    }

    fn backup(
        &mut self,
        state: &State,
        position: Position,
        changes: u64,
        request: BackupRequest,
    ) -> SaveResult {
        let Some(scene) = &state.scene else {
            return Ok(Saved::NoScene);
        };
        if self.backup_changes == Some(changes) && !request.even_if_unchanged {
            return Ok(Saved::Unchanged);
        }
        let about = About {
            time: super::now_ms(),
            reason: request.reason,
            users: request.users,
            nodes: scene.nodes.len() as u64,
            position,
            version: scene.version.clone(),
            dialect: scene.dialect.clone(),
            origin: self.shared.origin.clone(),
        };
        for (node, commits) in &scene.nodes {
            if !commits.is_empty() {
                warn!(node = %node.id, changes = commits.len(), "saved without its last changes, which only clients can fold; they are kept beside it");
            }
        }
        let shared = &self.shared;
        let result = backup::write(&*shared.disk, &shared.layout, state, &about)
            .map_err(|error| error.to_string());
        let outcome = result.as_ref().map(drop).map_err(String::clone);
        let news = lock(&shared.status).backups.note(outcome);
        match &result {
            Ok(written) => {
                info!(
                    file = written.name(),
                    bytes = written.bytes,
                    nodes = about.nodes,
                    "Session saved to disk (reason: {})",
                    about.reason
                );
                lock(&shared.status).last_backup = Some(written.clone());
                self.backed_up = Some(position);
                self.backup_changes = Some(changes);
                if let Err(error) = backup::retain(
                    &*shared.disk,
                    &shared.layout.backups,
                    shared.settings.max_backups,
                ) {
                    warn!(%error, "old backups could not be removed");
                }
            }
            Err(reason) if news => error!(reason, "THE BACKUP COULD NOT BE WRITTEN"),
            Err(reason) => warn!(reason, "the backup could not be written"),
        }
        result.map(Saved::Backup)
    }

    /// Removes segments that neither a checkpoint nor a backup needs any more.
    fn trim(&mut self) {
        let shared = &self.shared;
        let directory = &shared.layout.journal;
        let size = |segment: u64| {
            std::fs::metadata(segment_path(directory, segment)).map_or(0, |file| file.len())
        };
        let Ok(segments) = segments(directory) else {
            return;
        };
        let total: u64 = segments.iter().map(|segment| size(*segment)).sum();
        let patience = shared.settings.journal_bytes.saturating_mul(PATIENCE);
        let keep = match (self.checkpointed, self.backed_up) {
            (Some(checkpoint), Some(backup)) => checkpoint.min(backup),
            (None, Some(backup)) => backup,
            (Some(checkpoint), None) if total > patience => checkpoint,
            _ => Position::default(),
        };
        let mut left = total;
        for segment in segments {
            let bytes = size(segment);
            if segment < keep.segment
                && shared
                    .disk
                    .remove(&segment_path(directory, segment))
                    .is_ok()
            {
                left -= bytes;
            }
        }
        let mut status = lock(&shared.status);
        status.journal_size = left;
        status.checkpoint_alone =
            self.backed_up.is_none() && (status.checkpoint_alone || keep != Position::default());
    }
}
