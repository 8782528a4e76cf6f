//! The authorities of a kubeconfig or service account.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a PEM file.
#[derive(Debug)]
pub struct Roots {
    pub(crate) store: RootCertStore,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
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
                Some(certificate) if roots.store.add(certificate.clone()).is_ok() => {
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
}
