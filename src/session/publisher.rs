//! The connections on which four-socket clients publish (docs/protocol.md, 6.2). They announce no identity: one counts
//! only once it names a client that is logged in from the same address, and stays with the one it named.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use crate::net::ConnId;
use crate::wire::Channel;

use super::link::Link;
use super::{ClientId, Effect, Event, Session, Time};

/// How long a publisher may be there without any client of its address being logged in.
const STRANGER_LIMIT: Duration = Duration::from_secs(30);

impl Session {
    /// Something happened to a publisher that has not named its client yet.
    pub(super) fn publisher(&mut self, now: Time, conn: ConnId, event: Event) {
        let Some(&(address, _)) = self.publishers.get(&conn) else {
            return;
        };
        match event {
            Event::Named(identity) => {
                self.publishers.remove(&conn);
                match self.client_of_publisher(&identity, address) {
                    Some(id) => self.attach_publisher(now, conn, id),
                    None => {
                        warn!(%address, "a publication under the name of nobody here is refused");
                        self.effects.push_back(Effect::Close(conn, None));
                    }
                }
            }
            Event::Closed(_) => {
                self.publishers.remove(&conn);
                // It may have been the publisher of anybody here who has not said anything through one yet.
                for client in self.clients.values_mut() {
                    if client.publish.is_none()
                        && client.dialect.scene_channel() == Channel::Data
                        && let Some(user) = client.user.as_deref_mut()
                    {
                        user.lost_publisher |= user.address.ip() == address;
                    }
                }
                self.repair_publishers(now, address);
            }
            _ => {}
        }
    }

    fn client_of_publisher(&self, identity: &Bytes, address: IpAddr) -> Option<ClientId> {
        let id = *self.identities.get(identity)?;
        let client = self.clients.get(&id)?;
        let user = client.user.as_deref()?;
        // Other dialects have no publisher.
        let publishes = client.dialect.scene_channel() == Channel::Data;
        (publishes && user.address.ip() == address).then_some(id)
    }

    fn attach_publisher(&mut self, now: Time, conn: ConnId, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        debug!(user = &*user.name, "publishes");
        let address = user.address;
        if let Some(old) = client.publish.as_ref().map(|link| link.conn) {
            client.lost(now, Channel::Publish);
            self.connections.remove(&old);
            self.effects.push_back(Effect::Close(old, None));
        }
        client.publish = Some(Link::new(now, conn, address, client.dialect));
        self.connections.insert(conn, (id, Channel::Publish));
        self.effects.push_back(Effect::Trust(conn));
        let broken = client
            .user
            .as_deref_mut()
            .is_some_and(|user| std::mem::take(&mut user.lost_publisher));
        if broken {
            self.resumed(now, id, Channel::Publish);
        }
    }

    /// Makes good what a broken publisher lost, now that its client is likely to have opened a new one, which may never say
    /// anything.
    pub(super) fn repair_publishers(&mut self, now: Time, address: IpAddr) {
        if self.publishers.values().all(|(known, _)| *known != address) {
            return;
        }
        let broken: Vec<ClientId> = self
            .clients
            .iter_mut()
            .filter_map(|(id, client)| {
                let user = client.user.as_deref_mut()?;
                let here = user.address.ip() == address;
                (here && std::mem::take(&mut user.lost_publisher)).then_some(*id)
            })
            .collect();
        for id in broken {
            self.resumed(now, id, Channel::Publish);
        }
    }

    /// Closes publishers that nobody here can have opened.
    pub(super) fn tick_publishers(&mut self, now: Time) {
        let strangers: Vec<ConnId> = self
            .publishers
            .iter()
            .filter(|(_, (address, since))| {
                now.saturating_duration_since(*since) > STRANGER_LIMIT
                    && !self.is_home_of_user(*address)
            })
            .map(|(conn, _)| *conn)
            .collect();
        for conn in strangers {
            self.publishers.remove(&conn);
            self.effects.push_back(Effect::Close(conn, None));
        }
    }

    fn is_home_of_user(&self, address: IpAddr) -> bool {
        self.clients
            .values()
            .filter_map(|client| client.user.as_deref())
            .any(|user| user.address.ip() == address)
    }
}
