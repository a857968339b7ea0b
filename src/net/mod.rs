//! Listeners and connections: one task per connection, in which reading and writing go on independently.
//!
//! This is the contract between sockets and the rest; see docs/architecture.md. [`bind`] takes the ports, [`Bound::serve`]
//! accepts on them and reports [`Event`]s, [`Link`] sends.

mod connection;
pub mod frame;
mod handshake;
pub mod intake;
mod limits;
mod listen;
mod outbox;
mod reader;
mod refused;
mod room;
mod server;
mod shared;
pub mod tcp;
mod writer;
pub mod zmtp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use crate::wire::message::{Inbound, Outgoing};
use crate::wire::{Channel, Dialect, WireError};

pub use limits::network;
pub use listen::{BindError, Bound, bind};
pub use server::Server;

/// What the network side allows itself and its peers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of the largest message read from a logged-in peer.
    pub message: usize,
    /// Bytes of all messages that have been read but not yet handled, and again of those that have been read in part (the
    /// first MiB of each is free).
    pub in_flight: usize,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once that are not trusted yet: in total, and from one address (one /64 network for IPv6).
    pub strangers: usize,
    pub strangers_per_address: usize,
    /// How long a handshake may take, and how long a message too large for a stranger waits for `Link::trust`.
    pub handshake: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            message: 512 * 1024 * 1024,
            in_flight: 256 * 1024 * 1024,
            connections: 4096,
            strangers: 512,
            strangers_per_address: 64,
            handshake: Duration::from_secs(5),
        }
    }
}

/// Names one connection; never used twice in the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Who is at the other end of a connection, as far as the handshake told.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The routing identity; what ties a client's connections together. Made up for publishers.
    pub identity: Bytes,
    pub address: SocketAddr,
    pub channel: Channel,
    pub dialect: Dialect,
}

/// What a connection reports. The order of the events of one connection is the order in which they happened;
/// `Opened` is the first and `Closed` the last.
#[derive(Debug)]
pub enum Event {
    Opened(Peer, Link),
    /// A message, and its share of [`Settings::in_flight`]: drop that when the message has been handled.
    Message(Inbound, InFlight),
    /// A message that could not be accepted. The connection reads on; whoever owns it decides what happens.
    Refused(WireError),
    /// Queued messages of this weight have been handed to the kernel. Reported at once for larger amounts, else within
    /// 20 ms, so that small messages do not cost an event each.
    Written(usize),
    /// Some bytes of a message still under way have been handed to the kernel (at most once a second).
    Progress,
    /// The peer's ZeroMQ library holds everything up to and including the n-th message sent on this connection
    /// (it answered a ZMTP PING sent after it). Never comes from peers of ZMTP 3.0 nor on the TTL channel.
    Arrived(u64),
    /// A publisher has named this identity as its own and is not read on until it is trusted. Only on the publish channel,
    /// where the peer's own identity is one that was made up for it.
    Named(Bytes),
    /// Why the connection ended.
    Closed(String),
}

/// Keeps the memory of a message that is being handled within bounds: while too many bytes of such are held,
/// connections stop reading. Small messages are bounded by the length of the event queue alone.
#[derive(Debug)]
pub struct InFlight(
    #[expect(dead_code, reason = "held to be dropped")] Option<OwnedSemaphorePermit>,
);

/// The sending end of a connection. Sending never blocks: the owner bounds what is outstanding by
/// counting `Outgoing::weight` against `Event::Written`. When all clones are dropped, the connection is closed.
#[derive(Debug, Clone)]
pub struct Link {
    /// How messages are spelled from here on.
    dialect: Dialect,
    queue: mpsc::UnboundedSender<(Dialect, Arc<Outgoing>)>,
    control: watch::Sender<Control>,
}

/// What the owner of a connection has said about it.
#[derive(Debug, Clone, Default)]
struct Control {
    trusted: bool,
    /// To be closed, with the text of the ERROR if there is to be one.
    closing: Option<Option<String>>,
}

impl Link {
    /// Queues a message.
    pub fn send(&self, message: Arc<Outgoing>) {
        // A connection that has ended reports that by `Closed`.
        let _ = self.queue.send((self.dialect, message));
    }

    /// Spells what is sent from now on in this way; the handshake does not tell everything.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// From now on larger messages are read from this peer. Until then a connection on the command channel reads
    /// messages up to a small limit, one on the data channel reads nothing at all, one on the publish channel the first frame, one
    /// on the TTL channel tiny ones (there it stays at that). A trusted connection does not count as a stranger any more, on whichever channel it is.
    pub fn trust(&self) {
        self.control
            .send_if_modified(|control| !std::mem::replace(&mut control.trusted, true));
    }

    /// Writes what is queued (for a bounded time), then ends the connection. The first call counts.
    /// With `refuse` a ZMTP ERROR with this text (up to 255 bytes) goes out last, and for a minute every connection of
    /// this identity is refused in its handshake, upon which libzmq gives up; after a plain close it reconnects at once.
    pub fn close(&self, refuse: Option<String>) {
        self.control.send_if_modified(|control| {
            let first = control.closing.is_none();
            if first {
                control.closing = Some(refuse);
            }
            first
        });
    }
}
