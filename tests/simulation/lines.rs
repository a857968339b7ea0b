//! What goes over the lines of a world: opening, both directions, breaks.

use std::net::SocketAddr;
use std::time::Duration;

use blender_multiuser::net::{ConnId, Peer};
use blender_multiuser::session::Event;
use blender_multiuser::wire::Dialect;
use blender_multiuser::wire::message::{Inbound, Outgoing};

use super::look::brief_in;
use super::network::OnItsWay;
use super::spelling;
use super::world::{CHANNELS, PUBLISH, TTL, World};

impl World {
    pub(super) fn network(&mut self, index: usize, channel: usize) {
        let now = self.now;
        // Opening.
        let wire = &mut self.stations[index].wires[channel];
        if wire.conn.is_none() && wire.opens_at.is_none() && wire.zombies.is_empty() {
            return;
        }
        if wire.conn.is_none()
            && !wire.over
            && !wire.blocked
            && wire.opens_at.is_some_and(|at| at <= now)
        {
            self.open(index, channel);
        }
        // Half-dead connections.
        let wire = &mut self.stations[index].wires[channel];
        let mut reports = Vec::new();
        wire.zombies.retain_mut(|zombie| {
            while zombie.written.front().is_some_and(|(at, _)| *at <= now) {
                let (_, weight) = zombie.written.pop_front().unwrap();
                reports.push((zombie.conn, Event::Written(weight)));
            }
            if zombie.noticed_at <= now {
                reports.push((zombie.conn, Event::Closed("broken".into())));
                return false;
            }
            true
        });
        for (conn, event) in reports {
            self.event(conn, event);
        }
        let Some(conn) = self.stations[index].wires[channel].conn else {
            return;
        };
        // Up.
        while let Some((_, message)) = {
            let wire = &mut self.stations[index].wires[channel];
            if wire.conn == Some(conn) && wire.up.front().is_some_and(|(at, _)| *at <= now) {
                wire.up.pop_front()
            } else {
                None
            }
        } {
            if self.trace && !matches!(message, Inbound::HeartbeatPong) {
                self.say(|| {
                    format!(
                        "{} -> {}",
                        self.stations[index].client.name,
                        brief_in(&message)
                    )
                });
            }
            let wire = &mut self.stations[index].wires[channel];
            if channel == PUBLISH && !std::mem::replace(&mut wire.named, true) {
                let identity = self.stations[index].identity.clone();
                self.event(conn, Event::Named(identity));
                if self.stations[index].wires[channel].conn != Some(conn) {
                    break;
                }
            }
            let message = if self.spelled {
                spelling::through_the_wire(
                    self.stations[index].client.dialect,
                    CHANNELS[channel],
                    message,
                )
            } else {
                message
            };
            self.event(conn, Event::Message(message));
        }
        while let Some((_, number)) = {
            let wire = &mut self.stations[index].wires[channel];
            if wire.conn == Some(conn) && wire.acks.front().is_some_and(|(at, _)| *at <= now) {
                wire.acks.pop_front()
            } else {
                None
            }
        } {
            self.event(conn, Event::Arrived(number));
        }
        // Down: arrivals, then what there is room for.
        self.arrivals(index, channel, conn);
        let station = &mut self.stations[index];
        let wire = &mut station.wires[channel];
        if wire.conn == Some(conn) && wire.ending && wire.down.is_empty() {
            wire.conn = None;
            if wire.comes_back {
                wire.opens_at = Some(now + Duration::from_millis(100));
            } else {
                wire.over = true;
            }
            self.conns.remove(&conn);
            let client = &mut self.stations[index].client;
            if channel == TTL && client.dialect == Dialect::Tcp {
                client.end("Server lost".into());
            }
            self.event(conn, Event::Closed("ended".into()));
        }
    }

    fn arrivals(&mut self, index: usize, channel: usize, conn: ConnId) {
        let now = self.now;
        let station = &mut self.stations[index];
        let line = station.line;
        let wire = &mut station.wires[channel];
        let mut last = None;
        let mut pings = 0;
        while wire
            .down
            .front()
            .is_some_and(|flight| flight.due.is_some_and(|due| due <= now))
            && wire.received.len() < line.high_water
        {
            let flight = wire.down.pop_front().unwrap();
            last = Some(flight.number);
            if channel == TTL {
                pings += 1;
            } else {
                if flight.dialect != station.client.dialect {
                    let fault = format!("{:?} in {:?}", flight.message.message(), flight.dialect);
                    station.client.faults.push(fault);
                }
                wire.received.push_back(Some(flight.message));
            }
        }
        if pings > 0 && !station.closed {
            station.ttl_heard = now;
            if station.ttl_answers {
                for _ in 0..pings {
                    self.send(index, TTL, Inbound::HeartbeatPong);
                }
            }
        }
        if let Some(number) = last
            && line.confirms
        {
            let at = now + self.ms(line.delay) + self.ms((0, 200));
            let acks = &mut self.stations[index].wires[channel].acks;
            let at = acks.back().map_or(at, |(last, _)| at.max(*last));
            acks.push_back((at, number));
        }
        // Into the kernel.
        let wire = &mut self.stations[index].wires[channel];
        let mut in_kernel: usize = wire
            .down
            .iter()
            .filter(|flight| flight.due.is_some())
            .map(|flight| flight.weight)
            .sum();
        let mut written = 0;
        for at in 0..self.stations[index].wires[channel].down.len() {
            let flight = &self.stations[index].wires[channel].down[at];
            if flight.due.is_some() {
                continue;
            }
            if in_kernel > 0 && in_kernel + flight.weight > line.kernel {
                break;
            }
            in_kernel += flight.weight;
            written += flight.weight;
            let delay = self.ms(line.delay);
            let wire = &mut self.stations[index].wires[channel];
            let due = (now + delay).max(wire.last_due.unwrap_or(now));
            wire.last_due = Some(due);
            wire.down[at].due = Some(due);
        }
        if written > 0 {
            self.event(conn, Event::Written(written));
        }
    }

    fn open(&mut self, index: usize, channel: usize) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let station = &mut self.stations[index];
        let wire = &mut station.wires[channel];
        wire.opens_at = None;
        wire.conn = Some(conn);
        wire.sent = 0;
        wire.ending = false;
        wire.named = false;
        // As the handshake shows it.
        let dialect = match (station.client.dialect, channel) {
            (Dialect::Tcp, _) => Dialect::Tcp,
            (Dialect::FourSocket, TTL | PUBLISH) => Dialect::FourSocket,
            _ => Dialect::Dealer,
        };
        wire.dialect = Some(dialect);
        self.conns.insert(conn, (index, channel));
        let outbox = std::mem::take(&mut wire.outbox);
        let peer = Peer {
            identity: if channel == PUBLISH {
                format!("publisher {conn:?}").into_bytes().into()
            } else {
                station.identity.clone()
            },
            address: SocketAddr::from(([10, 0, 0, (index % 250) as u8 + 1], 40_000)),
            channel: CHANNELS[channel],
            dialect,
        };
        self.say(|| {
            format!(
                "{} opens {:?} as {conn:?}",
                self.stations[index].client.name, CHANNELS[channel]
            )
        });
        self.event(conn, Event::Opened(peer));
        for message in outbox {
            self.send(index, channel, message);
        }
    }

    /// What the client hands to its ZeroMQ library.
    pub(super) fn send(&mut self, index: usize, channel: usize, message: Inbound) {
        let delay = self.ms(self.stations[index].line.delay);
        let now = self.now;
        let wire = &mut self.stations[index].wires[channel];
        if wire.over {
            return;
        }
        if wire.conn.is_none() {
            return wire.outbox.push_back(message);
        }
        let due = (now + delay).max(wire.last_up.unwrap_or(now));
        wire.last_up = Some(due);
        wire.up.push_back((due, message));
    }

    pub(super) fn carry(&mut self, conn: ConnId, message: std::sync::Arc<Outgoing>) {
        let Some(&(index, channel)) = self.conns.get(&conn) else {
            return;
        };
        let wire = &mut self.stations[index].wires[channel];
        let Some(dialect) = wire.dialect else { return };
        let weight = message.weight(dialect);
        if wire.conn == Some(conn) {
            wire.sent += 1;
            let number = wire.sent;
            wire.down.push_back(OnItsWay {
                due: None,
                weight,
                dialect,
                number,
                message,
            });
        } else if let Some(zombie) = wire.zombies.iter_mut().find(|z| z.conn == conn) {
            zombie
                .written
                .push_back((self.now + Duration::from_millis(1), weight));
        }
    }

    pub(super) fn speak(&mut self, conn: ConnId, dialect: Dialect) {
        if let Some(&(index, channel)) = self.conns.get(&conn) {
            let wire = &mut self.stations[index].wires[channel];
            if wire.conn == Some(conn) {
                wire.dialect = Some(dialect);
            }
        }
    }

    pub(super) fn close(&mut self, conn: ConnId, reason: Option<String>) {
        let Some(&(index, channel)) = self.conns.get(&conn) else {
            return;
        };
        let wire = &mut self.stations[index].wires[channel];
        if wire.conn == Some(conn) {
            wire.ending = true;
            // Closed without a word: ZeroMQ connects again.
            wire.comes_back = reason.is_none() && wire.dialect != Some(Dialect::Tcp);
        }
    }
}
