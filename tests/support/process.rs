//! A client's process: forked from a Python that has imported everything already, and yet one of its own with its own pid.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::DEADLINE;
use super::venv::Python;

/// Forks of one process share the seed of their hashes, so sets have the same order in all of them. Clients of a story must not,
/// so there are two such processes per environment, which take turns.
const SEEDS: usize = 2;

/// What has been started, by environment, and whose turn it is.
type Zygotes = HashMap<PathBuf, (usize, Vec<Zygote>)>;

/// Ends with this process: its stdin closes.
struct Zygote {
    socket: PathBuf,
    _child: Child,
}

pub struct Process {
    pub pid: u32,
    control: BufReader<UnixStream>,
    /// The client's stdin and stdout.
    pub standard: UnixStream,
    pub stderr: UnixStream,
}

impl Process {
    /// Starts a client of this environment.
    pub fn spawn(python: &Python) -> Self {
        static ZYGOTES: Mutex<Option<Zygotes>> = Mutex::new(None);
        // Held until all three are connected, so that they belong together.
        let mut zygotes = ZYGOTES.lock().unwrap_or_else(PoisonError::into_inner);
        let (turn, zygotes) = zygotes
            .get_or_insert_default()
            .entry(python.to_path_buf())
            .or_default();
        *turn = (*turn + 1) % SEEDS;
        if zygotes.len() <= *turn {
            zygotes.resize_with(SEEDS, || Zygote::start(python));
        }
        let socket = &zygotes[*turn].socket;
        let connect = || UnixStream::connect(socket).expect("clients can be started");
        let (control, standard, stderr) = (connect(), connect(), connect());
        control
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        let mut control = BufReader::new(control);
        let pid = line(&mut control)
            .parse()
            .expect("the first line is the process id");
        Self {
            pid,
            control,
            standard,
            stderr,
        }
    }

    /// Waits until it has ended, by itself or by a signal.
    pub fn wait(&mut self) {
        let _ = self.control.read_line(&mut String::new());
    }
}

fn line(control: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    control
        .read_line(&mut line)
        .expect("the process that starts clients answers");
    line.trim().to_owned()
}

impl Zygote {
    fn start(python: &Python) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory").keep();
        let socket = directory.join("clients");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/zygote.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(&socket)
            .arg(python.spec.driver)
            .args(python.spec.preload)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client's python runs");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped"))
            .read_line(&mut said)
            .expect("the client's python says something");
        assert_eq!(said.trim(), "listening", "clients cannot be started");
        Self {
            socket,
            _child: child,
        }
    }
}
