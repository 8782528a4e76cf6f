//! Which tenant has which namespace.

use std::collections::{BTreeMap, BTreeSet};

use facts::{LabelSet, NetworkTenant, Selector};

/// The label of a namespace that names its tenant, in the labels that policies see. It is no valid key, so that no object can have it, nor a selector of
/// one.
pub const TENANT_LABEL: &str = "//tenant";

/// Which tenant has which namespace, kept up to date by events. It is a function of the objects alone: each agent comes to the same.
///
/// Of tenants that claim a namespace the oldest one has it, and of equally old ones the first by name. So no namespace is in two, and one that is claimed
/// is in one.
#[derive(Debug, Default)]
pub struct TenantMembership {
    claims: BTreeMap<Box<str>, Claims>,
    namespaces: BTreeMap<Box<str>, LabelSet>,
    /// Who claims a namespace by its name.
    named: BTreeMap<Box<str>, BTreeSet<Seniority>>,
    /// Who claims namespaces by labels.
    selecting: BTreeSet<Seniority>,
    owners: BTreeMap<Box<str>, Box<str>>,
}

/// What a tenant claims.
#[derive(Debug)]
struct Claims {
    created: u64,
    named: Box<[Box<str>]>,
    selector: Option<Selector>,
}

/// The least has what several claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seniority {
    created: u64,
    tenant: Box<str>,
}

/// A claim of a tenant, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceClaim {
    /// The namespace.
    pub namespace: Box<str>,
    /// What became of it.
    pub state: ClaimState,
}

/// What becomes of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimState {
    /// The tenant has the namespace.
    Member,
    /// This older tenant has it.
    Refused(Box<str>),
    /// The tenant has it, and there is no such namespace now.
    Missing,
}

// === impl ClaimState ===

impl ClaimState {
    /// As a tenant's status has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::Refused(_) => "Refused",
            Self::Missing => "Missing",
        }
    }

    /// The older tenant that has the namespace.
    pub fn older(&self) -> Option<&str> {
        match self {
            Self::Refused(owner) => Some(owner),
            Self::Member | Self::Missing => None,
        }
    }
}

// === impl TenantMembership ===

impl TenantMembership {
    /// A tenant is added, replaced or gone. Gives the namespaces that have another tenant now, or none any more.
    pub fn tenant(&mut self, name: &str, after: Option<&NetworkTenant>) -> Vec<Box<str>> {
        let (mut touched, mut everywhere) = (BTreeSet::new(), false);
        if let Some(before) = self.claims.remove(name) {
            let seniority = Seniority { created: before.created, tenant: name.into() };
            everywhere |= self.selecting.remove(&seniority);
            for namespace in before.named {
                if let Some(claimants) = self.named.get_mut(&namespace) {
                    claimants.remove(&seniority);
                    if claimants.is_empty() {
                        self.named.remove(&namespace);
                    }
                }
                touched.insert(namespace);
            }
        }
        if let Some(after) = after {
            let seniority = Seniority { created: after.created, tenant: name.into() };
            for namespace in &after.namespaces {
                self.named.entry(namespace.clone()).or_default().insert(seniority.clone());
                touched.insert(namespace.clone());
            }
            if after.selector.is_some() {
                self.selecting.insert(seniority);
                everywhere = true;
            }
            let (named, selector) = (after.namespaces.clone(), after.selector.clone());
            self.claims.insert(name.into(), Claims { created: after.created, named, selector });
        }
        if everywhere {
            touched.extend(self.namespaces.keys().cloned());
        }
        touched.into_iter().filter(|namespace| self.settle(namespace)).collect()
    }

    /// A namespace is added, has other labels, or is gone. Says whether it has another tenant now, or none any more.
    pub fn namespace(&mut self, name: &str, labels: Option<LabelSet>) -> bool {
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        self.settle(name)
    }

    /// The tenant that has a namespace, whether or not it is there: one that is named is its tenant's from its first moment.
    pub fn owner(&self, namespace: &str) -> Option<&str> {
        self.owners.get(namespace).map(|tenant| &**tenant)
    }

    /// The namespaces with their tenants.
    pub fn owners(&self) -> impl Iterator<Item = (&str, &str)> {
        self.owners.iter().map(|(namespace, tenant)| (&**namespace, &**tenant))
    }

    /// The labels of a namespace that is there, with that of its tenant: what a world of policies tells of it.
    pub fn labels(&self, namespace: &str) -> Option<LabelSet> {
        let own = self.namespaces.get(namespace)?.iter().filter(|(key, _)| *key != TENANT_LABEL);
        let tenant = self.owner(namespace).map(|tenant| (TENANT_LABEL, tenant));
        Some(own.chain(tenant).collect())
    }

    /// What became of each claim of a tenant, in the order of the namespaces.
    pub fn claims(&self, tenant: &str) -> Vec<NamespaceClaim> {
        let Some(claims) = self.claims.get(tenant) else { return Vec::new() };
        let all = claims.selector.iter().flat_map(|_| &self.namespaces);
        let selected = all.filter(|(_, labels)| selects(claims, labels));
        let claimed: BTreeSet<&Box<str>> =
            claims.named.iter().chain(selected.map(|(namespace, _)| namespace)).collect();
        let state = |namespace: &str| match self.owner(namespace) {
            Some(owner) if owner != tenant => ClaimState::Refused(owner.into()),
            _ if self.namespaces.contains_key(namespace) => ClaimState::Member,
            _ => ClaimState::Missing,
        };
        let claim = |namespace: &str| NamespaceClaim { namespace: namespace.into(), state: state(namespace) };
        claimed.into_iter().map(|namespace| claim(namespace)).collect()
    }

    /// Finds a namespace's tenant anew; whether it is another one.
    fn settle(&mut self, namespace: &str) -> bool {
        let named = self.named.get(namespace).and_then(BTreeSet::first);
        let labels = self.namespaces.get(namespace);
        let is_claimed = |one: &&Seniority| {
            labels.zip(self.claims.get(&one.tenant)).is_some_and(|(labels, claims)| selects(claims, labels))
        };
        let selecting = self.selecting.iter().find(is_claimed);
        let owner = named.into_iter().chain(selecting).min().map(|one| one.tenant.clone());
        if self.owners.get(namespace) == owner.as_ref() {
            return false;
        }
        match owner {
            Some(owner) => self.owners.insert(namespace.into(), owner),
            None => self.owners.remove(namespace),
        };
        true
    }
}

fn selects(claims: &Claims, labels: &LabelSet) -> bool {
    claims.selector.as_ref().is_some_and(|selector| selector.selects(|key| labels.get(key)))
}
