//! Equality of scenes.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Client, DEADLINE};

/// How long graphs must stay equal to count as settled: longer than the server waits before it heals
/// a node that two clients changed at once.
const QUIET: Duration = Duration::from_millis(700);

/// Waits until all clients hold the same graph and keep it. Order of dict keys, types, float bits, owners
/// and dependencies count.
pub fn assert_converged(clients: &[&Client]) {
    let start = Instant::now();
    let mut equal_since: Option<(Instant, Value)> = None;
    loop {
        let graphs: Vec<Value> = clients.iter().map(|client| client.graph()).collect();
        match difference(clients, &graphs) {
            None => match &equal_since {
                Some((since, graph)) if *graph == graphs[0] => {
                    if since.elapsed() >= QUIET {
                        break;
                    }
                }
                _ => equal_since = Some((Instant::now(), graphs[0].clone())),
            },
            Some(difference) => {
                equal_since = None;
                for client in clients {
                    assert_eq!(
                        client.exit(),
                        None,
                        "{} was thrown out: {:#?}",
                        client.name,
                        client.problems()
                    );
                }
                assert!(
                    start.elapsed() < DEADLINE,
                    "graphs stay different: {difference}{}",
                    history(clients, &difference)
                );
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    for client in clients {
        client.assert_in_session();
    }
}

/// What each client sent and received about the node that a difference names.
fn history(clients: &[&Client], difference: &str) -> String {
    let key = difference.split_whitespace().nth(1).unwrap_or_default();
    let mut text = format!("\n    history of {key}");
    for client in clients {
        for message in client.messages() {
            if message.to_string().contains(key) {
                text += &format!("\n    {}: {message}", client.name);
            }
        }
    }
    text
}

/// The first node that two clients hold differently, or that names a dependency nobody has.
fn difference(clients: &[&Client], graphs: &[Value]) -> Option<String> {
    let nodes = |graph: &Value| graph.as_object().cloned().unwrap_or_default();
    let keys: BTreeSet<String> = graphs
        .iter()
        .flat_map(|graph| nodes(graph).into_iter().map(|(key, _)| key))
        .collect();
    for key in &keys {
        for (client, graph) in clients.iter().zip(graphs) {
            if graph.get(key) != graphs[0].get(key) {
                return Some(format!(
                    "node {key}\n    {}: {}\n    {}: {}",
                    clients[0].name,
                    graphs[0].get(key).unwrap_or(&Value::Null),
                    client.name,
                    graph.get(key).unwrap_or(&Value::Null)
                ));
            }
        }
        let dependencies = graphs[0][key]["deps"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if let Some(dangling) = dependencies
            .iter()
            .find(|d| d.as_str().is_none_or(|d| !keys.contains(d)))
        {
            return Some(format!(
                "node {key} depends on {dangling}, which nobody has: {}",
                graphs[0][key]
            ));
        }
    }
    None
}
