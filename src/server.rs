//! Starts and joins the parts: the network reports to the session, whose decisions go back to the network, and the
//! operator asks in between. One task owns the session.

mod storage;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info};

use crate::admin::{AdminCommand, AdminReply, Request};
use crate::alarm::Alarm;
use crate::backups;
use crate::config::{Bind, Config, Ports};
use crate::net::{self, ConnId, Link};
use crate::password::AdminPassword;
use crate::session::{Effect, Event, Folded, Session, Settings, TICK};
use crate::store::{Record, Recovered, Store, Written};

use storage::{LOOK_AFTER_STORE, Replacement, SHUTDOWN, Successor, had_scene, open_store, report};

/// Events on their way from the connections to the session; when it is full, connections stop reading.
const EVENTS: usize = 1024;

/// Events taken at once.
const BATCH: usize = 256;

/// How long the last messages to clients may take when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// The same before a restart: until the next start nobody is pinged, and what was not sent is owed then.
const BRIEF_FAREWELL: Duration = Duration::from_millis(1500);

/// Serves until the operator says exit. `ready` is called once the ports are open.
pub async fn run(
    config: Config,
    admin: AdminPassword,
    requests: mpsc::Receiver<Request>,
    ready: impl FnOnce(Ports) -> Result<()>,
) -> Result<()> {
    let (store, recovered) = open_store(&config).await?;
    run_on(Box::new(store), recovered, config, admin, requests, ready).await
}

/// [`run`] with a store of the caller's, and what was found in it.
pub async fn run_on(
    store: Box<dyn Store>,
    recovered: Recovered,
    config: Config,
    admin: AdminPassword,
    requests: mpsc::Receiver<Request>,
    ready: impl FnOnce(Ports) -> Result<()>,
) -> Result<()> {
    // Where there is a scene, or has been one, it is not looked at.
    if let Some(file) = config.import.as_deref()
        && recovered.state.scene.is_none()
        && !file.is_file()
        && !had_scene(&config.data_dir).await
    {
        bail!("there is no file {} to import", file.display());
    }
    let addresses = match &config.bind {
        Bind::All => &[][..],
        Bind::Only(addresses) => addresses,
    };
    let bound = net::bind(addresses, config.port).await?;
    let ports = Ports::starting_at(bound.port())
        .context("the ports that were bound are not four in a row")?;
    let settings = Settings {
        admin_password: admin.secret.clone(),
        server_password: config.server_password.clone(),
        timeout: config.timeout,
        grace: config.grace,
        port: ports.command,
        versions: config.versions.clone(),
    };
    let (report, events) = mpsc::channel(EVENTS);
    let network = bound.serve(net::Settings::default(), report);
    let now = Instant::now();
    let mut session = Session::restored(now, settings, recovered.state, recovered.handover);
    if recovered.replaced {
        session.scene_was_replaced(now);
    }
    let core = Core::new(session, store, &config);
    info!(port = ports.command, "serving");
    ready(ports)?;
    // On a worker of the runtime, beside the connections, hand-overs cost a fraction of those from the main thread.
    tokio::spawn(core.run(network, events, requests)).await?
}

/// A restart that waits for its backup.
struct Leaving {
    command: AdminCommand,
    answer: oneshot::Sender<AdminReply>,
    /// Ends when there is no need to wait any longer.
    saved: tokio::task::JoinHandle<()>,
}

impl Leaving {
    async fn saved(leaving: &mut Option<Leaving>) {
        match leaving {
            // An error means that the wait is over, too.
            Some(leaving) => drop((&mut leaving.saved).await),
            None => std::future::pending().await,
        }
    }
}

/// The session and what carries out its decisions.
struct Core {
    session: Session,
    links: HashMap<ConnId, Link>,
    /// One fold at a time is under way per node, so this is bounded by the number of nodes.
    folded: mpsc::UnboundedSender<Folded>,
    folds: mpsc::UnboundedReceiver<Folded>,
    /// Scenes that the operator wants, read from files; as many as he has asked for.
    loaded: mpsc::UnboundedSender<Replacement>,
    loads: mpsc::UnboundedReceiver<Replacement>,
    data_dir: PathBuf,
    import: Option<PathBuf>,
    store: Box<dyn Store>,
    /// A receipt of the journal that took too long, and when that was: until it is there and a while after, relays do not wait for
    /// others.
    slow: Option<(oneshot::Receiver<Written>, Instant)>,
    alarm: Alarm,
    /// When the last save began that the journal wanted.
    wanted: Option<Instant>,
    /// Everybody is leaving because the server stops: one save at the end does for all.
    stopping: bool,
    /// `None`: no backups by the clock.
    save_interval: Option<Duration>,
}

impl Core {
    fn new(session: Session, store: Box<dyn Store>, config: &Config) -> Self {
        let (folded, folds) = mpsc::unbounded_channel();
        let (loaded, loads) = mpsc::unbounded_channel();
        Core {
            session,
            links: HashMap::new(),
            folded,
            folds,
            loaded,
            loads,
            data_dir: config.data_dir.clone(),
            import: config.import.clone(),
            store,
            slow: None,
            alarm: Alarm::default(),
            wanted: None,
            stopping: false,
            save_interval: config.save_interval,
        }
    }

    async fn run(
        mut self,
        network: net::Server,
        mut events: mpsc::Receiver<(ConnId, net::Event)>,
        mut requests: mpsc::Receiver<Request>,
    ) -> Result<()> {
        let server = concat!("blender-multiuser ", env!("CARGO_PKG_VERSION")).to_owned();
        // Before anything happens, for whoever reads the history.
        let _ = self
            .store
            .append(vec![Record::ServerStarted { server }])
            .await;
        if let Some(path) = self.import.take() {
            self.import_scene(&path).await?;
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let mut look = tokio::time::interval(LOOK_AFTER_STORE);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut save = self.save_interval.map(tokio::time::interval);
        if let Some(save) = &mut save {
            save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        match self.save_interval {
            Some(interval) => info!("Auto-save enabled (interval: {}s)", interval.as_secs()),
            None => info!("Auto-save disabled"),
        }
        let mut leaving: Option<Leaving> = None;
        let (restart, answer, reply) = loop {
            tokio::select! {
                () = Leaving::saved(&mut leaving), if leaving.is_some() => {
                    if let Some(Leaving { command, answer, .. }) = leaving.take() {
                        let reply = self.session.admin(Instant::now(), command);
                        self.carry_out().await;
                        break (true, answer, reply);
                    }
                }
                taken = events.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        bail!("the network has ended");
                    }
                    for (conn, event) in batch.drain(..) {
                        self.event(conn, event);
                    }
                    self.carry_out().await;
                }
                Some(folded) = self.folds.recv() => {
                    self.session.folded(Instant::now(), folded);
                    self.carry_out().await;
                }
                Some(loaded) = self.loads.recv() => {
                    self.replace_scene(loaded);
                    self.carry_out().await;
                }
                () = ticks(save.as_mut()) => self.save("auto-save".into()),
                _ = look.tick() => {
                    self.look_after_store();
                    self.carry_out().await;
                }
                request = requests.recv() => {
                    let Some((command, answer)) = request else {
                        bail!("nobody is left who could stop the server");
                    };
                    let command = match command {
                        AdminCommand::Store(command) => {
                            self.storage(command, answer);
                            continue;
                        }
                        AdminCommand::New => {
                            self.replace_scene(Replacement {
                                by: Successor::Nothing,
                                backed_up: false,
                                answer,
                            });
                            continue;
                        }
                        AdminCommand::Restart { .. } => {
                            self.stopping = true;
                            let saved = self.save_first();
                            leaving.get_or_insert(Leaving { command, answer, saved });
                            continue;
                        }
                        other => other,
                    };
                    let exit = command.stops();
                    self.stopping |= exit;
                    let mut reply = self.session.admin(Instant::now(), command);
                    if let AdminReply::Status(status) = &mut reply {
                        status.storage = backups::health(&self.store.status());
                    }
                    self.carry_out().await;
                    if exit {
                        break (false, answer, reply);
                    }
                    // Whoever asked may have gone.
                    let _ = answer.send(reply);
                }
                _ = tick.tick() => {
                    self.session.tick(Instant::now());
                    self.carry_out().await;
                }
            }
        };
        // Whoever asked may have gone.
        let _ = answer.send(reply);
        let limit = if restart { BRIEF_FAREWELL } else { FAREWELL };
        self.farewell(network.shutdown(limit), events).await;
        if !restart {
            let receipt = self.backup(SHUTDOWN);
            report(receipt.await, SHUTDOWN);
        }
        self.hand_over().await;
        info!("stopped");
        Ok(())
    }

    /// Ends all connections, and takes in what still comes: edits that were under way count, a connection whose reports are
    /// not taken ends with its last messages unsent, and what has arrived is not owed after a restart.
    async fn farewell(
        &mut self,
        shutdown: impl Future<Output = ()>,
        mut events: mpsc::Receiver<(ConnId, net::Event)>,
    ) {
        let mut shutdown = pin!(shutdown);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                taken = events.recv_many(&mut batch, BATCH), if !events.is_closed() || !events.is_empty() => {
                    if taken == 0 {
                        continue;
                    }
                    for (conn, event) in batch.drain(..) {
                        self.event(conn, event);
                    }
                    self.carry_out().await;
                }
                Some(folded) = self.folds.recv() => {
                    self.session.folded(Instant::now(), folded);
                    self.carry_out().await;
                }
            }
        }
        while let Ok((conn, event)) = events.try_recv() {
            self.event(conn, event);
        }
        self.carry_out().await;
    }

    fn event(&mut self, conn: ConnId, event: net::Event) {
        let now = Instant::now();
        match event {
            net::Event::Opened(peer, link) => {
                self.links.insert(conn, link);
                self.session.handle(now, conn, Event::Opened(peer));
            }
            net::Event::Message(message, _in_flight) => {
                self.session.handle(now, conn, Event::Message(message))
            }
            net::Event::Refused(error) => self.session.handle(now, conn, Event::Refused(error)),
            net::Event::Written(weight) => self.session.handle(now, conn, Event::Written(weight)),
            net::Event::Progress => self.session.handle(now, conn, Event::Progress),
            net::Event::Arrived(messages) => {
                self.session.handle(now, conn, Event::Arrived(messages))
            }
            net::Event::Named(identity) => self.session.handle(now, conn, Event::Named(identity)),
            net::Event::Closed(reason) => {
                self.links.remove(&conn);
                self.session.handle(now, conn, Event::Closed(reason));
            }
        }
    }

    /// What the session has decided: first the journal gets to know it, then everybody else.
    async fn carry_out(&mut self) {
        let mut records = Vec::new();
        let mut others = Vec::new();
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Record(record) => records.push(record),
                other => others.push(other),
            }
        }
        if !records.is_empty() {
            self.write(records).await;
        }
        for effect in others {
            match effect {
                Effect::Record(_) => {}
                Effect::Send(conn, message) => self.link(conn, |link| link.send(message)),
                Effect::Trust(conn) => self.link(conn, |link| link.trust()),
                Effect::Speak(conn, dialect) => self.link(conn, |link| link.speak(dialect)),
                Effect::Close(conn, refuse) => self.link(conn, |link| link.close(refuse)),
                Effect::Save(_) if self.stopping => {}
                Effect::Save(reason) => self.save(reason),
                Effect::Fold(job) => {
                    let folded = self.folded.clone();
                    tokio::task::spawn_blocking(move || {
                        // The server may have stopped meanwhile.
                        let _ = folded.send(job.run());
                    });
                }
            }
        }
    }

    fn link(&mut self, conn: ConnId, act: impl FnOnce(&mut Link)) {
        match self.links.get_mut(&conn) {
            Some(link) => act(link),
            None => debug!(
                ?conn,
                "something was to be done with a connection that has ended"
            ),
        }
    }
}

/// The next tick, or never.
async fn ticks(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
