//! Talks to a server as a client does, far enough to see what works, and leaves no trace: it never logs in.
//!
//! ZeroMQ is spoken by the `zeromq` crate, not by this server's own code: what it meets is what a client meets. Everything here ends
//! within [`PATIENCE`] a step.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeromq::{DealerSocket, Endpoint, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::wire::guest::{self, Answer, ServerInfo};

/// How long each step may take. Clients give up after five seconds, too.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a port that has taken the connection may take to say what it speaks.
const GREETING: Duration = Duration::from_secs(3);

pub const WEB: &str = "a web server (HTTP)";

/// Bytes of an answer over plain TCP; a server's are a hundred.
const ANSWER_LIMIT: u32 = 64 * 1024;

/// Why a port is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("connection refused")]
    Refused,
    #[error("{0}")]
    Unreachable(String),
    #[error("takes the connection, then says nothing")]
    Silent,
    #[error("takes the connection, then closes it")]
    Closed,
    /// What speaks there instead.
    #[error("{0} answers here")]
    Foreign(&'static str),
    #[error("ZeroMQ handshake failed: {0}")]
    Handshake(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

/// Opens a TCP connection and says how long that took.
pub async fn connect(address: SocketAddr) -> Result<(TcpStream, Duration), Fault> {
    let begun = Instant::now();
    let stream = timeout(PATIENCE, TcpStream::connect(address))
        .await
        .map_err(|_| Fault::Timeout)??;
    let _ = stream.set_nodelay(true);
    Ok((stream, begun.elapsed()))
}

/// Whether a ZeroMQ socket listens at the other end; if not, what does. The crate takes any length that a stranger announces for
/// true, so it is let loose only on those who greet as ZeroMQ does (and `check` does that in a process of its own).
pub async fn greet(mut stream: TcpStream) -> Result<(), Fault> {
    let mut greeting = [0; 64];
    greeting[..12].copy_from_slice(b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0");
    greeting[12..16].copy_from_slice(b"NULL");
    let mut said = [0; 12];
    let conversation = async {
        stream.write_all(&greeting).await?;
        let mut known = 0;
        while let Some(rest) = said.get_mut(known..).filter(|rest| !rest.is_empty()) {
            match stream.read(rest).await {
                Ok(0) => break,
                Ok(n) => known += n,
                // What it said before counts.
                Err(_) if known > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    };
    let known = match timeout(GREETING, conversation).await {
        Ok(known) => known?,
        Err(_) if said == [0; 12] => return Err(Fault::Silent),
        Err(_) => said.len(),
    };
    match &said {
        _ if known == 0 => Err(Fault::Closed),
        [0xff, .., version, _] if known == said.len() && *version >= 3 => Ok(()),
        [0xff, ..] => Err(Fault::Foreign("an old ZeroMQ")),
        said if said.starts_with(b"HTTP/") => Err(Fault::Foreign(WEB)),
        said if said.starts_with(b"SSH-") => Err(Fault::Foreign("an SSH server")),
        [0x15 | 0x16, 3, ..] => Err(Fault::Foreign("a TLS (https) server")),
        _ => Err(Fault::Foreign("another program")),
    }
}

/// Whether a web server listens there. Many of them say nothing to those who do not speak HTTP.
pub async fn is_web_server(address: SocketAddr) -> bool {
    let conversation = async {
        let (mut stream, _) = connect(address).await.ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut said = [0; 5];
        stream.read_exact(&mut said).await.ok()?;
        (said == *b"HTTP/").then_some(())
    };
    matches!(timeout(GREETING, conversation).await, Ok(Some(())))
}

/// A DEALER socket as clients have them.
pub struct Dealer(DealerSocket);

impl Dealer {
    /// Connects and shakes hands; says how long that took.
    pub async fn connect(address: SocketAddr) -> Result<(Self, Duration), Fault> {
        let begun = Instant::now();
        let endpoint = Endpoint::from_tcp_addr(address).to_string();
        let mut socket = DealerSocket::new();
        match timeout(PATIENCE, socket.connect(&endpoint)).await {
            Ok(Ok(())) => Ok((Self(socket), begun.elapsed())),
            Ok(Err(error)) => Err(Fault::Handshake(error.to_string())),
            Err(_) => Err(Fault::Silent),
        }
    }

    /// Sends a message and waits for the answer to it; `None` if none comes.
    pub async fn ask(&mut self, chunks: Vec<Bytes>, patience: Duration) -> Option<Answer> {
        let message = ZmqMessage::try_from(chunks).ok()?;
        let conversation = async {
            self.0.send(message).await.ok()?;
            loop {
                let answer = guest::answer(&self.0.recv().await.ok()?.into_vec());
                if answer.is_some() {
                    return answer;
                }
            }
        };
        timeout(patience, conversation).await.ok().flatten()
    }

    /// One round trip of server info.
    pub async fn server_info(&mut self, patience: Duration) -> Option<(ServerInfo, Duration)> {
        let begun = Instant::now();
        match self.ask(guest::server_info(), patience).await? {
            Answer::Info(info) => Some((info, begun.elapsed())),
            Answer::Auth(_) => None,
        }
    }
}

/// Asks for server info over ZeroMQ on a connection of its own.
pub async fn server_info(
    address: SocketAddr,
    patience: Duration,
) -> Result<(ServerInfo, Duration), Fault> {
    let conversation = async {
        let (stream, _) = connect(address).await?;
        greet(stream).await?;
        let (mut dealer, _) = Dealer::connect(address).await?;
        dealer.server_info(patience).await.ok_or(Fault::Silent)
    };
    timeout(patience, conversation)
        .await
        .unwrap_or(Err(Fault::Silent))
}

/// Sends one message the way of clients from 0.9.12 on, over plain TCP, and says how long the answer took from the connect on.
pub async fn ask_over_tcp(
    address: SocketAddr,
    chunks: &[Bytes],
) -> Result<(Answer, Duration), Fault> {
    let begun = Instant::now();
    let (mut stream, _) = connect(address).await?;
    // The handshake: an identity of 16 bytes, and that this is the command connection.
    let mut asked = 16_u32.to_be_bytes().to_vec();
    let mut identity = [0; 16];
    getrandom::fill(&mut identity).map_err(|error| Fault::Unreachable(error.to_string()))?;
    asked.extend_from_slice(&identity);
    asked.push(b'C');
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    asked.extend_from_slice(&length(chunks.len()));
    for chunk in chunks {
        asked.extend_from_slice(&length(chunk.len()));
        asked.extend_from_slice(chunk);
    }
    let conversation = async {
        stream.write_all(&asked).await?;
        loop {
            let answer = guest::answer(&read_message(&mut stream).await?);
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    };
    match timeout(PATIENCE, conversation).await {
        Ok(answer) => answer.map(|answer| (answer, begun.elapsed())),
        Err(_) => Err(Fault::Silent),
    }
}

/// The chunks of one message over plain TCP.
async fn read_message(stream: &mut TcpStream) -> Result<Vec<Bytes>, Fault> {
    let foreign = || Fault::Foreign("another program");
    let chunks = stream.read_u32().await?;
    if chunks > 16 {
        return Err(foreign());
    }
    let mut message = Vec::new();
    for _ in 0..chunks {
        let length = stream.read_u32().await?;
        if length > ANSWER_LIMIT {
            return Err(foreign());
        }
        let mut chunk = vec![0; usize::try_from(length).map_err(|_| foreign())?];
        stream.read_exact(&mut chunk).await?;
        message.push(chunk.into());
    }
    Ok(message)
}
