//! The connection to the API server, shared by everything that asks it.

mod body;
mod dial;
mod items;
mod kubeconfig;
mod token;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, KubeconfigError};

use crate::error::{About, Error};
use crate::recovery::Recovery;
pub(crate) use body::{Lines, read};
pub(crate) use items::Items;
use token::TokenFile;
use trust::Authorities;

/// Largest kubeconfig, token or list of certificates, in bytes.
const MAX_FILE: usize = 1 << 20;

/// Largest refusal that is read: a `Status` object.
const MAX_REFUSAL: usize = 64 << 10;

/// Where the API server is and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The service account of the agent's own pod.
    ServiceAccount {
        /// URL such as `https://10.96.0.1:443`.
        server: String,
        /// The authorities, PEM. Read again for each new connection.
        ca_file: PathBuf,
        /// The bearer token. Read again before each request, because kubelet renews it.
        token_file: PathBuf,
    },
    /// A kubeconfig with its current context.
    Kubeconfig(PathBuf),
}

impl Access {
    /// From `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` and the directory of the service account
    /// (`/var/run/secrets/kubernetes.io/serviceaccount`).
    pub fn in_cluster(host: &str, port: &str, dir: &Path) -> Self {
        // an IPv6 address stands bare in the variable
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self::ServiceAccount {
            server: format!("https://{host}:{port}"),
            ca_file: dir.join("ca.crt"),
            token_file: dir.join("token"),
        }
    }
}

/// A client that is made at its first use, so that a missing file keeps nobody from starting. It keeps connections open, honours no
/// proxy settings of the environment, and repeats nothing by itself.
pub struct ApiConnection {
    access: Access,
    user_agent: String,
    client: Mutex<Option<Client>>,
    recovery: Recovery,
}

impl ApiConnection {
    /// Nothing is read or connected yet. `version` goes into the user agent, `istio-cni-agent/<version>`.
    pub fn new(access: Access, version: &str) -> Self {
        let user_agent = format!("istio-cni-agent/{version}");
        Self { access, user_agent, client: Mutex::default(), recovery: Recovery::default() }
    }

    /// Sends a request and waits at most `limit` for the head of the answer. A refusal is an error.
    pub(crate) async fn send(
        &self,
        operation: &str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        limit: Duration,
    ) -> Result<Response<Body>, Error> {
        let setup = |reason| Error::Setup { operation: operation.into(), reason };
        let client = self.client().await.map_err(setup)?;
        let request = request.map_err(|error| setup(fault::chain(&error)))?.map(Body::from);
        let timed_out = || Error::TimedOut { operation: operation.into(), after: limit };
        let response = match tokio::time::timeout(limit, client.send(request)).await {
            Err(_) => return Err(timed_out()),
            Ok(Err(error)) => return Err(Error::broken(operation, &error)),
            Ok(Ok(response)) => response,
        };
        if response.status().is_success() {
            self.recovery.answered();
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let body = tokio::time::timeout(limit, read(operation, response.into_body(), MAX_REFUSAL));
        let status = match body.await {
            Ok(Ok(body)) => Status::parse(&body),
            // the code says more than why its explanation could not be read
            Ok(Err(_)) | Err(_) => Status::default(),
        };
        let operation = operation.to_owned();
        let refusal = if status.names_cause(TOO_LARGE) {
            Error::Behind { operation, retry_after }
        } else {
            let (message, about) = (status.message(), status.about());
            Error::Status { operation, code, message, about, retry_after }
        };
        if refusal.is_answer() {
            self.recovery.answered();
        }
        Err(refusal)
    }

    /// Asks for nothing but an answer, as load balancers do. Who may not ask hears so from a server that is ready.
    pub(crate) async fn ask_whether_ready(&self, operation: &str, limit: Duration) -> Result<Bytes, Error> {
        let request =
            Request::get("/readyz").body(Vec::new()).map_err(kube::core::request::Error::BuildRequest);
        self.ask(operation, request, limit, MAX_REFUSAL).await
    }

    /// How the watches of this connection come back together.
    pub(crate) fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Sends a request and reads the whole answer, at most `max` bytes, within `limit` together.
    pub(crate) async fn ask(
        &self,
        operation: &str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        limit: Duration,
        max: usize,
    ) -> Result<Bytes, Error> {
        let whole = async {
            let response = self.send(operation, request, limit).await?;
            read(operation, response.into_body(), max).await
        };
        let timed_out = |_| Error::TimedOut { operation: operation.into(), after: limit };
        tokio::time::timeout(limit, whole).await.map_err(timed_out)?
    }

    /// Lets go of connections that stand idle; the next request makes a new one.
    pub(crate) fn renew(&self) {
        *self.held() = None;
    }

    async fn client(&self) -> Result<Client, String> {
        if let Some(client) = self.held().clone() {
            return Ok(client);
        }
        let client = self.open().await?;
        // If two come here at once, each has one, and the later is kept.
        *self.held() = Some(client.clone());
        Ok(client)
    }

    fn held(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<Client, String> {
        let (mut config, token, authorities) = self.config().await?;
        refuse_weak(&config)?;
        let agent = HeaderValue::from_str(&self.user_agent).map_err(|error| fault::chain(&error))?;
        config.headers.push((USER_AGENT, agent));
        dial::client(&config, token, authorities.map(Authorities::verifier).transpose()?)
    }

    async fn config(&self) -> Result<(kube::Config, Option<TokenFile>, Option<Authorities>), String> {
        match &self.access {
            Access::ServiceAccount { server, ca_file, token_file } => {
                let mut config = kube::Config::new(server.parse().map_err(|error| {
                    format!("{server} is no URL: {}", fault::chain(&error as &http::uri::InvalidUri))
                })?);
                // Ours judges in its place; without a list kube would look for the system's.
                config.root_cert = Some(Vec::new());
                Ok((config, Some(TokenFile::open(token_file)?), Some(Authorities::File(ca_file.clone()))))
            }
            Access::Kubeconfig(path) => {
                let unusable = |error: KubeconfigError| {
                    format!("kubeconfig {}: {}", path.display(), fault::chain(&error))
                };
                let (mut read, token) = kubeconfig::read(path)?;
                let authorities = Authorities::take(&mut read)
                    .map_err(|reason| format!("kubeconfig {}: {reason}", path.display()))?;
                let current_context = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(read, &current_context).await;
                let mut config = config.map_err(unusable)?;
                if authorities.is_some() {
                    config.root_cert = Some(Vec::new());
                }
                Ok((config, token, authorities))
            }
        }
    }
}

/// As the plugin does: what it would refuse must not work for the agent alone.
fn refuse_weak(config: &kube::Config) -> Result<(), String> {
    if config.cluster_url.scheme_str() != Some("https") {
        return Err(format!(
            "{} is not https, and credentials would be sent in the clear",
            config.cluster_url
        ));
    }
    match &config.auth_info.username {
        Some(_) => {
            Err("user names and passwords are not supported; use a token or a client certificate".into())
        }
        None => Ok(()),
    }
}

impl std::fmt::Debug for ApiConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("access", &self.access).finish_non_exhaustive()
    }
}

/// The cause that an API server names when its cache is older than the version asked for (`CauseTypeResourceVersionTooLarge` in Kubernetes'
/// `apimachinery/pkg/apis/meta/v1/types.go`).
const TOO_LARGE: &str = "ResourceVersionTooLarge";

/// A `Status` object, in which API servers explain themselves.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Status {
    kind: String,
    message: Option<String>,
    details: Option<Details>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Details {
    kind: String,
    name: String,
    causes: Option<Vec<Cause>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Cause {
    reason: Option<String>,
}

impl Status {
    /// Other bodies, such as web pages, say nothing here.
    fn parse(body: &[u8]) -> Self {
        let mut status: Self = serde_json::from_slice(body).unwrap_or_default();
        status.details = status.details.filter(|_| status.kind == "Status");
        status
    }

    fn message(&self) -> String {
        short(self.message.as_deref().unwrap_or_default())
    }

    fn about(&self) -> About {
        match &self.details {
            Some(Details { kind, name, .. }) if !name.is_empty() => {
                About::Object(short(&format!("{kind}/{name}")))
            }
            None if self.kind == "Status" => About::Request,
            _ => About::Other,
        }
    }

    fn names_cause(&self, reason: &str) -> bool {
        let causes = self.details.iter().flat_map(|details| details.causes.iter().flatten());
        causes.into_iter().any(|cause| cause.reason.as_deref() == Some(reason))
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As servers of few kinds send it.
    const BARE: &str = r#"{"kind":"Status","code":404}"#;

    /// Which 404s say that a DaemonSet `a` does not exist.
    #[test]
    fn absence_is_said_by_a_status_about_the_object() {
        for (body, says) in [
            (r#"{"kind":"Status","code":404,"details":{"name":"a","kind":"daemonsets"}}"#, true),
            (r#"{"kind":"Status","code":404,"details":{"name":"b","kind":"daemonsets"}}"#, false),
            (r#"{"kind":"Status","code":404,"details":{"name":"a","kind":"pods"}}"#, false),
            // as of a kind that the server does not know
            (r#"{"kind":"Status","code":404,"details":{}}"#, false),
            (BARE, false),
            (r#"{"kind":"Error","code":404}"#, false),
            (r#"{"kind":"Error","details":{"name":"a","kind":"daemonsets"}}"#, false),
            ("404 page not found\n", false),
            ("<html></html>", false),
            ("", false),
        ] {
            let about = Status::parse(body.as_bytes()).about();
            let error = |code| Error::Status {
                operation: "get".into(),
                code,
                message: String::new(),
                about: about.clone(),
                retry_after: None,
            };
            assert_eq!(error(404).says_absent("daemonsets", "a"), says, "{body}");
            assert_eq!(error(404).says_absent_or_no_more("daemonsets", "a"), says || body == BARE, "{body}");
            assert!(!error(403).says_absent_or_no_more("daemonsets", "a"), "{body}");
        }
    }
}
