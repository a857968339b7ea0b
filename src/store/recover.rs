//! The start: what there was, from whatever is left of it.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use crate::platform;
use crate::wire::message::{NodeId, UserName};

use super::backup;
use super::checkpoint::Checkpoint;
use super::disk::{Disk, free_path};
use super::journal::{Position, Writer, segment_path, segments};
use super::record::{Entry, HandOver};
use super::replay::{self, Reach};
use super::session_file::{self, About};
use super::state::{Fold, State};
use super::worker::{DiskStore, Start};
use super::{FileError, Layout, Settings, StoreError, now_ms, real_disk};

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
    let mut recovery = Recovery {
        disk: &disk,
        layout: &layout,
        settings: &settings,
        notes: Vec::new(),
    };
    recovery.remove_leftovers();
    let (checkpoint, saved, notes) = Checkpoint::open(&layout.checkpoint);
    recovery.notes.extend(notes);
    let (mut best, backup) = recovery.best(saved);
    if checkpoint.full && best.source.is_none() {
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
    let mut replaced = false;
    if let Some(restored) = recovery.restore(&best, &mut end, next_segment) {
        best.state = restored;
        best.source = Some(layout.restore.display().to_string());
        best.handover = None;
        replaced = true;
    }
    let notes = recovery.notes;
    let start = Start {
        disk,
        layout,
        settings,
        lock,
        checkpoint,
        previous: end,
        next_segment,
        checkpointed: best.checkpointed,
        backed_up: backup.as_ref().is_some_and(|(_, complete)| *complete),
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

/// Whether a server is running on this data directory. Changes nothing.
pub fn in_use(data: &Path) -> bool {
    File::open(Layout::new(data).lock)
        .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

struct Recovery<'a> {
    disk: &'a Arc<dyn Disk>,
    layout: &'a Layout,
    settings: &'a Settings,
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
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.layout.backups)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "tmp")
            {
                let _ = self.disk.remove(&entry.path());
            }
        }
    }

    /// The state that is the furthest, and the position of the newest backup that says one.
    fn best(
        &mut self,
        checkpoint: Option<(State, Position)>,
    ) -> (Found, Option<(backup::BackupInfo, bool)>) {
        let backups = backup::list_in(&self.layout.backups);
        let position = |info: &backup::BackupInfo| info.about.as_ref().map(|about| about.position);
        let newest = backups
            .iter()
            .filter(|info| info.about.is_some())
            .max_by_key(|info| position(info))
            .cloned();
        let mut best = checkpoint.map(|(state, position)| {
            self.replay(state, position, position, "the checkpoint".to_owned())
        });
        // A backup is asked only where it leads further: it is the slower way.
        let mut candidates: Vec<_> = backups.iter().filter(|info| info.about.is_some()).collect();
        candidates.sort_by_key(|info| (position(info), info.path.clone()));
        while let Some(info) = candidates.pop() {
            let Some(from) = position(info) else { continue };
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
                    best = Some(self.replay(file.state, from, checkpointed, info.name()));
                    break;
                }
                Err(error) => self.notes.push(format!("{}: {error}", info.path.display())),
            }
        }
        let best = best.unwrap_or_else(|| {
            let none = Position::default();
            let mut found = self.replay(State::default(), none, none, String::new());
            found.source = (found.reach.records > 0).then(|| "the journal".to_owned());
            if found.reach.headless && found.state.scene.is_none() {
                // Changes of nodes that nobody has; people who still have them can begin anew.
                found.reach = Reach::default();
                found.source = None;
            }
            found
        });
        let newest = newest.map(|info| {
            let complete = position(&info) == Some(best.from) && best.changes == 0;
            (info, complete)
        });
        (best, newest)
    }

    fn replay(
        &mut self,
        state: State,
        from: Position,
        checkpointed: Position,
        source: String,
    ) -> Found {
        let mut fold = Fold::new(state);
        let mut changes = 0;
        let mut visit = |entry: Entry| {
            changes += u64::from(entry.record.is_change());
            fold.record(entry.record);
        };
        let reach = match replay::read(&self.layout.journal, from, &mut visit) {
            Ok(reach) => reach,
            Err(error) => Reach {
                end: from,
                damage: Some(error.to_string()),
                ..Reach::default()
            },
        };
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
        Found {
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
        }
    }

    /// The highest number of a segment that is there or is named anywhere.
    fn latest_segment(&self) -> u64 {
        let backups = backup::list_in(&self.layout.backups);
        let named = backups
            .iter()
            .filter_map(|info| Some(info.about.as_ref()?.position.segment));
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

    /// Takes `session_restore.db`, if somebody has put one there: what was there is backed up, the file's scene goes into the
    /// journal, and only then the file gets another name.
    fn restore(&mut self, before: &Found, end: &mut Position, next_segment: u64) -> Option<State> {
        let path = &self.layout.restore;
        if !path.exists() {
            return None;
        }
        let file = session_file::read(path, self.settings.session_file_bytes);
        let file = file.and_then(|file| match &file.state.scene {
            Some(scene) if !scene.nodes.is_empty() => Ok(file),
            _ => Err(FileError::Malformed("there is no node in it".into())),
        });
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                self.notes
                    .push(format!("{}: {error}; it is not restored", path.display()));
                self.rename_aside(path, "unreadable");
                return None;
            }
        };
        self.notes.extend(file.notes.clone());
        if let Err(error) = self.take(&before.state, &file.state, end, next_segment) {
            self.notes
                .push(format!("{}: not restored, because {error}", path.display()));
            return None;
        }
        self.rename_aside(path, "restored");
        let mut state = State {
            scene: file.state.scene,
            ..before.state.clone()
        };
        // Those who come back hold what is gone now.
        let ids = |state: &State| -> HashSet<NodeId> {
            let nodes = state.scene.iter().flat_map(|scene| &scene.nodes);
            nodes.map(|(node, _)| node.id.clone()).collect()
        };
        let gone = &ids(&before.state) - &ids(&state);
        state.deleted.extend(gone);
        Some(state)
    }

    fn take(
        &mut self,
        before: &State,
        file: &State,
        end: &mut Position,
        next_segment: u64,
    ) -> Result<(), FileError> {
        if let Some(scene) = &before.scene {
            let about = About {
                time: now_ms(),
                reason: "before session_restore.db".into(),
                nodes: scene.nodes.len() as u64,
                position: *end,
                version: scene.version.clone(),
                dialect: scene.dialect.clone(),
                users: Vec::new(),
            };
            let info = backup::write(&**self.disk, self.layout, before, &about)?;
            self.notes
                .push(format!("what was there is saved as {}", info.name()));
        }
        let server: UserName = "server".into();
        let scene = file.scene.clone().unwrap_or_default();
        let entries: Vec<_> = scene
            .records("session_restore.db", &server)
            .into_iter()
            .map(|record| Entry {
                at: now_ms(),
                record,
            })
            .collect();
        let disk = self.disk.clone();
        let mut writer = Writer::start(disk, self.layout.journal.clone(), next_segment, *end)?;
        writer.append(&entries)?;
        writer.file().sync()?;
        self.disk.sync_dir(&self.layout.journal)?;
        *end = writer.position();
        Ok(())
    }

    fn rename_aside(&mut self, path: &Path, what: &str) {
        let aside = free_path(path, what);
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
