//! The dealer dialect: how `replication` 0.7 to 0.9.11 spells messages (docs/protocol.md, sections 2 and 8).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::delta::Delta;
use super::message::{ClientState, Commit, Inbound, Login, Node, NodeId, Outbound, UserName};
use super::pickle::{self, Value};
use super::{Channel, Chunk, Dialect, WireError};

const COMMIT: i64 = 1;
const NODE: i64 = 2;
const DELETE: i64 = 4;
const RIGHT: i64 = 5;
const SNAPSHOT: i64 = 7;
const SERVER_SNAPSHOT: i64 = 8;
pub(super) const AUTH: i64 = 9;
const DISCONNECT: i64 = 10;
const KICK: i64 = 11;
const UPDATE_CLIENTS_STATE: i64 = 12;
const UPDATE_USER_METADATA: i64 = 13;
pub(super) const REQUEST_SERVER_INFO: i64 = 14;

/// Bytes of one push of metadata; the add-on's are about a thousand, chat included.
const METADATA_LIMIT: usize = 256 * 1024;
/// Values in it; the add-on's have about a hundred, and a name per selected object.
const METADATA_VALUES: usize = 65_536;

/// Values in an Auth, which has about a dozen, or a question for the server's info.
const STRANGERS_VALUES: usize = 64;

/// Bytes of a node's uuid: it is remembered in many places, some of them after the node has gone.
const UUID_LIMIT: usize = 255;

/// Bytes of a type's name that is remembered; real ones have about a dozen.
pub(super) const TYPE_NAME: usize = 128;

/// The owner that server-made commands name.
const SERVER: &[u8] = b"server";

/// A message on the command or the data channel; `dialect` is this one or tcp.
pub fn decode(dialect: Dialect, channel: Channel, chunks: &[Bytes]) -> Result<Inbound, WireError> {
    let first = chunks
        .first()
        .ok_or(WireError::Malformed("empty message"))?;
    let type_num = unpickle("type number", first)?
        .as_i64()
        .ok_or(WireError::Malformed("type number"))?;
    match (channel, type_num) {
        (Channel::Data, NODE) => Ok(Inbound::Node(decode_node(chunks)?)),
        (Channel::Data, COMMIT) => Ok(Inbound::Commit(decode_commit(chunks)?)),
        (Channel::Data, _) => Err(WireError::WrongChannel("a command", channel)),
        (_, NODE | COMMIT) => Err(WireError::WrongChannel("an update", channel)),
        _ => decode_command(dialect, type_num, chunks),
    }
}

fn decode_command(dialect: Dialect, type_num: i64, chunks: &[Bytes]) -> Result<Inbound, WireError> {
    // The owner field proves nothing, the connection's identity does.
    let [_, _owner, pickled] = chunks else {
        return Err(WireError::Malformed("command"));
    };
    let data = match type_num {
        UPDATE_USER_METADATA => unpickle_metadata(pickled)?,
        AUTH | REQUEST_SERVER_INFO => unpickle_strangers(pickled)?,
        _ => unpickle("command", pickled)?,
    };
    match type_num {
        AUTH => decode_auth(dialect, &data).ok_or(WireError::Malformed("Auth")),
        REQUEST_SERVER_INFO => Ok(Inbound::ServerInfo),
        SNAPSHOT => decode_snapshot(&data).ok_or(WireError::Malformed("Snapshot")),
        SERVER_SNAPSHOT => decode_server_snapshot(&data),
        DELETE => decode_delete(&data).ok_or(WireError::Malformed("Delete")),
        RIGHT => decode_right(&data).ok_or(WireError::Malformed("Right")),
        KICK => decode_kick(&data).ok_or(WireError::Malformed("Kick")),
        UPDATE_USER_METADATA => decode_metadata(&data)
            .map(Inbound::Metadata)
            .ok_or(WireError::Malformed("UpdateUserMetadata")),
        other => Err(WireError::UnknownType(other)),
    }
}

pub(super) fn unpickle(what: &'static str, bytes: &Bytes) -> Result<Value, WireError> {
    pickle::decode(bytes).map_err(|source| WireError::Pickle { what, source })
}

/// What everybody may say, again and again: it must not take long to read.
pub(super) fn unpickle_strangers(bytes: &Bytes) -> Result<Value, WireError> {
    unpickle_small("command", bytes, STRANGERS_VALUES)
}

fn unpickle_small(what: &'static str, bytes: &Bytes, values: usize) -> Result<Value, WireError> {
    pickle::decode_small(bytes, values).map_err(|source| WireError::Pickle { what, source })
}

/// One push of metadata. What it holds is compared, counted and pickled again with each further one.
pub(super) fn unpickle_metadata(bytes: &Bytes) -> Result<Value, WireError> {
    if bytes.len() > METADATA_LIMIT {
        return Err(WireError::Malformed("metadata: more than 256 KiB"));
    }
    unpickle_small("metadata", bytes, METADATA_VALUES)
}

pub(super) fn text(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(super) fn node_id(value: &Value) -> Option<NodeId> {
    value.as_str().filter(|id| is_uuid(id)).map(NodeId::from)
}

/// Clients make uuids of 36 characters; any short text is as good.
fn is_uuid(text: &str) -> bool {
    (1..=UUID_LIMIT).contains(&text.len())
}

pub(super) fn uuid_chunk(bytes: &Bytes) -> Result<NodeId, WireError> {
    text(bytes)
        .filter(|id| is_uuid(id))
        .map(NodeId::from)
        .ok_or(WireError::Malformed("uuid"))
}

pub(super) fn decode_dependencies(bytes: &Bytes) -> Result<Vec<NodeId>, WireError> {
    let value = unpickle("dependencies", bytes)?;
    if value.is_none() {
        return Ok(Vec::new());
    }
    value
        .as_list()
        .and_then(|list| list.iter().map(node_id).collect())
        .ok_or(WireError::Malformed("dependencies"))
}

/// The chunks of a Node message, on the data channel or inside a ServerSnapshot.
pub fn decode_node(chunks: &[Bytes]) -> Result<Node, WireError> {
    decode_saved_node(chunks, &HashMap::new())
}

/// The same from a session file, which holds the type names of nodes of four-socket clients apart.
pub fn decode_saved_node(
    chunks: &[Bytes],
    kinds: &HashMap<NodeId, Arc<str>>,
) -> Result<Node, WireError> {
    let [type_num, id, owner, dependencies, data] = chunks else {
        return Err(WireError::Malformed("Node"));
    };
    if unpickle("type number", type_num)?.as_i64() != Some(NODE) {
        return Err(WireError::Malformed("Node"));
    }
    let value = unpickle("node data", data)?;
    let id = uuid_chunk(id)?;
    let kind = match value.get("type_id").and_then(Value::as_str) {
        Some(kind) => (kind.len() <= TYPE_NAME).then(|| kind.into()),
        // Clients raise on a node without it.
        None => Some(
            kinds
                .get(&id)
                .cloned()
                .ok_or(WireError::Malformed("node data: no type_id"))?,
        ),
    };
    Ok(Node {
        id,
        owner: text(owner).ok_or(WireError::Malformed("owner"))?.into(),
        dependencies: decode_dependencies(dependencies)?,
        data: data.clone(),
        kind,
    })
}

fn decode_commit(chunks: &[Bytes]) -> Result<Commit, WireError> {
    let [_, id, dependencies, delta] = chunks else {
        return Err(WireError::Malformed("Commit"));
    };
    let decoded = Delta::decode(delta).map_err(|source| WireError::Pickle {
        what: "delta",
        source,
    })?;
    Ok(Commit {
        id: uuid_chunk(id)?,
        dependencies: decode_dependencies(dependencies)?,
        raw: delta.clone(),
        delta: Arc::new(decoded),
    })
}

/// Auth of any dialect.
pub(super) fn decode_auth(dialect: Dialect, data: &Value) -> Option<Inbound> {
    // "No password" is spelled None, '' or, after upstream's own conversions, "None".
    let password = |key| match data.get(key).map(|value| (value.is_none(), value.as_str())) {
        None | Some((true, _)) | Some((_, Some("" | "None"))) => Some(String::new()),
        Some((_, Some(text))) => Some(text.to_owned()),
        Some(_) => None,
    };
    let one_password = data.get("S_PWD").is_none() && data.get("A_PWD").is_none();
    let (server, admin) = if one_password {
        ("PWD", "PWD")
    } else {
        ("S_PWD", "A_PWD")
    };
    Some(Inbound::Auth(Login {
        dialect,
        one_password,
        wants_admin: data.get("AUTH_TYPE")?.as_str()? == "ADMIN",
        name: data.get("AUTH_ID")?.as_str()?.to_owned(),
        server_password: password(server)?,
        admin_password: password(admin)?,
        version: data.get("VERSION")?.as_str()?.to_owned(),
    }))
}

pub(super) fn decode_delete(data: &Value) -> Option<Inbound> {
    node_id(data).map(Inbound::Delete)
}

pub(super) fn decode_kick(data: &Value) -> Option<Inbound> {
    Some(Inbound::Kick {
        user: data.get("user")?.as_str()?.to_owned(),
    })
}

/// ServerSnapshot INIT: uuids of the scene to come.
pub(super) fn decode_init(data: &Value) -> Option<Inbound> {
    let nodes = data.get("NODES")?.as_list()?.iter().map(node_id);
    Some(Inbound::InitStart(nodes.collect::<Option<_>>()?))
}

pub(super) fn decode_snapshot(data: &Value) -> Option<Inbound> {
    match data.get("STATE")?.as_str()? {
        "REQUEST_INIT" => Some(Inbound::JoinStart),
        "GET" => node_id(data.get("ID")?).map(Inbound::JoinGet),
        "DONE" => Some(Inbound::JoinDone),
        _ => None,
    }
}

fn decode_server_snapshot(data: &Value) -> Result<Inbound, WireError> {
    const MALFORMED: WireError = WireError::Malformed("ServerSnapshot");
    match data.get("STATE").and_then(Value::as_str).ok_or(MALFORMED)? {
        "INIT" => decode_init(data).ok_or(MALFORMED),
        "SET" => {
            let chunks: Vec<Bytes> = data
                .get("DATA")
                .and_then(Value::as_list)
                .and_then(|chunks| {
                    chunks
                        .iter()
                        .map(|chunk| chunk.as_bytes().cloned())
                        .collect()
                })
                .ok_or(MALFORMED)?;
            decode_node(&chunks).map(Inbound::InitNode)
        }
        "END" => Ok(Inbound::InitEnd),
        _ => Err(MALFORMED),
    }
}

/// One uuid or a list of them, which is a question of the version.
///
/// The uuid of an object that the add-on has not registered yet is `""`; selected together with others it says nothing about them.
pub(super) fn decode_right(data: &Value) -> Option<Inbound> {
    let uuid = data.get("uuid")?;
    let uuids = uuid.as_list().unwrap_or(std::slice::from_ref(uuid));
    let nodes = uuids
        .iter()
        .filter(|uuid| uuid.as_str() != Some(""))
        .map(node_id)
        .collect::<Option<_>>()?;
    let owner: UserName = data.get("owner")?.as_str()?.into();
    Some(Inbound::Right { nodes, owner })
}

pub(super) fn decode_metadata(data: &Value) -> Option<Vec<(Arc<str>, Value)>> {
    data.as_dict()?
        .iter()
        .map(|(key, value)| Some((key.as_str()?.into(), value.clone())))
        .collect()
}

/// The chunks of a message to a client.
pub fn encode(message: &Outbound) -> Vec<Chunk> {
    match message {
        Outbound::Node(node) => encode_node(node).map(Chunk::One).into(),
        Outbound::Commit(commit) => vec![
            int_pickle(COMMIT),
            commit.id.as_str().to_owned().into_bytes().into(),
            encode_dependencies(&commit.dependencies).into(),
            commit.raw.clone().into(),
        ],
        Outbound::Ping => vec![Chunk::One(Bytes::from_static(b"PING"))],
        Outbound::JoinNode(node) => vec![
            int_pickle(SNAPSHOT),
            Bytes::from_static(SERVER).into(),
            join_node_pickle(node),
        ],
        Outbound::ServerInfo { private, version } => {
            let data = Value::dict([
                ("private", Value::Bool(*private)),
                ("version", Value::str(version)),
            ]);
            command(REQUEST_SERVER_INFO, SERVER, &data)
        }
        Outbound::Auth(answer) => command(AUTH, SERVER, &Value::str(answer)),
        Outbound::InitAccepted => state_command(SERVER_SNAPSHOT, "ACCEPTED"),
        Outbound::InitRejected => state_command(SERVER_SNAPSHOT, "REJECTED"),
        Outbound::InitDone => state_command(SERVER_SNAPSHOT, "DONE"),
        Outbound::JoinCatalog(nodes) => {
            let data = Value::dict([("STATE", Value::str("INIT")), ("CATALOG", ids(nodes))]);
            command(SNAPSHOT, SERVER, &data)
        }
        Outbound::JoinRemoved => {
            let data = Value::dict([
                ("STATE", Value::str("SET")),
                ("DATA", Value::bytes(Bytes::from_static(b"removed"))),
            ]);
            command(SNAPSHOT, SERVER, &data)
        }
        Outbound::Delete(node) => command(DELETE, SERVER, &Value::str(node.as_str())),
        Outbound::Right { nodes, owner } => {
            let data = Value::dict([("uuid", ids(nodes)), ("owner", Value::str(owner))]);
            command(RIGHT, SERVER, &data)
        }
        // Up to 0.9.10 clients show the object itself.
        Outbound::Disconnect { reason } => disconnect(&Value::str(reason)),
        Outbound::ClientsState(clients) => {
            let table = Value::dict(
                clients
                    .iter()
                    .map(|client| (client.name.clone(), client_state(client))),
            );
            command(UPDATE_CLIENTS_STATE, SERVER, &table)
        }
        Outbound::Metadata { owner, data } => {
            command(UPDATE_USER_METADATA, owner.as_bytes(), &metadata(data))
        }
    }
}

/// Disconnect, whose data some versions want as a text and some as a dict.
pub(super) fn disconnect(data: &Value) -> Vec<Chunk> {
    command(DISCONNECT, SERVER, data)
}

/// A Right as 0.7 takes it, about one node; without any it is about none.
pub fn encode_single_right(nodes: &[NodeId], owner: &str) -> Vec<Chunk> {
    command(RIGHT, SERVER, &single_right(nodes, owner))
}

pub(super) fn single_right(nodes: &[NodeId], owner: &str) -> Value {
    let uuid = nodes.first().map_or("", NodeId::as_str);
    Value::dict([("uuid", Value::str(uuid)), ("owner", Value::str(owner))])
}

/// The chunks of a Node message.
pub fn encode_node(node: &Node) -> [Bytes; 5] {
    [
        pickle::encode(&Value::Int(NODE)).into(),
        node.id.as_str().to_owned().into(),
        node.owner.to_string().into(),
        encode_dependencies(&node.dependencies).into(),
        node.data.clone(),
    ]
}

pub(super) fn encode_dependencies(dependencies: &[NodeId]) -> Vec<u8> {
    pickle::encode(&ids(dependencies))
}

pub(super) fn ids(nodes: &[NodeId]) -> Value {
    Value::list(nodes.iter().map(|node| Value::str(node.as_str())))
}

fn int_pickle(number: i64) -> Chunk {
    pickle::encode(&Value::Int(number)).into()
}

fn command(type_num: i64, owner: &[u8], data: &Value) -> Vec<Chunk> {
    vec![
        int_pickle(type_num),
        Bytes::copy_from_slice(owner).into(),
        pickle::encode(data).into(),
    ]
}

fn state_command(type_num: i64, state: &str) -> Vec<Chunk> {
    command(
        type_num,
        SERVER,
        &Value::dict([("STATE", Value::str(state))]),
    )
}

pub(super) fn metadata(data: &[(Arc<str>, Value)]) -> Value {
    Value::dict(data.iter().map(|(key, value)| (key.clone(), value.clone())))
}

pub(super) fn client_state(client: &ClientState) -> Value {
    Value::dict([
        ("id", Value::str(&client.name)),
        ("admin", Value::Bool(client.admin)),
        ("latency", Value::Int(client.latency)),
        ("status", Value::Int(client.status)),
        ("metadata", metadata(&client.metadata)),
    ])
}

/// `pickle({"STATE": "SET", "DATA": [chunks]})` around the node's data without copying it.
fn join_node_pickle(node: &Node) -> Chunk {
    let chunks = encode_node(node);
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(b"\x80\x04}(");
    for word in ["STATE", "SET", "DATA"] {
        head.push(b'\x8c');
        head.push(word.len() as u8);
        head.extend_from_slice(word.as_bytes());
    }
    head.extend_from_slice(b"](");
    let [small @ .., data] = &chunks;
    for chunk in small {
        bytes_header(&mut head, chunk.len());
        head.extend_from_slice(chunk);
    }
    bytes_header(&mut head, data.len());
    Chunk::Parts([head.into(), data.clone(), Bytes::from_static(b"eu.")].into())
}

fn bytes_header(out: &mut Vec<u8>, len: usize) {
    match u32::try_from(len) {
        Ok(len) => {
            out.push(b'B');
            out.extend_from_slice(&len.to_le_bytes());
        }
        Err(_) => {
            out.push(b'\x8e');
            out.extend_from_slice(&(len as u64).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(channel: Channel, chunks: &[Bytes]) -> Result<Inbound, WireError> {
        super::decode(Dialect::Dealer, channel, chunks)
    }

    fn node() -> Node {
        Node {
            id: "n1".into(),
            owner: "COMMON".into(),
            dependencies: vec!["n2".into()],
            data: pickle::encode(&Value::dict([("type_id", Value::str("Mesh"))])).into(),
            kind: None,
        }
    }

    fn bytes(chunks: Vec<Chunk>) -> Vec<Bytes> {
        chunks.iter().map(Chunk::to_bytes).collect()
    }

    fn pickled(type_num: i64, data: &Value) -> Vec<Bytes> {
        bytes(command(type_num, b"somebody", data))
    }

    #[test]
    fn a_node_survives_the_way_out_and_in() {
        let chunks = bytes(encode(&Outbound::Node(node())));
        let Inbound::Node(back) = decode(Channel::Data, &chunks).unwrap() else {
            panic!("not a Node");
        };
        assert_eq!(
            (back.id, back.dependencies),
            (node().id, node().dependencies)
        );
        assert_eq!(back.data, node().data);
    }

    #[test]
    fn a_set_holds_the_chunks_of_the_node() {
        let chunks = bytes(encode(&Outbound::JoinNode(node())));
        let data = pickle::decode(&chunks[2]).unwrap();
        assert_eq!(data.get("STATE").and_then(Value::as_str), Some("SET"));
        let inner: Vec<Bytes> = data
            .get("DATA")
            .unwrap()
            .as_list()
            .unwrap()
            .iter()
            .map(|c| c.as_bytes().unwrap().clone())
            .collect();
        assert_eq!(decode_node(&inner).unwrap().id, node().id);
    }

    #[test]
    fn no_password_has_three_spellings() {
        for spelling in [Value::None, Value::str(""), Value::str("None")] {
            let data = Value::dict([
                ("AUTH_TYPE", Value::str("CLIENT")),
                ("AUTH_ID", Value::str("alice")),
                ("S_PWD", spelling),
                ("A_PWD", Value::None),
                ("VERSION", Value::str("0.9.10")),
            ]);
            let Inbound::Auth(login) = decode(Channel::Command, &pickled(AUTH, &data)).unwrap()
            else {
                panic!("not an Auth");
            };
            assert_eq!(login.server_password, "");
            assert!(!login.wants_admin);
        }
    }

    #[test]
    fn older_clients_have_one_password_and_rights_about_one_node() {
        let data = Value::dict([
            ("AUTH_TYPE", Value::str("ADMIN")),
            ("AUTH_ID", Value::str("alice")),
            ("PWD", Value::str("secret")),
            ("VERSION", Value::str("0.7.3")),
        ]);
        let Inbound::Auth(login) = decode(Channel::Command, &pickled(AUTH, &data)).unwrap() else {
            panic!("not an Auth");
        };
        assert!(login.one_password && login.wants_admin);
        assert_eq!(
            (&*login.server_password, &*login.admin_password),
            ("secret", "secret")
        );
        let right = bytes(encode_single_right(&["n1".into()], "alice"));
        let Inbound::Right { nodes, .. } = decode(Channel::Command, &right).unwrap() else {
            panic!("not a Right");
        };
        assert_eq!(nodes, ["n1".into()]);
        let data = pickle::decode(&right[2]).unwrap();
        assert_eq!(data.get("uuid").and_then(Value::as_str), Some("n1"));
    }

    #[test]
    fn what_a_right_names_beside_objects_without_uuid_counts() {
        let mut right = Value::dict([
            ("uuid", Value::list(["", "n1", ""].map(Value::str))),
            ("owner", Value::str("alice")),
        ]);
        let decoded = decode(Channel::Command, &pickled(RIGHT, &right)).unwrap();
        assert!(matches!(decoded, Inbound::Right { nodes, .. } if nodes == ["n1".into()]));
        right = Value::dict([("uuid", Value::str("")), ("owner", Value::str("alice"))]);
        let decoded = decode(Channel::Command, &pickled(RIGHT, &right)).unwrap();
        assert!(matches!(decoded, Inbound::Right { nodes, .. } if nodes.is_empty()));
    }

    #[test]
    fn updates_and_commands_keep_to_their_channels() {
        let chunks = bytes(encode(&Outbound::Node(node())));
        assert!(matches!(
            decode(Channel::Command, &chunks),
            Err(WireError::WrongChannel(..))
        ));
        let delete = pickled(DELETE, &Value::str("n1"));
        assert!(matches!(
            decode(Channel::Data, &delete),
            Err(WireError::WrongChannel(..))
        ));
        assert!(
            matches!(decode(Channel::Command, &delete), Ok(Inbound::Delete(id)) if id.as_str() == "n1")
        );
    }

    #[test]
    fn malformed_commands_are_refused() {
        let cases = [
            (DELETE, Value::str("")),
            (DELETE, Value::str("x".repeat(256))),
            (DELETE, Value::None),
            (
                RIGHT,
                Value::dict([("uuid", Value::None), ("owner", Value::str("alice"))]),
            ),
            (
                RIGHT,
                Value::dict([
                    ("uuid", Value::list([Value::Int(1)])),
                    ("owner", Value::str("alice")),
                ]),
            ),
            (KICK, Value::dict([("nobody", Value::None)])),
            (SNAPSHOT, Value::dict([("STATE", Value::str("GET"))])),
            (
                SERVER_SNAPSHOT,
                Value::dict([("STATE", Value::str("SET")), ("DATA", Value::list([]))]),
            ),
            (UPDATE_USER_METADATA, Value::list([])),
            (99, Value::None),
        ];
        for (type_num, data) in cases {
            assert!(
                decode(Channel::Command, &pickled(type_num, &data)).is_err(),
                "{type_num} {data:?}"
            );
        }
    }

    #[test]
    fn strangers_are_not_read_at_length() {
        for type_num in [AUTH, REQUEST_SERVER_INFO] {
            let long = Value::list(vec![Value::None; STRANGERS_VALUES]);
            assert!(matches!(
                decode(Channel::Command, &pickled(type_num, &long)),
                Err(WireError::Pickle { .. })
            ));
        }
    }

    #[test]
    fn a_node_without_type_id_is_refused() {
        let mut node = node();
        node.data = pickle::encode(&Value::dict([("uuid", Value::str("n1"))])).into();
        assert!(decode(Channel::Data, &bytes(encode(&Outbound::Node(node)))).is_err());
    }
}
