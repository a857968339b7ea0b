//! The binary as its users meet it: help, wrong settings, the console without and with a terminal.

// The lint's own exception covers test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn binary(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"));
    // Nothing of the environment of whoever runs the tests.
    command
        .env_clear()
        .env("DATA_DIR", data_dir)
        .env("PORT", "0")
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs the server with these lines as its input; the last must be `exit`.
fn with_input(command: &mut Command, lines: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn help_names_every_setting_and_no_password() {
    let dir = tempfile::tempdir().unwrap();
    for flag in ["--help", "-h"] {
        let output = binary(dir.path())
            .arg(flag)
            .env("ADMIN_PASSWORD", "tops3cret")
            .env("SERVER_PASSWORD", "tops3cret")
            .output()
            .unwrap();
        assert!(output.status.success());
        // Lines are wrapped anywhere.
        let help = text(&output.stdout)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(!help.contains("tops3cret"), "{help}");
        for name in [
            "PORT",
            "BIND",
            "ADMIN_PASSWORD",
            "ADMIN_PASSWORD_FILE",
            "SERVER_PASSWORD",
            "SERVER_PASSWORD_FILE",
            "TIMEOUT",
            "GRACE",
            "LOG_LEVEL",
            "LOG_FILE",
            "DATA_DIR",
        ] {
            assert!(help.contains(&format!("[env: {name}]")), "{name}: {help}");
        }
    }
}

#[test]
fn wrong_settings_are_one_line_and_code_2() {
    let dir = tempfile::tempdir().unwrap();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case] = &[
        (&["--prot", "1"], &[], "--port"),
        (&["--port", "65533"], &[], "65532"),
        (&[], &[("PORT", "http")], "http"),
        (&["--timeout", "5"], &[], "milliseconds"),
        (&["surf"], &[], "surf"),
        (
            &["--server-password-file", "/no/such/file"],
            &[],
            "/no/such/file",
        ),
        (
            &[],
            &[("ADMIN_PASSWORD", "a"), ("ADMIN_PASSWORD_FILE", "b")],
            "ADMIN_PASSWORD_FILE",
        ),
    ];
    for (arguments, environment, expected) in cases {
        let output = binary(dir.path())
            .args(*arguments)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.starts_with("error: ") && said.contains(expected),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn an_unusable_data_directory_or_log_file_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for arguments in [["--data-dir", "DATA"], ["--log-file", "DATA"]] {
        let bad = file.join("x");
        let output = binary(dir.path())
            .arg(arguments[0])
            .arg(&bad)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(arguments[0]) && said.lines().count() == 1,
            "{said}"
        );
    }
}

#[test]
fn empty_values_are_unset() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = binary(dir.path());
    for name in [
        "BIND",
        "ADMIN_PASSWORD",
        "ADMIN_PASSWORD_FILE",
        "SERVER_PASSWORD_FILE",
        "TIMEOUT",
        "GRACE",
        "LOG_LEVEL",
        "LOG_FILE",
    ] {
        command.env(name, "");
    }
    let output = with_input(
        command
            .env("SERVER_PASSWORD", "x")
            .args(["--server-password", ""]),
        "exit\n",
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("open to all"));
}

#[test]
fn the_admin_password_is_shown_when_made_and_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = text(&with_input(&mut binary(dir.path()), "exit\n").stdout);
    let password = std::fs::read_to_string(dir.path().join("admin_password")).unwrap();
    assert_eq!(first.matches(password.trim()).count(), 1, "{first}");
    let second = with_input(&mut binary(dir.path()), "exit\n");
    let both = text(&second.stdout) + &text(&second.stderr);
    assert!(
        !both.contains(password.trim()) && both.contains("admin_password"),
        "{both}"
    );
}

#[test]
fn passwords_are_not_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = binary(dir.path());
    command.envs([
        ("ADMIN_PASSWORD", "tops3cret"),
        ("SERVER_PASSWORD", "tops3cret"),
    ]);
    let output = with_input(command.args(["--log-level", "trace"]), "status\nexit\n");
    let both = text(&output.stdout) + &text(&output.stderr);
    assert!(!both.contains("tops3cret"), "{both}");
}

#[test]
fn lines_from_a_pipe_are_answered_without_prompt_or_echo() {
    let dir = tempfile::tempdir().unwrap();
    let output = with_input(
        &mut binary(dir.path()),
        "users\nqit\nhelp kick\n\u{1b}\nexit\n",
    );
    assert!(output.status.success());
    let said = text(&output.stdout);
    let said = said.split_once("Ports: ").unwrap().1;
    assert!(
        said.contains(
            "Nobody is connected.\nUnknown command 'qit'; did you mean 'exit'?\nkick <user>"
        ),
        "{said}"
    );
    assert!(
        !said.contains("multiuser> ") && !said.contains('\u{1b}'),
        "{said}"
    );
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, ExitStatus};

    use nix::pty::openpty;
    use nix::sys::termios::{Termios, tcgetattr};

    use super::*;

    fn signal(child: &Child, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(child.id().to_string())
            .status();
        assert!(sent.unwrap().success());
    }

    #[test]
    fn the_end_of_input_does_not_stop_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = binary(dir.path())
            .args(["--log-level", "debug"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("end of console input")));
        assert_eq!(child.try_wait().unwrap(), None);
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    /// A server with a pseudo-terminal for its console.
    struct Seat {
        child: Child,
        master: File,
        before: Termios,
        seen: String,
    }

    impl Seat {
        fn take(data_dir: &Path) -> Self {
            let pty = openpty(None, None).unwrap();
            let end = || Stdio::from(pty.slave.try_clone().unwrap());
            let before = tcgetattr(&pty.master).unwrap();
            let child = binary(data_dir)
                .env("TERM", "xterm")
                .stdin(end())
                .stdout(end())
                .stderr(end())
                .spawn()
                .unwrap();
            // With the last of the other ends closed reading fails instead of waiting for ever.
            drop(pty.slave);
            let mut seat = Self {
                child,
                master: pty.master.into(),
                before,
                seen: String::new(),
            };
            seat.until("multiuser> ");
            seat
        }

        /// Reads (and fails once the server has ended) until this text has appeared after what was read before.
        fn until(&mut self, expected: &str) -> String {
            loop {
                if let Some(start) = self.seen.find(expected) {
                    let rest = self.seen.split_off(start + expected.len());
                    return std::mem::replace(&mut self.seen, rest);
                }
                let mut bytes = [0; 4096];
                let n = self.master.read(&mut bytes).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        }

        fn press(&mut self, keys: &str) {
            self.master.write_all(keys.as_bytes()).unwrap();
        }

        /// Waits for the end; the terminal must be as it was.
        fn leave(mut self) -> ExitStatus {
            let status = self.child.wait().unwrap();
            assert_eq!(tcgetattr(&self.master).unwrap(), self.before);
            status
        }
    }

    impl Drop for Seat {
        fn drop(&mut self) {
            let _ = self.child.kill();
        }
    }

    #[test]
    fn a_terminal_has_prompt_completion_and_history() {
        let dir = tempfile::tempdir().unwrap();
        let mut seat = Seat::take(dir.path());
        seat.press("us\t\r");
        seat.until("Nobody is connected.");
        seat.until("multiuser> ");
        seat.press("\x04");
        seat.until("The server goes on.");
        seat.until("multiuser> ");
        seat.press("\x1a\x1b[A\r");
        seat.until("Nobody is connected.");
        seat.until("multiuser> ");
        seat.press("exit\r");
        assert_eq!(seat.leave().code(), Some(0));
        let history = dir.path().join("console_history");
        assert_eq!(std::fs::read_to_string(&history).unwrap(), "users\nexit\n");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            history.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn ctrl_c_stops_a_server_without_users() {
        let dir = tempfile::tempdir().unwrap();
        let mut seat = Seat::take(dir.path());
        seat.press("\x03");
        assert_eq!(seat.leave().code(), Some(0));
    }

    #[test]
    fn sigterm_gives_the_terminal_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut seat = Seat::take(dir.path());
        seat.press("half a comm");
        seat.until("comm");
        signal(&seat.child, "TERM");
        // The prompt is gone and pasting is plain again.
        seat.until("\x1b[K\x1b[?2004l");
        assert_eq!(seat.leave().code(), Some(0));
    }
}
