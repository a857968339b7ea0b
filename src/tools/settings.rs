//! `config`: the settings that a start would use, where each comes from, and what a start would warn of.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::print;
use crate::admin::render::escape;
use crate::config::{Bind, Config, Source};

/// Shown in the place of passwords.
const HIDDEN: &str = "(hidden)";

pub fn run(config: &Config) -> Result<ExitCode> {
    let mut text = String::new();
    // Taken from the command line's own description, so no setting can be missing.
    let described = Config::augment_args(clap::Command::new(""));
    let mut exposed = Vec::new();
    for setting in described
        .get_arguments()
        .filter(|setting| !setting.is_hide_set())
    {
        let id = setting.get_id().as_str();
        let name = setting.get_long().unwrap_or(id);
        let secret = id.ends_with("password");
        let password_file = format!("{id}_file");
        let source = match config.source(id) {
            Source::Default if secret => config.source(&password_file),
            source => source,
        };
        let value = match config.written(id) {
            _ if secret && *source != Source::Default => HIDDEN.to_owned(),
            _ if id == "data_dir" => config.data_dir.display().to_string(),
            Some(written) => escape(written),
            None => match setting.get_default_values().first() {
                Some(default) if !default.is_empty() => default.to_string_lossy().into_owned(),
                _ => unset(id, config),
            },
        };
        if let Source::Flag(flag) = config.source(id)
            && secret
        {
            exposed.push((flag.clone(), name));
        }
        let from = match source {
            Source::Flag(_) => "flag ",
            Source::Environment(_) => "environment ",
            Source::Credential(_) | Source::Default => "",
        };
        let _ = writeln!(text, "{name:<22} {value:<28} {from}{source}");
    }
    for warning in warnings(config, &exposed) {
        let _ = writeln!(text, "warning: {warning}");
    }
    print(text)
}

/// What a setting that has no default value means.
fn unset(id: &str, config: &Config) -> String {
    match id {
        "bind" => "all addresses".to_owned(),
        "admin_password" => {
            let kept = crate::password::kept_in(config);
            let verb = if kept.exists() {
                "kept"
            } else {
                "will be made and kept"
            };
            format!("{verb} in {}", kept.display())
        }
        "server_password" => "none".to_owned(),
        "versions" => "each by itself".to_owned(),
        _ => "not set".to_owned(),
    }
}

/// What a start would complain about, or an operator may not want.
fn warnings(config: &Config, exposed: &[(String, &str)]) -> Vec<String> {
    let mut warnings = Vec::new();
    let local = match &config.bind {
        Bind::All => false,
        Bind::Only(addresses) => addresses.iter().all(std::net::IpAddr::is_loopback),
    };
    if config.server_password.is_none() && !local {
        warnings.push(
            "no server password: everybody who reaches the ports can join; set SERVER_PASSWORD"
                .to_owned(),
        );
    }
    for (flag, name) in exposed {
        warnings.push(format!("{flag} on the command line can be read by every user of the computer; use the environment or --{name}-file"));
    }
    if config.port == 0 {
        warnings.push("port 0: the server takes other ports at each start; `health` and firewalls need fixed ones".to_owned());
    }
    if let Some(file) = config.import.as_deref().filter(|file| !file.is_file()) {
        warnings.push(format!(
            "--import {}: there is no such file; the start would fail",
            file.display()
        ));
    }
    if let Err(why) = can_hold_files(&config.data_dir) {
        warnings.push(format!(
            "--data-dir {}: {why}; the start would fail",
            config.data_dir.display()
        ));
    }
    warnings
}

/// Whether the server could keep its data there, as far as can be told without writing.
fn can_hold_files(directory: &Path) -> Result<(), String> {
    match directory.metadata() {
        Ok(found) if !found.is_dir() => Err("not a directory".to_owned()),
        Ok(found) if found.permissions().readonly() => Err("not writable".to_owned()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
