//! Which certificates of an API server are trusted, for the plugin and the agent alike.
//!
//! The measure is Go's `crypto/x509`, by which `kubectl`, kubelet and the original judge: a certificate that works for them works here. rustls
//! with ring differs in three points, and this crate closes them:
//! - a certificate that itself stands in the list of authorities is trusted ([`Verifier`]);
//! - one certificate of the list that cannot be read does not make the others unusable ([`Roots`]);
//! - keys on the curve P-521 are verified ([`provider`]).

mod p521;
mod roots;
mod words;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

pub use p521::provider;
pub use roots::{NoRoots, Roots};
pub use words::{is_untrusted, reason};

/// Trusts a server's certificate that an authority of the list has issued, or that stands in the list.
#[derive(Debug)]
pub struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// For the authorities of a kubeconfig or service account.
    ///
    /// # Errors
    /// rustls' own; with at least one authority there is none.
    pub fn new(roots: Roots, provider: Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store), provider).build()?;
        Ok(Self { webpki, listed: roots.certificates })
    }

    /// Whether the only thing wrong with a certificate is how webpki builds chains. What is wrong with its dates it finds first.
    fn is_listed(&self, certificate: &CertificateDer<'_>, error: &rustls::Error) -> bool {
        let chain_only = match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
            }
            _ => false,
        };
        chain_only && self.listed.iter().any(|listed| listed == certificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.webpki.verify_server_cert(certificate, intermediates, name, ocsp, now);
        match verified {
            Err(error) if self.is_listed(certificate, &error) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
