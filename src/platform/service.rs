//! Tells the service manager (systemd's `Type=notify`) how the server is. Without one, nothing here does anything.

use std::env;
use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::admin::{AdminCommand, AdminReply, Operator, Status};

/// How often the line in `systemctl status` is renewed, where no watchdog wants to hear more often.
const NEWS: Duration = Duration::from_secs(30);

/// Loading or saving a large scene may take longer than the manager waits for a start or a stop. While that goes on it
/// is asked this often for more time, each time for as much as [`MORE`].
const STEP: Duration = Duration::from_secs(5);
const MORE: Duration = Duration::from_secs(30);

/// What takes longer than this hangs, and is the manager's business.
const LOADING: Duration = Duration::from_secs(30 * 60);
const STOPPING: Duration = Duration::from_secs(10 * 60);

/// Reports to the service manager that has started this process, if one has, until the process ends. Needs the tokio
/// runtime. To be called before the session is loaded.
pub fn report_to_service_manager(operator: Operator) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    tokio::spawn(async move { Reporter::new(send).report(operator, watchdog).await });
}

fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    // Waits where the manager's queue is full.
    tokio::task::block_in_place(|| sd_notify::notify(states))
}

struct Reporter<F> {
    send: F,
    failing: bool,
}

impl<F: Fn(&[NotifyState<'_>]) -> io::Result<()>> Reporter<F> {
    fn new(send: F) -> Self {
        Self {
            send,
            failing: false,
        }
    }

    /// Everything is asked of the task that owns the session: what it does not answer is not reported, so that a server
    /// that hangs is started anew.
    async fn report(mut self, operator: Operator, watchdog: Option<Duration>) {
        let interval = watchdog.map_or(NEWS, |limit| (limit / 2).min(NEWS));
        self.tell(&[NotifyState::Status("loading the session")]);
        let loaded = status(&operator);
        let Some(first) = self.patiently(loaded, LOADING).await else {
            return;
        };
        let mut line = summary(&first);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&line)]);
        let watch = async {
            loop {
                tokio::time::sleep(interval).await;
                let Some(status) = status(&operator).await else {
                    return;
                };
                let new = summary(&status);
                if new == line {
                    self.tell(&[NotifyState::Watchdog]);
                } else {
                    self.tell(&[NotifyState::Watchdog, NotifyState::Status(&new)]);
                    line = new;
                }
            }
        };
        tokio::select! {
            () = watch => {}
            () = operator.leaving() => {}
        }
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Status("saving the session"),
        ]);
        self.patiently(std::future::pending::<()>(), STOPPING).await;
    }

    /// Waits for something and asks for more time meanwhile, but not for ever.
    async fn patiently<T>(&mut self, something: impl Future<Output = T>, limit: Duration) -> T {
        tokio::pin!(something);
        let began = Instant::now();
        while began.elapsed() < limit {
            // Too long to fit is about 71 minutes.
            let more = u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX);
            self.tell(&[NotifyState::ExtendTimeoutUsec(more)]);
            if let Ok(done) = timeout_at(Instant::now() + STEP, &mut something).await {
                return done;
            }
        }
        something.await
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        let told = (self.send)(states);
        if let (Err(error), false) = (&told, self.failing) {
            warn!(%error, "the service manager cannot be told how the server is");
        }
        self.failing = told.is_err();
    }
}

/// How the server is, whenever it gets to say so; `None` when it has ended.
async fn status(operator: &Operator) -> Option<Box<Status>> {
    match operator.ask(AdminCommand::Status, Duration::MAX).await {
        Ok(AdminReply::Status(status)) => Some(status),
        _ => None,
    }
}

fn summary(status: &Status) -> String {
    let (users, nodes) = (status.users.len(), status.nodes);
    let s = |number| if number == 1 { "" } else { "s" };
    format!("{users} user{}, {nodes} node{}", s(users), s(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::sync::oneshot;

    const WATCHDOG: Duration = Duration::from_millis(20);

    /// What has been told so far.
    fn told(notices: &mut UnboundedReceiver<String>) -> Vec<String> {
        std::iter::from_fn(|| notices.try_recv().ok()).collect()
    }

    async fn until(notices: &mut UnboundedReceiver<String>, wanted: &str) -> String {
        loop {
            let notice = notices.recv().await.unwrap();
            if notice.contains(wanted) {
                return notice;
            }
        }
    }

    fn answer(to: oneshot::Sender<AdminReply>, nodes: usize) {
        let status = Status {
            nodes,
            ..Status::default()
        };
        to.send(AdminReply::Status(Box::new(status))).unwrap();
    }

    #[tokio::test]
    async fn only_a_session_that_answers_is_alive() {
        let (operator, mut requests) = Operator::new();
        let (sender, mut notices) = unbounded_channel();
        let reporter = Reporter::new(move |states: &[NotifyState<'_>]| {
            let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
            let _ = sender.send(lines.join("\n"));
            Ok(())
        });
        tokio::spawn(reporter.report(operator.clone(), Some(WATCHDOG)));

        // Loading: the session does not answer yet.
        let (_, first) = requests.recv().await.unwrap();
        tokio::time::sleep(WATCHDOG * 3).await;
        let before = told(&mut notices);
        assert_eq!(
            before,
            ["STATUS=loading the session", "EXTEND_TIMEOUT_USEC=30000000"]
        );
        answer(first, 1);
        assert_eq!(
            notices.recv().await.unwrap(),
            "READY=1\nSTATUS=0 users, 1 node"
        );

        // Serving.
        let (_, request) = requests.recv().await.unwrap();
        answer(request, 1);
        assert_eq!(notices.recv().await.unwrap(), "WATCHDOG=1");
        let (_, request) = requests.recv().await.unwrap();
        answer(request, 599);
        assert_eq!(
            notices.recv().await.unwrap(),
            "WATCHDOG=1\nSTATUS=0 users, 599 nodes"
        );

        // Hanging.
        let (_, request) = requests.recv().await.unwrap();
        tokio::time::sleep(WATCHDOG * 5).await;
        assert_eq!(told(&mut notices), Vec::<String>::new());
        answer(request, 599);
        assert_eq!(notices.recv().await.unwrap(), "WATCHDOG=1");

        // Stopping, with a session that has no time to answer.
        let exit = AdminCommand::Exit { reason: "".into() };
        let asked = tokio::spawn(async move { operator.ask(exit, Duration::MAX).await });
        until(&mut notices, "STOPPING=1").await;
        until(&mut notices, "EXTEND_TIMEOUT_USEC").await;
        asked.abort();
    }
}
