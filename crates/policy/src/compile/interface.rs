//! Which of a pod's interfaces its policies are about.

use ruleset::{Action, InterfaceName, Match};

use super::CompiledPod;

impl CompiledPod {
    /// The same rules, which leave alone what comes and goes by other interfaces: policies are about the cluster's network, and a pod may be in more.
    /// Where what stays in the pod is judged, as in ambient mode, that is still.
    #[must_use]
    pub fn of_interface(&self, name: &InterfaceName) -> Self {
        let mut compiled = self.clone();
        for chain in compiled.rules.tables.iter_mut().flat_map(|table| &mut table.chains) {
            // Whatever passes by the loopback interface passes by others, but for this one.
            let passes = |action: &Action| matches!(action, Action::Accept | Action::Return);
            let found = chain
                .rules
                .iter()
                .position(|rule| passes(&rule.action) && rule.matches.first().is_some_and(is_loopback));
            let Some(position) = found else { continue };
            let mut other = chain.rules[position].clone();
            if let Match::InInterface { name: of, not } | Match::OutInterface { name: of, not } =
                &mut other.matches[0]
            {
                (*of, *not) = (name.to_string().into(), true);
            }
            other.why = "other networks of the pod have no policies".into();
            chain.rules.insert(position + 1, other);
            if chain.leading > position {
                chain.leading += 1;
            }
        }
        compiled
    }
}

fn is_loopback(one: &Match) -> bool {
    let (Match::InInterface { name, not } | Match::OutInterface { name, not }) = one else { return false };
    name == "lo" && !not
}
