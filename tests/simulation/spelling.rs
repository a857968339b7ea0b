//! The client's side of the dealer dialect (docs/protocol.md, section 2), so that whole runs go through real chunks.

use std::sync::Arc;

use blender_multiuser::wire::dealer;
use blender_multiuser::wire::delta::Delta;
use blender_multiuser::wire::message::{ClientState, Commit, Inbound, Node, NodeId, Outbound};
use blender_multiuser::wire::pickle::{self, Value};
use blender_multiuser::wire::{Channel, Chunk, Dialect, decode};
use bytes::Bytes;

fn pickled(value: &Value) -> Bytes {
    pickle::encode(value).into()
}

fn command(number: i64, data: Value) -> Vec<Bytes> {
    vec![
        pickled(&Value::Int(number)),
        Bytes::from_static(b"me"),
        pickled(&data),
    ]
}

fn state(number: i64, state: &str, more: Vec<(&str, Value)>) -> Vec<Bytes> {
    let mut data = vec![("STATE", Value::str(state))];
    data.extend(more);
    command(number, Value::dict(data))
}

fn ids(nodes: &[NodeId]) -> Value {
    Value::list(nodes.iter().map(|id| Value::str(id.as_str())))
}

fn node_chunks(node: &Node) -> Vec<Bytes> {
    dealer::encode_node(node).to_vec()
}

fn spell(dialect: Dialect, message: &Inbound) -> Vec<Bytes> {
    match message {
        Inbound::ServerInfo => command(14, Value::str("RQ_INFO")),
        Inbound::Auth(login) => {
            let kind = if login.wants_admin { "ADMIN" } else { "CLIENT" };
            let mut data = vec![
                ("AUTH_TYPE", Value::str(kind)),
                ("AUTH_ID", Value::str(&login.name)),
                ("VERSION", Value::str(&login.version)),
            ];
            if login.one_password {
                data.push(("PWD", Value::str(&login.admin_password)));
            } else {
                data.push(("S_PWD", Value::str(&login.server_password)));
                data.push(("A_PWD", Value::str(&login.admin_password)));
            }
            command(9, Value::dict(data))
        }
        Inbound::InitStart(nodes) => state(
            8,
            "INIT",
            vec![
                ("SIZE", Value::Int(nodes.len() as i64)),
                ("NODES", ids(nodes)),
            ],
        ),
        Inbound::InitNode(node) => state(
            8,
            "SET",
            vec![(
                "DATA",
                Value::list(node_chunks(node).into_iter().map(Value::bytes)),
            )],
        ),
        Inbound::InitEnd => state(8, "END", vec![]),
        Inbound::JoinStart => state(7, "REQUEST_INIT", vec![]),
        Inbound::JoinGet(id) => state(7, "GET", vec![("ID", Value::str(id.as_str()))]),
        Inbound::JoinDone => state(7, "DONE", vec![]),
        Inbound::Delete(id) => command(4, Value::str(id.as_str())),
        Inbound::Right { nodes, owner } => {
            let nodes = match &nodes[..] {
                [one] if dialect.rights_one_by_one() => Value::str(one.as_str()),
                several => ids(several),
            };
            command(
                5,
                Value::dict([("uuid", nodes), ("owner", Value::str(owner))]),
            )
        }
        Inbound::Kick { user } => command(11, Value::dict([("user", Value::str(user))])),
        Inbound::Metadata(data) => command(
            13,
            Value::dict(data.iter().map(|(key, value)| (key.clone(), value.clone()))),
        ),
        Inbound::Node(node) => node_chunks(node),
        Inbound::Commit(commit) => vec![
            pickled(&Value::Int(1)),
            commit.id.as_str().to_owned().into(),
            pickled(&ids(&commit.dependencies)),
            commit.raw.clone(),
        ],
        Inbound::Nothing => command(6, Value::None),
        Inbound::HeartbeatInit => vec![Bytes::from_static(b"INIT")],
        Inbound::HeartbeatPong => vec![Bytes::from_static(b"PONG")],
    }
}

/// The classes of the four-socket dialect, by the number that the others have instead.
const CLASSES: [(i64, &str); 10] = [
    (4, "RepDeleteCommand"),
    (5, "RepRightCommand"),
    (6, "RepConfigCommand"),
    (7, "RepSnapshotCommand"),
    (8, "RepServerSnapshotCommand"),
    (9, "RepAuthCommand"),
    (10, "RepDisconnectCommand"),
    (11, "RepKickCommand"),
    (12, "RepUpdateClientsState"),
    (13, "RepUpdateUserMetadata"),
];

fn spell_four_socket(message: &Inbound) -> Vec<Bytes> {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let parts = |node: &Node| {
        [
            text(node.id.as_str()),
            text(&node.owner),
            text(node.kind.as_deref().unwrap()),
            pickled(&ids(&node.dependencies)),
        ]
    };
    let chunks = match message {
        Inbound::Node(node) => {
            let [id, owner, kind, dependencies] = parts(node);
            let count = pickled(&Value::Int(1));
            let data = node.data.clone();
            return vec![text("me"), id, owner, kind, count, dependencies, data];
        }
        Inbound::InitNode(node) => {
            let names = ["uuid", "owner", "type", "dependencies"];
            let mut data: Vec<(&str, Value)> = names
                .into_iter()
                .zip(parts(node).map(Value::bytes))
                .collect();
            data.push(("data", Value::bytes(node.data.clone())));
            state(8, "SET", vec![("DATA", Value::dict(data))])
        }
        Inbound::Nothing => command(8, Value::str("SNAPSHOT_END")),
        _ => spell(Dialect::FourSocket, message),
    };
    let [number, owner, data] = &chunks[..] else {
        return chunks;
    };
    let number = pickle::decode(number).unwrap().as_i64().unwrap();
    let (_, class) = CLASSES.iter().find(|(known, _)| *known == number).unwrap();
    vec![owner.clone(), text(class), data.clone()]
}

/// What the server makes of the message once it has been chunks.
pub fn through_the_wire(dialect: Dialect, channel: Channel, message: Inbound) -> Inbound {
    let chunks = match dialect {
        Dialect::FourSocket => spell_four_socket(&message),
        _ => spell(dialect, &message),
    };
    // A ZeroMQ peer is taken for a dealer until it has said more.
    let known = match (dialect, channel) {
        (Dialect::FourSocket, Channel::Publish | Channel::Ttl) | (Dialect::Tcp, _) => dialect,
        _ => Dialect::Dealer,
    };
    decode(known, channel, &chunks).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn node_ids(value: &Value) -> Vec<NodeId> {
    value
        .as_list()
        .unwrap()
        .iter()
        .map(|id| NodeId::from(id.as_str().unwrap()))
        .collect()
}

fn pairs(value: &Value) -> Vec<(Arc<str>, Value)> {
    value
        .as_dict()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.as_str().unwrap().into(), value.clone()))
        .collect()
}

/// What a client makes of the server's chunks. Whether a node answers a GET does not show in the four-socket dialect.
pub fn read(dialect: Dialect, chunks: &[Chunk]) -> Outbound {
    let mut chunks: Vec<Bytes> = chunks.iter().map(Chunk::to_bytes).collect();
    if let (Dialect::FourSocket, [_, id, owner, kind, _, dependencies, data]) =
        (dialect, &chunks[..])
    {
        let field = |bytes: &Bytes| std::str::from_utf8(bytes).unwrap().to_owned();
        return Outbound::Node(Node {
            id: field(id).as_str().into(),
            owner: field(owner).into(),
            dependencies: node_ids(&pickle::decode(dependencies).unwrap()),
            data: data.clone(),
            kind: Some(field(kind).into()),
        });
    }
    if let (Dialect::FourSocket, [owner, class, data]) = (dialect, &chunks[..]) {
        let known = CLASSES.iter().find(|(_, name)| name.as_bytes() == class);
        let number = pickled(&Value::Int(known.unwrap().0));
        chunks = vec![number, owner.clone(), data.clone()];
    }
    if chunks.len() == 1 {
        return Outbound::Ping;
    }
    let value = |at: usize| pickle::decode(&chunks[at]).unwrap();
    let field = |at: usize| std::str::from_utf8(&chunks[at]).unwrap();
    match value(0).as_i64().unwrap() {
        1 => Outbound::Commit(Commit {
            id: field(1).into(),
            dependencies: node_ids(&value(2)),
            raw: chunks[3].clone(),
            delta: Arc::new(Delta::decode(&chunks[3]).unwrap()),
        }),
        2 => Outbound::Node(dealer::decode_node(&chunks).unwrap()),
        4 => Outbound::Delete(text(&value(2)).as_str().into()),
        5 => {
            let data = value(2);
            Outbound::Right {
                nodes: match data.get("uuid").unwrap() {
                    one if dialect.rights_one_by_one() => {
                        let one = one.as_str().unwrap();
                        one.split_terminator(' ').map(NodeId::from).collect()
                    }
                    several => node_ids(several),
                },
                owner: data.get("owner").unwrap().as_str().unwrap().into(),
            }
        }
        7 => {
            let data = value(2);
            match data.get("STATE").unwrap().as_str().unwrap() {
                "INIT" => Outbound::JoinCatalog(node_ids(data.get("CATALOG").unwrap())),
                "SET" => match data.get("DATA").unwrap() {
                    Value::Bytes(bytes) => {
                        assert_eq!(&bytes[..], b"removed");
                        Outbound::JoinRemoved
                    }
                    list => {
                        let inner: Vec<Bytes> = list
                            .as_list()
                            .unwrap()
                            .iter()
                            .map(|chunk| chunk.as_bytes().unwrap().clone())
                            .collect();
                        Outbound::JoinNode(dealer::decode_node(&inner).unwrap())
                    }
                },
                other => panic!("Snapshot {other}"),
            }
        }
        8 => match value(2).get("STATE").unwrap().as_str().unwrap() {
            "ACCEPTED" => Outbound::InitAccepted,
            "REJECTED" => Outbound::InitRejected,
            "DONE" => Outbound::InitDone,
            other => panic!("ServerSnapshot {other}"),
        },
        9 => Outbound::Auth(text(&value(2))),
        10 => Outbound::Disconnect {
            reason: match dialect {
                Dialect::OldDealer | Dialect::Dealer => text(&value(2)),
                _ => text(value(2).get("reason").unwrap()),
            },
        },
        12 => Outbound::ClientsState(
            value(2)
                .as_dict()
                .unwrap()
                .iter()
                .map(|(name, entry)| {
                    assert_eq!(
                        Some(name.as_str().unwrap()),
                        entry.get("id").unwrap().as_str()
                    );
                    ClientState {
                        name: name.as_str().unwrap().into(),
                        admin: entry.get("admin").unwrap().as_bool().unwrap(),
                        latency: entry.get("latency").unwrap().as_i64().unwrap(),
                        status: entry.get("status").unwrap().as_i64().unwrap(),
                        metadata: pairs(entry.get("metadata").unwrap()),
                    }
                })
                .collect(),
        ),
        13 => Outbound::Metadata {
            owner: field(1).into(),
            data: pairs(&value(2)),
        },
        other => panic!("message type {other}"),
    }
}
