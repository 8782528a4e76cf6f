//! Signatures on the curve P-521, which ring does not know.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use p521::ecdsa::{Signature, VerifyingKey};
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as rustls_ring};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm as Verification, alg_id,
};

/// rustls' cryptography by ring, and signatures on P-521 beside it.
pub fn provider() -> CryptoProvider {
    CryptoProvider { signature_verification_algorithms: *ALGORITHMS, ..rustls_ring::default_provider() }
}

type Mapping = (SignatureScheme, &'static [&'static dyn Verification]);

static SHA_256: P521 = P521 { digest: &SHA256, signature: alg_id::ECDSA_SHA256 };
static SHA_384: P521 = P521 { digest: &SHA384, signature: alg_id::ECDSA_SHA384 };
static SHA_512: P521 = P521 { digest: &SHA512, signature: alg_id::ECDSA_SHA512 };

/// Made once for the process: rustls holds them for ever.
static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
    let ring = rustls_ring::default_provider().signature_verification_algorithms;
    let ours: [&'static dyn Verification; 3] = [&SHA_256, &SHA_384, &SHA_512];
    let all = [ring.all, &ours].concat();
    // A handshake of TLS 1.3 takes the first of a scheme; certificates and TLS 1.2 take any that fits the key.
    let of_scheme = |scheme: SignatureScheme, own: &'static dyn Verification| -> Mapping {
        let known =
            ring.mapping.iter().find(|(known, _)| *known == scheme).map_or(&[][..], |(_, list)| *list);
        (scheme, Vec::leak([known, &[own]].concat()))
    };
    let mut mapping = vec![
        of_scheme(SignatureScheme::ECDSA_NISTP256_SHA256, &SHA_256),
        of_scheme(SignatureScheme::ECDSA_NISTP384_SHA384, &SHA_384),
        of_scheme(SignatureScheme::ECDSA_NISTP521_SHA512, &SHA_512),
    ];
    let others = ring.mapping.iter().filter(|(scheme, _)| mapping.iter().all(|(own, _)| own != scheme));
    let others: Vec<Mapping> = others.copied().collect();
    mapping.extend(others);
    WebPkiSupportedAlgorithms { all: Vec::leak(all), mapping: Vec::leak(mapping) }
});

/// ECDSA on P-521 over a hash (RFC 5480, section 2.1.1; RFC 5758, section 3.2).
#[derive(Debug)]
struct P521 {
    digest: &'static Algorithm,
    signature: AlgorithmIdentifier,
}

impl Verification for P521 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        let hash = digest(self.digest, message);
        key.verify_prehash(hash.as_ref(), &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}
