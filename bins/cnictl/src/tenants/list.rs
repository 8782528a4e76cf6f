//! `tenants list`: the tenants that are known, and whether their last change is in force.

use anyhow::Result;
use rundir::policy::TenantStateReport;
use serde::Serialize;

use super::known;
use super::lint::{TenantFinding, findings_of};
use crate::output::{Colour, VerbAnswer};
use crate::pods::{Around, Column, ListArgs, ListFormat, ListHead, ResourceList};
use crate::policy::{KnownCluster, PolicySourceArgs};

const EXAMPLES: &str = "\
Examples:
  # Which tenants are there, and are they in force on this node?
  cnictl tenants list

  # Which tenant has this namespace, and who else wants it?
  cnictl tenants list -n shop -o wide

  # Is the last change of each in force on this node?
  cnictl tenants list --lagging

  # On all nodes
  kubectl istio-cni tenants

Exit codes: 0 done; with --lagging: the last change of each tenant is in force
            1 failed; with --lagging: that of one is not
            2 wrong command line
            3 there is no such tenant, or tenants are not enforced
            124 the time was over";

/// Show the tenants of the cluster, and whether their last change is in force on this node
///
/// Pods are those of the whole cluster. What is in force is known of the agent only, and not of manifests or its snapshot.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ListTenantsArgs {
    /// Tenants that have or claim this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Tenants whose last change is not in force on this node only; fails if there is one
    #[arg(long, conflicts_with_all = ["manifests", "snapshot", "watch"])]
    lagging: bool,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[command(flatten)]
    list: ListArgs,
}

/// A tenant as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ListedTenant {
    #[serde(flatten)]
    tenant: TenantStateReport,
    /// Whether its last change is in force on this node; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_current: Option<bool>,
    findings: Vec<TenantFinding>,
}

const LISTING: ResourceList<ListedTenant> = ResourceList {
    kind: "TenantList",
    item_kind: "Tenant",
    columns: &[
        Column { head: "TENANT", wide: false, cell: |one| (one.tenant.name.clone(), None) },
        Column { head: "NAMESPACES", wide: false, cell: |one| (members(one).count().to_string(), None) },
        Column { head: "PODS", wide: false, cell: |one| (one.tenant.pods.to_string(), None) },
        Column { head: "ENFORCEMENT", wide: false, cell: |one| (one.tenant.enforcement.clone(), None) },
        Column { head: "CURRENT", wide: false, cell: current },
        Column { head: "FINDINGS", wide: false, cell: findings },
        Column { head: "GENERATION", wide: true, cell: |one| (one.tenant.generation.to_string(), None) },
        Column { head: "NAMES", wide: true, cell: |one| (members(one).collect::<Vec<_>>().join(", "), None) },
    ],
    key: |one| one.tenant.name.clone(),
    name: |one| one.tenant.name.clone(),
    steady: Clone::clone,
};

fn members(one: &ListedTenant) -> impl Iterator<Item = &str> {
    one.tenant.namespaces.iter().filter(|claim| claim.state == "Member").map(|claim| &*claim.name)
}

fn current(one: &ListedTenant) -> (String, Option<Colour>) {
    match one.is_current {
        None => (String::new(), None),
        Some(true) => ("yes".to_owned(), None),
        Some(false) => ("no".to_owned(), Some(Colour::Red)),
    }
}

fn findings(one: &ListedTenant) -> (String, Option<Colour>) {
    let count = one.findings.len();
    (count.to_string(), (count > 0).then_some(Colour::Yellow))
}

impl ListTenantsArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(self.rows(&self.source.load()?)));
        }
        let known = self.source.load()?;
        let mut rows = self.rows(&known);
        let lags = rows.iter().filter(|row| row.is_current == Some(false)).count();
        let nothing = rows.is_empty().then(|| known::nothing(&known));
        if self.lagging {
            rows.retain(|row| row.is_current == Some(false));
        }
        LISTING.sort(&self.list, &mut rows)?;
        let lines = rows.iter().flat_map(|row| row.findings.iter().map(|one| one.line(&row.tenant.name)));
        let lines: String = lines.collect();
        let gap = if lines.is_empty() { "" } else { "\n" };
        let head = ListHead { evidence: &known.evidence, not_looked_at: &known.remarks };
        let around = Around { after: format!("{gap}{lines}{}\n", known.evidence.line()) };
        if let Some(nothing) = nothing {
            // Programs get an empty list.
            let is_read = matches!(self.list.output, ListFormat::Json | ListFormat::Yaml);
            let text = is_read.then(|| LISTING.print(&self.list, &head, &rows, &around)).transpose()?;
            return Ok(VerbAnswer { text: text.unwrap_or_default(), ..nothing });
        }
        let text = LISTING.print(&self.list, &head, &rows, &around)?;
        if self.lagging && lags > 0 {
            let problem = format!("the last change of {lags} tenants is not in force on this node");
            return Ok(VerbAnswer::failed(text, problem));
        }
        Ok(VerbAnswer::text(text))
    }

    fn rows(&self, known: &KnownCluster) -> Vec<ListedTenant> {
        let is_meant = |one: &TenantStateReport| match &self.namespace {
            None => true,
            Some(name) => one.namespaces.iter().any(|claim| claim.name == *name),
        };
        let row = |tenant: TenantStateReport| ListedTenant {
            is_current: known.tenants.as_ref().map(|_| tenant.in_force == Some(tenant.generation)),
            findings: findings_of(known, &tenant),
            tenant,
        };
        known::tenants(known).into_iter().filter(is_meant).map(row).collect()
    }
}
