//! Pods from the Kubernetes API server, asked once per process over a connection of its own.

mod dial;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture::Pod;
use facts::PodRef;
use fault::{Backoff, Fault as _, Retry};
use http1::{Deadline, Response, clean, exchange, hide};
use serde_json::error::Category;

use crate::error::{Cause, Error};
use crate::json;
use crate::kubeconfig::{self, ApiAccess};
use crate::{MAX_BYTES, PodSource, segment};
use facts::object::Object;

/// Total time for one question when the configuration does not say otherwise (`facts_timeout`). Well under kubelet's limit for a
/// sandbox, which is 4 minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest single try, so that one lost connection does not use up the whole time.
const TRY_LIMIT: Duration = Duration::from_secs(10);

/// A try with less time than this is not started, and one with less than [`FAIR_TRY`] that times out says nothing new.
const SHORTEST_TRY: Duration = Duration::from_millis(50);
const FAIR_TRY: Duration = Duration::from_secs(1);

/// Pauses between tries, so varied that the pods of a restarted node do not ask in step.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Longest `Retry-After` that is honoured as it is.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(crate) use tls::cause as tls_cause;

type OnRetry<'a> = Box<dyn Fn(&Error, u32, Duration) -> ControlFlow<()> + 'a>;

/// The API server that a kubeconfig describes.
///
/// The kubeconfig is read anew for every try, because the node agent renews the token in it. Not supported, by design:
/// - `HTTPS_PROXY` and `NO_PROXY`: the plugin inherits the container runtime's environment, which is set for pulling images; a
///   `proxy-url` in the kubeconfig is refused with an error.
/// - credential plugins: the plugin must not run programs.
/// - the system's certificate store: the API server's authority stands in the kubeconfig.
///
/// A server URL with an IP address, as the node agent writes it, needs no name resolution. A host name is resolved with the
/// C library's `getaddrinfo`, which in a static executable loads the host's own NSS modules and works only where these fit; prefer
/// addresses.
pub struct Kubernetes<'a> {
    kubeconfig: PathBuf,
    user_agent: String,
    timeout: Duration,
    on_retry: Option<OnRetry<'a>>,
}

impl std::fmt::Debug for Kubernetes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes")
            .field("kubeconfig", &self.kubeconfig)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl<'a> Kubernetes<'a> {
    /// Nothing is read or connected before the first question. `version` goes into the user agent.
    pub fn new(kubeconfig: impl Into<PathBuf>, version: &str) -> Self {
        Self {
            kubeconfig: kubeconfig.into(),
            user_agent: format!("istio-cni/{version}"),
            timeout: DEFAULT_TIMEOUT,
            on_retry: None,
        }
    }

    /// Total time for one question, all tries and pauses included.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Is told of every failed try that another can follow: the error, the number of the try (from 1) and the pause before the next. It decides
    /// whether there is one.
    #[must_use]
    pub fn with_on_retry(self, on_retry: impl Fn(&Error, u32, Duration) -> ControlFlow<()> + 'a) -> Self {
        Self { on_retry: Some(Box::new(on_retry)), ..self }
    }

    /// The labels of a namespace.
    ///
    /// # Errors
    /// As for a pod.
    pub fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, Error> {
        let operation = format!("get namespace {name}");
        let namespace = self.ask(&operation, &[name], "", &|response, token| {
            let object = object(response, token, "Namespace")?;
            if object.name() != name {
                return Err(Cause::NotThePod("describes another namespace".into()));
            }
            Ok(object)
        })?;
        Ok(namespace.labels())
    }

    /// Asks until there is an answer or the time is over. `names` are the namespace and, in `resource`, the object.
    fn ask(&self, operation: &str, names: &[&str], resource: &str, read: Read<'_>) -> Result<Object, Error> {
        if let Some(bad) = names.iter().find(|name| !is_name(name)) {
            let cause = Cause::InvalidName((*bad).to_owned());
            return Err(Error::new(operation.to_owned(), self.origin(None), cause));
        }
        let path = names.iter().map(|name| segment(name)).collect::<Vec<_>>().join(resource);
        let start = Instant::now();
        let end = start + self.timeout;
        let mut before = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let limit = (Instant::now() + TRY_LIMIT).min(end);
            let failure = match self.get(&path, Deadline::at(limit), read) {
                Ok(found) => return Ok(found),
                Err(failure) => failure.or_earlier_cause(before.take()),
            };
            let mut error = Error::new(operation.to_owned(), failure.origin, failure.cause);
            let pause = pause(tries, error.cause.retry_after());
            let is_last = error.retry() == Retry::OnChange || Instant::now() + pause + SHORTEST_TRY > end;
            let is_stopped =
                || self.on_retry.as_ref().is_some_and(|tell| tell(&error, tries, pause).is_break());
            if is_last || is_stopped() {
                (error.tries, error.elapsed) = (tries, start.elapsed());
                return Err(error);
            }
            std::thread::sleep(pause);
            before = Some(Failure { origin: error.origin, cause: *error.cause });
        }
    }

    fn get(&self, path: &str, deadline: Deadline, read: Read<'_>) -> Result<Object, Failure> {
        let unreached = |cause| Failure { origin: self.origin(None), cause };
        let access = kubeconfig::load(&self.kubeconfig).map_err(unreached)?;
        let reached = |cause| Failure { origin: self.origin(Some(&access)), cause };
        let path = format!("{}/api/v1/namespaces/{path}", access.server.prefix);
        let response = self.fetch(&access, &path, deadline).map_err(reached)?;
        read(&response, access.token.as_deref()).map_err(reached)
    }

    fn fetch(&self, access: &ApiAccess, path: &str, deadline: Deadline) -> Result<Response, Cause> {
        let token = access.token.as_deref();
        let authority = access.server.authority();
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("User-Agent", self.user_agent.as_str()), ("Accept", "application/json")];
        headers.extend(bearer.iter().map(|bearer| ("Authorization", bearer.as_str())));
        let request = http1::request("GET", &authority, path, &headers, None);
        if access.server.tls {
            // before connecting: a broken certificate in the kubeconfig is not the network's fault
            let config = tls::client_config(access)?;
            let mut stream = tls::handshake(config, access, dial::open(&access.server, deadline)?)?;
            Ok(exchange(&mut stream, &request, token, MAX_BYTES, deadline)?)
        } else {
            let mut stream = dial::open(&access.server, deadline)?;
            Ok(exchange(&mut stream, &request, token, MAX_BYTES, deadline)?)
        }
    }

    fn origin(&self, access: Option<&ApiAccess>) -> String {
        let path = self.kubeconfig.display();
        match access {
            Some(access) => format!("{} (kubeconfig {path})", access.server),
            None => format!("the API server of kubeconfig {path}"),
        }
    }
}

impl PodSource for Kubernetes<'_> {
    fn pod(&self, id: &PodRef) -> Result<Pod, Error> {
        let operation = format!("get pod {id}");
        let names = [id.namespace.as_str(), &id.name];
        let object = self.ask(&operation, &names, "/pods/", &|response, token| pod(response, id, token))?;
        // It has been checked, and so whether another answer would do.
        object.into_pod(id).map_err(|unfit| Error::new(operation, self.origin(None), unfit.into()))
    }

    fn ready(&self) -> Result<(), Error> {
        let check = || {
            let access = kubeconfig::load(&self.kubeconfig)?;
            if access.server.tls { tls::client_config(&access).map(drop) } else { Ok(()) }
        };
        check().map_err(|cause| Error::new("serve pods", self.origin(None), cause))
    }
}

/// Reads an answer, whose errors must not repeat the token.
type Read<'a> = &'a dyn Fn(&Response, Option<&str>) -> Result<Object, Cause>;

/// A failed try.
struct Failure {
    origin: String,
    cause: Cause,
}

impl Failure {
    /// The cause of the earlier try if this one was cut short: the last try often gets only the rest of the time, and its timeout hides the cause.
    fn or_earlier_cause(self, before: Option<Failure>) -> Failure {
        match (&self.cause, before) {
            (Cause::TimedOut { after, .. }, Some(before)) if *after < FAIR_TRY => before,
            _ => self,
        }
    }
}

/// The pause after so many tries, where the server asks for one.
fn pause(tries: u32, asked: Option<Duration>) -> Duration {
    let asked = asked.map_or(Duration::ZERO, |asked| asked.min(LONGEST_PAUSE));
    PAUSES.pause(tries).max(asked)
}

/// Text that may stand for a segment of a path: not empty, not a step to another directory, no longer than Kubernetes allows.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && !text.chars().all(|c| c == '.')
}

/// The pod of the answer.
fn pod(response: &Response, id: &PodRef, token: Option<&str>) -> Result<Object, Cause> {
    let object = object(response, token, "Pod")?;
    if !object.metadata.as_ref().is_some_and(|metadata| metadata.names(&id.namespace, &id.name)) {
        return Err(Cause::NotThePod("describes no pod or another pod".into()));
    }
    object.check(id)?;
    Ok(object)
}

/// The object of the answer. No error repeats the token, which a proxy in between may have put into the answer.
fn object(response: &Response, token: Option<&str>, wanted: &str) -> Result<Object, Cause> {
    if response.status != 200 {
        return Err(refusal(response, token));
    }
    if response.is_html() {
        return Err(Cause::Html);
    }
    let object: Object = json::from_slice(&response.body).map_err(|misfit| {
        let place = format!("(line {}, column {})", misfit.line, misfit.column);
        Cause::NotThePod(match misfit.category {
            Category::Data => format!("does not have the shape of a pod {place}: {}", misfit.reason),
            Category::Eof => format!("is JSON that ends early {place}"),
            Category::Syntax | Category::Io => format!("is not JSON {place}"),
        })
    })?;
    match object.kind.as_deref() {
        Some(kind) if kind == wanted => Ok(object),
        Some(kind) => {
            let kind = clean(hide(kind, token).as_bytes(), 60);
            Err(Cause::NotThePod(format!("is a {kind} and not a {wanted}")))
        }
        None => Err(Cause::NotThePod(format!("has no kind and is not a {wanted}"))),
    }
}

/// What the server says when it does not give the pod; API servers explain themselves in a `Status` object.
fn refusal(response: &Response, token: Option<&str>) -> Cause {
    #[derive(serde::Deserialize)]
    struct Status {
        message: Option<String>,
    }
    let message = match serde_json::from_slice::<Status>(&response.body) {
        Ok(status) => clean(hide(&status.message.unwrap_or_default(), token).as_bytes(), 300),
        Err(_) if response.is_html() => "an HTML page".into(),
        // hidden before it is shortened, or the beginning of the token would be left
        Err(_) => clean(hide(&String::from_utf8_lossy(&response.body), token).as_bytes(), 100),
    };
    let reason = response.reason();
    let message = if message == reason { String::new() } else { message };
    Cause::Status { code: response.status, reason, message, retry_after: response.retry_after }
}
