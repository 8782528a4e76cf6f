//! The authorities of a kubeconfig or service account.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, RootCertStore};
use webpki::{EndEntityCert, Error, KeyUsage};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a PEM file.
#[derive(Debug)]
pub struct Roots {
    pub(crate) store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
    unreadable: usize,
}

/// There is no certificate in the file that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoots {
    /// Nothing in the file begins like a certificate.
    #[error("has no PEM certificate")]
    Empty,
    /// None of its certificates can be read.
    #[error("has no readable certificate ({0} are not X.509 in PEM)")]
    Unreadable(usize),
}

impl Roots {
    /// Reads every certificate that can be read, and passes over everything else in the file.
    ///
    /// # Errors
    /// No certificate is left.
    pub fn from_pem(pem: &[u8]) -> Result<Self, NoRoots> {
        let text = String::from_utf8_lossy(pem);
        let mut roots = Self { store: RootCertStore::empty(), certificates: Vec::new(), unreadable: 0 };
        // One at a time: what is wrong with one must not take the next along.
        for block in text.split(BEGIN).skip(1) {
            let certificate = block.split_once(END).and_then(|(body, _)| {
                CertificateDer::from_pem_slice(format!("{BEGIN}{body}{END}\n").as_bytes()).ok()
            });
            match certificate {
                Some(certificate) if is_readable(&certificate) => {
                    if may_sign(&certificate) {
                        // Its errors are those of what was read just now.
                        let _ = roots.store.add(certificate.clone());
                    }
                    roots.certificates.push(certificate);
                }
                _ => roots.unreadable += 1,
            }
        }
        match (roots.certificates.is_empty(), roots.unreadable) {
            (false, _) => Ok(roots),
            (true, 0) => Err(NoRoots::Empty),
            (true, unreadable) => Err(NoRoots::Unreadable(unreadable)),
        }
    }

    /// How many certificates of the file were passed over.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Whether a certificate is in the list, and the only thing wrong with it is how webpki builds chains. What is wrong with its dates webpki finds
    /// first.
    pub(crate) fn has(&self, certificate: &CertificateDer<'_>, error: &rustls::Error) -> bool {
        let chain_only = match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                matches!(other.0.downcast_ref(), Some(Error::CaUsedAsEndEntity))
            }
            _ => false,
        };
        chain_only && self.certificates.iter().any(|listed| listed == certificate)
    }
}

fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    webpki::anchor_from_trusted_cert(certificate).is_ok()
}

/// Whether other certificates count by this one: it is an authority's and valid now, or of version 1, which does not say. Without this the key of a
/// listed server could sign for every name. webpki asks an anchor nothing of that, but it says that an authority's certificate is no server's,
/// after its dates.
fn may_sign(certificate: &CertificateDer<'_>) -> bool {
    match EndEntityCert::try_from(certificate) {
        Ok(parsed) => {
            let as_server =
                parsed.verify_for_usage(&[], &[], &[], UnixTime::now(), KeyUsage::server_auth(), None, None);
            matches!(as_server, Err(Error::CaUsedAsEndEntity))
        }
        Err(error) => error == Error::UnsupportedCertVersion,
    }
}
