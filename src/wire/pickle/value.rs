//! The Python values that travel in node data, commands and deltas.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::integer::BigInt;
use super::table::{Dict, Set, Unhashable};

/// A Python value. Cloning is cheap: containers are shared and copied when one holder changes them.
///
/// `==` is Python's (`1 == 1.0 == True`, a set equals a frozenset of the same members);
/// [`Value::identical`] is the strict comparison. Within one value, two places that hold the very same
/// `Arc` stand for one Python object in two places: a delta that changes it in one changes it in both,
/// and [`encode()`](super::encode()) keeps it shared.
#[derive(Clone, Default)]
pub enum Value {
    #[default]
    None,
    Bool(bool),
    Int(i64),
    /// Only integers that do not fit [`Value::Int`].
    BigInt(Arc<BigInt>),
    Float(f64),
    /// UTF-8 in which lone surrogates may occur (Python's `surrogatepass`): Blender names need not be UTF-8.
    Str(Bytes),
    Bytes(Bytes),
    ByteArray(Bytes),
    Tuple(Arc<Vec<Value>>),
    List(Arc<Vec<Value>>),
    Dict(Arc<Dict>),
    Set(Arc<Set>),
    FrozenSet(Arc<Set>),
    /// A builtin type as a value; occurs in deltas only.
    Type(Type),
    /// A `deepdiff.helper.Opcode`; occurs in deltas only.
    Opcode(Arc<Opcode>),
}

/// The builtin types that a delta may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Bool,
    Bytes,
    Dict,
    Float,
    FrozenSet,
    Int,
    List,
    None,
    Set,
    Str,
    Tuple,
}

impl Type {
    /// Every type that is imported from `builtins`; [`Type::None`] travels as a persistent id.
    const BUILTINS: [Type; 10] = [
        Type::Bool,
        Type::Bytes,
        Type::Dict,
        Type::Float,
        Type::FrozenSet,
        Type::Int,
        Type::List,
        Type::Set,
        Type::Str,
        Type::Tuple,
    ];

    /// The type's `__name__`.
    pub fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::Bytes => "bytes",
            Type::Dict => "dict",
            Type::Float => "float",
            Type::FrozenSet => "frozenset",
            Type::Int => "int",
            Type::List => "list",
            Type::None => "NoneType",
            Type::Set => "set",
            Type::Str => "str",
            Type::Tuple => "tuple",
        }
    }

    pub(super) fn from_builtins(name: &[u8]) -> Option<Type> {
        Type::BUILTINS
            .into_iter()
            .find(|kind| kind.name().as_bytes() == name)
    }
}

/// The seven fields of `deepdiff.helper.Opcode`, a named tuple: tag, t1_from_index, t1_to_index,
/// t2_from_index, t2_to_index, old_values, new_values. Nothing guarantees their types.
#[derive(Clone, Debug, PartialEq)]
pub struct Opcode(pub [Value; 7]);

impl Value {
    pub fn str(text: impl AsRef<str>) -> Value {
        Value::Str(Bytes::copy_from_slice(text.as_ref().as_bytes()))
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Value {
        Value::Bytes(bytes.into())
    }

    pub fn list(items: impl IntoIterator<Item = Value>) -> Value {
        Value::List(Arc::new(items.into_iter().collect()))
    }

    pub fn tuple(items: impl IntoIterator<Item = Value>) -> Value {
        Value::Tuple(Arc::new(items.into_iter().collect()))
    }

    /// A dict with string keys; a later key replaces an equal earlier one.
    pub fn dict<K: AsRef<str>>(items: impl IntoIterator<Item = (K, Value)>) -> Value {
        let mut dict = Dict::new();
        for (key, value) in items {
            dict.insert(Value::str(key), value)
                .expect("a str is hashable");
        }
        Value::Dict(Arc::new(dict))
    }

    pub fn set(members: impl IntoIterator<Item = Value>) -> Result<Value, Unhashable> {
        let mut set = Set::new();
        for member in members {
            set.add(member)?;
        }
        Ok(Value::Set(Arc::new(set)))
    }

    /// The exact integer that a finite, integral float is.
    pub(crate) fn integer_of_float(float: f64) -> Value {
        match BigInt::of_float(float) {
            Ok(small) => Value::Int(small),
            Err(big) => Value::BigInt(Arc::new(big)),
        }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Value::None)
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An int that fits; a bool is not an int here.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The text of a str that is valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_dict(&self) -> Option<&Dict> {
        match self {
            Value::Dict(dict) => Some(dict),
            _ => None,
        }
    }

    /// The value of a string key, if this is a dict that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_dict()?.get(key)
    }

    /// Bytes of a text, bytes or a large integer, each of which may be huge; 0 for everything else.
    pub(crate) fn bulk(&self) -> usize {
        match self {
            Value::Str(bytes) | Value::Bytes(bytes) | Value::ByteArray(bytes) => bytes.len(),
            Value::BigInt(integer) => integer.as_le_bytes().len(),
            _ => 0,
        }
    }

    pub(crate) fn is_container(&self) -> bool {
        use Value::*;
        matches!(
            self,
            Tuple(_) | List(_) | Dict(_) | Set(_) | FrozenSet(_) | Opcode(_)
        )
    }

    /// What a container holds: of a dict each key and then its value.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Value> {
        let (items, dict, set) = match self {
            Value::Tuple(items) | Value::List(items) => (items.as_slice(), None, None),
            Value::Opcode(opcode) => (opcode.0.as_slice(), None, None),
            Value::Dict(dict) => (&[][..], Some(dict), None),
            Value::Set(set) | Value::FrozenSet(set) => (&[][..], None, Some(set)),
            _ => (&[][..], None, None),
        };
        let entries = dict.into_iter().flat_map(|dict| dict.iter());
        items
            .iter()
            .chain(entries.flat_map(|(key, value)| [key, value]))
            .chain(set.into_iter().flat_map(|set| set.keys()))
    }

    /// `type(self).__name__`, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::BigInt(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Bytes(_) => "bytes",
            Value::ByteArray(_) => "bytearray",
            Value::Tuple(_) => "tuple",
            Value::List(_) => "list",
            Value::Dict(_) => "dict",
            Value::Set(_) => "set",
            Value::FrozenSet(_) => "frozenset",
            Value::Type(_) => "type",
            Value::Opcode(_) => "Opcode",
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Value::Int(value.into())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Int(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Float(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::str(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Str(text.into())
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Value::List(Arc::new(items))
    }
}

impl From<Dict> for Value {
    fn from(dict: Dict) -> Self {
        Value::Dict(Arc::new(dict))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::None, Into::into)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(value) => value.fmt(f),
            Value::Int(value) => value.fmt(f),
            Value::BigInt(value) => value.fmt(f),
            Value::Float(value) => value.fmt(f),
            Value::Str(text) => match std::str::from_utf8(text) {
                Ok(text) => text.fmt(f),
                Err(_) => write!(f, "str({text:?})"),
            },
            Value::Bytes(bytes) => bytes.fmt(f),
            Value::ByteArray(bytes) => write!(f, "bytearray({bytes:?})"),
            Value::Tuple(items) => {
                f.write_str("tuple")?;
                items.fmt(f)
            }
            Value::List(items) => items.fmt(f),
            Value::Dict(dict) => dict.fmt(f),
            Value::Set(set) => set.fmt(f),
            Value::FrozenSet(set) => {
                f.write_str("frozenset")?;
                set.fmt(f)
            }
            Value::Type(kind) => write!(f, "<{}>", kind.name()),
            Value::Opcode(opcode) => opcode.fmt(f),
        }
    }
}
