//! The threads that write: one the journal, one that syncs it, one for checkpoints and backups.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use tracing::{error, info};

use super::checkpoint::Checkpoint;
use super::disk::Disk;
use super::journal::{Position, Writer};
use super::record::{Entry, Record};
use super::save::{AskedBackup, Job, Saver, Slot, may_be_overtaken, merged};
use super::state::State;
use super::sync::{self, Unsynced};
use super::{
    BackupRequest, Layout, SaveResult, Settings, Store, StoreStatus, Written, answered, backup,
    now_ms,
};

/// Bytes that are handed to the kernel at a time.
const BATCH: usize = 8 << 20;

/// How often a failing disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the threads start from.
pub(super) struct Start {
    pub disk: Arc<dyn Disk>,
    pub layout: Layout,
    pub settings: Settings,
    pub lock: File,
    /// Whose backups are made.
    pub origin: String,
    pub checkpoint: Checkpoint,
    /// The end of the journal as it is, and a number that no segment ever had.
    pub previous: Position,
    pub next_segment: u64,
    /// The checkpoint's place in the journal.
    pub checkpointed: Position,
    pub backup: Option<backup::BackupInfo>,
    /// Whether the newest backup holds everything.
    pub backed_up: bool,
}

/// The store on a disk. Closing it (or dropping it) finishes what waits, makes it durable, and ends the threads.
pub struct DiskStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held as long as the threads run.
    lock: File,
}

pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub layout: Layout,
    pub settings: Settings,
    pub origin: String,
    queue: Mutex<Queue>,
    queued: Condvar,
    pub unsynced: Mutex<Unsynced>,
    pub to_sync: Condvar,
    pub slot: Mutex<Slot>,
    pub to_save: Condvar,
    pub status: Mutex<StoreStatus>,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Since when the oldest record waits; it counts until it is written.
    oldest: Option<Instant>,
    closed: bool,
}

enum Item {
    Records(Vec<Entry>, oneshot::Sender<Written>),
    /// So many records came while too much was waiting.
    Dropped(u64),
    Save(Box<State>, Option<AskedBackup>),
    Flush(oneshot::Sender<Result<(), String>>),
}

/// Nothing is left half done where a thread could panic while it holds a lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskStore {
    pub(super) fn start(start: Start) -> DiskStore {
        let status = StoreStatus {
            written: start.previous,
            durable: start.previous,
            last_backup: start.backup,
            ..StoreStatus::default()
        };
        let shared = Arc::new(Shared {
            disk: start.disk,
            layout: start.layout,
            settings: start.settings,
            origin: start.origin,
            queue: Mutex::default(),
            queued: Condvar::new(),
            unsynced: Mutex::default(),
            to_sync: Condvar::new(),
            slot: Mutex::default(),
            to_save: Condvar::new(),
            status: Mutex::new(status),
        });
        let journal = Journal::new(shared.clone(), start.previous, start.next_segment);
        let saver = Saver::new(
            shared.clone(),
            start.checkpoint,
            start.checkpointed,
            start.backed_up,
        );
        let syncer = shared.clone();
        let threads = vec![
            spawn("journal", || journal.run()),
            spawn("journal-sync", move || sync::run(&syncer)),
            spawn("save", || saver.run()),
        ];
        DiskStore {
            shared,
            threads,
            lock: start.lock,
        }
    }

    /// Finishes what waits, saves included, makes it durable and releases the data directory. Blocks.
    pub fn close(self) {}

    fn push(&self, item: Item, weight: usize) {
        self.push_to(lock(&self.shared.queue), item, weight);
    }

    /// Where a disk holds up the journal, saves must not pile up either: each keeps a whole scene in memory.
    fn push_save(&self, state: State, mut backup: Option<AskedBackup>) {
        let mut queue = lock(&self.shared.queue);
        let waiting = queue
            .items
            .iter()
            .rposition(|item| matches!(item, Item::Save(..)))
            .filter(|at| match queue.items.get(*at) {
                Some(Item::Save(_, older)) => may_be_overtaken(older.as_ref()),
                _ => false,
            });
        if let Some(Item::Save(_, older)) = waiting.and_then(|at| queue.items.remove(at)) {
            backup = merged(older, backup);
        }
        self.push_to(queue, Item::Save(Box::new(state), backup), 0);
    }

    fn push_to(&self, mut queue: MutexGuard<'_, Queue>, item: Item, weight: usize) {
        queue.bytes += weight;
        queue.oldest.get_or_insert_with(Instant::now);
        queue.items.push_back(item);
        drop(queue);
        self.shared.queued.notify_one();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .expect("the system can start three threads while it starts the server")
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.queued.notify_all();
        // The journal's thread closes the others when it is through.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // Closing would do, unless a process is just being forked off this one.
        let _ = self.lock.unlock();
    }
}

impl Store for DiskStore {
    fn append(&self, records: Vec<Record>) -> oneshot::Receiver<Written> {
        let at = now_ms();
        let weight = records.iter().map(Record::weight).sum();
        let mut queue = lock(&self.shared.queue);
        // One append may be of any size, as a whole scene is: its bytes are shared with the session.
        if queue.bytes > self.shared.settings.queue_bytes {
            let lost = records.len() as u64;
            match queue.items.back_mut() {
                Some(Item::Dropped(count)) => *count += lost,
                _ => queue.items.push_back(Item::Dropped(lost)),
            }
            return answered(Written::Lost);
        }
        drop(queue);
        let (sender, receipt) = oneshot::channel();
        let entries = records
            .into_iter()
            .map(|record| Entry { at, record })
            .collect();
        self.push(Item::Records(entries, sender), weight);
        receipt
    }

    fn checkpoint(&self, state: State) {
        self.push_save(state, None);
    }

    fn backup(&self, state: State, request: BackupRequest) -> oneshot::Receiver<SaveResult> {
        let (sender, answer) = oneshot::channel();
        self.push_save(state, Some((request, vec![sender])));
        answer
    }

    fn flush(&self) -> oneshot::Receiver<Result<(), String>> {
        let (sender, answer) = oneshot::channel();
        self.push(Item::Flush(sender), 0);
        answer
    }

    fn status(&self) -> StoreStatus {
        let mut status = lock(&self.shared.status).clone();
        let queue = lock(&self.shared.queue);
        status.behind = queue.oldest.map_or(Duration::ZERO, |since| since.elapsed());
        status.waiting_bytes = queue.bytes;
        drop(queue);
        status.saving = lock(&self.shared.slot).is_busy();
        status
    }
}

impl Shared {
    /// Waits for something to do; `None` at the end.
    fn next_items(&self, retry: Option<Duration>) -> Option<VecDeque<Item>> {
        let mut queue = lock(&self.queue);
        queue.oldest = None;
        loop {
            if !queue.items.is_empty() {
                queue.oldest = Some(Instant::now());
                queue.bytes = 0;
                return Some(std::mem::take(&mut queue.items));
            }
            if queue.closed {
                return None;
            }
            queue = match retry {
                None => self
                    .queued
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(retry) => {
                    let waited = self.queued.wait_timeout(queue, retry);
                    let (queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() {
                        return Some(VecDeque::new());
                    }
                    queue
                }
            };
        }
    }

    pub fn note_journal(&self, outcome: Result<(), &str>) {
        let news = lock(&self.status)
            .journal
            .note(outcome.map_err(str::to_owned));
        match outcome {
            Ok(()) if news => info!("the journal is written again"),
            Err(reason) if news => {
                error!(
                    reason,
                    "THE JOURNAL CANNOT BE WRITTEN: changes are not saved"
                );
            }
            _ => {}
        }
    }
}

/// The journal's thread.
struct Journal {
    shared: Arc<Shared>,
    /// `None` until the first record, and after a failure.
    writer: Option<Writer>,
    /// The end of the journal where there is no writer.
    end: Position,
    next_segment: u64,
    /// Records missing since the last one that was written; `Some(0)`: perhaps some.
    lost: Option<u64>,
    /// Changes so far, and bytes since the last save began.
    changes: u64,
    unsaved_bytes: u64,
    /// The changes that the last save was to hold, and its place.
    handed_over: Option<(u64, Position)>,
    last_try: Option<Instant>,
}

impl Journal {
    fn new(shared: Arc<Shared>, end: Position, next_segment: u64) -> Journal {
        Journal {
            shared,
            writer: None,
            end,
            next_segment,
            lost: None,
            changes: 0,
            unsaved_bytes: 0,
            handed_over: None,
            last_try: None,
        }
    }

    fn run(mut self) {
        while let Some(items) = self.shared.next_items(self.lost.map(|_| RETRY)) {
            if std::mem::take(&mut lock(&self.shared.unsynced).failed) {
                // What the kernel had may be gone, although later syncs succeed.
                self.fail();
            }
            let mut batch = Batch::default();
            for item in items {
                match item {
                    Item::Records(entries, receipt) => {
                        for entry in entries {
                            self.changes += u64::from(entry.record.is_change());
                            batch.bytes += entry.record.weight();
                            batch.entries.push(entry);
                            if batch.bytes > BATCH {
                                self.write(&mut batch);
                            }
                        }
                        batch.receipts.push(receipt);
                    }
                    Item::Dropped(count) => {
                        self.write(&mut batch);
                        self.lose(count);
                    }
                    Item::Save(state, backup) => {
                        self.write(&mut batch);
                        self.hand_over(*state, backup);
                    }
                    Item::Flush(answer) => {
                        self.write(&mut batch);
                        self.request_sync(answer);
                    }
                }
            }
            self.write(&mut batch);
        }
        // The last sync, and the save that may still wait.
        let (sender, _) = oneshot::channel();
        self.request_sync(sender);
        lock(&self.shared.unsynced).closed = true;
        self.shared.to_sync.notify_all();
        lock(&self.shared.slot).closed = true;
        self.shared.to_save.notify_all();
    }

    fn lose(&mut self, count: u64) {
        *self.lost.get_or_insert(0) += count;
        // Those that never came here are not counted yet.
        self.changes += 1;
        lock(&self.shared.status).lost += count;
    }

    fn fail(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.end = writer.position();
        }
        self.lost.get_or_insert(0);
    }

    /// Writes a batch and answers for it.
    fn write(&mut self, batch: &mut Batch) {
        let entries = std::mem::take(&mut batch.entries);
        batch.bytes = 0;
        let due = self.last_try.is_none_or(|at| at.elapsed() >= RETRY);
        if (!entries.is_empty() || self.lost.is_some()) && (self.lost.is_none() || due) {
            match self.try_write(&entries) {
                Ok(()) => {
                    self.last_try = None;
                    self.shared.note_journal(Ok(()));
                }
                Err(error) => {
                    self.last_try = Some(Instant::now());
                    self.fail();
                    self.lose(entries.len() as u64);
                    self.shared.note_journal(Err(&error.to_string()));
                }
            }
        } else if !entries.is_empty() {
            self.lose(entries.len() as u64);
        }
        let written = match self.lost {
            None => Written::Kernel,
            Some(_) => Written::Lost,
        };
        for receipt in batch.receipts.drain(..) {
            let _ = receipt.send(written);
        }
    }

    fn try_write(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::start(
                self.shared.disk.clone(),
                self.shared.layout.journal.clone(),
                self.next_segment.max(self.end.segment.saturating_add(1)),
                self.end,
            )?,
        };
        let before = writer.position();
        let result = match self.lost {
            Some(lost) => {
                let record = Record::Gap { lost };
                writer.append(&[Entry {
                    at: now_ms(),
                    record,
                }])
            }
            None => Ok(()),
        };
        let result = result.and_then(|()| writer.append(entries));
        self.end = writer.position();
        result?;
        let grown = self.end.offset - before.offset;
        self.unsaved_bytes += grown;
        let mut status = lock(&self.shared.status);
        status.written = self.end;
        status.journal_size += grown;
        if self.lost.take().is_some() {
            // A save from before it does not cover what follows.
            self.changes += 1;
            status.wants_save = Some("changes are missing in the journal");
        } else if self.unsaved_bytes > self.shared.settings.journal_bytes {
            status
                .wants_save
                .get_or_insert("the journal has grown long");
        }
        drop(status);
        self.shared.written(&writer);
        if writer.len() > self.shared.settings.segment_bytes {
            // Where that fails, the old one goes on growing.
            let _ = writer.rotate();
        }
        self.writer = Some(writer);
        Ok(())
    }

    fn request_sync(&mut self, answer: oneshot::Sender<Result<(), String>>) {
        if self.lost.is_some() {
            let _ = answer.send(Err("the journal cannot be written".into()));
            return;
        }
        lock(&self.shared.unsynced).answers.push(answer);
        self.shared.to_sync.notify_all();
    }

    /// Everything before this moment is in `state`, everything after it will be in later segments.
    fn hand_over(&mut self, state: State, backup: Option<AskedBackup>) {
        if self.unsaved_bytes > self.shared.settings.segment_bytes {
            // Who comes and goes changes nothing, but takes space.
            self.changes += 1;
        }
        let position = match self.handed_over {
            // What an idle server is asked for by the clock must not fill the disk with segments.
            Some((changes, position)) if changes == self.changes => position,
            _ => {
                let position = self.begin_segment(&state);
                self.unsaved_bytes = 0;
                position
            }
        };
        self.handed_over = Some((self.changes, position));
        let (sender, synced) = oneshot::channel();
        self.request_sync(sender);
        let job = Job {
            state,
            position,
            changes: self.changes,
            synced,
            backup,
            at: SystemTime::now(),
        };
        lock(&self.shared.slot).put(job);
        // Not before: whoever sees neither takes everything for saved.
        lock(&self.shared.status).wants_save = None;
        self.shared.to_save.notify_all();
    }

    /// Where the records that a save does not hold will follow.
    fn begin_segment(&mut self, state: &State) -> Position {
        if let Some(writer) = &mut self.writer
            && writer.rotate().is_ok()
        {
            self.shared.written(writer);
        }
        let position = self
            .writer
            .as_ref()
            .map_or(self.end, |writer| writer.position());
        // Backups do not tell who is logged in; whoever starts from one reads it here.
        let here: Vec<Entry> = state
            .clients
            .iter()
            .map(|client| Entry {
                at: now_ms(),
                record: Record::Login(client.clone()),
            })
            .collect();
        if self.lost.is_none() && !here.is_empty() && self.try_write(&here).is_err() {
            self.fail();
        }
        position
    }
}

/// Records on their way to the kernel.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    bytes: usize,
    receipts: Vec<oneshot::Sender<Written>>,
}
