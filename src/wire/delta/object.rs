//! Subscripts, lengths and truth of Python's builtin types.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::wire::pickle::Value;

use super::exception::{Exception, Kind, Result};
use super::path::Element;

/// Attributes of builtin types that a path could read: everything else raises AttributeError.
const ATTRIBUTES: &[&str] = &[
    "add",
    "append",
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "capitalize",
    "casefold",
    "center",
    "clear",
    "conjugate",
    "copy",
    "count",
    "decode",
    "denominator",
    "difference",
    "difference_update",
    "discard",
    "encode",
    "endswith",
    "expandtabs",
    "extend",
    "find",
    "format",
    "format_map",
    "from_bytes",
    "fromhex",
    "fromkeys",
    "get",
    "hex",
    "imag",
    "index",
    "insert",
    "intersection",
    "intersection_update",
    "is_integer",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isdisjoint",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "issubset",
    "issuperset",
    "istitle",
    "isupper",
    "items",
    "join",
    "keys",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "numerator",
    "partition",
    "pop",
    "popitem",
    "real",
    "remove",
    "removeprefix",
    "removesuffix",
    "replace",
    "reverse",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "setdefault",
    "sort",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "symmetric_difference",
    "symmetric_difference_update",
    "title",
    "to_bytes",
    "translate",
    "union",
    "update",
    "upper",
    "values",
    "zfill",
];

/// Bytes of a str in which a delta may address single characters; it never has a reason to.
const MAX_INDEXED: usize = 1 << 16;

fn attribute_error(value: &Value) -> Exception {
    Exception::new(
        Kind::Attribute,
        format!("'{}' object has no such attribute", value.type_name()),
    )
}

fn not_subscriptable(value: &Value) -> Exception {
    Exception::wrong_type(format!(
        "'{}' object is not subscriptable",
        value.type_name()
    ))
}

fn refuse_foreign(value: &Value) -> Result<()> {
    match value {
        Value::Type(_) | Value::Opcode(_) => {
            Err(Exception::unsupported("types or opcodes as data"))
        }
        _ => Ok(()),
    }
}

/// The position that `key` means in a sequence of `length`.
pub(super) fn position(key: &Value, length: usize) -> Result<usize> {
    let index = match key {
        Value::Int(index) => *index,
        Value::Bool(index) => i64::from(*index),
        Value::BigInt(_) => return Err(Exception::index()),
        _ => return Err(Exception::wrong_type("indices must be integers")),
    };
    let length = length as i64;
    let index = if index < 0 {
        index.saturating_add(length)
    } else {
        index
    };
    if (0..length).contains(&index) {
        Ok(index as usize)
    } else {
        Err(Exception::index())
    }
}

/// The characters of a str; a lone surrogate is one too.
pub(super) fn characters(text: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let starts = |at: &usize| text.get(*at).is_none_or(|byte| byte & 0xC0 != 0x80);
    let mut from = 0;
    std::iter::from_fn(move || {
        let to = (from + 1..=text.len()).find(starts)?;
        let range = std::mem::replace(&mut from, to)..to;
        text.get(range).map(Bytes::copy_from_slice)
    })
}

/// `value[key]`, or `value.key`.
pub(super) fn get<'v>(value: &'v Value, element: &Element) -> Result<Cow<'v, Value>> {
    refuse_foreign(value)?;
    let key = &element.key;
    if element.attribute {
        return match key {
            Value::Str(name)
                if ATTRIBUTES
                    .iter()
                    .any(|known| known.as_bytes() == name.as_ref()) =>
            {
                Err(Exception::unsupported("a path that reads an attribute"))
            }
            Value::Str(_) => Err(attribute_error(value)),
            _ => Err(Exception::wrong_type("attribute name must be string")),
        };
    }
    match value {
        Value::List(items) | Value::Tuple(items) => {
            let at = position(key, items.len())?;
            items
                .get(at)
                .map(Cow::Borrowed)
                .ok_or_else(Exception::index)
        }
        Value::Dict(dict) => {
            hashable(key)?;
            dict.get_value(key)
                .map(Cow::Borrowed)
                .ok_or_else(Exception::key)
        }
        // Finding a character takes time.
        Value::Str(text) if text.len() > MAX_INDEXED => {
            Err(Exception::unsupported("an index into a long str"))
        }
        Value::Str(text) => {
            let length = characters(text).count();
            let found = characters(text).nth(position(key, length)?);
            found
                .map(|text| Cow::Owned(Value::Str(text)))
                .ok_or_else(Exception::index)
        }
        Value::Bytes(bytes) | Value::ByteArray(bytes) => {
            let at = position(key, bytes.len())?;
            let byte = bytes.get(at).ok_or_else(Exception::index)?;
            Ok(Cow::Owned(Value::Int(i64::from(*byte))))
        }
        _ => Err(not_subscriptable(value)),
    }
}

/// The object at the end of a path.
pub(super) fn resolve<'v>(root: &'v Value, path: &[Element]) -> Result<Cow<'v, Value>> {
    path.iter().try_fold(Cow::Borrowed(root), step)
}

/// One step further down a path.
pub(super) fn step<'v>(object: Cow<'v, Value>, element: &Element) -> Result<Cow<'v, Value>> {
    match object {
        Cow::Borrowed(object) => get(object, element),
        Cow::Owned(object) => Ok(Cow::Owned(get(&object, element)?.into_owned())),
    }
}

pub(super) fn hashable(key: &Value) -> Result<()> {
    match key {
        Value::List(_) | Value::Dict(_) | Value::Set(_) | Value::ByteArray(_) => {
            Err(Exception::wrong_type("unhashable type"))
        }
        Value::Tuple(items) => items.iter().try_for_each(hashable),
        _ => Ok(()),
    }
}

/// `container[key] = value`, or `container.key = value`.
pub(super) fn set(container: &mut Value, element: &Element, value: Value) -> Result<()> {
    refuse_foreign(container)?;
    let key = &element.key;
    if element.attribute {
        return Err(match key {
            Value::Str(_) => attribute_error(container),
            _ => Exception::wrong_type("attribute name must be string"),
        });
    }
    match container {
        Value::List(items) => {
            let at = position(key, items.len())?;
            if let Some(slot) = Arc::make_mut(items).get_mut(at) {
                *slot = value;
            }
            Ok(())
        }
        Value::Dict(dict) => Arc::make_mut(dict)
            .insert(key.clone(), value)
            .map(drop)
            .map_err(|_| Exception::wrong_type("unhashable type")),
        Value::ByteArray(_) => Err(Exception::unsupported("a change inside a bytearray")),
        _ => Err(Exception::wrong_type(format!(
            "'{}' object does not support item assignment",
            container.type_name()
        ))),
    }
}

/// `del container[key]`, or `del container.__dict__[key]`.
pub(super) fn delete(container: &mut Value, element: &Element) -> Result<()> {
    refuse_foreign(container)?;
    let key = &element.key;
    if element.attribute {
        return Err(attribute_error(container));
    }
    match container {
        Value::List(items) => {
            let at = position(key, items.len())?;
            Arc::make_mut(items).remove(at);
            Ok(())
        }
        Value::Dict(dict) => {
            hashable(key)?;
            Arc::make_mut(dict)
                .remove(key)
                .map(drop)
                .ok_or_else(Exception::key)
        }
        Value::ByteArray(_) => Err(Exception::unsupported("a change inside a bytearray")),
        _ => Err(Exception::wrong_type(format!(
            "'{}' object doesn't support item deletion",
            container.type_name()
        ))),
    }
}

/// The object that an element leads to, for changing it in place.
pub(super) fn get_mut<'v>(container: &'v mut Value, element: &Element) -> Option<&'v mut Value> {
    if element.attribute {
        return None;
    }
    match container {
        Value::List(items) | Value::Tuple(items) => {
            let at = position(&element.key, items.len()).ok()?;
            Arc::make_mut(items).get_mut(at)
        }
        Value::Dict(dict) => Arc::make_mut(dict).get_value_mut(&element.key),
        _ => None,
    }
}

/// `len(value)`.
pub(super) fn len(value: &Value) -> Result<usize> {
    refuse_foreign(value)?;
    Ok(match value {
        Value::Str(text) => characters(text).count(),
        Value::Bytes(bytes) | Value::ByteArray(bytes) => bytes.len(),
        Value::Tuple(items) | Value::List(items) => items.len(),
        Value::Dict(dict) => dict.len(),
        Value::Set(set) | Value::FrozenSet(set) => set.len(),
        _ => {
            let text = format!("object of type '{}' has no len()", value.type_name());
            return Err(Exception::wrong_type(text));
        }
    })
}

/// `bool(value)`.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::None => false,
        Value::Bool(value) => *value,
        Value::Int(value) => *value != 0,
        Value::Float(value) => *value != 0.0,
        Value::Str(bytes) | Value::Bytes(bytes) | Value::ByteArray(bytes) => !bytes.is_empty(),
        Value::Tuple(items) | Value::List(items) => !items.is_empty(),
        Value::Dict(dict) => !dict.is_empty(),
        Value::Set(set) | Value::FrozenSet(set) => !set.is_empty(),
        Value::BigInt(_) | Value::Type(_) | Value::Opcode(_) => true,
    }
}

/// Counts the values in `value`, at all their places, down from what is `left`. Fails where there are more, where they are nested
/// deeper than `levels`, or where they are no plain data: a delta may hold types and opcodes, a node may not.
pub(super) fn count(value: &Value, levels: usize, left: &mut u64) -> Result<()> {
    refuse_foreign(value)?;
    *left = left.checked_sub(1).ok_or_else(Exception::too_long)?;
    match levels.checked_sub(1) {
        Some(below) => value
            .children()
            .try_for_each(|child| count(child, below, left)),
        None if value.is_container() => Err(Exception::unsupported("what is nested this deep")),
        None => Ok(()),
    }
}

/// The values in `value` and the bytes of its texts, at all their places; to be counted only once it is known how many there are.
pub(super) fn bulk(value: &Value) -> u64 {
    1 + value.bulk() as u64 + value.children().map(bulk).sum::<u64>()
}
