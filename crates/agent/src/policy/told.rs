//! What is told of the enforcement of policies: readiness, metrics, Events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::Cluster;
use enforcement::{EnforcementPoint, PointLook, PolicyListener, PolicyNews, PolicyStanding, TenantStanding};
use facts::NetworkPolicy;
use facts::tenant::TenantEnforcement;
use policy::MixedService;
use policy::index::LocalName;
use telemetry::Scope;

use super::cuts::NarrowedAddresses;
use crate::events::Events;
use crate::health::{Health, HealthPart, Notice};
use metrics::{CountedTenant, Metrics};

/// `reason` of Events about the node, pods and policies.
pub(super) const REPAIRED: &str = "NetworkPolicyRulesRepaired";
const MIXED_SERVICE: &str = "NetworkPolicyMixedService";
const INVALID: &str = "NetworkPolicyInvalidEntries";
/// Pause between two Events about the node, or about a pod; every repair is counted and in the log.
pub(super) const BETWEEN_EVENTS: Duration = Duration::from_secs(60);

/// Who hears of it.
pub(crate) struct PolicyTeller {
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: Arc<Events>,
    pub(crate) cluster: Cluster,
    pub(crate) log: Scope,
    /// Connections of these are looked at; nothing where they go on.
    pub(crate) narrowed: Option<Arc<NarrowedAddresses>>,
    /// When an Event about the node was written last.
    pub(crate) written: Mutex<Option<Instant>>,
}

impl PolicyTeller {
    pub(crate) fn listener(self) -> PolicyListener {
        Arc::new(move |news| self.hear(&news))
    }

    fn hear(&self, news: &PolicyNews<'_>) {
        let metrics = &self.metrics;
        match *news {
            PolicyNews::Standing(standing) => self.standing(standing),
            PolicyNews::InKernel(after) => metrics.policy_in_kernel(after),
            PolicyNews::PeerKnown(after) => metrics.policy_peer_known(after),
            PolicyNews::Repaired(at, look) => self.repaired(at, look),
            PolicyNews::Refused { policy, selects } => self.refused(policy, selects),
            PolicyNews::Mixed(pod, service) => self.mixed(pod, service),
            PolicyNews::Narrowed(addresses) => {
                self.narrowed.iter().for_each(|narrowed| narrowed.add(addresses));
            }
            PolicyNews::Tenants(tenants) => self.tenants(tenants),
            PolicyNews::Counted(counts) => {
                let pods = counts.pods.iter().map(|((at, isolated), pods)| (at.name(), *isolated, *pods));
                metrics.policy_pods(pods);
                metrics.policy_unseen(&counts.unseen);
                metrics.policy_entries(
                    counts.peers,
                    counts.named_ports,
                    counts.refused,
                    counts.unresolved_names,
                );
            }
        }
    }

    /// Keeps readiness. What was in force once stays in the kernel, so that nothing is unready for a failure later.
    fn standing(&self, standing: &PolicyStanding) {
        let health = &self.health;
        match standing {
            PolicyStanding::InForce => health.ready(HealthPart::Policies),
            _ if health.is_ready(HealthPart::Policies) => {}
            PolicyStanding::NotListed => {
                health.pending(HealthPart::Policies, &"not everything that policies go by is listed yet");
            }
            PolicyStanding::Failing(error) => health.pending(HealthPart::Policies, error),
        }
    }

    fn repaired(&self, at: EnforcementPoint, look: PointLook) {
        self.metrics.policy_repaired(match look {
            PointLook::Disturbed => "commit",
            PointLook::Everything => "turn",
        });
        if at != EnforcementPoint::Node {
            return;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some_and(|at| at.elapsed() < BETWEEN_EVENTS) {
            return;
        }
        *written = Some(Instant::now());
        let events = self.events.clone();
        let text = "another program changed the rules of network policies in this node's network namespace; they are put right. Until then pods were \
                    not isolated as their policies say: find out what flushes rules here (a firewall's reload, nft flush ruleset)";
        tokio::spawn(async move { events.about_node(true, REPAIRED, text).await });
    }

    fn mixed(&self, pod: &LocalName, service: &MixedService) {
        let MixedService { namespace, name, protocol, port } = service;
        let text = format!(
            "policies allow some endpoints of Service {namespace}/{name} and deny others, and where this pod is judged they cannot be told apart: \
             port {port} of {} is denied; allow all of its endpoints, or none",
            protocol.name(),
        );
        let pod = self.cluster.index().pod(&pod.namespace, &pod.name).map(|pod| pod.pod_ref());
        let Some(pod) = pod else { return self.log.warn(&text, &[]) };
        self.log.warn(&text, &[("pod", &pod)]);
        let events = self.events.clone();
        tokio::spawn(async move { events.warn(&pod, MIXED_SERVICE, &text).await });
    }

    /// What nobody understands of tenants denies, and allows nothing: people should know.
    fn tenants(&self, tenants: &[TenantStanding]) {
        let counted: Vec<CountedTenant<'_>> = tenants.iter().map(counted).collect();
        self.metrics.tenants(&counted);
        let mut told = Vec::new();
        for TenantStanding { name, faults, refused, .. } in tenants {
            let first = faults.first.iter().map(ToString::to_string);
            let more = faults.count.saturating_sub(faults.first.len());
            told.extend(first.map(|fault| format!("{name}: {fault}")));
            told.extend((more > 0).then(|| format!("{name}: {more} more entries are not understood")));
            told.extend(
                (*refused > 0).then(|| format!("{name}: {refused} of its namespaces are another tenant's")),
            );
        }
        if told.is_empty() {
            self.health.settled(Notice::Tenants);
        } else if self.health.notice(Notice::Tenants, &told.join("; ")) {
            self.log.warn("not everything of all tenants is in force", &[("tenants", &told.join("; "))]);
        }
    }

    fn refused(&self, policy: &NetworkPolicy, selects: bool) {
        let first: Vec<String> = policy.refused.first.iter().map(ToString::to_string).collect();
        let (count, first) = (policy.refused.count, first.join("; "));
        let name = format!("{}/{}", policy.namespace, policy.name);
        let text = "entries of a network policy match nothing, because an API server would refuse them";
        self.log.warn(text, &[("policy", &name), ("entries", &count), ("first", &first)]);
        // Agents of other nodes say it where it concerns pods.
        if !selects {
            return;
        }
        let (events, namespace, name) = (self.events.clone(), policy.namespace.clone(), policy.name.clone());
        let entries =
            if count == 1 { "1 entry matches".to_owned() } else { format!("{count} entries match") };
        let text = format!("{entries} nothing, because an API server would refuse it: {first}");
        tokio::spawn(async move { events.about_policy(&namespace, &name, INVALID, &text).await });
    }
}

fn counted(tenant: &TenantStanding) -> CountedTenant<'_> {
    let state = match tenant.enforcement {
        TenantEnforcement::Enforce => "enforce",
        TenantEnforcement::Audit => "audit",
        TenantEnforcement::Off => "off",
    };
    let TenantStanding { name, generation, pods, refused, .. } = tenant;
    CountedTenant { name, state, generation: *generation, pods: *pods, refused: *refused }
}
