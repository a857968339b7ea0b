//! Every setting, once: flag, environment name, default, unit and what is accepted.
//!
//! An empty value means unset, wherever it comes from: the default then applies.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::password::Secret;
use crate::tools::Tool;
use crate::wire::{DataFormat, dialect};

mod legacy;
mod read;
mod source;

pub use source::Source;
use source::Sources;

/// Collaboration server for Blender's Multi-User add-on.
///
/// Started without arguments it serves: it prints the addresses to connect to and what to type in Blender.
#[derive(Debug, Parser)]
#[command(
    version,
    args_override_self = true,
    // Settings stand before and after a command, and no password shows in the help.
    mut_args(|setting| setting.global(true).hide_env_values(true)),
    after_help = "An empty value counts as not given. Set passwords in the environment or in a file: \
                  a command line can be read by every user of the computer. \
                  Flags of replication.serve (-pwd, -apwd, -spwd, -lf) mean the same here."
)]
pub struct Cli {
    #[command(flatten)]
    pub config: Config,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a session; what happens without a command, too
    Serve,
    /// List the backups in the data directory
    Backups,
    /// Start with a backup the next time (while the server runs, its console has this command, too)
    Restore {
        /// The backup's name, or latest
        name: String,
    },
    /// Write the scene of a stopped server as a file that Blender can load (a running one's console has this command, too)
    Export {
        /// The file to write, such as evening.db
        file: PathBuf,
    },
    #[command(flatten)]
    Tool(Tool),
}

/// clap gives the name `Option` a meaning of its own; here a value is always there, and may be "unset".
type Maybe<T> = Option<T>;

/// The settings of one run.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// First of four TCP ports in a row: commands, data, heartbeat, old clients; 0 takes free ones
    #[arg(
        short,
        long,
        env = "PORT",
        value_name = "NUMBER",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "5555", value_parser = or_default("5555", port))]
    pub port: u16,

    /// Addresses of this computer to listen on, separated by commas [default: all]
    #[arg(long, env = "BIND", value_name = "ADDRESSES")]
    #[arg(default_value = "", hide_default_value = true, value_parser = bind)]
    pub bind: Bind,

    /// Password of those who may start the session and kick [default: made and kept in the data directory]
    #[arg(
        long,
        alias = "password",
        env = "ADMIN_PASSWORD",
        value_name = "PASSWORD"
    )]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(secret))]
    pub admin_password: Maybe<Secret>,

    /// File with the admin password, instead of the above
    #[arg(long, env = "ADMIN_PASSWORD_FILE", value_name = "FILE")]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(path))]
    admin_password_file: Maybe<PathBuf>,

    /// Password that everybody needs to connect [default: none, open to all who reach the server]
    #[arg(long, env = "SERVER_PASSWORD", value_name = "PASSWORD")]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(secret))]
    pub server_password: Maybe<Secret>,

    /// File with the server password, instead of the above
    #[arg(long, env = "SERVER_PASSWORD_FILE", value_name = "FILE")]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(path))]
    server_password_file: Maybe<PathBuf>,

    /// A user whose heartbeat is silent for longer has left, in milliseconds
    #[arg(
        short,
        long,
        env = "TIMEOUT",
        value_name = "MS",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "5000", value_parser = or_default("5000", timeout))]
    pub timeout: Duration,

    /// Time a user whose connection broke has to come back with name and locks kept, in seconds
    #[arg(long, env = "GRACE", value_name = "S", allow_negative_numbers = true)]
    #[arg(default_value = "5", value_parser = or_default("5", grace))]
    pub grace: Duration,

    /// Client versions that may work in one session, separated by commas, such as 0.9.9,0.9.10,0.10.2 [default: each by itself]
    #[arg(long, env = "VERSIONS", value_name = "VERSIONS")]
    #[arg(default_value = "", hide_default_value = true, value_parser = versions)]
    pub versions: Versions,

    /// What to log: error, warn, info, debug or trace, each with what comes before it
    #[arg(short, long, env = "LOG_LEVEL", value_name = "LEVEL")]
    #[arg(default_value = "info", value_parser = or_default("info", log_level))]
    pub log_level: LevelFilter,

    /// File to append the log to, as well as to standard error
    #[arg(long, env = "LOG_FILE", value_name = "FILE")]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(path))]
    pub log_file: Maybe<PathBuf>,

    /// How lines are logged: text, or json with one object per line
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    #[arg(default_value = "text", value_parser = or_default("text", log_format))]
    pub log_format: LogFormat,

    /// Size at which the log file is put aside as FILE.1 and begun anew, in MB; 0: never
    #[arg(
        long,
        env = "LOG_MAX_SIZE",
        value_name = "MB",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "10", value_parser = or_default("10", log_max_size))]
    pub log_max_size: Maybe<u64>,

    /// Log files put aside that are kept
    #[arg(
        long,
        env = "LOG_MAX_FILES",
        value_name = "NUMBER",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "5", value_parser = or_default("5", log_max_files))]
    pub log_max_files: u32,

    /// Time between two backups of the session, in seconds; 0: none by the clock
    #[arg(
        long,
        env = "SAVE_INTERVAL",
        value_name = "S",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "120", value_parser = or_default("120", save_interval))]
    pub save_interval: Maybe<Duration>,

    /// Backups that are kept of those made by themselves, and again of those asked for
    #[arg(
        long,
        env = "MAX_BACKUPS",
        value_name = "NUMBER",
        allow_negative_numbers = true
    )]
    #[arg(default_value = "10", value_parser = or_default("10", max_backups))]
    pub max_backups: usize,

    /// Session file, saved in Blender or by this server, to begin with where there is neither scene nor backup yet
    #[arg(long, env = "IMPORT", value_name = "FILE")]
    #[arg(default_value = "", hide_default_value = true, value_parser = optional(path))]
    pub import: Maybe<PathBuf>,

    /// Directory for what the server keeps
    #[arg(long, env = "DATA_DIR", value_name = "DIRECTORY")]
    #[arg(default_value = "data", value_parser = or_default("data", path))]
    pub data_dir: PathBuf,

    /// A flag of the Python server. It changed nothing there either.
    #[arg(long, hide = true)]
    pub attached: bool,

    /// Where each of the above came from.
    #[arg(skip)]
    sources: Sources,
}

/// Client versions that may work in one session.
pub type Versions = std::sync::Arc<[String]>;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The addresses to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// Every IPv4 and, where the computer has it, every IPv6 address.
    All,
    /// These, each of which must work.
    Only(Vec<IpAddr>),
}

impl Bind {
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::All => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            Self::Only(addresses) => addresses.clone(),
        }
    }
}

/// The TCP ports in use. A client is told the first and derives the others (docs/protocol.md, section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub command: u16,
    pub data: u16,
    pub ttl: u16,
    pub four_socket_ttl: u16,
}

impl Ports {
    /// The highest first port whose three followers are ports, too.
    pub const HIGHEST: u16 = u16::MAX - 3;

    /// The four ports from `first` on, if there are that many.
    pub fn starting_at(first: u16) -> Option<Self> {
        (1..=Self::HIGHEST).contains(&first).then(|| Self {
            command: first,
            data: first + 1,
            ttl: first + 2,
            four_socket_ttl: first + 3,
        })
    }
}

/// In this form scripts read them from the start-up message.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            data,
            ttl,
            four_socket_ttl,
        } = self;
        write!(
            f,
            "command {command}, data {data}, TTL {ttl}, four-socket TTL {four_socket_ttl}"
        )
    }
}

fn or_default<T>(
    default: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| parse(if text.is_empty() { default } else { text })
}

fn optional<T>(
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> + Clone {
    move |text| (!text.is_empty()).then(|| parse(text)).transpose()
}

fn secret(text: &str) -> Result<Secret, String> {
    if text == "None" {
        return Err(
            "'None' is how the add-on says that there is no password; choose another one".into(),
        );
    }
    Ok(Secret::new(text))
}

/// A service's working directory is rarely the one its operator thinks of: what is shown should say it all.
fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("give the whole path: {error}"))
}

fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(port @ 0..=Ports::HIGHEST) => Ok(port),
        _ => Err(format!(
            "give a number from 1 to {} (three more ports follow it) or 0 for free ports, \
             such as --port 5555 or PORT=5555",
            Ports::HIGHEST
        )),
    }
}

fn bind(text: &str) -> Result<Bind, String> {
    let mut addresses = Vec::new();
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        if word == "all" {
            return Ok(Bind::All);
        }
        if word == "localhost" {
            addresses.extend([
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ]);
            continue;
        }
        let bare = word
            .strip_prefix('[')
            .and_then(|w| w.strip_suffix(']'))
            .unwrap_or(word);
        let address = bare.parse().map_err(|_| {
            format!(
                "'{word}' is not an address of this computer; give for example --bind 192.168.1.20, \
                 --bind 127.0.0.1, or nothing for all"
            )
        })?;
        addresses.push(address);
    }
    // A wildcard takes the port on all the others of its kind.
    let everywhere: Vec<IpAddr> = addresses
        .iter()
        .copied()
        .filter(IpAddr::is_unspecified)
        .collect();
    let mut known = Vec::new();
    addresses.retain(|address| {
        let covered = everywhere
            .iter()
            .any(|all| all != address && all.is_ipv4() == address.is_ipv4());
        let first = !known.contains(address);
        known.push(*address);
        first && !covered
    });
    Ok(if addresses.is_empty() {
        Bind::All
    } else {
        Bind::Only(addresses)
    })
}

fn versions(text: &str) -> Result<Versions, String> {
    let versions: Vec<String> = text
        .split(',')
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let mut format = None;
    for version in &versions {
        let Some(found) = DataFormat::of(version) else {
            return Err(format!(
                "'{version}' is not a version that is served: {}",
                dialect::SERVED
            ));
        };
        if *format.get_or_insert(found) != found {
            return Err(format!(
                "{version} keeps scenes in another form than {}; versions can be mixed from 0.9.1 on, \
                 within 0.7 and 0.8, and within 0.1.1 to 0.1.31",
                versions.first().map_or("the others", String::as_str)
            ));
        }
    }
    Ok(versions.into())
}

fn timeout(text: &str) -> Result<Duration, String> {
    // Clients are pinged once a second.
    number(
        text,
        1000..=600_000,
        "milliseconds, such as --timeout 5000 or TIMEOUT=5000",
    )
    .map(Duration::from_millis)
}

fn grace(text: &str) -> Result<Duration, String> {
    number(text, 0..=3600, "seconds, such as --grace 5 or GRACE=5").map(Duration::from_secs)
}

fn save_interval(text: &str) -> Result<Maybe<Duration>, String> {
    let seconds = number(
        text,
        0..=86_400,
        "seconds, such as --save-interval 120 or SAVE_INTERVAL=120",
    )?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn max_backups(text: &str) -> Result<usize, String> {
    number(
        text,
        1..=10_000,
        "backups, such as --max-backups 10 or MAX_BACKUPS=10",
    )
    .and_then(|number| usize::try_from(number).map_err(|_| "too many".to_owned()))
}

fn number(text: &str, range: RangeInclusive<u64>, unit: &str) -> Result<u64, String> {
    match text.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("give {} to {} {unit}", range.start(), range.end())),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    // The upper-case names are those of the Python server.
    match text.trim().to_ascii_lowercase().as_str() {
        "critical" | "fatal" | "error" => Ok(LevelFilter::ERROR),
        "warning" | "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" | "notset" => Ok(LevelFilter::TRACE),
        _ => Err("give error, warn, info, debug or trace, such as --log-level info".into()),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("give text or json, such as --log-format json or LOG_FORMAT=json".into()),
    }
}

fn log_max_size(text: &str) -> Result<Maybe<u64>, String> {
    let megabytes = number(
        text,
        0..=1_000_000,
        "MB, such as --log-max-size 10 or LOG_MAX_SIZE=10",
    )?;
    Ok((megabytes > 0).then_some(megabytes * 1_000_000))
}

fn log_max_files(text: &str) -> Result<u32, String> {
    number(
        text,
        0..=1000,
        "files, such as --log-max-files 5 or LOG_MAX_FILES=5",
    )
    .and_then(|number| u32::try_from(number).map_err(|_| "too many".to_owned()))
}

/// What is wrong with a command line, and the correction if clap has one, on a single line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    format!(
        "{} (blender-multiuser --help lists what there is)",
        said.join("; ").replace(":; ", ": ")
    )
}

/// A configuration from flags alone, as the tests of other modules need it.
#[cfg(test)]
pub(crate) fn test_config(arguments: &[&str]) -> Config {
    let arguments = ["blender-multiuser"].iter().chain(arguments);
    Cli::read(arguments)
        .unwrap()
        .config
        .with_passwords_of(None)
        .unwrap()
}

#[cfg(test)]
mod tests;
