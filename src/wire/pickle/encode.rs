//! The writer: protocol 4, readable by plain `pickle.loads` of Python 3.7 and later.

use std::collections::{HashMap, HashSet};

use super::shared::{Identity, SHORT, container, long_leaf, shared_containers};
use super::value::{Opcode, Type, Value};

/// Strings of this many bytes are worth a memo entry when they come again, as dict keys do.
const MEMO_TEXT: std::ops::RangeInclusive<usize> = 2..=SHORT;

/// Items put into a container at once, as Python does it: they wait on the reader's stack until then.
const BATCH: usize = 1000;

/// Writes one pickle. The same value always gives the same bytes. Containers that occur in several places (the
/// very same `Arc`) are written once and stay one object for the reader, as Python's own pickler has it.
///
/// [`decode()`](super::decode()) reads it again, but for one thing: a value read from a pickle that was padded to be allowed
/// more sharing may lack the padding. A bytearray needs Python 3.8 to be read; types and opcodes, which only deltas hold, need deepdiff.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut writer = Writer {
        out: vec![0x80, 4],
        shared: shared_containers(value, |_| true),
        objects: HashMap::new(),
        texts: HashMap::new(),
        memoized: 0,
    };
    writer.value(value);
    writer.out.push(b'.');
    writer.out
}

struct Writer<'a> {
    out: Vec<u8>,
    shared: HashSet<usize>,
    /// Memo places of objects already written that may come again.
    objects: HashMap<Identity, u32>,
    /// Memo places of short texts already written.
    texts: HashMap<&'a [u8], u32>,
    memoized: u32,
}

impl<'a> Writer<'a> {
    fn value(&mut self, value: &'a Value) {
        let identity = match container(value) {
            Some((identity, _)) => Some(identity).filter(|(_, at)| self.shared.contains(at)),
            None => long_leaf(value),
        };
        if let Some(place) = identity.and_then(|identity| self.objects.get(&identity)) {
            return self.fetch(*place);
        }
        match value {
            Value::None => self.out.push(b'N'),
            Value::Bool(value) => self.out.push(if *value { 0x88 } else { 0x89 }),
            Value::Int(value) => self.int(*value),
            Value::BigInt(value) => {
                self.long(value.as_le_bytes());
                self.memoize(identity);
            }
            Value::Float(value) => {
                self.out.push(b'G');
                self.out.extend(value.to_be_bytes());
            }
            Value::Str(text) => {
                self.text(text);
                self.memoize(identity);
            }
            Value::Bytes(bytes) => {
                self.sized(bytes, b'C', b'B', 0x8E);
                self.memoize(identity);
            }
            Value::ByteArray(bytes) => {
                self.out.push(0x96);
                self.out.extend((bytes.len() as u64).to_le_bytes());
                self.out.extend_from_slice(bytes);
                self.memoize(identity);
            }
            // The reader learns of lists, dicts and sets before their items, of the others after them.
            Value::List(items) => {
                self.out.push(b']');
                self.memoize(identity);
                self.batches(items.len(), items.iter(), b'a', b'e', Writer::value);
            }
            Value::Dict(dict) => {
                self.out.push(b'}');
                self.memoize(identity);
                self.batches(
                    dict.len(),
                    dict.iter(),
                    b's',
                    b'u',
                    |writer, (key, value)| {
                        writer.value(key);
                        writer.value(value);
                    },
                );
            }
            Value::Set(set) => {
                self.out.push(0x8F);
                self.memoize(identity);
                if !set.is_empty() {
                    self.out.push(b'(');
                    set.keys().for_each(|member| self.value(member));
                    self.out.push(0x90);
                }
            }
            Value::FrozenSet(set) => {
                self.out.push(b'(');
                set.keys().for_each(|member| self.value(member));
                self.out.push(0x91);
                self.memoize(identity);
            }
            Value::Tuple(items) => {
                self.tuple(items);
                self.memoize(identity);
            }
            Value::Type(Type::None) => {
                self.text(b"<<NoneType>>");
                self.out.push(b'Q');
            }
            Value::Type(kind) => self.import(b"builtins", kind.name().as_bytes()),
            Value::Opcode(opcode) => {
                let Opcode(fields) = opcode.as_ref();
                self.import(b"deepdiff.helper", b"Opcode");
                self.tuple(fields);
                self.out.push(0x81);
                self.memoize(identity);
            }
        }
    }

    fn memoize(&mut self, identity: Option<Identity>) {
        if let Some(identity) = identity {
            self.out.push(0x94);
            self.objects.insert(identity, self.memoized);
            self.memoized += 1;
        }
    }

    fn fetch(&mut self, place: u32) {
        match u8::try_from(place) {
            Ok(place) => self.out.extend([b'h', place]),
            Err(_) => {
                self.out.push(b'j');
                self.out.extend(place.to_le_bytes());
            }
        }
    }

    fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.out.extend([b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.out.push(b'M');
            self.out.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.out.push(b'J');
            self.out.extend(value.to_le_bytes());
        } else {
            self.long(&value.to_le_bytes());
        }
    }

    fn long(&mut self, digits: &[u8]) {
        match u8::try_from(digits.len()) {
            Ok(length) => self.out.extend([0x8A, length]),
            Err(_) => {
                self.out.push(0x8B);
                self.out.extend((digits.len() as u32).to_le_bytes());
            }
        }
        self.out.extend_from_slice(digits);
    }

    fn text(&mut self, text: &'a [u8]) {
        if let Some(place) = self.texts.get(text) {
            return self.fetch(*place);
        }
        self.sized(text, 0x8C, b'X', 0x8D);
        if MEMO_TEXT.contains(&text.len()) {
            self.out.push(0x94);
            self.texts.insert(text, self.memoized);
            self.memoized += 1;
        }
    }

    fn sized(&mut self, bytes: &[u8], short: u8, medium: u8, long: u8) {
        if let Ok(length) = u8::try_from(bytes.len()) {
            self.out.extend([short, length]);
        } else if let Ok(length) = u32::try_from(bytes.len()) {
            self.out.push(medium);
            self.out.extend(length.to_le_bytes());
        } else {
            self.out.push(long);
            self.out.extend((bytes.len() as u64).to_le_bytes());
        }
        self.out.extend_from_slice(bytes);
    }

    fn batches<T>(
        &mut self,
        count: usize,
        items: impl Iterator<Item = T>,
        one: u8,
        many: u8,
        write: impl Fn(&mut Self, T),
    ) {
        for (at, item) in items.enumerate() {
            let first = at - at % BATCH;
            let last = (first + BATCH).min(count) - 1;
            if at == first && first < last {
                self.out.push(b'(');
            }
            write(self, item);
            if at == last {
                self.out.push(if first < last { many } else { one });
            }
        }
    }

    fn tuple(&mut self, items: &'a [Value]) {
        if items.len() > 3 {
            self.out.push(b'(');
        }
        items.iter().for_each(|item| self.value(item));
        self.out.push(match items.len() {
            0 => b')',
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        });
    }

    fn import(&mut self, module: &'static [u8], name: &'static [u8]) {
        self.text(module);
        self.text(name);
        self.out.push(0x93);
    }
}
