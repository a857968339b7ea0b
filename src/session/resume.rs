//! What is repaired when a connection has broken and come back under the same identity (docs/protocol.md, 3.9).

use std::time::Duration;

use tracing::info;

use crate::wire::Channel;
use crate::wire::message::{NodeId, Outbound};

use super::client::State;
use super::graph::Source;
use super::heartbeat::PING;
use super::link::Trace;
use super::{ClientId, Session, Time};

/// A scene of so many bytes is sent again as a whole where something of it may be missing at a client.
const SMALL_SCENE: usize = 4 << 20;

/// What a client has to say after its connection broke comes within this time, besides a round trip. A node that it was sent again
/// before would be older than what it has: a collection would not name a new object, which its add-on then deletes as an orphan.
const OUTBOX: Duration = Duration::from_millis(500);

impl Session {
    /// A channel of somebody logged in is back after its connection broke: what may be lost is repaired, for this channel alone.
    pub(super) fn resumed(&mut self, now: Time, id: ClientId, channel: Channel) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let scene_channel = client.dialect.scene_channel();
        let acts_first = client.dialect.acts_first();
        if channel == Channel::Data
            && scene_channel == channel
            && let Some(link) = client.data.as_mut()
        {
            // The client may have had the header of a node and now waits for its chunk, whatever that is. Else it skips this.
            link.send(now, &mut self.effects, &PING, Trace::Other);
        }
        let Some(user) = client.user.as_deref_mut() else {
            return;
        };
        match channel {
            Channel::Ttl => self.ping(now, id),
            Channel::Command => {
                user.away = None;
                let lost = std::mem::take(&mut user.lost_commands);
                info!(
                    user = &*user.name,
                    messages = lost.len(),
                    "is back after a broken connection"
                );
                user.presence.owe_table();
                for trace in &lost {
                    match trace {
                        Trace::Auth => user.may_not_know = !user.heard,
                        Trace::Deletion(node) => user.debts.deletion(node),
                        Trace::Owners(right) => {
                            if let Outbound::Right { nodes, .. } = right.message() {
                                nodes.iter().for_each(|node| user.debts.owner(node));
                            }
                        }
                        Trace::Update(_) | Trace::Join | Trace::Other => {}
                    }
                }
                let active = user.is_active();
                if active && acts_first {
                    // Its Rights may be lost, and it has carried them out: it may take any node for its own or free.
                    for node in self.graph.ids() {
                        user.debts.owner(node);
                    }
                    // So may its Deletes.
                    for node in self.may_be_deleted_unheard() {
                        self.owe_repair(now, id, &node);
                    }
                }
                if !active {
                    self.resume_init(now, id);
                    self.resume_join(now, id, &lost);
                }
                self.noticeboard.changed();
                self.pump(now, id);
            }
            // The scene is on its way, and part of it may be lost.
            Channel::Publish if matches!(user.state, State::Initialising) => {
                self.resume_init(now, id);
            }
            Channel::Data | Channel::Publish => {
                if channel == Channel::Data {
                    user.without_data = None;
                }
                let joining = matches!(user.state, State::Joining(_));
                if joining && scene_channel != channel {
                    // What the other connection has lost of the scene is not to be forgotten over this one.
                    return;
                }
                let lost = std::mem::take(&mut user.lost_updates);
                if joining {
                    return self.resume_join(now, id, &lost);
                }
                if !user.is_active() {
                    return;
                }
                user.listened_to_until =
                    now + OUTBOX + user.heartbeat.round_trip().unwrap_or_default();
                let name = user.name.clone();
                let mut repair: Vec<NodeId> = lost
                    .iter()
                    .filter_map(|trace| match trace {
                        Trace::Update(footprint) => Some(footprint.node.clone()),
                        _ => None,
                    })
                    .collect();
                // What it sent itself may be lost too, without its knowledge.
                repair.extend(user.edited.iter().map(|(_, node)| node.clone()));
                repair.extend(self.graph.may_be_edited_by(&name));
                info!(
                    user = &*name,
                    nodes = repair.len(),
                    "nodes are sent again after a broken data connection"
                );
                for node in &repair {
                    self.owe_repair(now, id, node);
                }
                self.pump(now, id);
            }
        }
    }

    /// What a client may have deleted without anybody having heard of it: any node of a small scene, and of a large one what nothing
    /// refers to, since a user's delete unlinks first.
    fn may_be_deleted_unheard(&self) -> Vec<NodeId> {
        let small = self.graph.bytes() <= SMALL_SCENE;
        let unlinked = |node: &&NodeId| small || self.graph.parents(node).is_empty();
        self.graph.ids().filter(unlinked).cloned().collect()
    }

    fn owe_repair(&mut self, now: Time, id: ClientId, node: &NodeId) {
        let Some(entry) = self.graph.get_mut(node) else {
            return;
        };
        entry.came_from(now, Source::ServerTo(id));
        if let Some(user) = self.user_mut(id) {
            user.debts.content(node);
            user.debts.owner(node);
        }
    }
}
