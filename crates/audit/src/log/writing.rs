//! What the thread does: opens the files, writes what waits, brings it to the disk, and says where an agent before ended.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{BATCH, Before, GATHER, LogConfig, LogNote, SYNC, Shared, State, event_size, read_note};
use crate::chain::{ChainLink, SealedLine};
use crate::event::{AUDIT_START, AUDIT_STOP, AuditEvent, EVENT_SCHEMA, RuleKey};
use crate::files::{FileSet, lines};
use crate::writer::{ChainStart, ChainWriter};

/// What the thread has.
pub(super) struct Writing {
    pub(super) config: LogConfig,
    pub(super) set: Option<FileSet>,
    pub(super) writer: Option<ChainWriter>,
    /// Where lines go to standard output only.
    pub(super) link: ChainLink,
    pub(super) shared: Arc<Shared>,
    pub(super) failed: bool,
    pub(super) synced: Instant,
    /// When files were last looked at whether they are too old.
    pub(super) aged: Instant,
    /// What is not written yet of the beginning: found once, whatever becomes of the first line.
    pub(super) beginning: Option<(AuditEvent, Before)>,
}

/// How often it is looked whether files are too old where nothing is written.
const AGE: Duration = Duration::from_secs(3600);

// === impl Writing ===

impl Writing {
    pub(super) fn live(mut self) {
        loop {
            let work = self.turn();
            let is_ending = self.shared.state().is_ending;
            match work {
                Ok(has_more) => {
                    if std::mem::take(&mut self.failed) {
                        (self.config.tell)(None);
                    }
                    if has_more {
                        continue;
                    }
                    if is_ending {
                        let stop = AuditEvent::plain(AUDIT_STOP, &self.config.node);
                        let _ = self.write(&[stop]).and_then(|()| self.sync());
                        return;
                    }
                    self.wait();
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failed, true) {
                        (self.config.tell)(Some(&error.to_string()));
                    }
                    if is_ending {
                        return;
                    }
                    std::thread::sleep(SYNC);
                }
            }
        }
    }

    /// For events, or until it is time to sync.
    fn wait(&self) {
        let mut state = self.shared.state();
        state.is_idle = state.queue.is_empty() && !state.wants_sync;
        self.shared.changed.notify_all();
        let is_awaited = |state: &mut State| state.queue.is_empty() && !state.is_ending && !state.wants_sync;
        let waited = self.shared.changed.wait_timeout_while(state, SYNC, is_awaited);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_urgent = state.is_ending || state.wants_sync || state.queue.len() >= BATCH;
        drop(state);
        if !is_urgent {
            std::thread::sleep(GATHER);
        }
    }

    /// Writes what waits; whether there may be more.
    fn turn(&mut self) -> io::Result<bool> {
        self.open()?;
        let gaps = self.shared.state().gaps(&self.config.node);
        if !gaps.is_empty() {
            let written = self.write(&gaps);
            if let Err(error) = written {
                let mut state = self.shared.state();
                gaps.iter().for_each(|gap| state.lose_again(gap));
                return Err(error);
            }
        }
        let events: Vec<AuditEvent> = {
            let mut state = self.shared.state();
            let count = state.queue.len().min(BATCH);
            state.queue.drain(..count).collect()
        };
        if events.is_empty() {
            let is_wanted = std::mem::take(&mut self.shared.state().wants_sync);
            if is_wanted || self.synced.elapsed() >= SYNC {
                self.sync()?;
                self.synced = Instant::now();
            }
            if self.aged.elapsed() >= AGE {
                self.aged = Instant::now();
                self.writer.as_mut().map_or(Ok(()), |writer| writer.age(SystemTime::now()))?;
            }
            return Ok(false);
        }
        let written = self.write(&events);
        let mut state = self.shared.state();
        match written {
            Ok(()) => state.bytes -= events.iter().map(event_size).sum::<usize>(),
            // One of them is none that a file takes.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                drop(state);
                return self.write_alone(events);
            }
            Err(error) => {
                events.into_iter().rev().for_each(|event| state.queue.push_front(event));
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Writes one after the other; what no file takes is told as lost. What finds no room now is put back.
    fn write_alone(&mut self, events: Vec<AuditEvent>) -> io::Result<bool> {
        let mut events: VecDeque<AuditEvent> = events.into();
        while let Some(event) = events.pop_front() {
            let written = self.write(std::slice::from_ref(&event));
            let mut state = self.shared.state();
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => state.lose(&event),
                Err(error) => {
                    events.push_front(event);
                    events.into_iter().rev().for_each(|event| state.queue.push_front(event));
                    return Err(error);
                }
            }
            state.bytes -= event_size(&event);
        }
        Ok(true)
    }

    fn write(&mut self, events: &[AuditEvent]) -> io::Result<()> {
        let bodies: Vec<String> = events.iter().map(AuditEvent::body).collect();
        if let Some(writer) = &mut self.writer {
            writer.append(SystemTime::now(), &bodies.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        if self.config.to_stdout {
            for line in bodies.iter().filter_map(|body| self.link.seal(body, EVENT_SCHEMA)) {
                use io::Write as _;
                // Who reads the agent's output may have gone; the file has it.
                let _ = writeln!(io::stdout(), "{line}");
            }
        }
        let link = self.writer.as_ref().map_or(&self.link, ChainWriter::link).clone();
        self.shared.state().link = Some(link);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), ChainWriter::sync)
    }

    /// Goes on where an agent before ended, and says so.
    fn open(&mut self) -> io::Result<()> {
        if self.shared.state().before.is_some() {
            return Ok(());
        }
        let (start, before) = match self.beginning.take() {
            Some(beginning) => beginning,
            None => self.find_beginning()?,
        };
        if let Err(error) = self.write(std::slice::from_ref(&start)) {
            self.beginning = Some((start, before));
            return Err(error);
        }
        self.shared.state().before = Some(before);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// The first line, and what lines of earlier agents tell.
    fn find_beginning(&mut self) -> io::Result<(AuditEvent, Before)> {
        let mut start = AuditEvent {
            version: self.config.version.clone(),
            boot_id: self.config.boot_id.clone(),
            options: self.config.options.clone(),
            after: "new".to_owned(),
            ..AuditEvent::plain(AUDIT_START, &self.config.node)
        };
        let mut before = Before::default();
        if let Some(set) = &self.set {
            let limits = self.config.limits.clone();
            let (writer, found) = ChainWriter::open(set.clone(), EVENT_SCHEMA, limits, SystemTime::now())?;
            let note = self.config.path.as_deref().and_then(read_note);
            let (last, rules) = read_since(set, note.as_ref().map_or(0, |note| note.seq))?;
            start.last_seq = writer.link().seq;
            start.after = after(found, note.as_ref(), start.last_seq, &last).to_owned();
            before.is_known = note.is_some();
            if let Some(note) = note.filter(|note| note.boot_id == self.config.boot_id) {
                before.rules = note.rules.into_iter().collect();
                for (rule, packets) in rules {
                    *before.rules.entry(rule).or_default() += packets;
                }
            }
            self.writer = Some(writer);
        }
        Ok((start, before))
    }
}

fn after(found: ChainStart, note: Option<&LogNote>, last_seq: u64, last: &str) -> &'static str {
    match found {
        _ if note.is_some_and(|note| note.seq > last_seq) => "truncated",
        ChainStart::New => "new",
        ChainStart::Torn => "torn",
        ChainStart::Broken => "broken",
        ChainStart::Continued if last == AUDIT_STOP => "stop",
        ChainStart::Continued => "unclean",
    }
}

/// What lines behind number `seq` tell of rules, and the type of the last line.
fn read_since(set: &FileSet, seq: u64) -> io::Result<(String, BTreeMap<RuleKey, u64>)> {
    let mut newer = Vec::new();
    for path in set.list()?.into_iter().rev() {
        let first = lines(&path)?.next().and_then(Result::ok);
        newer.push(path);
        let number = first.and_then(|line| SealedLine::check(&line.text).ok()).map(|line| line.link.seq);
        if number.is_some_and(|number| number <= seq + 1) {
            break;
        }
    }
    let (mut last, mut rules) = (String::new(), BTreeMap::new());
    for path in newer.iter().rev() {
        for line in lines(path)?.map_while(Result::ok) {
            let Some(event) = AuditEvent::read(&line.text) else { continue };
            if let Some((rule, packets)) = event.accounted().filter(|_| event.seq > seq) {
                *rules.entry(rule).or_default() += packets;
            }
            last = event.kind;
        }
    }
    Ok((last, rules))
}
