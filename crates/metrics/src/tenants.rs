//! Tenants.

use prometheus::IntGaugeVec;

use super::Metrics;
use super::register::Register;

/// Tenants that have series of their own.
const MOST_NAMED: usize = 200;
/// What all further ones are called.
const OTHER: &str = "other";

/// All of it.
pub(super) struct TenantMetrics {
    tenants: IntGaugeVec,
    pods: IntGaugeVec,
    generation: IntGaugeVec,
    conflicts: IntGaugeVec,
}

/// A tenant as it is in force on this node.
#[derive(Debug, Clone, Copy)]
pub struct CountedTenant<'a> {
    /// Its name.
    pub name: &'a str,
    /// `enforce`, `audit` or `off`.
    pub state: &'static str,
    /// The generation that is in force.
    pub generation: u64,
    /// Its pods on this node.
    pub pods: usize,
    /// Claims to namespaces that an older tenant has.
    pub refused: usize,
}

impl TenantMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            tenants: make.gauges("istio_cni_tenants", "Tenants by what becomes of what they deny", &["state"])?,
            pods: make.gauges(
                "istio_cni_tenant_pods",
                "Pods of this node by their tenant; those of tenants without a series of their own are under `other`",
                &["tenant"],
            )?,
            generation: make.gauges(
                "istio_cni_tenant_generation",
                "The generation of each tenant that is in force on this node",
                &["tenant"],
            )?,
            conflicts: make.gauges(
                "istio_cni_tenant_conflicts",
                "Claims of tenants to namespaces that an older tenant has",
                &[],
            )?,
        })
    }
}

impl Metrics {
    /// These are in force, and no others.
    pub fn tenants(&self, all: &[CountedTenant<'_>]) {
        let TenantMetrics { tenants, pods, generation, conflicts } = &self.tenants;
        [tenants, pods, generation].into_iter().for_each(IntGaugeVec::reset);
        for state in ["enforce", "audit", "off"] {
            let count = all.iter().filter(|tenant| tenant.state == state).count();
            tenants.with_label_values(&[state]).set(number(count));
        }
        for (place, tenant) in all.iter().enumerate() {
            if place < MOST_NAMED {
                let seen = i64::try_from(tenant.generation).unwrap_or(i64::MAX);
                generation.with_label_values(&[tenant.name]).set(seen);
                pods.with_label_values(&[tenant.name]).set(number(tenant.pods));
            } else {
                pods.with_label_values(&[OTHER]).add(number(tenant.pods));
            }
        }
        conflicts.with_label_values::<&str>(&[]).set(number(all.iter().map(|tenant| tenant.refused).sum()));
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
