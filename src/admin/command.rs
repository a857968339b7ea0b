//! The commands of the console, each in one place: name, arguments, help and parser.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use super::operator::EXIT_REASON;
use super::render::escape;
use super::{AdminCommand, StoreCommand};
use crate::platform;

/// A line of the operator, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing was typed.
    Nothing,
    /// Ask the server, and show its answer in this way.
    Ask(AdminCommand, View),
    /// Print this help.
    Help(String),
}

/// What of a [`Status`] a command shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Users,
    Overview,
}

/// One command of the console.
pub struct Command {
    pub name: &'static str,
    /// How its arguments are written, for the help.
    arguments: &'static str,
    /// One line on what it does.
    summary: &'static str,
    /// What else there is to know; may be empty.
    details: &'static str,
    /// Names that people bring from elsewhere: not accepted, but answered with this command's name.
    not: &'static [&'static str],
    /// What the first argument is, for completion.
    takes: Takes,
    parse: fn(&str) -> Result<Input, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Command,
    User,
}

pub const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        arguments: "[command]",
        summary: "list the commands, or explain one; ? does the same",
        details: "",
        not: &["man", "commands"],
        takes: Takes::Command,
        parse: |rest| help(rest).map(Input::Help),
    },
    Command {
        name: "users",
        arguments: "",
        summary: "list who is connected",
        details: "For each user: admin or not, round trip of the heartbeat in ms, state, address, version and dialect of the \
                  client, number of locks held (owned objects), time since login.",
        not: &["list", "who", "clients", "ls"],
        takes: Takes::Nothing,
        parse: |rest| alone(rest, Input::Ask(AdminCommand::Status, View::Users)),
    },
    Command {
        name: "kick",
        arguments: "<user> [reason]",
        summary: "disconnect a user, who is shown the reason",
        details: "The name must be exact; one with spaces goes into quotes: kick \"Anna Maria\" please save first. \
                  The Tab key completes names. Kicking is no ban: the user can connect again.",
        not: &["ban", "remove", "disconnect"],
        takes: Takes::User,
        parse: kick,
    },
    Command {
        name: "status",
        arguments: "",
        summary: "show how the session and the server are",
        details: "",
        not: &["info", "stats", "top"],
        takes: Takes::Nothing,
        parse: |rest| alone(rest, Input::Ask(AdminCommand::Status, View::Overview)),
    },
    Command {
        name: "save",
        arguments: "[note]",
        summary: "make a backup of the session now",
        details: "Every change is in the journal anyway; a backup is a file that Blender can open, too. The note is shown by backups. backup does the same.",
        not: &["write", "snapshot"],
        takes: Takes::Nothing,
        parse: |rest| {
            let note = Some(rest.trim().to_owned()).filter(|note| !note.is_empty());
            Ok(store(StoreCommand::Save { note }))
        },
    },
    Command {
        name: "backups",
        arguments: "",
        summary: "list the backups, oldest first",
        details: "",
        not: &["saves", "history"],
        takes: Takes::Nothing,
        parse: |rest| alone(rest, store(StoreCommand::Backups)),
    },
    Command {
        name: "restore",
        arguments: "<name|latest>",
        summary: "put a backup in the place of the scene; everybody connects again",
        details: "The running scene is backed up first. backups lists the names.",
        not: &["load", "rollback", "undo"],
        takes: Takes::Nothing,
        parse: |rest| {
            Ok(store(StoreCommand::Restore {
                name: argument(
                    rest,
                    "which backup? backups lists them, or say restore latest",
                )?,
            }))
        },
    },
    Command {
        name: "export",
        arguments: "<file.db>",
        summary: "write the scene as a session file that Blender can load",
        details: "A relative name is relative to the directory that the server was started in. A file that is there already is not replaced.",
        not: &["dump"],
        takes: Takes::Nothing,
        parse: |rest| {
            Ok(store(StoreCommand::Export {
                path: argument(rest, "which file? For example: export evening.db")?,
            }))
        },
    },
    Command {
        name: "new",
        arguments: "",
        summary: "drop the scene, after a backup; everybody is told and disconnected",
        details: "Whoever connects next sits in the lobby until somebody with the admin password presses Init.",
        not: &["reset", "clear"],
        takes: Takes::Nothing,
        parse: |rest| alone(rest, Input::Ask(AdminCommand::New, View::Overview)),
    },
    Command {
        name: "unpin",
        arguments: "",
        summary: "let the next client that connects decide which add-on version the session belongs to",
        details: "The scene's data depends on the add-on's version: use this after an update of the add-on for everybody.",
        not: &["unlock-version"],
        takes: Takes::Nothing,
        parse: |rest| alone(rest, Input::Ask(AdminCommand::Unpin, View::Overview)),
    },
    Command {
        name: "exit",
        arguments: "",
        summary: "stop the server; everybody is told and disconnected",
        details: platform::OTHER_STOPS,
        not: &["quit", "stop", "shutdown", "bye", "close"],
        takes: Takes::Nothing,
        parse: |rest| {
            alone(
                rest,
                Input::Ask(
                    AdminCommand::Exit {
                        reason: EXIT_REASON.into(),
                    },
                    View::Overview,
                ),
            )
        },
    },
];

/// Understands a line of the operator, or says what is wrong with it.
pub fn parse(line: &str) -> Result<Input, String> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix('?') {
        return help(rest.trim()).map(Input::Help);
    }
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if name.is_empty() {
        return Ok(Input::Nothing);
    }
    let command = find(name)?;
    (command.parse)(rest.trim_start()).map_err(|why| {
        format!("{why}\nUsage: {} {}", command.name, command.arguments)
            .trim_end()
            .into()
    })
}

fn find(name: &str) -> Result<&'static Command, String> {
    let wanted = match &*name.to_lowercase() {
        // What the guides call it.
        "backup" => "save".to_owned(),
        other => other.to_owned(),
    };
    COMMANDS
        .iter()
        .find(|command| command.name == wanted)
        .ok_or_else(|| {
            let advice = match nearest(&wanted) {
                Some(command) => format!("did you mean '{}'?", command.name),
                None => "type help for a list.".into(),
            };
            format!("Unknown command '{}'; {advice}", escape(name))
        })
}

/// The name of the command that goes by this one, here or elsewhere.
pub fn known_as(name: &str) -> Option<&'static str> {
    let known = find(name).ok();
    let elsewhere = || COMMANDS.iter().find(|command| command.not.contains(&name));
    Some(known.or_else(elsewhere)?.name)
}

/// The command that was probably meant: known by that name elsewhere, begun, or mistyped.
fn nearest(name: &str) -> Option<&'static Command> {
    // Distances take time that grows with the square of the length, and no long name is near to a short one.
    if name.len() > 20 {
        return None;
    }
    let elsewhere = COMMANDS.iter().find(|command| command.not.contains(&name));
    let begun = || {
        COMMANDS
            .iter()
            .find(|command| command.name.starts_with(name))
    };
    let mistyped = || {
        let (distance, command) = COMMANDS
            .iter()
            .map(|command| (distance(name, command.name), command))
            .min_by_key(|(distance, _)| *distance)?;
        (distance <= 2 && distance < command.name.len() / 2 + 1).then_some(command)
    };
    elsewhere.or_else(begun).or_else(mistyped)
}

/// How many letters have to be inserted, deleted or replaced to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn store(command: StoreCommand) -> Input {
    Input::Ask(AdminCommand::Store(command), View::Overview)
}

/// The one argument of a command that has one.
fn argument(rest: &str, missing: &str) -> Result<String, String> {
    match rest.trim().trim_matches('"') {
        "" => Err(missing.to_owned()),
        word => Ok(word.to_owned()),
    }
}

fn help(rest: &str) -> Result<String, String> {
    if let Some(name) = rest.split_whitespace().next() {
        let Command {
            name,
            arguments,
            summary,
            details,
            ..
        } = find(name)?;
        let usage = format!("{name} {arguments}");
        return Ok(format!("{}: {summary}\n{details}", usage.trim_end())
            .trim_end()
            .into());
    }
    let mut text = String::from("Commands:\n");
    for command in COMMANDS {
        let usage = format!("{} {}", command.name, command.arguments);
        let _ = writeln!(text, "  {usage:<23}{}", command.summary);
    }
    text.push_str("help <command> explains one of them.");
    Ok(text)
}

fn alone(rest: &str, input: Input) -> Result<Input, String> {
    if rest.is_empty() {
        Ok(input)
    } else {
        Err(format!("'{}' is one word too many.", escape(rest)))
    }
}

fn kick(rest: &str) -> Result<Input, String> {
    let (user, reason) = word(rest)?;
    if user.is_empty() {
        return Err("Whom?".into());
    }
    let reason = (!reason.is_empty()).then(|| reason.to_owned());
    Ok(Input::Ask(
        AdminCommand::Kick { user, reason },
        View::Overview,
    ))
}

/// Splits off the first word, which may be in quotes; inside of double quotes the escapes of [`quoted`] are undone.
fn word(text: &str) -> Result<(String, &str), String> {
    let text = text.trim_start();
    let Some(quote @ ('"' | '\'')) = text.chars().next() else {
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return Ok((word.into(), rest.trim()));
    };
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    chars.next();
    while let Some(c) = chars.next() {
        if c == quote {
            let rest = text
                .get(text.len() - chars.map(char::len_utf8).sum::<usize>()..)
                .unwrap_or("");
            if rest.starts_with(|c: char| !c.is_whitespace()) {
                return Err("Leave a space after the closing quote.".into());
            }
            return Ok((word, rest.trim()));
        }
        word.push(if c == '\\' && quote == '"' {
            unescape(&mut chars)?
        } else {
            c
        });
    }
    Err(format!("The closing {quote} is missing."))
}

fn unescape(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    match chars.next() {
        Some('n') => Ok('\n'),
        Some('r') => Ok('\r'),
        Some('t') => Ok('\t'),
        Some('0') => Ok('\0'),
        Some('u') if chars.next_if_eq(&'{').is_some() => {
            let code: String = chars.take_while(|c| *c != '}').take(8).collect();
            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
        }
        .ok_or_else(|| "After \\u a character's number is expected, as in \\u{1b}.".into()),
        Some(c @ ('"' | '\'' | '\\')) => Ok(c),
        _ => Err("In double quotes a backslash is written \\\\.".into()),
    }
}

/// The line that says what these words of a command line mean: there the shell has taken the quotes off a name with spaces. A single
/// word is a whole line.
pub fn line(words: &[String]) -> String {
    let [name, first, rest @ ..] = words else {
        return words.concat();
    };
    let takes_user = find(name).is_ok_and(|command| command.takes == Takes::User);
    let first = if takes_user {
        quoted(first)
    } else {
        first.clone()
    };
    let mut line = format!("{name} {first}");
    for word in rest {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// A name in the form in which it can be typed.
fn quoted(name: &str) -> String {
    let plain = !name.is_empty()
        && !name.starts_with(['"', '\''])
        && !name.contains(char::is_whitespace)
        && escape(name) == name;
    if plain {
        name.into()
    } else {
        format!("\"{}\"", name.escape_debug())
    }
}

/// Completes the word before `position`: where it starts, and what it could become. `users` is asked only when the
/// names of users are needed.
pub fn complete(
    line: &str,
    position: usize,
    users: impl FnOnce() -> Vec<String>,
) -> (usize, Vec<String>) {
    let before = line.get(..position).unwrap_or(line);
    let typed = before.trim_start();
    let starting = |begun: &str| -> Vec<String> {
        let names = COMMANDS.iter().map(|command| command.name);
        names
            .filter(|name| name.starts_with(begun))
            .map(|name| format!("{name} "))
            .collect()
    };
    let Some((name, rest)) = typed.split_once(char::is_whitespace) else {
        return (before.len() - typed.len(), starting(typed));
    };
    let begun = rest.trim_start();
    let start = before.len() - begun.len();
    let takes = match name {
        "?" => Takes::Command,
        _ => COMMANDS
            .iter()
            .find(|command| command.name == name)
            .map_or(Takes::Nothing, |c| c.takes),
    };
    let candidates = match takes {
        Takes::Nothing => Vec::new(),
        Takes::Command => starting(begun),
        Takes::User => {
            let mut names = users();
            names.sort_unstable();
            names.retain(|name| name.starts_with(begun) || quoted(name).starts_with(begun));
            names.iter().map(|name| quoted(name) + " ").collect()
        }
    };
    (start, candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kicks(line: &str) -> (String, Option<String>) {
        match parse(line).unwrap() {
            Input::Ask(AdminCommand::Kick { user, reason }, _) => (user, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_commands() {
        assert_eq!(parse("  \t").unwrap(), Input::Nothing);
        assert_eq!(
            parse("users").unwrap(),
            Input::Ask(AdminCommand::Status, View::Users)
        );
        assert_eq!(
            parse(" STATUS ").unwrap(),
            Input::Ask(AdminCommand::Status, View::Overview)
        );
        assert!(matches!(
            parse("exit").unwrap(),
            Input::Ask(AdminCommand::Exit { .. }, _)
        ));
        assert!(parse("exit now").unwrap_err().contains("Usage: exit"));
        assert_eq!(parse("Backup a note"), parse("save a note"));
    }

    #[test]
    fn kick_takes_a_name_and_a_reason() {
        assert_eq!(kicks("kick bob"), ("bob".into(), None));
        assert_eq!(
            kicks("kick  bob   too  loud "),
            ("bob".into(), Some("too  loud".into()))
        );
        assert_eq!(
            kicks("kick \"Anna Maria\" bye"),
            ("Anna Maria".into(), Some("bye".into()))
        );
        assert_eq!(kicks("kick 'a \"b\" \\n'"), ("a \"b\" \\n".into(), None));
        assert_eq!(
            kicks(r#"kick "a\u{1b}\"\\\n""#),
            ("a\u{1b}\"\\\n".into(), None)
        );
        assert_eq!(kicks("kick a\\b"), ("a\\b".into(), None));
        for wrong in [
            "kick",
            "kick \"\"",
            "kick \"bob",
            "kick 'bob'x",
            r#"kick "\q""#,
            r#"kick "\u{d800}""#,
            r#"kick "\u1b""#,
        ] {
            let why = parse(wrong).unwrap_err();
            assert!(why.ends_with("Usage: kick <user> [reason]"), "{why}");
        }
    }

    #[test]
    fn unknown_commands_are_answered_with_the_nearest() {
        for (typed, meant) in [
            ("user", "users"),
            ("kcik", "kick"),
            ("quit", "exit"),
            ("exti", "exit"),
            ("stauts", "status"),
            ("halp", "help"),
            ("stat", "status"),
            ("snapshot", "save"),
        ] {
            let why = parse(typed).unwrap_err();
            assert!(why.contains(&format!("'{meant}'")), "{typed}: {why}");
        }
        for typed in ["xyzzy", "teleport", &"e".repeat(100_000)] {
            assert!(parse(typed).unwrap_err().contains("type help"));
        }
        assert!(!parse("\u{1b}[2J").unwrap_err().contains('\u{1b}'));
    }

    #[test]
    fn help_lists_and_explains() {
        for line in ["help", "?", " ? "] {
            let Input::Help(text) = parse(line).unwrap() else {
                panic!("{line}")
            };
            assert!(
                COMMANDS
                    .iter()
                    .all(|command| text.contains(command.summary)),
                "{text}"
            );
        }
        for line in ["help kick", "?kick", "? kick", "help KICK now"] {
            let Input::Help(text) = parse(line).unwrap() else {
                panic!("{line}")
            };
            assert!(text.starts_with("kick <user> [reason]: "), "{text}");
        }
        assert!(parse("help kcik").unwrap_err().contains("'kick'"));
    }

    #[test]
    fn words_of_a_command_line_become_a_line() {
        let said =
            |words: &[&str]| line(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(said(&["users"]), "users");
        assert_eq!(said(&["kick bob please save"]), "kick bob please save");
        assert_eq!(
            kicks(&said(&["kick", "Anna \"A\" Maria", "save first", "please"])),
            ("Anna \"A\" Maria".into(), Some("save first please".into()))
        );
        assert_eq!(said(&["save", "before lunch"]), "save before lunch");
    }

    #[test]
    fn completes_commands_and_names() {
        let users = || ["bob", "Anna Maria", "bo\u{1b}"].map(String::from).to_vec();
        let none = || -> Vec<String> { panic!("names are not needed") };
        let complete_all = |line: &str| complete(line, line.len(), users);
        assert_eq!(complete("k", 1, none), (0, vec!["kick ".into()]));
        assert_eq!(complete("  us", 4, none), (2, vec!["users ".into()]));
        assert_eq!(complete("", 0, none).1.len(), COMMANDS.len());
        assert_eq!(complete("help ki", 7, none), (5, vec!["kick ".into()]));
        assert_eq!(complete("users x", 7, none).1, Vec::<String>::new());
        assert_eq!(complete_all("kick A"), (5, vec!["\"Anna Maria\" ".into()]));
        assert_eq!(
            complete_all("kick \"Anna M"),
            (5, vec!["\"Anna Maria\" ".into()])
        );
        assert_eq!(
            complete_all("kick bo"),
            (5, vec!["\"bo\\u{1b}\" ".into(), "bob ".into()])
        );
        assert_eq!(
            complete_all("kick \"Anna Maria\" go").1,
            Vec::<String>::new()
        );
        assert_eq!(complete("kick", 400, none).0, 0);
    }

    proptest! {
        #[test]
        fn what_completion_offers_names_the_same_user(name in "\\PC{1,9}|.{1,9}|[ab '\"\\\\]{1,9}") {
            let (user, reason) = kicks(&format!("kick {} why", quoted(&name)));
            prop_assert_eq!(user, name);
            prop_assert_eq!(reason, Some("why".to_owned()));
        }

        #[test]
        fn any_line_is_understood_or_refused(line in ".*") {
            let _ = parse(&line);
            let _ = complete(&line, line.len() / 2, Vec::new);
        }
    }
}
