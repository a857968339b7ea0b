//! Session files: between this server, the client library and Blender.

use std::fs;
use std::path::Path;

use blender_multiuser::store::{
    About, BackupInfo, FileError, Saved, SavedScene, State, Store, Verified, export, list,
    read_session_file, verify,
};
use blender_multiuser::wire::pickle::{self, Value};
use bytes::Bytes;

use crate::scenes::*;

const LIMIT: u64 = 1 << 30;

fn export_to(path: &Path, state: &State) {
    export(path, state, &About::default()).unwrap();
}

/// Runs a script of the real client library, where there is one.
#[cfg(unix)]
fn python(script: &str, arguments: &[&Path]) -> Option<String> {
    use crate::support::venv;
    let python = venv::python(&venv::CURRENT)?;
    let output = std::process::Command::new(python)
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[cfg(not(unix))]
fn python(_: &str, _: &[&Path]) -> Option<String> {
    None
}

/// A scene with dependencies, one of which is missing, a locked node and a large one.
fn studio() -> State {
    let mut state = state(3);
    let nodes = &mut state.scene.as_mut().unwrap().nodes;
    nodes[1].0.dependencies = vec!["node-00000".into(), "nowhere".into()];
    nodes[2].0.owner = "Ada".into();
    let large = Value::dict([
        ("type_id", Value::str("Mesh")),
        ("number", Value::Int(2)),
        ("co", Value::bytes(vec![7; 3_000_000])),
    ]);
    nodes[2].0.data = pickle::encode(&large).into();
    state
}

#[test]
fn the_client_library_loads_what_was_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("session.db");
    export_to(&path, &studio());
    assert_eq!(verify(&path), Verified::Yes);
    let Some(said) = python(
        "import sys
from replication.repository import Repository
repository = Repository(username='Ada')
repository.loads(sys.argv[1])
for node in repository.object_store.values():
    print(node.uuid, node.owner, node.dependencies, node.data['number'], len(node.data.get('co', b'')))
import gzip, pickle
print(pickle.load(gzip.open(sys.argv[1]))['users'])
",
        &[&path],
    ) else {
        return;
    };
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "node-00000 COMMON [] 0 0",
            "node-00001 COMMON ['node-00000'] 1 0",
            "node-00002 COMMON [] 2 3000000",
            "{}"
        ]
    );
}

#[test]
fn what_the_client_library_saved_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let Some(written) = python(
        "import sys
from replication.repository import Repository
from replication.objects import Node
repository = Repository(username='Ada')
for n in range(3):
    repository.do_commit(Node(uuid=f'node-{n:05}', owner='Ada', dependencies=['node-00000', 'nowhere'], data={'type_id': 'Mesh', 'number': n, 'co': b'x' * 100000}))
repository.dumps(sys.argv[1] + '/x.db')
import os
print([name for name in os.listdir(sys.argv[1])][0])
",
        &[directory.path()],
    ) else {
        return;
    };
    let path = directory.path().join(written.trim());
    assert_eq!(verify(&path), Verified::Foreign);
    let file = read_session_file(&path, LIMIT).unwrap();
    assert!(file.about.is_none() && file.notes.is_empty());
    assert_eq!(numbers(&file.state), numbers(&state(3)));
    for (node, _) in file.state.scene.unwrap().nodes {
        assert_eq!(&*node.owner, "COMMON");
        assert_eq!(node.dependencies, ["node-00000".into()]);
    }
}

#[test]
fn a_file_saved_in_blender_is_read_and_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/session.db");
    let file = read_session_file(&path, LIMIT).unwrap();
    assert!(file.notes.is_empty(), "{:?}", file.notes);
    let nodes = |state: &State| -> Vec<_> {
        let nodes = &state.scene.as_ref().unwrap().nodes;
        let parts = |(node, _): &(blender_multiuser::wire::message::Node, _)| {
            (
                node.id.clone(),
                node.dependencies.clone(),
                node.data.clone(),
            )
        };
        nodes.iter().map(parts).collect()
    };
    assert!(nodes(&file.state).len() > 3);
    let directory = tempfile::tempdir().unwrap();
    let again = directory.path().join("again.db");
    export_to(&again, &file.state);
    assert_eq!(
        nodes(&read_session_file(&again, LIMIT).unwrap().state),
        nodes(&file.state)
    );
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("session.db");
    export_to(&path, &studio());
    let good = fs::read(&path).unwrap();
    assert!(matches!(
        read_session_file(&path, 1_000_000),
        Err(FileError::TooLarge(1_000_000))
    ));
    for at in (0..good.len()).step_by(good.len() / 50) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        // The header's own bytes may be changed unnoticed.
        if let Ok(file) = read_session_file(&path, LIMIT) {
            assert_eq!(numbers(&file.state), numbers(&studio()));
        }
        fs::write(&path, &good[..at]).unwrap();
        assert!(read_session_file(&path, LIMIT).is_err());
        assert_eq!(verify(&path), Verified::No);
    }
    // os.system, in a pickle that is no session.
    let evil = b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R.";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, evil).unwrap();
    fs::write(&path, gzip.finish().unwrap()).unwrap();
    assert!(matches!(
        read_session_file(&path, LIMIT),
        Err(FileError::Malformed(_))
    ));
}

fn saved(result: blender_multiuser::store::SaveResult) -> BackupInfo {
    match result {
        Ok(Saved::Backup(info)) => info,
        other => panic!("{other:?}"),
    }
}

#[test]
fn backups_are_listed_in_order_and_only_so_many_are_kept() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    fs::write(data.path().join("backups/mine.db"), b"hands off").unwrap();
    let mut names = Vec::new();
    for n in 0..12 {
        let mut now = state(2);
        now.scene.as_mut().unwrap().nodes[0].0 = node("node-00000", n);
        let _ = store.append(vec![change("node-00000", n)]);
        names.push(saved(back_up(&store, &now, &format!("save {n}"))).name());
    }
    let sorted = {
        let mut names = names.clone();
        names.sort();
        names
    };
    assert_eq!(names, sorted);
    let listed = list(data.path());
    let (others, ours): (Vec<_>, Vec<_>) = listed.iter().partition(|info| info.about.is_none());
    assert_eq!(others[0].name(), "mine.db");
    assert_eq!(verify(&others[0].path), Verified::No);
    let found: Vec<String> = ours.iter().map(|info| info.name()).collect();
    assert_eq!(found, names[2..]);
    let last = ours.last().unwrap();
    let about = last.about.as_ref().unwrap();
    assert_eq!(
        (about.reason.as_str(), about.nodes, about.users.len()),
        ("save 11", 2, 1)
    );
    assert_eq!(verify(&last.path), Verified::Yes);
    let metadata = fs::read(data.path().join("session_metadata.json")).unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
    assert_eq!(metadata["reason"], "save 11");
    assert_eq!(metadata["bytes"], last.bytes);
    assert_eq!(metadata["node_count"], 2);
}

#[test]
fn a_file_put_beside_the_session_is_taken_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    let old = saved(back_up(&store, &state(3), "auto-save"));
    let _ = store.append(vec![change("node-00000", 77), change("later", 1)]);
    drop(store);
    let restore = data.path().join("session_restore.db");
    fs::copy(&old.path, &restore).unwrap();

    let (store, recovered) = start(data.path());
    assert_eq!(
        numbers(&recovered.state),
        numbers(&state(3)),
        "{:?}",
        recovered.notes
    );
    assert!(!restore.exists());
    // What was there is still to be had.
    let before = list(data.path()).pop().unwrap();
    assert_eq!(before.about.unwrap().reason, "before session_restore.db");
    assert_eq!(
        numbers(&read_session_file(&before.path, LIMIT).unwrap().state)["node-00000"],
        77
    );
    let _ = store.append(vec![change("node-00001", 5)]);
    drop(store);
    let (store, recovered) = start(data.path());
    let found = numbers(&recovered.state);
    assert_eq!((found["node-00000"], found["node-00001"]), (0, 5));
    drop(store);

    export_to(&restore, &state(0));
    let empty = fs::read(&restore).unwrap();
    for useless in [&b"no session"[..], &empty] {
        fs::write(&restore, useless).unwrap();
        let (_store, again) = start(data.path());
        assert_eq!(numbers(&again.state), found);
        assert!(
            !restore.exists() && again.notes.len() == 2,
            "{:?}",
            again.notes
        );
    }
}

#[test]
fn ten_thousand_nodes_and_a_large_one() {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let mut now = state(10_000);
    let scene: &mut SavedScene = now.scene.as_mut().unwrap();
    let bytes: Vec<u8> = (0..64_u32 << 20).map(|n| (n ^ (n >> 9)) as u8).collect();
    let large = Value::dict([
        ("type_id", Value::str("Image")),
        ("number", Value::Int(-1)),
        ("pixels", Value::Bytes(Bytes::from(bytes))),
    ]);
    let mut node = node("large", -1);
    node.data = pickle::encode(&large).into();
    scene.nodes.push((node, Vec::new()));
    let _ = store.append(scene.records("initialised", &"Ada".into()));
    store.checkpoint(now.clone());
    saved(back_up(&store, &now, "initialised"));
    let _ = store.append(vec![change("node-09999", 5)]);
    drop(store);
    for missing in ["", "state.sled"] {
        if !missing.is_empty() {
            fs::remove_dir_all(data.path().join(missing)).unwrap();
        }
        let (_store, recovered) = start(data.path());
        let mut scene = recovered.state.scene.clone().unwrap();
        assert_eq!(
            numbers(&recovered.state)["node-09999"],
            5,
            "{:?}",
            recovered.notes
        );
        assert_eq!(scene.nodes.len(), 10_001);
        scene.nodes.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        assert!(scene.nodes[0].0.data == now.scene.as_ref().unwrap().nodes[10_000].0.data);
    }
}
