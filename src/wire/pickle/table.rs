//! Insertion-ordered hash tables with Python's idea of equal keys.

use std::fmt;

use super::equality::{hash_bytes_of_str, hash_value};
use super::value::Value;

/// Tables this small are searched from end to end.
const LINEAR_MAX: usize = 8;

/// No entry: an empty place in the index.
const FREE: u32 = u32::MAX;

/// A Python dict: keys are unique under Python's `==` (`True`, `1` and `1.0` are one key) and keep the
/// order of their first insertion.
pub type Dict = Table<Value>;

/// A Python set or frozenset. The order of its members means nothing.
pub type Set = Table<()>;

/// A key or member that Python cannot hash: a list, dict, set, bytearray, or a tuple that holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unhashable key")]
pub struct Unhashable;

/// See [`Dict`] and [`Set`].
#[derive(Clone)]
pub struct Table<V> {
    /// In order of insertion. A removed entry leaves a hole until the holes outnumber the entries.
    entries: Vec<Option<Entry<V>>>,
    len: usize,
    /// Open addressing: positions in `entries`, a power of two of places and never more than half full
    /// (holes included). Empty while the table is small.
    index: Vec<u32>,
}

#[derive(Clone)]
struct Entry<V> {
    hash: u64,
    key: Value,
    value: V,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table {
            entries: Vec::new(),
            len: 0,
            index: Vec::new(),
        }
    }
}

impl<V> Table<V> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in order of insertion.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &V)> {
        self.entries
            .iter()
            .flatten()
            .map(|entry| (&entry.key, &entry.value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Value, &mut V)> {
        self.entries
            .iter_mut()
            .flatten()
            .map(|entry| (&entry.key, &mut entry.value))
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.iter().map(|(key, _)| key)
    }

    /// The hashes of the keys, which need not be computed again.
    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().flatten().map(|entry| entry.hash)
    }

    /// The value of a string key.
    pub fn get(&self, key: &str) -> Option<&V> {
        let at = self.find(
            hash_bytes_of_str(key.as_bytes()),
            |candidate| matches!(candidate, Value::Str(text) if text.as_ref() == key.as_bytes()),
        )?;
        self.entries.get(at)?.as_ref().map(|entry| &entry.value)
    }

    /// The value of any key; `None` too for a key that cannot be hashed.
    pub fn get_value(&self, key: &Value) -> Option<&V> {
        let at = self.find(hash_value(key).ok()?, |candidate| candidate == key)?;
        self.entries.get(at)?.as_ref().map(|entry| &entry.value)
    }

    /// As [`Table::get_value`], to change it in place.
    pub fn get_value_mut(&mut self, key: &Value) -> Option<&mut V> {
        let at = self.find(hash_value(key).ok()?, |candidate| candidate == key)?;
        self.entries
            .get_mut(at)?
            .as_mut()
            .map(|entry| &mut entry.value)
    }

    /// The key in this table that equals `key`, in its own spelling.
    pub(super) fn keys_equal_to(&self, key: &Value) -> Option<&Value> {
        let at = self.find(hash_value(key).ok()?, |candidate| candidate == key)?;
        self.entries.get(at)?.as_ref().map(|entry| &entry.key)
    }

    pub fn contains(&self, key: &Value) -> bool {
        self.get_value(key).is_some()
    }

    /// Sets a key; an equal key keeps its place and its spelling (`{1: 'a'}` with `True` set stays `{1: …}`).
    pub fn insert(&mut self, key: Value, value: V) -> Result<Option<V>, Unhashable> {
        let hash = hash_value(&key)?;
        if let Some(at) = self.find(hash, |candidate| *candidate == key)
            && let Some(Some(entry)) = self.entries.get_mut(at)
        {
            return Ok(Some(std::mem::replace(&mut entry.value, value)));
        }
        self.entries.push(Some(Entry { hash, key, value }));
        self.len += 1;
        if self.entries.len() > LINEAR_MAX {
            if self.index.len() < self.entries.len() * 2 {
                self.rebuild();
            } else {
                self.link(self.entries.len() - 1);
            }
        }
        Ok(None)
    }

    /// Removes a key and returns what it held.
    pub fn remove(&mut self, key: &Value) -> Option<V> {
        let at = self.find(hash_value(key).ok()?, |candidate| candidate == key)?;
        let entry = self.entries.get_mut(at)?.take()?;
        self.len -= 1;
        if self.entries.len() > 2 * self.len + LINEAR_MAX {
            self.entries.retain(Option::is_some);
            self.rebuild();
        }
        Some(entry.value)
    }

    fn find(&self, hash: u64, same: impl Fn(&Value) -> bool) -> Option<usize> {
        let matches = |entry: &Entry<V>| entry.hash == hash && same(&entry.key);
        if self.index.is_empty() {
            return self
                .entries
                .iter()
                .position(|entry| entry.as_ref().is_some_and(&matches));
        }
        let mask = self.index.len() - 1;
        let mut place = hash as usize & mask;
        loop {
            match *self.index.get(place)? {
                FREE => return None,
                at => {
                    if self
                        .entries
                        .get(at as usize)?
                        .as_ref()
                        .is_some_and(&matches)
                    {
                        return Some(at as usize);
                    }
                }
            }
            place = (place + 1) & mask;
        }
    }

    fn rebuild(&mut self) {
        self.index.clear();
        if self.entries.len() > LINEAR_MAX {
            self.index
                .resize((self.entries.len() * 4).next_power_of_two(), FREE);
            for at in 0..self.entries.len() {
                self.link(at);
            }
        }
    }

    fn link(&mut self, at: usize) {
        let Some(Some(entry)) = self.entries.get(at) else {
            return;
        };
        let mask = self.index.len() - 1;
        let mut place = entry.hash as usize & mask;
        while let Some(slot) = self.index.get_mut(place) {
            if *slot == FREE {
                *slot = at as u32;
                return;
            }
            place = (place + 1) & mask;
        }
    }
}

impl Set {
    /// Adds a member; `false` if an equal one was there.
    pub fn add(&mut self, member: Value) -> Result<bool, Unhashable> {
        Ok(self.insert(member, ())?.is_none())
    }
}

impl<V: PartialEq> PartialEq for Table<V> {
    fn eq(&self, other: &Self) -> bool {
        let in_other = |entry: &Entry<V>| {
            other
                .find(entry.hash, |key| *key == entry.key)
                .and_then(|at| other.entries.get(at)?.as_ref())
                .is_some_and(|found| found.value == entry.value)
        };
        self.len == other.len && self.entries.iter().flatten().all(in_other)
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys()).finish()
    }
}
