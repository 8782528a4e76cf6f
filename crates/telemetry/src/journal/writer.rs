//! The thread that writes the journal. Whoever logs hands a line over and goes on: a log that nobody reads, a disk that hangs or is full must not
//! stop what the lines are about. What does not fit meanwhile is lost, counted, and told in one line as soon as the log takes lines again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of lines that wait to be written: some thousand lines.
const MAX_WAITING: usize = 1 << 20;
/// The part of it that lines of other processes may take, so that a flood of them costs no line of our own.
const MAX_RELAYED: usize = MAX_WAITING / 2;
/// What an entry takes beside its text, in bytes: its place in the queue and what the allocator adds.
const ENTRY: usize = 64;
/// Pause before another try where the log's reader asked for writes that do not wait, and is behind.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How long a writer that is dropped waits for its lines.
const DROP_LIMIT: Duration = Duration::from_secs(1);

/// Makes the line that tells of so many lost ones.
pub(super) type TellLoss = Box<dyn Fn(u64) -> Vec<u8> + Send>;

/// Whose lines they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineOrigin {
    Own,
    Relayed,
}

/// Hands lines to the thread. Dropped, it waits for them a moment; the thread ends when everything is written.
pub(super) struct LineWriter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// Of what waits and of what is being written.
    bytes: usize,
    /// Lines that are being written now.
    is_writing: bool,
    /// Nothing is taken until half of the queue is written: a queue that stays full would tell of a loss with each line.
    is_full: bool,
    /// Lines lost since the log was last told.
    untold: u64,
    /// Lines lost in all.
    lost: u64,
    is_closed: bool,
}

struct Entry {
    text: Vec<u8>,
    lines: u64,
}

/// The thread's side.
struct Out<W> {
    inner: W,
    /// The last line is there in part only.
    is_torn: bool,
}

// === impl LineWriter ===

impl LineWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives none.
    pub(super) fn start(out: impl Write + Send + 'static, tell: TellLoss) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = shared.clone();
        let work = move || thread.work(&mut Out { inner: out, is_torn: false }, &tell);
        std::thread::Builder::new().name("log".into()).spawn(work)?;
        Ok(Self(shared))
    }

    /// Takes lines to be written together, or counts them as lost. Never waits for the log.
    pub(super) fn write(&self, text: Vec<u8>, lines: u64, origin: LineOrigin) {
        let max = match origin {
            LineOrigin::Own => MAX_WAITING,
            LineOrigin::Relayed => MAX_RELAYED,
        };
        let mut state = self.0.state();
        let size = text.capacity() + ENTRY;
        let fits = state.bytes + size <= max;
        if !fits && origin == LineOrigin::Own {
            state.is_full = true;
        }
        if !fits || state.is_full {
            return state.lose(lines);
        }
        state.bytes += size;
        state.waiting.push_back(Entry { text, lines });
        drop(state);
        self.0.changed.notify_all();
    }

    /// Lines that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.0.state().lost
    }

    /// Waits until everything is written, at most that long; whether it is.
    pub(super) fn finish(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.0.state();
        while state.is_writing || !state.waiting.is_empty() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for LineWriter {
    /// The process may be about to end, and its last lines say why.
    fn drop(&mut self) {
        self.finish(DROP_LIMIT);
        self.0.state().is_closed = true;
        self.0.changed.notify_all();
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, out: &mut Out<impl Write>, tell: &TellLoss) {
        let mut state = self.state();
        loop {
            let Some(entry) = state.waiting.pop_front() else {
                if state.is_closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.is_writing = true;
            drop(state);
            let written = out.write(&entry.text);
            state = self.state();
            state.bytes -= entry.text.capacity() + ENTRY;
            state.is_full &= state.bytes > MAX_WAITING / 2;
            match written {
                Err(_) => state.lose(entry.lines),
                Ok(()) if state.untold > 0 && !state.is_full => {
                    let untold = state.untold;
                    drop(state);
                    let told = out.write(&tell(untold));
                    state = self.state();
                    state.untold -= if told.is_ok() { untold } else { 0 };
                }
                Ok(()) => {}
            }
            state.is_writing = false;
            self.changed.notify_all();
        }
    }
}

// === impl State ===

impl State {
    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.untold += lines;
    }
}

// === impl Out ===

impl<W: Write> Out<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        // What comes after a disk was full must not go on in the middle of a line.
        if self.is_torn {
            self.write_all(b"\n")?;
        }
        self.write_all(text)?;
        self.inner.flush()
    }

    fn write_all(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            match self.inner.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    text = &text[written..];
                    self.is_torn = !text.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
