//! One list and watch of the API server, for ever, of objects of any kind.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

use serde_json::value::RawValue;

use super::read::{self, Line, ObjectMisfit, Page, PageMetadata, Tidings, WatchRefusal, number};
use super::{Event, Limits, ObjectChange, Reporter, Sink, Standing, WatchName};
use crate::connection::{ApiConnection, Items, Lines};
use crate::error::{About, Error, place};
use crate::kind::{Kind, ObjectSelection, Requests, Since};
use crate::news::News;

/// Largest object of a list and line of a watch, in bytes. The API server's store takes 1.5 MiB, which JSON may make more.
const MAX_OBJECT: usize = 8 << 20;

/// After so many failures at one version everything is listed anew: what stands at that version cannot be got past otherwise. After so many lists
/// that are too old the store is asked, which may have been set back.
const MAX_STUCK: u32 = 3;

/// Pause before a server is asked again that has never had a kind.
const BEFORE_A_KIND: Duration = Duration::from_secs(1);
/// Pause before the server is asked again for a kind that it does not have.
const FOR_A_KIND: Duration = Duration::from_secs(5);

/// A watch is asked to end after about so many seconds, so that the agents of a cluster spread over the API servers in time.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;

pub(super) struct Reflector<'a, K: Kind> {
    connection: &'a ApiConnection,
    what: WatchName,
    requests: Requests,
    limits: Limits,
    reporter: &'a Reporter<'a>,
    sink: &'a dyn Sink<K::Object>,
    standing: Standing<'a>,
    /// What the watch before has reached.
    reached: Option<String>,
    /// Lists in a row that are not as new as that.
    behind: u32,
    /// Answers in a row that the server does not have the kind.
    missing: u32,
    kind: PhantomData<fn(K)>,
}

/// How a watch ended without an error.
enum End {
    /// The server closed it.
    Over,
    /// The version is too old.
    Expired,
}

impl<'a, K: Kind> Reflector<'a, K> {
    /// Tells `sink` of the objects of a selection.
    pub(super) fn new(
        connection: &'a ApiConnection,
        (what, selection): (WatchName, ObjectSelection),
        limits: Limits,
        reporter: &'a Reporter<'a>,
        sink: &'a dyn Sink<K::Object>,
    ) -> Self {
        let standing = Standing::new(what, reporter, Some(connection.recovery()));
        let requests = Requests::new(K::RESOURCE, selection);
        let (reached, behind, missing, kind) = (None, 0, 0, PhantomData);
        Self { connection, what, requests, limits, reporter, sink, standing, reached, behind, missing, kind }
    }

    pub(super) async fn run(mut self) -> Infallible {
        loop {
            match self.list().await {
                Ok(version) => {
                    (self.behind, self.missing) = (0, 0);
                    self.standing.stands();
                    self.reached = Some(self.follow(version).await);
                    self.reporter.tell(Event::Relisted { what: self.what });
                }
                Err(error) if Self::is_of_the_kind(&error) => self.kind_is_missing().await,
                Err(error) => {
                    self.missing = 0;
                    // Of a list that broke off what came stays, within bounds: it was said by the API server.
                    let most = (!matches!(error, Error::Endless { .. })).then_some(self.limits.objects);
                    self.sink.take(News::ListFails { most });
                    let behind = matches!(error, Error::Behind { .. }) || error.is_expired();
                    self.behind = if behind { self.behind + 1 } else { 0 };
                    self.standing.failed(error).await;
                }
            }
        }
    }

    /// Whether a server says that it does not have the kind, which it need not have.
    fn is_of_the_kind(error: &Error) -> bool {
        K::IS_OPTIONAL && error.status() == Some(404)
    }

    /// The server does not have the kind, so that there is no object of it. A server that starts, or somebody before it, may say the same: it counts when
    /// it has said so several times in a row.
    async fn kind_is_missing(&mut self) {
        self.missing += 1;
        if self.missing < MAX_STUCK {
            self.sink.take(News::ListFails { most: None });
        } else {
            let is_news = self.missing == MAX_STUCK || self.reached.is_some();
            self.reached = None;
            self.sink.take(News::ListBegins);
            self.sink.take(News::ListEnds(0));
            self.reporter.listed(self.what);
            self.reporter.set_stands(self.what, None);
            if is_news {
                self.reporter.tell(Event::KindAbsent { what: self.what });
            }
        }
        let is_first = self.reached.is_none() && self.missing < MAX_STUCK;
        tokio::time::sleep(if is_first { BEFORE_A_KIND } else { FOR_A_KIND }).await;
    }

    fn since(&self) -> Since {
        match &self.reached {
            _ if self.requests.is_single() => Since::Now,
            Some(_) if self.behind >= MAX_STUCK => Since::Now,
            Some(version) => Since::Version(version.clone()),
            None => Since::Any,
        }
    }

    /// Reads all objects into the store; gives the version that they are of.
    async fn list(&mut self) -> Result<String, Error> {
        let operation = format!("list {}", self.requests.name());
        let since = self.since();
        self.sink.take(News::ListBegins);
        let (mut next, mut read) = (String::new(), Amount::default());
        loop {
            let page = self.page(&operation, &since, &next, &mut read).await?;
            if page.next.is_empty() {
                if page.resource_version.is_empty() {
                    return Err(Error::NotUnderstood { operation, reason: "has no version".into() });
                }
                self.sink.take(News::ListEnds(number(&page.resource_version)));
                self.reporter.listed(self.what);
                return Ok(page.resource_version);
            }
            next = page.next;
        }
    }

    /// Reads a page into the store, object by object: a list from the server's cache has all of them in one page.
    async fn page(
        &self,
        operation: &str,
        since: &Since,
        next: &str,
        read: &mut Amount,
    ) -> Result<PageMetadata, Error> {
        let not_understood = |reason| Error::NotUnderstood { operation: operation.into(), reason };
        let limit = self.limits.answer;
        let request = self.requests.list(since, next);
        let response = self.connection.send(operation, request, limit).await?;
        let mut items = Items::new(response.into_body(), MAX_OBJECT);
        let mut first = true;
        loop {
            let item = tokio::time::timeout(limit, items.next(operation)).await;
            let item = item.map_err(|_| Error::TimedOut { operation: operation.into(), after: limit })??;
            let Some(item) = item else { break };
            if std::mem::replace(&mut first, false)
                && let Ok(begun) = Page::parse(items.rest(), false)
            {
                // Before anything of it is applied; API servers write the version first.
                self.check(operation, since, &begun)?;
            }
            read.add(operation, item.len(), self.limits)?;
            let item: &RawValue =
                serde_json::from_slice(&item).map_err(|error| not_understood(place(&error)))?;
            match read::object::<K>(item) {
                Ok((item, _)) => self.sink.take(News::Listed(item)),
                Err(misfit) => self.misfit(operation, misfit),
            }
        }
        let page = Page::parse(items.rest(), true).map_err(not_understood)?;
        self.check(operation, since, &page)?;
        read.next_page(operation, self.limits)?;
        Ok(page.metadata)
    }

    /// Whether a page is of the list that was asked for, and not older. That one object is not in its list is evidence, so that this is looked at closely.
    fn check(&self, operation: &str, since: &Since, page: &Page) -> Result<(), Error> {
        let is_list = page.kind == self.requests.list_kind() && page.items.is_some();
        if self.requests.is_single() && !is_list {
            let reason = format!("is not a list of {}", self.requests.name());
            return Err(Error::NotUnderstood { operation: operation.into(), reason });
        }
        if since.is_older(&page.metadata.resource_version) {
            return Err(Error::Behind { operation: operation.into(), retry_after: None });
        }
        Ok(())
    }

    /// Watches from `version` on, again and again, until everything has to be listed anew; gives the version that was reached.
    async fn follow(&mut self, mut version: String) -> String {
        let mut stuck = 0;
        loop {
            let before = version.clone();
            match self.watch(&mut version).await {
                Ok(End::Over) => stuck = 0,
                Ok(End::Expired) => return version,
                Err(error) if Self::is_of_the_kind(&error) => return version,
                Err(error) => {
                    stuck = if version == before { stuck + 1 } else { 1 };
                    let unreadable = matches!(error, Error::NotUnderstood { .. } | Error::TooLarge { .. });
                    let expired = error.is_expired();
                    self.standing.failed(error).await;
                    if expired || (unreadable && stuck >= MAX_STUCK) {
                        return version;
                    }
                }
            }
        }
    }

    /// One watch, as long as it lasts. `version` goes along with what has been applied.
    async fn watch(&mut self, version: &mut String) -> Result<End, Error> {
        let operation = format!("watch {}", self.requests.name());
        let seconds = WATCH_SECONDS.start + random() % (WATCH_SECONDS.end - WATCH_SECONDS.start);
        let request = self.requests.watch(version, seconds);
        let response = self.connection.send(&operation, request, self.limits.answer).await?;
        let mut lines = Lines::new(response.into_body(), MAX_OBJECT);
        let mut settled = false;
        loop {
            let patience = if settled { self.limits.silence } else { self.limits.settle };
            match tokio::time::timeout(patience, lines.next(&operation)).await {
                Err(_) if settled => return Err(Error::Silent { operation, after: patience }),
                Err(_) => {}
                Ok(Ok(None)) if settled => return Ok(End::Over),
                Ok(Ok(None)) => return Err(Error::ClosedEarly { operation }),
                Ok(Ok(Some(line))) => match self.line(&operation, &line, version) {
                    Err(error) if error.is_expired() && settled => return Ok(End::Expired),
                    done => done?,
                },
                Ok(Err(error)) => return Err(error),
            }
            if !std::mem::replace(&mut settled, true) {
                self.standing.works();
            }
        }
    }

    fn line(&self, operation: &str, line: &[u8], version: &mut String) -> Result<(), Error> {
        let operation = || operation.to_owned();
        let not_understood = |error| Error::NotUnderstood { operation: operation(), reason: place(&error) };
        let line: Line<'_> = serde_json::from_slice(line).map_err(not_understood)?;
        let change = match line.change {
            Tidings::Error => {
                let refusal = serde_json::from_str::<WatchRefusal>(line.object.get());
                let WatchRefusal { code, message } = refusal.map_err(not_understood)?;
                let message = message.chars().filter(|c| !c.is_control()).take(300).collect();
                let (about, retry_after) = (About::Other, None);
                return Err(Error::Status { operation: operation(), code, message, about, retry_after });
            }
            Tidings::Bookmark => {
                self.advance(read::version(line.object), version);
                return Ok(());
            }
            Tidings::Added => Some(ObjectChange::Added),
            Tidings::Modified => Some(ObjectChange::Updated),
            Tidings::Deleted => None,
        };
        match read::object::<K>(line.object) {
            Ok((item, reached)) => {
                self.sink.take(match change {
                    Some(change) => News::Watched(change, item),
                    None => News::Gone(item),
                });
                if !reached.is_empty() {
                    *version = reached;
                }
            }
            Err(mut misfit) => {
                let reached = std::mem::take(&mut misfit.version);
                self.misfit(&operation(), misfit);
                self.advance(reached, version);
            }
        }
        Ok(())
    }

    /// Everything up to `reached` has been told.
    fn advance(&self, reached: String, version: &mut String) {
        if !reached.is_empty() {
            self.sink.take(News::Reached(number(&reached)));
            *version = reached;
        }
    }

    fn misfit(&self, operation: &str, misfit: ObjectMisfit) {
        if let Some(key) = misfit.key {
            self.sink.take(News::Unreadable(key));
        }
        let error = Error::NotUnderstood { operation: operation.into(), reason: misfit.reason };
        self.reporter.unreadable(self.what, error);
    }
}
/// What was read of a list, over all of its pages.
#[derive(Debug, Default)]
struct Amount {
    objects: usize,
    bytes: usize,
    pages: usize,
}

impl Amount {
    fn add(&mut self, operation: &str, bytes: usize, limits: Limits) -> Result<(), Error> {
        (self.objects, self.bytes) = (self.objects + 1, self.bytes.saturating_add(bytes));
        let limit = if self.objects > limits.objects {
            format!("{} objects", limits.objects)
        } else if self.bytes > limits.bytes {
            format!("{} bytes", limits.bytes)
        } else {
            return Ok(());
        };
        Err(Error::Endless { operation: operation.into(), limit })
    }

    /// Pages without objects are bounded like objects.
    fn next_page(&mut self, operation: &str, limits: Limits) -> Result<(), Error> {
        self.pages += 1;
        if self.pages <= limits.objects {
            return Ok(());
        }
        Err(Error::Endless { operation: operation.into(), limit: format!("{} pages", limits.objects) })
    }
}

/// RandomState is the standard library's only source of randomness.
fn random() -> u32 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_bounded_over_all_of_its_pages() {
        let limits = Limits { objects: 3, bytes: 10, ..Limits::default() };
        let add =
            |read: &mut Amount, bytes| read.add("list", bytes, limits).map_err(|error| error.to_string());
        let mut read = Amount::default();
        for _ in 0..3 {
            add(&mut read, 3).unwrap();
            read.next_page("list", limits).unwrap();
        }
        assert!(add(&mut read, 0).unwrap_err().contains("more than 3 objects, so it is not used"));
        let mut read = Amount::default();
        add(&mut read, 9).unwrap();
        assert!(add(&mut read, 2).unwrap_err().contains("more than 10 bytes"));
        // Pages without objects never end otherwise.
        let mut read = Amount::default();
        let pages = (0..9).find_map(|_| read.next_page("list", limits).err()).unwrap();
        assert!(pages.to_string().contains("more than 3 pages"), "{pages}");
    }
}
