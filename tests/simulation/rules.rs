//! What must never be sent to a client (docs/protocol.md, 3.11), one function per rule. Each sees the client as it is
//! when it handles the message.

use blender_multiuser::wire::message::{NodeId, Outbound};
use blender_multiuser::wire::pickle::{self, Value};

use super::client::{Client, State};
use super::delta;

type Rule = fn(&Client, &Outbound, bool) -> Result<(), String>;

pub const RULES: &[(&str, Rule)] = &[
    (
        "a Commit only for a node that is there",
        commit_for_known_node,
    ),
    ("no Commit on which deepdiff raises", commit_applies),
    (
        "metadata only of users in the table",
        metadata_of_known_user,
    ),
    ("no empty catalog", catalog_not_empty),
    ("Snapshot only in LOBBY or SYNCING", snapshot_in_its_state),
    (
        "ServerSnapshot only in SRV_SYNC",
        server_snapshot_in_its_state,
    ),
    ("one Auth", auth_once),
    ("the SET that is expected next", expected_set),
    ("dependencies that are there", dependencies_known),
    ("each message on its channel", right_channel),
    ("well-formed commands", well_formed),
    ("a table with everything in it", complete_table),
    ("no colour without scene and mode", colour_with_scene),
    ("data has a type_id", data_has_type),
    ("no data before DONE", no_data_while_joining),
    (
        "nothing that its dialect does not know",
        known_to_its_dialect,
    ),
    (
        "rights one by one where there is no list",
        rights_of_its_dialect,
    ),
];

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn commit_for_known_node(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Commit(commit) if client.is_active() => {
            ensure(client.graph.contains_key(&commit.id), || {
                commit.id.to_string()
            })
        }
        _ => Ok(()),
    }
}

fn commit_applies(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Commit(commit) if client.is_active() => match client.graph.get(&commit.id) {
            Some(held) => delta::apply(&commit.raw, &held.data).map(drop),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn metadata_of_known_user(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Metadata { owner, .. } => {
            ensure(client.online.contains_key(owner), || owner.to_string())
        }
        _ => Ok(()),
    }
}

fn catalog_not_empty(_: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::JoinCatalog(catalog) => ensure(!catalog.is_empty(), String::new),
        _ => Ok(()),
    }
}

fn snapshot_in_its_state(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::JoinCatalog(_) | Outbound::JoinNode(_) | Outbound::JoinRemoved => ensure(
            matches!(client.state, State::Lobby | State::Syncing),
            || format!("{:?}", client.state),
        ),
        _ => Ok(()),
    }
}

fn server_snapshot_in_its_state(
    client: &Client,
    message: &Outbound,
    _: bool,
) -> Result<(), String> {
    match message {
        Outbound::InitAccepted | Outbound::InitRejected | Outbound::InitDone => {
            ensure(client.state == State::SrvSync, || {
                format!("{:?}", client.state)
            })
        }
        _ => Ok(()),
    }
}

fn auth_once(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Auth(_) => ensure(client.state == State::Auth, || {
            format!("{:?}", client.state)
        }),
        _ => Ok(()),
    }
}

fn expected_set(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        // These queue what they have not asked for.
        Outbound::JoinNode(_) if client.is_four_socket() => Ok(()),
        Outbound::JoinNode(node) => ensure(client.current.as_ref() == Some(&node.id), || {
            format!("{} instead of {:?}", node.id, client.current)
        }),
        _ => Ok(()),
    }
}

fn dependencies_known(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    let (id, dependencies) = match message {
        Outbound::Node(node) | Outbound::JoinNode(node) => (&node.id, &node.dependencies),
        Outbound::Commit(commit) => (&commit.id, &commit.dependencies),
        _ => return Ok(()),
    };
    if client.state == State::Lobby {
        return Ok(());
    }
    let unknown: Vec<&NodeId> = dependencies
        .iter()
        .filter(|dependency| {
            *dependency != id
                && !client.graph.contains_key(*dependency)
                && !client.removed.contains(*dependency)
        })
        .collect();
    // Members of a cycle cannot all come first.
    let is_cut = matches!(message, Outbound::JoinNode(_));
    ensure(unknown.is_empty() || is_cut, || {
        format!("{id} needs {unknown:?}")
    })
}

fn right_channel(client: &Client, message: &Outbound, on_data: bool) -> Result<(), String> {
    let update = match message {
        Outbound::Node(_) | Outbound::Commit(_) => true,
        Outbound::JoinNode(_) | Outbound::Ping => client.is_four_socket(),
        _ => false,
    };
    ensure(update == on_data, || format!("{message:?}"))
}

fn well_formed(_: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Delete(id) => ensure(!id.as_str().is_empty(), || "empty uuid".into()),
        Outbound::Right { nodes, owner } => ensure(
            !owner.is_empty() && nodes.iter().all(|id| !id.as_str().is_empty()),
            || format!("{nodes:?} {owner}"),
        ),
        Outbound::Disconnect { reason } => ensure(reason != "user" && !reason.is_empty(), || {
            "a reason that the add-on does not show".into()
        }),
        Outbound::Auth(answer) => ensure(
            answer == "LOBBY"
                || answer == "RUNNING"
                || (answer.starts_with("FAILED: ")
                    && answer.len() <= 70
                    && !answer.contains("LOBBY")
                    && !answer.contains("RUNNING")),
            || answer.clone(),
        ),
        _ => Ok(()),
    }
}

fn complete_table(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::ClientsState(table) => {
            ensure(table.iter().any(|entry| entry.name == client.name), || {
                "the receiver is missing".into()
            })?;
            ensure(table.iter().all(|entry| entry.latency >= 0), || {
                "latency".into()
            })
        }
        _ => Ok(()),
    }
}

fn colour_with_scene(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    let complete = |metadata: &[(std::sync::Arc<str>, Value)]| {
        let has = |key: &str| metadata.iter().any(|(k, _)| &**k == key);
        !has("color") || (has("scene_current") && has("mode_current"))
    };
    match message {
        Outbound::ClientsState(table) => {
            ensure(table.iter().all(|entry| complete(&entry.metadata)), || {
                "in a table".into()
            })
        }
        Outbound::Metadata { owner, data } => {
            let mut merged = client
                .online
                .get(owner)
                .map_or_else(Vec::new, |entry| entry.metadata.clone());
            merged.extend(data.iter().cloned());
            ensure(complete(&merged), || format!("{owner} {data:?}"))
        }
        _ => Ok(()),
    }
}

fn data_has_type(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Node(node) | Outbound::JoinNode(node) => {
            let data = pickle::decode(&node.data).map_err(|error| error.to_string())?;
            let inside = data.get("type_id").is_some();
            ensure(inside != client.is_four_socket(), || node.id.to_string())?;
            ensure(node.kind.is_some(), || node.id.to_string())
        }
        _ => Ok(()),
    }
}

fn no_data_while_joining(client: &Client, message: &Outbound, on_data: bool) -> Result<(), String> {
    let scene = match message {
        Outbound::JoinNode(_) => client.is_four_socket() && client.state == State::Syncing,
        Outbound::Ping => client.is_four_socket(),
        _ => false,
    };
    ensure(!on_data || client.is_active() || scene, || {
        format!("{:?}", client.state)
    })
}

fn known_to_its_dialect(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    let known = match message {
        Outbound::JoinRemoved => client.knows_removed(),
        Outbound::Metadata { .. } => !client.is_four_socket(),
        Outbound::Commit(_) | Outbound::ServerInfo { .. } => !client.is_four_socket(),
        _ => true,
    };
    ensure(known, || format!("{message:?}"))
}

fn rights_of_its_dialect(client: &Client, message: &Outbound, _: bool) -> Result<(), String> {
    match message {
        Outbound::Right { nodes, .. } if client.rights_one_by_one() => {
            ensure(nodes.len() <= 1, || format!("{nodes:?}"))
        }
        _ => Ok(()),
    }
}
