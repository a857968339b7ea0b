//! One real client: a Python process with the published library, told what to do in JSON lines.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::process::Process;
use super::venv::{self, Python, Spec};
use super::{DEADLINE, Log, Proxy, Server, signal, wait_until};

/// The client's states that stories wait for (protocol section 2).
pub mod state {
    pub const INITIAL: i64 = 0;
    pub const SYNCING: i64 = 1;
    pub const ACTIVE: i64 = 2;
    pub const SRV_SYNC: i64 = 7;
    pub const LOBBY: i64 = 10;
}

/// Why a login was refused, in the server's words without the client's own around them.
pub type Refusal = String;

/// How a client logs in.
pub struct Login<'a> {
    server: &'a Server,
    name: String,
    python: Python,
    arguments: Value,
}

impl<'a> Login<'a> {
    pub fn new(server: &'a Server, name: &str) -> Self {
        let arguments = json!({"name": name, "port": server.ports.command});
        Self {
            server,
            name: name.to_owned(),
            python: server.python.clone(),
            arguments,
        }
    }

    /// With another version of the library than the server's usual clients.
    pub fn using(mut self, spec: &'static Spec) -> Self {
        self.python = venv::python(spec).expect("there is a python3 if there is a server");
        self
    }

    /// One more argument of the driver's `connect`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.arguments[key] = value.into();
        self
    }

    /// With the test servers' admin password.
    pub fn admin(self) -> Self {
        self.admin_password("admin")
    }

    pub fn admin_password(self, password: &str) -> Self {
        self.with("admin_password", password)
    }

    pub fn server_password(self, password: &str) -> Self {
        self.with("server_password", password)
    }

    /// Claims to be another version of the library.
    pub fn version(self, version: &str) -> Self {
        self.with("version", version)
    }

    /// The connection timeout in ms, which its TTL process uses too (the add-on's default is 5000).
    pub fn timeout(self, ms: u64) -> Self {
        self.with("timeout", ms)
    }

    /// A main loop that takes this many ms per turn, as that of a busy Blender.
    pub fn turn(self, ms: u64) -> Self {
        self.with("turn_ms", ms)
    }

    pub fn through(self, proxy: &Proxy) -> Self {
        let port = proxy.ports.command;
        self.with("port", port)
    }

    /// Starts the client; it logs in by itself.
    pub fn connect(self) -> Client {
        let client = Client::spawn(&self.python, &self.name);
        client.connect(self.arguments);
        client
    }

    /// Starts the client and expects the server to turn it away.
    pub fn expect_refusal(self) -> Refusal {
        let client = self.connect();
        let reason = client.await_exit();
        client.assert_no_problems();
        let (_, words) = reason
            .split_once('[')
            .unwrap_or_else(|| panic!("not a refusal: {reason}"));
        let (words, _) = words.rsplit_once(']').unwrap_or((words, ""));
        match words.starts_with("FAILED: ") {
            true => words.to_owned(),
            // Four-socket clients show what stands behind the colon.
            false => format!("FAILED: {}", words.trim()),
        }
    }
}

#[derive(Default)]
struct Seen {
    answers: HashMap<u64, Value>,
    events: Vec<Value>,
    state: i64,
    exit: Option<String>,
    problems: Vec<String>,
    gone: bool,
}

struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

pub struct Client {
    pub name: String,
    pub log: Log,
    process: Process,
    stdin: Mutex<UnixStream>,
    shared: Arc<Shared>,
    requests: AtomicU64,
}

impl Client {
    /// A process without a session, for [`Client::connect`] or for raw sockets.
    pub fn spawn(python: &Python, name: &str) -> Self {
        let process = Process::spawn(python);
        let log = Log::default();
        log.collect(process.stderr.try_clone().expect("sockets can be cloned"));
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            changed: Condvar::new(),
        });
        let output = BufReader::new(process.standard.try_clone().expect("sockets can be cloned"));
        let stdin = Mutex::new(process.standard.try_clone().expect("sockets can be cloned"));
        let for_reader = Arc::clone(&shared);
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                for_reader.note(
                    serde_json::from_str(&line)
                        .unwrap_or_else(|_| json!({"event": "noise", "text": line})),
                );
            }
            for_reader.seen.lock().unwrap().gone = true;
            for_reader.changed.notify_all();
        });
        Self {
            name: name.to_owned(),
            log,
            process,
            stdin,
            shared,
            requests: AtomicU64::new(1),
        }
    }

    // --- talking to the driver ----------------------------------------------------------------

    /// A command whose failure is part of the story.
    pub fn try_call(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let line = json!({"id": id, "cmd": command, "args": arguments});
        let _ = writeln!(self.stdin.lock().unwrap(), "{line}"); // a dead driver shows below
        let answer = self.wait_for(&format!("an answer to {line}"), |seen| {
            seen.answers
                .remove(&id)
                .or_else(|| seen.gone.then(|| json!({"error": "the driver has ended"})))
        });
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["result"].clone()),
        }
    }

    pub fn call(&self, command: &str, arguments: Value) -> Value {
        self.try_call(command, arguments.clone())
            .unwrap_or_else(|error| panic!("{}: {command} {arguments}: {error}", self.name))
    }

    fn wait_for<T>(&self, what: &str, probe: impl FnMut(&mut Seen) -> Option<T>) -> T {
        self.wait_for_within(DEADLINE, what, probe)
    }

    fn wait_for_within<T>(
        &self,
        deadline: Duration,
        what: &str,
        mut probe: impl FnMut(&mut Seen) -> Option<T>,
    ) -> T {
        let end = Instant::now() + deadline;
        let mut seen = self.shared.seen.lock().unwrap();
        loop {
            if let Some(found) = probe(&mut seen) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (state, exit, problems) =
                    (seen.state, seen.exit.clone(), seen.problems.clone());
                drop(seen);
                panic!(
                    "{}: waited in vain for {what}; state {state}, exit {exit:?}, problems {problems:?}",
                    self.name
                );
            }
            seen = self.shared.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    // --- session ---------------------------------------------------------------------------------

    /// Connects with these arguments of the driver's `connect`; a process may do so again after its exit.
    pub fn connect(&self, arguments: Value) -> Value {
        self.shared.seen.lock().unwrap().exit = None;
        self.call("connect", arguments)
    }

    /// Sends this client's scene: world, collection, material, image, and these objects with their meshes.
    pub fn init(&self, objects: &[&str], vertices: usize) {
        self.call("init", json!({"objects": objects, "vertices": vertices}));
    }

    pub fn await_state(&self, wanted: i64) {
        let thrown_out = self.wait_for(&format!("state {wanted}"), |seen| match &seen.exit {
            Some(reason) if wanted != state::INITIAL => Some(Some(reason.clone())),
            _ => (seen.state == wanted).then_some(None),
        });
        // Not in the closure: a panic there would poison what the reader thread writes to.
        if let Some(reason) = thrown_out {
            panic!(
                "{}: thrown out while waiting for state {wanted}: {reason}",
                self.name
            );
        }
    }

    /// Waits until the login is answered: in the lobby, joining, or already done with it.
    pub fn await_login(&self) {
        self.wait_for("the answer to the login", |seen| {
            let inside = [state::LOBBY, state::SYNCING, state::ACTIVE].contains(&seen.state);
            (inside || seen.exit.is_some()).then_some(())
        });
    }

    /// Waits until the scene begins to come; a quick join may be over by then.
    pub fn await_syncing(&self) {
        self.wait_for("the scene", |seen| {
            let inside = [state::SYNCING, state::ACTIVE].contains(&seen.state);
            (inside || seen.exit.is_some()).then_some(())
        });
    }

    pub fn await_lobby(&self) {
        self.await_state(state::LOBBY);
    }

    pub fn await_active(&self) {
        self.await_state(state::ACTIVE);
    }

    /// Waits until the session ends; what the user reads then.
    pub fn await_exit(&self) -> String {
        self.wait_for("the end of the session", |seen| seen.exit.clone())
    }

    pub fn state(&self) -> i64 {
        self.shared.seen.lock().unwrap().state
    }

    /// The reason the session ended, if it did.
    pub fn exit(&self) -> Option<String> {
        self.shared.seen.lock().unwrap().exit.clone()
    }

    /// Leaves as the add-on's disconnect button does.
    pub fn leave(&self) {
        self.call("disconnect", json!({}));
    }

    /// kill -9 of Blender; its TTL process goes on for a while, as in life.
    pub fn crash(&mut self) {
        signal("KILL", self.process.pid, false);
        self.process.wait();
    }

    /// Stops the main loop while sockets and TTL stay alive, as a render does. Returns at once.
    pub fn pause(&self, seconds: f64) {
        self.call("pause", json!({"seconds": seconds}));
    }

    pub fn await_resumed(&self) {
        self.wait_for_within(
            DEADLINE + Duration::from_secs(60),
            "the end of the pause",
            |seen| {
                let found = seen
                    .events
                    .iter()
                    .position(|event| event["event"] == "resumed")?;
                seen.events.remove(found);
                Some(())
            },
        );
    }

    // --- editing ------------------------------------------------------------------------------------

    /// Runs Python on the datablock (`d` its data, `b` itself), commits and pushes.
    pub fn edit(&self, node: &str, code: &str) {
        self.call("edit", json!({"ref": node, "code": code}));
    }

    /// The same without the library's own check of rights.
    pub fn edit_without_right(&self, node: &str, code: &str) {
        self.call("edit", json!({"ref": node, "code": code, "cheat": true}));
    }

    /// Edits, and sends the node in full.
    pub fn push_full(&self, node: &str, code: &str) {
        self.call("push_full", json!({"ref": node, "code": code}));
    }

    pub fn add(&self, name: &str) {
        self.call("add", json!({"name": name}));
    }

    pub fn delete(&self, name: &str) {
        self.call("delete", json!({"name": name}));
    }

    /// Edits these nodes in turn, `rate` times a second, for `seconds`. Returns at once.
    pub fn start_drag(&self, nodes: &[&str], rate: u32, seconds: f64) {
        self.call(
            "drag",
            json!({"refs": nodes, "rate": rate, "seconds": seconds}),
        );
    }

    /// Waits for a drag to end; how many edits it sent.
    pub fn finish_drag(&self) -> u64 {
        self.wait_for_within(
            DEADLINE + Duration::from_secs(60),
            "the end of a drag",
            |seen| {
                let found = seen
                    .events
                    .iter()
                    .position(|event| event["event"] == "drag")?;
                seen.events.remove(found)["sent"].as_u64()
            },
        )
    }

    /// Drags one object for a second, 30 edits.
    pub fn drag(&self, node: &str) -> u64 {
        self.start_drag(&[node], 30, 1.0);
        self.finish_drag()
    }

    // --- rights and presence --------------------------------------------------------------------------

    /// Selects exactly these objects: locks them with their dependencies, unlocks all others.
    pub fn select(&self, objects: &[&str]) {
        self.call("select", json!({"refs": objects}));
    }

    pub fn lock(&self, nodes: &[&str]) {
        self.call("lock", json!({"refs": nodes}));
    }

    pub fn unlock(&self, nodes: &[&str]) {
        self.call("unlock", json!({"refs": nodes}));
    }

    pub fn owner(&self, node: &str) -> String {
        self.call("node", json!({"ref": node}))["owner"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn await_owner(&self, node: &str, owner: &str) {
        wait_until(
            &format!("{} to see {node} owned by {owner}", self.name),
            || self.has(node) && self.owner(node) == owner,
        );
    }

    /// Pushes a dict of metadata, written in Python.
    pub fn metadata(&self, code: &str) {
        self.call("metadata", json!({"code": code}));
    }

    /// The users table as this client sees it: `{name: {id, admin, latency, status, metadata}}`.
    pub fn users(&self) -> Value {
        self.call("users", json!({}))
    }

    pub fn sees_user(&self, name: &str) -> bool {
        self.users().get(name).is_some()
    }

    // --- looking -----------------------------------------------------------------------------------------

    pub fn uuid(&self, node: &str) -> String {
        self.call("node", json!({"ref": node}))["uuid"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn has(&self, node: &str) -> bool {
        self.try_call("node", json!({"ref": node})).is_ok()
    }

    /// `code` evaluated with `d`, the node's data in the client's graph.
    pub fn value(&self, node: &str, code: &str) -> Value {
        self.try_call("get", json!({"ref": node, "code": code}))
            .unwrap_or(Value::Null)
    }

    pub fn await_value(&self, node: &str, code: &str, wanted: impl Into<Value>) {
        let wanted = wanted.into();
        wait_until(
            &format!("{} to see {code} of {node} become {wanted}", self.name),
            || self.value(node, code) == wanted,
        );
    }

    pub fn await_gone(&self, node: &str) {
        wait_until(&format!("{node} to vanish for {}", self.name), || {
            !self.has(node)
        });
    }

    /// Every node: `{uuid: {owner, deps, data}}`, data as text that tells types, order and float bits.
    pub fn graph(&self) -> Value {
        self.call("graph", json!({}))
    }

    /// Everything sent and received so far, oldest first.
    pub fn messages(&self) -> Vec<Value> {
        self.call("log", json!({}))
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// How many received messages look like this: `count_received(&[("type", "Delete"), ("data", uuid)])`.
    pub fn count_received(&self, wanted: &[(&str, &str)]) -> usize {
        let fits = |message: &Value| {
            message["dir"] == "in" && wanted.iter().all(|(key, value)| message[*key] == **value)
        };
        self.messages()
            .iter()
            .filter(|message| fits(message))
            .count()
    }

    // --- raw ----------------------------------------------------------------------------------------------

    /// Sends frames, written in Python, over the session's own `command` or `data` socket.
    pub fn raw(&self, channel: &str, frames: &str) {
        self.call("raw", json!({"channel": channel, "expr": frames}));
    }

    /// Opens a bare DEALER under `key`.
    pub fn open(&self, key: &str, port: u16) -> String {
        let identity = self.call("open", json!({"key": key, "port": port}));
        identity.as_str().unwrap_or_default().to_owned()
    }

    /// Opens a bare DEALER with a given identity, in hex.
    pub fn open_as(&self, key: &str, port: u16, identity: &str) {
        self.call(
            "open",
            json!({"key": key, "port": port, "identity": identity}),
        );
    }

    pub fn send(&self, key: &str, frames: &str) {
        self.call("send", json!({"key": key, "expr": frames}));
    }

    /// What has come on a bare socket, until nothing more comes for `quiet` seconds.
    pub fn receive(&self, key: &str, quiet: f64) -> Vec<Value> {
        self.call("recv", json!({"key": key, "timeout": quiet}))
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    // --- verdict --------------------------------------------------------------------------------------------

    /// Exceptions in timers, and messages that a server must never send (protocol section 3.11).
    pub fn problems(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().problems.clone()
    }

    pub fn assert_no_problems(&self) {
        let problems = self.problems();
        assert!(
            problems.is_empty(),
            "{} had problems:\n{}",
            self.name,
            problems.join("\n")
        );
    }

    pub fn assert_in_session(&self) {
        self.assert_no_problems();
        assert_eq!(self.exit(), None, "{} was thrown out", self.name);
        assert_eq!(self.state(), state::ACTIVE, "{} is not active", self.name);
    }
}

impl Shared {
    fn note(&self, line: Value) {
        let mut seen = self.seen.lock().unwrap();
        if let Some(id) = line["id"].as_u64() {
            seen.answers.insert(id, line);
        } else {
            match line["event"].as_str() {
                Some("state") => seen.state = line["state"].as_i64().unwrap_or(-1),
                Some("exit") => {
                    seen.state = state::INITIAL;
                    let reason = &line["reason"];
                    seen.exit = Some(
                        reason
                            .as_str()
                            .map_or_else(|| reason.to_string(), str::to_owned),
                    );
                }
                Some("exception") => seen.problems.push(format!(
                    "{}\n{}",
                    line["text"],
                    line["trace"].as_str().unwrap_or("")
                )),
                Some("violation" | "noise") => seen
                    .problems
                    .push(line["text"].as_str().unwrap_or("").to_owned()),
                _ => {}
            }
            seen.events.push(line);
        }
        self.changed.notify_all();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        signal("KILL", self.process.pid, true);
        self.process.wait();
        if thread::panicking() {
            eprint!("{}", self.log.report(&format!("client {}", self.name), 40));
            let seen = self
                .shared
                .seen
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            eprintln!(
                "    state {}, exit {:?}, problems {:?}",
                seen.state, seen.exit, seen.problems
            );
        }
    }
}
