//! A kubeconfig, and the files that its current context names. kube would read them whoever wrote them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use trusted::Links;

use super::MAX_FILE;
use super::token::TokenFile;

/// Reads a kubeconfig that nobody else can write. The certificate and the key that it names are in it then; a file with a token is another
/// matter, as it is read for each request.
pub(super) fn read(path: &Path) -> Result<(Kubeconfig, Option<TokenFile>), String> {
    let text = trusted::read(path, Links::Followed, MAX_FILE).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&text).map_err(|_| format!("{} is no text", path.display()))?;
    // the parser's words may quote a token
    let mut config =
        Kubeconfig::from_yaml(text).map_err(|_| format!("{} is no kubeconfig", path.display()))?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let in_it = |reason| format!("kubeconfig {}: {reason}", path.display());
    if let Some(cluster) = current_cluster(&mut config) {
        absolute(&mut cluster.certificate_authority, base);
    }
    let token = current_user(&mut config).map(|user| take_in(user, base)).transpose().map_err(in_it)?;
    Ok((config, token.flatten()))
}

fn take_in(user: &mut AuthInfo, base: &Path) -> Result<Option<TokenFile>, String> {
    if let Some(pem) = content(&mut user.client_certificate, user.client_certificate_data.is_some(), base)? {
        user.client_certificate_data = Some(STANDARD.encode(pem));
    }
    if let Some(pem) = content(&mut user.client_key, user.client_key_data.is_some(), base)? {
        user.client_key_data = Some(STANDARD.encode(pem).into());
    }
    if let Some(exec) = &mut user.exec
        && exec.command.as_deref().is_some_and(|command| command.contains('/'))
    {
        absolute(&mut exec.command, base);
    }
    absolute(&mut user.token_file, base);
    // kube's order: a token in the kubeconfig before one in a file
    let file = user.token_file.take().filter(|_| user.token.is_none());
    file.map(|file| TokenFile::open(Path::new(&file))).transpose()
}

/// The content of a file that is named, unless it is in the kubeconfig itself.
fn content(name: &mut Option<String>, is_in_it: bool, base: &Path) -> Result<Option<Vec<u8>>, String> {
    let Some(name) = name.take().filter(|_| !is_in_it) else { return Ok(None) };
    trusted::read(&base.join(name), Links::Followed, MAX_FILE).map(Some).map_err(|error| error.to_string())
}

fn absolute(name: &mut Option<String>, base: &Path) {
    if let Some(name) = name {
        *name = base.join(&*name).to_string_lossy().into_owned();
    }
}

pub(super) fn current_cluster(config: &mut Kubeconfig) -> Option<&mut Cluster> {
    let current = config.current_context.as_deref()?;
    let context = config.contexts.iter().find(|entry| entry.name == current)?.context.as_ref()?;
    let cluster = config.clusters.iter_mut().find(|entry| entry.name == context.cluster)?;
    cluster.cluster.as_mut()
}

fn current_user(config: &mut Kubeconfig) -> Option<&mut AuthInfo> {
    let current = config.current_context.as_deref()?;
    let context = config.contexts.iter().find(|entry| entry.name == current)?.context.as_ref()?;
    let name = context.user.as_deref()?;
    config.auth_infos.iter_mut().find(|entry| entry.name == name)?.auth_info.as_mut()
}
