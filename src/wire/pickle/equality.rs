//! Python's `==` and a hash that agrees with it, and the strict comparison.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use super::integer::BigInt;
use super::table::{Dict, Set, Unhashable};
use super::value::Value;

/// How many nans have been hashed.
static NANS: AtomicU64 = AtomicU64::new(0);

/// Seeded per process, so that no peer can choose keys that collide.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl PartialEq for Value {
    /// Python's `==`: numbers by value across bool, int and float, `nan` unequal to itself, a set equal to a
    /// frozenset, bytes to a bytearray, dicts regardless of order.
    fn eq(&self, other: &Self) -> bool {
        use Value::*;
        match (self, other) {
            (None, None) => true,
            (Str(a), Str(b)) => a == b,
            (Bytes(a) | ByteArray(a), Bytes(b) | ByteArray(b)) => a == b,
            (Tuple(a), Tuple(b)) | (List(a), List(b)) => Arc::ptr_eq(a, b) || a == b,
            (Dict(a), Dict(b)) => Arc::ptr_eq(a, b) || a == b,
            (Set(a) | FrozenSet(a), Set(b) | FrozenSet(b)) => Arc::ptr_eq(a, b) || a == b,
            (Type(a), Type(b)) => a == b,
            (Opcode(a), Opcode(b)) => Arc::ptr_eq(a, b) || a == b,
            // A named tuple is a tuple.
            (Opcode(a), Tuple(b)) | (Tuple(b), Opcode(a)) => a.0.as_slice() == b.as_slice(),
            (BigInt(a), BigInt(b)) => a == b,
            (BigInt(a), Float(b)) | (Float(b), BigInt(a)) => {
                matches!(integer_of(*b), Some(Err(b)) if **a == b)
            }
            (Float(a), Float(b)) => a == b,
            (Float(a), b) | (b, Float(a)) => match (integer_of(*a), small_integer(b)) {
                (Some(Ok(a)), Some(b)) => a == b,
                _ => false,
            },
            (a, b) => matches!((small_integer(a), small_integer(b)), (Some(a), Some(b)) if a == b),
        }
    }
}

fn small_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Int(value) => Some(*value),
        _ => None,
    }
}

/// The exact integer that a float is, if it is one.
fn integer_of(float: f64) -> Option<Result<i64, BigInt>> {
    (float.is_finite() && float.fract() == 0.0).then(|| BigInt::of_float(float))
}

pub(super) fn hash_bytes_of_str(text: &[u8]) -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write_u8(b's');
    hasher.write(text);
    hasher.finish()
}

/// A hash under which equal values are equal, or the error for what Python cannot hash.
pub(super) fn hash_value(value: &Value) -> Result<u64, Unhashable> {
    let mut hasher = SEED.build_hasher();
    match value {
        Value::None => hasher.write_u8(b'n'),
        Value::Bool(value) => hash_integer(&mut hasher, i64::from(*value)),
        Value::Int(value) => hash_integer(&mut hasher, *value),
        Value::BigInt(value) => hasher.write(value.as_le_bytes()),
        Value::Float(value) => match integer_of(*value) {
            Some(Ok(value)) => hash_integer(&mut hasher, value),
            Some(Err(value)) => hasher.write(value.as_le_bytes()),
            // It equals nothing, not even itself, so whatever hash it has is right, and many of the same one make a long search.
            None if value.is_nan() => hasher.write_u64(NANS.fetch_add(1, Ordering::Relaxed)),
            None => hasher.write_u64(value.to_bits()),
        },
        Value::Str(text) => return Ok(hash_bytes_of_str(text)),
        Value::Bytes(bytes) => {
            hasher.write_u8(b'b');
            hasher.write(bytes);
        }
        Value::Tuple(items) => hash_all(&mut hasher, items)?,
        Value::Opcode(opcode) => hash_all(&mut hasher, &opcode.0)?,
        Value::FrozenSet(set) => {
            hasher.write_u8(b'f');
            // A sum, since order means nothing.
            let mut sum = 0u64;
            for hash in set.hashes() {
                sum = sum.wrapping_add(hash);
            }
            hasher.write_u64(sum);
        }
        Value::Type(kind) => {
            hasher.write_u8(b't');
            hasher.write(kind.name().as_bytes());
        }
        Value::ByteArray(_) | Value::List(_) | Value::Dict(_) | Value::Set(_) => {
            return Err(Unhashable);
        }
    }
    Ok(hasher.finish())
}

fn hash_integer(hasher: &mut impl Hasher, value: i64) {
    hasher.write_u8(b'i');
    hasher.write_i64(value);
}

fn hash_all(hasher: &mut impl Hasher, items: &[Value]) -> Result<(), Unhashable> {
    hasher.write_u8(b'(');
    for item in items {
        hasher.write_u64(hash_value(item)?);
    }
    Ok(())
}

impl Value {
    /// Whether both are the same to the last detail: types distinct, floats bit for bit, dicts in the same order.
    /// Members of sets are matched regardless of order; whether containers are shared is not compared.
    pub fn identical(&self, other: &Value) -> bool {
        use Value::*;
        match (self, other) {
            (Float(a), Float(b)) => a.to_bits() == b.to_bits(),
            (Bytes(a), Bytes(b)) | (ByteArray(a), ByteArray(b)) => a == b,
            (Tuple(a), Tuple(b)) | (List(a), List(b)) => Arc::ptr_eq(a, b) || all_identical(a, b),
            (Dict(a), Dict(b)) => Arc::ptr_eq(a, b) || dicts_identical(a, b),
            (Set(a), Set(b)) | (FrozenSet(a), FrozenSet(b)) => {
                Arc::ptr_eq(a, b) || sets_identical(a, b)
            }
            (Opcode(a), Opcode(b)) => all_identical(&a.0, &b.0),
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b) && a == b,
        }
    }
}

fn all_identical(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.identical(b))
}

fn dicts_identical(a: &Dict, b: &Dict) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b.iter())
            .all(|((ka, va), (kb, vb))| ka.identical(kb) && va.identical(vb))
}

fn sets_identical(a: &Set, b: &Set) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut unmatched: Vec<&Value> = Vec::new();
    let mut rest: Vec<&Value> = Vec::new();
    // Whatever equals itself is found by hash; only nan, alone or inside a tuple, has to be searched for.
    for member in a.keys() {
        match b.keys_equal_to(member) {
            Some(found) if found.identical(member) => {}
            Some(_) => return false,
            _ => unmatched.push(member),
        }
    }
    if !unmatched.is_empty() {
        rest.extend(b.keys().filter(|member| a.keys_equal_to(member).is_none()));
    }
    unmatched.len() == rest.len()
        && unmatched.into_iter().all(|member| {
            match rest
                .iter()
                .position(|candidate| candidate.identical(member))
            {
                Some(at) => {
                    rest.swap_remove(at);
                    true
                }
                _ => false,
            }
        })
}
