//! The objects of one kind as lists and watches have told of them: a plain struct that is fed news and says what changed.
//!
//! A list that is repeated because a watch could not go on takes nothing back while it runs, or when it breaks off; what it did not
//! contain is gone at its end.

mod ahead;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::news::{Hold, Item, News, ObjectDelta, ObjectKey, Uid};
use crate::rounds::{RoundMark, Rounds};
use ahead::Ahead;

/// The objects of a kind, by namespace and name.
#[derive(Debug)]
pub struct Objects<T> {
    /// By namespace, empty for objects that belong to none, and name.
    held: BTreeMap<Box<str>, BTreeMap<Box<str>, Held<T>>>,
    count: usize,
    rounds: Rounds,
    ahead: Ahead,
    /// What is there, though nothing of it is known because it cannot be read.
    unknown: BTreeMap<ObjectKey, RoundMark>,
}

#[derive(Debug)]
struct Held<T> {
    object: Arc<T>,
    uid: Uid,
    mark: RoundMark,
}

/// An object before and after a change.
type Change<T> = ObjectDelta<Arc<T>>;

// === impl Objects ===

impl<T> Objects<T> {
    /// An object, if it is known.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.held(namespace, name).map(|held| &held.object)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Arc<T>)> {
        self.held
            .iter()
            .flat_map(|(namespace, all)| all.iter().map(|(name, held)| (&**namespace, &**name, &held.object)))
    }

    /// Those of a namespace, in the order of their names.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&str, &Arc<T>)> {
        let all = self.held.get(namespace).into_iter().flatten();
        all.map(|(name, held)| (&**name, &held.object))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether all of them were listed once.
    pub fn is_listed(&self) -> bool {
        self.rounds.is_complete()
    }

    /// Whether all of them were listed and this one does not exist. One that cannot be read exists.
    pub fn is_absent(&self, namespace: &str, name: &str) -> bool {
        self.is_listed()
            && self.held(namespace, name).is_none()
            && !self.unknown.contains_key(&ObjectKey::new(namespace, name))
    }

    /// Whether all that is known of an object is what an earlier process kept.
    pub fn is_remembered(&self, namespace: &str, name: &str) -> bool {
        self.held(namespace, name).is_some_and(|held| held.mark.is_remembered())
    }

    /// Whether this very object is known from a list or watch of this process.
    pub fn has(&self, key: &ObjectKey, uid: Uid) -> bool {
        let held = self.held(&key.namespace, &key.name);
        held.is_some_and(|held| !held.mark.is_remembered() && !held.uid.differs(uid))
    }

    /// What an earlier process kept of an object. It counts until a list or a watch says otherwise; what these have said already counts more.
    pub fn remember(&mut self, key: ObjectKey, uid: Uid, object: Arc<T>) {
        if !self.is_listed() && self.held(&key.namespace, &key.name).is_none() {
            self.insert(key, Held { object, uid, mark: Rounds::remembered() });
        }
    }

    fn held(&self, namespace: &str, name: &str) -> Option<&Held<T>> {
        self.held.get(namespace)?.get(name)
    }

    fn insert(&mut self, key: ObjectKey, held: Held<T>) {
        self.unknown.remove(&key);
        let before = self.held.entry(key.namespace).or_default().insert(key.name, held);
        self.count += usize::from(before.is_none());
    }

    fn remove(&mut self, key: ObjectKey) -> Option<Change<T>> {
        self.unknown.remove(&key);
        let all = self.held.get_mut(&key.namespace)?;
        let gone = all.remove(&key.name)?;
        if all.is_empty() {
            self.held.remove(&key.namespace);
        }
        self.count -= 1;
        Some(ObjectDelta { key, before: Some(gone.object), after: None })
    }

    /// Removes what does not stay; gives it.
    fn retain(&mut self, stays: impl Fn(&Rounds, RoundMark) -> bool) -> Vec<Change<T>> {
        let mut gone = Vec::new();
        for (namespace, all) in &mut self.held {
            for (name, held) in all.extract_if(.., |_, held| !stays(&self.rounds, held.mark)) {
                let key = ObjectKey { namespace: namespace.clone(), name };
                gone.push(ObjectDelta { key, before: Some(held.object), after: None });
            }
        }
        self.held.retain(|_, all| !all.is_empty());
        self.count -= gone.len();
        gone
    }

    /// A watch has told everything up to a version, if that is a number.
    fn reach(&mut self, version: u64) {
        if version > 0 {
            self.ahead.reached(version);
        }
    }

    /// It is still there.
    fn keep(&mut self, key: &ObjectKey) {
        if let Some(held) = self.held.get_mut(&key.namespace).and_then(|all| all.get_mut(&key.name)) {
            self.rounds.see(&mut held.mark);
        }
    }
}

impl<T: PartialEq> Objects<T> {
    /// Adds or replaces an object.
    fn set(&mut self, item: Item<Arc<T>>) -> Option<Change<T>> {
        let Item { key, uid, object, .. } = item;
        let Some(held) = self.held.get_mut(&key.namespace).and_then(|all| all.get_mut(&key.name)) else {
            let mark = self.rounds.mark();
            self.insert(key.clone(), Held { object: object.clone(), uid, mark });
            return Some(ObjectDelta { key, before: None, after: Some(object) });
        };
        self.rounds.see(&mut held.mark);
        let is_other = held.uid.differs(uid);
        held.uid = uid;
        if !is_other && (Arc::ptr_eq(&held.object, &object) || held.object == object) {
            return None;
        }
        let before = std::mem::replace(&mut held.object, object.clone());
        Some(ObjectDelta { key, before: Some(before), after: Some(object) })
    }

    /// What a list or watch says of an object.
    fn apply(&mut self, item: Item<Arc<T>>) -> Option<Change<T>> {
        if self.ahead.admits(&item.key, item.version) {
            return self.set(item);
        }
        self.keep(&item.key);
        None
    }

    /// A late message about an earlier object of the name does not remove its successor.
    fn delete(&mut self, item: Item<Arc<T>>) -> Option<Change<T>> {
        let held = self.held(&item.key.namespace, &item.key.name);
        let is_other = held.is_some_and(|held| held.uid.differs(item.uid));
        if is_other || !self.ahead.admits(&item.key, item.version) {
            return None;
        }
        self.remove(item.key)
    }

    /// What a single question brought. Nothing happens if the watch has told of that version already.
    fn fetched(&mut self, item: Item<Arc<T>>) -> Option<Change<T>> {
        let key = item.key.clone();
        let is_awaited = self.ahead.is_awaited(&key);
        if !self.ahead.insert(key.clone(), item.version) {
            return None;
        }
        let changed = self.set(item);
        if let Some(held) = self.held.get_mut(&key.namespace).and_then(|all| all.get_mut(&key.name)) {
            if is_awaited {
                // The list's end takes it away, unless the list has it too, or is older than it.
                self.rounds.doubt(&mut held.mark);
            }
            Rounds::vouch(&mut held.mark);
        }
        changed
    }

    /// What the list that ends does not have is gone.
    fn end_list(&mut self, version: u64) -> Vec<Change<T>> {
        for key in self.ahead.beyond(version) {
            self.keep(&key);
        }
        self.ahead.reached(version);
        self.rounds.commit();
        self.unknown.retain(|_, mark| self.rounds.has(*mark));
        self.retain(Rounds::has)
    }

    /// The list is not to be believed: what the lists since the last complete one have added goes again. Where `most` is given this is done only if
    /// they have added more than that, so that lists that never end well do not fill the memory.
    fn fail_list(&mut self, most: Option<usize>) -> Vec<Change<T>> {
        let held = self.held.values().flat_map(BTreeMap::values).map(|held| held.mark);
        let new = held.chain(self.unknown.values().copied()).filter(|mark| self.rounds.is_new(*mark));
        if most.is_some_and(|most| new.count() <= most) {
            return Vec::new();
        }
        self.unknown.retain(|_, mark| !self.rounds.is_new(*mark));
        self.retain(|rounds, mark| !rounds.is_new(mark))
    }
}

impl<T: PartialEq> Hold<Arc<T>> for Objects<T> {
    type Held = Arc<T>;

    fn take(&mut self, news: News<Arc<T>>) -> Vec<Change<T>> {
        let changed = match news {
            News::ListBegins => {
                self.ahead.begin();
                self.rounds.begin();
                None
            }
            News::Listed(item) => self.apply(item),
            News::Watched(_, item) => {
                let version = item.version;
                let changed = self.apply(item);
                self.reach(version);
                changed
            }
            News::Gone(item) => {
                let version = item.version;
                let changed = self.delete(item);
                self.reach(version);
                changed
            }
            News::Fetched(item) => self.fetched(item),
            News::Reached(version) => {
                self.reach(version);
                None
            }
            News::Unreadable(key) => {
                if self.held(&key.namespace, &key.name).is_some() {
                    self.keep(&key);
                } else {
                    self.unknown.insert(key, self.rounds.mark());
                }
                None
            }
            News::ListEnds(version) => return self.end_list(version),
            News::ListFails { most } => return self.fail_list(most),
        };
        changed.into_iter().collect()
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        let (rounds, ahead, unknown) = (Rounds::default(), Ahead::default(), BTreeMap::new());
        Self { held: BTreeMap::new(), count: 0, rounds, ahead, unknown }
    }
}
