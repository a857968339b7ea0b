//! Python's order of paths, as `sorted` finds it.

use std::cmp::Ordering;

use crate::wire::pickle::Value;

use super::convert::repr;
use super::exception::{Catch, Exception, Kind, Result};
use super::path::{Element, parse};

/// Beyond this many items Python's sort merges runs; the fallback below imitates it for one run only.
const ONE_RUN: usize = 63;

/// `sorted(items, key=path)`, with deepdiff's fallback for paths that Python cannot compare.
pub(super) fn sorted<'d>(
    items: Vec<(&'d Value, &'d Value)>,
    reverse: bool,
    old: bool,
) -> Result<Vec<(&'d Value, &'d Value)>> {
    let keys: Result<Vec<Vec<Element>>> = items.iter().map(|(path, _)| parse(path, old)).collect();
    let Some(keys) = keys.except(if old { &[] } else { &[Kind::Type] })? else {
        // 8.1.1 tries again by comparing pairs; a single item is never compared.
        return match items.len() {
            1 => Ok(items),
            _ => Err(Exception::wrong_type(
                "'NoneType' object is not subscriptable",
            )),
        };
    };
    let key = |at: &usize| keys.get(*at).map_or(&[][..], Vec::as_slice);
    let mut order: Vec<usize> = (0..items.len()).collect();
    let attempt = merge_sort(&mut order, &mut |a, b| {
        let ordering = compare(key(a), key(b))?;
        Ok(ordering
            == if reverse {
                Ordering::Greater
            } else {
                Ordering::Less
            })
    });
    if attempt
        .except(if old { &[] } else { &[Kind::Type] })?
        .is_none()
    {
        order = (0..items.len()).collect();
        if reverse {
            order.reverse();
        }
        sort_like_python(&mut order, |a, b| {
            Ok(compare_pair(key(a), key(b))? == Ordering::Less)
        })?;
        if reverse {
            order.reverse();
        }
    }
    Ok(order
        .into_iter()
        .filter_map(|at| items.get(at).copied())
        .collect())
}

/// A stable sort that ends with the first comparison that fails, whatever order there is or is not.
fn merge_sort(
    items: &mut [usize],
    less: &mut impl FnMut(&usize, &usize) -> Result<bool>,
) -> Result<()> {
    if items.len() < 2 {
        return Ok(());
    }
    let (left, right) = items.split_at_mut(items.len() / 2);
    merge_sort(left, less)?;
    merge_sort(right, less)?;
    let (left, right) = (left.to_vec(), right.to_vec());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    for slot in items {
        let take_right = match (left.peek(), right.peek()) {
            (Some(left), Some(right)) => less(right, left)?,
            (left, _) => left.is_none(),
        };
        let next = if take_right {
            right.next()
        } else {
            left.next()
        };
        *slot = next.unwrap_or_default();
    }
    Ok(())
}

/// `<` and `==` of two lists of keys.
fn compare(a: &[Element], b: &[Element]) -> Result<Ordering> {
    for (a, b) in a.iter().zip(b) {
        if a.key != b.key {
            return compare_keys(&a.key, &b.key);
        }
    }
    Ok(a.len().cmp(&b.len()))
}

fn compare_keys(a: &Value, b: &Value) -> Result<Ordering> {
    let number = |value: &Value| match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Int(value) => Some(*value),
        _ => None,
    };
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => Ok(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a
            .partial_cmp(b)
            .ok_or_else(|| Exception::unsupported("sorting by nan")),
        (Value::Tuple(a), Value::Tuple(b)) | (Value::List(a), Value::List(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if a != b {
                    return compare_keys(a, b);
                }
            }
            Ok(a.len().cmp(&b.len()))
        }
        (Value::Set(_) | Value::FrozenSet(_), _)
        | (Value::BigInt(_), _)
        | (_, Value::BigInt(_)) => Err(Exception::unsupported("sorting by sets or large integers")),
        (a, b) => match (number(a), number(b), a, b) {
            (Some(a), Some(b), ..) => Ok(a.cmp(&b)),
            (Some(a), None, _, Value::Float(b)) => compare_mixed(a, *b),
            (None, Some(b), Value::Float(a), _) => compare_mixed(b, *a).map(Ordering::reverse),
            _ => Err(Exception::wrong_type(
                "'<' not supported between these keys",
            )),
        },
    }
}

fn compare_mixed(integer: i64, float: f64) -> Result<Ordering> {
    if integer.unsigned_abs() > 1 << 53 {
        return Err(Exception::unsupported(
            "sorting by large integers and floats",
        ));
    }
    (integer as f64)
        .partial_cmp(&float)
        .ok_or_else(|| Exception::unsupported("sorting by nan"))
}

/// deepdiff 8.1.1's `_sort_comparison`, including that it raises where two keys have one type.
fn compare_pair(a: &[Element], b: &[Element]) -> Result<Ordering> {
    if let Some(ordering) = compare(a, b).except(&[Kind::Type])? {
        return Ok(ordering);
    }
    for (a, b) in a.iter().zip(b) {
        if a.key.type_name() == b.key.type_name() {
            return Err(Exception::wrong_type(
                "argument of type 'NoneType' is not iterable",
            ));
        }
        let text = |key: &Value| match key {
            Value::Str(text) => Ok(text.to_vec()),
            other => repr(other).map(String::into_bytes),
        };
        let ordering = text(&a.key)?.cmp(&text(&b.key)?);
        if ordering != Ordering::Equal {
            return Ok(ordering);
        }
    }
    Ok(Ordering::Equal)
}

/// CPython's sort of a short list: with an order that is none, the outcome depends on which pairs it compares.
fn sort_like_python<T: Clone>(
    items: &mut [T],
    mut less: impl FnMut(&T, &T) -> Result<bool>,
) -> Result<()> {
    if items.len() > ONE_RUN {
        return Err(Exception::unsupported(
            "sorting many paths that cannot be compared",
        ));
    }
    let mut run = items.len().min(1);
    let mut descending = false;
    while let Some([before, next]) = run.checked_sub(1).and_then(|at| items.get(at..at + 2)) {
        let falls = less(next, before)?;
        if run == 1 {
            descending = falls;
        } else if falls != descending {
            break;
        }
        run += 1;
    }
    if descending && let Some(head) = items.get_mut(..run) {
        head.reverse();
    }
    for at in run..items.len() {
        let Some(pivot) = items.get(at).cloned() else {
            break;
        };
        let (mut low, mut high) = (0, at);
        while low < high {
            let middle = low + (high - low) / 2;
            match items.get(middle) {
                Some(other) if less(&pivot, other)? => high = middle,
                _ => low = middle + 1,
            }
        }
        if let Some(moved) = items.get_mut(low..=at) {
            moved.rotate_right(1);
        }
    }
    Ok(())
}
