//! Faults on demand, and whom they meet.

use std::time::Duration;

/// What the server does instead of answering properly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Accepts the connection and never says a byte, not even for TLS.
    HangBeforeTls,
    /// Reads the request and never answers.
    Hang,
    /// Closes with a RST as soon as the connection stands.
    ResetBeforeTls,
    /// Reads the request and closes with a RST.
    Reset,
    /// Reads the request and closes in good order, without an answer.
    Close,
    /// Speaks plain HTTP on the TLS port.
    PlainHttp,
    /// 200 with a web page.
    Html,
    /// 200 with bytes that are no HTTP.
    Garbage,
    /// 200 with this body instead of the pod.
    Body(String),
    /// Half of the body that its length announces.
    Truncated,
    /// Half of the body in chunks, without the last chunk.
    TruncatedChunks,
    /// One byte of the body in every such interval.
    Slow(Duration),
    /// A body of that many bytes, which are spaces before the object.
    Oversized(usize),
    /// The same, without a length: chunked.
    OversizedChunks(usize),
    /// A `Status` object with this HTTP status.
    Status {
        /// HTTP status code.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// A web page with this HTTP status, as load balancers send it.
    HtmlStatus(u16),
    /// A redirect to this location.
    Redirect(String),
    /// No fault, but the answer comes in chunks of that many bytes.
    Chunked(usize),
}

impl Fault {
    /// A `Status` object without `Retry-After`.
    pub fn status(code: u16) -> Self {
        Fault::Status { code, retry_after: None }
    }
}

/// What happens to a watch that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchFault {
    /// Ends in good order, as when its time is over.
    Close,
    /// Closed with a RST.
    Reset,
    /// Closed in the middle of an event.
    Cut,
    /// Says nothing any more, and the connection stays.
    Hang,
    /// From now on one byte in every such interval.
    Slow(Duration),
    /// This line instead of an event; the watch goes on.
    Line(String),
    /// An `ERROR` event with this code, such as 410; then it ends.
    Error(u16),
}

/// Which faults are to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    always: Option<Fault>,
    next: Option<(usize, Fault)>,
    /// For requests whose path and query contain the text.
    paths: Vec<(String, usize, Fault)>,
}

impl Faults {
    pub(super) fn set(&mut self, fault: Option<Fault>) {
        self.always = fault;
    }

    pub(super) fn set_next(&mut self, count: usize, fault: Fault) {
        self.next = (count > 0).then_some((count, fault));
    }

    pub(super) fn set_path(&mut self, part: &str, count: usize, fault: Fault) {
        self.paths.retain(|(known, ..)| known != part);
        if count > 0 {
            self.paths.push((part.into(), count, fault));
        }
    }

    /// The fault for a connection, or for a further request on one; a counted one is used up by it.
    pub(super) fn take(&mut self) -> Option<Fault> {
        match self.next.take() {
            Some((count, fault)) => {
                self.set_next(count - 1, fault.clone());
                Some(fault)
            }
            None => self.always.clone(),
        }
    }

    /// The fault for a request by its path.
    pub(super) fn take_for(&mut self, path: &str) -> Option<Fault> {
        let (part, count, fault) = self.paths.iter().find(|(part, ..)| path.contains(part.as_str()))?.clone();
        self.set_path(&part, count - 1, fault.clone());
        Some(fault)
    }
}
