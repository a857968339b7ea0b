//! The command line: reads the settings, starts the parts around the server, turns errors into one line and an exit code.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use blender_multiuser::admin::command::View;
use blender_multiuser::admin::console::Console;
use blender_multiuser::admin::render::render;
use blender_multiuser::admin::{AdminReply, Operator, control};
use blender_multiuser::backups;
use blender_multiuser::banner::banner;
use blender_multiuser::config::{self, Cli, Command, Config};
use blender_multiuser::{logging, password, platform, server, tools};
use tracing::info;

/// Exit code for settings that cannot be used.
const USAGE: u8 = 2;

/// What runs on after the server has ended gets this long.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return complain(&config::one_line(&error), USAGE),
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let config = match &cli.command {
        Some(Command::Tool(tool)) if !tool.reads_passwords() => Ok(cli.config),
        _ => cli.config.with_password_files(),
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => return complain(&format!("error: {error:#}"), USAGE),
    };
    let done = match cli.command {
        None | Some(Command::Serve) => serve(config),
        Some(Command::Backups) => tell(backups::table(&config.data_dir)),
        Some(Command::Restore { name }) => {
            tell(backups::restore_at_next_start(&config.data_dir, &name))
        }
        Some(Command::Export { file }) => tell(backups::export_offline(&config.data_dir, &file)),
        Some(Command::Tool(tool)) => tools::run(tool, &config),
    };
    match done {
        Ok(code) => code,
        Err(error) => complain(&format!("error: {error:#}"), 1),
    }
}

fn complain(line: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(code)
}

/// Says what the console would say to the same command.
fn tell(answer: Result<String>) -> Result<ExitCode> {
    let answer = render(&AdminReply::Done(answer?), View::Overview);
    let _ = writeln!(io::stdout(), "{answer}");
    Ok(ExitCode::SUCCESS)
}

fn serve(config: Config) -> Result<ExitCode> {
    let logs = logging::start(&config)?;
    if config.attached {
        info!(
            "--attached has no effect: this server does not end with the Blender that started it"
        );
    }
    let admin = password::admin_password(&config)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let mut console = None;
    let result = runtime.block_on(async {
        let (operator, requests) = Operator::new();
        platform::report_to_service_manager(operator.clone());
        server::run(config.clone(), admin.clone(), requests, |ports| {
            // First, so that whoever has read the ports can use it.
            control::serve(&config.data_dir, operator.clone(), logs.clone());
            let _ = writeln!(io::stdout(), "{}", banner(&config, ports, &admin));
            let started = Console::start(operator.clone(), logs.clone(), &config.data_dir)?;
            let leave = started.clone();
            console = Some(started.clone());
            operator
                .obey_signals(started.is_terminal(), move || leave.leave())
                .context("cannot listen to signals")
        })
        .await
    });
    runtime.shutdown_timeout(LAST_WORDS);
    match console {
        Some(console) => console.leave(),
        None => logs.flush(LAST_WORDS),
    }
    result.map(|()| ExitCode::SUCCESS)
}
