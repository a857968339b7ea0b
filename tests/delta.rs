//! Deltas folded here against what deepdiff made of them.

#![allow(clippy::unwrap_used)]

mod corpus;
mod values;
#[path = "support/venv.rs"]
#[allow(dead_code)]
mod venv;

use std::path::Path;
use std::process::Command;

use blender_multiuser::wire::delta::{Delta, DeltaError, Flavour};
use blender_multiuser::wire::pickle::{Dict, MAX_DEPTH, PickleError, Value, decode, encode};
use proptest::prelude::*;

/// Checks every case; returns how many there were and how many of them are not folded.
fn check_all(name: &str, cases: &[corpus::Case], flavour: Flavour) -> (usize, usize) {
    let mut unsupported = 0;
    let mut wrong = Vec::new();
    for case in cases {
        let before = decode(&case.before).unwrap();
        let result = Delta::decode(&case.delta)
            .unwrap()
            .apply_as(&before, flavour);
        let raises = case
            .metadata
            .get("raises")
            .and_then(serde_json::Value::as_str);
        let right = match (&result, raises) {
            (Err(DeltaError::Unsupported(what)), _) => {
                eprintln!("{name} {} is not folded: {what}", case.metadata["n"]);
                unsupported += 1;
                true
            }
            (Err(DeltaError::Raises(_)), Some(_)) => true,
            (Ok(after), None) => after.identical(&decode(&case.after).unwrap()),
            _ => false,
        };
        if !right {
            wrong.push(format!(
                "{}: {result:?}, Python raises {raises:?}",
                case.metadata["n"]
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    (cases.len(), unsupported)
}

fn check_folder(dir: &Path) -> (usize, usize) {
    let mut sums = (0, 0);
    for path in corpus::files(dir, ".deltas.gz") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let flavour = if name.contains("5.7.0") {
            Flavour::V5
        } else {
            Flavour::V8
        };
        let (checked, unsupported) = check_all(name, &corpus::cases(&path), flavour);
        sums = (sums.0 + checked, sums.1 + unsupported);
    }
    sums
}

#[test]
fn folds_like_python() {
    let (checked, unsupported) = check_folder(&corpus::data_dir());
    assert!(checked > 5000, "only {checked} cases");
    assert_eq!(unsupported, 0);
}

/// More recorded traffic, where there is some at hand.
#[test]
fn folds_more_like_python() {
    if let Ok(dir) = std::env::var("DELTA_CORPUS") {
        check_folder(Path::new(&dir));
    }
}

/// Fresh random deltas against both versions of deepdiff.
#[test]
fn random_deltas_fold_like_python() {
    for (environment, flavour) in [
        (&venv::CURRENT, Flavour::V8),
        (&venv::OLD_DEEPDIFF, Flavour::V5),
    ] {
        let Some(python) = venv::python(environment) else {
            return;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/random_deltas.py");
        let output = Command::new(&python)
            .arg(script)
            .args(["1", "500"])
            // Deltas of sets depend on it.
            .env("PYTHONHASHSEED", "0")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let cases = corpus::read_cases(output.stdout.into());
        let (checked, unsupported) = check_all(environment.name, &cases, flavour);
        assert!(
            checked == 500 && unsupported < 25,
            "{unsupported} of {checked} are not folded"
        );
    }
}

/// A delta of protocol 4 with these opcodes, and STOP.
fn delta(opcodes: &[u8]) -> Result<Delta, PickleError> {
    Delta::decode(&[b"\x80\x04", opcodes, b"."].concat().into())
}

/// A delta with one action on one path.
fn action(name: &str, path: &str, what: Value) -> Delta {
    actions([(name, path, what)])
}

fn actions<const N: usize>(list: [(&str, &str, Value); N]) -> Delta {
    let items = list.map(|(name, path, what)| (name, Value::dict([(path, what)])));
    Delta::decode(&encode(&Value::dict(items)).into()).unwrap()
}

fn ints(items: impl IntoIterator<Item = i64>) -> Value {
    Value::list(items.into_iter().map(Value::from))
}

fn raises(delta: &Delta, base: &Value) -> bool {
    matches!(delta.apply(base), Err(DeltaError::Raises(_)))
}

const OPCODE: &[u8] =
    b"\x8c\x0fdeepdiff.helper\x8c\x06Opcode\x93(\x8c\x05equalK\x00K\x01K\x00K\x01NNt\x81";
const ORDERED: &[u8] = b"\x8c\x0fdeepdiff.helper\x8c\x0fOrderedDictPlus\x93)R";

#[test]
fn only_what_deltas_need_is_imported() {
    let refused: [&[u8]; 12] = [
        b"}\x8c\x01x\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85Rs",
        b"}\x8c\x01x\x8c\x08builtins\x8c\x04eval\x93s",
        b"}\x8c\x01x\x8c\x08builtins\x8c\x06object\x93s",
        b"}\x8c\x01x\x8c\x08builtins\x8c\x04list\x93)Rs",
        b"}\x8c\x01x\x8c\x08builtins\x8c\x04list\x93)\x81s",
        b"}\x8c\x01x\x8c\x0fdeepdiff.helper\x8c\x06Opcode\x93s",
        b"}\x8c\x01x\x8c\x0fdeepdiff.helper\x8c\x06Opcode\x93)\x81s",
        b"}\x8c\x01x\x8c\x0fdeepdiff.helper\x8c\x0fOrderedDictPlus\x93N\x85Rs",
        b"}\x8c\x01x\x8c\x05otherQs",
        b"cbuiltins\nlist\n",
        b"}}b",
        b"]",
    ];
    for opcodes in refused {
        assert!(delta(opcodes).is_err(), "{}", opcodes.escape_ascii());
    }
    assert!(delta(b"}\x8c\x01x\x8c\x08builtins\x8c\x04list\x93s").is_ok());
    assert!(delta(b"}\x8c\x01x\x8c\x0c<<NoneType>>Qs").is_ok());
    assert!(decode(&[b"\x80\x04".as_slice(), OPCODE, b"."].concat().into()).is_err());
}

#[test]
fn no_type_gets_into_a_node() {
    let base = Value::dict([("a", Value::None)]);
    for value in [&b"\x8c\x08builtins\x8c\x03int\x93"[..], OPCODE] {
        let path = b"}\x8c\x15dictionary_item_added}\x8c\x09root['b']]";
        let opcodes = [path, value, b"ass"].concat();
        let result = delta(&opcodes).unwrap().apply(&base);
        assert!(
            matches!(result, Err(DeltaError::Unsupported(_))),
            "{result:?}"
        );
    }
}

#[test]
fn flavours_are_told_apart() {
    assert_eq!(delta(b"}").unwrap().flavour(), Flavour::Either);
    assert_eq!(
        delta(&[b"}\x8c\x01x", OPCODE, b"s"].concat())
            .unwrap()
            .flavour(),
        Flavour::V8
    );
    assert_eq!(delta(ORDERED).unwrap().flavour(), Flavour::V5);
    assert!(delta(&[ORDERED, b"\x8c\x01x", OPCODE, b"s"].concat()).is_err());
}

#[test]
fn what_makes_deepdiff_raise_is_told() {
    let nested = Value::dict([("t", Value::tuple([Value::tuple([Value::from(1)])]))]);
    let change = Value::dict([("new_value", Value::from(2))]);
    assert!(raises(
        &action("values_changed", "root['t'][0][0]", change),
        &nested
    ));

    let base = Value::dict([
        ("none", Value::None),
        ("number", Value::from(5)),
        ("list", ints([1])),
    ]);
    let set = Value::set([Value::from(1)]).unwrap();
    for path in ["root['gone']", "root['list']", "root['gone']['x']"] {
        assert!(
            raises(&action("set_item_added", path, set.clone()), &base),
            "{path}"
        );
        assert!(
            raises(&action("set_item_removed", path, set.clone()), &base),
            "{path}"
        );
    }
    assert!(raises(
        &action("iterable_item_added", "root['none'][0]", Value::None),
        &base
    ));
    let indexes = Value::Dict({
        let mut dict = Dict::new();
        dict.insert(Value::from(0), Value::from(1)).unwrap();
        dict.into()
    });
    let at_index = action(
        "iterable_items_removed_at_indexes",
        "root['number']",
        indexes.clone(),
    );
    assert!(raises(&at_index, &base));
    for path in ["root['gone']", "root['none']"] {
        let path = [&[b'\x8c', path.len() as u8], path.as_bytes()].concat();
        let opcodes = [
            b"}\x8c\x11_iterable_opcodes}",
            path.as_slice(),
            b"]",
            OPCODE,
            b"ass",
        ]
        .concat();
        let is_gone = path.ends_with(b"gone']");
        // What is gone from its dict raises when deepdiff looks the whole path up.
        assert!(raises(&delta(&opcodes).unwrap(), &base), "gone: {is_gone}");
    }
}

#[test]
fn what_deepdiff_only_logs_is_skipped() {
    let base = Value::dict([("list", ints([1, 2, 3]))]);
    let change = Value::dict([("new_value", Value::from(2))]);
    for path in [
        "root['gone']['x']",
        "root['list'][7]",
        "root['list']['x']",
        "root.list",
    ] {
        let delta = action("values_changed", path, change.clone());
        assert!(delta.apply(&base).unwrap().identical(&base), "{path}");
    }
    let text = Value::dict([("new_type", Value::str("no type"))]);
    assert!(
        action("type_changes", "root['list']", text)
            .apply(&base)
            .unwrap()
            .identical(&base)
    );
}

#[test]
fn the_nearest_equal_item_is_removed() {
    let base = Value::dict([("list", ints([7, 1, 2, 7]))]);
    let removed = action("iterable_item_removed", "root['list'][2]", Value::from(7));
    assert_eq!(
        removed.apply(&base).unwrap().get("list"),
        Some(&ints([7, 1, 2]))
    );
    let old = removed.apply_as(&base, Flavour::V5).unwrap();
    assert_eq!(
        old.get("list"),
        Some(&ints([7, 1, 7])),
        "5.7.0 does not search"
    );
}

#[test]
fn the_base_keeps_its_value() {
    let base = Value::dict([
        ("list", ints([1, 2])),
        ("t", Value::tuple([Value::from(1)])),
    ]);
    let copy = decode(&encode(&base).into()).unwrap();
    let delta = actions([
        ("iterable_item_added", "root['list'][0]", Value::from(0)),
        ("iterable_item_removed", "root['t'][0]", Value::from(1)),
    ]);
    let after = delta.apply(&base).unwrap();
    assert_eq!(after.get("list"), Some(&ints([0, 1, 2])));
    assert_eq!(after.get("t"), Some(&Value::tuple([])));
    assert!(base.identical(&copy));
}

#[test]
fn an_object_in_two_places_changes_in_both() {
    let shared = ints([1]);
    let base = Value::dict([("a", shared.clone()), ("b", Value::list([shared.clone()]))]);
    let base = decode(&encode(&base).into()).unwrap();
    let after = action("iterable_item_added", "root['a'][1]", Value::from(2))
        .apply(&base)
        .unwrap();
    assert_eq!(after.get("b"), Some(&Value::list([ints([1, 2])])));
    // And again, in what came of it.
    let after = action("iterable_item_removed", "root['b'][0][0]", Value::from(1)).apply(&after);
    assert_eq!(after.unwrap().get("a"), Some(&ints([2])));

    // An object of the delta that is put in two places.
    let base = Value::dict([("a", Value::None), ("b", Value::None)]);
    let new = Value::dict([("new_value", shared.clone())]);
    let delta = actions([
        ("values_changed", "root['a']", new),
        ("iterable_item_added", "root['a'][1]", Value::from(2)),
        ("dictionary_item_added", "root['b']", shared),
    ]);
    let after = delta.apply(&base).unwrap();
    assert_eq!(after.get("a"), Some(&ints([1, 2])));
    assert_eq!(after.get("b"), Some(&ints([1, 2])));
}

#[test]
fn folds_stay_within_the_limits_of_a_pickle() {
    let nested = |levels| (1..levels).fold(Value::list([]), |inner, _| Value::list([inner]));
    let mut node = nested(MAX_DEPTH);
    // A path of 19 lists leads to the place where another 237 fit, and no more.
    let path = format!("root{}", "[0]".repeat(19));
    let change = move |levels| {
        let new = Value::dict([("new_value", nested(levels))]);
        action("values_changed", &path, new)
    };
    let walk = move || {
        node = change(MAX_DEPTH - 19).apply(&node).unwrap();
        assert!(decode(&encode(&node).into()).is_ok());
        let too_deep = change(MAX_DEPTH - 18);
        assert!(matches!(
            too_deep.apply(&node),
            Err(DeltaError::Unsupported(_))
        ));
    };
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(walk)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn a_delta_that_would_take_for_ever_is_not_folded() {
    let length = 200_000;
    let base = Value::dict([("list", ints(0..length))]);
    let items = (0..20_000).map(|n| (format!("root['list'][{n}]"), Value::None));
    let delta = Value::dict([("iterable_item_added", Value::dict(items))]);
    let delta = Delta::decode(&encode(&delta).into()).unwrap();
    assert!(matches!(
        delta.apply(&base),
        Err(DeltaError::Unsupported(_))
    ));
}

/// Each of these few bytes would keep the server busy, or take all its memory.
#[test]
fn little_does_not_cost_much() {
    let refused = |delta: &Delta, base: &Value| {
        let result = delta.apply(base);
        assert!(
            matches!(result, Err(DeltaError::Unsupported(_))),
            "{result:?}"
        );
        assert!(!matches!(delta.apply_quickly(base), Some(Ok(_))));
    };
    let new_value = |value| Value::dict([("new_value", value)]);
    let shared = ints([1]);
    let text = Value::bytes(vec![b'x'; 1 << 20]);
    let node = |x| Value::dict([("x", x), ("a", shared.clone()), ("b", shared.clone())]);

    // A key of millions of digits.
    let digits = format!("root[0x{}]", "F".repeat(2_000_000));
    refused(
        &action("values_changed", &digits, new_value(Value::None)),
        &node(Value::None),
    );

    // A long way down, to the character of a character of a character.
    let path = format!("root['x']{}", "[0]".repeat(500_000));
    let down = action("values_changed", &path, new_value(Value::None));
    assert_eq!(down.apply(&node("abc".into())), Ok(node("abc".into())));

    // The text of a list that holds a MiB in many places.
    let places = node(Value::list(vec![text.clone(); 100_000]));
    let to_str = [
        &b"}\x8c\x0ctype_changes}\x8c\x09root['x']}\x8c\x08new_type"[..],
        STR,
        b"sss",
    ];
    refused(&delta(&to_str.concat()).unwrap(), &places);

    // The first item, a MiB, or a list as large as a node may be, many times over.
    let copies = |count: usize| {
        let path = b"}\x8c\x11_iterable_opcodes}\x8c\x09root['x']";
        let list = [b"](", OPCODE, b"\x94", &b"h\0".repeat(count), b"e"].concat();
        delta(&[path, &list[..], b"ss"].concat()).unwrap()
    };
    refused(&copies(2000), &node(Value::list([text.clone()])));
    refused(&copies(60_000), &node(Value::list([ints(0..60_000)])));

    // A list of lists, in each of which another one is put.
    let (outer, inner) = (ints([]), Value::list(vec![ints(0..100_000); 40]));
    let lists = node(Value::list(vec![outer; 60_000]));
    let lists = decode(&encode(&lists).into()).unwrap();
    refused(
        &action("iterable_item_added", "root['x'][0][0]", inner),
        &lists,
    );

    // A search for what is nowhere, among what looks like it.
    let almost = Value::bytes([vec![b'x'; 100_000], vec![b'y']].concat());
    let alike = Value::bytes(vec![b'x'; 100_001]);
    let many = node(Value::list(vec![alike; 4000]));
    let items = (0..4000).map(|n| (format!("root['x'][{n}]"), almost.clone()));
    let search = Value::dict([("iterable_item_removed", Value::dict(items))]);
    refused(&Delta::decode(&encode(&search).into()).unwrap(), &many);
}

const STR: &[u8] = b"\x8c\x08builtins\x8c\x03str\x93";

proptest! {
    #[test]
    fn random_actions_never_panic(
        base in values::value(),
        name in prop::sample::select(&ACTIONS[..]),
        path in "root(\\[([0-9]|-1|'[a-c]'|\"[a-c']\"|None|\\(1,\\)|b'x')\\]|\\.[a-c]|['\"\\[\\].#a]){0,4}",
        what in values::value(),
        wrap: bool,
    ) {
        let what = if wrap { Value::dict([("new_value", what)]) } else { what };
        let delta = action(name, &path, what);
        for flavour in [Flavour::V5, Flavour::V8] {
            if let Ok(after) = delta.apply_as(&Value::dict([("a", base.clone())]), flavour) {
                prop_assert!(decode(&encode(&after).into()).unwrap().identical(&after));
            }
        }
    }
}

const ACTIONS: [&str; 12] = [
    "values_changed",
    "type_changes",
    "set_item_added",
    "set_item_removed",
    "_iterable_opcodes",
    "iterable_item_added",
    "iterable_item_removed",
    "iterable_items_added_at_indexes",
    "iterable_items_removed_at_indexes",
    "dictionary_item_added",
    "dictionary_item_removed",
    "attribute_added",
];
