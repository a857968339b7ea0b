//! The server of a world ends and another one goes on with what it has left.

use std::time::{Duration, UNIX_EPOCH};

use blender_multiuser::admin::AdminCommand;
use blender_multiuser::session::{Event, Session};

use super::world::{CHANNELS, Who, World};

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Terminate,
    Kill,
}

impl World {
    /// Ends the server and starts it anew; its clients find it again after about so many ms.
    pub fn restart(&mut self, stop: Stop, gap: u64) {
        self.say(|| format!("{stop:?}, back after {gap} ms"));
        let handover = match stop {
            Stop::Kill => {
                self.forget_refusals();
                None
            }
            Stop::Terminate => {
                let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
                self.command(AdminCommand::Restart { at });
                self.farewell();
                Some(self.session.hand_over())
            }
        };
        let state = self.session.state();
        self.folds.clear();
        for index in 0..self.stations.len() {
            for channel in 0..CHANNELS.len() {
                if self.stations[index].wires[channel].conn.is_some() {
                    let back = gap + self.rng.range(0, 300);
                    self.cut(Who(index), channel, 0, back);
                }
                let wire = &mut self.stations[index].wires[channel];
                wire.zombies.clear();
                wire.opens_at = wire
                    .opens_at
                    .map(|at| at.max(self.now + Duration::from_millis(gap)));
            }
        }
        self.conns.clear();
        self.session = Session::restored(self.now, self.settings.clone(), state, handover);
    }

    /// That a node was refused is not written down, and nobody but its author can know of it.
    fn forget_refusals(&mut self) {
        let scene = self.scene();
        let refused: Vec<_> = self
            .stations
            .iter()
            .flat_map(|station| station.client.graph.keys())
            .filter(|id| !scene.contains_key(*id))
            .cloned()
            .collect();
        self.lost_births.extend(refused);
    }

    /// Some of what is on its way still arrives, and the old server hears of some connections that they are gone.
    fn farewell(&mut self) {
        let opening: Vec<_> = self
            .stations
            .iter_mut()
            .flat_map(|station| &mut station.wires)
            .map(|wire| std::mem::replace(&mut wire.blocked, true))
            .collect();
        for _ in 0..self.rng.range(0, 40) {
            self.step_without_ticks();
        }
        for index in 0..self.stations.len() {
            for channel in 0..CHANNELS.len() {
                if self.rng.chance(50)
                    && let Some(conn) = self.stations[index].wires[channel].conn
                {
                    self.event(conn, Event::Closed("the server stops".into()));
                }
            }
        }
        let wires = self
            .stations
            .iter_mut()
            .flat_map(|station| &mut station.wires);
        for (wire, blocked) in wires.zip(opening) {
            wire.blocked = blocked;
        }
    }
}
