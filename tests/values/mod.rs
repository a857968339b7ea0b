//! Random Python values.

use std::sync::Arc;

use blender_multiuser::wire::pickle::{Dict, Set, Value, decode};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = Bytes> {
    let piece = prop_oneof![
        4 => "[a-z0-9 'é日😀\\[\\]\\\\]{0,8}".prop_map(String::into_bytes),
        1 => any::<String>().prop_map(String::into_bytes),
        1 => (0xA0..=0xBFu8, 0x80..=0xBFu8).prop_map(|(high, low)| vec![0xED, high, low]),
        1 => "[a-z]{250,260}".prop_map(String::into_bytes),
    ];
    vec(piece, 0..3).prop_map(|pieces| pieces.concat().into())
}

fn integer() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Int),
        (-300i64..70_000).prop_map(Value::Int),
        vec(any::<u8>(), 0..300).prop_map(|digits| {
            let length = (digits.len() as u32).to_le_bytes();
            let pickle = [b"\x80\x04\x8b", &length[..], &digits, b"."].concat();
            decode(&pickle.into()).unwrap()
        }),
    ]
}

fn hashable_leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        integer(),
        prop_oneof![
            any::<f64>(),
            Just(-0.0),
            Just(f64::INFINITY),
            Just(f64::NAN),
            (-3i8..3).prop_map(f64::from)
        ]
        .prop_map(Value::Float),
        text().prop_map(Value::Str),
        vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())),
        vec(any::<u8>(), 250..1200).prop_map(|bytes| Value::Bytes(bytes.into())),
    ]
}

fn set(members: Vec<Value>) -> Arc<Set> {
    let mut set = Set::new();
    for member in members {
        set.add(member).unwrap();
    }
    Arc::new(set)
}

/// Anything that can be a key.
pub fn hashable() -> impl Strategy<Value = Value> {
    hashable_leaf().prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::tuple),
            vec(inner, 0..4).prop_map(|members| Value::FrozenSet(set(members))),
        ]
    })
}

/// Any plain data.
pub fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        8 => hashable(),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| Value::ByteArray(bytes.into())),
        1 => vec(hashable(), 0..12).prop_map(|members| Value::Set(set(members))),
    ];
    leaf.prop_recursive(5, 60, 12, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..12).prop_map(Value::list),
            vec(inner.clone(), 0..6).prop_map(Value::tuple),
            (inner.clone(), 2..4usize).prop_map(|(same, times)| Value::list(vec![same; times])),
            vec((hashable(), inner), 0..12).prop_map(|items| {
                let mut dict = Dict::new();
                for (key, value) in items {
                    dict.insert(key, value).unwrap();
                }
                Value::from(dict)
            }),
        ]
    })
}
