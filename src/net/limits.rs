//! How many connections there may be, and how often the log says so.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Settings;

/// Counts connections against the limits of [`Settings`].
#[derive(Debug)]
pub struct Limits {
    connections: usize,
    strangers: usize,
    strangers_per_address: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    strangers: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Strangers, oldest first: they make room where there is none.
    evictable: VecDeque<(IpAddr, Arc<Notify>)>,
}

/// The place of one connection, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    limits: Arc<Limits>,
    /// Where the connection counts as a stranger; `None` once trusted.
    address: Option<IpAddr>,
    evicted: Arc<Notify>,
}

impl Limits {
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Limits {
            connections: settings.connections,
            strangers: settings.strangers,
            strangers_per_address: settings.strangers_per_address,
            counts: Mutex::default(),
        })
    }

    /// A place for a connection from `address`, or which limit has been reached. An honest peer logs in within a few round
    /// trips, so whoever has been at it longest is sent away first.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Slot, String> {
        let address = network(address);
        let mut counts = self.lock();
        if counts.connections >= self.connections {
            return Err(format!("{} connections", self.connections));
        }
        let here = counts.by_address.get(&address).copied().unwrap_or(0);
        if here >= self.strangers_per_address && !counts.evict(|other| other == address) {
            return Err(format!(
                "{} connections from {address} that have not logged in",
                self.strangers_per_address
            ));
        }
        if here < self.strangers_per_address
            && counts.strangers >= self.strangers
            && !counts.evict(|_| true)
        {
            return Err(format!(
                "{} connections that have not logged in",
                self.strangers
            ));
        }
        counts.connections += 1;
        counts.strangers += 1;
        *counts.by_address.entry(address).or_default() += 1;
        let evicted = Arc::new(Notify::new());
        counts.evictable.push_back((address, Arc::clone(&evicted)));
        Ok(Slot {
            limits: Arc::clone(self),
            address: Some(address),
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics half-way through a change of these numbers.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Sends the oldest stranger away; it stops counting when it has gone.
    fn evict(&mut self, from: impl Fn(IpAddr) -> bool) -> bool {
        let oldest = self
            .evictable
            .iter()
            .position(|(address, _)| from(*address));
        let Some((_, evicted)) = oldest.and_then(|index| self.evictable.remove(index)) else {
            return false;
        };
        evicted.notify_one();
        true
    }
}

impl Slot {
    /// Resolves when the connection has to make room, which it need not do any more once it is trusted.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The connection does not count as a stranger any more.
    pub fn trust(&mut self) {
        let limits = Arc::clone(&self.limits);
        self.leave_strangers(&mut limits.lock());
    }

    fn leave_strangers(&mut self, counts: &mut Counts) {
        if let Some(address) = self.address.take() {
            counts
                .evictable
                .retain(|(_, evicted)| !Arc::ptr_eq(evicted, &self.evicted));
            counts.strangers -= 1;
            if let Some(here) = counts.by_address.get_mut(&address) {
                *here -= 1;
                if *here == 0 {
                    counts.by_address.remove(&address);
                }
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let limits = Arc::clone(&self.limits);
        let mut counts = limits.lock();
        self.leave_strangers(&mut counts);
        counts.connections -= 1;
    }
}

/// Whom addresses are counted by: one party controls a whole /64 of IPv6.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Lets one log line through per interval and counts the others.
#[derive(Debug, Default)]
pub struct LogGate(Mutex<GateState>);

#[derive(Debug, Default)]
struct GateState {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogGate {
    const INTERVAL: Duration = Duration::from_secs(10);

    /// Whether to log now, and if so how many lines were held back since the last one.
    pub fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .last
            .is_some_and(|last| last.elapsed() < Self::INTERVAL)
        {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: usize, strangers: usize, per_address: usize) -> Arc<Limits> {
        Limits::new(&Settings {
            connections,
            strangers,
            strangers_per_address: per_address,
            ..Settings::default()
        })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn each_limit_holds_and_frees_again() {
        let limits = limits(4, 3, 2);
        let slots: Vec<Slot> = [1, 1, 2]
            .map(|last| limits.enter(address(last)).unwrap())
            .into();
        let mut trusted = Vec::new();
        for mut slot in slots {
            slot.trust();
            slot.trust();
            trusted.push(slot);
        }
        let fourth = limits.enter(address(3)).unwrap();
        assert!(limits.enter(address(4)).is_err(), "four connections");
        drop((trusted, fourth));
        let counts = limits.lock();
        assert_eq!((counts.connections, counts.strangers), (0, 0));
        assert!(counts.by_address.is_empty() && counts.evictable.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_stranger_of_an_address_makes_room_for_the_next() {
        let limits = limits(10, 10, 2);
        let elsewhere = limits.enter(address(2)).unwrap();
        let mut honest = limits.enter(address(1)).unwrap();
        honest.trust();
        let silent = limits.enter(address(1)).unwrap();
        let second = limits.enter(address(1)).unwrap();
        let third = limits.enter(address(1)).unwrap();
        silent.evicted().await;
        let fourth = limits.enter(address(1)).unwrap();
        second.evicted().await;
        // Those that were told to go and have not gone yet count as well, but can be told only once.
        let fifth = limits.enter(address(1)).unwrap();
        third.evicted().await;
        drop((silent, second, third, fourth, fifth, honest, elsewhere));
        let counts = limits.lock();
        assert_eq!((counts.connections, counts.evictable.len()), (0, 0));
    }

    #[tokio::test]
    async fn the_oldest_stranger_of_all_makes_room_where_there_are_too_many() {
        let limits = limits(10, 2, 2);
        let first = limits.enter(address(1)).unwrap();
        let _second = limits.enter(address(2)).unwrap();
        let _third = limits.enter(address(3)).unwrap();
        first.evicted().await;
    }

    #[tokio::test]
    async fn an_ipv6_network_is_one_address() {
        let limits = limits(10, 10, 1);
        let slot = limits.enter("2001:db8::1".parse().unwrap()).unwrap();
        let _next = limits.enter("2001:db8::2".parse().unwrap()).unwrap();
        slot.evicted().await;
        assert_eq!(limits.lock().evictable.len(), 1);
        let _other = limits.enter("2001:db8:0:1::2".parse().unwrap()).unwrap();
        assert_eq!(limits.lock().evictable.len(), 2);
    }

    #[test]
    fn a_gate_counts_what_it_holds_back() {
        let gate = LogGate::default();
        assert_eq!(gate.pass(), Some(0));
        assert_eq!(gate.pass(), None);
        assert_eq!(gate.pass(), None);
        gate.0.lock().unwrap().last = None;
        assert_eq!(gate.pass(), Some(2));
    }
}
