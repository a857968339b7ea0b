//! The few things the store asks of a filesystem, so that tests can put a failing, slow or power-cut one in its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::platform;
pub use crate::platform::sync_directory;

/// What changes files. Reading needs no such layer: damage is put into the files themselves.
pub trait Disk: Send + Sync {
    /// Makes a file that must not exist yet, for its owner alone: scenes are people's work.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Cuts a file off. Durable when it returns.
    fn truncate(&self, path: &Path, length: u64) -> io::Result<()>;
    /// Renames, replacing what is there. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes what was created, renamed and removed in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written, from one thread; another one may sync it meanwhile.
pub trait DiskFile: Send + Sync {
    /// Writes all parts at the end. After an error any part of them may have been written.
    fn append(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes what was written before durable.
    fn sync(&self) -> io::Result<()>;
    /// Takes back what was written after `length`.
    fn truncate(&self, length: u64) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(platform::create_private(path)?)))
    }

    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        sync_directory(path)
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut file = &self.0;
        // Writing nothing would look like a file that takes nothing.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match file.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)?;
        (&self.0).seek(SeekFrom::Start(length)).map(drop)
    }
}

/// Makes everything below a directory durable, whoever wrote it.
pub fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
            continue;
        }
        // Windows syncs only what is open for writing.
        match OpenOptions::new().read(true).write(true).open(entry.path()) {
            Ok(file) => file.sync_all()?,
            // Its owner may have replaced it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    sync_directory(directory)
}

/// A path beside `path` that is free: `NAME.WHAT`, `NAME.WHAT_1`, …
pub fn free_path(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let candidate = |n: u32| match n {
        0 => path.with_file_name(format!("{name}.{what}")),
        n => path.with_file_name(format!("{name}.{what}_{n}")),
    };
    (0..u32::MAX)
        .map(candidate)
        .find(|path| !path.exists())
        .unwrap_or_else(|| candidate(u32::MAX))
}
