//! The sending side of one connection.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::WriteHalf;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::outbox::{MAX_SLICES, Outbox};
use super::shared::{Context, stopped};
use super::{Control, Event, zmtp};
use crate::wire::message::Outgoing;
use crate::wire::{Channel, Dialect};

/// Weight that is reported as soon as it is written.
const REPORT_WEIGHT: usize = 32 * 1024;
/// How long less than that may stay unreported. It spares the session an event per message.
const REPORT_AFTER: Duration = Duration::from_millis(20);
/// At most this often there is a PING, and a report of progress within one message.
const PING_EVERY: Duration = Duration::from_millis(250);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A PING waits for a silence of so long, and no longer than so long for one, or where writing never ends.
const SILENCE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_IN_FLOOD: Duration = Duration::from_secs(4);
/// After so many messages without a silence and an answer they may fill the peer's queue.
const MANY: u64 = 64;
/// How long a closing connection may go without progress, and take in all, to write what is queued.
const FLUSH_STALL: Duration = Duration::from_secs(1);
const FLUSH: Duration = Duration::from_secs(5);
/// How long the heartbeat of a tcp client outlives what is written to its other connections: several turns of a busy Blender.
const HEARTBEAT_STAYS: Duration = Duration::from_secs(5);
/// Messages taken from the queue at once.
const BATCH: usize = 64;

/// What the reader tells the writer of the same connection.
#[derive(Debug, Default)]
pub struct Exchange {
    /// Context of the peer's PING that is to be answered. One is enough, for any answer will do to show that we live, and
    /// a peer cannot make us queue more.
    ping: Mutex<Option<Bytes>>,
    /// What our PING under way says: the number of messages sent before it; 0 if there is none.
    pinged: AtomicU64,
    wake: Notify,
}

impl Exchange {
    /// The peer wants a PONG.
    pub fn answer(&self, context: Bytes) {
        *self.ping.lock().unwrap_or_else(PoisonError::into_inner) = Some(context);
        self.wake.notify_one();
    }

    /// The peer sent a PONG. If it answers our PING: the number of messages that have arrived.
    pub fn answered(&self, context: &[u8]) -> Option<u64> {
        let count = u64::from_be_bytes(context.try_into().ok()?);
        let expected = count != 0
            && self
                .pinged
                .compare_exchange(count, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if expected {
            self.wake.notify_one();
        }
        expected.then_some(count)
    }

    fn take_ping(&self) -> Option<Bytes> {
        let mut ping = self.ping.lock().unwrap_or_else(PoisonError::into_inner);
        ping.take()
    }
}

/// What makes a writer finish.
#[derive(Debug)]
pub struct Closing {
    pub control: watch::Receiver<Control>,
    pub stopping: watch::Receiver<bool>,
    /// The reader has found that the peer breaks the protocol.
    pub fault: oneshot::Receiver<String>,
}

impl Closing {
    /// Waits until the connection is to be closed; returns the text of the ERROR if there is to be one.
    async fn asked(self) -> Option<String> {
        let Closing {
            mut control,
            stopping,
            fault,
        } = self;
        tokio::select! {
            closing = control.wait_for(|control| control.closing.is_some()) => match closing {
                Ok(control) => control.closing.clone().flatten(),
                // All links are gone.
                Err(_) => None,
            },
            () = stopped(stopping) => None,
            Ok(reason) = fault => Some(reason),
        }
    }
}

/// Writes what is queued for one connection and reports how far it got.
#[derive(Debug)]
pub struct Writer<'a> {
    context: &'a Context,
    half: WriteHalf<'a>,
    queue: mpsc::UnboundedReceiver<(Dialect, Arc<Outgoing>)>,
    exchange: &'a Exchange,
    outbox: Outbox,
    /// Weight written but not reported, and since when there is some.
    unreported: usize,
    report_at: Option<Instant>,
    /// When the owner last heard of progress.
    reported: Instant,
    /// Whether the peer knows PING.
    pings: bool,
    /// Messages framed so far, of which the last PING told, and when the next one may come.
    sent: u64,
    pinged: u64,
    ping_at: Instant,
    /// Since when there is something to be asked for.
    ping_wanted: Option<Instant>,
    /// When something was written last.
    written: Instant,
}

impl<'a> Writer<'a> {
    pub fn new(
        context: &'a Context,
        half: WriteHalf<'a>,
        queue: mpsc::UnboundedReceiver<(Dialect, Arc<Outgoing>)>,
        exchange: &'a Exchange,
        pings: bool,
    ) -> Self {
        let now = Instant::now();
        Writer {
            context,
            half,
            queue,
            exchange,
            outbox: if context.peer.dialect == Dialect::Tcp {
                Outbox::tcp()
            } else {
                Outbox::default()
            },
            unreported: 0,
            report_at: None,
            reported: now,
            pings,
            sent: 0,
            pinged: 0,
            ping_at: now,
            ping_wanted: None,
            written: now,
        }
    }

    /// Writes until the connection is to be closed and all is flushed, or writing fails.
    pub async fn run(mut self, closing: Closing) -> io::Result<()> {
        let refuse = tokio::select! {
            biased;
            end = self.pump() => match end? {},
            refuse = closing.asked() => refuse,
        };
        self.finish(refuse).await
    }

    /// Writes until that fails.
    async fn pump(&mut self) -> io::Result<Infallible> {
        // Setting a timer costs; this one is set anew only when it has rung or has to ring earlier.
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut set: Option<Instant> = None;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            while !self.outbox.is_full() {
                match self.queue.try_recv() {
                    Ok(message) => self.frame(message),
                    Err(_) => break,
                }
            }
            let ping_at = self.commands();
            if !self.outbox.is_empty() {
                self.outbox.seal();
                self.write_some().await?;
                self.report_written().await;
                continue;
            }
            let deadline = [self.report_at, ping_at].into_iter().flatten().min();
            if let Some(deadline) = deadline
                && set.is_none_or(|set| deadline < set)
            {
                timer.as_mut().reset(deadline);
                set = Some(deadline);
            }
            tokio::select! {
                biased;
                received = self.queue.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        // All links are gone, of which `Closing` knows too, and whether one was closed before.
                        std::future::pending::<()>().await;
                    }
                    for message in batch.drain(..) {
                        self.frame(message);
                    }
                }
                () = self.exchange.wake.notified() => {}
                () = &mut timer, if set.is_some() => {
                    set = None;
                    self.report_written().await;
                }
            }
        }
    }

    fn frame(&mut self, (dialect, message): (Dialect, Arc<Outgoing>)) {
        let mut weight = message.weight(dialect);
        debug_assert!(
            weight > 0,
            "the last message of several carries all the weight"
        );
        let mut messages = message.messages(dialect).peekable();
        while let Some(chunks) = messages.next() {
            let last = messages.peek().is_none();
            self.outbox
                .push(chunks, if last { std::mem::take(&mut weight) } else { 0 });
        }
        self.sent = self.sent.saturating_add(1);
    }

    /// Adds the commands that are due, and says when the next PING will be, if it is only too early for it.
    ///
    /// A PING must not be what follows when the peer's queue is full: libzmq then stops in the middle of what it has read. Should
    /// the connection end before it goes on, it finds the PING there, wants to answer, and aborts the whole process, Blender
    /// (`Assertion failed: !_io_error`). So either it comes alone, or further behind than libzmq reads at once.
    fn commands(&mut self) -> Option<Instant> {
        if let Some(context) = self.exchange.take_ping() {
            self.outbox.command(|out| zmtp::write_pong(out, &context));
        }
        let unconfirmed = self.sent.saturating_sub(self.pinged);
        if !self.pings || unconfirmed == 0 || self.exchange.pinged.load(Ordering::Acquire) != 0 {
            return None;
        }
        let now = Instant::now();
        let wanted = *self.ping_wanted.get_or_insert(now);
        let silent = self.written + SILENCE;
        let due = if self.outbox.is_empty() {
            silent.min(wanted + PATIENCE)
        } else {
            wanted + PATIENCE_IN_FLOOD
        };
        let due = due.max(self.ping_at);
        if now < due {
            return Some(due);
        }
        if now < silent || unconfirmed >= MANY {
            self.outbox.command(zmtp::write_filler);
        }
        self.pinged = self.sent;
        self.ping_at = now + PING_EVERY;
        self.ping_wanted = None;
        self.exchange.pinged.store(self.sent, Ordering::Release);
        let context = self.sent.to_be_bytes();
        self.outbox.command(|out| zmtp::write_ping(out, &context));
        None
    }

    /// Hands to the kernel what it takes at once, waiting until it takes something.
    async fn write_some(&mut self) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = self.outbox.slices(&mut slices);
        let slices = slices.get(..filled).unwrap_or_default();
        let written = self.half.write_vectored(slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written = Instant::now();
        let weight = self.outbox.advance(written);
        if weight > 0 {
            self.unreported = self.unreported.saturating_add(weight);
            if self.report_at.is_none() {
                self.report_at = Some(self.written + REPORT_AFTER);
            }
        } else if self.reported.elapsed() >= PROGRESS_EVERY {
            let events = &self.context.shared.events;
            if events.try_send((self.context.id, Event::Progress)).is_ok() {
                self.reported = Instant::now();
            }
        }
        Ok(())
    }

    /// Reports what has been written, if it is much or has waited long enough.
    async fn report_written(&mut self) {
        let due = self.unreported >= REPORT_WEIGHT
            || self.report_at.is_some_and(|at| at <= Instant::now());
        if due {
            let event = Event::Written(self.unreported);
            self.unreported = 0;
            self.report_at = None;
            self.reported = Instant::now();
            // Without anybody to hear it the reader ends the connection.
            let _ = self
                .context
                .shared
                .events
                .send((self.context.id, event))
                .await;
        }
    }

    /// Writes what is left, within bounds, and an ERROR after it.
    async fn finish(&mut self, refuse: Option<String>) -> io::Result<()> {
        while let Ok(message) = self.queue.try_recv() {
            self.frame(message);
        }
        let peer = &self.context.peer;
        // The tcp dialect has no word for it, and does not come back.
        if let Some(reason) = refuse
            && peer.dialect != Dialect::Tcp
        {
            let refused = &self.context.shared.refused;
            refused.add(peer.address.ip(), Some(peer.identity.clone()), &reason);
            self.outbox.command(|out| zmtp::write_error(out, &reason));
        }
        self.outbox.seal();
        let end = Instant::now() + FLUSH;
        while !self.outbox.is_empty() {
            let patience = end.min(Instant::now() + FLUSH_STALL);
            match timeout_at(patience, self.write_some()).await {
                Ok(written) => written?,
                Err(_) => return Ok(()),
            }
        }
        // Clients of the tcp dialect take the end of their heartbeat for the loss of the server, and look at it before they read the
        // reason that has just been sent: it is theirs to end. When they do, the reader ends this.
        if peer.dialect == Dialect::Tcp && peer.channel == Channel::Ttl {
            sleep(HEARTBEAT_STAYS).await;
        }
        self.half.shutdown().await
    }
}
