//! What is asked of a cluster.

use std::net::IpAddr;

use facts::LabelSet;
use facts::networkpolicy::PolicyProtocol;

use crate::terms::{PodTerm, PolicyTerms};

/// A cluster, as far as verdicts depend on it.
pub trait World {
    /// How a pod is looked at.
    type Pod<'a>: PolicyPod
    where
        Self: 'a;

    /// The live pod that has an address: with a network of its own, and not ended. Of several that claim it, that has it which is not being
    /// deleted, then which is younger.
    fn pod_at(&self, address: IpAddr) -> Option<Self::Pod<'_>>;

    /// Whether an address is one of the node that a pod runs on.
    fn is_own_node(&self, pod: &Self::Pod<'_>, address: IpAddr) -> bool;

    /// The labels of a namespace; nothing while its object is not known.
    fn namespace_labels(&self, namespace: &str) -> Option<&LabelSet>;

    /// All policies, in any order.
    fn policies(&self) -> impl Iterator<Item = &PolicyTerms>;

    /// Whether a term means a pod that is live.
    fn selects(&self, term: &PodTerm, pod: &Self::Pod<'_>) -> bool {
        let labels = self.namespace_labels(pod.namespace());
        let namespace_label = labels.map(|labels| |key: &str| labels.get(key));
        term.selects(pod.namespace(), namespace_label, |key| pod.label(key))
    }
}

/// A live pod.
pub trait PolicyPod {
    /// Its namespace.
    fn namespace(&self) -> &str;

    /// Its name.
    fn name(&self) -> &str;

    /// The value of a label, if it is there.
    fn label(&self, key: &str) -> Option<&str>;

    /// Whether a container of it gives a port this name.
    fn names_port(&self, name: &str, protocol: PolicyProtocol, number: u16) -> bool;
}
