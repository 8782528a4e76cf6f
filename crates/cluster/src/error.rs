//! What goes wrong between the agent and the API server.

use std::time::Duration;

/// A question to the API server, or a request of it, that failed.
///
/// The text is complete in itself; there is no `source()` to append. None holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The files that say where the server is and who we are cannot be used.
    #[error("{operation}: {reason}; check the service account's files or the kubeconfig")]
    Setup {
        /// What was attempted.
        operation: String,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// No connection, or it broke.
    #[error("{operation}: {reason}; check that the API server runs and can be reached from this node")]
    Unreachable {
        /// What was attempted.
        operation: String,
        /// The words of the layers below.
        reason: String,
    },
    /// The server was too slow.
    #[error("{operation}: no answer within {:.1} s; the API server or the way to it is overloaded", .after.as_secs_f64())]
    TimedOut {
        /// What was attempted.
        operation: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server refused.
    #[error("{operation}: {code} {message}; {}", advice(*.code))]
    Status {
        /// What was attempted.
        operation: String,
        /// HTTP status code.
        code: u16,
        /// The server's words.
        message: String,
        /// How long it asks to be left alone (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// The answer, or a line of a watch, is larger than allowed.
    #[error("{operation}: the answer is larger than {limit} bytes; an API server sends no such object")]
    TooLarge {
        /// What was attempted.
        operation: String,
        /// In bytes.
        limit: usize,
    },
    /// The answer is not what an API server says.
    #[error(
        "{operation}: the answer is not understood: {reason}; something between here and the API server may have changed it"
    )]
    NotUnderstood {
        /// What was attempted.
        operation: String,
        /// The parser's words, and no content.
        reason: String,
    },
    /// The server ended a watch as soon as it had begun.
    #[error(
        "{operation}: the server closed the watch at once; it, or something in between, may be overloaded"
    )]
    ClosedEarly {
        /// What was attempted.
        operation: String,
    },
}

impl Error {
    /// The HTTP status, if the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// How long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether what the watch would go on from is no longer kept by the server (410 Gone).
    pub(crate) fn is_expired(&self) -> bool {
        self.status() == Some(410)
    }
}

fn advice(code: u16) -> &'static str {
    match code {
        401 => "the token or certificate is not valid (any more); it is read again before each request",
        403 => "the service account lacks a role that allows this",
        404 => "the object does not exist",
        409 => "the object has changed or was replaced",
        410 => "what is known is too old to go on from; everything is listed anew",
        429 | 503 => "the API server is overloaded or starting",
        500.. => "look into the API server's log",
        _ => "look at the request in the API server's audit log",
    }
}

/// The words of an error and of what caused it. Many libraries repeat the cause in their own words, which is left out here.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// What is wrong and where, without quoting content: the parser's own words may.
pub(crate) fn place(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let kind = match error.classify() {
        Category::Data => "has a member of another type than expected",
        Category::Eof => "ends early",
        Category::Syntax | Category::Io => "is not JSON",
    };
    format!("{kind} (line {}, column {})", error.line(), error.column())
}
