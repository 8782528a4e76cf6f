//! The reference cases of ambient mode. Their files have no settings beside them: those are here.

use std::net::Ipv6Addr;

use anyhow::{Context, Result};
use capture::ambient::{NodeOptions, PROBE_V6, PodOptions, ProbeSender, plan_host, plan_pod};
use ruleset::{Backend, Plan};

use crate::{Golden, golden_dir, split_families};

/// The user that kubelet is in the reference cases.
const KUBELET: u32 = 1000;
/// The IPv6 source of probes in the reference cases.
const REFERENCE_PROBE_V6: Ipv6Addr =
    Ipv6Addr::new(0xe9ac, 0x1e77, 0x90ca, 0x399f, 0x4d6d, 0xece2, 0x2f9b, 0x3164);

/// One reference case of one backend.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of the file, without what it ends with.
    pub name: String,
    /// Whether the rules are the node's and not a pod's.
    pub host: bool,
    /// Options of the node.
    pub node: NodeOptions,
    /// Options of the pod.
    pub pod: PodOptions,
    /// Backend.
    pub backend: Backend,
}

/// All cases of a backend: seven, each without and with IPv6.
#[must_use]
pub fn cases(backend: Backend) -> Vec<Case> {
    let pod = |ingress, dns_capture, interfaces: &[&str]| PodOptions {
        ingress,
        dns_capture,
        virtual_interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
    };
    let two = ["fake1s0f0", "fake1s0f1"];
    let rows = [
        ("default", true, pod(false, None, &[])),
        ("dns_pod_enabled_and_off_globally", false, pod(false, Some(true), &[])),
        ("dns_pod_disabled_and_on_globally", true, pod(false, Some(false), &[])),
        ("ingress", false, pod(true, None, &[])),
        ("virtual_interfaces", false, pod(false, None, &two)),
        ("ingress_and_virtual_interfaces", false, pod(true, None, &two)),
        ("hostprobe", true, pod(false, None, &[])),
    ];
    let each = rows.into_iter().flat_map(|(name, dns_capture, pod)| {
        [("", false), ("_ipv6", true)].map(|(ending, ipv6)| {
            let host = name == "hostprobe";
            // The one exception of the reference.
            let probe_v6 = if host && backend == Backend::Iptables { PROBE_V6 } else { REFERENCE_PROBE_V6 };
            Case {
                name: format!("{name}{ending}"),
                host,
                node: NodeOptions { dns_capture, ipv6, probe_v6, ..NodeOptions::default() },
                pod: pod.clone(),
                backend,
            }
        })
    });
    each.collect()
}

impl Case {
    /// Our plan.
    #[must_use]
    pub fn plan(&self) -> Plan {
        if self.host {
            plan_host(&self.node, ProbeSender::Uid(KUBELET), self.backend)
        } else {
            plan_pod(&self.node, &self.pod, self.backend)
        }
    }

    /// The reference rules.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn golden(&self) -> Result<Golden> {
        let path = golden_dir()?.join(format!("ambient-{}/{}.golden", self.backend, self.name));
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(match self.backend {
            Backend::Nftables => Golden::Nft(text),
            Backend::Iptables => {
                let (v4, v6) = split_families(&text);
                Golden::Iptables { v4, v6 }
            }
        })
    }
}
