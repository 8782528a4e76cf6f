//! A client whose connections end when the way to the server is cut.

use std::sync::Arc;
use std::time::Duration;

use apitls::Verifier;
use http::Request;
use http::header::AUTHORIZATION;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tower::{BoxError, ServiceBuilder};

use super::token::TokenFile;

/// A connection on which nothing comes is asked by the system whether it lives, after this and then in this interval.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// A connection ends when nothing was acknowledged for so long, also while it is made: by 25 s after its last packet (tcp(7),
/// `TCP_USER_TIMEOUT`). How long a request waits is its own affair.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// As [`ClientBuilder::try_from`] builds it, whose connector cannot be had: these connections notice packets that are dropped. It repeats
/// nothing by itself, because what is repeated here is counted, shown and bounded.
pub(super) fn client(
    config: &kube::Config,
    token: Option<TokenFile>,
    verifier: Option<Verifier>,
) -> Result<Client, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE.0));
    tcp.set_keepalive_interval(Some(KEEPALIVE.1));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = https(config, verifier, tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(tls);
    let token = token.map(Arc::new);
    let authorize = move |mut request: Request<Body>| {
        if let Some(value) = token.as_deref().and_then(TokenFile::header) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        request
    };
    let service = ServiceBuilder::new()
        .map_request(authorize)
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|error| fault::chain(&error))?)
        .layer(config.extra_headers_layer().map_err(|error| fault::chain(&error))?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// As [`ConfigExt::rustls_https_connector_with_connector`](kube::client::ConfigExt), with our own judgement of the server's certificate.
fn https(
    config: &kube::Config,
    verifier: Option<Verifier>,
    tcp: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, String> {
    let mut tls = config.rustls_client_config().map_err(|error| fault::chain(&error))?;
    if let Some(verifier) = verifier.filter(|_| !config.accept_invalid_certs) {
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|_| format!("tls-server-name {name:?} is not a name"))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(builder.enable_http1().wrap_connector(tcp))
}
