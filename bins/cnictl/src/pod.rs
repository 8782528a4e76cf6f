//! The pod of a manifest file.

use std::path::Path;

use anyhow::{Result, bail};
use capture::Pod;

/// The pod of the file, or of several the one that is named `[NAMESPACE/]NAME`.
///
/// # Errors
/// The file gives no pods, none of that name, or several of which none is named.
pub(crate) fn load(path: &Path, wanted: Option<&str>) -> Result<Pod> {
    select(podsource::pods_in_file(path)?, wanted, path)
}

fn select(pods: Vec<Pod>, wanted: Option<&str>, path: &Path) -> Result<Pod> {
    let all: Vec<String> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
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

fn is_named(pod: &Pod, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
        None => pod.name == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[(&str, &str)]) -> Vec<Pod> {
        let pod = |&(namespace, name): &(&str, &str)| Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Pod::default()
        };
        names.iter().map(pod).collect()
    }

    fn chosen(names: &[(&str, &str)], wanted: Option<&str>) -> Result<String, String> {
        select(pods(names), wanted, Path::new("p.yaml"))
            .map(|pod| format!("{}/{}", pod.namespace, pod.name))
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
