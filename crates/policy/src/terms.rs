//! Policies as terms, whatever kind of object they were written in.
//!
//! A class is the policies that select a pod in one direction. It is judged section by section, in a section policy by policy in the order of
//! their names, in a policy rule by rule. The first rule that matches says what happens. A section of NetworkPolicies ends with a denial, each
//! other one with the next section, and what no section decides is allowed.

mod of_networkpolicy;
mod told;

use std::fmt;

use facts::Selector;
use facts::networkpolicy::{Block, Entries, Port};
use ipnet::IpNet;

/// Where a policy stands among those of other kinds, in the order in which they are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// Of the cluster's administrators, before everything else.
    Admin,
    /// Of tenants.
    Tenant,
    /// NetworkPolicies. They isolate: what none of them allows is denied.
    NetworkPolicy,
    /// Of the cluster's administrators, for pods that no NetworkPolicy isolates.
    Baseline,
}

/// Which policy. In a section policies are judged in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// Its section.
    pub section: Section,
    /// Its namespace; empty for what belongs to none.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTerms {
    /// Which.
    pub name: PolicyName,
    /// The pods that it is about.
    pub subjects: PodTerm,
    /// What it says of connections to them.
    pub ingress: DirectionTerms,
    /// What it says of connections from them.
    pub egress: DirectionTerms,
}

/// What a policy says in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectionTerms {
    /// Whether it selects its pods in this direction.
    pub applies: bool,
    /// Whether it is only tried out: its pods are not isolated by it, and what it would deny is logged. What its rules allow is allowed.
    pub is_tried_out: bool,
    /// Its rules, in the order in which they are written; empty where it does not apply.
    pub rules: Box<[RuleTerms]>,
}

/// A rule: peers and ports both match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTerms {
    /// How it is called, where the policy gives its rules names; else empty.
    pub name: Box<str>,
    /// Which of the policy's own pods it is about, at which of their addresses; any in most.
    pub own: Entries<PeerTerm>,
    /// Who is on the other end.
    pub peers: Entries<PeerTerm>,
    /// What the destination is asked on.
    pub ports: Entries<Port>,
    /// What happens then.
    pub action: RuleAction,
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// It is allowed, and nothing further is asked.
    Accept,
    /// It is denied, and nothing is told.
    Deny,
    /// It is denied, and its sender is told where the kernel can do so.
    Reject,
    /// It would be denied, which is counted and logged. The next section decides.
    Audit,
    /// The next section decides.
    Next,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerTerm {
    /// Live pods.
    Pods(PodTerm),
    /// Addresses, whatever has them.
    Block(Block),
    /// Addresses that are no live pod's, and in none of these ranges.
    Outside(Box<[IpNet]>),
}

/// Live pods by their labels and those of their namespaces. Rules that say the same have equal terms, also rules of different policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTerm {
    /// Their namespaces.
    pub namespaces: NamespaceTerm,
    /// Their labels.
    pub labels: Selector,
}

/// Namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceTerm {
    /// The one of this name, whether or not its object is known.
    Named(Box<str>),
    /// Those with these labels. One whose object is not known is none of them.
    Labelled(Selector),
    /// All, whether or not their objects are known.
    Any,
}

/// Which end of a connection a policy's pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficDirection {
    /// The source: what leaves the pod.
    Egress,
    /// The destination: what comes to it.
    Ingress,
}

// === impl DirectionTerms ===

impl DirectionTerms {
    /// Whether its pods are isolated, where it is of a policy of this name.
    pub fn isolates(&self, name: &PolicyName) -> bool {
        self.applies && !self.is_tried_out && name.section == Section::NetworkPolicy
    }

    /// Whether its pods are guarded until their rules are there, where it is of a policy of this name: it may deny something.
    pub fn guards(&self, name: &PolicyName) -> bool {
        let is_judged = matches!(name.section, Section::Tenant | Section::NetworkPolicy);
        self.applies && !self.is_tried_out && is_judged
    }
}

// === impl PolicyTerms ===

impl PolicyTerms {
    /// Whether it selects the same pods in the same directions.
    pub fn selects_as(&self, other: &Self) -> bool {
        let applies = |terms: &Self| [terms.ingress.applies, terms.egress.applies];
        self.subjects == other.subjects && applies(self) == applies(other)
    }

    /// What it says in a direction.
    pub fn direction(&self, direction: TrafficDirection) -> &DirectionTerms {
        match direction {
            TrafficDirection::Egress => &self.egress,
            TrafficDirection::Ingress => &self.ingress,
        }
    }
}

impl PolicyName {
    /// Of a NetworkPolicy.
    pub fn of_networkpolicy(namespace: &str, name: &str) -> Self {
        Self { section: Section::NetworkPolicy, namespace: namespace.into(), name: name.into() }
    }

    /// The namespace that all of its pods are in, if that is sure whatever it says.
    pub fn only_namespace(&self) -> Option<&str> {
        (self.section == Section::NetworkPolicy).then_some(&*self.namespace)
    }
}

impl PodTerm {
    /// All pods.
    pub fn everything() -> Self {
        Self { namespaces: NamespaceTerm::Any, labels: Selector::default() }
    }

    /// Whether a pod is meant. `label` and `namespace_label` give the value of a label, if it is there; the latter is absent where the object of
    /// the pod's namespace is not known.
    pub fn selects<'a, 'b>(
        &self,
        namespace: &str,
        namespace_label: Option<impl Fn(&str) -> Option<&'a str>>,
        label: impl Fn(&str) -> Option<&'b str>,
    ) -> bool {
        let namespace_is_meant = match &self.namespaces {
            NamespaceTerm::Named(name) => **name == *namespace,
            NamespaceTerm::Labelled(selector) => namespace_label.is_some_and(|label| selector.selects(label)),
            NamespaceTerm::Any => true,
        };
        namespace_is_meant && self.labels.selects(label)
    }
}

impl TrafficDirection {
    /// The field of a NetworkPolicy's rule that has its peers.
    pub fn peers_field(self) -> &'static str {
        match self {
            Self::Egress => "to",
            Self::Ingress => "from",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, namespace, name } = self;
        match (section, namespace.is_empty()) {
            (Section::NetworkPolicy, false) => write!(f, "{namespace}/{name}"),
            (_, false) => write!(f, "{section} {namespace}/{name}"),
            (_, true) => write!(f, "{section} {name}"),
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin policy",
            Self::Tenant => "tenant",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Baseline => "baseline policy",
        })
    }
}

impl fmt::Display for TrafficDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}
