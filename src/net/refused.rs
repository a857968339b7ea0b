//! Whom this server has refused lately.
//!
//! libzmq gives an endpoint up only when an ERROR comes *instead of* READY; after a READY it ignores the ERROR and
//! connects again at once, for ever. Our READY goes out before the peer has said who it is. So a refused identity is
//! remembered, and the next connection from its address is asked for its own READY first.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// How long a refusal is remembered; libzmq comes back within a second.
const MEMORY: Duration = Duration::from_secs(60);
/// How many are; past that the oldest are forgotten.
const MAX_REFUSED: usize = 512;

#[derive(Debug, Default)]
pub struct Refused(Mutex<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    until: Instant,
    address: IpAddr,
    /// `None` where the peer was refused for how it spoke, not for who it is.
    identity: Option<Bytes>,
    reason: String,
}

impl Refused {
    pub fn add(&self, address: IpAddr, identity: Option<Bytes>, reason: &str) {
        let mut entries = self.current();
        // Old news of the same peer would only push out others.
        entries.retain(|entry| entry.address != address || entry.identity != identity);
        if entries.len() >= MAX_REFUSED {
            entries.pop_front();
        }
        entries.push_back(Entry {
            until: Instant::now() + MEMORY,
            address,
            identity,
            reason: reason.to_owned(),
        });
    }

    /// Whether anybody at this address has been refused.
    pub fn at(&self, address: IpAddr) -> bool {
        self.current().iter().any(|entry| entry.address == address)
    }

    /// Why this identity has been refused, if it has.
    pub fn reason(&self, identity: &[u8]) -> Option<String> {
        let entries = self.current();
        let entry = entries
            .iter()
            .find(|entry| entry.identity.as_deref() == Some(identity))?;
        Some(entry.reason.clone())
    }

    fn current(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while entries.front().is_some_and(|entry| entry.until <= now) {
            entries.pop_front();
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_by_address_and_identity_until_it_expires() {
        let refused = Refused::default();
        let here = IpAddr::from([192, 0, 2, 1]);
        refused.add(here, Some(Bytes::from_static(b"alice")), "banned");
        refused.add(here, None, "not a DEALER");
        assert!(refused.at(here));
        assert!(!refused.at(IpAddr::from([192, 0, 2, 2])));
        assert_eq!(refused.reason(b"alice").as_deref(), Some("banned"));
        assert_eq!(refused.reason(b"bob"), None);
        for entry in refused.0.lock().unwrap().iter_mut() {
            entry.until = Instant::now();
        }
        assert!(!refused.at(here));
    }

    #[test]
    fn it_stays_bounded() {
        let refused = Refused::default();
        for port in 0..2 * MAX_REFUSED as u32 {
            refused.add(IpAddr::from(port.to_be_bytes()), None, "");
            refused.add(IpAddr::from(port.to_be_bytes()), None, "");
        }
        assert_eq!(refused.0.lock().unwrap().len(), MAX_REFUSED);
        assert!(!refused.at(IpAddr::from([0, 0, 0, 0])));
    }
}
