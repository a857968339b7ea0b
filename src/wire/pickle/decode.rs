//! The reader: a pickle machine that knows data and nothing else.

use std::sync::Arc;

use bytes::Bytes;

use super::error::{OpcodeName, PickleError, Problem};
use super::integer::BigInt;
use super::machine::{Container, Machine, Shape};
use super::table::{Dict, Set};
use super::value::Value;
use super::{MAX_VALUES, SLICE_MIN};

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
    let mut reader = Reader {
        input: Input {
            bytes: input,
            at: 0,
        },
        dialect,
        machine: Machine::new(input.len(), limit),
    };
    let mut offset = 0;
    let value = reader
        .run(&mut offset)
        .map_err(|problem| PickleError { offset, problem })?;
    Ok(Decoded {
        value,
        ordered_dict_plus: reader.machine.ordered_dict_plus,
        opcode: reader.machine.opcode,
    })
}

struct Reader<'a> {
    input: Input<'a>,
    dialect: Dialect,
    machine: Machine,
}

impl Reader<'_> {
    fn run(&mut self, offset: &mut usize) -> Result<Value, Problem> {
        self.input.protocol()?;
        loop {
            *offset = self.input.at;
            match self.input.byte("the pickle")? {
                b'.' => break,
                opcode => self.step(opcode)?,
            }
        }
        let value = self.machine.result()?;
        match self.input.left() {
            0 => Ok(value),
            left => Err(Problem::TrailingBytes(left)),
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Problem> {
        let Reader { input, machine, .. } = self;
        match opcode {
            b'(' => machine.set_mark(),
            b'0' => machine.pop_or_unmark(),
            b'1' => machine.pop_to_mark(),
            b'2' => machine.duplicate(),
            b'N' => machine.push(Value::None),
            0x88 => machine.push(Value::Bool(true)),
            0x89 => machine.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(input.array("BININT")?);
                machine.push(Value::Int(value.into()))
            }
            b'K' => machine.push(Value::Int(input.byte("BININT1")?.into())),
            b'M' => {
                let value = u16::from_le_bytes(input.array("BININT2")?);
                machine.push(Value::Int(value.into()))
            }
            0x8A => machine.push(integer(&input.sized_1("LONG1")?)),
            0x8B => {
                let length = i32::from_le_bytes(input.array("LONG4")?);
                let length = u64::try_from(length).map_err(|_| Problem::Misapplied("LONG4"))?;
                machine.push(integer(&input.payload("LONG4", length)?))
            }
            b'G' => {
                let value = f64::from_be_bytes(input.array("BINFLOAT")?);
                machine.push(Value::Float(value))
            }
            0x8C => machine.push(text(input.sized_1("SHORT_BINUNICODE")?)?),
            b'X' => machine.push(text(input.sized_4("BINUNICODE")?)?),
            0x8D => machine.push(text(input.sized_8("BINUNICODE8")?)?),
            b'C' => machine.push(Value::Bytes(input.sized_1("SHORT_BINBYTES")?)),
            b'B' => machine.push(Value::Bytes(input.sized_4("BINBYTES")?)),
            0x8E => machine.push(Value::Bytes(input.sized_8("BINBYTES8")?)),
            0x96 => machine.push(Value::ByteArray(input.sized_8("BYTEARRAY8")?)),
            b']' => machine.open(Container::List(Vec::new(), Shape::EMPTY)),
            b'}' => machine.open(Container::Dict(Dict::new(), Shape::EMPTY)),
            0x8F => machine.open(Container::Set(Set::new(), Shape::EMPTY)),
            b'a' => machine.append(machine.below_top("APPEND", 1)?),
            b'e' => {
                let from = machine.mark("APPENDS")?;
                machine.append(from)
            }
            b's' => machine.set_items(machine.below_top("SETITEM", 2)?),
            b'u' => {
                let from = machine.mark("SETITEMS")?;
                machine.set_items(from)
            }
            0x90 => {
                let from = machine.mark("ADDITEMS")?;
                machine.add_items(from)
            }
            0x91 => {
                let from = machine.mark("FROZENSET")?;
                machine.frozen_set(from)
            }
            b')' => machine.tuple(machine.stack.len()),
            0x85..=0x87 => machine.tuple(machine.below_top("TUPLE", usize::from(opcode - 0x84))?),
            b't' => {
                let from = machine.mark("TUPLE")?;
                machine.tuple(from)
            }
            0x94 => machine.memoize(),
            b'q' => machine.memoize_at(input.byte("BINPUT")?.into()),
            b'r' => machine.memoize_at(u32::from_le_bytes(input.array("LONG_BINPUT")?) as usize),
            b'h' => machine.fetch(input.byte("BINGET")?.into()),
            b'j' => machine.fetch(u32::from_le_bytes(input.array("LONG_BINGET")?) as usize),
            0x95 => {
                let length = u64::from_le_bytes(input.array("FRAME")?);
                input.check_length("FRAME", length).map(drop)
            }
            0x93 if self.dialect == Dialect::Delta => machine.import(),
            b'R' if self.dialect == Dialect::Delta => machine.reduce(),
            0x81 if self.dialect == Dialect::Delta => machine.new_object(),
            b'Q' if self.dialect == Dialect::Delta => machine.persistent_id(),
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
            | 0x98 => Err(Problem::Forbidden(OpcodeName(opcode))),
            other => Err(Problem::Unexpected(OpcodeName(other))),
        }
    }
}

/// The bytes of a pickle. `name` is always the opcode that wants some of them.
struct Input<'a> {
    bytes: &'a Bytes,
    /// Where the next ones are.
    at: usize,
}

impl Input<'_> {
    fn protocol(&mut self) -> Result<(), Problem> {
        match **self.bytes {
            [0x80, 2..=5, ..] => {
                self.at = 2;
                Ok(())
            }
            _ => Err(Problem::Protocol),
        }
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk::<N>().ok_or(Problem::Truncated(name))?;
        self.at += N;
        Ok(*bytes)
    }

    fn byte(&mut self, name: &'static str) -> Result<u8, Problem> {
        self.array(name).map(|[byte]| byte)
    }

    fn check_length(&self, name: &'static str, length: u64) -> Result<usize, Problem> {
        let left = self.left();
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
            self.bytes.slice(range)
        } else {
            Bytes::copy_from_slice(self.bytes.get(range).unwrap_or_default())
        })
    }

    /// What follows its length of one byte.
    fn sized_1(&mut self, name: &'static str) -> Result<Bytes, Problem> {
        let length = self.byte(name)?;
        self.payload(name, length.into())
    }

    fn sized_4(&mut self, name: &'static str) -> Result<Bytes, Problem> {
        let length = u32::from_le_bytes(self.array(name)?);
        self.payload(name, length.into())
    }

    fn sized_8(&mut self, name: &'static str) -> Result<Bytes, Problem> {
        let length = u64::from_le_bytes(self.array(name)?);
        self.payload(name, length)
    }
}

fn text(text: Bytes) -> Result<Value, Problem> {
    if std::str::from_utf8(&text).is_ok() || is_utf8_with_surrogates(&text) {
        Ok(Value::Str(text))
    } else {
        Err(Problem::NotUtf8)
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

fn integer(digits: &[u8]) -> Value {
    match BigInt::parse(digits) {
        Ok(small) => Value::Int(small),
        Err(big) => Value::BigInt(Arc::new(big)),
    }
}
