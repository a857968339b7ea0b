//! What `new_type(old_value)` makes: a type change may leave its new value out.

use std::sync::Arc;

use crate::wire::pickle::{Dict, Set, Type, Value};

use super::exception::{Exception, Kind, Result};
use super::number::{decimal, float_of_text, float_repr, int_of_text};
use super::object::{bulk, characters, is_true, len};

/// `bytes(n)` of more than this is left to the clients.
const MAX_ZEROS: i64 = 1 << 20;

fn value_error(text: &str) -> Exception {
    Exception::new(Kind::Value, text)
}

/// About how many values or bytes `kind(value)` creates. As [`bulk`], this takes its time.
pub(super) fn size_of_conversion(kind: Type, value: &Value) -> Result<u64> {
    Ok(match value {
        Value::Int(zeros) if kind == Type::Bytes => (*zeros).clamp(0, MAX_ZEROS) as u64,
        Value::Str(text) | Value::Bytes(text) | Value::ByteArray(text) => text.len() as u64,
        _ if kind == Type::Str => bulk(value),
        value => len(value).unwrap_or(1) as u64,
    })
}

/// `kind(value)`.
pub(super) fn convert(kind: Type, value: &Value) -> Result<Value> {
    if matches!(value, Value::Type(_) | Value::Opcode(_)) {
        return Err(Exception::unsupported("types or opcodes as data"));
    }
    Ok(match kind {
        Type::Bool => Value::Bool(is_true(value)),
        Type::Int => int(value)?,
        Type::Float => float(value)?,
        Type::Str => match value {
            Value::Str(text) => Value::Str(text.clone()),
            other => Value::from(repr(other)?),
        },
        Type::Bytes => bytes(value)?,
        Type::Tuple => match value {
            Value::Tuple(items) => Value::Tuple(items.clone()),
            other => Value::tuple(iterate(other)?),
        },
        Type::List => Value::list(iterate(value)?),
        Type::Set => Value::Set(Arc::new(set(value)?)),
        Type::FrozenSet => Value::FrozenSet(Arc::new(set(value)?)),
        Type::Dict => dict(value)?,
        Type::None => return Err(Exception::wrong_type("NoneType takes no arguments")),
    })
}

/// The members of any iterable, in an order that only means something where Python defines one.
pub(super) fn members(value: &Value) -> Result<Vec<Value>> {
    Ok(match value {
        Value::Tuple(items) | Value::List(items) => items.to_vec(),
        Value::Dict(dict) => dict.keys().cloned().collect(),
        Value::Set(set) | Value::FrozenSet(set) => set.keys().cloned().collect(),
        Value::Str(text) => characters(text).map(Value::Str).collect(),
        Value::Bytes(bytes) | Value::ByteArray(bytes) => bytes
            .iter()
            .map(|byte| Value::Int(i64::from(*byte)))
            .collect(),
        Value::Type(_) | Value::Opcode(_) => {
            return Err(Exception::unsupported("types or opcodes as data"));
        }
        other => {
            let text = format!("'{}' object is not iterable", other.type_name());
            return Err(Exception::wrong_type(text));
        }
    })
}

/// `iter(value)`, where the order is known.
pub(super) fn iterate(value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Set(set) | Value::FrozenSet(set) if set.len() > 1 => {
            Err(Exception::unsupported("what depends on the order of a set"))
        }
        _ => members(value),
    }
}

fn refuse_unicode(text: &[u8]) -> Result<()> {
    if text.is_ascii() {
        Ok(())
    } else {
        Err(Exception::unsupported("a number in Unicode digits"))
    }
}

fn int(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Bool(value) => Value::Int(i64::from(*value)),
        Value::Int(_) | Value::BigInt(_) => value.clone(),
        Value::Float(value) if !value.is_finite() => {
            return Err(value_error("cannot convert float to integer"));
        }
        Value::Float(value) => Value::integer_of_float(value.trunc()),
        Value::Str(text) | Value::Bytes(text) | Value::ByteArray(text) => {
            refuse_unicode(text)?;
            int_of_text(text).ok_or_else(|| value_error("invalid literal for int()"))?
        }
        _ => return Err(Exception::wrong_type("int() argument")),
    })
}

fn float(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Bool(value) => Value::Float(f64::from(u8::from(*value))),
        Value::Int(value) => Value::Float(*value as f64),
        Value::BigInt(value) => {
            // Both round to the nearest float.
            let float = decimal(value).and_then(|digits| digits.parse().ok());
            match float.filter(|float: &f64| float.is_finite()) {
                Some(float) => Value::Float(float),
                None => return Err(value_error("int too large to convert to float")),
            }
        }
        Value::Float(_) => value.clone(),
        Value::Str(text) | Value::Bytes(text) | Value::ByteArray(text) => {
            refuse_unicode(text)?;
            float_of_text(text).ok_or_else(|| value_error("could not convert string to float"))?
        }
        _ => return Err(Exception::wrong_type("float() argument")),
    })
}

fn bytes(value: &Value) -> Result<Value> {
    let zeros = match value {
        Value::Bytes(bytes) | Value::ByteArray(bytes) => return Ok(Value::Bytes(bytes.clone())),
        Value::Bool(count) => i64::from(*count),
        Value::Int(count) => *count,
        Value::BigInt(_) => return Err(value_error("bytes of a large integer")),
        Value::Str(_) => return Err(Exception::wrong_type("string argument without an encoding")),
        other => {
            let byte = |member: &Value| match member {
                Value::Bool(byte) => Ok(u8::from(*byte)),
                Value::Int(byte) => {
                    u8::try_from(*byte).map_err(|_| value_error("bytes must be in range(0, 256)"))
                }
                Value::BigInt(_) => Err(value_error("bytes must be in range(0, 256)")),
                _ => Err(Exception::wrong_type("not an integer")),
            };
            let bytes: Result<Vec<u8>> = iterate(other)?.iter().map(byte).collect();
            return Ok(Value::Bytes(bytes?.into()));
        }
    };
    match usize::try_from(zeros) {
        Err(_) => Err(value_error("negative count")),
        Ok(_) if zeros > MAX_ZEROS => Err(Exception::unsupported("very large bytes")),
        Ok(count) => Ok(Value::Bytes(vec![0; count].into())),
    }
}

fn set(value: &Value) -> Result<Set> {
    let mut set = Set::new();
    for member in members(value)? {
        set.add(member)
            .map_err(|_| Exception::wrong_type("unhashable type"))?;
    }
    Ok(set)
}

fn dict(value: &Value) -> Result<Value> {
    if let Value::Dict(dict) = value {
        // A new dict with the same values.
        return Ok(Value::Dict(Arc::new(Dict::clone(dict))));
    }
    let mut dict = Dict::new();
    for pair in iterate(value)? {
        let pair = iterate(&pair)?;
        let [key, value] = pair.as_slice() else {
            return Err(value_error(
                "dictionary update sequence element has the wrong length",
            ));
        };
        dict.insert(key.clone(), value.clone())
            .map_err(|_| Exception::wrong_type("unhashable type"))?;
    }
    Ok(Value::from(dict))
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String> {
    Ok(match value {
        Value::None => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Int(value) => value.to_string(),
        Value::BigInt(value) => decimal(value)
            .ok_or_else(|| value_error("exceeds the limit for integer string conversion"))?,
        Value::Float(value) => float_repr(*value),
        Value::Str(text) => {
            let text = std::str::from_utf8(text)
                .map_err(|_| Exception::unsupported("the repr of a lone surrogate"))?;
            // Python escapes what is not printable; of these it is known that they are.
            if !text
                .chars()
                .all(|char| char.is_ascii() || char.is_alphanumeric())
            {
                return Err(Exception::unsupported("the repr of special characters"));
            }
            quoted(text.chars())
        }
        Value::Bytes(bytes) => {
            let mut text = String::from("b");
            let escaped = quoted(bytes.iter().map(|byte| char::from(*byte)));
            for char in escaped.chars() {
                match char.is_ascii() {
                    true => text.push(char),
                    false => text.push_str(&format!("\\x{:02x}", u32::from(char))),
                }
            }
            text
        }
        Value::List(items) => format!("[{}]", repr_all(items)?),
        Value::Tuple(items) if items.len() == 1 => format!("({},)", repr_all(items)?),
        Value::Tuple(items) => format!("({})", repr_all(items)?),
        Value::Dict(dict) => {
            let item = |(key, value)| Ok(format!("{}: {}", repr(key)?, repr(value)?));
            let items: Result<Vec<String>> = dict.iter().map(item).collect();
            format!("{{{}}}", items?.join(", "))
        }
        other => {
            return Err(Exception::unsupported(format!(
                "the repr of a {}",
                other.type_name()
            )));
        }
    })
}

fn repr_all(items: &[Value]) -> Result<String> {
    let items: Result<Vec<String>> = items.iter().map(repr).collect();
    Ok(items?.join(", "))
}

fn quoted(chars: impl Iterator<Item = char> + Clone) -> String {
    let has = |wanted| chars.clone().any(|char| char == wanted);
    let quote = if has('\'') && !has('"') { '"' } else { '\'' };
    let mut text = String::from(quote);
    for char in chars.clone() {
        match char {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            char if char == quote => text.extend(['\\', char]),
            '\0'..='\x1F' | '\x7F' => text.push_str(&format!("\\x{:02x}", u32::from(char))),
            char => text.push(char),
        }
    }
    text.push(quote);
    text
}
