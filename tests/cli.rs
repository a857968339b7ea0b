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
    for flag in ["--help", "-h", "help"] {
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
            "LOG_FORMAT",
            "LOG_MAX_SIZE",
            "LOG_MAX_FILES",
            "SAVE_INTERVAL",
            "MAX_BACKUPS",
            "VERSIONS",
            "IMPORT",
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
        (&["users"], &[], "blender-multiuser ctl users"),
        (&["kick", "bob"], &[], "blender-multiuser ctl kick"),
        (&["stop"], &[], "blender-multiuser ctl exit"),
        (
            &["--server-password-file", "/no/such/file"],
            &[],
            "/no/such/file",
        ),
        (&["--port", "-1"], &[], "1 to 65532"),
        (&["-ap", "x"], &[], "'-apwd'"),
        (&["--pasword", "x"], &[], "'--password'"),
        (&["--log-format", "xml"], &[], "text or json"),
        (
            &[],
            &[("ADMIN_PASSWORD", "a"), ("ADMIN_PASSWORD_FILE", "b")],
            "ADMIN_PASSWORD and ADMIN_PASSWORD_FILE are both given",
        ),
        (
            &["-pwd", "a"],
            &[("ADMIN_PASSWORD_FILE", "b")],
            "-pwd and ADMIN_PASSWORD_FILE are both given",
        ),
        (
            &["--admin-password-file=b"],
            &[("password", "a")],
            "password and --admin-password-file are both given",
        ),
        // Ours count where they are set and not empty.
        (&[], &[("PORT", ""), ("port", "http")], "http"),
        (&[], &[("timeout", "5")], "milliseconds"),
        (&[], &[("timeout", "5000"), ("TIMEOUT", "5")], "'5'"),
        (&[], &[("log_level", "loud")], "loud"),
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
fn a_log_file_without_a_directory_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let output = binary(dir.path())
        .current_dir(dir.path())
        .args(["-lf", "logs/server.log"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let directory = dir.path().canonicalize().unwrap().join("logs");
    let expected = format!("there is no directory {}; make it", directory.display());
    assert!(
        said.contains(&expected) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn calls_of_the_python_server_work() {
    let dir = tempfile::tempdir().unwrap();
    for call in [
        "replication.serve -p 0 -pwd admin -t 5000 -l INFO -lf server.log",
        "python -m replication.server -p 0 -apwd admin -spwd x --attached",
    ] {
        let output = with_input(
            binary(dir.path())
                .current_dir(dir.path())
                .args(call.split(' ')),
            "exit\n",
        );
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert_eq!(
            log.matches("--attached has no effect").count(),
            call.matches("--attached").count(),
            "{log}"
        );
        assert!(!dir.path().join("admin_password").exists());
    }
    assert!(dir.path().join("server.log").exists());
}

#[test]
fn json_logs_are_json_throughout() {
    let dir = tempfile::tempdir().unwrap();
    let output = with_input(
        binary(dir.path()).args(["--log-format", "JSON", "-l", "debug"]),
        "exit\n",
    );
    let log = text(&output.stderr);
    assert!(output.status.success() && !log.is_empty(), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let time = line["timestamp"].as_str().unwrap();
        time.parse::<jiff::Timestamp>().unwrap();
        assert!(line["level"].is_string() && line["message"].is_string());
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
    use std::os::unix::net::UnixDatagram;
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
        // Whoever answers has started, and listens to signals.
        let asked = binary(dir.path()).args(["ctl", "status"]).output().unwrap();
        assert!(asked.status.success(), "{asked:?}");
        assert_eq!(child.try_wait().unwrap(), None);
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn the_service_manager_is_told_how_the_server_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let until = |wanted: &str| loop {
            let mut bytes = [0; 4096];
            let n = socket.recv(&mut bytes).unwrap();
            let told = text(&bytes[..n]);
            if told.contains(wanted) {
                break told;
            }
        };
        let credentials = dir.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        std::fs::write(credentials.join("admin_password"), "tops3cret\n").unwrap();
        let mut child = binary(&dir.path().join("data"))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .env("CREDENTIALS_DIRECTORY", &credentials)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("STATUS=loading the session");
        let ready = until("READY=1");
        assert!(ready.contains("STATUS=0 users, 0 nodes"), "{ready}");
        until("WATCHDOG=1");
        until("WATCHDOG=1");
        signal(&child, "TERM");
        until("STOPPING=1");
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let mut banner = String::new();
        let mut out = child.stdout.take().unwrap();
        out.read_to_string(&mut banner).unwrap();
        assert!(banner.contains("Ports: ") && !banner.contains("tops3cret"));
        assert!(!dir.path().join("data/admin_password").exists());
    }

    /// Elsewhere `port` and `PORT` are one variable.
    #[test]
    fn variables_of_the_old_image_work() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.log");
        let output = with_input(
            binary(dir.path())
                .env("log_level", "DEBUG")
                .env("log_file", &file)
                .env("password", "tops3cret")
                .env("timeout", "5000")
                .env("LOG_LEVEL", "")
                .env("port", "http"),
            "exit\n",
        );
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert!(log.contains("DEBUG"), "{log}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), log);
        assert!(!dir.path().join("admin_password").exists());
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
