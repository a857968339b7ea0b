//! deepdiff deltas, folded into node data as the clients do it (`docs/protocol.md` section 5).
//!
//! [`Delta::apply`] computes what Python computes for `data + Delta(…)`, deepdiff's own mistakes included,
//! because what counts is what the receivers have afterwards. The two versions in the field fold differently:
//! 5.7.0's rules are used for a delta that holds its `OrderedDictPlus`, 8.1.1's for every other.
//!
//! Not folded ([`DeltaError::Unsupported`]; keep the delta and replay it to joiners):
//! - numpy arrays, `iterable_item_moved`, a root that is removed and added again;
//! - paths that are neither a str nor None, that read an attribute which a builtin type really has, or whose
//!   keys are complex numbers, `...`, use `\N{…}` escapes, or spread over lines outside of quotes;
//! - what depends on Python's hash order: a set of several members turned into another type;
//! - `str` of values whose `repr` needs Unicode tables, and of sets;
//! - changes inside a bytearray, characters of a long str, type objects or opcodes as data;
//! - results beyond the limits of [`pickle`](super::pickle), and folds that take unreasonably long
//!   (see `MAX_WORK`).

mod actions;
mod anyset;
mod apply;
mod convert;
mod exception;
mod literal;
mod number;
mod object;
mod order;
mod path;
mod sharing;

use std::sync::Arc;

use bytes::Bytes;

use apply::MAX_WORK;
use exception::Kind;

use super::pickle::{Dialect, Dict, PickleError, Problem, Value, decode_with};

/// Work that [`Delta::apply_quickly`] allows, in units of [`MAX_WORK`], and values of the node or delta.
const QUICK_WORK: u64 = 1 << 18;

/// A delta that clients can load. What it holds is not validated any further: deepdiff finds out while applying.
#[derive(Clone, Debug)]
pub struct Delta {
    actions: Arc<Dict>,
    flavour: Flavour,
}

/// Which versions of deepdiff can load a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Only 5.7.0: holds `OrderedDictPlus`.
    V5,
    /// Only 8.1.1: holds `Opcode`.
    V8,
    /// Both load it; clients of different versions may still fold it differently.
    Either,
}

/// Why a delta could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// deepdiff raises out of `data + delta`, which ends the session of every client that applies it.
    #[error("deepdiff would raise {0}")]
    Raises(String),
    /// Clients may well be able to apply it; see the list in the module's documentation.
    #[error("cannot fold {0}")]
    Unsupported(String),
}

/// How likely deepdiff raises on a delta whose base is not the one it was made for, as happens where edits cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fragility {
    /// It carries out, or skips, the actions on whatever it finds.
    Sturdy,
    /// Only if a container is not there at all.
    Careful,
    /// Wherever a set or list is not quite what it was.
    Fragile,
}

impl Delta {
    /// The most fragile of its actions.
    pub fn fragility(&self) -> Fragility {
        let fragility = |action: &Value| match action.as_str() {
            Some("values_changed" | "dictionary_item_added" | "dictionary_item_removed") => {
                Fragility::Sturdy
            }
            Some("iterable_item_added" | "iterable_item_removed" | "type_changes") => {
                Fragility::Careful
            }
            _ => Fragility::Fragile,
        };
        self.actions
            .keys()
            .map(fragility)
            .max()
            .unwrap_or(Fragility::Sturdy)
    }

    /// Reads the last chunk of a Commit. An error means that clients cannot load it either (and skip it), or
    /// that it must not reach them.
    pub fn decode(input: &Bytes) -> Result<Delta, PickleError> {
        let decoded = decode_with(input, Dialect::Delta)?;
        let refuse = |problem| PickleError { offset: 0, problem };
        let flavour = match (decoded.ordered_dict_plus, decoded.opcode) {
            (true, true) => return Err(refuse(Problem::MixedDelta)),
            (true, false) => Flavour::V5,
            (false, true) => Flavour::V8,
            (false, false) => Flavour::Either,
        };
        match decoded.value {
            Value::Dict(actions) => Ok(Delta { actions, flavour }),
            other => Err(refuse(Problem::NotADelta(other.type_name()))),
        }
    }

    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// `base + delta` by the rules of the version that wrote the delta (8.1.1 where both read it).
    ///
    /// A decoded delta stands for Python objects that end up inside the result: apply each one to a node once only.
    pub fn apply(&self, base: &Value) -> Result<Value, DeltaError> {
        self.apply_as(base, self.flavour)
    }

    /// [`Delta::apply`] as a client with a certain deepdiff does it; `Either` means 8.1.1.
    pub fn apply_as(&self, base: &Value, flavour: Flavour) -> Result<Value, DeltaError> {
        let old = flavour == Flavour::V5;
        apply::apply(&self.actions, base, old, MAX_WORK).map_err(DeltaError::from)
    }

    /// [`Delta::apply`] where it takes a few milliseconds at most, `None` where it would take longer.
    pub fn apply_quickly(&self, base: &Value) -> Option<Result<Value, DeltaError>> {
        match apply::apply(&self.actions, base, self.flavour == Flavour::V5, QUICK_WORK) {
            Err(exception) if exception.kind == Kind::TooLong => None,
            result => Some(result.map_err(DeltaError::from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pickle::encode;
    use super::*;

    #[test]
    fn what_takes_long_is_not_done_quickly() {
        let delta = |path: &str| {
            let change = Value::dict([("new_value", Value::Int(1))]);
            let actions = Value::dict([("values_changed", Value::dict([(path, change)]))]);
            Delta::decode(&encode(&actions).into()).unwrap()
        };
        let node = |items| Value::dict([("x", Value::list(vec![Value::Int(0); items]))]);
        let small = delta("root['x'][0]").apply_quickly(&node(10));
        assert!(small.is_some_and(|result| result.is_ok()));
        let large = node(QUICK_WORK as usize);
        assert!(delta("root['x'][0]").apply_quickly(&large).is_none());
        assert!(delta("root['x'][0]").apply(&large).is_ok());
    }
}
