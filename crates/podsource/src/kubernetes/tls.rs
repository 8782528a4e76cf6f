//! TLS as a client, with exactly the trust that the kubeconfig expresses.

use std::net::TcpStream;
use std::sync::Arc;

use apitls::{Roots, Verifier};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use http1::Connection;

use crate::error::Cause;
use crate::kubeconfig::{ApiAccess, ClientIdentity, Trust, problem};

pub(super) type Stream = StreamOwned<ClientConnection, Connection<TcpStream>>;

const CERTIFICATE_ADVICE: &str = "put PEM certificates and keys into the kubeconfig";
const CLIENT_KEY_ADVICE: &str =
    "use a key of RSA, P-256, P-384 or Ed25519 that belongs to the certificate, or a token";

/// # Errors
/// [`Cause::Kubeconfig`] when certificates or keys in the kubeconfig cannot be used.
pub(super) fn client_config(access: &ApiAccess) -> Result<ClientConfig, Cause> {
    let provider = Arc::new(apitls::provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Cause::Tls(error.to_string()))?;
    let verifier = match &access.trust {
        Trust::Roots(pem) => {
            let roots = Roots::from_pem(pem).map_err(|error| {
                problem(format!("certificate-authority(-data) {error}"), CERTIFICATE_ADVICE)
            })?;
            Verifier::new(roots, provider)
        }
        Trust::Anything => Verifier::anything(provider),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &access.identity {
        Some(identity) => with_identity(builder, identity)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // one connection per process: a cache would only cost memory
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn with_identity(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    identity: &ClientIdentity,
) -> Result<ClientConfig, Cause> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.chain)
        .collect::<Result<_, _>>()
        .map_err(|_| problem("client-certificate(-data) is not a PEM certificate", CERTIFICATE_ADVICE))?;
    if chain.is_empty() {
        return Err(problem("client-certificate(-data) has no PEM certificate", CERTIFICATE_ADVICE));
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|_| {
        problem("client-key(-data) is not an unencrypted PEM private key", CERTIFICATE_ADVICE)
    })?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| problem(format!("client certificate and key: {error}"), CLIENT_KEY_ADVICE))
}

/// The handshake is driven to its end here, so that its errors are not taken for errors of the request.
pub(super) fn handshake(
    config: ClientConfig,
    access: &ApiAccess,
    mut tcp: Connection<TcpStream>,
) -> Result<Stream, Cause> {
    let name = access.tls_server_name.as_deref().unwrap_or(&access.server.host);
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        problem(format!("{name:?} is not a name that a certificate can have"), "correct the server URL")
    })?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(|error| cause(&error))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)
            .map_err(|error| http1::Error::of(error, "shaking hands for TLS", tcp.deadline()))?;
    }
    Ok(StreamOwned::new(tls, tcp))
}

pub(crate) fn cause(error: &rustls::Error) -> Cause {
    let reason = apitls::reason(error);
    if apitls::is_untrusted(error) { Cause::Certificate(reason) } else { Cause::Tls(reason) }
}
