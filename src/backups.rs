//! What the operator does with backups and session files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use jiff::{Timestamp, tz::TimeZone};

use crate::admin::render;
use crate::store::{self, BackupInfo, FileError, Health, SavedScene, State, StoreStatus, Verified};

/// The newest backup's name, for those who do not want to type one.
const LATEST: &str = "latest";

/// A disk behind which changes wait for longer is worth telling.
const SLOW: Duration = Duration::from_millis(100);

/// The backups in a data directory as a table, oldest first. Reads all of each, to see whether it is whole.
pub fn table(data_dir: &Path) -> Result<String> {
    let backups = list(data_dir)?;
    if backups.is_empty() {
        return Ok(none_in(data_dir));
    }
    let head = ["NAME", "MADE", "NODES", "SIZE", "STATE", "REASON", "USERS"];
    Ok(render::table(head, backups.iter().map(row)))
}

fn row(backup: &BackupInfo) -> [String; 7] {
    let state = match store::verify(&backup.path) {
        Verified::Yes => "verified",
        Verified::Foreign => "not one of ours",
        Verified::No => "DAMAGED",
    };
    let about = backup.about.as_ref();
    [
        backup.name(),
        local(backup.time),
        about.map_or("?".into(), |about| about.nodes.to_string()),
        render::bytes(backup.bytes),
        state.into(),
        about.map_or("-".into(), |about| about.reason.clone()),
        about.map_or(String::new(), |about| about.users.join(", ")),
    ]
}

/// The backups, oldest first. Fails where they may not be looked at, which is not the same as that there are none.
fn list(data_dir: &Path) -> Result<Vec<BackupInfo>> {
    match fs::read_dir(data_dir.join("backups")) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            bail!(
                "cannot look into {}: {error}; become the user that the server runs as, for example with sudo",
                data_dir.display()
            )
        }
        _ => Ok(store::list(data_dir)),
    }
}

fn none_in(data_dir: &Path) -> String {
    format!(
        "there is no backup in {}; --data-dir names another data directory",
        data_dir.join("backups").display()
    )
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
    let file = store::read_session_file(path, limit).map_err(|error| {
        let shown = path.display();
        match &error {
            FileError::Io(io)
                if matches!(io.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) =>
            {
                anyhow!("cannot read {shown}: {error}")
            }
            _ => anyhow!(
                "{shown} is damaged, or no session file ({error}); `backups` tells which of the server's are whole"
            ),
        }
    })?;
    file.state
        .scene
        .with_context(|| format!("there is no scene in {}", path.display()))
}

fn find(data_dir: &Path, name: &str) -> Result<PathBuf> {
    let backups = list(data_dir)?;
    if name == LATEST {
        let good = |backup: &&BackupInfo| store::verify(&backup.path) != Verified::No;
        return match backups.iter().rev().find(good) {
            Some(backup) => Ok(backup.path.clone()),
            None if backups.is_empty() => bail!("{}", none_in(data_dir)),
            None => bail!("none of the backups is whole; `backups` shows them"),
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
            "a server is running on {}; type `restore {name}` at its console (blender-multiuser ctl restore {name}), or stop it first",
            data_dir.display()
        );
    }
    if store::verify(&path) == Verified::No {
        bail!(
            "{} is damaged; `backups` shows which ones are whole",
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
    if store::in_use(data_dir) {
        bail!(
            "a server is running on {}; type `export {}` at its console (or with blender-multiuser ctl), or stop it first",
            data_dir.display(),
            path.display()
        );
    }
    let (_store, recovered) = store::open(data_dir, store::Settings::default())?;
    export(path, &recovered.state)
}

/// Writes a scene as a session file that the add-on can load.
pub fn export(path: &Path, state: &State) -> Result<String> {
    let Some(scene) = &state.scene else {
        bail!("there is no scene to export: nobody has pressed Init yet");
    };
    let path = std::path::absolute(path).context("give the whole path of the file")?;
    let shown = path.display();
    if path.exists() {
        bail!("{shown} is there already; choose another name, or remove it first");
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
        bail!(
            "cannot write {shown}: there is no directory {}; make it, or choose another one",
            directory.display()
        );
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
    fn backups_are_a_table_also_of_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let backups = dir.path().join("backups");
        assert!(table(dir.path()).unwrap().contains("--data-dir"));
        fs::create_dir(&backups).unwrap();
        let state = State {
            scene: Some(SavedScene::default()),
            ..State::default()
        };
        store::export_session(&backups.join("session_20260504_101500.db"), &state).unwrap();
        fs::write(backups.join("session_20260504_101700.db"), "torn").unwrap();
        let text = table(dir.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME  ") && lines.len() == 3, "{text}");
        for (line, words) in [
            (
                lines[1],
                ["session_20260504_101500.db", " B ", "verified", "export"],
            ),
            (
                lines[2],
                ["session_20260504_101700.db", "4 B ", "DAMAGED", "-"],
            ),
        ] {
            assert!(words.iter().all(|word| line.contains(word)), "{text}");
        }
        let error = format!(
            "{:#}",
            read(dir.path(), "session_20260504_101700").unwrap_err()
        );
        assert!(
            error.contains("damaged") && error.contains("`backups`"),
            "{error}"
        );
        fs::copy(
            backups.join("session_20260504_101500.db"),
            backups.join("weekend.db"),
        )
        .unwrap();
        let (latest, _) = read(dir.path(), LATEST).unwrap();
        assert_eq!(latest, "session_20260504_101500.db");
        let error = format!("{:#}", restore_at_next_start(dir.path(), "no").unwrap_err());
        assert!(error.contains("`backups` lists"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_looked_at_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("backups"), "").unwrap();
        let error = table(dir.path()).unwrap_err().to_string();
        assert!(error.contains("cannot look into"), "{error}");
    }

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
