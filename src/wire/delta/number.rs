//! How Python spells numbers.

use std::sync::Arc;

use crate::wire::pickle::{BigInt, Value};

/// The digits that Python's `int` reads from decimal text.
const MAX_DIGITS: usize = 4300;

/// `1_000` with its underscores removed: each must stand between two digits.
fn without_underscores(text: &str, is_digit: impl Fn(u8) -> bool) -> Option<String> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let digit_at = |at: Option<usize>| {
            at.and_then(|at| bytes.get(at))
                .is_some_and(|b| is_digit(*b))
        };
        if *byte == b'_' && !(digit_at(at.checked_sub(1)) && digit_at(at.checked_add(1))) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// An integer as in source code.
pub(super) fn integer_literal(text: &str, negative: bool) -> Option<Value> {
    let lower = text.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        _ => (10, lower.as_str()),
    };
    // `0x_1f` is legal.
    let digits = if radix == 10 {
        digits
    } else {
        digits.strip_prefix('_').unwrap_or(digits)
    };
    let digits = without_underscores(digits, |byte| byte.is_ascii_hexdigit())?;
    let leading_zero = radix == 10 && digits.starts_with('0') && digits.bytes().any(|b| b != b'0');
    if leading_zero {
        None
    } else {
        integer(&digits, radix, negative)
    }
}

/// Digits without sign or underscores.
fn integer(digits: &str, radix: u32, negative: bool) -> Option<Value> {
    if digits.is_empty() || (radix == 10 && digits.len() > MAX_DIGITS) {
        return None;
    }
    let mut magnitude: Vec<u8> = Vec::new();
    for digit in digits.chars() {
        let mut carry = digit.to_digit(radix)?;
        for byte in &mut magnitude {
            let wide = u32::from(*byte) * radix + carry;
            *byte = wide as u8;
            carry = wide >> 8;
        }
        if carry > 0 {
            magnitude.push(carry as u8);
        }
    }
    Some(match BigInt::of_magnitude(magnitude, negative) {
        Ok(small) => Value::Int(small),
        Err(big) => Value::BigInt(Arc::new(big)),
    })
}

/// A float as in source code: digits with a point or an exponent.
pub(super) fn float_literal(text: &str, negative: bool) -> Option<Value> {
    let plain = without_underscores(text, |byte| byte.is_ascii_digit())?;
    let shape_is_right = plain.bytes().any(|byte| byte.is_ascii_digit())
        && plain
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let value: f64 = shape_is_right.then(|| plain.parse().ok())??;
    Some(Value::Float(if negative { -value } else { value }))
}

/// ASCII text without Python's white space around it, and its sign.
fn trimmed(text: &[u8]) -> Option<(&str, bool)> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0D | 0x1C..=0x1F);
    let start = text
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(|byte| !blank(byte))
        .map_or(start, |at| at + 1);
    let text = std::str::from_utf8(text.get(start..end)?).ok()?;
    Some(match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    })
}

/// `int(text)`; `None` where Python raises ValueError.
pub(super) fn int_of_text(text: &[u8]) -> Option<Value> {
    let (digits, negative) = trimmed(text)?;
    let digits = without_underscores(digits, |byte| byte.is_ascii_digit())?;
    if digits.starts_with(['+', '-']) {
        None
    } else {
        integer(&digits, 10, negative)
    }
}

/// `float(text)`; `None` where Python raises ValueError.
pub(super) fn float_of_text(text: &[u8]) -> Option<Value> {
    let (digits, negative) = trimmed(text)?;
    let value = match digits.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => f64::INFINITY,
        "nan" => f64::NAN,
        signed if signed.starts_with(['+', '-']) => return None,
        _ => return float_literal(digits, negative),
    };
    Some(Value::Float(if negative { -value } else { value }))
}

/// `repr(float)`.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value < 0.0 {
            "-inf".into()
        } else {
            "inf".into()
        };
    }
    // Rust's shortest digits are Python's; the layout differs.
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

/// `str(int)` of a large integer; `None` where Python refuses because of its length.
pub(super) fn decimal(value: &BigInt) -> Option<String> {
    // 4,300 digits are 1,786 bytes.
    if value.as_le_bytes().len() > 1800 {
        return None;
    }
    let mut magnitude = value.magnitude();
    let mut groups = Vec::new();
    while magnitude.iter().any(|byte| *byte != 0) {
        let mut rest = 0u32;
        for byte in magnitude.iter_mut().rev() {
            let wide = rest << 8 | u32::from(*byte);
            *byte = (wide / 10_000) as u8;
            rest = wide % 10_000;
        }
        groups.push(format!("{rest:04}"));
    }
    groups.reverse();
    let digits = groups.concat();
    let digits = digits.trim_start_matches('0');
    let sign = if value.is_negative() { "-" } else { "" };
    (digits.len() <= MAX_DIGITS).then(|| format!("{sign}{digits}"))
}
