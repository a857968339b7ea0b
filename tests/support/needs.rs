//! What some stories need of a client and not every version has, in one place.

use std::io::{self, Write};
use std::thread;

use super::venv::{self, Spec};

/// What a story needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A broken line comes back by itself, under the same identity.
    Reconnecting,
    /// A client waits for a server that restarts, and goes on.
    WaitingForRestarts,
    /// It writes raw frames into a client's own session.
    RawFrames,
    /// It logs bare DEALER sockets in.
    BareLogin,
    /// Edits travel as deltas.
    Deltas,
    /// A password for entering and one for administrators.
    TwoPasswords,
    /// Clients ask what a server is before they log in.
    ServerInfo,
    /// Data and heartbeat have a port each.
    PortsOfTheirOwn,
    /// A client that does nothing for a while reads nothing meanwhile.
    OneThread,
    /// A session file is read.
    SessionFiles,
    /// A scene without nodes is joined.
    EmptyScenes,
    /// Who waits in the lobby tells about himself.
    LobbyPresence,
}

impl Need {
    /// Why a version does not have it.
    fn missing(self, spec: &Spec) -> Option<&'static str> {
        let version = spec.numbers();
        let (four_socket, tcp) = (spec.is_four_socket(), spec.is_tcp());
        match self {
            Need::Reconnecting if tcp => Some("its connections do not come back by themselves"),
            Need::WaitingForRestarts if four_socket || tcp => {
                Some("it is told to connect again when the server restarts")
            }
            Need::RawFrames if four_socket => Some("its frames are others than the story writes"),
            Need::BareLogin if four_socket || tcp => Some("the story speaks for DEALER sockets"),
            Need::Deltas if four_socket => Some("it sends whole nodes only"),
            Need::TwoPasswords if spec.has_one_password() => {
                Some("it has one password for both purposes")
            }
            Need::ServerInfo if spec.has_one_password() => Some("it does not ask what a server is"),
            Need::PortsOfTheirOwn if tcp => Some("it uses one port for everything"),
            Need::OneThread if four_socket => Some("its network threads read on meanwhile"),
            Need::SessionFiles if four_socket => Some("it does not read these files"),
            Need::EmptyScenes if version < (0, 9, 6) => Some("it cannot join an empty scene"),
            Need::LobbyPresence if four_socket => Some("it is silent until it is in"),
            _ => None,
        }
    }
}

/// Whether the chosen version has all of this. Where not, says so, and the story is to end.
pub fn needs(needs: &[Need]) -> bool {
    let spec = venv::chosen();
    let Some(why) = needs.iter().find_map(|need| need.missing(spec)) else {
        return true;
    };
    let story = thread::current().name().unwrap_or("a story").to_owned();
    // Straight to the terminal: what `eprintln` says is hidden by the test runner where a test passes.
    let _ = writeln!(io::stderr(), "NOT FOR {}: {story}: {why}", spec.version);
    false
}
