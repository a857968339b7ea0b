//! What the server does with its store: the journal before everybody sees, backups, scenes from files.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::Core;
use crate::admin::{AdminCommand, AdminReply, StoreCommand};
use crate::alarm::{CURED, Tell};
use crate::backups;
use crate::config::Config;
use crate::logging;
use crate::store::{
    self, BackupRequest, DiskStore, Record, Recovered, SaveResult, Saved, SavedScene,
};

/// How long a relay waits for the journal: a write takes microseconds, but on a loaded machine its thread may have to wait for a
/// processor, and that must not be taken for a slow disk. For every MB to be written it may take a little longer, as for a
/// whole scene; no longer in all than clients bear without hearing anything.
const JOURNAL_PATIENCE: Duration = Duration::from_millis(100);
const JOURNAL_PATIENCE_PER_MB: Duration = Duration::from_millis(10);
const JOURNAL_PATIENCE_AT_MOST: Duration = Duration::from_secs(2);

/// After it was waited for in vain, how long nobody waits again: a slow disk delays one relay now and then, not each.
const JOURNAL_MISTRUST: Duration = Duration::from_secs(1);

/// How often the store is looked after, and how far apart it is asked for saves that the journal wants.
pub(super) const LOOK_AFTER_STORE: Duration = Duration::from_secs(1);
const WANTED_SAVES: Duration = Duration::from_secs(10);

/// Why the last backup is made.
pub(super) const SHUTDOWN: &str = "shutdown";

/// How long a restart waits for its backup, with everybody still at work. Longer ones are waited for after that; Docker kills
/// what has not stopped after 10 s.
const SAVE_FIRST: Duration = Duration::from_secs(5);

/// What is to replace the running scene, and who waits for that.
pub(super) struct Replacement {
    pub(super) by: Successor,
    /// The running one has been backed up.
    pub(super) backed_up: bool,
    pub(super) answer: oneshot::Sender<AdminReply>,
}

pub(super) enum Successor {
    /// A file's name and its scene.
    Saved(String, SavedScene),
    /// None: back to the lobby.
    Nothing,
}

/// Opens the data directory and reads what the last run left there.
pub(super) async fn open_store(config: &Config) -> Result<(DiskStore, Recovered)> {
    let settings = store::Settings {
        max_backups: config.max_backups,
        ..store::Settings::default()
    };
    let data_dir = config.data_dir.clone();
    let began = Instant::now();
    let (store, recovered) =
        tokio::task::spawn_blocking(move || store::open(&data_dir, settings)).await??;
    for note in &recovered.notes {
        warn!("{note}");
    }
    if let (Some(scene), Some(source)) = (&recovered.state.scene, &recovered.source) {
        info!(
            nodes = scene.nodes.len(),
            bytes = scene.bytes(),
            version = scene.version,
            source,
            seconds = logging::seconds(began.elapsed()),
            "Session restored from disk"
        );
    }
    Ok((store, recovered))
}

/// Whether there has ever been a scene in this data directory, and its backups have not been cleared away.
pub(super) async fn had_scene(data_dir: &Path) -> bool {
    let data_dir = data_dir.to_owned();
    let backups = tokio::task::spawn_blocking(move || store::list(&data_dir)).await;
    backups.is_ok_and(|backups| backups.iter().any(|backup| backup.about.is_some()))
}

impl Core {
    /// Hands records to the kernel. A disk that is not done within a moment does not delay relays, nor do those after it.
    pub(super) async fn write(&mut self, records: Vec<Record>) {
        let megabytes = records.iter().map(Record::weight).sum::<usize>() / 1_000_000;
        let patience = JOURNAL_PATIENCE_PER_MB
            .saturating_mul(u32::try_from(megabytes).unwrap_or(u32::MAX))
            .saturating_add(JOURNAL_PATIENCE)
            .min(JOURNAL_PATIENCE_AT_MOST);
        let mut receipt = self.store.append(records);
        if let Some((slow, since)) = &mut self.slow {
            let waiting = matches!(slow.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            if waiting || since.elapsed() < JOURNAL_MISTRUST {
                return;
            }
            self.slow = None;
        }
        if tokio::time::timeout(patience, &mut receipt).await.is_err() {
            debug!("the disk is slow: changes are relayed before they are written");
            self.slow = Some((receipt, Instant::now()));
        }
    }

    /// Tells of trouble with the disk, and saves where the journal alone does not do.
    pub(super) fn look_after_store(&mut self) {
        let status = self.store.status();
        match self.alarm.look(Instant::now(), &status) {
            None => {}
            Some(Tell::Trouble { text, chat }) => {
                error!("{text}");
                if chat {
                    self.session.announce(SystemTime::now(), &text);
                }
            }
            Some(Tell::Cured) => {
                info!("{CURED}");
                self.session.announce(SystemTime::now(), CURED);
            }
        }
        let due = self.wanted.is_none_or(|at| at.elapsed() >= WANTED_SAVES);
        if let Some(why) = status.wants_save
            && due
        {
            self.wanted = Some(Instant::now());
            let receipt = self.request_backup(why, true);
            tokio::spawn(async move { report(receipt.await, why) });
        }
    }

    /// Has a backup made, unless nothing has changed since the last one.
    pub(super) fn save(&mut self, reason: String) {
        let receipt = self.backup(&reason);
        tokio::spawn(async move { report(receipt.await, &reason) });
    }

    /// The backup before a restart, made while everybody is still at work.
    pub(super) fn save_first(&mut self) -> tokio::task::JoinHandle<()> {
        let receipt = self.backup(SHUTDOWN);
        let reported = tokio::spawn(async move { report(receipt.await, SHUTDOWN) });
        tokio::spawn(async move {
            let _ = tokio::time::timeout(SAVE_FIRST, reported).await;
        })
    }

    /// The last thing that is written, for it counts only if nothing came later.
    pub(super) async fn hand_over(self) {
        let handover = self.session.hand_over();
        let reason = SHUTDOWN.to_owned();
        drop(
            self.store
                .append(vec![Record::ServerStopped { reason, handover }]),
        );
        if let Ok(Err(error)) = self.store.flush().await {
            error!(error, "the last changes are not on the disk");
        }
        // Closing waits for the disk.
        let store = self.store;
        let _ = tokio::task::spawn_blocking(move || drop(store)).await;
    }

    /// What the operator wants of the store. The answer comes when it is done.
    pub(super) fn storage(&mut self, command: StoreCommand, answer: oneshot::Sender<AdminReply>) {
        let data_dir = self.data_dir.clone();
        match command {
            StoreCommand::Save { note } => {
                let receipt = self.request_backup(note.as_deref().unwrap_or("by hand"), true);
                tokio::spawn(async move {
                    let reply = match receipt.await {
                        Ok(Ok(Saved::Backup(info))) => {
                            AdminReply::Done(format!("saved as {}", info.path.display()))
                        }
                        Ok(Ok(Saved::Unchanged)) => {
                            AdminReply::Done("nothing has changed since the last backup".into())
                        }
                        Ok(Ok(Saved::NoScene)) => {
                            AdminReply::Failed("there is no scene to save".into())
                        }
                        Ok(Err(error)) => AdminReply::Failed(format!("not saved: {error}")),
                        Err(_) => AdminReply::Failed("not saved: the store has ended".into()),
                    };
                    let _ = answer.send(reply);
                });
            }
            StoreCommand::Backups => {
                tokio::task::spawn_blocking(move || answer.send(reply(backups::table(&data_dir))));
            }
            StoreCommand::Export { path } => {
                let state = self.session.state();
                tokio::task::spawn_blocking(move || {
                    answer.send(reply(backups::export(Path::new(&path), &state)))
                });
            }
            StoreCommand::Restore { name } => {
                let loaded = self.loaded.clone();
                tokio::task::spawn_blocking(move || {
                    // Before anything is saved: that may be the eleventh backup, and would be the latest.
                    match backups::read(&data_dir, &name) {
                        Ok((name, scene)) => drop(loaded.send(Replacement {
                            by: Successor::Saved(name, scene),
                            backed_up: false,
                            answer,
                        })),
                        Err(error) => drop(answer.send(reply(Err(error)))),
                    }
                });
            }
        }
    }

    /// Begins with the scene of a file. Not where there is a scene, or has been one: a service that is started with the same flags again
    /// would go back to the file's, in the face of everybody who has come to begin what `new` was typed for.
    pub(super) async fn import_scene(&mut self, path: &Path) -> Result<()> {
        let why = match self.session.has_scene() {
            true => Some("there is a scene already"),
            false => had_scene(&self.data_dir)
                .await
                .then_some("there has been a scene already, of which there are backups"),
        };
        if let Some(why) = why {
            warn!(
                file = %path.display(),
                "not imported, for {why}; to begin with this file all the same stop the server and copy it to {}",
                self.data_dir.join("session_restore.db").display()
            );
            return Ok(());
        }
        let file = path.to_owned();
        let scene = tokio::task::spawn_blocking(move || backups::read_file(&file)).await??;
        let nodes = scene.nodes.len();
        self.session
            .replace_scene(Instant::now(), scene, "imported")
            .map_err(|why| anyhow::anyhow!("{} is not imported: {why}", path.display()))?;
        self.carry_out().await;
        info!(nodes, file = %path.display(), "scene imported");
        Ok(())
    }

    /// Puts something else in the place of the scene as soon as that is backed up.
    pub(super) fn replace_scene(&mut self, replacement: Replacement) {
        let Replacement {
            by,
            backed_up,
            answer,
        } = replacement;
        let reason = match by {
            Successor::Saved(..) => "before a restore",
            Successor::Nothing => "before a new scene",
        };
        if !backed_up {
            let before = self.backup(reason);
            let loaded = self.loaded.clone();
            tokio::spawn(async move {
                let before = before.await;
                let before = before.unwrap_or_else(|_| Err("the store has ended".into()));
                if let Err(error) = before {
                    let text = format!(
                        "nothing is changed, since the running scene could not be backed up: {error}"
                    );
                    return drop(answer.send(AdminReply::Failed(text)));
                }
                drop(loaded.send(Replacement {
                    by,
                    backed_up: true,
                    answer,
                }));
            });
            return;
        }
        // What was done meanwhile.
        let meanwhile = self.ask_for_backup(BackupRequest {
            reason: reason.into(),
            last_of_scene: true,
            ..BackupRequest::default()
        });
        tokio::spawn(async move { report(meanwhile.await, reason) });
        let now = Instant::now();
        let reply = match by {
            Successor::Nothing => self.session.admin(now, AdminCommand::New),
            Successor::Saved(name, scene) => {
                let nodes = scene.nodes.len();
                let reason = format!("restored from {name}");
                match self.session.replace_scene(now, scene, &reason) {
                    Ok(told) => {
                        info!(nodes, name, "Session restored from disk");
                        AdminReply::Done(format!(
                            "{name} is restored: {nodes} nodes (users told to connect again: {told})"
                        ))
                    }
                    Err(why) => AdminReply::Failed(format!("not restored: {why}")),
                }
            }
        };
        let _ = answer.send(reply);
    }

    pub(super) fn backup(&mut self, reason: &str) -> oneshot::Receiver<SaveResult> {
        self.request_backup(reason, false)
    }

    fn request_backup(
        &mut self,
        reason: &str,
        even_if_unchanged: bool,
    ) -> oneshot::Receiver<SaveResult> {
        self.ask_for_backup(BackupRequest {
            reason: reason.to_owned(),
            even_if_unchanged,
            ..BackupRequest::default()
        })
    }

    /// Has the session saved as it is now, with those who are in it.
    fn ask_for_backup(&mut self, request: BackupRequest) -> oneshot::Receiver<SaveResult> {
        let state = self.session.state();
        let users = state.clients.iter();
        let users = users.map(|client| client.name.to_string()).collect();
        self.store.backup(state, BackupRequest { users, ..request })
    }
}

fn reply(outcome: Result<String>) -> AdminReply {
    outcome.map_or_else(
        |error| AdminReply::Failed(format!("{error:#}")),
        AdminReply::Done,
    )
}

pub(super) fn report(result: Result<SaveResult, oneshot::error::RecvError>, reason: &str) {
    match result {
        // The store has said so, with the reason of the last of those that this save stands for.
        Ok(Ok(Saved::Backup(_))) => {}
        Ok(Ok(Saved::Unchanged | Saved::NoScene)) => debug!(reason, "nothing to save"),
        Ok(Err(error)) => error!(
            reason,
            error, "the session could not be saved; it is still in the journal"
        ),
        Err(_) => error!(
            reason,
            "the session could not be saved: the store has ended"
        ),
    }
}
