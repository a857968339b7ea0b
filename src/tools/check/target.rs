//! The server to check, as it is entered: `HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT`.

use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::config::Ports;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: Option<u16>,
}

impl Target {
    /// Host, address where it is not the same, and port.
    pub(super) fn shown(&self, address: SocketAddr) -> String {
        let ip = address.ip().to_string();
        if ip == self.host {
            format!("{ip}, port {}", address.port())
        } else {
            format!("{} ({ip}), port {}", self.host, address.port())
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix("tcp://").unwrap_or(text);
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok())
                .ok_or(
                    "between the brackets an IPv6 address is expected, as in [2001:db8::1]:5555",
                )?;
            (
                host,
                rest.strip_prefix(':')
                    .or((!rest.is_empty()).then_some(rest)),
            )
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let plain = !host.is_empty()
            && !host.contains(|c: char| c.is_whitespace() || c == '/' || c.is_control());
        if !plain {
            return Err(
                "give the name or address of the server, as in studio.example.org:5555".into(),
            );
        }
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port @ 1..=Ports::HIGHEST) => Some(port),
                _ => {
                    return Err(format!(
                        "the port is a number from 1 to {} (three more ports follow it), as in {host}:5555",
                        Ports::HIGHEST
                    ));
                }
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_in_every_spelling() {
        for (text, host, port) in [
            ("studio.example.org", "studio.example.org", None),
            ("10.0.0.1:6000", "10.0.0.1", Some(6000)),
            (" tcp://localhost:5555", "localhost", Some(5555)),
            ("[::1]:5555", "::1", Some(5555)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("2001:db8::1", "2001:db8::1", None),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((&*target.host, target.port), (host, port), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_told() {
        for text in [
            "",
            ":5555",
            "host:",
            "host:0",
            "host:65533",
            "host:5555:1",
            "[host]:1",
            "[::1",
            "[::1]5555x",
            "http://host",
            "a b",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
