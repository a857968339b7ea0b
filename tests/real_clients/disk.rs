//! Disks that fill up, and saves that are cut short.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use blender_multiuser::store::{Verified, list, verify};

use crate::support::{Client, Server, Stopped, wait_until, wait_within};

/// A file system of its own, as small as one likes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`: not everybody may mount.
    fn mount(directory: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(directory)
            .output();
        if mounted.is_ok_and(|mount| mount.status.success()) {
            return Some(SmallDisk(directory.to_owned()));
        }
        eprintln!("SKIPPED: a disk that fills up; mounting a tmpfs takes root on Linux");
        None
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.join("filler"))
            .unwrap();
        for size in [1 << 20, 4096, 1] {
            let bytes = vec![1; size];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Whether a client shows this in its chat.
fn reads(client: &Client, text: &str) -> bool {
    let users = client.users();
    let mut users = users.as_object().unwrap().values();
    users.any(|user| {
        let chat = user["metadata"]["chat_messages"].as_str();
        chat.is_some_and(|chat| chat.contains(text))
    })
}

#[test]
fn a_disk_that_fills_up_is_told_to_everybody_and_cured_by_space() {
    let data_dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(data_dir.path(), 40) else {
        return;
    };
    let Some(mut server) = Server::start_in(data_dir, &["--save-interval", "2"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    wait_until("the first save", || {
        server.log.find("(reason: initialised)").is_some()
    });
    alice.edit("World", "d['before'] = 'there was space'");
    bob.await_value("World", "d['before']", "there was space");

    disk.fill();
    let mut stamp = 0;
    let full = "THE JOURNAL CANNOT BE WRITTEN";
    wait_until("the disk to be found full", || {
        stamp += 1;
        alice.edit(
            "World",
            &format!("d['stamp'] = {stamp}; d['pad'] = '{stamp}' * 500"),
        );
        server.log.find(full).is_some()
    });
    for reader in [&alice, &bob] {
        wait_until("the chat to tell", || {
            reads(reader, "THE SERVER CANNOT SAVE")
        });
    }
    // The session goes on, and says what is wrong to whoever asks.
    stamp += 1;
    alice.edit("World", &format!("d['stamp'] = {stamp}"));
    bob.await_value("World", "d['stamp']", stamp);
    server.console("status");
    wait_until("status to tell", || {
        server.log.find("journal FAILING since").is_some()
    });
    server.console("save in vain");
    wait_until("save to tell", || server.log.find("not saved: ").is_some());

    disk.free();
    wait_until("the journal to be written again", || {
        server.log.find("the journal is written again").is_some()
    });
    for reader in [&alice, &bob] {
        wait_until("the chat to tell that it is over", || {
            reads(reader, "everything is saved")
        });
    }
    // What was done in the meantime has been saved, and so is what is done now.
    let server = server.crash_and_restart();
    bob.await_value("World", "d['stamp']", stamp);
    let carol = server.join("Carol");
    carol.await_value(
        "World",
        "[d['stamp'], d['before']]",
        serde_json::json!([stamp, "there was space"]),
    );
    server.assert_works(&[&alice, &bob, &carol]);
    assert!(
        server.log.find("WARN").is_none(),
        "{:#?}",
        server.log.lines()
    );
}

#[test]
fn a_server_on_a_full_disk_still_starts_with_everything() {
    let data_dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(data_dir.path(), 40) else {
        return;
    };
    let Some(server) = Server::start_in(data_dir, &["--save-interval", "0"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    let bob = server.join("Bob");
    wait_until("the first save", || {
        server.log.find("(reason: initialised)").is_some()
    });
    alice.edit("World", "d['stamp'] = 1");
    bob.await_value("World", "d['stamp']", 1);
    let stopped = server.kill();
    disk.fill();
    let server = stopped.start(&["--save-interval", "0"]);
    let carol = server.join("Carol");
    carol.await_value("World", "d['stamp']", 1);
    alice.edit("World", "d['stamp'] = 2");
    carol.await_value("World", "d['stamp']", 2);
    carol.leave();
    // Again, with what a failing save may have left.
    let server = server.kill().start(&["--save-interval", "1"]);
    wait_until("a save to fail", || {
        server.log.find("could not be").is_some()
    });
    let dora = server.join("Dora");
    assert!(dora.has("Object:Cube"));
    disk.free();
    alice.edit("World", "d['stamp'] = 3");
    dora.await_value("World", "d['stamp']", 3);
    wait_until("a save", || {
        server.log.find("Session saved to disk").is_some()
    });
    let server = server.crash_and_restart();
    let erin = server.join("Erin");
    erin.await_value("World", "d['stamp']", 3);
    server.assert_works(&[&alice, &bob, &dora, &erin]);
    let stopped = server.kill();
    disk.fill();
    the_checkpoint_alone_is_not_given_up(&stopped);
}

/// sled cannot open on a full disk, which must not look like an empty session.
fn the_checkpoint_alone_is_not_given_up(stopped: &Stopped) {
    let hide = |hidden: bool| {
        for part in ["journal", "backups"] {
            let (here, away) = (stopped.path(part), stopped.path(&format!("{part}.away")));
            let _ = fs::remove_dir(if hidden { &away } else { &here });
            match hidden {
                true => fs::rename(here, away).unwrap(),
                false => fs::rename(away, here).unwrap(),
            }
        }
    };
    hide(true);
    let output = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"))
        .args(["--port", "0", "--admin-password", "admin", "--data-dir"])
        .arg(stopped.data_dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no storage space"), "{said}");
    assert!(stopped.path("state.sled/db").exists());
    hide(false);
}

const DIGEST: &str = "__import__('hashlib').sha256(d['blob']).hexdigest()";

#[test]
fn a_kill_during_a_save_costs_nothing() {
    let Some(mut server) = Server::start_with(&["--save-interval", "0"]) else {
        return;
    };
    let alice = server.host("Alice", &["Cube"]);
    wait_until("the first save", || {
        server.log.find("(reason: initialised)").is_some()
    });
    alice.push_full("World", "d['blob'] = __import__('os').urandom(20_000_000)");
    let digest = alice.value("World", DIGEST);
    let bob = server.join("Bob");
    bob.await_value("World", DIGEST, digest.clone());
    server.console("save cut short");
    let unfinished = |directory: &Path| {
        let files = fs::read_dir(directory.join("backups")).unwrap();
        let mut names = files.flatten().map(|file| file.path());
        names.any(|path| path.extension().is_some_and(|extension| extension == "tmp"))
    };
    wait_within(
        std::time::Duration::from_secs(60),
        "a save to be under way",
        || unfinished(server.data_dir.path()).then_some(()),
    );
    let stopped = server.kill();
    assert!(unfinished(stopped.data_dir.path()), "it was over too early");
    let server = stopped.start(&["--save-interval", "0"]);
    assert!(!unfinished(server.data_dir.path()));
    let backups = list(server.data_dir.path());
    assert_eq!(backups.len(), 1);
    assert_eq!(verify(&backups[0].path), Verified::Yes);
    let carol = server.join("Carol");
    carol.await_value("World", DIGEST, digest);
    server.assert_works(&[&alice, &bob, &carol]);
}
