//! The tcp dialect's handshake and framing (docs/protocol.md, 6.1), incrementally. No sockets, so that it can be fuzzed.

use bytes::{Buf, Bytes, BytesMut};

use super::intake::{FrameLimits, Incoming, Intake, LARGE, Progress};
use super::zmtp::ZmtpError;
use crate::wire::Channel;

/// First byte of every handshake: the highest one of a length that is never large.
pub const FIRST_BYTE: u8 = 0x00;
/// Longest identity in bytes.
const MAX_IDENTITY: usize = 256;
/// Bytes of a count or a length.
const NUMBER: usize = 4;

/// What a peer says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub identity: Bytes,
    pub channel: Channel,
}

impl Hello {
    /// Takes the handshake off the front of `bytes`: `None` while it is not complete.
    pub fn take(bytes: &mut BytesMut) -> Result<Option<Hello>, ZmtpError> {
        let Some((length, rest)) = number(bytes) else {
            return Ok(None);
        };
        if length == 0 || length > MAX_IDENTITY {
            return Err(ZmtpError::Malformed("identity"));
        }
        let Some((identity, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let channel = match rest.first() {
            None => return Ok(None),
            Some(b'C') => Channel::Command,
            Some(b'D') => Channel::Data,
            Some(b'T') => Channel::Ttl,
            Some(_) => return Err(ZmtpError::Malformed("role")),
        };
        let identity = Bytes::copy_from_slice(identity);
        bytes.advance(NUMBER + length + 1);
        Ok(Some(Hello { identity, channel }))
    }
}

/// Turns the bytes of one connection into messages. Empty messages, which are legal and mean nothing, are left out.
#[derive(Debug, Default)]
pub struct TcpDecoder {
    pub intake: Intake,
    /// Chunks of the message under way that have not come yet; 0 between two messages.
    missing: usize,
}

impl TcpDecoder {
    /// A decoder that starts with bytes already read.
    pub fn new(buffer: BytesMut) -> Self {
        TcpDecoder {
            intake: Intake::new(buffer),
            missing: 0,
        }
    }

    /// The next message in what has been read so far, `None` when more bytes are needed.
    ///
    /// After an error about a limit of bytes the same call with wider limits goes on where this one stopped.
    pub fn next(&mut self, limits: &FrameLimits) -> Result<Option<Incoming>, ZmtpError> {
        let intake = &mut self.intake;
        loop {
            match intake.go_on() {
                Progress::Lacking => return Ok(None),
                Progress::Complete => {}
                Progress::Idle => {
                    let Some((length, rest)) = number(&intake.buffer) else {
                        return Ok(None);
                    };
                    if self.missing == 0 {
                        if length > limits.chunks {
                            return Err(ZmtpError::TooManyChunks(limits.chunks));
                        }
                        self.missing = length;
                        intake.buffer.advance(NUMBER);
                        continue;
                    }
                    let size = Intake::with(intake.size, length, limits)?;
                    if length > LARGE {
                        intake.size = size;
                        intake.buffer.advance(NUMBER);
                        intake.begin_large(length);
                        continue;
                    }
                    let Some(payload) = rest.get(..length) else {
                        return Ok(None);
                    };
                    intake.chunks.push(Bytes::copy_from_slice(payload));
                    intake.size = size;
                    intake.buffer.advance(NUMBER + length);
                }
            }
            self.missing = self.missing.saturating_sub(1);
            if self.missing == 0 {
                return Ok(Some(intake.message()));
            }
        }
    }
}

/// The number at the start of `bytes`, and what follows it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<NUMBER>()?;
    let number = usize::try_from(u32::from_be_bytes(*number)).unwrap_or(usize::MAX);
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::frame::Framing;
    use crate::net::intake::READ_MAX;
    use crate::net::intake::tests::{self as intake, ROOMY};
    use crate::net::outbox::Outbox;

    /// Everything that comes out, as the bytes of each chunk of each message.
    fn decode(
        pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
        limits: &FrameLimits,
    ) -> Result<Vec<Vec<Vec<u8>>>, ZmtpError> {
        let found = intake::decode(Framing::Tcp(TcpDecoder::default()), pieces, limits)?;
        let chunks = |incoming| match incoming {
            Incoming::Message(chunks) => chunks.iter().map(|chunk| chunk.to_vec()).collect(),
            Incoming::Command(_) => panic!("there are no commands here"),
        };
        Ok(found.into_iter().map(chunks).collect())
    }

    fn encode(messages: &[Vec<Vec<u8>>]) -> Vec<u8> {
        intake::encode(Outbox::tcp(), messages)
    }

    #[test]
    fn the_handshake_byte_by_byte() {
        let whole = b"\0\0\0\x03abcDrest";
        for len in 0..whole.len() {
            let mut bytes = BytesMut::from(&whole[..len]);
            let found = Hello::take(&mut bytes).unwrap();
            assert_eq!(found.is_some(), len >= 8, "{len}");
        }
        let mut bytes = BytesMut::from(&whole[..]);
        let hello = Hello::take(&mut bytes).unwrap().unwrap();
        assert_eq!(
            (&hello.identity[..], hello.channel),
            (&b"abc"[..], Channel::Data)
        );
        assert_eq!(&bytes[..], b"rest");
    }

    #[test]
    fn impossible_handshakes_are_told_early() {
        for bytes in [
            &b"\0\0\0\0C"[..],
            b"\0\0\x01\x01",
            b"\0\xff\xff\xff",
            b"\0\0\0\x01aX",
        ] {
            assert!(
                Hello::take(&mut BytesMut::from(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn frames_are_as_upstream_writes_them() {
        let message = vec![b"ab".to_vec(), vec![]];
        let bytes = encode(std::slice::from_ref(&message));
        assert_eq!(bytes, b"\0\0\0\x02\0\0\0\x02ab\0\0\0\0");
        let with_empty = [&b"\0\0\0\0"[..], &bytes, b"\0\0\0\0"].concat();
        assert_eq!(decode([with_empty], &ROOMY), Ok(vec![message]));
    }

    #[test]
    fn limits_hold_before_anything_is_kept() {
        let limits = FrameLimits {
            frame: 100,
            message: 150,
            chunks: 3,
        };
        let refused = |bytes: &[u8]| decode([bytes], &limits).unwrap_err();
        assert_eq!(refused(b"\xff\xff\xff\xff"), ZmtpError::TooManyChunks(3));
        assert!(matches!(
            refused(b"\0\0\0\x01\xff\xff\xff\xff"),
            ZmtpError::FrameTooLarge { .. }
        ));
        let two = [&b"\0\0\0\x02\0\0\0\x64"[..], &[1; 100], b"\0\0\0\x33"].concat();
        assert!(matches!(
            refused(&two),
            ZmtpError::MessageTooLarge { size: 151, .. }
        ));
    }

    #[test]
    fn a_message_too_large_is_read_once_the_limits_are_wider() {
        let message = vec![vec![7; 5000]];
        let bytes = encode(std::slice::from_ref(&message));
        let mut decoder = TcpDecoder::new(BytesMut::from(&bytes[..]));
        let narrow = FrameLimits {
            frame: 100,
            ..ROOMY
        };
        assert!(decoder.next(&narrow).is_err());
        assert!(
            matches!(decoder.next(&ROOMY), Ok(Some(Incoming::Message(chunks))) if chunks[0].len() == 5000)
        );
    }

    #[test]
    fn an_announced_length_costs_nothing() {
        let mut decoder = TcpDecoder::new(BytesMut::from(&b"\0\0\0\x01\x7f\xff\xff\xff"[..]));
        assert_eq!(decoder.next(&ROOMY), Ok(None));
        assert!(decoder.intake.space().get_mut().capacity() <= 2 * READ_MAX);
    }

    proptest! {
        #[test]
        fn messages_come_out_however_they_are_split(
            messages in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![
                        4 => prop::collection::vec(any::<u8>(), 0..300),
                        1 => (LARGE - 2..LARGE * 3).prop_map(|len| vec![5; len]),
                    ],
                    1..5,
                ),
                0..6,
            ),
            step in prop_oneof![1_usize..20, 1000_usize..100_000],
        ) {
            let bytes = encode(&messages);
            prop_assert_eq!(decode(bytes.chunks(step), &ROOMY), Ok(messages));
        }

        #[test]
        fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let limits = FrameLimits { frame: 64, message: 128, chunks: 8 };
            let _ = decode(bytes.chunks(3), &limits);
            let _ = Hello::take(&mut BytesMut::from(&bytes[..]));
        }
    }
}
