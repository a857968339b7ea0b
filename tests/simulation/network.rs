//! One connection of a client to the server, and what ZeroMQ does with it: a queue on each side, a line with delays,
//! breaks after which it connects again by itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blender_multiuser::net::ConnId;
use blender_multiuser::wire::Dialect;
use blender_multiuser::wire::message::{Inbound, Outgoing};

/// What the lines of a world are like.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// One way.
    pub delay: (u64, u64),
    /// Bytes that the kernels and the line hold.
    pub kernel: usize,
    /// Messages that a client's ZeroMQ library holds for it.
    pub high_water: usize,
    /// Whether the client's library confirms what has arrived.
    pub confirms: bool,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            delay: (1, 5),
            kernel: 1 << 20,
            high_water: 1000,
            confirms: true,
        }
    }
}

#[derive(Debug)]
pub struct OnItsWay {
    /// When it is there; `None` while the server has not handed it to the kernel.
    pub due: Option<Instant>,
    pub weight: usize,
    pub dialect: Dialect,
    pub number: u64,
    pub message: Arc<Outgoing>,
}

/// The server's half of a connection whose other half is gone without its knowledge.
#[derive(Debug)]
pub struct Zombie {
    pub conn: ConnId,
    pub noticed_at: Instant,
    pub written: VecDeque<(Instant, usize)>,
}

#[derive(Debug, Default)]
pub struct Wire {
    pub conn: Option<ConnId>,
    /// How the server spells what it sends here.
    pub dialect: Option<Dialect>,
    /// The publisher has said whose it is.
    pub named: bool,
    /// When ZeroMQ connects (again).
    pub opens_at: Option<Instant>,
    /// Not opened before somebody says so.
    pub blocked: bool,
    pub up: VecDeque<(Instant, Inbound)>,
    /// Sent while there was no connection.
    pub outbox: VecDeque<Inbound>,
    pub down: VecDeque<OnItsWay>,
    pub sent: u64,
    /// Confirmations on their way back.
    pub acks: VecDeque<(Instant, u64)>,
    /// In the client's own queue, not handled yet.
    /// `None` is the header of a node whose chunk was lost with the connection: the client waits for it.
    pub received: VecDeque<Option<Arc<Outgoing>>>,
    /// The server ends this connection after what is queued.
    pub ending: bool,
    /// And ZeroMQ is left to connect again after that.
    pub comes_back: bool,
    /// For good.
    pub over: bool,
    pub zombies: Vec<Zombie>,
    pub last_due: Option<Instant>,
    pub last_up: Option<Instant>,
}

impl Wire {
    /// The line is dead: what was on it is lost both ways; the server notices at some time.
    pub fn cut(&mut self, now: Instant, noticed_after: Duration, back_after: Option<Duration>) {
        if let Some(conn) = self.conn.take() {
            self.zombies.push(Zombie {
                conn,
                noticed_at: now + noticed_after,
                written: VecDeque::new(),
            });
        }
        self.up.clear();
        self.down.clear();
        self.acks.clear();
        self.last_due = None;
        self.last_up = None;
        if self.ending && !self.comes_back {
            self.over = true;
        }
        self.opens_at = back_after.filter(|_| !self.over).map(|after| now + after);
    }

    pub fn unwritten(&self) -> usize {
        self.down
            .iter()
            .filter(|flight| flight.due.is_none())
            .map(|flight| flight.weight)
            .sum()
    }
}
