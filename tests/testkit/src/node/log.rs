//! What a process prints, line by line, while it runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::eventually;

/// Lines of one or more streams. Clones are the same lines.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Reads a stream to its end, on a thread of its own.
    pub(crate) fn read(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                log.guard().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.guard().join("\n")
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<String> {
        self.guard().clone()
    }

    /// The first line that has all of these parts, when it comes.
    ///
    /// # Errors
    /// It does not come; the text has the whole log.
    pub fn wait_for(&self, parts: &[&str], limit: Duration) -> Result<String> {
        eventually("a log line", limit, || {
            let found = self.find(parts);
            found.with_context(|| format!("no line with {parts:?} in:\n{}", self.text()))
        })
    }

    /// The first line that has all of these parts.
    pub fn find(&self, parts: &[&str]) -> Option<String> {
        self.guard().iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned()
    }

    /// How many lines have all of these parts.
    pub fn count(&self, parts: &[&str]) -> usize {
        self.guard().iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    fn guard(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
