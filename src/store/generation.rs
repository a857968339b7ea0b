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
    #[serde(default)]
    pub recent: Vec<NodeId>,
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

const HOLE: &str = "a chunk is missing or damaged";

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

/// A manifest's bytes, put together; what is missing or damaged is an error.
fn gather(db: &sled::Db, prefix: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for (expected, entry) in (0_u32..).zip(db.scan_prefix(prefix)) {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let whole = key.strip_prefix(prefix) == Some(&expected.to_be_bytes());
        bytes.extend_from_slice(chunk_of(&value).filter(|_| whole).ok_or(HOLE)?);
    }
    Ok(bytes)
}

/// What a value holds, if its checksum is right.
fn chunk_of(value: &[u8]) -> Option<&[u8]> {
    let (sum, chunk) = value.split_first_chunk()?;
    (u32::from_le_bytes(*sum) == crc32fast::hash(chunk)).then_some(chunk)
}

/// A blob's place and the number of its chunk.
fn place_of(key: &[u8]) -> Option<(Place, u32)> {
    let (generation, rest) = key.get(1..)?.split_first_chunk()?;
    let (item, rest) = rest.split_first_chunk()?;
    let place = (u64::from_be_bytes(*generation), u32::from_be_bytes(*item));
    Some((place, u32::from_be_bytes(rest.try_into().ok()?)))
}

/// Reads every blob that is `wanted`, in one pass in the order in which they lie there, and notes the places of all. What is
/// missing or damaged is not among them.
fn read_blobs(
    db: &sled::Db,
    wanted: &HashMap<Place, Blob>,
    there: &mut HashSet<Place>,
) -> Result<HashMap<Place, Bytes>, String> {
    let mut blobs = HashMap::with_capacity(wanted.len());
    let mut reading: Option<(Place, Reading)> = None;
    let mut finish = |reading: Option<(Place, Reading)>| {
        if let Some((place, reading)) = reading {
            blobs.extend(reading.finish().map(|bytes| (place, bytes)));
        }
    };
    for entry in db.scan_prefix([CHUNKS]) {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let Some((place, number)) = place_of(&key) else {
            continue;
        };
        if reading.as_ref().is_none_or(|(known, _)| *known != place) {
            there.insert(place);
            let next = wanted.get(&place).map(|blob| (place, Reading::new(blob)));
            finish(std::mem::replace(&mut reading, next));
        }
        if let Some((_, reading)) = &mut reading {
            reading.chunk(number, &value);
        }
    }
    finish(reading);
    Ok(blobs)
}

/// A blob that is being put together.
struct Reading {
    blob: Blob,
    bytes: Vec<u8>,
    chunks: u32,
    whole: bool,
}

impl Reading {
    fn new(blob: &Blob) -> Reading {
        // A manifest that verifies tells the truth; a buffer that grows would keep twice as much for good.
        let length = usize::try_from(blob.length).unwrap_or(0);
        Reading {
            blob: *blob,
            bytes: Vec::with_capacity(length),
            chunks: 0,
            whole: true,
        }
    }

    fn chunk(&mut self, number: u32, value: &[u8]) {
        match chunk_of(value) {
            Some(chunk) if number == self.chunks => self.bytes.extend_from_slice(chunk),
            _ => self.whole = false,
        }
        self.chunks = self.chunks.saturating_add(1);
    }

    fn finish(self) -> Option<Bytes> {
        let right = self.whole
            && self.bytes.len() as u64 == self.blob.length
            && crc32fast::hash(&self.bytes) == self.blob.crc;
        right.then(|| self.bytes.into())
    }
}

pub(super) fn places(stored: &Stored) -> impl Iterator<Item = Place> {
    let blobs = stored.values().flatten();
    blobs.map(|(_, blob)| (blob.generation, blob.item))
}

/// The newest generation that is whole, and what lies about.
pub(super) fn load(db: &sled::Db) -> Result<(Content, State, Position), String> {
    let mut manifests = HashSet::new();
    for entry in db.scan_prefix([MANIFESTS]).keys() {
        let key = entry.map_err(|error| error.to_string())?;
        if let Some(generation) = key.get(1..).and_then(<[u8]>::first_chunk) {
            manifests.insert(u64::from_be_bytes(*generation));
        }
    }
    let mut newest_first: Vec<u64> = manifests.iter().copied().collect();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    let mut reason = "it holds nothing".to_owned();
    for generation in newest_first {
        let mut blobs = HashSet::new();
        match load_generation(db, generation, &mut blobs) {
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

/// Also notes every blob that is `there`, needed or not.
fn load_generation(
    db: &sled::Db,
    generation: u64,
    there: &mut HashSet<Place>,
) -> Result<(Stored, State, Position), String> {
    let bytes = gather(db, &key(MANIFESTS, generation, &[]))?;
    let manifest: Manifest = match bytes.split_first_chunk::<32>() {
        Some((sum, body)) if Sha256::digest(body)[..] == sum[..] => {
            rmp_serde::from_slice(body).map_err(|error| error.to_string())?
        }
        _ => return Err("its manifest is damaged".into()),
    };
    let listed = manifest.scene.iter().flat_map(|(_, _, listed)| listed);
    let wanted: HashMap<Place, Blob> = listed
        .flat_map(|node| {
            let commits = node.commits.iter().map(|(_, blob)| blob);
            commits.chain([&node.data])
        })
        .map(|blob| ((blob.generation, blob.item), *blob))
        .collect();
    let blobs = read_blobs(db, &wanted, there)?;
    let blob = |blob: &Blob| match blobs.get(&(blob.generation, blob.item)) {
        Some(bytes) => Ok(bytes.clone()),
        // Nothing is written for it.
        None if blob.length == 0 => Ok(Bytes::new()),
        None => Err(HOLE),
    };
    let mut stored = HashMap::new();
    let mut read = |listed: Listed| {
        let data = blob(&listed.data)?;
        let mut blobs = vec![(data.clone(), listed.data)];
        let mut commits = Vec::new();
        for (dependencies, place) in listed.commits {
            let raw = blob(&place)?;
            blobs.push((raw.clone(), place));
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
        recent: manifest.recent,
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
