//! Session files: the `.db` that the add-on saves and loads.
//!
//! gzip of `pickle({"nodes": [[chunks of a Node message]…], "users": {}, "server": {…}})`. The add-on ignores `server`. It ends with a
//! SHA-256 over all of the pickle before it, so a file is verified in one pass and little memory. What `list` shows also stands in
//! the comment of the gzip header, where it is read without unpacking anything.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::platform;
use crate::wire::message::{COMMON, Node, NodeId};
use crate::wire::pickle::{self, Value};
use crate::wire::{Dialect, dealer};

use super::FileError;
use super::disk::{Disk, DiskFile, RealDisk};
use super::journal::Position;
use super::record::commit_of;
use super::state::{SavedScene, State};

/// What stands before and after the 64 hexadecimal digits of the checksum: a short str, then SETITEM, SETITEMS, STOP.
const DIGITS: usize = 64;
const END: &[u8] = b"su.";

/// What a file's name ends with until it is whole.
pub(super) const TEMPORARY: &str = ".tmp";

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// What a backup says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Unix time, ms.
    pub time: u64,
    pub reason: String,
    /// Who was logged in.
    pub users: Vec<String>,
    pub nodes: u64,
    /// The journal up to which it holds everything.
    pub position: Position,
    pub version: Option<String>,
    pub dialect: String,
    /// The data directory whose journal that is: a random name, and no secret. Empty: none, as for an export.
    pub origin: String,
}

/// What the add-on's format has no place for. Not who is logged in: people pass these files on, and whoever knows a client's
/// identity can speak in its name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Extra {
    chat: Vec<(String, Json)>,
    tasks: Vec<(String, Json)>,
    /// Owners of nodes that somebody had locked.
    owners: Vec<(NodeId, String)>,
    /// Commits that are not in their node's data because they could not be folded.
    commits: Vec<(NodeId, Vec<NodeId>, Bytes)>,
    /// Type names of nodes of four-socket clients, whose data does not hold them.
    #[serde(default)]
    kinds: Vec<(NodeId, Arc<str>)>,
}

/// A session file that has been read.
#[derive(Debug)]
pub struct SessionFile {
    pub state: State,
    /// `None`: not written by this server.
    pub about: Option<About>,
    /// What was left out, for the operator.
    pub notes: Vec<String>,
}

/// Writes a session file in one stream: besides `state` itself it needs about a megabyte. Does not sync.
pub(super) fn write(file: &dyn DiskFile, state: &State, about: &About) -> io::Result<()> {
    let none = SavedScene::default();
    let scene = state.scene.as_ref().unwrap_or(&none);
    let comment = serde_json::to_vec(about)?;
    let gzip = GzBuilder::new()
        .comment(comment)
        .write(Appender::new(file), Compression::fast());
    let mut out = Hashing {
        inner: gzip,
        hash: Sha256::new(),
    };
    out.write_all(b"\x80\x04}(\x8c\x05nodes](")?;
    let known: HashSet<&NodeId> = scene.nodes.iter().map(|(node, _)| &node.id).collect();
    for (node, _) in &scene.nodes {
        // One that is not there would fail the whole import, and so may owners who are not there.
        let node = Node {
            id: node.id.clone(),
            owner: COMMON.into(),
            dependencies: node
                .dependencies
                .iter()
                .filter(|id| known.contains(id))
                .cloned()
                .collect(),
            data: node.data.clone(),
            kind: None,
        };
        out.write_all(b"](")?;
        for chunk in dealer::encode_node(&node) {
            match u32::try_from(chunk.len()) {
                Ok(length) => {
                    out.write_all(b"B")?;
                    out.write_all(&length.to_le_bytes())?;
                }
                Err(_) => {
                    out.write_all(b"\x8e")?;
                    out.write_all(&(chunk.len() as u64).to_le_bytes())?;
                }
            }
            out.write_all(&chunk)?;
        }
        out.write_all(b"e")?;
    }
    out.write_all(b"e\x8c\x05users}\x8c\x06server")?;
    // The only part that fills the reader's memo, so it may be made by itself.
    let server = pickle::encode(&server_dict(state, scene, about)?);
    out.write_all(server.get(2..server.len() - 1).unwrap_or_default())?;
    out.write_all(b"\x8c\x06sha256\x8c\x40")?;
    let digest = hex(&out.hash.clone().finalize());
    out.write_all(digest.as_bytes())?;
    out.write_all(END)?;
    out.inner.finish()?.finish()
}

fn server_dict(state: &State, scene: &SavedScene, about: &About) -> io::Result<Value> {
    let nodes = || scene.nodes.iter();
    let extra = Extra {
        chat: state.chat.clone(),
        tasks: state.tasks.clone(),
        owners: nodes()
            .filter(|(node, _)| &*node.owner != COMMON)
            .map(|(node, _)| (node.id.clone(), node.owner.to_string()))
            .collect(),
        commits: nodes()
            .flat_map(|(_, commits)| commits)
            .map(|commit| {
                (
                    commit.id.clone(),
                    commit.dependencies.clone(),
                    commit.raw.clone(),
                )
            })
            .collect(),
        kinds: nodes()
            .filter(|_| scene.dialect == Dialect::FourSocket.name())
            .filter_map(|(node, _)| Some((node.id.clone(), node.kind.clone()?)))
            .collect(),
    };
    let extra = rmp_serde::to_vec_named(&extra).map_err(io::Error::other)?;
    Ok(Value::dict([
        ("about", Value::str(serde_json::to_string(about)?)),
        ("scene", Value::Bool(state.scene.is_some())),
        ("extra", Value::bytes(extra)),
    ]))
}

/// Reads a session file, Blender's or ours. It may take `limit` bytes unpacked, and what it holds is checked as if it came
/// from a client. All nodes are owned by COMMON, dependencies that are not there are dropped.
pub fn read(path: &Path, limit: u64) -> Result<SessionFile, FileError> {
    let mut file = read_with_owners(path, limit)?;
    if let Some(scene) = &mut file.state.scene {
        scene.release();
    }
    Ok(file)
}

/// [`read`] with the owners that a backup of ours knows.
pub(super) fn read_with_owners(path: &Path, limit: u64) -> Result<SessionFile, FileError> {
    // A first pass for the size, so that nothing is reserved for what is not there, and no second copy is made while it grows.
    let first = scan(path, limit)?;
    if first.checksum == Some(false) {
        return Err(FileError::Checksum);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(first.unpacked).unwrap_or(0));
    unpack(path)?.take(first.unpacked).read_to_end(&mut bytes)?;
    let value = pickle::decode(&Bytes::from(bytes))
        .map_err(|error| FileError::Malformed(error.to_string()))?;
    let malformed = |what: &str| FileError::Malformed(what.to_owned());
    let list = value
        .get("nodes")
        .and_then(Value::as_list)
        .ok_or_else(|| malformed("it has no nodes"))?;
    let server = value.get("server").filter(|_| first.checksum == Some(true));
    let about = server
        .and_then(|server| server.get("about")?.as_str())
        .and_then(|text| serde_json::from_str::<About>(text).ok());
    let mut notes = Vec::new();
    let extra: Extra = match server.and_then(|server| server.get("extra")?.as_bytes()) {
        None => Extra::default(),
        Some(bytes) => {
            rmp_serde::from_slice(bytes).map_err(|error| FileError::Malformed(error.to_string()))?
        }
    };
    let kinds: HashMap<NodeId, Arc<str>> = extra.kinds.into_iter().collect();
    let (nodes, bad) = read_nodes(list, &kinds);
    if bad > 0 {
        notes.push(format!(
            "{}: {bad} nodes cannot be read and were left out",
            path.display()
        ));
        if nodes.is_empty() {
            return Err(malformed("none of its nodes can be read"));
        }
    }
    let mut scene = SavedScene {
        version: about.as_ref().and_then(|about| about.version.clone()),
        dialect: about
            .as_ref()
            .map_or(String::new(), |about| about.dialect.clone()),
        nodes: nodes.into_iter().map(|node| (node, Vec::new())).collect(),
    };
    put_back(&mut scene, extra.owners, extra.commits);
    let has_scene = server
        .and_then(|server| server.get("scene")?.as_bool())
        .unwrap_or(true);
    Ok(SessionFile {
        state: State {
            scene: has_scene.then_some(scene),
            chat: extra.chat,
            tasks: extra.tasks,
            // The journal after it tells.
            clients: Vec::new(),
            deleted: Vec::new(),
            recent: Vec::new(),
        },
        about,
        notes,
    })
}

/// The nodes that can be read, and how many cannot.
fn read_nodes(list: &[Value], kinds: &HashMap<NodeId, Arc<str>>) -> (Vec<Node>, usize) {
    let mut nodes: Vec<Node> = Vec::new();
    let mut places: HashMap<NodeId, usize> = HashMap::new();
    let mut bad = 0;
    for item in list {
        let chunks: Option<Vec<Bytes>> = item.as_list().and_then(|chunks| {
            chunks
                .iter()
                .map(|chunk| chunk.as_bytes().cloned())
                .collect()
        });
        let Some(Ok(mut node)) = chunks.map(|chunks| dealer::decode_saved_node(&chunks, kinds))
        else {
            bad += 1;
            continue;
        };
        node.owner = COMMON.into();
        // As the add-on takes it: a later one brings new data.
        match places.get(&node.id).and_then(|at| nodes.get_mut(*at)) {
            Some(known) => *known = node,
            None => {
                places.insert(node.id.clone(), nodes.len());
                nodes.push(node);
            }
        }
    }
    for node in &mut nodes {
        node.dependencies.retain(|id| places.contains_key(id));
    }
    (nodes, bad)
}

fn put_back(
    scene: &mut SavedScene,
    owners: Vec<(NodeId, String)>,
    commits: Vec<(NodeId, Vec<NodeId>, Bytes)>,
) {
    let places: HashMap<NodeId, usize> = scene
        .nodes
        .iter()
        .enumerate()
        .map(|(at, (node, _))| (node.id.clone(), at))
        .collect();
    for (id, owner) in owners {
        if let Some((node, _)) = places.get(&id).and_then(|at| scene.nodes.get_mut(*at)) {
            node.owner = owner.into();
        }
    }
    for (id, dependencies, raw) in commits {
        if let Some((_, kept)) = places.get(&id).and_then(|at| scene.nodes.get_mut(*at)) {
            kept.extend(commit_of(id, dependencies, raw));
        }
    }
}

/// What one pass over a file shows.
pub(super) struct Scan {
    pub unpacked: u64,
    /// Whether the checksum of ours is right; `None`: it has none.
    pub checksum: Option<bool>,
}

/// Unpacks a file to nowhere: its gzip checksum, and where it is ours our own, are checked.
pub(super) fn scan(path: &Path, limit: u64) -> Result<Scan, FileError> {
    let mut source = unpack(path)?;
    let ours = source
        .header()
        .is_some_and(|header| about_in(header).is_some());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    // What has been read and may be the end.
    let mut tail: Vec<u8> = Vec::new();
    let mut unpacked = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        unpacked += read as u64;
        if unpacked > limit {
            return Err(FileError::TooLarge(limit));
        }
        if ours {
            tail.extend_from_slice(buffer.get(..read).unwrap_or_default());
            let keep = tail.len().min(DIGITS + END.len());
            hash.update(tail.drain(..tail.len() - keep).as_slice());
        }
    }
    let expected = hex(&hash.finalize());
    let digits = tail.strip_suffix(END);
    Ok(Scan {
        unpacked,
        checksum: ours.then(|| digits == Some(expected.as_bytes())),
    })
}

/// What a backup of ours says about itself, from its first few bytes. It need not be whole otherwise.
pub(super) fn about(path: &Path) -> Option<About> {
    about_in(unpack(path).ok()?.header()?)
}

fn about_in(header: &flate2::GzHeader) -> Option<About> {
    serde_json::from_slice(header.comment()?).ok()
}

fn unpack(path: &Path) -> io::Result<GzDecoder<BufReader<File>>> {
    let file = File::open(path)?;
    Ok(GzDecoder::new(BufReader::with_capacity(BUFFER, file)))
}

/// [`export`] for the operator: on the real disk, the scene as it is now, and nothing of what was said.
pub fn export_session(path: &Path, state: &State) -> Result<(), FileError> {
    let scene = state.scene.as_ref();
    let about = About {
        time: super::now_ms(),
        reason: "export".into(),
        users: Vec::new(),
        nodes: scene.map_or(0, |scene| scene.nodes.len() as u64),
        position: Position::default(),
        version: scene.and_then(|scene| scene.version.clone()),
        dialect: scene.map(|scene| scene.dialect.clone()).unwrap_or_default(),
        origin: String::new(),
    };
    let scene = State {
        scene: state.scene.clone(),
        ..State::default()
    };
    export(path, &scene, &about)
}

/// Writes a state as a session file that the add-on can open, unless it is of a four-socket session. The file gets its name when it
/// is whole and durable. Blocks as long as it is large.
pub fn export(path: &Path, state: &State, about: &About) -> Result<(), FileError> {
    export_on(&RealDisk, path, state, about)
}

/// Copies a file, which gets its name when it is whole and durable.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = temporary(to);
    let _ = fs::remove_file(&temporary);
    let copied = platform::create_private(&temporary).and_then(|mut file| {
        io::copy(&mut File::open(from)?, &mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, to)?;
        RealDisk.sync_dir(parent(to))
    });
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied
}

pub(super) fn export_on(
    disk: &dyn Disk,
    path: &Path,
    state: &State,
    about: &About,
) -> Result<(), FileError> {
    let temporary = temporary(path);
    let result = export_to(disk, &temporary, state, about).and_then(|()| {
        disk.rename(&temporary, path)?;
        Ok(disk.sync_dir(parent(path))?)
    });
    if result.is_err() {
        let _ = disk.remove(&temporary);
    }
    result
}

fn export_to(disk: &dyn Disk, path: &Path, state: &State, about: &About) -> Result<(), FileError> {
    if path.exists() {
        disk.remove(path)?;
    }
    let file = disk.create(path)?;
    write(&*file, state, about)?;
    file.sync()?;
    // Read back before it gets a name that anybody trusts.
    match scan(path, u64::MAX)?.checksum {
        Some(true) => Ok(()),
        _ => Err(FileError::Checksum),
    }
}

pub(super) fn temporary(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}{TEMPORARY}"))
}

pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Gathers small writes to a file.
struct Appender<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
}

impl<'a> Appender<'a> {
    fn new(file: &'a dyn DiskFile) -> Self {
        Appender {
            file,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.append(&mut [IoSlice::new(&self.buffer)])?;
        self.buffer.clear();
        Ok(())
    }
}

/// Knows the SHA-256 of what has gone through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
