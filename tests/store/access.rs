//! Who can read what is kept, and what is said where it cannot be kept.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use blender_multiuser::store::{Store, open};

use crate::scenes::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// Everything below a directory that others could get at.
fn open_to_others(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if mode(&path) & 0o077 != 0 {
            found.push(format!("{} {:o}", path.display(), mode(&path)));
        } else if path.is_dir() && !path.ends_with("state.sled") {
            found.extend(open_to_others(&path));
        }
    }
    found
}

fn use_it(data: &Path) {
    let (store, _) = open(data, settings()).unwrap();
    let _ = store.append(scene(3).records("initialised", &"Ada".into()));
    back_up(&store, &state(3), "auto-save").unwrap();
    assert!(data.join("session_metadata.json").exists() && data.join("state.sled").exists());
}

#[test]
fn what_is_kept_is_for_its_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("new/data");
    use_it(&data);
    assert_eq!(mode(&data), 0o700);
    assert_eq!(open_to_others(&data), [""; 0]);
    // One that an administrator made is his affair, but not what is in it.
    let data = parent.path().join("given");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o775)).unwrap();
    use_it(&data);
    assert_eq!(mode(&data), 0o775);
    assert_eq!(open_to_others(&data), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_is_told_with_its_cure() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o555)).unwrap();
    // Whoever may do everything tries it as somebody else, with a copy of the program that everybody can reach.
    let root = fs::metadata(&data).unwrap().uid() == 0;
    let program = parent.path().join("server");
    fs::copy(env!("CARGO_BIN_EXE_blender-multiuser"), &program).unwrap();
    for password in [&[][..], &["--admin-password", "x"]] {
        let mut command = Command::new(&program);
        command.args(["--port", "0", "--bind", "127.0.0.1"]);
        command.arg("--data-dir").arg(&data).args(password);
        if root {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let cure = match root {
            true => format!("sudo chown -R 65534:65534 '{}'", data.display()),
            false => format!("chmod -R u+rwX '{}'", data.display()),
        };
        assert!(said.trim_end().ends_with(&cure), "{said}");
    }
}

/// All below a directory is given to a user.
fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap().flatten() {
            give(&entry.path(), user);
        }
    }
}

#[test]
fn what_may_not_be_read_is_no_reason_to_begin_with_less() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    use_it(&data);
    let (store, _) = open(&data, settings()).unwrap();
    let _ = store.append(vec![change("node-00000", 7)]);
    drop(store);
    fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
    let root = fs::metadata(&data).unwrap().uid() == 0;
    if root {
        give(&data, 65534);
    }
    // As a server leaves it that somebody has run as root.
    let mut segments: Vec<_> = fs::read_dir(data.join("journal"))
        .unwrap()
        .flatten()
        .collect();
    segments.sort_by_key(|segment| segment.path());
    let segment = segments.pop().unwrap().path();
    if root {
        chown(&segment, Some(0), Some(0)).unwrap();
    } else {
        fs::set_permissions(&segment, Permissions::from_mode(0o000)).unwrap();
    }
    let program = parent.path().join("server");
    fs::copy(env!("CARGO_BIN_EXE_blender-multiuser"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args([
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
        "--admin-password",
        "x",
    ]);
    command.arg("--data-dir").arg(&data);
    let mut child = command.stderr(std::process::Stdio::piped());
    if root {
        child = child.uid(65534).gid(65534);
    }
    let mut child = child.spawn().unwrap();
    // One that starts all the same is ended.
    let mut waited = 0;
    while child.try_wait().unwrap().is_none() && waited < 100 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        waited += 1;
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name) && said.contains(" -R "), "{said}");
    if root {
        chown(&segment, Some(65534), Some(65534)).unwrap();
    } else {
        fs::set_permissions(&segment, Permissions::from_mode(0o600)).unwrap();
    }
    let (_store, recovered) = open(&data, settings()).unwrap();
    assert_eq!(numbers(&recovered.state)["node-00000"], 7);
    assert_eq!(recovered.notes, [""; 0]);
}
