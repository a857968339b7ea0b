//! What a value holds in several places: it is written once, and reading it again is limited.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::value::Value;
use super::{BYTES_PER_VALUE, MAX_DEPTH, MAX_SHARED_FLOOR, MAX_SHARED_PER_BYTE, MAX_VALUES};

/// Bytes of a text that is known again by what it says; longer ones are by where they are.
pub(super) const SHORT: usize = 255;

/// The address of an object, and what it is: the same bytes may be those of a text and of a bytearray.
pub(super) type Identity = (u8, usize);

/// The identity of a container that is not empty by nature, and how many hold it.
pub(super) fn container(value: &Value) -> Option<(Identity, usize)> {
    let (address, holders) = match value {
        Value::Tuple(items) | Value::List(items) => {
            (Arc::as_ptr(items).addr(), Arc::strong_count(items))
        }
        Value::Dict(dict) => (Arc::as_ptr(dict).addr(), Arc::strong_count(dict)),
        Value::Set(set) | Value::FrozenSet(set) => {
            (Arc::as_ptr(set).addr(), Arc::strong_count(set))
        }
        Value::Opcode(opcode) => (Arc::as_ptr(opcode).addr(), Arc::strong_count(opcode)),
        _ => return None,
    };
    Some(((0, address), holders))
}

/// The identity of what is too long to be written, or compared, as often as it occurs.
pub(super) fn long_leaf(value: &Value) -> Option<Identity> {
    let (kind, address) = match value {
        Value::Str(bytes) => (b'X', bytes.as_ptr().addr()),
        Value::Bytes(bytes) => (b'B', bytes.as_ptr().addr()),
        Value::ByteArray(bytes) => (0x96, bytes.as_ptr().addr()),
        Value::BigInt(integer) => (0x8B, Arc::as_ptr(integer).addr()),
        _ => return None,
    };
    (value.bulk() > SHORT).then_some((kind, address))
}

/// The addresses of containers that `value` holds in more than one place, as far as they `matter`.
pub(crate) fn shared_containers(value: &Value, matter: fn(&Value) -> bool) -> HashSet<usize> {
    let (mut seen, mut shared) = (HashSet::new(), HashSet::new());
    find_shared(value, &mut seen, &mut |value, (_, address)| {
        if matter(value) {
            shared.insert(address);
        }
    });
    shared
}

fn find_shared(
    value: &Value,
    seen: &mut HashSet<Identity>,
    shared: &mut impl FnMut(&Value, Identity),
) {
    let Some((identity, holders)) = container(value) else {
        return;
    };
    // With one holder there is one place; what comes a second time has been searched before.
    if holders > 1 && !seen.insert(identity) {
        shared(value, identity);
        return;
    }
    for child in value.children() {
        find_shared(child, seen, shared);
    }
}

/// Whether [`decode()`](super::decode()) takes what [`encode()`](super::encode()) makes of `value`. It need not have come from a
/// pickle, so counting it at all its places might take for ever.
pub(crate) fn is_readable(value: &Value) -> bool {
    let mut reading = Reading::default();
    let shape = reading.read(value);
    let allowance = reading.values.saturating_mul(MAX_SHARED_PER_BYTE as u64);
    let allowance = allowance.clamp(MAX_SHARED_FLOOR as u64, MAX_VALUES as u64);
    shape.is_some() && reading.values <= MAX_VALUES as u64 && reading.shared <= allowance
}

/// What the reader will count.
#[derive(Default)]
struct Reading {
    values: u64,
    shared: u64,
    /// What is known of objects that may come again.
    known: HashMap<Identity, Shape>,
    above: usize,
}

/// Levels of containers, and the size of a value, counted at all its places.
#[derive(Clone, Copy)]
struct Shape {
    levels: usize,
    size: u64,
}

impl Reading {
    /// `None` where it is nested too deep.
    fn read(&mut self, value: &Value) -> Option<Shape> {
        self.values += 1;
        let identity = match container(value) {
            Some((identity, holders)) => (holders > 1).then_some(identity),
            None => long_leaf(value),
        };
        if let Some(shape) = identity
            .and_then(|identity| self.known.get(&identity))
            .copied()
        {
            self.shared = self.shared.saturating_add(shape.size);
            return (self.above + shape.levels <= MAX_DEPTH).then_some(shape);
        }
        let mut shape = Shape {
            levels: 0,
            size: 1 + (value.bulk() / BYTES_PER_VALUE) as u64,
        };
        if value.is_container() {
            self.above += 1;
            if self.above > MAX_DEPTH {
                return None;
            }
        } else if identity.is_none() {
            // A short text may be written once.
            self.shared = self.shared.saturating_add(shape.size - 1);
        }
        let is_key = |at: usize| match value {
            Value::Dict(_) => at.is_multiple_of(2),
            _ => matches!(value, Value::Set(_) | Value::FrozenSet(_)),
        };
        for (at, child) in value.children().enumerate() {
            let child = self.read(child)?;
            if is_key(at) {
                // Hashing walks all of it.
                self.shared = self.shared.saturating_add(child.size - 1);
            }
            shape.levels = shape.levels.max(child.levels);
            shape.size = shape.size.saturating_add(child.size);
        }
        if value.is_container() {
            self.above -= 1;
            shape.levels += 1;
        }
        if let Some(identity) = identity {
            self.known.insert(identity, shape);
        }
        Some(shape)
    }
}
