//! Commits in the journal become node data again, as clients have it.

use blender_multiuser::store::{Record, Saved, State, Store};
use blender_multiuser::wire::delta::{Delta, DeltaError};
use blender_multiuser::wire::message::Node;
use blender_multiuser::wire::pickle;
use bytes::Bytes;

use crate::corpus::{Case, cases, data_dir};
use crate::scenes::*;

/// Recorded changes whose bases are nodes.
fn recorded() -> Vec<Case> {
    let mut cases = cases(&data_dir().join("b_drag.deltas.gz"));
    cases.extend(self::cases(&data_dir().join("b_concurrent.deltas.gz")));
    cases.retain(|case| {
        let value = |bytes: &Bytes| pickle::decode(bytes).unwrap();
        [&case.before, &case.after]
            .into_iter()
            .all(|bytes| value(bytes).get("type_id").is_some())
    });
    cases
}

fn node_of(id: &str, data: &Bytes) -> Node {
    Node {
        data: data.clone(),
        ..node(id, 0)
    }
}

fn commit(id: &str, raw: &Bytes) -> Record {
    Record::Commit {
        id: id.into(),
        dependencies: vec!["dependency".into()],
        author: "Ada".into(),
        raw: raw.clone(),
    }
}

fn begin(nodes: Vec<Node>) -> State {
    let mut state = state(0);
    let scene = state.scene.as_mut().unwrap();
    scene.nodes = nodes.into_iter().map(|node| (node, Vec::new())).collect();
    state
}

#[test]
fn recorded_commits_are_folded() {
    let recorded = recorded();
    assert!(recorded.len() > 20, "{}", recorded.len());
    let id = |n: usize| format!("node-{n:05}");
    let nodes = (0..)
        .zip(&recorded)
        .map(|(n, case)| node_of(&id(n), &case.before));
    let state = begin(nodes.collect());
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let _ = store.append(
        state
            .scene
            .as_ref()
            .unwrap()
            .records("initialised", &"Ada".into()),
    );
    let commits = (0..)
        .zip(&recorded)
        .map(|(n, case)| commit(&id(n), &case.delta));
    let _ = store.append(commits.collect());
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(recovered.notes, [""; 0]);
    let scene = recovered.state.scene.unwrap();
    assert_eq!(scene.nodes.len(), recorded.len());
    for ((node, kept), case) in scene.nodes.iter().zip(&recorded) {
        assert!(kept.is_empty());
        let [found, expected] = [&node.data, &case.after].map(|data| pickle::decode(data).unwrap());
        assert!(found == expected, "{}: {found:?}", node.id);
        assert_eq!(node.dependencies, ["dependency".into()]);
    }
}

#[test]
fn a_commit_that_cannot_be_folded_stays_with_its_node_whatever_is_lost() {
    let (before, delta) = unsupported();
    let base = pickle::decode(&before).unwrap();
    let result = Delta::decode(&delta).unwrap().apply(&base);
    assert!(
        matches!(result, Err(DeltaError::Unsupported(_))),
        "{result:?}"
    );
    let data = tempfile::tempdir().unwrap();
    let mut state = begin(vec![node_of("n", &before)]);
    let (store, _) = start(data.path());
    let _ = store.append(
        state
            .scene
            .as_ref()
            .unwrap()
            .records("initialised", &"Ada".into()),
    );
    let _ = store.append(vec![commit("n", &delta), commit("n", &delta)]);
    drop(store);
    let check = |what: &str, state: &State| {
        let (node, kept) = &state.scene.as_ref().unwrap().nodes[0];
        assert_eq!(node.data, before, "{what}");
        let raw: Vec<_> = kept.iter().map(|commit| commit.raw.clone()).collect();
        assert_eq!(raw, [delta.clone(), delta.clone()], "{what}");
    };
    let (store, recovered) = start(data.path());
    check("from the journal", &recovered.state);
    state = recovered.state;
    let _ = store.append(vec![Record::Pin {
        version: None,
        dialect: None,
    }]);
    assert!(matches!(
        back_up(&store, &state, "auto-save"),
        Ok(Saved::Backup(_))
    ));
    drop(store);
    let (store, recovered) = start(data.path());
    check("from the checkpoint", &recovered.state);
    drop(store);
    std::fs::remove_dir_all(data.path().join("state.sled")).unwrap();
    let (_store, recovered) = start(data.path());
    check("from the backup", &recovered.state);
}

/// A base and a delta that Python folds and this server does not: a set of several members turned into a list.
fn unsupported() -> (Bytes, Bytes) {
    use blender_multiuser::wire::pickle::Value;
    let members = Value::set([Value::str("a"), Value::str("b")]).unwrap();
    let base = Value::dict([("type_id", Value::str("Mesh")), ("x", members)]);
    let change = Value::dict([
        ("old_type", Value::Type(pickle::Type::Set)),
        ("new_type", Value::Type(pickle::Type::List)),
    ]);
    let delta = Value::dict([("type_changes", Value::dict([("root['x']", change)]))]);
    (pickle::encode(&base).into(), pickle::encode(&delta).into())
}
