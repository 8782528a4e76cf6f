//! The agent that writes tenants' status: one of all that enforce them, chosen by a Lease. Each of them finds the same by itself and enforces it without
//! waiting for that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use cluster::{EventText, LEASE_DURATION, LeaseCandidate, LeaseHold, Writer};
use enforcement::{Policies, TenantOverview, TenantReport};
use serde_json::Value;
use telemetry::Scope;

use super::tenant_status::{refused, status_of};

/// The Lease, in the agents' namespace.
const LEASE: &str = "istio-cni-tenants";
const CONFLICT: &str = "TenantNamespaceConflict";
const COMPONENT: &str = "istio-cni-node";

/// How often who has it renews it, and how often who doubts that it is renewed looks.
const RENEWAL: Duration = Duration::from_secs(3);
/// The same of all others together, for each node: in a cluster of any size one of them looks ten times a second.
const SHARE_OF_A_NODE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Changes that come within so long are written at once.
const BATCH: Duration = Duration::from_millis(200);
/// While there is no tenant.
const IDLE: Duration = Duration::from_secs(10);

/// Wants to be the one.
pub(crate) struct TenantLeader {
    policies: Policies,
    writer: Writer,
    lease: LeaseCandidate,
    /// What the status of each tenant is, as this one has read or written it.
    known: BTreeMap<Box<str>, Value>,
    /// Namespaces with the tenant that wants them and the one that has them, of which an Event was written.
    told: BTreeSet<[Box<str>; 3]>,
    leads: bool,
    /// There is no tenant.
    is_idle: bool,
    log: Scope,
}

// === impl TenantLeader ===

impl TenantLeader {
    /// `holder` is this agent's name among all agents.
    pub(crate) fn new(
        policies: Policies,
        writer: Writer,
        (namespace, holder): (&str, &str),
        log: Scope,
    ) -> Self {
        let lease = LeaseCandidate::new(namespace, LEASE, holder);
        let (known, told) = (BTreeMap::new(), BTreeSet::new());
        Self { policies, writer, lease, known, told, leads: false, is_idle: true, log }
    }

    /// Until it is aborted.
    pub(crate) async fn live(mut self) {
        let mut turns = self.policies.turns();
        loop {
            let pause = self.turn().await;
            let pause = tokio::time::sleep(pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    // The Lease is renewed in its own time.
                    Ok(()) = turns.changed(), if self.leads || self.is_idle => {
                        tokio::time::sleep(BATCH).await;
                        if self.is_idle {
                            break;
                        }
                        if let Some(overview) = self.policies.tenants().await {
                            self.write_all(&overview.tenants).await;
                        }
                    }
                }
            }
        }
    }

    /// Once; gives how long to wait.
    async fn turn(&mut self) -> Duration {
        let overview = self.policies.tenants().await.filter(|overview| !overview.tenants.is_empty());
        let Some(TenantOverview { tenants, nodes }) = overview else {
            self.lead(false);
            self.is_idle = true;
            return IDLE;
        };
        self.is_idle = false;
        match self.lease.attempt(&self.writer).await {
            Ok(LeaseHold::Own) => {
                self.lead(true);
                self.write_all(&tenants).await;
                RENEWAL
            }
            Ok(hold) => {
                self.lead(false);
                let share = SHARE_OF_A_NODE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX));
                if hold == LeaseHold::Doubtful { RENEWAL } else { share.clamp(RENEWAL, LONGEST_PAUSE) }
            }
            Err(error) => {
                self.lead(false);
                self.log.warn("the status of tenants is not written by this agent", &[("error", &error)]);
                LEASE_DURATION
            }
        }
    }

    fn lead(&mut self, leads: bool) {
        if std::mem::replace(&mut self.leads, leads) == leads {
            return;
        }
        if leads {
            self.known.clear();
            self.log.info("this agent writes the status of tenants", &[]);
        } else {
            self.log.info("this agent does not write the status of tenants any more", &[]);
        }
    }

    async fn write_all(&mut self, tenants: &[TenantReport]) {
        self.known.retain(|name, _| tenants.iter().any(|tenant| tenant.name == *name));
        for tenant in tenants {
            if let Err(error) = self.write(tenant).await {
                self.log.warn(&error, &[("tenant", &tenant.name)]);
            }
        }
        self.tell_conflicts(tenants).await;
    }

    async fn write(&mut self, tenant: &TenantReport) -> Result<(), cluster::Error> {
        let before = match self.known.get(&tenant.name) {
            Some(known) => known.clone(),
            None => self.writer.tenant_status(&tenant.name).await?,
        };
        let now = telemetry::time_text(SystemTime::now());
        let status = status_of(tenant, &before, &now);
        if status != before {
            self.writer.apply_tenant_status(&tenant.name, &status).await?;
        }
        self.known.insert(tenant.name.clone(), status);
        Ok(())
    }

    /// An Event at both tenants, once for as long as it is so.
    async fn tell_conflicts(&mut self, tenants: &[TenantReport]) {
        let mut now = BTreeSet::new();
        for tenant in tenants {
            for (namespace, owner) in refused(tenant) {
                now.insert([namespace, tenant.name.clone(), owner]);
            }
        }
        for conflict in now.difference(&self.told) {
            let [namespace, wanting, owner] = conflict;
            let message = format!(
                "namespace {namespace} stays in tenant {owner}, which is older, and is refused to tenant {wanting}; take it from one of both"
            );
            self.log.warn(&message, &[]);
            for name in [wanting, owner] {
                let text =
                    EventText { warning: true, reason: CONFLICT, message: &message, component: COMPONENT };
                if let Err(error) = self.writer.create_tenant_event(name, text).await {
                    self.log.debug(&error, &[]);
                }
            }
        }
        self.told = now;
    }
}
