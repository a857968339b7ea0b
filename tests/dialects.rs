//! What the session decides by dialect, event by event: no sockets, no clock.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blender_multiuser::net::{ConnId, Peer};
use blender_multiuser::password::Secret;
use blender_multiuser::session::{Effect, Event, Session, Settings, TICK};
use blender_multiuser::wire::message::{Login, Node, Outgoing};
use blender_multiuser::wire::pickle::{self, Value};
use blender_multiuser::wire::{Channel, Dialect, Inbound, Outbound};
use bytes::Bytes;

struct Stage {
    session: Session,
    now: Instant,
    conns: u64,
    sent: BTreeMap<ConnId, Vec<Arc<Outgoing>>>,
    spoken: BTreeMap<ConnId, Dialect>,
    trusted: Vec<ConnId>,
    closed: Vec<ConnId>,
}

/// The connections of one client.
#[derive(Clone, Copy)]
struct Actor {
    command: ConnId,
    data: ConnId,
    ttl: ConnId,
}

impl Stage {
    fn new(versions: &[&str], server_password: Option<&str>) -> Stage {
        let now = Instant::now();
        let settings = Settings {
            admin_password: Secret::new("admin"),
            server_password: server_password.map(Secret::new),
            timeout: Duration::from_secs(5),
            grace: Duration::from_secs(5),
            port: 5555,
            versions: versions.iter().map(|v| v.to_string()).collect(),
        };
        Stage {
            session: Session::new(now, settings),
            now,
            conns: 0,
            sent: BTreeMap::new(),
            spoken: BTreeMap::new(),
            trusted: Vec::new(),
            closed: Vec::new(),
        }
    }

    fn happens(&mut self, conn: ConnId, event: Event) {
        self.session.handle(self.now, conn, event);
        self.carry_out();
    }

    fn says(&mut self, conn: ConnId, message: Inbound) {
        self.happens(conn, Event::Message(message));
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            self.session.tick(self.now);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Send(conn, message) => self.sent.entry(conn).or_default().push(message),
                Effect::Speak(conn, dialect) => drop(self.spoken.insert(conn, dialect)),
                Effect::Trust(conn) => self.trusted.push(conn),
                Effect::Close(conn, _) => self.closed.push(conn),
                Effect::Fold(_) | Effect::Record(_) | Effect::Save(_) => {}
            }
        }
    }

    fn opens(&mut self, identity: &str, host: u8, channel: Channel, dialect: Dialect) -> ConnId {
        self.conns += 1;
        let conn = ConnId(self.conns);
        let peer = Peer {
            identity: Bytes::copy_from_slice(identity.as_bytes()),
            address: SocketAddr::from(([10, 0, 0, host], 40_000)),
            channel,
            dialect,
        };
        self.happens(conn, Event::Opened(peer));
        conn
    }

    /// What was sent on a connection since the last look.
    fn take(&mut self, conn: ConnId) -> Vec<Outbound> {
        let sent = self.sent.remove(&conn).unwrap_or_default();
        sent.iter()
            .map(|message| message.message().clone())
            .collect()
    }

    fn logs_in(&mut self, name: &str, host: u8, version: &str, password: &str) -> Actor {
        // As the handshake shows it.
        let dialect = match Dialect::of(version) {
            Some(Dialect::Tcp) => Dialect::Tcp,
            _ => Dialect::Dealer,
        };
        let actor = Actor {
            command: self.opens(name, host, Channel::Command, dialect),
            data: self.opens(name, host, Channel::Data, dialect),
            ttl: self.opens(name, host, Channel::Ttl, dialect),
        };
        self.says(actor.command, auth(name, version, password));
        self.says(actor.ttl, Inbound::HeartbeatInit);
        actor
    }

    fn answer(&mut self, actor: Actor) -> String {
        let sent = self.take(actor.command);
        let answers = sent.into_iter().filter_map(|message| match message {
            Outbound::Auth(text) => Some(text),
            _ => None,
        });
        answers.collect()
    }

    /// An admin with a running session of one node, and a publisher if its dialect has such.
    fn host(&mut self, version: &str) -> (Actor, ConnId) {
        let actor = self.logs_in("alice", 1, version, "admin");
        let four_socket = Dialect::of(version) == Some(Dialect::FourSocket);
        let mut publisher = actor.command;
        self.says(actor.command, Inbound::InitStart(vec!["n1".into()]));
        self.wait(Duration::from_millis(200));
        if four_socket {
            publisher = self.publisher("alice", 1);
            self.says(publisher, Inbound::Node(node("n1", true)));
        } else {
            self.says(actor.command, Inbound::InitNode(node("n1", false)));
        }
        assert!(
            self.take(actor.command)
                .iter()
                .any(|m| matches!(m, Outbound::InitDone))
        );
        (actor, publisher)
    }

    fn publisher(&mut self, identity: &str, host: u8) -> ConnId {
        let made_up = format!("publisher {}", self.conns);
        let conn = self.opens(&made_up, host, Channel::Publish, Dialect::FourSocket);
        self.happens(
            conn,
            Event::Named(Bytes::copy_from_slice(identity.as_bytes())),
        );
        conn
    }

    fn joins(&mut self, name: &str, version: &str) -> Actor {
        let actor = self.logs_in(name, 2, version, "");
        self.says(actor.command, Inbound::JoinStart);
        self.says(actor.command, Inbound::JoinGet("n1".into()));
        self.says(actor.command, Inbound::JoinDone);
        self.wait(Duration::from_millis(100));
        actor
    }
}

fn auth(name: &str, version: &str, password: &str) -> Inbound {
    let dialect = match Dialect::of(version) {
        Some(dialect @ (Dialect::Tcp | Dialect::FourSocket)) => dialect,
        _ => Dialect::Dealer,
    };
    Inbound::Auth(Login {
        dialect,
        one_password: !version.starts_with("0.9") && !version.starts_with("0.10"),
        wants_admin: !password.is_empty(),
        name: name.into(),
        server_password: password.into(),
        admin_password: password.into(),
        version: version.into(),
    })
}

fn node(id: &str, four_socket: bool) -> Node {
    let data = Value::dict([("type_id", Value::str("Mesh"))]);
    Node {
        id: id.into(),
        owner: "COMMON".into(),
        dependencies: Vec::new(),
        data: pickle::encode(&data).into(),
        kind: four_socket.then(|| "BlMesh".into()),
    }
}

#[test]
fn a_publisher_belongs_to_a_client_of_its_address() {
    let mut stage = Stage::new(&[], None);
    let (_, publisher) = stage.host("0.1.13");
    assert!(stage.trusted.contains(&publisher));
    let elsewhere = stage.publisher("alice", 9);
    let nobody = stage.publisher("mallory", 1);
    assert!(stage.closed.contains(&elsewhere) && stage.closed.contains(&nobody));
    assert!(!stage.closed.contains(&publisher));
    stage.says(elsewhere, Inbound::Node(node("n2", true)));
    assert_eq!(stage.session.status(stage.now).nodes, 1);
    stage.says(publisher, Inbound::Node(node("n2", true)));
    assert_eq!(stage.session.status(stage.now).nodes, 2);
}

#[test]
fn publishers_of_nobody_are_closed_in_the_end() {
    let mut stage = Stage::new(&[], None);
    stage.host("0.1.13");
    let silent = stage.opens("made up", 9, Channel::Publish, Dialect::FourSocket);
    let viewer = stage.opens("made up too", 1, Channel::Publish, Dialect::FourSocket);
    for _ in 0..31 {
        stage.wait(Duration::from_secs(1));
        stage.says(ConnId(3), Inbound::HeartbeatPong);
    }
    assert!(stage.closed.contains(&silent) && !stage.closed.contains(&viewer));
}

#[test]
fn a_four_socket_join_streams_on_the_data_channel_after_the_first_question() {
    let mut stage = Stage::new(&[], None);
    stage.host("0.1.13");
    let bob = stage.logs_in("bob", 2, "0.1.13", "");
    assert_eq!(stage.spoken[&bob.command], Dialect::FourSocket);
    assert_eq!(stage.spoken[&bob.data], Dialect::FourSocket);
    stage.says(bob.command, Inbound::JoinStart);
    assert!(
        stage
            .take(bob.command)
            .iter()
            .any(|m| matches!(m, Outbound::JoinCatalog(_)))
    );
    assert!(stage.take(bob.data).is_empty(), "it would be dropped");
    stage.says(bob.command, Inbound::JoinGet("n1".into()));
    let sent = stage.take(bob.data);
    assert!(
        matches!(&sent[..], [Outbound::JoinNode(node)] if node.kind.as_deref() == Some("BlMesh"))
    );
    // A break now loses it: the join starts anew, after something that ends the wait for a chunk.
    stage.happens(bob.data, Event::Closed("cut".into()));
    let data = stage.opens("bob", 2, Channel::Data, Dialect::Dealer);
    assert!(matches!(stage.take(data)[..], [Outbound::Ping]));
    for _ in 0..11 {
        stage.wait(Duration::from_secs(1));
        stage.says(bob.ttl, Inbound::HeartbeatPong);
    }
    assert!(
        stage
            .take(bob.command)
            .iter()
            .any(|m| matches!(m, Outbound::JoinCatalog(_)))
    );
}

#[test]
fn what_a_four_socket_client_did_already_is_undone_where_it_is_refused() {
    let mut stage = Stage::new(&[], None);
    let (alice, _) = stage.host("0.1.13");
    let bob = stage.joins("bob", "0.1.13");
    let right = |owner: &str| Inbound::Right {
        nodes: vec!["n1".into()],
        owner: owner.into(),
    };
    stage.says(alice.command, right("alice"));
    stage.take(bob.command);
    stage.says(bob.command, right("COMMON"));
    assert!(
        stage
            .take(bob.command)
            .iter()
            .any(|m| matches!(m, Outbound::Right { owner, .. } if &**owner == "alice"))
    );
    stage.take(bob.data);
    stage.says(bob.command, Inbound::Delete("n1".into()));
    assert!(
        stage
            .take(bob.data)
            .iter()
            .any(|m| matches!(m, Outbound::Node(node) if node.id == "n1".into()))
    );
    assert_eq!(stage.session.status(stage.now).nodes, 1);
}

#[test]
fn whoever_comes_back_after_the_end_is_told_in_its_own_words() {
    let mut stage = Stage::new(&[], None);
    let (alice, _) = stage.host("0.1.13");
    stage.joins("bob", "0.1.13");
    let user = "bob".to_owned();
    stage.says(alice.command, Inbound::Kick { user });
    let back = stage.opens("bob", 2, Channel::Command, Dialect::Dealer);
    assert_eq!(stage.spoken[&back], Dialect::FourSocket);
    assert!(
        matches!(&stage.take(back)[..], [Outbound::Disconnect { reason }] if reason == "kicked by admin")
    );
}

#[test]
fn rights_of_many_nodes_are_told_one_by_one_to_whom_that_matters() {
    for (version, single) in [("0.7.3", true), ("0.8.3", false), ("0.10.2", false)] {
        let mut stage = Stage::new(&[], None);
        let (alice, _) = stage.host(version);
        stage.says(alice.data, Inbound::Node(node("n2", false)));
        stage.take(alice.command);
        stage.says(
            alice.command,
            Inbound::Right {
                nodes: vec!["n1".into(), "n2".into()],
                owner: "alice".into(),
            },
        );
        let sizes: Vec<usize> = stage
            .take(alice.command)
            .iter()
            .filter_map(|message| match message {
                Outbound::Right { nodes, .. } => Some(nodes.len()),
                _ => None,
            })
            .collect();
        assert_eq!(
            sizes,
            if single { vec![1, 1] } else { vec![2] },
            "{version}"
        );
    }
}

#[test]
fn the_end_of_any_tcp_connection_is_the_leave() {
    for lost in [Channel::Command, Channel::Data, Channel::Ttl] {
        let mut stage = Stage::new(&[], None);
        let (alice, _) = stage.host("0.10.2");
        let bob = stage.joins("bob", "0.10.2");
        let right = Inbound::Right {
            nodes: vec!["n1".into()],
            owner: "bob".into(),
        };
        stage.says(bob.command, right);
        stage.take(alice.command);
        let (conn, others) = match lost {
            Channel::Command => (bob.command, [bob.data, bob.ttl]),
            Channel::Data => (bob.data, [bob.command, bob.ttl]),
            _ => (bob.ttl, [bob.command, bob.data]),
        };
        stage.take(bob.command);
        stage.happens(conn, Event::Closed("cut".into()));
        assert!(
            others.iter().all(|conn| stage.closed.contains(conn)),
            "{lost:?}"
        );
        let told = stage
            .take(bob.command)
            .iter()
            .any(|m| matches!(m, Outbound::Disconnect { .. }));
        assert_eq!(told, lost != Channel::Command, "{lost:?}");
        let freed =
            |m: &Outbound| matches!(m, Outbound::Right { owner, .. } if &**owner == "COMMON");
        assert!(stage.take(alice.command).iter().any(freed), "{lost:?}");
        assert_eq!(stage.session.status(stage.now).users.len(), 1);
    }
}

#[test]
fn ports_are_named_as_the_dialect_has_them() {
    for (version, data, ttl) in [
        (
            "0.9.10",
            "FAILED: port 5556 (data) unreachable",
            "port 5557 (TTL) unreachable",
        ),
        (
            "0.1.13",
            "FAILED: port 5556 (data) unreachable",
            "port 5558 (TTL) unreachable",
        ),
        (
            "0.10.2",
            "FAILED: data channel timeout",
            "port 5555 (TTL) unreachable",
        ),
    ] {
        let mut stage = Stage::new(&[], None);
        let dialect = if version == "0.10.2" {
            Dialect::Tcp
        } else {
            Dialect::Dealer
        };
        let alone = stage.opens("alice", 1, Channel::Command, dialect);
        stage.says(alone, auth("alice", version, ""));
        stage.wait(Duration::from_secs(4));
        assert!(
            matches!(&stage.take(alone)[..], [Outbound::Auth(text)] if text == data),
            "{version}"
        );
        let bob = stage.opens("bob", 1, Channel::Command, dialect);
        stage.opens("bob", 1, Channel::Data, dialect);
        stage.says(bob, auth("bob", version, ""));
        stage.wait(Duration::from_secs(5));
        let told = |m: &Outbound| matches!(m, Outbound::Disconnect { reason } if reason == ttl);
        assert!(stage.take(bob).iter().any(told), "{version}");
    }
}

#[test]
fn versions_mix_only_where_both_are_listed() {
    let refusal = |versions: &[&str], host: &str, guest: &str| {
        let mut stage = Stage::new(versions, None);
        stage.host(host);
        let bob = stage.logs_in("bob", 2, guest, "");
        stage.answer(bob)
    };
    let listed = ["0.9.9", "0.9.10", "0.10.2"];
    assert_eq!(refusal(&listed, "0.9.10", "0.10.2"), "RUNNING");
    assert_eq!(refusal(&listed, "0.10.2", "0.9.9"), "RUNNING");
    assert_eq!(
        refusal(&listed, "0.9.10", "0.9.11"),
        "FAILED: wrong client version (0.9.11 != 0.9.10)"
    );
    assert_eq!(
        refusal(&listed, "0.9.11", "0.9.10"),
        "FAILED: wrong client version (0.9.10 != 0.9.11)"
    );
    assert_eq!(
        refusal(&[], "0.10.2", "0.9.10"),
        "FAILED: wrong client version (0.9.10 != 0.10.2)"
    );
    assert_eq!(refusal(&[], "0.9.10", "0.9.10"), "RUNNING");
}

#[test]
fn in_the_lobby_versions_wait_until_one_starts_the_session() {
    let mut stage = Stage::new(&[], None);
    let old = stage.logs_in("old", 2, "0.1.13", "");
    let new = stage.logs_in("new", 3, "0.9.10", "");
    assert_eq!(
        (stage.answer(old), stage.answer(new)),
        ("LOBBY".into(), "LOBBY".into())
    );
    stage.host("0.9.10");
    assert!(
        stage
            .take(new.command)
            .iter()
            .any(|m| matches!(m, Outbound::JoinCatalog(_)))
    );
    let told = |m: &Outbound| matches!(m, Outbound::Disconnect { reason } if reason == "wrong client version (0.1.13 != 0.9.10)");
    assert!(stage.take(old.command).iter().any(told));
}

#[test]
fn the_one_password_of_older_clients() {
    let enters = |server_password: Option<&str>, password: &str| {
        let mut stage = Stage::new(&[], server_password);
        let actor = stage.logs_in("alice", 1, "0.8.3", password);
        let users = stage.session.status(stage.now).users;
        (stage.answer(actor), users.first().map(|user| user.admin))
    };
    let wrong = ("FAILED: wrong password".to_owned(), None);
    let as_user = ("LOBBY".to_owned(), Some(false));
    let as_admin = ("LOBBY".to_owned(), Some(true));
    assert_eq!(enters(None, ""), as_user);
    assert_eq!(enters(None, "admin"), as_admin);
    assert_eq!(enters(None, "guess"), wrong);
    assert_eq!(enters(Some("gate"), ""), wrong);
    assert_eq!(enters(Some("gate"), "gate"), as_user);
    assert_eq!(enters(Some("gate"), "admin"), as_admin);
    assert_eq!(enters(Some("gate"), "guess"), wrong);
}

#[test]
fn four_socket_clients_get_tables_in_place_of_news() {
    let mut stage = Stage::new(&[], None);
    let (alice, _) = stage.host("0.1.13");
    let bob = stage.joins("bob", "0.1.13");
    stage.take(alice.command);
    stage.take(bob.command);
    stage.says(
        alice.command,
        Inbound::Metadata(vec![("frame_current".into(), Value::Int(7))]),
    );
    stage.wait(Duration::from_millis(100));
    for actor in [alice, bob] {
        let sent = stage.take(actor.command);
        assert!(sent.iter().any(|m| matches!(m, Outbound::ClientsState(_))));
        assert!(!sent.iter().any(|m| matches!(m, Outbound::Metadata { .. })));
    }
}
