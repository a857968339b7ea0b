//! The power goes, at any moment; the process is killed, at any moment.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use blender_multiuser::store::{Settings, State, Store, Written, open, open_on};

use crate::faulty::*;
use crate::scenes::*;

const NODES: usize = 5;

fn id(n: usize) -> String {
    format!("node-{n:05}")
}

/// The numbers of all nodes after so many changes: change n gives one node the number 1000 + n.
fn after(changes: usize) -> BTreeMap<String, i64> {
    let mut numbers: BTreeMap<String, i64> = (0..NODES).map(|n| (id(n), n as i64)).collect();
    for n in 0..changes {
        numbers.insert(id(n % NODES), 1000 + n as i64);
    }
    numbers
}

fn state_after(changes: usize) -> State {
    let mut state = state(NODES);
    for (node, _) in &mut state.scene.as_mut().unwrap().nodes {
        let number = after(changes)[node.id.as_str()];
        *node = crate::scenes::node(node.id.as_str(), number);
    }
    state
}

/// How many changes a state holds; it must be one that there has been.
fn changes_in(state: &State) -> Option<usize> {
    state.scene.as_ref()?;
    let numbers = numbers(state);
    let latest = *numbers.values().max().unwrap();
    let changes = (latest - 999).max(0) as usize;
    assert_eq!(numbers, after(changes), "half a change");
    Some(changes)
}

/// Small segments, so that many of them come and go.
fn small() -> Settings {
    Settings {
        segment_bytes: 2_000,
        max_backups: 2,
        ..settings()
    }
}

/// Makes changes and saves on a disk that remembers, in several lives.
fn record(data: &Path, disk: &FaultyDisk) -> usize {
    let mut changes = 0;
    for life in 0..3 {
        let (store, recovered) = open_on(Arc::new(disk.clone()), data, small()).unwrap();
        match changes_in(&recovered.state) {
            None => {
                assert_eq!(life, 0);
                let _ = store.append(scene(NODES).records("initialised", &"Ada".into()));
            }
            found => assert_eq!(found, Some(changes)),
        }
        for _ in 0..60 {
            let record = change(&id(changes % NODES), 1000 + changes as i64);
            assert_eq!(
                store.append(vec![record]).blocking_recv(),
                Ok(Written::Kernel)
            );
            changes += 1;
            if changes % 7 == 0 {
                store.flush().blocking_recv().unwrap().unwrap();
                disk.promise(changes);
            }
            if changes % 23 == 0 {
                back_up(&store, &state_after(changes), "auto-save").unwrap();
                disk.promise(changes);
            }
        }
        drop(store);
        disk.promise(changes);
    }
    changes
}

#[test]
fn after_a_power_cut_nothing_that_was_promised_is_missing() {
    let seed: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let images: u64 = std::env::var("IMAGES").map_or(150, |count| count.parse().unwrap());
    let data = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let changes = record(data.path(), &disk);
    for seed in seed..seed + images {
        let mut random = Random(seed);
        let moment = random.below(disk.moments() + 1);
        let image = tempfile::tempdir().unwrap();
        let promised = disk.cut(data.path(), moment, image.path(), &mut random);
        let (store, recovered) = open(image.path(), small()).unwrap();
        let found = changes_in(&recovered.state);
        let notes = recovered.notes;
        assert!(
            found.is_some() || promised == 0,
            "SEED={seed}: nothing is left of {promised}: {notes:?}"
        );
        let found = found.unwrap_or(0);
        assert!(
            (promised..=changes).contains(&found),
            "SEED={seed}: {found} of {promised} promised changes: {notes:?}"
        );
        drop(store);
        // What was found once is found again.
        let (_store, recovered) = open(image.path(), small()).unwrap();
        assert_eq!(
            changes_in(&recovered.state).unwrap_or(0),
            found,
            "SEED={seed}"
        );
    }
}

#[test]
fn after_kill_9_nothing_that_the_kernel_had_is_missing() {
    let kills: usize = std::env::var("KILLS").map_or(20, |count| count.parse().unwrap());
    let data = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    let mut known = 0;
    for round in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power::child", "--ignored", "--nocapture"])
            .env("STORE_CHILD", data.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = random.below(400);
        let mut take = |line: std::io::Result<String>| {
            let line = line.unwrap();
            let written = line.strip_prefix("written ").map(|n| n.parse().unwrap());
            known = written.unwrap_or(known).max(known);
            written.is_some()
        };
        for line in lines.by_ref() {
            if take(line) {
                left = left.saturating_sub(1);
            }
            if left == 0 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(|line| {
            take(line);
        });
        let (_store, recovered) = open(data.path(), small()).unwrap();
        let found = changes_in(&recovered.state).unwrap_or(0);
        assert!(
            found >= known,
            "round {round}: {found} of {known} changes: {:?}",
            recovered.notes
        );
    }
    assert!(known > 0);
}

/// What the test above kills: changes one node after the other, saves all the time, says what the kernel has.
#[test]
#[ignore = "a part of after_kill_9_nothing_that_the_kernel_had_is_missing"]
fn child() {
    let Some(data) = std::env::var_os("STORE_CHILD") else {
        return;
    };
    let (store, recovered) = open(Path::new(&data), small()).unwrap();
    let mut changes = changes_in(&recovered.state).unwrap_or_else(|| {
        let _ = store.append(scene(NODES).records("initialised", &"Ada".into()));
        0
    });
    println!("started with {changes}");
    loop {
        let record = change(&id(changes % NODES), 1000 + changes as i64);
        assert_eq!(
            store.append(vec![record]).blocking_recv(),
            Ok(Written::Kernel)
        );
        changes += 1;
        println!("written {changes}");
        if changes.is_multiple_of(20) {
            store.checkpoint(state_after(changes));
        }
        if changes.is_multiple_of(90) {
            drop(back_up(&store, &state_after(changes), "auto-save"));
        }
    }
}
