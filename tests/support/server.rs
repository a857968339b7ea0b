//! The server under test: the real binary on free ports with a data directory of its own.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use super::client::Login;
use super::venv::{self, Python, Spec};
use super::{Channel, Client, Log, assert_converged, signal, wait_exit, wait_within};

/// The ports a server announced, or a proxy listens on.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub command: u16,
    pub data: u16,
    pub ttl: u16,
}

impl Ports {
    pub fn from(command: u16) -> Self {
        Self {
            command,
            data: command + 1,
            ttl: command + 2,
        }
    }
}

/// The variable that runs a suite against upstream's Python server (`python`), to tell the tests' own
/// faults from the server's. It fails many of them: that is why this project exists. Any other value is the path of the program to
/// test in place of the one that cargo has built, such as a script that starts one for another system in an emulator.
const REFERENCE: &str = "TEST_SERVER";

pub struct Server {
    pub ports: Ports,
    /// What its clients run on.
    pub python: Python,
    pub data_dir: tempfile::TempDir,
    pub log: Log,
    child: Child,
    stdin: Option<std::process::ChildStdin>,
}

impl Server {
    /// An open server whose admin password is `admin`, for clients of [`venv::chosen`]. `None`: no Python here, skip the test.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with Alice, who brings these objects along, and with everybody who joins her.
    pub fn studio<const N: usize>(
        objects: &[&str],
        others: [&str; N],
    ) -> Option<(Self, Client, [Client; N])> {
        let server = Self::start()?;
        let alice = server.host("Alice", objects);
        let others = others.map(|name| server.join(name));
        Some((server, alice, others))
    }

    /// One with more command line flags.
    pub fn start_with(flags: &[&str]) -> Option<Self> {
        let python = venv::python(venv::chosen())?;
        Some(if std::env::var(REFERENCE).is_ok_and(|v| v == "python") {
            Self::start_upstream(python, flags)
        } else {
            Self::start_binary(python, flags)
        })
    }

    /// The same in a data directory of the caller's.
    pub fn start_in(data_dir: tempfile::TempDir, flags: &[&str]) -> Option<Self> {
        let python = venv::python(&venv::CURRENT)?;
        Some(Self::start_on(python, data_dir, flags))
    }

    /// One whose clients have this version of the library.
    pub fn start_for(spec: &'static Spec, flags: &[&str]) -> Option<Self> {
        Some(Self::start_binary(venv::python(spec)?, flags))
    }

    fn start_binary(python: Python, flags: &[&str]) -> Self {
        Self::start_on(
            python,
            tempfile::tempdir().expect("temporary directory"),
            flags,
        )
    }

    /// Kills the server and starts it anew on the same ports and data directory.
    pub fn crash_and_restart(self) -> Self {
        self.kill().start(&[])
    }

    /// Ends the process as a power cut would.
    pub fn kill(mut self) -> Stopped {
        self.child.kill().expect("process can be killed");
        self.child.wait().expect("process can be waited for");
        self.stopped()
    }

    /// SIGTERM, and waits until it has left in order.
    pub fn stop(mut self) -> Stopped {
        self.terminate();
        assert_eq!(self.wait_exit().code(), Some(0));
        self.stopped()
    }

    /// What is left of a process that has ended.
    fn stopped(mut self) -> Stopped {
        let nothing = tempfile::tempdir().expect("temporary directory");
        Stopped {
            port: self.ports.command,
            python: self.python.clone(),
            data_dir: std::mem::replace(&mut self.data_dir, nothing),
            log: self.log.clone(),
        }
    }

    fn start_on(python: Python, data_dir: tempfile::TempDir, flags: &[&str]) -> Self {
        let program = std::env::var(REFERENCE);
        let program = program
            .as_deref()
            .ok()
            .filter(|&program| program != "python");
        let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_blender-multiuser")));
        // None of those that the system hands out: while a server restarts, somebody who calls might be given its port.
        let port = free_ports().command.to_string();
        for (flag, value) in [
            ("--port", &*port),
            ("--bind", "127.0.0.1"),
            ("--admin-password", "admin"),
            ("--log-level", "debug"),
        ] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.arg("--data-dir").arg(data_dir.path()).args(flags);
        let (child, stdin, log) = spawn(command, data_dir.path());
        let mut server = Self {
            ports: Ports::from(0),
            python,
            data_dir,
            log,
            child,
            stdin,
        };
        server.ports = wait_within(super::DEADLINE, "the server to announce its ports", || {
            if let Some(status) = server.child.try_wait().expect("process can be asked") {
                panic!(
                    "the server ended at once: {status}\n{}",
                    server.log.report("server", 50)
                );
            }
            server
                .log
                .find("Ports: command ")
                .map(|line| announced(&line))
        });
        server
    }

    /// Upstream's server. It cannot choose its ports itself; of the flags it knows two.
    pub fn start_upstream(python: Python, flags: &[&str]) -> Self {
        let data_dir = tempfile::tempdir().expect("temporary directory");
        let ports = free_ports();
        let mut command = Command::new(&python);
        command.arg(venv::package(&python).join("server.py"));
        command.args([
            "-p",
            &ports.command.to_string(),
            "-t",
            "5000",
            "-apwd",
            "admin",
            "-lf",
            "server.log",
        ]);
        for pair in flags.chunks(2) {
            match pair {
                ["--server-password", value] => drop(command.args(["-spwd", value])),
                ["--timeout", value] => drop(command.args(["-t", value])),
                other => eprintln!("upstream's server has no {other:?}"),
            }
        }
        let (child, stdin, log) = spawn(command, data_dir.path());
        let server = Self {
            ports,
            python,
            data_dir,
            log,
            child,
            stdin,
        };
        wait_within(super::DEADLINE, "upstream's server to listen", || {
            [ports.command, ports.data, ports.ttl]
                .iter()
                .all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok())
                .then_some(())
        });
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types a line at the server's console.
    pub fn console(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the console is open");
        writeln!(stdin, "{line}").expect("the console can be written to");
    }

    /// Ends the console's input, as a service manager or `docker run` without `-i` does.
    pub fn close_console(&mut self) {
        self.stdin = None;
    }

    /// SIGTERM; the server is expected to leave by itself, in order.
    pub fn terminate(&mut self) {
        signal("TERM", self.child.id(), false);
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_exit(&mut self.child, "the server")
    }

    /// A client to be configured before it connects.
    pub fn client(&self, name: &str) -> Login<'_> {
        Login::new(self, name)
    }

    /// A process with bare DEALER sockets, whatever the others speak.
    pub fn stranger(&self, name: &str) -> Client {
        let python = venv::python(&venv::CURRENT).expect("there is a python3 if there is a server");
        Client::spawn(&python, name)
    }

    /// What the server's clients send to log in, for [`Client::send`].
    pub fn login_frames(&self, name: &str, admin_password: Option<&str>) -> String {
        let spec = self.python.spec;
        let kind = admin_password.map_or("CLIENT", |_| "ADMIN");
        let password = admin_password.map_or("None".to_owned(), |text| format!("'{text}'"));
        let passwords = match spec.has_one_password() {
            true => format!("'PWD': {password}"),
            false => format!("'S_PWD': '', 'A_PWD': {password}"),
        };
        format!(
            "[P(9), b'{name}', P({{'AUTH_TYPE': '{kind}', 'AUTH_ID': '{name}', {passwords}, 'VERSION': '{}'}})]",
            spec.version
        )
    }

    /// Where the heartbeat of its clients goes.
    pub fn ttl(&self) -> (Channel, u16) {
        match self.python.spec.is_four_socket() {
            true => (Channel::FourSocketTtl, self.ports.ttl + 1),
            false => (Channel::Ttl, self.ports.ttl),
        }
    }

    /// Logs an administrator in and lets him initialise the session with these objects.
    pub fn host(&self, name: &str, objects: &[&str]) -> Client {
        let client = self.client(name).admin().connect();
        client.await_lobby();
        client.init(objects, 8);
        client.await_active();
        client
    }

    /// Logs an ordinary user in and waits until he has the whole scene.
    pub fn join(&self, name: &str) -> Client {
        let client = self.client(name).connect();
        client.await_active();
        client
    }

    /// The end of every story: all these clients and one who comes now hold the same scene, value by
    /// value, owners and dependencies included, and nobody saw an exception on the way.
    pub fn assert_settled(&self, clients: &[&Client]) {
        assert_converged(clients);
        let witness = self.join("Witness");
        let mut everybody = clients.to_vec();
        everybody.push(&witness);
        assert_converged(&everybody);
        witness.leave();
        for client in everybody {
            client.assert_no_problems();
        }
    }

    /// The session still does its work: an edit of the first client reaches all others.
    pub fn assert_works(&self, clients: &[&Client]) {
        static STAMP: AtomicU16 = AtomicU16::new(1);
        let stamp = STAMP.fetch_add(1, Ordering::Relaxed);
        clients[0].edit("World", &format!("d['stamp'] = {stamp}"));
        for client in clients {
            client.await_value("World", "d.get('stamp')", stamp);
        }
        self.assert_settled(clients);
    }
}

/// A server that has ended, and what it has left.
pub struct Stopped {
    port: u16,
    python: Python,
    pub data_dir: tempfile::TempDir,
    /// Of the process that has ended.
    pub log: Log,
}

impl Stopped {
    /// A new process on the same ports and data directory.
    pub fn start(self, flags: &[&str]) -> Server {
        let port = self.port.to_string();
        let flags = [&["--port", &port], flags].concat();
        Server::start_on(self.python, self.data_dir, &flags)
    }

    /// The same data in another directory, for a server on free ports.
    pub fn copy(&self) -> Self {
        let data_dir = tempfile::tempdir().expect("temporary directory");
        copy_tree(self.data_dir.path(), data_dir.path());
        Self {
            port: 0,
            python: self.python.clone(),
            data_dir,
            log: Log::default(),
        }
    }

    /// A file or directory below the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.data_dir.path().join(name)
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        let target = to.join(path.file_name().expect("entries have names"));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else if path.is_file() {
            std::fs::copy(&path, &target).expect("a file can be copied");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal("KILL", self.child.id(), true);
        let _ = self.child.wait();
        if thread::panicking() {
            eprint!("{}", self.log.report("server", 120));
        }
    }
}

fn spawn(mut command: Command, directory: &Path) -> (Child, Option<std::process::ChildStdin>, Log) {
    use std::os::unix::process::CommandExt;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that dropping it leaves nothing behind. `NO_COLOR` keeps the log readable.
    command
        .current_dir(directory)
        .process_group(0)
        .env("NO_COLOR", "1");
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let log = Log::default();
    log.collect(child.stdout.take().expect("stdout is piped"));
    log.collect(child.stderr.take().expect("stderr is piped"));
    let stdin = child.stdin.take();
    (child, stdin, log)
}

/// `Ports: command 40001, data 40002, TTL 40003, four-socket TTL 40004`
fn announced(line: &str) -> Ports {
    let numbers: Vec<u16> = line
        .split_once("Ports:")
        .map_or("", |(_, ports)| ports)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let [command, data, ttl, _four_socket] = numbers[..] else {
        panic!("four ports in: {line}")
    };
    assert_eq!(
        (data, ttl),
        (command + 1, command + 2),
        "clients compute the other ports from the first"
    );
    Ports { command, data, ttl }
}

/// Consecutive ports that were free a moment ago, below the range that systems hand out by themselves.
pub fn free_ports() -> Ports {
    claim_ports().0
}

/// The same, still bound.
pub fn claim_ports() -> (Ports, [TcpListener; 4]) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id() % 300) as u16 * 40;
    for _ in 0..3000 {
        let first = 20000 + (offset + NEXT.fetch_add(4, Ordering::Relaxed)) % 12000;
        let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
        if let (Ok(a), Ok(b), Ok(c), Ok(d)) = (
            bind(first),
            bind(first + 1),
            bind(first + 2),
            bind(first + 3),
        ) {
            return (Ports::from(first), [a, b, c, d]);
        }
    }
    panic!("no free ports between 20000 and 32000");
}
