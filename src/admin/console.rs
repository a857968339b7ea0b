//! The console: commands typed at a terminal, or read line by line from a pipe.
//!
//! It runs in a thread of its own, because reading a terminal blocks. The end of input ends the console, never the server.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Cmd, CompletionType, Context, Editor, ExternalPrinter, Helper, KeyEvent};
use tracing::{debug, info, warn};

use super::command::{self, Input};
use super::operator::{EXIT_REASON, Operator};
use super::render::{count, render};
use super::{AdminCommand, AdminReply, Status};
use crate::logging::{self, Logs};
use crate::platform::{self, LEAVING, Terminal};

const PROMPT: &str = "multiuser> ";

/// Time within which a second Ctrl+C means it.
const SECOND_INTERRUPT: Duration = Duration::from_secs(3);

/// The operator looks at an empty screen meanwhile. What is not done by then goes on.
const PATIENCE: Duration = Duration::from_secs(10);

/// For questions the operator did not ask: completion, and who would be hit by Ctrl+C.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);

/// More than the prompt needs to draw itself once.
const REDRAW: Duration = Duration::from_millis(50);

/// How long the end of the process waits for the log to be written.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Lines of history kept.
const HISTORY: usize = 500;

/// A longer line of input is cut in pieces, so that no input fills the memory.
const LINE_LIMIT: u64 = 64 * 1024;

/// A console that has been started.
#[derive(Clone)]
pub struct Console {
    terminal: Option<Terminal>,
    logs: Logs,
}

impl Console {
    /// Starts the console: with line editing at a terminal, else with plain lines. `data_dir` keeps the history.
    pub fn start(operator: Operator, logs: Logs, data_dir: &Path) -> Result<Self> {
        if platform::in_background() {
            info!("started in the background: no console");
            return Ok(Self {
                terminal: None,
                logs,
            });
        }
        let history = data_dir.join("console_history");
        let dialogue = Terminal::claim().and_then(|terminal| {
            let dialogue = Dialogue::new(operator.clone(), terminal.clone(), &logs, history);
            dialogue
                .inspect_err(|error| debug!("no line editing: {error}"))
                .ok()
                .map(|d| (terminal, d))
        });
        let (terminal, dialogue) = dialogue.unzip();
        let console = Self { terminal, logs };
        let leave = console.clone();
        thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                if let Some(mut dialogue) = dialogue {
                    let talk = AssertUnwindSafe(|| dialogue.talk());
                    if catch_unwind(talk).is_ok() {
                        return;
                    }
                    leave.leave();
                    warn!("line editing failed; the console goes on with plain lines");
                }
                read_lines(&operator, io::stdin().lock());
            })
            .context("cannot start the console thread")?;
        Ok(console)
    }

    /// Whether somebody types at a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Gives the terminal back as it was before the start, and gets the log out. Log lines go to standard error
    /// from here on.
    pub fn leave(&self) {
        if let Some(terminal) = &self.terminal {
            self.logs.set_screen(logging::stderr());
            // The last lines are on their way through the prompt, which draws itself anew after each.
            thread::sleep(REDRAW);
            terminal.restore();
        }
        self.logs.flush(LAST_LINES);
    }
}

/// Prints a line. `println!` would panic where standard output has been closed.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Does what a line says. Returns whether the console goes on.
fn obey(operator: &Operator, line: &str) -> bool {
    let (command, view) = match command::parse(line) {
        Ok(Input::Nothing) => return true,
        Ok(Input::Help(text)) | Err(text) => {
            say(&text);
            return true;
        }
        Ok(Input::Ask(command, view)) => (command, view),
    };
    let exit = matches!(command, AdminCommand::Exit { .. });
    match operator.ask_blocking(command, PATIENCE) {
        Ok(reply) => say(&render(&reply, view)),
        Err(silence) => say(&silence.to_string()),
    }
    !exit || !operator.is_leaving()
}

/// The console without a terminal: no prompt, no echo.
fn read_lines(operator: &Operator, mut input: impl BufRead) {
    let mut line = Vec::new();
    while !operator.is_leaving() {
        line.clear();
        match input.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) => return debug!("end of console input"),
            Ok(_) => {
                if !obey(operator, &String::from_utf8_lossy(&line)) {
                    return;
                }
            }
            Err(error) => return debug!("console input: {error}"),
        }
    }
}

/// The console at a terminal.
struct Dialogue {
    operator: Operator,
    terminal: Terminal,
    editor: LineEditor<Box<dyn Fn() -> Vec<String> + Send>>,
    history: PathBuf,
    interrupted: Option<Instant>,
}

impl Dialogue {
    fn new(
        operator: Operator,
        terminal: Terminal,
        logs: &Logs,
        history: PathBuf,
    ) -> rustyline::Result<Self> {
        let asked = operator.clone();
        let names = move || {
            let users = status(&asked).into_iter().flat_map(|status| status.users);
            users.map(|user| user.name).collect()
        };
        let mut editor = line_editor::<Box<dyn Fn() -> Vec<String> + Send>>(Box::new(names))?;
        // Suspending would freeze the session of everybody.
        editor.bind_sequence(KeyEvent::ctrl('Z'), Cmd::Noop);
        let mut printer = editor.create_external_printer()?;
        // Standard error sent elsewhere (2> file) is still where the log belongs.
        if io::IsTerminal::is_terminal(&io::stderr()) {
            logs.set_screen(Box::new(move |line| {
                let _ = printer.print(line.to_owned());
            }));
        }
        for line in recall(&history) {
            let _ = editor.add_history_entry(line);
        }
        Ok(Self {
            operator,
            terminal,
            editor,
            history,
            interrupted: None,
        })
    }

    fn talk(&mut self) {
        say("Type help for the commands of this console.");
        while !self.operator.is_leaving() {
            let goes_on = match self.editor.readline(PROMPT) {
                Ok(line) => {
                    self.interrupted = None;
                    self.remember(&line);
                    obey(&self.operator, &line)
                }
                Err(ReadlineError::Interrupted) => self.interrupt(),
                Err(ReadlineError::Eof) if self.terminal.is_alive() => {
                    say(&format!(
                        "The server goes on. To stop it type exit{LEAVING}."
                    ));
                    true
                }
                Err(error) => {
                    debug!("console input: {error}");
                    // Not to spin where the reason lasts, such as a lack of file descriptors.
                    thread::sleep(Duration::from_secs(1));
                    self.terminal.is_alive()
                }
            };
            if !goes_on {
                break;
            }
        }
    }

    /// Ctrl+C at the prompt, or a SIGINT while it waits: rustyline does not tell them apart.
    fn interrupt(&mut self) -> bool {
        let again = self
            .interrupted
            .take()
            .is_some_and(|first| first.elapsed() < SECOND_INTERRUPT);
        let users = status(&self.operator).map_or(0, |status| status.users.len());
        if again || users == 0 {
            return self.exit();
        }
        self.interrupted = Some(Instant::now());
        let users = if users == 1 {
            "1 user is".into()
        } else {
            format!("{} are", count(users, "user"))
        };
        say(&format!(
            "{users} connected; press Ctrl+C again within {} seconds to stop the server for everybody{LEAVING}.",
            SECOND_INTERRUPT.as_secs()
        ));
        true
    }

    /// Stops the server, or ends the process at once where that is under way already. Returns whether the console
    /// goes on.
    fn exit(&self) -> bool {
        if self.operator.is_leaving() {
            std::process::exit(130);
        }
        let exit = AdminCommand::Exit {
            reason: EXIT_REASON.into(),
        };
        match self.operator.ask_blocking(exit, PATIENCE) {
            Ok(AdminReply::Failed(text)) => say(&text),
            Ok(_) => {}
            Err(silence) => say(&silence.to_string()),
        }
        !self.operator.is_leaving()
    }

    /// Adds a line to the history, here and in its file. A lost history is not worth a word.
    fn remember(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty()
            || line.contains('\n')
            || !self.editor.add_history_entry(line).unwrap_or(false)
        {
            return;
        }
        let _ =
            platform::append_private(&self.history).and_then(|mut file| writeln!(file, "{line}"));
    }
}

/// The newest lines of the history file, which is shortened to them when it has grown.
fn recall(path: &Path) -> VecDeque<String> {
    let Ok(content) = fs::read(path) else {
        return VecDeque::new();
    };
    let text = String::from_utf8_lossy(&content);
    let mut lines: VecDeque<String> = text.lines().map(str::to_owned).collect();
    if lines.len() > 2 * HISTORY {
        lines.drain(..lines.len() - HISTORY);
        let kept: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let _ = platform::write_private(path, kept.as_bytes());
    }
    lines
}

fn status(operator: &Operator) -> Option<Status> {
    match operator.ask_blocking(AdminCommand::Status, SHORT_PATIENCE) {
        Ok(AdminReply::Status(status)) => Some(*status),
        _ => None,
    }
}

/// Reads lines at a terminal, with history and completion.
pub type LineEditor<F> = Editor<Completion<F>, DefaultHistory>;

/// One for commands; `names` tells who is connected.
pub fn line_editor<F: Fn() -> Vec<String>>(names: F) -> rustyline::Result<LineEditor<F>> {
    let settings = rustyline::Config::builder()
        .completion_type(CompletionType::List)
        .max_history_size(HISTORY)?
        .build();
    let memory = DefaultHistory::with_config(&settings);
    let mut editor = Editor::with_history(settings, memory)?;
    editor.set_helper(Some(Completion(names)));
    Ok(editor)
}

/// Completes commands, and the names of those who are connected at that moment.
pub struct Completion<F>(F);

impl<F: Fn() -> Vec<String>> Completer for Completion<F> {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(command::complete(line, position, &self.0))
    }
}

impl<F> Hinter for Completion<F> {
    type Hint = String;
}
impl<F> Highlighter for Completion<F> {}
impl<F> Validator for Completion<F> {}
impl<F: Fn() -> Vec<String>> Helper for Completion<F> {}
