//! The handshakes and framings of the tcp and the four-socket dialect, byte by byte.

use std::time::Duration;

use blender_multiuser::net::{Event, Settings};
use blender_multiuser::wire::message::Outgoing;
use blender_multiuser::wire::{Channel, Dialect, Inbound, Outbound};
use bytes::Bytes;

use super::peer::*;

const ID: &[u8] = b"0123456789abcdef";

fn hello(role: u8) -> Vec<u8> {
    [&[0, 0, 0, 16], ID, &[role]].concat()
}

fn tcp_message(chunks: &[&[u8]]) -> Vec<u8> {
    let mut bytes = (chunks.len() as u32).to_be_bytes().to_vec();
    for chunk in chunks {
        bytes.extend_from_slice(&(chunk.len() as u32).to_be_bytes());
        bytes.extend_from_slice(chunk);
    }
    bytes
}

#[tokio::test]
async fn the_tcp_dialect_has_one_port_and_three_roles() {
    let mut net = Net::start(Settings::default()).await;
    for (role, channel) in [
        (b'C', Channel::Command),
        (b'D', Channel::Data),
        (b'T', Channel::Ttl),
    ] {
        let mut raw = net.connect(0).await;
        for byte in hello(role) {
            raw.send(&[byte]).await;
        }
        let (_, peer, link) = net.opened().await;
        assert_eq!((&peer.identity[..], peer.channel), (ID, channel));
        assert_eq!(peer.dialect, Dialect::Tcp);
        drop(link);
        net.closed().await;
    }
    for bytes in [
        &hello(b'X')[..],
        b"\0\0\x01\x01",
        b"\0\0\0\0C",
        b"\0\0\0\x05\0abcdC",
    ] {
        let mut raw = net.connect(0).await;
        raw.send(bytes).await;
        assert_eq!(raw.rest().await, b"", "{bytes:?}");
    }
    for offset in 1..4 {
        let mut raw = net.connect(offset).await;
        raw.send(&hello(b'C')).await;
        assert_eq!(raw.rest().await, b"");
    }
}

#[tokio::test]
async fn tcp_messages_go_both_ways_and_the_reason_of_a_refusal_stays_out() {
    let mut net = Net::start(Settings::default()).await;
    let mut raw = net.connect(0).await;
    // With the handshake in one piece, and an empty message that means nothing.
    let pickled = b"\x80\x04\x8c\x07RQ_INFO.";
    let request = tcp_message(&[b"\x80\x04K\x0e.", b"guest", pickled]);
    raw.send(&[&hello(b'C')[..], &[0; 4], &request].concat())
        .await;
    let (_, _, link) = net.opened().await;
    assert!(matches!(
        net.event().await,
        (_, Event::Message(Inbound::ServerInfo, _))
    ));
    let reply = Outgoing::new(Outbound::ServerInfo {
        private: true,
        version: "0.10.2".into(),
    });
    link.send(reply.clone());
    link.close(Some("session ended".to_owned()));
    let chunks: Vec<Bytes> = reply
        .chunks(Dialect::Tcp)
        .iter()
        .map(|c| c.to_bytes())
        .collect();
    let expected = tcp_message(&chunks.iter().map(|c| &c[..]).collect::<Vec<_>>());
    assert_eq!(raw.rest().await, expected);
}

#[tokio::test]
async fn tcp_strangers_say_little_and_trusted_ones_much() {
    let mut net = Net::start(Settings {
        handshake: Duration::from_millis(200),
        ..Settings::default()
    })
    .await;
    let mut raw = net.connect(0).await;
    raw.send(&[&hello(b'C')[..], &tcp_message(&[&[1; 5000]])[..100]].concat())
        .await;
    let (_, _, _link) = net.opened().await;
    let (_, reason) = net.closed().await;
    assert!(reason.contains("5000 bytes"), "{reason}");

    let mut raw = net.connect(0).await;
    raw.send(&hello(b'D')).await;
    let (_, _, link) = net.opened().await;
    let node = data(3_000_000);
    let chunks = node_chunks("n1", node.clone());
    let message = tcp_message(&chunks.iter().map(|c| &c[..]).collect::<Vec<_>>());
    link.trust();
    for part in message.chunks(70_000) {
        raw.send(part).await;
    }
    let (_, found) = net.node().await;
    assert_eq!(found.data, node);
}

/// The frames of a publication: header, then one chunk.
fn publication(identity: &[u8], uuid: &[u8]) -> Vec<u8> {
    [
        frame(1, identity),
        frame(1, uuid),
        frame(1, b"COMMON"),
        frame(1, b"BlMesh"),
        frame(1, b"\x80\x04K\x01."),
        frame(0, b"\x80\x04]\x94."),
        frame(0, b"\x80\x04}\x94\x8c\x04name\x8c\x04Cubes."),
    ]
    .concat()
}

/// A publisher that has shaken hands.
async fn publisher(net: &Net) -> Raw {
    let mut raw = net.connect(2).await;
    raw.send(&greeting(1)).await;
    assert_eq!(raw.take(64).await, greeting(1));
    raw.send(&ready("PUSH", b"")).await;
    let (flags, body) = raw.frame().await;
    assert_eq!(flags, 4);
    assert!(body.windows(8).any(|part| part == b"\0\0\0\x04PULL"));
    raw
}

#[tokio::test]
async fn a_publisher_names_itself_and_is_read_once_it_is_trusted() {
    let mut net = Net::start(Settings::default()).await;
    let mut raw = publisher(&net).await;
    let (_, peer, link) = net.opened().await;
    assert_eq!(
        (peer.channel, peer.dialect),
        (Channel::Publish, Dialect::FourSocket)
    );
    assert_eq!(peer.identity.len(), 5, "made up");
    raw.send(&publication(ID, b"n1")).await;
    assert!(matches!(net.event().await, (_, Event::Named(name)) if name == ID));
    link.trust();
    assert_eq!(net.node().await.1.id, "n1".into());
    raw.send(&publication(ID, b"n2")).await;
    assert_eq!(net.node().await.1.id, "n2".into());
    // It stays with the name that it gave first.
    raw.send(&publication(b"fedcba9876543210", b"n3")).await;
    assert!(net.closed().await.1.contains("another identity"));
}

#[tokio::test]
async fn a_publisher_that_speaks_in_tongues_is_closed() {
    let mut net = Net::start(Settings::default()).await;
    for (bytes, trusted) in [
        (frame(0, b"one frame only"), false),
        (frame(1, &[1; 300]), false),
        ([frame(1, ID), frame(0, b"n1")].concat(), true),
        (
            [publication(ID, b"n1"), frame(0, b"a chunk too many")].concat(),
            true,
        ),
    ] {
        let mut raw = publisher(&net).await;
        let (_, _, link) = net.opened().await;
        raw.send(&bytes).await;
        if trusted {
            assert!(matches!(net.event().await, (_, Event::Named(_))));
            link.trust();
        }
        loop {
            match net.event().await {
                (_, Event::Closed(_)) => break,
                (_, Event::Message(Inbound::Node(_), _)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_node_is_two_messages_to_a_four_socket_client() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, _, mut link) = net.raw(1, ID).await;
    link.speak(Dialect::FourSocket);
    link.send(node("n1", data(10)));
    let mut flags = Vec::new();
    while flags.len() < 7 {
        match raw.frame().await {
            (flag, _) if flag & 4 == 0 => flags.push(flag & 1),
            _ => {}
        }
    }
    assert_eq!(flags, [1, 1, 1, 1, 1, 0, 0]);
}

#[tokio::test]
async fn the_four_socket_heartbeat_has_a_port_of_its_own() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, _, link) = net.raw(3, ID).await;
    raw.send(&frame(0, b"INIT")).await;
    assert!(matches!(
        net.event().await,
        (_, Event::Message(Inbound::HeartbeatInit, _))
    ));
    link.send(Outgoing::new(Outbound::Ping));
    assert_eq!(raw.frame().await, (0, b"PING".to_vec()));
}
