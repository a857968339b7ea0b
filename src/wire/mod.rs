//! Bytes to typed messages and back: no sockets, no session knowledge.
//!
//! * [`pickle`] reads and writes the data-only subset of Python's pickle that clients use.
//! * [`delta`] folds deepdiff deltas into a node's data.
//! * [`message`] holds the messages themselves, the same for every dialect.
//! * [`guest`] is the other side of it: what somebody without a login says, for the tools.
//! * [`dialect`] says which client version speaks which dialect; [`dealer`], [`four_socket`] and [`tcp`] spell the messages.

pub mod chunk;
pub mod dealer;
pub mod delta;
pub mod dialect;
pub mod four_socket;
pub mod guest;
pub mod message;
pub mod pickle;
pub mod tcp;

use bytes::Bytes;

pub use chunk::Chunk;
pub use dialect::{DataFormat, Dialect};
pub use message::{Inbound, Outbound};

/// Which of a client's connections a message travels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Login, joining, rights, deletes, presence.
    Command,
    /// Nodes and commits.
    Data,
    /// Nodes from a four-socket client, whose data channel goes one way.
    Publish,
    /// Heartbeat.
    Ttl,
}

/// Why a message from a peer was refused. Its text is fit for a log line and for the peer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("{what}: {source}")]
    Pickle {
        what: &'static str,
        source: pickle::PickleError,
    },
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("{0} does not belong on the {1:?} channel")]
    WrongChannel(&'static str, Channel),
    #[error("unknown message type {0}")]
    UnknownType(i64),
}

/// Decodes one message, given as its chunks without routing identity, and validates every pickle in it.
///
/// `dialect` is what the handshake has told. ZeroMQ peers on the command channel show with each message whether they speak
/// four-socket. The cost is one linear pass over the bytes, so this belongs in the task of the connection it came from.
pub fn decode(dialect: Dialect, channel: Channel, chunks: &[Bytes]) -> Result<Inbound, WireError> {
    match channel {
        Channel::Ttl => match chunks {
            [frame] if &frame[..] == b"INIT" => Ok(Inbound::HeartbeatInit),
            [_] => Ok(Inbound::HeartbeatPong),
            _ => Err(WireError::Malformed("heartbeat")),
        },
        Channel::Publish => four_socket::decode_publication(chunks),
        Channel::Command if dialect != Dialect::Tcp && four_socket::is_command(chunks) => {
            four_socket::decode_command(chunks)
        }
        Channel::Command | Channel::Data => dealer::decode(dialect, channel, chunks),
    }
}
