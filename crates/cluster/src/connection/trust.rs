//! Which API server is trusted.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use apitls::{Roots, Verifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{Cluster, Kubeconfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::Access;

/// Where the list of authorities is, PEM.
#[derive(Debug, Clone)]
pub(super) enum Authorities {
    /// Read again for each new connection, because kubelet renews it.
    File(PathBuf),
    /// In a kubeconfig.
    Listed(Vec<u8>),
}

/// Trusts what the list says at the moment. A list that cannot be used any more leaves the one before in force.
#[derive(Debug)]
pub(super) struct Trust {
    authorities: Authorities,
    provider: Arc<CryptoProvider>,
    last: RwLock<Arc<Verifier>>,
}

impl Authorities {
    /// Takes them out of a kubeconfig, whose own reader refuses a list for one broken certificate.
    pub(super) fn take(config: &mut Kubeconfig) -> Result<Option<Self>, String> {
        let Some(cluster) = cluster_of_current_context(config) else { return Ok(None) };
        let (data, file) = (cluster.certificate_authority_data.take(), cluster.certificate_authority.take());
        match (data, file) {
            (Some(data), _) => {
                let data: String = data.split_ascii_whitespace().collect();
                let pem = STANDARD.decode(data);
                Ok(Some(Self::Listed(
                    pem.map_err(|_| "certificate-authority-data is not base64".to_owned())?,
                )))
            }
            (None, Some(file)) => Ok(Some(Self::File(file.into()))),
            (None, None) => Ok(None),
        }
    }

    fn read(&self) -> Result<Roots, String> {
        match self {
            Self::Listed(pem) => {
                Roots::from_pem(pem).map_err(|error| format!("certificate-authority-data {error}"))
            }
            Self::File(path) => {
                let pem = std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
                Roots::from_pem(&pem).map_err(|error| format!("{} {error}", path.display()))
            }
        }
    }
}

impl Access {
    /// How many certificates of the list of authorities cannot be read. They are passed over.
    pub fn unreadable_authorities(&self) -> usize {
        let authorities = match self {
            Self::ServiceAccount { ca_file, .. } => Some(Authorities::File(ca_file.clone())),
            Self::Kubeconfig(path) => {
                Kubeconfig::read_from(path).ok().and_then(|mut config| Authorities::take(&mut config).ok()?)
            }
        };
        authorities.and_then(|authorities| authorities.read().ok()).map_or(0, |roots| roots.unreadable())
    }
}

fn cluster_of_current_context(config: &mut Kubeconfig) -> Option<&mut Cluster> {
    let current = config.current_context.as_deref()?;
    let context = config.contexts.iter().find(|entry| entry.name == current)?.context.as_ref()?;
    let cluster = config.clusters.iter_mut().find(|entry| entry.name == context.cluster)?;
    cluster.cluster.as_mut()
}

impl Trust {
    pub(super) fn new(authorities: Authorities) -> Result<Self, String> {
        let provider = Arc::new(apitls::provider());
        let verifier = verifier(&authorities, &provider)?;
        Ok(Self { authorities, provider, last: RwLock::new(Arc::new(verifier)) })
    }

    fn last(&self) -> Arc<Verifier> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> Arc<Verifier> {
        if let (Authorities::File(_), Ok(new)) =
            (&self.authorities, verifier(&self.authorities, &self.provider))
        {
            *self.last.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        }
        self.last()
    }
}

fn verifier(authorities: &Authorities, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
    Verifier::new(authorities.read()?, provider.clone()).map_err(|error| error.to_string())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.now().verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.last().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.last().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.last().supported_verify_schemes()
    }
}
