//! Who wrote a configuration.

use std::path::Path;

use cni::conflist::Document;

/// Longest name that is made of a file's; names become values of a metric's label.
const MAX_NAME: usize = 32;

/// Types of plugins that only one component installs, from the components' own documentation.
const COMPONENTS: &[(&str, &str)] = &[
    ("antrea", "antrea"),
    ("aws-cni", "aws-vpc-cni"),
    ("azure-vnet", "azure-vnet"),
    ("calico", "calico"),
    ("cilium-cni", "cilium"),
    ("flannel", "flannel"),
    ("kube-ovn", "kube-ovn"),
    ("kube-router", "kube-router"),
    ("multus", "multus"),
    ("multus-shim", "multus"),
    ("ovn-k8s-cni-overlay", "ovn-kubernetes"),
    ("weave-net", "weave"),
];

/// The component that a configuration is of: by its plugins, else by the file's name without order and extension.
pub(crate) fn component(path: &Path, document: Option<&Document>) -> String {
    let types = document.map(Document::plugin_types).unwrap_or_default();
    let known = types.iter().find_map(|kind| COMPONENTS.iter().find(|(known, _)| known == kind));
    known.map_or_else(|| from_name(path), |(_, component)| (*component).to_owned())
}

fn from_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let stem = stem.trim_start_matches(|c: char| c.is_ascii_digit() || "-_.".contains(c));
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_NAME).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_known_by_their_plugins_and_else_by_the_file() {
        let of = |name: &str, text: &str| {
            component(Path::new(name), Document::parse(text.as_bytes()).ok().as_ref())
        };
        assert_eq!(of("05-x.conflist", r#"{"plugins":[{"type":"cilium-cni"}]}"#), "cilium");
        assert_eq!(of("10-x.conf", r#"{"type":"aws-cni"}"#), "aws-vpc-cni");
        assert_eq!(of("10-kindnet.conflist", r#"{"plugins":[{"type":"ptp"}]}"#), "kindnet");
        assert_eq!(of("10-calico.conflist", ""), "calico");
        assert_eq!(of("99_My Net\n.v2.conf", "{}"), "my-net--v2");
        assert_eq!(of("99.conf", "{}"), "unknown");
        assert_eq!(of(&format!("{}.conf", "x".repeat(200)), "{}").len(), MAX_NAME);
    }
}
