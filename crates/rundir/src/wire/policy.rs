//! What the plugin asks of the agent for the policies of a pod that starts or ends, and what it hears.

use std::collections::BTreeMap;
use std::net::IpAddr;

use facts::networkpolicy::Isolation;
use serde::{Deserialize, Serialize};

/// A pod that is about to start. Its network namespace goes along as a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareRequest {
    /// `metadata.uid`, empty where the runtime does not pass it.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// `metadata.labels` as this ADD knows them; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the plugins before this one gave it.
    pub addresses: Vec<IpAddr>,
    /// CNI_IFNAME.
    pub interface: String,
    /// The other end of that interface, in the node's namespace; empty where the plugins before did not tell it.
    pub host_interface: String,
    /// What the plugin isolates already, until it hears more.
    pub guarded: Isolation,
}

/// What policies come to for a pod that is about to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareAnswer {
    /// The directions in which policies isolate it.
    pub isolation: Isolation,
    /// What is judged in these directions is in force: the plugin's guard is in the way, or rules of the agent have taken its place.
    pub in_force: bool,
    /// Where.
    pub point: EnforcedAt,
    /// The class of what comes to it; empty where no policy selects it.
    pub ingress_class: String,
    /// The class of what leaves it.
    pub egress_class: String,
    /// Addresses of the own node, for a guard that has to stay; those of its bridges among them, from where kubelet's probes come.
    pub node: Vec<IpAddr>,
}

/// Where a pod's policies are enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcedAt {
    /// In the node's network namespace. The guard has to go.
    #[default]
    Node,
    /// In the pod's. The agent puts its rules in the guard's place.
    Pod,
    /// In both.
    Both,
}

/// Pods that are gone, so that nothing of theirs is left when their addresses are given to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleaseRequest {
    /// Each of them.
    pub pods: Vec<ReleasedPod>,
}

/// A pod that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleasedPod {
    /// `metadata.uid`, empty where the runtime does not pass it.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The addresses that it had.
    pub addresses: Vec<IpAddr>,
}

/// What an ADD did about policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyOutcome {
    /// They are not enforced, or the pod is not one that they can select.
    #[default]
    Off,
    /// The agent has put them into force before the pod started.
    Prepared,
    /// The pod started isolated, until the agent does so.
    Guarded,
    /// There was no agent, and no policy that was known last selects the pod.
    Unselected,
    /// There was no agent, and the pod started without a policy that selects it, as the configuration allows.
    Open,
}

impl PolicyOutcome {
    /// Whether it is the usual one, which is not worth a word.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// A stable name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prepared => "prepared",
            Self::Guarded => "guarded",
            Self::Unselected => "unselected",
            Self::Open => "open",
        }
    }
}
