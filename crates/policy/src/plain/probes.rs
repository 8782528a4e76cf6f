//! The ports on which kubelet asks how a pod is.

use std::collections::BTreeSet;

use facts::networkpolicy::{NumberOrName, PolicyProtocol};
use facts::{Peer, peer::NamedPort};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct ProbedPod {
    #[serde(default)]
    spec: ProbedSpec,
}

#[derive(Default, Deserialize)]
struct ProbedSpec {
    containers: Option<Vec<ProbedContainer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProbedContainer {
    liveness_probe: Option<Probe>,
    readiness_probe: Option<Probe>,
    startup_probe: Option<Probe>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<ProbedPort>,
    tcp_socket: Option<ProbedPort>,
    grpc: Option<ProbedPort>,
}

#[derive(Deserialize)]
struct ProbedPort {
    port: Option<NumberOrName>,
}

// === impl ProbedPod ===

impl ProbedPod {
    /// Their numbers; a name is what the pod's containers mean by it.
    pub(super) fn ports(self, facts: &Peer) -> BTreeSet<u16> {
        let probes = self.spec.containers.into_iter().flatten().flat_map(|container| {
            [container.liveness_probe, container.readiness_probe, container.startup_probe]
        });
        let asked = probes.flatten().flat_map(|probe| [probe.http_get, probe.tcp_socket, probe.grpc]);
        let mut found = BTreeSet::new();
        for port in asked.flatten().filter_map(|one| one.port) {
            match port {
                NumberOrName::Number(number) => found.extend(u16::try_from(number).ok()),
                NumberOrName::Name(name) => {
                    let is_it = |one: &&NamedPort| one.name == name && one.protocol == PolicyProtocol::Tcp;
                    found.extend(facts.ports.iter().filter(is_it).map(|one| one.number));
                }
            }
        }
        found
    }
}
