//! An orderly life: changes, saves, restarts.

use blender_multiuser::store::{
    BackupRequest, DiskStore, HandOver, HandedOver, Record, Saved, SavedClient, Store, StoreError,
    Written, history, open,
};
use bytes::Bytes;
use serde_json::json;

use crate::scenes::*;

#[test]
fn a_session_comes_back_from_the_journal_alone() {
    let data = tempfile::tempdir().unwrap();
    let (store, recovered) = start(data.path());
    assert!(recovered.source.is_none() && recovered.notes.is_empty());
    let scene = scene(3);
    let receipt = store.append(scene.records("initialised", &"Ada".into()));
    assert_eq!(receipt.blocking_recv(), Ok(Written::Kernel));
    let _ = store.append(vec![
        change("node-00001", 100),
        Record::Delete {
            id: "node-00002".into(),
            author: "Ada".into(),
        },
        Record::Right {
            nodes: vec!["node-00000".into()],
            owner: "Ada".into(),
            author: "Ada".into(),
        },
        Record::Chat {
            id: "1".into(),
            line: json!({"text": "hello"}),
        },
        Record::Task {
            id: "t".into(),
            task: Some(json!({"done": false})),
        },
    ]);
    store.flush().blocking_recv().unwrap().unwrap();
    assert_eq!(store.status().durable, store.status().written);
    drop(store);

    let (_store, recovered) = start(data.path());
    let state = recovered.state;
    let expected = [("node-00000".to_owned(), 0), ("node-00001".to_owned(), 100)];
    assert_eq!(numbers(&state), expected.into());
    let scene = state.scene.unwrap();
    assert_eq!(
        (&*scene.nodes[0].0.owner, &*scene.nodes[1].0.owner),
        ("Ada", "COMMON")
    );
    assert_eq!(scene.version.as_deref(), Some("0.9.10"));
    assert_eq!(state.chat, [("1".to_owned(), json!({"text": "hello"}))]);
    assert_eq!(state.tasks, [("t".to_owned(), json!({"done": false}))]);
    assert_eq!(recovered.notes, [""; 0]);
    let mut authors = Vec::new();
    history(data.path(), &mut |entry| {
        if let Record::Delete { author, .. } = entry.record {
            authors.push((author.to_string(), entry.at > 0));
        }
    })
    .unwrap();
    assert_eq!(authors, [("Ada".to_owned(), true)]);
}

#[test]
fn a_second_server_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    assert!(matches!(
        open(data.path(), settings()),
        Err(StoreError::InUse(_))
    ));
    drop(store);
    start(data.path());
}

#[test]
fn a_backup_stands_in_for_everything_else() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let mut saved = state(5);
    let scene = saved.scene.as_mut().unwrap();
    scene.nodes[1].0.owner = "Ada".into();
    let _ = store.append(scene.records("initialised", &"Ada".into()));
    let Ok(Saved::Backup(info)) = back_up(&store, &saved, "auto-save") else {
        panic!("not saved");
    };
    assert_eq!(info.about.unwrap().reason, "auto-save");
    assert!(matches!(
        back_up(&store, &saved, "auto-save"),
        Ok(Saved::Unchanged)
    ));
    let _ = store.append(vec![change("node-00001", 7)]);
    drop(store);

    let (store, recovered) = start(data.path());
    assert_eq!(numbers(&recovered.state)["node-00001"], 7);
    drop(store);
    // Even without the journal, what the backup holds is there.
    std::fs::remove_dir_all(data.path().join("journal")).unwrap();
    let _ = std::fs::remove_dir_all(data.path().join("state.sled"));
    let (_store, recovered) = start(data.path());
    assert_eq!(numbers(&recovered.state), numbers(&saved));
    let nodes = recovered.state.scene.unwrap().nodes;
    assert_eq!(&*nodes[1].0.owner, "Ada");
}

#[test]
fn what_a_run_hands_over_counts_only_if_nothing_came_after_it() {
    let data = tempfile::tempdir().unwrap();
    let handover = HandOver {
        clients: vec![HandedOver {
            identity: Bytes::from_static(b"ada"),
            owed: vec!["node-00001".into()],
            unread: 3,
        }],
        waiting: vec![(Bytes::from_static(b"bob"), "node-00000".into())],
    };
    let stopped = || Record::ServerStopped {
        reason: "shutdown".into(),
        handover: handover.clone(),
    };
    let end = |store: DiskStore, records: Vec<Record>| {
        let _ = store.append(records);
        store.flush().blocking_recv().unwrap().unwrap();
        store.close();
    };
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover, None);
    let _ = store.append(scene(2).records("initialised", &"Ada".into()));
    end(store, vec![change("node-00001", 1), stopped()]);

    // Nothing was damaged, and nothing has happened since.
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover.as_ref(), Some(&handover));
    assert_eq!(recovered.notes, [""; 0]);
    drop(store);
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover, None, "a run that left no trace");
    assert_eq!(numbers(&recovered.state)["node-00001"], 1);
    assert_eq!(recovered.notes, [""; 0]);
    end(store, vec![stopped()]);
    let (store, _) = start(data.path());
    let server = "test".into();
    end(store, vec![Record::ServerStarted { server }]);
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover, None, "a run that crashed");

    end(store, vec![stopped(), change("node-00001", 2)]);
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover, None, "something came after it");

    end(store, vec![Record::Gap { lost: 1 }, stopped()]);
    let (store, recovered) = start(data.path());
    assert_eq!(recovered.handover, None, "something is missing before it");
    drop(store);
}

#[test]
fn a_server_that_idles_does_not_fill_the_disk() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let mut idle = state(2);
    idle.clients = vec![SavedClient {
        identity: Bytes::from_static(b"ada"),
        name: "Ada".into(),
        admin: false,
        version: "0.9.10".into(),
        dialect: "dealer".into(),
    }];
    let _ = store.append(scene(2).records("initialised", &"Ada".into()));
    let _ = store.append(vec![Record::Login(idle.clients[0].clone())]);
    let journal = || std::fs::read_dir(data.path().join("journal")).unwrap();
    let size = || -> u64 {
        journal()
            .map(|f| f.unwrap().metadata().unwrap().len())
            .sum()
    };
    assert!(matches!(
        back_up(&store, &idle, "auto-save"),
        Ok(Saved::Backup(_))
    ));
    store.flush().blocking_recv().unwrap().unwrap();
    let before = (journal().count(), size());
    for _ in 0..20 {
        assert!(matches!(
            back_up(&store, &idle, "auto-save"),
            Ok(Saved::Unchanged)
        ));
    }
    store.flush().blocking_recv().unwrap().unwrap();
    assert_eq!((journal().count(), size()), before);
    // One by hand is made all the same, and whoever starts from it knows who was there.
    let request = BackupRequest {
        reason: "by hand".into(),
        users: Vec::new(),
        even_if_unchanged: true,
        ..BackupRequest::default()
    };
    let made = store.backup(idle.clone(), request).blocking_recv().unwrap();
    assert!(matches!(made, Ok(Saved::Backup(_))));
    drop(store);
    std::fs::remove_dir_all(data.path().join("state.sled")).unwrap();
    let (_store, recovered) = start(data.path());
    assert_eq!(recovered.state.clients, idle.clients);
    assert_eq!(numbers(&recovered.state), numbers(&idle));
    assert_eq!(recovered.notes, [""; 0]);
}
