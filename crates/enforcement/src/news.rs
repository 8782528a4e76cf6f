//! What is told of enforcing: to the log's reader, to metrics, as Events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use facts::NetworkPolicy;
use policy::MixedService;
use policy::index::{LocalName, PeerSet, PolicyIndex};

use super::point::{EnforcementPoint, PointLook};
use super::points::Points;
use super::tenants::TenantStanding;

/// Something that others may want to know.
#[derive(Debug)]
pub enum PolicyNews<'a> {
    /// How it stands, after each turn.
    Standing(&'a PolicyStanding),
    /// What watches told is in the kernel, so long after the first of it was told.
    InKernel(Duration),
    /// Rules know the address of a pod of the cluster, so long after the pod was created.
    PeerKnown(Duration),
    /// Rules were not as they should be, which a look has shown, and are again.
    Repaired(EnforcementPoint, PointLook),
    /// Entries of a policy do not count, because an API server would refuse them. Once for each generation of it.
    Refused {
        /// The policy.
        policy: &'a NetworkPolicy,
        /// Whether it selects pods of this node.
        selects: bool,
    },
    /// A pod may not reach a Service, because some of its endpoints are denied and where the pod is judged they cannot be told apart. Once for
    /// all pods that the same policies select.
    Mixed(&'a LocalName, &'a MixedService),
    /// Connections from or to these addresses may be denied now that were allowed.
    Narrowed(&'a [IpAddr]),
    /// How many there are of what is counted.
    Counted(&'a PolicyCounts),
    /// What is in force of tenants by now, of all of them.
    Tenants(&'a [TenantStanding]),
}

/// How enforcing stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyStanding {
    /// Not all lists are complete; nothing is opened or closed.
    NotListed,
    /// Not all lists are complete, and what is in force is what an earlier agent knew at that time.
    Remembered(SystemTime),
    /// Policies are in force as they are now.
    InForce,
    /// A kernel did not take all of it, and it is tried again.
    Failing(String),
}

/// Of the pods of the node, and of what their policies need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    /// Pods, by where their policies are enforced, and whether any isolates them.
    pub pods: BTreeMap<(EnforcementPoint, bool), usize>,
    /// Pods whose packets the node's rules do not see, by the name of the reason.
    pub unseen: BTreeMap<&'static str, usize>,
    /// Addresses of pods that peers are.
    pub peers: usize,
    /// Addresses with ports that have names.
    pub named_ports: usize,
    /// Entries of policies that do not count.
    pub refused: usize,
    /// Names of ports that no pod has.
    pub unresolved_names: usize,
}

// === impl PolicyCounts ===

impl PolicyCounts {
    pub(super) fn of(index: &PolicyIndex, refused: usize, points: &Points) -> Self {
        let mut counts = Self { refused, ..Self::default() };
        for (_, reason) in points.unseen() {
            *counts.unseen.entry(reason.name()).or_default() += 1;
        }
        for (pod, _, classes) in index.pods() {
            *counts.pods.entry((points.of(pod), classes.iter().next().is_some())).or_default() += 1;
        }
        for (set, members) in index.sets() {
            let members = members.count();
            match **set {
                PeerSet::Pods(_) => counts.peers += members,
                PeerSet::Ports(..) | PeerSet::OwnPorts(..) => {
                    counts.named_ports += members;
                    counts.unresolved_names += usize::from(members == 0);
                }
            }
        }
        counts
    }
}
