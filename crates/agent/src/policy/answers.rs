//! Plugins ask about pods that start and end, and what is known is kept on disk: both by the task of policies.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::Cluster;
use enforcement::{
    DenialBook, EnforcementPoint, KnownPoint, KnownPolicies, NotPrepared, PodToPrepare, Policies,
    PolicyStanding, PreparedPod, ReachedService, TenantReport,
};
use facts::networkpolicy::Isolation;
use facts::object::REDIRECTION;
use facts::{LabelSet, PodRef};
use kernel::pair::PodInterface;
use netns::Netns;
use policy::compile::log_number_text;
use policy::index::PolicyClass;
use policy::snapshot::PolicySnapshot;
use policy::tenancy::NamespaceClaim;
use rundir::policy::{
    EnforcedAt, MAX_POLICY_PODS, PolicyPointReport, PolicyStateReport, PrepareAnswer, PrepareRequest,
    ReleaseRequest, StandingWord, TenantClaimReport, TenantServiceReport, TenantStateReport,
};
use tokio::sync::watch;

use super::PolicyLeaver;
use super::pod_point::PodPointKeeper;
use crate::ambient::{AmbientConfig, open_host};
use crate::pods_report::seconds;
use crate::policy_socket::{PolicyFuture, PolicyHandle};

/// How long a pod that starts waits for the rules that judge its tunnel.
const TUNNEL_LIMIT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone)]
pub(crate) struct PolicyAnswers {
    pub(crate) policies: Policies,
    pub(crate) cluster: Cluster,
    /// This node's name.
    pub(crate) node: String,
    /// Says where the node's network namespace is.
    pub(crate) config: AmbientConfig,
    /// Knows which pods have no rules of their own yet.
    pub(crate) keeper: Option<Arc<PodPointKeeper>>,
    /// What was denied.
    pub(crate) book: Option<Arc<DenialBook>>,
    /// Knows whether policies are not enforced any more.
    pub(crate) leaver: Arc<PolicyLeaver>,
}

// === impl PolicyAnswers ===

impl PolicyHandle for PolicyAnswers {
    fn prepare(
        &self,
        request: PrepareRequest,
        netns: Option<Arc<OwnedFd>>,
    ) -> PolicyFuture<Result<PrepareAnswer, String>> {
        let own = self.clone();
        Box::pin(async move {
            if own.leaver.has_begun() {
                // What isolates others goes, and nobody would end a guard.
                return Ok(PrepareAnswer { in_force: true, ..PrepareAnswer::default() });
            }
            let PrepareRequest { uid, namespace, name, labels, addresses, interface, .. } = request;
            // What a runtime calls it may not be what the network plugin made.
            let interface = match addresses.is_empty() {
                true => PodInterface::Named(interface),
                false => PodInterface::With(addresses.clone()),
            };
            let network = netns.and_then(|netns| network_of(&netns)).map(|netns| (netns, interface));
            let pod = PodRef { uid, ..PodRef::named(namespace, name) };
            let labels = labels.map(|labels| LabelSet::from(&labels)).or_else(|| own.labels(&pod));
            let Some(labels) = labels else { return Err(format!("the labels of pod {pod} are not known")) };
            let starting = PodToPrepare { pod: pod.clone(), labels, addresses, network };
            let mut answer = match own.policies.prepare(starting).await {
                Ok(prepared) => {
                    if prepared.point == EnforcementPoint::Both {
                        // Rules that judge what is inside the tunnel take the guard's place. It stays where they do not come in time, until they do.
                        let _ = tokio::time::timeout(TUNNEL_LIMIT, own.policies.tunnel_judged(pod)).await;
                    }
                    answer(&prepared)
                }
                // Any tenant may have it. What was known last is older, and may say otherwise.
                Err(NotPrepared::Namespace(_)) => {
                    PrepareAnswer { isolation: Isolation::BOTH, ..PrepareAnswer::default() }
                }
                Err(error) => return Err(fault::chain(&error)),
            };
            // They are for the guard, which a pod gets whose policies are not in force yet.
            if !answer.in_force && !answer.isolation.is_none() {
                answer.node = own.node_addresses().await;
            }
            Ok(answer)
        })
    }

    fn release(&self, request: ReleaseRequest) -> PolicyFuture<Result<(), String>> {
        let policies = self.policies.clone();
        Box::pin(async move {
            for pod in request.pods {
                policies.released(PodRef { uid: pod.uid, ..PodRef::named(pod.namespace, pod.name) }).await;
            }
            Ok(())
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.policies.turns()
    }

    fn state(&self) -> PolicyFuture<PolicyStateReport> {
        let own = self.clone();
        Box::pin(async move {
            let (standing, problem, known_at) = match own.policies.standing() {
                PolicyStanding::NotListed => (StandingWord::NotListed, String::new(), None),
                PolicyStanding::Remembered(at) => {
                    (StandingWord::Remembered, String::new(), Some(seconds(at)))
                }
                PolicyStanding::InForce => (StandingWord::InForce, String::new(), None),
                PolicyStanding::Failing(error) => (StandingWord::Failing, error, None),
            };
            let at = seconds(SystemTime::now());
            let node = own.node.clone();
            let report = PolicyStateReport { at, node, standing, problem, known_at, ..Default::default() };
            let tenants = own.policies.tenants().await;
            let tenants = tenants.map(|all| all.tenants.iter().map(tenant_state).collect());
            let report = PolicyStateReport { tenants, ..report };
            let Some(known) = own.policies.known(MAX_POLICY_PODS).await else { return report };
            let KnownPolicies { mut snapshot, points, left_out } = known;
            snapshot.node = own.node_addresses().await;
            own.mark_enrolled(&mut snapshot);
            let points = points.into_iter().map(|point| own.point(point)).collect();
            let denied = own.book.as_ref().map(|book| book.denied()).unwrap_or_default().into_iter();
            let denied = denied.map(|(class, packets)| (log_number_text(class), packets)).collect();
            let known = String::from_utf8(snapshot.to_bytes()).unwrap_or_default();
            PolicyStateReport { points, denied, pods_left_out: left_out, known, ..report }
        })
    }

    fn known_at(&self) -> Option<SystemTime> {
        match self.policies.standing() {
            PolicyStanding::Remembered(at) => Some(at),
            _ => None,
        }
    }

    fn snapshot(&self) -> PolicyFuture<Option<PolicySnapshot>> {
        let own = self.clone();
        Box::pin(async move {
            let mut known = own.policies.snapshot().await?;
            own.mark_enrolled(&mut known);
            Some(PolicySnapshot { node: own.node_addresses().await, ..known })
        })
    }
}

impl PolicyAnswers {
    fn point(&self, at: KnownPoint) -> PolicyPointReport {
        let KnownPoint { pod, point, unseen } = at;
        PolicyPointReport {
            point: enforced_at(point),
            unseen: unseen.as_ref().map(|reason| reason.name().to_owned()).unwrap_or_default(),
            unseen_text: unseen.map(|reason| reason.to_string()).unwrap_or_default(),
            is_guarded: self.keeper.as_ref().is_some_and(|keeper| keeper.is_guarded(&pod)),
            namespace: pod.namespace.into(),
            name: pod.name.into(),
        }
    }

    /// What the own node sends from: all addresses of its interfaces. Nothing where they cannot be had.
    async fn node_addresses(&self) -> Vec<IpAddr> {
        let config = self.config.clone();
        let look = move || -> Option<Vec<IpAddr>> {
            let host = open_host(&config).ok()?;
            host.enter(|inside| kernel::route::link_addresses(inside.inside())).ok()?.ok()
        };
        tokio::task::spawn_blocking(look).await.ok().flatten().unwrap_or_default()
    }

    /// Notes which pods of this node are in ambient mode.
    fn mark_enrolled(&self, snapshot: &mut PolicySnapshot) {
        let index = self.cluster.index();
        for pod in &mut snapshot.pods {
            let facts = index.facts(&pod.namespace, &pod.name);
            pod.is_enrolled = facts.is_some_and(|facts| facts.pod.annotation(REDIRECTION) == Some("enabled"));
        }
    }

    /// As the API server told them, of the same pod.
    fn labels(&self, pod: &PodRef) -> Option<LabelSet> {
        let facts = self.cluster.index().facts(&pod.namespace, &pod.name)?;
        facts.pod.check(pod).ok()?;
        let labels = facts.pod.metadata.as_ref()?.labels.as_ref();
        Some(labels.map(LabelSet::from).unwrap_or_default())
    }
}

fn enforced_at(point: EnforcementPoint) -> EnforcedAt {
    match point {
        EnforcementPoint::Node => EnforcedAt::Node,
        EnforcementPoint::Pod => EnforcedAt::Pod,
        EnforcementPoint::Both => EnforcedAt::Both,
    }
}

/// The namespace that a plugin handed over. Its path leads to it for as long as it is held.
fn network_of(descriptor: &OwnedFd) -> Option<Arc<Netns>> {
    let descriptor = descriptor.try_clone().ok()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd());
    Netns::from_descriptor(descriptor, path.into()).ok().map(Arc::new)
}

fn answer(prepared: &PreparedPod) -> PrepareAnswer {
    let named = |class: &Option<Arc<PolicyClass>>| {
        let policies = class.iter().flat_map(|class| &class.policies).map(ToString::to_string);
        policies.collect::<Vec<_>>().join(", ")
    };
    let classes = &prepared.classes;
    PrepareAnswer {
        isolation: prepared.isolation,
        // Rules come into a pod's own namespace a moment later; until then it is guarded.
        in_force: prepared.point != EnforcementPoint::Pod,
        point: enforced_at(prepared.point),
        ingress_class: named(&classes.ingress),
        egress_class: named(&classes.egress),
        node: Vec::new(),
    }
}

fn tenant_state(tenant: &TenantReport) -> TenantStateReport {
    let claim = |NamespaceClaim { namespace, state }: &NamespaceClaim| TenantClaimReport {
        name: namespace.to_string(),
        state: state.name().to_owned(),
        tenant: state.older().unwrap_or_default().to_owned(),
    };
    let service = |one: &ReachedService| TenantServiceReport {
        namespace: one.namespace.to_string(),
        name: one.name.to_string(),
        reason: one.reach.reason().unwrap_or_default().to_owned(),
    };
    TenantStateReport {
        name: tenant.name.to_string(),
        generation: tenant.generation,
        in_force: tenant.in_force,
        enforcement: tenant.enforcement.name().to_owned(),
        namespaces: tenant.claims.iter().map(claim).collect(),
        services: tenant.services.iter().map(service).collect(),
        pods: tenant.pods,
        faults: tenant.faults.texts().collect(),
    }
}
