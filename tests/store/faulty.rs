//! Disks that fail: full, slow, refusing to sync; and one that remembers everything, to cut its power at any moment.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blender_multiuser::store::disk::{Disk, DiskFile, RealDisk};

/// What can be wrong with it, changeable at any time.
#[derive(Default)]
pub struct Faults {
    pub full: AtomicBool,
    pub no_sync: AtomicBool,
    /// What was written cannot be taken back.
    pub no_cut: AtomicBool,
    /// ms that every write takes.
    pub slow: AtomicU64,
    /// Writes to files with this in their paths do not end.
    stuck: Mutex<Option<String>>,
    /// There is no space for files with this in their paths.
    refused: Mutex<Option<String>>,
    /// Files with this in their paths take so many more bytes.
    room: Mutex<Option<(String, usize)>>,
    /// Files with this in their paths are neither renamed nor removed.
    fixed: Mutex<Option<String>>,
    /// The server itself is at fault where it makes such a file.
    fatal: Mutex<Option<String>>,
    log: Mutex<Vec<Op>>,
}

/// Something that was done, as a power cut would remember it.
#[derive(Clone)]
enum Op {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Truncate(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
    /// So many changes have been promised to be durable.
    Promise(usize),
}

/// The real disk with faults.
#[derive(Clone, Default)]
pub struct FaultyDisk(pub Arc<Faults>);

struct FaultyFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    /// From now on writes to files with this in their paths do not end.
    pub fn stick(&self, path: &str) {
        *self.0.stuck.lock().unwrap() = Some(path.to_owned());
    }

    pub fn unstick(&self) {
        *self.0.stuck.lock().unwrap() = None;
    }

    /// From now on there is no space for files with this in their paths.
    pub fn refuse(&self, path: &str) {
        *self.0.refused.lock().unwrap() = Some(path.to_owned());
    }

    /// From now on files with this in their paths take so many more bytes.
    pub fn leave_room(&self, path: &str, bytes: usize) {
        *self.0.room.lock().unwrap() = Some((path.to_owned(), bytes));
    }

    pub fn give_room(&self) {
        *self.0.room.lock().unwrap() = None;
    }

    /// Files with this in their paths keep their names, as one whose directory is somebody else's.
    pub fn fix(&self, path: Option<&str>) {
        *self.0.fixed.lock().unwrap() = path.map(str::to_owned);
    }

    /// Making files with this in their paths panics.
    pub fn panic_at(&self, path: Option<&str>) {
        *self.0.fatal.lock().unwrap() = path.map(str::to_owned);
    }

    fn check_fixed(&self, path: &Path) -> io::Result<()> {
        let fixed = self.0.fixed.lock().unwrap();
        let name = path.to_string_lossy();
        match fixed.as_ref().is_some_and(|part| name.contains(part)) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    fn note(&self, op: Op) {
        self.0.log.lock().unwrap().push(op);
    }

    pub fn promise(&self, changes: usize) {
        self.note(Op::Promise(changes));
    }

    /// How much has been done; any number up to it is a moment at which the power may go.
    pub fn moments(&self) -> usize {
        self.0.log.lock().unwrap().len()
    }
}

impl Faults {
    fn is_full(&self, path: &Path) -> bool {
        let refused = self.refused.lock().unwrap();
        let refused = refused
            .as_ref()
            .is_some_and(|part| path.to_string_lossy().contains(part));
        refused || self.full.load(SeqCst)
    }

    /// How many of so many bytes still fit.
    fn fitting(&self, path: &Path, bytes: usize) -> usize {
        match &mut *self.room.lock().unwrap() {
            Some((part, left)) if path.to_string_lossy().contains(part.as_str()) => {
                let fitting = bytes.min(*left);
                *left -= fitting;
                fitting
            }
            _ => bytes,
        }
    }
}

fn enospc() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if self.0.is_full(path) {
            return Err(enospc());
        }
        let fatal = self.0.fatal.lock().unwrap().clone();
        if fatal.is_some_and(|part| path.to_string_lossy().contains(&part)) {
            panic!("a fault of the server");
        }
        let file = RealDisk.create(path)?;
        self.note(Op::Create(path.to_owned()));
        Ok(Arc::new(FaultyFile {
            path: path.to_owned(),
            file,
            faults: self.0.clone(),
        }))
    }

    fn truncate(&self, path: &Path, length: u64) -> io::Result<()> {
        RealDisk.truncate(path, length)?;
        self.note(Op::Truncate(path.to_owned(), length));
        self.note(Op::Sync(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_fixed(from)?;
        RealDisk.rename(from, to)?;
        self.note(Op::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check_fixed(path)?;
        RealDisk.remove(path)?;
        self.note(Op::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)?;
        self.note(Op::SyncDir(path.to_owned()));
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn append(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.faults.slow.load(SeqCst)));
        let path = self.path.to_string_lossy();
        let stuck = || self.faults.stuck.lock().unwrap().clone();
        while stuck().is_some_and(|part| path.contains(&part)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut full = self.faults.is_full(&self.path);
        if full {
            // As it really happens: some of it still fits.
            bytes.truncate(bytes.len() / 2);
        }
        let fitting = self.faults.fitting(&self.path, bytes.len());
        full |= fitting < bytes.len();
        bytes.truncate(fitting);
        self.file.append(&mut [IoSlice::new(&bytes)])?;
        let op = Op::Write(self.path.clone(), bytes);
        self.faults.log.lock().unwrap().push(op);
        if full { Err(enospc()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        if self.faults.no_sync.load(SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        // What is written while it syncs need not be durable.
        let op = Op::Sync(self.path.clone());
        self.faults.log.lock().unwrap().push(op);
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        if self.faults.no_cut.load(SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.file.truncate(length)?;
        let op = Op::Truncate(self.path.clone(), length);
        self.faults.log.lock().unwrap().push(op);
        Ok(())
    }
}

/// A small random number generator, so that every image can be made again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    /// Appended since the last sync.
    pending: Vec<Vec<u8>>,
}

impl Inode {
    fn settle(&mut self) {
        for bytes in self.pending.drain(..) {
            self.durable.extend(bytes);
        }
    }

    /// What is there after the cut: what was synced, and of the rest whatever chance wrote.
    fn after_cut(mut self, random: &mut Random) -> Vec<u8> {
        for bytes in std::mem::take(&mut self.pending) {
            match random.below(4) {
                // Not even the length: what comes later would lie beyond the end.
                0 => break,
                // The length, but not the data.
                1 => self.durable.extend(vec![0; bytes.len()]),
                2 => {
                    let torn = random.below(bytes.len() + 1);
                    self.durable.extend(&bytes[..torn]);
                    if random.below(2) == 0 {
                        break;
                    }
                    self.durable.extend(vec![0; bytes.len() - torn]);
                }
                _ => self.durable.extend(bytes),
            }
        }
        self.durable
    }
}

impl FaultyDisk {
    /// Puts into `image` what the disk may hold if the power goes after the first `moment` operations below `root`. Returns how
    /// many changes had been promised by then.
    pub fn cut(&self, root: &Path, moment: usize, image: &Path, random: &mut Random) -> usize {
        let log = self.0.log.lock().unwrap();
        let mut inodes: Vec<Inode> = Vec::new();
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut durable_names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut pending: Vec<(PathBuf, Option<PathBuf>, Option<usize>)> = Vec::new();
        let mut promised = 0;
        for op in &log[..moment] {
            match op.clone() {
                Op::Create(path) => {
                    names.insert(path.clone(), inodes.len());
                    pending.push((path, None, Some(inodes.len())));
                    inodes.push(Inode::default());
                }
                Op::Write(path, bytes) => {
                    let inode = &mut inodes[names[&path]];
                    inode.pending.push(bytes);
                }
                Op::Sync(path) => {
                    if let Some(at) = names.get(&path) {
                        inodes[*at].settle();
                    }
                }
                Op::Truncate(path, length) => {
                    // Taken as durable at once: the other order only leaves more to be cut.
                    if let Some(at) = names.get(&path) {
                        inodes[*at].settle();
                        inodes[*at].durable.truncate(length as usize);
                    }
                }
                Op::Rename(from, to) => {
                    let at = names.remove(&from);
                    names.extend(at.map(|at| (to.clone(), at)));
                    pending.push((to, Some(from), at));
                }
                Op::Remove(path) => {
                    names.remove(&path);
                    pending.push((path, None, None));
                }
                Op::SyncDir(directory) => {
                    pending.retain(|(path, from, at)| {
                        if path.parent() != Some(&directory) {
                            return true;
                        }
                        apply(&mut durable_names, path, from, *at);
                        false
                    });
                }
                Op::Promise(changes) => promised = changes,
            }
        }
        for (path, from, at) in pending {
            if random.below(2) == 0 {
                apply(&mut durable_names, &path, &from, at);
            }
        }
        let mut inodes: Vec<Option<Inode>> = inodes.into_iter().map(Some).collect();
        for (path, at) in durable_names {
            let target = image.join(path.strip_prefix(root).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            if let Some(inode) = inodes[at].take() {
                std::fs::write(target, inode.after_cut(random)).unwrap();
            }
        }
        promised
    }
}

fn apply(
    names: &mut BTreeMap<PathBuf, usize>,
    path: &Path,
    from: &Option<PathBuf>,
    at: Option<usize>,
) {
    if let Some(from) = from {
        names.remove(from);
    }
    match at {
        Some(at) => names.insert(path.to_owned(), at),
        None => names.remove(path),
    };
}
