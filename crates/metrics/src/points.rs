//! Where policies are enforced.

use std::collections::BTreeMap;

use prometheus::IntGaugeVec;

use super::register::Register;

/// All of it.
pub(super) struct PointMetrics {
    unseen: IntGaugeVec,
}

impl PointMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            unseen: make.gauges(
                "istio_cni_policy_unseen_pods",
                "Pods whose packets the node's rules do not see, by the reason",
                &["reason"],
            )?,
        })
    }
}

impl super::Metrics {
    /// So many pods are not seen by the node's rules, by the name of the reason.
    pub fn policy_unseen(&self, unseen: &BTreeMap<&'static str, usize>) {
        self.points.unseen.reset();
        for (reason, pods) in unseen {
            self.points.unseen.with_label_values(&[*reason]).set(i64::try_from(*pods).unwrap_or(i64::MAX));
        }
    }
}
