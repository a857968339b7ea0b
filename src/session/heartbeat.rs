//! The heartbeat on the TTL channel (docs/protocol.md, 3.10).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::wire::message::{Outbound, Outgoing};

use super::link::Trace;
use super::{ClientId, Session, Time};

/// Time between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

/// A round trip that has changed by more than this is worth telling everybody, in ms and as a part of the old one.
const NOTABLE_MS: u64 = 20;

pub(super) static PING: LazyLock<Arc<Outgoing>> = LazyLock::new(|| Outgoing::new(Outbound::Ping));

/// What the pings to one client have shown.
#[derive(Debug)]
pub struct Heartbeat {
    /// The last sign of life on this channel; before the first one, the login.
    heard: Time,
    pinged: Option<Time>,
    /// The last ping has been answered.
    answered: bool,
    round_trip: Option<Duration>,
    /// What the others have been told, in ms.
    told: Option<u64>,
}

impl Heartbeat {
    pub fn new(now: Time) -> Self {
        Heartbeat {
            heard: now,
            pinged: None,
            answered: true,
            round_trip: None,
            told: None,
        }
    }

    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// In ms.
    pub fn latency(&self) -> Option<u64> {
        self.round_trip
            .map(|time| time.as_millis().try_into().unwrap_or(u64::MAX))
    }

    /// The heartbeat connection has never been there.
    pub fn never_pinged(&self) -> bool {
        self.pinged.is_none()
    }

    /// It was there before a restart.
    pub fn was_there(&mut self, now: Time) {
        self.pinged = Some(now);
    }

    pub fn silent_for(&self, now: Time) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    fn ping(&mut self, now: Time) {
        self.pinged = Some(now);
        self.answered = false;
    }

    fn pong(&mut self, now: Time) {
        self.heard = now;
        if let Some(pinged) = self.pinged
            && !self.answered
        {
            self.round_trip = Some(now.saturating_duration_since(pinged));
        }
        self.answered = true;
    }

    fn is_due(&self, now: Time) -> bool {
        self.pinged
            .is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// Whether the round trip differs notably from what has been told, which then counts as told.
    fn news(&mut self) -> bool {
        let Some(latency) = self.latency() else {
            return false;
        };
        let notable = self
            .told
            .is_none_or(|told| told.abs_diff(latency) > NOTABLE_MS.max(told / 2));
        if notable {
            self.told = Some(latency);
        }
        notable
    }
}

impl Session {
    /// INIT may come before the login; it is answered after it.
    pub(super) fn heartbeat_init(&mut self, now: Time, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match client.user.as_deref_mut() {
            Some(user) => {
                user.heartbeat.heard = now;
                self.ping(now, id);
            }
            None => client.heartbeat_waits = true,
        }
    }

    pub(super) fn heartbeat_pong(&mut self, now: Time, id: ClientId) {
        if let Some(user) = self.user_mut(id) {
            user.heartbeat.pong(now);
            if user.heartbeat.news() {
                self.noticeboard.latency_changed();
            }
        }
    }

    pub(super) fn ping(&mut self, now: Time, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id)
            && let (Some(link), Some(user)) = (client.ttl.as_mut(), client.user.as_deref_mut())
        {
            link.send(now, &mut self.effects, &PING, Trace::Other);
            user.heartbeat.ping(now);
        }
    }

    pub(super) fn tick_heartbeats(&mut self, now: Time) {
        for id in self.users() {
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            let Some(user) = client.user.as_deref() else {
                continue;
            };
            // Who is away is given the grace time, whatever its heartbeat does.
            if client.command.is_some() && user.heartbeat.silent_for(now) > self.settings.timeout {
                let reason = format!("no heartbeat for {} ms", self.settings.timeout.as_millis());
                self.end(now, id, &reason, "heartbeat lost");
            } else if client.ttl.is_some() && user.heartbeat.is_due(now) {
                self.ping(now, id);
            }
        }
    }
}
