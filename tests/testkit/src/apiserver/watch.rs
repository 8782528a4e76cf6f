//! A watch: lines as things happen, until its time is over or a fault ends it.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::connection::{Stream, hang, head, reset};
use super::fault::WatchFault;
use super::objects::{Expired, bookmark, line};
use super::request::Watch;
use super::{Shared, State};

/// Changes that go into one write.
const BATCH: usize = 500;

/// Longest watch where the client names no time.
const SECONDS: u64 = 300;

/// Longest time until a client that has left is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// What is to be done next.
enum Step {
    Send(String),
    Expired,
    Fault(WatchFault),
    End,
}

pub(super) fn serve(stream: &mut Stream, watch: &Watch, shared: &Shared, epoch: u64) -> io::Result<()> {
    head(stream, 200, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")?;
    let mut cursor = Cursor::new(watch, &mut shared.state());
    let result = run(stream, &mut cursor, shared, epoch);
    shared.state().watches -= 1;
    result
}

fn run(stream: &mut Stream, cursor: &mut Cursor<'_>, shared: &Shared, epoch: u64) -> io::Result<()> {
    chunk(stream, &std::mem::take(&mut cursor.first))?;
    let mut pace = None;
    loop {
        match cursor.next(shared, epoch, &stream.sock) {
            Step::Send(lines) => match pace {
                Some(interval) => slowly(stream, &lines, interval, shared, epoch)?,
                None => chunk(stream, &lines)?,
            },
            Step::Fault(WatchFault::Slow(interval)) => pace = Some(interval),
            Step::End | Step::Fault(WatchFault::Close) => {
                stream.write_all(b"0\r\n\r\n")?;
                return stream.flush();
            }
            Step::Expired | Step::Fault(WatchFault::Error(410)) => return error(stream, 410),
            Step::Fault(WatchFault::Error(code)) => return error(stream, code),
            Step::Fault(WatchFault::Reset) => return reset(&stream.sock),
            Step::Fault(WatchFault::Hang) => return hang(&stream.sock, shared, epoch),
            Step::Fault(WatchFault::Line(line)) => chunk(stream, &format!("{line}\n"))?,
            Step::Fault(WatchFault::Cut) => {
                chunk(stream, "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Pod\",\"metadata\":{\"na")?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
}

fn error(stream: &mut Stream, code: u16) -> io::Result<()> {
    let status = format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"the double was told to","code":{code}}}"#
    );
    chunk(stream, &line("ERROR", &status))?;
    stream.write_all(b"0\r\n\r\n")?;
    stream.flush()
}

fn chunk(stream: &mut Stream, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    write!(stream, "{:x}\r\n{lines}\r\n", lines.len())?;
    stream.flush()
}

fn slowly(
    stream: &mut Stream,
    lines: &str,
    interval: Duration,
    shared: &Shared,
    epoch: u64,
) -> io::Result<()> {
    for (at, c) in lines.char_indices() {
        if shared.ended(epoch) {
            break;
        }
        std::thread::sleep(interval);
        chunk(stream, &lines[at..at + c.len_utf8()])?;
    }
    Ok(())
}

/// Where a watch is in what happened.
struct Cursor<'a> {
    watch: &'a Watch,
    first: String,
    version: u64,
    end: Instant,
    /// Faults and bookmarks that were ordered before are not for this watch.
    faults: usize,
    bookmarks: usize,
    last_line: Instant,
}

impl<'a> Cursor<'a> {
    fn new(watch: &'a Watch, state: &mut State) -> Self {
        state.watches += 1;
        let (resource, selector) = (watch.resource, &watch.selector);
        let now = Instant::now();
        let mut first = String::new();
        if watch.version.is_none() {
            first = state.objects.additions(resource, selector);
        }
        if watch.ends_initial_events {
            first += &bookmark(resource, state.objects.cached(), true);
        }
        Self {
            watch,
            first,
            version: watch.version.unwrap_or(state.objects.cached()),
            end: now + Duration::from_secs(watch.seconds.unwrap_or(SECONDS)),
            faults: state.watch_faults.len(),
            bookmarks: state.bookmarks,
            last_line: now,
        }
    }

    fn next(&mut self, shared: &Shared, epoch: u64, client: &TcpStream) -> Step {
        let mut state = shared.state();
        loop {
            if shared.ended(epoch) || Instant::now() >= self.end || has_left(client) {
                return Step::End;
            }
            if let Some(fault) = self.fault(&state) {
                return Step::Fault(fault);
            }
            match state.objects.lines(self.watch.resource, &self.watch.selector, self.version, BATCH) {
                Err(Expired) => return Step::Expired,
                Ok((lines, reached)) => {
                    self.version = reached;
                    if !lines.is_empty() {
                        self.last_line = Instant::now();
                        return Step::Send(lines);
                    }
                    if reached < state.objects.cached() {
                        continue;
                    }
                }
            }
            let due = state.bookmark_interval.map(|interval| self.last_line + interval);
            let ordered = std::mem::replace(&mut self.bookmarks, state.bookmarks) != state.bookmarks;
            if self.watch.bookmarks && (ordered || due.is_some_and(|due| due <= Instant::now())) {
                self.last_line = Instant::now();
                return Step::Send(bookmark(self.watch.resource, self.version, false));
            }
            let until = due.map_or(self.end, |due| due.min(self.end));
            let wait = until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), LOOK);
            state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next fault that was ordered for watches of this kind.
    fn fault(&mut self, state: &State) -> Option<WatchFault> {
        let ordered = state.watch_faults.get(self.faults..)?;
        let found = ordered.iter().position(|(resource, _)| *resource == self.watch.resource);
        self.faults += found.map_or(ordered.len(), |found| found + 1);
        found.map(|found| ordered[found].1.clone())
    }
}

/// Whether the client closes: it has nothing else to say while it watches.
fn has_left(client: &TcpStream) -> bool {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    let result = rustix::net::recv(client, &mut [0; 1][..], flags);
    !matches!(result, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))
}
