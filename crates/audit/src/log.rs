//! The thread that writes events. Who has an event never waits for a disk: what finds no room is counted, and told when there is room again.

mod writing;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::chain::ChainLink;
use crate::event::{AuditEvent, RuleKey};
use crate::files::FileSet;
use crate::writer::FileLimits;
use writing::Writing;

/// Bytes of events that wait.
const MOST_BYTES: usize = 4 << 20;
/// Events that are written at once.
const BATCH: usize = 512;
/// How often files are brought to the disk, and a disk that fails is tried again.
const SYNC: Duration = Duration::from_secs(1);
/// Events that come one after the other are written at once after this.
const GATHER: Duration = Duration::from_millis(20);
/// Rules whose lost packets are told by name.
const MOST_LOST_RULES: usize = 1000;
/// Largest note beside the files.
const MOST_NOTE: u64 = 8 << 20;

/// What is written where.
pub struct LogConfig {
    /// The newest file: `DIR/NAME.jsonl`. Nothing where lines go to standard output only.
    pub path: Option<PathBuf>,
    /// Whether lines go to standard output.
    pub to_stdout: bool,
    /// Of the files.
    pub limits: FileLimits,
    /// The node's name.
    pub node: String,
    /// Which start of the machine this is.
    pub boot_id: String,
    /// The agent's version.
    pub version: String,
    /// What the first line says of this agent's options.
    pub options: BTreeMap<String, String>,
    /// Told when writing fails, and with nothing when it works again.
    pub tell: TellWriting,
}

/// Hears why writing fails, and nothing when it works again.
pub type TellWriting = Box<dyn Fn(Option<&str>) + Send>;

/// What writing has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStanding {
    /// The last line that is written.
    pub link: Option<ChainLink>,
    /// Events that found no room before the disk.
    pub lost_events: u64,
    /// Bytes that wait.
    pub waiting: usize,
}

/// What is kept beside the files, so that the next agent knows what of the rules' counters lines tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogNote {
    /// Which start of the machine it is of: afterwards counters begin anew.
    pub boot_id: String,
    /// The last line that it knows.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// What each rule had counted of which lines tell.
    pub rules: Vec<(RuleKey, u64)>,
}

/// Writes events on a thread of its own.
pub struct AuditLog {
    shared: Arc<Shared>,
    note: Option<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<AuditEvent>,
    bytes: usize,
    lost: BTreeMap<RuleKey, u64>,
    lost_events: u64,
    /// Since the last gap.
    lost_lately: u64,
    link: Option<ChainLink>,
    /// What earlier agents have told of rules; nothing until it is read.
    before: Option<Before>,
    is_idle: bool,
    /// Somebody waits for the disk.
    wants_sync: bool,
    is_ending: bool,
}

/// What lines of earlier agents tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Before {
    /// Whether there was an agent that left a note.
    pub is_known: bool,
    /// What of the counters of rules they tell; of this start of the machine.
    pub rules: BTreeMap<RuleKey, u64>,
}

// === impl AuditLog ===

impl AuditLog {
    /// # Errors
    /// There is no thread to be had, or the path has no name for files.
    pub fn start(config: LogConfig) -> io::Result<Self> {
        let set = config.path.as_deref().map(FileSet::of).transpose()?;
        let note = set.as_ref().and_then(|_| note_path(config.path.as_deref()?));
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let writing = Writing {
            config,
            set,
            writer: None,
            link: ChainLink::start(),
            shared: shared.clone(),
            failed: false,
            synced: Instant::now(),
            aged: Instant::now(),
            beginning: None,
        };
        let thread = std::thread::Builder::new().name("audit-log".into()).spawn(move || writing.live())?;
        Ok(Self { shared, note, thread: Mutex::new(Some(thread)) })
    }

    /// Gives an event to the thread.
    pub fn push(&self, event: AuditEvent) {
        let mut state = self.shared.state();
        let size = event_size(&event);
        if state.bytes + size > MOST_BYTES {
            state.lose(&event);
            return;
        }
        state.bytes += size;
        state.is_idle = false;
        state.queue.push_back(event);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What earlier agents have told; waits until it is read. Nothing where the disk does not let it.
    pub fn before(&self, patience: Duration) -> Option<Before> {
        self.wait(patience, |state| state.before.clone())
    }

    /// Waits until all is on the disk that was pushed. The last line.
    pub fn flush(&self, patience: Duration) -> Option<ChainLink> {
        let mut state = self.shared.state();
        (state.wants_sync, state.is_idle) = (true, false);
        drop(state);
        self.shared.changed.notify_all();
        self.wait(patience, |state| state.is_idle.then(|| state.link.clone()).flatten())
    }

    fn wait<T>(&self, patience: Duration, find: impl Fn(&State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            if let Some(found) = find(&state) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            (state, _) =
                self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps what lines up to `link` tell of the rules' counters.
    ///
    /// # Errors
    /// The disk fails; the note before stays.
    pub fn keep(&self, boot_id: &str, link: &ChainLink, rules: Vec<(RuleKey, u64)>) -> io::Result<()> {
        let Some(path) = &self.note else { return Ok(()) };
        let note = LogNote { boot_id: boot_id.to_owned(), seq: link.seq, hash: link.hash.clone(), rules };
        let unfinished = path.with_extension("tmp");
        // What a kill has left of an earlier one.
        let _ = std::fs::remove_file(&unfinished);
        let written = crate::writer::create(&unfinished, None)
            .and_then(|mut file| io::Write::write_all(&mut file, &serde_json::to_vec(&note)?));
        written
            .and_then(|()| std::fs::rename(&unfinished, path))
            .inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
    }

    /// How writing goes.
    pub fn standing(&self) -> LogStanding {
        let state = self.shared.state();
        LogStanding { link: state.link.clone(), lost_events: state.lost_events, waiting: state.bytes }
    }

    /// Writes what waits and the last line, and ends. What a disk does not take until then is lost.
    pub fn stop(&self, patience: Duration) -> Option<ChainLink> {
        self.shared.state().is_ending = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let end = Instant::now() + patience;
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
        self.shared.state().link.clone()
    }
}

fn note_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
    Some(path.with_file_name(format!("{name}.note.json")))
}

/// The note beside the files of a chain whose newest file this is, if there is one.
pub fn read_note(path: &Path) -> Option<LogNote> {
    let path = note_path(path)?;
    let length = std::fs::symlink_metadata(&path).ok().filter(|of| of.is_file())?.len();
    (length <= MOST_NOTE).then(|| serde_json::from_slice(&std::fs::read(path).ok()?).ok()).flatten()
}

/// About what it takes in memory and in a file.
fn event_size(event: &AuditEvent) -> usize {
    let policies = event.policy.as_ref().map_or(0, |policy| policy.selecting.iter().map(String::len).sum());
    1024 + policies
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lose(&mut self, event: &AuditEvent) {
        self.lost_events += 1;
        self.lost_lately += 1;
        let Some((rule, packets)) = event.accounted() else { return };
        let has_room = self.lost.len() < MOST_LOST_RULES || self.lost.contains_key(&rule);
        *self.lost.entry(if has_room { rule } else { RuleKey::default() }).or_default() += packets;
    }

    /// A line about what was lost was not written either.
    fn lose_again(&mut self, gap: &AuditEvent) {
        self.lost_lately += gap.lost_events;
        if let Some((rule, packets)) = gap.accounted() {
            *self.lost.entry(rule).or_default() += packets;
        }
    }

    /// Lines about what found no room.
    fn gaps(&mut self, node: &str) -> Vec<AuditEvent> {
        let mut events = std::mem::take(&mut self.lost_lately);
        if events == 0 {
            return Vec::new();
        }
        let mut lost = std::mem::take(&mut self.lost);
        if lost.is_empty() {
            lost.insert(RuleKey::default(), 0);
        }
        let gap = |(rule, packets): (RuleKey, u64)| {
            let lost_events = std::mem::take(&mut events);
            AuditEvent { lost_events, ..AuditEvent::gap(node, &rule, packets, "disk") }
        };
        lost.into_iter().map(gap).collect()
    }
}

#[cfg(test)]
mod tests;
