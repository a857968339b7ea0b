//! The actions of a delta, in the order in which deepdiff carries them out.

use std::borrow::Cow;
use std::sync::Arc;

use crate::wire::pickle::{Dict, MAX_DEPTH, Opcode, Type, Value, is_readable};

use super::anyset::AnySet;
use super::apply::{Fold, LOOKUP, Place};
use super::convert::{convert, iterate, members, size_of_conversion};
use super::exception::{Catch, Exception, Kind, Result};
use super::object::{get, is_true, len, resolve};
use super::order::sorted;
use super::path::Element;

/// Levels of what is reordered: each is hashed again together with what it is in. Real data has about 12.
const MAX_REORDERED: usize = 24;

impl<'d> Fold<'d> {
    pub fn run(&mut self) -> Result<()> {
        for name in ["_numpy_paths", "iterable_item_moved"] {
            if self.actions.get(name).is_some_and(is_true) {
                return Err(Exception::unsupported(name));
            }
        }
        self.values_or_types("values_changed", false)?;
        self.set_items("set_item_added", true)?;
        self.set_items("set_item_removed", false)?;
        self.values_or_types("type_changes", true)?;
        if !self.old {
            self.opcodes()?;
        }
        self.items_removed("iterable_item_removed")?;
        self.items_added("iterable_item_added", true, true)?;
        self.at_indexes()?;
        self.items_added("dictionary_item_added", false, false)?;
        self.items_removed("dictionary_item_removed")?;
        self.items_added("attribute_added", true, false)?;
        self.items_removed("attribute_removed")?;
        self.restore_tuples()?;
        self.check_size()
    }

    /// What was folded has to be readable again once it is encoded.
    fn check_size(&self) -> Result<()> {
        match is_readable(&self.root) {
            true => Ok(()),
            false => Err(Exception::unsupported("what becomes too large")),
        }
    }

    /// The items of an action, if it says anything.
    fn action(&self, name: &str) -> Result<Option<&'d Dict>> {
        match self.actions.get(name) {
            None => Ok(None),
            Some(value) if !is_true(value) => Ok(None),
            Some(value) => as_dict(value).map(Some),
        }
    }

    fn values_or_types(&mut self, name: &str, is_type_change: bool) -> Result<()> {
        let Some(changes) = self.action(name)? else {
            return Ok(());
        };
        for (path, change) in changes.iter() {
            let Some(place) = self.place(path)? else {
                continue;
            };
            let change = as_dict(change)?;
            let Some(current) = self.read(&place).except(LOOKUP)?.map(Cow::into_owned) else {
                continue;
            };
            let new = match change.get("new_value") {
                Some(new) => new.clone(),
                None if is_type_change => {
                    let converted = match change.get("new_type") {
                        None => Err(Exception::key()),
                        Some(Value::Type(kind)) => {
                            self.work.walk(&current, MAX_DEPTH)?;
                            self.work.create(size_of_conversion(*kind, &current)?)?;
                            convert(*kind, &current)
                        }
                        Some(_) => Err(Exception::wrong_type("object is not callable")),
                    };
                    match converted.except_all()? {
                        Some(new) => new,
                        None => {
                            place.subscript_for_log()?;
                            continue;
                        }
                    }
                }
                None => return Err(Exception::key()),
            };
            let new = self.incoming(&new, place.levels())?;
            self.write(&place, new)?;
        }
        Ok(())
    }

    fn set_items(&mut self, name: &str, add: bool) -> Result<()> {
        let Some(items) = self.action(name)? else {
            return Ok(());
        };
        for (path, value) in items.iter() {
            let place = Place::parse(path, self.old)?;
            if let Place::In(parent, _) = &place {
                resolve(&self.root, parent)?;
            }
            let found = self.read(&place).except(LOOKUP)?;
            let (mut set, frozen) = match found.as_deref() {
                Some(Value::Set(set)) => (set.clone(), false),
                Some(Value::FrozenSet(set)) => (set.clone(), true),
                _ => {
                    return Err(Exception::new(
                        Kind::Attribute,
                        "no set to add to or remove from",
                    ));
                }
            };
            let members = members(value)?;
            self.work.spend(set.len() as u64)?;
            for member in &members {
                self.work.read(member, MAX_DEPTH)?;
            }
            let changed = Arc::make_mut(&mut set);
            for member in members {
                super::object::hashable(&member)?;
                if !add {
                    changed.remove(&member);
                } else if changed.add(member).is_err() {
                    return Err(Exception::wrong_type("unhashable type"));
                }
            }
            let new = if frozen {
                Value::FrozenSet(set)
            } else {
                Value::Set(set)
            };
            self.work
                .walk(&new, MAX_DEPTH.saturating_sub(place.levels()))?;
            self.set_at(&place.into_path(), new)?;
        }
        Ok(())
    }

    fn opcodes(&mut self) -> Result<()> {
        let Some(changes) = self.action("_iterable_opcodes")? else {
            return Ok(());
        };
        for (path, opcodes) in changes.iter() {
            let Some(place) = self.place(path)? else {
                continue;
            };
            let (items, is_tuple) = match self.read(&place)?.as_ref() {
                Value::List(items) => (items.clone(), false),
                Value::Tuple(items) => (items.clone(), true),
                Value::ByteArray(_) | Value::Type(_) | Value::Opcode(_) => {
                    return Err(Exception::unsupported("opcodes on this type"));
                }
                _ => {
                    return Err(Exception::wrong_type(
                        "object does not support slice assignment",
                    ));
                }
            };
            let mut transformed = Vec::new();
            for opcode in iterate(opcodes)? {
                let Value::Opcode(opcode) = opcode else {
                    return Err(Exception::new(
                        Kind::Attribute,
                        "object has no attribute 'tag'",
                    ));
                };
                let Opcode([tag, from, to, _, _, _, new_values]) = opcode.as_ref();
                match tag.as_str() {
                    Some("replace" | "insert") => {
                        for value in iterate(new_values)? {
                            transformed.push(self.incoming(&value, place.levels() + 1)?);
                        }
                    }
                    Some("equal") => {
                        let from = bound(from, items.len(), 0)?;
                        let to = bound(to, items.len(), items.len())?;
                        let part = items.get(from..to).unwrap_or_default();
                        self.work.create(part.len() as u64)?;
                        for item in part {
                            self.work.walk(item, MAX_DEPTH)?;
                        }
                        transformed.extend_from_slice(part);
                    }
                    _ => {}
                }
            }
            if is_tuple {
                // deepdiff forgets the result, and puts the tuple in the place of the object that holds it.
                if let Place::In(holder, _) = &place {
                    self.set_at(holder, Value::Tuple(items))?;
                }
                continue;
            }
            drop(items);
            self.change(&place.into_path(), |object| {
                if let Value::List(items) = object {
                    *Arc::make_mut(items) = transformed;
                }
                Ok(())
            })?;
            // Ranges may overlap: the same objects are then in several places.
            self.sharing.search(&self.root);
        }
        Ok(())
    }

    fn items_removed(&mut self, name: &str) -> Result<()> {
        let Some(items) = self.action(name)? else {
            return Ok(());
        };
        let search = !self.old
            && !self
                .actions
                .get("_iterable_compare_func_was_used")
                .is_some_and(is_true);
        for (path, expected) in sorted(items.iter().collect(), true, self.old)? {
            let Some(mut place) = self.place(path)? else {
                continue;
            };
            let found = self.read(&place).except(LOOKUP)?;
            if self.old {
                if found.is_some() {
                    self.remove(&place)?;
                }
                continue;
            }
            let mut is_found = found.is_some();
            if found.is_none_or(|current| *current != *expected)
                && search
                && let Some(closest) = self.closest(&mut place, expected)?
            {
                is_found = closest;
            }
            let is_none = matches!(&place, Place::In(_, element) if element.key.is_none());
            if is_found && !is_none {
                self.remove(&place)?;
            }
        }
        Ok(())
    }

    /// In a list, moves the place to the nearest item that is equal to what is to be removed, and tells whether there is one.
    fn closest(&mut self, place: &mut Place, expected: &Value) -> Result<Option<bool>> {
        let Place::In(path, element) = place else {
            return Ok(None);
        };
        let object = resolve(&self.root, path)?;
        let Value::List(items) = object.as_ref() else {
            return Ok(None);
        };
        self.work.read(&object, MAX_DEPTH)?;
        let mut closest = None;
        let mut closest_distance = f64::INFINITY;
        for (index, value) in items.iter().enumerate() {
            let distance = match &element.key {
                Value::Bool(key) => (index as f64) - f64::from(u8::from(*key)),
                Value::Int(key) => (index as f64) - (*key as f64),
                Value::Float(key) => (index as f64) - key,
                Value::BigInt(_) => return Err(Exception::unsupported("a very large index")),
                _ => return Err(Exception::wrong_type("unsupported operand type(s) for -")),
            }
            .abs();
            if distance > closest_distance {
                break;
            }
            if value == expected && distance < closest_distance {
                closest = Some(index);
                closest_distance = distance;
            }
        }
        if let Some(index) = closest {
            element.key = Value::Int(index as i64);
        }
        Ok(Some(closest.is_some()))
    }

    fn items_added(&mut self, name: &str, sort: bool, insert: bool) -> Result<()> {
        let Some(items) = self.action(name)? else {
            return Ok(());
        };
        let mut items: Vec<_> = items.iter().collect();
        if sort {
            items = sorted(items, false, self.old)?;
        }
        for (path, value) in items {
            let Some(place) = self.place(path)? else {
                continue;
            };
            if insert {
                self.make_room(&place)?;
            }
            let value = self.incoming(value, place.levels())?;
            self.write(&place, value)?;
        }
        Ok(())
    }

    /// Inserts None where an item is to be added inside of a list.
    fn make_room(&mut self, place: &Place) -> Result<()> {
        let Place::In(path, element) = place else {
            return Err(Exception::wrong_type("object of type 'Delta' has no len()"));
        };
        let object = resolve(&self.root, path)?;
        let length = len(&object)?;
        let is_list = matches!(object.as_ref(), Value::List(_));
        drop(object);
        let key = match &element.key {
            Value::Bool(key) => i64::from(*key),
            Value::Int(key) => *key,
            Value::Float(key) if *key >= length as f64 || key.is_nan() => return Ok(()),
            Value::Float(_) => return Err(Exception::wrong_type("an index must be an integer")),
            Value::BigInt(key) if !key.is_negative() => return Ok(()),
            Value::BigInt(_) => return Err(Exception::unsupported("a very large index")),
            _ => return Err(Exception::wrong_type("'<' not supported")),
        };
        if key >= length as i64 {
            return Ok(());
        }
        if !is_list {
            return Err(Exception::new(
                Kind::Attribute,
                "object has no attribute 'insert'",
            ));
        }
        let at = if key < 0 {
            key.saturating_add(length as i64).max(0)
        } else {
            key
        };
        self.spend_on_shift(path)?;
        self.change(path, |object| {
            if let Value::List(items) = object {
                let items = Arc::make_mut(items);
                items.insert((at as usize).min(items.len()), Value::None);
            }
            Ok(())
        })
    }

    fn at_indexes(&mut self) -> Result<()> {
        let empty = Dict::new();
        let of = |name| match self.actions.get(name) {
            None => Ok(&empty),
            Some(value) => as_dict(value),
        };
        let added = of("iterable_items_added_at_indexes")?;
        let removed = of("iterable_items_removed_at_indexes")?;
        let only_removed = removed.keys().filter(|path| !added.contains(path));
        let mut paths: Vec<&Value> = added.keys().chain(only_removed).collect();
        if self.old {
            // 5.7.0 takes them in the order of a set, any order. From the inside out is the one that finds
            // nested containers where the author had them.
            paths.sort_by_key(|path| match path {
                Value::Str(text) => std::cmp::Reverse(text.len()),
                _ => std::cmp::Reverse(0),
            });
        }
        for path in paths {
            // The path names the container.
            let first_item = match path {
                Value::Str(text) => [text, b"[0]".as_slice()].concat(),
                Value::None => b"None[0]".to_vec(),
                _ => return Err(Exception::unsupported("a path that is no str")),
            };
            let Some(place) = self.place(&Value::Str(first_item.into()))? else {
                continue;
            };
            let Place::In(path_to, _) = place else {
                return Err(Exception::wrong_type("object of type 'Delta' has no len()"));
            };
            let added = indexes(added.get_value(path))?;
            let removed = indexes(removed.get_value(path))?;
            let new = self.reorder(&path_to, added, removed)?;
            self.set_at(&path_to, new)?;
        }
        Ok(())
    }

    /// What becomes of the object at `path` when items are added and removed at indexes.
    fn reorder(&mut self, path: &[Element], mut added: Dict, mut removed: Dict) -> Result<Value> {
        let mut fixed = AnySet::new(added.iter().map(|(_, value)| value))?;
        let object = resolve(&self.root, path)?.into_owned();
        self.work.create(size_of_conversion(Type::List, &object)?)?;
        self.work.read(&object, MAX_REORDERED)?;
        let mut keys = added.keys().cloned().collect::<Vec<_>>().into_iter();
        let mut old_items_left = is_true(&object);
        let mut next_old = 0;
        let mut new = Vec::new();
        while old_items_left || !added.is_empty() {
            if let Some(item) = added.remove(&Value::Int(new.len() as i64)) {
                new.push(self.incoming(&item, path.len() + 1)?);
            } else if old_items_left {
                match old_item(&object, &mut next_old, &mut fixed, &mut removed)? {
                    Some(item) => new.push(item),
                    None => old_items_left = false,
                }
            } else if let Some(item) = keys.find_map(|key| added.remove(&key)) {
                // No index fits any more: whichever was added first.
                new.push(self.incoming(&item, path.len() + 1)?);
            }
        }
        Ok(if matches!(object, Value::Tuple(_)) {
            Value::tuple(new)
        } else {
            Value::from(new)
        })
    }

    /// Turns lists back into the tuples they were.
    fn restore_tuples(&mut self) -> Result<()> {
        let mut next = 0;
        while let Some(path) = self.tuples.get(next).cloned() {
            let count = self.tuples.len();
            next += 1;
            self.restore_tuple(&path)?;
            // Converting a tuple inside of a tuple adds to the dict that deepdiff is iterating over. A plain dict
            // notices every time, 5.7.0's ordered one not at its end.
            if self.old && next == count {
                break;
            }
            if self.tuples.len() != count {
                return Err(Exception::new(
                    Kind::Runtime,
                    "dictionary changed size during iteration",
                ));
            }
        }
        Ok(())
    }

    fn restore_tuple(&mut self, path: &[Element]) -> Result<()> {
        let Some(place) = self.place_of(path.to_vec())? else {
            return Ok(());
        };
        let Some(current) = self.read(&place).except(LOOKUP)?.map(Cow::into_owned) else {
            // deepdiff joins the keys for its log, which only works with strings.
            return match path
                .iter()
                .all(|element| matches!(element.key, Value::Str(_)))
            {
                true => Ok(()),
                false => Err(Exception::wrong_type(
                    "sequence item: expected str instance",
                )),
            };
        };
        self.work
            .spend(size_of_conversion(Type::Tuple, &current)?)?;
        let Some(tuple) = convert(Type::Tuple, &current).except_all()? else {
            return place.subscript_for_log();
        };
        self.write(&place, tuple)
    }
}

fn as_dict(value: &Value) -> Result<&Dict> {
    let text = || format!("'{}' object has no attribute 'items'", value.type_name());
    value
        .as_dict()
        .ok_or_else(|| Exception::new(Kind::Attribute, text()))
}

fn indexes(value: Option<&Value>) -> Result<Dict> {
    match value {
        None => Ok(Dict::new()),
        Some(Value::Dict(dict)) => Ok(Dict::clone(dict)),
        Some(_) => Err(Exception::unsupported("indexes that are no dict")),
    }
}

/// The next item that stays.
fn old_item(
    object: &Value,
    next: &mut usize,
    fixed: &mut AnySet,
    removed: &mut Dict,
) -> Result<Option<Value>> {
    let length = len(object)?;
    while *next < length {
        let index = Value::Int(*next as i64);
        *next += 1;
        let element = Element {
            key: index,
            attribute: false,
        };
        let current = get(object, &element)?.into_owned();
        if fixed.contains(&current)? {
            continue;
        }
        if removed
            .remove(&element.key)
            .is_some_and(|expected| expected == current)
        {
            continue;
        }
        return Ok(Some(current));
    }
    Ok(None)
}

/// One end of a slice.
fn bound(value: &Value, length: usize, default: usize) -> Result<usize> {
    let index = match value {
        Value::None => return Ok(default),
        Value::Bool(index) => i64::from(*index),
        Value::Int(index) => *index,
        Value::BigInt(index) => return Ok(if index.is_negative() { 0 } else { length }),
        _ => return Err(Exception::wrong_type("slice indices must be integers")),
    };
    let length = length as i64;
    let index = if index < 0 {
        index.saturating_add(length)
    } else {
        index
    };
    Ok(index.clamp(0, length) as usize)
}
