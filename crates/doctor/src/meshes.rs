//! Other meshes and network components, as the CNI configuration shows them.

use checks::{CheckFinding, CheckResult, catalogue};

use crate::{NodeFiles, timed};

/// Plugins of other meshes.
const MESHES: [(&str, &str); 4] = [
    ("linkerd-cni", "Linkerd"),
    ("kuma-cni", "Kuma"),
    ("consul-cni", "Consul"),
    ("osm-cni", "Open Service Mesh"),
];

/// All checks of other meshes.
pub fn look(node: &NodeFiles) -> Vec<CheckResult> {
    let installed = install::inspect(&node.net_dir, &[], &node.run_dir);
    let active = installed.networks.iter().find(|network| network.is_valid);
    let plugins: Option<Vec<&str>> =
        active.map(|network| network.plugins.iter().map(String::as_str).collect());
    let plugins = plugins.as_deref();
    vec![
        timed(&catalogue::OTHER_MESHES, || others(plugins)),
        timed(&catalogue::CILIUM, || component(plugins, "cilium-cni", "Cilium")),
        timed(&catalogue::CALICO, || component(plugins, "calico", "Calico")),
    ]
}

const NONE: &str = "no CNI configuration that could be looked at";

fn others(plugins: Option<&[&str]>) -> CheckFinding {
    let Some(plugins) = plugins else { return CheckFinding::unknown(NONE) };
    let found: Vec<&str> =
        MESHES.iter().filter(|(plugin, _)| plugins.contains(plugin)).map(|(_, name)| *name).collect();
    if found.is_empty() {
        return CheckFinding::ok("no plugin of another mesh is in the CNI configuration");
    }
    CheckFinding::warning(
        format!("the CNI configuration has a plugin of another mesh: {}", found.join(", ")),
        "keep the namespaces of the two meshes apart, or remove one of them",
    )
}

/// Its options are in the cluster, not on the node.
fn component(plugins: Option<&[&str]>, plugin: &str, name: &str) -> CheckFinding {
    match plugins {
        None => CheckFinding::unknown(NONE),
        Some(plugins) if plugins.contains(&plugin) => CheckFinding::skipped(format!(
            "{name} is here; its options are not on the node: see docs/troubleshooting.md#{}",
            name.to_lowercase()
        )),
        Some(_) => CheckFinding::ok(format!("{name} is not in the CNI configuration")),
    }
}

#[cfg(test)]
mod tests {
    use checks::CheckState;

    use super::*;

    #[test]
    fn another_mesh_is_named() {
        let found = others(Some(&["bridge", "linkerd-cni", "istio-cni"]));
        assert_eq!((found.state, found.text.ends_with(": Linkerd")), (CheckState::Warning, true));
        assert_eq!(others(Some(&["bridge", "istio-cni"])).state, CheckState::Ok);
        assert_eq!(others(None).state, CheckState::Unknown);
        assert_eq!(component(Some(&["cilium-cni"]), "cilium-cni", "Cilium").state, CheckState::Skipped);
        assert_eq!(component(Some(&["bridge"]), "cilium-cni", "Cilium").state, CheckState::Ok);
    }
}
