//! The part of a kubeconfig that decides how one server is reached, with everything else refused by name.
//!
//! Errors never quote the file: any of its values may be a secret.

mod file;
#[cfg(test)]
mod tests;
mod url;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::Cause;
use file::{KubeconfigCluster, KubeconfigFile, User};
use trusted::Links;
pub(crate) use url::Url;

/// Largest kubeconfig, certificate or token file, in bytes.
const MAX_FILE: usize = 1 << 20;

/// How to reach the API server and as whom.
pub(crate) struct ApiAccess {
    pub(crate) server: Url,
    /// Name to expect in the server's certificate instead of the URL's host.
    pub(crate) tls_server_name: Option<String>,
    pub(crate) trust: Trust,
    pub(crate) token: Option<String>,
    pub(crate) identity: Option<ClientIdentity>,
}

/// Which server certificates are accepted.
pub(crate) enum Trust {
    /// Those issued by one of these (PEM).
    Roots(Vec<u8>),
    /// Any: `insecure-skip-tls-verify`.
    Anything,
}

/// A client certificate chain and its key, both PEM.
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

pub(crate) fn problem(problem: impl Into<String>, advice: &'static str) -> Cause {
    Cause::Kubeconfig { problem: problem.into(), advice }
}

const REWRITE: &str = "correct the kubeconfig; the node agent writes it";

/// Reads the kubeconfig and every file that its current context refers to.
///
/// # Errors
/// Always [`Cause::Kubeconfig`].
pub(crate) fn load(path: &Path) -> Result<ApiAccess, Cause> {
    let text = trusted::read(path, Links::Refused, MAX_FILE).map_err(|error| {
        let advice = match error.is_disbelief() {
            true => "the node agent then writes it anew",
            false => {
                "the node agent writes this file; check that it runs on this node with the same run directory"
            }
        };
        problem(format!("read the kubeconfig: {}", error.problem), advice)
    })?;
    let text = String::from_utf8(text).map_err(|_| problem("the kubeconfig is not UTF-8 text", REWRITE))?;
    let config = KubeconfigFile::parse(&text)?;
    let (cluster, user) = config.current()?;
    let base = path.parent().unwrap_or(Path::new("/"));
    ApiAccess::resolve(cluster, user, base)
}

impl ApiAccess {
    fn resolve(cluster: &KubeconfigCluster, user: &User, base: &Path) -> Result<Self, Cause> {
        reject_unsupported(cluster, user)?;
        let server =
            present(&cluster.server).ok_or_else(|| problem("the cluster has no server URL", REWRITE))?;
        let server =
            Url::parse(server).map_err(|reason| problem(format!("server URL: {reason}"), REWRITE))?;
        let trust = trust(cluster, &server, base)?;
        let token = token(user, base)?;
        let identity = identity(user, base)?;
        if !server.tls && (token.is_some() || identity.is_some()) {
            let advice = "use an https:// server URL, or remove the credentials";
            return Err(problem(
                "the server URL is http:// and credentials would be sent in the clear",
                advice,
            ));
        }
        let tls_server_name = present(&cluster.tls_server_name).map(String::from);
        Ok(Self { server, tls_server_name, trust, token, identity })
    }
}

fn reject_unsupported(cluster: &KubeconfigCluster, user: &User) -> Result<(), Cause> {
    let advice = "give the plugin a kubeconfig with a token, token file or client certificate, as the node agent writes it";
    let unsupported = [
        (user.exec.is_some(), "exec credential plugins"),
        (user.auth_provider.is_some(), "auth-provider plugins"),
        (present(&user.username).is_some(), "user names and passwords"),
        (present(&user.impersonate).is_some(), "impersonation (as)"),
        (present(&cluster.proxy_url).is_some(), "proxies (proxy-url)"),
    ];
    match unsupported.iter().find(|(used, _)| *used) {
        Some((_, what)) => {
            Err(problem(format!("the kubeconfig uses {what}, which are not supported"), advice))
        }
        None => Ok(()),
    }
}

fn trust(cluster: &KubeconfigCluster, server: &Url, base: &Path) -> Result<Trust, Cause> {
    let names = ["certificate-authority-data", "certificate-authority"];
    let roots = bytes(&cluster.certificate_authority_data, &cluster.certificate_authority, names, base)?;
    match (roots, cluster.insecure_skip_tls_verify.unwrap_or_default()) {
        (Some(_), true) => Err(problem(
            "insecure-skip-tls-verify and certificate-authority(-data) exclude each other",
            "remove one of the two from the kubeconfig",
        )),
        (Some(roots), false) => Ok(Trust::Roots(roots)),
        (None, true) => Ok(Trust::Anything),
        (None, false) if !server.tls => Ok(Trust::Anything),
        (None, false) => Err(problem(
            "the cluster has no certificate-authority(-data); the system's certificate store is not used",
            "add the certificate authority of the API server to the kubeconfig",
        )),
    }
}

/// The token file wins over the token, as in client-go, because it is the one that gets renewed.
fn token(user: &User, base: &Path) -> Result<Option<String>, Cause> {
    let inline = present(&user.token);
    let token = match present(&user.token_file) {
        Some(path) => match (read_named("tokenFile", base, path), inline) {
            (Ok(bytes), _) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            (Err(_), Some(token)) => token.to_owned(),
            (Err(cause), None) => return Err(cause),
        },
        None => match inline {
            Some(token) => token.trim().to_owned(),
            None => return Ok(None),
        },
    };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let advice = "write a service account token there, on one line";
        return Err(problem("the token is empty or has characters that no token has", advice));
    }
    Ok(Some(token))
}

fn identity(user: &User, base: &Path) -> Result<Option<ClientIdentity>, Cause> {
    let chain_names = ["client-certificate-data", "client-certificate"];
    let chain = bytes(&user.client_certificate_data, &user.client_certificate, chain_names, base)?;
    let key = bytes(&user.client_key_data, &user.client_key, ["client-key-data", "client-key"], base)?;
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some(ClientIdentity { chain, key })),
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(problem("the user has a client certificate but no client-key(-data)", REWRITE))
        }
        (None, Some(_)) => {
            Err(problem("the user has a client key but no client-certificate(-data)", REWRITE))
        }
    }
}

/// Inline data wins over a file, as in client-go.
fn bytes(
    data: &Option<String>,
    file: &Option<String>,
    names: [&'static str; 2],
    base: &Path,
) -> Result<Option<Vec<u8>>, Cause> {
    // kubectl's own decoder accepts line breaks
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&STANDARD, CONFIG);
    if let Some(data) = present(data) {
        let compact: String = data.split_ascii_whitespace().collect();
        let decoded =
            ENGINE.decode(compact).map_err(|_| problem(format!("{} is not base64", names[0]), REWRITE))?;
        return Ok(Some(decoded));
    }
    present(file).map(|path| read_named(names[1], base, path)).transpose()
}

fn present(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn read_named(member: &str, base: &Path, path: &str) -> Result<Vec<u8>, Cause> {
    let path: PathBuf = base.join(path);
    // kubelet's own certificate is a link to the newest
    trusted::read(&path, Links::Followed, MAX_FILE).map_err(|error| {
        let advice = match error.is_disbelief() {
            true => "or name another file in the kubeconfig",
            false => {
                "check that the file exists on the node, outside of any container, and that the plugin may read it"
            }
        };
        problem(format!("read {member} {}: {}", path.display(), error.problem), advice)
    })
}
