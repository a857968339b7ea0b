//! The log file. What goes wrong with it is told, and costs nothing but the lines that could not be written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::platform::append_private;

/// A file that lines are appended to. When it has grown too large it becomes `FILE.1`, that `FILE.2` and so on.
pub(super) struct LogFile {
    path: PathBuf,
    /// `None` while it cannot be opened.
    file: Option<File>,
    /// Bytes it may have; `None`: any number.
    max_size: Option<u64>,
    /// Bytes at which to put it aside; more than `max_size` after that has failed.
    limit: u64,
    /// How many are kept besides the one that is written.
    kept: u32,
    failing: bool,
    /// The last line is there in part.
    torn: bool,
}

impl LogFile {
    pub fn open(path: &Path, max_size: Option<u64>, kept: u32) -> Result<Self> {
        let file = match append_private(path) {
            Ok(file) => file,
            Err(error) => {
                let shown = path.display();
                let advice = "give another one with --log-file or LOG_FILE, or none";
                match path.parent().filter(|directory| !directory.exists()) {
                    Some(directory) => bail!(
                        "cannot write to the log file {shown}: there is no directory {}; make it, or {advice}",
                        directory.display()
                    ),
                    None => bail!("cannot write to the log file {shown}: {error}; {advice}"),
                }
            }
        };
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            max_size,
            limit: max_size.unwrap_or(u64::MAX),
            kept,
            failing: false,
            torn: false,
        })
    }

    /// Appends a line. Returns what the operator should know: that writing fails from now on, works again, or that the
    /// file could not be put aside.
    pub fn append(&mut self, line: &str) -> Option<String> {
        let not_rotated = self.rotate(line.len()).err();
        let written = self.write(line);
        let path = self.path.display();
        let news = match (&written, self.failing) {
            (Err(error), false) => Some(format!("cannot write to the log file {path}: {error}")),
            (Ok(()), true) => Some(format!("the log file {path} is written again")),
            _ => not_rotated
                .map(|error| format!("the log file {path} grows on: cannot rename it: {error}")),
        };
        self.failing = written.is_err();
        news
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        // Deleted, moved, or gone with its directory: what is written to it would be lost.
        if self.file.is_none() || !fs::exists(&self.path)? {
            self.file = None;
            self.file = Some(append_private(&self.path)?);
            self.torn = false;
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let before = file.metadata()?.len();
        let written = file.write_all(line.as_bytes());
        self.torn = written.is_err() && file.metadata().is_ok_and(|after| after.len() > before);
        written
    }

    /// Puts the file aside if `more` bytes are too many for it.
    fn rotate(&mut self, more: usize) -> io::Result<()> {
        let (Some(max_size), Some(file)) = (self.max_size, &self.file) else {
            return Ok(());
        };
        let size = file.metadata().map_or(0, |about| about.len());
        if size == 0 || size.saturating_add(more as u64) <= self.limit {
            return Ok(());
        }
        // Windows renames no open files.
        self.file = None;
        let renamed = self.rename();
        // Not with every line, if it does not work.
        self.limit = match renamed {
            Ok(()) => max_size,
            Err(_) => size.saturating_add(max_size),
        };
        renamed
    }

    fn rename(&self) -> io::Result<()> {
        // Those that an earlier run with other settings has left.
        let beyond = (self.kept + 1..).take_while(|&n| fs::remove_file(self.aside(n)).is_ok());
        beyond.for_each(drop);
        if self.kept == 0 {
            return fs::remove_file(&self.path);
        }
        for n in (1..self.kept).rev() {
            match fs::rename(self.aside(n), self.aside(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.aside(1))
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_full_file_is_put_aside_and_few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(dir.path().join("log.3"), "of an earlier run").unwrap();
        let mut file = LogFile::open(&path, Some(10), 2).unwrap();
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddd dddd dddd\n", "eeee\n"] {
            assert_eq!(file.append(line), None);
        }
        assert_eq!(read(&path), "eeee\n");
        assert_eq!(read(&dir.path().join("log.1")), "dddd dddd dddd\n");
        assert_eq!(read(&dir.path().join("log.2")), "cccc\n");
        assert!(!dir.path().join("log.3").exists());
        // The size counts what was there before.
        drop(file);
        let mut file = LogFile::open(&path, Some(10), 0).unwrap();
        assert_eq!(file.append("ffffff\n"), None);
        assert_eq!(read(&path), "ffffff\n");
        assert!(!dir.path().join("log.1").exists());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_what_it_makes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = LogFile::open(&path, Some(10), 1).unwrap();
        assert_eq!(file.append("aaaa aaaa\n"), None);
        assert_eq!(file.append("bbbb bbbb\n"), None);
        for path in [path, dir.path().join("log.1")] {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn without_a_limit_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = LogFile::open(&path, None, 2).unwrap();
        for _ in 0..100 {
            assert_eq!(file.append("line\n"), None);
        }
        assert_eq!(read(&path).len(), 500);
    }

    #[test]
    fn a_vanished_directory_is_told_once_and_used_again_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let path = logs.join("log");
        let mut file = LogFile::open(&path, Some(10), 1).unwrap();
        assert_eq!(file.append("aaaa\n"), None);
        fs::rename(&logs, dir.path().join("elsewhere")).unwrap();
        let told = file.append("bbbb\n").unwrap();
        assert!(told.contains("cannot write to the log file"), "{told}");
        assert_eq!(file.append("cccc\n"), None);
        fs::create_dir(&logs).unwrap();
        assert!(file.append("dddd\n").unwrap().contains("written again"));
        assert_eq!(file.append("eeee\n"), None);
        assert_eq!(read(&path), "dddd\neeee\n");
    }

    #[test]
    fn a_deleted_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = LogFile::open(&path, None, 1).unwrap();
        file.append("aaaa\n");
        fs::rename(&path, dir.path().join("moved")).unwrap();
        assert_eq!(file.append("bbbb\n"), None);
        assert_eq!(read(&path), "bbbb\n");
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows_and_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::create_dir(dir.path().join("log.1")).unwrap();
        let mut file = LogFile::open(&path, Some(10), 1).unwrap();
        assert_eq!(file.append("aaaa\n"), None);
        assert_eq!(file.append("bbbb\n"), None);
        assert!(file.append("cccc\n").unwrap().contains("grows on"));
        assert_eq!(file.append("dddd\n"), None);
        assert_eq!(read(&path), "aaaa\nbbbb\ncccc\ndddd\n");
        fs::remove_dir(dir.path().join("log.1")).unwrap();
        assert_eq!(file.append("eeee\n"), None);
        assert_eq!(read(&path), "eeee\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_once() {
        let mut file = LogFile::open(Path::new("/dev/full"), Some(10), 1).unwrap();
        assert!(file.append("aaaa\n").unwrap().contains("cannot write"));
        assert_eq!(file.append("bbbb\n"), None);
    }

    #[test]
    fn a_file_that_cannot_be_opened_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = LogFile::open(dir.path(), None, 1).err().unwrap();
        assert!(error.to_string().contains("--log-file"), "{error}");
        let directory = dir.path().join("no/such");
        let error = LogFile::open(&directory.join("log"), None, 1)
            .err()
            .unwrap();
        let expected = format!("there is no directory {}; make it", directory.display());
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
