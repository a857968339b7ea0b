//! What could lead a start astray: files of others, files that cannot be read, steps that were cut short.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blender_multiuser::backups;
use blender_multiuser::store::{About, Record, Saved, State, Store, export, list, open, open_on};

use crate::faulty::*;
use crate::scenes::*;

fn begin(data: &Path, number: i64) {
    let (store, _) = start(data);
    let scene = numbered(number).scene.unwrap();
    let _ = store.append(scene.records("initialised", &"Ada".into()));
}

/// A backup of a server with a longer life than others.
fn backup_of_another_server(number: i64) -> (tempfile::TempDir, PathBuf) {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 0);
    for _ in 0..5 {
        let (store, _) = start(data.path());
        let _ = store.append(vec![change("node-00000", number)]);
    }
    let (store, _) = start(data.path());
    let Ok(Saved::Backup(info)) = back_up(&store, &numbered(number), "auto-save") else {
        panic!("not saved");
    };
    (data, info.path)
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("journal")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().unwrap() == "log");
    found.sort();
    found
}

#[test]
fn a_backup_of_another_server_is_not_where_this_one_goes_on() {
    let (_other, backup) = backup_of_another_server(777);
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    let copied = data
        .path()
        .join("backups")
        .join(backup.file_name().unwrap());
    fs::copy(&backup, &copied).unwrap();
    for round in 2..5 {
        let (store, recovered) = start(data.path());
        assert_eq!(number(&recovered.state), round - 1, "{:?}", recovered.notes);
        assert_eq!(recovered.notes, [""; 0]);
        let _ = store.append(vec![change("node-00000", round)]);
        if round == 3 {
            back_up(&store, &numbered(round), "auto-save").unwrap();
        }
    }
    // Not even where nothing but the journal or backups of its own are left.
    fs::remove_dir_all(data.path().join("state.sled")).unwrap();
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 4, "{:?}", recovered.notes);
}

#[test]
fn a_server_without_a_scene_goes_on_from_the_backups_of_another() {
    let (_other, backup) = backup_of_another_server(777);
    for lives in [0, 1, 12] {
        let data = tempfile::tempdir().unwrap();
        for _ in 0..lives {
            let (store, _) = start(data.path());
            let server = "test".into();
            let _ = store.append(vec![Record::ServerStarted { server }]);
            store.checkpoint(State::default());
        }
        fs::create_dir_all(data.path().join("backups")).unwrap();
        let copied = data
            .path()
            .join("backups")
            .join(backup.file_name().unwrap());
        fs::copy(&backup, &copied).unwrap();
        let (store, recovered) = start(data.path());
        assert_eq!(number(&recovered.state), 777, "{:?}", recovered.notes);
        let _ = store.append(vec![change("node-00000", 778)]);
        drop(store);
        for _ in 0..2 {
            let (_store, recovered) = start(data.path());
            assert_eq!(
                number(&recovered.state),
                778,
                "{lives}: {:?}",
                recovered.notes
            );
        }
    }
}

#[test]
fn the_latest_backup_is_the_newest_of_this_server() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    let (store, _) = start(data.path());
    let wrong_clock = data.path().join("backups/session_29991231_235959.db");
    back_up(&store, &numbered(1), "auto-save").unwrap();
    let first = list(data.path()).remove(0).path;
    fs::rename(first, wrong_clock).unwrap();
    let _ = store.append(vec![change("node-00000", 2)]);
    back_up(&store, &numbered(2), "auto-save").unwrap();
    // What somebody put beside them is there to be named.
    let mine = data.path().join("backups/wip.db");
    export(&mine, &numbered(77), &About::default()).unwrap();
    let (_, scene) = backups::read(data.path(), "latest").unwrap();
    let scene = Some(scene);
    let found = State {
        scene,
        ..State::default()
    };
    assert_eq!(number(&found), 2);
    assert!(backups::read(data.path(), "wip").is_ok());
}

#[test]
fn a_segment_that_the_disk_cannot_read_costs_no_more_than_itself() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    for n in 2..4 {
        let (store, _) = start(data.path());
        let _ = store.append(vec![change("node-00000", n)]);
    }
    let last = segments(data.path()).pop().unwrap();
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    let (store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 2, "{:?}", recovered.notes);
    let _ = store.append(vec![change("node-00000", 9)]);
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 9, "{:?}", recovered.notes);
}

#[test]
fn other_names_in_the_journal_are_none_of_its_segments() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    fs::write(data.path().join("journal/5.log"), b"mine").unwrap();
    fs::write(data.path().join("journal/+0000007.log"), b"mine").unwrap();
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 1);
    assert_eq!(recovered.notes, [""; 0]);
}

#[test]
fn what_could_not_be_set_aside_does_not_hide_what_was_done_since() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    for n in 2..5 {
        let (store, _) = start(data.path());
        let _ = store.append(vec![change("node-00000", n)]);
    }
    let disk = FaultyDisk::default();
    let missing = segments(data.path()).remove(1);
    fs::remove_file(missing).unwrap();
    disk.fix(Some("journal"));
    let (store, recovered) = open_on(Arc::new(disk), data.path(), settings()).unwrap();
    assert_eq!(number(&recovered.state), 1, "{:?}", recovered.notes);
    let _ = store.append(vec![change("node-00000", 9)]);
    drop(store);
    for _ in 0..2 {
        let (_store, recovered) = start(data.path());
        assert_eq!(number(&recovered.state), 9, "{:?}", recovered.notes);
    }
}

#[test]
fn a_scene_that_was_cut_short_takes_in_nothing_of_the_next_run() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    let (store, _) = start(data.path());
    let mut half = numbered(5)
        .scene
        .unwrap()
        .records("imported", &"server".into());
    half.pop();
    let _ = store.append(half);
    drop(store);
    // As a crash leaves it. The next run works on what there was.
    let (store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 1);
    let server = "test".into();
    let _ = store.append(vec![Record::ServerStarted { server }]);
    let _ = store.append(vec![change("node-00000", 2), change("later", 3)]);
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered.state), 2, "{:?}", recovered.notes);
    assert_eq!(numbers(&recovered.state)["later"], 3);
}

#[test]
fn a_place_beyond_all_journals_does_not_stop_this_one() {
    let data = tempfile::tempdir().unwrap();
    begin(data.path(), 1);
    let path = data.path().join("backups/session_20250101_000000.db");
    let mut about = About {
        nodes: 3,
        ..About::default()
    };
    about.position.segment = u64::MAX;
    export(&path, &numbered(7), &about).unwrap();
    let small = blender_multiuser::store::Settings {
        segment_bytes: 500,
        ..settings()
    };
    let (store, recovered) = open(data.path(), small.clone()).unwrap();
    assert_eq!(number(&recovered.state), 1);
    for n in 2..20 {
        let record = vec![change("node-00000", n)];
        store.append(record).blocking_recv().unwrap();
    }
    drop(store);
    let (_store, recovered) = open(data.path(), small).unwrap();
    assert_eq!(number(&recovered.state), 19, "{:?}", recovered.notes);
}
