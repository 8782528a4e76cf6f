//! Where policies are enforced.

use std::collections::BTreeMap;

use prometheus::IntGaugeVec;

use super::register::Register;

/// All of it.
pub(super) struct PointMetrics {
    unseen: IntGaugeVec,
    weak: IntGaugeVec,
}

impl PointMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            unseen: make.gauges(
                "istio_cni_policy_unseen_pods",
                "Pods whose packets the node's rules do not see, by the reason",
                &["reason"],
            )?,
            weak: make.gauges(
                "istio_cni_policy_weak_pods",
                "Pods that can get past the rules of their policies, which are in their own network namespaces, by the capability",
                &["capability"],
            )?,
        })
    }
}

impl super::Metrics {
    /// So many pods can get past rules of their own, by the name of the capability.
    pub fn policy_weak(&self, weak: [(&'static str, usize); 2]) {
        for (capability, pods) in weak {
            self.points.weak.with_label_values(&[capability]).set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
    }

    /// So many pods are not seen by the node's rules, by the name of the reason.
    pub fn policy_unseen(&self, unseen: &BTreeMap<&'static str, usize>) {
        self.points.unseen.reset();
        for (reason, pods) in unseen {
            self.points.unseen.with_label_values(&[*reason]).set(i64::try_from(*pods).unwrap_or(i64::MAX));
        }
    }
}
