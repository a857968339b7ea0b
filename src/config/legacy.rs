//! What the Python server (`replication.server`) and its container image understood, in our terms.

use std::env;
use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags with one dash and several letters, which clap does not have.
const FLAGS: [(&str, &str); 4] = [
    ("-pwd", "--admin-password"),
    ("-apwd", "--admin-password"),
    ("-spwd", "--server-password"),
    ("-lf", "--log-file"),
];

/// Settings and the variables of the old image. Where ours is set, that one counts.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("port", "port"),
    ("admin_password", "password"),
    ("timeout", "timeout"),
    ("log_level", "log_level"),
    ("log_file", "log_file"),
];

/// The ways to call the Python server.
const CALLS: [&str; 2] = ["replication.serve", "replication.server"];

/// A wrong flag has to be that much like a right one (1: the same) for the right one to be named.
const ALIKE: f64 = 0.7;

/// The flag that takes the place of one of the Python server's.
pub(super) fn long_flag(flag: &str) -> Option<&'static str> {
    FLAGS
        .iter()
        .find(|(old, _)| *old == flag)
        .map(|(_, new)| *new)
}

/// The parts of `--flag=value` or `--flag`; `None` for a word that is no flag.
pub(super) fn flag_and_value(word: &str) -> Option<(&str, Option<&str>)> {
    word.strip_prefix('-')?;
    Some(match word.split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (word, None),
    })
}

/// A command line without what stood in front of the flags: `replication.serve …`, `python -m replication.server …`.
/// Cloud consoles hand over all of it as a single word.
pub(super) fn words(arguments: Vec<OsString>) -> Vec<OsString> {
    let text: Vec<&str> = arguments
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    match text.as_slice() {
        [_, call, ..] if CALLS.contains(call) => without(&arguments, 1..2),
        [_, python, "-m", call, ..] if python.starts_with("python") && CALLS.contains(call) => {
            without(&arguments, 1..4)
        }
        [program, line] if line.split_whitespace().count() > 1 => {
            let all = [*program].into_iter().chain(line.split_whitespace());
            let all: Vec<OsString> = all.map(OsString::from).collect();
            // A call, or left as it was.
            match words(all.clone()) {
                shorter if shorter.len() < all.len() => shorter,
                _ => arguments,
            }
        }
        _ => arguments,
    }
}

fn without(arguments: &[OsString], range: std::ops::Range<usize>) -> Vec<OsString> {
    let mut rest = arguments.to_vec();
    rest.drain(range);
    rest
}

/// The words with the Python server's flags in clap's spelling.
pub(super) fn with_long_flags(arguments: &[OsString]) -> Vec<OsString> {
    let mut flags = true;
    let mut change = |word: &OsString| {
        flags &= word != "--";
        let (flag, value) = flag_and_value(word.to_str()?).filter(|_| flags)?;
        let flag = long_flag(flag)?;
        Some(match value {
            Some(value) => format!("{flag}={value}").into(),
            None => flag.into(),
        })
    };
    arguments
        .iter()
        .map(|word| change(word).unwrap_or_else(|| word.clone()))
        .collect()
}

/// Has clap look at a lower-case variable where ours is not set. On Windows both are the same.
pub(super) fn with_environment(command: Command) -> Command {
    let unset = |name: &OsStr| env::var_os(name).is_none_or(|value| value.is_empty());
    ENVIRONMENT.iter().fold(command, |command, (setting, old)| {
        command.mut_arg(setting, |arg| match arg.get_env() {
            Some(name) if unset(name) && !unset(OsStr::new(old)) => arg.env(old),
            _ => arg,
        })
    })
}

/// clap takes `-port` for `-p ort`: says what was meant.
pub(super) fn explain(
    error: clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> clap::Error {
    let about = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let blamed = arguments.iter().skip(1).find_map(|word| {
        let (flag, _) = flag_and_value(word.to_str()?)?;
        let word = word.to_str()?.strip_prefix('-')?;
        let (letter, rest) = word.split_at_checked(1)?;
        let several = !rest.is_empty() && !rest.starts_with('=') && !word.starts_with('-');
        let blamed = match error.kind() {
            ErrorKind::UnknownArgument => about(ContextKind::InvalidArg)? == format!("-{letter}"),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
                about(ContextKind::InvalidValue)? == rest
            }
            _ => false,
        };
        (several && blamed).then_some(flag)
    });
    let Some(wrong) = blamed else {
        return error;
    };
    let tip = match nearest(command, wrong) {
        Some(right) => format!("; tip: a similar argument exists: '{right}'"),
        None => String::new(),
    };
    clap::Error::raw(
        ErrorKind::UnknownArgument,
        format!("unexpected argument '{wrong}' found{tip}\n"),
    )
}

/// The flag that a wrong one is most like.
fn nearest(command: &Command, wrong: &str) -> Option<String> {
    let long = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .flat_map(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long().into_iter().chain(aliases)
        })
        .map(|name| format!("--{name}"));
    let all = FLAGS.iter().map(|(old, _)| (*old).to_owned()).chain(long);
    let likeness =
        |flag: &str| strsim::jaro(flag.trim_start_matches('-'), wrong.trim_start_matches('-'));
    all.map(|flag| (likeness(&flag), flag))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, flag)| flag)
}

#[cfg(test)]
mod tests {
    use crate::config::{Cli, Source, one_line, test_config};
    use std::time::Duration;
    use tracing::level_filters::LevelFilter;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(["blender-multiuser"].into_iter().chain(line.split(' ')))
    }

    fn error(line: &str) -> String {
        one_line(&read(line).unwrap_err())
    }

    #[test]
    fn command_lines_of_the_guides_start_the_server() {
        for line in [
            "replication.serve -p 5600 -pwd secret -t 3000 -l DEBUG -lf logname.log",
            "replication.server --port 5600 --password secret --timeout 3000 --log-level DEBUG --log-file logname.log",
            "python3 -m replication.server -p 5600 -apwd secret -t 3000 -l DEBUG -lf logname.log --attached",
            "-p=5600 -pwd=secret -t=3000 -l=DEBUG -lf=logname.log",
            "-p5600 -apwd=secret -t3000 -lDEBUG --log-file=logname.log",
            "serve -p 5600 --admin-password secret -t 3000 -l debug -lf logname.log",
        ] {
            let cli = read(line).unwrap();
            let config = cli.config;
            assert_eq!(config.port, 5600, "{line}");
            assert_eq!(config.timeout, Duration::from_millis(3000));
            assert_eq!(config.log_level, LevelFilter::DEBUG);
            assert_eq!(config.log_file, std::path::absolute("logname.log").ok());
            assert_eq!(config.admin_password.unwrap().reveal(), "secret");
            assert!(config.server_password.is_none());
            assert_eq!(config.attached, line.contains("--attached"));
        }
        assert!(read("replication.serve").is_ok());
        let config = test_config(&["-spwd", "guests"]);
        assert_eq!(config.server_password.unwrap().reveal(), "guests");
    }

    #[test]
    fn a_call_may_come_as_one_word() {
        let config = test_config(&["replication.serve -pwd secret  -p 5600"]);
        assert_eq!(config.port, 5600);
        assert_eq!(config.admin_password.unwrap().reveal(), "secret");
        let message = one_line(&Cli::read(["blender-multiuser", "no such"]).unwrap_err());
        assert!(message.contains("no such"), "{message}");
    }

    #[test]
    fn what_follows_two_dashes_is_no_flag() {
        let cli = read("export -- -lf").unwrap();
        assert!(format!("{:?}", cli.command).contains("-lf"));
    }

    #[test]
    fn a_wrong_flag_is_answered_with_the_right_one() {
        for (wrong, right) in [
            ("--pasword x", "'--password'"),
            ("--admin-pasword x", "'--admin-password'"),
            ("--prot 1", "'--port'"),
            ("-ap x", "'-apwd'"),
            ("-spw x", "'-spwd'"),
            ("-swd=x", "'-spwd'"),
            ("-port 5555", "'--port'"),
            ("-timeout 5000", "'--timeout'"),
            ("-log-file x", "'--log-file'"),
            ("-password x", "'--password'"),
        ] {
            let message = error(wrong);
            let flag = wrong.split([' ', '=']).next().unwrap();
            assert!(
                message.contains(right) && message.contains(&format!("'{flag}'")),
                "{wrong}: {message}"
            );
            assert!(
                !message.contains('\n') && message.starts_with("error: "),
                "{message}"
            );
        }
        assert!(!error("-xyzzy").contains("tip"));
        // The fault is elsewhere.
        assert!(error("-p5600 -t 5").contains("milliseconds"));
        assert!(error("-phttp").contains("'-phttp'"));
    }

    #[test]
    fn the_source_is_what_was_typed() {
        for (line, typed) in [
            ("-pwd x", "-pwd"),
            ("-pwd=x", "-pwd"),
            ("--password x", "--password"),
            ("-pwd x --admin-password=y", "--admin-password"),
        ] {
            assert_eq!(
                read(line).unwrap().config.source("admin_password"),
                &Source::Flag(typed.into())
            );
        }
        let config = read("-p5600 -t 3000 --grace=").unwrap().config;
        assert_eq!(config.source("port"), &Source::Flag("--port".into()));
        assert_eq!(config.source("timeout"), &Source::Flag("-t".into()));
        assert_eq!(config.source("grace"), &Source::Default);
        assert_eq!(config.source("bind"), &Source::Default);
    }
}
