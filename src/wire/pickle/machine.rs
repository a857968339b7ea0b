//! What the opcodes of a pickle act on: a stack, a memo, and containers that are being filled.

use std::cmp::Ordering;
use std::sync::Arc;

use super::error::Problem;
use super::table::{Dict, Set};
use super::value::Value;
use super::{BYTES_PER_VALUE, MAX_DEPTH, MAX_SHARED_FLOOR, MAX_SHARED_PER_BYTE};

#[derive(Default)]
pub(super) struct Machine {
    pub stack: Vec<Item>,
    /// Heights of the stack; nothing below the topmost mark may be touched.
    marks: Vec<usize>,
    memo: Vec<Item>,
    containers: Vec<Container>,
    /// Values there may be, and how many have been made.
    limit: usize,
    values: usize,
    /// Work that the bytes of the input do not pay for: what there may be, see [`MAX_SHARED_PER_BYTE`], and what there was.
    allowance: usize,
    shared: usize,
    pub ordered_dict_plus: bool,
    pub opcode: bool,
}

/// What lies on the stack and in the memo.
#[derive(Clone)]
pub(super) enum Item {
    Ready(Value, Shape),
    /// A list, dict or set by its place in [`Machine::containers`], since opcodes still fill it.
    Container(usize),
    Class(Class),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Opcode,
    OrderedDictPlus,
}

/// Levels of containers, and values counted at every place they are referenced from, long texts as several.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    depth: u16,
    size: u32,
}

impl Shape {
    pub const EMPTY: Shape = Shape { depth: 1, size: 1 };

    pub fn of_leaf(leaf: &Value) -> Shape {
        let more = leaf.bulk() / BYTES_PER_VALUE;
        Shape {
            depth: 0,
            size: u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1),
        }
    }

    fn hold(&mut self, child: Shape) -> Result<(), Problem> {
        self.depth = self.depth.max(child.depth.saturating_add(1));
        self.size = self.size.saturating_add(child.size);
        if usize::from(self.depth) > MAX_DEPTH {
            Err(Problem::TooDeep)
        } else {
            Ok(())
        }
    }

    /// What it costs beyond the one value that the bytes of the input stand for.
    fn extra(self) -> usize {
        self.size as usize - 1
    }
}

/// A container is open until it is put into another one. From then on it is a value that may be
/// shared; an opcode that would still change it can only come from a cycle.
pub(super) enum Container {
    List(Vec<Value>, Shape),
    Dict(Dict, Shape),
    Set(Set, Shape),
    Done(Value, Shape),
}

impl Machine {
    /// One for an input of so many bytes, which may make so many values.
    pub fn new(input: usize, limit: usize) -> Machine {
        let allowance = input.saturating_mul(MAX_SHARED_PER_BYTE);
        Machine {
            limit,
            allowance: allowance.max(MAX_SHARED_FLOOR).min(limit),
            ..Machine::default()
        }
    }

    /// What the pickle means, once all of it has been read.
    pub fn result(&mut self) -> Result<Value, Problem> {
        let item = self.pop("STOP")?;
        let (value, _) = self.finish(item)?;
        if self.stack.is_empty() && self.marks.is_empty() {
            Ok(value)
        } else {
            Err(Problem::Leftovers)
        }
    }

    /// Counts a value.
    pub fn count(&mut self) -> Result<(), Problem> {
        self.values += 1;
        if self.values > self.limit {
            Err(Problem::TooManyValues)
        } else {
            Ok(())
        }
    }

    /// Counts work that the bytes of the input do not pay for.
    fn charge(&mut self, size: usize) -> Result<(), Problem> {
        self.shared = self.shared.saturating_add(size);
        if self.shared > self.allowance {
            Err(Problem::TooMuchSharing)
        } else {
            Ok(())
        }
    }

    // The stack.

    pub fn push(&mut self, leaf: Value) -> Result<(), Problem> {
        self.count()?;
        let shape = Shape::of_leaf(&leaf);
        self.stack.push(Item::Ready(leaf, shape));
        Ok(())
    }

    pub fn open(&mut self, container: Container) -> Result<(), Problem> {
        self.count()?;
        self.stack.push(Item::Container(self.containers.len()));
        self.containers.push(container);
        Ok(())
    }

    /// Marks the height of the stack. Each mark waits for the items of one more container around the next.
    pub fn set_mark(&mut self) -> Result<(), Problem> {
        if self.marks.len() >= MAX_DEPTH {
            return Err(Problem::TooDeep);
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Removes the topmost mark and returns the height of the stack it marked.
    pub fn mark(&mut self, name: &'static str) -> Result<usize, Problem> {
        self.marks.pop().ok_or(Problem::StackUnderflow(name))
    }

    fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self, name: &'static str) -> Result<&Item, Problem> {
        self.stack
            .get(self.fence()..)
            .and_then(<[_]>::last)
            .ok_or(Problem::StackUnderflow(name))
    }

    pub fn pop(&mut self, name: &'static str) -> Result<Item, Problem> {
        self.top(name)?;
        self.stack.pop().ok_or(Problem::StackUnderflow(name))
    }

    pub fn pop_or_unmark(&mut self) -> Result<(), Problem> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop("POP").map(drop)
    }

    pub fn pop_to_mark(&mut self) -> Result<(), Problem> {
        let mark = self.mark("POP_MARK")?;
        self.stack.truncate(mark);
        Ok(())
    }

    pub fn duplicate(&mut self) -> Result<(), Problem> {
        let top = self.top("DUP")?.clone();
        self.push_again(top)
    }

    /// The height of the stack without its topmost `count` items.
    pub fn below_top(&self, name: &'static str, count: usize) -> Result<usize, Problem> {
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= self.fence() => Ok(from),
            _ => Err(Problem::StackUnderflow(name)),
        }
    }

    // The memo.

    /// Remembers the topmost item at the next place of the memo.
    pub fn memoize(&mut self) -> Result<(), Problem> {
        self.memoize_at(self.memo.len())
    }

    pub fn memoize_at(&mut self, place: usize) -> Result<(), Problem> {
        let item = self.top("MEMOIZE")?.clone();
        match place.cmp(&self.memo.len()) {
            Ordering::Less => {
                if let Some(slot) = self.memo.get_mut(place) {
                    *slot = item;
                }
            }
            // Nobody remembers a value twice, and memory has to be paid for.
            Ordering::Equal if self.memo.len() < self.values => self.memo.push(item),
            Ordering::Equal | Ordering::Greater => return Err(Problem::Memo),
        }
        Ok(())
    }

    pub fn fetch(&mut self, place: usize) -> Result<(), Problem> {
        let item = self.memo.get(place).cloned().ok_or(Problem::Memo)?;
        self.push_again(item)
    }

    /// Lists, dicts and sets are charged when they are put into a second container; here they may be incomplete.
    fn push_again(&mut self, item: Item) -> Result<(), Problem> {
        self.count()?;
        if let Item::Ready(_, shape) = &item {
            self.charge(shape.extra())?;
        }
        self.stack.push(item);
        Ok(())
    }

    // Containers.

    /// The container right below `from`, which opcodes are about to fill.
    fn target(&self, name: &'static str, from: usize) -> Result<usize, Problem> {
        let below = self.stack.get(self.fence()..from).and_then(<[_]>::last);
        match below.ok_or(Problem::StackUnderflow(name))? {
            Item::Container(id) => Ok(*id),
            _ => Err(Problem::Misapplied(name)),
        }
    }

    /// Turns an item into a value that goes into a container.
    fn finish(&mut self, item: Item) -> Result<(Value, Shape), Problem> {
        let id = match item {
            Item::Ready(value, shape) => return Ok((value, shape)),
            Item::Class(_) => return Err(Problem::Misapplied("a class, which is no data,")),
            Item::Container(id) => id,
        };
        let Some(container) = self.containers.get_mut(id) else {
            return Err(Problem::Memo);
        };
        let (value, shape) = match container {
            Container::List(items, shape) => (Value::List(Arc::new(std::mem::take(items))), *shape),
            Container::Dict(dict, shape) => (Value::Dict(Arc::new(std::mem::take(dict))), *shape),
            Container::Set(set, shape) => (Value::Set(Arc::new(std::mem::take(set))), *shape),
            Container::Done(value, shape) => {
                let done = (value.clone(), *shape);
                self.charge(done.1.size as usize)?;
                return Ok(done);
            }
        };
        *container = Container::Done(value.clone(), shape);
        Ok((value, shape))
    }

    /// A value that is about to be hashed: hashing walks all of it, each time.
    fn finish_key(&mut self, item: Item) -> Result<(Value, Shape), Problem> {
        let (key, shape) = self.finish(item)?;
        self.charge(shape.extra())?;
        Ok((key, shape))
    }

    pub fn append(&mut self, from: usize) -> Result<(), Problem> {
        let id = self.target("APPEND", from)?;
        for item in self.stack.split_off(from) {
            let (value, child) = self.finish(item)?;
            match self.containers.get_mut(id) {
                Some(Container::List(list, shape)) => {
                    shape.hold(child)?;
                    list.push(value);
                }
                Some(Container::Done(..)) => return Err(Problem::Cycle),
                _ => return Err(Problem::Misapplied("APPEND")),
            }
        }
        Ok(())
    }

    pub fn set_items(&mut self, from: usize) -> Result<(), Problem> {
        let id = self.target("SETITEM", from)?;
        let items = self.stack.split_off(from);
        if !items.len().is_multiple_of(2) {
            return Err(Problem::StackUnderflow("SETITEMS"));
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            let (key, key_shape) = self.finish_key(key)?;
            let (value, value_shape) = self.finish(value)?;
            match self.containers.get_mut(id) {
                Some(Container::Dict(dict, shape)) => {
                    shape.hold(key_shape)?;
                    shape.hold(value_shape)?;
                    dict.insert(key, value).map_err(|_| Problem::Unhashable)?;
                }
                Some(Container::Done(..)) => return Err(Problem::Cycle),
                _ => return Err(Problem::Misapplied("SETITEM")),
            }
        }
        Ok(())
    }

    pub fn add_items(&mut self, from: usize) -> Result<(), Problem> {
        let id = self.target("ADDITEMS", from)?;
        for item in self.stack.split_off(from) {
            let (member, child) = self.finish_key(item)?;
            match self.containers.get_mut(id) {
                Some(Container::Set(set, shape)) => {
                    shape.hold(child)?;
                    set.add(member).map_err(|_| Problem::Unhashable)?;
                }
                Some(Container::Done(..)) => return Err(Problem::Cycle),
                _ => return Err(Problem::Misapplied("ADDITEMS")),
            }
        }
        Ok(())
    }

    pub fn frozen_set(&mut self, from: usize) -> Result<(), Problem> {
        self.count()?;
        let mut set = Set::new();
        let mut shape = Shape::EMPTY;
        for item in self.stack.split_off(from) {
            let (member, child) = self.finish_key(item)?;
            shape.hold(child)?;
            set.add(member).map_err(|_| Problem::Unhashable)?;
        }
        self.stack
            .push(Item::Ready(Value::FrozenSet(Arc::new(set)), shape));
        Ok(())
    }

    pub fn tuple(&mut self, from: usize) -> Result<(), Problem> {
        self.count()?;
        let mut shape = Shape::EMPTY;
        let mut items = Vec::new();
        for item in self.stack.split_off(from) {
            let (value, child) = self.finish(item)?;
            shape.hold(child)?;
            items.push(value);
        }
        self.stack
            .push(Item::Ready(Value::Tuple(Arc::new(items)), shape));
        Ok(())
    }
}
