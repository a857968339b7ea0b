//! What the journal says: who changed what, and when.

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use crate::wire::delta::Delta;
use crate::wire::message::{Commit, Node, NodeId, UserName};

/// The version of the records that this server writes. A later server reads them all; a record with a
/// higher version is damage to an earlier one.
pub const VERSION: u8 = 1;

/// One line of the journal. Fields may be added at the end of a variant (with `#[serde(default)]`), variants anywhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Record {
    /// A scene begins: its nodes follow, and replace what was there when `SceneComplete` comes. Not before.
    SceneStart {
        version: Option<String>,
        dialect: String,
        /// Initialised, imported, restored from …
        reason: String,
    },
    SceneComplete,
    /// Back to the lobby: there is no scene any more.
    SceneDropped {
        reason: String,
    },
    /// A node in full, as it is after the change: with the owner it has then.
    Node {
        id: NodeId,
        owner: UserName,
        dependencies: Vec<NodeId>,
        author: UserName,
        /// The type's name, where it travels outside of the data.
        kind: Option<Arc<str>>,
        /// The pickled dict. Written after the record, so that it is never copied.
        #[serde(skip)]
        data: Bytes,
    },
    /// An accepted change of a node.
    Commit {
        id: NodeId,
        dependencies: Vec<NodeId>,
        author: UserName,
        #[serde(skip)]
        raw: Bytes,
    },
    Delete {
        id: NodeId,
        author: UserName,
    },
    /// New owner of nodes.
    Right {
        nodes: Vec<NodeId>,
        owner: UserName,
        author: UserName,
    },
    /// A chat line, as clients spell it.
    Chat {
        id: String,
        line: Json,
    },
    /// A task as clients spell it, or that it was removed.
    Task {
        id: String,
        task: Option<Json>,
    },
    /// Somebody logged in, and may come back under this identity without doing so again.
    Login(SavedClient),
    /// This identity cannot come back.
    Left {
        identity: Bytes,
        reason: String,
    },
    /// The add-on version that the scene belongs to; `None`: the next client decides.
    Pin {
        version: Option<String>,
        dialect: Option<String>,
    },
    ServerStarted {
        server: String,
    },
    /// In order; the last record of its run. The next one cuts it off when it takes what is handed over.
    ServerStopped {
        reason: String,
        #[serde(default)]
        handover: HandOver,
    },
    /// So many records are missing here because the disk failed or was too slow. Commits that follow may not fit
    /// the nodes that came before.
    Gap {
        lost: u64,
    },
}

/// Somebody who is logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClient {
    /// The routing identity of its connections.
    pub identity: Bytes,
    pub name: UserName,
    pub admin: bool,
    /// The add-on's version, as it said it at login.
    pub version: String,
    pub dialect: String,
}

/// What one run of the server leaves to the next about those who are to come back. It is exact, and so it counts only if
/// nothing has happened since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    pub clients: Vec<HandedOver>,
    /// Who waits for a node that somebody else has locked, by identity, in the order in which they asked.
    #[serde(default)]
    pub waiting: Vec<(Bytes, NodeId)>,
}

/// How far one client has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    pub identity: Bytes,
    /// Nodes that it may hold otherwise than the scene does, or may have after they went.
    pub owed: Vec<NodeId>,
    /// So many data messages may be in its queue, read by nobody yet.
    pub unread: usize,
}

impl Record {
    pub fn node(node: &Node, author: UserName) -> Record {
        Record::Node {
            id: node.id.clone(),
            owner: node.owner.clone(),
            dependencies: node.dependencies.clone(),
            author,
            kind: node.kind.clone(),
            data: node.data.clone(),
        }
    }

    pub fn commit(commit: &Commit, author: UserName) -> Record {
        Record::Commit {
            id: commit.id.clone(),
            dependencies: commit.dependencies.clone(),
            author,
            raw: commit.raw.clone(),
        }
    }

    /// Bytes that it takes, about.
    pub fn weight(&self) -> usize {
        let named = |nodes: &[NodeId]| nodes.len() * 48;
        256 + match self {
            Record::Node {
                dependencies, data, ..
            } => data.len() + named(dependencies),
            Record::Commit {
                dependencies, raw, ..
            } => raw.len() + named(dependencies),
            Record::Right { nodes, .. } => named(nodes),
            Record::ServerStopped { handover, .. } => {
                let owed = |client: &HandedOver| 64 + named(&client.owed);
                handover.clients.iter().map(owed).sum::<usize>() + handover.waiting.len() * 64
            }
            Record::Chat { line: json, .. }
            | Record::Task {
                task: Some(json), ..
            } => json_weight(json),
            _ => 0,
        }
    }

    /// Whether a checkpoint or backup made before it lacks something.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Record::Login(_)
                | Record::Left { .. }
                | Record::ServerStarted { .. }
                | Record::ServerStopped { .. }
        )
    }

    fn body(&self) -> Option<&Bytes> {
        match self {
            Record::Node { data: body, .. } | Record::Commit { raw: body, .. } => Some(body),
            _ => None,
        }
    }

    fn body_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Record::Node { data: body, .. } | Record::Commit { raw: body, .. } => Some(body),
            _ => None,
        }
    }
}

fn json_weight(json: &Json) -> usize {
    64 + match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(json_weight).sum(),
        Json::Object(fields) => fields
            .iter()
            .map(|(name, value)| name.len() + json_weight(value))
            .sum(),
        _ => 0,
    }
}

/// A record and when it was made.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Unix time, ms.
    pub at: u64,
    pub record: Record,
}

/// An encoded entry: one MessagePack array `[version, at, record]`, and where the record has a body one `bin` after it.
/// The body itself is not copied; the whole is `head` followed by `body`.
#[derive(Debug)]
pub struct Encoded {
    pub head: Vec<u8>,
    pub body: Bytes,
}

/// Why a record cannot be read: it is damaged, or a later server wrote it.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("a record cannot be read: {0}")]
    Malformed(String),
    #[error("a record has version {0}, this server knows {VERSION}")]
    Version(u8),
}

impl Entry {
    pub fn encode(&self) -> Encoded {
        let mut head = rmp_serde::to_vec(&(VERSION, self.at, &self.record))
            .expect("names, numbers and JSON can be written to memory");
        let body = match self.record.body() {
            None => Bytes::new(),
            Some(body) => {
                // Nothing that comes in is as long as this: one message is limited to 512 MiB.
                let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
                rmp::encode::write_bin_len(&mut head, length).expect("memory can be written");
                body.clone()
            }
        };
        Encoded { head, body }
    }

    pub fn decode(payload: &Bytes) -> Result<Entry, RecordError> {
        let malformed = |error: &dyn ToString| RecordError::Malformed(error.to_string());
        // The version alone first: the rest of a later one need not make sense.
        let mut cursor = Cursor::new(&payload[..]);
        rmp::decode::read_array_len(&mut cursor).map_err(|error| malformed(&error))?;
        let version: u8 = rmp::decode::read_int(&mut cursor).map_err(|error| malformed(&error))?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let mut cursor = Cursor::new(&payload[..]);
        let (_, at, mut record) =
            <(u8, u64, Record)>::deserialize(&mut rmp_serde::Deserializer::new(&mut cursor))
                .map_err(|error| malformed(&error))?;
        let mut length = 0;
        if record.body().is_some() {
            length = rmp::decode::read_bin_len(&mut cursor).map_err(|error| malformed(&error))?;
        }
        let body_at = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        if payload.len().checked_sub(body_at) != usize::try_from(length).ok() {
            return Err(RecordError::Malformed("its length is wrong".into()));
        }
        if let Some(body) = record.body_mut() {
            *body = payload.slice(body_at..);
        }
        Ok(Entry { at, record })
    }
}

/// A commit as it was when it came in, if its delta can still be read.
pub(super) fn commit_of(id: NodeId, dependencies: Vec<NodeId>, raw: Bytes) -> Option<Commit> {
    let delta = Arc::new(Delta::decode(&raw).ok()?);
    Some(Commit {
        id,
        dependencies,
        raw,
        delta,
    })
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| NodeId::from(text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn there_and_back(record: Record) -> Entry {
        let encoded = Entry { at: 7, record }.encode();
        let payload: Bytes = [&encoded.head[..], &encoded.body[..]].concat().into();
        Entry::decode(&payload).unwrap()
    }

    #[test]
    fn every_record_is_read_as_it_was_written() {
        let client = SavedClient {
            identity: Bytes::from_static(b"\x00\xff"),
            name: "Ada".into(),
            admin: true,
            version: "0.9.10".into(),
            dialect: "dealer".into(),
        };
        let records = [
            Record::SceneStart {
                version: Some("0.9.10".into()),
                dialect: "dealer".into(),
                reason: "initialised".into(),
            },
            Record::SceneComplete,
            Record::SceneDropped {
                reason: "new".into(),
            },
            Record::Delete {
                id: "n".into(),
                author: "Ada".into(),
            },
            Record::Right {
                nodes: vec!["n".into(), "m".into()],
                owner: "COMMON".into(),
                author: "Ada".into(),
            },
            Record::Chat {
                id: "1".into(),
                line: json!({"text": "hi", "at": 1.5}),
            },
            Record::Task {
                id: "1".into(),
                task: None,
            },
            Record::Login(client),
            Record::Left {
                identity: Bytes::from_static(b"\x01"),
                reason: "left".into(),
            },
            Record::Pin {
                version: None,
                dialect: None,
            },
            Record::ServerStarted {
                server: "0.1".into(),
            },
            Record::ServerStopped {
                reason: "exit".into(),
                handover: HandOver {
                    clients: vec![HandedOver {
                        identity: Bytes::from_static(b"\x02"),
                        owed: vec!["n".into()],
                        unread: 7,
                    }],
                    waiting: vec![(Bytes::from_static(b"\x03"), "m".into())],
                },
            },
            Record::Gap { lost: 3 },
        ];
        for record in records {
            let said = format!("{record:?}");
            let back = there_and_back(record);
            assert_eq!((back.at, format!("{:?}", back.record)), (7, said));
        }
    }

    #[test]
    fn a_long_line_weighs_what_it_takes() {
        let text = "a".repeat(100_000);
        let line = json!({"message": {"text": [text]}});
        let id = String::new();
        assert!(Record::Chat { id, line }.weight() > 100_000);
    }

    proptest! {
        #[test]
        fn bodies_of_any_length(body in prop::collection::vec(any::<u8>(), 0..70_000), id in ".*") {
            let record = Record::Node {
                id: id.as_str().into(),
                owner: "COMMON".into(),
                dependencies: vec![id.as_str().into()],
                author: "Ada".into(),
                kind: Some("Mesh".into()),
                data: body.into(),
            };
            let said = format!("{record:?}");
            prop_assert_eq!(format!("{:?}", there_and_back(record).record), said);
        }

        #[test]
        fn damage_is_an_error_or_another_record(at in 0..60_usize, bits in 1..=255_u8, cut in 0..60_usize) {
            let record = Record::Commit {
                id: "an id".into(),
                dependencies: vec!["another".into()],
                author: "Ada".into(),
                raw: Bytes::from_static(b"delta"),
            };
            let encoded = Entry { at: 7, record }.encode();
            let mut payload = [&encoded.head[..], &encoded.body[..]].concat();
            let at = at % payload.len();
            payload[at] ^= bits;
            let _ = Entry::decode(&payload.clone().into());
            payload.truncate(cut);
            let _ = Entry::decode(&payload.into());
        }
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let mut head = Entry {
            at: 1,
            record: Record::SceneComplete,
        }
        .encode()
        .head;
        head[1] = VERSION + 1;
        assert!(matches!(
            Entry::decode(&head.into()),
            Err(RecordError::Version(_))
        ));
    }
}
