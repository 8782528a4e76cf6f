//! What is told of the enforcement of policies: readiness, metrics, Events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::Cluster;
use enforcement::{EnforcementPoint, PointLook, PolicyListener, PolicyNews, PolicyStanding, TenantStanding};
use facts::NetworkPolicy;
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
const REMEMBERED: &str = "NetworkPolicySnapshot";
const INVALID: &str = "NetworkPolicyInvalidEntries";
/// Pause between two Events about the node, or about a pod; every repair is counted and in the log.
pub(super) const BETWEEN_EVENTS: Duration = Duration::from_secs(60);

/// How long policies are in force as an earlier agent knew them before that is worth an Event.
const WORTH_AN_EVENT: Duration = Duration::from_secs(10);

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
    /// When that was known which an earlier agent kept and this one goes by, and since when it does.
    pub(crate) remembered: Mutex<Option<(SystemTime, Instant)>>,
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
        if !matches!(standing, PolicyStanding::Failing(_)) {
            let known = if let PolicyStanding::Remembered(at) = standing { Some(*at) } else { None };
            self.remember(known);
        }
        match standing {
            PolicyStanding::InForce | PolicyStanding::Remembered(_) => health.ready(HealthPart::Policies),
            _ if health.is_ready(HealthPart::Policies) => {}
            PolicyStanding::NotListed => {
                health.pending(HealthPart::Policies, &"not everything that policies go by is listed yet");
            }
            PolicyStanding::Failing(error) => health.pending(HealthPart::Policies, error),
        }
    }

    /// Tells by what policies are in force: what is known now, or what an earlier agent knew then.
    fn remember(&self, known: Option<SystemTime>) {
        self.metrics.policy_known(known);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = known else {
            let Some((at, since)) = remembered.take() else { return };
            drop(remembered);
            self.health.settled(Notice::PolicySnapshot);
            return self.tell_remembered(at, since);
        };
        let age = at.elapsed().unwrap_or_default().as_secs();
        let text = format!(
            "the API server has not listed what policies go by: they are those that an earlier agent knew {age} s ago, and no change of them is followed"
        );
        self.health.notice(Notice::PolicySnapshot, &text);
        if remembered.is_none() {
            self.log.warn(&text, &[]);
            *remembered = Some((at, Instant::now()));
        }
    }

    /// Everything is listed, after policies were in force for a while as an earlier agent knew them.
    fn tell_remembered(&self, at: SystemTime, since: Instant) {
        let lasted = since.elapsed();
        let (seconds, age) = (lasted.as_secs(), at.elapsed().unwrap_or_default().as_secs());
        let text = format!(
            "network policies of this node are followed again: for {seconds} s they were those that an earlier agent had known, at last {age} s old, because the \
             API server did not list them"
        );
        self.log.info(&text, &[]);
        // A long list takes some seconds whenever an agent starts.
        if lasted >= WORTH_AN_EVENT {
            let events = self.events.clone();
            tokio::spawn(async move { events.about_node(true, REMEMBERED, &text).await });
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
            told.extend(faults.texts().map(|fault| format!("{name}: {fault}")));
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
    let state = tenant.enforcement.name();
    let TenantStanding { name, generation, pods, refused, .. } = tenant;
    CountedTenant { name, state, generation: *generation, pods: *pods, refused: *refused }
}
