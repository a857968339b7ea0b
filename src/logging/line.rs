//! What one log line may hold.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::config::LogFormat;

/// Bytes of one line; more is cut off.
pub(super) const LIMIT: usize = 8 * 1024;

/// The text of one line, its newline included: bounded, and without control characters, which a peer could use to
/// forge lines or to command the operator's terminal.
pub(super) fn clean(line: &[u8], format: LogFormat) -> String {
    if let (LogFormat::Json, true) = (format, line.len() > LIMIT) {
        return escaped(&shortened(line), format);
    }
    let shown = line.get(..LIMIT).unwrap_or(line);
    let mut cleaned = escaped(&String::from_utf8_lossy(shown), format);
    if shown.len() < line.len() {
        cleaned.pop();
        cleaned.push_str("…\n");
    }
    cleaned
}

/// A line of the log about itself.
pub(super) fn warning(format: LogFormat, text: &str) -> String {
    let time = Timestamp::now();
    let line = match format {
        LogFormat::Text => format!("{time:.6}  WARN {text}"),
        LogFormat::Json => {
            json!({"timestamp": format!("{time:.6}"), "level": "WARN", "message": text}).to_string()
        }
    };
    clean(line.as_bytes(), format)
}

fn escaped(text: &str, format: LogFormat) -> String {
    let text = text.trim_end_matches('\n');
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if !c.is_control() || c == '\t' {
            escaped.push(c);
        } else if format == LogFormat::Json {
            // They can only be inside of strings here.
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.extend(c.escape_default());
        }
    }
    escaped.push('\n');
    escaped
}

/// A JSON line with less in its strings.
fn shortened(line: &[u8]) -> String {
    let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(line) else {
        return json!({"message": "a line too long for the log"}).to_string();
    };
    let share = LIMIT / (fields.len() + 1);
    for value in fields.values_mut() {
        if let Value::String(text) = value
            && text.len() > share
        {
            let end = (0..=share).rev().find(|&i| text.is_char_boundary(i));
            text.truncate(end.unwrap_or(0));
            text.push('…');
        }
    }
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut() {
        let line = clean("ä".repeat(LIMIT).as_bytes(), LogFormat::Text);
        assert!(line.len() < LIMIT + 10 && line.ends_with("…\n"));
        let line = json!({"message": "ä".repeat(LIMIT), "b": "x".repeat(LIMIT)}).to_string();
        let line = clean(line.as_bytes(), LogFormat::Json);
        assert!(
            line.len() < LIMIT && line.ends_with("}\n"),
            "{}",
            line.len()
        );
    }
}
