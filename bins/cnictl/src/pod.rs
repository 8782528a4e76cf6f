//! The pod of a manifest.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, bail};
use capture::Pod;
use facts::{Object, PodRef};
use podsource::ManifestFile;

/// A pod as its manifest describes it. The labels of its namespace are known where the manifest has that, too.
#[derive(Debug, Clone)]
pub(crate) struct DescribedPod {
    pub(crate) pod: Pod,
    /// `status.podIPs`; of a pod that is not running there are none.
    pub(crate) ips: Vec<IpAddr>,
}

/// The pod of the file, or of standard input for `-`; of several the one that is named `[NAMESPACE/]NAME`.
///
/// # Errors
/// The file gives no pods, none of that name, or several of which none is named.
pub(crate) fn load(path: &Path, wanted: Option<&str>) -> Result<DescribedPod> {
    let (manifest, place) = if path.as_os_str() == "-" {
        (ManifestFile::read_stream(std::io::stdin().lock(), "standard input")?, Path::new("standard input"))
    } else {
        (ManifestFile::read(path)?, path)
    };
    let object = select(manifest.pods, wanted, place)?;
    let ips = object.ips();
    let mut pod = object.into_pod(&PodRef::default())?;
    pod.namespace_labels = manifest.namespaces.get(&pod.namespace).cloned();
    Ok(DescribedPod { pod, ips })
}

fn select(pods: Vec<Object>, wanted: Option<&str>, path: &Path) -> Result<Object> {
    let all: Vec<String> = pods.iter().map(|pod| pod.pod_ref().to_string()).collect();
    let mut found = pods.into_iter().filter(|pod| wanted.is_none_or(|wanted| is_named(pod, wanted)));
    let all = all.join(", ");
    match (found.next(), found.next(), wanted) {
        (Some(pod), None, _) => Ok(pod),
        (None, _, wanted) => {
            bail!("manifest {} has no pod {}; it has {all}", path.display(), wanted.unwrap_or_default())
        }
        (_, _, Some(wanted)) => {
            bail!("manifest {} has several pods {wanted}: {all}; name one as NAMESPACE/NAME", path.display())
        }
        (_, _, None) => {
            bail!("manifest {} has several pods: {all}; choose one with --pod-name", path.display())
        }
    }
}

fn is_named(pod: &Object, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((namespace, name)) => pod.namespace() == namespace && pod.name() == name,
        None => pod.name() == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[(&str, &str)]) -> Vec<Object> {
        let pod = |(namespace, name): &(&str, &str)| {
            let object =
                serde_json::json!({"kind": "Pod", "metadata": {"namespace": namespace, "name": name}});
            serde_json::from_value(object).unwrap()
        };
        names.iter().map(pod).collect()
    }

    fn chosen(names: &[(&str, &str)], wanted: Option<&str>) -> Result<String, String> {
        select(pods(names), wanted, Path::new("p.yaml"))
            .map(|pod| pod.pod_ref().to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_only_pod_needs_no_name_and_others_do() {
        assert_eq!(chosen(&[("a", "x")], None).unwrap(), "a/x");
        assert_eq!(chosen(&[("a", "x"), ("b", "y")], Some("y")).unwrap(), "b/y");
        assert_eq!(chosen(&[("a", "x"), ("b", "x")], Some("b/x")).unwrap(), "b/x");
        let text = chosen(&[("a", "x"), ("b", "y")], None).unwrap_err();
        assert_eq!(text, "manifest p.yaml has several pods: a/x, b/y; choose one with --pod-name");
        let text = chosen(&[("a", "x"), ("b", "x")], Some("x")).unwrap_err();
        assert!(text.contains("several pods x") && text.contains("NAMESPACE/NAME"), "{text}");
        let text = chosen(&[("a", "x")], Some("z")).unwrap_err();
        assert_eq!(text, "manifest p.yaml has no pod z; it has a/x");
    }
}
