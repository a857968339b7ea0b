//! Deltas as deepdiff writes them, of the few kinds that the simulated clients need.

use std::sync::Arc;

use blender_multiuser::wire::delta::{Delta, DeltaError};
use blender_multiuser::wire::message::{Commit, NodeId};
use blender_multiuser::wire::pickle::{self, Dict, Value};
use bytes::Bytes;

/// One change of a node's data, as deepdiff would report it.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new or another value under a key.
    Set(String, Value),
    /// A key goes.
    Remove(String),
    /// An item at the end of the list `log`.
    Append(i64),
    /// A member of the set `tags`; deepdiff raises where there is no such set.
    Tag(i64),
    /// One more uuid in the list `children`, as the add-on tells it of lists whose order does not matter.
    Child(NodeId),
    /// As `Append`, in a form that this server does not fold and clients do.
    AppendUnsupported(i64),
    /// As `Set`, as deepdiff 5.7.0 pickles it.
    SetV5(String, Value),
}

fn path(key: &str) -> String {
    format!("root['{key}']")
}

fn action(name: &str, path: String, what: Value) -> Value {
    Value::dict([(name, Value::dict([(path, what)]))])
}

/// Changes at a path that is not a str.
fn unsupported() -> Value {
    let mut change = Dict::new();
    let what = Value::dict([("new_value", Value::Int(0))]);
    change.insert(Value::Int(5), what).unwrap();
    Value::from(change)
}

/// The bytes of a delta that makes this change of `data`.
pub fn raw(data: &Value, change: &Change) -> Bytes {
    let end_of = |list| {
        data.get(list)
            .and_then(Value::as_list)
            .map_or(0, <[_]>::len)
    };
    let log_end = || end_of("log");
    let value = match change {
        Change::Set(key, value) if data.get(key).is_some() => action(
            "values_changed",
            path(key),
            Value::dict([("new_value", value.clone())]),
        ),
        Change::Set(key, value) => action("dictionary_item_added", path(key), value.clone()),
        Change::Remove(key) => action("dictionary_item_removed", path(key), Value::Int(0)),
        Change::Append(x) => action(
            "iterable_item_added",
            format!("root['log'][{}]", log_end()),
            Value::Int(*x),
        ),
        Change::Tag(x) => action(
            "set_item_added",
            path("tags"),
            Value::set([Value::Int(*x)]).unwrap(),
        ),
        Change::Child(child) => {
            let mut at = Dict::new();
            let index = Value::Int(end_of("children") as i64);
            at.insert(index, Value::str(child.as_str())).unwrap();
            action(
                "iterable_items_added_at_indexes",
                path("children"),
                Value::from(at),
            )
        }
        Change::AppendUnsupported(x) => Value::dict([
            (
                "iterable_item_added",
                Value::dict([(format!("root['log'][{}]", log_end()), Value::Int(*x))]),
            ),
            ("values_changed", unsupported()),
        ]),
        Change::SetV5(key, value) => {
            // With one more action that is empty: the class called on empty arguments.
            let plain = pickle::encode(&action("dictionary_item_added", path(key), value.clone()));
            let body = &plain[plain.iter().position(|b| *b == b'}').unwrap()..plain.len() - 1];
            let mut out = b"\x80\x04".to_vec();
            out.extend_from_slice(body);
            out.extend_from_slice(
                b"\x8c\x0ctype_changes\x8c\x0fdeepdiff.helper\x8c\x0fOrderedDictPlus\x93)Rs.",
            );
            return out.into();
        }
    };
    pickle::encode(&value).into()
}

/// A Commit with this delta.
pub fn commit(id: &NodeId, dependencies: Vec<NodeId>, raw: Bytes) -> Commit {
    Commit {
        id: id.clone(),
        dependencies,
        delta: Arc::new(Delta::decode(&raw).unwrap()),
        raw,
    }
}

/// What the real deepdiff makes of it in a client, or why it raises.
pub fn apply(raw: &Bytes, data: &Value) -> Result<Value, String> {
    let plain;
    let mut raw = raw;
    // What this server does not fold the clients do: of a path that is no path nothing comes.
    if let Ok(Value::Dict(mut actions)) = pickle::decode(raw)
        && actions.get("values_changed") == Some(&unsupported())
    {
        Arc::make_mut(&mut actions).remove(&Value::str("values_changed"));
        plain = Bytes::from(pickle::encode(&Value::Dict(actions)));
        raw = &plain;
    }
    match Delta::decode(raw).unwrap().apply(data) {
        Ok(value) => Ok(value),
        Err(DeltaError::Raises(why)) => Err(why),
        Err(DeltaError::Unsupported(why)) => panic!("the tests use a delta nobody folds: {why}"),
    }
}
