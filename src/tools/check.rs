//! `check`: whether an artist at this computer could work on a server, and what to do if not.
//!
//! Nobody is logged in for that: the login that asks about the password has no name, which a server refuses after everything else.
//! Of servers that are not ours that is not known, so there it names a version that does not exist.

mod apart;
mod target;
mod verdict;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::probe::{self, Dealer, Fault};
use super::{block_on, print};
use crate::config::{Config, Ports};
use crate::password::Secret;
use crate::wire::Dialect;
use crate::wire::guest::{self, Answer, ServerInfo};

pub use target::Target;

/// Server infos asked for, one after the other.
const ROUNDS: usize = 5;

/// How long to look whether the server is at another port than the one given.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// A version of the add-on that no server knows.
const NO_VERSION: &str = "check";

/// The add-on's own default port.
const USUAL_PORT: u16 = 5555;

/// How long a port took.
#[derive(Debug, Clone, Copy)]
struct Times {
    connect: Duration,
    handshake: Duration,
}

/// The answer to a login without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Login {
    /// The server wants a password, and none was given to try.
    NoPassword,
    /// All was right but the name.
    Fits,
    /// A Python server without a password, which is entered as a word.
    FitsNone,
    WrongServerPassword,
    WrongAdminPassword,
    /// For another reason, in the server's words.
    Refused(String),
    Silent,
}

/// Everything that was found out about a server that has an address.
#[derive(Debug)]
struct Findings {
    address: SocketAddr,
    ports: Ports,
    /// What came of each port, in their order.
    reached: [Result<Times, Fault>; 4],
    /// Server info over ZeroMQ, and how long each took.
    info: Option<(ServerInfo, Vec<Duration>)>,
    /// The same over plain TCP, as add-ons from 0.9.12 on ask for it.
    tcp: Result<(ServerInfo, Duration), Fault>,
    login: Option<Login>,
    /// Where a server answers if not at the port that was asked for.
    elsewhere: Option<u16>,
}

impl Findings {
    /// Ours are the only ones that serve both kinds of add-on on one port.
    fn is_ours(&self) -> bool {
        self.info.is_some() && self.tcp.is_ok()
    }

    fn server_info(&self) -> Option<&ServerInfo> {
        let tcp = self.tcp.as_ref().ok().map(|(info, _)| info);
        self.info.as_ref().map(|(info, _)| info).or(tcp)
    }

    /// The version that artists need; `None`: any that is served. Each kind of add-on is told its own newest version as long as the
    /// session belongs to none.
    fn needed_version(&self) -> Option<&str> {
        let told = &self.server_info()?.version;
        match &self.tcp {
            Ok((info, _)) if self.info.is_some() && info.version != *told => None,
            _ => Some(told),
        }
    }
}

pub fn run(target: &Target, config: &Config) -> Result<ExitCode> {
    if let Some(code) = apart::look(target) {
        return Ok(code);
    }
    let usual = if config.port == 0 {
        USUAL_PORT
    } else {
        config.port
    };
    let port = target.port.unwrap_or(usual);
    let ports = Ports::starting_at(port).with_context(|| {
        format!(
            "give the first of the server's ports, 1 to {}",
            Ports::HIGHEST
        )
    })?;
    let (password, admin) = (
        config.server_password.as_ref(),
        config.admin_password.as_ref(),
    );
    let findings = block_on(async {
        let address = resolve(&target.host, port).await?;
        print(format!("Checking {} ...\n\n", target.shown(address)))?;
        Ok::<_, anyhow::Error>(examine(address, ports, password, admin).await)
    })??;
    let verdict = verdict::judge(&findings, &target.host);
    print(verdict::table(&findings) + &verdict.text)?;
    Ok(ExitCode::from(u8::from(!verdict.good)))
}

/// The address that the add-on would use: the first, IPv4 before IPv6, which it cannot use.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let found = tokio::time::timeout(probe::PATIENCE, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => bail!(
            "the name {host} leads nowhere ({error}); check its spelling, or enter the server's IP address instead"
        ),
        Err(_) => bail!(
            "nobody says which address {host} has; is this computer connected to the internet? \
             Or enter the server's IP address instead"
        ),
    };
    let first = addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first());
    first.copied().with_context(|| {
        format!("the name {host} has no address; check its spelling, or enter the server's IP address instead")
    })
}

async fn examine(
    address: SocketAddr,
    ports: Ports,
    password: Option<&Secret>,
    admin: Option<&Secret>,
) -> Findings {
    let at = |port| SocketAddr::new(address.ip(), port);
    let (command, data, ttl, four_socket_ttl) = tokio::join!(
        reach(at(ports.command)),
        reach(at(ports.data)),
        reach(at(ports.ttl)),
        reach(at(ports.four_socket_ttl)),
    );
    let mut dealer = None;
    let mut times = |reached: Result<(Times, Dealer), Fault>, keep: bool| {
        reached.map(|(times, socket)| {
            dealer = keep.then_some(socket).or_else(|| dealer.take());
            times
        })
    };
    let reached = [
        times(command, true),
        times(data, false),
        times(ttl, false),
        times(four_socket_ttl, false),
    ];
    let mut info = None;
    if let Some(dealer) = &mut dealer {
        info = rounds(dealer).await;
    }
    // Where nothing takes connections, nothing takes these.
    let tcp = match &reached[0] {
        Err(fault @ (Fault::Timeout | Fault::Refused | Fault::Unreachable(_))) => {
            Err(fault.clone())
        }
        _ => server_info_over_tcp(address).await,
    };
    let mut findings = Findings {
        address,
        ports,
        reached,
        info,
        tcp,
        login: None,
        elsewhere: None,
    };
    if findings.server_info().is_some() {
        findings.login = Some(login(&findings, dealer, password, admin).await);
    } else {
        findings.elsewhere = elsewhere(address).await;
    }
    findings
}

/// Connects to a port and shakes hands.
async fn reach(address: SocketAddr) -> Result<(Times, Dealer), Fault> {
    let (stream, connect) = probe::connect(address).await?;
    if let Err(fault) = probe::greet(stream).await {
        return Err(match fault {
            Fault::Silent | Fault::Closed if probe::is_web_server(address).await => {
                Fault::Foreign(probe::WEB)
            }
            fault => fault,
        });
    }
    let (dealer, handshake) = Dealer::connect(address).await?;
    Ok((Times { connect, handshake }, dealer))
}

async fn rounds(dealer: &mut Dealer) -> Option<(ServerInfo, Vec<Duration>)> {
    let (info, time) = dealer.server_info(probe::PATIENCE).await?;
    let mut times = vec![time];
    while times.len() < ROUNDS {
        match dealer.server_info(probe::PATIENCE).await {
            Some((_, time)) => times.push(time),
            None => break,
        }
    }
    times.sort_unstable();
    Some((info, times))
}

async fn server_info_over_tcp(address: SocketAddr) -> Result<(ServerInfo, Duration), Fault> {
    match probe::ask_over_tcp(address, &guest::server_info()).await? {
        (Answer::Info(info), time) => Ok((info, time)),
        (Answer::Auth(_), _) => Err(Fault::Foreign("another program")),
    }
}

/// Asks whether the passwords are right.
async fn login(
    findings: &Findings,
    dealer: Option<Dealer>,
    password: Option<&Secret>,
    admin: Option<&Secret>,
) -> Login {
    let Some(info) = findings.server_info() else {
        return Login::Silent;
    };
    let ours = findings.is_ours();
    let untold = info.private && password.is_none();
    if untold && ours {
        return Login::NoPassword;
    }
    let version = if ours { &*info.version } else { NO_VERSION };
    let asked = guest::nameless_login(
        password.map_or(if untold { "None" } else { "" }, Secret::reveal),
        admin.map(Secret::reveal),
        version,
    );
    let speaks_tcp = Dialect::of(version) == Some(Dialect::Tcp);
    let answer = match dealer {
        Some(mut dealer) if findings.info.is_some() && !speaks_tcp => {
            dealer.ask(asked, probe::PATIENCE).await
        }
        _ => {
            let answer = probe::ask_over_tcp(findings.address, &asked).await;
            answer.ok().map(|(answer, _)| answer)
        }
    };
    let Some(Answer::Auth(text)) = answer else {
        return Login::Silent;
    };
    match understood(&text) {
        Login::Fits if untold => Login::FitsNone,
        Login::WrongServerPassword if untold => Login::NoPassword,
        login => login,
    }
}

/// What the answer to a login without a name means.
fn understood(text: &str) -> Login {
    let says = |words| text.contains(words);
    if says("wrong admin password") {
        Login::WrongAdminPassword
    } else if says("wrong server password") || says("wrong password") {
        Login::WrongServerPassword
    } else if says("user name") || says("client version") || says("LOBBY") || says("RUNNING") {
        Login::Fits
    } else {
        Login::Refused(text.trim_start_matches("FAILED:").trim().to_owned())
    }
}

/// Looks for a server at the ports that are easily mistaken for the right one.
async fn elsewhere(address: SocketAddr) -> Option<u16> {
    let given = address.port();
    let last = given.saturating_add(3);
    let near = (given.saturating_sub(3).max(1)..=last).filter(|port| *port != given);
    let usual = Some(USUAL_PORT).filter(|port| !(given.saturating_sub(3)..=last).contains(port));
    let mut asked = Vec::new();
    for port in near.chain(usual) {
        let address = SocketAddr::new(address.ip(), port);
        let asking =
            tokio::spawn(async move { probe::server_info(address, ELSEWHERE).await.is_ok() });
        asked.push((port, asking));
    }
    for (port, asking) in asked {
        if asking.await.unwrap_or(false) {
            return Some(port);
        }
    }
    None
}
