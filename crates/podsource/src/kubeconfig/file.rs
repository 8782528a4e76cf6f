//! The file format (Kubernetes `clientcmd/api/v1`), as far as it is read.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{REWRITE, problem};
use crate::error::Cause;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct KubeconfigFile {
    current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: Option<String>,
    context: Option<Context>,
}

#[derive(Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: Option<String>,
    cluster: Option<KubeconfigCluster>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct KubeconfigCluster {
    pub(super) server: Option<String>,
    pub(super) certificate_authority: Option<String>,
    pub(super) certificate_authority_data: Option<String>,
    pub(super) insecure_skip_tls_verify: Option<bool>,
    pub(super) tls_server_name: Option<String>,
    pub(super) proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: Option<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct User {
    pub(super) token: Option<String>,
    #[serde(rename = "tokenFile")]
    pub(super) token_file: Option<String>,
    pub(super) client_certificate: Option<String>,
    pub(super) client_certificate_data: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) client_key_data: Option<String>,
    pub(super) username: Option<String>,
    #[serde(rename = "as")]
    pub(super) impersonate: Option<String>,
    pub(super) exec: Option<IgnoredAny>,
    pub(super) auth_provider: Option<IgnoredAny>,
}

impl KubeconfigFile {
    /// YAML or JSON, told apart by the first character.
    pub(super) fn parse(text: &str) -> Result<Self, Cause> {
        let text = text.trim_start_matches('\u{feff}');
        let at = |line: u64, column: u64| format!("at line {line}, column {column}");
        // the parsers' words may quote a value, so only the place is told
        let place = if text.trim_start().starts_with('{') {
            match serde_json::from_slice(text.as_bytes()) {
                Ok(config) => return Ok(config),
                Err(error) => at(error.line() as u64, error.column() as u64),
            }
        } else {
            match crate::yaml::to_json(text).map(|json| serde_json::from_slice(&json)) {
                Ok(Ok(config)) => return Ok(config),
                Ok(Err(_)) => "because a field has another type than it should".to_owned(),
                Err(error) => at(error.line, error.column),
            }
        };
        Err(problem(format!("the kubeconfig is invalid {place}"), REWRITE))
    }

    /// Cluster and user of the current context. A context without a user means anonymous access.
    pub(super) fn current(&self) -> Result<(&KubeconfigCluster, &User), Cause> {
        const ANONYMOUS: &User = &User::NONE;
        let missing =
            |what: &str, name: &str| problem(format!("the kubeconfig has no {what} named {name:?}"), REWRITE);
        let name = self.current_context.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| problem("the kubeconfig has no current-context", REWRITE))?;
        let context = self.contexts.iter().flatten().find(|entry| entry.name.as_deref() == Some(name));
        let context =
            context.and_then(|entry| entry.context.as_ref()).ok_or_else(|| missing("context", name))?;

        let name = context.cluster.as_deref().unwrap_or_default();
        let cluster = self.clusters.iter().flatten().find(|entry| entry.name.as_deref() == Some(name));
        let cluster =
            cluster.and_then(|entry| entry.cluster.as_ref()).ok_or_else(|| missing("cluster", name))?;

        let Some(name) = context.user.as_deref().filter(|name| !name.is_empty()) else {
            return Ok((cluster, ANONYMOUS));
        };
        let user = self.users.iter().flatten().find(|entry| entry.name.as_deref() == Some(name));
        let user = user.ok_or_else(|| missing("user", name))?;
        Ok((cluster, user.user.as_ref().unwrap_or(ANONYMOUS)))
    }
}

impl User {
    const NONE: User = User {
        token: None,
        token_file: None,
        client_certificate: None,
        client_certificate_data: None,
        client_key: None,
        client_key_data: None,
        username: None,
        impersonate: None,
        exec: None,
        auth_provider: None,
    };
}
