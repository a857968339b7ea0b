//! Room for messages that have been read in part.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The part of a message that takes no room, and the unit of room.
const MIB: usize = 1024 * 1024;

/// Room for the parts of all connections' messages. Where it is full one message may go on without, so that connections which
/// all wait for room cannot wait for each other.
#[derive(Debug)]
pub struct Room {
    parts: Arc<Semaphore>,
    last: Arc<Semaphore>,
}

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        let parts = (bytes / MIB).clamp(1, Semaphore::MAX_PERMITS);
        Room {
            parts: Arc::new(Semaphore::new(parts)),
            last: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The room that one connection's message takes, free again when dropped.
#[derive(Debug, Default)]
pub struct Held {
    parts: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes as much room as the message under way needs, of which so many bytes have come; waits where there is none.
    pub async fn grow(&mut self, room: &Room, bytes: usize) -> Result<(), AcquireError> {
        let wanted = bytes / MIB;
        if wanted == 0 {
            *self = Held::default();
            return Ok(());
        }
        while self.last.is_none() && self.size() < wanted {
            tokio::select! {
                biased;
                more = room.parts.clone().acquire_owned() => match &mut self.parts {
                    Some(parts) => parts.merge(more?),
                    None => self.parts = Some(more?),
                },
                last = room.last.clone().acquire_owned() => self.last = Some(last?),
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.parts
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Whether others may be waiting for what this message takes.
    pub fn is_any(&self) -> bool {
        self.parts.is_some() || self.last.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::time::{Duration, timeout};

    #[tokio::test]
    async fn parts_are_bounded_and_one_message_always_goes_on() {
        let room = Room::new(4 * MIB);
        let (mut one, mut two, mut three) = (Held::default(), Held::default(), Held::default());
        one.grow(&room, MIB - 1).await.unwrap();
        assert!(!one.is_any(), "small ones take none");
        one.grow(&room, 2 * MIB).await.unwrap();
        two.grow(&room, 2 * MIB).await.unwrap();
        assert_eq!((one.size(), two.size()), (2, 2));
        one.grow(&room, 100 * MIB).await.unwrap();
        assert!(one.last.is_some(), "the last one goes on");
        let blocked = timeout(Duration::from_millis(20), three.grow(&room, MIB)).await;
        assert!(blocked.is_err() && !three.is_any());
        // Its message is complete: there is room again, and whoever waits next may go on.
        one.grow(&room, 0).await.unwrap();
        three.grow(&room, 2 * MIB).await.unwrap();
        two.grow(&room, 3 * MIB).await.unwrap();
        assert!(three.last.is_none() && two.last.is_some());
    }
}
