//! Taking the ports (docs/protocol.md, section 1).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::platform;

/// Ports that the server takes, one after the other.
pub const PORTS: u16 = 4;
/// Connections that wait to be accepted while the server is busy.
const BACKLOG: i32 = 1024;
/// How often four free ports in a row are looked for.
const ATTEMPTS: u32 = 200;

/// Why the ports could not be taken, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "port {port} is already in use: stop the other program or choose another port with --port (ports {base} to {} are needed)",
        base.saturating_add(PORTS - 1)
    )]
    InUse { port: u16, base: u16 },
    #[error("no permission to listen on port {0}: {cure}", cure = platform::CURE_OF_DENIED_PORT)]
    Denied(u16),
    #[error("port {0} is too high: {PORTS} ports in a row are needed, so --port can be at most {max}", max = u16::MAX - (PORTS - 1))]
    TooHigh(u16),
    #[error("found no {PORTS} free ports in a row: choose a port with --port")]
    NoneFree,
    #[error(
        "{0} is not an address of this machine: choose another one with --bind, or none for all addresses"
    )]
    NotLocal(IpAddr),
    #[error("cannot listen on port {port}: {source}")]
    Other { port: u16, source: io::Error },
}

/// The ports, taken; [`Bound::serve`] starts accepting.
#[derive(Debug)]
pub struct Bound {
    port: u16,
    /// Listeners of P, P+1, P+2 and P+3.
    pub(super) listeners: [Vec<TcpListener>; PORTS as usize],
}

impl Bound {
    /// The first port, P.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses listened on, each with port P; `[::]` stands for all of IPv6 and, where the system can, IPv4.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let [command, ..] = &self.listeners;
        command
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }
}

/// Takes four ports in a row from `port` on (0: any four) on the given addresses (none: all addresses, IPv4 and IPv6).
pub async fn bind(addresses: &[IpAddr], port: u16) -> Result<Bound, BindError> {
    if port > u16::MAX - (PORTS - 1) {
        return Err(BindError::TooHigh(port));
    }
    if port != 0 {
        return bind_from(addresses, port, None);
    }
    for _ in 0..ATTEMPTS {
        // The first listener is kept while the others are tried, so two servers cannot settle on one range.
        let first = match listen(addresses, 0) {
            Ok(listeners) => listeners,
            // Free at the first address, not at the next.
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(error) => return Err(explain(error, 0, 0)),
        };
        let Some(Ok(address)) = first.first().map(TcpListener::local_addr) else {
            continue;
        };
        let base = address.port();
        if base > u16::MAX - (PORTS - 1) {
            continue;
        }
        match bind_from(addresses, base, Some(first)) {
            // Without one of our own making the range is no good: somebody else has a part of it.
            Err(BindError::InUse { .. } | BindError::Denied(_)) => {}
            done => return done,
        }
    }
    Err(BindError::NoneFree)
}

fn bind_from(
    addresses: &[IpAddr],
    base: u16,
    first: Option<Vec<TcpListener>>,
) -> Result<Bound, BindError> {
    let at = |offset: u16| {
        let port = base.saturating_add(offset);
        listen(addresses, port).map_err(|error| explain(error, port, base))
    };
    let command = match first {
        Some(listeners) => listeners,
        None => at(0)?,
    };
    Ok(Bound {
        port: base,
        listeners: [command, at(1)?, at(2)?, at(3)?],
    })
}

/// An address (where one is to blame) and what was wrong with it.
type ListenError = (Option<IpAddr>, io::Error);

fn explain((address, source): ListenError, port: u16, base: u16) -> BindError {
    match (source.kind(), address) {
        (io::ErrorKind::AddrInUse, _) => BindError::InUse { port, base },
        (io::ErrorKind::PermissionDenied, _) => BindError::Denied(port),
        (io::ErrorKind::AddrNotAvailable, Some(address)) => BindError::NotLocal(address),
        _ => BindError::Other { port, source },
    }
}

/// Listens on one port of all given addresses. With port 0 the first one's choice holds for the others.
fn listen(addresses: &[IpAddr], mut port: u16) -> Result<Vec<TcpListener>, ListenError> {
    if addresses.is_empty() {
        return listen_everywhere(port).map_err(|error| (None, error));
    }
    let mut listeners = Vec::new();
    for &address in addresses {
        let (listener, _) =
            listen_at(SocketAddr::new(address, port), false).map_err(|e| (Some(address), e))?;
        if let Ok(bound) = listener.local_addr() {
            port = bound.port();
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// All addresses: one socket for both IP versions where the system can, else one for each that there is.
fn listen_everywhere(mut port: u16) -> io::Result<Vec<TcpListener>> {
    let v6 = match listen_at((Ipv6Addr::UNSPECIFIED, port).into(), true) {
        Ok((listener, true)) => return Ok(vec![listener]),
        Ok((listener, false)) => {
            port = listener.local_addr()?.port();
            Some(listener)
        }
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => return Err(error),
            // No IPv6 here.
            _ => None,
        },
    };
    let (v4, _) = listen_at((Ipv4Addr::UNSPECIFIED, port).into(), false)?;
    Ok(v6.into_iter().chain([v4]).collect())
}

/// Listens on one address, and says whether that includes IPv4 at an IPv6 address.
fn listen_at(address: SocketAddr, both: bool) -> io::Result<(TcpListener, bool)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    let both = if address.is_ipv6() {
        socket.set_only_v6(!both).is_ok() && both
    } else {
        false
    };
    platform::reuse_port(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok((TcpListener::from_std(socket.into())?, both))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn localhost() -> [IpAddr; 1] {
        [Ipv4Addr::LOCALHOST.into()]
    }

    #[tokio::test]
    async fn port_0_finds_four_in_a_row() {
        let bound = bind(&[], 0).await.unwrap();
        assert_ne!(bound.port(), 0);
        for (offset, listeners) in (0..).zip(&bound.listeners) {
            for listener in listeners {
                assert_eq!(listener.local_addr().unwrap().port(), bound.port() + offset);
            }
        }
    }

    #[tokio::test]
    async fn many_servers_find_ports_at_once() {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            all.spawn(async { bind(&localhost(), 0).await.unwrap() });
        }
        let mut ports: Vec<u16> = all.join_all().await.iter().map(Bound::port).collect();
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[1] - pair[0] >= PORTS));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let bound = bind(&localhost(), 0).await.unwrap();
        let base = bound.port() - 1;
        let error = bind(&localhost(), base).await.unwrap_err();
        match error {
            BindError::InUse { port, base: from } => {
                // The port below may be somebody else's.
                assert!(port == base + 1 || port == base);
                assert_eq!(from, base);
            }
            other => panic!("{other}"),
        }
        let text = bind(&localhost(), bound.port())
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(&format!("port {} is already in use", bound.port())));
        assert!(text.contains("--port"));
    }

    #[tokio::test]
    async fn impossible_places_are_told() {
        assert!(matches!(
            bind(&localhost(), 65533).await,
            Err(BindError::TooHigh(65533))
        ));
        assert!(matches!(
            bind(&[Ipv4Addr::new(192, 0, 2, 1).into()], 0).await,
            Err(BindError::NotLocal(_))
        ));
    }
}
