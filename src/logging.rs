//! Log lines: `2026-05-04T12:30:00.123456Z  INFO bob joined nodes=599`, to standard error and, if wanted, to a file.
//!
//! Whoever logs only queues a line; a thread of its own writes it. A terminal that is not read (`docker attach` left
//! open, Ctrl+S) or a slow disk so delays nobody. The queue is bounded; lines that do not fit are counted and reported.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::broadcast;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Config;

/// Lines waiting to be written; with [`LINE_LIMIT`] at most 8 MiB.
const QUEUE: usize = 1024;

/// Lines kept for those who look on.
const LIVE: usize = 256;

/// Bytes of one line; more is cut off.
const LINE_LIMIT: usize = 8 * 1024;

/// Writes one line, its newline included, where the operator looks.
pub type Screen = Box<dyn FnMut(&str) + Send>;

enum Job {
    Line(String),
    /// From here on lines for the terminal go there.
    Screen(Screen),
    /// Answer when everything before has been written.
    Flush(SyncSender<()>),
}

/// The handle of the log; clones share it.
#[derive(Clone)]
pub struct Logs {
    queue: SyncSender<Job>,
    lost: Arc<AtomicU64>,
    live: broadcast::Sender<Arc<str>>,
}

/// Starts logging for the whole process, as configured.
pub fn start(config: &Config) -> Result<Logs> {
    let file = config.log_file.as_deref().map(LogFile::open).transpose()?;
    let (logs, jobs) = Logs::new();
    let lost = logs.lost.clone();
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write(&jobs, stderr(), file, &lost))
        .context("cannot start the log thread")?;
    subscriber(logs.clone(), config.log_level)
        .try_init()
        .context("cannot start logging")?;
    Ok(logs)
}

/// Lines go to standard error.
pub fn stderr() -> Screen {
    Box::new(|line| {
        let _ = io::stderr().write_all(line.as_bytes());
    })
}

impl Logs {
    fn new() -> (Self, Receiver<Job>) {
        let (queue, jobs) = sync_channel(QUEUE);
        (
            Self {
                queue,
                lost: Arc::default(),
                live: broadcast::channel(LIVE).0,
            },
            jobs,
        )
    }

    /// The lines as they come, for somebody who looks on from elsewhere; who falls behind misses some.
    pub fn live(&self) -> broadcast::Receiver<Arc<str>> {
        self.live.subscribe()
    }

    /// Sends the lines for the terminal elsewhere. Returns when those before are out, or after a short while.
    pub fn set_screen(&self, screen: Screen) {
        let deadline = Instant::now() + Duration::from_millis(500);
        self.insist(Job::Screen(screen), deadline);
        self.flush_until(deadline);
    }

    /// Waits until everything logged so far is written, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        self.flush_until(Instant::now() + patience);
    }

    fn flush_until(&self, deadline: Instant) {
        let (done, is_done) = sync_channel(1);
        if self.insist(Job::Flush(done), deadline) {
            let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Queues a job that must not be dropped for a full queue, but not at any price.
    fn insist(&self, mut job: Job, deadline: Instant) -> bool {
        loop {
            job = match self.queue.try_send(job) {
                Ok(()) => return true,
                Err(TrySendError::Full(job)) if Instant::now() < deadline => job,
                Err(_) => return false,
            };
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn subscriber(logs: Logs, level: LevelFilter) -> impl Subscriber + Send + Sync {
    // Our own lines at the level asked for; of libraries only what went wrong.
    let targets = Targets::new()
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_default(level.min(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(logs);
    tracing_subscriber::registry().with(targets).with(lines)
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = &'a Logs;

    fn make_writer(&'a self) -> &'a Logs {
        self
    }
}

/// One call is one line: that is how the formatter of `tracing-subscriber` writes.
impl Write for &Logs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = clean(line);
        if self.live.receiver_count() > 0 {
            let _ = self.live.send(text.as_str().into());
        }
        if self.queue.try_send(Job::Line(text)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text of one line: bounded, and without control characters, which a peer could use to forge lines or to
/// command the operator's terminal.
fn clean(line: &[u8]) -> String {
    let shown = line.get(..LINE_LIMIT).unwrap_or(line);
    let text = String::from_utf8_lossy(shown);
    let mut cleaned = String::with_capacity(text.len() + 1);
    for c in text.trim_end_matches('\n').chars() {
        if c.is_control() && c != '\t' {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    if shown.len() < line.len() {
        cleaned.push('…');
    }
    cleaned.push('\n');
    cleaned
}

/// The log thread: ends with the last handle.
fn write(jobs: &Receiver<Job>, mut screen: Screen, mut file: Option<LogFile>, lost: &AtomicU64) {
    let mut put = |screen: &mut Screen, line: &str| {
        screen(line);
        if let Some(complaint) = file.as_mut().and_then(|file| file.append(line)) {
            screen(&complaint);
        }
    };
    for job in jobs {
        match job {
            Job::Line(line) => put(&mut screen, &line),
            Job::Screen(new) => screen = new,
            Job::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            put(
                &mut screen,
                &format!("({missing} log lines lost: the terminal or the log file is too slow)\n"),
            );
        }
    }
}

struct LogFile {
    file: File,
    path: PathBuf,
    failing: bool,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| {
                format!(
                    "cannot write to the log file {}; give another one with --log-file, or none",
                    path.display()
                )
            })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            failing: false,
        })
    }

    /// Appends a line; says once when that begins to fail.
    fn append(&mut self, line: &str) -> Option<String> {
        let result = self.file.write_all(line.as_bytes());
        let news = result.is_err() && !self.failing;
        self.failing = result.is_err();
        let error = result.err().filter(|_| news)?;
        Some(format!(
            "(cannot write to the log file {}: {error})\n",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A screen that remembers what was written to it.
    fn recorder() -> (Screen, Arc<Mutex<String>>) {
        let record = Arc::new(Mutex::new(String::new()));
        let copy = record.clone();
        (
            Box::new(move |line| copy.lock().unwrap().push_str(line)),
            record,
        )
    }

    /// What the log thread writes of what `act` logs.
    fn logged(level: LevelFilter, file: Option<LogFile>, act: impl FnOnce(&Logs)) -> String {
        let (logs, jobs) = Logs::new();
        let (screen, record) = recorder();
        let lost = logs.lost.clone();
        tracing::subscriber::with_default(subscriber(logs.clone(), level), || act(&logs));
        drop(logs);
        write(&jobs, screen, file, &lost);
        record.lock().unwrap().clone()
    }

    #[test]
    fn lines_have_date_zone_level_and_fields() {
        let text = logged(LevelFilter::INFO, None, |_| {
            tracing::info!(user = "bob", nodes = 3, "joined");
            tracing::debug!("not shown");
        });
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        assert_eq!(rest.trim_start(), "INFO joined user=\"bob\" nodes=3\n");
    }

    #[test]
    fn libraries_are_quiet_even_at_trace() {
        let text = logged(LevelFilter::TRACE, None, |_| {
            tracing::info!(target: "somewhere", "chatter");
            tracing::warn!(target: "somewhere", "trouble");
            tracing::trace!("own");
        });
        assert!(!text.contains("chatter") && text.contains("trouble") && text.contains("own"));
    }

    #[test]
    fn a_peer_cannot_forge_lines_or_command_the_terminal() {
        let text = logged(LevelFilter::INFO, None, |_| {
            tracing::info!("from {}", "eve\n2026 INFO fine\r\x1b[2J\u{9b}2J");
        });
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains(['\r', '\x1b', '\u{9b}']), "{text:?}");
    }

    #[test]
    fn long_lines_are_cut() {
        let line = clean("ä".repeat(LINE_LIMIT).as_bytes());
        assert!(line.len() < LINE_LIMIT + 10 && line.ends_with("…\n"));
    }

    #[test]
    fn lost_lines_are_counted_not_waited_for() {
        let text = logged(LevelFilter::INFO, None, |_| {
            for i in 0..QUEUE + 7 {
                tracing::info!(i);
            }
        });
        assert_eq!(text.lines().count(), QUEUE + 1);
        assert!(text.contains("(7 log lines lost"), "{text}");
    }

    #[test]
    fn a_new_screen_gets_what_follows() {
        let (other, record) = recorder();
        let text = logged(LevelFilter::INFO, None, |logs| {
            tracing::info!("before");
            logs.queue
                .try_send(Job::Screen(other))
                .map_err(|_| ())
                .unwrap();
            tracing::info!("after");
        });
        assert!(text.contains("before") && !text.contains("after"));
        assert!(record.lock().unwrap().contains("after"));
    }

    #[test]
    fn the_log_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for word in ["one", "two"] {
            let screen = logged(
                LevelFilter::INFO,
                Some(LogFile::open(&path).unwrap()),
                |_| {
                    tracing::info!("{word}");
                },
            );
            assert!(screen.contains(word));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let error = LogFile::open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("--log-file"));
    }
}
