//! What Events have said: each thing once in an hour.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long it is not said again.
const QUIET: Duration = Duration::from_secs(3600);
/// The most that is remembered: whoever has other names for his programs all the time is not told of each.
const MOST: usize = 4096;

/// By uid, reason and culprit.
#[derive(Debug, Default)]
pub(super) struct ToldDrifts(Mutex<HashMap<(String, &'static str, String), Duration>>);

impl ToldDrifts {
    /// Whether this is to be said, which is noted.
    pub(super) fn is_news(&self, uid: &str, reason: &'static str, culprit: String, now: Duration) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_sub(*at) < QUIET);
        let key = (uid.to_owned(), reason, culprit);
        let is_news = told.len() < MOST && !told.contains_key(&key);
        if is_news {
            told.insert(key, now);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_culprit_of_a_pod_is_told_once_in_an_hour() {
        let told = ToldDrifts::default();
        let say = |uid, reason, culprit: &str, minutes: u64| {
            told.is_news(uid, reason, culprit.to_owned(), Duration::from_secs(60 * minutes))
        };
        assert!(say("a", "CaptureDrift", "nft", 0) && !say("a", "CaptureDrift", "nft", 59));
        assert!(say("a", "CaptureDrift", "iptables", 1) && say("b", "CaptureDrift", "nft", 1));
        assert!(say("a", "CaptureContended", "nft", 1) && say("a", "CaptureDrift", "nft", 61));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let told = ToldDrifts::default();
        let say = |number: usize| told.is_news("a", "CaptureDrift", number.to_string(), Duration::ZERO);
        assert_eq!((0..2 * MOST).filter(|number| say(*number)).count(), MOST);
    }
}
