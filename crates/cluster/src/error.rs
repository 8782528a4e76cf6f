//! What goes wrong between the agent and the API server.

use std::borrow::Cow;
use std::time::Duration;

use fault::{Fault, Retry};

/// What a refusal of an API server speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The object that the `details` of its `Status` name, by plural and name, such as `pods/web`.
    Object(String),
    /// What was asked for: a `Status` without `details`, as servers of few kinds send it.
    Request,
    /// Something else: `details` that name nothing, as of a kind that the server does not know, or a page of a proxy.
    Other,
}

/// A question to the API server, or a request of it, that failed. The text is complete in itself; there is no `source()` to append. None holds
/// a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}; {}", self.operation(), self.root_cause(), self.advised())]
#[non_exhaustive]
pub enum Error {
    /// The files that say where the server is and who we are cannot be used.
    Setup {
        /// What was attempted.
        operation: String,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// The server's certificate is not trusted, or no common TLS was found.
    Tls {
        /// What was attempted.
        operation: String,
        /// What is wrong with the certificate or the handshake.
        reason: String,
    },
    /// No connection, or it broke.
    Unreachable {
        /// What was attempted.
        operation: String,
        /// The words of the layers below.
        reason: String,
    },
    /// The system gave a connection up, because nothing that was sent on it was acknowledged.
    Lost {
        /// What was attempted.
        operation: String,
    },
    /// A watch brought nothing for longer than an API server is silent.
    Silent {
        /// What was attempted.
        operation: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server was too slow.
    TimedOut {
        /// What was attempted.
        operation: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server refused.
    Status {
        /// What was attempted.
        operation: String,
        /// HTTP status code.
        code: u16,
        /// The server's words.
        message: String,
        /// What it speaks of.
        about: About,
        /// How long it asks to be left alone (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// A list is older than what a watch has told already.
    Behind {
        /// What was attempted.
        operation: String,
        /// How long it asks to be left alone (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// The answer, or a line of a watch, is larger than allowed.
    TooLarge {
        /// What was attempted.
        operation: String,
        /// In bytes.
        limit: usize,
    },
    /// A list has more objects, or more bytes, than any that this agent asks for.
    Endless {
        /// What was attempted.
        operation: String,
        /// Such as `100000 objects`.
        limit: String,
    },
    /// The answer is not what an API server says.
    NotUnderstood {
        /// What was attempted.
        operation: String,
        /// The parser's words, and no content.
        reason: String,
    },
    /// The server ended a watch as soon as it had begun.
    ClosedEarly {
        /// What was attempted.
        operation: String,
    },
}

impl Fault for Error {
    /// What it is asked with is read anew for each try.
    fn retry(&self) -> Retry {
        Retry::Backoff
    }

    fn operation(&self) -> &str {
        match self {
            Self::Setup { operation, .. }
            | Self::Tls { operation, .. }
            | Self::Unreachable { operation, .. }
            | Self::Lost { operation }
            | Self::Silent { operation, .. }
            | Self::TimedOut { operation, .. }
            | Self::Status { operation, .. }
            | Self::Behind { operation, .. }
            | Self::TooLarge { operation, .. }
            | Self::Endless { operation, .. }
            | Self::NotUnderstood { operation, .. }
            | Self::ClosedEarly { operation } => operation,
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Setup { reason, .. } | Self::Tls { reason, .. } | Self::Unreachable { reason, .. } => {
                reason.clone()
            }
            Self::Lost { .. } => "the connection is dead, nothing on it is acknowledged".to_owned(),
            Self::Silent { after, .. } => {
                format!("no event came for {:.0} s, not even a bookmark", after.as_secs_f64())
            }
            Self::TimedOut { after, .. } => format!("no answer within {:.1} s", after.as_secs_f64()),
            Self::Status { code, message, .. } => format!("{code} {message}"),
            Self::Behind { .. } => "the API server's cache is behind that of another API server".to_owned(),
            Self::TooLarge { limit, .. } => format!("the answer is larger than {limit} bytes"),
            Self::Endless { limit, .. } => {
                format!("the list has more than {limit}, so it is not used and what was known before stays")
            }
            Self::NotUnderstood { reason, .. } => format!("the answer is not understood: {reason}"),
            Self::ClosedEarly { .. } => "the server closed the watch at once".to_owned(),
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(self.advised().into())
    }
}

impl Error {
    /// A connection that could not be made, or that ended before its time.
    pub(crate) fn broken(operation: &str, cause: &(dyn std::error::Error + 'static)) -> Self {
        let operation = operation.to_owned();
        if is_timeout(cause) {
            return Self::Lost { operation };
        }
        if let Some(error) = tls_failure(cause) {
            let whose =
                if apitls::is_untrusted(error) { "the server's certificate is not trusted: " } else { "" };
            return Self::Tls { operation, reason: format!("{whose}{}", apitls::reason(error)) };
        }
        Self::Unreachable { operation, reason: fault::chain(cause) }
    }

    fn advised(&self) -> &'static str {
        match self {
            Self::Setup { .. } => "check the service account's files or the kubeconfig",
            Self::Tls { .. } => {
                "compare the server's certificate with the list of authorities (ca.crt of the service account, or the kubeconfig)"
            }
            Self::Unreachable { .. } => "check that the API server runs and can be reached from this node",
            Self::Lost { .. } => {
                "a firewall, a load balancer or a node on the way to the API server drops packets"
            }
            Self::Silent { .. } => {
                "a new connection is made, since something on the way may hold this one open"
            }
            Self::TimedOut { .. } => "the API server or the way to it is overloaded or drops packets",
            Self::Status { code, .. } => status_advice(*code),
            Self::Behind { .. } => "it is asked again",
            Self::TooLarge { .. } => "an API server sends no such object",
            Self::Endless { .. } => "look at what answers for the API server",
            Self::NotUnderstood { .. } => "something between here and the API server may have changed it",
            Self::ClosedEarly { .. } => "it, or something in between, may be overloaded",
        }
    }

    /// The kind of failure in one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Setup { .. } => "setup",
            Self::Tls { .. } => "tls",
            Self::Unreachable { .. } => "unreachable",
            Self::Lost { .. } | Self::Silent { .. } => "lost",
            Self::TimedOut { .. } => "timeout",
            Self::Status { code: 401, .. } => "unauthorized",
            Self::Status { code: 403, .. } => "forbidden",
            Self::Status { code: 429 | 503, .. } => "overloaded",
            Self::Status { .. } => "status",
            Self::Behind { .. } => "behind",
            Self::TooLarge { .. }
            | Self::Endless { .. }
            | Self::NotUnderstood { .. }
            | Self::ClosedEarly { .. } => "malformed",
        }
    }

    /// Whether a server read the request and answered to it, though it refused. One that is overloaded, starting or does not know us
    /// does not count.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Status { code, .. } => !matches!(code, 401 | 429 | 500..),
            Self::Behind { .. } => true,
            _ => false,
        }
    }

    /// The HTTP status, if the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether an API server says that this object does not exist. It does so only to those whom it lets look; the 404 of a proxy, or of a
    /// server without the kind, is another answer.
    pub(crate) fn says_absent(&self, plural: &str, name: &str) -> bool {
        let named = |object: &str| object.split_once('/') == Some((plural, name));
        matches!(self, Self::Status { code: 404, about: About::Object(object), .. } if named(object))
    }

    /// The same, or the server says no more than that what it was asked for is not there.
    pub(crate) fn says_absent_or_no_more(&self, plural: &str, name: &str) -> bool {
        self.says_absent(plural, name)
            || matches!(self, Self::Status { code: 404, about: About::Request, .. })
    }

    /// How long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::Behind { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether what the watch would go on from is no longer kept by the server (410 Gone).
    pub(crate) fn is_expired(&self) -> bool {
        self.status() == Some(410)
    }
}

fn status_advice(code: u16) -> &'static str {
    match code {
        401 => "the token or certificate is not valid (any more); it is read again before each request",
        403 => "the service account lacks a role that allows this",
        404 => "the object does not exist",
        409 => "the object has changed or was replaced",
        410 => "the known version is too old to continue from; everything is listed anew",
        429 | 503 => "the API server is overloaded or starting",
        500.. => "look into the API server's log",
        _ => "look at the request in the API server's audit log",
    }
}

/// What TLS says somewhere below. An I/O error hides what it was made of from `source()`.
fn tls_failure<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        let inside = inner.and_then(|inner| inner.downcast_ref());
        if let Some(found) = cause.downcast_ref().or(inside) {
            return Some(found);
        }
        next = inner.map(|inner| inner as &dyn std::error::Error).or_else(|| cause.source());
    }
    None
}

/// Whether the system's timer for a connection ran out somewhere below.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.raw_os_error() == Some(rustix::io::Errno::TIMEDOUT.raw_os_error())) {
            return true;
        }
        next = cause.source();
    }
    false
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
