//! Objects that were asked for one by one, while the watch that would have brought them was behind.

use std::collections::BTreeMap;

/// Namespace, empty where there is none, and name.
type Key = (String, String);

/// Which objects of a kind are known in a later version than the watch has reached. Versions are the API server's resource versions, one counter for
/// all objects of a kind; 0 is one that is no number, with which nothing can be compared.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// What happened up to here has been applied.
    reached: u64,
    versions: BTreeMap<Key, u64>,
}

impl Ahead {
    /// Whether an object in this version, as a single question brought it, is news to the watch. It counts as known then.
    pub(crate) fn insert(&mut self, namespace: String, name: String, version: u64) -> bool {
        let known = self.versions.entry((namespace, name)).or_insert(self.reached);
        let news = *known < version;
        *known = version.max(*known);
        self.prune();
        news
    }

    /// Whether what a list or watch says of an object in this version is not older than what is known.
    pub(crate) fn admits(&self, namespace: &str, name: &str, version: u64) -> bool {
        let known = || self.versions.get(&(namespace.to_owned(), name.to_owned()));
        version == 0 || self.versions.is_empty() || known().is_none_or(|known| *known <= version)
    }

    /// Objects in a later version than this one.
    pub(crate) fn beyond(&self, version: u64) -> Vec<Key> {
        self.versions.iter().filter(|(_, known)| **known > version).map(|(key, _)| key.clone()).collect()
    }

    /// All that happened up to a version has been applied. It may be an earlier one than before: a store that was restored begins there again.
    pub(crate) fn reached(&mut self, version: u64) {
        self.reached = version;
        self.prune();
    }

    fn prune(&mut self) {
        self.versions.retain(|_, known| *known > self.reached);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(ahead: &mut Ahead, name: &str, version: u64) -> bool {
        ahead.insert("shop".into(), name.into(), version)
    }

    #[test]
    fn only_what_the_watch_has_not_told_is_news() {
        let mut ahead = Ahead::default();
        assert!(insert(&mut ahead, "early", 5), "before the first list everything is");
        ahead.reached(100);
        assert!(
            !insert(&mut ahead, "old", 99)
                && !insert(&mut ahead, "same", 100)
                && !insert(&mut ahead, "odd", 0)
        );
        assert!(insert(&mut ahead, "new", 101));
        assert!(!insert(&mut ahead, "new", 101) && !insert(&mut ahead, "new", 100));
        assert!(insert(&mut ahead, "new", 110));
        assert_eq!(ahead.versions.len(), 1, "the others are forgotten");
    }

    #[test]
    fn a_late_watch_does_not_take_back_what_is_known() {
        let mut ahead = Ahead::default();
        ahead.reached(100);
        insert(&mut ahead, "new", 110);
        assert!(
            !ahead.admits("shop", "new", 105)
                && ahead.admits("shop", "new", 110)
                && ahead.admits("shop", "new", 111)
        );
        assert!(ahead.admits("shop", "other", 105) && ahead.admits("shop", "new", 0));
        assert_eq!(ahead.beyond(109), [("shop".to_owned(), "new".to_owned())]);
        assert_eq!(ahead.beyond(110), []);
        ahead.reached(109);
        assert!(!ahead.admits("shop", "new", 109));
        ahead.reached(110);
        assert!(ahead.versions.is_empty());
    }
}
