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

/// What somebody has said about a setting.
#[derive(Debug, Clone)]
struct Given {
    source: Source,
    /// The value as written; of a password nothing.
    text: String,
}

/// What somebody has said, by the name of the setting's field in `Config`.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources(Arc<BTreeMap<String, Given>>);

impl Sources {
    /// The sources of what clap found in these arguments.
    pub fn of(command: &Command, matches: &ArgMatches, arguments: &[OsString]) -> Self {
        let known = command.get_arguments().filter_map(|arg| {
            let setting = arg.get_id().as_str();
            let text = matches.try_get_raw(setting).ok()??.next_back()?;
            let source = match matches.value_source(setting)? {
                ValueSource::CommandLine => Source::Flag(typed(arg, arguments)),
                ValueSource::EnvVariable => {
                    Source::Environment(arg.get_env()?.to_string_lossy().into_owned())
                }
                _ => return None,
            };
            if text.is_empty() {
                return None;
            }
            let text = if setting.ends_with("password") {
                String::new()
            } else {
                text.to_string_lossy().into_owned()
            };
            Some((setting.to_owned(), Given { source, text }))
        });
        Self(Arc::new(known.collect()))
    }

    pub fn of_setting(&self, setting: &str) -> &Source {
        self.0
            .get(setting)
            .map_or(&Source::Default, |given| &given.source)
    }

    /// The value as it was written, if it was.
    pub fn text(&self, setting: &str) -> Option<&str> {
        self.0.get(setting).map(|given| given.text.as_str())
    }

    pub fn set_credential(&mut self, setting: &str, file: PathBuf) {
        let given = Given {
            source: Source::Credential(file),
            text: String::new(),
        };
        Arc::make_mut(&mut self.0).insert(setting.to_owned(), given);
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
