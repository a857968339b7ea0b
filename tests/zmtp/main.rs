//! The network side against raw bytes and against an independent ZeroMQ implementation (the `zeromq` crate).

#![allow(clippy::unwrap_used)]

mod dialects;
mod peer;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use blender_multiuser::net::{Event, Settings, bind};
use blender_multiuser::wire::message::Outgoing;
use blender_multiuser::wire::{Channel, Dialect, Inbound, Outbound};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use zeromq::{SocketRecv, SocketSend, ZmqMessage};

use peer::*;

#[tokio::test]
async fn the_first_byte_is_answered_with_greeting_and_ready() {
    let net = Net::start(Settings::default()).await;
    for offset in [0, 1] {
        let mut raw = net.connect(offset).await;
        raw.send(b"\xff").await;
        assert_eq!(raw.take(64).await, greeting(1));
        assert_eq!(raw.frame().await, (4, OUR_READY.to_vec()));
    }
}

#[tokio::test]
async fn on_the_ttl_port_the_peer_says_first_who_it_is() {
    let mut net = Net::start(Settings::default()).await;
    let mut raw = net.connect(2).await;
    raw.send(&greeting(1)).await;
    assert_eq!(raw.take(64).await, greeting(1));
    raw.send(&ready("PULL", b"")).await;
    assert_eq!(
        raw.rest().await,
        error("no PULL sockets are served on this port")
    );

    let (mut raw, id, link) = net.raw(2, b"0123456789abcdef").await;
    raw.send(&frame(0, b"INIT")).await;
    let (from, event) = net.event().await;
    assert_eq!(from, id);
    assert!(matches!(event, Event::Message(Inbound::HeartbeatInit, _)));
    link.send(Outgoing::new(Outbound::Ping));
    assert_eq!(raw.frame().await.0, 0);
    // No client has more to say here than a word.
    raw.send(&frame(0, &[0; 65])).await;
    assert_eq!(
        raw.rest().await,
        error("frame of 65 bytes, the limit is 64")
    );
}

#[tokio::test]
async fn strangers_of_all_kinds_are_sent_away_and_do_no_harm() {
    let mut net = Net::start(Settings::default()).await;
    let silent: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x00\x00\x10identityidentityX",
        b"\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ];
    for hello in silent {
        for offset in 0..4 {
            let mut raw = net.connect(offset).await;
            raw.send(hello).await;
            assert_eq!(raw.rest().await, b"");
        }
    }
    // What comes after our greeting and READY.
    let after = async |bytes: Vec<u8>| {
        let mut raw = net.connect(0).await;
        raw.send(&bytes).await;
        let all = raw.rest().await;
        assert_eq!(all[..64], greeting(1));
        all[64..].to_vec()
    };
    let mut old = greeting(0);
    old[10] = 1;
    assert_eq!(after(old).await, command(OUR_READY));
    let mut curve = greeting(1);
    curve[12..17].copy_from_slice(b"CURVE");
    let told = after(curve).await;
    assert!(told.ends_with(&error("only the NULL mechanism is served")));
    // From now on this address has to say first who it is.
    let told = after([greeting(1), ready("REQ", b"")].concat()).await;
    assert_eq!(told, error("no REQ sockets are served on this port"));
    let told = after([greeting(1), ready("DEALER", &[1; 256])].concat()).await;
    assert_eq!(told, error("identity of more than 255 bytes"));
    let told = after([greeting(1), ready("DEALER", &[1; 2000])].concat()).await;
    assert_eq!(told, error("no READY within 512 bytes"));
    let told = after([greeting(1), ready("DEALER", b"\0abcd")].concat()).await;
    assert!(told.starts_with(b"\x04"));
    let told = after([greeting(1), frame(0, b"INIT")].concat()).await;
    assert_eq!(told, error("message before READY"));
    // An honest one still gets in, and an identity if it has none.
    let (_raw, _, link) = net.raw(0, b"alice").await;
    drop(link);
    let (_, reason) = net.closed().await;
    assert_eq!(reason, "closed by the server");
    let mut raw = net.connect(0).await;
    raw.send(&[greeting(0), ready("DEALER", b"")].concat())
        .await;
    let (_, peer, _link) = net.opened().await;
    assert_eq!((peer.identity.len(), peer.identity[0]), (5, 0));
    assert_eq!(peer.channel, Channel::Command);
    assert_eq!(peer.address, raw.0.local_addr().unwrap());
}

#[tokio::test]
async fn half_a_greeting_does_not_stay() {
    let net = Net::start(Settings {
        handshake: Duration::from_millis(100),
        ..Settings::default()
    })
    .await;
    let silent = net.connect(0).await;
    assert_eq!(silent.rest().await, b"");
    let mut half = net.connect(2).await;
    half.send(&greeting(1)[..40]).await;
    assert_eq!(half.rest().await, greeting(1));
}

#[tokio::test]
async fn the_oldest_stranger_makes_room_though_it_has_greeted() {
    let mut net = Net::start(Settings {
        strangers_per_address: 2,
        handshake: Duration::from_secs(3600),
        ..Settings::default()
    })
    .await;
    let (mut first, _, _link) = net.raw(0, b"first").await;
    let _second = net.raw(0, b"second").await;
    let _third = net.connect(0).await;
    let mut rest = Vec::new();
    // Its end, in whatever form.
    let _ = first.0.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_peer_with_unread_bytes_sees_an_orderly_end() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, _, link) = net.raw(1, b"alice").await;
    raw.send(&node_bytes("never read", data(50_000))).await;
    link.close(Some("enough".to_owned()));
    let mut rest = Vec::new();
    raw.0.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, error("enough"));
    raw.send(b"no reset").await;
}

#[tokio::test]
async fn pings_are_answered_and_arrivals_reported() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, id, link) = net.raw(0, b"alice").await;
    raw.send(&command(b"\x04PING\x00\x0ahello")).await;
    assert_eq!(raw.command().await, b"\x04PONGhello");
    raw.send(&command(b"\x09SUBSCRIBEtopic")).await;
    raw.send(&command(b"\x07UNHEARDof it")).await;
    // A PONG to no PING says nothing.
    raw.send(&command(
        &[&b"\x04PONG"[..], &u64::MAX.to_be_bytes()].concat(),
    ))
    .await;

    for _ in 0..3 {
        link.send(Outgoing::new(Outbound::Auth("LOBBY".to_owned())));
    }
    let mut messages = 0_u64;
    let mut arrived = 0;
    while arrived < 3 {
        let (flags, body) = raw.frame().await;
        if flags & 4 == 0 {
            messages += u64::from(flags & 1 == 0);
            continue;
        }
        let context = body.strip_prefix(b"\x04PING\0\0").unwrap();
        let count = u64::from_be_bytes(context.try_into().unwrap());
        assert_eq!(count, messages);
        raw.send(&command(&[b"\x04PONG", context].concat())).await;
        match net.event().await {
            (from, Event::Arrived(now)) if from == id => {
                assert!(now > arrived);
                assert_eq!(now, count);
                arrived = now;
            }
            other => panic!("{other:?}"),
        }
    }
    // The answer counts once.
    raw.send(&command(&[&b"\x04PONG"[..], &3_u64.to_be_bytes()].concat()))
        .await;
    drop(raw);
    let (from, event) = net.event().await;
    assert!(matches!(event, Event::Closed(_)), "{event:?}");
    assert_eq!(from, id);
}

/// Behind messages that fill its queue, a PING in the 8 KiB that libzmq reads at once ends the whole Blender should the connection
/// break then.
#[tokio::test]
async fn a_ping_keeps_its_distance_from_many_messages() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, _, link) = net.raw(0, b"alice").await;
    let mut messages = 0_u64;
    for (count, distance) in [(3, 0), (200, 8192)] {
        for _ in 0..count {
            link.send(Outgoing::new(Outbound::Ping));
        }
        messages += count;
        let mut between = 0;
        let context = loop {
            let (flags, body) = raw.frame().await;
            if flags & 4 == 0 {
                between = 0;
                continue;
            }
            match body.strip_prefix(b"\x04PING\0\0") {
                Some(context) => break context.to_vec(),
                None => between += body.len(),
            }
        };
        assert_eq!(context, messages.to_be_bytes());
        assert!(between >= distance, "{between} bytes");
        raw.send(&command(&[&b"\x04PONG"[..], &context].concat()))
            .await;
    }
}

#[tokio::test]
async fn peers_that_do_not_know_ping_get_none() {
    let mut net = Net::start(Settings::default()).await;
    let (raw, _, link) = net.raw_of(0, b"alice", 0).await;
    link.send(node("id", data(1)));
    link.close(None);
    let bytes = raw.rest().await;
    assert_eq!(bytes.iter().filter(|b| **b == b'P').count(), 0);
    assert!(!bytes.is_empty());
}

#[tokio::test]
async fn data_is_not_read_before_trust() {
    let mut net = Net::start(Settings::default()).await;
    let (mut alice, alice_id, alice_link) = net.raw(1, b"alice").await;
    alice.send(&node_bytes("early", data(100))).await;
    let (mut bob, bob_id, _bob_link) = net.raw(0, b"bob").await;
    bob.send(&metadata_bytes("other", 100)).await;
    assert_eq!(net.metadata().await.0, bob_id);
    alice_link.trust();
    let (id, node) = net.node().await;
    assert_eq!((id, node.id.as_str()), (alice_id, "early"));
}

#[tokio::test]
async fn a_stranger_on_the_data_channel_is_missed_when_it_goes() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, id, _link) = net.raw(1, b"alice").await;
    raw.send(&node_bytes("lost", data(100))).await;
    drop(raw);
    assert_eq!(net.closed().await.0, id);
}

#[tokio::test]
async fn a_large_message_waits_for_trust() {
    let settings = Settings {
        handshake: Duration::from_millis(300),
        ..Settings::default()
    };
    let mut net = Net::start(settings).await;
    let (mut alice, _, link) = net.raw(0, b"alice").await;
    alice.send(&metadata_bytes("small", 3000)).await;
    alice.send(&metadata_bytes("large", 5000)).await;
    assert_eq!(net.metadata().await.1, "small");
    link.trust();
    assert_eq!(net.metadata().await.1, "large");

    let (mut bob, id, _link) = net.raw(0, b"bob").await;
    bob.send(&metadata_bytes("large", 5000)).await;
    let (from, reason) = net.closed().await;
    assert_eq!(from, id);
    assert!(reason.ends_with("the limit is 4096"), "{reason}");
    assert!(bob.rest().await.ends_with(&error(&reason)));
}

#[tokio::test]
async fn limits_name_themselves() {
    let settings = Settings {
        message: 10_000,
        ..Settings::default()
    };
    let mut net = Net::start(settings).await;
    let (mut raw, _, link) = net.raw(1, b"alice").await;
    link.trust();
    raw.send(b"\x02\0\0\x01\0\0\0\0\0abc").await;
    let (_, reason) = net.closed().await;
    assert_eq!(
        reason,
        format!("frame of {} bytes, the limit is 10000", 1_u64 << 40)
    );
}

#[tokio::test]
async fn a_malformed_message_is_refused_and_reading_goes_on() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, id, link) = net.raw(1, b"alice").await;
    link.trust();
    raw.send(&frame(0, b"no pickle")).await;
    raw.send(&node_bytes("good", data(1))).await;
    assert!(matches!(net.event().await, (from, Event::Refused(_)) if from == id));
    assert_eq!(net.node().await.1.id.as_str(), "good");
}

#[tokio::test]
async fn a_closed_link_is_flushed_and_a_refused_one_stays_away() {
    let mut net = Net::start(Settings::default()).await;
    let (raw, id, link) = net.raw_of(0, b"alice", 0).await;
    for _ in 0..100 {
        link.send(node("id", data(10_000)));
    }
    link.close(Some("kicked".to_owned()));
    link.close(None);
    drop(link);
    let bytes = raw.rest().await;
    assert!(bytes.len() > 1_000_000);
    assert!(bytes.ends_with(&error("kicked")));
    assert_eq!(net.closed().await, (id, "closed by the server".to_owned()));

    let mut again = net.connect(0).await;
    again
        .send(&[greeting(1), ready("DEALER", b"alice")].concat())
        .await;
    let told = again.rest().await;
    assert_eq!(told, [greeting(1), error("kicked")].concat());
    let (_bob, _, _link) = net.raw(0, b"bob").await;
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_heard_before_it() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, id, link) = net.raw(1, b"alice").await;
    link.trust();
    for i in 0..200 {
        raw.send(&node_bytes(&i.to_string(), data(100))).await;
    }
    drop(raw);
    for i in 0..200 {
        assert_eq!(net.node().await.1.id.as_str(), i.to_string());
    }
    assert_eq!(net.closed().await, (id, "closed by the peer".to_owned()));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_heard_all_the_same() {
    let mut net = Net::start(Settings::default()).await;
    let (mut raw, id, link) = net.raw(1, b"alice").await;
    link.trust();
    let sent = node("big", data(30_000_000));
    let weight = sent.weight(Dialect::Dealer);
    link.send(sent);
    raw.send(&node_bytes("still here", data(100))).await;
    assert_eq!(net.node().await.1.id.as_str(), "still here");
    let reading = tokio::spawn(raw.rest());
    let mut written = 0;
    while written < weight {
        if let Event::Written(some) = net.events.recv().await.unwrap().1 {
            written += some;
        }
    }
    assert_eq!(written, weight);
    link.close(None);
    loop {
        if let (from, Event::Closed(_)) = net.events.recv().await.unwrap() {
            assert_eq!(from, id);
            break;
        }
    }
    assert!(reading.await.unwrap().len() > 30_000_000);
}

#[tokio::test]
async fn messages_in_flight_are_bounded() {
    let settings = Settings {
        in_flight: 100 * 1024,
        ..Settings::default()
    };
    let mut net = Net::start(settings).await;
    let (mut alice, _, alice_link) = net.raw(1, b"alice").await;
    let (mut bob, bob_id, bob_link) = net.raw(0, b"bob").await;
    alice_link.trust();
    bob_link.trust();
    for id in ["one", "two"] {
        alice.send(&node_bytes(id, data(80 * 1024))).await;
    }
    let (_, first) = net.event().await;
    assert!(matches!(first, Event::Message(..)));
    bob.send(&metadata_bytes("small", 100)).await;
    assert_eq!(net.metadata().await.0, bob_id);
    assert!(net.events.try_recv().is_err());
    drop(first);
    assert_eq!(net.node().await.1.id.as_str(), "two");
    // One that is larger than all the room takes it all.
    alice.send(&node_bytes("huge", data(1_000_000))).await;
    assert_eq!(net.node().await.1.id.as_str(), "huge");
}

#[tokio::test]
async fn shutting_down_flushes_what_is_queued() {
    let mut net = Net::start(Settings::default()).await;
    let (raw, _, link) = net.raw_of(0, b"alice", 0).await;
    let _waiting = net.connect(0).await;
    link.send(node("last", data(1_000_000)));
    let reading = tokio::spawn(raw.rest());
    let port = net.port;
    let draining = tokio::spawn(async move {
        let mut closed = 0;
        while let Some((_, event)) = net.events.recv().await {
            closed += usize::from(matches!(event, Event::Closed(_)));
        }
        closed
    });
    net.server.shutdown(Duration::from_secs(30)).await;
    assert!(reading.await.unwrap().len() > 1_000_000);
    assert_eq!(draining.await.unwrap(), 1);
    assert!(
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_independent_dealer_talks_both_ways() {
    let mut net = Net::start(Settings::default()).await;
    let (mut alice, alice_id, alice_link) = net.dealer(1, "alice").await;
    let (mut bob, bob_id, bob_link) = net.dealer(1, "bob").await;
    alice_link.trust();
    bob_link.trust();
    // Large and small, each to the one it is for.
    for size in [1, 255, 256, 5_000, 40_000, 50_000_000] {
        let message = ZmqMessage::try_from(node_chunks("a", data(size))).unwrap();
        alice.send(message).await.unwrap();
        let (from, node) = net.node().await;
        assert_eq!((from, node.data.len()), (alice_id, data(size).len()));
        bob_link.send(Outgoing::new(Outbound::Node(node)));
        let got = bob.recv().await.unwrap().into_vec();
        assert_eq!((&got[1][..], &got[4][..]), (&b"a"[..], &data(size)[..]));
    }
    for i in 0..2_000 {
        let message = ZmqMessage::try_from(node_chunks(&i.to_string(), data(i))).unwrap();
        bob.send(message).await.unwrap();
        let (from, node) = net.node().await;
        assert_eq!((from, node.id.as_str()), (bob_id, &*i.to_string()));
        alice_link.send(Outgoing::new(Outbound::Node(node)));
    }
    for i in 0..2_000 {
        let got = alice.recv().await.unwrap().into_vec();
        assert_eq!(got[1], i.to_string().as_bytes());
        assert_eq!(got[4], data(i));
    }
}

#[tokio::test]
async fn the_same_identity_twice_is_two_connections() {
    let mut net = Net::start(Settings::default()).await;
    let (mut first, first_id, first_link) = net.raw(0, b"alice").await;
    let (mut second, second_id, second_link) = net.raw(0, b"alice").await;
    assert_ne!(first_id, second_id);
    first_link.close(None);
    assert_eq!(net.closed().await.0, first_id);
    second_link.send(Outgoing::new(Outbound::Auth("LOBBY".to_owned())));
    assert_eq!(second.frame().await.0, 1);
    assert_eq!(first.0.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn shutting_down_does_not_wait_for_ever() {
    let mut net = Net::start(Settings::default()).await;
    let (_silent, _, link) = net.raw(0, b"alice").await;
    link.send(node("never read", data(50_000_000)));
    drop(net.events);
    net.server.shutdown(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn dropping_the_server_ends_everything() {
    let mut net = Net::start(Settings::default()).await;
    let (raw, _, _link) = net.raw(0, b"alice").await;
    drop(net.server);
    assert_eq!(raw.rest().await, b"");
}

#[tokio::test]
async fn hundreds_of_connections_that_vanish_leave_nothing_behind() {
    let settings = Settings {
        connections: 100,
        strangers: 100,
        strangers_per_address: 100,
        ..Settings::default()
    };
    let mut net = Net::start(settings).await;
    for round in 0..5 {
        let mut raws = Vec::new();
        for i in 0..80 {
            let mut raw = net.connect(i % 4).await;
            let hello = [greeting(1), ready("DEALER", b"alice")].concat();
            // Some end in the greeting, some in READY, some are cut between.
            let len = usize::from(i) * 2 % hello.len();
            raw.send(&hello[..len]).await;
            raws.push(raw);
        }
        drop(raws);
        // There is room again, as soon as the server has seen them go.
        loop {
            let mut raw = net.connect(0).await;
            let identity = format!("honest {round}");
            let hello = [greeting(1), ready("DEALER", identity.as_bytes())].concat();
            let _ = raw.0.write_all(&hello).await;
            let mut byte = [0];
            if matches!(raw.0.read(&mut byte).await, Ok(1)) {
                let (_, peer, _) = net.opened().await;
                assert_eq!(peer.identity, identity);
                drop(raw);
                net.closed().await;
                break;
            }
        }
    }
}

#[tokio::test]
async fn both_ip_versions_are_served_where_there_are_both() {
    let bound = bind(&[], 0).await.unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let port = bound.port();
    let _server = bound.serve(Settings::default(), sender);
    for host in ["127.0.0.1", "::1"] {
        let host: IpAddr = host.parse().unwrap();
        let Ok(stream) = TcpStream::connect((host, port)).await else {
            assert!(host.is_ipv6(), "there is always IPv4");
            continue;
        };
        let mut raw = Raw(stream);
        raw.send(&[greeting(1), ready("DEALER", b"alice")].concat())
            .await;
        match events.recv().await.unwrap().1 {
            // An IPv4 peer is shown as one, though its socket is of both kinds.
            Event::Opened(peer, _) => assert_eq!(peer.address, raw.0.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
        drop(raw);
        while !matches!(events.recv().await.unwrap().1, Event::Closed(_)) {}
    }
}
