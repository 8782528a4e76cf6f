//! What two releases of `libcni` make of small configuration files.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::golden_dir;

/// One file, alone in a configuration folder.
#[derive(Debug)]
pub struct File {
    /// Name of the case, unique.
    pub case: String,
    /// Name of the file.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
    /// What 1.1.1 (containerd 1.6) loads; `None` if it does not load it.
    pub old: Option<Network>,
    /// What 1.3.0 loads.
    pub new: Option<Network>,
}

/// A network as `libcni` loads it. What the file leaves out is empty.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its CNI version.
    #[serde(default)]
    pub version: String,
    /// Types of its plugins, in order.
    #[serde(default)]
    pub types: Vec<String>,
}

#[derive(Deserialize)]
struct RawFile {
    case: String,
    file: String,
    text: Option<String>,
    base64: Option<String>,
    #[serde(rename = "libcni-1.3.0")]
    new: RawVerdict,
    #[serde(rename = "libcni-1.1.1")]
    old: Option<RawVerdict>,
}

#[derive(Clone, Deserialize)]
struct RawVerdict {
    loads: bool,
    #[serde(default = "yes")]
    seen: bool,
    #[serde(flatten)]
    network: Network,
}

fn yes() -> bool {
    true
}

/// All files.
///
/// # Errors
/// The data is missing or has another form.
pub fn files() -> Result<Vec<File>> {
    let path = golden_dir()?.join("libcni/cases.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut file: BTreeMap<String, Vec<RawFile>> =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    let files = file.remove("cases").with_context(|| format!("no cases in {}", path.display()))?;
    ensure!(!files.is_empty(), "{} has no cases", path.display());
    files.into_iter().map(File::try_from).collect()
}

impl File {
    /// Whether the plugin goes into the file: both releases load the same, and its name says that it may be changed.
    pub fn is_merged(&self) -> bool {
        self.new.is_some() && self.old == self.new && !self.name.ends_with(".json")
    }

    /// The name of the list that the plugin is in when it went into the file.
    pub fn list_name(&self) -> String {
        match self.name.strip_suffix(".conf") {
            Some(stem) => format!("{stem}.conflist"),
            None => self.name.clone(),
        }
    }
}

impl TryFrom<RawFile> for File {
    type Error = anyhow::Error;

    fn try_from(raw: RawFile) -> Result<Self> {
        let bytes = match (raw.text, raw.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(encoded)) => BASE64_STANDARD.decode(encoded).map_err(anyhow::Error::msg)?,
            _ => anyhow::bail!("case {} has neither text nor base64, or both", raw.case),
        };
        let network = |verdict: RawVerdict| (verdict.loads && verdict.seen).then_some(verdict.network);
        let old = network(raw.old.unwrap_or_else(|| raw.new.clone()));
        Ok(Self { case: raw.case, name: raw.file, bytes, old, new: network(raw.new) })
    }
}
