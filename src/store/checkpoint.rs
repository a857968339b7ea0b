//! The checkpoint: everything as of one place in the journal, in a sled database.
//!
//! sled is treated as a box that usually gives back what was put in. It never holds the only copy, every value has a
//! checksum, and a generation counts only if all of it verifies: its manifest names every node, and where its data lies, perhaps
//! since an earlier generation. What an older generation alone needed is removed when the newer one is durable, so there always is a whole one.
//!
//! ```text
//! "c" · u64 generation · u32 item · u32 chunk   u32 crc · at most 64 KiB of a node's data or of a delta
//! "m" · u64 generation · u32 chunk              the same, of the manifest: SHA-256 · MessagePack
//! ```
//! Settings and precautions are what crash tests of sled 0.34.7 asked for: values of 64 KiB, segments of 8 MiB, an fsync of all its files by us
//! after each flush (its own flush does none), and every call where a panic is only an error.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::disk::sync_directory;
use super::generation::{
    BlobWriter, Content, FULL, Manifest, Place, flush, guarded, load, open_sled, places, remove,
};
use super::journal::Position;
use super::session_file::parent;
use super::state::State;

/// A database so many times as large as what it holds, and so many bytes more, is made anew.
const SPRAWL: u64 = 4;
const SPRAWL_BYTES: u64 = 512 << 20;

/// The database. Its content is known, so that a save writes only what is new.
pub(super) struct Checkpoint {
    directory: PathBuf,
    db: Option<sled::Db>,
    content: Content,
    /// It could not be opened because the disk is full, and may well be whole.
    pub full: bool,
}

impl Checkpoint {
    /// Opens what is there and reads its newest whole generation. What cannot be read is set aside.
    pub fn open(directory: &Path) -> (Checkpoint, Option<(State, Position)>, Vec<String>) {
        let mut checkpoint = Checkpoint {
            directory: directory.to_owned(),
            db: None,
            content: Content::default(),
            full: false,
        };
        let mut notes = Vec::new();
        let old = beside(directory, "old");
        // A rebuild may have been cut short.
        if !directory.exists() && old.exists() {
            let _ = fs::rename(&old, directory);
        }
        for leftover in [old, beside(directory, "new")] {
            let _ = fs::remove_dir_all(leftover);
        }
        if !directory.exists() {
            return (checkpoint, None, notes);
        }
        match checkpoint.reopen() {
            Ok(found) => (checkpoint, Some(found), notes),
            Err(reason) => {
                notes.push(format!("{}: {reason}", directory.display()));
                checkpoint.full = reason.starts_with(FULL);
                notes.extend(checkpoint.set_aside());
                (checkpoint, None, notes)
            }
        }
    }

    /// Writes what differs from the last generation, as a new one. Durable when it returns.
    pub fn save(&mut self, state: &State, position: Position) -> Result<(), String> {
        if self.db.is_none() && self.directory.exists() && self.reopen().is_err() {
            // A full disk is enough for that, so it stays until there is a whole new one.
            return self.rebuild(state, position);
        }
        let result = self.try_save(state, position);
        if result.is_err() {
            // After an error sled refuses everything until it is opened again.
            self.close();
            return result;
        }
        // It is whole and durable as it is.
        if let Err(reason) = self.compact(state, position) {
            warn!(
                reason,
                "the checkpoint's database could not be made smaller"
            );
        }
        Ok(())
    }

    fn try_save(&mut self, state: &State, position: Position) -> Result<(), String> {
        let db = match &self.db {
            Some(db) => db.clone(),
            None => {
                let db = guarded(|| open_sled(&self.directory))?;
                sync_directory(parent(&self.directory)).map_err(|error| error.to_string())?;
                self.db.insert(db).clone()
            }
        };
        self.content.last += 1;
        let generation = self.content.last;
        let mut writer = BlobWriter {
            db: &db,
            generation,
            items: 0,
        };
        let mut stored = HashMap::new();
        let (directory, before) = (&self.directory, &self.content.stored);
        guarded(|| {
            let scene = match &state.scene {
                None => None,
                Some(scene) => {
                    let mut listed = Vec::with_capacity(scene.nodes.len());
                    for (node, commits) in &scene.nodes {
                        let known = before.get(&node.id).map_or(&[][..], Vec::as_slice);
                        let (entry, blobs) = writer.node(node, commits, known)?;
                        listed.push(entry);
                        stored.insert(node.id.clone(), blobs);
                    }
                    Some((scene.version.clone(), scene.dialect.clone(), listed))
                }
            };
            writer.manifest(&Manifest {
                position,
                scene,
                chat: state.chat.clone(),
                tasks: state.tasks.clone(),
                clients: state.clients.clone(),
                deleted: state.deleted.clone(),
                recent: state.recent.clone(),
            })?;
            flush(&db, directory)
        })?;
        // The new one is whole and durable: now the others may go.
        let kept: HashSet<Place> = places(&stored).collect();
        let content = &mut self.content;
        content.stored = stored;
        content.manifests.remove(&generation);
        let manifests = std::mem::replace(&mut content.manifests, [generation].into());
        let blobs = std::mem::replace(&mut content.blobs, kept);
        let kept = &content.blobs;
        guarded(|| remove(&db, &manifests, blobs.difference(kept)))
    }

    /// Reads the database from disk. Leaves it open if it holds a whole generation.
    fn reopen(&mut self) -> Result<(State, Position), String> {
        self.close();
        let db = guarded(|| open_sled(&self.directory))?;
        let found = guarded(|| load(&db));
        self.db = Some(db);
        match found {
            Ok((content, state, position)) => {
                self.content = content;
                Ok((state, position))
            }
            Err(reason) => {
                self.close();
                Err(reason)
            }
        }
    }

    /// Moves the database out of the way; only the latest such one is kept, since the journal and the backups hold the same.
    fn set_aside(&mut self) -> Option<String> {
        self.close();
        let aside = beside(&self.directory, "damaged");
        let _ = fs::remove_dir_all(&aside);
        Some(match fs::rename(&self.directory, &aside) {
            Ok(()) => format!("the checkpoint is set aside as {}", aside.display()),
            Err(error) => format!("{} cannot be set aside: {error}", self.directory.display()),
        })
    }

    /// Takes setting aside back.
    pub fn put_back(self) {
        let _ = fs::rename(beside(&self.directory, "damaged"), &self.directory);
    }

    /// What is opened next may be another one, so what this one holds is forgotten.
    pub fn close(&mut self) {
        self.content = Content::default();
        if let Some(db) = self.db.take() {
            // Dropping it writes, so it may well panic.
            let _ = guarded(move || {
                drop(db);
                Ok(())
            });
        }
    }

    /// Makes the database anew where it has grown far beyond what it holds.
    fn compact(&mut self, state: &State, position: Position) -> Result<(), String> {
        let live: u64 = self
            .content
            .stored
            .values()
            .flatten()
            .map(|(_, blob)| blob.length)
            .sum();
        if directory_size(&self.directory) <= live * SPRAWL + SPRAWL_BYTES {
            return Ok(());
        }
        self.rebuild(state, position)
    }

    fn rebuild(&mut self, state: &State, position: Position) -> Result<(), String> {
        let [new, old] = ["new", "old"].map(|what| beside(&self.directory, what));
        let _ = fs::remove_dir_all(&new);
        let (mut fresh, _, _) = Checkpoint::open(&new);
        let saved = fresh.try_save(state, position);
        let content = std::mem::take(&mut fresh.content);
        fresh.close();
        if saved.is_err() {
            let _ = fs::remove_dir_all(&new);
            return saved;
        }
        self.close();
        let swap = || {
            let _ = fs::remove_dir_all(&old);
            fs::rename(&self.directory, &old)?;
            fs::rename(&new, &self.directory)?;
            sync_directory(parent(&self.directory))?;
            fs::remove_dir_all(&old)
        };
        swap().map_err(|error| format!("compacting: {error}"))?;
        self.db = Some(guarded(|| open_sled(&self.directory))?);
        self.content = content;
        Ok(())
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        self.close();
    }
}

fn beside(directory: &Path, what: &str) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{name}.{what}"))
}

fn directory_size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(file) if file.is_dir() => directory_size(&entry.path()),
            Ok(file) => file.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::generation::{CHUNKS, key};
    use super::super::state::SavedScene;
    use super::*;
    use crate::wire::message::{Commit, Node};
    use crate::wire::pickle::{self, Value};

    fn node(id: &str, data: Vec<u8>) -> (Node, Vec<Commit>) {
        let data = Value::dict([
            ("type_id", Value::str("Mesh")),
            ("data", Value::bytes(data)),
        ]);
        let node = Node {
            id: id.into(),
            owner: "COMMON".into(),
            dependencies: vec!["other".into()],
            data: pickle::encode(&data).into(),
            kind: None,
        };
        (node, Vec::new())
    }

    fn state(nodes: Vec<(Node, Vec<Commit>)>) -> State {
        State {
            scene: Some(SavedScene {
                version: Some("0.9.10".into()),
                dialect: "dealer".into(),
                nodes,
            }),
            ..State::default()
        }
    }

    fn at(segment: u64) -> Position {
        Position {
            segment,
            offset: 28,
        }
    }

    fn data(state: &State) -> Vec<(String, Bytes)> {
        let nodes = &state.scene.as_ref().unwrap().nodes;
        let data = |(node, _): &(Node, _)| (node.id.to_string(), node.data.clone());
        nodes.iter().map(data).collect()
    }

    fn reopened(directory: &Path) -> (Checkpoint, State, Position) {
        let (checkpoint, found, notes) = Checkpoint::open(directory);
        assert_eq!(notes, [""; 0]);
        let (state, position) = found.unwrap();
        (checkpoint, state, position)
    }

    #[test]
    fn generations_follow_each_other_and_leave_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sled");
        let (mut checkpoint, found, _) = Checkpoint::open(&path);
        assert!(found.is_none());
        for generation in 1..6_u8 {
            let big = vec![generation; 200_000 + usize::from(generation)];
            let now = state(vec![
                node("same", vec![1; 100_000]),
                node("big", big),
                node(&format!("only-{generation}"), vec![generation]),
            ]);
            checkpoint.save(&now, at(u64::from(generation))).unwrap();
            assert_eq!(checkpoint.content.manifests.len(), 1);
            drop(checkpoint);
            let (again, back, position) = reopened(&path);
            assert_eq!(
                (data(&back), position),
                (data(&now), at(u64::from(generation)))
            );
            assert_eq!(again.content.blobs.len(), 3);
            assert_eq!(again.content.stored[&"same".into()][0].1.generation, 1);
            checkpoint = again;
        }
    }

    #[test]
    fn a_generation_with_a_hole_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sled");
        let (mut checkpoint, _, _) = Checkpoint::open(&path);
        let first = state(vec![node("n", vec![1; 100_000])]);
        checkpoint.save(&first, at(1)).unwrap();
        // A second one, as far as it came before the power went.
        let db = checkpoint.db.clone().unwrap();
        let mut writer = BlobWriter {
            db: &db,
            generation: 2,
            items: 0,
        };
        let (changed, _) = node("n", vec![2; 100_000]);
        let (listed, _) = writer.node(&changed, &[], &[]).unwrap();
        let manifest = Manifest {
            position: at(2),
            scene: Some((None, String::new(), vec![listed])),
            chat: Vec::new(),
            tasks: Vec::new(),
            clients: Vec::new(),
            deleted: Vec::new(),
            recent: Vec::new(),
        };
        writer.manifest(&manifest).unwrap();
        db.remove(key(CHUNKS, 2, &[0, 1])).unwrap();
        drop(db);
        drop(checkpoint);
        let (mut checkpoint, back, position) = reopened(&path);
        assert_eq!((data(&back), position), (data(&first), at(1)));
        // Its remains do not get in the way of the next.
        let third = state(vec![node("n", vec![3; 100_000])]);
        checkpoint.save(&third, at(3)).unwrap();
        drop(checkpoint);
        let (checkpoint, back, position) = reopened(&path);
        assert_eq!((data(&back), position), (data(&third), at(3)));
        assert_eq!(checkpoint.content.blobs.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sled");
        for damage in [0, 7, 100, 10_000, 200_000] {
            let (mut checkpoint, _, _) = Checkpoint::open(&path);
            let now = state(vec![node("n", (0..=255).cycle().take(300_000).collect())]);
            checkpoint.save(&now, at(1)).unwrap();
            drop(checkpoint);
            let file = path.join("db");
            let mut bytes = fs::read(&file).unwrap();
            bytes[damage] ^= 0x41;
            fs::write(&file, bytes).unwrap();
            let (mut checkpoint, found, notes) = Checkpoint::open(&path);
            // Some bytes matter to nobody.
            match found {
                Some((back, _)) => assert_eq!(data(&back), data(&now)),
                None => assert!(notes.len() == 2, "{notes:?}"),
            }
            checkpoint.save(&now, at(2)).unwrap();
            drop(checkpoint);
            assert_eq!(data(&reopened(&path).1), data(&now));
        }
    }

    #[test]
    fn it_can_be_made_anew_at_any_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sled");
        let (mut checkpoint, _, _) = Checkpoint::open(&path);
        let now = |byte| {
            state(vec![
                node("same", vec![1; 100_000]),
                node("n", vec![byte; 90_000]),
            ])
        };
        checkpoint.save(&now(1), at(1)).unwrap();
        checkpoint.rebuild(&now(1), at(1)).unwrap();
        checkpoint.save(&now(2), at(2)).unwrap();
        drop(checkpoint);
        let (checkpoint, back, position) = reopened(&path);
        assert_eq!((data(&back), position), (data(&now(2)), at(2)));
        drop(checkpoint);
        // Cut short between the two renames.
        fs::rename(&path, beside(&path, "old")).unwrap();
        assert_eq!(data(&reopened(&path).1), data(&now(2)));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_lost_database_held_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.sled");
        let (mut checkpoint, _, _) = Checkpoint::open(&path);
        let now = state(vec![node("n", vec![1; 100_000])]);
        checkpoint.save(&now, at(1)).unwrap();
        fs::remove_dir_all(&path).unwrap();
        checkpoint.save(&now, at(2)).unwrap_err();
        checkpoint.save(&now, at(3)).unwrap();
        drop(checkpoint);
        let (_, back, position) = reopened(&path);
        assert_eq!((data(&back), position), (data(&now), at(3)));
    }

    #[test]
    fn a_panic_is_an_error() {
        let result = guarded::<()>(|| panic!("oh {}", 1));
        assert_eq!(result, Err("sled panicked: oh 1".into()));
    }
}
