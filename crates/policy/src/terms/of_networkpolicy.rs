//! NetworkPolicies as terms. What an API server would refuse of one was left out when it was read.

use facts::NetworkPolicy;
use facts::networkpolicy::{Entries, PolicyDirection, PolicyPeer, PolicyRule};

use super::{
    DirectionTerms, NamespaceTerm, PeerTerm, PodTerm, PolicyName, PolicyTerms, RuleAction, RuleTerms, Section,
};

impl From<&NetworkPolicy> for PolicyTerms {
    fn from(policy: &NetworkPolicy) -> Self {
        let namespace = &policy.namespace;
        Self {
            name: PolicyName {
                section: Section::NetworkPolicy,
                namespace: namespace.clone(),
                name: policy.name.clone(),
            },
            subjects: PodTerm {
                namespaces: NamespaceTerm::Named(namespace.clone()),
                labels: policy.subjects.clone(),
            },
            ingress: direction(policy, &policy.ingress),
            egress: direction(policy, &policy.egress),
        }
    }
}

fn direction(policy: &NetworkPolicy, written: &PolicyDirection) -> DirectionTerms {
    let rules = written.rules.iter().map(|rule| terms(&policy.namespace, rule)).collect();
    DirectionTerms { applies: written.isolates, is_tried_out: policy.is_tried_out && written.isolates, rules }
}

fn terms(namespace: &str, rule: &PolicyRule) -> RuleTerms {
    let peers = match &rule.peers {
        Entries::Any => Entries::Any,
        Entries::Of(peers) => Entries::Of(peers.iter().map(|one| peer(namespace, one)).collect()),
    };
    RuleTerms {
        name: "".into(),
        own: Entries::Any,
        peers,
        ports: rule.ports.clone(),
        action: RuleAction::Accept,
    }
}

/// A peer without a selector of namespaces is of the policy's own.
fn peer(namespace: &str, peer: &PolicyPeer) -> PeerTerm {
    match peer {
        PolicyPeer::Pods(labels) => PeerTerm::Pods(PodTerm {
            namespaces: NamespaceTerm::Named(namespace.into()),
            labels: labels.clone(),
        }),
        PolicyPeer::PodsIn { namespaces, pods } => PeerTerm::Pods(PodTerm {
            namespaces: NamespaceTerm::Labelled(namespaces.clone()),
            labels: pods.clone(),
        }),
        PolicyPeer::Block(block) => PeerTerm::Block(block.clone()),
    }
}
