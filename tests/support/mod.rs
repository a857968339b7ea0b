//! Support for whole-server tests: the real server binary, real Python clients, and a proxy between them.
//!
//! Tests read as stories:
//! ```ignore
//! let Some(server) = Server::start() else { return };
//! let alice = server.host("Alice", &["Cube"]);
//! let bob = server.join("Bob");
//! alice.edit("Cube", "d['location'][0] = 2.0");
//! server.assert_settled(&[&alice, &bob]);
//! ```
//! Everything started here is killed when it is dropped, and every wait has a deadline that says what it waited for.
#![allow(dead_code, unused_imports)] // each test binary and bench uses its own part

pub mod client;
pub mod converge;
pub mod load;
pub mod needs;
pub mod process;
pub mod proxy;
pub mod server;
pub mod venv;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use client::{Client, state};
pub use converge::assert_converged;
pub use load::Load;
pub use needs::{Need, needs};
pub use proxy::{CHANNELS, Channel, Proxy};
pub use server::{Ports, Server, Stopped};

/// How long anything may take before a test calls it broken. Generous: the machines of CI are slow.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// Asks `probe` every 30 ms until it answers; panics with `what` after `deadline`.
pub fn wait_within<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            start.elapsed() < deadline,
            "waited {:.1} s in vain: {what}",
            start.elapsed().as_secs_f32()
        );
        thread::sleep(Duration::from_millis(30));
    }
}

/// [`wait_within`] the usual deadline, for a condition.
pub fn wait_until(what: &str, mut probe: impl FnMut() -> bool) {
    wait_within(DEADLINE, what, || probe().then_some(()));
}

/// The lines a process has written, kept for the failure report.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Collects every line of `source` in a thread, until it ends.
    pub fn collect(&self, source: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(1..)) {
                log.0
                    .lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        });
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn find(&self, needle: &str) -> Option<String> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .find(|line| line.contains(needle))
            .cloned()
    }

    /// The last `count` lines, indented, under a title.
    pub fn report(&self, title: &str, count: usize) -> String {
        let lines = self.0.lock().unwrap();
        let tail = &lines[lines.len().saturating_sub(count)..];
        format!(
            "--- {title} (last {} of {} lines)\n    {}\n",
            tail.len(),
            lines.len(),
            tail.join("\n    ")
        )
    }
}

/// Sends a signal by name (`TERM`, `KILL`, `STOP`, …) to a process, or to its whole group.
pub fn signal(name: &str, pid: u32, whole_group: bool) {
    let group = if whole_group { "-" } else { "" };
    let target = format!("{group}{pid}");
    let script = format!("kill -s {name} -- {target} 2>/dev/null");
    let _ = Command::new("sh").args(["-c", &script]).status();
}

/// Waits for a process to end by itself.
pub fn wait_exit(child: &mut Child, what: &str) -> std::process::ExitStatus {
    wait_within(DEADLINE, &format!("{what} to exit"), || {
        child.try_wait().expect("process can be asked")
    })
}
