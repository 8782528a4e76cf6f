//! An end of a connection as it is named: a pod, an address, the own node.

use std::net::IpAddr;

use policy::{PlainWorld, World as _};

use super::source::KnownCluster;

/// An end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PolicyEnd {
    Pod(String, String),
    Address(IpAddr),
    /// By its name; without one the own node.
    Node(Option<String>),
}

/// There is nothing of that name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotThere(pub(super) String);

/// `NAMESPACE/POD`, an address, `node` or `node:NAME`.
pub(super) fn parse_end(text: &str) -> Result<PolicyEnd, String> {
    if let Ok(address) = text.parse() {
        return Ok(PolicyEnd::Address(address));
    }
    if text == "node" {
        return Ok(PolicyEnd::Node(None));
    }
    if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
        return Ok(PolicyEnd::Node(Some(name.to_owned())));
    }
    let (namespace, name) =
        parse_name(text).map_err(|()| "write NAMESPACE/POD, an address, node, or node:NAME".to_owned())?;
    Ok(PolicyEnd::Pod(namespace, name))
}

/// `NAMESPACE/NAME`.
pub(super) fn parse_name(text: &str) -> Result<(String, String), ()> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(()),
    }
}

/// As [`parse_name`], of a policy.
pub(super) fn policy_name(text: &str) -> Result<(String, String), String> {
    parse_name(text).map_err(|()| "write NAMESPACE/NAME of the policy".to_owned())
}

impl PolicyEnd {
    /// Its addresses.
    pub(super) fn addresses(&self, known: &KnownCluster) -> Result<Vec<IpAddr>, NotThere> {
        match self {
            Self::Address(address) => Ok(vec![*address]),
            Self::Node(name) => {
                let name = name.as_deref().or(known.node.as_deref());
                let name = name.or_else(|| only_node(&known.world)).ok_or_else(|| {
                    NotThere("which node is meant is not known; give node:NAME or an address".to_owned())
                })?;
                let addresses = known.world.node(name).filter(|addresses| !addresses.is_empty());
                let missing = || NotThere(format!("no addresses of node {name:?} are known; give one"));
                Ok(addresses.ok_or_else(missing)?.to_vec())
            }
            Self::Pod(namespace, name) => {
                let Some(pod) = known.world.pod(namespace, name) else {
                    let advice = if known.knows_all {
                        "look with cnictl policy list, or kubectl get pods"
                    } else {
                        "it may be of another node: give its address"
                    };
                    return Err(NotThere(format!("pod {namespace}/{name} is not known; {advice}")));
                };
                if pod.facts.addresses.is_empty() {
                    return Err(NotThere(format!("pod {namespace}/{name} has no address yet")));
                }
                Ok(pod.facts.addresses.to_vec())
            }
        }
    }
}

fn only_node(world: &PlainWorld) -> Option<&str> {
    let mut nodes = world.nodes();
    nodes.next().filter(|_| nodes.next().is_none()).map(|(name, _)| name)
}

/// An address for people, with the pod that has it.
pub(super) fn named(known: &KnownCluster, address: IpAddr) -> String {
    match known.world.pod_at(address) {
        Some(pod) if !pod.is_nameless() => pod.to_string(),
        _ => address.to_string(),
    }
}
