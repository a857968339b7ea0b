//! Disks that are full, slow or broken while the session goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use blender_multiuser::store::{
    BackupRequest, DiskStore, Health, SaveResult, Saved, Settings, Store, Written, list, open_on,
    read_session_file,
};

use bytes::Bytes;
use tempfile::TempDir;

use crate::faulty::*;
use crate::scenes::*;

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn failing(store: &DiskStore) -> bool {
    matches!(store.status().journal, Health::Failing { .. })
}

/// A store on a disk that will do as it is told, with a scene of three nodes.
fn begun(settings: Settings) -> (TempDir, FaultyDisk, DiskStore) {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings).unwrap();
    let written = store.append(scene(3).records("initialised", &"Ada".into()));
    assert_eq!(written.blocking_recv(), Ok(Written::Kernel));
    (data, disk, store)
}

fn auto_save() -> BackupRequest {
    BackupRequest {
        reason: "auto-save".into(),
        ..BackupRequest::default()
    }
}

fn is_backup(result: SaveResult) -> bool {
    matches!(result, Ok(Saved::Backup(_)))
}

#[test]
fn a_full_disk_is_told_and_cured() {
    let (data, disk, store) = begun(settings());
    store.flush().blocking_recv().unwrap().unwrap();

    disk.0.full.store(true, SeqCst);
    let lost = store.append(vec![change("node-00000", 1)]);
    assert_eq!(lost.blocking_recv(), Ok(Written::Lost));
    assert!(failing(&store) && store.status().lost == 1);
    assert!(store.flush().blocking_recv().unwrap().is_err());
    assert!(back_up(&store, &state(3), "auto-save").is_err());
    assert!(matches!(store.status().backups, Health::Failing { .. }));
    // Nothing that is there suffers, and nothing half done gets a name.
    let backups = std::fs::read_dir(data.path().join("backups")).unwrap();
    assert_eq!(backups.count(), 0);

    disk.0.full.store(false, SeqCst);
    wait_until("the journal to be written again", || !failing(&store));
    assert!(store.status().wants_save.is_some());
    let mut now = state(3);
    now.scene.as_mut().unwrap().nodes[0].0 = node("node-00000", 1);
    assert!(is_backup(back_up(&store, &now, "the disk is back")));
    assert_eq!(store.status().backups, Health::Healthy);
    let written = store.append(vec![change("node-00001", 2)]);
    assert_eq!(written.blocking_recv(), Ok(Written::Kernel));
    drop(store);
    let (_store, recovered) = start(data.path());
    let numbers = numbers(&recovered.state);
    assert_eq!(
        (numbers["node-00000"], numbers["node-00001"]),
        (1, 2),
        "{:?}",
        recovered.notes
    );
    assert_eq!(recovered.notes, [""; 0]);
}

#[test]
fn after_a_gap_without_a_save_what_is_known_is_used() {
    let (data, disk, store) = begun(settings());
    disk.0.full.store(true, SeqCst);
    let _ = store.append(vec![change("node-00000", 1)]).blocking_recv();
    disk.0.full.store(false, SeqCst);
    wait_until("the journal to be written again", || !failing(&store));
    let _ = store.append(vec![change("node-00001", 2)]).blocking_recv();
    drop(store);
    let (_store, recovered) = start(data.path());
    let numbers = numbers(&recovered.state);
    assert_eq!((numbers["node-00000"], numbers["node-00001"]), (0, 2));
    assert!(
        recovered
            .notes
            .iter()
            .any(|note| note.contains("1 changes were never written"))
    );
}

#[test]
fn a_slow_disk_holds_nobody_up() {
    let (data, disk, store) = begun(Settings {
        queue_bytes: 100_000,
        ..settings()
    });
    disk.0.slow.store(300, SeqCst);
    // Far more than may wait: handed over at once, the surplus is known to be lost.
    let receipts: Vec<_> = (0..2_000)
        .map(|n| store.append(vec![change("node-00000", n)]))
        .collect();
    wait_until("somebody to notice", || {
        store.status().behind > Duration::from_millis(50)
    });
    disk.0.slow.store(0, SeqCst);
    let lost = receipts
        .into_iter()
        .filter_map(|receipt| receipt.blocking_recv().ok())
        .filter(|written| *written == Written::Lost)
        .count();
    assert!(lost > 0);
    wait_until("a save to be asked for", || {
        store.status().wants_save.is_some()
    });
    wait_until("all of them to be counted", || {
        store.status().lost == lost as u64
    });
    assert!(!failing(&store));
    assert!(is_backup(back_up(&store, &state(3), "auto-save")));
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(numbers(&recovered.state)["node-00000"], 0);
}

#[test]
fn a_sync_that_fails_asks_for_a_save() {
    let (_data, disk, store) = begun(settings());
    disk.0.no_sync.store(true, SeqCst);
    let _ = store.append(vec![change("node-00000", 1)]);
    assert!(store.flush().blocking_recv().unwrap().is_err());
    assert!(failing(&store));
    disk.0.no_sync.store(false, SeqCst);
    let _ = store.append(vec![change("node-00000", 2)]);
    wait_until("the journal to be written again", || !failing(&store));
    store.flush().blocking_recv().unwrap().unwrap();
    assert!(store.status().wants_save.is_some());
}

#[test]
fn a_long_journal_asks_for_a_save_and_is_shortened_by_it() {
    let (data, _disk, store) = begun(Settings {
        segment_bytes: 5_000,
        journal_bytes: 50_000,
        ..settings()
    });
    assert_eq!(store.status().wants_save, None);
    for n in 0..1_000 {
        let _ = store.append(vec![change("node-00000", n)]);
    }
    store.flush().blocking_recv().unwrap().unwrap();
    let status = store.status();
    assert!(status.wants_save.is_some() && status.journal_size > 50_000);
    assert!(is_backup(back_up(&store, &state(3), "the journal is long")));
    wait_until("the save to end", || !store.status().saving);
    let status = store.status();
    assert!(
        status.wants_save.is_none() && status.journal_size < 1_000,
        "{status:?}"
    );
    assert_eq!(
        std::fs::read_dir(data.path().join("journal"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn what_cannot_be_taken_back_is_no_damage() {
    let (data, disk, store) = begun(settings());
    disk.0.full.store(true, SeqCst);
    disk.0.no_cut.store(true, SeqCst);
    // Half of it is written, and stays.
    let many = (0..10).map(|n| change("node-00000", n)).collect();
    assert_eq!(store.append(many).blocking_recv(), Ok(Written::Lost));
    disk.0.full.store(false, SeqCst);
    wait_until("the journal to be written again", || !failing(&store));
    let _ = store.append(vec![change("node-00001", 7)]).blocking_recv();
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(numbers(&recovered.state)["node-00001"], 7);
    let said = recovered.notes.concat();
    assert!(
        said.contains("were never written") && !said.contains("continues"),
        "{said}"
    );
}

/// Tells when the scene that holds it is let go.
struct Kept(#[expect(dead_code)] Arc<()>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        b"data"
    }
}

#[test]
fn saves_do_not_pile_up_behind_a_stuck_disk() {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings()).unwrap();
    disk.stick("journal");
    let stuck = store.append(scene(3).records("initialised", &"Ada".into()));
    wait_until("the journal to be stuck", || {
        store.status().waiting_bytes == 0
    });
    let token = Arc::new(());
    let answers: Vec<_> = (0..5)
        .map(|_| {
            let mut state = state(3);
            state.scene.as_mut().unwrap().nodes[0].0.data = Bytes::from_owner(Kept(token.clone()));
            store.backup(state, auto_save())
        })
        .collect();
    let kept = Arc::strong_count(&token) - 1;
    disk.unstick();
    assert_eq!(kept, 1);
    assert_eq!(stuck.blocking_recv(), Ok(Written::Kernel));
    for answer in answers {
        assert!(is_backup(answer.blocking_recv().unwrap()));
    }
}

#[test]
fn what_never_came_to_the_journal_is_a_change_to_be_saved() {
    let (_data, disk, store) = begun(Settings {
        queue_bytes: 100_000,
        ..settings()
    });
    disk.stick("journal");
    let _stuck = store.append(vec![change("node-00000", 1)]);
    wait_until("the journal to be stuck", || {
        store.status().waiting_bytes == 0
    });
    let many = (0..1_000).map(|n| change("node-00000", n)).collect();
    let _many = store.append(many);
    let first = store.backup(state(3), auto_save());
    let dropped = store.append(vec![change("node-00001", 1)]);
    assert_eq!(dropped.blocking_recv(), Ok(Written::Lost));
    disk.refuse("journal");
    disk.unstick();
    assert!(is_backup(first.blocking_recv().unwrap()));
    let mut now = state(3);
    now.scene.as_mut().unwrap().nodes[1].0 = node("node-00001", 1);
    assert!(is_backup(back_up(&store, &now, "auto-save")));
}

#[test]
fn a_backup_that_cannot_be_removed_does_not_keep_the_others() {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let settings = Settings {
        max_backups: 2,
        ..settings()
    };
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings).unwrap();
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    for n in 0..6 {
        let _ = store.append(vec![change("node-00000", n)]);
        back_up(&store, &state(3), "auto-save").unwrap();
        if n == 0 {
            disk.fix(Some(&list(data.path())[0].name()));
        }
    }
    assert_eq!(list(data.path()).len(), 3);
}

#[test]
fn a_fault_of_the_saving_thread_is_told_and_does_not_end_it() {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings()).unwrap();
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    disk.panic_at(Some("backups"));
    let answer = store.backup(state(3), auto_save()).blocking_recv();
    assert!(!matches!(answer, Ok(Ok(_))), "{answer:?}");
    wait_until("the fault to be told", || {
        matches!(store.status().backups, Health::Failing { .. })
    });
    disk.panic_at(None);
    assert!(is_backup(back_up(&store, &state(3), "auto-save")));
    assert_eq!(store.status().backups, Health::Healthy);
    wait_until("the save to end", || !store.status().saving);
}

#[test]
fn what_is_saved_before_another_scene_comes_is_not_overtaken_by_it() {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings()).unwrap();
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    disk.stick("backups");
    let mut answers = Vec::new();
    for n in 1..6 {
        let _ = store.append(vec![change("node-00000", n)]);
        let request = BackupRequest {
            reason: format!("number {n}"),
            last_of_scene: n == 3,
            ..BackupRequest::default()
        };
        answers.push(store.backup(numbered(n), request));
    }
    disk.unstick();
    for answer in answers {
        assert!(matches!(answer.blocking_recv(), Ok(Ok(Saved::Backup(_)))));
    }
    let saved: Vec<i64> = list(data.path())
        .iter()
        .map(|info| read_session_file(&info.path, 1 << 30).unwrap().state)
        .map(|state| numbers(&state)["node-00000"])
        .collect();
    assert!(saved.contains(&3) && saved.last() == Some(&5), "{saved:?}");
}

#[test]
fn a_journal_that_is_cut_without_a_backup_is_told() {
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let settings = Settings {
        segment_bytes: 1_000,
        journal_bytes: 5_000,
        ..settings()
    };
    let (store, _) = open_on(Arc::new(disk.clone()), data.path(), settings).unwrap();
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    disk.refuse("backups");
    let mut now = state(3);
    for round in 1..=8 {
        assert!(round > 1 || !store.status().checkpoint_alone);
        for n in 0..50 {
            let _ = store.append(vec![change("node-00000", round * 100 + n)]);
        }
        now.scene.as_mut().unwrap().nodes[0].0 = node("node-00000", round * 100 + 49);
        back_up(&store, &now, "auto-save").unwrap_err();
    }
    wait_until("the save to end", || !store.status().saving);
    let status = store.status();
    assert!(
        status.checkpoint_alone && status.journal_size < 40_000,
        "{status:?}"
    );
    disk.refuse("nothing");
    back_up(&store, &now, "auto-save").unwrap();
    wait_until("the save to end", || !store.status().saving);
    assert!(!store.status().checkpoint_alone);
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(numbers(&recovered.state)["node-00000"], 849);
}
