//! kill -9 of the server, again and again, while people work.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, DEADLINE, Need, Server, assert_converged, needs};

/// What the check looks at, of every node, by name.
const LOOK: &str = "{n.data['type_id'] + ':' + n.data['name']: [n.data.get('n', 0), n.data.get('same', []), n.uuid] \
                    for n in repository.graph.values() if n.data}";

/// An edit of several values at once, which does not depend on the values before it: where earlier ones were lost with a
/// connection, the result is still whole.
fn edit(client: &Client, node: &str, counter: &AtomicU64) {
    let n = counter.fetch_add(1, Ordering::Relaxed);
    client.edit(node, &format!("d['n'] = {n}; d['same'] = [{n}] * 5"));
}

/// Waits until they hold the same, with what was done last: an edit that crosses what a restart sends is undone for a moment and
/// then made good. What was being added may have died with the connection: then only its author has it, until he deletes it.
fn await_equal(round: u64, clients: &[&Client], added: &str, done: impl Fn(&Value) -> bool) {
    let start = Instant::now();
    loop {
        let mut looks: Vec<Value> = clients.iter().map(|client| look(client)).collect();
        let has_all = |held: &Value| {
            ["Object:", "Mesh:"].iter().all(|kind| {
                let nodes = held.as_object().unwrap();
                nodes
                    .keys()
                    .any(|name| name.starts_with(kind) && name.contains(added))
            })
        };
        if looks.iter().filter(|held| has_all(held)).count() == 1 {
            for held in &mut looks {
                held.as_object_mut()
                    .unwrap()
                    .retain(|name, _| !name.contains(added));
            }
        }
        if looks.iter().all(|held| *held == looks[0]) && done(&looks[0]) {
            return;
        }
        if start.elapsed() > DEADLINE {
            for (client, held) in clients.iter().zip(&looks) {
                let nodes = held.as_object().unwrap();
                let differ =
                    |key: &&String| looks.iter().any(|other| other.get(*key) != held.get(*key));
                let differ: Vec<_> = nodes
                    .keys()
                    .filter(differ)
                    .map(|key| (key, &held[key]))
                    .collect();
                eprintln!("{}: {differ:?}", client.name);
            }
            panic!(
                "round {round}: what they hold stays different, or lacks what was done last: {}",
                looks[0]
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

fn look(client: &Client) -> Value {
    client.call("eval", json!({"code": LOOK}))
}

fn edits(look: &Value, node: &str) -> u64 {
    look[node][0].as_u64().unwrap_or(0)
}

/// Whatever one client had from another before a kill is there after it; `KILLS` times, moments chosen by `SEED`.
#[test]
fn what_anybody_has_seen_survives_every_kill() {
    if !needs(&[Need::Reconnecting, Need::RawFrames]) {
        return;
    }
    let Some(mut server) = Server::start_with(&["--save-interval", "1"]) else {
        return;
    };
    let (kills, mut dice) = (number("KILLS", 20), Dice(number("SEED", 20260101)));
    let alice = server.host("Alice", &["Cube", "Cone"]);
    let bob = server.join("Bob");
    let carol = server.join("Carol");
    let probe = Client::spawn(&server.python, "Probe");
    alice.select(&["Object:Cube"]);
    bob.select(&["Object:Cone"]);
    carol.await_owner("Object:Cube", "Alice");
    carol.await_owner("Object:Cone", "Bob");
    bob.add("Thing0");
    carol.await_value("Object:Thing0", "d['name']", "Thing0");
    let counter = AtomicU64::new(1);
    let mut slow_rounds = 0;
    for (client, node) in [
        (&alice, "Object:Cube"),
        (&alice, "World"),
        (&bob, "Object:Cone"),
    ] {
        edit(client, node, &counter);
    }
    carol.await_value("Object:Cone", "d['n']", 3);
    for round in 1..=kills {
        let working = AtomicBool::new(true);
        let start = counter.load(Ordering::Relaxed);
        let (new, old) = (format!("Thing{round}"), format!("Thing{}", round - 1));
        let moment = Duration::from_millis(dice.below(900));
        let (stopped, received) = thread::scope(|scope| {
            scope.spawn(|| {
                while working.load(Ordering::Relaxed) {
                    edit(&alice, "Object:Cube", &counter);
                    // Nobody else edits the world: its count is one of hers alone.
                    edit(&alice, "World", &counter);
                }
            });
            scope.spawn(|| {
                bob.add(&new);
                while working.load(Ordering::Relaxed) {
                    edit(&bob, "Object:Cone", &counter);
                    if counter.load(Ordering::Relaxed) > start + 10
                        && bob.has(&format!("Object:{old}"))
                    {
                        // Its echo may come in between.
                        let _ = bob.try_call("delete", json!({"name": old}));
                    }
                }
            });
            thread::sleep(moment);
            let stopped = server.kill();
            working.store(false, Ordering::Relaxed);
            // What is on its way to Carol already.
            thread::sleep(Duration::from_millis(100));
            (stopped, look(&carol))
        });
        // A server on a copy tells what this one will start from, undisturbed by those who come back.
        let copy = stopped.copy();
        // It says so where the disk did not keep up.
        let slow = stopped
            .log
            .find("relayed before they are written")
            .is_some();
        slow_rounds += u64::from(slow);
        let purged = bob.call("eval", json!({"code": "sorted(driver.purged)"}));
        let purged: HashSet<_> = purged.as_array().unwrap().iter().collect();
        server = thread::scope(|scope| {
            let next = scope.spawn(|| stopped.start(&["--save-interval", "1"]));
            let other = copy.start(&[]);
            probe.connect(json!({"name": "Probe", "port": other.ports.command}));
            probe.await_active();
            let kept = look(&probe);
            probe.leave();
            for node in ["Object:Cube", "Object:Cone", "World:World"] {
                let (before, after) = (edits(&received, node), edits(&kept, node));
                assert!(
                    after >= before || slow,
                    "round {round}: {node}: {after} < {before}"
                );
                let values = kept[node][1].as_array().unwrap();
                assert_eq!(values.len(), 5, "round {round}: half of an edit");
                assert!(values.iter().all(|value| *value == after));
            }
            for (node, held) in received.as_object().unwrap() {
                // Bob's add-on deletes what no collection of his names, also what an earlier kill has left of something or undone
                // for a moment.
                assert!(
                    kept.get(node).is_some() || purged.contains(&held[2]) || slow,
                    "round {round}: {node} {held} is lost"
                );
            }
            for kind in ["Object", "Mesh"] {
                let old = format!("{kind}:{old}");
                if received.get(&old).is_none() && !slow {
                    assert!(kept.get(&old).is_none(), "round {round}: {old} is back");
                }
            }
            next.join().unwrap()
        });
        bob.add(&format!("Marker{round}"));
        edit(&alice, "World", &counter);
        let last = counter.load(Ordering::Relaxed) - 1;
        let marker = format!("Object:Marker{round}");
        await_equal(round, &[&alice, &bob, &carol], &new, |held| {
            edits(held, "World:World") == last && held.get(&marker).is_some()
        });
        for client in [&alice, &bob, &carol] {
            client.assert_in_session();
        }
    }
    let edits = counter.load(Ordering::Relaxed);
    assert!(edits > kills * 10, "{edits} edits are no load");
    assert!(
        slow_rounds * 5 <= kills,
        "in {slow_rounds} of {kills} rounds the disk was too slow to tell"
    );
    assert_converged(&[&alice, &bob, &carol]);
    server.assert_works(&[&alice, &bob, &carol]);
}
