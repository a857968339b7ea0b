//! deepdiff's `AnySet`: membership by equality, or by `DeepHash` for what Python cannot hash.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::wire::pickle::{Set, Table, Value};

use super::exception::{Exception, Kind, Result};
use super::number::float_repr;
use super::object::hashable;

pub(super) struct AnySet {
    members: Set,
    unhashable: HashSet<u64>,
    hashes: DeepHash,
}

impl AnySet {
    pub fn new<'v>(items: impl Iterator<Item = &'v Value>) -> Result<AnySet> {
        let mut set = AnySet {
            members: Set::new(),
            unhashable: HashSet::new(),
            hashes: DeepHash {
                known: Table::new(),
                texts: HashMap::new(),
            },
        };
        for item in items {
            if set.members.add(item.clone()).is_err() {
                let hash = set.hashes.hash(item)?;
                set.unhashable.insert(hash);
            }
        }
        Ok(set)
    }

    pub fn contains(&mut self, item: &Value) -> Result<bool> {
        if hashable(item).is_ok() {
            return Ok(self.members.contains(item));
        }
        Ok(self.unhashable.contains(&self.hashes.hash(item)?))
    }
}

/// Structural hashes. Numbers stand for deepdiff's SHA-256 texts: the same text, the same number.
struct DeepHash {
    /// By value for what Python can hash, so that of `1` and `1.0` the first one met decides for both.
    known: Table<u64>,
    texts: HashMap<Vec<u8>, u64>,
}

impl DeepHash {
    fn hash(&mut self, value: &Value) -> Result<u64> {
        // Booleans are told from numbers by an enum of deepdiff's own.
        if !matches!(value, Value::Bool(_))
            && let Some(hash) = self.known.get_value(value)
        {
            return Ok(*hash);
        }
        let text = self.text(value)?;
        let next = self.texts.len() as u64;
        let hash = *self.texts.entry(text).or_insert(next);
        if !matches!(value, Value::Bool(_)) {
            // What cannot be hashed is not remembered.
            let _ = self.known.insert(value.clone(), hash);
        }
        Ok(hash)
    }

    /// The text that deepdiff would hash.
    fn text(&mut self, value: &Value) -> Result<Vec<u8>> {
        let unicode_error = || Exception::new(Kind::Value, "Unicode text that cannot be hashed");
        Ok(match value {
            Value::None => b"str:NONE".to_vec(),
            Value::Bool(true) => b"str:bool:true".to_vec(),
            Value::Bool(false) => b"str:bool:false".to_vec(),
            Value::Int(value) => format!("str:int:{value}").into_bytes(),
            Value::BigInt(value) => format!("str:int:{:?}", value.as_le_bytes()).into_bytes(),
            Value::Float(value) => format!("str:float:{}", float_repr(*value)).into_bytes(),
            Value::Str(text) | Value::Bytes(text) => {
                std::str::from_utf8(text).map_err(|_| unicode_error())?;
                [value.type_name().as_bytes(), b":", text].concat()
            }
            Value::ByteArray(bytes) => {
                let items: Vec<Value> = bytes
                    .iter()
                    .map(|byte| Value::Int((*byte).into()))
                    .collect();
                self.iterable("bytearray", items.iter())?
            }
            Value::Tuple(items) | Value::List(items) => {
                self.iterable(value.type_name(), items.iter())?
            }
            Value::Set(set) | Value::FrozenSet(set) => {
                self.iterable(value.type_name(), set.keys())?
            }
            Value::Dict(dict) => {
                let mut items = Vec::new();
                for (key, value) in dict.iter() {
                    // Private keys do not count.
                    if !matches!(key, Value::Str(text) if text.starts_with(b"__")) {
                        items.push((self.hash(key)?, self.hash(value)?));
                    }
                }
                items.sort_unstable();
                format!("str:dict:{items:?}").into_bytes()
            }
            Value::Type(_) | Value::Opcode(_) => {
                return Err(Exception::unsupported("types or opcodes as data"));
            }
        })
    }

    /// Neither order nor repetition counts.
    fn iterable<'v>(
        &mut self,
        name: &str,
        items: impl Iterator<Item = &'v Value>,
    ) -> Result<Vec<u8>> {
        let hashes: Result<BTreeSet<u64>> = items.map(|item| self.hash(item)).collect();
        Ok(format!("str:{name}:{:?}", hashes?).into_bytes())
    }
}
