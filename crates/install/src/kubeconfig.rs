//! The plugin's access to the API server, made from the agent's service account.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use base64::Engine;
use rundir::KUBECONFIG;
use trusted::Links;

use crate::file::{self, FileAttributes, FileContent, FileError};
use crate::options::KubeconfigOptions;

/// Mode of a run directory that was not there.
const RUN_DIR_MODE: u32 = 0o755;

/// Largest token, list of authorities or kubeconfig, in bytes.
const MAX_FILE: usize = 1 << 20;

/// A kubeconfig that could not be made. No text holds the token.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it is made of, or where it is to be, can be written by others.
    #[error(transparent)]
    Disbelieved(#[from] trusted::Error),
    /// The variables that Kubernetes gives to every container are missing.
    #[error("the API server's {0} is not known; is {1} set in the environment, as Kubernetes does?")]
    NoServer(&'static str, &'static str),
    /// A host, port or protocol that would make another address.
    #[error("{0:?} cannot be part of the API server's address; correct KUBERNETES_SERVICE_{1}")]
    NotAnAddress(String, &'static str),
    /// The service account has no token, or not yet.
    #[error("token {path} is empty; does the pod's service account have a token?", path = .0.display())]
    EmptyToken(PathBuf),
    /// The token is binary data.
    #[error("token {path} is not text; it has to be a service account token", path = .0.display())]
    TokenNotText(PathBuf),
}

impl KubeconfigOptions {
    /// The authority's file.
    fn ca_file(&self) -> PathBuf {
        self.ca_file.clone().unwrap_or_else(|| self.service_account_dir.join("ca.crt"))
    }

    /// Directories in which a change may mean another kubeconfig.
    pub(crate) fn watched(&self) -> Vec<PathBuf> {
        let mut directories = vec![self.service_account_dir.clone()];
        if let Some(parent) = self.ca_file.as_deref().filter(|_| !self.skip_tls_verify).and_then(Path::parent)
        {
            directories.push(parent.to_owned());
        }
        directories
    }

    fn server(&self) -> Result<String, KubeconfigError> {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]", self.host),
            Err(_) => self.host.clone(),
        };
        if host.is_empty() {
            return Err(KubeconfigError::NoServer("host", "KUBERNETES_SERVICE_HOST"));
        }
        if self.port.is_empty() {
            return Err(KubeconfigError::NoServer("port", "KUBERNETES_SERVICE_PORT"));
        }
        if !["http", "https"].contains(&self.protocol.as_str()) {
            return Err(KubeconfigError::NotAnAddress(self.protocol.clone(), "PROTOCOL"));
        }
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
        if !host.chars().all(is_host) {
            return Err(KubeconfigError::NotAnAddress(self.host.clone(), "HOST"));
        }
        let port: u16 =
            self.port.parse().map_err(|_| KubeconfigError::NotAnAddress(self.port.clone(), "PORT"))?;
        Ok(format!("{}://{host}:{port}", self.protocol))
    }

    /// The kubeconfig's text, keys in upstream's order.
    fn render(&self) -> Result<String, KubeconfigError> {
        let server = self.server()?;
        let trust = if self.skip_tls_verify {
            "insecure-skip-tls-verify: true".to_owned()
        } else {
            let authority = trusted::read(&self.ca_file(), Links::Followed, MAX_FILE)?;
            let authority = base64::engine::general_purpose::STANDARD.encode(authority);
            format!("certificate-authority-data: {}", scalar(&authority))
        };
        let path = self.service_account_dir.join("token");
        let token = trusted::read(&path, Links::Followed, MAX_FILE)?;
        let token = String::from_utf8(token).map_err(|_| KubeconfigError::TokenNotText(path.clone()))?;
        if token.trim().is_empty() {
            return Err(KubeconfigError::EmptyToken(path));
        }
        let (server, token) = (scalar(&server), scalar(&token));
        Ok(format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    {trust}\n    server: {server}\n  name: local\ncontexts:\n- context:\n    \
             cluster: local\n    user: istio-cni\n  name: istio-cni-context\ncurrent-context: istio-cni-context\nkind: Config\nusers:\n\
             - name: istio-cni\n  user:\n    token: {token}\n"
        ))
    }

    /// Whether the kubeconfig is what it should be.
    pub(crate) fn is_in_order(&self, run_dir: &Path) -> Result<bool, KubeconfigError> {
        let wanted = self.render()?;
        trusted::check_directory(run_dir)?;
        let path = run_dir.join(KUBECONFIG);
        // One that plugins would not believe is replaced.
        match trusted::read(&path, Links::Refused, MAX_FILE) {
            Ok(bytes) if bytes == wanted.as_bytes() => {
                Ok(FileContent::read_if_there(&path)?.is_some_and(|content| content.mode() == self.mode))
            }
            Err(error) if !error.is_not_found() && !error.is_disbelief() => Err(error.into()),
            _ => Ok(false),
        }
    }

    /// Writes it if it is not; the file if so.
    pub(crate) fn ensure(&self, run_dir: &Path) -> Result<Option<PathBuf>, KubeconfigError> {
        if self.is_in_order(run_dir)? {
            return Ok(None);
        }
        make_directory(run_dir)?;
        let path = run_dir.join(KUBECONFIG);
        let temp = file::stage_bytes(&path, &FileAttributes::mode(self.mode), self.render()?.as_bytes())?;
        file::place(&temp, &path)?;
        Ok(Some(path))
    }
}

fn make_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(RUN_DIR_MODE)
        .create(path)
        .map_err(|cause| FileError::io("create directory", path, cause))
}

/// A YAML scalar that is read as this very text. JSON's quotes are YAML's, and are left out where nothing else can be meant: a long word
/// that begins with a letter, as tokens and certificates are.
fn scalar(text: &str) -> String {
    let is_plain = text.len() > 8
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c != ':')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/=:[]%".contains(c));
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests;
