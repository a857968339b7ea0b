//! Virtual environments with the published client packages, made on first use under `target/clients/`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// A client's package versions.
pub struct Spec {
    /// The `replication` version, as the client says it at login.
    pub version: &'static str,
    /// The directory's name under `target/clients/`; change it when `packages` changes.
    pub name: &'static str,
    /// What pip installs, without following declared dependencies.
    pub packages: &'static [&'static str],
    /// The Python module under `tests/support/` that stands in for Blender and the add-on.
    pub driver: &'static str,
    /// What a process imports before it becomes a client by a fork.
    pub preload: &'static [&'static str],
}

impl Spec {
    /// The version as three numbers.
    pub fn numbers(&self) -> (u32, u32, u32) {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap());
        let mut next = || parts.next().unwrap();
        (next(), next(), next())
    }

    pub fn is_four_socket(&self) -> bool {
        self.numbers() < (0, 7, 0)
    }

    pub fn is_tcp(&self) -> bool {
        self.numbers() >= (0, 9, 12)
    }

    /// Whether there is one password for entering and for administrators.
    pub fn has_one_password(&self) -> bool {
        self.numbers() < (0, 9, 0)
    }
}

/// Stands in for everything since 0.7, and for what was before.
const DRIVER: &str = "driver";
const DRIVER_0_1: &str = "driver_0_1";

/// An environment that is there.
#[derive(Clone)]
pub struct Python {
    pub spec: &'static Spec,
    path: PathBuf,
}

impl Deref for Python {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<OsStr> for Python {
    fn as_ref(&self) -> &OsStr {
        self.path.as_os_str()
    }
}

/// A version with the deepdiff that its time had.
macro_rules! spec {
    ($version:literal, $package:literal, 5) => {
        Spec {
            version: $version,
            name: concat!("replication-", $package, "-deepdiff-5.7.0"),
            packages: &[
                concat!("replication==", $package),
                "deepdiff==5.7.0",
                "ordered-set==4.1.0",
                "pyzmq==27.1.0",
            ],
            driver: DRIVER,
            preload: &[DRIVER],
        }
    };
    ($version:literal, $package:literal, 8) => {
        Spec {
            version: $version,
            name: concat!("replication-", $package, "-deepdiff-8.1.1"),
            packages: &[
                concat!("replication==", $package),
                "deepdiff==8.1.1",
                "orderly-set==5.5.0",
                "pyzmq==27.1.0",
            ],
            driver: DRIVER,
            preload: &[DRIVER],
        }
    };
}

/// One with four sockets. Its library makes ZeroMQ contexts when it is imported, so each client does that by itself.
macro_rules! four_socket {
    ($version:literal) => {
        Spec {
            driver: DRIVER_0_1,
            preload: &["zmq", "deepdiff", "datablocks"],
            ..spec!($version, $version, 5)
        }
    };
}

/// One of each kind that is served; the first is what hosting guides pin.
pub const FOUR_SOCKET: Spec = four_socket!("0.1.13");
/// Sends its first scene by commands.
pub const FOUR_SOCKET_LATE: Spec = four_socket!("0.1.26");
pub const V0_7: Spec = spec!("0.7.3", "0.7.3", 5);
pub const V0_8: Spec = spec!("0.8.3", "0.8.3", 5);
pub const V0_9_1: Spec = spec!("0.9.1", "0.9.1", 5);
pub const V0_9_11: Spec = spec!("0.9.11", "0.9.11", 8);
pub const V0_9_12: Spec = spec!("0.9.12", "0.9.12", 8);
/// The package calls itself by the number of the one before.
pub const V0_10_3: Spec = spec!("0.10.2", "0.10.3", 8);

/// What the Multi-User add-on 0.8.1 bundles. The package itself asks for deepdiff 5.7.0.
/// Another client version is a constant like this one and a line in [`ALL`].
pub const CURRENT: Spec = spec!("0.9.10", "0.9.10", 8);

/// The deepdiff that the package itself asks for; its deltas differ.
pub const OLD_DEEPDIFF: Spec = spec!("0.9.10", "0.9.10", 5);

/// What `CLIENT_VERSION` may name; the package's number, where that is not what it calls itself.
const ALL: [(&str, &Spec); 11] = [
    ("0.1.13", &FOUR_SOCKET),
    ("0.1.26", &FOUR_SOCKET_LATE),
    ("0.7.3", &V0_7),
    ("0.8.3", &V0_8),
    ("0.9.1", &V0_9_1),
    ("0.9.10", &CURRENT),
    ("0.9.10-deepdiff-5", &OLD_DEEPDIFF),
    ("0.9.11", &V0_9_11),
    ("0.9.12", &V0_9_12),
    ("0.10.2", &V0_10_3),
    ("0.10.3", &V0_10_3),
];

/// The version that stories are told with: `CLIENT_VERSION`, or the one that most people have.
pub fn chosen() -> &'static Spec {
    let Ok(wanted) = std::env::var("CLIENT_VERSION") else {
        return &CURRENT;
    };
    let found = ALL.iter().find(|(name, _)| *name == wanted);
    found.map_or_else(
        || {
            panic!(
                "CLIENT_VERSION={wanted} is none of {:?}",
                ALL.map(|(name, _)| name)
            )
        },
        |(_, spec)| spec,
    )
}

/// The environment's Python, or `None` where there is no python3: the tests are then skipped, loudly,
/// or fail where `CI` is set.
pub fn python(spec: &'static Spec) -> Option<Python> {
    static KNOWN: Mutex<Vec<Python>> = Mutex::new(Vec::new());
    if !python3_present() {
        assert!(
            std::env::var_os("CI").is_none(),
            "python3 is missing: tests with real clients cannot run"
        );
        // Straight to the terminal: what `eprintln` says is hidden by the test runner where a test passes.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED, NOT TESTED: python3 is missing, so no real Multi-User client can be started"
        );
        return None;
    }
    let mut known = KNOWN.lock().unwrap();
    if let Some(python) = known.iter().find(|python| python.spec.name == spec.name) {
        return Some(python.clone());
    }
    let path = prepare(spec);
    let python = Python { spec, path };
    known.push(python.clone());
    Some(python)
}

/// The installed `replication` package, for its server.
pub fn package(python: &Path) -> PathBuf {
    let output = Command::new(python)
        .args([
            "-c",
            "import os, replication; print(os.path.dirname(replication.__file__))",
        ])
        .output()
        .expect("the environment's python runs");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn python3_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        Command::new("python3")
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    })
}

/// Makes the environment once, whatever number of test processes ask for it at the same time.
fn prepare(spec: &Spec) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp has a parent");
    let clients = target.join("clients");
    fs::create_dir_all(&clients).expect("target/clients can be made");
    let lock =
        File::create(clients.join(format!("{}.lock", spec.name))).expect("lock file can be made");
    lock.lock().expect("lock file can be locked");

    let home = clients.join(spec.name);
    let python = home.join("bin/python");
    // Written last, so that an installation cut short is begun anew.
    let complete = home.join("packages.txt");
    if fs::read_to_string(&complete).is_ok_and(|list| list == spec.packages.join("\n")) {
        return python;
    }
    eprintln!("making {} (once)", home.display());
    let _ = fs::remove_dir_all(&home);
    run(Command::new("python3").args(["-m", "venv"]).arg(&home));
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(spec.packages));
    fs::write(complete, spec.packages.join("\n")).expect("environment is writable");
    python
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{text}");
}
