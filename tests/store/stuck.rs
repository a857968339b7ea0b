//! The whole server, with real clients, on a disk that does not answer.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use blender_multiuser::admin::{AdminCommand, AdminReply, Request};
use blender_multiuser::config::Cli;
use blender_multiuser::password::{AdminPassword, Origin, Secret};
use blender_multiuser::server;
use blender_multiuser::store::{State, list, open_on, read_session_file};
use blender_multiuser::wire::pickle::{self, Value};
use clap::Parser;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::faulty::FaultyDisk;
use crate::scenes::*;
use crate::support::{Client, venv, wait_until};

/// A server in this process.
struct Served {
    port: u16,
    requests: mpsc::Sender<Request>,
    thread: JoinHandle<()>,
}

impl Served {
    fn start(disk: &FaultyDisk, data: &Path) -> Self {
        let arguments = ["server", "--port", "0", "--bind", "127.0.0.1", "--data-dir"];
        let arguments =
            arguments
                .into_iter()
                .chain([data.to_str().unwrap(), "--save-interval", "0"]);
        let config = Cli::try_parse_from(arguments).unwrap().config;
        let config = config.with_password_files().unwrap();
        let admin = AdminPassword {
            secret: Secret::new("admin"),
            origin: Origin::Given,
        };
        let (requests, receiver) = mpsc::channel(4);
        let (store, recovered) = open_on(Arc::new(disk.clone()), data, settings()).unwrap();
        let (ready, ports) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let done = server::run_on(
                Box::new(store),
                recovered,
                config,
                admin,
                receiver,
                move |ports| Ok(ready.send(ports)?),
            );
            runtime.block_on(done).unwrap();
        });
        let port = ports.recv().unwrap().command;
        Served {
            port,
            requests,
            thread,
        }
    }

    fn ask(&self, command: AdminCommand) -> AdminReply {
        let (answer, answered) = oneshot::channel();
        self.requests.blocking_send((command, answer)).unwrap();
        answered.blocking_recv().unwrap()
    }

    /// The lines about the store.
    fn storage(&self) -> String {
        match self.ask(AdminCommand::Status) {
            AdminReply::Status(status) => status.storage.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    fn stop(self) {
        self.ask(AdminCommand::Exit {
            reason: "the end".into(),
        });
        self.thread.join().unwrap();
    }

    fn client(&self, python: &venv::Python, name: &str, admin: bool) -> Client {
        let client = Client::spawn(python, name);
        let password = admin.then_some("admin");
        client.connect(json!({"name": name, "port": self.port, "admin_password": password}));
        client.await_login();
        client
    }
}

fn stamp(state: &State) -> Option<i64> {
    let nodes = &state.scene.as_ref().unwrap().nodes;
    nodes.iter().find_map(|(node, _)| {
        let data = pickle::decode(&node.data).unwrap();
        let world = data.get("type_id").and_then(Value::as_str) == Some("World");
        world.then(|| data.get("stamp").and_then(Value::as_i64))?
    })
}

fn newest(data: &Path) -> (String, Option<i64>) {
    let backup = list(data).pop().unwrap();
    let state = read_session_file(&backup.path, 1 << 30).unwrap().state;
    (backup.about.unwrap().reason, stamp(&state))
}

#[test]
fn a_stuck_disk_holds_up_nobody() {
    let Some(python) = venv::python(&venv::CURRENT) else {
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let served = Served::start(&disk, data.path());
    let alice = served.client(&python, "Alice", true);
    alice.init(&["Cube"], 8);
    alice.await_active();
    let bob = served.client(&python, "Bob", false);
    bob.await_active();
    wait_until("the first save", || list(data.path()).len() == 1);

    disk.stick("");
    for n in 1..=30 {
        alice.edit("World", &format!("d['stamp'] = {n}"));
    }
    // However long it takes: the disk does nothing until it is asked to.
    bob.await_value("World", "d['stamp']", 30);
    wait_until("status to say so", || {
        served.storage().contains("the disk is slow")
    });
    disk.unstick();
    wait_until("the disk to have caught up", || {
        !served.storage().contains("the disk is slow")
    });
    bob.edit("World", "d['stamp'] = 31");
    alice.await_value("World", "d['stamp']", 31);
    served.stop();
    let (_store, recovered) = start(data.path());
    assert_eq!(recovered.notes, [""; 0]);
    assert_eq!(stamp(&recovered.state), Some(31));
}

#[test]
fn what_happens_during_a_save_is_saved_by_the_next() {
    let Some(python) = venv::python(&venv::CURRENT) else {
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let served = Served::start(&disk, data.path());
    let alice = served.client(&python, "Alice", true);
    alice.init(&["Cube"], 8);
    alice.await_active();
    wait_until("the first save", || list(data.path()).len() == 1);
    let bob = served.client(&python, "Bob", false);
    bob.await_active();
    let carol = served.client(&python, "Carol", false);
    carol.await_active();

    alice.edit("World", "d['stamp'] = 1");
    bob.await_value("World", "d['stamp']", 1);
    disk.stick("backups");
    carol.leave();
    wait_until("Carol's save to be stuck", || {
        let files = fs::read_dir(data.path().join("backups")).unwrap();
        files
            .flatten()
            .any(|file| file.path().extension().is_some_and(|e| e == "tmp"))
    });
    // After its snapshot was taken and before it is done.
    alice.edit("World", "d['stamp'] = 2");
    bob.await_value("World", "d['stamp']", 2);
    bob.leave();
    wait_until("Bob to be gone", || !alice.sees_user("Bob"));
    std::thread::sleep(Duration::from_millis(50));
    disk.unstick();
    wait_until("both saves", || list(data.path()).len() == 3);
    assert_eq!(newest(data.path()), ("user_disconnect:Bob".into(), Some(2)));
    served.stop();
    // Nothing had changed since.
    assert_eq!(list(data.path()).len(), 3);
}
