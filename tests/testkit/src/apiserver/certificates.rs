//! An authority, a server certificate and a client certificate, made for one run.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// All PEM.
pub(super) struct Certificates {
    pub(super) ca: String,
    server: String,
    server_key: String,
    pub(super) client: String,
    pub(super) client_key: String,
}

impl Certificates {
    /// For 127.0.0.1, the given address, and the name inside of a cluster.
    pub(super) fn generate(address: IpAddr) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // different names, or one authority's certificates would look forged rather than foreign to another
        let serial = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        ca.distinguished_name.push(DnType::CommonName, format!("kubernetes test authority {serial}"));
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);

        let names = [Ipv4Addr::LOCALHOST.to_string(), address.to_string(), "kubernetes.default.svc".into()];
        let (server, server_key) =
            leaf(names.to_vec(), "kube-apiserver", ExtendedKeyUsagePurpose::ServerAuth, &issuer)?;
        let (client, client_key) =
            leaf(Vec::new(), "istio-cni", ExtendedKeyUsagePurpose::ClientAuth, &issuer)?;
        Ok(Self { ca: ca_pem, server, server_key, client, client_key })
    }

    pub(super) fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes())?)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let chain = vec![CertificateDer::from_pem_slice(self.server.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(self.server_key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

fn leaf(
    names: Vec<String>,
    common_name: &str,
    purpose: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![purpose];
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}
