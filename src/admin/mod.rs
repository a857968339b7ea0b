//! What an operator can do and see: every console command becomes one [`AdminCommand`], every answer is made from one
//! [`Status`] or [`AdminReply`].

pub mod command;
pub mod console;
pub mod control;
pub mod operator;
pub mod render;

use std::net::SocketAddr;

pub use operator::Operator;

/// A command and where its answer goes. Dropping the sender unanswered means that the server is ending.
pub type Request = (AdminCommand, tokio::sync::oneshot::Sender<AdminReply>);

impl AdminCommand {
    /// Whether the server ends with it.
    pub fn stops(&self) -> bool {
        matches!(
            self,
            AdminCommand::Exit { .. } | AdminCommand::Restart { .. }
        )
    }
}

/// A request of the operator to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminCommand {
    /// Who is there, and how the session and the server are.
    Status,
    Kick {
        user: String,
        reason: Option<String>,
    },
    /// Tell every client why, then stop the server.
    Exit {
        reason: String,
    },
    /// Stop the server, which another start is to follow: who can wait for that is not told to leave. `at` is the time that
    /// the chat line about it bears.
    Restart {
        at: std::time::SystemTime,
    },
    /// Everybody is told and leaves; the next initialiser brings a new scene.
    New,
    /// The next client decides which version the session belongs to.
    Unpin,
    Store(StoreCommand),
}

/// A request of the operator about what is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreCommand {
    /// Makes a backup now, also if nothing has changed.
    Save {
        note: Option<String>,
    },
    Backups,
    /// Puts a backup (its name, or `latest`) in the place of the running scene.
    Restore {
        name: String,
    },
    /// Writes the scene as a session file.
    Export {
        path: String,
    },
}

/// The answer to an [`AdminCommand`].
#[derive(Debug, Clone)]
pub enum AdminReply {
    Status(Box<Status>),
    /// It has been done; the text says what.
    Done(String),
    /// It could not be done; the text says why and what to do.
    Failed(String),
}

#[derive(Debug, Clone, Default)]
pub struct Status {
    pub scene: SceneState,
    /// Number of nodes in the graph.
    pub nodes: usize,
    /// Bytes of node data in the graph.
    pub bytes: usize,
    /// Version of the client that initialised the session.
    pub version: Option<String>,
    pub users: Vec<UserStatus>,
    /// Connections that have not logged in.
    pub strangers: usize,
    /// Seconds since the server started.
    pub uptime: u64,
    /// Updates (nodes and commits) received, and deliveries of them.
    pub updates: u64,
    pub deliveries: u64,
    /// Bytes waiting to be sent, over all clients.
    pub queued: usize,
    /// How what is kept on disk is doing: a line each. Empty where nothing is kept.
    pub storage: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SceneState {
    /// No scene: clients wait in the lobby for one that initialises.
    #[default]
    Empty,
    /// A client is sending its scene.
    Initialising,
    Running,
}

#[derive(Debug, Clone)]
pub struct UserStatus {
    pub name: String,
    pub admin: bool,
    /// Round trip of the heartbeat in ms, if known.
    pub ping: Option<u64>,
    /// `lobby`, `initialising`, `joining 23 % (40/599)`, `active`, `away`, `behind (7 nodes)` …
    pub state: String,
    pub address: SocketAddr,
    pub version: String,
    /// How its client speaks: four-socket, dealer or tcp.
    pub dialect: &'static str,
    pub locks: usize,
    /// Seconds since login.
    pub since: u64,
    /// Bytes waiting to be sent to this client.
    pub queued: usize,
}
