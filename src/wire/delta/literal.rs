//! Python's `ast.literal_eval`, which deepdiff uses to read keys out of paths.

use crate::wire::pickle::{Dict, Value};
use std::sync::Arc;

use super::number::{float_literal, integer_literal};

/// Digits of a number that is no decimal one: Python reads more, and nobody has such a key.
const MAX_DIGITS: usize = 4096;

/// Brackets within brackets; Python's own limit is 200.
const MAX_NESTING: usize = 50;

pub(super) enum Failure {
    /// Python raises ValueError or SyntaxError: deepdiff goes on with the text itself.
    NotALiteral,
    /// A literal that has no [`Value`], or syntax that is not modelled.
    Unsupported,
}
use Failure::{NotALiteral, Unsupported};

type Parsed<T> = Result<T, Failure>;

/// Evaluates a literal; `text` is a str as pickled.
pub(super) fn literal_eval(text: &[u8]) -> Parsed<Value> {
    // Lone surrogates and NUL cannot be source code.
    if std::str::from_utf8(text).is_err() || text.contains(&0) {
        return Err(NotALiteral);
    }
    let mut parser = Parser {
        text,
        at: 0,
        nesting: 0,
    };
    let value = parser.tuple_or_value()?;
    if parser.peek().is_some() {
        Err(parser.unexpected())
    } else {
        Ok(value)
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    nesting: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next byte that is not blank.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t') = self.rest().first() {
            self.at += 1;
        }
        if self.rest().first() == Some(&b'#') && !self.rest().contains(&b'\n') {
            self.at = self.text.len();
        }
        self.rest().first().copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self) -> Failure {
        match self.rest().first() {
            // Line ends and continuation lines can be legal.
            Some(b'\n' | b'\r' | 0x0C) => Unsupported,
            Some(b'\\') if matches!(self.rest().get(1), Some(b'\n' | b'\r')) => Unsupported,
            _ => NotALiteral,
        }
    }

    /// What may stand without parentheses: `1` or `1, 2`.
    fn tuple_or_value(&mut self) -> Parsed<Value> {
        let first = self.value()?;
        if self.peek() != Some(b',') {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.accept(b',') {
            if matches!(self.peek(), None | Some(b')')) {
                break;
            }
            items.push(self.value()?);
        }
        Ok(Value::tuple(items))
    }

    fn value(&mut self) -> Parsed<Value> {
        let value = match self.peek().ok_or(NotALiteral)? {
            sign @ (b'+' | b'-') => {
                self.at += 1;
                match self.peek() {
                    Some(b'0'..=b'9' | b'.') => self.number(sign == b'-')?,
                    Some(b'(') => return Err(Unsupported),
                    _ => return Err(self.unexpected()),
                }
            }
            b'0'..=b'9' | b'.' => self.number(false)?,
            b'(' => self.nested(Parser::parenthesis)?,
            b'[' => {
                let items = self.nested(|parser| parser.items(b']'))?;
                Value::list(items)
            }
            b'{' => self.nested(Parser::braces)?,
            b'\'' | b'"' => self.strings()?,
            byte if byte.is_ascii_alphabetic() || byte == b'_' => self.word()?,
            _ => return Err(self.unexpected()),
        };
        // `1+2j` is a literal; every other sum is none.
        match (&value, self.peek()) {
            (Value::Int(_) | Value::BigInt(_) | Value::Float(_), Some(b'+' | b'-')) => {
                Err(Unsupported)
            }
            _ => Ok(value),
        }
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.at += 1;
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Unsupported);
        }
        let value = inner(self)?;
        self.nesting -= 1;
        Ok(value)
    }

    fn parenthesis(&mut self) -> Parsed<Value> {
        if self.accept(b')') {
            return Ok(Value::tuple([]));
        }
        let value = self.tuple_or_value()?;
        if self.accept(b')') {
            Ok(value)
        } else {
            Err(self.unexpected())
        }
    }

    fn items(&mut self, end: u8) -> Parsed<Vec<Value>> {
        let mut items = Vec::new();
        loop {
            if self.accept(end) {
                return Ok(items);
            }
            items.push(self.value()?);
            if !self.accept(b',') {
                return if self.accept(end) {
                    Ok(items)
                } else {
                    Err(self.unexpected())
                };
            }
        }
    }

    fn braces(&mut self) -> Parsed<Value> {
        let mut dict = Dict::new();
        if self.accept(b'}') {
            return Ok(Value::Dict(Arc::new(dict)));
        }
        let start = self.at;
        self.value()?;
        if !self.accept(b':') {
            self.at = start;
            // An unhashable member raises TypeError, which deepdiff does not catch here.
            return Value::set(self.items(b'}')?).map_err(|_| Unsupported);
        }
        self.at = start;
        while !self.accept(b'}') {
            let key = self.value()?;
            if !self.accept(b':') {
                return Err(self.unexpected());
            }
            let value = self.value()?;
            dict.insert(key, value).map_err(|_| Unsupported)?;
            if !self.accept(b',') && self.peek() != Some(b'}') {
                return Err(self.unexpected());
            }
        }
        Ok(Value::Dict(Arc::new(dict)))
    }

    fn number(&mut self, negative: bool) -> Parsed<Value> {
        if self.rest().starts_with(b"...") {
            return Err(Unsupported);
        }
        let mut length = 0;
        while let Some(byte) = self.rest().get(length) {
            let exponent_sign = matches!(byte, b'+' | b'-')
                && matches!(self.rest().get(length.wrapping_sub(1)), Some(b'e' | b'E'))
                && !self.rest().starts_with(b"0x")
                && !self.rest().starts_with(b"0X");
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || exponent_sign) {
                break;
            }
            length += 1;
        }
        let token = self.rest().get(..length).unwrap_or_default();
        self.at += length;
        let has_radix = matches!(token, [b'0', second, ..] if second.is_ascii_alphabetic());
        if matches!(token, [.., b'j' | b'J']) || (has_radix && length > MAX_DIGITS) {
            return Err(Unsupported);
        }
        let text = std::str::from_utf8(token).map_err(|_| NotALiteral)?;
        let value = match integer_literal(text, negative) {
            // `0777` is neither.
            None if text.contains(['.', 'e', 'E']) => float_literal(text, negative),
            value => value,
        };
        value.ok_or(NotALiteral)
    }

    /// A name, or a string with a prefix.
    fn word(&mut self) -> Parsed<Value> {
        let rest = self.rest();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        let length = rest
            .iter()
            .position(|byte| !is_part(byte))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        if let Some(b'\'' | b'"') = after.first() {
            return self.strings();
        }
        self.at += length;
        match word {
            b"None" => Ok(Value::None),
            b"True" => Ok(Value::Bool(true)),
            b"False" => Ok(Value::Bool(false)),
            b"Ellipsis" => Err(NotALiteral),
            b"set" if self.peek() == Some(b'(') => Err(Unsupported),
            _ => Err(NotALiteral),
        }
    }

    /// String literals side by side are one string.
    fn strings(&mut self) -> Parsed<Value> {
        let mut out = Vec::new();
        let mut kind = None;
        loop {
            let rest = self.rest();
            let prefix_length = rest.iter().position(|byte| !byte.is_ascii_alphabetic());
            let prefix = rest
                .get(..prefix_length.unwrap_or(rest.len()))
                .unwrap_or_default();
            let (bytes, raw) = match prefix.to_ascii_lowercase().as_slice() {
                b"" | b"u" => (false, false),
                b"r" => (false, true),
                b"b" => (true, false),
                b"br" | b"rb" => (true, true),
                _ => return Err(NotALiteral),
            };
            if *kind.get_or_insert(bytes) != bytes {
                return Err(NotALiteral);
            }
            self.at += prefix.len();
            self.string(&mut out, bytes, raw)?;
            match self.peek() {
                Some(b'\'' | b'"') => {}
                Some(byte) if byte.is_ascii_alphabetic() => {}
                _ => break,
            }
        }
        Ok(if kind == Some(true) {
            Value::Bytes(out.into())
        } else {
            Value::Str(out.into())
        })
    }

    fn string(&mut self, out: &mut Vec<u8>, bytes: bool, raw: bool) -> Parsed<()> {
        let quote = *self.rest().first().ok_or(NotALiteral)?;
        let triple = self.rest().starts_with(&[quote; 3]);
        let end = if triple { vec![quote; 3] } else { vec![quote] };
        self.at += end.len();
        loop {
            if self.rest().starts_with(&end) {
                self.at += end.len();
                return Ok(());
            }
            let byte = *self.rest().first().ok_or(NotALiteral)?;
            self.at += 1;
            match byte {
                b'\n' if !triple => return Err(NotALiteral),
                b'\r' => return Err(if triple { Unsupported } else { NotALiteral }),
                0x80.. if bytes => return Err(NotALiteral),
                b'\\' if raw => {
                    let next = *self.rest().first().ok_or(NotALiteral)?;
                    if matches!(next, b'\r' | b'\n') {
                        return Err(Unsupported);
                    }
                    self.at += 1;
                    out.extend([b'\\', next]);
                }
                b'\\' => self.escape(out, bytes)?,
                byte => out.push(byte),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>, bytes: bool) -> Parsed<()> {
        let byte = *self.rest().first().ok_or(NotALiteral)?;
        self.at += 1;
        let plain = match byte {
            b'\n' => return Ok(()),
            b'\r' => return Err(Unsupported),
            b'\\' | b'\'' | b'"' => byte,
            b'a' => 7,
            b'b' => 8,
            b't' => 9,
            b'n' => 10,
            b'v' => 11,
            b'f' => 12,
            b'r' => 13,
            b'0'..=b'7' => {
                let mut code = u32::from(byte - b'0');
                for _ in 0..2 {
                    if let Some(digit @ b'0'..=b'7') = self.rest().first() {
                        code = code * 8 + u32::from(digit - b'0');
                        self.at += 1;
                    }
                }
                return push_code(out, code, bytes);
            }
            b'x' => return self.hex(out, 2, bytes),
            b'u' if !bytes => return self.hex(out, 4, bytes),
            b'U' if !bytes => return self.hex(out, 8, bytes),
            b'N' if !bytes => return Err(Unsupported),
            0x80.. if bytes => return Err(NotALiteral),
            other => {
                out.push(b'\\');
                other
            }
        };
        out.push(plain);
        Ok(())
    }

    fn hex(&mut self, out: &mut Vec<u8>, digits: usize, bytes: bool) -> Parsed<()> {
        let digits = self.rest().get(..digits).ok_or(NotALiteral)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NotALiteral);
        }
        let text = std::str::from_utf8(digits).map_err(|_| NotALiteral)?;
        let code = u32::from_str_radix(text, 16).map_err(|_| NotALiteral)?;
        self.at += digits.len();
        push_code(out, code, bytes)
    }
}

fn push_code(out: &mut Vec<u8>, code: u32, bytes: bool) -> Parsed<()> {
    if bytes {
        out.push(code as u8);
    } else if let Some(char) = char::from_u32(code) {
        out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    } else if code < 0x1_0000 {
        // A lone surrogate, encoded as `surrogatepass` does it.
        let low = |shift: u32| 0x80 | (code >> shift & 0x3F) as u8;
        out.extend([0xED, low(6), low(0)]);
    } else {
        return Err(NotALiteral);
    }
    Ok(())
}
