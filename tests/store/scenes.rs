//! Scenes to be stored, and what is found again.

use std::collections::BTreeMap;
use std::path::Path;

use blender_multiuser::store::{
    BackupRequest, DiskStore, Record, Recovered, SaveResult, SavedScene, Settings, State, Store,
    open,
};
use blender_multiuser::wire::message::Node;
use blender_multiuser::wire::pickle::{self, Value};

pub fn node(id: &str, number: i64) -> Node {
    let data = Value::dict([
        ("type_id", Value::str("Mesh")),
        ("number", Value::Int(number)),
    ]);
    Node {
        kind: Some("Mesh".into()),
        id: id.into(),
        owner: "COMMON".into(),
        dependencies: Vec::new(),
        data: pickle::encode(&data).into(),
    }
}

/// `count` small nodes.
pub fn scene(count: usize) -> SavedScene {
    SavedScene {
        version: Some("0.9.10".into()),
        dialect: "dealer".into(),
        nodes: (0..count)
            .map(|n| (node(&format!("node-{n:05}"), n as i64), Vec::new()))
            .collect(),
    }
}

pub fn state(count: usize) -> State {
    State {
        scene: Some(scene(count)),
        ..State::default()
    }
}

/// `number` of every node that is there.
pub fn numbers(state: &State) -> BTreeMap<String, i64> {
    let scene = state.scene.iter().flat_map(|scene| &scene.nodes);
    scene
        .map(|(node, _)| {
            let data = pickle::decode(&node.data).unwrap();
            let number = data.get("number").and_then(Value::as_i64).unwrap();
            (node.id.to_string(), number)
        })
        .collect()
}

pub fn settings() -> Settings {
    Settings {
        sync_interval: std::time::Duration::from_millis(20),
        ..Settings::default()
    }
}

pub fn start(data: &Path) -> (DiskStore, Recovered) {
    open(data, settings()).unwrap()
}

pub fn change(id: &str, number: i64) -> Record {
    Record::node(&node(id, number), "Ada".into())
}

pub fn back_up(store: &DiskStore, state: &State, reason: &str) -> SaveResult {
    let request = BackupRequest {
        reason: reason.into(),
        users: vec!["Ada".into()],
        even_if_unchanged: false,
        ..BackupRequest::default()
    };
    store
        .backup(state.clone(), request)
        .blocking_recv()
        .unwrap()
}

/// What the first node's number is.
pub fn number(state: &State) -> i64 {
    numbers(state)["node-00000"]
}

/// The scene whose first node has this number.
pub fn numbered(number: i64) -> State {
    let mut state = state(3);
    state.scene.as_mut().unwrap().nodes[0].0 = node("node-00000", number);
    state
}
