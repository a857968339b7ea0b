//! Bytes of one connection on their way to becoming messages: what both framings share. No sockets.

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::zmtp::{Command, ZmtpError};

/// A chunk above this many bytes is read into memory of its own.
pub const LARGE: usize = 32 * 1024;
/// Bytes asked of the socket at once, at first and at most: an idle connection costs little memory, a busy one few calls.
const READ_MIN: usize = 4 * 1024;
pub(super) const READ_MAX: usize = 64 * 1024;

/// What a peer may send. Bytes are those of chunks, without frame headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    pub frame: usize,
    pub message: usize,
    pub chunks: usize,
}

/// What a decoder finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    Command(Command),
    /// All chunks of a message.
    Message(Vec<Bytes>),
}

/// What has been read, and how much to read next.
#[derive(Debug, Default)]
pub struct Intake {
    /// Read but not parsed.
    pub(super) buffer: BytesMut,
    /// How much to ask of the socket next.
    appetite: usize,
    /// The chunks of the message under way, and their bytes including those of `large`.
    pub(super) chunks: Vec<Bytes>,
    pub(super) size: usize,
    large: Option<Large>,
}

/// A large chunk under way. Its memory grows with what has arrived, never with what was announced.
#[derive(Debug)]
struct Large {
    payload: BytesMut,
    length: usize,
}

/// How it stands with the large chunk.
pub(super) enum Progress {
    /// There is none.
    Idle,
    /// It is complete, and the last of the chunks.
    Complete,
    /// It lacks bytes that have not been read yet.
    Lacking,
}

impl Intake {
    /// One that starts with bytes already read.
    pub fn new(buffer: BytesMut) -> Self {
        Intake {
            buffer,
            ..Intake::default()
        }
    }

    /// Where the next bytes from the socket go; never asks for more than a large chunk still lacks.
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        if let Some(large) = &mut self.large {
            return large.space();
        }
        self.appetite = self.appetite.clamp(READ_MIN, READ_MAX);
        self.buffer.reserve(self.appetite);
        (&mut self.buffer).limit(self.appetite)
    }

    /// To be told how many bytes the socket gave, so that the next read fits.
    pub fn filled(&mut self, read: usize) {
        if read >= self.appetite {
            self.appetite = self.appetite.saturating_mul(2).min(READ_MAX);
        }
    }

    /// Bytes that have come of the message under way.
    pub fn held(&self) -> usize {
        let large = self.large.as_ref().map_or(0, |large| large.payload.len());
        self.chunks.iter().map(Bytes::len).sum::<usize>() + large
    }

    /// The size of the message of `size` bytes with one more chunk of `length`, if the limits allow it.
    pub(super) fn with(
        size: usize,
        length: usize,
        limits: &FrameLimits,
    ) -> Result<usize, ZmtpError> {
        if length > limits.frame {
            return Err(ZmtpError::FrameTooLarge {
                size: length,
                limit: limits.frame,
            });
        }
        let size = size.saturating_add(length);
        if size > limits.message {
            return Err(ZmtpError::MessageTooLarge {
                size,
                limit: limits.message,
            });
        }
        Ok(size)
    }

    /// Begins a chunk that is read into memory of its own.
    pub(super) fn begin_large(&mut self, length: usize) {
        self.large = Some(Large {
            payload: BytesMut::new(),
            length,
        });
    }

    /// Gives a large chunk what there is of it.
    pub(super) fn go_on(&mut self) -> Progress {
        let Some(mut large) = self.large.take() else {
            return Progress::Idle;
        };
        if large.fill(&mut self.buffer) {
            self.chunks.push(large.payload.freeze());
            Progress::Complete
        } else {
            self.large = Some(large);
            Progress::Lacking
        }
    }

    /// The message under way, which is complete.
    pub(super) fn message(&mut self) -> Incoming {
        self.size = 0;
        Incoming::Message(std::mem::take(&mut self.chunks))
    }
}

impl Large {
    /// Where the next bytes from the socket go.
    fn space(&mut self) -> Limit<&mut BytesMut> {
        let missing = self.length.saturating_sub(self.payload.len());
        if self.payload.capacity() == self.payload.len() {
            // Doubling keeps the copying linear, and the whole bounded by twice what has really come.
            self.payload
                .reserve(missing.min(self.payload.len().max(READ_MAX)));
        }
        (&mut self.payload).limit(missing)
    }

    /// Takes what it lacks from the front of `buffer`; whether it is complete then.
    fn fill(&mut self, buffer: &mut BytesMut) -> bool {
        let missing = self.length.saturating_sub(self.payload.len());
        let at_hand = missing.min(buffer.len());
        self.payload
            .extend_from_slice(buffer.get(..at_hand).unwrap_or_default());
        buffer.advance(at_hand);
        at_hand == missing
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::frame::Framing;
    use crate::net::outbox::{Outbox, tests::drain};
    use crate::wire::Chunk;

    pub const ROOMY: FrameLimits = FrameLimits {
        frame: usize::MAX,
        message: usize::MAX,
        chunks: 64,
    };

    /// Everything that comes out when `pieces` are read one by one, as a socket would give them.
    pub fn decode(
        mut framing: Framing,
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
        limits: &FrameLimits,
    ) -> Result<Vec<Incoming>, ZmtpError> {
        let mut found = Vec::new();
        for piece in pieces {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let mut space = framing.intake().space();
                let read = rest.len().min(space.remaining_mut());
                assert!(read > 0, "a decoder that needs more has space for it");
                space.put_slice(&rest[..read]);
                framing.intake().filled(read);
                rest = &rest[read..];
                while let Some(incoming) = framing.next(limits)? {
                    found.push(incoming);
                }
            }
        }
        Ok(found)
    }

    pub fn encode(mut outbox: Outbox, messages: &[Vec<Vec<u8>>]) -> Vec<u8> {
        for message in messages {
            let chunks: Vec<Chunk> = message.iter().cloned().map(Chunk::from).collect();
            outbox.push(&chunks, 1);
        }
        drain(&mut outbox, usize::MAX).0
    }
}
