//! How many pods are verified, counted when somebody asks.

use std::sync::Arc;

use ::verification::{DataPlaneMode, VerificationState};
use kernel::Difference;
use ruleset::{Backend, Plan};

use super::PodVerification;
use super::verifier::PodVerifier;
use metrics::PodRuleCounts;

impl PodVerifier {
    /// Lets /metrics say how it is whenever somebody asks.
    ///
    /// # Errors
    /// As [`metrics::Metrics::new`].
    pub(crate) fn answer_metrics(self: &Arc<Self>) -> Result<(), prometheus::Error> {
        let metrics = &self.parts.metrics;
        metrics.capture_enabled(self.policy.captures());
        if self.parts.config.short_names {
            metrics.with_short_names()?;
        }
        let verifier = Arc::downgrade(self);
        metrics.before_reading(move || {
            if let Some(verifier) = verifier.upgrade() {
                verifier.take_census();
            }
        });
        Ok(())
    }

    /// Lets /metrics say how it is now.
    fn take_census(&self) {
        let (pods, metrics) = (self.pods(), &self.parts.metrics);
        metrics.pods_verified(&Self::ledger(&pods));
        metrics.pod_rules(rule_counts(&pods));
        for mode in DataPlaneMode::ALL {
            let lacks = |ports: &Vec<u16>| !ports.is_empty();
            let missing = |pod: &&PodVerification| {
                pod.mode == mode && pod.missing_listeners.as_ref().is_some_and(lacks)
            };
            metrics.listeners_missing(mode, pods.iter().filter(missing).count());
        }
        metrics.oldest_verification(pods.iter().filter_map(|pod| pod.last_verified).min());
    }
}

/// The pods by what is known of their rules.
pub(crate) fn rule_counts(pods: &[PodVerification]) -> PodRuleCounts {
    let mut rules = PodRuleCounts::default();
    for pod in pods {
        *match pod.state {
            VerificationState::Verified | VerificationState::Unacknowledged => &mut rules.healthy,
            VerificationState::Drifted | VerificationState::Contended if pod.is_without_rules => {
                &mut rules.missing
            }
            VerificationState::Drifted | VerificationState::Contended => &mut rules.different,
            VerificationState::Draining
            | VerificationState::Unverifiable(_)
            | VerificationState::Starting => &mut rules.unverifiable,
        } += 1;
    }
    rules
}

/// Whether nothing of ours is there, as far as the differences tell.
pub(super) fn is_without_rules(differences: &[Difference], plan: &Plan) -> bool {
    let tables = || plan.layers.iter().flat_map(|layer| &layer.tables);
    let (planned, there) = match plan.backend {
        // Without a table nothing of it is there; in iptables tables are everybody's, and chains are ours.
        Backend::Nftables => {
            let missing = |one: &&Difference| matches!(one, Difference::MissingTable { .. });
            (tables().count(), differences.iter().filter(missing).count())
        }
        Backend::Iptables => {
            let missing = |one: &&Difference| matches!(one, Difference::MissingChain { .. });
            let regular = tables().flat_map(|table| &table.chains).filter(|chain| chain.base.is_none());
            (regular.count(), differences.iter().filter(missing).count())
        }
    };
    planned > 0 && there >= planned
}
