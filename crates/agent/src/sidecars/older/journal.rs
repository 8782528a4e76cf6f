//! When runtimes called the plugin on this node, as far as its agents saw: a file in the run directory, so that the next agent goes on with it.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rundir::PLUGIN_TIMES_NAME;
use serde::{Deserialize, Serialize};
use trusted::Links;

/// Largest file that is read, in bytes: the uids of all pods of a large node.
const MAX_FILE: usize = 1 << 20;
/// The most gaps that are kept. Pods of older ones have been found, or are gone.
const MAX_GAPS: usize = 16;
/// How long a change of the configuration may take to be noticed, in seconds. A runtime may be quicker.
const NOTICED_WITHIN: u64 = 10;
/// How long a runtime may take to read a configuration, in seconds.
const READ_WITHIN: u64 = 1;

/// Since the beginning, where nothing is known of a time with the plugin.
const EVER: u64 = 0;

/// A time without the plugin, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gap {
    pub(super) from: u64,
    pub(super) until: u64,
}

/// What is known of the plugin's times, and which pods have been told.
#[derive(Debug, Default)]
pub(super) struct OlderJournal {
    path: PathBuf,
    kept: Kept,
    state: State,
}

/// What this agent knows of the plugin now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing yet, or that runtimes do not call it.
    #[default]
    Unseen,
    /// Runtimes call it.
    InPlace,
    /// They did, until something changed.
    InDoubt,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// See [`crate::boot`]. All sandboxes of another start are gone.
    boot: String,
    /// Oldest first.
    gaps: Vec<Gap>,
    /// The beginning of a gap that goes on.
    open: Option<u64>,
    /// The first time when the plugin was seen to be in place.
    first: Option<u64>,
    /// The last time when the plugin was seen to be in place.
    seen: Option<u64>,
    /// Uids of pods that have their event.
    told: BTreeSet<String>,
}

impl OlderJournal {
    /// What the agent before has kept. What cannot be read is as good as nothing: the first look at the configuration then says whether the plugin
    /// was there before.
    pub(super) fn read(run_dir: &Path) -> Self {
        let path = run_dir.join(PLUGIN_TIMES_NAME);
        let boot = crate::boot::id();
        let kept = read(&path).ok().filter(|kept| kept.boot == boot);
        let kept = kept.unwrap_or_else(|| Kept { boot, ..Kept::default() });
        Self { path, kept, state: State::default() }
    }

    /// Runtimes call the plugin from now on.
    pub(super) fn in_place(&mut self, now: u64) -> io::Result<()> {
        let gap = self.kept.open.take().map(|from| Gap { from, until: now + READ_WITHIN });
        self.kept.gaps.extend(gap);
        let old = self.kept.gaps.len().saturating_sub(MAX_GAPS);
        self.kept.gaps.drain(..old);
        // An agent that did not keep the first time was there before.
        let first = if self.kept.seen.is_some() { EVER } else { now };
        self.kept.first.get_or_insert(first);
        (self.kept.seen, self.state) = (Some(now), State::InPlace);
        self.write()
    }

    /// Whether a time is before the first agent of this start of the machine had the plugin in place.
    pub(super) fn is_before_agent(&self, at: u64) -> bool {
        self.kept.first.is_none_or(|first| at < first)
    }

    /// Something has changed on the node; until now runtimes called the plugin.
    pub(super) fn in_doubt(&mut self, now: u64) -> io::Result<()> {
        if self.state != State::InPlace {
            return Ok(());
        }
        (self.kept.seen, self.state) = (Some(now), State::InDoubt);
        self.write()
    }

    /// Runtimes were found not to call the plugin.
    pub(super) fn missing(&mut self) -> io::Result<()> {
        let late = if std::mem::take(&mut self.state) == State::Unseen { 0 } else { NOTICED_WITHIN };
        if self.kept.open.is_some() {
            return Ok(());
        }
        self.kept.open = Some(self.kept.seen.map_or(EVER, |seen| seen.saturating_sub(late)));
        self.write()
    }

    /// Times without the plugin; one that goes on ends now.
    pub(super) fn gaps(&self, now: u64) -> Vec<Gap> {
        let open = self.kept.open.map(|from| Gap { from, until: now + READ_WITHIN });
        self.kept.gaps.iter().copied().chain(open).collect()
    }

    pub(super) fn is_told(&self, uid: &str) -> bool {
        self.kept.told.contains(uid)
    }

    /// The pod has its event.
    pub(super) fn told(&mut self, uid: &str) -> io::Result<()> {
        self.kept.told.insert(uid.to_owned());
        self.write()
    }

    /// Forgets pods that are gone.
    pub(super) fn forget(&mut self, is_there: impl Fn(&str) -> bool) -> io::Result<()> {
        let before = self.kept.told.len();
        self.kept.told.retain(|uid| is_there(uid));
        if self.kept.told.len() == before { Ok(()) } else { self.write() }
    }

    /// Not synced: after a crash of the machine it is worth nothing.
    fn write(&self) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        }
        let unfinished = self.path.with_extension("unfinished");
        trusted::replace(&self.path, &unfinished, &serde_json::to_vec(&self.kept)?)
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&trusted::read(path, Links::Refused, MAX_FILE)?)?)
}

#[cfg(test)]
mod tests;
