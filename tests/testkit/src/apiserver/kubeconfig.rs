//! Kubeconfigs for the double, in every form that a client has to understand.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::ApiServer;

/// As whom a kubeconfig comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody.
    None,
    /// `token`.
    Token,
    /// `tokenFile`, a file `token` beside the kubeconfig, named by its relative path.
    TokenFile,
    /// `client-certificate-data` and `client-key-data`.
    ClientCertificateData,
    /// `client-certificate` and `client-key`, files `client.crt` and `client.key` beside the kubeconfig, named by absolute path.
    ClientCertificateFiles,
}

/// How a kubeconfig makes its reader trust the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// `certificate-authority-data`.
    AuthorityData,
    /// `certificate-authority`, a file `ca.crt` beside the kubeconfig.
    AuthorityFile,
    /// `insecure-skip-tls-verify`.
    Insecure,
    /// Not at all.
    None,
}

impl ApiServer {
    /// Writes `<dir>/istio-cni-kubeconfig` (YAML) with the authority inline, and the files that it names. Returns its path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_kubeconfig(&self, dir: &Path, credentials: Credentials) -> Result<PathBuf> {
        self.write_kubeconfig_with(dir, credentials, Trust::AuthorityData)
    }

    /// The same, with a choice of trust.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_kubeconfig_with(
        &self,
        dir: &Path,
        credentials: Credentials,
        trust: Trust,
    ) -> Result<PathBuf> {
        let path = dir.join("istio-cni-kubeconfig");
        let text = format!(
            "# Kubeconfig file for Istio CNI plugin.\napiVersion: v1\nkind: Config\ncurrent-context: istio-cni-context\n\
             clusters:\n- name: local\n  cluster:\n    server: {url}\n{trust}\
             users:\n- name: istio-cni\n  user:\n{user}    # end\n\
             contexts:\n- name: istio-cni-context\n  context:\n    cluster: local\n    user: istio-cni\n",
            url = self.url(),
            trust = self.trust(dir, trust)?,
            user = self.user(dir, credentials)?,
        );
        write(&path, &text)?;
        Ok(path)
    }

    /// Writes `ca.crt`, `token` and `namespace` as kubelet gives them to a pod, by renaming, so that readers meet no half token.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_service_account(&self, dir: &Path) -> Result<()> {
        let token = self.shared.state().token.clone();
        for (name, text) in [("ca.crt", self.ca_pem()), ("token", &token), ("namespace", "istio-system")] {
            let (path, unfinished) = (dir.join(name), dir.join(format!(".{name}")));
            write(&unfinished, text)?;
            std::fs::rename(&unfinished, &path).with_context(|| format!("rename {}", path.display()))?;
        }
        Ok(())
    }

    fn trust(&self, dir: &Path, trust: Trust) -> Result<String> {
        Ok(match trust {
            Trust::AuthorityData => {
                format!("    certificate-authority-data: {}\n", STANDARD.encode(self.ca_pem()))
            }
            Trust::AuthorityFile => {
                write(&dir.join("ca.crt"), self.ca_pem())?;
                "    certificate-authority: ca.crt\n".into()
            }
            Trust::Insecure => "    insecure-skip-tls-verify: true\n".into(),
            Trust::None => String::new(),
        })
    }

    fn user(&self, dir: &Path, credentials: Credentials) -> Result<String> {
        let token = self.shared.state().token.clone();
        let (client, key) = (&self.certificates.client, &self.certificates.client_key);
        Ok(match credentials {
            Credentials::None => String::new(),
            Credentials::Token => format!("    token: \"{token}\"\n"),
            Credentials::TokenFile => {
                write(&dir.join("token"), &format!("{token}\n"))?;
                "    tokenFile: token\n".into()
            }
            Credentials::ClientCertificateData => format!(
                "    client-certificate-data: {}\n    client-key-data: {}\n",
                STANDARD.encode(client),
                STANDARD.encode(key)
            ),
            Credentials::ClientCertificateFiles => {
                let (client_path, key_path) = (dir.join("client.crt"), dir.join("client.key"));
                write(&client_path, client)?;
                write(&key_path, key)?;
                format!(
                    "    client-certificate: {}\n    client-key: {}\n",
                    client_path.display(),
                    key_path.display()
                )
            }
        })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
