//! Which API server is trusted.

use std::path::PathBuf;
use std::sync::Arc;

use apitls::{Roots, Verifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::Kubeconfig;
use trusted::Links;

use super::kubeconfig::{self, current_cluster};
use super::{Access, MAX_FILE};

/// Where the list of authorities is, PEM.
#[derive(Debug, Clone)]
pub(super) enum Authorities {
    /// Read again for each new connection, because kubelet renews it.
    File(PathBuf),
    /// In a kubeconfig.
    Listed(Vec<u8>),
}

impl Authorities {
    /// Takes them out of a kubeconfig, whose own reader refuses a list for one broken certificate.
    pub(super) fn take(config: &mut Kubeconfig) -> Result<Option<Self>, String> {
        let Some(cluster) = current_cluster(config) else { return Ok(None) };
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

    /// The judgement of servers by this list.
    pub(super) fn verifier(self) -> Result<Verifier, String> {
        let verifier = Verifier::new(self.read()?, Arc::new(apitls::provider()));
        Ok(match self {
            Self::Listed(_) => verifier,
            Self::File(_) => verifier.renewed_by(Box::new(move || self.read().ok())),
        })
    }

    fn read(&self) -> Result<Roots, String> {
        match self {
            Self::Listed(pem) => {
                Roots::from_pem(pem).map_err(|error| format!("certificate-authority-data {error}"))
            }
            Self::File(path) => {
                let pem =
                    trusted::read(path, Links::Followed, MAX_FILE).map_err(|error| error.to_string())?;
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
                kubeconfig::read(path).ok().and_then(|(mut config, _)| Authorities::take(&mut config).ok()?)
            }
        };
        authorities.and_then(|authorities| authorities.read().ok()).map_or(0, |roots| roots.unreadable())
    }
}
