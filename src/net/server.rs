//! Accepting connections, and stopping.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::connection;
use super::limits::{Limits, LogGate};
use super::listen::Bound;
use super::refused::Refused;
use super::room::Room;
use super::shared::{KIB, Port, Shared, stopped};
use super::{ConnId, Event, Settings};

/// The running network side. Dropping it ends all connections at once.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    acceptors: JoinSet<()>,
}

impl Bound {
    /// Starts accepting. Everything that happens is reported through `events`, whose capacity bounds what has been read
    /// but not handled; nothing is read while it is full.
    pub fn serve(self, settings: Settings, events: mpsc::Sender<(ConnId, Event)>) -> Server {
        let (stop, stopping) = watch::channel(false);
        let room = settings.in_flight / KIB;
        let shared = Arc::new(Shared {
            limits: Limits::new(&settings),
            room: Arc::new(Semaphore::new(room.clamp(1, Semaphore::MAX_PERMITS))),
            partial: Room::new(settings.in_flight),
            settings,
            events,
            stopping,
            refused: Refused::default(),
            next: AtomicU64::new(1),
            full: LogGate::default(),
            troubled: LogGate::default(),
        });
        let mut acceptors = JoinSet::new();
        let ports = [Port::Command, Port::Data, Port::Ttl, Port::FourSocketTtl];
        for (port, listeners) in ports.into_iter().zip(self.listeners) {
            for listener in listeners {
                acceptors.spawn(accept(Arc::clone(&shared), port, listener));
            }
        }
        Server { stop, acceptors }
    }
}

impl Server {
    /// Accepts nothing more, writes what is queued to every peer as [`super::Link::close`] does, and returns when all
    /// connections have ended, after `limit` at the latest. Events have to be taken meanwhile (or their receiver
    /// dropped); connections that are cut at the limit report no `Closed`.
    pub async fn shutdown(mut self, limit: Duration) {
        self.stop.send_replace(true);
        let all = async { while self.acceptors.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            debug!("connections that did not end in time were cut");
        }
    }
}

/// Accepts on one listener until the server stops; then waits for the connections that came in here.
async fn accept(shared: Arc<Shared>, port: Port, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut stop = pin!(stopped(shared.stopping.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => enter(&shared, port, stream, &mut connections),
                Err(error) => recover(&shared, error).await,
            },
            // Ended ones have to be collected, or they would pile up.
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn enter(shared: &Arc<Shared>, port: Port, stream: TcpStream, connections: &mut JoinSet<()>) {
    let Ok(mut address) = stream.peer_addr() else {
        // Gone already.
        return;
    };
    address.set_ip(address.ip().to_canonical());
    match shared.limits.enter(address.ip()) {
        Ok(slot) => {
            let id = ConnId(shared.next.fetch_add(1, Ordering::Relaxed));
            let shared = Arc::clone(shared);
            connections.spawn(connection::run(shared, id, slot, port, stream, address));
        }
        Err(limit) => {
            if let Some(suppressed) = shared.full.pass() {
                info!(peer = %address, suppressed, "connection closed at once: there are {limit}");
            }
        }
    }
}

/// Waits where accepting again at once would fail again at once.
async fn recover(shared: &Shared, error: io::Error) {
    match error.kind() {
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::Interrupted => {}
        _ => {
            if let Some(suppressed) = shared.troubled.pass() {
                warn!(%error, suppressed, "cannot accept connections, trying again");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
