//! Which client versions may work together (docs/protocol.md, section 1). The scene's data depends on the add-on's version.

use crate::wire::message::Login;
use crate::wire::{DataFormat, Dialect, dialect};

use super::Session;

/// What a client of another version than the session's is told, in upstream's words.
fn wrong_version(client: &str, session: &str) -> String {
    format!("wrong client version ({} != {session})", shown(client))
}

/// A version as its client claims it, fit for being shown.
fn shown(version: &str) -> String {
    let shown: String = version
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".+-".contains(*c))
        .take(16)
        .collect();
    // The client looks for these words anywhere in the text.
    if shown.contains("LOBBY") || shown.contains("RUNNING") {
        "?".into()
    } else {
        shown
    }
}

impl Session {
    /// Whether this version is served, in the way in which it came.
    pub(super) fn is_served(&self, login: &Login) -> Result<(), String> {
        match Dialect::of(&login.version) {
            Some(dialect) if dialect.is_like(login.dialect) => Ok(()),
            _ => Err(match &self.version {
                Some(session) => wrong_version(&login.version, session),
                None => wrong_version(&login.version, dialect::SERVED),
            }),
        }
    }

    /// Why this version cannot enter the session as it is, if so.
    pub(super) fn version_fault(&self, login: &Login) -> Option<String> {
        self.other_version(&login.version)
    }

    /// What a user of this version is told if the session belongs to another one that it may not be mixed with.
    pub(super) fn other_version(&self, version: &str) -> Option<String> {
        let Some(session) = self.version.as_deref() else {
            // Whoever unpins leaves the version open, but not the form of the scene that is there.
            let fits = match self.graph.is_four_socket() {
                None => true,
                Some(old) => old == (DataFormat::of(version) == Some(DataFormat::WholeNodes)),
            };
            return (!fits).then(|| wrong_version(version, "that of the scene's add-on"));
        };
        let listed = |version| {
            self.settings
                .versions
                .iter()
                .any(|listed| listed == version)
        };
        let mix = listed(version)
            && listed(session)
            && DataFormat::of(version) == DataFormat::of(session);
        (version != session && !mix).then(|| wrong_version(version, session))
    }
}
