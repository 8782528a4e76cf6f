//! Ambient mode as policies see it.

use std::time::{Duration, Instant};

use facts::PodRef;

use super::Ambient;
use crate::policy::PolicyTunnels;

impl Ambient {
    /// Policies judge what is inside pods' tunnels.
    pub(crate) fn judge_tunnels(&self, policies: PolicyTunnels) {
        let _ = self.pods.policies.set(policies);
    }

    /// The pods that may have a tunnel; nothing while it is not known which an earlier agent had in the mesh. That is waited for so long.
    pub(crate) fn tunnelled(&self, patience: Duration) -> Option<Vec<PodRef>> {
        let is_known = self.config.is_off || self.life.known_before.get().is_some();
        let is_over = || self.life.began.get_or_init(Instant::now).elapsed() > patience;
        let all = || self.pods.members.all().into_iter().map(|member| member.key).collect();
        (is_known || is_over()).then(all)
    }
}
