//! Everything at once: four artists on lines of different length who add, delete, select and drag at random, and a late joiner.
//! (What lines that break can cost is in `network`: what only its author had may be lost with them.)

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Proxy, Server};

/// A small generator with a seed, so that a storm can be repeated (as far as a network of processes can).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// One artist for `time`. What the library itself refuses (a locked node, one just deleted) is part of the weather.
fn rage(artist: &Client, mut dice: Dice, time: Duration) {
    let end = Instant::now() + time;
    let mut born = 0;
    while Instant::now() < end && artist.exit().is_none() {
        let object = format!("Object:Rock{}", dice.roll(6));
        let shared = ["World", "Scene", "Collection"][dice.roll(3) as usize];
        let number = dice.roll(1000);
        let act = |command: &str, arguments: Value| drop(artist.try_call(command, arguments));
        match dice.roll(12) {
            0 => {
                born += 1;
                act("add", json!({"name": format!("{}{born}", artist.name)}));
            }
            1 => act(
                "delete",
                json!({"name": format!("Object:{}{}", artist.name, dice.roll(born + 1))}),
            ),
            2 => act("delete", json!({"name": object})),
            3 => act("select", json!({"refs": [object]})),
            4 => act("select", json!({"refs": []})),
            5 => act(
                "push_full",
                json!({"ref": shared, "code": format!("d['full'] = {number}")}),
            ),
            6 => act(
                "edit",
                json!({"ref": shared, "code": format!("d.setdefault('tags', []).insert(0, {number})")}),
            ),
            7 => act(
                "edit",
                json!({"ref": shared, "code": "d['tags'] = d.get('tags', [])[1:4]"}),
            ),
            8 => act("look", json!({"x": number})),
            9 => act(
                "edit",
                json!({"ref": "Collection", "code": "b.links['objects'].reverse()"}),
            ),
            10 => act(
                "edit",
                json!({"ref": object, "code": format!("d['props']['{number}'] = (1, {number})")}),
            ),
            _ => act(
                "edit",
                json!({"ref": object, "code": format!("d['location'][0] = {number}.5")}),
            ),
        }
        thread::sleep(Duration::from_millis(dice.roll(70)));
    }
}

#[test]
fn a_storm_ends_in_one_scene() {
    let Some(server) = Server::start() else {
        return;
    };
    let seed = std::env::var("STORM_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let seconds = std::env::var("STORM_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    println!("STORM_SEED={seed} STORM_SECONDS={seconds}");
    let alice = server.host(
        "Alice",
        &["Rock0", "Rock1", "Rock2", "Rock3", "Rock4", "Rock5"],
    );
    let near = Proxy::to(&server);
    near.latency(Duration::from_millis(10));
    let far = Proxy::to(&server);
    far.latency(Duration::from_millis(60));
    let bob = server.join("Bob");
    let carol = server.client("Carol").through(&near).connect();
    let dave = server.client("Dave").through(&far).connect();
    carol.await_active();
    dave.await_active();
    let time = Duration::from_secs(seconds);
    let late = thread::scope(|scope| {
        for (index, artist) in [&alice, &bob, &carol, &dave].into_iter().enumerate() {
            scope.spawn(move || rage(artist, Dice(seed * 1000 + index as u64), time));
        }
        thread::sleep(time / 2);
        server.join("Late")
    });
    server.assert_settled(&[&alice, &bob, &carol, &dave, &late]);
}
