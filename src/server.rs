//! Starts and joins the parts: the network reports to the session, whose decisions go back to the network, and the
//! operator asks in between. One task owns the session.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use crate::admin::{AdminCommand, AdminReply, Request, StoreCommand};
use crate::alarm::{Alarm, CURED, Tell};
use crate::backups;
use crate::config::{Bind, Config, Ports};
use crate::net::{self, ConnId, Link};
use crate::password::AdminPassword;
use crate::session::{Effect, Event, Folded, Session, Settings, TICK};
use crate::store::{
    self, BackupRequest, DiskStore, Record, Recovered, SaveResult, Saved, SavedScene, Store,
    Written,
};

/// Events on their way from the connections to the session; when it is full, connections stop reading.
const EVENTS: usize = 1024;

/// Events taken at once.
const BATCH: usize = 256;

/// How long a relay waits for the journal: a write takes microseconds, but on a loaded machine its thread may have to wait for a
/// processor, and that must not be taken for a slow disk. For every MB to be written it may take a little longer, as for a
/// whole scene; no longer in all than clients bear without hearing anything.
const JOURNAL_PATIENCE: Duration = Duration::from_millis(100);
const JOURNAL_PATIENCE_PER_MB: Duration = Duration::from_millis(10);
const JOURNAL_PATIENCE_AT_MOST: Duration = Duration::from_secs(2);

/// After it was waited for in vain, how long nobody waits again: a slow disk delays one relay now and then, not each.
const JOURNAL_MISTRUST: Duration = Duration::from_secs(1);

/// How often the store is looked after, and how far apart it is asked for saves that the journal wants.
const LOOK_AFTER_STORE: Duration = Duration::from_secs(1);
const WANTED_SAVES: Duration = Duration::from_secs(10);

/// Why the last backup is made.
const SHUTDOWN: &str = "shutdown";

/// How long the last messages to clients may take when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// The same before a restart: until the next start nobody is pinged, and what was not sent is owed then.
const BRIEF_FAREWELL: Duration = Duration::from_millis(1500);

/// How long a restart waits for its backup, with everybody still at work. Longer ones are waited for after that; Docker kills
/// what has not stopped after 10 s.
const SAVE_FIRST: Duration = Duration::from_secs(5);

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
    let core = Core::new(
        Session::restored(
            Instant::now(),
            settings,
            recovered.state,
            recovered.handover,
        ),
        store,
        &config,
    );
    info!(port = ports.command, "serving");
    ready(ports)?;
    // On a worker of the runtime, beside the connections, hand-overs cost a fraction of those from the main thread.
    tokio::spawn(core.run(network, events, requests)).await?
}

/// Opens the data directory and reads what the last run left there.
async fn open_store(config: &Config) -> Result<(DiskStore, Recovered)> {
    let settings = store::Settings {
        max_backups: config.max_backups,
        ..store::Settings::default()
    };
    let data_dir = config.data_dir.clone();
    let began = Instant::now();
    let (store, recovered) =
        tokio::task::spawn_blocking(move || store::open(&data_dir, settings)).await??;
    for note in &recovered.notes {
        warn!("{note}");
    }
    if let (Some(scene), Some(source)) = (&recovered.state.scene, &recovered.source) {
        info!(
            nodes = scene.nodes.len(),
            bytes = scene.bytes(),
            version = scene.version,
            source,
            seconds = began.elapsed().as_secs_f32(),
            "Session restored from disk"
        );
    }
    Ok((store, recovered))
}

/// What is to replace the running scene, and who waits for that.
struct Replacement {
    by: Successor,
    /// The running one has been backed up.
    backed_up: bool,
    answer: oneshot::Sender<AdminReply>,
}

enum Successor {
    /// A file's name and its scene.
    Saved(String, SavedScene),
    /// None: back to the lobby.
    Nothing,
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

    /// Hands records to the kernel. A disk that is not done within a moment does not delay relays, nor do those after it.
    async fn write(&mut self, records: Vec<Record>) {
        let megabytes = records.iter().map(Record::weight).sum::<usize>() / 1_000_000;
        let patience = JOURNAL_PATIENCE_PER_MB
            .saturating_mul(u32::try_from(megabytes).unwrap_or(u32::MAX))
            .saturating_add(JOURNAL_PATIENCE)
            .min(JOURNAL_PATIENCE_AT_MOST);
        let mut receipt = self.store.append(records);
        if let Some((slow, since)) = &mut self.slow {
            let waiting = matches!(slow.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            if waiting || since.elapsed() < JOURNAL_MISTRUST {
                return;
            }
            self.slow = None;
        }
        if tokio::time::timeout(patience, &mut receipt).await.is_err() {
            self.slow = Some((receipt, Instant::now()));
        }
    }

    /// Tells of trouble with the disk, and saves where the journal alone does not do.
    fn look_after_store(&mut self) {
        let status = self.store.status();
        match self.alarm.look(Instant::now(), &status) {
            None => {}
            Some(Tell::Trouble { text, chat }) => {
                error!("{text}");
                if chat {
                    self.session.announce(SystemTime::now(), &text);
                }
            }
            Some(Tell::Cured) => {
                info!("{CURED}");
                self.session.announce(SystemTime::now(), CURED);
            }
        }
        let due = self.wanted.is_none_or(|at| at.elapsed() >= WANTED_SAVES);
        if let Some(why) = status.wants_save
            && due
        {
            self.wanted = Some(Instant::now());
            let receipt = self.request_backup(why, true);
            tokio::spawn(async move { report(receipt.await, why) });
        }
    }

    /// Has a backup made, unless nothing has changed since the last one.
    fn save(&mut self, reason: String) {
        let receipt = self.backup(&reason);
        tokio::spawn(async move { report(receipt.await, &reason) });
    }

    /// The backup before a restart, made while everybody is still at work.
    fn save_first(&mut self) -> tokio::task::JoinHandle<()> {
        let receipt = self.backup(SHUTDOWN);
        let reported = tokio::spawn(async move { report(receipt.await, SHUTDOWN) });
        tokio::spawn(async move {
            let _ = tokio::time::timeout(SAVE_FIRST, reported).await;
        })
    }

    /// The last thing that is written, for it counts only if nothing came later.
    async fn hand_over(self) {
        let handover = self.session.hand_over();
        let reason = SHUTDOWN.to_owned();
        drop(
            self.store
                .append(vec![Record::ServerStopped { reason, handover }]),
        );
        if let Ok(Err(error)) = self.store.flush().await {
            error!(error, "the last changes are not on the disk");
        }
        // Closing waits for the disk.
        let store = self.store;
        let _ = tokio::task::spawn_blocking(move || drop(store)).await;
    }

    /// What the operator wants of the store. The answer comes when it is done.
    fn storage(&mut self, command: StoreCommand, answer: oneshot::Sender<AdminReply>) {
        let data_dir = self.data_dir.clone();
        match command {
            StoreCommand::Save { note } => {
                let receipt = self.request_backup(note.as_deref().unwrap_or("by hand"), true);
                tokio::spawn(async move {
                    let reply = match receipt.await {
                        Ok(Ok(Saved::Backup(info))) => {
                            AdminReply::Done(format!("saved as {}", info.path.display()))
                        }
                        Ok(Ok(Saved::Unchanged)) => {
                            AdminReply::Done("nothing has changed since the last backup".into())
                        }
                        Ok(Ok(Saved::NoScene)) => {
                            AdminReply::Failed("there is no scene to save".into())
                        }
                        Ok(Err(error)) => AdminReply::Failed(format!("not saved: {error}")),
                        Err(_) => AdminReply::Failed("not saved: the store has ended".into()),
                    };
                    let _ = answer.send(reply);
                });
            }
            StoreCommand::Backups => {
                tokio::task::spawn_blocking(move || {
                    answer.send(AdminReply::Done(backups::table(&data_dir)))
                });
            }
            StoreCommand::Export { path } => {
                let state = self.session.state();
                tokio::task::spawn_blocking(move || {
                    let reply = match backups::export(Path::new(&path), &state) {
                        Ok(text) => AdminReply::Done(text),
                        Err(error) => AdminReply::Failed(format!("{error:#}")),
                    };
                    answer.send(reply)
                });
            }
            StoreCommand::Restore { name } => {
                let loaded = self.loaded.clone();
                tokio::task::spawn_blocking(move || {
                    // Before anything is saved: that may be the eleventh backup, and would be the latest.
                    match backups::read(&data_dir, &name) {
                        Ok((name, scene)) => drop(loaded.send(Replacement {
                            by: Successor::Saved(name, scene),
                            backed_up: false,
                            answer,
                        })),
                        Err(error) => drop(answer.send(AdminReply::Failed(format!("{error:#}")))),
                    }
                });
            }
        }
    }

    /// Begins with the scene of a file. Not where there is a scene: a service that is started with the same flags again would go
    /// back to the file's.
    async fn import_scene(&mut self, path: &Path) -> Result<()> {
        if self.session.has_scene() {
            warn!(
                file = %path.display(),
                "not imported, for there is a scene already; to have this file in its place stop the server and copy it to {}",
                self.data_dir.join("session_restore.db").display()
            );
            return Ok(());
        }
        let file = path.to_owned();
        let scene = tokio::task::spawn_blocking(move || backups::read_file(&file)).await??;
        let nodes = scene.nodes.len();
        self.session
            .replace_scene(Instant::now(), scene, "imported")
            .map_err(|why| anyhow::anyhow!("{} is not imported: {why}", path.display()))?;
        self.carry_out().await;
        info!(nodes, file = %path.display(), "scene imported");
        Ok(())
    }

    /// Puts something else in the place of the scene as soon as that is backed up.
    fn replace_scene(&mut self, replacement: Replacement) {
        let Replacement {
            by,
            backed_up,
            answer,
        } = replacement;
        let reason = match by {
            Successor::Saved(..) => "before a restore",
            Successor::Nothing => "before a new scene",
        };
        if !backed_up {
            let before = self.backup(reason);
            let loaded = self.loaded.clone();
            tokio::spawn(async move {
                if let Ok(Err(error)) = before.await {
                    let text = format!(
                        "nothing is changed, since the running scene could not be backed up: {error}"
                    );
                    return drop(answer.send(AdminReply::Failed(text)));
                }
                drop(loaded.send(Replacement {
                    by,
                    backed_up: true,
                    answer,
                }));
            });
            return;
        }
        // What was done meanwhile.
        self.save(reason.into());
        let now = Instant::now();
        let reply = match by {
            Successor::Nothing => self.session.admin(now, AdminCommand::New),
            Successor::Saved(name, scene) => {
                let nodes = scene.nodes.len();
                let reason = format!("restored from {name}");
                match self.session.replace_scene(now, scene, &reason) {
                    Ok(()) => {
                        info!(nodes, name, "Session restored from disk");
                        AdminReply::Done(format!(
                            "{name} is restored: {nodes} nodes, on their way to everybody"
                        ))
                    }
                    Err(why) => AdminReply::Failed(format!("not restored: {why}")),
                }
            }
        };
        let _ = answer.send(reply);
    }

    fn backup(&mut self, reason: &str) -> oneshot::Receiver<SaveResult> {
        self.request_backup(reason, false)
    }

    fn request_backup(
        &mut self,
        reason: &str,
        even_if_unchanged: bool,
    ) -> oneshot::Receiver<SaveResult> {
        let state = self.session.state();
        let users = state
            .clients
            .iter()
            .map(|client| client.name.to_string())
            .collect();
        self.store.backup(
            state,
            BackupRequest {
                reason: reason.to_owned(),
                users,
                even_if_unchanged,
            },
        )
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

fn report(result: Result<SaveResult, oneshot::error::RecvError>, reason: &str) {
    match result {
        // The store has said so, with the reason of the last of those that this save stands for.
        Ok(Ok(Saved::Backup(_))) => {}
        Ok(Ok(Saved::Unchanged | Saved::NoScene)) => debug!(reason, "nothing to save"),
        Ok(Err(error)) => error!(
            reason,
            error, "the session could not be saved; it is still in the journal"
        ),
        Err(_) => error!(
            reason,
            "the session could not be saved: the store has ended"
        ),
    }
}
