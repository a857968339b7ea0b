//! What the operator does with backups and session files.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use jiff::{Timestamp, tz::TimeZone};

use crate::store::{self, BackupInfo, Health, SavedScene, State, StoreStatus, Verified};

/// The newest backup's name, for those who do not want to type one.
const LATEST: &str = "latest";

/// A disk behind which changes wait for longer is worth telling.
const SLOW: Duration = Duration::from_millis(100);

/// The backups in a data directory as a table, oldest first. Reads all of each, to see whether it is whole.
pub fn table(data_dir: &Path) -> String {
    let backups = store::list(data_dir);
    if backups.is_empty() {
        return format!(
            "There is no backup in {}.",
            data_dir.join("backups").display()
        );
    }
    let mut text = String::new();
    for backup in backups {
        let verified = match store::verify(&backup.path) {
            Verified::Yes => "verified",
            Verified::Foreign => "not one of ours",
            Verified::No => "DAMAGED",
        };
        let (nodes, reason, users) = match &backup.about {
            Some(about) => (
                about.nodes.to_string(),
                about.reason.as_str(),
                about.users.join(", "),
            ),
            None => ("?".into(), "", String::new()),
        };
        let _ = writeln!(
            text,
            "{}  {}  {nodes:>7} nodes  {:>10} bytes  {verified}  {reason}  {users}",
            backup.name(),
            local(backup.time),
            backup.bytes,
        );
    }
    text
}

/// Reads a backup by its name, or the newest one that can be relied on. Returns the name, too.
pub fn read(data_dir: &Path, name: &str) -> Result<(String, SavedScene)> {
    let path = find(data_dir, name)?;
    let scene = read_file(&path)?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((name, scene))
}

/// The scene of a session file.
pub fn read_file(path: &Path) -> Result<SavedScene> {
    let limit = store::Settings::default().session_file_bytes;
    let file = store::read_session_file(path, limit)
        .with_context(|| format!("cannot read {}", path.display()))?;
    file.state
        .scene
        .with_context(|| format!("there is no scene in {}", path.display()))
}

fn find(data_dir: &Path, name: &str) -> Result<PathBuf> {
    let backups = store::list(data_dir);
    if name == LATEST {
        let good = |backup: &&BackupInfo| store::verify(&backup.path) != Verified::No;
        return match backups.iter().rev().find(good) {
            Some(backup) => Ok(backup.path.clone()),
            None => bail!("there is no backup that could be restored"),
        };
    }
    let named = backups
        .iter()
        .find(|backup| backup.name() == name || backup.name().strip_suffix(".db") == Some(name));
    match named {
        Some(backup) => Ok(backup.path.clone()),
        None => bail!("there is no backup named {name}; `backups` lists them"),
    }
}

/// Has the server, which must not be running, start with this backup the next time.
pub fn restore_at_next_start(data_dir: &Path, name: &str) -> Result<String> {
    let path = find(data_dir, name)?;
    if store::in_use(data_dir) {
        bail!(
            "a server is running on {}; type `restore {name}` at its console, or stop it first",
            data_dir.display()
        );
    }
    if store::verify(&path) == Verified::No {
        bail!(
            "{} is damaged; `backups` shows which ones are not",
            path.display()
        );
    }
    let target = data_dir.join("session_restore.db");
    store::copy(&path, &target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(format!(
        "{} will be restored at the next start of the server; what is there now is backed up then",
        path.file_name().unwrap_or_default().to_string_lossy()
    ))
}

/// Writes the scene of a server that is not running as a session file.
pub fn export_offline(data_dir: &Path, path: &Path) -> Result<String> {
    // Opening would make it.
    if !data_dir.is_dir() {
        bail!(
            "there is no data directory {}; name it with --data-dir",
            data_dir.display()
        );
    }
    let (_store, recovered) = store::open(data_dir, store::Settings::default())?;
    export(path, &recovered.state)
}

/// Writes a scene as a session file that the add-on can load.
pub fn export(path: &Path, state: &State) -> Result<String> {
    let Some(scene) = &state.scene else {
        bail!("there is no scene to export");
    };
    let path = std::path::absolute(path).context("give the whole path of the file")?;
    let shown = path.display();
    if path.exists() {
        bail!("{shown} is there already; choose another name, or remove it first");
    }
    store::export_session(&path, state).with_context(|| format!("cannot write {shown}"))?;
    Ok(format!("{} nodes written to {shown}", scene.nodes.len()))
}

/// How the store is doing, for the operator.
pub fn health(status: &StoreStatus) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, health) in [
        ("journal", &status.journal),
        ("checkpoints", &status.checkpoints),
        ("backups", &status.backups),
    ] {
        if let Health::Failing { since, reason } = health {
            lines.push(format!("{what} FAILING since {}: {reason}", local(*since)));
        }
    }
    if status.lost > 0 {
        let unsaved = status.wants_save.is_some()
            || status.saving
            || matches!(status.journal, Health::Failing { .. });
        let held = match unsaved {
            true => "the next backup holds them",
            false => "the backups made since hold them",
        };
        lines.push(format!(
            "{} changes since the start are not in the journal; {held}",
            status.lost
        ));
    }
    if status.checkpoint_alone {
        lines.push(
            "there has been no backup for so long that only the checkpoint holds what came before the journal; `export` the scene to another disk".into(),
        );
    }
    if status.behind > SLOW {
        lines.push(format!(
            "the disk is slow: {} bytes wait for it, the oldest for {} ms",
            status.waiting_bytes,
            status.behind.as_millis()
        ));
    }
    lines.push(match status.durable_at {
        Some(time) => format!("last change on the disk {}", local(time)),
        None => "no change since the start".into(),
    });
    lines.push(match &status.last_backup {
        Some(backup) => format!(
            "last backup {} ago: {} ({})",
            age(backup.time),
            backup.name(),
            local(backup.time)
        ),
        None => "no backup yet".into(),
    });
    lines
}

/// Clocks may have been set back since.
fn age(time: SystemTime) -> String {
    match time.elapsed().map_or(0, |age| age.as_secs()) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn local(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(
        |_| "?".into(),
        |time| {
            time.to_zoned(TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S %Z")
                .to_string()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_to_the_journal_is_said_to_be_saved_only_when_it_is() {
        let said = |status: &StoreStatus| health(status).concat();
        let mut status = StoreStatus {
            lost: 3,
            saving: true,
            ..StoreStatus::default()
        };
        assert!(said(&status).contains("the next backup"));
        status.saving = false;
        assert!(said(&status).contains("the backups made since"));
    }
}
