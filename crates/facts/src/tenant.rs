//! What a NetworkTenant and a TenantGrant say (`tenancy.istio-cni.io/v1alpha1`).
//!
//! Reading judges what the definitions of both kinds in the chart judge, with the same words, because manifests pass no API server, and an API server may
//! know a newer version. Reading never fails: what cannot be understood is a [`TenantFault`], allows nothing, and denies everything where it
//! may have denied something.

mod grant;
mod parts;
mod place;
mod reader;
mod spec;
#[cfg(test)]
mod tests;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::labels::Selector;
use crate::networkpolicy::{Block, Entries, Port};

/// The largest object, in bytes: texts, and some for each entry.
pub const MAX_TENANT_SIZE: usize = 256 << 10;

/// Most faults of an object that are named; all of them are counted.
const MAX_FAULTS: usize = 8;

/// A tenant, as far as traffic depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkTenant {
    /// Its name.
    pub name: Box<str>,
    /// When it was created: the digits of `creationTimestamp`, year first, or 0.
    pub created: u64,
    /// `metadata.generation`: another number after each change of what it says; 0 in a manifest.
    pub generation: u64,
    /// Its namespaces by name, sorted.
    pub namespaces: Box<[Box<str>]>,
    /// Its namespaces by their labels.
    pub selector: Option<Selector>,
    /// Addresses that are no pods and that are allowed.
    pub allowed: Box<[IpNet]>,
    /// Addresses that are denied, whatever has them; any where an entry is not understood.
    pub denied: Entries<IpNet>,
    /// Services of others that its pods may reach.
    pub services: Box<[TenantService]>,
    /// What it says of others that come to its pods.
    pub ingress: Box<[TenantRule]>,
    /// What it says of others to which its pods go.
    pub egress: Box<[TenantRule]>,
    /// What becomes of traffic with what is outside of the cluster; never [`TenantDefault::AllowEgress`].
    pub external: TenantDefault,
    /// What becomes of traffic with pods of namespaces without a tenant.
    pub unassigned: TenantDefault,
    /// Whether its pods reach the cluster's DNS.
    pub allows_dns: bool,
    /// Whether its pods reach the API server.
    pub allows_api_server: bool,
    /// What becomes of a denied packet.
    pub deny_mode: DenyMode,
    /// What becomes of what is denied.
    pub enforcement: TenantEnforcement,
    /// What of it is not understood.
    pub faults: TenantFaults,
}

/// The consent of a namespace's owner: pods of these tenants may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantGrant {
    /// Its namespace, to whose pods it lets others come.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `metadata.generation`.
    pub generation: u64,
    /// The tenants.
    pub from: Box<[Box<str>]>,
    /// What they may come to.
    pub to: Box<[GrantTarget]>,
    /// On which ports: of the pods, or of the Services.
    pub ports: Entries<Port>,
    /// What of it is not understood.
    pub faults: TenantFaults,
}

/// What a grant lets others come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantTarget {
    /// What is behind a Service of the namespace; without a name behind any.
    Service(Option<Box<str>>),
    /// A pod.
    Pod(Box<str>),
    /// Pods by their labels.
    Pods(Selector),
}

/// A Service of another tenant, or of none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantService {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its own ports that are meant.
    pub ports: Entries<Port>,
}

/// A rule between tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRule {
    /// By which verdicts, counters and logs call it.
    pub name: Box<str>,
    /// Whether it denies; else it allows.
    pub denies: bool,
    /// Who is on the other end.
    pub peers: Entries<TenantPeer>,
    /// What the destination is asked on.
    pub ports: Entries<Port>,
}

/// The other end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantPeer {
    /// Pods for which all of this holds.
    Pods {
        /// Their tenant.
        tenant: Option<Box<str>>,
        /// Their namespace is one of these.
        namespaces: Option<Box<[Box<str>]>>,
        /// Their labels.
        labels: Selector,
    },
    /// Addresses, whatever has them.
    Block(Block),
    /// One of these.
    Entity(TenantEntity),
}

/// A peer that is no pod of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantEntity {
    /// The pod's own node.
    Node,
    /// The Service `kubernetes` and what is behind it.
    ApiServer,
    /// What is outside of the cluster.
    World,
    /// Pods of namespaces without a tenant.
    Unassigned,
}

/// What becomes of traffic of which no rule says anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TenantDefault {
    /// It is denied.
    #[default]
    Deny,
    /// It is allowed.
    Allow,
    /// It is allowed where the tenant's own pods begin it.
    AllowEgress,
}

/// What becomes of a denied packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DenyMode {
    /// Its sender is told.
    #[default]
    Reject,
    /// Nothing is told.
    Drop,
}

/// What becomes of what is denied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TenantEnforcement {
    /// It is denied.
    #[default]
    Enforce,
    /// It is counted and logged, and passes.
    Audit,
    /// Nothing is judged.
    Off,
}

/// What of an object is not understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantFaults {
    /// How many entries and fields.
    pub count: usize,
    /// The first ones.
    pub first: Vec<TenantFault>,
}

/// Something that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct TenantFault {
    /// Where, such as `spec.deniedIPRanges[1]`.
    pub place: String,
    /// Why.
    #[source]
    pub reason: FaultReason,
}

/// Why something is not understood. Those that the definitions in the chart have rules for have their words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    /// A field that has to be there is not.
    #[error("it is missing")]
    Missing,
    /// A value of another type.
    #[error("it is not {0}")]
    Type(&'static str),
    /// A field that this version does not have.
    #[error("there is no such field in this version")]
    UnknownField,
    /// A word that this version does not have.
    #[error("it is not one of {0}")]
    UnknownWord(&'static str),
    /// A list that is too long, or too short.
    #[error("it has not {0} to {1} entries")]
    Count(usize, usize),
    /// An entry of a set.
    #[error("it is there twice")]
    Twice,
    /// A name.
    #[error("a name is at most 63 lower-case letters, digits and hyphens")]
    Name,
    /// A text that is too long, or empty.
    #[error("it is empty, or has more than {0} letters")]
    Length(usize),
    /// A range of addresses.
    #[error(
        "a range is its first address and a length, each in its shortest form, such as 10.0.0.0/8 or fd00::/8; an IPv4 range is not written as IPv6"
    )]
    Range,
    /// A part of a block.
    #[error("an exception is a smaller part of its block")]
    Exception,
    /// A port.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// The end of a range of ports.
    #[error("endPort is not below port")]
    EndPort,
    /// A peer that is nothing or several things.
    #[error("a peer is one of: tenant or namespaces, ipBlock, entity")]
    Peer,
    /// Labels of pods of which it is not said where they are.
    #[error("podSelector needs tenant or namespaces beside it")]
    PeerSelector,
    /// A requirement of a selector.
    #[error("In and NotIn need values, and Exists and DoesNotExist take none")]
    Selector,
    /// A tenant that can have no namespace.
    #[error("a tenant has namespaces or a namespaceSelector")]
    NoNamespaces,
    /// A default without effect.
    #[error("all addresses are denied, and defaults.external allows them")]
    EverythingDenied,
    /// A grant.
    #[error("podSelector is for kind Pod, and not beside a name")]
    Target,
    /// The namespace of the cluster's own pods.
    #[error("kube-system is in a tenant only with the annotation {ALLOW_SYSTEM}=true")]
    System,
    /// An object that is larger than what is read.
    #[error("it has no place in an object of {MAX_TENANT_SIZE} bytes")]
    TooLarge,
}

/// The annotation with which a tenant may have the namespace of the cluster's own pods.
pub const ALLOW_SYSTEM: &str = "tenancy.istio-cni.io/allow-system";

impl<'de> Deserialize<'de> for NetworkTenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|object| spec::read(&object))
    }
}

impl<'de> Deserialize<'de> for TenantGrant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|object| grant::read(&object))
    }
}

// === impl TenantEnforcement ===

impl TenantEnforcement {
    /// As metrics and lists have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Off => "off",
        }
    }
}

// === impl TenantFaults ===

impl TenantFaults {
    fn add(&mut self, place: &dyn ToString, reason: FaultReason) {
        self.count += 1;
        if self.first.len() < MAX_FAULTS {
            self.first.push(TenantFault { place: place.to_string(), reason });
        }
    }

    /// The first ones for people, and how many more there are.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let more = self.count.saturating_sub(self.first.len());
        let more = (more > 0).then(|| format!("{more} more entries are not understood"));
        self.first.iter().map(ToString::to_string).chain(more)
    }

    /// Whether all of the object is understood.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
