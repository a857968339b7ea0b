//! What the server keeps in its data directory, and what it makes of what is left there.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::venv;
use crate::support::{Client, Need, Server, Stopped, needs, wait_until};

/// What is in a directory and not hidden, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn backups(server: &Server) -> Vec<PathBuf> {
    files(&server.data_dir.path().join("backups"))
}

fn count(server: &Server, text: &str) -> usize {
    let lines = server.log.lines();
    lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn two_servers_do_not_share_a_directory() {
    let Some(server) = Server::start() else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let output = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"))
        .args([
            "--port",
            "0",
            "--bind",
            "127.0.0.1",
            "--admin-password",
            "admin",
        ])
        .arg("--data-dir")
        .arg(server.data_dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("in use by another server"), "{said}");
    let directory = server.data_dir.path().display().to_string();
    assert!(said.contains(&directory), "{said}");
    server.assert_works(&[&alice]);
    if needs(&[Need::Reconnecting]) {
        let server = server.crash_and_restart();
        server.assert_works(&[&alice]);
    }
}

#[test]
fn autosave_writes_what_changed_and_keeps_a_few() {
    let Some(server) = Server::start_with(&["--save-interval", "1", "--max-backups", "3"]) else {
        return;
    };
    wait_until("a word about saves", || {
        server
            .log
            .find("Auto-save enabled (interval: 1s)")
            .is_some()
    });
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    let saved = |reason: &str| format!("Session saved to disk (reason: {reason})");
    for round in 0..5 {
        alice.edit("World", &format!("d['round'] = {round}"));
        wait_until("an autosave", || {
            count(&server, &saved("auto-save")) > round
        });
    }
    assert_eq!(backups(&server).len(), 3, "{:?}", backups(&server));
    // Nothing changes: presence, heartbeats and somebody who looks in are no changes.
    let (before, saves) = (backups(&server), count(&server, "Session saved to disk"));
    bob.metadata("{'frame_current': 42}");
    let carol = server.join("Carol");
    carol.leave();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(backups(&server), before);
    assert_eq!(count(&server, "Session saved to disk"), saves);

    // Not in the next run, where that would be a reason for a save.
    wait_until("Carol to be gone", || {
        count(&server, "left user=\"Carol\"") == 1
    });
    let stopped = server.stop();
    let server = stopped.start(&["--save-interval", "0"]);
    wait_until("a word about saves", || {
        server.log.find("Auto-save disabled").is_some()
    });
    assert!(server.log.find("Session restored from disk").is_some());
    // Alice and Bob are back by themselves.
    bob.edit("World", "d['round'] = 'Bob leaves'");
    alice.await_value("World", "d['round']", "Bob leaves");
    bob.leave();
    wait_until("a save for Bob", || {
        count(&server, &saved("user_disconnect:Bob")) == 1
    });
    alice.edit("World", "d['round'] = 'the server stops'");
    alice.call("select", json!({"refs": ["Object:Cube"]}));
    alice.await_owner("Object:Cube", "Alice");
    let stopped = server.stop();
    let lines = stopped.log.lines();
    let shutdown = |line: &&String| line.contains(&saved("shutdown"));
    assert_eq!(lines.iter().filter(shutdown).count(), 1, "{lines:#?}");
    let metadata: Value =
        serde_json::from_slice(&fs::read(stopped.path("session_metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata["reason"], "shutdown");
    let newest = files(&stopped.path("backups")).pop().unwrap();
    assert_eq!(
        metadata["file"],
        *newest.file_name().unwrap().to_string_lossy()
    );
    // Starting and stopping changes nothing.
    let before = files(&stopped.path("backups"));
    let stopped = stopped.start(&[]).stop();
    assert_eq!(files(&stopped.path("backups")), before);
}

#[test]
fn the_oldest_and_the_latest_backup_can_be_restored() {
    let flags = ["--save-interval", "0", "--max-backups", "2"];
    let Some(mut server) = Server::start_with(&flags) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    for n in 1..=2 {
        alice.edit("World", &format!("d['stamp'] = {n}"));
        bob.await_value("World", "d['stamp']", n);
        server.console(&format!("backup number {n}"));
        let saved = format!("Session saved to disk (reason: number {n})");
        wait_until("the backup", || server.log.find(&saved).is_some());
    }
    alice.edit("World", "d['stamp'] = 3");
    bob.await_value("World", "d['stamp']", 3);
    // A backup is made first, of which it is not the latest.
    server.console("restore latest");
    alice.await_exit();
    bob.await_exit();
    let alice = server.join("Alice");
    let bob = server.join("Bob");
    bob.await_value("World", "d['stamp']", 2);
    // By hand and before a restore: one more than is kept of those. When it was initialised, at each leaving and after the restore: these
    // do not count with the others.
    let reason = |path: &Path| {
        let file = blender_multiuser::store::read_session_file(path, 1 << 30).unwrap();
        file.about.unwrap().reason
    };
    let reasons = || -> Vec<String> { backups(&server).iter().map(|path| reason(path)).collect() };
    wait_until("the first of the two to go", || {
        let reasons = reasons();
        !reasons.contains(&"number 1".to_owned()) && reasons.contains(&"initialised".to_owned())
    });
    let number_2 = |path: &PathBuf| reason(path) == "number 2";
    let oldest = backups(&server).into_iter().find(number_2).unwrap();
    alice.edit("World", "d['stamp'] = 4");
    bob.await_value("World", "d['stamp']", 4);
    let name = oldest.file_name().unwrap().to_str().unwrap();
    // Made before it, the next one has it removed.
    server.console(&format!("restore {name}"));
    alice.await_exit();
    bob.await_exit();
    let alice = server.join("Alice");
    let bob = server.join("Bob");
    bob.await_value("World", "d['stamp']", 2);
    alice.edit("World", "d['stamp'] = 5");
    bob.await_value("World", "d['stamp']", 5);
    server.console("new");
    assert!(alice.await_exit().contains("new scene"));
    bob.await_exit();
    server.console("restore latest");
    wait_until("the scene to be back", || {
        count(&server, "is restored") == 3
    });
    let carol = server.join("Carol");
    carol.await_value("World", "d['stamp']", 5);
    server.assert_works(&[&carol]);
}

#[test]
fn the_library_reads_a_backup() {
    if !needs(&[Need::SessionFiles]) {
        return;
    }
    let Some(server) = Server::start_with(&["--save-interval", "1"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube", "Cone"]);
    alice.edit(
        "Object:Cube",
        "d['odd'] = {'t': (1, 2.5, None), 's': {3}, 'b': b'\\x00\\xff', 'i': 2 ** 70}",
    );
    alice.add("Lamp");
    alice.delete("Cone");
    alice.await_gone("Object:Cone");
    let stopped = server.stop();
    let graph = alice.graph();
    let newest = files(&stopped.path("backups")).pop().unwrap();
    let reader = Client::spawn(&venv::python(venv::chosen()).unwrap(), "Reader");
    assert_eq!(reader.call("load", json!({"path": newest})), graph);
}

/// Edits after the backup that is made once the session is initialised.
const EDITS: u64 = 40;

/// A data directory after a crash: checkpoint and backup of the beginning, [`EDITS`] edits in the journal, and how long
/// that was before them.
fn crashed() -> Option<(Stopped, u64)> {
    let server = Server::start_with(&["--save-interval", "0"])?;
    let alice = server.host("Alice", &["Cube", "Cone"]);
    wait_until("the first save", || {
        server.log.find("(reason: initialised)").is_some()
    });
    let bob = server.join("Bob");
    let segment = |directory: &Path| files(&directory.join("journal")).pop().unwrap();
    let before = fs::metadata(segment(server.data_dir.path())).unwrap().len();
    for stamp in 1..=EDITS {
        alice.edit("World", &format!("d['stamp'] = {stamp}"));
    }
    bob.await_value("World", "d['stamp']", EDITS);
    Some((server.kill(), before))
}

/// How many of the edits somebody finds who joins the server on this data; and its log.
fn found(reader: &Client, stopped: Stopped) -> (u64, Vec<String>) {
    let server = stopped.start(&["--save-interval", "0"]);
    reader.connect(json!({"name": "Reader", "port": server.ports.command}));
    reader.await_active();
    assert!(reader.has("Object:Cube") && reader.has("Object:Cone"));
    let stamp = reader.value("World", "d.get('stamp', 0)").as_u64().unwrap();
    // It works, and what is done now survives as well.
    reader.edit("World", "d['after'] = 1");
    reader.add("Lamp");
    wait_until("the lamp to be there", || reader.has("Object:Lamp"));
    let late = server.join("Late");
    late.await_value("World", "d.get('after')", 1);
    reader.leave();
    drop(late);
    let log = server.log.lines();
    let server = server.crash_and_restart();
    reader.connect(json!({"name": "Reader", "port": server.ports.command}));
    reader.await_active();
    assert!(reader.has("Object:Lamp"));
    assert_eq!(
        reader.value("World", "[d.get('stamp', 0), d['after']]"),
        json!([stamp, 1])
    );
    reader.leave();
    (stamp, log)
}

fn says(log: &[String], texts: &[&str]) {
    for text in texts {
        assert!(
            log.iter()
                .any(|line| line.contains("WARN") && line.contains(text)),
            "{text}: {log:#?}"
        );
    }
}

#[test]
fn damage_costs_no_more_than_it_must() {
    let Some((stopped, before)) = crashed() else {
        return;
    };
    let reader = Client::spawn(&venv::python(venv::chosen()).unwrap(), "Reader");
    let journal = |copy: &Stopped| files(&copy.path("journal")).pop().unwrap();

    let copy = stopped.copy();
    assert_eq!(found(&reader, copy).0, EDITS, "undamaged");

    let copy = stopped.copy();
    let file = OpenOptions::new().write(true).open(journal(&copy)).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 3).unwrap();
    let (stamp, log) = found(&reader, copy);
    assert_eq!(stamp, EDITS - 1, "a torn tail costs one record");
    says(&log, &["cut", "unfinished record"]);

    let copy = stopped.copy();
    flip(&journal(&copy), before + (length - before) / 2);
    let (stamp, log) = found(&reader, copy);
    assert!((EDITS / 3..EDITS).contains(&stamp), "{stamp}");
    says(&log, &["the checksum is wrong", "a copy is kept as"]);

    let copy = stopped.copy();
    fs::remove_dir_all(copy.path("state.sled")).unwrap();
    assert_eq!(found(&reader, copy).0, EDITS, "without the checkpoint");

    let copy = stopped.copy();
    for file in files(&copy.path("state.sled")) {
        if file.is_file() {
            File::create(file).unwrap();
        }
    }
    assert_eq!(found(&reader, copy).0, EDITS, "an emptied checkpoint");

    let copy = stopped.copy();
    fs::remove_dir_all(copy.path("journal")).unwrap();
    assert_eq!(found(&reader, copy).0, 0, "without the journal");

    let copy = stopped.copy();
    fs::remove_dir_all(copy.path("journal")).unwrap();
    fs::remove_dir_all(copy.path("state.sled")).unwrap();
    assert_eq!(found(&reader, copy).0, 0, "the backup alone");
}

#[test]
fn a_lost_journal_is_not_passed_over_in_silence() {
    let Some((stopped, _)) = crashed() else {
        return;
    };
    fs::remove_dir_all(stopped.path("journal")).unwrap();
    let server = stopped.start(&[]);
    let log = server.log.lines();
    assert!(
        log.iter()
            .any(|line| line.contains("WARN") && line.contains("journal")),
        "{log:#?}"
    );
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}
