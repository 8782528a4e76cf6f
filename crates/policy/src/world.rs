//! What is asked of a cluster.

use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;
use facts::{LabelSet, Selector};

use crate::terms::{PodTerm, PolicyTerms};

/// A cluster's policies, for verdicts.
pub trait PolicyWorld: World {
    /// All policies, in any order.
    fn policies(&self) -> impl Iterator<Item = &PolicyTerms>;
}

/// A cluster's pods and namespaces, as far as policies go by them.
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

    /// The live pods of a namespace that a selector selects.
    fn pods_in<'a>(&'a self, namespace: &str, labels: &Selector) -> impl Iterator<Item = Self::Pod<'a>>;

    /// The names of the namespaces that have pods.
    fn namespaces(&self) -> impl Iterator<Item = &str>;

    /// The names of the namespaces that have pods and whose labels a selector selects. One whose object is not known is not selected.
    fn namespaces_with(&self, labels: &Selector) -> Vec<&str> {
        let is_meant = |name: &&str| {
            self.namespace_labels(name).is_some_and(|known| labels.selects(|key| known.get(key)))
        };
        self.namespaces().filter(is_meant).collect()
    }

    /// Whether a term means a pod that is live.
    fn selects(&self, term: &PodTerm, pod: &Self::Pod<'_>) -> bool {
        let labels = self.namespace_labels(pod.namespace());
        let namespace_label = labels.map(|labels| |key: &str| labels.get(key));
        term.selects(pod.namespace(), namespace_label, |key| pod.label(key))
    }
}

/// A cluster's Services, for rules that see packets before a service proxy has chosen where they go.
pub trait ServiceWorld: World {
    /// Each address and port of each Service.
    fn service_addresses(&self) -> impl Iterator<Item = ServiceAddress<'_>>;
}

/// An address and port of a Service, and where they lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The address that clients ask for.
    pub address: IpAddr,
    /// The protocol that clients speak.
    pub protocol: PolicyProtocol,
    /// The port that clients ask for.
    pub port: u16,
    /// Where the service proxy may lead them, of the address's family.
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// A live pod.
pub trait PolicyPod {
    /// Its namespace.
    fn namespace(&self) -> &str;

    /// Its name.
    fn name(&self) -> &str;

    /// The value of a label, if it is there.
    fn label(&self, key: &str) -> Option<&str>;

    /// Its labels.
    fn labels(&self) -> impl Iterator<Item = (&str, &str)>;

    /// Its addresses.
    fn addresses(&self) -> &[IpAddr];

    /// The numbers of the ports to which its containers give this name.
    fn ports(&self, name: &str, protocol: PolicyProtocol) -> impl Iterator<Item = u16>;
}
