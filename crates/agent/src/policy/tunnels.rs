//! Ambient mode and policies: rules that judge what is inside a pod's tunnel are there before its connections are led to ztunnel, and the node closes the
//! tunnel before they are not led there any more.

use std::sync::Arc;
use std::time::Duration;

use enforcement::{Policies, TunnelEntry};
use facts::PodRef;
use netns::Netns;
use telemetry::Scope;

use super::PodPointKeeper;

/// How long a pod's way into the mesh waits for the rules that judge its tunnel. It goes on without them: then the tunnel's port is one as any other.
const LIMIT: Duration = Duration::from_secs(1);

/// What ambient mode tells policies.
pub(crate) struct PolicyTunnels {
    pub(crate) policies: Policies,
    pub(crate) keeper: Arc<PodPointKeeper>,
    pub(crate) log: Scope,
}

// === impl PolicyTunnels ===

impl PolicyTunnels {
    /// A pod's connections are about to be led to ztunnel, or are. One that a plugin announces asks for its policies next.
    pub(crate) async fn enter(&self, pod: &PodRef, netns: &Arc<Netns>, is_announced: bool) {
        let is_moved = self.keeper.place(pod, netns);
        self.policies.enter_tunnel(pod.clone(), TunnelEntry { is_announced, is_moved }).await;
        if tokio::time::timeout(LIMIT, self.policies.tunnel_judged(pod.clone())).await.is_err() {
            let text = "the rules that judge what is inside a pod's tunnel are not there yet; until they are, policies judge the tunnel by its own port";
            self.log.warn(text, &[("pod", pod)]);
        }
    }

    /// A pod's connections are about to be led to ztunnel no more.
    pub(crate) async fn leave(&self, pod: &PodRef) {
        // The task may be busy; what it does for others is not to keep a pod in the mesh.
        let _ = tokio::time::timeout(LIMIT, self.policies.leave_tunnel(pod.clone())).await;
    }

    /// It is known which pods are in ambient mode.
    pub(crate) fn known(&self) {
        self.policies.listed();
    }
}
