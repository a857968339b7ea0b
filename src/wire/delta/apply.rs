//! `data + delta`: the object that deepdiff changes, and how it reads and writes places in it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::wire::pickle::{BYTES_PER_VALUE, Dict, MAX_DEPTH, MAX_VALUES, Set, Value};

use super::exception::{Catch, Exception, Kind, Result};
use super::object::{bulk, count, delete, get, get_mut, resolve, set, step};
use super::path::{Element, parse};
use super::sharing::Sharing;

/// Values moved, searched or rewritten: less than a second. Python takes many times as long.
pub(super) const MAX_WORK: u64 = 1 << 26;

/// The exceptions that deepdiff catches where it reads and where it writes an element.
pub(super) const LOOKUP: &[Kind] = &[Kind::Key, Kind::Index, Kind::Attribute, Kind::Type];
/// It forgets TypeError where it deletes one.
const DELETE: &[Kind] = &[Kind::Key, Kind::Index, Kind::Attribute];

/// Whether `value` holds more than `left` values; counts no further than that.
fn exceeds(value: &Value, left: &mut u64) -> bool {
    let Some(rest) = left.checked_sub(1) else {
        return true;
    };
    *left = rest;
    value.children().any(|child| exceeds(child, left))
}

pub(super) fn apply(actions: &Arc<Dict>, base: &Value, old: bool, budget: u64) -> Result<Value> {
    let delta = Value::Dict(actions.clone());
    // Single steps cost up to as much as there is.
    if budget < MAX_WORK
        && [base, &delta]
            .iter()
            .any(|value| exceeds(value, &mut budget.clone()))
    {
        return Err(Exception::too_long());
    }
    let sharing = Sharing::new(base, &delta);
    let mut fold = Fold {
        root: base.clone(),
        actions,
        old,
        tuples: Vec::new(),
        tuple_keys: Set::new(),
        sharing,
        work: Work {
            left: budget,
            created: 0,
        },
    };
    fold.run()?;
    Ok(fold.root)
}

pub(super) struct Fold<'d> {
    pub root: Value,
    pub actions: &'d Dict,
    /// By the rules of 5.7.0.
    pub old: bool,
    /// Paths of tuples that were turned into lists to be changed.
    pub tuples: Vec<Vec<Element>>,
    tuple_keys: Set,
    pub sharing: Sharing,
    pub work: Work,
}

/// What folding costs. Values are counted at all their places.
pub(super) struct Work {
    /// Values moved, searched or rewritten that are still allowed.
    left: u64,
    created: u64,
}

impl Work {
    pub fn spend(&mut self, work: u64) -> Result<()> {
        self.left = self
            .left
            .checked_sub(work)
            .ok_or_else(Exception::too_long)?;
        Ok(())
    }

    /// Accounts for values (or bytes) that did not exist before, which take memory.
    pub fn create(&mut self, count: u64) -> Result<()> {
        self.created = self.created.saturating_add(count);
        if self.created > MAX_VALUES as u64 {
            return Err(Exception::unsupported(
                "a delta that makes this much out of little",
            ));
        }
        self.spend(count)
    }

    /// Accounts for a walk through a value, which must not be nested deeper than `levels`.
    pub fn walk(&mut self, value: &Value, levels: usize) -> Result<()> {
        count(value, levels, &mut self.left)
    }

    /// Accounts for comparing or hashing all of a value.
    pub fn read(&mut self, value: &Value, levels: usize) -> Result<()> {
        self.walk(value, levels)?;
        self.spend(bulk(value) / BYTES_PER_VALUE as u64)
    }
}

/// Where an element is: in the object at a path, or it is the root itself, an attribute of deepdiff's own object.
pub(super) enum Place {
    Root,
    In(Vec<Element>, Element),
}

impl Place {
    /// As [`Fold::place`], with what parsing raises.
    pub fn parse(path: &Value, old: bool) -> Result<Place> {
        let mut elements = parse(path, old)?;
        Ok(match elements.pop() {
            Some(last) => Place::In(elements, last),
            None => Place::Root,
        })
    }

    /// How deep below the surface of the root the element is.
    pub fn levels(&self) -> usize {
        match self {
            Place::Root => 0,
            Place::In(path, _) => path.len() + 1,
        }
    }

    pub fn into_path(self) -> Vec<Element> {
        match self {
            Place::Root => Vec::new(),
            Place::In(mut path, element) => {
                path.push(element);
                path
            }
        }
    }

    /// deepdiff reads the element once more for a message: its own object has no elements.
    pub fn subscript_for_log(&self) -> Result<()> {
        match self {
            Place::Root => Err(Exception::wrong_type("'Delta' object is not subscriptable")),
            Place::In(..) => Ok(()),
        }
    }
}

impl Fold<'_> {
    /// `_get_elements_and_details`: `None` where deepdiff logs and goes on.
    pub fn place(&self, path: &Value) -> Result<Option<Place>> {
        let Some(elements) = parse(path, self.old).except_all()? else {
            return Ok(None);
        };
        self.place_of(elements)
    }

    pub fn place_of(&self, mut elements: Vec<Element>) -> Result<Option<Place>> {
        let Some(last) = elements.pop() else {
            return Ok(Some(Place::Root));
        };
        let found = resolve(&self.root, &elements).map(drop).except_all()?;
        Ok(found.map(|()| Place::In(elements, last)))
    }

    /// The element at a place, with the exceptions of Python's lookup.
    pub fn read(&self, place: &Place) -> Result<Cow<'_, Value>> {
        match place {
            Place::Root => Ok(Cow::Borrowed(&self.root)),
            Place::In(path, element) => match resolve(&self.root, path)? {
                Cow::Borrowed(object) => get(object, element),
                Cow::Owned(object) => Ok(Cow::Owned(get(&object, element)?.into_owned())),
            },
        }
    }

    /// Changes the object at a path, in all its places.
    pub fn change(
        &mut self,
        path: &[Element],
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<()> {
        if !self.sharing.is_empty() && self.crosses_shared(path) {
            return self.change_shared(path, change);
        }
        let mut object = Some(&mut self.root);
        for element in path {
            object = object.and_then(|object| get_mut(object, element));
        }
        match object {
            Some(object) => change(object)?,
            // A character of a str, say: no change of it lasts, but trying may raise.
            None => change(&mut resolve(&self.root, path)?.into_owned())?,
        }
        if !self.sharing.is_empty() {
            self.sharing.search(&self.root);
            self.work.walk(&self.root, MAX_DEPTH)?;
        }
        Ok(())
    }

    fn crosses_shared(&self, path: &[Element]) -> bool {
        let mut object = Cow::Borrowed(&self.root);
        for element in path {
            if self.sharing.contains(&object) {
                return true;
            }
            match step(object, element) {
                Ok(next) => object = next,
                Err(_) => return false,
            }
        }
        self.sharing.contains(&object)
    }

    fn change_shared(
        &mut self,
        path: &[Element],
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<()> {
        let before = resolve(&self.root, path)?.into_owned();
        let mut after = before.clone();
        change(&mut after)?;
        if Sharing::holds(&after, &before) {
            // Nothing changed, or it was put into itself.
            return match before.identical(&after) {
                true => Ok(()),
                false => Err(Exception::unsupported("an object that holds itself")),
            };
        }
        self.sharing.replace(before, after);
        self.root = self.sharing.current(&self.root);
        self.sharing.search(&self.root);
        self.work.walk(&self.root, MAX_DEPTH)
    }

    /// What stands in the delta, as it is by now, to be put at this many levels.
    pub fn incoming(&mut self, value: &Value, levels: usize) -> Result<Value> {
        let value = self.sharing.current(value);
        self.work.walk(&value, MAX_DEPTH.saturating_sub(levels))?;
        Ok(value)
    }

    /// `_simple_set_elem_value` of the object at `path`.
    pub fn set_at(&mut self, path: &[Element], value: Value) -> Result<()> {
        match path.split_last() {
            None => self.root = value,
            Some((element, parent)) => {
                self.change(parent, |object| set_or_log(object, element, value))?;
            }
        }
        Ok(())
    }

    /// Remembers that the tuple at `path` has become a list.
    fn note_tuple(&mut self, path: &[Element]) -> Result<()> {
        let key = path
            .iter()
            .map(|element| Value::tuple([element.key.clone(), Value::Bool(element.attribute)]));
        let unhashable = |_| Exception::wrong_type("unhashable type");
        if self.tuple_keys.add(Value::tuple(key)).map_err(unhashable)? {
            self.tuples.push(path.to_vec());
        }
        Ok(())
    }

    /// `_set_new_value`.
    pub fn write(&mut self, place: &Place, value: Value) -> Result<()> {
        let (path, element) = match place {
            Place::Root => {
                self.root = value;
                return Ok(());
            }
            Place::In(path, element) => (path, element),
        };
        let Some(mut list) = self.tuple_as_list(path)? else {
            return self.change(path, |object| set_or_log(object, element, value));
        };
        self.note_tuple(path)?;
        set_or_log(&mut list, element, value)?;
        self.set_at(path, list)
    }

    /// `_del_elem`.
    pub fn remove(&mut self, place: &Place) -> Result<()> {
        let Place::In(path, element) = place else {
            // Nothing is left to return, unless a later action puts something there.
            let names = [
                "iterable_item_added",
                "dictionary_item_added",
                "attribute_added",
            ];
            return Err(
                match names.iter().any(|name| self.actions.get(name).is_some()) {
                    true => Exception::unsupported("a root that is removed and added"),
                    false => {
                        Exception::new(Kind::Attribute, "'Delta' object has no attribute 'root'")
                    }
                },
            );
        };
        let Some(mut list) = self.tuple_as_list(path)? else {
            self.spend_on_shift(path)?;
            return self.change(path, |object| {
                delete(object, element).except(DELETE).map(drop)
            });
        };
        self.note_tuple(path)?;
        delete(&mut list, element).except(DELETE)?;
        self.set_at(path, list)
    }

    fn tuple_as_list(&mut self, path: &[Element]) -> Result<Option<Value>> {
        let items = match resolve(&self.root, path)?.as_ref() {
            Value::Tuple(items) => items.to_vec(),
            _ => return Ok(None),
        };
        self.work.spend(items.len() as u64)?;
        // A new object: it must not share the tuple's identity.
        Ok(Some(Value::List(Arc::new(items))))
    }

    /// Accounts for moving the items of a list.
    pub fn spend_on_shift(&mut self, path: &[Element]) -> Result<()> {
        let length = match resolve(&self.root, path)?.as_ref() {
            Value::List(items) => items.len(),
            _ => 0,
        };
        self.work.spend(length as u64)
    }
}

fn set_or_log(object: &mut Value, element: &Element, value: Value) -> Result<()> {
    match set(object, element, value.clone()) {
        // One past the end appends.
        Err(exception) if exception.kind == Kind::Index => {
            if let Value::List(items) = object
                && element.key == Value::Int(items.len() as i64)
            {
                Arc::make_mut(items).push(value);
            }
            Ok(())
        }
        result => result.except(LOOKUP).map(drop),
    }
}
