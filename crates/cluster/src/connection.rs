//! The connection to the API server, shared by everything that asks it.

mod body;
mod token;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::OnceCell;
use tower::util::MapRequestLayer;

use crate::error::{Error, chain};
pub(crate) use body::{Lines, read};
use token::TokenFile;

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest refusal that is read: a `Status` object.
const MAX_REFUSAL: usize = 64 << 10;

/// Where the API server is and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The service account of the agent's own pod.
    ServiceAccount {
        /// URL such as `https://10.96.0.1:443`.
        server: String,
        /// The authority, PEM. Read again about once a minute.
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
#[derive(Debug)]
pub struct Connection {
    access: Access,
    user_agent: String,
    client: OnceCell<Shared>,
}

/// [`Client`] has no `Debug`.
struct Shared(Client);

impl Connection {
    /// Nothing is read or connected yet. `version` goes into the user agent, `istio-cni-agent/<version>`.
    pub fn new(access: Access, version: &str) -> Self {
        Self { access, user_agent: format!("istio-cni-agent/{version}"), client: OnceCell::new() }
    }

    /// Sends a request and waits at most `limit` for the head of the answer. A refusal is an error.
    pub(crate) async fn send(
        &self,
        operation: &str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        limit: Duration,
    ) -> Result<Response<Body>, Error> {
        let setup = |reason| Error::Setup { operation: operation.into(), reason };
        let client = self.client.get_or_try_init(|| self.open()).await.map_err(setup)?;
        let request = request.map_err(|error| setup(chain(&error)))?.map(Body::from);
        let timed_out = || Error::TimedOut { operation: operation.into(), after: limit };
        let response = match tokio::time::timeout(limit, client.0.send(request)).await {
            Err(_) => return Err(timed_out()),
            Ok(Err(error)) => {
                return Err(Error::Unreachable { operation: operation.into(), reason: chain(&error) });
            }
            Ok(Ok(response)) => response,
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let body = tokio::time::timeout(limit, read(operation, response.into_body(), MAX_REFUSAL));
        let message = match body.await {
            Ok(Ok(body)) => status_message(&body),
            // the code says more than why its explanation could not be read
            Ok(Err(_)) | Err(_) => String::new(),
        };
        Err(Error::Status { operation: operation.into(), code, message, retry_after })
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

    async fn open(&self) -> Result<Shared, String> {
        let (mut config, token) = self.config().await?;
        let token = token.map(Arc::new);
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Ours are counted, shown and bounded; kube's own would go on for minutes in silence.
        config.default_retry = false;
        let agent = HeaderValue::from_str(&self.user_agent).map_err(|error| chain(&error))?;
        config.headers.push((USER_AGENT, agent));
        let builder = ClientBuilder::try_from(config).map_err(|error| chain(&error))?;
        let authorize = MapRequestLayer::new(move |mut request: Request<Body>| {
            if let Some(value) = token.as_deref().and_then(TokenFile::header) {
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            request
        });
        Ok(Shared(builder.with_layer(&authorize).build()))
    }

    async fn config(&self) -> Result<(kube::Config, Option<TokenFile>), String> {
        match &self.access {
            Access::ServiceAccount { server, ca_file, token_file } => {
                let mut config = kube::Config::new(server.parse().map_err(|error| {
                    format!("{server} is no URL: {}", chain(&error as &http::uri::InvalidUri))
                })?);
                // Checked here for a clear message; kube reads it again for itself.
                std::fs::read(ca_file).map_err(|error| format!("read {}: {error}", ca_file.display()))?;
                config.root_cert = Some(Vec::new());
                config.root_cert_file = Some(ca_file.clone());
                Ok((config, Some(TokenFile::open(token_file)?)))
            }
            Access::Kubeconfig(path) => {
                let unusable = |error| match error {
                    // the parser's words may quote a token
                    KubeconfigError::Parse(_) => format!("{} is no kubeconfig", path.display()),
                    error => format!("kubeconfig {}: {}", path.display(), chain(&error)),
                };
                let read = Kubeconfig::read_from(path).map_err(unusable)?;
                let current_context = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(read, &current_context).await;
                Ok((config.map_err(unusable)?, None))
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// What a `Status` object says; API servers explain themselves in one. Other bodies, such as web pages, say nothing here.
fn status_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Status {
        message: Option<String>,
    }
    let message = serde_json::from_slice::<Status>(body).ok().and_then(|status| status.message);
    message.unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect()
}
