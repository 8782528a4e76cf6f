//! Why an exchange failed.

use std::io;
use std::time::Duration;

use crate::Deadline;

/// An exchange without an answer. Whom it was with, and what to do, the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side was too slow.
    #[error("timed out after {:.1} s while {stage}", after.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        stage: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection was closed before the answer began.
    #[error("connection lost while {stage}: closed by the other side")]
    Closed {
        /// What was going on.
        stage: &'static str,
    },
    /// The connection failed; the error may be of what lies around it, such as TLS.
    #[error("connection lost while {stage}: {error}")]
    Failed {
        /// What was going on.
        stage: &'static str,
        /// The system's, or the layer's.
        error: io::Error,
    },
    /// The connection ended in the middle of the answer.
    #[error("the answer is truncated: {0}")]
    Truncated(String),
    /// The answer is larger than the caller wants to read.
    #[error("the answer is too large")]
    TooLarge,
    /// What answers does not speak HTTP/1.1.
    #[error("the answer is not understandable HTTP: {0}")]
    NotHttp(String),
}

impl Error {
    /// What an I/O error means.
    pub fn of(error: io::Error, stage: &'static str, deadline: Deadline) -> Self {
        use io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
        match error.kind() {
            TimedOut | WouldBlock => deadline.timed_out(stage),
            UnexpectedEof => Self::Closed { stage },
            _ => Self::Failed { stage, error },
        }
    }

    /// The same within a body: a lost connection means a truncated answer, everything else means what it means anywhere.
    pub(crate) fn within_body(error: io::Error, received: usize, deadline: Deadline) -> Self {
        match Self::of(error, "reading the answer", deadline) {
            Self::Closed { .. } => {
                Self::Truncated(format!("after {received} bytes: closed by the other side"))
            }
            // An error with an inner one is not the system's.
            Self::Failed { error, .. } if error.get_ref().is_none() => {
                Self::Truncated(format!("after {received} bytes: {error}"))
            }
            other => other,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Failed { error, .. } => error,
            Error::TimedOut { .. } => Self::new(io::ErrorKind::TimedOut, error),
            other => Self::other(other),
        }
    }
}
