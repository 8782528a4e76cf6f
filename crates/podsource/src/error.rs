//! One error type for all sources: what was asked, where, why it failed, what to do.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use fault::{Fault, Retry};

/// A question to a source that was not answered.
///
/// The text is complete in itself: operation, object, place, cause and advice. There is no `source()` to append.
#[derive(Debug, thiserror::Error)]
#[error("{operation} from {origin}: {cause}{}; {}", self.effort(), cause.advice())]
pub struct Error {
    /// What was attempted, such as `get pod shop/web-0`.
    pub operation: String,
    /// Which source, with the place of its configuration.
    pub origin: String,
    /// Why it failed.
    pub cause: Box<Cause>,
    /// How often it was tried; 1 as long as more tries follow.
    pub tries: u32,
    /// How long all tries took.
    pub elapsed: Duration,
}

/// Why a source did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The pod's name or namespace could not be one, so nothing was asked.
    #[error("{0:?} is not a Kubernetes name")]
    InvalidName(String),
    /// The object that was found is another incarnation of the pod.
    #[error("stale object: the runtime starts the pod with uid {wanted}, the object has uid {found}")]
    Stale {
        /// What the runtime said.
        wanted: String,
        /// What the source has.
        found: String,
    },
    /// The runtime did not say which incarnation it starts, and what was kept of a pod of this name may be of another one.
    #[error(
        "it has a pod of this name, with uid {found}, and the runtime passes no K8S_POD_UID to compare it with"
    )]
    UnknownIncarnation {
        /// What the source has.
        found: String,
    },
    /// No node agent listens, or it does not answer.
    #[error("no agent answers: {0}")]
    NoAgent(std::io::Error),
    /// The node agent does not know the pod, or not this incarnation.
    #[error("it does not know the pod{}", colon(.0))]
    Unaware(String),
    /// Somebody else listens on the agent's socket.
    #[error("user {uid} listens there and is not trusted with facts")]
    ForeignAgent {
        /// Who.
        uid: u32,
    },
    /// The pod's annotations do not tell enough.
    #[error("{0}")]
    Annotations(&'static str),
    /// A file or directory cannot be read.
    #[error("read {path}: {reason}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The operating system's words, or the limit that was exceeded.
        reason: String,
    },
    /// A file that others can write.
    #[error("{0}")]
    Disbelieved(trusted::Error),
    /// No manifest describes the pod.
    #[error("none of {files} manifest files in {dir} describes it", dir = dir.display())]
    NotInManifests {
        /// The directory searched.
        dir: PathBuf,
        /// How many files were looked at.
        files: usize,
    },
    /// The manifest that describes the pod, or may be the one where no other does, is broken.
    #[error("{path} is broken at line {line}, column {column}: {reason}{}", others(.more), path = path.display())]
    BrokenManifest {
        /// The first broken file.
        path: PathBuf,
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1; 0 when unknown.
        column: u64,
        /// The parser's words.
        reason: String,
        /// How many other files are broken as well.
        more: usize,
    },
    /// The kubeconfig, or a file that it names, is missing, unreadable, invalid or asks for what is not supported.
    #[error("{problem}")]
    Kubeconfig {
        /// What is wrong, without any content of the file.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The server's host name has no address.
    #[error("resolve host name {host}: {reason}")]
    Resolve {
        /// Name from the server URL.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// No connection.
    #[error("connect to {address}: {reason}")]
    Connect {
        /// Address and port.
        address: String,
        /// The operating system's words.
        reason: String,
    },
    /// The server showed a certificate that the kubeconfig does not vouch for.
    #[error("the server's certificate is not trusted: {0}")]
    Certificate(String),
    /// The TLS connection failed for another reason, such as the server refusing the client's certificate.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server was too slow.
    #[error("timed out after {:.1} s while {stage}", after.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        stage: &'static str,
        /// How long this try took.
        after: Duration,
    },
    /// The connection broke before the answer began.
    #[error("connection lost while {stage}: {reason}")]
    Disconnected {
        /// What was going on.
        stage: &'static str,
        /// The operating system's words.
        reason: String,
    },
    /// The connection ended in the middle of the answer.
    #[error("the answer is truncated: {0}")]
    Truncated(String),
    /// The answer is larger than [`crate::MAX_BYTES`].
    #[error("the answer is larger than {} MiB", crate::MAX_BYTES >> 20)]
    TooLarge,
    /// What answers does not speak HTTP/1.1 as an API server does.
    #[error("the answer is not understandable HTTP: {0}")]
    NotHttp(String),
    /// The answer is a web page.
    #[error("the answer is an HTML page, not a Kubernetes object")]
    Html,
    /// The answer is no JSON, or not of this pod.
    #[error("the answer {0}")]
    NotThePod(String),
    /// The server refused.
    #[error("{code} {reason}{}", colon(.message))]
    Status {
        /// HTTP status code.
        code: u16,
        /// Its name.
        reason: String,
        /// The server's explanation, shortened; may be empty.
        message: String,
        /// The pause that the server asks for.
        retry_after: Option<Duration>,
    },
}

fn colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn others(more: &usize) -> String {
    if *more == 0 { String::new() } else { format!(" (and {more} more broken)") }
}

impl From<http1::Error> for Cause {
    fn from(error: http1::Error) -> Self {
        match error {
            http1::Error::TimedOut { stage, after } => Self::TimedOut { stage, after },
            http1::Error::Closed { stage } => {
                Self::Disconnected { stage, reason: "closed by the other side".into() }
            }
            http1::Error::Failed { stage, error } => match error.get_ref().and_then(|e| e.downcast_ref()) {
                Some(error) => crate::kubernetes::tls_cause(error),
                None => Self::Disconnected { stage, reason: error.to_string() },
            },
            http1::Error::Truncated(reason) => Self::Truncated(reason),
            http1::Error::TooLarge => Self::TooLarge,
            http1::Error::NotHttp(reason) => Self::NotHttp(reason),
        }
    }
}

impl From<trusted::Error> for Cause {
    fn from(error: trusted::Error) -> Self {
        match error.is_disbelief() {
            true => Self::Disbelieved(error),
            false => Self::Unreadable { reason: error.problem.to_string(), path: error.path },
        }
    }
}

impl From<facts::Unfit> for Cause {
    fn from(unfit: facts::Unfit) -> Self {
        match unfit {
            facts::Unfit::CutOff => Self::NotThePod(unfit.to_string()),
            facts::Unfit::Stale { wanted, found } => Self::Stale { wanted, found },
        }
    }
}

impl Cause {
    /// Whether trying again may help, without a change of the configuration.
    fn retry(&self) -> Retry {
        match self {
            Cause::InvalidName(_)
            | Cause::UnknownIncarnation { .. }
            | Cause::NoAgent(_)
            | Cause::Unaware(_)
            | Cause::ForeignAgent { .. }
            | Cause::Annotations(_)
            | Cause::Unreadable { .. }
            | Cause::Disbelieved(_)
            | Cause::NotInManifests { .. }
            | Cause::BrokenManifest { .. }
            | Cause::Kubeconfig { .. }
            | Cause::Certificate(_) => Retry::OnChange,
            // 404: the pod may not be visible yet; 401 and 403: a new token or role takes a while to be known everywhere
            Cause::Status { code: 401 | 403 | 404 | 408 | 429 | 500..=599, .. } => Retry::Backoff,
            Cause::Status { .. } => Retry::OnChange,
            Cause::Stale { .. }
            | Cause::Resolve { .. }
            | Cause::Connect { .. }
            | Cause::Tls(_)
            | Cause::TimedOut { .. }
            | Cause::Disconnected { .. }
            | Cause::Truncated(_)
            | Cause::TooLarge
            | Cause::NotHttp(_)
            | Cause::Html
            | Cause::NotThePod(_) => Retry::Backoff,
        }
    }

    /// The pause that the other side asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Cause::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What the reader of the message can do.
    fn advice(&self) -> &'static str {
        match self {
            Cause::InvalidName(_) => "check K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS",
            Cause::Stale { .. } => {
                "the pod was replaced under the same name; the runtime's next attempt will see the new one"
            }
            Cause::UnknownIncarnation { .. } => "use a runtime that passes K8S_POD_UID in CNI_ARGS",
            Cause::NoAgent(_) => "check that the node agent (DaemonSet istio-cni-node) runs on this node",
            Cause::Unaware(_) => "check that the node agent is connected to the API server (see its /readyz)",
            Cause::ForeignAgent { .. } => "check who owns the run directory and the socket in it",
            Cause::Annotations(_) => "the pod can start when the node agent or the API server answers",
            Cause::Unreadable { .. } => "check that the path exists and that the plugin may read it",
            Cause::Disbelieved(_) => "facts that other users can write are not used",
            Cause::NotInManifests { .. } => {
                "add a manifest of kind Pod with this name and namespace, best as <namespace>_<name>.yaml"
            }
            Cause::BrokenManifest { .. } => "correct or remove the file",
            Cause::Kubeconfig { advice, .. } => advice,
            Cause::Resolve { .. } => {
                "check the server URL in the kubeconfig and the node's DNS, or use an IP address there"
            }
            Cause::Connect { .. } => {
                "check that the API server runs and that the node reaches the server URL of the kubeconfig"
            }
            Cause::Certificate(_) => {
                "check certificate-authority(-data) and tls-server-name in the kubeconfig against the server's certificate"
            }
            Cause::Tls(_) => {
                "check that the server URL leads to an API server and that the client certificate is valid"
            }
            Cause::TimedOut { .. } => {
                "check the load of the API server and the network between it and the node"
            }
            Cause::Disconnected { .. } | Cause::Truncated(_) => {
                "check the API server and any load balancer or firewall in front of it"
            }
            Cause::TooLarge | Cause::NotHttp(_) | Cause::Html | Cause::NotThePod(_) => {
                "check that the server URL in the kubeconfig leads to the API server and not to a proxy or another service"
            }
            Cause::Status { code, .. } => Self::status_advice(*code),
        }
    }
}

impl Cause {
    fn status_advice(code: u16) -> &'static str {
        match code {
            401 => "the token or client certificate was refused, it may have expired",
            403 => "allow the identity in the kubeconfig to do that (ClusterRole istio-cni)",
            404 => {
                "check that the pod still exists and that the server URL in the kubeconfig leads to its cluster"
            }
            429 => "the API server limits requests; check its load and its flow control for this identity",
            300..=399 => "redirects are not followed; correct the server URL in the kubeconfig",
            500..=599 => "check the health of the API server",
            _ => "check that the server URL in the kubeconfig leads to the API server",
        }
    }
}

// === impl Error ===

impl Fault for Error {
    fn retry(&self) -> Retry {
        self.cause.retry()
    }

    fn operation(&self) -> &str {
        &self.operation
    }

    fn root_cause(&self) -> String {
        self.cause.to_string()
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(self.cause.advice().into())
    }
}

impl Error {
    pub(crate) fn new(operation: impl Into<String>, origin: impl Into<String>, cause: Cause) -> Self {
        Self {
            operation: operation.into(),
            origin: origin.into(),
            cause: Box::new(cause),
            tries: 1,
            elapsed: Duration::ZERO,
        }
    }

    /// Whether whoever was asked was there and did not answer in time, so that asking again would only take time.
    pub fn is_hung(&self) -> bool {
        match &*self.cause {
            Cause::TimedOut { .. } => true,
            Cause::NoAgent(error) => error.kind() == std::io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// What was asked, where, and why it failed, without the tries and the advice.
    pub fn brief(&self) -> String {
        format!("{} from {}: {}", self.operation, self.origin, self.cause)
    }

    /// Whether the server answered that it does not serve this identity: a token that is no longer valid, or rights that are missing.
    pub fn is_refusal(&self) -> bool {
        matches!(*self.cause, Cause::Status { code: 401 | 403, .. })
    }

    /// Whether it knows the identity and has no rights for it.
    pub fn is_forbidden(&self) -> bool {
        matches!(*self.cause, Cause::Status { code: 403, .. })
    }

    /// Whether no process listens on the node agent's socket.
    pub fn is_absence(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(&*self.cause, Cause::NoAgent(error) if matches!(error.kind(), NotFound | ConnectionRefused))
    }

    fn effort(&self) -> String {
        if self.tries < 2 {
            return String::new();
        }
        format!(" (gave up after {} tries in {:.1} s)", self.tries, self.elapsed.as_secs_f64())
    }
}
