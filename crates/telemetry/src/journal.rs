//! The node agent's own log: lines by scope, as text or JSON, on one writer, which has a thread of its own: no line is waited for.
//!
//! Scopes and their levels are those of the original: a level is set for a scope by name, or for all; a bare level is for the scope named
//! `default` and for no other.

mod numbers;
mod recent;
mod repeats;
mod writer;

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::Level;
use crate::line::{Label, Stamp, write_json, write_text};
use recent::RecentLines;
use repeats::Repeats;
use writer::{LineOrigin, LineWriter};

/// Scope of the line that tells of lost ones.
const OWN_SCOPE: &str = "log";
const LOSS: &str = "log lines are lost: the log was not read for a while, or could not be written";

/// Where lines go and which pass. Clones share the writer.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    /// As the process was started with.
    levels: Levels,
    /// Each scope that there is, with the level it has now.
    scopes: Mutex<Vec<(&'static str, Arc<AtomicU8>)>>,
    format: Format,
    writer: LineWriter,
    recent: RecentLines,
    repeats: Mutex<Repeats>,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// The lines of one scope.
#[derive(Clone)]
pub struct Scope {
    journal: Journal,
    name: &'static str,
    level: Arc<AtomicU8>,
}

/// Levels by scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels {
    all: Option<Level>,
    named: Vec<(String, Level)>,
}

/// A line that another process wrote.
pub struct Relayed<'a> {
    /// Its level.
    pub level: Level,
    /// When, as it wrote it.
    pub time: &'a str,
    /// What.
    pub msg: &'a str,
    /// Everything else.
    pub labels: &'a [Label<'a>],
}

/// A part of `--log_output_level` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} in the log levels is not <scope>:<level> with debug, info, warn, error, fatal or none")]
pub struct BadLevels {
    part: String,
}

// === impl Levels ===

impl Levels {
    /// Reads `scope:level` with commas between; a bare level is for scope `default`.
    ///
    /// # Errors
    /// A part is neither.
    pub fn parse(text: &str) -> Result<Self, BadLevels> {
        let mut levels = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (scope, word) = part.split_once(':').unwrap_or(("default", part));
            let known = ["debug", "info", "warn", "error", "fatal", "none"].contains(&word);
            if scope.is_empty() || !known {
                return Err(BadLevels { part: part.to_owned() });
            }
            let level = Level::parse(word);
            if scope == "all" {
                levels.all = Some(level);
            } else {
                levels.named.push((scope.to_owned(), level));
            }
        }
        Ok(levels)
    }

    /// The scopes of which something is said, `all` aside.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// The level of a scope; info where nothing is said of it.
    pub fn of(&self, scope: &str) -> Level {
        self.said_of(scope).unwrap_or(Level::Info)
    }

    fn said_of(&self, scope: &str) -> Option<Level> {
        let named = self.named.iter().rev().find(|(name, _)| name == scope).map(|(_, level)| *level);
        named.or(self.all)
    }
}

// === impl Journal ===

impl Journal {
    /// Each line is one call of `write` on `out`, which a thread of its own makes. A line that `out` does not take in time is lost, and counted.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(levels: Levels, json: bool, out: impl Write + Send + 'static) -> io::Result<Self> {
        let format = if json { Format::Json } else { Format::Text };
        let tell = move |lost| {
            let now = Stamp::At(SystemTime::now());
            format.line(OWN_SCOPE, Level::Warn, now, LOSS, &[("lines", &lost)])
        };
        let writer = LineWriter::start(out, Box::new(tell))?;
        Ok(Self {
            shared: Arc::new(Shared {
                levels,
                scopes: Mutex::default(),
                format,
                writer,
                recent: RecentLines::default(),
                repeats: Mutex::default(),
            }),
        })
    }

    /// The lines of a scope.
    pub fn scope(&self, name: &'static str) -> Scope {
        let mut scopes = self.scopes();
        let known = scopes.iter().find(|(known, _)| *known == name).map(|(_, level)| level.clone());
        let level = known.unwrap_or_else(|| {
            let level = Arc::new(AtomicU8::new(self.shared.levels.of(name) as u8));
            scopes.push((name, level.clone()));
            level
        });
        drop(scopes);
        Scope { journal: self.clone(), name, level }
    }

    /// From now on scopes have these levels; those of which nothing is said have the ones that the process was started with.
    pub fn set_levels(&self, levels: &Levels) {
        for (name, level) in self.scopes().iter() {
            level.store(
                levels.said_of(name).unwrap_or_else(|| self.shared.levels.of(name)) as u8,
                Ordering::Relaxed,
            );
        }
    }

    /// The scopes that there are with their levels, as [`Levels::parse`] reads them.
    pub fn levels(&self) -> String {
        let scopes = self.scopes();
        let mut all: Vec<String> =
            scopes.iter().map(|(name, level)| format!("{name}:{}", Level::of(level).as_str())).collect();
        all.sort();
        all.join(",")
    }

    /// Those of the scopes that levels name which do not exist.
    pub fn unknown_scopes<'l>(&self, levels: &'l Levels) -> Vec<&'l str> {
        let scopes = self.scopes();
        levels.scopes().filter(|name| !scopes.iter().any(|(known, _)| known == name)).collect()
    }

    fn scopes(&self) -> MutexGuard<'_, Vec<(&'static str, Arc<AtomicU8>)>> {
        self.shared.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The level of a scope.
    pub fn level_of(&self, scope: &str) -> Level {
        self.shared.levels.of(scope)
    }

    /// Lines that were lost so far because the log did not take them.
    pub fn lost(&self) -> u64 {
        self.shared.writer.lost()
    }

    /// The last lines, at most 200, the oldest first.
    pub fn recent(&self) -> Vec<String> {
        self.shared.recent.all()
    }

    /// Waits until everything is written, at most that long; whether it is.
    pub fn finish(&self, limit: Duration) -> bool {
        self.shared.writer.finish(limit)
    }

    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.shared.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Format ===

impl Format {
    fn line(self, scope: &str, level: Level, time: Stamp<'_>, msg: &str, labels: &[Label<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Json => {
                let (numbers, texts) = numbers::split(labels);
                write_json(&mut out, level, time, Some(scope), msg, &numbers, &texts);
            }
            Self::Text => write_text(&mut out, level, time, scope, msg, labels),
        }
        out
    }
}

// === impl Scope ===

impl Scope {
    /// A line of level debug.
    pub fn debug(&self, msg: impl Display, labels: &[Label<'_>]) {
        self.log(Level::Debug, msg, labels);
    }

    /// A line of level info. What it is about counts as well again, see [`Self::settled`].
    pub fn info(&self, msg: impl Display, labels: &[Label<'_>]) {
        self.log(Level::Info, msg, labels);
    }

    /// A line of level warn.
    pub fn warn(&self, msg: impl Display, labels: &[Label<'_>]) {
        self.log(Level::Warn, msg, labels);
    }

    /// A line of level warn that sums up and is told each time: the caller chooses the pauses.
    pub fn sum_up(&self, msg: impl Display, labels: &[Label<'_>]) {
        if Level::of(&self.level).passes(Level::Warn) {
            self.tell(Level::Warn, &msg.to_string(), labels);
        }
    }

    /// A line of level error.
    pub fn error(&self, msg: impl Display, labels: &[Label<'_>]) {
        self.log(Level::Error, msg, labels);
    }

    /// A line of a level known only at run time. A warning or an error that was said already is told after growing pauses only, with the
    /// number of times in the label `repeated`.
    pub fn log(&self, level: Level, msg: impl Display, labels: &[Label<'_>]) {
        if level == Level::Info {
            self.settled(labels);
        }
        if !Level::of(&self.level).passes(level) {
            return;
        }
        let msg = msg.to_string();
        let times = match level {
            Level::Debug | Level::Info => Some(1),
            _ => self.journal.repeats().say(self.name, level, &msg, labels, Instant::now()),
        };
        let Some(times) = times else { return };
        let mut labels = labels.to_vec();
        if times > 1 {
            labels.push(("repeated", &times));
        }
        self.tell(level, &msg, &labels);
    }

    fn tell(&self, level: Level, msg: &str, labels: &[Label<'_>]) {
        let shared = &self.journal.shared;
        let line = shared.format.line(self.name, level, Stamp::At(SystemTime::now()), msg, labels);
        shared.recent.take(&line);
        shared.writer.write(line, 1, LineOrigin::Own);
    }

    /// What these labels are about (a pod, a watch, a path; without any, the scope itself) is well: the next warning of it is told, whatever
    /// was said before.
    pub fn settled(&self, labels: &[Label<'_>]) {
        self.journal.repeats().settle(self.name, labels);
    }

    /// Lines that another process wrote, with its times and without anything in between. Gives the bytes that the log gets of them.
    pub fn relay(&self, lines: &[Relayed<'_>]) -> usize {
        let shared = &self.journal.shared;
        let (mut text, mut count) = (Vec::new(), 0);
        for line in lines.iter().filter(|line| Level::of(&self.level).passes(line.level)) {
            let time = Stamp::Written(line.time);
            text.extend(shared.format.line(self.name, line.level, time, line.msg.trim(), line.labels));
            count += 1;
        }
        let bytes = text.len();
        if count > 0 {
            shared.recent.take(&text);
            shared.writer.write(text, count, LineOrigin::Relayed);
        }
        bytes
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("name", &self.name)
            .field("level", &Level::of(&self.level))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
