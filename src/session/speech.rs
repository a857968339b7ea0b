//! How one client is spoken to, as far as that is a question of its dialect.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::wire::message::{NodeId, Outbound, Outgoing};
use crate::wire::{Channel, Dialect};

use super::client::Client;
use super::link::{Link, Trace};
use super::{Effect, Time};

impl Client {
    pub fn links_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        [
            &mut self.command,
            &mut self.data,
            &mut self.publish,
            &mut self.ttl,
        ]
        .into_iter()
        .flatten()
    }

    /// From now on everything is spelled in this dialect.
    pub fn speak(&mut self, effects: &mut VecDeque<Effect>, dialect: Dialect) {
        self.dialect = dialect;
        for link in self.links_mut() {
            if std::mem::replace(&mut link.dialect, dialect) != dialect {
                effects.push_back(Effect::Speak(link.conn, dialect));
            }
        }
    }

    /// A Right about many nodes as Rights about one each, where the client takes no others.
    pub fn one_by_one(&self, message: &Outgoing) -> Option<Vec<Arc<Outgoing>>> {
        match message.message() {
            Outbound::Right { nodes, owner }
                if nodes.len() > 1 && self.dialect.rights_one_by_one() =>
            {
                let single = |node: &NodeId| {
                    let (nodes, owner) = (vec![node.clone()], owner.clone());
                    Outgoing::new(Outbound::Right { nodes, owner })
                };
                Some(nodes.iter().map(single).collect())
            }
            _ => None,
        }
    }

    /// Sends a node of the scene to a client that joins.
    pub fn tell_scene(
        &mut self,
        now: Time,
        effects: &mut VecDeque<Effect>,
        message: &Arc<Outgoing>,
    ) {
        match self.dialect.scene_channel() {
            Channel::Data => {
                if let Some(link) = self.data.as_mut() {
                    link.send(now, effects, message, Trace::Join);
                }
            }
            _ => self.tell(now, effects, message),
        }
    }
}
