//! What differs between operating systems, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

mod access;
pub mod local;
#[cfg(unix)]
mod service;

pub use access::*;
pub use system::*;

/// Writes a file that only its owner can read, all of it or nothing.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let result = private(OpenOptions::new().write(true).create(true).truncate(true))
        .open(temporary)
        .and_then(|mut file| {
            keep_private(&file)?;
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(temporary);
    }
    result
}

/// Opens a file for appending that only its owner can read.
pub fn append_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().append(true).create(true)).open(path)
}

/// The operating system's wish that the server stop.
///
/// | it is to end the session | it is to start again |
/// | --- | --- |
/// | SIGINT (Ctrl+C), SIGHUP (the terminal is closed) | SIGTERM (`docker stop`, `systemctl`, an update) |
/// | Ctrl+C, the console's window is closed | Ctrl+Break (what a script or service manager sends), system shutdown |
///
/// The second line is Windows, which has no SIGTERM.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    pub name: &'static str,
    /// Another start is meant to follow: nobody's session ends who can wait for it.
    pub again: bool,
    /// Where repeating it means "at once": the exit code of a process that ends so.
    pub at_once: Option<u8>,
}

impl Stop {
    fn for_good(name: &'static str, at_once: Option<u8>) -> Self {
        Self {
            name,
            again: false,
            at_once,
        }
    }

    fn to_start_again(name: &'static str, at_once: Option<u8>) -> Self {
        Self {
            name,
            again: true,
            at_once,
        }
    }
}

#[cfg(unix)]
mod system {
    use std::fs::{File, OpenOptions, Permissions};
    use std::io::{self, IsTerminal, Write};
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
    use nix::unistd::{getpgrp, tcgetpgrp};
    use socket2::Socket;
    use tokio::signal::unix::{self, SignalKind};

    use super::Stop;
    pub use super::service::report_to_service_manager;

    pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options.mode(0o600)
    }

    /// Makes durable what was made, renamed and removed in a directory.
    pub fn sync_directory(path: &Path) -> io::Result<()> {
        match File::open(path)?.sync_all() {
            // Some file systems, of networks above all, have no such thing.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
            {
                Ok(())
            }
            synced => synced,
        }
    }

    /// Lets a socket listen where connections of an earlier server are not forgotten yet.
    pub fn reuse_port(socket: &Socket) -> io::Result<()> {
        socket.set_reuse_address(true)
    }

    /// What to do where the system lets nobody listen on a port.
    pub const CURE_OF_DENIED_PORT: &str = "choose one above 1023 with --port";

    /// Where the unit `blender-multiuser.service` keeps its data.
    pub const SERVICE_DATA: Option<&str> = Some("/var/lib/blender-multiuser");

    /// What the console's `exit` is not.
    pub const OTHER_STOPS: &str = "Ctrl+C does the same. SIGTERM (docker stop, systemctl restart) is a restart instead: who can wait is not disconnected. \
         To leave `docker attach` and let the server go on, press Ctrl+P Ctrl+Q.";

    /// How to leave the console and let the server go on, after what else there is to do.
    pub const LEAVING: &str = "; to leave `docker attach` press Ctrl+P Ctrl+Q";

    /// A left-over file keeps the mode it had, so the mode given at opening is not enough.
    pub(super) fn keep_private(file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o600))
    }

    /// The signals that ask a server to stop.
    pub struct StopSignals {
        interrupt: unix::Signal,
        terminate: unix::Signal,
        hangup: Option<unix::Signal>,
    }

    impl StopSignals {
        /// Starts listening. Needs the tokio runtime. A closed terminal counts only for a server that uses one:
        /// elsewhere (`nohup`) the signal is ignored on purpose.
        pub fn listen(terminal: bool) -> io::Result<Self> {
            Ok(Self {
                interrupt: unix::signal(SignalKind::interrupt())?,
                terminate: unix::signal(SignalKind::terminate())?,
                hangup: terminal
                    .then(|| unix::signal(SignalKind::hangup()))
                    .transpose()?,
            })
        }

        /// Waits for the next one.
        pub async fn next(&mut self) -> Stop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => Stop::for_good("SIGINT", Some(130)),
                _ = self.terminate.recv() => Stop::to_start_again("SIGTERM", Some(143)),
                // Shell and kernel may both send one for the same closed window: two of them are no impatience.
                _ = hangup => Stop::for_good("SIGHUP", None),
            }
        }
    }

    /// The mode the terminal had at the start. A console that waits for input has changed it, and cannot change it
    /// back when the server stops for another reason than a typed command.
    #[derive(Debug, Clone)]
    pub struct Terminal {
        mode: Termios,
    }

    impl Terminal {
        /// The terminal to hold a dialogue on: standard input and output are one, and this process may use it (one
        /// started in the background with `&` would be stopped as soon as it did).
        pub fn claim() -> Option<Self> {
            let usable =
                io::stdin().is_terminal() && io::stdout().is_terminal() && !in_background();
            let mode = usable.then(|| tcgetattr(io::stdin()).ok()).flatten()?;
            Some(Self { mode })
        }

        /// Gives the terminal back as it was: the mode, bracketed paste off, the prompt gone.
        pub fn restore(&self) {
            if in_background() {
                return;
            }
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.mode);
            // Nobody may be reading it any more, and then writing never ends.
            let (written, is_written) = mpsc::channel();
            thread::spawn(move || {
                let mut out = io::stdout();
                let _ = out
                    .write_all(b"\r\x1b[K\x1b[?2004l")
                    .and_then(|()| out.flush());
                let _ = written.send(());
            });
            let _ = is_written.recv_timeout(Duration::from_millis(200));
        }

        /// Whether somebody may still be at the other end.
        pub fn is_alive(&self) -> bool {
            tcgetattr(io::stdin()).is_ok()
        }
    }

    /// What stands before a command in a shell to give it a variable, with `...` for the value.
    pub fn with_variable(name: &str) -> String {
        format!("{name}=...")
    }

    /// Whether this process is a background job of the terminal on standard input.
    pub fn in_background() -> bool {
        tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
    }
}

#[cfg(not(unix))]
mod system {
    use std::fs::{File, OpenOptions};
    use std::io::{self, IsTerminal};
    use std::path::Path;

    use socket2::Socket;
    use tokio::signal::windows;

    use super::Stop;
    use crate::admin::Operator;

    /// Service managers here are told nothing by the server itself.
    pub fn report_to_service_manager(_: Operator) {}

    /// A file takes the access list of its directory, which for a user's own directories is private.
    pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options
    }

    pub(super) fn keep_private(_: &File) -> io::Result<()> {
        Ok(())
    }

    /// Directories cannot be synced here; the file system keeps their entries in a journal of its own.
    pub fn sync_directory(_: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Dying connections keep no port here, and the option would let several programs share one.
    pub fn reuse_port(_: &Socket) -> io::Result<()> {
        Ok(())
    }

    /// Hyper-V, WSL and Docker have ranges of ports kept for them, after each start of the computer other ones.
    pub const CURE_OF_DENIED_PORT: &str = "Windows keeps it for something else (`netsh interface ipv4 show excludedportrange protocol=tcp` lists such ports), \
         or another program has it for itself; choose another one with --port";

    /// No service comes with this program here.
    pub const SERVICE_DATA: Option<&str> = None;

    pub const OTHER_STOPS: &str = "Ctrl+C does the same, and so does closing the window. Ctrl+Break is a restart instead: who can wait is not disconnected.";

    pub const LEAVING: &str = "";

    /// The events that ask a server to stop.
    pub struct StopSignals {
        c: windows::CtrlC,
        r#break: windows::CtrlBreak,
        close: windows::CtrlClose,
        shutdown: windows::CtrlShutdown,
    }

    impl StopSignals {
        /// Starts listening. Needs the tokio runtime.
        pub fn listen(_terminal: bool) -> io::Result<Self> {
            Ok(Self {
                c: windows::ctrl_c()?,
                r#break: windows::ctrl_break()?,
                close: windows::ctrl_close()?,
                shutdown: windows::ctrl_shutdown()?,
            })
        }

        /// Waits for the next one.
        pub async fn next(&mut self) -> Stop {
            tokio::select! {
                _ = self.c.recv() => Stop::for_good("Ctrl+C", Some(130)),
                _ = self.r#break.recv() => Stop::to_start_again("Ctrl+Break", Some(130)),
                _ = self.close.recv() => Stop::for_good("closing of the window", None),
                _ = self.shutdown.recv() => Stop::to_start_again("system shutdown", None),
            }
        }
    }

    /// The terminal to hold a dialogue on.
    #[derive(Debug, Clone)]
    pub struct Terminal {}

    impl Terminal {
        pub fn claim() -> Option<Self> {
            (io::stdin().is_terminal() && io::stdout().is_terminal()).then_some(Self {})
        }

        /// Nothing to do: shells set the mode they need when a program ends.
        pub fn restore(&self) {}

        pub fn is_alive(&self) -> bool {
            io::stdin().is_terminal()
        }
    }

    /// In PowerShell, for the commands that follow.
    pub fn with_variable(name: &str) -> String {
        format!("$env:{name}='...';")
    }

    pub fn in_background() -> bool {
        false
    }
}
