//! What a NetworkPolicy says (Kubernetes `networking.k8s.io/v1`).
//!
//! Reading never fails because of what a policy means: an entry that the API server would refuse matches nothing, the rest counts, and
//! [`NetworkPolicy::refused`] names what was left out. Manifests and snapshots have passed no API server.

mod block;
mod isolation;
mod port;
#[cfg(test)]
mod tests;
mod wire;

use serde::{Deserialize, Deserializer};

pub use block::{Block, BlockError};
pub use isolation::Isolation;
pub(crate) use port::number as port_number;
pub use port::{NumberOrName, PolicyProtocol, Port, PortError};

use crate::labels::{Selector, SelectorError};

/// The annotation by which a policy is only tried out, and its value.
pub const MODE: (&str, &str) = ("policy.cni.istio.io/mode", "audit");

/// Most entries of a policy that count: rules, peers, ports, blocks and requirements of selectors together. An object that an API server
/// stores has room for some more of the shortest.
pub const MAX_ENTRIES: usize = 50_000;

/// Most refused entries that are named; all of them are counted.
const MAX_REFUSED: usize = 8;

/// A policy, as far as traffic depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace, whose pods it selects.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `metadata.generation`: another number after each change of what it says; 0 in a manifest.
    pub generation: u64,
    /// Whether it is only tried out ([`MODE`]): what it would deny is counted and logged, and allowed.
    pub is_tried_out: bool,
    /// The pods that it is about.
    pub subjects: Selector,
    /// What it says of traffic to them.
    pub ingress: PolicyDirection,
    /// What it says of traffic from them.
    pub egress: PolicyDirection,
    /// The entries that do not count.
    pub refused: Refused,
}

/// One direction of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyDirection {
    /// Whether the policy isolates its pods in this direction.
    pub isolates: bool,
    /// What it allows, in the order in which it is written. Empty where it does not isolate.
    pub rules: Box<[PolicyRule]>,
}

/// Traffic that is allowed: peers and ports both match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// Who is on the other end.
    pub peers: Entries<PolicyPeer>,
    /// What the destination is asked on.
    pub ports: Entries<Port>,
}

/// A list of a rule, which in a policy means everything where it is missing or empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entries<T> {
    /// Everything, also what no entry could name.
    Any,
    /// One of these. Nothing, if the API server would refuse all that are written.
    Of(Box<[T]>),
}

/// One entry of `from` or `to`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PolicyPeer {
    /// Pods of the policy's namespace.
    Pods(Selector),
    /// Pods of other namespaces, or of the same.
    PodsIn {
        /// Labels of their namespaces.
        namespaces: Selector,
        /// Their own labels.
        pods: Selector,
    },
    /// Addresses, whatever has them.
    Block(Block),
}

/// Entries that do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    /// How many.
    pub count: usize,
    /// The first ones, in the order in which they are written.
    pub first: Vec<RefusedEntry>,
}

/// An entry that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct RefusedEntry {
    /// Where it is in the object, such as `spec.ingress[0].from[1]`.
    pub place: String,
    /// Why.
    #[source]
    pub reason: EntryRefusal,
}

/// Why an entry does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryRefusal {
    /// Of `policyTypes`. The policy isolates in both directions.
    #[error("a type is neither Ingress nor Egress; the policy isolates its pods in both directions")]
    Type,
    /// Of the selector of the policy's own pods. It selects by the rest, isolates in both directions and allows nothing.
    #[error("{0}; the policy isolates the pods that the rest selects in both directions, and allows nothing")]
    Subjects(SelectorError),
    /// A peer that says nothing.
    #[error("it has no podSelector, namespaceSelector or ipBlock")]
    Empty,
    /// A block together with a selector.
    #[error("ipBlock stands together with a selector")]
    BlockAndSelector,
    /// Of a peer's selector.
    #[error(transparent)]
    Selector(SelectorError),
    /// Of a block.
    #[error(transparent)]
    Block(BlockError),
    /// Of a port.
    #[error(transparent)]
    Port(PortError),
    /// There are too many.
    #[error("it comes after {MAX_ENTRIES} entries; split the policy")]
    TooMany,
}

// === impl NetworkPolicy ===

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        wire::Policy::deserialize(deserializer).map(wire::Policy::read)
    }
}

impl Refused {
    fn add(&mut self, place: impl FnOnce() -> String, reason: EntryRefusal) {
        self.count += 1;
        if self.first.len() < MAX_REFUSED {
            self.first.push(RefusedEntry { place: place(), reason });
        }
    }

    /// Whether every entry counts.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
