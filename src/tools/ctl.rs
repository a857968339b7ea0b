//! `ctl`: the console of a running server, from another process: one command, lines from a pipe, or a prompt.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustyline::ExternalPrinter;
use rustyline::error::ReadlineError;

use crate::admin::command;
use crate::admin::console::line_editor;
use crate::admin::control::{self, LINE_LIMIT, PATIENCE};
use crate::config::Config;
use crate::platform::Terminal;
use crate::platform::local::{self, Stream};

/// How long the server may take to say hello; it does so without being asked, unless it hangs.
const HELLO: Duration = Duration::from_secs(5);

/// Bytes of an answer; more than a table of thousands of backups has.
const ANSWER_LIMIT: u64 = 16 * 1024 * 1024;

const ENDED: &str = "the server has ended";

const PROMPT: &str = "multiuser (ctl)> ";

/// Log lines on their way to the screen.
const LOG_LINES: usize = 256;

pub fn run(config: &Config, words: &[String]) -> Result<ExitCode> {
    let path = control::path_for(config);
    let stream = local::connect(&path).map_err(|error| anyhow!(control::trouble(&path, &error)))?;
    stream.set_write_timeout(Some(HELLO))?;
    let (answer, answers) = channel();
    let (log, logs) = sync_channel(LOG_LINES);
    let reader = BufReader::new(stream.try_clone()?);
    thread::Builder::new()
        .name("ctl".into())
        .spawn(move || listen(reader, &answer, &log))?;
    let mut line = Line { stream, answers };
    match line.next(HELLO)? {
        (Kind::Hello, _) => {}
        (_, why) => bail!("{why}"),
    }
    if !words.is_empty() {
        return line.carry_out(&command::line(words));
    }
    match Terminal::claim() {
        Some(terminal) => prompt(line, logs, terminal),
        None => lines(line, io::stdin().lock()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hello,
    Ok,
    Failed,
    Log,
}

type Message = (Kind, String);

/// Takes in what the server says until it ends.
fn listen(mut reader: impl BufRead, answer: &Sender<Message>, log: &SyncSender<String>) {
    while let Ok(message) = read(&mut reader) {
        // Whoever waited for it may have given up.
        let _ = match message {
            (Kind::Log, line) => log.send(line).is_ok(),
            message => answer.send(message).is_ok(),
        };
    }
}

fn read(reader: &mut impl BufRead) -> io::Result<Message> {
    let mut head = Vec::new();
    reader.by_ref().take(64).read_until(b'\n', &mut head)?;
    let head = String::from_utf8_lossy(&head);
    let parsed = head.trim_end().split_once(' ').and_then(|(kind, length)| {
        let kind = match kind {
            "hello" => Kind::Hello,
            "ok" => Kind::Ok,
            "failed" => Kind::Failed,
            "log" => Kind::Log,
            _ => return None,
        };
        Some((kind, length.parse::<u64>().ok()?))
    });
    let (kind, length) = parsed
        .filter(|(_, length)| *length <= ANSWER_LIMIT)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut text = Vec::new();
    let read = reader.by_ref().take(length).read_to_end(&mut text)?;
    if u64::try_from(read).ok() != Some(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((kind, String::from_utf8_lossy(&text).into_owned()))
}

/// The connection to the server.
struct Line {
    stream: Stream,
    answers: Receiver<Message>,
}

impl Line {
    fn next(&mut self, patience: Duration) -> Result<Message> {
        self.answers
            .recv_timeout(patience)
            .map_err(|error| match error {
                RecvTimeoutError::Disconnected => anyhow!("{ENDED}"),
                RecvTimeoutError::Timeout => anyhow!("the server does not answer: it hangs"),
            })
    }

    fn ask(&mut self, asked: &str) -> Result<Message> {
        if asked.len() >= LINE_LIMIT || asked.contains('\n') {
            bail!("a command is one line of less than {LINE_LIMIT} characters");
        }
        let line = format!("{asked}\n");
        self.stream.write_all(line.as_bytes()).context(ENDED)?;
        self.next(PATIENCE + HELLO)
    }

    /// Has the server carry out a command, and prints what it says to it.
    fn tell(&mut self, command: &str) -> Result<ExitCode> {
        let (kind, text) = self.ask(&format!("run {}", command.trim()))?;
        let failed = kind == Kind::Failed;
        // Whoever reads may have gone.
        let _ = match failed {
            true => writeln!(io::stderr(), "{text}"),
            false if text.is_empty() => Ok(()),
            false => writeln!(io::stdout(), "{text}"),
        };
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// The same, and after an exit it waits until the server has stopped.
    fn carry_out(&mut self, command: &str) -> Result<ExitCode> {
        let done = self.tell(command)?;
        if is_exit(command) && done == ExitCode::SUCCESS {
            while self.next(PATIENCE).is_ok() {}
        }
        Ok(done)
    }
}

/// Commands from a pipe or a file. Fails if one of them has failed.
fn lines(mut line: Line, input: impl BufRead) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for command in input.lines() {
        let command = command.context("cannot read the commands")?;
        let done = line.carry_out(&command)?;
        if done != ExitCode::SUCCESS {
            code = done;
        } else if is_exit(&command) {
            break;
        }
    }
    Ok(code)
}

fn is_exit(command: &str) -> bool {
    command.trim().eq_ignore_ascii_case("exit")
}

/// The prompt, with the server's log above it.
fn prompt(line: Line, logs: Receiver<String>, terminal: Terminal) -> Result<ExitCode> {
    let line = Rc::new(RefCell::new(line));
    let asked = line.clone();
    let mut editor = line_editor(move || {
        let users = asked.borrow_mut().ask("users");
        let users = users.map_or_else(|_| String::new(), |(_, names)| names);
        users.lines().map(str::to_owned).collect()
    })?;
    let mut printer = editor.create_external_printer()?;
    let leaving = Arc::new(AtomicBool::new(false));
    let leaves = leaving.clone();
    thread::spawn(move || {
        for line in logs {
            let _ = printer.print(line + "\n");
        }
        if !leaves.load(Ordering::SeqCst) {
            // The prompt waits for a key, and cannot be told.
            terminal.restore();
            let _ = writeln!(io::stderr(), "{ENDED}");
            std::process::exit(1);
        }
    });
    let _ = writeln!(
        io::stdout(),
        "This is the console of the running server. Type help for its commands; exit stops the server, Ctrl+D leaves it running.",
    );
    line.borrow_mut().ask("watch")?;
    loop {
        match editor.readline(PROMPT) {
            Ok(command) => {
                let _ = editor.add_history_entry(command.trim());
                leaving.store(is_exit(&command), Ordering::SeqCst);
                let done = line.borrow_mut().carry_out(&command)?;
                if is_exit(&command) && done == ExitCode::SUCCESS {
                    return Ok(done);
                }
                leaving.store(false, Ordering::SeqCst);
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => {
                leaving.store(true, Ordering::SeqCst);
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => return Err(error).context("cannot read the terminal"),
        }
    }
}
