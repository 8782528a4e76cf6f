//! What the enforcement of policies needs of this agent.

mod answers;
mod cuts;
mod denial_counts;
mod denials;
mod looker;
mod node_point;
mod pod_point;
mod told;
mod tunnels;

use std::path::PathBuf;
use std::sync::Arc;

use enforcement::{StartedPod, StartedPods};
use facts::PodRef;
use kernel::Change;
use tokio::task::{AbortHandle, JoinSet};

use crate::policy_socket::PolicyHandle;
use crate::run::Agent;

use answers::PolicyAnswers;
pub(crate) use cuts::NarrowedAddresses;
pub(crate) use denials::{DenialParts, DenialReader};
pub(crate) use node_point::{NodePoint, node_settings};
pub(crate) use pod_point::{PodPointKeeper, PodPointParts, PodPolicyPoint};
pub(crate) use told::PolicyTeller;
pub(crate) use tunnels::PolicyTunnels;

/// Where plugins leave word of the pods that they start.
pub(crate) fn started(run_dir: PathBuf) -> StartedPods {
    Arc::new(move || {
        let left = applied::policed::all(&run_dir).unwrap_or_default().into_iter();
        let started = left.filter_map(|sandbox| {
            let applied::Origin { pod, uid, addresses, .. } = sandbox.origin;
            let (namespace, name) = pod.split_once('/')?;
            Some(StartedPod { pod: PodRef { uid, ..PodRef::named(namespace, name) }, addresses })
        });
        started.collect()
    })
}

impl Agent {
    /// Enforces policies, or removes what an earlier agent left that did.
    pub(crate) fn enforce_policies(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> AbortHandle {
        if let Some(denials) = &self.denials {
            tasks.spawn(denials.clone().live());
            denials.cutter().map(|cutter| tasks.spawn(cutter.live()));
        }
        match self.policies.clone() {
            Some(policies) => {
                if let Some(keeper) = self.pod_point.clone() {
                    tasks.spawn(looker::live(policies.clone(), keeper, self.cluster.clone()));
                }
                tasks.spawn(policies.live())
            }
            None => {
                let agent = self.clone();
                tasks.spawn(async move { agent.leave_policies().await })
            }
        }
    }

    /// Who answers plugins about policies, where they are enforced.
    pub(crate) fn policy_answers(&self) -> Option<Arc<dyn PolicyHandle>> {
        let (policies, cluster) = (self.policies.clone()?, self.cluster.clone());
        let (node, config) = (self.config.node.clone(), self.config.ambient.clone());
        Some(Arc::new(PolicyAnswers { policies, cluster, node, config }))
    }

    /// Removes what enforces policies on this node: they are not enforced any more, or the agent goes for good.
    pub(crate) async fn leave_policies(&self) {
        let config = self.config.ambient.clone();
        let removed = tokio::task::spawn_blocking(move || node_point::remove(&config));
        let error = match removed.await {
            Ok(Ok(Change::None)) => return,
            Ok(Ok(_)) => return self.log.info("rules that enforced network policies are removed", &[]),
            Ok(Err(error)) => fault::chain(&error),
            Err(error) => error.to_string(),
        };
        let text = "rules that enforced network policies may be left; look for table istio-policy-mangle of nf_tables and chains ISTIO_NP_* of iptables";
        match self.policies {
            // Without the right to look there was none to make any.
            None => self.log.debug(text, &[("error", &error)]),
            Some(_) => self.log.warn(text, &[("error", &error)]),
        }
    }
}
