//! What the binary can do besides serving: tell an artist, a script or a service manager how a server is, and command one that runs.

mod check;
mod ctl;
mod health;
mod ports;
mod probe;
mod settings;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Subcommand};

use crate::config::{Cli, Config, Ports};

/// The tools, as the command line names them.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// From an artist's computer: test whether a server can be reached, and say what to do if not
    Check {
        /// Name or address of the server, as entered in Blender; IPv6 addresses in brackets
        #[arg(value_name = "HOST[:PORT]")]
        server: check::Target,
    },
    /// Ask the server on this computer whether it works; exit code 0 if it does (for health checks)
    Health,
    /// List the ports to open in firewalls and to forward in routers
    Ports {
        /// Just the ports, such as 5555-5558/tcp, for scripts
        #[arg(long)]
        plain: bool,
    },
    /// Show the settings that a start would use, and where each comes from
    Config,
    /// Send a command to the console of the running server; without one, open a prompt
    Ctl {
        /// As on the console, for example: kick bob
        #[arg(value_name = "COMMAND")]
        words: Vec<String>,
    },
    /// Print the completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    Man,
}

impl Tool {
    /// Whether it needs the passwords that are in files, which not everybody who may use the others can read.
    pub fn reads_passwords(&self) -> bool {
        matches!(self, Self::Check { .. } | Self::Config)
    }
}

/// Runs a tool.
pub fn run(tool: Tool, config: &Config) -> Result<ExitCode> {
    match tool {
        Tool::Check { server } => check::run(&server, config),
        Tool::Health => health::run(config),
        Tool::Ports { plain } => ports::run(config, plain),
        Tool::Config => settings::run(config),
        Tool::Ctl { words } => ctl::run(config, &words),
        Tool::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Cli::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut script);
            print(&script)
        }
        Tool::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .context("cannot make the manual page")?;
            print(&page)
        }
    }
}

fn print(text: impl AsRef<[u8]>) -> Result<ExitCode> {
    let mut out = io::stdout();
    // Whoever reads may have had enough, as in `… | head`.
    let _ = out.write_all(text.as_ref()).and_then(|()| out.flush());
    Ok(ExitCode::SUCCESS)
}

/// The ports that the settings name.
fn configured_ports(config: &Config) -> Result<Ports> {
    Ports::starting_at(config.port).context(
        "with port 0 the server takes free ports and prints them; name one of them with --port or PORT",
    )
}

/// Runs network code. What still looks up a name when it is done is not waited for.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}
