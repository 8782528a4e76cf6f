//! The recordings of what the real runtimes sent, in `golden/runtimes` of the reference data.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::libcni::Call;

/// A part of a recording: what was done, and the calls that it led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What was done.
    pub name: String,
    /// The calls of the plugin, in order. VERSION that is repeated is one: a runtime loads its configuration once for each event of the
    /// directory that it happens to read.
    pub calls: Vec<Sent>,
}

/// What a call sent, without what differs from pod to pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// `CNI_COMMAND`.
    pub verb: String,
    /// Whether the plugin succeeded.
    pub succeeded: bool,
    /// `CNI_NETNS`: a path, or this text.
    pub netns: Option<String>,
    /// Whether `CNI_CONTAINERID` was set.
    pub container: bool,
    /// `cniVersion` of standard input.
    pub version: String,
    /// Keys of standard input beside `cniVersion`, `name` and `type`.
    pub keys: BTreeSet<String>,
    /// Whether `CNI_ARGS` named the pod.
    pub args: bool,
}

/// A recording.
///
/// # Errors
/// The reference data is missing or has another form.
pub fn read(file: &str) -> Result<Vec<Section>> {
    let path = conformance::golden_dir()?.join("runtimes").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("-- ") {
            sections.push(Section { name: name.to_owned(), calls: Vec::new() });
        } else if line.contains(" rc=") && !line.contains(" by=install-cni ") {
            let section = sections.last_mut().context("a call before the first section")?;
            section.push(parse_sent(line).with_context(|| format!("parse {line}"))?);
        }
    }
    ensure!(sections.iter().any(|section| !section.calls.is_empty()), "no calls in {}", path.display());
    sections.retain(|section| !section.calls.is_empty());
    Ok(sections)
}

fn parse_sent(line: &str) -> Result<Sent> {
    let word = |key: &str| {
        let rest = line.split_once(&format!(" {key}=")).with_context(|| format!("no {key}"))?.1;
        Ok::<_, anyhow::Error>(rest.split(' ').next().unwrap_or_default())
    };
    let keys = line.split_once("keys=[").and_then(|(_, rest)| rest.split_once(']')).context("no keys")?.0;
    Ok(Sent {
        verb: line.split_whitespace().next().unwrap_or_default().to_owned(),
        succeeded: word("rc")? == "0",
        netns: netns_kind(word("netns")?.trim_matches('\'')),
        container: !word("cid")?.is_empty(),
        version: word("v")?.to_owned(),
        keys: keys
            .split(", ")
            .map(|key| key.trim_matches('\'').to_owned())
            .filter(|key| !key.is_empty())
            .collect(),
        args: word("args")? == "yes",
    })
}

/// `None` for a path.
fn netns_kind(netns: &str) -> Option<String> {
    (!netns.starts_with('/')).then(|| netns.to_owned())
}

// === impl Section ===

impl Section {
    /// What a double called of our plugin.
    pub fn of(name: &str, calls: &[Call]) -> Self {
        let mut section = Self { name: name.to_owned(), calls: Vec::new() };
        calls
            .iter()
            .filter(|call| call.plugin == "istio-cni")
            .for_each(|call| section.push(Sent::from(call)));
        section
    }

    fn push(&mut self, sent: Sent) {
        if sent.verb != "VERSION" || self.calls.last() != Some(&sent) {
            self.calls.push(sent);
        }
    }
}

impl From<&Call> for Sent {
    fn from(call: &Call) -> Self {
        let keys = call.config.as_object().into_iter().flat_map(|config| config.keys());
        let own = |key: &&String| !["cniVersion", "name", "type"].contains(&key.as_str());
        Self {
            verb: call.verb.to_owned(),
            succeeded: call.exit == Some(0),
            netns: netns_kind(&call.attachment.netns),
            container: !call.attachment.container_id.is_empty(),
            version: call.config["cniVersion"].as_str().unwrap_or_default().to_owned(),
            keys: keys.filter(own).cloned().collect(),
            args: call.attachment.cni_args.iter().any(|(name, _)| name == "K8S_POD_NAME"),
        }
    }
}
