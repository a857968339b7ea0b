//! Log lines: `2026-05-04T12:30:00.123456Z  INFO bob joined nodes=599` or the same as JSON, to standard error and, if
//! wanted, to a file.
//!
//! Whoever logs only queues a line; a thread of its own writes it. A terminal that is not read (`docker attach` left
//! open, Ctrl+S) or a slow disk so delays nobody. The queue is bounded; lines that do not fit are counted and reported.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::broadcast;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};

use file::LogFile;

mod file;
mod line;

/// Lines waiting to be written; with [`line::LIMIT`] at most 8 MiB.
const QUEUE: usize = 1024;

/// Lines kept for those who look on.
const LIVE: usize = 256;

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
    format: LogFormat,
    live: broadcast::Sender<Arc<str>>,
}

/// Starts logging for the whole process, as configured.
pub fn start(config: &Config) -> Result<Logs> {
    let open = |path| LogFile::open(path, config.log_max_size, config.log_max_files);
    let file = config.log_file.as_deref().map(open).transpose()?;
    let format = config.log_format;
    let (logs, jobs) = Logs::new(format);
    let lost = logs.lost.clone();
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write(&jobs, stderr(), file, &lost, format))
        .context("cannot start the log thread")?;
    subscriber(logs.clone(), config.log_level)
        .try_init()
        .context("cannot start logging")?;
    Ok(logs)
}

/// A time as log lines have it, in seconds: exact to the millisecond, and with no more digits than that.
pub fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

/// Lines go to standard error.
pub fn stderr() -> Screen {
    Box::new(|line| {
        let _ = io::stderr().write_all(line.as_bytes());
    })
}

impl Logs {
    fn new(format: LogFormat) -> (Self, Receiver<Job>) {
        let (queue, jobs) = sync_channel(QUEUE);
        (
            Self {
                queue,
                lost: Arc::default(),
                format,
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
        .with_target(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match logs.format {
        LogFormat::Text => lines.with_writer(logs).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_writer(logs).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(targets))
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
        let text = line::clean(line, self.format);
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

/// The log thread: ends with the last handle.
fn write(
    jobs: &Receiver<Job>,
    mut screen: Screen,
    mut file: Option<LogFile>,
    lost: &AtomicU64,
    format: LogFormat,
) {
    let mut put = |screen: &mut Screen, text: &str| {
        screen(text);
        if let Some(news) = file.as_mut().and_then(|file| file.append(text)) {
            screen(&line::warning(format, &news));
        }
    };
    for job in jobs {
        match job {
            Job::Line(text) => put(&mut screen, &text),
            Job::Screen(new) => screen = new,
            Job::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let news =
                format!("{missing} log lines lost: the terminal or the log file is too slow");
            put(&mut screen, &line::warning(format, &news));
        }
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
        logged_as(LogFormat::Text, level, file, act)
    }

    fn logged_as(
        format: LogFormat,
        level: LevelFilter,
        file: Option<LogFile>,
        act: impl FnOnce(&Logs),
    ) -> String {
        let (logs, jobs) = Logs::new(format);
        let (screen, record) = recorder();
        let lost = logs.lost.clone();
        tracing::subscriber::with_default(subscriber(logs.clone(), level), || act(&logs));
        drop(logs);
        write(&jobs, screen, file, &lost, format);
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
    fn times_have_few_digits() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged_as(format, LevelFilter::INFO, None, |_| {
                tracing::info!(
                    seconds = seconds(Duration::from_nanos(197_554_945)),
                    "joined"
                );
            });
            assert!(
                text.trim_end_matches(['}', '\n']).ends_with("0.197"),
                "{text}"
            );
        }
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
    fn json_lines_are_objects_whatever_is_in_them() {
        let text = logged_as(LogFormat::Json, LevelFilter::INFO, None, |_| {
            tracing::info!(user = "bob", nodes = 3, "joined");
            tracing::warn!("from {}", "eve\n2026 INFO fine\r\x1b[2J\u{9b}2J");
            tracing::info!(long = "ä".repeat(line::LIMIT), "much");
            for i in 0..QUEUE {
                tracing::info!(i);
            }
        });
        assert!(!text.contains(['\r', '\x1b', '\u{9b}']), "{text:?}");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), QUEUE + 1);
        for line in &lines {
            let time: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
            assert!(time.as_second() > 1_700_000_000);
        }
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["message"], "joined");
        assert_eq!(lines[0]["user"], "bob");
        assert_eq!(lines[0]["nodes"], 3);
        assert_eq!(lines[1]["level"], "WARN");
        let lost = lines[1]["message"].as_str().unwrap();
        assert!(lost.starts_with("3 log lines lost"), "{lost}");
        assert_eq!(
            lines[2]["message"],
            "from eve\n2026 INFO fine\r\x1b[2J\u{9b}2J"
        );
        assert_eq!(lines[3]["message"], "much");
        assert!(lines[3]["long"].as_str().unwrap().ends_with("ä…"));
    }

    #[test]
    fn lost_lines_are_counted_not_waited_for() {
        let text = logged(LevelFilter::INFO, None, |_| {
            for i in 0..QUEUE + 7 {
                tracing::info!(i);
            }
        });
        assert_eq!(text.lines().count(), QUEUE + 1);
        assert!(text.contains("WARN 7 log lines lost"), "{text}");
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
                Some(LogFile::open(&path, None, 1).unwrap()),
                |_| {
                    tracing::info!("{word}");
                },
            );
            assert!(screen.contains(word));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
