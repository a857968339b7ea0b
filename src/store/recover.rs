//! The start: what there was, from whatever is left of it.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use crate::platform;

use super::backup::{self, BackupInfo};
use super::checkpoint::Checkpoint;
use super::disk::{Disk, free_path};
use super::journal::{Position, Writer, segment_path, segments};
use super::record::{Entry, HandOver, Record};
use super::replay::{self, Reach};
use super::session_file::{self, About, SessionFile};
use super::state::{Fold, State};
use super::worker::{DiskStore, Start};
use super::{FileError, Layout, Settings, StoreError, now_ms, real_disk};

/// Why a scene comes from there.
const RESTORE: &str = "session_restore.db";

/// What a start found.
#[derive(Debug, Default)]
pub struct Recovered {
    pub state: State,
    /// What was damaged, set aside or left out, and what was done about it, for the operator.
    pub notes: Vec<String>,
    /// Where the state comes from, in a few words; `None`: there was nothing.
    pub source: Option<String>,
    /// What the last run has left about those who are to come back: handed out once, whatever becomes of it. `None`: it crashed, or
    /// something is missing.
    pub handover: Option<HandOver>,
    /// Whether the scene is another one than that of the clients in `state`.
    pub replaced: bool,
}

/// Opens a data directory, which is made if it is not there, and reads what it holds. Takes seconds per GB.
pub fn open(data: &Path, settings: Settings) -> Result<(DiskStore, Recovered), StoreError> {
    open_on(real_disk(), data, settings)
}

/// [`open`] on a disk of the caller's.
pub fn open_on(
    disk: Arc<dyn Disk>,
    data: &Path,
    settings: Settings,
) -> Result<(DiskStore, Recovered), StoreError> {
    let layout = Layout::new(data);
    for directory in [&layout.root, &layout.journal, &layout.backups] {
        platform::create_private_dir(directory).map_err(layout.error(directory))?;
    }
    // What is in them is durable only if they are. Where that cannot be done there is nothing better.
    let _ = disk.sync_dir(session_file::parent(&layout.root));
    disk.sync_dir(&layout.root)
        .map_err(layout.error(&layout.root))?;
    let lock = lock(&layout)?;
    info!(data_dir = %data.display(), "reading what is kept, which takes seconds where it is gigabytes");
    backup::remove_leftovers(&*disk, &layout.backups);
    let backups = backup::list_in(&layout.backups);
    let known = known_origin(&lock);
    let origin = match &known {
        Some(origin) => origin.clone(),
        None => new_origin(&lock, &backups),
    };
    let mut recovery = Recovery {
        disk: &disk,
        layout: &layout,
        settings: &settings,
        backups,
        origin: &origin,
        all_are_own: known.is_none(),
        notes: Vec::new(),
    };
    let (checkpoint, saved, notes) = Checkpoint::open(&layout.checkpoint);
    recovery.notes.extend(notes);
    let (mut best, backup) = recovery.best(saved)?;
    if checkpoint.full && (best.source.is_none() || best.reach.is_broken()) {
        // Better no start than one without the scene that it may hold.
        checkpoint.put_back();
        let error = io::ErrorKind::StorageFull.into();
        return Err(layout.error(&layout.checkpoint)(error));
    }
    let seen = recovery.latest_segment();
    recovery.adopt(&best.reach);
    let mut end = best.reach.end;
    if best.handover.is_some() {
        // It counts once, and from here on something may happen that the journal does not get to know of. Cutting works
        // on a full disk, too.
        let path = segment_path(&layout.journal, best.reach.last.segment);
        disk.truncate(&path, best.reach.last.offset)
            .map_err(layout.error(&path))?;
        end = best.reach.last;
    }
    // Positions are compared, so a number is not used twice, even where the journal was lost.
    let next_segment = seen.max(end.segment).saturating_add(1);
    let mut backed_up = backup.as_ref().is_some_and(|(_, complete)| *complete);
    let restored = recovery.restore(&best, &mut end, next_segment);
    let replaced = restored.is_some();
    let other = restored.or_else(|| recovery.go_on_from_others(&best, &mut end, next_segment));
    if let Some((state, source)) = other {
        best.state = state;
        best.source = Some(source);
        best.handover = None;
        backed_up = false;
    }
    let notes = recovery.notes;
    let start = Start {
        disk,
        layout,
        settings,
        lock,
        origin,
        checkpoint,
        previous: end,
        next_segment,
        checkpointed: best.checkpointed,
        backed_up,
        backup: backup.map(|(info, _)| info),
    };
    let recovered = Recovered {
        state: best.state,
        notes,
        source: best.source,
        handover: best.handover,
        replaced,
    };
    Ok((DiskStore::start(start), recovered))
}

/// Holds the data directory for this process.
fn lock(layout: &Layout) -> Result<File, StoreError> {
    let file = platform::open_private(&layout.lock).map_err(layout.error(&layout.lock))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(layout.root.clone())),
        Err(TryLockError::Error(error)) => Err(layout.error(&layout.lock)(error)),
    }
}

/// What tells this data directory's backups from those of others: a random name in the file that is locked.
fn known_origin(mut lock: &File) -> Option<String> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A name for a data directory that has none yet. Where nothing but backups has been copied here it goes on under theirs. One that cannot
/// be written is another one the next time, when these backups count as somebody else's: they come last then.
fn new_origin(mut lock: &File, backups: &[BackupInfo]) -> String {
    let theirs = backups
        .iter()
        .rev()
        .filter_map(|info| info.about.as_ref())
        .map(|about| about.origin.clone())
        .find(|origin| !origin.is_empty());
    let origin = theirs.unwrap_or_else(|| {
        let mut bytes = [0; 16];
        // Without random numbers it has no name, like an export.
        match getrandom::fill(&mut bytes) {
            Ok(()) => session_file::hex(&bytes),
            Err(_) => String::new(),
        }
    });
    let _ = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{origin}"))
        .and_then(|()| lock.sync_all());
    origin
}

/// Whether a server is running on this data directory. Changes nothing.
pub fn in_use(data: &Path) -> bool {
    File::open(Layout::new(data).lock)
        .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

struct Recovery<'a> {
    disk: &'a Arc<dyn Disk>,
    layout: &'a Layout,
    settings: &'a Settings,
    /// In the order of their names.
    backups: Vec<BackupInfo>,
    origin: &'a str,
    /// Whose backups they are cannot be told yet.
    all_are_own: bool,
    notes: Vec<String>,
}

/// A state that was found, and how far the journal led from it.
struct Found {
    state: State,
    reach: Reach,
    /// Where that began, and how many changes there were.
    from: Position,
    changes: u64,
    checkpointed: Position,
    source: Option<String>,
    handover: Option<HandOver>,
}

impl Recovery<'_> {
    /// Whether a backup tells its place in this journal. Places in others mean nothing here.
    fn is_own(&self, info: &BackupInfo) -> bool {
        let about = info.about.as_ref();
        about.is_some_and(|about| self.all_are_own || about.origin == self.origin)
    }

    /// The state that is the furthest, and the position of the newest backup that says one.
    fn best(
        &mut self,
        checkpoint: Option<(State, Position)>,
    ) -> Result<(Found, Option<(BackupInfo, bool)>), StoreError> {
        let position = |info: &BackupInfo| info.about.as_ref().map(|about| about.position);
        let mut best = match checkpoint {
            None => None,
            Some((state, position)) => {
                Some(self.replay(state, position, position, "the checkpoint".to_owned())?)
            }
        };
        // A backup is asked only where it leads further: it is the slower way.
        let own = self.backups.iter().filter(|info| self.is_own(info));
        let mut candidates: Vec<_> = own.cloned().collect();
        candidates.sort_by_key(|info| (position(info), info.path.clone()));
        let newest = candidates.last().cloned();
        while let Some(info) = candidates.pop() {
            let Some(from) = position(&info) else {
                continue;
            };
            if best.as_ref().is_some_and(|best| best.reach.end >= from) {
                break;
            }
            match session_file::read_with_owners(&info.path, self.settings.session_file_bytes) {
                Ok(file) => {
                    // What stands in its header is under no checksum.
                    let true_position = file.about.map(|about| about.position);
                    if true_position != Some(from) {
                        self.notes
                            .push(format!("{}: its header is damaged", info.path.display()));
                    }
                    let from = true_position.unwrap_or_default();
                    if best.as_ref().is_some_and(|best| best.reach.end >= from) {
                        continue;
                    }
                    self.notes.extend(file.notes);
                    let checkpointed = best.map_or(Position::default(), |best| best.checkpointed);
                    best = Some(self.replay(file.state, from, checkpointed, info.name())?);
                    break;
                }
                Err(error) => self.notes.push(format!("{}: {error}", info.path.display())),
            }
        }
        let best = match best {
            Some(best) => best,
            None => self.journal_alone()?,
        };
        let newest = newest.map(|info| {
            let complete = position(&info) == Some(best.from) && best.changes == 0;
            (info, complete)
        });
        Ok((best, newest))
    }

    fn journal_alone(&mut self) -> Result<Found, StoreError> {
        let none = Position::default();
        let mut found = self.replay(State::default(), none, none, String::new())?;
        found.source = (found.reach.records > 0).then(|| "the journal".to_owned());
        if found.reach.headless && found.state.scene.is_none() {
            // Changes of nodes that nobody has; people who still have them can begin anew.
            found.reach = Reach::default();
            found.source = None;
        }
        Ok(found)
    }

    fn replay(
        &mut self,
        state: State,
        from: Position,
        checkpointed: Position,
        source: String,
    ) -> Result<Found, StoreError> {
        let mut fold = Fold::new(state);
        let mut changes = 0;
        let mut visit = |entry: Entry| {
            changes += u64::from(entry.record.is_change());
            fold.record(entry.record);
        };
        let reach = replay::read(&self.layout.journal, from, &mut visit).map_err(
            |replay::Unreadable { path, error }| StoreError::Unreadable {
                cure: platform::cure_of_reading(&self.layout.root, &path, &error),
                path,
                error,
            },
        )?;
        let handover = fold.take_handover();
        let (state, notes) = fold.finish();
        let whole = notes.is_empty() && reach.damage.is_none() && !reach.headless;
        self.notes.extend(notes);
        if let Some(damage) = &reach.damage {
            self.notes.push(format!(
                "journal: {damage}; what comes after it is not used"
            ));
        }
        if reach.missing && reach.damage.is_none() {
            self.notes.push(format!(
                "journal: nothing is left in {} of what came after {source}; the session goes on as it was then",
                self.layout.journal.display()
            ));
        }
        if reach.headless {
            self.notes.push(
                "journal: its beginning is gone, and so is every checkpoint and backup to start from".into(),
            );
        }
        Ok(Found {
            state,
            source: Some(match changes {
                0 => source,
                changes => format!("{source} and {changes} changes in the journal"),
            }),
            handover: handover.filter(|_| whole),
            reach,
            from,
            changes,
            checkpointed,
        })
    }

    /// The highest number of a segment that is there or is named anywhere.
    fn latest_segment(&self) -> u64 {
        let own = self.backups.iter().filter(|info| self.is_own(info));
        let named = own.filter_map(|info| Some(info.about.as_ref()?.position.segment));
        let there = segments(&self.layout.journal).unwrap_or_default();
        named.chain(there).max().unwrap_or(0)
    }

    /// From here on the journal ends where it could be read to.
    fn adopt(&mut self, reach: &Reach) {
        match replay::tidy(&**self.disk, &self.layout.journal, reach) {
            Ok(notes) => self.notes.extend(notes),
            Err(error) => self.notes.push(format!("journal: {error}")),
        }
    }

    /// Takes `session_restore.db`, if somebody has put one there: what was there is backed up, and the file's scene goes into the
    /// journal. It gets another name first, and no file is taken twice: what is done after it was taken is worth more than it.
    fn restore(
        &mut self,
        before: &Found,
        end: &mut Position,
        next_segment: u64,
    ) -> Option<(State, String)> {
        let path = &self.layout.restore;
        let taking = path.with_extension("db.restoring");
        if taking.exists() {
            self.notes.push(format!(
                "restoring {} was interrupted; that is not tried again by itself. Where its scene is not there name the file so again",
                path.display()
            ));
            self.put_aside(&taking, "interrupted");
        }
        if !path.exists() {
            return None;
        }
        let renamed = self.disk.rename(path, &taking);
        if let Err(error) = renamed.and_then(|()| self.disk.sync_dir(&self.layout.root)) {
            self.notes.push(format!(
                "{} cannot be renamed: {error}; it is not restored, for it would be at every start. Make it this server's own file",
                path.display()
            ));
            let _ = self.disk.rename(&taking, path);
            return None;
        }
        let file = match read_scene(&taking, self.settings) {
            Ok(file) => file,
            Err(error) => {
                self.notes
                    .push(format!("{}: {error}; it is not restored", path.display()));
                self.put_aside(&taking, "unreadable");
                return None;
            }
        };
        self.notes.extend(file.notes);
        let scene = file.state.scene;
        let new = State {
            scene,
            ..State::default()
        };
        if let Err(error) = self.take(&before.state, &new, RESTORE, end, next_segment) {
            self.notes
                .push(format!("{}: not restored, because {error}", path.display()));
            // The next start tries it.
            let _ = self.disk.rename(&taking, path);
            return None;
        }
        self.put_aside(&taking, "restored");
        let state = State {
            scene: new.scene,
            deleted: Vec::new(),
            recent: Vec::new(),
            ..before.state.clone()
        };
        Some((state, path.display().to_string()))
    }

    /// Where there never was a scene: the newest whole one of the backups that somebody has brought here from another server.
    fn go_on_from_others(
        &mut self,
        before: &Found,
        end: &mut Position,
        next_segment: u64,
    ) -> Option<(State, String)> {
        let had_one =
            before.state.scene.is_some() || self.backups.iter().any(|info| self.is_own(info));
        let others = self.backups.iter().filter(|info| info.about.is_some());
        let mut others: Vec<_> = others.filter(|_| !had_one).cloned().collect();
        while let Some(info) = others.pop() {
            let taken = read_scene(&info.path, self.settings).and_then(|file| {
                self.take(&before.state, &file.state, &info.name(), end, next_segment)?;
                Ok(file)
            });
            match taken {
                Ok(file) => {
                    self.notes.extend(file.notes);
                    return Some((file.state, info.name()));
                }
                Err(error) => self.notes.push(format!("{}: {error}", info.path.display())),
            }
        }
        None
    }

    /// Backs up what was there, and puts a file's scene, and what was said in it, into the journal. Whoever has the scene of before is not
    /// to go on with this one, also if the next start is the first that anybody comes back to.
    fn take(
        &mut self,
        before: &State,
        file: &State,
        reason: &str,
        end: &mut Position,
        next_segment: u64,
    ) -> Result<(), FileError> {
        if let Some(scene) = &before.scene {
            let about = About {
                time: now_ms(),
                reason: format!("before {reason}"),
                nodes: scene.nodes.len() as u64,
                position: *end,
                version: scene.version.clone(),
                dialect: scene.dialect.clone(),
                users: Vec::new(),
                origin: self.origin.to_owned(),
            };
            let info = backup::write(&**self.disk, self.layout, before, &about)?;
            self.notes
                .push(format!("what was there is saved as {}", info.name()));
        }
        let left = before.clients.iter().map(|client| Record::Left {
            identity: client.identity.clone(),
            reason: "another scene".into(),
        });
        let entries: Vec<_> = left
            .chain(file.records(reason, &"server".into()))
            .map(|record| Entry {
                at: now_ms(),
                record,
            })
            .collect();
        let disk = self.disk.clone();
        let mut writer = Writer::start(disk, self.layout.journal.clone(), next_segment, *end)?;
        *end = writer.position();
        let written = writer
            .append(&entries)
            .and_then(|()| writer.file().sync())
            .and_then(|()| self.disk.sync_dir(&self.layout.journal));
        if let Err(error) = written {
            // Half of it, or all, must not be found by the next start.
            let _ = writer.file().truncate(end.offset);
            return Err(error.into());
        }
        *end = writer.position();
        Ok(())
    }

    /// Gives what was `session_restore.db` a name that says what became of it.
    fn put_aside(&mut self, path: &Path, what: &str) {
        let aside = free_path(&self.layout.restore, what);
        let renamed = self
            .disk
            .rename(path, &aside)
            .and_then(|()| self.disk.sync_dir(&self.layout.root));
        self.notes.push(match renamed {
            Ok(()) => format!("{} is now {}", path.display(), aside.display()),
            Err(error) => format!("{} cannot be renamed: {error}", path.display()),
        });
    }
}

/// Reads a session file that has something in it.
fn read_scene(path: &Path, settings: &Settings) -> Result<SessionFile, FileError> {
    let file = session_file::read(path, settings.session_file_bytes)?;
    match &file.state.scene {
        Some(scene) if !scene.nodes.is_empty() => Ok(file),
        _ => Err(FileError::Malformed("there is no node in it".into())),
    }
}
