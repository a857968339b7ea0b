//! deepdiff's paths: `root['vertices'][0]['co']`, read with the quirks of each version.

use bytes::Bytes;

use crate::wire::pickle::Value;

use super::exception::{Exception, Result};
use super::literal::{Failure, literal_eval};

/// One step of a path below the root.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub key: Value,
    /// `.key` in place of `[key]`.
    pub attribute: bool,
}

/// U+1D1C0, with which 8.1.1 escapes quotes.
const ESCAPE: &[u8] = "\u{1D1C0}".as_bytes();

/// Splits a path into its steps, without the root itself.
pub(super) fn parse(path: &Value, old: bool) -> Result<Vec<Element>> {
    match path {
        Value::Str(text) => Parser {
            elements: Vec::new(),
            elem: Vec::new(),
            old,
        }
        .run(text),
        Value::None => Err(Exception::wrong_type(
            "'NoneType' object is not subscriptable",
        )),
        other => Err(Exception::unsupported(format!(
            "a path that is a {}",
            other.type_name()
        ))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Nothing,
    Bracket,
    Attribute,
}

struct Parser {
    elements: Vec<Element>,
    elem: Vec<u8>,
    /// By the rules of 5.7.0.
    old: bool,
}

impl Parser {
    fn run(mut self, path: &[u8]) -> Result<Vec<Element>> {
        let mut inside = Inside::Nothing;
        let mut brackets = 0usize;
        // The quote that is open; in 5.7.0 any quote closes it.
        let mut quote = None;
        let start = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte & 0xC0 != 0x80)
            .nth(4);
        let start = start.map_or(path.len(), |(at, _)| at);
        for (at, &byte) in path.iter().enumerate().skip(start) {
            let before = path.get(start..at).unwrap_or_default();
            let escaped = if self.old {
                before.ends_with(b"\\")
            } else {
                before.ends_with(ESCAPE)
            };
            match byte {
                _ if escaped => self.elem.push(byte),
                b'\'' | b'"' => {
                    self.elem.push(byte);
                    match quote {
                        Some(open) if !self.old && open != byte => {}
                        Some(_) => {
                            quote = None;
                            self.finish(inside)?;
                        }
                        None => quote = Some(byte),
                    }
                }
                _ if quote.is_some() => self.elem.push(byte),
                b'[' => match inside {
                    Inside::Attribute => {
                        self.finish(inside)?;
                        inside = Inside::Bracket;
                    }
                    Inside::Bracket => self.elem.push(byte),
                    Inside::Nothing => {
                        inside = Inside::Bracket;
                        brackets += 1;
                        self.elem.clear();
                    }
                },
                b'.' => match inside {
                    Inside::Bracket => self.elem.push(byte),
                    Inside::Attribute => self.finish(inside)?,
                    Inside::Nothing => {
                        inside = Inside::Attribute;
                        self.elem.clear();
                    }
                },
                b']' => {
                    brackets = brackets.saturating_sub(1);
                    if brackets > 0 {
                        self.elem.push(byte);
                    } else {
                        self.finish(inside)?;
                        inside = Inside::Nothing;
                    }
                }
                _ => self.elem.push(byte),
            }
        }
        self.finish(inside)?;
        Ok(self.elements)
    }

    fn finish(&mut self, inside: Inside) -> Result<()> {
        let elem = std::mem::take(&mut self.elem);
        if elem.is_empty() || elem.starts_with(b"__") {
            return Ok(());
        }
        let key = if self.old { key_5(elem)? } else { key_8(elem)? };
        self.elements.push(Element {
            key,
            attribute: inside == Inside::Attribute,
        });
        Ok(())
    }
}

fn key_5(elem: Vec<u8>) -> Result<Value> {
    evaluate(&elem).map(|found| found.unwrap_or_else(|| Value::Str(elem.into())))
}

fn key_8(elem: Vec<u8>) -> Result<Value> {
    let special = elem.contains(&b'\\') || elem.windows(ESCAPE.len()).any(|part| part == ESCAPE);
    if !special && let Some(value) = evaluate(&elem)? {
        return Ok(value);
    }
    let elem = Bytes::from(elem);
    Ok(Value::Str(match elem.as_ref() {
        [first @ (b'\'' | b'"'), .., last] if first == last => elem.slice(1..elem.len() - 1),
        [b'\'' | b'"'] => Bytes::new(),
        _ => elem,
    }))
}

/// `None` if the text is no literal.
fn evaluate(elem: &[u8]) -> Result<Option<Value>> {
    // The usual case: a quoted key without anything special in it.
    if let [open @ (b'\'' | b'"'), inner @ .., close] = elem
        && open == close
        && inner
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    {
        return Ok(Some(Value::Str(Bytes::copy_from_slice(inner))));
    }
    match literal_eval(elem) {
        Ok(value) => Ok(Some(value)),
        Err(Failure::NotALiteral) => Ok(None),
        Err(Failure::Unsupported) => Err(Exception::unsupported("this key in a path")),
    }
}
