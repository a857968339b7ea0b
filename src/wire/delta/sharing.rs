//! Objects that occur in several places: what changes in one changes in all.
//!
//! Values are trees of shared pointers, so a change in one place is normally a change of the path to it. Only
//! where a container on that path has other places too is the whole tree rewritten, which is slow and rare.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::wire::pickle::{Dict, Value, shared_containers};

use super::object::hashable;

pub(super) struct Sharing {
    /// Addresses of containers with several places in the node, in the delta, or one in each.
    shared: HashSet<usize>,
    in_delta: HashSet<usize>,
    /// By address: what a container was (kept, so that the address stays taken) and what it is now.
    replaced: HashMap<usize, (Value, Value)>,
}

fn address(value: &Value) -> Option<usize> {
    Some(match value {
        Value::Tuple(items) | Value::List(items) => Arc::as_ptr(items).addr(),
        Value::Dict(dict) => Arc::as_ptr(dict).addr(),
        Value::Set(set) | Value::FrozenSet(set) => Arc::as_ptr(set).addr(),
        _ => return None,
    })
}

fn can_change(value: &Value) -> bool {
    hashable(value).is_err()
}

impl Sharing {
    pub fn new(root: &Value, delta: &Value) -> Sharing {
        let in_delta = shared_containers(delta, can_change);
        let mut sharing = Sharing {
            shared: HashSet::new(),
            in_delta,
            replaced: HashMap::new(),
        };
        sharing.search(root);
        sharing
    }

    /// Finds anew what is shared after `root` changed.
    pub fn search(&mut self, root: &Value) {
        self.shared = shared_containers(root, can_change);
        self.shared.extend(&self.in_delta);
    }

    pub fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }

    pub fn contains(&self, value: &Value) -> bool {
        address(value).is_some_and(|address| self.shared.contains(&address))
    }

    /// Notes that a container has become another one.
    pub fn replace(&mut self, old: Value, new: Value) {
        let (Some(was), Some(is)) = (address(&old), address(&new)) else {
            return;
        };
        if self.in_delta.contains(&was) {
            self.in_delta.insert(is);
            self.shared.insert(is);
        }
        self.replaced.insert(was, (old, new));
    }

    /// Whether `value` is or holds the container `wanted`.
    pub fn holds(value: &Value, wanted: &Value) -> bool {
        address(value).is_some_and(|at| Some(at) == address(wanted))
            || match value {
                Value::Tuple(items) | Value::List(items) => {
                    items.iter().any(|item| Sharing::holds(item, wanted))
                }
                Value::Dict(dict) => dict.iter().any(|(_, value)| Sharing::holds(value, wanted)),
                _ => false,
            }
    }

    /// `value` with everything in it that was replaced.
    pub fn current(&mut self, value: &Value) -> Value {
        if self.replaced.is_empty() {
            return value.clone();
        }
        self.rewrite(value, &mut HashSet::new())
            .unwrap_or_else(|| value.clone())
    }

    /// `None` if nothing changed.
    fn rewrite(&mut self, value: &Value, unchanged: &mut HashSet<usize>) -> Option<Value> {
        let at = address(value)?;
        let mut newest = None;
        while let Some((_, new)) = self
            .replaced
            .get(&address(newest.as_ref().unwrap_or(value))?)
        {
            newest = Some(new.clone());
        }
        if let Some(new) = newest {
            let new = self.rewrite(&new, unchanged).unwrap_or(new);
            self.replace(value.clone(), new.clone());
            return Some(new);
        }
        if unchanged.contains(&at) {
            return None;
        }
        let new = match value {
            Value::List(items) => self.rewrite_all(items, unchanged).map(Value::from),
            Value::Tuple(items) => self
                .rewrite_all(items, unchanged)
                .map(|items| Value::Tuple(Arc::new(items))),
            Value::Dict(dict) => {
                let mut changed: Option<Dict> = None;
                for (key, value) in dict.iter() {
                    if let Some(new) = self.rewrite(value, unchanged)
                        && let Some(slot) = changed
                            .get_or_insert_with(|| Dict::clone(dict))
                            .get_value_mut(key)
                    {
                        *slot = new;
                    }
                }
                changed.map(Value::from)
            }
            // Members of sets and keys never change.
            _ => None,
        };
        match &new {
            Some(new) => self.replace(value.clone(), new.clone()),
            None => {
                unchanged.insert(at);
            }
        }
        new
    }

    fn rewrite_all(
        &mut self,
        items: &[Value],
        unchanged: &mut HashSet<usize>,
    ) -> Option<Vec<Value>> {
        let mut changed: Option<Vec<Value>> = None;
        for (at, item) in items.iter().enumerate() {
            if let Some(new) = self.rewrite(item, unchanged)
                && let Some(slot) = changed.get_or_insert_with(|| items.to_vec()).get_mut(at)
            {
                *slot = new;
            }
        }
        changed
    }
}
