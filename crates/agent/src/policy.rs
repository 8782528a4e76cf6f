//! What the enforcement of policies needs of this agent.

mod answers;
mod audit;
mod cuts;
mod denial_counts;
mod denials;
mod leave;
mod looker;
mod node_point;
mod pod_point;
mod tenant_leader;
mod tenant_status;
mod told;
mod tunnels;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use enforcement::{Policies, StartedPod, StartedPods};
use facts::PodRef;
use tokio::task::{AbortHandle, JoinSet};

use crate::policy_socket::PolicyHandle;
use crate::run::Agent;

use self::usage::{UsageKeeper, UsageParts, has_state, leave as leave_usage};
use answers::PolicyAnswers;
pub(crate) use audit::{AuditConfig, AuditTrail};
pub(crate) use cuts::NarrowedAddresses;
pub(crate) use denials::{DenialParts, DenialReader};
pub(crate) use leave::PolicyLeaver;
pub(crate) use node_point::{NodePoint, node_settings};
pub(crate) use pod_point::{PodPointKeeper, PodPointParts, PodPolicyPoint};
use tenant_leader::TenantLeader;
pub(crate) use told::PolicyTeller;
pub(crate) use tunnels::PolicyTunnels;

/// Where plugins leave word of the pods that they start.
pub(crate) fn started(run_dir: PathBuf) -> StartedPods {
    Arc::new(move || {
        let left = applied::policed::all(&run_dir).unwrap_or_default().into_iter();
        let started = left.filter_map(|sandbox| {
            let pod = sandbox_pod(&sandbox.origin)?;
            Some(StartedPod { pod, addresses: sandbox.origin.addresses })
        });
        started.collect()
    })
}

/// The pod of which a plugin left word.
fn sandbox_pod(origin: &applied::Origin) -> Option<PodRef> {
    let (namespace, name) = origin.pod.split_once('/')?;
    Some(PodRef { uid: origin.uid.clone(), ..PodRef::named(namespace, name) })
}

impl Agent {
    /// Enforces policies, or removes what an earlier agent left that did. What is to be ended before they are left.
    pub(crate) fn enforce_policies(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> Vec<AbortHandle> {
        if let Some(denials) = &self.denials {
            tasks.spawn(denials.clone().live());
            denials.audit().map(|audit| tasks.spawn(audit.live()));
            denials.cutter().map(|cutter| tasks.spawn(cutter.live()));
        }
        match self.policies.clone() {
            Some(policies) => {
                if let Some(keeper) = self.pod_point.clone() {
                    tasks.spawn(looker::live(policies.clone(), keeper, self.cluster.clone()));
                }
                if let Some(leader) = self.tenant_leader(&policies) {
                    tasks.spawn(leader.live());
                }
                let usage = self.usage_parts().and_then(|parts| match self.config.usage {
                    Some(interval) => {
                        Some(tasks.spawn(UsageKeeper::new(parts, policies.clone(), interval).live()))
                    }
                    None => has_state(&parts.dir).then(|| tasks.spawn(leave_usage(parts))),
                });
                let keeper = self.pod_point.clone().map(|keeper| tasks.spawn(keeper.live()));
                keeper.into_iter().chain(usage).chain([tasks.spawn(policies.live())]).collect()
            }
            None => vec![tasks.spawn(self.leaver.clone().live())],
        }
    }

    /// Writes the last line of the audit file.
    pub(crate) async fn end_audit(&self) {
        if let Some(audit) = self.denials.as_ref().and_then(|denials| denials.audit()) {
            let _ = tokio::task::spawn_blocking(move || audit.stop()).await;
        }
    }

    /// Nothing where there are no tenants, or no API server that takes their status.
    fn tenant_leader(&self, policies: &Policies) -> Option<TenantLeader> {
        self.config.policy.as_ref().filter(|policy| policy.enforces_tenants)?;
        let (writer, pod) = (self.writer.clone()?, &self.config.pod);
        let holder = if pod.name.is_empty() { &self.config.node } else { &pod.name };
        let log = self.log.clone();
        Some(TenantLeader::new(policies.clone(), writer, (&pod.namespace, holder), log))
    }

    /// What counting the traffic of tenants' pods needs.
    fn usage_parts(&self) -> Option<UsageParts> {
        Some(UsageParts {
            keeper: self.pod_point.clone()?,
            cluster: self.cluster.clone(),
            slots: self.leaver.slots.clone(),
            turn: tokio::sync::Semaphore::new(1),
            node: self.config.node.clone(),
            dir: self.config.state_dir.join(::usage::USAGE_DIR),
            metrics: self.metrics.clone(),
            log: self.log.clone(),
        })
    }

    /// Who answers plugins about policies, where they are enforced.
    pub(crate) fn policy_answers(&self) -> Option<Arc<dyn PolicyHandle>> {
        let (policies, cluster) = (self.policies.clone()?, self.cluster.clone());
        let (node, config) = (self.config.node.clone(), self.config.ambient.clone());
        let book = self.denials.as_ref().map(|denials| denials.book().clone());
        let keeper = self.pod_point.clone();
        let leaver = self.leaver.clone();
        Some(Arc::new(PolicyAnswers { policies, cluster, node, config, keeper, book, leaver }))
    }
}
