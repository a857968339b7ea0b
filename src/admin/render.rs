//! Answers as the operator reads them.

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

use super::command::View;
use super::{AdminReply, SceneState, Status, UserStatus};

/// The text of an answer, without a final newline and without anything that could command a terminal.
pub fn render(reply: &AdminReply, view: View) -> String {
    match (reply, view) {
        (AdminReply::Done(text) | AdminReply::Failed(text), _) => {
            text.lines().map(escape).collect::<Vec<_>>().join("\n")
        }
        (AdminReply::Status(status), View::Users) => users(status),
        (AdminReply::Status(status), View::Overview) => overview(status),
    }
}

/// A text from somebody else, with what a terminal would not show as it is spelled out.
pub fn escape(text: &str) -> String {
    // `escape_debug` knows what can be shown; quotes and backslashes it escapes for reasons that are not ours.
    text.split_inclusive(['"', '\'', '\\'])
        .map(|piece| match piece.char_indices().next_back() {
            Some((end, mark @ ('"' | '\'' | '\\'))) => {
                format!("{}{mark}", piece[..end].escape_debug())
            }
            _ => piece.escape_debug().to_string(),
        })
        .collect()
}

fn users(status: &Status) -> String {
    if status.users.is_empty() {
        return "Nobody is connected.".into();
    }
    let head = [
        "NAME", "ADMIN", "PING MS", "STATE", "ADDRESS", "VERSION", "DIALECT", "LOCKS", "SINCE",
    ];
    table(head, status.users.iter().map(row))
}

/// Columns as wide as they need to be, and their names above. What a terminal would not show as it is is spelled out.
pub fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let shown = rows.into_iter().map(|row| row.map(|cell| escape(&cell)));
    let rows: Vec<[String; N]> = [head.map(String::from)].into_iter().chain(shown).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // `{:<n}` counts characters, but a terminal gives some of them two columns.
            line.push_str(cell);
            line.extend(std::iter::repeat_n(
                ' ',
                width.saturating_sub(cell.width()) + 2,
            ));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.trim_end().into()
}

fn row(user: &UserStatus) -> [String; 9] {
    [
        user.name.clone(),
        if user.admin { "yes" } else { "-" }.into(),
        user.ping.map_or_else(|| "-".into(), |ms| ms.to_string()),
        user.state.clone(),
        user.address.to_string(),
        user.version.clone(),
        user.dialect.into(),
        user.locks.to_string(),
        duration(user.since),
    ]
}

fn overview(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<9}{value}");
    };
    let size = format!(
        "{}, {}",
        count(status.nodes, "node"),
        bytes(status.bytes as u64)
    );
    let scene = match status.scene {
        SceneState::Empty => "none yet: an admin has to press Init in Blender".into(),
        SceneState::Initialising => format!("being sent by its first user, {size} so far"),
        SceneState::Running => size,
    };
    line("Scene", scene);
    if let Some(version) = &status.version {
        line(
            "Version",
            format!(
                "{} (of the client that started the session)",
                escape(version)
            ),
        );
    }
    let mut people = count(status.users.len(), "user");
    let admins = status.users.iter().filter(|user| user.admin).count();
    if admins > 0 {
        let _ = write!(people, ", {} of them admin", admins);
    }
    if status.strangers > 0 {
        let _ = write!(
            people,
            "; {} not logged in",
            count(status.strangers, "connection")
        );
    }
    line("Users", people);
    line(
        "Traffic",
        format!(
            "{} received, {}, {} waiting to be sent",
            count(status.updates, "update"),
            if status.deliveries == 1 {
                "1 delivery".into()
            } else {
                format!("{} deliveries", status.deliveries)
            },
            bytes(status.queued as u64)
        ),
    );
    for (index, text) in status.storage.iter().enumerate() {
        line(if index == 0 { "Storage" } else { "" }, escape(text));
    }
    line("Uptime", duration(status.uptime));
    text.trim_end().into()
}

/// `1 node`, `2 nodes`.
pub(super) fn count<N: std::fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// `12 B`, `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut name) = (bytes as f64, "B");
    for unit in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, name) = (value / 1024.0, unit);
    }
    if name == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {name}")
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn user(name: &str) -> UserStatus {
        UserStatus {
            name: name.into(),
            admin: false,
            ping: None,
            state: "active".into(),
            address: "192.168.1.7:40000".parse().unwrap(),
            version: "0.9.10".into(),
            dialect: "dealer",
            locks: 0,
            since: 59,
            queued: 0,
        }
    }

    fn status(users: Vec<UserStatus>) -> AdminReply {
        AdminReply::Status(Box::new(Status {
            users,
            ..Status::default()
        }))
    }

    #[test]
    fn users_are_a_table() {
        let anna = UserStatus {
            admin: true,
            ping: Some(23),
            locks: 4,
            since: 3725,
            ..user("Anna Maria")
        };
        let text = render(&status(vec![anna, user("日本")]), View::Users);
        assert_eq!(
            text,
            "NAME        ADMIN  PING MS  STATE   ADDRESS            VERSION  DIALECT  LOCKS  SINCE\n\
             Anna Maria  yes    23       active  192.168.1.7:40000  0.9.10   dealer   4      1 h 02 min\n\
             日本        -      -        active  192.168.1.7:40000  0.9.10   dealer   0      59 s"
        );
        assert_eq!(render(&status(vec![]), View::Users), "Nobody is connected.");
    }

    #[test]
    fn the_overview_says_what_to_do_without_a_scene() {
        let text = render(&status(vec![]), View::Overview);
        assert!(
            text.starts_with("Scene    none yet: an admin has to press Init"),
            "{text}"
        );
        assert!(text.contains("Users    0 users\n"), "{text}");
    }

    #[test]
    fn the_overview_has_the_figures() {
        let status = Status {
            scene: SceneState::Running,
            nodes: 1,
            bytes: 3 * 1024 * 1024 / 2,
            version: Some("0.9.10".into()),
            users: vec![
                user("a"),
                UserStatus {
                    admin: true,
                    ..user("b")
                },
            ],
            strangers: 1,
            uptime: 90_000,
            updates: 5,
            deliveries: 1,
            queued: 1023,
            storage: vec!["no backup yet".into()],
        };
        assert_eq!(
            render(&AdminReply::Status(Box::new(status)), View::Overview),
            "Scene    1 node, 1.5 MiB\n\
             Version  0.9.10 (of the client that started the session)\n\
             Users    2 users, 1 of them admin; 1 connection not logged in\n\
             Traffic  5 updates received, 1 delivery, 1023 B waiting to be sent\n\
             Storage  no backup yet\n\
             Uptime   1 d 1 h"
        );
    }

    #[test]
    fn nothing_of_a_peer_reaches_the_terminal_raw() {
        let evil = "e\u{1b}[2J\r\n\u{9b}\u{202e}\u{7}";
        let mut eve = user(evil);
        (eve.state, eve.version) = (evil.into(), evil.into());
        let overview = Status {
            version: Some(evil.into()),
            ..Status::default()
        };
        for text in [
            render(&status(vec![eve]), View::Users),
            render(&AdminReply::Status(Box::new(overview)), View::Overview),
            render(&AdminReply::Done(evil.into()), View::Users),
            render(&AdminReply::Failed(evil.into()), View::Users),
        ] {
            let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(raw), "{text:?}");
        }
    }

    #[test]
    fn what_can_be_shown_is_left_alone() {
        for name in ["O'Neil \"x\" \\", "日本 é", "e\u{301}", ""] {
            assert_eq!(escape(name), name);
        }
        assert_eq!(escape("a\tb"), "a\\tb");
    }
}
