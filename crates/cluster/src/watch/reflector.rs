//! One list and watch of the API server, for ever.

use std::convert::Infallible;

use super::list::{Change, Kind, Line, Misfit, Page, Refusal};
use super::{Event, Limits, Reporter, Standing};
use crate::connection::{Connection, Lines};
use crate::error::{Error, place};

/// Largest page of a list, in bytes. An object has at most 1.5 MiB in the API server's store, and most have ten kilobytes.
const MAX_PAGE: usize = 64 << 20;

/// Largest line of a watch, in bytes: one object, which JSON may make larger than it is stored.
const MAX_LINE: usize = 8 << 20;

/// After so many failures at one version everything is listed anew: what stands at that version cannot be got past otherwise.
const MAX_STUCK: u32 = 3;

/// A watch is asked to end after about so many seconds, so that the agents of a cluster spread over the API servers in time.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;

pub(super) struct Reflector<'a> {
    connection: &'a Connection,
    kind: Kind,
    limits: Limits,
    reporter: &'a Reporter<'a>,
    standing: Standing<'a>,
}

/// How a watch ended without an error.
enum End {
    /// The server closed it.
    Over,
    /// The version is too old.
    Expired,
}

impl<'a> Reflector<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        kind: Kind,
        limits: Limits,
        reporter: &'a Reporter<'a>,
    ) -> Self {
        let standing = Standing::new(kind.what(), reporter, Some(connection.recovery()));
        Self { connection, kind, limits, reporter, standing }
    }

    pub(super) async fn run(mut self) -> Infallible {
        loop {
            match self.list().await {
                Ok(version) => {
                    self.standing.stands();
                    self.follow(version).await;
                    self.reporter.tell(Event::Relisted { what: self.kind.what() });
                }
                Err(error) => self.standing.failed(error).await,
            }
        }
    }

    /// Reads all pages into the index; gives the version that they are of.
    async fn list(&mut self) -> Result<String, Error> {
        let operation = format!("list {}", self.kind.name());
        self.reporter.update(|index| {
            self.kind.begin(index);
            Vec::new()
        });
        let mut next = String::new();
        loop {
            let request = self.kind.list(&next);
            let body = self.connection.ask(&operation, request, self.limits.answer, MAX_PAGE).await?;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(|error| Error::NotUnderstood {
                operation: operation.clone(),
                reason: place(&error),
            })?;
            if !self.kind.is_list(&page) {
                let reason = format!("is not a list of {}", self.kind.name());
                return Err(Error::NotUnderstood { operation, reason });
            }
            for item in page.items.into_iter().flatten() {
                match self.kind.read(item) {
                    Ok((item, _)) => self.reporter.update(|index| self.kind.apply(index, item)),
                    Err(misfit) => self.misfit(&operation, &misfit),
                }
            }
            if page.metadata.next.is_empty() {
                if page.metadata.resource_version.is_empty() {
                    return Err(Error::NotUnderstood { operation, reason: "has no version".into() });
                }
                self.reporter.update(|index| self.kind.commit(index));
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.next;
        }
    }

    /// Watches from `version` on, again and again, until everything has to be listed anew.
    async fn follow(&mut self, mut version: String) {
        let mut stuck = 0;
        loop {
            let before = version.clone();
            match self.watch(&mut version).await {
                Ok(End::Over) => stuck = 0,
                Ok(End::Expired) => return,
                Err(error) => {
                    stuck = if version == before { stuck + 1 } else { 1 };
                    let unreadable = matches!(error, Error::NotUnderstood { .. } | Error::TooLarge { .. });
                    let expired = error.is_expired();
                    self.standing.failed(error).await;
                    if expired || (unreadable && stuck >= MAX_STUCK) {
                        return;
                    }
                }
            }
        }
    }

    /// One watch, as long as it lasts. `version` goes along with what has been applied.
    async fn watch(&mut self, version: &mut String) -> Result<End, Error> {
        let operation = format!("watch {}", self.kind.name());
        let seconds = WATCH_SECONDS.start + random() % (WATCH_SECONDS.end - WATCH_SECONDS.start);
        let request = self.kind.watch(version, seconds);
        let response = self.connection.send(&operation, request, self.limits.answer).await?;
        let mut lines = Lines::new(response.into_body(), MAX_LINE);
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
        let line: Line<'_> = serde_json::from_slice(line)
            .map_err(|error| Error::NotUnderstood { operation: operation(), reason: place(&error) })?;
        if line.change == Change::Error {
            let refusal = serde_json::from_str::<Refusal>(line.object.get());
            let Refusal { code, message } = refusal
                .map_err(|error| Error::NotUnderstood { operation: operation(), reason: place(&error) })?;
            let message = message.chars().filter(|c| !c.is_control()).take(300).collect();
            let (object, retry_after) = (String::new(), None);
            return Err(Error::Status { operation: operation(), code, message, object, retry_after });
        }
        if line.change == Change::Bookmark {
            // carries nothing but the version; a name is only what it lacks
            let header = serde_json::from_str::<facts::object::Header>(line.object.get()).ok();
            let metadata = header.and_then(|header| header.metadata);
            advance(version, metadata.and_then(|metadata| metadata.resource_version));
            return Ok(());
        }
        match self.kind.read(line.object) {
            Ok((item, reached)) => {
                self.reporter.update(|index| match line.change {
                    Change::Deleted => self.kind.delete(index, &item),
                    _ => self.kind.apply(index, item),
                });
                advance(version, Some(reached));
            }
            Err(misfit) => {
                self.misfit(&operation(), &misfit);
                advance(version, misfit.metadata.and_then(|metadata| metadata.resource_version));
            }
        }
        Ok(())
    }

    fn misfit(&self, operation: &str, misfit: &Misfit) {
        if let Some(metadata) = &misfit.metadata {
            self.reporter.update(|index| {
                self.kind.keep(index, metadata);
                Vec::new()
            });
        }
        let error = Error::NotUnderstood { operation: operation.into(), reason: misfit.reason.clone() };
        self.reporter.unreadable(self.kind.what(), error);
    }
}

fn advance(version: &mut String, reached: Option<String>) {
    if let Some(reached) = reached.filter(|reached| !reached.is_empty()) {
        *version = reached;
    }
}

/// RandomState is the standard library's only source of randomness.
fn random() -> u32 {
    use std::hash::BuildHasher;
    std::collections::hash_map::RandomState::new().hash_one(0) as u32
}
