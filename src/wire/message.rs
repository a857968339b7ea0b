//! The messages, the same for every dialect (docs/protocol.md, section 2).

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::delta::Delta;
use super::pickle::Value;
use super::{Chunk, Dialect, dealer, four_socket, tcp};

/// A node's uuid. Clients make it, so it is any text; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeId {
    fn from(text: &str) -> Self {
        NodeId(text.into())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's name, or `COMMON` where it says who owns a node; cheap to clone.
pub type UserName = Arc<str>;

/// The owner of a node that nobody has locked.
pub const COMMON: &str = "COMMON";

/// A node in full, type 2.
#[derive(Debug, Clone)]
pub struct Node {
    pub id: NodeId,
    pub owner: UserName,
    pub dependencies: Vec<NodeId>,
    /// The pickled dict; validated. Holds a `type_id`, except in the four-socket dialect.
    pub data: Bytes,
    /// The type's name: the `type_id`, or in the four-socket dialect what travels outside of the data.
    pub kind: Option<Arc<str>>,
}

/// A change of a node, type 1.
#[derive(Debug, Clone)]
pub struct Commit {
    pub id: NodeId,
    pub dependencies: Vec<NodeId>,
    /// As pickled by deepdiff; validated.
    pub raw: Bytes,
    /// The same, decoded.
    pub delta: Arc<Delta>,
}

/// What a client sends with Auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// How it was spelled; the version tells more.
    pub dialect: Dialect,
    /// Clients before 0.9 have one password for both purposes: it is in `admin_password` and in `server_password`.
    pub one_password: bool,
    pub wants_admin: bool,
    pub name: String,
    /// Empty where the client sent none (`None`, `''` or `"None"`).
    pub server_password: String,
    pub admin_password: String,
    pub version: String,
}

/// A message from a client.
#[derive(Debug, Clone)]
pub enum Inbound {
    ServerInfo,
    Auth(Login),
    /// ServerSnapshot INIT: the client wants to initialise the session with these nodes.
    InitStart(Vec<NodeId>),
    /// ServerSnapshot SET.
    InitNode(Node),
    /// ServerSnapshot END.
    InitEnd,
    /// Snapshot REQUEST_INIT.
    JoinStart,
    /// Snapshot GET.
    JoinGet(NodeId),
    /// Snapshot DONE.
    JoinDone,
    Delete(NodeId),
    Right {
        nodes: Vec<NodeId>,
        owner: UserName,
    },
    Kick {
        user: String,
    },
    /// UpdateUserMetadata: keys and values, keys are known to be str.
    Metadata(Vec<(Arc<str>, Value)>),
    Node(Node),
    Commit(Commit),
    /// Something that clients say and that means nothing here.
    Nothing,
    /// The heartbeat's first message.
    HeartbeatInit,
    /// The answer to a ping (anything but INIT counts as one).
    HeartbeatPong,
}

/// One line of UpdateClientsState.
#[derive(Debug, Clone)]
pub struct ClientState {
    pub name: UserName,
    pub admin: bool,
    /// Round trip of the heartbeat in ms, 999 = unknown.
    pub latency: i64,
    /// One of the client states of docs/protocol.md, section 2.
    pub status: i64,
    pub metadata: Vec<(Arc<str>, Value)>,
}

/// A message to a client.
#[derive(Debug, Clone)]
pub enum Outbound {
    ServerInfo {
        private: bool,
        version: String,
    },
    /// The answer to Auth: `LOBBY`, `RUNNING` or `FAILED: …`.
    Auth(String),
    /// ServerSnapshot ACCEPTED, REJECTED, DONE.
    InitAccepted,
    InitRejected,
    InitDone,
    /// Snapshot INIT; the client asks for the LAST one first.
    JoinCatalog(Vec<NodeId>),
    /// Snapshot SET.
    JoinNode(Node),
    /// Snapshot SET of a node that is gone.
    JoinRemoved,
    Delete(NodeId),
    Right {
        nodes: Vec<NodeId>,
        owner: UserName,
    },
    /// Ends the client's session; the text is shown to the user.
    Disconnect {
        reason: String,
    },
    ClientsState(Vec<ClientState>),
    Metadata {
        owner: UserName,
        data: Vec<(Arc<str>, Value)>,
    },
    Node(Node),
    Commit(Commit),
    /// The heartbeat's question.
    Ping,
}

/// An outgoing message, encoded once per spelling however many receivers it has.
#[derive(Debug)]
pub struct Outgoing {
    message: Outbound,
    dealer: OnceLock<Vec<Chunk>>,
    old_dealer: OnceLock<Vec<Chunk>>,
    tcp: OnceLock<Vec<Chunk>>,
    four_socket: OnceLock<Vec<Chunk>>,
}

impl Outgoing {
    pub fn new(message: Outbound) -> Arc<Self> {
        Arc::new(Outgoing {
            message,
            dealer: OnceLock::new(),
            old_dealer: OnceLock::new(),
            tcp: OnceLock::new(),
            four_socket: OnceLock::new(),
        })
    }

    pub fn message(&self) -> &Outbound {
        &self.message
    }

    /// The chunks in the given dialect.
    pub fn chunks(&self, dialect: Dialect) -> &[Chunk] {
        // Most messages are spelled alike by all but one dialect.
        match (dialect, &self.message) {
            (Dialect::FourSocket, message) => self
                .four_socket
                .get_or_init(|| four_socket::encode(message)),
            (Dialect::OldDealer, Outbound::Right { nodes, owner }) => self
                .old_dealer
                .get_or_init(|| dealer::encode_single_right(nodes, owner)),
            (Dialect::NewDealer | Dialect::Tcp, message @ Outbound::Disconnect { .. }) => {
                self.tcp.get_or_init(|| tcp::encode(message))
            }
            (_, message) => self.dealer.get_or_init(|| dealer::encode(message)),
        }
    }

    /// The same, as the transport's messages: one, or two for a node of the four-socket dialect.
    pub fn messages(&self, dialect: Dialect) -> impl Iterator<Item = &[Chunk]> {
        let chunks = self.chunks(dialect);
        let header = match (dialect, &self.message) {
            (Dialect::FourSocket, Outbound::Node(_) | Outbound::JoinNode(_)) => {
                four_socket::HEADER_FRAMES
            }
            _ => chunks.len(),
        };
        let (first, second) = chunks.split_at(header.min(chunks.len()));
        [first, second].into_iter().filter(|part| !part.is_empty())
    }

    /// Bytes that this message counts against a peer's budget: its chunks plus what a queued message costs besides.
    pub fn weight(&self, dialect: Dialect) -> usize {
        MESSAGE_OVERHEAD + self.chunks(dialect).iter().map(Chunk::len).sum::<usize>()
    }
}

/// Bytes of bookkeeping that one queued message is taken to cost.
pub const MESSAGE_OVERHEAD: usize = 256;
