//! Frames to messages, incrementally (docs/protocol.md, section 6). No sockets.

use bytes::{Buf, Bytes, BytesMut};

use super::intake::{FrameLimits, Incoming, Intake, LARGE, Progress};
use super::tcp::TcpDecoder;
use super::zmtp::{Command, FLAG_COMMAND, FLAG_LONG, FLAG_MORE, ZmtpError};

/// No command that we know is longer than a few hundred bytes.
const MAX_COMMAND: usize = 4 * 1024;

/// Turns the bytes of one connection into messages and commands. A whole message of small frames is copied out of the read buffer in
/// one piece, so that what is kept of it never holds on to the buffer.
#[derive(Debug, Default)]
pub struct Decoder {
    pub intake: Intake,
    /// Whether frames of the message follow the large one under way.
    more: bool,
    /// Where the chunks lie in the buffer; kept for its allocation only.
    spans: Vec<(usize, usize)>,
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
    /// The bytes, to be read into.
    pub fn intake(&mut self) -> &mut Intake {
        match self {
            Framing::Zmtp(decoder) => &mut decoder.intake,
            Framing::Tcp(decoder) => &mut decoder.intake,
        }
    }

    /// As [`Decoder::next`].
    pub fn next(&mut self, limits: &FrameLimits) -> Result<Option<Incoming>, ZmtpError> {
        match self {
            Framing::Zmtp(decoder) => decoder.next(limits),
            Framing::Tcp(decoder) => decoder.next(limits),
        }
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
            intake: Intake::new(buffer),
            ..Decoder::default()
        }
    }

    /// The next message or command in what has been read so far, `None` when more bytes are needed.
    ///
    /// After an error about a limit the same call with wider limits goes on where this one stopped.
    pub fn next(&mut self, limits: &FrameLimits) -> Result<Option<Incoming>, ZmtpError> {
        loop {
            match self.intake.go_on() {
                Progress::Lacking => return Ok(None),
                Progress::Complete if !self.more => return Ok(Some(self.intake.message())),
                Progress::Complete | Progress::Idle => {}
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
        self.intake.chunks.first().cloned().or_else(|| {
            let &(from, to) = self.spans.first()?;
            Some(Bytes::copy_from_slice(self.intake.buffer.get(from..to)?))
        })
    }

    /// Looks through the whole frames in the buffer up to the end of a message or a command.
    fn scan(&mut self, limits: &FrameLimits) -> Result<Scan, ZmtpError> {
        self.spans.clear();
        let mut at = 0_usize;
        let mut size = self.intake.size;
        loop {
            let rest = self.intake.buffer.get(at..).unwrap_or_default();
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
                self.intake.buffer.advance(header.size + header.length);
                return Ok(Scan::Found(Incoming::Command(command)));
            }
            let with_this = Intake::with(size, header.length, limits)?;
            if self.intake.chunks.len() + self.spans.len() >= limits.chunks {
                return Err(ZmtpError::TooManyChunks(limits.chunks));
            }
            if header.length > LARGE {
                self.take(at, with_this);
                self.intake.buffer.advance(header.size);
                self.more = header.more;
                self.intake.begin_large(header.length);
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
                return Ok(Scan::Found(self.intake.message()));
            }
        }
        if at > LARGE {
            self.take(at, size);
        }
        Ok(Scan::Incomplete)
    }

    /// Moves the scanned chunks, which end at `end` in the buffer, to the message under way, now of `size` bytes.
    fn take(&mut self, end: usize, size: usize) {
        self.intake.size = size;
        if end > 0 {
            let block = Bytes::copy_from_slice(self.intake.buffer.get(..end).unwrap_or_default());
            self.intake.buffer.advance(end);
            let chunks = self.spans.drain(..);
            self.intake
                .chunks
                .extend(chunks.map(|(from, to)| block.slice(from..to)));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;
    use crate::net::intake::READ_MAX;
    use crate::net::intake::tests::{self as intake, ROOMY};
    use crate::net::outbox::Outbox;

    fn decode(
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
        limits: &FrameLimits,
    ) -> Result<Vec<Incoming>, ZmtpError> {
        intake::decode(Framing::Zmtp(Decoder::default()), pieces, limits)
    }

    fn encode(messages: &[Vec<Vec<u8>>]) -> Vec<u8> {
        intake::encode(Outbox::default(), messages)
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
        decoder
            .intake
            .space()
            .put_slice(b"\x02\0\0\x01\0\0\0\0\0abc");
        assert_eq!(decoder.next(&ROOMY), Ok(None));
        assert!(decoder.intake.space().get_ref().capacity() <= 2 * READ_MAX);
    }

    #[test]
    fn memory_of_a_large_frame_grows_with_it() {
        let bytes = encode(&[vec![vec![7; 3_000_000]]]);
        let mut decoder = Decoder::default();
        let mut rest = &bytes[..];
        let mut fed = 0;
        let found = loop {
            let mut space = decoder.intake.space();
            let read = rest.len().min(space.remaining_mut()).min(10_000);
            space.put_slice(&rest[..read]);
            fed += read;
            rest = &rest[read..];
            if let Some(found) = decoder.next(&ROOMY).unwrap() {
                break found;
            }
            assert!(decoder.intake.space().get_ref().capacity() <= 2 * fed + 2 * READ_MAX);
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
