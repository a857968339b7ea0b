//! The operator's line to the server, shared by everything that sends commands.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::{AdminCommand, AdminReply, Request};
use crate::platform::{Stop, StopSignals};

/// Requests waiting for the server; whoever sends more waits.
const QUEUE: usize = 16;

/// What clients are told when the operator stops the server.
pub const EXIT_REASON: &str = "the server was stopped by its operator";

/// What clients are told when the operating system stops the server.
pub const SIGNAL_REASON: &str = "the server is shutting down";

/// Signals closer together than this are one.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Why a command got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    #[error("The server has ended.")]
    Ended,
    #[error(
        "No answer yet: the server is still busy with it, or hangs. The log tells when it has saved or restored something."
    )]
    Late,
}

/// Sends commands to the server; clones share the line.
#[derive(Debug, Clone)]
pub struct Operator {
    requests: mpsc::Sender<Request>,
    runtime: Handle,
    leaving: watch::Sender<bool>,
}

impl Operator {
    /// The line and its server's end. Needs the tokio runtime.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let operator = Self {
            requests,
            runtime: Handle::current(),
            leaving: watch::Sender::default(),
        };
        (operator, receiver)
    }

    /// Sends a command and waits at most `patience` for the answer.
    pub async fn ask(
        &self,
        command: AdminCommand,
        patience: Duration,
    ) -> Result<AdminReply, Silence> {
        let exit = command.stops();
        if exit {
            self.leaving.send_replace(true);
        }
        let (answer, answered) = oneshot::channel();
        let conversation = async {
            self.requests
                .send((command, answer))
                .await
                .map_err(|_| Silence::Ended)?;
            answered.await.map_err(|_| Silence::Ended)
        };
        let reply = tokio::time::timeout(patience, conversation)
            .await
            .unwrap_or(Err(Silence::Late));
        if exit && matches!(reply, Ok(AdminReply::Failed(_))) {
            self.leaving.send_replace(false);
        }
        reply
    }

    /// The same for a thread outside of the runtime.
    pub fn ask_blocking(
        &self,
        command: AdminCommand,
        patience: Duration,
    ) -> Result<AdminReply, Silence> {
        self.runtime.block_on(self.ask(command, patience))
    }

    /// Whether an exit is under way.
    pub fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Waits until an exit is under way.
    pub async fn leaving(&self) {
        // Cannot fail: one sender is here.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// Turns the signals that ask a server to stop into an exit or a restart, and one during an exit into an immediate end of
    /// the process. `leave` is called before either, and may block: it gives the terminal back.
    pub fn obey_signals(
        &self,
        terminal: bool,
        leave: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let mut signals = StopSignals::listen(terminal)?;
        let operator = self.clone();
        self.runtime.spawn(async move {
            let mut last: Option<Instant> = None;
            loop {
                let Stop {
                    name,
                    again,
                    at_once,
                } = signals.next().await;
                // A service manager may signal the process and its group together: that is one request.
                if last
                    .replace(Instant::now())
                    .is_some_and(|last| last.elapsed() < ONE_REQUEST)
                {
                    continue;
                }
                if operator.is_leaving() {
                    if let Some(code) = at_once {
                        warn!("{name} during shutdown: ending at once");
                        tokio::task::block_in_place(&leave);
                        std::process::exit(code.into());
                    }
                    continue;
                }
                info!("{name}: stopping");
                tokio::task::block_in_place(&leave);
                let operator = operator.clone();
                let exit = if again {
                    let at = SystemTime::now();
                    AdminCommand::Restart { at }
                } else {
                    let reason = SIGNAL_REASON.into();
                    AdminCommand::Exit { reason }
                };
                // Set here, so that a second signal counts as one however slow the server is to answer.
                operator.leaving.send_replace(true);
                tokio::spawn(async move { operator.ask(exit, Duration::from_secs(60)).await });
            }
        });
        Ok(())
    }
}
