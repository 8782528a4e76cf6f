//! A snapshot as a cluster that verdicts are asked of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use facts::Peer;
use facts::peer::{NamedPort, Phase};

use super::{PolicySnapshot, SnapshotServices};
use crate::index::{PeerMember, PeerSet};
use crate::plain::{PlainPod, PlainWorld};

impl PolicySnapshot {
    /// The cluster that it tells of. `node` is the name of the own node, where it is known; else the one that its pods name.
    ///
    /// Addresses that rules mean and that no known pod has are pods without a name: of these it is only known which terms mean them.
    #[must_use]
    pub fn world(&self, node: Option<&str>) -> PlainWorld {
        let mut world = PlainWorld::default();
        for (name, labels) in &self.namespaces {
            world.put_namespace(name, facts::Namespace { labels: labels.clone() });
        }
        self.policies.iter().for_each(|policy| world.put_policy((**policy).clone()));
        let own = node.or_else(|| self.pods.first().map(|pod| &*pod.facts.node)).unwrap_or_default();
        world.put_node(own, self.node.clone());
        let known: BTreeSet<IpAddr> =
            self.pods.iter().flat_map(|pod| pod.facts.addresses.iter().copied()).collect();
        let mut nameless: BTreeMap<IpAddr, Vec<NamedPort>> = BTreeMap::new();
        for (set, members) in &self.sets {
            let unknown = || members.iter().filter(|member| !known.contains(&member.address));
            for PeerMember { address, .. } in unknown() {
                nameless.entry(*address).or_default();
            }
            match set {
                PeerSet::Pods(term) => world.put_meant(term, unknown().map(|member| member.address)),
                PeerSet::Ports(term, name, _) => {
                    for PeerMember { address, port } in unknown() {
                        let Some((protocol, number)) = *port else { continue };
                        let port = NamedPort { name: name.clone(), protocol, number };
                        nameless.entry(*address).or_default().push(port);
                    }
                    term.iter().for_each(|term| world.put_meant(term, unknown().map(|one| one.address)));
                }
                PeerSet::OwnPorts(..) => {}
            }
        }
        self.pods.iter().for_each(|pod| world.put_pod(pod.clone()));
        if let Some(SnapshotServices { services, slices }) = &self.services {
            for (namespace, name, service) in services {
                world.put_service(namespace, name, (**service).clone());
            }
            for (namespace, name, slice) in slices {
                world.put_slice(namespace, name, (**slice).clone());
            }
        }
        for (address, mut ports) in nameless {
            ports.sort_unstable();
            ports.dedup();
            let (addresses, ports) = ([address].into(), ports.into());
            let facts = Peer { addresses, ports, phase: Phase::Running, ..Peer::default() };
            let name = address.to_string().into();
            world.put_pod(PlainPod { namespace: "".into(), name, is_enrolled: false, facts });
        }
        world
    }
}
