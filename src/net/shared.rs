//! What connections share: all of them, and the tasks of one.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Semaphore, mpsc, watch};

use super::limits::{Limits, LogGate};
use super::refused::Refused;
use super::room::Room;
use super::{ConnId, Event, Peer, Settings};

/// Unit of the room for messages in flight.
pub const KIB: usize = 1024;

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    pub events: mpsc::Sender<(ConnId, Event)>,
    /// Room for messages that have been read, in KiB.
    pub room: Arc<Semaphore>,
    /// Room for those that have been read in part.
    pub partial: Room,
    pub stopping: watch::Receiver<bool>,
    pub refused: Refused,
    pub limits: Arc<Limits>,
    /// Numbers the connections.
    pub next: AtomicU64,
    pub full: LogGate,
    pub troubled: LogGate,
}

/// Which of the server's ports a connection came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Command,
    Data,
    Ttl,
    /// P+3, TTL of the four-socket dialect.
    FourSocketTtl,
}

/// What the tasks of one connection share.
#[derive(Debug, Clone)]
pub struct Context {
    pub id: ConnId,
    pub peer: Peer,
    pub shared: Arc<Shared>,
}

/// Waits until the server is to stop.
pub async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the server has been dropped.
    let _ = stopping.wait_for(|stop| *stop).await;
}
