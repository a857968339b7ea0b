//! Passwords: how they are held, compared, and where the admin password comes from.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::platform;
use crate::store::StoreError;

/// A password. Neither `Debug` nor `Display` shows it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself, for the few places that must show or write it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `guess` is this password. The time taken depends on the length of `guess` alone, so it tells a guesser
    /// neither how much of it was right nor how long the password is.
    pub fn matches(&self, guess: &str) -> bool {
        let own = self.0.as_bytes();
        let mut differing = own.len() ^ guess.len();
        for (i, byte) in guess.bytes().enumerate() {
            let expected = own.get(i % own.len().max(1)).copied().unwrap_or(0);
            differing |= usize::from(byte ^ expected);
        }
        std::hint::black_box(differing) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The admin password of this run; there always is one.
#[derive(Debug, Clone)]
pub struct AdminPassword {
    pub secret: Secret,
    pub origin: Origin,
}

/// Where the admin password came from, which decides whether the start-up message shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// By flag, environment or the operator's own file.
    Given,
    /// Read from this file, written by an earlier start.
    Kept(PathBuf),
    /// Made by this start and written to this file.
    Made(PathBuf),
}

/// Name of the file in the data directory that keeps a password the server made.
const FILE: &str = "admin_password";

/// A longer file than this is not a password but a mistake.
const FILE_LIMIT: usize = 1024;

/// No `0 o 1 l`: a password gets read out and typed. 32 characters are 5 bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// 6 groups of 4 characters: 120 bits.
const GROUPS: usize = 6;

/// The admin password: as configured, else the one kept in the data directory, else a new one that is kept there from
/// now on (readable by its owner only). Creates the data directory.
pub fn admin_password(config: &Config) -> Result<AdminPassword> {
    if let Some(secret) = &config.admin_password {
        return Ok(AdminPassword {
            secret: secret.clone(),
            origin: Origin::Given,
        });
    }
    let path = kept_in(config);
    match fs::symlink_metadata(&path) {
        Ok(_) => {
            let secret = from_file(&path).context(
                "cannot use the kept admin password; correct or delete that file (a new one is made), \
                 or set ADMIN_PASSWORD",
            )?;
            return Ok(AdminPassword {
                secret,
                origin: Origin::Kept(path),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unwritable(config, &path, error)),
    }
    let secret = random()?;
    platform::create_private_dir(&config.data_dir)
        .and_then(|()| platform::write_private(&path, format!("{}\n", secret.reveal()).as_bytes()))
        .map_err(|error| unwritable(config, &path, error))?;
    Ok(AdminPassword {
        secret,
        origin: Origin::Made(path),
    })
}

/// The file that keeps a password the server made.
pub fn kept_in(config: &Config) -> PathBuf {
    config.data_dir.join(FILE)
}

/// Reads a password that stands alone on the first line of a file.
pub fn from_file(path: &Path) -> Result<Secret> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the password file {shown}"))?;
    let password = text
        .strip_suffix('\n')
        .map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    // An empty file must not turn into "no password": who names a file wants one.
    if password.is_empty() {
        bail!("the password file {shown} is empty");
    }
    if password.len() > FILE_LIMIT || password.contains(['\n', '\r']) {
        bail!(
            "the password file {shown} holds more than one line of at most {FILE_LIMIT} characters"
        );
    }
    Ok(Secret::new(password))
}

fn unwritable(config: &Config, path: &Path, error: io::Error) -> anyhow::Error {
    match platform::cure(&config.data_dir, &error) {
        Some(cure) => anyhow::Error::new(StoreError::Denied {
            path: config.data_dir.clone(),
            error,
            cure,
        }),
        None => anyhow::Error::new(error).context(format!(
            "cannot keep the admin password in {}; choose another directory with --data-dir, or set ADMIN_PASSWORD",
            path.display()
        )),
    }
}

fn random() -> Result<Secret> {
    let mut bytes = [0; GROUPS * 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("no random numbers from the operating system: {error}"))?;
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if i > 0 && i % 4 == 0 {
            text.push('-');
        }
        text.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    Ok(Secret(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test_config;

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {secret:#?}"), "*** *** ***");
    }

    #[test]
    fn only_the_same_text_matches() {
        let secret = Secret::new("hunter2");
        assert!(secret.matches("hunter2"));
        for guess in [
            "",
            "hunter",
            "hunter22",
            "hunter3",
            "Hunter2",
            "hunter2hunter2",
        ] {
            assert!(!secret.matches(guess), "{guess}");
        }
        assert!(!Secret::new("aa").matches("a"));
        assert!(Secret::new("").matches(""));
        assert!(!Secret::new("").matches("\0"));
    }

    #[test]
    fn a_password_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = test_config(&["--data-dir", dir.path().join("new/data").to_str().unwrap()]);
        let made = admin_password(&config).unwrap();
        let path = config.data_dir.join(FILE);
        assert_eq!(made.origin, Origin::Made(path.clone()));
        let kept = admin_password(&config).unwrap();
        assert_eq!(kept.origin, Origin::Kept(path.clone()));
        assert!(kept.secret.matches(made.secret.reveal()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let names: Vec<_> = fs::read_dir(&config.data_dir).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing else is left behind");
    }

    #[test]
    fn made_passwords_are_long_readable_and_different() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_ne!(one.reveal(), other.reveal());
        let characters: Vec<char> = one.reveal().chars().filter(|c| *c != '-').collect();
        assert_eq!(characters.len(), 24);
        assert!(characters.iter().all(|c| ALPHABET.contains(&(*c as u8))));
        let mut distinct = ALPHABET.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 32);
    }

    #[test]
    fn a_given_password_wins_and_touches_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let config = test_config(&[
            "--data-dir",
            data.to_str().unwrap(),
            "--admin-password",
            "x y ",
        ]);
        let given = admin_password(&config).unwrap();
        assert_eq!(given.origin, Origin::Given);
        assert_eq!(given.secret.reveal(), "x y ");
        assert!(!data.exists());
    }

    #[test]
    fn a_data_directory_that_cannot_be_made_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let config = test_config(&["--data-dir", file.join("data").to_str().unwrap()]);
        let message = format!("{:#}", admin_password(&config).unwrap_err());
        assert!(message.contains("--data-dir"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn password_files_hold_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        for (content, password) in [
            ("a b", "a b"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            (" a \n", " a "),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(from_file(&path).unwrap().reveal(), password);
        }
        for content in ["", "\n", "a\nb\n", "a\n\n"] {
            fs::write(&path, content).unwrap();
            assert!(from_file(&path).is_err(), "{content:?}");
        }
        fs::write(&path, "a".repeat(FILE_LIMIT + 1)).unwrap();
        assert!(from_file(&path).is_err());
        assert!(from_file(&dir.path().join("absent")).is_err());
    }
}
