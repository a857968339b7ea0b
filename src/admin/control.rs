//! The control socket: how `ctl` and scripts reach the console of a server that runs.
//!
//! Asked is line by line, a verb first: `run COMMAND` as on the console, `users` for the names of who is connected, `watch` for the
//! log from here on. Said is `KIND LENGTH`, a newline, and so many bytes: `hello` at once; then to each question one `ok` or `failed`
//! with its text; and `log` with a line at any time to those who watch. Only the owner of the socket's file can connect.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::command::{self, Input};
use super::operator::Operator;
use super::render::render;
use super::{AdminCommand, AdminReply};
use crate::config::{Config, Source};
use crate::logging::Logs;
use crate::platform;
use crate::platform::local::{AsyncStream, Listener};

/// Connections at a time.
const CONNECTIONS: usize = 8;

/// Bytes of a line, its end included.
pub const LINE_LIMIT: usize = 8 * 1024;

/// How long the first question may take.
const IDLE: Duration = Duration::from_secs(10);

/// How long an answer may take to be read.
const WRITE: Duration = Duration::from_secs(5);

/// How long a command may take; a large scene is saved or restored in seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// After a failure to take a connection, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// The socket of the server that uses this data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The socket that `ctl` is to use: where nobody has said which data directory, and there is none in the usual one, that of the
/// service.
pub fn path_for(config: &Config) -> PathBuf {
    let usual = path(&config.data_dir);
    let Some(service) = platform::SERVICE_DATA.map(|data| path(Path::new(data))) else {
        return usual;
    };
    // What may not be looked at (by who has forgotten sudo) is there.
    let there = |path: &Path| path.try_exists().unwrap_or(true);
    if *config.source("data_dir") == Source::Default && !usual.exists() && there(&service) {
        return service;
    }
    usual
}

/// Opens the control socket, and takes commands until the runtime ends. The data directory must be this server's. Without the socket
/// the server can be used all the same: what is wrong is logged.
pub fn serve(data_dir: &Path, operator: Operator, logs: Logs) {
    let path = path(data_dir);
    let listener = match Listener::bind(&path) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            return debug!("no control socket on this system");
        }
        Err(error) => {
            return warn!("`ctl` will not work: {}", trouble(&path, &error));
        }
    };
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    debug!("control socket: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let permit = free.clone().try_acquire_owned();
            let (operator, logs) = (operator.clone(), logs.clone());
            tokio::spawn(async move {
                let result = match permit {
                    Ok(_permit) => converse(stream, &operator, &logs).await,
                    Err(_) => turn_away(stream).await,
                };
                if let Err(error) = result {
                    debug!("control connection: {error}");
                }
            });
        }
    });
}

/// What is wrong with a control socket, and what to do.
pub fn trouble(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::InvalidInput => format!(
            "the path {shown} is longer than a socket's may be (about 100 characters); choose a shorter --data-dir"
        ),
        io::ErrorKind::Unsupported => {
            "this system has no control sockets; use the server's own console".into()
        }
        io::ErrorKind::PermissionDenied => format!(
            "{shown} is for the user that the server runs as; become that user, for example with sudo"
        ),
        io::ErrorKind::NotFound => format!(
            "no server runs with this data directory: there is no {shown}; start it, or name the directory of the one that runs with \
             --data-dir or DATA_DIR"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "no server runs with this data directory: nobody listens at {shown}, which one that crashed or was killed has left; start \
             it again (that goes on with its session)"
        ),
        _ => format!("{shown}: {error}"),
    }
}

async fn turn_away(mut stream: AsyncStream) -> io::Result<()> {
    let text = format!("{CONNECTIONS} others use the control socket already; close one of them");
    say(&mut stream, "failed", &text).await
}

/// One connection, from its start to its end.
async fn converse(mut stream: AsyncStream, operator: &Operator, logs: &Logs) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    say(&mut writer, "hello", env!("CARGO_PKG_VERSION")).await?;
    let mut watched: Option<broadcast::Receiver<Arc<str>>> = None;
    let mut line = Vec::new();
    let mut silent = true;
    loop {
        let left = LINE_LIMIT.saturating_sub(line.len());
        let mut rest = (&mut reader).take(u64::try_from(left).unwrap_or(0));
        tokio::select! {
            // What was read of a line stays in it if something else comes first.
            read = rest.read_until(b'\n', &mut line) => {
                read?;
                if line.last() != Some(&b'\n') {
                    let too_long = line.len() >= LINE_LIMIT;
                    return match too_long {
                        true => say(&mut writer, "failed", "the command is too long").await,
                        false => Ok(()),
                    };
                }
                let asked = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                silent = false;
                if asked == "watch" {
                    watched = Some(logs.live());
                }
                let (kind, text) = match answer(operator, &asked).await {
                    Ok(text) => ("ok", text),
                    Err(text) => ("failed", text),
                };
                say(&mut writer, kind, &text).await?;
            }
            news = next(&mut watched) => match news {
                Ok(news) => say(&mut writer, "log", news.trim_end()).await?,
                Err(broadcast::error::RecvError::Lagged(lines)) => {
                    say(&mut writer, "log", &format!("({lines} log lines are not shown here)")).await?;
                }
                Err(broadcast::error::RecvError::Closed) => watched = None,
            },
            () = sleep(IDLE), if silent => return Ok(()),
        }
    }
}

async fn next(
    watched: &mut Option<broadcast::Receiver<Arc<str>>>,
) -> Result<Arc<str>, broadcast::error::RecvError> {
    match watched {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

async fn answer(operator: &Operator, asked: &str) -> Result<String, String> {
    match asked.split_once(' ').unwrap_or((asked, "")) {
        ("run", line) => run(operator, line).await,
        ("watch", _) => Ok(String::new()),
        ("users", _) => match operator.ask(AdminCommand::Status, PATIENCE).await {
            Ok(AdminReply::Status(status)) => {
                let names: Vec<String> = status.users.into_iter().map(|user| user.name).collect();
                Ok(names.join("\n"))
            }
            Ok(_) => Ok(String::new()),
            Err(silence) => Err(silence.to_string()),
        },
        _ => Err("this server does not understand this ctl: use the same version of both".into()),
    }
}

/// Does what a line of the console says.
async fn run(operator: &Operator, line: &str) -> Result<String, String> {
    let (command, view) = match command::parse(line)? {
        Input::Nothing => return Ok(String::new()),
        Input::Help(text) => return Ok(text),
        Input::Ask(command, view) => (command, view),
    };
    match operator.ask(command, PATIENCE).await {
        Ok(reply @ AdminReply::Failed(_)) => Err(render(&reply, view)),
        Ok(reply) => Ok(render(&reply, view)),
        Err(silence) => Err(silence.to_string()),
    }
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), kind: &str, text: &str) -> io::Result<()> {
    let message = format!("{kind} {}\n{text}", text.len());
    timeout(WRITE, writer.write_all(message.as_bytes()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
