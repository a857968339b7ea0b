//! From the first byte to both READYs (docs/protocol.md, sections 1 and 6).

use std::io;
use std::net::IpAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ConnId;
use super::frame::{Decoder, Framing};
use super::intake::{FrameLimits, Incoming};
use super::refused::Refused;
use super::shared::Port;
use super::tcp::{self, Hello, TcpDecoder};
use super::zmtp::{self, Command, Greeting, ZmtpError};
use crate::wire::{Channel, Dialect};

/// No honest peer says more than this many bytes up to its READY.
const MAX_HELLO: usize = 512;

/// A peer that has introduced itself.
#[derive(Debug)]
pub struct Greeted {
    pub identity: Bytes,
    pub channel: Channel,
    /// As far as the handshake shows it.
    pub dialect: Dialect,
    /// The peer answers PING: its ZMTP is 3.1 or later.
    pub knows_ping: bool,
    /// Holds what the peer has sent after its handshake.
    pub framing: Framing,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("closed by the peer during the handshake")]
    Closed,
    /// Not ZMTP 3: no answer would be understood.
    #[error("{0}")]
    Foreign(&'static str),
    /// The peer is to be told by an ERROR.
    #[error("{0}")]
    Refused(String),
}

impl From<ZmtpError> for HandshakeError {
    fn from(error: ZmtpError) -> Self {
        match error {
            ZmtpError::NotZmtp => HandshakeError::Foreign("not a ZMTP greeting"),
            ZmtpError::OldVersion(_) => HandshakeError::Foreign("ZMTP older than 3.0"),
            error => HandshakeError::Refused(error.to_string()),
        }
    }
}

/// Greets a peer: ZMTP or, on the command port, the tcp dialect. Leaves the answer to a refused one to the caller.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    port: Port,
    id: ConnId,
    address: IpAddr,
    refused: &Refused,
) -> Result<Greeted, HandshakeError> {
    let mut input = BytesMut::with_capacity(MAX_HELLO);
    let mut total = read(stream, &mut input, 0).await?;
    if port == Port::Command && input.first() == Some(&tcp::FIRST_BYTE) {
        return greet_tcp(stream, input, total).await;
    }
    sniff(&input)?;

    let mut output = BytesMut::new();
    Greeting::write(&mut output);
    // READY at once, for every round trip counts, except where it depends on what the peer is: libzmq heeds an ERROR
    // only in place of a READY, and only after its own.
    let early = match port {
        Port::Command | Port::Data | Port::FourSocketTtl => !refused.at(address),
        Port::Ttl => false,
    };
    if early {
        zmtp::write_ready(&mut output, zmtp::ROUTER);
    }
    stream.write_all(&output).await?;

    let greeting = loop {
        if let Some(greeting) = Greeting::parse(&input)? {
            break greeting;
        }
        total = read(stream, &mut input, total).await?;
    };
    input.advance(zmtp::GREETING_LEN);

    let limits = FrameLimits {
        frame: MAX_HELLO,
        message: MAX_HELLO,
        chunks: 1,
    };
    let mut decoder = Decoder::new(input);
    let (socket_type, identity) = loop {
        match decoder.next(&limits)? {
            Some(Incoming::Command(Command::Ready {
                socket_type,
                identity,
            })) => break (socket_type, identity),
            Some(Incoming::Command(Command::Error(reason))) => {
                return Err(HandshakeError::Refused(format!("peer refused: {reason}")));
            }
            Some(Incoming::Command(_)) => {}
            Some(Incoming::Message(_)) => {
                return Err(HandshakeError::Refused("message before READY".to_owned()));
            }
            None => total = read(stream, &mut decoder.intake.space(), total).await?,
        }
    };

    let (channel, dialect, ours) = match (&*socket_type, port) {
        (b"DEALER", Port::Command) => (Channel::Command, Dialect::Dealer, zmtp::ROUTER),
        (b"DEALER", Port::Data) => (Channel::Data, Dialect::Dealer, zmtp::ROUTER),
        (b"DEALER", Port::Ttl) => (Channel::Ttl, Dialect::Dealer, zmtp::ROUTER),
        (b"DEALER", Port::FourSocketTtl) => (Channel::Ttl, Dialect::FourSocket, zmtp::ROUTER),
        (b"PUSH", Port::Ttl) => (Channel::Publish, Dialect::FourSocket, zmtp::PULL),
        (other, _) => {
            return Err(HandshakeError::Refused(format!(
                "no {} sockets are served on this port",
                other
                    .escape_ascii()
                    .take(32)
                    .map(char::from)
                    .collect::<String>()
            )));
        }
    };
    // Publishers name themselves in every message.
    let identity = if channel == Channel::Publish {
        Bytes::new()
    } else {
        identity
    };
    if identity.len() > zmtp::MAX_IDENTITY {
        return Err(HandshakeError::Refused(format!(
            "identity of more than {} bytes",
            zmtp::MAX_IDENTITY
        )));
    }
    if let Some(reason) = refused.reason(&identity) {
        return Err(HandshakeError::Refused(reason));
    }
    let identity = if identity.is_empty() {
        generated(id)
    } else if is_generated(&identity) {
        return Err(HandshakeError::Refused(
            "identities of five bytes that begin with 0x00 are reserved".to_owned(),
        ));
    } else {
        identity
    };
    if !early {
        let mut output = BytesMut::new();
        zmtp::write_ready(&mut output, ours);
        stream.write_all(&output).await?;
    }
    Ok(Greeted {
        identity,
        channel,
        dialect,
        knows_ping: greeting.minor >= 1,
        framing: Framing::Zmtp(decoder),
    })
}

/// The tcp dialect's handshake, which has no answer.
async fn greet_tcp(
    stream: &mut (impl AsyncRead + Unpin),
    mut input: BytesMut,
    mut total: usize,
) -> Result<Greeted, HandshakeError> {
    let hello = loop {
        match Hello::take(&mut input) {
            Ok(Some(hello)) => break hello,
            Ok(None) => total = read(stream, &mut input, total).await?,
            Err(_) => return Err(HandshakeError::Foreign("a malformed tcp handshake")),
        }
    };
    if is_generated(&hello.identity) {
        return Err(HandshakeError::Foreign("a reserved identity"));
    }
    Ok(Greeted {
        identity: hello.identity,
        channel: hello.channel,
        dialect: Dialect::Tcp,
        knows_ping: false,
        framing: Framing::Tcp(TcpDecoder::new(input)),
    })
}

/// What the first byte tells about who calls.
fn sniff(input: &[u8]) -> Result<(), HandshakeError> {
    Err(HandshakeError::Foreign(match input.first() {
        Some(&zmtp::SIGNATURE) => return Ok(()),
        Some(&tcp::FIRST_BYTE) => "the tcp dialect, whose only port is the first one",
        Some(0x16) => "a TLS hello",
        Some(b'A'..=b'Z') => "not ZeroMQ, perhaps HTTP",
        _ => "not a ZMTP greeting",
    }))
}

/// Reads some bytes, of which there may be `MAX_HELLO` in all, and returns the new total.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    into: &mut impl BufMut,
    total: usize,
) -> Result<usize, HandshakeError> {
    let left = MAX_HELLO.saturating_sub(total);
    if left == 0 {
        return Err(HandshakeError::Refused(format!(
            "no READY within {MAX_HELLO} bytes"
        )));
    }
    match stream.read_buf(&mut into.limit(left)).await? {
        0 => Err(HandshakeError::Closed),
        read => Ok(total.saturating_add(read)),
    }
}

/// An identity for a peer that announced none.
fn generated(id: ConnId) -> Bytes {
    let [_, _, _, _, a, b, c, d] = id.0.to_be_bytes();
    Bytes::copy_from_slice(&[0, a, b, c, d])
}

fn is_generated(identity: &[u8]) -> bool {
    matches!(identity, [0, _, _, _, _])
}
