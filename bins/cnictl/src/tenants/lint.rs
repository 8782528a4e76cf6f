//! `tenants lint`: what in tenants and grants is not understood, or probably not meant.

use std::net::IpAddr;

use anyhow::Result;
use facts::networkpolicy::Entries;
use facts::service::SystemRole;
use facts::{NetworkTenant, TenantGrant};
use ipnet::IpNet;
use policy::tenancy::{API_SERVER, DNS_NAMESPACE, TenantMembership};
use rundir::policy::TenantStateReport;
use serde::Serialize;

use super::known;
use crate::output::VerbAnswer;
use crate::pods::{Around, Column, ListArgs, ListHead, ResourceList};
use crate::policy::{KnownCluster, PolicySourceArgs};

const EXAMPLES: &str = "\
Examples:
  # Before tenants are applied: by files, without a node
  cnictl tenants lint --manifests tenants/

  # What the agent of this node knows
  cnictl tenants lint

Exit codes: 0 nothing was found
            1 something was, or the command failed
            2 wrong command line
            124 the time was over";

/// Show what in tenants and grants is not understood, or probably not meant
///
/// Entries that an API server would refuse, namespaces that are not there or that an older tenant has, Services that are not reached, and ranges that deny
/// the cluster's own DNS, API server or nodes. Grants and ranges are known from manifests only.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LintTenantsArgs {
    #[command(flatten)]
    source: PolicySourceArgs,
    #[command(flatten)]
    list: ListArgs,
}

/// What is odd.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TenantFinding {
    /// A word for what it is, those of a tenant's status among them.
    finding: &'static str,
    text: String,
}

/// The same with its object.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ListedTenantFinding {
    /// `tenant NAME` or `grant NAMESPACE/NAME`.
    object: String,
    #[serde(flatten)]
    found: TenantFinding,
}

const LISTING: ResourceList<ListedTenantFinding> = ResourceList {
    kind: "TenantFindingList",
    item_kind: "TenantFinding",
    columns: &[
        Column { head: "OBJECT", wide: false, cell: |one| (one.object.clone(), None) },
        Column { head: "FINDING", wide: false, cell: |one| (one.found.finding.to_owned(), None) },
        Column { head: "TEXT", wide: true, cell: |one| (one.found.text.clone(), None) },
    ],
    key: |one| format!("{} {} {}", one.object, one.found.finding, one.found.text),
    name: |one| one.object.clone(),
    steady: Clone::clone,
};

impl LintTenantsArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(all(&self.source.load()?)));
        }
        let known = self.source.load()?;
        let mut found = all(&known);
        LISTING.sort(&self.list, &mut found)?;
        let lines: String = found.iter().map(|one| one.found.line(&one.object)).collect();
        let gap = if lines.is_empty() { "" } else { "\n" };
        let head = ListHead { evidence: &known.evidence, not_looked_at: &known.remarks };
        let around = Around { after: format!("{gap}{lines}{}\n", known.evidence.line()) };
        let text = LISTING.print(&self.list, &head, &found, &around)?;
        Ok(match found.len() {
            0 => VerbAnswer::text(text),
            1 => VerbAnswer::failed(text, "1 finding about tenants".to_owned()),
            many => VerbAnswer::failed(text, format!("{many} findings about tenants")),
        })
    }
}

fn all(known: &KnownCluster) -> Vec<ListedTenantFinding> {
    let mut all = Vec::new();
    for tenant in known::tenants(known) {
        let object = format!("tenant {}", tenant.name);
        let found = findings_of(known, &tenant).into_iter();
        all.extend(found.map(|found| ListedTenantFinding { object: object.clone(), found }));
    }
    let membership = known.world.membership();
    for grant in known.world.grants() {
        let object = format!("grant {}/{}", grant.namespace, grant.name);
        let found = findings_of_grant(known, &membership, grant).into_iter();
        all.extend(found.map(|found| ListedTenantFinding { object: object.clone(), found }));
    }
    all
}

/// What is odd of a tenant.
pub(super) fn findings_of(known: &KnownCluster, tenant: &TenantStateReport) -> Vec<TenantFinding> {
    let mut found: Vec<TenantFinding> =
        tenant.faults.iter().map(|fault| TenantFinding::new("NotUnderstood", fault.clone())).collect();
    for claim in &tenant.namespaces {
        match &*claim.state {
            "Refused" => {
                let text = format!("namespace {} is tenant {}'s, which is older", claim.name, claim.tenant);
                found.push(TenantFinding::new("NamespaceConflict", text));
            }
            "Missing" => {
                let text = format!("namespace {} is not there", claim.name);
                found.push(TenantFinding::new("NamespaceNotFound", text));
            }
            _ => {}
        }
    }
    if tenant.namespaces.iter().all(|claim| claim.state == "Refused") {
        found.push(TenantFinding::new("NoNamespace", "it has no namespace".to_owned()));
    }
    for service in tenant.services.iter().filter(|service| !service.reason.is_empty()) {
        let name = format!("{}/{}", service.namespace, service.name);
        let (finding, text) = match &*service.reason {
            "ServiceNotFound" => ("ServiceNotFound", format!("Service {name} is not there")),
            "ExternalName" => (
                "ExternalName",
                format!("Service {name} is another name of something, which is not followed"),
            ),
            _ => ("NoConsent", format!("neither a grant nor a rule of Service {name}'s tenant lets it come")),
        };
        found.push(TenantFinding::new(finding, text));
    }
    if let Some(object) = known.world.tenant(&tenant.name) {
        found.extend(ranges(known, object));
    }
    found
}

/// Ranges that have addresses of the cluster itself.
fn ranges(known: &KnownCluster, tenant: &NetworkTenant) -> Vec<TenantFinding> {
    let mut found = Vec::new();
    let world = &known.world;
    // With an entry that is not understood everything is denied.
    let is_denied = |address: &IpAddr| match &tenant.denied {
        Entries::Of(ranges) => covers(ranges, address),
        Entries::Any => true,
    };
    for (namespace, name, service) in world.services() {
        let is_dns = namespace == DNS_NAMESPACE && service.role == Some(SystemRole::Dns);
        let is_system = is_dns || (namespace, name) == API_SERVER;
        if let Some(address) = service.addresses.iter().find(|one| is_system && is_denied(one)) {
            let text = format!("deniedIPRanges deny Service {namespace}/{name} ({address})");
            found.push(TenantFinding::new("SystemTrafficDenied", text));
        }
    }
    // A range for everything is meant so.
    let is_narrow = |net: &&IpNet| net.prefix_len() > 0;
    let narrow: Vec<IpNet> = tenant.allowed.iter().filter(is_narrow).copied().collect();
    for (node, addresses) in world.nodes() {
        if let Some(address) = addresses.iter().find(|one| is_denied(one)) {
            let text = format!(
                "deniedIPRanges have node {node} ({address}), from which probes come and pass all the same"
            );
            found.push(TenantFinding::new("SystemTrafficDenied", text));
        }
        if let Some(address) = addresses.iter().find(|one| covers(&narrow, one)) {
            let text = format!("allowedIPRanges have node {node} ({address})");
            found.push(TenantFinding::new("NodeAllowed", text));
        }
    }
    found
}

fn covers(ranges: &[IpNet], address: &IpAddr) -> bool {
    ranges.iter().any(|net| net.contains(address))
}

fn findings_of_grant(
    known: &KnownCluster,
    membership: &TenantMembership,
    grant: &TenantGrant,
) -> Vec<TenantFinding> {
    let mut found: Vec<TenantFinding> =
        grant.faults.texts().map(|fault| TenantFinding::new("NotUnderstood", fault)).collect();
    for tenant in grant.from.iter().filter(|tenant| known.world.tenant(tenant).is_none()) {
        found.push(TenantFinding::new("NoTenant", format!("there is no tenant {tenant}")));
    }
    if membership.owner(&grant.namespace).is_none() {
        let text = format!("namespace {} has no tenant, so that nothing needs a grant", grant.namespace);
        found.push(TenantFinding::new("NoTenant", text));
    }
    found
}

// === impl TenantFinding ===

impl TenantFinding {
    fn new(finding: &'static str, text: String) -> Self {
        Self { finding, text }
    }

    /// For people.
    pub(super) fn line(&self, object: &str) -> String {
        format!("{object}: {}\n", self.text)
    }
}
