//! What Events have said: each thing once in an hour.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long it is not said again.
const QUIET: Duration = Duration::from_secs(3600);
/// The most that is remembered: whoever has other names for his programs all the time is not told of each.
const MOST: usize = 4096;

/// What an Event said: uid, reason, and who or why in one word.
type Said = (String, &'static str, &'static str);

/// When each thing was said.
#[derive(Debug, Default)]
pub(super) struct ToldDrifts(Mutex<HashMap<Said, Duration>>);

impl ToldDrifts {
    /// Whether this is to be said, which is noted.
    pub(super) fn is_news(&self, uid: &str, reason: &'static str, what: &'static str, now: Duration) -> bool {
        let mut told = self.all();
        told.retain(|_, at| now.saturating_sub(*at) < QUIET);
        let key = (uid.to_owned(), reason, what);
        let is_news = told.len() < MOST && !told.contains_key(&key);
        if is_news {
            told.insert(key, now);
        }
        is_news
    }

    /// It could not be said.
    pub(super) fn unsay(&self, uid: &str, reason: &'static str, what: &'static str) {
        self.all().remove(&(uid.to_owned(), reason, what));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Said, Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_culprit_of_a_pod_is_told_once_in_an_hour() {
        let told = ToldDrifts::default();
        let say = |uid, reason, culprit, minutes: u64| {
            told.is_news(uid, reason, culprit, Duration::from_secs(60 * minutes))
        };
        assert!(say("a", "CaptureDrift", "nft", 0) && !say("a", "CaptureDrift", "nft", 59));
        assert!(say("a", "CaptureDrift", "iptables", 1) && say("b", "CaptureDrift", "nft", 1));
        assert!(say("a", "CaptureContended", "nft", 1) && say("a", "CaptureDrift", "nft", 61));
        told.unsay("b", "CaptureDrift", "nft");
        assert!(say("b", "CaptureDrift", "nft", 62) && !say("b", "CaptureDrift", "nft", 63));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let told = ToldDrifts::default();
        let say = |number: usize| told.is_news(&number.to_string(), "CaptureDrift", "nft", Duration::ZERO);
        assert_eq!((0..2 * MOST).filter(|number| say(*number)).count(), MOST);
    }
}
