//! What is told of one watch while it works and while it does not.

use std::time::{Duration, Instant};

use fault::Backoff;

use super::{Event, Reporter, WatchError, WatchName};
use crate::recovery::{Recovery, Stands};

/// Whether one watch works, and since when it does not.
pub(super) struct Standing<'a> {
    what: WatchName,
    pub(super) reporter: &'a Reporter<'a>,
    /// Shared by the watches of the API server.
    recovery: Option<&'a Recovery>,
    stands: Option<Stands<'a>>,
    failing: Option<Instant>,
    failures: u32,
}

impl<'a> Standing<'a> {
    pub(super) fn new(what: WatchName, reporter: &'a Reporter<'a>, recovery: Option<&'a Recovery>) -> Self {
        Self { what, reporter, recovery, stands: None, failing: None, failures: 0 }
    }

    /// It works; the next failure is a first one.
    pub(super) fn works(&mut self) {
        self.failures = 0;
        self.stands();
    }

    /// It seems to work; another failure soon is still one in a row.
    pub(super) fn stands(&mut self) {
        self.stands = self.recovery.map(Recovery::stands);
        self.reporter.set_stands(self.what, None);
        if let Some(since) = self.failing.take() {
            let failed_for = since.elapsed();
            self.reporter.tell(Event::WatchRestored { what: self.what, failed_for });
        }
    }

    /// Tells of a failure and waits before the next try.
    pub(super) async fn failed(&mut self, error: impl Into<WatchError>) {
        let error = error.into();
        self.stands = None;
        self.failures = self.failures.saturating_add(1);
        let failing_for = self.failing.get_or_insert_with(Instant::now).elapsed();
        let asked = match &error {
            WatchError::Api(error) => error.retry_after().unwrap_or_default(),
            WatchError::Manifests(_) => Duration::ZERO,
        };
        let longest = self.recovery.map_or(LONGEST_PAUSE, |recovery| recovery.longest_pause(LONGEST_PAUSE));
        let retry_in = RETRY.pause(self.failures).min(longest).max(asked.min(LONGEST_PAUSE));
        self.reporter.set_stands(self.what, Some(&error));
        self.reporter.tell(Event::WatchFailed { what: self.what, error, failing_for, retry_in });
        match self.recovery {
            Some(recovery) => recovery.pause(retry_in).await,
            None => tokio::time::sleep(retry_in).await,
        }
    }
}

/// Pauses between tries of a list or watch that fails though the API server answers.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), LONGEST_PAUSE);

/// Nor does an agent wait longer when it is asked to.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
