//! `health`: whether the server on this computer answers, for Docker's HEALTHCHECK and its like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{block_on, configured_ports, print, probe};
use crate::config::{Bind, Config};

/// Health checks have a limit of their own, which must not come first: it kills without a word.
const LIMIT: Duration = Duration::from_secs(4);

pub fn run(config: &Config) -> Result<ExitCode> {
    let port = configured_ports(config)?.command;
    let address = SocketAddr::new(reachable(&config.bind), port);
    match block_on(probe::server_info(address, LIMIT))? {
        Ok((info, time)) => print(format!(
            "healthy: server info from {address} in {:.1} ms ({}, replication {})\n",
            time.as_secs_f64() * 1e3,
            if info.private {
                "with a server password"
            } else {
                "open"
            },
            crate::admin::render::escape(&info.version),
        )),
        Err(probe::Fault::Silent) => bail!(
            "unhealthy: {address} takes connections but gives no server info in time: the server hangs"
        ),
        Err(probe::Fault::Refused) => bail!(
            "unhealthy: nothing listens on {address}: the server does not run, or with another --port or --bind"
        ),
        Err(fault) => bail!("unhealthy: {address}: {fault}"),
    }
}

/// The address at which this computer reaches a server that listens there.
fn reachable(bind: &Bind) -> IpAddr {
    let listening = match bind {
        Bind::All => None,
        Bind::Only(addresses) => addresses.first().copied(),
    };
    match listening {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(any)) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(any)) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(address) => address,
    }
}
