//! The four-socket dialect: how `replication` 0.1.1 to 0.1.31 spells messages (docs/protocol.md, 6.2).
//!
//! A command names its class. A node is a header of six frames and, as messages of their own, so many chunks as the header says.

use bytes::Bytes;

use super::dealer::{
    TYPE_NAME, client_state, decode_auth, decode_delete, decode_dependencies, decode_init,
    decode_kick, decode_metadata, decode_right, decode_snapshot, encode_dependencies, ids,
    single_right, text, unpickle, unpickle_metadata, unpickle_strangers, uuid_chunk,
};
use super::message::{Inbound, Node, Outbound};
use super::pickle::{self, Value};
use super::{Chunk, Dialect, WireError};

/// Frames of a node's header.
pub const HEADER_FRAMES: usize = 6;

/// Chunks of one node: clients make one per 2.5 GB.
const MAX_CHUNKS: i64 = 64;
/// Bytes of their pickled number, which takes five.
const COUNT_LIMIT: usize = 64;

const SERVER: &[u8] = b"server";
const SERVER_PUSH: &[u8] = b"SERVER_PUSH";

/// Whether these chunks are a command of this dialect; those of the others are told by a number.
pub fn is_command(chunks: &[Bytes]) -> bool {
    matches!(chunks, [_, class, _] if class.starts_with(b"Rep"))
}

/// A message on the command channel.
pub fn decode_command(chunks: &[Bytes]) -> Result<Inbound, WireError> {
    // The owner field proves nothing, the connection's identity does.
    let [_owner, class, pickled] = chunks else {
        return Err(WireError::Malformed("command"));
    };
    let data = match &class[..] {
        b"RepUpdateUserMetadata" => unpickle_metadata(pickled)?,
        b"RepAuthCommand" => unpickle_strangers(pickled)?,
        _ => unpickle("command", pickled)?,
    };
    let (what, message) = match &class[..] {
        b"RepAuthCommand" => ("Auth", decode_auth(Dialect::FourSocket, &data)),
        b"RepSnapshotCommand" => ("Snapshot", decode_snapshot(&data)),
        b"RepServerSnapshotCommand" => return decode_server_snapshot(&data),
        b"RepDeleteCommand" => ("Delete", decode_delete(&data)),
        b"RepRightCommand" => ("Right", decode_right(&data)),
        b"RepKickCommand" => ("Kick", decode_kick(&data)),
        b"RepUpdateUserMetadata" => ("metadata", decode_metadata(&data).map(Inbound::Metadata)),
        b"RepConfigCommand" => ("Config", Some(Inbound::Nothing)),
        _ => return Err(WireError::Malformed("command: unknown class")),
    };
    message.ok_or(WireError::Malformed(what))
}

fn decode_server_snapshot(data: &Value) -> Result<Inbound, WireError> {
    const MALFORMED: WireError = WireError::Malformed("ServerSnapshot");
    let Some(state) = data.get("STATE").and_then(Value::as_str) else {
        // A version says so in plain words that it has sent everything.
        return match data.as_str() {
            Some(_) => Ok(Inbound::Nothing),
            None => Err(MALFORMED),
        };
    };
    match state {
        "INIT" => decode_init(data).ok_or(MALFORMED),
        // The nodes travel on another socket and are counted instead.
        "END" => Ok(Inbound::Nothing),
        // So the nodes travel from 0.1.23 on.
        "SET" => {
            let part = |key| data.get("DATA")?.get(key)?.as_bytes().cloned();
            let (Some(id), Some(owner), Some(kind), Some(dependencies), Some(data)) = (
                part("uuid"),
                part("owner"),
                part("type"),
                part("dependencies"),
                part("data"),
            ) else {
                return Err(MALFORMED);
            };
            node(&id, &owner, &kind, &dependencies, data).map(Inbound::InitNode)
        }
        _ => Err(MALFORMED),
    }
}

/// The frames of a header and the chunks that came after it, as [`Assembler`] puts them together.
pub fn decode_publication(chunks: &[Bytes]) -> Result<Inbound, WireError> {
    let Some(([_identity, id, owner, kind, _count, dependencies], data)) =
        chunks.split_first_chunk::<HEADER_FRAMES>()
    else {
        return Err(WireError::Malformed("Node"));
    };
    let data = match data {
        [one] => one.clone(),
        several => several.concat().into(),
    };
    node(id, owner, kind, dependencies, data).map(Inbound::Node)
}

fn node(
    id: &Bytes,
    owner: &Bytes,
    kind: &Bytes,
    dependencies: &Bytes,
    data: Bytes,
) -> Result<Node, WireError> {
    let kind = text(kind).filter(|kind| !kind.is_empty() && kind.len() <= TYPE_NAME);
    if unpickle("node data", &data)?.as_dict().is_none() {
        return Err(WireError::Malformed("node data: not a dict"));
    }
    Ok(Node {
        id: uuid_chunk(id)?,
        owner: text(owner).ok_or(WireError::Malformed("owner"))?.into(),
        dependencies: decode_dependencies(dependencies)?,
        data,
        kind: Some(kind.ok_or(WireError::Malformed("type name"))?.into()),
    })
}

/// Puts the messages of one publisher's connection together again: a header and the chunks that follow it.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Header and chunks so far.
    frames: Vec<Bytes>,
    missing: usize,
    bytes: usize,
}

impl Assembler {
    /// Bytes of the node under way.
    pub fn held(&self) -> usize {
        self.bytes
    }

    /// Takes the next message in; once a node is complete, returns its frames for [`decode_publication`]. `limit` is in bytes.
    pub fn take(
        &mut self,
        mut message: Vec<Bytes>,
        limit: usize,
    ) -> Result<Option<Vec<Bytes>>, WireError> {
        self.bytes = message
            .iter()
            .fold(self.bytes, |sum, frame| sum.saturating_add(frame.len()));
        if self.bytes > limit {
            return Err(WireError::Malformed("Node: too large"));
        }
        if self.missing == 0 {
            let [_, _, _, _, count, _] = message.as_slice() else {
                return Err(WireError::Malformed("header of a node"));
            };
            // This is read on the async runtime, however long it is.
            if count.len() > COUNT_LIMIT {
                return Err(WireError::Malformed("number of chunks"));
            }
            let count = unpickle("number of chunks", count)?.as_i64();
            self.missing = count
                .filter(|count| (1..=MAX_CHUNKS).contains(count))
                .and_then(|count| usize::try_from(count).ok())
                .ok_or(WireError::Malformed("number of chunks"))?;
            self.frames = message;
            return Ok(None);
        }
        if message.len() != 1 {
            return Err(WireError::Malformed("chunk of a node"));
        }
        self.frames.append(&mut message);
        self.missing -= 1;
        if self.missing > 0 {
            return Ok(None);
        }
        self.bytes = 0;
        Ok(Some(std::mem::take(&mut self.frames)))
    }
}

/// The chunks of a message to a client; those of a node are the header's and then the data.
pub fn encode(message: &Outbound) -> Vec<Chunk> {
    match message {
        Outbound::Node(node) | Outbound::JoinNode(node) => encode_node(node),
        Outbound::Ping => vec![Bytes::from_static(b"PING").into()],
        Outbound::Auth(answer) => command("RepAuthCommand", &Value::str(answer)),
        Outbound::InitAccepted => state("RepServerSnapshotCommand", "ACCEPTED"),
        Outbound::InitRejected => state("RepServerSnapshotCommand", "REJECTED"),
        Outbound::InitDone => state("RepServerSnapshotCommand", "DONE"),
        Outbound::JoinCatalog(nodes) => {
            let data = Value::dict([("STATE", Value::str("INIT")), ("CATALOG", ids(nodes))]);
            command("RepSnapshotCommand", &data)
        }
        Outbound::Delete(node) => command("RepDeleteCommand", &Value::str(node.as_str())),
        Outbound::Right { nodes, owner } => command("RepRightCommand", &single_right(nodes, owner)),
        Outbound::Disconnect { reason } => {
            let data = Value::dict([("reason", Value::str(reason))]);
            command("RepDisconnectCommand", &data)
        }
        Outbound::ClientsState(clients) => {
            let table = clients
                .iter()
                .map(|client| (client.name.clone(), client_state(client)));
            command("RepUpdateClientsState", &Value::dict(table))
        }
        // Not part of this dialect, and never sent in it. Clients take note of a Config and do nothing.
        Outbound::ServerInfo { .. }
        | Outbound::Commit(_)
        | Outbound::JoinRemoved
        | Outbound::Metadata { .. } => command("RepConfigCommand", &Value::None),
    }
}

fn encode_node(node: &Node) -> Vec<Chunk> {
    vec![
        Bytes::from_static(SERVER_PUSH).into(),
        node.id.as_str().to_owned().into_bytes().into(),
        node.owner.as_bytes().to_vec().into(),
        node.kind
            .as_deref()
            .unwrap_or_default()
            .as_bytes()
            .to_vec()
            .into(),
        pickle::encode(&Value::Int(1)).into(),
        encode_dependencies(&node.dependencies).into(),
        node.data.clone().into(),
    ]
}

fn command(class: &'static str, data: &Value) -> Vec<Chunk> {
    vec![
        Bytes::from_static(SERVER).into(),
        Bytes::from_static(class.as_bytes()).into(),
        pickle::encode(data).into(),
    ]
}

fn state(class: &'static str, state: &str) -> Vec<Chunk> {
    command(class, &Value::dict([("STATE", Value::str(state))]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Outgoing;
    use crate::wire::{Channel, decode};

    fn sample() -> Node {
        Node {
            id: "n1".into(),
            owner: "COMMON".into(),
            dependencies: vec!["n2".into()],
            data: pickle::encode(&Value::dict([("name", Value::str("Cube"))])).into(),
            kind: Some("BlMesh".into()),
        }
    }

    /// The messages of a node as a client would publish them.
    fn publication() -> Vec<Vec<Bytes>> {
        Outgoing::new(Outbound::Node(sample()))
            .messages(Dialect::FourSocket)
            .map(|message| message.iter().map(Chunk::to_bytes).collect())
            .collect()
    }

    fn command_of(class: &'static str, data: &Value) -> Vec<Bytes> {
        command(class, data).iter().map(Chunk::to_bytes).collect()
    }

    #[test]
    fn a_node_is_a_header_and_a_chunk() {
        let messages = publication();
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [6, 1]);
        let mut assembler = Assembler::default();
        for _ in 0..2 {
            assert!(
                assembler
                    .take(messages[0].clone(), 10_000)
                    .unwrap()
                    .is_none()
            );
            let frames = assembler
                .take(messages[1].clone(), 10_000)
                .unwrap()
                .unwrap();
            let Ok(Inbound::Node(back)) = decode(Dialect::FourSocket, Channel::Publish, &frames)
            else {
                panic!("not a Node");
            };
            assert_eq!((back.id, back.kind), (sample().id, sample().kind));
            assert_eq!(
                (back.dependencies, back.data),
                (sample().dependencies, sample().data)
            );
        }
    }

    #[test]
    fn several_chunks_are_one_node() {
        let mut messages = publication();
        messages[0][4] = pickle::encode(&Value::Int(3)).into();
        let data = sample().data;
        let mut assembler = Assembler::default();
        assert!(
            assembler
                .take(messages.remove(0), 10_000)
                .unwrap()
                .is_none()
        );
        assert!(
            assembler
                .take(vec![data.slice(..3)], 10_000)
                .unwrap()
                .is_none()
        );
        assert!(
            assembler
                .take(vec![data.slice(3..5)], 10_000)
                .unwrap()
                .is_none()
        );
        let frames = assembler
            .take(vec![data.slice(5..)], 10_000)
            .unwrap()
            .unwrap();
        let Ok(Inbound::Node(back)) = decode_publication(&frames) else {
            panic!("not a Node");
        };
        assert_eq!(back.data, data);
    }

    #[test]
    fn what_is_no_publication_is_refused() {
        let messages = publication();
        let long = Value::str("1".repeat(COUNT_LIMIT));
        for count in [
            Value::Int(0),
            Value::Int(-1),
            Value::Int(65),
            Value::None,
            long,
        ] {
            let mut header = messages[0].clone();
            header[4] = pickle::encode(&count).into();
            assert!(
                Assembler::default().take(header, 10_000).is_err(),
                "{count:?}"
            );
        }
        assert!(
            Assembler::default()
                .take(messages[0][..5].to_vec(), 10_000)
                .is_err()
        );
        let mut assembler = Assembler::default();
        assembler.take(messages[0].clone(), 200).unwrap();
        assert!(
            assembler.take(vec![vec![0; 201].into()], 200).is_err(),
            "too large"
        );
        let mut assembler = Assembler::default();
        assembler.take(messages[0].clone(), 10_000).unwrap();
        assert!(
            assembler.take(messages[0].clone(), 10_000).is_err(),
            "a header, not a chunk"
        );
        let mut evil = messages[0].clone();
        evil.push(Bytes::from_static(b"cposix\nsystem\n."));
        assert!(decode_publication(&evil).is_err());
        evil[6] = pickle::encode(&Value::list([])).into();
        assert!(decode_publication(&evil).is_err(), "not a dict");
    }

    #[test]
    fn commands_are_told_by_their_class() {
        let decode = |class, data| {
            let chunks = command_of(class, &data);
            super::super::decode(Dialect::Dealer, Channel::Command, &chunks)
        };
        let auth = Value::dict([
            ("AUTH_TYPE", Value::str("CLIENT")),
            ("AUTH_ID", Value::str("alice")),
            ("PWD", Value::None),
            ("VERSION", Value::str("0.1.13")),
        ]);
        let Ok(Inbound::Auth(login)) = decode("RepAuthCommand", auth) else {
            panic!("not an Auth");
        };
        assert_eq!(
            (login.dialect, login.one_password),
            (Dialect::FourSocket, true)
        );
        assert!(matches!(
            decode("RepDeleteCommand", Value::str("n1")),
            Ok(Inbound::Delete(_))
        ));
        let right = Value::dict([("uuid", Value::str("n1")), ("owner", Value::str("alice"))]);
        assert!(
            matches!(decode("RepRightCommand", right), Ok(Inbound::Right { nodes, .. }) if nodes.len() == 1)
        );
        for end in [
            Value::str("SNAPSHOT_END"),
            Value::dict([("STATE", Value::str("END"))]),
        ] {
            assert!(matches!(
                decode("RepServerSnapshotCommand", end),
                Ok(Inbound::Nothing)
            ));
        }
        for (class, data) in [
            ("RepUnknown", Value::None),
            ("RepKickCommand", Value::None),
            ("RepServerSnapshotCommand", Value::None),
            (
                "RepSnapshotCommand",
                Value::dict([("STATE", Value::str("GET"))]),
            ),
        ] {
            assert!(decode(class, data).is_err(), "{class}");
        }
    }

    #[test]
    fn later_versions_initialise_by_commands() {
        let bytes = |text: &'static str| Value::bytes(Bytes::from_static(text.as_bytes()));
        let node = Value::dict([
            ("uuid", bytes("n1")),
            ("owner", bytes("COMMON")),
            ("type", bytes("BlMesh")),
            ("dependencies", Value::bytes(encode_dependencies(&[]))),
            ("data", Value::bytes(sample().data)),
        ]);
        let set = Value::dict([("STATE", Value::str("SET")), ("DATA", node)]);
        let chunks = command_of("RepServerSnapshotCommand", &set);
        let Ok(Inbound::InitNode(node)) = decode_command(&chunks) else {
            panic!("not a SET");
        };
        assert_eq!(node.kind, sample().kind);
    }

    #[test]
    fn rights_name_one_node() {
        for nodes in [&["n1".into()][..], &[]] {
            let chunks = encode(&Outbound::Right {
                nodes: nodes.to_vec(),
                owner: "alice".into(),
            });
            let data = pickle::decode(&chunks[2].to_bytes()).unwrap();
            assert!(data.get("uuid").and_then(Value::as_str).is_some());
        }
    }
}
