//! Which of a pod's networks its policies are about.

use std::net::IpAddr;

use ipnet::IpNet;
use ruleset::{Action, Families, Family, InterfaceName, Match, Rule};

use super::CompiledPod;

/// A pod's interface in the cluster's network, and its addresses there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInterface {
    /// The name.
    pub name: InterfaceName,
    /// The addresses.
    pub addresses: Box<[IpAddr]>,
}

impl CompiledPod {
    /// The same rules, which leave alone what comes and goes by other interfaces and is not about the pod's address in the cluster: policies are about
    /// the cluster's network, and a pod may be in more. Where what stays in the pod is judged, as in ambient mode, that is still.
    #[must_use]
    pub fn of_interface(&self, at: &ClusterInterface) -> Self {
        let mut compiled = self.clone();
        for chain in compiled.rules.tables.iter_mut().flat_map(|table| &mut table.chains) {
            // Whatever passes by the loopback interface passes by others, but for this one.
            let Some(position) = chain.rules.iter().position(passes_by_loopback) else { continue };
            let others: Vec<Rule> = [Family::V4, Family::V6]
                .into_iter()
                .filter_map(|family| at.others(&chain.rules[position], family))
                .collect();
            if chain.leading > position {
                chain.leading += others.len();
            }
            chain.rules.splice(position + 1..=position, others);
        }
        compiled
    }
}

impl ClusterInterface {
    /// What passes of a family by other interfaces, where it passes by the loopback interface by this rule; nothing where the pod has several addresses.
    fn others(&self, loopback: &Rule, family: Family) -> Option<Rule> {
        let mut rule = loopback.clone();
        let mut own = self.addresses.iter().filter(|address| Family::of_address(**address) == family);
        let (address, more) = (own.next(), own.next());
        let mut passes = |own: fn(IpNet) -> Match| {
            rule.matches.extend(address.map(|address| own(IpNet::from(*address))));
        };
        match &loopback.matches[..] {
            [Match::InInterface { .. }, ..] => passes(|net| Match::Destination { net, not: true }),
            _ => passes(|net| Match::Source { net, not: true }),
        }
        if let Match::InInterface { name, not } | Match::OutInterface { name, not } = &mut rule.matches[0] {
            (*name, *not) = (self.name.to_string().into(), true);
        }
        rule.families = Families::Only(family);
        rule.why = "other networks of the pod have no policies".into();
        more.is_none().then_some(rule)
    }
}

fn passes_by_loopback(rule: &Rule) -> bool {
    let passes = matches!(rule.action, Action::Accept | Action::Return);
    let is_loopback = |one: &Match| match one {
        Match::InInterface { name, not } | Match::OutInterface { name, not } => name == "lo" && !not,
        _ => false,
    };
    passes && rule.matches.first().is_some_and(is_loopback)
}
