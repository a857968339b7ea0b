//! The tools in the binary, against servers that work and servers that do not.

// The lint's own exception covers test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use support::server::{claim_ports, free_ports};
use support::{Channel, Log, Ports, Proxy, signal, wait_exit, wait_within};

fn binary(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blender-multiuser"));
    // Nothing of the environment of whoever runs the tests.
    command
        .env_clear()
        .env("DATA_DIR", data_dir)
        .stdin(Stdio::null());
    command
}

/// What a tool said, on whichever stream, and its exit code.
fn tool(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    said(binary(data_dir).args(arguments).output().unwrap())
}

fn said(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

fn check(arguments: &[&str]) -> (i32, String) {
    let nowhere = Path::new("/nonexistent");
    tool(nowhere, &[&["check"], arguments].concat())
}

#[track_caller]
fn assert_said((code, text): (i32, String), expected_code: i32, expected: &[&str]) {
    assert_eq!(code, expected_code, "{text}");
    for words in expected {
        assert!(text.contains(words), "{words:?} in:\n{text}");
    }
}

/// A server on free ports.
struct Running {
    child: Child,
    ports: Ports,
    dir: tempfile::TempDir,
    log: Log,
}

impl Running {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = binary(dir.path())
            .args(["--port", "0", "--bind", "127.0.0.1", "--log-level", "debug"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::default();
        log.collect(child.stdout.take().unwrap());
        log.collect(child.stderr.take().unwrap());
        let first = wait_within(
            support::DEADLINE,
            "the server to announce its ports",
            || {
                let line = log.find("Ports: command ")?;
                let digits = line
                    .trim_start_matches("Ports: command ")
                    .split(',')
                    .next()?;
                digits.parse().ok()
            },
        );
        Self {
            child,
            ports: Ports::from(first),
            dir,
            log,
        }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.command)
    }

    fn ctl(&self, words: &[&str]) -> (i32, String) {
        tool(self.dir.path(), &[&["ctl"], words].concat())
    }

    fn health(&self) -> (i32, String) {
        let port = self.ports.command.to_string();
        tool(self.dir.path(), &["health", "--port", &port])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprint!("{}", self.log.report("server", 50));
        }
    }
}

/// Serves one port by doing this with every connection. Ends with the test's process.
fn at_port(listener: TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

#[test]
fn a_healthy_server_is_told_and_sees_no_user() {
    let server = Running::start(&[]);
    assert_said(
        check(&[&server.address()]),
        0,
        &[
            "blender-multiuser",
            "Round trip",
            "any add-on that is served",
            "none needed",
            "an artist at this computer can connect",
            &format!("127.0.0.1, and {}", server.ports.command),
        ],
    );
    assert_eq!(server.log.find("logged in user"), None);
    assert_eq!(server.log.find("WARN"), None);
    assert_said(server.ctl(&["users"]), 0, &["Nobody is connected."]);
}

#[test]
fn passwords_are_tried() {
    let server = Running::start(&[
        "--server-password",
        "tops3cret",
        "--admin-password",
        "adm1n",
    ]);
    let address = server.address();
    let with = |flags: &[&str]| {
        let (code, text) = check(&[&[&*address], flags].concat());
        assert!(
            !text.contains("tops3cret") && !text.contains("adm1n"),
            "{text}"
        );
        (code, text)
    };
    assert_said(with(&[]), 1, &["which was not tested", "SERVER_PASSWORD="]);
    assert_said(
        with(&["--server-password", "no"]),
        1,
        &["CANNOT", "Wrong server password"],
    );
    let right = ["--server-password", "tops3cret"];
    assert_said(with(&right), 0, &["Password    right", "tick the box"]);
    let admin = |password| with(&[&right[..], &["--admin-password", password]].concat());
    assert_said(admin("no"), 1, &["the admin password is not"]);
    assert_said(admin("adm1n"), 0, &["Password    right"]);
}

#[test]
fn a_port_beside_the_right_one_is_corrected() {
    let server = Running::start(&[]);
    let right = server.ports.command;
    let expected = format!("Enter {right} instead");
    for port in (right - 3..=right + 3).filter(|port| *port != right) {
        assert_said(check(&[&format!("127.0.0.1:{port}")]), 1, &[&expected]);
    }
}

#[test]
fn closed_ports_are_told_from_names_that_lead_nowhere() {
    let ports = free_ports();
    let address = format!("127.0.0.1:{}", ports.command);
    assert_said(check(&[&address]), 1, &["CANNOT", "nothing listens"]);
    assert_said(
        check(&["no-such-host.invalid"]),
        1,
        &["no-such-host.invalid", "spelling"],
    );
    let (code, text) = check(&["host:99999"]);
    assert_eq!((code, text.lines().count()), (2, 1), "{text}");
}

#[test]
fn one_port_forwarded_of_three_is_not_enough() {
    let server = Running::start(&[]);
    let (ports, [command, ..]) = claim_ports();
    let target = server.ports.command;
    at_port(command, move |here| {
        let there = TcpStream::connect(("127.0.0.1", target)).unwrap();
        for (mut from, mut to) in [
            (here.try_clone().unwrap(), there.try_clone().unwrap()),
            (there, here),
        ] {
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    assert_said(
        check(&[&format!("127.0.0.1:{}", ports.command)]),
        1,
        &[
            "CANNOT",
            &format!("nothing listens at TCP {} and {}", ports.data, ports.ttl),
            "they can connect",
        ],
    );
}

#[test]
fn ports_that_lead_nowhere_are_named() {
    let server = Running::start(&[]);
    let proxy = Proxy::to_ports(server.ports);
    let address = format!("127.0.0.1:{}", proxy.ports.command);
    assert_said(check(&[&address]), 0, &["can connect"]);
    proxy.refuse(&[Channel::Ttl]);
    let expected = format!("at TCP {} it is not the server", proxy.ports.ttl);
    assert_said(check(&[&address]), 1, &[&expected]);
    proxy.restore(&[Channel::Ttl]);
    proxy.swallow(&[Channel::FourSocketTtl]);
    assert_said(check(&[&address]), 0, &["not needed here"]);
    proxy.swallow(&[Channel::Command]);
    assert_said(check(&[&address]), 1, &["never answers"]);
}

#[test]
fn other_programs_are_named() {
    let (ports, [web, shell, mute, patient]) = claim_ports();
    let greets = |bytes: &'static [u8]| {
        move |mut stream: TcpStream| {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(bytes);
        }
    };
    at_port(
        web,
        greets(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    );
    at_port(shell, greets(b"SSH-2.0-OpenSSH_9.9\r\n"));
    at_port(mute, greets(b"hm"));
    at_port(patient, |stream| {
        let mut stream = std::io::BufReader::new(stream);
        if stream.read_until(b'\n', &mut Vec::new()).is_ok() {
            let _ = stream.get_mut().write_all(b"HTTP/1.0 200 OK\r\n\r\n");
        }
    });
    for (port, expected) in [
        (ports.command, "a web server (HTTP)"),
        (ports.data, "an SSH server"),
        (ports.ttl, "another program"),
        (ports.ttl + 1, "a web server (HTTP)"),
    ] {
        let address = format!("127.0.0.1:{port}");
        assert_said(check(&[&address]), 1, &["CANNOT", "Wrong port", expected]);
    }
}

/// An announced frame of 2^40 bytes must not make the tool reserve them.
#[test]
fn a_program_that_is_no_zeromq_cannot_make_it_fall() {
    let (ports, [evil, ..]) = claim_ports();
    at_port(evil, |mut stream| {
        let _ = stream.read(&mut [0; 16]);
        let mut bytes = b"\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        bytes.resize(4096, 0xfe);
        let _ = stream.write_all(&bytes);
    });
    let address = format!("127.0.0.1:{}", ports.command);
    assert_said(check(&[&address]), 1, &["another program"]);
}

/// The same frame after a greeting that is as it should be: memory for it is more than the `zeromq` crate gets.
#[test]
fn a_program_that_begins_as_zeromq_cannot_make_it_fall() {
    let (ports, [evil, ..]) = claim_ports();
    at_port(evil, |mut stream| {
        let mut greeting = [0; 64];
        greeting[..12].copy_from_slice(b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0");
        greeting[12..16].copy_from_slice(b"NULL");
        let _ = stream.write_all(&greeting);
        let _ = stream.write_all(b"\x06\x70\0\0\0\0\0\0\0");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let address = format!("127.0.0.1:{}", ports.command);
    let (code, text) = check(&[&address]);
    assert!(!text.contains("memory"), "{text}");
    assert_said((code, text), 1, &["CANNOT", "Wrong port", "nonsense"]);
}

#[test]
fn health_is_green_and_red() {
    let server = Running::start(&[]);
    assert_said(server.health(), 0, &["healthy"]);
    #[cfg(unix)]
    {
        signal("STOP", server.child.id(), false);
        let (code, text) = server.health();
        signal("CONT", server.child.id(), false);
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(text.contains("hangs"), "{text}");
        assert_said(server.health(), 0, &["healthy"]);
    }
    let port = free_ports().command.to_string();
    let nothing = tool(server.dir.path(), &["health", "--port", &port]);
    assert_said(nothing, 1, &["does not run"]);
    assert_said(
        tool(server.dir.path(), &["health", "--port", "0"]),
        1,
        &["--port"],
    );
}

#[test]
fn ports_are_listed_for_people_and_scripts() {
    let dir = Path::new("/nonexistent");
    assert_said(
        tool(dir, &["ports", "--port", "7000"]),
        0,
        &["TCP 7000", "ufw allow 7000:7003/tcp"],
    );
    assert_eq!(
        tool(dir, &["ports", "--plain"]),
        (0, "5555-5558/tcp\n".into())
    );
}

#[test]
fn settings_are_shown_with_their_origin_and_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "tops3cret\n").unwrap();
    let (code, text) = said(
        binary(dir.path())
            .envs([("PORT", "6000"), ("TIMEOUT", "")])
            .env("SERVER_PASSWORD_FILE", &file)
            .args(["config", "--admin-password", "adm1n", "--grace", "7"])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 0);
    let row = |name: &str| -> Vec<String> {
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        let words = line
            .unwrap_or_else(|| panic!("{name} in {text}"))
            .split_whitespace();
        words.skip(1).map(str::to_owned).collect()
    };
    assert_eq!(row("port"), ["6000", "environment", "PORT"]);
    assert_eq!(row("timeout"), ["5000", "default"]);
    assert_eq!(row("grace"), ["7", "flag", "--grace"]);
    let data_dir = dir.path().to_str().unwrap();
    assert_eq!(row("data-dir"), [data_dir, "environment", "DATA_DIR"]);
    assert_eq!(
        row("admin-password"),
        ["(hidden)", "flag", "--admin-password"]
    );
    assert_eq!(
        row("server-password"),
        ["(hidden)", "environment", "SERVER_PASSWORD_FILE"]
    );
    assert!(
        !text.contains("tops3cret") && !text.contains("adm1n"),
        "{text}"
    );
    assert!(
        text.contains("warning: --admin-password on the command line"),
        "{text}"
    );
    let (code, text) = tool(dir.path(), &["config", "--timeout", "5"]);
    assert!(code == 2 && text.contains("milliseconds"), "{text}");
}

#[test]
fn completions_and_manual_know_the_tools() {
    let dir = Path::new("/nonexistent");
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert_said(
            tool(dir, &["completions", shell]),
            0,
            &["health", "save-interval"],
        );
    }
    assert_said(tool(dir, &["man"]), 0, &[".TH", "health"]);
}

#[cfg(unix)]
mod ctl {
    use std::io::BufReader;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    use nix::pty::openpty;

    use super::*;

    impl Running {
        fn socket(&self) -> std::path::PathBuf {
            self.dir.path().join("control.sock")
        }
    }

    #[test]
    fn commands_are_carried_out_and_fail_with_a_code() {
        let mut server = Running::start(&[]);
        let mode = server.socket().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(server.ctl(&["users"]), (0, "Nobody is connected.\n".into()));
        assert_said(server.ctl(&["help", "kick"]), 0, &["kick <user>"]);
        assert_said(
            server.ctl(&["kick", "Anna Maria"]),
            1,
            &["nobody named \"Anna Maria\""],
        );
        assert_said(
            server.ctl(&["frobnicate"]),
            1,
            &["Unknown command 'frobnicate'"],
        );
        let long = "x".repeat(9000);
        assert_said(server.ctl(&["save", &long]), 1, &["one line of less than"]);
        assert_said(server.ctl(&["exit"]), 0, &["told"]);
        assert!(wait_exit(&mut server.child, "the server").success());
        assert!(!server.socket().exists());
        assert_said(server.ctl(&["users"]), 1, &["no server runs", "--data-dir"]);
    }

    #[test]
    fn a_pipe_holds_many_commands() {
        let server = Running::start(&[]);
        let run = |lines: &str| {
            let mut child = binary(server.dir.path())
                .arg("ctl")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = child.stdin.take().unwrap();
            input.write_all(lines.as_bytes()).unwrap();
            drop(input);
            said(child.wait_with_output().unwrap())
        };
        assert_said(
            run("users\n\nstatus\n"),
            0,
            &["Nobody is connected.\nScene"],
        );
        assert_said(run("nonsense\nusers\n"), 1, &["Unknown command", "Nobody"]);
    }

    #[test]
    fn a_second_server_leaves_the_socket_to_the_first() {
        let server = Running::start(&[]);
        let (code, text) = tool(server.dir.path(), &["--port", "0"]);
        assert_eq!(code, 1, "{text}");
        assert_said(server.ctl(&["users"]), 0, &["Nobody"]);
    }

    #[test]
    fn a_socket_left_by_a_crash_is_replaced() {
        let mut server = Running::start(&[]);
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let left = std::fs::symlink_metadata(server.socket()).unwrap();
        assert!(left.file_type().is_socket());
        assert_said(
            server.ctl(&["users"]),
            1,
            &["no server runs", "killed", "start it again"],
        );
        let mut again = binary(server.dir.path())
            .args(["--port", "0", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_within(support::DEADLINE, "the new server to answer", || {
            (server.ctl(&["users"]).0 == 0).then_some(())
        });
        assert_said(server.ctl(&["exit"]), 0, &[]);
        assert!(wait_exit(&mut again, "the server").success());
    }

    #[test]
    fn a_server_that_hangs_does_not_hang_ctl() {
        let server = Running::start(&[]);
        signal("STOP", server.child.id(), false);
        let answer = server.ctl(&["users"]);
        signal("CONT", server.child.id(), false);
        assert_said(answer, 1, &["hangs"]);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        assert_said(tool(&deep, &["ctl", "users"]), 1, &["shorter --data-dir"]);
        let mut child = binary(&deep)
            .args(["--port", "0", "--bind", "127.0.0.1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"exit\n").unwrap();
        let output = said(child.wait_with_output().unwrap());
        assert_said(output, 0, &["`ctl` will not work", "shorter --data-dir"]);
    }

    #[test]
    fn connections_and_lines_are_bounded() {
        let server = Running::start(&[]);
        let greeting = |stream: &UnixStream| {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        };
        let connect = || UnixStream::connect(server.socket()).unwrap();
        let all: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
        for stream in &all {
            assert!(greeting(stream).starts_with("hello "));
        }
        assert_said(server.ctl(&["users"]), 1, &["close one of them"]);
        drop(all);
        wait_within(support::DEADLINE, "a place to become free", || {
            (server.ctl(&["users"]).0 == 0).then_some(())
        });
        let mut endless = connect();
        assert!(greeting(&endless).starts_with("hello "));
        // The server may close before it has read all of it.
        let _ = endless.write_all(&[b'x'; 20_000]);
        let mut rest = Vec::new();
        let _ = endless.read_to_end(&mut rest);
        assert_said(server.ctl(&["users"]), 0, &["Nobody"]);
    }

    #[test]
    fn a_terminal_gets_a_prompt_and_the_log() {
        let server = Running::start(&[]);
        let pty = openpty(None, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut child = binary(server.dir.path())
            .env("TERM", "xterm")
            .arg("ctl")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        drop(pty.slave);
        let mut master: std::fs::File = pty.master.into();
        let mut seen = String::new();
        let mut until = |master: &mut std::fs::File, expected: &str| {
            while !seen.contains(expected) {
                let mut bytes = [0; 4096];
                let n = master.read(&mut bytes).unwrap();
                seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
            seen.clear();
        };
        until(&mut master, "multiuser (ctl)> ");
        // What another does is seen here.
        assert_said(check(&[&server.address()]), 0, &[]);
        until(&mut master, "connected");
        master.write_all(b"us\t\r").unwrap();
        until(&mut master, "Nobody is connected.");
        master.write_all(b"exit\r").unwrap();
        until(&mut master, "told");
        assert_eq!(wait_exit(&mut child, "ctl").code(), Some(0));
    }
}
