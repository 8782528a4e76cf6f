//! Network configuration lists as an administrator writes them.

use std::path::{Path, PathBuf};

use cni::SpecVersion;
use serde_json::{Map, Value};

/// A chain of plugins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) path: PathBuf,
    /// `name`.
    pub(crate) name: String,
    /// `cniVersion`, or the newest of `cniVersions` that is supported.
    pub(crate) version: SpecVersion,
    /// `disableCheck`: the network's CHECK is not to be called.
    pub(crate) disable_check: bool,
    /// `disableGC`.
    pub(crate) disable_gc: bool,
    /// In the order of ADD.
    pub(crate) plugins: Vec<ConflistPlugin>,
}

/// One plugin's part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConflistPlugin {
    /// `type`, which is the file name of the executable.
    pub(crate) kind: String,
    /// Everything, also `type`.
    pub(crate) conf: Map<String, Value>,
}

/// A conflist that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableConflist {
    #[error("read network configuration {path}: {cause}", path = path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("read network configuration {path}: not valid JSON: {cause}; correct the file", path = path.display())]
    NotJson { path: PathBuf, cause: serde_json::Error },
    #[error("read network configuration {path}: {problem}", path = path.display())]
    Invalid { path: PathBuf, problem: String },
}

impl Conflist {
    /// Reads a `.conflist`, or a `.conf` with a single plugin.
    ///
    /// # Errors
    /// The file cannot be read, or is no network configuration.
    pub(crate) fn load(path: &Path) -> Result<Self, UnusableConflist> {
        let text = std::fs::read(path)
            .map_err(|cause| UnusableConflist::Unreadable { path: path.to_owned(), cause })?;
        let value: Value = serde_json::from_slice(&text)
            .map_err(|cause| UnusableConflist::NotJson { path: path.to_owned(), cause })?;
        parse(value, path).map_err(|problem| UnusableConflist::Invalid { path: path.to_owned(), problem })
    }
}

fn parse(value: Value, path: &Path) -> Result<Conflist, String> {
    let Value::Object(mut top) = value else {
        return Err("not a JSON object; a conflist has cniVersion, name and plugins".to_owned());
    };
    let name = text(&top, "name")?.ok_or("key name is missing")?;
    if !is_identifier(&name) {
        return Err(format!("name {name:?} has characters other than letters, digits, '.', '_' and '-'"));
    }
    let version = version(&top)?;
    let plugins = match top.remove("plugins") {
        Some(Value::Array(plugins)) => plugins,
        Some(_) => return Err("key plugins is not a list".to_owned()),
        None if top.contains_key("type") => vec![Value::Object(top.clone())],
        None => return Err("key plugins is missing".to_owned()),
    };
    if plugins.is_empty() {
        return Err("plugins is an empty list".to_owned());
    }
    let plugins = plugins.into_iter().enumerate().map(|(index, plugin)| parse_plugin(index, plugin));
    Ok(Conflist {
        path: path.to_owned(),
        name,
        version,
        disable_check: flag(&top, "disableCheck")?,
        disable_gc: flag(&top, "disableGC")?,
        plugins: plugins.collect::<Result<_, _>>()?,
    })
}

fn parse_plugin(index: usize, plugin: Value) -> Result<ConflistPlugin, String> {
    let Value::Object(conf) = plugin else { return Err(format!("plugins[{index}] is not an object")) };
    let kind = text(&conf, "type")
        .map_err(|problem| format!("plugins[{index}]: {problem}"))?
        .ok_or_else(|| format!("plugins[{index}] has no type"))?;
    // It becomes a file name below the plugin directories.
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(format!("plugins[{index}]: type {kind:?} is not the name of a file"));
    }
    Ok(ConflistPlugin { kind, conf })
}

/// `cniVersion`, or the newest that we know of those that `cniVersions` adds (CNI spec 1.1).
fn version(top: &Map<String, Value>) -> Result<SpecVersion, String> {
    let mut offered: Vec<String> = text(top, "cniVersion")?.into_iter().filter(|v| !v.is_empty()).collect();
    if let Some(more) = top.get("cniVersions") {
        let more = more.as_array().ok_or("key cniVersions is not a list")?;
        offered.extend(more.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    if offered.is_empty() {
        return Ok(SpecVersion::DEFAULT);
    }
    offered.iter().filter_map(|text| SpecVersion::supported(text)).max().ok_or_else(|| {
        let known = SpecVersion::SUPPORTED.map(|version| version.to_string()).join(", ");
        format!("cniVersion {} is not supported; use one of {known}", offered.join(", "))
    })
}

fn text(map: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("key {key} is not a text")),
    }
}

/// Runtimes also accept the text forms.
fn flag(map: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
        Some(_) => Err(format!("key {key} is not a boolean")),
    }
}

/// The form of network names and container IDs (CNI spec 1.1): `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests;
