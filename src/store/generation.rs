//! What lies in sled: generations of everything, each a manifest and the blobs that it names (see `checkpoint`).

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::platform;
use crate::wire::message::{Commit, Node, NodeId, UserName};

use super::disk::sync_tree;
use super::journal::Position;
use super::record::{SavedClient, commit_of};
use super::state::{SavedScene, State};

/// Bytes of a value, its checksum included.
pub(super) const VALUE: usize = 64 << 10;
pub(super) const SUM: usize = 4;
pub(super) const SEGMENT: usize = 8 << 20;
/// Bytes that sled may keep in memory. Everything is read once and written once.
pub(super) const CACHE: u64 = 64 << 20;

pub(super) const CHUNKS: u8 = b'c';
pub(super) const MANIFESTS: u8 = b'm';

/// Where a piece of data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Blob {
    pub generation: u64,
    pub item: u32,
    pub length: u64,
    pub crc: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    pub position: Position,
    /// Version, dialect and nodes of the scene.
    pub scene: Option<(Option<String>, String, Vec<Listed>)>,
    pub chat: Vec<(String, Json)>,
    pub tasks: Vec<(String, Json)>,
    pub clients: Vec<SavedClient>,
    #[serde(default)]
    pub deleted: Vec<NodeId>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Listed {
    pub id: NodeId,
    pub owner: UserName,
    pub dependencies: Vec<NodeId>,
    pub data: Blob,
    pub commits: Vec<(Vec<NodeId>, Blob)>,
    #[serde(default)]
    pub kind: Option<Arc<str>>,
}

#[derive(Default)]
pub(super) struct Content {
    /// The last generation that anything was ever written for.
    pub last: u64,
    /// What the newest whole generation holds of every node: data and deltas. These are the session's own buffers as long
    /// as nothing changes.
    pub stored: Stored,
    /// The generations that have a manifest, and every blob that lies there, needed or not.
    pub manifests: HashSet<u64>,
    pub blobs: HashSet<Place>,
}

/// Data and deltas of every node.
pub(super) type Stored = HashMap<NodeId, Vec<(Bytes, Blob)>>;

/// Generation and item of a blob.
pub(super) type Place = (u64, u32);

/// Runs something of sled's in a thread of its own, where a panic is an error.
pub(super) fn guarded<T: Send>(
    run: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("checkpoint".into())
            .spawn_scoped(scope, run)
            .map_err(|error| error.to_string())?;
        thread.join().unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!(
                "sled panicked: {}",
                text.unwrap_or("without a text")
            ))
        })
    })
}

/// How long, and how often, to wait for the lock of a database that was closed just now: sled gives it back from a thread of its
/// own. That nobody else has it is sure, for the whole data directory is locked.
const LOCK_WAIT: Duration = Duration::from_millis(50);
const LOCK_TRIES: u32 = 100;

/// How an error begins that only means that sled cannot open without writing.
pub(super) const FULL: &str = "the disk is full";

pub(super) fn open_sled(directory: &Path) -> Result<sled::Db, String> {
    // Its files are as readable as the system likes, so nobody else gets at them.
    platform::create_private_dir(directory).map_err(|error| error.to_string())?;
    let mut tries = 0;
    loop {
        let opened = sled::Config::new()
            .path(directory)
            .segment_size(SEGMENT)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open();
        match opened {
            Err(sled::Error::Io(error))
                if tries < LOCK_TRIES && error.to_string().contains("lock") =>
            {
                tries += 1;
                thread::sleep(LOCK_WAIT);
            }
            Err(sled::Error::Io(error)) if error.kind() == ErrorKind::StorageFull => {
                return Err(format!("{FULL}: {error}"));
            }
            opened => return opened.map_err(|error| error.to_string()),
        }
    }
}

pub(super) fn flush(db: &sled::Db, directory: &Path) -> Result<(), String> {
    db.flush().map_err(|error| error.to_string())?;
    sync_tree(directory).map_err(|error| error.to_string())
}

pub(super) fn key(kind: u8, generation: u64, rest: &[u32]) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&generation.to_be_bytes());
    rest.iter()
        .for_each(|number| key.extend_from_slice(&number.to_be_bytes()));
    key
}

pub(super) struct BlobWriter<'a> {
    pub db: &'a sled::Db,
    pub generation: u64,
    pub items: u32,
}

impl BlobWriter<'_> {
    pub fn node(
        &mut self,
        node: &Node,
        commits: &[Commit],
        known: &[(Bytes, Blob)],
    ) -> Result<(Listed, Vec<(Bytes, Blob)>), String> {
        let mut blobs = Vec::with_capacity(1 + commits.len());
        blobs.push((node.data.clone(), self.blob(&node.data, known)?));
        for commit in commits {
            blobs.push((commit.raw.clone(), self.blob(&commit.raw, known)?));
        }
        let places = blobs.iter().skip(1).map(|(_, blob)| *blob);
        let entry = Listed {
            id: node.id.clone(),
            owner: node.owner.clone(),
            dependencies: node.dependencies.clone(),
            data: blobs.first().map(|(_, blob)| *blob).ok_or("no data")?,
            commits: commits
                .iter()
                .map(|commit| commit.dependencies.clone())
                .zip(places)
                .collect(),
            kind: node.kind.clone(),
        };
        Ok((entry, blobs))
    }

    /// Where `data` lies; writes it if it is not there yet.
    fn blob(&mut self, data: &Bytes, known: &[(Bytes, Blob)]) -> Result<Blob, String> {
        let same = |(bytes, _): &&(Bytes, Blob)| {
            (bytes.as_ptr() == data.as_ptr() && bytes.len() == data.len()) || bytes == data
        };
        if let Some((_, blob)) = known.iter().find(same) {
            return Ok(*blob);
        }
        let item = self.items;
        self.items += 1;
        for (chunk, bytes) in (0..).zip(data.chunks(VALUE - SUM)) {
            self.put(key(CHUNKS, self.generation, &[item, chunk]), bytes)?;
        }
        Ok(Blob {
            generation: self.generation,
            item,
            length: data.len() as u64,
            crc: crc32fast::hash(data),
        })
    }

    pub fn manifest(&mut self, manifest: &Manifest) -> Result<(), String> {
        let body = rmp_serde::to_vec(manifest).map_err(|error| error.to_string())?;
        let mut bytes = Sha256::digest(&body).to_vec();
        bytes.extend(body);
        for (chunk, bytes) in (0..).zip(bytes.chunks(VALUE - SUM)) {
            self.put(key(MANIFESTS, self.generation, &[chunk]), bytes)?;
        }
        Ok(())
    }

    fn put(&self, key: Vec<u8>, bytes: &[u8]) -> Result<(), String> {
        let mut value = Vec::with_capacity(SUM + bytes.len());
        value.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        value.extend_from_slice(bytes);
        let put = self.db.insert(key, value);
        put.map(drop).map_err(|error| error.to_string())
    }
}

/// Everything below `prefix`, put together; what is missing or damaged is an error.
/// `length`: of all of it, if it is known; a buffer that grows keeps twice as much for good.
pub(super) fn gather(db: &sled::Db, prefix: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(length);
    for (expected, entry) in (0_u32..).zip(db.scan_prefix(prefix)) {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let whole = key.strip_prefix(prefix) == Some(&expected.to_be_bytes());
        match value.split_first_chunk() {
            Some((sum, chunk)) if whole && u32::from_le_bytes(*sum) == crc32fast::hash(chunk) => {
                bytes.extend_from_slice(chunk);
            }
            _ => return Err("a chunk is missing or damaged".into()),
        }
    }
    Ok(bytes)
}

pub(super) fn read_blob(db: &sled::Db, blob: &Blob) -> Result<Bytes, String> {
    // A manifest that verifies tells the truth.
    let length = usize::try_from(blob.length).map_err(|error| error.to_string())?;
    let bytes = gather(db, &key(CHUNKS, blob.generation, &[blob.item]), length)?;
    if bytes.len() as u64 != blob.length || crc32fast::hash(&bytes) != blob.crc {
        return Err("a node is damaged".into());
    }
    Ok(bytes.into())
}

pub(super) fn places(stored: &Stored) -> impl Iterator<Item = Place> {
    let blobs = stored.values().flatten();
    blobs.map(|(_, blob)| (blob.generation, blob.item))
}

/// The newest generation that is whole, and what lies about.
pub(super) fn load(db: &sled::Db) -> Result<(Content, State, Position), String> {
    let mut manifests = HashSet::new();
    let mut blobs = HashSet::new();
    for entry in db.iter().keys() {
        let entry = entry.map_err(|error| error.to_string())?;
        let Some((kind, rest)) = entry.split_first() else {
            continue;
        };
        let (Some(generation), rest) = (rest.first_chunk(), rest.get(8..12)) else {
            continue;
        };
        let generation = u64::from_be_bytes(*generation);
        match rest.and_then(|item| item.try_into().ok()) {
            Some(item) if *kind == CHUNKS => {
                blobs.insert((generation, u32::from_be_bytes(item)));
            }
            _ => {
                manifests.insert(generation);
            }
        }
    }
    let mut newest_first: Vec<u64> = manifests.iter().copied().collect();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    let mut reason = "it holds nothing".to_owned();
    for generation in newest_first {
        match load_generation(db, generation) {
            Ok((stored, state, position)) => {
                let last = manifests
                    .iter()
                    .chain(blobs.iter().map(|(generation, _)| generation));
                let content = Content {
                    last: last.copied().max().unwrap_or(generation),
                    stored,
                    manifests,
                    blobs,
                };
                return Ok((content, state, position));
            }
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

pub(super) fn load_generation(
    db: &sled::Db,
    generation: u64,
) -> Result<(Stored, State, Position), String> {
    let bytes = gather(db, &key(MANIFESTS, generation, &[]), 0)?;
    let manifest: Manifest = match bytes.split_first_chunk::<32>() {
        Some((sum, body)) if Sha256::digest(body)[..] == sum[..] => {
            rmp_serde::from_slice(body).map_err(|error| error.to_string())?
        }
        _ => return Err("its manifest is damaged".into()),
    };
    let mut stored = HashMap::new();
    let mut read = |listed: Listed| {
        let data = read_blob(db, &listed.data)?;
        let mut blobs = vec![(data.clone(), listed.data)];
        let mut commits = Vec::new();
        for (dependencies, blob) in listed.commits {
            let raw = read_blob(db, &blob)?;
            blobs.push((raw.clone(), blob));
            commits.extend(commit_of(listed.id.clone(), dependencies, raw));
        }
        stored.insert(listed.id.clone(), blobs);
        let node = Node {
            id: listed.id,
            owner: listed.owner,
            dependencies: listed.dependencies,
            data,
            kind: listed.kind,
        };
        Ok::<_, String>((node, commits))
    };
    let scene = match manifest.scene {
        None => None,
        Some((version, dialect, listed)) => Some(SavedScene {
            version,
            dialect,
            nodes: listed
                .into_iter()
                .map(&mut read)
                .collect::<Result<_, _>>()?,
        }),
    };
    let state = State {
        scene,
        chat: manifest.chat,
        tasks: manifest.tasks,
        clients: manifest.clients,
        deleted: manifest.deleted,
    };
    Ok((stored, state, manifest.position))
}

pub(super) fn remove<'a>(
    db: &sled::Db,
    manifests: &HashSet<u64>,
    blobs: impl Iterator<Item = &'a Place>,
) -> Result<(), String> {
    // Manifests first: one whose blobs are gone would be tried in vain.
    let manifests = manifests
        .iter()
        .map(|generation| key(MANIFESTS, *generation, &[]));
    let blobs = blobs.map(|(generation, item)| key(CHUNKS, *generation, &[*item]));
    for prefix in manifests.chain(blobs) {
        for entry in db.scan_prefix(prefix).keys() {
            let key = entry.map_err(|error| error.to_string())?;
            db.remove(key).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
