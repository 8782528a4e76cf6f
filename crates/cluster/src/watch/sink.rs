//! Where the objects of a kind go, and what is told of that.

use std::sync::{Arc, Mutex, PoisonError};

use facts::{DaemonSet, Namespace, Node, Object};

use super::{Event, ObjectChange, Reporter, Told};
use crate::daemonset::Seen;
use crate::news::{Hold, News, ObjectKey};
use crate::objects::Objects;

/// Takes what a list or a watch tells.
pub(super) trait Sink<T>: Send + Sync {
    fn take(&self, news: News<T>);
}

/// The pods of this node.
pub(super) struct NodePods<'a>(pub(super) &'a Reporter<'a>);

/// All namespaces.
pub(super) struct AllNamespaces<'a>(pub(super) &'a Reporter<'a>);

/// One object that is about the agent itself.
pub(super) struct OwnObject<'a, T> {
    reporter: &'a Reporter<'a>,
    objects: Mutex<Objects<T>>,
    key: ObjectKey,
    see: fn(&mut Seen, Option<&T>),
}

impl Sink<Object> for NodePods<'_> {
    fn take(&self, news: News<Object>) {
        let mut told = None;
        self.0.update(|index| {
            let heard = heard(&news, |key, uid| index.pods.has(key, uid));
            let changed = index.take_pods(news.map(Arc::new));
            told = heard.filter(|heard| heard.counts(!changed.is_empty()));
            changed
        });
        if let Some(heard) = told {
            self.0.tell(Event::Told(Told { change: heard.change, namespace: None }));
        }
    }
}

impl Sink<Namespace> for AllNamespaces<'_> {
    fn take(&self, news: News<Namespace>) {
        let mut told = None;
        self.0.update(|index| {
            let heard = heard(&news, |key, _| index.has_namespace(&key.name));
            let before = heard.as_ref().and_then(|heard| index.labels(&heard.key.name));
            let changed = index.take_namespaces(news.map(Arc::new));
            let counts = |heard: &Heard| heard.counts(!changed.is_empty());
            told = heard.filter(counts).map(|heard| (heard, before));
            changed
        });
        if let Some((Heard { change, key, .. }, before)) = told {
            self.0.tell(Event::Told(Told { change, namespace: Some((key.name.into(), before)) }));
        }
    }
}

impl<'a> OwnObject<'a, DaemonSet> {
    pub(super) fn daemonset(reporter: &'a Reporter<'a>, namespace: &str, name: &str) -> Self {
        let see: fn(&mut Seen, Option<&DaemonSet>) = |seen, set| match set {
            Some(set) => seen.there(set.clone()),
            None => seen.gone(),
        };
        Self { reporter, objects: Mutex::default(), key: ObjectKey::new(namespace, name), see }
    }
}

impl<'a> OwnObject<'a, Node> {
    pub(super) fn node(reporter: &'a Reporter<'a>, name: &str) -> Self {
        let see: fn(&mut Seen, Option<&Node>) = |seen, node| seen.node = node.cloned();
        Self { reporter, objects: Mutex::default(), key: ObjectKey::new("", name), see }
    }
}

impl<T: PartialEq + Send + Sync> Sink<T> for OwnObject<'_, T> {
    fn take(&self, news: News<T>) {
        let ObjectKey { namespace, name } = &self.key;
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.take(news.map(Arc::new));
        // Nothing is concluded from an object that was not listed yet.
        let known = objects.get(namespace, name);
        if known.is_some() || objects.is_absent(namespace, name) {
            self.reporter.see(|seen| (self.see)(seen, known.map(|object| &**object)));
        }
    }
}

/// What there is to tell of an object.
struct Heard {
    change: ObjectChange,
    key: ObjectKey,
    /// A list has it, perhaps as the list before had it.
    is_listed: bool,
}

impl Heard {
    /// What is as it was in the list before is no news.
    fn counts(&self, has_changed: bool) -> bool {
        !self.is_listed || self.change == ObjectChange::Added || has_changed
    }
}

/// What the API server tells of an object by a list or a watch; `is_known` says whether it was known before.
fn heard<T>(news: &News<T>, is_known: impl Fn(&ObjectKey, crate::news::Uid) -> bool) -> Option<Heard> {
    let (change, item) = match news {
        News::Listed(item) if is_known(&item.key, item.uid) => (ObjectChange::Updated, item),
        News::Listed(item) => (ObjectChange::Added, item),
        News::Watched(change, item) => (*change, item),
        News::Gone(item) => (ObjectChange::Deleted, item),
        _ => return None,
    };
    Some(Heard { change, key: item.key.clone(), is_listed: matches!(news, News::Listed(_)) })
}
