//! Trouble with the disk: told at once, again until it is cured, and when it is.

use std::time::{Duration, Instant};

use crate::store::{Health, StoreStatus};

/// How often the log repeats it, and the chat, of which clients keep the last ten lines only.
const LOG_AGAIN: Duration = Duration::from_secs(60);
const CHAT_AGAIN: Duration = Duration::from_secs(600);

/// A disk behind which changes wait for longer is trouble.
const STUCK: Duration = Duration::from_secs(10);

/// What is to be told now.
#[derive(Debug, PartialEq, Eq)]
pub enum Tell {
    /// To the log and, where `chat` is set, to everybody in the session.
    Trouble {
        text: String,
        chat: bool,
    },
    Cured,
}

/// What everybody reads when it is over.
pub const CURED: &str = "The disk works again: everything is saved.";

#[derive(Debug)]
struct Told {
    what: &'static str,
    log: Instant,
    chat: Instant,
}

/// Remembers what has been told. To be asked once a second.
#[derive(Debug, Default)]
pub struct Alarm {
    told: Option<Told>,
}

impl Alarm {
    pub fn look(&mut self, now: Instant, status: &StoreStatus) -> Option<Tell> {
        let Some((what, why)) = trouble(status) else {
            // What was lost to the journal is safe only when it has been saved.
            let saved = status.wants_save.is_none() && !status.saving;
            return (saved && self.told.take().is_some()).then_some(Tell::Cured);
        };
        let told = self.told.as_mut().filter(|told| told.what == what);
        let (log, chat) = match &told {
            None => (true, true),
            Some(told) => (
                now.saturating_duration_since(told.log) >= LOG_AGAIN,
                now.saturating_duration_since(told.chat) >= CHAT_AGAIN,
            ),
        };
        match told {
            None => {
                self.told = Some(Told {
                    what,
                    log: now,
                    chat: now,
                });
            }
            Some(told) => {
                told.log = if log { now } else { told.log };
                told.chat = if chat { now } else { told.chat };
            }
        }
        (log || chat).then(|| Tell::Trouble {
            text: format!("{what} ({why})"),
            chat,
        })
    }
}

/// The worst that is wrong, and its reason.
fn trouble(status: &StoreStatus) -> Option<(&'static str, String)> {
    let failing = |health: &Health| match health {
        Health::Healthy => None,
        Health::Failing { reason, .. } => Some(reason.clone()),
    };
    if let Some(reason) = failing(&status.journal) {
        return Some((
            "THE SERVER CANNOT SAVE: what is changed now is lost if it stops. Its disk needs attention",
            reason,
        ));
    }
    if let Some(reason) = failing(&status.backups).filter(|_| status.checkpoint_alone) {
        return Some((
            "The server has made no backup for so long that its disk holds the scene only once. Whoever runs it should `export` the scene to another disk",
            reason,
        ));
    }
    if let Some(reason) = failing(&status.backups).or_else(|| failing(&status.checkpoints)) {
        return Some((
            "The server cannot make backups. Changes are still kept in its journal, but its disk needs attention",
            reason,
        ));
    }
    (status.behind > STUCK).then(|| {
        (
            "The server's disk does not keep up: the latest changes are lost if it stops now",
            format!("{} bytes wait", status.waiting_bytes),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn failing(reason: &str) -> Health {
        Health::Failing {
            since: SystemTime::now(),
            reason: reason.into(),
        }
    }

    fn told(tell: Option<Tell>) -> Option<bool> {
        match tell? {
            Tell::Trouble { text, chat } => {
                assert!(text.contains("full"), "{text}");
                Some(chat)
            }
            Tell::Cured => panic!("nothing is cured"),
        }
    }

    #[test]
    fn trouble_is_told_at_once_again_and_when_it_is_cured() {
        let (mut alarm, start) = (Alarm::default(), Instant::now());
        let mut look = |second: u64, status: &StoreStatus| {
            alarm.look(start + Duration::from_secs(second), status)
        };
        let well = StoreStatus::default();
        let backups = StoreStatus {
            backups: failing("full"),
            ..well.clone()
        };
        let both = StoreStatus {
            journal: failing("full"),
            ..backups.clone()
        };
        assert_eq!(look(0, &well), None);
        assert_eq!(told(look(1, &backups)), Some(true));
        assert_eq!(told(look(2, &both)), Some(true));
        assert_eq!(told(look(3, &both)), None);
        assert_eq!(told(look(62, &both)), Some(false));
        assert_eq!(told(look(63, &both)), None);
        assert_eq!(told(look(602, &both)), Some(true));
        // Written again, but what came meanwhile is only in memory.
        let unsaved = StoreStatus {
            wants_save: Some("changes are missing in the journal"),
            ..well.clone()
        };
        assert_eq!(look(610, &unsaved), None);
        assert_eq!(look(611, &well), Some(Tell::Cured));
        assert_eq!(look(612, &well), None);
    }

    #[test]
    fn a_journal_that_was_cut_without_a_backup_is_worse_than_no_backup() {
        let (mut alarm, now) = (Alarm::default(), Instant::now());
        let mut status = StoreStatus {
            backups: failing("full"),
            ..StoreStatus::default()
        };
        assert_eq!(told(alarm.look(now, &status)), Some(true));
        assert_eq!(alarm.look(now, &status), None);
        status.checkpoint_alone = true;
        assert_eq!(told(alarm.look(now, &status)), Some(true));
    }

    #[test]
    fn a_disk_that_does_not_keep_up_is_trouble() {
        let stuck = StoreStatus {
            behind: STUCK + Duration::from_secs(1),
            ..StoreStatus::default()
        };
        let said = Alarm::default().look(Instant::now(), &stuck);
        assert!(matches!(said, Some(Tell::Trouble { chat: true, .. })));
    }
}
