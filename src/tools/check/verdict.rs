//! What the findings mean, in words for somebody who has never opened a port.

use std::fmt::Write;
use std::time::Duration;

use super::{Fault, Findings, Login, Ports, Times};
use crate::admin::render::escape;
use crate::platform;
use crate::wire::Dialect;

/// Add-ons from 0.9.12 on give up a connection after this time.
const TCP_CLIENTS_GIVE_UP: Duration = Duration::from_millis(200);

pub(super) struct Verdict {
    /// Whether an artist could connect.
    pub good: bool,
    pub text: String,
}

/// The table of what was found.
pub(super) fn table(findings: &Findings) -> String {
    let Ports {
        command,
        data,
        ttl,
        four_socket_ttl,
    } = findings.ports;
    let mut text = String::new();
    let names = [
        (command, "commands"),
        (data, "scene data"),
        (ttl, "heartbeat"),
        (four_socket_ttl, "only add-ons with replication 0.1.x"),
    ];
    let needed = needed(findings);
    for (index, ((port, name), reached)) in names.into_iter().zip(&findings.reached).enumerate() {
        let (mark, what) = match reached {
            Ok(Times { connect, handshake }) => (
                "ok",
                format!(
                    "connected in {}, ZeroMQ handshake in {}",
                    ms(*connect),
                    ms(*handshake)
                ),
            ),
            Err(fault) if !needed.contains(&index) => ("-", format!("not needed here: {fault}")),
            Err(fault) => ("FAIL", fault.to_string()),
        };
        let _ = writeln!(text, "  TCP {port:<6}{name:<37}{mark:<6}{what}");
    }
    if findings.server_info().is_some() {
        let (mark, what) = match &findings.tcp {
            Ok((_, time)) => (
                "ok",
                format!("server info in {}, connecting included", ms(*time)),
            ),
            Err(fault) => ("-", format!("not needed here: {fault}")),
        };
        let name = "only add-ons with 0.9.12 and later";
        let _ = writeln!(text, "  TCP {command:<6}{name:<37}{mark:<6}{what}");
    }
    text.push('\n');
    facts(&mut text, findings);
    text
}

fn facts(text: &mut String, findings: &Findings) {
    let Some(info) = findings.server_info() else {
        return;
    };
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<12}{value}");
    };
    let version = escape(&info.version);
    if findings.is_ours() {
        row("Server", "blender-multiuser".into());
    } else {
        row(
            "Server",
            format!("not this program; probably the Python server, replication {version}"),
        );
    }
    row(
        "Version",
        match findings.needed_version() {
            Some(_) if findings.is_ours() => format!(
                "add-ons need replication {version}, or one that the server lets mix with it"
            ),
            Some(_) => format!("add-ons need replication {version}"),
            None => "any add-on that is served; the first to start a session decides".into(),
        },
    );
    if let Some((_, times)) = &findings.info
        && let [fastest, .., slowest] = &times[..]
        && let Some(median) = times.get(times.len() / 2)
    {
        row(
            "Round trip",
            format!(
                "median {}, fastest {}, slowest {} (server info, {} times)",
                ms(*median),
                ms(*fastest),
                ms(*slowest),
                times.len()
            ),
        );
    }
    let password = match &findings.login {
        Some(Login::NoPassword) => "needed, and none was given to try".into(),
        Some(Login::FitsNone) => "none set, which this server wants to be spelled \"None\"".into(),
        Some(Login::Fits) if info.private => "right".into(),
        Some(Login::Fits) => "none needed".into(),
        Some(Login::WrongServerPassword) => "WRONG".into(),
        Some(Login::WrongAdminPassword) => "the ADMIN password is WRONG".into(),
        Some(Login::Refused(why)) => format!("logins are refused: {}", escape(why)),
        Some(Login::Silent) | None => "no answer to a login".into(),
    };
    row("Password", password);
    text.push('\n');
}

/// Which ports an artist needs (of the four), given the version.
fn needed(findings: &Findings) -> &'static [usize] {
    match findings.needed_version().and_then(Dialect::of) {
        Some(Dialect::Tcp) => &[],
        Some(Dialect::FourSocket) => &[0, 1, 2, 3],
        _ => &[0, 1, 2],
    }
}

pub(super) fn judge(findings: &Findings, host: &str) -> Verdict {
    let mut causes = Vec::new();
    let info = findings.server_info();
    if info.is_none() {
        causes.push(no_server(findings));
    } else {
        causes.extend(missing_ports(findings));
        causes.extend(refusal(findings, host));
    }
    if findings.address.is_ipv6() {
        causes.push(
            "The add-on connects over IPv4 only. Enter an IPv4 address, or a name that has one."
                .into(),
        );
    }
    let good = causes.is_empty();
    let untested = causes.len() == 1 && findings.login == Some(Login::NoPassword);
    let mut text = String::new();
    let _ = if good {
        let password = match &findings.login {
            Some(Login::FitsNone) => "tick the box and enter None",
            _ if info.is_some_and(|info| info.private) => {
                "tick the box and enter the server password"
            }
            _ => "leave the box empty",
        };
        write!(
            text,
            "Result: an artist at this computer can connect.
In Blender: 3D viewport > sidebar (N) > Multiuser > + (Add server preset)
  IP+port          {host}, and {}
  Server password  {password}
",
            findings.ports.command
        )
    } else if untested {
        writeln!(
            text,
            "Result: the server can be reached; an artist needs its password, which was not tested."
        )
    } else {
        writeln!(text, "Result: an artist at this computer CANNOT connect.")
    };
    for cause in causes {
        let _ = writeln!(text, "  {cause}");
    }
    text.extend(slow(findings));
    Verdict { good, text }
}

/// Why nobody answers as a Multi-User server.
fn no_server(findings: &Findings) -> String {
    let Ports {
        command, data, ttl, ..
    } = findings.ports;
    if let Some(port) = findings.elsewhere {
        return format!(
            "Wrong port: the server takes its commands at port {port}. Enter {port} instead of {command}."
        );
    }
    match &findings.reached[0] {
        Err(Fault::Timeout) => format!(
            "Nothing answers at port {command}: a firewall swallows it, the router does not forward it, or the address is \
             wrong. Check the address; at the server open (and forward) TCP {command}, {data} and {ttl}."
        ),
        Err(Fault::Refused) => format!(
            "The computer answers, but nothing listens at port {command}: the server does not run, or at another port or \
             address, or the router forwards to another computer. Start the server, and check the port."
        ),
        Err(Fault::Unreachable(_)) => "There is no way to that address from here: check the address, and the network or VPN of this computer.".into(),
        Err(Fault::Silent) => format!(
            "Something takes connections at port {command} but never answers: the server hangs (restart it), or a router or \
             proxy forwards to a computer where it does not run."
        ),
        Err(Fault::Closed) => format!(
            "Something at port {command} closes every connection at once: a proxy or a container port with no server behind it \
             (start the server), or another program (check the port)."
        ),
        Err(Fault::Foreign(what)) => format!(
            "Wrong port: {what} answers at port {command}, not a Multi-User server. Ask whoever runs the server for its port."
        ),
        Err(fault @ Fault::Handshake(_)) => format!(
            "Port {command}: {fault}. Check the port; if it is right, update the server."
        ),
        Ok(_) => format!(
            "A ZeroMQ program answers at port {command}, but not with server info: it is another of a server's ports (enter its \
             first one), a Python server before 0.9, or one that hangs (restart it)."
        ),
    }
}

/// What is to be done about ports that do not work although the first one does.
fn missing_ports(findings: &Findings) -> Vec<String> {
    let Ports {
        command,
        data,
        ttl,
        four_socket_ttl,
    } = findings.ports;
    let numbers = [command, data, ttl, four_socket_ttl];
    let broken = |is: fn(&Fault) -> bool| -> Vec<String> {
        let faulty = |index: &&usize| matches!(&findings.reached[**index], Err(fault) if is(fault));
        needed(findings)
            .iter()
            .filter(faulty)
            .map(|index| numbers[*index].to_string())
            .collect()
    };
    let mut causes = Vec::new();
    let dropped = broken(|fault| matches!(fault, Fault::Timeout | Fault::Unreachable(_)));
    if !dropped.is_empty() {
        causes.push(format!(
            "Only some ports get through: a firewall or router stops TCP {}. Open (and forward) it at the server, as {command} is.",
            dropped.join(" and ")
        ));
    }
    let refused = broken(|fault| *fault == Fault::Refused);
    if !refused.is_empty() {
        causes.push(format!(
            "Only some ports get through: nothing listens at TCP {}. Forward each port to the same number at the server, and \
             publish it if the server is in a container.",
            refused.join(" and ")
        ));
    }
    let others = broken(|fault| {
        !matches!(
            fault,
            Fault::Timeout | Fault::Unreachable(_) | Fault::Refused
        )
    });
    if !others.is_empty() {
        causes.push(format!(
            "Only some ports lead to the server: at TCP {} it is not the server that answers. Forward each port to the same \
             number at the server, and see that no other program uses it.",
            others.join(" and ")
        ));
    }
    if !causes.is_empty() && findings.tcp.is_ok() && findings.needed_version().is_none() {
        causes.push("(Add-ons with replication 0.9.12 and later need the first port alone: they can connect.)".into());
    }
    causes
}

/// What a login would be refused for.
fn refusal(findings: &Findings, host: &str) -> Option<String> {
    let command = findings.ports.command;
    Some(match findings.login.as_ref()? {
        Login::Fits | Login::FitsNone => return None,
        Login::NoPassword => format!(
            "To test the password, too: {} blender-multiuser check {host}:{command}",
            platform::with_variable("SERVER_PASSWORD")
        ),
        Login::WrongServerPassword => {
            "Wrong server password: ask whoever runs the server; capitals and spaces count.".into()
        }
        Login::WrongAdminPassword => {
            "The server password is right, the admin password is not: ask whoever runs the server, or leave it out.".into()
        }
        Login::Refused(why) => format!("The server refuses logins: {}", escape(why)),
        Login::Silent => "The server does not answer logins: restart it.".into(),
    })
}

/// A word on lines that are too long for some.
fn slow(findings: &Findings) -> Option<String> {
    let Ok(Times { connect, .. }) = &findings.reached[0] else {
        return None;
    };
    (*connect > TCP_CLIENTS_GIVE_UP && findings.tcp.is_ok()).then(|| {
        format!(
            "Note: connecting takes {}; add-ons with replication 0.9.12 and later give up after {}. Use 0.9.11 or before.\n",
            ms(*connect),
            ms(TCP_CLIENTS_GIVE_UP)
        )
    })
}

fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::guest::ServerInfo;

    fn info(version: &str, private: bool) -> ServerInfo {
        ServerInfo {
            private,
            version: version.into(),
        }
    }

    fn times(ms: u64) -> Result<Times, Fault> {
        let connect = Duration::from_millis(ms);
        Ok(Times {
            connect,
            handshake: connect * 3,
        })
    }

    /// What is found of an open server of ours that has no session yet.
    fn healthy() -> Findings {
        Findings {
            address: "192.0.2.1:5555".parse().unwrap(),
            ports: Ports::starting_at(5555).unwrap(),
            reached: [times(20), times(20), times(20), times(20)],
            info: Some((info("0.9.11", false), vec![Duration::from_millis(20); 5])),
            tcp: Ok((info("0.10.2", false), Duration::from_millis(40))),
            login: Some(Login::Fits),
            elsewhere: None,
        }
    }

    fn judged(findings: &Findings) -> (bool, String) {
        let verdict = judge(findings, "studio");
        (verdict.good, table(findings) + &verdict.text)
    }

    #[test]
    fn a_firewall_is_told_from_a_missing_server() {
        let nothing = |fault: Fault| Findings {
            reached: std::array::from_fn(|_| Err(fault.clone())),
            info: None,
            tcp: Err(fault.clone()),
            login: None,
            ..healthy()
        };
        for (fault, cause) in [
            (Fault::Timeout, "a firewall swallows it"),
            (Fault::Refused, "nothing listens at port 5555"),
            (Fault::Unreachable("no route".into()), "VPN"),
            (Fault::Silent, "the server hangs"),
            (Fault::Closed, "no server behind it"),
            (Fault::Foreign("an SSH server"), "an SSH server answers"),
        ] {
            let (good, text) = judged(&nothing(fault));
            assert!(!good && text.contains(cause), "{text}");
            assert!(!text.contains("In Blender"), "{text}");
        }
    }

    #[test]
    fn ports_that_a_firewall_stops_are_named() {
        let mut findings = healthy();
        findings.reached[1] = Err(Fault::Timeout);
        findings.reached[2] = Err(Fault::Timeout);
        let (good, text) = judged(&findings);
        assert!(!good && text.contains("stops TCP 5556 and 5557"), "{text}");
        findings.reached = [times(1), times(1), times(1), Err(Fault::Timeout)];
        assert!(judged(&findings).0, "only the oldest add-ons need the last");
    }

    #[test]
    fn the_version_of_a_session_decides_which_ports_are_needed() {
        let session = |version: &str, reached| Findings {
            reached,
            info: Some((info(version, false), vec![Duration::ZERO; 5])),
            tcp: Ok((info(version, false), Duration::ZERO)),
            ..healthy()
        };
        let first = || {
            [
                times(1),
                Err(Fault::Refused),
                Err(Fault::Refused),
                Err(Fault::Refused),
            ]
        };
        assert!(judged(&session("0.10.2", first())).0);
        assert!(!judged(&session("0.9.10", first())).0);
        let three = || [times(1), times(1), times(1), Err(Fault::Refused)];
        assert!(judged(&session("0.9.10", three())).0);
        assert!(!judged(&session("0.1.13", three())).0);
    }

    #[test]
    fn long_lines_and_ipv6_get_a_word() {
        let mut findings = healthy();
        findings.reached[0] = times(250);
        let (good, text) = judged(&findings);
        assert!(good && text.contains("give up after 200 ms"), "{text}");
        findings.address = "[2001:db8::1]:5555".parse().unwrap();
        let (good, text) = judged(&findings);
        assert!(!good && text.contains("IPv4 only"), "{text}");
    }

    #[test]
    fn a_python_server_without_a_password_wants_one_spelled() {
        let findings = Findings {
            info: Some((info("0.9.10", true), vec![Duration::ZERO; 5])),
            tcp: Err(Fault::Closed),
            login: Some(Login::FitsNone),
            ..healthy()
        };
        let (good, text) = judged(&findings);
        assert!(good && text.contains("enter None"), "{text}");
    }

    #[test]
    fn what_a_server_says_cannot_command_the_terminal() {
        let evil = "\u{1b}[2J\r\n";
        let findings = Findings {
            info: Some((info(evil, true), vec![Duration::ZERO; 5])),
            tcp: Ok((info(evil, true), Duration::ZERO)),
            login: Some(Login::Refused(evil.into())),
            ..healthy()
        };
        let (_, text) = judged(&findings);
        assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
    }
}
