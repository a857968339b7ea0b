//! A server to test, and peers that say exactly what they are told to.

use std::net::Ipv4Addr;
use std::sync::Arc;

use blender_multiuser::net::{ConnId, Event, Link, Peer, Server, Settings, bind};
use blender_multiuser::wire::message::{Node, Outgoing};
use blender_multiuser::wire::{Inbound, Outbound};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use zeromq::{DealerSocket, Socket, SocketOptions};

/// A server, and what it reports.
pub struct Net {
    pub port: u16,
    pub server: Server,
    pub events: mpsc::Receiver<(ConnId, Event)>,
}

impl Net {
    pub async fn start(settings: Settings) -> Net {
        let bound = bind(&["127.0.0.1".parse().unwrap()], 0).await.unwrap();
        let (sender, events) = mpsc::channel(64);
        Net {
            port: bound.port(),
            server: bound.serve(settings, sender),
            events,
        }
    }

    /// The next event that is not about what has been written.
    pub async fn event(&mut self) -> (ConnId, Event) {
        loop {
            let (id, event) = self.events.recv().await.unwrap();
            if !matches!(event, Event::Written(_) | Event::Progress) {
                return (id, event);
            }
        }
    }

    /// The next event as well, but not the answers to PINGs.
    pub async fn message(&mut self) -> (ConnId, Event) {
        loop {
            match self.event().await {
                (_, Event::Arrived(_)) => {}
                other => return other,
            }
        }
    }

    pub async fn opened(&mut self) -> (ConnId, Peer, Link) {
        match self.message().await {
            (id, Event::Opened(peer, link)) => (id, peer, link),
            other => panic!("{other:?}"),
        }
    }

    pub async fn node(&mut self) -> (ConnId, Node) {
        match self.message().await {
            (id, Event::Message(Inbound::Node(node), _)) => (id, node),
            other => panic!("{other:?}"),
        }
    }

    /// The next event has to be metadata; its first key.
    pub async fn metadata(&mut self) -> (ConnId, String) {
        match self.message().await {
            (id, Event::Message(Inbound::Metadata(pairs), _)) => (id, pairs[0].0.to_string()),
            other => panic!("{other:?}"),
        }
    }

    pub async fn closed(&mut self) -> (ConnId, String) {
        match self.message().await {
            (id, Event::Closed(reason)) => (id, reason),
            other => panic!("{other:?}"),
        }
    }

    pub async fn connect(&self, offset: u16) -> Raw {
        let address = (Ipv4Addr::LOCALHOST, self.port + offset);
        Raw(TcpStream::connect(address).await.unwrap())
    }

    /// A raw peer that has shaken hands, and this side of it.
    pub async fn raw(&mut self, offset: u16, identity: &[u8]) -> (Raw, ConnId, Link) {
        self.raw_of(offset, identity, 1).await
    }

    pub async fn raw_of(&mut self, offset: u16, identity: &[u8], minor: u8) -> (Raw, ConnId, Link) {
        let mut raw = self.connect(offset).await;
        raw.send(&greeting(minor)).await;
        raw.send(&ready("DEALER", identity)).await;
        assert_eq!(raw.take(64).await, greeting(1));
        assert_eq!(raw.frame().await, (4, OUR_READY.to_vec()));
        let (id, peer, link) = self.opened().await;
        if !identity.is_empty() {
            assert_eq!(peer.identity, identity);
        }
        (raw, id, link)
    }

    pub async fn dealer(&mut self, offset: u16, identity: &str) -> (DealerSocket, ConnId, Link) {
        let mut options = SocketOptions::default();
        options.peer_identity(identity.parse().unwrap());
        let mut socket = DealerSocket::with_options(options);
        socket
            .connect(&format!("tcp://127.0.0.1:{}", self.port + offset))
            .await
            .unwrap();
        let (id, peer, link) = self.opened().await;
        assert_eq!(peer.identity, identity);
        (socket, id, link)
    }
}

pub const OUR_READY: &[u8] =
    b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x00";

/// A peer that says exactly what it is told to.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// One frame: its flags and payload.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        let flags = self.take(1).await[0];
        let len = if flags & 2 == 0 {
            usize::from(self.take(1).await[0])
        } else {
            u64::from_be_bytes(self.take(8).await.try_into().unwrap()) as usize
        };
        (flags, self.take(len).await)
    }

    /// One frame, which has to be a command, name first.
    pub async fn command(&mut self) -> Vec<u8> {
        let (flags, body) = self.frame().await;
        assert_eq!(flags & 4, 4);
        body
    }

    /// What comes until the connection ends, in whichever way.
    pub async fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes).await;
        bytes
    }
}

pub fn greeting(minor: u8) -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\0\x7f\x03".to_vec();
    bytes.push(minor);
    bytes.extend_from_slice(b"NULL");
    bytes.resize(64, 0);
    bytes
}

pub fn command(body: &[u8]) -> Vec<u8> {
    frame(4, body)
}

pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = match u8::try_from(body.len()) {
        Ok(len) => vec![flags, len],
        Err(_) => [&[flags | 2][..], &(body.len() as u64).to_be_bytes()].concat(),
    };
    bytes.extend_from_slice(body);
    bytes
}

pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend_from_slice(&(socket_type.len() as u32).to_be_bytes());
    body.extend_from_slice(socket_type.as_bytes());
    body.extend_from_slice(b"\x08Identity");
    body.extend_from_slice(&(identity.len() as u32).to_be_bytes());
    body.extend_from_slice(identity);
    command(&body)
}

pub fn error(reason: &str) -> Vec<u8> {
    let mut body = b"\x05ERROR".to_vec();
    body.push(reason.len() as u8);
    body.extend_from_slice(reason.as_bytes());
    command(&body)
}

/// The pickle of a node's data, which holds that many bytes.
pub fn data(len: usize) -> Vec<u8> {
    let mut pickle = b"\x80\x04}(X\x07\0\0\0type_idX\x04\0\0\0MeshX\x04\0\0\0blob\x8e".to_vec();
    pickle.extend_from_slice(&(len as u64).to_le_bytes());
    pickle.resize(pickle.len() + len, 42);
    pickle.extend_from_slice(b"u.");
    pickle
}

/// A message of the command channel: metadata with one key and a value of that many bytes.
pub fn metadata_bytes(key: &str, len: usize) -> Vec<u8> {
    let mut pickle = b"\x80\x04}(X".to_vec();
    pickle.extend_from_slice(&(key.len() as u32).to_le_bytes());
    pickle.extend_from_slice(key.as_bytes());
    pickle.push(0x8e);
    pickle.extend_from_slice(&(len as u64).to_le_bytes());
    pickle.resize(pickle.len() + len, 42);
    pickle.extend_from_slice(b"u.");
    [
        frame(1, b"\x80\x04K\x0d."),
        frame(1, b"alice"),
        frame(0, &pickle),
    ]
    .concat()
}

/// A Node message as a client sends it.
pub fn node_chunks(id: &str, data: Vec<u8>) -> Vec<Bytes> {
    vec![
        Bytes::from_static(b"\x80\x04K\x02."),
        Bytes::copy_from_slice(id.as_bytes()),
        Bytes::from_static(b"alice"),
        Bytes::from_static(b"\x80\x04]\x94."),
        data.into(),
    ]
}

pub fn node_bytes(id: &str, data: Vec<u8>) -> Vec<u8> {
    let chunks = node_chunks(id, data);
    let (last, others) = chunks.split_last().unwrap();
    let mut bytes: Vec<u8> = others.iter().flat_map(|chunk| frame(1, chunk)).collect();
    bytes.extend(frame(0, last));
    bytes
}

pub fn node(id: &str, data: Vec<u8>) -> Arc<Outgoing> {
    Outgoing::new(Outbound::Node(Node {
        id: id.into(),
        owner: "alice".into(),
        dependencies: Vec::new(),
        data: data.into(),
        kind: None,
    }))
}
