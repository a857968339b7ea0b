//! Frames to messages, incrementally (docs/protocol.md, section 6). No sockets.

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::tcp::TcpDecoder;
use super::zmtp::{Command, ZmtpError};

pub const FLAG_MORE: u8 = 1;
pub const FLAG_LONG: u8 = 2;
pub const FLAG_COMMAND: u8 = 4;

/// A frame above this many bytes is read into memory of its own; below, a whole message is copied out of the read
/// buffer in one piece, so that what is kept of it never holds on to the buffer.
pub const LARGE: usize = 32 * 1024;
/// Bytes asked of the socket at once, at first and at most: an idle connection costs little memory, a busy one few calls.
pub const READ_MIN: usize = 4 * 1024;
pub const READ_MAX: usize = 64 * 1024;
/// No command that we know is longer than a few hundred bytes.
const MAX_COMMAND: usize = 4 * 1024;

/// What a peer may send. Bytes are those of chunks, without frame headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    pub frame: usize,
    pub message: usize,
    pub chunks: usize,
}

/// What [`Decoder::next`] finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    Command(Command),
    /// All chunks of a message.
    Message(Vec<Bytes>),
}

/// Turns the bytes of one connection into messages and commands.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Read but not parsed.
    buffer: BytesMut,
    /// How much to ask of the socket next.
    appetite: usize,
    /// The chunks of the message under way, and their bytes including those of `large`.
    chunks: Vec<Bytes>,
    size: usize,
    large: Option<Large>,
    /// Where the chunks lie in the buffer; kept for its allocation only.
    spans: Vec<(usize, usize)>,
}

/// A large frame under way. Its memory grows with what has arrived, never with what was announced.
#[derive(Debug)]
pub struct Large {
    payload: BytesMut,
    length: usize,
    more: bool,
}

impl Large {
    pub fn new(length: usize, more: bool) -> Self {
        Large {
            payload: BytesMut::new(),
            length,
            more,
        }
    }

    /// Where the next bytes from the socket go.
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        let missing = self.length.saturating_sub(self.payload.len());
        if self.payload.capacity() == self.payload.len() {
            // Doubling keeps the copying linear, and the whole bounded by twice what has really come.
            self.payload
                .reserve(missing.min(self.payload.len().max(READ_MAX)));
        }
        (&mut self.payload).limit(missing)
    }

    /// Takes what it lacks from the front of `buffer`; whether it is complete then.
    pub fn fill(&mut self, buffer: &mut BytesMut) -> bool {
        let missing = self.length.saturating_sub(self.payload.len());
        let at_hand = missing.min(buffer.len());
        self.payload
            .extend_from_slice(buffer.get(..at_hand).unwrap_or_default());
        buffer.advance(at_hand);
        at_hand == missing
    }

    /// Bytes that have come.
    pub fn held(&self) -> usize {
        self.payload.len()
    }

    pub fn into_bytes(self) -> Bytes {
        self.payload.freeze()
    }
}

struct Header {
    /// Bytes of the header itself.
    size: usize,
    length: usize,
    more: bool,
    command: bool,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Option<Header>, ZmtpError> {
        let Some((&flags, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let more = flags & FLAG_MORE != 0;
        let command = flags & FLAG_COMMAND != 0;
        if flags & !(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) != 0 || (more && command) {
            return Err(ZmtpError::Flags(flags));
        }
        let (size, length) = if flags & FLAG_LONG == 0 {
            match rest.first() {
                Some(&length) => (2, usize::from(length)),
                None => return Ok(None),
            }
        } else {
            match rest.first_chunk::<8>() {
                Some(length) => {
                    let length = usize::try_from(i64::from_be_bytes(*length))
                        .map_err(|_| ZmtpError::Malformed("frame length"))?;
                    (9, length)
                }
                None => return Ok(None),
            }
        };
        Ok(Some(Header {
            size,
            length,
            more,
            command,
        }))
    }
}

/// How the bytes of one connection become messages.
#[derive(Debug)]
pub enum Framing {
    Zmtp(Decoder),
    Tcp(TcpDecoder),
}

impl Framing {
    /// As [`Decoder::space`].
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        match self {
            Framing::Zmtp(decoder) => decoder.space(),
            Framing::Tcp(decoder) => decoder.space(),
        }
    }

    /// As [`Decoder::filled`].
    pub fn filled(&mut self, read: usize) {
        match self {
            Framing::Zmtp(decoder) => decoder.filled(read),
            Framing::Tcp(decoder) => decoder.filled(read),
        }
    }

    /// As [`Decoder::next`].
    pub fn next(&mut self, limits: &FrameLimits) -> Result<Option<Incoming>, ZmtpError> {
        match self {
            Framing::Zmtp(decoder) => decoder.next(limits),
            Framing::Tcp(decoder) => decoder.next(limits),
        }
    }

    /// Bytes that have come of the message under way.
    pub fn held(&self) -> usize {
        let (chunks, large) = match self {
            Framing::Zmtp(decoder) => (&decoder.chunks, &decoder.large),
            Framing::Tcp(decoder) => decoder.under_way(),
        };
        chunks.iter().map(Bytes::len).sum::<usize>() + large.as_ref().map_or(0, Large::held)
    }

    /// As [`Decoder::first_chunk`].
    pub fn first_chunk(&self) -> Option<Bytes> {
        match self {
            Framing::Zmtp(decoder) => decoder.first_chunk(),
            Framing::Tcp(_) => None,
        }
    }
}

/// Where a look at the buffer ended.
enum Scan {
    Found(Incoming),
    /// A large frame has been started.
    Large,
    Incomplete,
}

impl Decoder {
    /// A decoder that starts with bytes already read.
    pub fn new(buffer: BytesMut) -> Self {
        Decoder {
            buffer,
            ..Decoder::default()
        }
    }

    /// Where the next bytes from the socket go; never asks for more than a large frame still lacks.
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

    /// The next message or command in what has been read so far, `None` when more bytes are needed.
    ///
    /// After an error about a limit the same call with wider limits goes on where this one stopped.
    pub fn next(&mut self, limits: &FrameLimits) -> Result<Option<Incoming>, ZmtpError> {
        loop {
            if let Some(large) = &mut self.large
                && !large.fill(&mut self.buffer)
            {
                return Ok(None);
            }
            if let Some(large) = self.large.take() {
                let more = large.more;
                self.chunks.push(large.into_bytes());
                if !more {
                    return Ok(Some(self.message()));
                }
            }
            match self.scan(limits)? {
                Scan::Found(incoming) => return Ok(Some(incoming)),
                Scan::Large => {}
                Scan::Incomplete => return Ok(None),
            }
        }
    }

    /// The first chunk of the message at which [`Decoder::next`] stopped for a limit, if it has come.
    pub fn first_chunk(&self) -> Option<Bytes> {
        self.chunks.first().cloned().or_else(|| {
            let &(from, to) = self.spans.first()?;
            Some(Bytes::copy_from_slice(self.buffer.get(from..to)?))
        })
    }

    /// Looks through the whole frames in the buffer up to the end of a message or a command.
    fn scan(&mut self, limits: &FrameLimits) -> Result<Scan, ZmtpError> {
        self.spans.clear();
        let mut at = 0_usize;
        let mut size = self.size;
        loop {
            let rest = self.buffer.get(at..).unwrap_or_default();
            let Some(header) = Header::parse(rest)? else {
                break;
            };
            let payload = rest.get(header.size..).unwrap_or_default();
            if header.command {
                if header.length > MAX_COMMAND {
                    return Err(ZmtpError::CommandTooLarge {
                        size: header.length,
                        limit: MAX_COMMAND,
                    });
                }
                let Some(body) = payload.get(..header.length) else {
                    break;
                };
                // libzmq may put its heartbeat between the frames of a message.
                let command = Command::parse(&Bytes::copy_from_slice(body))?;
                self.take(at, size);
                self.buffer.advance(header.size + header.length);
                return Ok(Scan::Found(Incoming::Command(command)));
            }
            if header.length > limits.frame {
                return Err(ZmtpError::FrameTooLarge {
                    size: header.length,
                    limit: limits.frame,
                });
            }
            let with_this = size.saturating_add(header.length);
            if with_this > limits.message {
                return Err(ZmtpError::MessageTooLarge {
                    size: with_this,
                    limit: limits.message,
                });
            }
            if self.chunks.len() + self.spans.len() >= limits.chunks {
                return Err(ZmtpError::TooManyChunks(limits.chunks));
            }
            if header.length > LARGE {
                self.take(at, with_this);
                self.buffer.advance(header.size);
                self.large = Some(Large::new(header.length, header.more));
                return Ok(Scan::Large);
            }
            if payload.len() < header.length {
                break;
            }
            let start = at + header.size;
            at = start + header.length;
            size = with_this;
            self.spans.push((start, at));
            if !header.more {
                self.take(at, size);
                return Ok(Scan::Found(self.message()));
            }
        }
        if at > LARGE {
            self.take(at, size);
        }
        Ok(Scan::Incomplete)
    }

    /// Moves the scanned chunks, which end at `end` in the buffer, to the message under way, now of `size` bytes.
    fn take(&mut self, end: usize, size: usize) {
        self.size = size;
        if end > 0 {
            let block = Bytes::copy_from_slice(self.buffer.get(..end).unwrap_or_default());
            self.buffer.advance(end);
            let chunks = self.spans.drain(..);
            self.chunks
                .extend(chunks.map(|(from, to)| block.slice(from..to)));
        }
    }

    fn message(&mut self) -> Incoming {
        self.size = 0;
        Incoming::Message(std::mem::take(&mut self.chunks))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::outbox::Outbox;
    use crate::wire::Chunk;

    const ROOMY: FrameLimits = FrameLimits {
        frame: usize::MAX,
        message: usize::MAX,
        chunks: 64,
    };

    /// Everything that comes out when `pieces` are read one by one, as a socket would give them.
    fn decode(
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
        limits: &FrameLimits,
    ) -> Result<Vec<Incoming>, ZmtpError> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in pieces {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let mut space = decoder.space();
                let read = rest.len().min(space.remaining_mut());
                assert!(read > 0, "a decoder that needs more has space for it");
                space.put_slice(&rest[..read]);
                decoder.filled(read);
                rest = &rest[read..];
                while let Some(incoming) = decoder.next(limits)? {
                    found.push(incoming);
                }
            }
        }
        Ok(found)
    }

    fn encode(messages: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        for message in messages {
            let chunks: Vec<Chunk> = message.iter().cloned().map(Chunk::from).collect();
            outbox.push(&chunks, 1);
        }
        crate::net::outbox::tests::drain(&mut outbox, usize::MAX).0
    }

    fn message(chunks: &[&[u8]]) -> Incoming {
        Incoming::Message(chunks.iter().map(|c| Bytes::copy_from_slice(c)).collect())
    }

    #[test]
    fn short_and_long_frames_byte_by_byte() {
        let bytes = [
            &b"\x01\x03abc\x00\x00"[..],
            b"\x03\0\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\0\x01!",
        ]
        .concat();
        let found = decode(bytes.chunks(1), &ROOMY).unwrap();
        assert_eq!(found, [message(&[b"abc", b""]), message(&[b"hi", b"!"])]);
    }

    #[test]
    fn a_command_between_two_frames_of_a_message() {
        let bytes = b"\x01\x01a\x04\x08\x04PONGxyz\x00\x01b";
        let pong = Incoming::Command(Command::Pong(Bytes::from_static(b"xyz")));
        for size in [1, 5, bytes.len()] {
            let found = decode(bytes.chunks(size), &ROOMY).unwrap();
            assert_eq!(found, [pong_clone(&pong), message(&[b"a", b"b"])]);
        }
    }

    fn pong_clone(incoming: &Incoming) -> Incoming {
        match incoming {
            Incoming::Command(command) => Incoming::Command(command.clone()),
            Incoming::Message(chunks) => Incoming::Message(chunks.clone()),
        }
    }

    #[test]
    fn flags_and_lengths_that_cannot_be() {
        let error = |bytes: &[u8]| decode([bytes], &ROOMY).unwrap_err();
        assert_eq!(error(b"\x08\x00"), ZmtpError::Flags(8));
        assert_eq!(error(b"\x05\x00"), ZmtpError::Flags(5));
        assert_eq!(
            error(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff"),
            ZmtpError::Malformed("frame length")
        );
        assert!(matches!(
            error(b"\x06\0\0\0\0\x10\0\0\0"),
            ZmtpError::CommandTooLarge { .. }
        ));
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut decoder = Decoder::default();
        // 2^40 bytes announced, 3 sent.
        decoder.space().put_slice(b"\x02\0\0\x01\0\0\0\0\0abc");
        assert_eq!(decoder.next(&ROOMY), Ok(None));
        assert!(decoder.space().get_ref().capacity() <= 2 * READ_MAX);
    }

    #[test]
    fn memory_of_a_large_frame_grows_with_it() {
        let bytes = encode(&[vec![vec![7; 3_000_000]]]);
        let mut decoder = Decoder::default();
        let mut rest = &bytes[..];
        let mut fed = 0;
        let found = loop {
            let mut space = decoder.space();
            let read = rest.len().min(space.remaining_mut()).min(10_000);
            space.put_slice(&rest[..read]);
            fed += read;
            rest = &rest[read..];
            if let Some(found) = decoder.next(&ROOMY).unwrap() {
                break found;
            }
            assert!(decoder.space().get_ref().capacity() <= 2 * fed + 2 * READ_MAX);
        };
        assert_eq!(found, message(&[&[7; 3_000_000]]));
    }

    #[test]
    fn a_large_frame_cut_anywhere() {
        let bytes = encode(&[vec![vec![5; LARGE + 1], vec![6; 3]]]);
        let end = bytes.len();
        for cut in [1, 8, 9, 10, LARGE, end - 6, end - 5, end - 1] {
            let found = decode([&bytes[..cut], &bytes[cut..]], &ROOMY).unwrap();
            assert_eq!(found, [message(&[&[5; LARGE + 1], &[6; 3]])]);
        }
    }

    #[test]
    fn limits_hold_and_can_be_widened_at_the_same_place() {
        let bytes = encode(&[vec![vec![1; 60], vec![2; 41]], vec![vec![3; 10]]]);
        let narrow = FrameLimits {
            frame: 60,
            message: 100,
            chunks: 2,
        };
        let mut decoder = Decoder::new(BytesMut::from(&bytes[..]));
        let too_large = ZmtpError::MessageTooLarge {
            size: 101,
            limit: 100,
        };
        assert_eq!(decoder.next(&narrow), Err(too_large.clone()));
        assert_eq!(decoder.next(&narrow), Err(too_large));
        let found = decoder.next(&ROOMY).unwrap().unwrap();
        assert_eq!(found, message(&[&[1; 60], &[2; 41]]));
        let found = decoder.next(&narrow).unwrap().unwrap();
        assert_eq!(found, message(&[&[3; 10]]));

        let frame = encode(&[vec![vec![0; 61]]]);
        assert!(matches!(
            decode([frame], &narrow),
            Err(ZmtpError::FrameTooLarge {
                size: 61,
                limit: 60
            })
        ));
        let chunks = encode(&[vec![vec![0; 1]; 3]]);
        assert_eq!(decode([chunks], &narrow), Err(ZmtpError::TooManyChunks(2)));
    }

    #[test]
    fn what_is_kept_of_a_small_message_does_not_hold_the_buffer() {
        let bytes = encode(&[vec![vec![1; 100]], vec![vec![2; 100]]]);
        let mut decoder = Decoder::new(BytesMut::from(&bytes[..]));
        let Ok(Some(Incoming::Message(first))) = decoder.next(&ROOMY) else {
            panic!("no message");
        };
        drop(decoder);
        assert!(first[0].is_unique(), "a block of its own");
    }

    fn messages() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let len = prop_oneof![
            8 => 0..300_usize,
            3 => 300..5_000_usize,
            2 => 30_000..70_000_usize,
            1 => 70_000..400_000_usize,
        ];
        let chunk = (len, any::<u8>()).prop_map(|(len, seed)| {
            (0..len)
                .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
                .collect()
        });
        prop::collection::vec(prop::collection::vec(chunk, 1..6), 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_message_survives_every_split(
            messages in messages(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let bytes = encode(&messages);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            let found = decode(pieces, &ROOMY).unwrap();
            let expected: Vec<Incoming> = messages
                .iter()
                .map(|chunks| Incoming::Message(chunks.iter().cloned().map(Bytes::from).collect()))
                .collect();
            prop_assert!(found == expected);
        }

        #[test]
        fn garbage_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000), size in 1..50_usize) {
            let whole = decode([&bytes], &ROOMY);
            let split = decode(bytes.chunks(size), &ROOMY);
            // Errors may come before messages that one read would have found first.
            prop_assert_eq!(whole.is_ok(), split.is_ok());
        }
    }
}
