//! One connection, from accept to close.

use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, error};

use super::handshake::{self, Greeted, HandshakeError};
use super::limits::Slot;
use super::reader::{ReadEnd, Reader, trusted};
use super::room::Held;
use super::shared::{Context, Port, Shared, stopped};
use super::writer::{Closing, Exchange, Writer};
use super::{ConnId, Control, Event, Link, Peer, zmtp};
use crate::wire::message::Outgoing;
use crate::wire::{Channel, Dialect};

/// How long a peer gets to close its end once ours is closed, and how many bytes to say until then. Closing with
/// unread bytes would reset the connection, and the last we wrote could be lost to the peer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;
/// How long to read on what a peer sent before writing to it failed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Greets the peer, then reads and writes until either ends.
pub async fn run(
    shared: Arc<Shared>,
    id: ConnId,
    mut slot: Slot,
    port: Port,
    mut stream: TcpStream,
    address: SocketAddr,
) {
    tune(&stream);
    let introduced = tokio::select! {
        introduced = introduce(&shared, id, port, &mut stream, address) => introduced,
        () = slot.evicted() => None,
    };
    let Some(greeted) = introduced else {
        return;
    };
    let peer = Peer {
        identity: greeted.identity.clone(),
        address,
        channel: greeted.channel,
        dialect: greeted.dialect,
    };
    let context = Context { id, peer, shared };
    let (queue_in, queue) = mpsc::unbounded_channel();
    let (control_in, control) = watch::channel(Control::default());
    let link = Link {
        dialect: context.peer.dialect,
        queue: queue_in,
        control: control_in,
    };
    let events = &context.shared.events;
    let opened = Event::Opened(context.peer.clone(), link);
    if events.send((id, opened)).await.is_err() {
        return;
    }
    let talk = talk(&context, &mut stream, greeted, queue, control, &mut slot);
    let reason = unpanicked(talk).await.unwrap_or_else(|| {
        error!(peer = %address, "a connection ended by a fault of the server");
        "internal error".to_owned()
    });
    let _ = events.send((id, Event::Closed(reason))).await;
    linger(&mut stream).await;
}

/// The handshake within its time; a peer that fails it is told so if it can understand it.
async fn introduce(
    shared: &Shared,
    id: ConnId,
    port: Port,
    stream: &mut TcpStream,
    address: SocketAddr,
) -> Option<Greeted> {
    let greeting = timeout(
        shared.settings.handshake,
        handshake::greet(stream, port, id, address.ip(), &shared.refused),
    );
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        () = stopped(shared.stopping.clone()) => return None,
    };
    match greeted {
        Ok(Ok(greeted)) => return Some(greeted),
        Ok(Err(error)) => {
            debug!(peer = %address, ?port, %error, "handshake failed");
            if let HandshakeError::Refused(reason) = error {
                shared.refused.add(address.ip(), None, &reason);
                let mut bytes = BytesMut::new();
                zmtp::write_error(&mut bytes, &reason);
                // A few bytes, which the socket's empty buffer takes at once.
                if let Ok(Ok(())) = timeout(LINGER, stream.write_all(&bytes)).await {
                    linger(stream).await;
                }
            }
        }
        Err(_) => debug!(peer = %address, ?port, "handshake not finished in time"),
    }
    None
}

/// Reads and writes until the connection ends, and says why it did.
async fn talk(
    context: &Context,
    stream: &mut TcpStream,
    greeted: Greeted,
    queue: mpsc::UnboundedReceiver<(Dialect, Arc<Outgoing>)>,
    mut control: watch::Receiver<Control>,
    slot: &mut Slot,
) -> String {
    let (read_half, write_half) = stream.split();
    let exchange = Exchange::default();
    let (fault_in, fault) = oneshot::channel();
    let closing = Closing {
        control: control.clone(),
        stopping: context.shared.stopping.clone(),
        fault,
    };
    let mut reader = pin!(
        Reader {
            context,
            half: read_half,
            framing: greeted.framing,
            control: control.clone(),
            exchange: &exchange,
            publisher: None,
            held: Held::default(),
        }
        .run()
    );
    let pings = greeted.knows_ping && context.peer.channel != Channel::Ttl;
    let mut writer = pin!(Writer::new(context, write_half, queue, &exchange, pings).run(closing));
    let trust = async {
        tokio::select! {
            known = trusted(&mut control) => if known {
                slot.trust();
            },
            () = slot.evicted() => return "not logged in, and made room for the next".to_owned(),
        }
        pending::<String>().await
    };
    tokio::select! {
        biased;
        end = &mut reader => match end {
            ReadEnd::Zmtp(error) => {
                let reason = error.to_string();
                if fault_in.send(reason.clone()).is_ok() {
                    let _ = writer.await;
                }
                reason
            }
            end => end.to_string(),
        },
        end = &mut writer => match end {
            Ok(()) => "closed by the server".to_owned(),
            Err(error) => {
                let _ = timeout(LAST_WORDS, reader).await;
                error.to_string()
            }
        },
        evicted = trust => evicted,
    }
}

/// Options of the socket; where one cannot be set the connection works all the same.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10));
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Closes our end and waits a little for the peer to close its own.
async fn linger(stream: &mut TcpStream) {
    let end = async {
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut waste = [0; 4096];
        while left > 0 {
            match stream.read(&mut waste).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, end).await;
}

/// Runs a future to its end, or to its panic: whoever owns the connection is told that it ended in either case.
async fn unpanicked<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        },
    )
    .await
}
