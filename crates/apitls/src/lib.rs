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

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, SignatureScheme};

pub use p521::provider;
pub use roots::{NoRoots, Roots};
pub use words::{is_untrusted, reason};

/// Reads the list of authorities as it is now; nothing where it cannot be used.
pub type Renew = Box<dyn Fn() -> Option<Roots> + Send + Sync>;

/// Judges the server's certificate. Whatever it trusts, the server must hold the certificate's key.
pub struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

enum Trust {
    /// `insecure-skip-tls-verify`.
    Anything,
    /// Issued by an authority of the list, or in the list.
    Listed { list: RwLock<Arc<Roots>>, renew: Option<Renew> },
}

// === impl Verifier ===

impl Verifier {
    /// Trusts a server's certificate that an authority of the list has issued, or that stands in the list.
    pub fn new(roots: Roots, provider: Arc<CryptoProvider>) -> Self {
        Self { trust: Trust::Listed { list: RwLock::new(Arc::new(roots)), renew: None }, provider }
    }

    /// Trusts any certificate.
    pub fn anything(provider: Arc<CryptoProvider>) -> Self {
        Self { trust: Trust::Anything, provider }
    }

    /// Reads the list again for each connection. One that cannot be used leaves the one before in force.
    #[must_use]
    pub fn renewed_by(mut self, by: Renew) -> Self {
        if let Trust::Listed { renew, .. } = &mut self.trust {
            *renew = Some(by);
        }
        self
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("anything", &matches!(self.trust, Trust::Anything))
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Listed { list, renew } = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        if let Some(new) = renew.as_ref().and_then(|renew| renew()) {
            *list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        }
        let list = list.read().unwrap_or_else(PoisonError::into_inner).clone();
        let parsed = ParsedCertificate::try_from(certificate)?;
        // Not rustls' own verifier: it does the same, but links the reading of revocation lists, and nobody has any.
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed =
            verify_server_cert_signed_by_trust_anchor(&parsed, &list.store, intermediates, now, algorithms);
        match signed {
            Err(error) if !list.has(certificate, &error) => return Err(error),
            _ => verify_server_name(&parsed, name)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
