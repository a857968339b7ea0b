//! What a start prints: where to connect, what to type in Blender, which ports to open.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use crate::config::{Bind, Config, Ports};
use crate::password::{AdminPassword, Origin};

/// The start-up message. It shows the admin password only if this start has made it.
pub fn banner(config: &Config, ports: Ports, admin: &AdminPassword) -> String {
    let local = if_addrs::get_if_addrs().unwrap_or_default();
    compose(
        config,
        ports,
        admin,
        local
            .iter()
            .filter(|interface| !leads_into_containers(&interface.name))
            .map(if_addrs::Interface::ip)
            .collect(),
    )
}

/// Bridges to the containers and virtual machines of this computer, from which nobody connects.
fn leads_into_containers(interface: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "podman", "cni"]
        .iter()
        .any(|prefix| interface.starts_with(prefix))
}

fn compose(config: &Config, ports: Ports, admin: &AdminPassword, local: Vec<IpAddr>) -> String {
    let Ports {
        command,
        data,
        ttl,
        four_socket_ttl,
    } = ports;
    let mut text = format!(
        "blender-multiuser {}, a server for Blender's Multi-User add-on\n\nAddresses to connect to\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<17}{value}");
    };
    let mut elsewhere = false;
    for (place, address) in addresses(&config.bind, local) {
        row(place, &address.to_string());
        elsewhere |= !address.is_loopback();
    }
    if elsewhere {
        row(
            "from elsewhere",
            "the address of the router or container host that forwards the ports to here",
        );
    }

    text.push_str("\nIn Blender: 3D viewport > sidebar (N) > Multiuser > + (Add server preset)\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<17}{value}");
    };
    row("IP+port", &format!("an address from above, and {command}"));
    match config.server_password {
        Some(_) => row(
            "Server password",
            "tick the box, enter the server password you chose",
        ),
        None => row(
            "Server password",
            "leave the box empty: this server is open to all who can reach it",
        ),
    }
    let who = "only to start the session and manage it; others leave the box empty";
    match &admin.origin {
        Origin::Given => row("Admin password", &format!("the one you chose ({who})")),
        Origin::Kept(file) => {
            row(
                "Admin password",
                &format!("the one in the file {} ({who})", file.display()),
            );
        }
        Origin::Made(file) => {
            row(
                "Admin password",
                &format!("{} ({who})", admin.secret.reveal()),
            );
            row(
                "",
                &format!("made just now; from now on read it in {}", file.display()),
            );
        }
    }
    text.push_str(
        "  Then Connect. Somebody with the admin password presses Init to share a scene.\n",
    );

    let _ = write!(
        text,
        "\nFirewall: open TCP {command}, {data} and {ttl} \
         ({four_socket_ttl} only for add-ons with replication 0.1.x).\nPorts: {ports}\n"
    );
    text
}

/// Where the server can be reached, nearest first. The add-on takes IPv4 addresses and host names, and its library connects
/// over IPv4, so IPv6 addresses are listed only where there is nothing else.
fn addresses(bind: &Bind, local: Vec<IpAddr>) -> Vec<(&'static str, IpAddr)> {
    let mut found = Vec::new();
    for address in bind.addresses() {
        if address.is_unspecified() {
            let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let same_kind = local
                .iter()
                .copied()
                .filter(|a| a.is_ipv4() == address.is_ipv4());
            found.extend(
                address
                    .is_ipv4()
                    .then_some(loopback)
                    .into_iter()
                    .chain(same_kind),
            );
        } else {
            found.push(address);
        }
    }
    found.retain(|address| !is_link_local(*address));
    if found.iter().any(IpAddr::is_ipv4) {
        found.retain(IpAddr::is_ipv4);
    }
    let mut places: Vec<_> = found.into_iter().map(place).collect();
    places.sort_unstable();
    places.dedup();
    places
        .into_iter()
        .map(|(rank, address)| (PLACES[rank], address))
        .collect()
}

const PLACES: [&str; 3] = ["this computer", "local network", "internet"];

fn place(address: IpAddr) -> (usize, IpAddr) {
    let rank = match address {
        _ if address.is_loopback() => 0,
        IpAddr::V4(v4) => {
            // 100.64.0.0/10 is what providers and overlay networks use inside.
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            if v4.is_private() || shared { 1 } else { 2 }
        }
        IpAddr::V6(v6) => {
            if v6.is_unique_local() {
                1
            } else {
                2
            }
        }
    };
    (rank, address)
}

/// Valid only together with the name of a network interface.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test_config;
    use crate::password::Secret;

    fn shown(flags: &[&str], origin: Origin) -> String {
        let admin = AdminPassword {
            secret: Secret::new("adm1n-secret"),
            origin,
        };
        let local = [
            "127.0.0.1",
            "192.168.1.20",
            "203.0.113.5",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "2001:db8::1",
        ];
        let local = local.iter().map(|a| a.parse().unwrap()).collect();
        compose(
            &test_config(flags),
            Ports::starting_at(6000).unwrap(),
            &admin,
            local,
        )
    }

    #[test]
    fn names_addresses_and_ports() {
        let text = shown(&[], Origin::Given);
        for expected in [
            "  this computer    127.0.0.1\n",
            "  local network    192.168.1.20\n",
            "  internet         203.0.113.5\n",
            "\nPorts: command 6000, data 6001, TTL 6002, four-socket TTL 6003\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert_eq!(text.matches("127.0.0.1").count(), 1);
        assert!(!text.contains("169.254") && !text.contains("db8") && !text.contains("fe80"));
    }

    #[test]
    fn lists_only_what_is_bound() {
        let text = shown(&["--bind", "127.0.0.1"], Origin::Given);
        assert!(text.contains("127.0.0.1") && !text.contains("192.168.1.20"));
        assert!(!text.contains("from elsewhere"));
        let text = shown(&["--bind", "::"], Origin::Given);
        assert!(
            text.contains("2001:db8::1") && !text.contains("192.168.1.20"),
            "{text}"
        );
    }

    #[test]
    fn shows_the_admin_password_only_when_it_was_made() {
        let text = shown(&[], Origin::Made("data/admin_password".into()));
        assert!(text.contains("adm1n-secret") && text.contains("data/admin_password"));
        let text = shown(&[], Origin::Kept("data/admin_password".into()));
        assert!(!text.contains("adm1n-secret") && text.contains("data/admin_password"));
        assert!(!shown(&[], Origin::Given).contains("adm1n-secret"));
    }

    #[test]
    fn says_whether_the_server_is_open() {
        assert!(shown(&[], Origin::Given).contains("open to all"));
        let text = shown(&["--server-password", "tops3cret"], Origin::Given);
        assert!(!text.contains("open to all") && !text.contains("tops3cret"));
    }
}
