//! Files that were cut, changed, emptied or removed: it always starts, says what it found, and never deletes a damaged journal.

use std::fs;
use std::path::{Path, PathBuf};

use blender_multiuser::store::{Recovered, Saved, Store};
use proptest::prelude::*;

use crate::scenes::*;

/// A data directory with a backup after 10 changes, and 10 more in the journal.
fn lived_in() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let (store, _) = start(data.path());
    let mut state = state(3);
    let scene = state.scene.as_mut().unwrap();
    let _ = store.append(scene.records("initialised", &"Ada".into()));
    for n in 0..10 {
        let _ = store.append(vec![change("node-00000", 1000 + n)]);
    }
    scene.nodes[0].0 = node("node-00000", 1009);
    assert!(matches!(
        back_up(&store, &state, "auto-save"),
        Ok(Saved::Backup(_))
    ));
    for n in 10..20 {
        let _ = store.append(vec![change("node-00000", 1000 + n)]);
    }
    drop(store);
    data
}

fn number(recovered: &Recovered) -> i64 {
    numbers(&recovered.state)["node-00000"]
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "log")
        .filter(|path| path.metadata().unwrap().len() > 28)
        .collect();
    found.sort();
    found
}

fn damaged(data: &Path) -> usize {
    fs::read_dir(data.join("journal"))
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("damaged")
        })
        .count()
}

#[test]
fn a_torn_tail_is_cut_without_ado() {
    let data = lived_in();
    let last = segments(data.path()).pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() - 3]).unwrap();
    let (store, recovered) = start(data.path());
    assert_eq!(number(&recovered), 1018);
    assert!(
        recovered.notes.len() == 1 && damaged(data.path()) == 0,
        "{:?}",
        recovered.notes
    );
    // Life goes on after it.
    let _ = store.append(vec![change("node-00000", 5)]);
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!((number(&recovered), recovered.notes.len()), (5, 0));
}

#[test]
fn what_comes_after_damage_is_kept_aside() {
    let data = lived_in();
    let last = segments(data.path()).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&last, bytes).unwrap();
    let (_store, recovered) = start(data.path());
    assert!(
        (1009..1019).contains(&number(&recovered)),
        "{}",
        number(&recovered)
    );
    assert_eq!(damaged(data.path()), 1, "{:?}", recovered.notes);
}

#[test]
fn a_length_that_runs_off_the_file_is_damage_if_records_follow() {
    let data = lived_in();
    let last = segments(data.path()).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    bytes[28 + 3] = 0x7f;
    fs::write(&last, bytes).unwrap();
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered), 1009);
    assert_eq!(damaged(data.path()), 1, "{:?}", recovered.notes);
}

#[test]
fn every_part_can_be_missing() {
    for (missing, expected) in [
        (&["state.sled"][..], 1019),
        (&["backups"], 1019),
        (&["journal"], 1009),
        (&["state.sled", "journal"], 1009),
        (&["backups", "journal"], 1009),
        (&["lock", "session_metadata.json"], 1019),
    ] {
        let data = lived_in();
        for name in missing {
            let path = data.path().join(name);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        let (store, recovered) = start(data.path());
        assert_eq!(
            number(&recovered),
            expected,
            "without {missing:?}: {:?}",
            recovered.notes
        );
        let _ = store.append(vec![change("node-00000", 5)]);
        drop(store);
        let (_store, recovered) = start(data.path());
        assert_eq!(
            number(&recovered),
            5,
            "without {missing:?}: {:?}",
            recovered.notes
        );
    }
}

#[test]
fn every_file_can_be_empty() {
    let files = |data: &Path| {
        let mut found = Vec::new();
        for directory in ["", "journal", "backups", "state.sled"] {
            for entry in fs::read_dir(data.join(directory)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    found.push(path.strip_prefix(data).unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    };
    for file in files(lived_in().path()) {
        let data = lived_in();
        // The name of a backup holds the time.
        let Some(path) = [data.path().join(&file)]
            .into_iter()
            .find(|path| path.exists())
        else {
            continue;
        };
        fs::write(&path, b"").unwrap();
        let (store, recovered) = start(data.path());
        let expected = if file.starts_with("journal") {
            1009
        } else {
            1019
        };
        assert!(
            number(&recovered) >= expected,
            "{}: {:?}",
            file.display(),
            recovered.notes
        );
        drop(store);
        let (_store, again) = start(data.path());
        assert_eq!(number(&again), number(&recovered), "{}", file.display());
    }
}

#[test]
fn a_missing_segment_ends_the_journal() {
    let data = lived_in();
    for number in 0..3 {
        let (store, _) = start(data.path());
        let _ = store.append(vec![change("node-00000", number)]);
    }
    let segments = segments(data.path());
    assert_eq!(segments.len(), 4);
    fs::remove_file(&segments[2]).unwrap();
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered), 0, "{:?}", recovered.notes);
    assert_eq!(damaged(data.path()), 1);
}

#[test]
fn changes_of_a_scene_that_nobody_has_are_kept_aside() {
    let data = lived_in();
    fs::remove_dir_all(data.path().join("state.sled")).unwrap();
    fs::remove_dir_all(data.path().join("backups")).unwrap();
    let (store, recovered) = start(data.path());
    assert!(recovered.state.scene.is_none() && recovered.source.is_none());
    assert_eq!(damaged(data.path()), 1, "{:?}", recovered.notes);
    let _ = store.append(scene(2).records("initialised", &"Ada".into()));
    drop(store);
    let (_store, recovered) = start(data.path());
    assert_eq!(number(&recovered), 0, "{:?}", recovered.notes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens to one byte or one end, it starts, and with a state that there has been.
    #[test]
    fn any_file_may_be_damaged_anywhere(file in 0..100_usize, at in any::<usize>(), bits in 1..=255_u8, cut in any::<bool>()) {
        let data = lived_in();
        let mut files = segments(data.path());
        for directory in ["backups", "state.sled"] {
            let entries = fs::read_dir(data.path().join(directory)).unwrap();
            files.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
        }
        files.sort();
        let path = &files[file % files.len()];
        let mut bytes = fs::read(path).unwrap();
        let at = at % bytes.len().max(1);
        if cut {
            bytes.truncate(at);
        } else if let Some(byte) = bytes.get_mut(at) {
            *byte ^= bits;
        }
        fs::write(path, bytes).unwrap();
        let (store, recovered) = start(data.path());
        let found = number(&recovered);
        prop_assert!((1009..1020).contains(&found), "{found}: {:?}", recovered.notes);
        drop(store);
        let (_store, recovered) = start(data.path());
        prop_assert_eq!(number(&recovered), found);
    }
}

/// What a backup says about itself in its header is under no checksum.
#[test]
fn a_place_in_the_journal_is_believed_only_where_it_is_verified() {
    for digit in [b'9', b'0'] {
        let data = lived_in();
        let backup = blender_multiuser::store::list(data.path()).remove(0);
        let mut bytes = fs::read(&backup.path).unwrap();
        let sign = b"\"segment\":";
        let at = bytes.windows(sign.len()).position(|w| w == sign).unwrap();
        bytes[at + sign.len()] = digit;
        fs::write(&backup.path, bytes).unwrap();
        let (store, recovered) = start(data.path());
        assert_eq!(number(&recovered), 1019, "{:?}", recovered.notes);
        drop(store);
        // The same where there is nothing else to start from.
        fs::remove_dir_all(data.path().join("state.sled")).unwrap();
        let (_store, recovered) = start(data.path());
        assert_eq!(number(&recovered), 1019, "{:?}", recovered.notes);
        let said = recovered.notes.concat();
        assert!(said.contains("its header is damaged"), "{said}");
        assert_eq!(damaged(data.path()), 0);
    }
}
