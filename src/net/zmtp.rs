//! ZMTP 3.0/3.1 as far as a ROUTER or PULL with the NULL mechanism needs it (docs/protocol.md, section 6): the greeting and the
//! commands, as bytes in and out. No sockets, so that every parser here can be fuzzed.

use bytes::{BufMut, Bytes, BytesMut};

/// Flags of a frame.
pub const FLAG_MORE: u8 = 1;
pub const FLAG_LONG: u8 = 2;
pub const FLAG_COMMAND: u8 = 4;

/// First byte of every greeting since ZMTP 2.
pub const SIGNATURE: u8 = 0xFF;
/// Length of a ZMTP 3 greeting in bytes.
pub const GREETING_LEN: usize = 64;
/// Longest identity in bytes; its length travels in one byte elsewhere in ZeroMQ.
pub const MAX_IDENTITY: usize = 255;
/// What libzmq reads from a connection at once, in bytes.
pub const FILLER: usize = 8192;
/// Longest context of a PING in bytes (RFC 37).
pub const MAX_CONTEXT: usize = 16;
/// Longest reason in an ERROR in bytes.
pub const MAX_REASON: usize = 255;

/// What a peer's bytes did wrong. The text is fit for a log line and for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZmtpError {
    #[error("not a ZMTP greeting")]
    NotZmtp,
    #[error("ZMTP {0} is too old, at least 3.0 is needed")]
    OldVersion(u8),
    #[error("only the NULL mechanism is served")]
    Mechanism,
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("unknown frame flags {0:#04x}")]
    Flags(u8),
    #[error("message of {size} bytes or more, the limit is {limit}")]
    MessageTooLarge { size: usize, limit: usize },
    #[error("frame of {size} bytes, the limit is {limit}")]
    FrameTooLarge { size: usize, limit: usize },
    #[error("message of more than {0} chunks")]
    TooManyChunks(usize),
    #[error("command of {size} bytes, the limit is {limit}")]
    CommandTooLarge { size: usize, limit: usize },
}

/// The peer's greeting, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Minor version; the major one is 3 or later, which speaks 3 to us.
    pub minor: u8,
}

impl Greeting {
    /// Parses the greeting at the start of `bytes`: `None` while it may still become one. A peer that cannot be served
    /// is told from its first telling byte on.
    pub fn parse(bytes: &[u8]) -> Result<Option<Greeting>, ZmtpError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        if first != SIGNATURE {
            return Err(ZmtpError::NotZmtp);
        }
        // An unversioned (ZMTP 1) peer sends a long length here, whose flags byte has the lowest bit clear.
        match bytes.get(9) {
            Some(flags) if flags & 1 == 0 => return Err(ZmtpError::OldVersion(1)),
            _ => {}
        }
        match bytes.get(10) {
            Some(&revision) if revision < 3 => {
                return Err(ZmtpError::OldVersion(revision.saturating_add(1).min(2)));
            }
            _ => {}
        }
        let Some(mechanism) = bytes.get(12..32) else {
            return Ok(None);
        };
        if mechanism != NULL_MECHANISM {
            return Err(ZmtpError::Mechanism);
        }
        let Some(greeting) = bytes.get(..GREETING_LEN) else {
            return Ok(None);
        };
        // A later major version falls back to ours, with our minor.
        let minor = match greeting {
            [_, _, _, _, _, _, _, _, _, _, 3, minor, ..] => *minor,
            _ => OUR_MINOR,
        };
        Ok(Some(Greeting { minor }))
    }

    /// Our own greeting.
    pub fn write(out: &mut BytesMut) {
        out.put_u8(SIGNATURE);
        out.put_bytes(0, 8);
        out.put_u8(0x7F);
        out.put_u8(3);
        out.put_u8(OUR_MINOR);
        out.put_slice(NULL_MECHANISM);
        out.put_bytes(0, 32);
    }
}

const OUR_MINOR: u8 = 1;
const NULL_MECHANISM: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A command from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Ready {
        socket_type: Bytes,
        /// Empty where the peer announced none.
        identity: Bytes,
    },
    /// The peer refuses us.
    Error(String),
    /// To be answered with a PONG of this context.
    Ping(Bytes),
    Pong(Bytes),
    /// SUBSCRIBE, CANCEL and whatever else there may be: ignored.
    Other,
}

impl Command {
    /// Parses the body of a command frame.
    pub fn parse(body: &Bytes) -> Result<Command, ZmtpError> {
        let (name, data) = split_short(body).ok_or(ZmtpError::Malformed("command"))?;
        let data = body.slice_ref(data);
        match name {
            b"READY" => parse_ready(&data).ok_or(ZmtpError::Malformed("READY")),
            b"ERROR" => {
                let (reason, _) = split_short(&data).unwrap_or_default();
                Ok(Command::Error(
                    String::from_utf8_lossy(reason).escape_debug().to_string(),
                ))
            }
            b"PING" => match data.get(2..) {
                Some(context) if context.len() <= MAX_CONTEXT => {
                    Ok(Command::Ping(data.slice_ref(context)))
                }
                _ => Err(ZmtpError::Malformed("PING")),
            },
            b"PONG" => Ok(Command::Pong(data)),
            _ => Ok(Command::Other),
        }
    }
}

/// Splits off bytes that are preceded by their length in one byte.
fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(len))
}

fn parse_ready(data: &Bytes) -> Option<Command> {
    let mut socket_type = Bytes::new();
    let mut identity = Bytes::new();
    let mut rest: &[u8] = data;
    while !rest.is_empty() {
        let (name, after_name) = split_short(rest)?;
        let (len, after_len) = after_name.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (value, after_value) = after_len.split_at_checked(len)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = data.slice_ref(value);
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = data.slice_ref(value);
        }
        rest = after_value;
    }
    Some(Command::Ready {
        socket_type,
        identity,
    })
}

/// What we are to a DEALER, and to a PUSH.
pub const ROUTER: &[u8] = b"\0\0\0\x06ROUTER";
pub const PULL: &[u8] = b"\0\0\0\x04PULL";

/// Appends our READY, with the socket type and no identity.
pub fn write_ready(out: &mut BytesMut, socket_type: &[u8]) {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY\x0bSocket-Type");
    body.put_slice(socket_type);
    body.put_slice(b"\x08Identity\0\0\0\0");
    write_command(out, &body);
}

/// Appends an ERROR; the reason is cut to what one may hold.
pub fn write_error(out: &mut BytesMut, reason: &str) {
    let cut = (0..=MAX_REASON.min(reason.len())).rev();
    let reason = cut
        .filter_map(|end| reason.get(..end))
        .next()
        .unwrap_or_default();
    let mut body = BytesMut::new();
    body.put_slice(b"\x05ERROR");
    body.put_u8(u8::try_from(reason.len()).unwrap_or(u8::MAX));
    body.put_slice(reason.as_bytes());
    write_command(out, &body);
}

/// Appends a PING with time to live 0: it asks for an answer and threatens nothing.
pub fn write_ping(out: &mut BytesMut, context: &[u8]) {
    let mut body = BytesMut::new();
    body.put_slice(b"\x04PING\0\0");
    body.put_slice(context);
    write_command(out, &body);
}

pub fn write_pong(out: &mut BytesMut, context: &[u8]) {
    let mut body = BytesMut::new();
    body.put_slice(b"\x04PONG");
    body.put_slice(context);
    write_command(out, &body);
}

/// Appends a command that no peer knows, so that everybody passes it over: [`FILLER`] bytes that mean nothing.
pub fn write_filler(out: &mut BytesMut) {
    let mut body = [0; FILLER];
    body[..7].copy_from_slice(b"\x06FILLER");
    write_command(out, &body);
}

fn write_command(out: &mut BytesMut, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(len) => {
            out.put_u8(FLAG_COMMAND);
            out.put_u8(len);
        }
        Err(_) => {
            out.put_u8(FLAG_COMMAND | FLAG_LONG);
            out.put_u64(body.len() as u64);
        }
    }
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        Greeting::write(&mut bytes);
        assert_eq!(bytes.len(), GREETING_LEN);
        change(&mut bytes);
        bytes.to_vec()
    }

    /// What is found as the greeting comes in byte by byte, and after how many bytes.
    fn feed(bytes: &[u8]) -> (usize, Result<Option<Greeting>, ZmtpError>) {
        for len in 0..=bytes.len() {
            match Greeting::parse(&bytes[..len]) {
                Ok(None) => {}
                found => return (len, found),
            }
        }
        (bytes.len(), Ok(None))
    }

    #[test]
    fn a_greeting_is_found_when_it_is_whole() {
        assert_eq!(
            feed(&greeting(|_| {})),
            (64, Ok(Some(Greeting { minor: 1 })))
        );
        assert_eq!(
            feed(&greeting(|g| g[11] = 0)),
            (64, Ok(Some(Greeting { minor: 0 })))
        );
        // libzmq leaves anything in the padding.
        assert_eq!(
            feed(&greeting(|g| g[8] = 17)),
            (64, Ok(Some(Greeting { minor: 1 })))
        );
    }

    #[test]
    fn strangers_are_told_from_their_first_telling_byte() {
        assert_eq!(feed(b"GET / HTTP/1.1"), (1, Err(ZmtpError::NotZmtp)));
        assert_eq!(
            feed(&greeting(|g| g[9] = 0)),
            (10, Err(ZmtpError::OldVersion(1)))
        );
        assert_eq!(
            feed(&greeting(|g| g[10] = 1)),
            (11, Err(ZmtpError::OldVersion(2)))
        );
        assert_eq!(
            feed(&greeting(|g| g[12..17].copy_from_slice(b"CURVE"))),
            (32, Err(ZmtpError::Mechanism))
        );
        assert_eq!(
            feed(&greeting(|g| g[16] = b'X')),
            (32, Err(ZmtpError::Mechanism))
        );
    }

    fn parse(body: &[u8]) -> Result<Command, ZmtpError> {
        Command::parse(&Bytes::copy_from_slice(body))
    }

    #[test]
    fn ready_is_read_whatever_the_order_and_case_of_its_properties() {
        let found = parse(
            b"\x05READY\x08identity\0\0\0\x03abc\x01X\0\0\0\0\x0bSOCKET-TYPE\0\0\0\x06DEALER",
        );
        let expected = Command::Ready {
            socket_type: Bytes::from_static(b"DEALER"),
            identity: Bytes::from_static(b"abc"),
        };
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn what_is_cut_short_is_malformed() {
        let ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
        assert!(parse(ready).is_ok());
        // Up to the name alone it is a READY without properties.
        for len in 7..ready.len() {
            assert_eq!(parse(&ready[..len]), Err(ZmtpError::Malformed("READY")));
        }
        assert_eq!(parse(b""), Err(ZmtpError::Malformed("command")));
        assert_eq!(parse(b"\x05PING"), Err(ZmtpError::Malformed("command")));
        assert_eq!(parse(b"\x04PING\0"), Err(ZmtpError::Malformed("PING")));
        assert!(parse(&[&b"\x04PING\0\0"[..], &[7; 16]].concat()).is_ok());
        assert!(parse(&[&b"\x04PING\0\0"[..], &[7; 17]].concat()).is_err());
        let endless = b"\x05READY\x01X\xff\xff\xff\xff";
        assert_eq!(parse(endless), Err(ZmtpError::Malformed("READY")));
    }

    #[test]
    fn unknown_commands_are_nothing_to_worry_about() {
        assert_eq!(parse(b"\x09SUBSCRIBEtopic"), Ok(Command::Other));
        assert_eq!(parse(b"\x00"), Ok(Command::Other));
    }

    #[test]
    fn an_error_is_cut_at_a_character() {
        let mut out = BytesMut::new();
        write_error(&mut out, &"ä".repeat(200));
        let Ok(Command::Error(reason)) = parse(&out[9..]) else {
            panic!("no error");
        };
        assert_eq!(reason, "ä".repeat(127));
        let mut out = BytesMut::new();
        write_error(&mut out, "no");
        assert_eq!(&out[..], b"\x04\x09\x05ERROR\x02no");
    }
}
