//! Which pods there are, without the agent: the facts that it left in the run directory, and the manifests of a node that has its pods from
//! there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cni::PodSourceConfig;
use facts::object::namespace_labels;
use facts::{Facts, Object, PodRef};
use podsource::{ManifestFileError, Written, is_manifest, written_in_file};
use rundir::FACTS_DIR;
use trusted::Links;

use crate::configuration::Configuration;
use crate::pod::DescribedPod;

/// The most files of either directory.
const MAX_FILES: usize = 16 << 10;
/// Largest file of facts, in bytes; as the plugin reads it.
const MAX_FACTS: usize = 1 << 20;

/// The pods of a node as far as files tell.
#[derive(Debug, Default)]
pub(super) struct PodsOnDisk {
    pub(super) pods: Vec<Facts>,
    /// Files that cannot be used, and why.
    pub(super) unusable: Vec<String>,
}

impl PodsOnDisk {
    /// Reads them.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(super) fn read(configuration: &Configuration) -> Result<Self> {
        let mut found = Self::default();
        found.read_facts(&configuration.run_dir().join(FACTS_DIR))?;
        if let PodSourceConfig::Manifests(dir) = &configuration.plugin.pod_source {
            found.read_manifests(dir)?;
        }
        found.pods.sort_by_cached_key(|facts| facts.pod.pod_ref());
        found.pods.dedup_by_key(|facts| facts.pod.pod_ref());
        Ok(found)
    }

    fn read_facts(&mut self, dir: &Path) -> Result<()> {
        let files = rundir::json_files(dir, MAX_FILES);
        for path in files.with_context(|| format!("list {}; run cnictl as root", dir.display()))? {
            let text = trusted::read(&path, Links::Refused, MAX_FACTS).map_err(|error| error.to_string());
            let facts =
                text.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            match facts {
                Ok(facts) => self.pods.push(facts),
                Err(error) => self.unusable.push(format!("{}: {error}", path.display())),
            }
        }
        Ok(())
    }

    fn read_manifests(&mut self, dir: &Path) -> Result<()> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) => bail!("list {}: {error}; run cnictl as root", dir.display()),
            Ok(entries) => entries,
        };
        let paths = entries.flatten().map(|entry| entry.path()).filter(|path| is_manifest(path));
        let mut pods: Vec<Object> = Vec::new();
        let mut namespaces: BTreeMap<String, Object> = BTreeMap::new();
        for path in paths.take(MAX_FILES) {
            match objects(&path) {
                Ok(objects) => {
                    for object in objects {
                        if object.is_pod() {
                            pods.push(object.completed());
                        } else {
                            namespaces.insert(object.name().to_owned(), object);
                        }
                    }
                }
                Err(error) => self.unusable.push(error.to_string()),
            }
        }
        self.pods.extend(pods.into_iter().map(|pod| {
            let labels = namespace_labels(pod.namespace(), namespaces.get(pod.namespace()).cloned());
            Facts { pod: Arc::new(pod), namespace_labels: Some(labels) }
        }));
        Ok(())
    }
}

/// The pods and namespaces of a manifest file.
fn objects(path: &Path) -> Result<Vec<Object>, ManifestFileError> {
    let written = written_in_file(path, &|kind| matches!(kind, "Pod" | "Namespace"))?;
    let read = |one: Written| {
        let mut object: Object = one.read()?;
        object.kind = Some(one.kind().to_owned());
        Ok(object)
    };
    written.into_iter().map(read).collect()
}

/// The pod as the decision takes it.
///
/// # Errors
/// Its file is cut off.
pub(super) fn described(facts: &Facts, ips: Vec<IpAddr>) -> Result<DescribedPod> {
    let mut pod = Object::clone(&facts.pod).into_pod(&PodRef::default())?;
    pod.namespace_labels = facts.namespace_labels.clone();
    Ok(DescribedPod { pod, ips })
}
