//! The pickle reader and writer against recorded traffic, hostile input and random values.

#![allow(clippy::unwrap_used)]

mod corpus;
mod values;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use blender_multiuser::wire::pickle::{
    MAX_DEPTH, MAX_VALUES, PickleError, Problem, SLICE_MIN, Value, decode, encode,
};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn assert_round_trip(pickle: &Bytes) -> Value {
    let value = decode(pickle).unwrap();
    let again = decode(&encode(&value).into()).unwrap();
    assert!(value.identical(&again), "{value:?}\n{again:?}");
    value
}

#[test]
fn recorded_messages_round_trip() {
    let mut seen = 0;
    for path in corpus::files(&corpus::data_dir(), ".messages.gz") {
        for message in corpus::messages(&path)
            .iter()
            .filter(|message| message.channel < 2)
        {
            let [number, .., last] = message.frames.as_slice() else {
                panic!("short message")
            };
            let number = assert_round_trip(number).as_i64().unwrap();
            if number == 1 || number == 2 {
                assert_round_trip(&message.frames[message.frames.len() - 2]);
            }
            if number != 1 {
                let value = assert_round_trip(last);
                // The nodes of a join or an initialisation travel inside a command.
                for chunk in value
                    .get("DATA")
                    .and_then(Value::as_list)
                    .unwrap_or_default()
                    .iter()
                    .skip(3)
                {
                    assert_round_trip(chunk.as_bytes().unwrap());
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 1000, "only {seen} messages");
}

#[test]
fn recorded_nodes_round_trip() {
    for path in corpus::files(&corpus::data_dir(), ".deltas.gz") {
        for case in corpus::cases(&path) {
            assert_round_trip(&case.before);
        }
    }
    let session = assert_round_trip(&corpus::gunzip(&corpus::data_dir().join("session.db")));
    assert!(!session.get("nodes").unwrap().as_list().unwrap().is_empty());
}

/// A pickle of protocol 4 with these opcodes, and STOP.
fn pickle(opcodes: impl AsRef<[u8]>) -> Bytes {
    [b"\x80\x04", opcodes.as_ref(), b"."].concat().into()
}

fn problem(opcodes: impl AsRef<[u8]>) -> Problem {
    decode(&pickle(opcodes)).unwrap_err().problem
}

#[test]
fn whatever_could_run_code_is_refused() {
    let hostile: [&[u8]; 14] = [
        b"cos\nsystem\n\x8c\x02id\x85R",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R",
        b"cbuiltins\neval\n",
        b"\x8c\x08builtins\x8c\x04eval\x93",
        b"}N)R",
        b"}}b",
        b"(ios\nsystem\n",
        b"(os\nsystem\no",
        b"N)\x81",
        b"N)}\x92",
        b"\x82\x01",
        b"P1\n",
        b"NQ",
        b"\x97",
    ];
    for opcodes in hostile {
        let problem = problem(opcodes);
        assert!(
            matches!(problem, Problem::Forbidden(_)),
            "{opcodes:?}: {problem}"
        );
    }
    let error = decode(&pickle(b"NcX\nY\n")).unwrap_err();
    let text = "pickle refused at byte 3: opcode GLOBAL can run code or build objects and is never accepted here";
    assert_eq!(error.to_string(), text);
}

#[test]
fn malformed_pickles_are_refused() {
    assert_eq!(
        decode(&Bytes::new()).unwrap_err(),
        PickleError {
            offset: 0,
            problem: Problem::Protocol
        }
    );
    assert_eq!(
        decode(&Bytes::from_static(b"(lp0\n.")).unwrap_err().problem,
        Problem::Protocol
    );
    assert_eq!(
        decode(&Bytes::from_static(b"\x80\x06N."))
            .unwrap_err()
            .problem,
        Problem::Protocol
    );
    assert_eq!(
        decode(&Bytes::from_static(b"\x80\x04N.N"))
            .unwrap_err()
            .problem,
        Problem::TrailingBytes(1)
    );
    assert!(matches!(problem(b"I1\n"), Problem::Unexpected(_)));
    assert!(matches!(problem(b""), Problem::StackUnderflow("STOP")));
    assert!(matches!(problem(b"N("), Problem::StackUnderflow("STOP")));
    assert!(matches!(problem(b"NN"), Problem::Leftovers));
    assert!(matches!(problem(b"](a"), Problem::StackUnderflow(_)));
    assert!(matches!(problem(b"}(Nu"), Problem::StackUnderflow(_)));
    assert!(matches!(problem(b"NNa"), Problem::Misapplied(_)));
    assert!(matches!(problem(b"]NNs"), Problem::Misapplied(_)));
    assert!(matches!(problem(b"h\x00"), Problem::Memo));
    assert!(matches!(problem(b"Nr\xff\xff\xff\x7f"), Problem::Memo));
    assert!(matches!(problem(b"}]Ns"), Problem::Unhashable));
    assert!(matches!(problem(b"\x8f(}\x90"), Problem::Unhashable));
    assert!(matches!(problem(b"(]\x85\x91"), Problem::Unhashable));
    assert!(matches!(problem(b"\x8c\x02\xff\xff"), Problem::NotUtf8));
    assert!(matches!(problem(b"\x8c\x03\xed\x9f\xc0"), Problem::NotUtf8));
    assert!(matches!(problem(b"G1234"), Problem::Truncated("BINFLOAT")));
}

#[test]
fn lengths_are_checked_before_anything_is_reserved() {
    for opcode in *b"XBj\x8d\x8e\x96\x95\x8b\x8c\x8aC" {
        for length in [
            1u64 << 16,
            1 << 30,
            (1 << 31) - 1,
            1 << 40,
            1 << 63,
            u64::MAX,
        ] {
            let opcodes = [&[opcode], &length.to_le_bytes()[..]].concat();
            assert!(decode(&pickle(opcodes)).is_err());
        }
    }
}

#[test]
fn cycles_are_refused() {
    assert_eq!(problem(b"]\x94h\x00a"), Problem::Cycle);
    assert_eq!(problem(b"]\x94]\x94h\x00aa"), Problem::Cycle);
    assert_eq!(problem(b"}\x94K\x01h\x00s"), Problem::Cycle);
    assert_eq!(problem(b"]\x94}\x94K\x01h\x00\x85sa"), Problem::Cycle);
}

#[test]
fn nesting_is_limited_and_safe_on_a_small_stack() {
    for (open, close) in [
        (&b"]"[..], &b"a"[..]),
        (b"", b"\x85"),
        (b"}K\x01", b"s"),
        (b"(", b"\x91"),
    ] {
        let nested = |levels| {
            let inner = if open.is_empty() || open == b"(" {
                &b")"[..]
            } else {
                &b"]"[..]
            };
            [&open.repeat(levels - 1), inner, &close.repeat(levels - 1)].concat()
        };
        assert_eq!(problem(nested(MAX_DEPTH + 1)), Problem::TooDeep);
        assert_eq!(problem(nested(MAX_DEPTH * 10)), Problem::TooDeep);
        let deepest = pickle(nested(MAX_DEPTH));
        // Half of what a worker thread has.
        let walk = move || {
            let (one, two) = (decode(&deepest).unwrap(), decode(&deepest).unwrap());
            assert!(one == two && one.identical(&two));
            assert!(decode(&encode(&one).into()).unwrap().identical(&two));
            assert!(!format!("{one:?}").is_empty());
        };
        std::thread::Builder::new()
            .stack_size(1 << 20)
            .spawn(walk)
            .unwrap()
            .join()
            .unwrap();
    }
}

#[test]
fn memo_bombs_are_refused() {
    // Each list holds the one before ten times.
    let mut laughs = b"]\x94".to_vec();
    for level in 0..20u8 {
        laughs.extend(b"](");
        laughs.extend([b'h', level].repeat(10));
        laughs.extend(b"e\x94");
    }
    // The lists stay on the stack: a tuple takes them all.
    assert_eq!(
        problem([b"(", laughs.as_slice(), b"t"].concat()),
        Problem::TooMuchSharing
    );

    // The same with tuples, whose elements are duplicated on the stack.
    let doubling = [b")".as_slice(), &b"2\x86".repeat(60)].concat();
    assert_eq!(problem(doubling), Problem::TooMuchSharing);

    // A large key that is hashed again and again.
    let mut keys = b"(".to_vec();
    keys.extend(b"K\x01".repeat(100_000));
    keys.extend(b"t\x94");
    keys.extend(b"}h\x00Ns".repeat(1000));
    assert_eq!(
        problem([b"(", keys.as_slice(), b"t"].concat()),
        Problem::TooMuchSharing
    );
}

#[test]
fn too_many_values_are_refused() {
    // One at a time, each is dropped again.
    assert_eq!(
        problem(b"N0".repeat(MAX_VALUES + 1)),
        Problem::TooManyValues
    );
}

/// A MiB that the memo holds first.
fn remembered_mib(opcode: u8) -> Vec<u8> {
    let length = (1u32 << 20).to_le_bytes();
    [&[opcode][..], &length, &[b'x'; 1 << 20], b"\x94"].concat()
}

#[test]
fn what_the_input_does_not_pay_for_is_refused() {
    // Each reference is short, and makes whoever compares, hashes or writes the value go through a MiB.
    for (opcode, reference) in [(b'B', &b"h\0"[..]), (b'X', b"h\0"), (0x8B, b"h\0")] {
        let long = remembered_mib(opcode);
        let list = [b"](", &long[..], &reference.repeat(100_000), b"e"].concat();
        assert_eq!(problem(list), Problem::TooMuchSharing);
        let keys = [b"}", &long[..], b"N", &b"sh\0N".repeat(100_000), b"s"].concat();
        assert_eq!(problem(keys), Problem::TooMuchSharing);
        // Likewise where the key only holds it.
        let held = [&long[..], b"\x85\x940}", &b"h\x01Ns".repeat(100_000)].concat();
        assert_eq!(problem(held), Problem::TooMuchSharing);
    }
    // What takes some fifty times the memory of its opcode.
    assert_eq!(problem(b"N\x94\x94"), Problem::Memo);
    assert_eq!(problem(b"(".repeat(MAX_DEPTH + 1)), Problem::TooDeep);
}

#[test]
fn long_texts_are_written_once() {
    let long = Bytes::from(vec![b'x'; 1 << 20]);
    let each = [Value::Str, Value::Bytes, Value::ByteArray].map(|kind| kind(long.clone()));
    let all = Value::list((0..20).flat_map(|_| each.clone()));
    let pickle = Bytes::from(encode(&all));
    assert!(pickle.len() < 4 << 20);
    assert!(decode(&pickle).unwrap().identical(&all));
}

/// Nan equals nothing, so each is a key of its own: if they were looked for one after the other, this would take hours.
#[test]
fn many_nans_are_many_keys() {
    const MANY: usize = 1_000_000;
    let nan = [&b"G"[..], &f64::NAN.to_be_bytes(), b"\x94"].concat();
    let dict = [b"}(", &nan[..], b"N", &b"h\0N".repeat(MANY - 1), b"u"].concat();
    let dict = decode(&pickle(dict)).unwrap();
    assert_eq!(dict.as_dict().map(|dict| dict.len()), Some(MANY));
    let tuples = [b"\x8f", &nan[..], b"0(", &b"h\0\x85".repeat(MANY), b"\x90"].concat();
    assert!(matches!(decode(&pickle(tuples)), Ok(Value::Set(set)) if set.len() == MANY));
}

#[test]
fn modest_sharing_is_kept() {
    let shared = Value::list([Value::from(1)]);
    let both = Value::list([shared.clone(), Value::dict([("again", shared)])]);
    let Value::List(items) = decode(&encode(&both).into()).unwrap() else {
        panic!("no list")
    };
    let (Value::List(one), Some(Value::List(two))) = (&items[0], items[1].get("again")) else {
        panic!("no lists")
    };
    assert!(Arc::ptr_eq(one, two));
    let apart = Value::list([Value::list([]), Value::list([])]);
    let Value::List(items) = decode(&encode(&apart).into()).unwrap() else {
        panic!("no list")
    };
    let [Value::List(one), Value::List(two)] = items.as_slice() else {
        panic!("no lists")
    };
    assert!(!Arc::ptr_eq(one, two));
}

#[test]
fn long_bytes_are_slices_of_the_input() {
    let input = Bytes::from(encode(&Value::bytes(vec![7; SLICE_MIN])));
    let value = decode(&input).unwrap();
    let bytes = value.as_bytes().unwrap();
    assert!(input.as_ptr_range().contains(&bytes.as_ptr()));
}

#[test]
fn equality_is_pythons() {
    let float = Value::Float;
    let big = |bytes: &[u8]| decode(&pickle([&[0x8A, bytes.len() as u8], bytes].concat())).unwrap();
    let two_to_70 = big(&[0, 0, 0, 0, 0, 0, 0, 0, 64]);
    let equal = [
        (Value::from(1), float(1.0)),
        (Value::from(true), Value::from(1)),
        (float(0.0), float(-0.0)),
        (float(0.0), Value::from(false)),
        (two_to_70.clone(), float(2f64.powi(70))),
        (
            Value::tuple([Value::from(1)]),
            Value::tuple([Value::from(true)]),
        ),
        (big(&[255; 12]), Value::from(-1)),
        (Value::Int(i64::MIN), float(-(2f64.powi(63)))),
    ];
    for (a, b) in equal {
        assert_eq!(a, b);
        assert_eq!(a.identical(&b), matches!(a, Value::Int(-1)), "{a:?}");
        let set = Value::set([a, b]);
        assert!(
            matches!(set, Ok(Value::Set(set)) if set.len() == 1),
            "equal values hash alike"
        );
    }
    let unequal = [
        (Value::str("a"), Value::bytes("a")),
        (float(f64::NAN), float(f64::NAN)),
        (Value::from(i64::MAX), float(i64::MAX as f64)),
        (two_to_70, float(2f64.powi(70) + 2f64.powi(18))),
        (Value::tuple([]), Value::list([])),
        (Value::None, Value::from(false)),
    ];
    for (a, b) in unequal {
        assert_ne!(a, b);
    }
}

#[test]
fn dicts_keep_order_and_spelling() {
    let mut value = Value::dict((0..100).map(|n| (n.to_string(), Value::from(n))));
    let copy = value.clone();
    let Value::Dict(dict) = &mut value else {
        panic!("no dict")
    };
    let dict = Arc::make_mut(dict);
    for n in 0..90 {
        assert_eq!(
            dict.remove(&Value::str(n.to_string())),
            Some(Value::from(n))
        );
    }
    dict.insert(Value::from(1), Value::None).unwrap();
    dict.insert(Value::from(true), Value::str("new")).unwrap();
    let keys: Vec<_> = dict.keys().cloned().collect();
    assert_eq!(keys.len(), 11);
    assert!(keys[10].identical(&Value::from(1)));
    assert_eq!(dict.get_value(&Value::Float(1.0)), Some(&Value::str("new")));
    assert_eq!(dict.get("95"), Some(&Value::from(95)));
    assert_eq!(copy.as_dict().unwrap().len(), 100, "a clone is not touched");
}

proptest! {
    #[test]
    fn any_value_round_trips(value in values::value()) {
        let bytes = encode(&value);
        prop_assert_eq!(&bytes, &encode(&value));
        let again = decode(&bytes.into()).unwrap();
        prop_assert!(value.identical(&again), "{:?}", again);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&pickle(bytes));
    }

    #[test]
    fn damaged_pickles_never_panic(value in values::value(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode(&value);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(value) = decode(&bytes.clone().into()) {
            assert!(decode(&encode(&value).into()).unwrap().identical(&value));
        }
        bytes.truncate(at);
        assert!(decode(&bytes.into()).is_err());
    }
}

/// Loads each pickle and dumps it again in every protocol that can spell it as plain data.
const PYTHON: &str = r#"
import pickle, struct, sys
def needs(v):
    if isinstance(v, bytearray): return 5
    if isinstance(v, (set, frozenset)): return max([4] + [needs(x) for x in v])
    if isinstance(v, bytes): return 3
    if isinstance(v, dict): return max([2] + [max(needs(k), needs(x)) for k, x in v.items()])
    if isinstance(v, (list, tuple)): return max([2] + [needs(x) for x in v])
    return 2
read, write = sys.stdin.buffer, sys.stdout.buffer
while head := read.read(4):
    value = pickle.loads(read.read(struct.unpack('<I', head)[0]))
    for protocol in range(2, 6):
        out = pickle.dumps(value, protocol) if protocol >= needs(value) else b''
        write.write(struct.pack('<I', len(out)) + out)
"#;

#[test]
fn python_reads_what_is_written_and_the_other_way_round() {
    let python = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut python = match python {
        Ok(python) => python,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: no python3: {error}");
            return;
        }
        Err(error) => panic!("no python3: {error}"),
    };
    let mut runner = TestRunner::deterministic();
    let mut cases: Vec<Value> = (0..1000)
        .map(|_| values::value().new_tree(&mut runner).unwrap().current())
        .collect();
    // Containers are written in batches of a thousand.
    for count in [999, 1000, 1001, 1999, 2000, 2001] {
        cases.push(Value::list((0..count).map(Value::from)));
        cases.push(Value::dict(
            (0..count).map(|n: i32| (n.to_string(), Value::from(n))),
        ));
        cases.push(Value::set((0..count).map(Value::from)).unwrap());
    }
    let mut input = python.stdin.take().unwrap();
    let pickles: Vec<Vec<u8>> = cases.iter().map(encode).collect();
    let feeder = std::thread::spawn(move || {
        for pickle in pickles {
            input
                .write_all(&(pickle.len() as u32).to_le_bytes())
                .unwrap();
            input.write_all(&pickle).unwrap();
        }
    });
    let mut output = Vec::new();
    python
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output)
        .unwrap();
    feeder.join().unwrap();
    assert!(python.wait().unwrap().success());
    let mut output = Bytes::from(output);
    let mut compared = 0;
    for case in &cases {
        for protocol in 2..=5 {
            let length = u32::from_le_bytes(output.split_to(4).as_ref().try_into().unwrap());
            if length > 0 {
                let again = decode(&output.split_to(length as usize)).unwrap();
                assert!(
                    case.identical(&again),
                    "protocol {protocol}: {case:?}\n{again:?}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 2000, "only {compared}");
}
