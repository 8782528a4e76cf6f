//! The one way to wait for something that another process or thread brings about.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

/// How long something may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Pauses between two looks: a fiftieth of the time that has passed, but never shorter or longer than these. What comes at once is seen at
/// once, and a look that starts programs does not take the processor from those that are waited for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A wait with an end. [`eventually`] is the usual form; asynchronous tests sleep for [`Wait::pause`] themselves.
#[derive(Debug)]
pub struct Wait {
    what: String,
    limit: Duration,
    start: Instant,
}

impl Wait {
    /// Begins to wait for `what`.
    #[must_use]
    pub fn new(what: impl Into<String>, limit: Duration) -> Self {
        Self { what: what.into(), limit, start: Instant::now() }
    }

    /// How long to pause before the next look; `seen` tells what the last one saw.
    ///
    /// # Errors
    /// The time is over. The text says what was waited for, how long, and what was seen last.
    pub fn pause<S: Display>(&self, seen: impl FnOnce() -> S) -> Result<Duration> {
        match self.next() {
            Some(pause) => Ok(pause),
            None => Err(anyhow!("{}", seen())).context(self.failure()),
        }
    }

    fn next(&self) -> Option<Duration> {
        let passed = self.start.elapsed();
        (passed <= self.limit).then(|| (passed / 50).clamp(PAUSES.0, PAUSES.1))
    }

    fn failure(&self) -> String {
        format!("{}: not within {:?}", self.what, self.limit)
    }
}

/// Looks until the look succeeds.
///
/// # Errors
/// The last failure, when the time is over.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let wait = Wait::new(what, limit);
    loop {
        match (look(), wait.next()) {
            (Ok(found), _) => return Ok(found),
            (Err(_), Some(pause)) => std::thread::sleep(pause),
            (Err(error), None) => return Err(error).context(wait.failure()),
        }
    }
}

/// Looks until something holds; `seen` tells what there is if it does not.
///
/// # Errors
/// It does not hold in time.
pub fn until<S: Display>(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> bool,
    seen: impl Fn() -> S,
) -> Result<()> {
    let wait = Wait::new(what, limit);
    while !holds() {
        std::thread::sleep(wait.pause(&seen)?);
    }
    Ok(())
}
