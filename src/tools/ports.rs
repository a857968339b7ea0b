//! `ports`: what to open in firewalls.

use std::process::ExitCode;

use anyhow::Result;

use super::{configured_ports, print};
use crate::config::{Config, Ports};

pub fn run(config: &Config, plain: bool) -> Result<ExitCode> {
    let Ports {
        command,
        data,
        ttl,
        four_socket_ttl,
    } = configured_ports(config)?;
    let range = format!("{command}-{four_socket_ttl}");
    if plain {
        return print(format!("{range}/tcp\n"));
    }
    print(format!(
        "TCP {command:<6} commands; add-ons with replication 0.9.12 and later need this one alone
TCP {data:<6} scene data
TCP {ttl:<6} heartbeat
TCP {four_socket_ttl:<6} heartbeat of add-ons with replication 0.1.x; nobody else needs it

All are incoming and TCP. To open them:
  ufw               sudo ufw allow {command}:{four_socket_ttl}/tcp
  firewalld         sudo firewall-cmd --permanent --add-port={range}/tcp && sudo firewall-cmd --reload
  Windows           netsh advfirewall firewall add rule name=\"Blender Multi-User\" dir=in action=allow protocol=TCP localport={range}
  Docker            -p {range}:{range}
  router, cloud     forward or allow TCP {range} to this computer
From outside, `blender-multiuser check HOST:{command}` tells whether that has worked.
"
    ))
}
