//! The reader: a pickle machine that knows data and nothing else.

use std::sync::Arc;

use bytes::Bytes;

use super::error::{OpcodeName, PickleError, Problem};
use super::integer::BigInt;
use super::table::{Dict, Set};
use super::value::Value;
use super::{MAX_DEPTH, MAX_SHARED_FLOOR, MAX_SHARED_PER_BYTE, MAX_VALUES, SLICE_MIN};

/// What a pickle may contain besides plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Data,
    /// The names of section 5: builtin types, `Opcode` and `OrderedDictPlus`.
    Delta,
}

/// Reads one pickle of plain data, all of `input`.
pub fn decode(input: &Bytes) -> Result<Value, PickleError> {
    decode_with(input, Dialect::Data).map(|decoded| decoded.value)
}

/// As [`decode`], of at most so many values, and at most as many more by memo references.
pub fn decode_small(input: &Bytes, values: usize) -> Result<Value, PickleError> {
    run(input, Dialect::Data, values.min(MAX_VALUES)).map(|decoded| decoded.value)
}

/// A value, and which of deepdiff's own classes were used in it.
pub(crate) struct Decoded {
    pub value: Value,
    pub ordered_dict_plus: bool,
    pub opcode: bool,
}

pub(crate) fn decode_with(input: &Bytes, dialect: Dialect) -> Result<Decoded, PickleError> {
    run(input, dialect, MAX_VALUES)
}

fn run(input: &Bytes, dialect: Dialect, limit: usize) -> Result<Decoded, PickleError> {
    let mut machine = Machine {
        input,
        at: 0,
        dialect,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        containers: Vec::new(),
        limit,
        values: 0,
        shared: 0,
        ordered_dict_plus: false,
        opcode: false,
    };
    let mut offset = 0;
    let result = machine.run(&mut offset);
    match result {
        Ok(value) => {
            let Machine {
                ordered_dict_plus,
                opcode,
                ..
            } = machine;
            Ok(Decoded {
                value,
                ordered_dict_plus,
                opcode,
            })
        }
        Err(problem) => Err(PickleError { offset, problem }),
    }
}

pub(super) struct Machine<'a> {
    input: &'a Bytes,
    at: usize,
    dialect: Dialect,
    pub(super) stack: Vec<Item>,
    /// Heights of the stack; nothing below the topmost mark may be touched.
    marks: Vec<usize>,
    memo: Vec<Item>,
    containers: Vec<Container>,
    /// Values there may be, at most [`MAX_VALUES`].
    limit: usize,
    /// Values read so far.
    values: usize,
    /// Values that memo references added, see [`MAX_SHARED_PER_BYTE`].
    shared: usize,
    pub(super) ordered_dict_plus: bool,
    pub(super) opcode: bool,
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

/// Levels of containers, and values counted at every place they are referenced from.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    depth: u16,
    size: u32,
}

impl Shape {
    pub(super) const LEAF: Shape = Shape { depth: 0, size: 1 };
    pub(super) const EMPTY: Shape = Shape { depth: 1, size: 1 };

    fn hold(&mut self, child: Shape) -> Result<(), Problem> {
        self.depth = self.depth.max(child.depth.saturating_add(1));
        self.size = self.size.saturating_add(child.size);
        if usize::from(self.depth) > MAX_DEPTH {
            Err(Problem::TooDeep)
        } else {
            Ok(())
        }
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

impl Machine<'_> {
    fn run(&mut self, offset: &mut usize) -> Result<Value, Problem> {
        if self.input.first() != Some(&0x80) || !matches!(self.input.get(1), Some(2..=5)) {
            return Err(Problem::Protocol);
        }
        self.at = 2;
        loop {
            *offset = self.at;
            let [opcode] = self.array("the pickle")?;
            if opcode == b'.' {
                break;
            }
            self.step(opcode)?;
        }
        let item = self.pop("STOP")?;
        let (value, _) = self.finish(item)?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(Problem::Leftovers);
        }
        match self.input.len().saturating_sub(self.at) {
            0 => Ok(value),
            left => Err(Problem::TrailingBytes(left)),
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Problem> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop_or_unmark()?,
            b'1' => {
                let mark = self.mark("POP_MARK")?;
                self.stack.truncate(mark);
            }
            b'2' => {
                let top = self.top("DUP")?.clone();
                self.push_again(top)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(self.array("BININT")?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.array("BININT1")?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array("BININT2")?);
                self.push(Value::Int(value.into()))?;
            }
            0x8A => {
                let [length] = self.array("LONG1")?;
                self.long("LONG1", length.into())?;
            }
            0x8B => {
                let length = i32::from_le_bytes(self.array("LONG4")?);
                let length = u64::try_from(length).map_err(|_| Problem::Misapplied("LONG4"))?;
                self.long("LONG4", length)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array("BINFLOAT")?);
                self.push(Value::Float(value))?;
            }
            0x8C => {
                let [length] = self.array("SHORT_BINUNICODE")?;
                self.text("SHORT_BINUNICODE", length.into())?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array("BINUNICODE")?);
                self.text("BINUNICODE", length.into())?;
            }
            0x8D => {
                let length = u64::from_le_bytes(self.array("BINUNICODE8")?);
                self.text("BINUNICODE8", length)?;
            }
            b'C' => {
                let [length] = self.array("SHORT_BINBYTES")?;
                let bytes = self.payload("SHORT_BINBYTES", length.into())?;
                self.push(Value::Bytes(bytes))?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.array("BINBYTES")?);
                let bytes = self.payload("BINBYTES", length.into())?;
                self.push(Value::Bytes(bytes))?;
            }
            0x8E => {
                let length = u64::from_le_bytes(self.array("BINBYTES8")?);
                let bytes = self.payload("BINBYTES8", length)?;
                self.push(Value::Bytes(bytes))?;
            }
            0x96 => {
                let length = u64::from_le_bytes(self.array("BYTEARRAY8")?);
                let bytes = self.payload("BYTEARRAY8", length)?;
                self.push(Value::ByteArray(bytes))?;
            }
            b']' => self.open(Container::List(Vec::new(), Shape::EMPTY))?,
            b'}' => self.open(Container::Dict(Dict::new(), Shape::EMPTY))?,
            0x8F => self.open(Container::Set(Set::new(), Shape::EMPTY))?,
            b'a' => {
                let from = self.below_top("APPEND", 1)?;
                self.append(from)?;
            }
            b'e' => {
                let from = self.mark("APPENDS")?;
                self.append(from)?;
            }
            b's' => {
                let from = self.below_top("SETITEM", 2)?;
                self.set_items(from)?;
            }
            b'u' => {
                let from = self.mark("SETITEMS")?;
                self.set_items(from)?;
            }
            0x90 => {
                let from = self.mark("ADDITEMS")?;
                self.add_items(from)?;
            }
            0x91 => {
                let from = self.mark("FROZENSET")?;
                self.frozen_set(from)?;
            }
            b')' => self.tuple(self.stack.len())?,
            0x85..=0x87 => {
                let from = self.below_top("TUPLE", usize::from(opcode - 0x84))?;
                self.tuple(from)?;
            }
            b't' => {
                let from = self.mark("TUPLE")?;
                self.tuple(from)?;
            }
            0x94 => self.memoize(self.memo.len())?,
            b'q' => {
                let [place] = self.array("BINPUT")?;
                self.memoize(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.array("LONG_BINPUT")?);
                self.memoize(place as usize)?;
            }
            b'h' => {
                let [place] = self.array("BINGET")?;
                self.fetch(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array("LONG_BINGET")?);
                self.fetch(place as usize)?;
            }
            0x95 => {
                let length = u64::from_le_bytes(self.array("FRAME")?);
                self.check_length("FRAME", length)?;
            }
            0x93 if self.dialect == Dialect::Delta => self.import()?,
            b'R' if self.dialect == Dialect::Delta => self.reduce()?,
            0x81 if self.dialect == Dialect::Delta => self.new_object()?,
            b'Q' if self.dialect == Dialect::Delta => self.persistent_id()?,
            b'c'
            | b'R'
            | b'b'
            | b'i'
            | b'o'
            | b'P'
            | b'Q'
            | 0x81..=0x84
            | 0x92
            | 0x93
            | 0x97
            | 0x98 => return Err(Problem::Forbidden(OpcodeName(opcode))),
            other => return Err(Problem::Unexpected(OpcodeName(other))),
        }
        Ok(())
    }

    // Reading the input.

    fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], Problem> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk::<N>().ok_or(Problem::Truncated(name))?;
        self.at += N;
        Ok(*bytes)
    }

    fn check_length(&self, name: &'static str, length: u64) -> Result<usize, Problem> {
        let left = self.input.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => Ok(length),
            _ => Err(Problem::LengthBeyondEnd { name, length, left }),
        }
    }

    fn payload(&mut self, name: &'static str, length: u64) -> Result<Bytes, Problem> {
        let length = self.check_length(name, length)?;
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(if length >= SLICE_MIN {
            self.input.slice(range)
        } else {
            Bytes::copy_from_slice(self.input.get(range).unwrap_or_default())
        })
    }

    fn text(&mut self, name: &'static str, length: u64) -> Result<(), Problem> {
        let text = self.payload(name, length)?;
        if std::str::from_utf8(&text).is_err() && !is_utf8_with_surrogates(&text) {
            return Err(Problem::NotUtf8);
        }
        self.push(Value::Str(text))
    }

    fn long(&mut self, name: &'static str, length: u64) -> Result<(), Problem> {
        let digits = self.payload(name, length)?;
        self.push(match BigInt::parse(&digits) {
            Ok(small) => Value::Int(small),
            Err(big) => Value::BigInt(Arc::new(big)),
        })
    }

    // The stack.

    pub(super) fn count(&mut self) -> Result<(), Problem> {
        self.values += 1;
        if self.values > self.limit {
            Err(Problem::TooManyValues)
        } else {
            Ok(())
        }
    }

    pub(super) fn push(&mut self, leaf: Value) -> Result<(), Problem> {
        self.count()?;
        self.stack.push(Item::Ready(leaf, Shape::LEAF));
        Ok(())
    }

    pub(super) fn open(&mut self, container: Container) -> Result<(), Problem> {
        self.count()?;
        self.stack.push(Item::Container(self.containers.len()));
        self.containers.push(container);
        Ok(())
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

    pub(super) fn pop(&mut self, name: &'static str) -> Result<Item, Problem> {
        self.top(name)?;
        self.stack.pop().ok_or(Problem::StackUnderflow(name))
    }

    fn pop_or_unmark(&mut self) -> Result<(), Problem> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop("POP").map(drop)
    }

    /// Removes the topmost mark and returns the height of the stack it marked.
    fn mark(&mut self, name: &'static str) -> Result<usize, Problem> {
        self.marks.pop().ok_or(Problem::StackUnderflow(name))
    }

    /// The height of the stack without its topmost `count` items.
    fn below_top(&self, name: &'static str, count: usize) -> Result<usize, Problem> {
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= self.fence() => Ok(from),
            _ => Err(Problem::StackUnderflow(name)),
        }
    }

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

    /// Counts work that the bytes of the input do not pay for.
    fn charge(&mut self, size: usize) -> Result<(), Problem> {
        self.shared = self.shared.saturating_add(size);
        let allowed = self
            .input
            .len()
            .saturating_mul(MAX_SHARED_PER_BYTE)
            .max(MAX_SHARED_FLOOR);
        if self.shared > allowed.min(self.limit) {
            return Err(Problem::TooMuchSharing);
        }
        Ok(())
    }

    /// A value that is about to be hashed: hashing walks all of it, each time.
    fn finish_key(&mut self, item: Item) -> Result<(Value, Shape), Problem> {
        let (key, shape) = self.finish(item)?;
        if let Value::Str(bytes) | Value::Bytes(bytes) = &key {
            self.charge(bytes.len() / 64)?;
        }
        self.charge(shape.size as usize - 1)?;
        Ok((key, shape))
    }

    // Containers.

    fn append(&mut self, from: usize) -> Result<(), Problem> {
        let id = self.target("APPEND", from)?;
        let items = self.stack.split_off(from);
        for item in items {
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

    fn set_items(&mut self, from: usize) -> Result<(), Problem> {
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

    fn add_items(&mut self, from: usize) -> Result<(), Problem> {
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

    fn frozen_set(&mut self, from: usize) -> Result<(), Problem> {
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

    fn tuple(&mut self, from: usize) -> Result<(), Problem> {
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

    // The memo.

    fn memoize(&mut self, place: usize) -> Result<(), Problem> {
        let item = self.top("MEMOIZE")?.clone();
        match place.cmp(&self.memo.len()) {
            std::cmp::Ordering::Less => {
                if let Some(slot) = self.memo.get_mut(place) {
                    *slot = item;
                }
            }
            std::cmp::Ordering::Equal => self.memo.push(item),
            std::cmp::Ordering::Greater => return Err(Problem::Memo),
        }
        Ok(())
    }

    fn fetch(&mut self, place: usize) -> Result<(), Problem> {
        let item = self.memo.get(place).cloned().ok_or(Problem::Memo)?;
        self.push_again(item)
    }

    /// Lists, dicts and sets are charged when they are put into a second container; here they may be incomplete.
    fn push_again(&mut self, item: Item) -> Result<(), Problem> {
        self.count()?;
        if let Item::Ready(_, shape) = &item {
            self.charge(shape.size as usize - 1)?;
        }
        self.stack.push(item);
        Ok(())
    }
}

/// Whether `text` is what Python's `surrogatepass` makes of some str: UTF-8, except that surrogates
/// are encoded like any other character.
fn is_utf8_with_surrogates(mut text: &[u8]) -> bool {
    loop {
        match std::str::from_utf8(text) {
            Ok(_) => return true,
            Err(error) => match text.get(error.valid_up_to()..) {
                Some([0xED, 0xA0..=0xBF, 0x80..=0xBF, rest @ ..]) => text = rest,
                _ => return false,
            },
        }
    }
}
