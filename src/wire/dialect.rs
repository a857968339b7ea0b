//! Which client version speaks how, and what the session has to know about that (docs/protocol.md, sections 1, 6 and 8).

use super::Channel;

/// How a client spells messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Command, subscriber, publisher and TTL on a socket each: `replication` 0.1.x up to 0.1.31.
    FourSocket,
    /// As [`Dialect::Dealer`], but a Right names one node: 0.7.
    OldDealer,
    /// Three ZeroMQ DEALER sockets: 0.8 up to 0.9.10. Also what a ZeroMQ peer is taken for that has not said more.
    Dealer,
    /// As [`Dialect::Dealer`], but the reason of a Disconnect comes in a dict: 0.9.11.
    NewDealer,
    /// Three plain TCP connections to one port: 0.9.12 and 0.10.
    Tcp,
}

/// How nodes and their changes look; clients of different formats cannot work in one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFormat {
    /// Whole nodes, their type outside of the data: four-socket.
    WholeNodes,
    /// Nodes and deltas of 0.7 and 0.8.
    OldDeltas,
    /// Nodes and deltas of 0.9.1 and later.
    Deltas,
}

/// What is served, for those who are not.
pub const SERVED: &str = "0.1.1-0.1.31, 0.7-0.10";

impl Dialect {
    /// The dialect of a client version, if that is served.
    pub fn of(version: &str) -> Option<Dialect> {
        match numbers(version)? {
            (0, 1, 0..=31) => Some(Dialect::FourSocket),
            (0, 7, _) => Some(Dialect::OldDealer),
            (0, 8, _) | (0, 9, 1..=10) => Some(Dialect::Dealer),
            (0, 9, 11) => Some(Dialect::NewDealer),
            (0, 9, 12..) | (0, 10, _) => Some(Dialect::Tcp),
            _ => None,
        }
    }

    /// As users are told.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::FourSocket => "four-socket",
            Dialect::OldDealer | Dialect::Dealer | Dialect::NewDealer => "dealer",
            Dialect::Tcp => "tcp",
        }
    }

    /// Whether both use the same sockets and framing, so that an Auth of the one may come in the other's spelling.
    pub fn is_like(self, other: Dialect) -> bool {
        self.name() == other.name()
    }

    /// The newest version that uses these sockets and this framing, as it calls itself.
    pub fn newest_version(self) -> &'static str {
        match self {
            Dialect::FourSocket => "0.1.31",
            Dialect::OldDealer | Dialect::Dealer | Dialect::NewDealer => "0.9.11",
            Dialect::Tcp => "0.10.2",
        }
    }

    /// How far the port of a channel is from the first one.
    pub fn port_offset(self, channel: Channel) -> u16 {
        match (self, channel) {
            (Dialect::Tcp, _) | (_, Channel::Command) => 0,
            (_, Channel::Data) => 1,
            (Dialect::FourSocket, Channel::Ttl) => 3,
            (_, Channel::Publish | Channel::Ttl) => 2,
        }
    }

    /// Whether a broken connection comes back by itself, under the same identity. Where not, its end is the client's leave.
    pub fn resumes(self) -> bool {
        self != Dialect::Tcp
    }

    /// Whether a client can wait for the next start of the server. One of four sockets that comes back may have carried out what was
    /// lost on the way here, and what another one sends cannot tell of that.
    pub fn waits_for_restart(self) -> bool {
        self.resumes() && !self.acts_first()
    }

    /// Whether a client carries out its own Delete and Right before it sends them, so that leaving out the echo refuses nothing.
    pub fn acts_first(self) -> bool {
        self == Dialect::FourSocket
    }

    /// Whether a client takes answers on another thread than it asks on, and ends if one comes before that thread has been told of
    /// the question.
    pub fn is_threaded(self) -> bool {
        self == Dialect::FourSocket
    }

    /// Whether a Right names one node only.
    pub fn rights_one_by_one(self) -> bool {
        matches!(self, Dialect::FourSocket | Dialect::OldDealer)
    }

    /// Whether clients take the news of one user; where not, they need the whole table each time.
    pub fn knows_metadata(self) -> bool {
        self != Dialect::FourSocket
    }

    /// Where the nodes of a scene travel that is joined or initialised.
    pub fn scene_channel(self) -> Channel {
        match self {
            Dialect::FourSocket => Channel::Data,
            _ => Channel::Command,
        }
    }
}

impl DataFormat {
    /// The data format of a version that is served.
    pub fn of(version: &str) -> Option<DataFormat> {
        Some(match (Dialect::of(version)?, numbers(version)?) {
            (Dialect::FourSocket, _) => DataFormat::WholeNodes,
            (_, (0, 7 | 8, _)) => DataFormat::OldDeltas,
            _ => DataFormat::Deltas,
        })
    }
}

/// Whether a client of this version takes the answer that a node is gone (0.9.6 and later).
pub fn knows_removed(version: &str) -> bool {
    numbers(version).is_some_and(|version| version >= (0, 9, 6))
}

/// `0.9.10` as three numbers.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u32>().ok()).flatten()
    });
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_speak_their_dialects() {
        for (dialect, versions) in [
            (
                Some(Dialect::FourSocket),
                &["0.1.1", "0.1.13", "0.1.31"][..],
            ),
            (Some(Dialect::OldDealer), &["0.7.0", "0.7.3"]),
            (
                Some(Dialect::Dealer),
                &["0.8.0", "0.8.3", "0.9.1", "0.9.10"],
            ),
            (Some(Dialect::NewDealer), &["0.9.11"]),
            (Some(Dialect::Tcp), &["0.9.12", "0.10.2", "0.10.3"]),
            (
                None,
                &[
                    "0.0.21", "0.1.32", "0.1.42", "0.2.4", "0.6.6", "0.9.0", "1.0.0", "0.9",
                    "0.9.10.1", "0.9.+1", "",
                ],
            ),
        ] {
            for version in versions {
                assert_eq!(Dialect::of(version), dialect, "{version}");
                assert_eq!(DataFormat::of(version).is_some(), dialect.is_some());
            }
        }
    }

    #[test]
    fn one_data_format_spans_dealer_and_tcp() {
        assert_eq!(DataFormat::of("0.9.1"), DataFormat::of("0.10.2"));
        assert_ne!(DataFormat::of("0.8.3"), DataFormat::of("0.9.1"));
        assert_ne!(DataFormat::of("0.1.13"), DataFormat::of("0.8.3"));
    }

    #[test]
    fn the_answer_that_a_node_is_gone() {
        assert!(!knows_removed("0.9.5") && !knows_removed("0.1.13") && !knows_removed("nonsense"));
        assert!(knows_removed("0.9.6") && knows_removed("0.10.2"));
    }
}
