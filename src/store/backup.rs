//! Backups: self-contained session files under names that people know, the newest few of them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::civil::DateTime;
use jiff::{Timestamp, ToSpan, Zoned};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::disk::Disk;
use super::session_file::{self, About, TEMPORARY};
use super::state::State;
use super::{FileError, Layout};

const PREFIX: &str = "session_";
const SUFFIX: &str = ".db";
const FORMAT: &str = "%Y%m%d_%H%M%S";

/// A file in `backups/`.
#[derive(Debug, Clone)]
pub struct BackupInfo {
    pub path: PathBuf,
    pub bytes: u64,
    /// Its own time where it says one, else the file's.
    pub time: SystemTime,
    /// What it says about itself; `None`: not one of ours, or damaged.
    pub about: Option<About>,
}

impl BackupInfo {
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// Whether a file can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// Ours, with the right checksum.
    Yes,
    /// It unpacks, but has no checksum of ours: saved in Blender.
    Foreign,
    No,
}

/// The backups in a data directory: what others have put there, then ours, oldest first. Reads only the beginning of each.
pub fn list(data: &Path) -> Vec<BackupInfo> {
    list_in(&Layout::new(data).backups)
}

/// Reads all of a backup to see whether it is whole. Takes as long as it is large.
pub fn verify(path: &Path) -> Verified {
    match session_file::scan(path, u64::MAX).map(|scan| scan.checksum) {
        Ok(Some(true)) => Verified::Yes,
        Ok(None) => Verified::Foreign,
        _ => Verified::No,
    }
}

pub(super) fn list_in(directory: &Path) -> Vec<BackupInfo> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect();
    // What others have put there comes before ours: it is not the latest, however it is called.
    let name = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).and_then(parse);
    paths.sort_by_cached_key(|path| (name(path), path.clone()));
    paths.iter().filter_map(|path| info(path)).collect()
}

fn info(path: &Path) -> Option<BackupInfo> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let about = session_file::about(path);
    let time = match &about {
        Some(about) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(about.time)),
        None => file.modified().ok(),
    };
    Some(BackupInfo {
        path: path.to_owned(),
        bytes: file.len(),
        time: time.unwrap_or(SystemTime::UNIX_EPOCH),
        about,
    })
}

/// Writes a backup, and what is known of it beside it. What it returns has been read back.
pub(super) fn write(
    disk: &dyn Disk,
    layout: &Layout,
    state: &State,
    about: &About,
) -> Result<BackupInfo, FileError> {
    let name = next_name(
        &names(&layout.backups)?,
        Zoned::now()
            .datetime()
            .with()
            .subsec_nanosecond(0)
            .build()
            .unwrap_or(DateTime::MAX),
    );
    let path = layout.backups.join(name);
    session_file::export_on(disk, &path, state, about)?;
    let info = info(&path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // The backup is whole without it.
    if let Err(error) = write_metadata(disk, layout, state, &info, about) {
        warn!(%error, "{} could not be written", layout.metadata.display());
    }
    Ok(info)
}

/// Removes all but the newest `keep` of the backups that are made by themselves, and of the others: who looks for the right one, with a
/// backup before each restore, does not lose it thereby. To be called after one was written that verified.
pub(super) fn retain(disk: &dyn Disk, directory: &Path, keep: usize) -> io::Result<()> {
    let made_by_itself = |name: &String| {
        session_file::about(&directory.join(name)).is_none_or(|about| is_routine(&about.reason))
    };
    let (routine, asked_for): (Vec<_>, Vec<_>) =
        names(directory)?.into_iter().partition(made_by_itself);
    let mut result = Ok(());
    let mut removed = false;
    for names in [routine, asked_for] {
        let surplus = names.len().saturating_sub(keep.max(1));
        for name in names.iter().take(surplus) {
            // One that stays is no reason to keep them all until the disk is full.
            match disk.remove(&directory.join(name)) {
                Ok(()) => removed = true,
                Err(error) => result = Err(error),
            }
        }
    }
    if removed {
        disk.sync_dir(directory)?;
    }
    result
}

/// Removes what a crash has left of backups that were being written.
pub(super) fn remove_leftovers(disk: &dyn Disk, directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_suffix(TEMPORARY));
        if of.is_some_and(|of| parse(of).is_some()) {
            let _ = disk.remove(&entry.path());
        }
    }
}

/// Whether a backup is made for this reason without anybody's asking.
fn is_routine(reason: &str) -> bool {
    matches!(reason, "auto-save" | "initialised" | "shutdown")
        || reason.starts_with("user_disconnect:")
        || reason.starts_with("restored from ")
}

/// The names of backups in order. Whatever else somebody put there is none of ours.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| parse(name).is_some()) {
            names.push(name.to_owned());
        }
    }
    names.sort_by_key(|name| parse(name));
    Ok(names)
}

/// The time in a backup's name, and the number behind it.
fn parse(name: &str) -> Option<(DateTime, u8)> {
    let stem = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (time, number) = match stem.match_indices('_').nth(1) {
        None => (stem, 0),
        Some((at, _)) => (stem.get(..at)?, stem.get(at + 1..)?.parse().ok()?),
    };
    Some((DateTime::strptime(FORMAT, time).ok()?, number))
}

/// A name that sorts after all those that are there, whatever the clock says.
fn next_name(names: &[String], now: DateTime) -> String {
    let last = names.iter().filter_map(|name| parse(name)).max();
    let (time, number) = match last {
        // Beyond one digit the number would not sort.
        Some((last, number)) if last == now && number < 9 => (now, number + 1),
        Some((last, _)) if last >= now => (last.saturating_add(1.second()), 0),
        _ => (now, 0),
    };
    let time = time.strftime(FORMAT);
    match number {
        0 => format!("{PREFIX}{time}{SUFFIX}"),
        number => format!("{PREFIX}{time}_{number}{SUFFIX}"),
    }
}

/// `session_metadata.json`, for people's scripts.
fn write_metadata(
    disk: &dyn Disk,
    layout: &Layout,
    state: &State,
    info: &BackupInfo,
    about: &About,
) -> Result<(), FileError> {
    let mut hash = Sha256::new();
    let mut file = fs::File::open(&info.path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
    let time = i64::try_from(about.time).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(time).unwrap_or(Timestamp::MAX);
    let datetime = time.to_zoned(jiff::tz::TimeZone::system()).datetime();
    let json = serde_json::json!({
        "timestamp": about.time as f64 / 1000.0,
        "datetime": datetime.to_string(),
        "reason": about.reason,
        "initialized": state.scene.is_some(),
        "node_count": about.nodes,
        "user_count": about.users.len(),
        "file": info.name(),
        "bytes": info.bytes,
        "sha256": session_file::hex(&hash.finalize()),
    });
    let temporary = session_file::temporary(&layout.metadata);
    if temporary.exists() {
        disk.remove(&temporary)?;
    }
    let file = disk.create(&temporary)?;
    let text = serde_json::to_string_pretty(&json).map_err(io::Error::other)? + "\n";
    file.append(&mut [io::IoSlice::new(text.as_bytes())])?;
    file.sync()?;
    disk.rename(&temporary, &layout.metadata)?;
    Ok(disk.sync_dir(&layout.root)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime {
        DateTime::strptime(FORMAT, text).unwrap()
    }

    #[test]
    fn later_names_sort_later_whatever_the_clock_says() {
        let mut names: Vec<String> = Vec::new();
        let noon = at("20250301_120000");
        let clock = [noon; 12]
            .into_iter()
            .chain([noon + 1.minute(), noon - 1.year(), noon, noon + 1.hour()])
            .chain([at("20251231_235959"); 12]);
        for now in clock {
            names.push(next_name(&names, now));
        }
        assert_eq!(
            names[..2],
            ["session_20250301_120000.db", "session_20250301_120000_1.db"]
        );
        assert_eq!(names[15], "session_20250301_130000.db");
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(names, sorted);
    }

    #[test]
    fn other_files_are_none_of_ours() {
        for name in [
            "session.db",
            "session_2025.db",
            "session_20250301_120000.db.tmp",
            "my.db",
            "session_20250301_120000_x.db",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(
            parse("session_20250301_120000_3.db"),
            Some((at("20250301_120000"), 3))
        );
    }
}
