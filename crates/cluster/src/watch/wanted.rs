//! Kinds that somebody asked for, beside those that every agent watches.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use facts::Peer;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::manifests::{Files, Reader};
use super::reflector::Reflector;
use super::{Limits, Reporter, Sink, WatchName};
use crate::connection::ApiConnection;
use crate::kind::{Kind, ObjectSelection, PeerPods};
use crate::news::{Hold, News, ObjectDelta};
use crate::objects::Objects;
use crate::peers::{Effect, Peers};

/// The kinds that are to be watched, each with a store of its own. None are unless they are asked for here.
#[derive(Default)]
pub struct Wanted(Vec<Box<dyn Wish>>);

/// A store that the watches fill. Clones are the same.
#[derive(Debug)]
pub struct Shared<S>(Arc<RwLock<S>>);

/// A kind that is to be watched.
pub(super) trait Wish: Send + Sync {
    fn what(&self) -> WatchName;

    /// Whether it is wanted now.
    fn is_wanted(&self) -> bool;

    /// Watches the API server for ever.
    fn run<'a>(
        &'a self,
        connection: &'a ApiConnection,
        limits: Limits,
        reporter: &'a Reporter<'a>,
    ) -> BoxFuture<'a, Infallible>;

    /// How manifests of the kind are read.
    fn reader(&self) -> Reader;

    /// Takes what a directory of manifests says, all of it.
    fn take_manifests(&self, files: &Files);
}

/// A wish, where its objects go, and who is told of what changes.
struct Watched<K: Kind, S: Hold<I>, I> {
    what: WatchName,
    selection: ObjectSelection,
    store: Shared<S>,
    /// How the store takes objects.
    convert: fn(News<K::Object>) -> News<I>,
    /// The same of those that files describe.
    described: fn(News<Arc<K::Object>>) -> News<I>,
    /// Whether they are wanted now; nothing: always.
    interest: Option<watch::Receiver<bool>>,
    observer: Box<Observer<S::Held>>,
    limits: Option<Limits>,
    kind: PhantomData<fn(K)>,
}

/// Is told what changes.
type Observer<T> = dyn Fn(Vec<ObjectDelta<T>>) + Send + Sync;

/// Of a list of all pods: it is read object by object, and of each little is kept. Three times as many as Kubernetes is made for.
const PEERS: (usize, usize) = (500_000, 16 << 30);

// === impl Wanted ===

impl Wanted {
    /// Watches the objects of a kind. `observer` is told what changes, in order and on the watching task: it must not wait.
    pub fn kind<K: Kind>(
        &mut self,
        selection: ObjectSelection,
        observer: impl Fn(Vec<ObjectDelta<Arc<K::Object>>>) + Send + Sync + 'static,
    ) -> Shared<Objects<K::Object>> {
        self.watched::<K>(selection, None, observer)
    }

    /// The same for all objects of a kind, while `interest` says that they are wanted: when it does not, none is known.
    pub fn kind_while<K: Kind>(
        &mut self,
        interest: watch::Receiver<bool>,
        observer: impl Fn(Vec<ObjectDelta<Arc<K::Object>>>) + Send + Sync + 'static,
    ) -> Shared<Objects<K::Object>> {
        self.watched::<K>(ObjectSelection::all(), Some(interest), observer)
    }

    fn watched<K: Kind>(
        &mut self,
        selection: ObjectSelection,
        interest: Option<watch::Receiver<bool>>,
        observer: impl Fn(Vec<ObjectDelta<Arc<K::Object>>>) + Send + Sync + 'static,
    ) -> Shared<Objects<K::Object>> {
        let store = Shared::<Objects<K::Object>>::default();
        self.0.push(Box::new(Watched::<K, _, Arc<K::Object>> {
            what: K::WATCH,
            selection,
            store: store.clone(),
            convert: |news| news.map(Arc::new),
            described: |news| news,
            interest,
            observer: Box::new(observer),
            limits: None,
            kind: PhantomData,
        }));
        store
    }

    /// Watches the pods of the whole cluster that have not ended, while `interest` says that they are wanted: when it does not, none is known.
    pub fn peers(
        &mut self,
        interest: watch::Receiver<bool>,
        observer: impl Fn(Vec<Effect>) + Send + Sync + 'static,
    ) -> Shared<Peers> {
        let store = Shared::<Peers>::default();
        let (objects, bytes) = PEERS;
        self.0.push(Box::new(Watched::<PeerPods, _, Peer> {
            what: WatchName::PEERS,
            // One that ends comes as one that is deleted.
            selection: ObjectSelection::fields(
                "status.phase!=Succeeded,status.phase!=Failed",
                "of the cluster",
            ),
            store: store.clone(),
            convert: |news| news,
            described: |news| news.map(|one: Arc<Peer>| Peer::clone(&one)),
            interest: Some(interest),
            observer: Box::new(observer),
            limits: Some(Limits { objects, bytes, ..Limits::default() }),
            kind: PhantomData,
        }));
        store
    }

    pub(super) fn wishes(&self) -> &[Box<dyn Wish>] {
        &self.0
    }
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|wish| wish.what())).finish()
    }
}

// === impl Shared ===

impl<S> Shared<S> {
    /// The store, for a moment: nothing that waits may be done while it is held.
    pub fn read(&self) -> RwLockReadGuard<'_, S> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Default> Default for Shared<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

// === impl Watched ===

impl<K: Kind, S: Hold<I> + Default, I> Watched<K, S, I> {
    fn change(&self, change: impl FnOnce(&mut S) -> Vec<ObjectDelta<S::Held>>) {
        let changed = change(&mut self.store.0.write().unwrap_or_else(PoisonError::into_inner));
        if !changed.is_empty() {
            (self.observer)(changed);
        }
    }

    /// Nothing of it is known any more, and nothing counts as listed.
    fn forget(&self) {
        self.change(|store| {
            store.take(News::ListBegins);
            let gone = store.take(News::ListEnds(0));
            *store = S::default();
            gone
        });
    }
}

impl<K, S, I> Watched<K, S, I>
where
    K: Kind,
    S: Hold<I> + Default + Send + Sync,
    I: Clone + Send + Sync + 'static,
{
    async fn watch(&self, connection: &ApiConnection, limits: Limits, reporter: &Reporter<'_>) -> Infallible {
        let Limits { objects, bytes, .. } = self.limits.unwrap_or(limits);
        let limits = Limits { objects, bytes, ..limits };
        let selected = (self.what, self.selection.clone());
        Reflector::<K>::new(connection, selected, limits, reporter, self).run().await
    }

    /// Watches while it is wanted.
    async fn watch_while(
        &self,
        mut interest: watch::Receiver<bool>,
        (connection, limits): (&ApiConnection, Limits),
        reporter: &Reporter<'_>,
    ) -> Infallible {
        while interest.wait_for(|is_wanted| *is_wanted).await.is_ok() {
            reporter.expect([self.what]);
            tokio::select! {
                never = self.watch(connection, limits, reporter) => match never {},
                Ok(_) = interest.wait_for(|is_wanted| !is_wanted) => {}
            }
            self.forget();
            reporter.unexpect(self.what);
        }
        // Nobody is left to want it.
        std::future::pending().await
    }
}

impl<K, S, I> Sink<K::Object> for Watched<K, S, I>
where
    K: Kind,
    S: Hold<I> + Default + Send + Sync,
{
    fn take(&self, news: News<K::Object>) {
        self.change(|store| store.take((self.convert)(news)));
    }
}

impl<K, S, I> Wish for Watched<K, S, I>
where
    K: Kind,
    S: Hold<I> + Default + Send + Sync,
    I: Clone + Send + Sync + 'static,
{
    fn what(&self) -> WatchName {
        self.what
    }

    fn is_wanted(&self) -> bool {
        self.interest.as_ref().is_none_or(|interest| *interest.borrow())
    }

    fn run<'a>(
        &'a self,
        connection: &'a ApiConnection,
        limits: Limits,
        reporter: &'a Reporter<'a>,
    ) -> BoxFuture<'a, Infallible> {
        match self.interest.clone() {
            Some(interest) => self.watch_while(interest, (connection, limits), reporter).boxed(),
            None => self.watch(connection, limits, reporter).boxed(),
        }
    }

    fn reader(&self) -> Reader {
        Reader::of::<K>()
    }

    fn take_manifests(&self, files: &Files) {
        let news: Vec<News<Arc<K::Object>>> = files.news(K::RESOURCE.kind);
        let news = news.into_iter().map(self.described);
        self.change(|store| news.flat_map(|news| store.take(news)).collect());
    }
}
