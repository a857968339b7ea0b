//! From a command line and an environment to the settings of one run.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind as Wrong};
use clap::{CommandFactory, FromArgMatches};

use super::source::Sources;
use super::{Cli, Config, Source, legacy};
use crate::admin::command;
use crate::password;

impl Cli {
    /// Reads a command line, program name first, and the environment. Understands the Python server's, too.
    pub fn read<T: Into<OsString>>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let arguments = legacy::words(arguments.into_iter().map(Into::into).collect());
        let mut command = legacy::with_environment(Self::command());
        let matches = command
            .try_get_matches_from_mut(legacy::with_long_flags(&arguments))
            .map_err(|error| legacy::explain(error, &command, &arguments))
            .map_err(point_to_console)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        cli.config.sources = Sources::of(&command, &matches, &arguments);
        Ok(cli)
    }
}

/// Commands of the console are for the server that runs, and go there by `ctl`.
fn point_to_console(error: clap::Error) -> clap::Error {
    let typed = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (Wrong::InvalidSubcommand, Some(ContextValue::String(typed))) => typed,
        _ => return error,
    };
    match command::known_as(typed) {
        Some(name) => clap::Error::raw(
            Wrong::InvalidSubcommand,
            format!(
                "'{typed}' is for the console of the running server: blender-multiuser ctl {name}\n"
            ),
        ),
        None => error,
    }
}

impl Config {
    /// Where a setting came from, by the name of its field.
    pub fn source(&self, setting: &str) -> &Source {
        self.sources.of_setting(setting)
    }

    /// What was written for a setting, if anything was.
    pub fn written(&self, setting: &str) -> Option<&str> {
        self.sources.text(setting)
    }

    /// Reads the password files, and for passwords that nobody has given the credentials of the service manager.
    pub fn with_password_files(self) -> Result<Self> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        self.with_passwords_of(credentials.as_deref())
    }

    pub(super) fn with_passwords_of(mut self, credentials: Option<&Path>) -> Result<Self> {
        for (password, file, setting, file_setting) in [
            (
                &mut self.admin_password,
                &self.admin_password_file,
                "admin_password",
                "admin_password_file",
            ),
            (
                &mut self.server_password,
                &self.server_password_file,
                "server_password",
                "server_password_file",
            ),
        ] {
            match file {
                Some(_) if password.is_some() => bail!(
                    "{} and {} are both given; give one of them",
                    self.sources.of_setting(setting),
                    self.sources.of_setting(file_setting)
                ),
                Some(file) => {
                    let from = self.sources.of_setting(file_setting);
                    *password = Some(
                        password::from_file(file)
                            .with_context(|| format!("{from} is of no use"))?,
                    );
                }
                None if password.is_some() => {}
                None => {
                    let Some(file) = credentials.map(|directory| directory.join(setting)) else {
                        continue;
                    };
                    match file.metadata() {
                        // As everywhere, empty is as good as not there.
                        Ok(about) if about.is_file() && about.len() == 0 => continue,
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        // What is there and cannot be read must not leave the server open.
                        _ => {}
                    }
                    *password = Some(password::from_file(&file)?);
                    self.sources.set_credential(setting, file);
                }
            }
        }
        Ok(self)
    }
}
