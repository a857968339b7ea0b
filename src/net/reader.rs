//! The receiving side of one connection.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::tcp::ReadHalf;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::frame::Framing;
use super::intake::{FrameLimits, Incoming};
use super::room::Held;
use super::shared::{Context, KIB};
use super::writer::Exchange;
use super::zmtp::{Command, MAX_IDENTITY, ZmtpError};
use super::{Control, Event, InFlight, Peer};
use crate::wire::four_socket::Assembler;
use crate::wire::{self, Channel, WireError};

/// No message of a client has more than a handful of chunks.
const MAX_CHUNKS: usize = 64;
/// Bytes of a message on the command channel before login: Auth and server info need a few hundred.
const STRANGER_MESSAGE: usize = 4 * KIB;
/// Bytes of a frame and of a message on the TTL channel, where one short word is all there is to say.
const TTL_FRAME: usize = 64;
const TTL_MESSAGE: usize = 256;
/// Messages above this size take their room in flight; smaller ones are bounded by the length of the event queue.
const SMALL: usize = 4 * KIB;
/// How long a large message that has come in part may stand still.
const STALLED: Duration = Duration::from_secs(60);
/// Messages above this size are decoded on a thread that may be held up: a hostile one of this size takes a tenth of a second.
const HEAVY: usize = 64 * KIB;

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub enum ReadEnd {
    #[error("closed by the peer")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer is to be told.
    #[error("{0}")]
    Zmtp(#[from] ZmtpError),
    #[error("refused by the peer: {0}")]
    Refused(String),
    #[error("nothing more came of a large message")]
    Stalled,
    #[error("the server stopped")]
    Unheard,
    /// A publisher's stream of headers and chunks is out of step, or names somebody else.
    #[error("{0}")]
    Publication(WireError),
    #[error("a message could not be decoded: {0}")]
    Decode(#[from] tokio::task::JoinError),
}

/// Waits until the peer is trusted; false if nobody is left to say so.
pub async fn trusted(control: &mut watch::Receiver<Control>) -> bool {
    control.wait_for(|control| control.trusted).await.is_ok()
}

/// Reads one connection and reports what comes.
#[derive(Debug)]
pub struct Reader<'a> {
    pub context: &'a Context,
    pub half: ReadHalf<'a>,
    pub framing: Framing,
    pub control: watch::Receiver<Control>,
    pub exchange: &'a Exchange,
    /// On the publish channel the identity that was named first, once that is trusted.
    pub publisher: Option<(Bytes, Assembler)>,
    /// Room of the message under way.
    pub held: Held,
}

impl Reader<'_> {
    /// Reads until the connection ends.
    pub async fn run(mut self) -> ReadEnd {
        match self.read().await {
            Ok(()) => ReadEnd::Closed,
            Err(end) => end,
        }
    }

    async fn read(&mut self) -> Result<(), ReadEnd> {
        let message = self.context.shared.settings.message;
        let trusted = FrameLimits {
            frame: message,
            message,
            chunks: MAX_CHUNKS,
        };
        let mut limits = match self.context.peer.channel {
            Channel::Command => FrameLimits {
                frame: STRANGER_MESSAGE,
                message: STRANGER_MESSAGE,
                chunks: MAX_CHUNKS,
            },
            Channel::Data => {
                self.trust().await?;
                trusted
            }
            Channel::Publish => {
                self.introduce().await?;
                trusted
            }
            Channel::Ttl => FrameLimits {
                frame: TTL_FRAME,
                message: TTL_MESSAGE,
                chunks: MAX_CHUNKS,
            },
        };
        loop {
            match self.framing.next(&limits) {
                Ok(Some(Incoming::Message(chunks))) => self.deliver(chunks).await?,
                Ok(Some(Incoming::Command(command))) => self.command(command).await?,
                Ok(None) => match self.read_more().await? {
                    0 => return Ok(()),
                    read => self.framing.intake().filled(read),
                },
                Err(
                    error @ (ZmtpError::MessageTooLarge { .. } | ZmtpError::FrameTooLarge { .. }),
                ) if limits != trusted && self.context.peer.channel == Channel::Command => {
                    // One who reconnects has sent it before the server could recognise him.
                    let patience = self.context.shared.settings.handshake;
                    match timeout(patience, self.trust()).await {
                        Ok(known) => known?,
                        Err(_) => return Err(error.into()),
                    }
                    limits = trusted;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads on once there is room for more of the message under way. Whoever takes room that others may wait for has to
    /// go on sending.
    async fn read_more(&mut self) -> Result<usize, ReadEnd> {
        let parts = self.publisher.as_ref().map_or(0, |(_, node)| node.held());
        let bytes = self.framing.intake().held().saturating_add(parts);
        let room = &self.context.shared.partial;
        let grown = self.held.grow(room, bytes).await;
        grown.map_err(|_| ReadEnd::Unheard)?;
        let mut space = self.framing.intake().space();
        let read = self.half.read_buf(&mut space);
        if self.held.is_any() {
            Ok(timeout(STALLED, read)
                .await
                .map_err(|_| ReadEnd::Stalled)??)
        } else {
            Ok(read.await?)
        }
    }

    /// Reads from a publisher until it has named an identity, and waits until that is known to be its own.
    async fn introduce(&mut self) -> Result<(), ReadEnd> {
        const NAME: FrameLimits = FrameLimits {
            frame: MAX_IDENTITY,
            message: MAX_IDENTITY,
            chunks: 1,
        };
        let identity = loop {
            match self.framing.next(&NAME) {
                Ok(Some(Incoming::Command(command))) => self.command(command).await?,
                Ok(Some(Incoming::Message(_))) => {
                    return Err(ZmtpError::Malformed("header of a node").into());
                }
                Ok(None) => match self
                    .half
                    .read_buf(&mut self.framing.intake().space())
                    .await?
                {
                    0 => return Err(ReadEnd::Closed),
                    read => self.framing.intake().filled(read),
                },
                Err(error) => match self.framing.first_chunk() {
                    Some(identity) => break identity,
                    None => return Err(error.into()),
                },
            }
        };
        self.report(Event::Named(identity.clone())).await?;
        self.trust().await?;
        self.publisher = Some((identity, Assembler::default()));
        Ok(())
    }

    /// Waits until the peer is trusted, without reading, but not longer than it is there.
    async fn trust(&mut self) -> Result<(), ReadEnd> {
        let half = &self.half;
        let gone = async {
            // Asking for both, since a peer whose bytes are left unread is always readable.
            while !half
                .ready(Interest::READABLE | Interest::WRITABLE)
                .await?
                .is_read_closed()
            {
                sleep(Duration::from_secs(1)).await;
            }
            io::Result::Ok(())
        };
        tokio::select! {
            known = trusted(&mut self.control) => {
                if !known {
                    // All links are gone, upon which the writer ends the connection.
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
            end = gone => match end {
                Ok(()) => Err(ReadEnd::Closed),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Decodes a message and reports it.
    async fn deliver(&mut self, mut chunks: Vec<Bytes>) -> Result<(), ReadEnd> {
        if let Some((identity, assembler)) = &mut self.publisher {
            let limit = self.context.shared.settings.message;
            match assembler
                .take(chunks, limit)
                .map_err(ReadEnd::Publication)?
            {
                Some(frames) if frames.first() == Some(identity) => chunks = frames,
                Some(_) => {
                    return Err(ReadEnd::Publication(WireError::Malformed(
                        "publication under another identity",
                    )));
                }
                None => return Ok(()),
            }
        }
        let Peer {
            channel, dialect, ..
        } = self.context.peer;
        let shared = &self.context.shared;
        let size: usize = chunks.iter().map(Bytes::len).sum();
        let room = if size > SMALL {
            let all = (shared.settings.in_flight / KIB).max(1);
            let share = u32::try_from(size.div_ceil(KIB).min(all)).unwrap_or(u32::MAX);
            let room = shared.room.clone().acquire_many_owned(share).await;
            Some(room.map_err(|_| ReadEnd::Unheard)?)
        } else {
            None
        };
        let decoded = if size > HEAVY {
            tokio::task::spawn_blocking(move || wire::decode(dialect, channel, &chunks)).await?
        } else {
            wire::decode(dialect, channel, &chunks)
        };
        self.report(match decoded {
            Ok(message) => Event::Message(message, InFlight(room)),
            Err(error) => Event::Refused(error),
        })
        .await
    }

    async fn command(&mut self, command: Command) -> Result<(), ReadEnd> {
        match command {
            Command::Ping(context) => self.exchange.answer(context),
            Command::Pong(context) => {
                if let Some(count) = self.exchange.answered(&context) {
                    self.report(Event::Arrived(count)).await?;
                }
            }
            Command::Error(reason) => return Err(ReadEnd::Refused(reason)),
            // A second READY changes nothing, and what is unknown is not for us.
            Command::Ready { .. } | Command::Other => {}
        }
        Ok(())
    }

    async fn report(&self, event: Event) -> Result<(), ReadEnd> {
        let events = &self.context.shared.events;
        events
            .send((self.context.id, event))
            .await
            .map_err(|_| ReadEnd::Unheard)
    }
}
