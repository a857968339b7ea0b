//! What the findings mean, in words for somebody who has never opened a port.

use std::fmt::Write;
use std::time::Duration;

use super::{Fault, Findings, Login, Ports, Times};
use crate::admin::render::escape;
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
            Err(fault) if index == 3 => ("-", format!("{fault} (most add-ons do without)")),
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
            Err(fault) => ("-", format!("not served here: {fault}")),
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
            Some(_) => format!("everybody needs an add-on with replication {version}"),
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
        Some(Login::Fits) if info.private => "right".into(),
        Some(Login::Fits) => "none needed".into(),
        Some(Login::WrongServerPassword) if !info.private => {
            "none is set, but logins are refused".into()
        }
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
    let mut text = String::new();
    if good {
        let _ = writeln!(text, "Result: an artist at this computer can connect.");
        let password = match info {
            Some(info) if info.private => "tick the box and enter the server password",
            _ => "leave the box empty",
        };
        let _ = writeln!(
            text,
            "In Blender: 3D viewport > sidebar (N) > Multiuser > + (Add server preset): \
             IP {host}, port {}, Server password: {password}.",
            findings.ports.command
        );
    } else {
        let _ = writeln!(text, "Result: an artist at this computer CANNOT connect.");
        for cause in causes {
            let _ = writeln!(text, "  {cause}");
        }
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
            "Wrong port: the server answers at port {port}. Enter {port} instead of {command}."
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
    let private = findings.server_info().is_some_and(|info| info.private);
    let command = findings.ports.command;
    Some(match findings.login.as_ref()? {
        Login::Fits => return None,
        Login::NoPassword => format!(
            "The server wants a password. To test it, too: \
             SERVER_PASSWORD=... blender-multiuser check {host}:{command}"
        ),
        Login::WrongServerPassword if !private => {
            "A Python server without a password refuses the add-on, which has no way to say \"none\": start it with a password (-spwd)."
                .into()
        }
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
