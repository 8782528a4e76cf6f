//! Pods that belong into the mesh and are not in it: why, and what their Events have said.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most texts that Events of a pod say in one trouble: a text with a number in it is another one each time.
const MAX_TEXTS: usize = 5;
/// After a trouble is over, how long its texts are not said again: a pod may be in and out by turns.
const QUIET: Duration = Duration::from_secs(600);

/// By uid.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<HashMap<String, Trouble>>);

#[derive(Debug, Default)]
struct Trouble {
    /// Absent when it is over.
    reason: Option<&'static str>,
    /// The same in words, as people read them.
    text: String,
    /// What Events said, and when.
    told: Vec<(String, Instant)>,
}

impl Troubles {
    /// A look at the pod or a try failed.
    pub(crate) fn note(&self, uid: &str, reason: &'static str, text: String) {
        let mut all = self.all();
        let trouble = all.entry(uid.to_owned()).or_default();
        (trouble.reason, trouble.text) = (Some(reason), text);
    }

    /// Why the pod is not in, in words, if something failed.
    pub(crate) fn text(&self, uid: &str) -> Option<String> {
        self.all().get(uid).filter(|trouble| trouble.reason.is_some()).map(|trouble| trouble.text.clone())
    }

    /// Why the pod is not in, if something failed.
    pub(crate) fn reason(&self, uid: &str) -> Option<&'static str> {
        self.all().get(uid).and_then(|trouble| trouble.reason)
    }

    /// Whether an Event is to say this about the pod: once for each text.
    pub(crate) fn is_news(&self, uid: &str, text: &str, now: Instant) -> bool {
        let mut all = self.all();
        let told = &mut all.entry(uid.to_owned()).or_default().told;
        if told.len() >= MAX_TEXTS || told.iter().any(|(before, _)| before == text) {
            return false;
        }
        told.push((text.to_owned(), now));
        true
    }

    /// The Event could not be written: it is news still.
    pub(crate) fn unsay(&self, uid: &str, text: &str) {
        if let Some(trouble) = self.all().get_mut(uid) {
            trouble.told.retain(|(told, _)| told != text);
        }
    }

    /// Nothing is wrong with the pod any more.
    pub(crate) fn solved(&self, uid: &str, now: Instant) {
        let mut all = self.all();
        let Some(trouble) = all.get_mut(uid) else { return };
        (trouble.reason, trouble.text) = (None, String::new());
        trouble.told.retain(|(_, at)| now.saturating_duration_since(*at) < QUIET);
        if trouble.told.is_empty() {
            all.remove(uid);
        }
    }

    /// The pod is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_news_once_and_not_many_of_them() {
        let (troubles, start) = (Troubles::default(), Instant::now());
        let news = |uid: &str, text: &str, minutes: u64| {
            troubles.is_news(uid, text, start + Duration::from_secs(60 * minutes))
        };
        assert!(news("a", "port 1", 0) && !news("a", "port 1", 99) && news("b", "port 1", 0));
        let more = (2..20).filter(|n| news("a", &format!("port {n}"), 0)).count();
        assert_eq!(more, MAX_TEXTS - 1);
        // In and out by turns.
        troubles.solved("b", start + Duration::from_secs(60));
        assert!(!news("b", "port 1", 2));
        troubles.solved("b", start + 2 * QUIET);
        assert!(news("b", "port 1", 60));
        troubles.forget("a");
        assert!(news("a", "port 1", 0));
    }

    #[test]
    fn a_reason_lasts_until_the_trouble_is_over() {
        let troubles = Troubles::default();
        assert_eq!(troubles.reason("a"), None);
        troubles.note("a", "rules", "the kernel is full".to_owned());
        troubles.note("a", "ztunnel", "it refused".to_owned());
        assert_eq!(
            (troubles.reason("a"), troubles.text("a")),
            (Some("ztunnel"), Some("it refused".to_owned()))
        );
        troubles.solved("a", Instant::now());
        assert_eq!((troubles.reason("a"), troubles.text("a")), (None, None));
        assert!(troubles.all().is_empty());
    }
}
