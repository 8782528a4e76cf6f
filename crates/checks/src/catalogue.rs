//! Every check there is: its id, what it looks at, and where more is said about it.

use crate::{CheckSection, DOCUMENT};

/// A check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckSpec {
    /// Its section and its name in it.
    pub id: &'static str,
    /// The part of the node.
    pub section: CheckSection,
    /// What it looks at, for people.
    pub looks_at: &'static str,
    /// The heading of [`DOCUMENT`] that explains what it finds, as an anchor.
    pub anchor: &'static str,
}

impl CheckSpec {
    /// Where more is said.
    #[must_use]
    pub fn more(&self) -> String {
        format!("{DOCUMENT}#{}", self.anchor)
    }
}

/// Makes a constant of each row, and the list of all.
macro_rules! catalogue {
    ($($name:ident $section:ident $id:literal, $looks_at:literal, $anchor:literal;)*) => {
        $(
            #[doc = $looks_at]
            pub const $name: CheckSpec =
                CheckSpec { id: $id, section: CheckSection::$section, looks_at: $looks_at, anchor: $anchor };
        )*
        /// All checks.
        pub const CATALOGUE: &[&CheckSpec] = &[$(&$name),*];
    };
}

catalogue! {
    KERNEL_VERSION Kernel "kernel.version", "the release of Linux that runs", "rules-cannot-be-loaded";
    NFTABLES Kernel "kernel.nf_tables", "nf_tables, its nat, redirect and tproxy, tried in a network namespace of its own", "rules-cannot-be-loaded";
    IPTABLES Kernel "kernel.iptables", "the programs of iptables on the node and which variant they use", "rules-cannot-be-loaded";
    EVENTS Kernel "kernel.events", "whether the kernel tells of changes of rules, and by whom they are", "the-kernel-tells-nothing";
    CONNTRACK Kernel "kernel.conntrack", "connections that the node tracks and how many it may", "connection-tracking";
    IPV6 Kernel "kernel.ipv6", "whether the node has IPv6, and whether ambient mode expects it", "ipv6";
    NAMESPACES Kernel "kernel.namespaces", "the limit of network namespaces", "limits-of-the-node";
    OPEN_FILES Kernel "kernel.nofile", "the limit of open files of the agent", "limits-of-the-node";
    MODULES Modules "modules.needed", "for each part that the kernel lacks, whether a module has it; none is loaded", "rules-cannot-be-loaded";
    RUNTIME Runtime "runtime.socket", "the sockets of containerd, CRI-O and Docker", "the-container-runtime";
    RUNTIME_DIRS Runtime "runtime.directories", "the directories of the runtime's own configuration, against ours", "the-container-runtime";
    SECURITY_MODULE Runtime "runtime.security", "SELinux and AppArmor, whether they enforce", "selinux-and-apparmor";
    BIN_DIR Runtime "runtime.bin-dir", "whether the directory of plugins is there and can be written", "the-directory-of-plugins";
    SANDBOXES Runtime "runtime.sandboxes", "runtimes with a network stack of their own: gVisor, Kata Containers", "sandboxes";
    CONF_DIR Installation "installation.conf-dir", "the directory of CNI configurations: there, writable, with space", "the-directory-of-cni-configurations";
    CONFLIST Installation "installation.conflist", "the configuration that runtimes choose, and our plugin in it, last and once", "the-cni-configuration";
    PLUGIN Installation "installation.plugin", "the plugin's program: it runs, and is of this version", "the-plugins-program";
    KUBECONFIG Installation "installation.kubeconfig", "the plugin's kubeconfig, and until when its token is good", "the-plugins-kubeconfig";
    RUN_DIR Installation "installation.run-dir", "the run directory: there, writable, with space", "the-run-directory";
    SOCKETS Installation "installation.sockets", "the sockets between plugin and agent", "the-agents-sockets";
    AGENT Installation "installation.agent", "whether an agent answers, and is ready", "the-agent-does-not-answer";
    SECOND_AGENT Installation "installation.second-agent", "whether another agent waits for the place of the one that works here", "a-second-agent";
    AGENT_NOTICES Installation "installation.notices", "what the agent says although it is ready", "the-agent-is-not-ready";
    OTHER_MESHES Meshes "meshes.others", "plugins of other meshes in the CNI configuration", "other-meshes";
    CILIUM Meshes "meshes.cilium", "options of Cilium that undo ours", "cilium";
    CALICO Meshes "meshes.calico", "Calico's eBPF mode", "calico";
    HOST_RULES Meshes "meshes.host-rules", "rules of others in the node's network namespace that change what ours mean", "a-firewall-on-the-node";
    API Cluster "cluster.api", "the API server, with the agent's account", "the-api-server";
    API_PLUGIN Cluster "cluster.api-plugin", "the API server over a new connection with the plugin's kubeconfig", "the-plugins-kubeconfig";
    RIGHTS Cluster "cluster.rights", "whether the plugin's account may read pods", "rights";
    DNS Cluster "cluster.dns", "an answer of cluster DNS, by UDP and by TCP", "cluster-dns";
    NODE_NAME Cluster "cluster.node", "whether the API server knows a node of this name", "the-name-of-the-node";
    PODS Pods "pods.verified", "which pods should be captured, and which are", "a-pod-is-not-captured";
    POD_CONFLICTS Pods "pods.conflicts", "rules and programs of others in pods' network namespaces", "rules-of-others-in-a-pod";
    NOT_INJECTED Pods "pods.injection", "pods whose labels ask for a proxy and that have none", "a-pod-without-the-proxy-that-it-asks-for";
    UNCAPTURED Pods "pods.uncaptured", "pods that the failure policy let start without capture", "pods-without-capture";
    ZTUNNEL Host "host.ztunnel", "whether a ztunnel is connected to the agent", "ztunnel";
    PROBE Host "host.probe", "whether a probe from the node reaches a pod's network namespace", "a-firewall-on-the-node";
    PORTS Host "host.ports", "whether the agent has its ports", "a-port-is-taken";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_begin_with_their_section() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|check| check.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        for check in CATALOGUE {
            let (section, name) = check.id.split_once('.').unwrap_or_default();
            assert_eq!(section, check.section.word(), "{}", check.id);
            assert!(!name.is_empty() && !check.looks_at.is_empty(), "{}", check.id);
        }
    }

    /// A hint that leads nowhere is worse than none.
    #[test]
    fn each_hint_leads_to_a_heading() {
        let document = include_str!("../../../docs/troubleshooting.md");
        let headings: BTreeSet<String> = document
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect();
        for check in CATALOGUE {
            assert!(headings.contains(check.anchor), "{} leads to #{}", check.id, check.anchor);
        }
    }

    /// As GitHub makes one of a heading: letters and digits in lower case, hyphens for blanks, nothing else.
    fn anchor(heading: &str) -> String {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    }
}
