//! The node agent's log socket: all lines of one process, sent once, at its end.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http1::Deadline;

use crate::line::push_json;

/// Longest time that sending may take, connecting and the answer included. An agent that is busy has the lines in its socket by then.
const SEND_TIMEOUT: Duration = Duration::from_millis(18);

/// Largest body that the agent reads, in bytes. A process writes some kilobytes; what is over this is counted, not kept. It goes into a socket's
/// buffer (212,992 bytes, `net.core.wmem_default`) as a whole, so that a process can leave it there for an agent that is busy.
pub const MAX_POST: usize = 128 << 10;

/// Bytes of the answer that are read; it is empty from every known agent.
const ANSWER_MAX_BYTES: usize = 4 << 10;

/// The lines collected for the agent.
pub(crate) struct SocketTee {
    path: PathBuf,
    /// The strings of the JSON array, with commas between and without brackets.
    body: Vec<u8>,
    dropped: usize,
}

// === impl SocketTee ===

impl SocketTee {
    /// Collects for the socket in `run_dir`, or nothing when no socket is there now.
    pub(crate) fn open(run_dir: &Path) -> Option<Self> {
        let path = run_dir.join(rundir::LOG_SOCKET_NAME);
        let is_socket = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        is_socket.then_some(Self { path, body: Vec::new(), dropped: 0 })
    }

    /// Adds a complete line, its newline included. Lines that no longer fit are dropped and counted.
    pub(crate) fn push(&mut self, line: &[u8]) {
        // Lines come from `write_json`, which writes only UTF-8.
        let Ok(text) = std::str::from_utf8(line) else { return };
        let before = self.body.len();
        if before > 0 {
            self.body.push(b',');
        }
        push_json(&mut self.body, text);
        // Two brackets come around it.
        if self.body.len() + 2 > MAX_POST {
            self.body.truncate(before);
            self.dropped += 1;
        }
    }

    /// Lines that did not fit.
    pub(crate) const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Sends everything in one request and waits for the answer, within [`SEND_TIMEOUT`]: an agent of the original may stop reading when its client
    /// is gone.
    pub(crate) fn send(self) -> io::Result<()> {
        let deadline = Deadline::within(SEND_TIMEOUT);
        let body = [b"[", self.body.as_slice(), b"]"].concat();
        let headers = [("Content-Type", "application/json")];
        let request = http1::request("POST", "unix", rundir::LOG_PATH, &headers, Some(&body));
        let mut connection = http1::unix::connect(&self.path, deadline)?;
        // What it answers is its own affair.
        http1::exchange(&mut connection, &request, None, ANSWER_MAX_BYTES, deadline)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
