//! Who may read and write what the server keeps: nobody else, as far as the server makes it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::private;

/// Makes a file that must not exist yet and that only its owner can read.
pub fn create_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().read(true).write(true).create_new(true)).open(path)
}

/// Opens a file for writing, made if it is not there, so that only its owner can read it.
pub fn open_private(path: &Path) -> io::Result<File> {
    private(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false),
    )
    .open(path)
}

/// Makes a directory, and those above it, for its owner alone. One that is there stays as it is: whoever made it knows why.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    private_dir(DirBuilder::new().recursive(true)).create(path)
}

/// What lets this process write to a directory, where `error` says that it cannot; `None`: something else is wrong.
pub fn cure(directory: &Path, error: &io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => Some(
            "it is on a file system that is mounted read-only; mount it writable, or choose another one with --data-dir".into(),
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(
            "the disk is full; make space on it, or choose a directory on another one with --data-dir".into(),
        ),
        ErrorKind::PermissionDenied => cure_of_denial(&absolute(directory), directory),
        _ => None,
    }
}

/// What lets this process read a file below `directory`, as far as anything can be done about it.
pub fn cure_of_reading(directory: &Path, file: &Path, error: &io::Error) -> String {
    let cure = match error.kind() {
        ErrorKind::PermissionDenied => cure_of_denial(&absolute(directory), file),
        _ => None,
    };
    cure.unwrap_or_else(|| "start again when that is cured".into())
}

/// Whether an error has its cause outside of the file: it is whole once that is gone.
pub fn is_passing(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        ErrorKind::PermissionDenied | ErrorKind::OutOfMemory | ErrorKind::Interrupted
    ) || error.raw_os_error().is_some_and(is_passing_code)
}

/// Too many open files.
#[cfg(unix)]
fn is_passing_code(code: i32) -> bool {
    use nix::errno::Errno;
    code == Errno::EMFILE as i32 || code == Errno::ENFILE as i32
}

/// Too many open files; another program has the file open for itself.
#[cfg(not(unix))]
fn is_passing_code(code: i32) -> bool {
    matches!(code, 4 | 32 | 33)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(unix)]
fn private_dir(builder: &mut DirBuilder) -> &mut DirBuilder {
    use std::os::unix::fs::DirBuilderExt;
    builder.mode(0o700)
}

/// `denied`: the directory itself or something in it.
#[cfg(unix)]
fn cure_of_denial(directory: &Path, denied: &Path) -> Option<String> {
    use nix::unistd::{getegid, geteuid};
    use std::os::unix::fs::MetadataExt;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let owner = denied.metadata().map(|found| found.uid()).ok();
    Some(advice(directory, user, group, owner))
}

/// `owner`: of what may not be used, if it is there and can be seen.
#[cfg(unix)]
fn advice(directory: &Path, user: u32, group: u32, owner: Option<u32>) -> String {
    // In single quotes a shell takes everything as it is.
    let quoted = format!(
        "'{}'",
        directory.display().to_string().replace('\'', r"'\''")
    );
    match owner {
        Some(owner) if owner == user => format!(
            "it belongs to this server's user ({user}), but something in it may not be read or written; run: chmod -R u+rwX {quoted}"
        ),
        Some(owner) => format!(
            "this server runs as user {user}, but it belongs to user {owner}; run (for a container: outside, on the \
             directory that is mounted there): sudo chown -R {user}:{group} {quoted}"
        ),
        None => format!(
            "this server runs as user {user} and may not make it; run: sudo install -d -m 700 -o {user} -g {group} {quoted}"
        ),
    }
}

/// A directory takes the access list of the one it is in, which for a user's own directories is private.
#[cfg(not(unix))]
fn private_dir(builder: &mut DirBuilder) -> &mut DirBuilder {
    builder
}

#[cfg(not(unix))]
fn cure_of_denial(directory: &Path, _: &Path) -> Option<String> {
    Some(format!(
        "let this server's user read and write {} (Properties, Security), or choose another one with --data-dir",
        directory.display()
    ))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_cure_is_one_command() {
        let data = Path::new("/srv/it's data");
        for (owner, command) in [
            (Some(1000), r"chmod -R u+rwX '/srv/it'\''s data'"),
            (Some(0), r"sudo chown -R 1000:100 '/srv/it'\''s data'"),
            (
                None,
                r"sudo install -d -m 700 -o 1000 -g 100 '/srv/it'\''s data'",
            ),
        ] {
            let said = advice(data, 1000, 100, owner);
            assert!(said.ends_with(command), "{said}");
        }
    }
}
