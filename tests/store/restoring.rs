//! `session_restore.db`, whatever happens on the way: taken once or not at all, and nothing newer is lost over it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use blender_multiuser::store::{
    About, DiskStore, Record, Recovered, Saved, SavedClient, Store, export, list, open_on,
};
use bytes::Bytes;

use crate::faulty::*;
use crate::scenes::*;

const FILE: &str = "session_restore.db";

fn start_on(disk: &FaultyDisk, data: &Path) -> (DiskStore, Recovered) {
    open_on(Arc::new(disk.clone()), data, settings()).unwrap()
}

/// A server that has had a scene, and a file with another one to be restored.
fn with_file(scene: bool) -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    if scene {
        let scene = numbered(1).scene.unwrap();
        let _ = store.append(scene.records("initialised", &"Ada".into()));
    }
    drop(store);
    export(&data.path().join(FILE), &numbered(50), &About::default()).unwrap();
    data
}

#[test]
fn a_file_that_keeps_its_name_is_not_taken() {
    let data = with_file(true);
    let disk = FaultyDisk::default();
    disk.fix(Some(FILE));
    for round in 1..4 {
        let (store, recovered) = start_on(&disk, data.path());
        assert_eq!(number(&recovered.state), round, "{:?}", recovered.notes);
        let said = recovered.notes.concat();
        assert!(
            said.contains("cannot be renamed") && said.contains("not restored"),
            "{said}"
        );
        let _ = store.append(vec![change("node-00000", round + 1)]);
    }
    // Whoever can rename it has it taken, once.
    disk.fix(None);
    let (store, recovered) = start_on(&disk, data.path());
    assert_eq!(number(&recovered.state), 50);
    let _ = store.append(vec![change("node-00000", 51)]);
    drop(store);
    let (_store, recovered) = start_on(&disk, data.path());
    assert_eq!(number(&recovered.state), 51);
}

#[test]
fn a_file_that_cannot_be_renamed_when_it_was_taken_is_not_taken_again() {
    let data = with_file(true);
    let disk = FaultyDisk::default();
    disk.fix(Some("session_restore.db.restoring"));
    let (store, recovered) = start_on(&disk, data.path());
    assert_eq!(number(&recovered.state), 50, "{:?}", recovered.notes);
    let _ = store.append(vec![change("node-00000", 51)]);
    drop(store);
    for _ in 0..2 {
        let (_store, recovered) = start_on(&disk, data.path());
        assert_eq!(number(&recovered.state), 51, "{:?}", recovered.notes);
    }
    disk.fix(None);
    let (_store, recovered) = start_on(&disk, data.path());
    assert_eq!(number(&recovered.state), 51);
    let said = recovered.notes.concat();
    assert!(said.contains("was interrupted"), "{said}");
    drop(_store);
    let (_store, recovered) = start_on(&disk, data.path());
    assert_eq!(recovered.notes, [""; 0]);
}

#[test]
fn a_restore_that_fails_costs_nothing_of_what_is_done_then() {
    for (scene, room, no_sync) in [
        (true, 30, false),
        (true, 300, false),
        (false, 30, false),
        (false, 300, false),
        (false, 100_000, true),
    ] {
        let data = with_file(scene);
        let disk = FaultyDisk::default();
        disk.leave_room("journal", room);
        disk.0.no_sync.store(no_sync, SeqCst);
        let (store, recovered) = start_on(&disk, data.path());
        assert_eq!(recovered.state.scene.is_some(), scene);
        let said = recovered.notes.concat();
        assert!(said.contains("not restored"), "{said}");
        disk.give_room();
        disk.0.no_sync.store(false, SeqCst);
        if !scene {
            let scene = numbered(1).scene.unwrap();
            let _ = store.append(scene.records("initialised", &"Ada".into()));
        }
        let _ = store.append(vec![change("node-00000", 2)]);
        drop(store);
        let left = [FILE, "session_restore.db.restoring"].map(|name| data.path().join(name));
        assert!(left[0].exists() && !left[1].exists());
        fs::remove_file(&left[0]).unwrap();
        let (_store, recovered) = start_on(&disk, data.path());
        assert_eq!(
            number(&recovered.state),
            2,
            "room {room}: {:?}",
            recovered.notes
        );
    }
}

#[test]
fn what_was_restored_is_backed_up_like_any_change() {
    let data = with_file(true);
    let (store, _) = start(data.path());
    back_up(&store, &numbered(1), "auto-save").unwrap();
    drop(store);
    export(&data.path().join(FILE), &numbered(60), &About::default()).unwrap();
    let (store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 60);
    let saved = back_up(&store, &recovered.state, "auto-save");
    assert!(matches!(saved, Ok(Saved::Backup(_))), "{saved:?}");
    assert_eq!(
        list(data.path()).pop().unwrap().about.unwrap().reason,
        "auto-save"
    );
}

#[test]
fn who_has_the_scene_of_before_does_not_go_on_with_the_restored_one() {
    let data = with_file(true);
    let (store, _) = start(data.path());
    let ada = SavedClient {
        identity: Bytes::from_static(b"ada"),
        name: "Ada".into(),
        admin: false,
        version: "0.9.10".into(),
        dialect: "dealer".into(),
    };
    let _ = store.append(vec![Record::Login(ada.clone())]);
    drop(store);
    export(&data.path().join(FILE), &numbered(60), &About::default()).unwrap();
    let (store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 60);
    assert!(recovered.replaced);
    assert_eq!(recovered.state.clients, [ada]);
    drop(store);
    // That start ended before it had told her, as where its port is taken.
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 60);
    assert!(!recovered.replaced);
    assert_eq!(recovered.state.clients, []);
}
