//! Where the settings of one run came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::legacy;

/// Where a setting came from. Shown, it is what the operator wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The flag as it was typed.
    Flag(String),
    /// The name of the environment variable.
    Environment(String),
    /// The file of the service manager.
    Credential(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Environment(name) => f.write_str(name),
            Self::Credential(file) => write!(f, "credential {}", file.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The source of each setting that somebody has given, by the name of its field in `Config`.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources(Arc<BTreeMap<String, Source>>);

impl Sources {
    /// The sources of what clap found in these arguments.
    pub fn of(command: &Command, matches: &ArgMatches, arguments: &[OsString]) -> Self {
        let known = command.get_arguments().filter_map(|arg| {
            let setting = arg.get_id().as_str();
            let given = matches.try_get_raw(setting).ok()??.any(|v| !v.is_empty());
            let source = match matches.value_source(setting)? {
                ValueSource::CommandLine => Source::Flag(typed(arg, arguments)),
                ValueSource::EnvVariable => {
                    Source::Environment(arg.get_env()?.to_string_lossy().into_owned())
                }
                _ => return None,
            };
            given.then(|| (setting.to_owned(), source))
        });
        Self(Arc::new(known.collect()))
    }

    pub fn of_setting(&self, setting: &str) -> &Source {
        self.0.get(setting).unwrap_or(&Source::Default)
    }

    pub fn set(&mut self, setting: &str, source: Source) {
        Arc::make_mut(&mut self.0).insert(setting.to_owned(), source);
    }
}

/// How a flag was written the last time it was given: the value that counts.
fn typed(arg: &Arg, arguments: &[OsString]) -> String {
    let canonical = format!("--{}", arg.get_long().unwrap_or_default());
    let short = arg.get_short().map(|letter| format!("-{letter}"));
    let aliases: Vec<String> = arg
        .get_all_aliases()
        .unwrap_or_default()
        .iter()
        .map(|alias| format!("--{alias}"))
        .collect();
    arguments
        .iter()
        .rev()
        .filter_map(|word| legacy::flag_and_value(word.to_str()?))
        .map(|(flag, _)| flag)
        .find(|&flag| {
            flag == canonical
                || Some(flag) == short.as_deref()
                || aliases.iter().any(|alias| alias == flag)
                || legacy::long_flag(flag) == Some(&canonical)
        })
        .unwrap_or(&canonical)
        .to_owned()
}
