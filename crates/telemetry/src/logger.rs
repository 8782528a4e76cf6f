//! The logger that the layers above hand down by reference.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::Level;
use crate::file::{FILE_MAX_BYTES, RollingFile};
use crate::line::{Label, Stamp, write_json, write_labels};
use crate::socket::SocketTee;
use crate::stderr::{Patient, Standard, WrittenLine};

/// What a process waits in all for stderr and for the file. With the waits for the agent, which has its own, a call is 50 ms longer at most.
const PATIENCE: Duration = Duration::from_millis(8);
/// Bytes of lines kept until the sinks are attached, and of lines kept until the file is written.
const BUFFER_MAX_BYTES: usize = 64 * 1024;

/// Writes log lines to all sinks. Clones, and what [`Logger::with`] gives, share the sinks.
///
/// stderr gets each line at once. The file is written when a line of level error or fatal comes, when much is buffered,
/// and at the end; the node agent gets all lines in one request at the end. The end is [`Logger::finish`], or the drop
/// of the last clone; `std::process::exit` drops nothing, so call `finish` before it.
#[derive(Clone)]
pub struct Logger {
    shared: Arc<Mutex<Sinks>>,
    /// `,"key":"value"` for each label that every line of this logger carries.
    labels: Vec<u8>,
}

struct Sinks {
    level: Level,
    stderr: Box<dyn Patient>,
    /// What is left of the time for waiting.
    patience: Duration,
    /// Lines that stderr did not take in time.
    unwritten: usize,
    state: State,
    /// The line being made; kept for its memory.
    line: Vec<u8>,
}

enum State {
    /// The configuration is not known yet.
    Waiting {
        early: Vec<EarlyLine>,
        bytes: usize,
        dropped: usize,
    },
    Attached {
        file: Option<FileSink>,
        socket: Option<SocketTee>,
    },
}

struct EarlyLine {
    level: Level,
    on_stderr: bool,
    text: Vec<u8>,
}

struct FileSink {
    file: RollingFile,
    /// Complete lines not yet in the file.
    pending: Vec<u8>,
    failed: bool,
}

// === impl Logger ===

impl Default for Logger {
    fn default() -> Self {
        Self::new()
    }
}

impl Logger {
    /// A logger to stderr with level info, until [`Logger::attach`] is called.
    pub fn new() -> Self {
        Self::to(Box::new(Standard))
    }

    /// As [`Logger::new`], with another writer in the place of stderr. Each line is one call of `write_all`.
    pub fn to_writer(stderr: impl Write + Send + 'static) -> Self {
        Self::to(Box::new(WrittenLine(stderr)))
    }

    fn to(stderr: Box<dyn Patient>) -> Self {
        let state = State::Waiting { early: Vec::new(), bytes: 0, dropped: 0 };
        let (level, line) = (Level::Info, Vec::new());
        let sinks = Sinks { level, stderr, patience: PATIENCE, unwritten: 0, state, line };
        Self { shared: Arc::new(Mutex::new(sinks)), labels: Vec::new() }
    }

    /// A logger whose lines carry `labels` behind the ones of this logger.
    #[must_use]
    pub fn with(&self, labels: &[Label<'_>]) -> Self {
        let mut made = self.clone();
        write_labels(&mut made.labels, labels);
        made
    }

    /// Sets the level, opens the file and, if it is there now, the agent's socket in `run_dir`, and hands them the lines
    /// that came before. Called a second time, only the level changes.
    ///
    /// A `run_dir` that is not absolute gives no file and no socket: a plugin's working directory is not its own.
    pub fn attach(&self, run_dir: &Path, level: Level) {
        self.sinks().attach(run_dir, level, FILE_MAX_BYTES);
    }

    /// Writes buffered lines to the file.
    pub fn flush(&self) {
        self.sinks().flush();
    }

    /// Writes buffered lines to the file and sends the agent its request, whose answer is waited for a moment. Later lines go to stderr and to the
    /// file.
    pub fn finish(&self) {
        self.sinks().finish();
    }

    /// Whether a line of this level goes anywhere; lets a caller skip preparing an expensive one.
    pub fn enabled(&self, level: Level) -> bool {
        let sinks = self.sinks();
        matches!(sinks.state, State::Waiting { .. }) || sinks.level.passes(level)
    }

    /// A line of level debug.
    pub fn debug(&self, msg: &str, labels: &[Label<'_>]) {
        self.log(Level::Debug, msg, labels);
    }

    /// A line of level info.
    pub fn info(&self, msg: &str, labels: &[Label<'_>]) {
        self.log(Level::Info, msg, labels);
    }

    /// A line of level warn.
    pub fn warn(&self, msg: &str, labels: &[Label<'_>]) {
        self.log(Level::Warn, msg, labels);
    }

    /// A line of level error; the file is written at once.
    pub fn error(&self, msg: &str, labels: &[Label<'_>]) {
        self.log(Level::Error, msg, labels);
    }

    /// A line of level fatal; the file is written at once. The process goes on: ending it is the caller's part.
    pub fn fatal(&self, msg: &str, labels: &[Label<'_>]) {
        self.log(Level::Fatal, msg, labels);
    }

    /// A line of a level known only at run time. [`Level::None`] writes nothing.
    pub fn log(&self, level: Level, msg: &str, labels: &[Label<'_>]) {
        self.sinks().log(level, msg, &self.labels, labels);
    }

    /// A thread that panicked while it logged leaves at worst a line out; the others go on.
    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Sinks ===

impl Sinks {
    fn log(&mut self, level: Level, msg: &str, rendered: &[u8], labels: &[Label<'_>]) {
        let waiting = matches!(self.state, State::Waiting { .. });
        let passes = self.level.passes(level);
        // Before the configuration is known, a debug line may yet be wanted.
        if !(passes || waiting && level != Level::None) {
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        write_json(&mut line, level, Stamp::At(SystemTime::now()), None, msg, rendered, labels);
        if passes {
            self.say(&line);
        }
        self.state.keep(level, passes, &line);
        self.line = line;
        let much = matches!(&self.state, State::Attached { file: Some(sink), .. }
            if sink.pending.len() > BUFFER_MAX_BYTES);
        if much || level >= Level::Error {
            self.flush();
        }
    }

    /// Nobody is left to be told when stderr is closed.
    fn say(&mut self, line: &[u8]) {
        if !self.stderr.write_line(line, &mut self.patience) {
            self.unwritten += 1;
        }
    }

    fn attach(&mut self, run_dir: &Path, level: Level, max_bytes: u64) {
        self.level = level;
        if matches!(self.state, State::Attached { .. }) {
            return;
        }
        let sinks = if run_dir.is_absolute() {
            let file = RollingFile::new(run_dir, max_bytes);
            let file = FileSink { file, pending: Vec::new(), failed: false };
            State::Attached { file: Some(file), socket: SocketTee::open(run_dir) }
        } else {
            State::Attached { file: None, socket: None }
        };
        let State::Waiting { early, dropped, .. } = std::mem::replace(&mut self.state, sinks) else { return };
        for line in early {
            if !level.passes(line.level) {
                continue;
            }
            if !line.on_stderr {
                self.say(&line.text);
            }
            self.state.keep(line.level, true, &line.text);
        }
        if dropped > 0 {
            let msg =
                "too many log lines came before the configuration was known; the rest is on stderr only";
            self.log(Level::Warn, msg, b"", &[("lines", &dropped)]);
        }
    }

    fn flush(&mut self) {
        let State::Attached { file: Some(sink), .. } = &mut self.state else { return };
        if sink.pending.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut sink.pending);
        let Err(err) = sink.file.append(&lines, SystemTime::now(), &mut self.patience) else { return };
        if std::mem::replace(&mut sink.failed, true) {
            return;
        }
        let path = sink.file.path();
        // Only to stderr and the agent; to the file is what has just failed.
        self.log(
            Level::Warn,
            "cannot write the log file, going on",
            b"",
            &[("path", &path.display()), ("error", &err)],
        );
        if let State::Attached { file: Some(sink), .. } = &mut self.state {
            sink.pending.clear();
        }
    }

    fn finish(&mut self) {
        let unwritten = self.unwritten;
        if unwritten > 0 {
            let msg = "log lines are missing on standard error: it accepted no more";
            self.log(Level::Warn, msg, b"", &[("lines", &unwritten)]);
            self.unwritten = 0;
        }
        self.flush();
        let State::Attached { socket, .. } = &mut self.state else { return };
        let Some(tee) = socket.take() else { return };
        if tee.dropped() > 0 {
            self.log(
                Level::Warn,
                "log lines were not sent to the node agent: too many",
                b"",
                &[("lines", &tee.dropped())],
            );
            self.flush();
        }
        if let Err(err) = tee.send() {
            self.log(Level::Debug, "cannot send log lines to the node agent", b"", &[("error", &err)]);
            self.flush();
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.finish();
    }
}

// === impl State ===

impl State {
    /// Hands an accepted line to the sinks besides stderr, or keeps it for them.
    fn keep(&mut self, level: Level, on_stderr: bool, line: &[u8]) {
        match self {
            Self::Waiting { early, bytes, dropped } => {
                if *bytes + line.len() > BUFFER_MAX_BYTES {
                    *dropped += 1;
                } else {
                    *bytes += line.len();
                    early.push(EarlyLine { level, on_stderr, text: line.to_vec() });
                }
            }
            Self::Attached { file, socket } => {
                if let Some(sink) = file {
                    sink.pending.extend_from_slice(line);
                }
                if let Some(tee) = socket {
                    tee.push(line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
