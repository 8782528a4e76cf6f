//! Objects that were asked for one by one, while the watch that would have brought them was behind.

use std::collections::BTreeMap;

use crate::news::ObjectKey;

/// Which objects of a kind are known in a later version than the watch has reached. Versions are the API server's resource versions, one counter for
/// all objects of a kind; 0 is one that is no number, with which nothing can be compared.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// What happened up to here has been applied.
    reached: u64,
    versions: BTreeMap<ObjectKey, u64>,
    /// While a list runs: what it has told so far, and in which version. As a whole it is of a later version than the watch has reached, which is
    /// known only at its end.
    told: Option<BTreeMap<ObjectKey, u64>>,
}

impl Ahead {
    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.told = Some(BTreeMap::new());
    }

    /// Whether an object in this version, as a single question brought it, is news to the watch, and to the list that runs. It counts as known then.
    pub(super) fn insert(&mut self, key: ObjectKey, version: u64) -> bool {
        let told = self.told.as_ref().and_then(|told| told.get(&key)).copied().unwrap_or_default();
        let known = self.versions.entry(key).or_insert(self.reached);
        let news = told.max(*known) < version;
        *known = version.max(*known);
        self.prune();
        news
    }

    /// Whether what a list or watch says of an object in this version is not older than what is known. The list that runs has told of it then.
    pub(super) fn admits(&mut self, key: &ObjectKey, version: u64) -> bool {
        if self.told.is_none() && self.versions.is_empty() {
            return true;
        }
        let admitted = version == 0 || self.versions.get(key).is_none_or(|known| *known <= version);
        if let Some(told) = &mut self.told {
            told.insert(key.clone(), version);
        }
        admitted
    }

    /// Whether a list runs that has not told of an object yet.
    pub(super) fn is_awaited(&self, key: &ObjectKey) -> bool {
        self.told.as_ref().is_some_and(|told| !told.contains_key(key))
    }

    /// Objects in a later version than this one.
    pub(super) fn beyond(&self, version: u64) -> Vec<ObjectKey> {
        self.versions.iter().filter(|(_, known)| **known > version).map(|(key, _)| key.clone()).collect()
    }

    /// All that happened up to a version has been applied. It may be an earlier one than before: a store that was restored begins there again.
    pub(super) fn reached(&mut self, version: u64) {
        (self.reached, self.told) = (version, None);
        self.prune();
    }

    fn prune(&mut self) {
        self.versions.retain(|_, known| *known > self.reached);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn insert(ahead: &mut Ahead, name: &str, version: u64) -> bool {
        ahead.insert(key(name), version)
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

    /// A single answer that comes late has been overtaken by the list that runs.
    #[test]
    fn what_a_running_list_has_told_is_not_taken_back() {
        let mut ahead = Ahead::default();
        ahead.reached(100);
        ahead.begin();
        assert!(ahead.admits(&key("listed"), 120));
        assert!(!insert(&mut ahead, "listed", 110) && !insert(&mut ahead, "listed", 120));
        assert!(insert(&mut ahead, "listed", 130) && !ahead.is_awaited(&key("listed")));
        assert!(insert(&mut ahead, "other", 110) && ahead.is_awaited(&key("other")));
        assert!(ahead.admits(&key("other"), 115), "the list comes to it later");
        assert!(!ahead.is_awaited(&key("other")));
        assert_eq!(ahead.beyond(125), [key("listed")]);
        ahead.reached(125);
        assert!(!ahead.is_awaited(&key("third")), "no list runs");
    }

    #[test]
    fn a_late_watch_does_not_take_back_what_is_known() {
        let mut ahead = Ahead::default();
        ahead.reached(100);
        insert(&mut ahead, "new", 110);
        assert!(
            !ahead.admits(&key("new"), 105)
                && ahead.admits(&key("new"), 110)
                && ahead.admits(&key("new"), 111)
        );
        assert!(ahead.admits(&key("other"), 105) && ahead.admits(&key("new"), 0));
        assert_eq!(ahead.beyond(109), [key("new")]);
        assert_eq!(ahead.beyond(110), []);
        ahead.reached(109);
        assert!(!ahead.admits(&key("new"), 109));
        ahead.reached(110);
        assert!(ahead.versions.is_empty());
    }
}
