//! The verdicts of a file, compared with what compiled rules do.

use std::net::IpAddr;

use ruleset::Backend;

use super::{CaseConnection, CaseDifference, CaseError, CaseFile, CaseState, CasesError};
use crate::compiled::{CompiledNodes, CompiledPods, PointVerdict};
use crate::{FlowRoute, PlainWorld, PolicyFlow, ServiceWorld as _, World as _, verdict};

/// What a comparison with rules comes to.
#[derive(Debug, Default)]
pub struct RulesReport {
    /// Connections that were looked at, one for each endpoint that a service proxy may choose.
    pub connections: usize,
    /// Where the rules do something else than the file says.
    pub differences: Vec<CaseDifference>,
    /// Differences that rules in a pod's own namespace cannot but have.
    pub known: Vec<(CaseDifference, PointDifference)>,
}

/// What rules in a pod's own namespace cannot tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointDifference {
    /// Of a Service some endpoints are allowed and some are not: which one it will be is not known in the source, so it is denied.
    #[error("some endpoints of the Service are denied, so the Service is")]
    MixedService,
    /// A pod reaches itself by a Service: that comes from the address of its node.
    #[error("what comes back from a service proxy has the node's address")]
    Hairpin,
    /// The address of a Service, without a service proxy that leads elsewhere: nothing answers there.
    #[error("an address of a Service stands for its endpoints")]
    ServiceAddress,
    /// A pod that has the address of the node.
    #[error("a pod has the node's own address")]
    NodeAddress,
}

// === impl CaseFile ===

impl CaseFile {
    /// Compares each verdict of the file with what the rules of the two pods do, each in its own namespace.
    ///
    /// # Errors
    /// A case cannot be used.
    pub fn compare_rules(&self, backend: Backend) -> Result<RulesReport, CasesError> {
        let mut report = RulesReport::default();
        self.states(|state| report.state(state, backend))?;
        Ok(report)
    }

    /// Compares each verdict of the file with what the rules of the two ends' nodes do. What is in the tunnel of ambient mode is judged in pods, and left out
    /// here.
    ///
    /// # Errors
    /// A case cannot be used.
    pub fn compare_node_rules(&self, backend: Backend) -> Result<RulesReport, CasesError> {
        let mut report = RulesReport::default();
        self.states(|state| report.node_state(state, backend))?;
        Ok(report)
    }
}

// === impl RulesReport ===

impl RulesReport {
    fn state(&mut self, state: &CaseState<'_>, backend: Backend) -> Result<(), CaseError> {
        let pods = CompiledPods::new(state.world, backend, |pod| pod.is_enrolled);
        for connection in state.connections()? {
            for flow in &connection.flows {
                self.flow(state, &pods, &connection, flow);
            }
        }
        Ok(())
    }

    fn node_state(&mut self, state: &CaseState<'_>, backend: Backend) -> Result<(), CaseError> {
        let nodes = CompiledNodes::new(state.world, backend);
        let inside = CompiledPods::inner(state.world, backend);
        for connection in state.connections()? {
            for flow in &connection.flows {
                self.connections += 1;
                let (expected, mut found) = (connection.allows(flow), nodes.judge(flow));
                if found.is_allowed && flow.route == FlowRoute::Tunnel {
                    let ends = [inside.egress(flow, connection.service.flatten()), inside.ingress(flow)];
                    found = ends.into_iter().find(|end| !end.is_allowed).unwrap_or(found);
                }
                if expected.is_some_and(|expected| expected != found.is_allowed) {
                    let found = (found.is_allowed, format!("node {}", text(&found)));
                    self.differences.push(difference(state, &connection, flow, !found.0, &found));
                }
            }
        }
        Ok(())
    }

    fn flow(
        &mut self,
        state: &CaseState<'_>,
        pods: &CompiledPods<'_>,
        connection: &CaseConnection<'_>,
        flow: &PolicyFlow,
    ) {
        self.connections += 1;
        let Some(expected) = connection.allows(flow) else { return };
        let ends = [pods.egress(flow, connection.service.flatten()), pods.ingress(flow)];
        let found = ends.iter().all(|end| end.is_allowed);
        if found == expected {
            return;
        }
        let [egress, ingress] = ends.map(|end| text(&end));
        let found = (found, format!("egress {egress}; ingress {ingress}"));
        let difference = difference(state, connection, flow, expected, &found);
        let found = found.0;
        match point_difference(state.world, connection, flow, found) {
            Some(known) => self.known.push((difference, known)),
            None => self.differences.push(difference),
        }
    }
}

fn difference(
    state: &CaseState<'_>,
    connection: &CaseConnection<'_>,
    flow: &PolicyFlow,
    expected: bool,
    (found, why): &(bool, String),
) -> CaseDifference {
    let said = |allowed| if allowed { "allowed" } else { "denied" };
    CaseDifference {
        case: state.case.to_owned(),
        step: state.step,
        connection: format!("{} (to {})", connection.name, flow.destination),
        expected: said(expected).to_owned(),
        found: format!("{} ({why})", said(*found)),
    }
}

fn text(end: &PointVerdict) -> String {
    format!("{}: {}", if end.is_allowed { "allowed" } else { "denied" }, end.decided_by)
}

/// Why rules in a pod's own namespace do `found`, if they cannot do otherwise.
pub fn point_difference(
    world: &PlainWorld,
    connection: &CaseConnection<'_>,
    flow: &PolicyFlow,
    found: bool,
) -> Option<PointDifference> {
    let of_service = |address: IpAddr| world.service_addresses().any(|one| one.address == address);
    let own_node = || {
        let pod = world.pod_at(flow.destination);
        pod.is_some_and(|pod| world.is_own_node(&pod, flow.source)) && world.pod_at(flow.source).is_some()
    };
    let ends_are_one = || {
        let source = world.pod_at(flow.source);
        source.is_some() && source == world.pod_at(flow.destination)
    };
    match (flow.route, found) {
        (FlowRoute::Service, false) => {
            let may = |flow: &PolicyFlow| verdict(world, flow).egress.is_allowed();
            let is_mixed = connection.flows.iter().any(may) && !connection.flows.iter().all(may);
            is_mixed.then_some(PointDifference::MixedService)
        }
        (FlowRoute::Service, true) if ends_are_one() => Some(PointDifference::Hairpin),
        (FlowRoute::Direct, true) if of_service(flow.destination) => Some(PointDifference::ServiceAddress),
        (_, true) if own_node() => Some(PointDifference::NodeAddress),
        _ => None,
    }
}
