//! The thread that makes the journal durable, apart from the one that writes it, so that a slow sync holds nothing up.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::disk::DiskFile;
use super::journal::{Position, Writer};
use super::worker::{Shared, lock};

/// What the kernel has and the disk has not.
#[derive(Default)]
pub(super) struct Unsynced {
    files: Vec<Arc<dyn DiskFile>>,
    /// The directory has new entries.
    directory: bool,
    segment: u64,
    written: Position,
    since: Option<Instant>,
    /// Who waits for it.
    pub answers: Vec<oneshot::Sender<Result<(), String>>>,
    /// A sync has failed since the journal's thread looked last.
    pub failed: bool,
    pub closed: bool,
}

impl Shared {
    /// Notes that records were written.
    pub fn written(&self, writer: &Writer) {
        let mut unsynced = lock(&self.unsynced);
        let file = writer.file();
        if !unsynced.files.iter().any(|known| Arc::ptr_eq(known, &file)) {
            unsynced.files.push(file);
        }
        unsynced.written = writer.position();
        if unsynced.segment != unsynced.written.segment {
            unsynced.segment = unsynced.written.segment;
            unsynced.directory = true;
        }
        if unsynced.since.is_none() {
            unsynced.since = Some(Instant::now());
            drop(unsynced);
            self.to_sync.notify_all();
        }
    }
}

pub(super) fn run(shared: &Shared) {
    let mut took = Duration::ZERO;
    loop {
        let mut unsynced = lock(&shared.unsynced);
        loop {
            let urgent = !unsynced.answers.is_empty();
            let wait = match unsynced.since {
                _ if urgent || (unsynced.closed && unsynced.since.is_some()) => break,
                None if unsynced.closed => return,
                None => None,
                // The sync itself is part of the time that was promised.
                Some(since) => {
                    let limit = shared.settings.sync_interval.saturating_sub(took);
                    match limit.saturating_sub(since.elapsed()) {
                        Duration::ZERO => break,
                        wait => Some(wait),
                    }
                }
            };
            unsynced = match wait {
                None => shared
                    .to_sync
                    .wait(unsynced)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let waited = shared.to_sync.wait_timeout(unsynced, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let files = std::mem::take(&mut unsynced.files);
        let directory = std::mem::take(&mut unsynced.directory);
        let answers = std::mem::take(&mut unsynced.answers);
        let (position, dirty) = (unsynced.written, unsynced.since.take().is_some());
        drop(unsynced);
        let start = Instant::now();
        let mut result = files.iter().try_for_each(|file| file.sync());
        if directory {
            result = result.and_then(|()| shared.disk.sync_dir(&shared.layout.journal));
        }
        took = start.elapsed();
        let result = result.map_err(|error| format!("sync: {error}"));
        match &result {
            Ok(()) if dirty => {
                let mut status = lock(&shared.status);
                status.durable = position;
                status.durable_at = Some(SystemTime::now());
            }
            Ok(()) => {}
            Err(reason) => {
                lock(&shared.unsynced).failed = true;
                lock(&shared.status).wants_save = Some("the disk failed");
                shared.note_journal(Err(reason));
            }
        }
        for answer in answers {
            let _ = answer.send(result.clone());
        }
    }
}
