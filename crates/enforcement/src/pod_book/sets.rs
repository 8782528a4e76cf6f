//! The members of the sets that rules of pods look into. Where no pod is judged in its own namespace, no member of any set is kept here a second time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use policy::ServiceVerdicts;
use policy::compile::{CompiledPod, ServiceSet};
use policy::index::{PeerMember, PeerSet, PolicyIndex};
use ruleset::{Element, Family, Key};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct BookedSets(HashMap<Arc<PeerSet>, BookedSet>);

#[derive(Debug)]
struct BookedSet {
    /// In how many places of pods' rules it is.
    uses: usize,
    members: BTreeSet<PeerMember>,
}

// === impl BookedSets ===

impl BookedSets {
    /// A pod is to have these rules. A set that none had before has the members that the index knows.
    pub(super) fn take(&mut self, rules: &CompiledPod, index: &PolicyIndex) {
        for (.., set) in &rules.kept {
            let known = self.0.entry(set.clone());
            let booked =
                known.or_insert_with(|| BookedSet { uses: 0, members: index.members(set).collect() });
            booked.uses += 1;
        }
    }

    /// A pod is not to have them any more.
    pub(super) fn release(&mut self, rules: &CompiledPod) {
        for (.., set) in &rules.kept {
            let Some(booked) = self.0.get_mut(set) else { continue };
            booked.uses = booked.uses.saturating_sub(1);
            if booked.uses == 0 {
                self.0.remove(set);
            }
        }
    }

    /// A set has other members than it had, all of which the index knows. Whether rules of a pod look into it.
    pub(super) fn renew(&mut self, set: &Arc<PeerSet>, index: &PolicyIndex) -> bool {
        let Some(booked) = self.0.get_mut(set) else { return false };
        booked.members = index.members(set).collect();
        true
    }

    /// Members come or go. Whether rules of a pod look into the set.
    pub(super) fn change(&mut self, set: &Arc<PeerSet>, members: &[PeerMember], is_there: bool) -> bool {
        let Some(booked) = self.0.get_mut(set) else { return false };
        for member in members {
            if is_there {
                booked.members.insert(*member)
            } else {
                booked.members.remove(member)
            };
        }
        true
    }

    /// The members of a set that are of a family, as elements.
    pub(super) fn of(&self, set: &PeerSet, family: Family) -> Vec<Element> {
        let members = self.0.get(set).into_iter().flat_map(|booked| &booked.members);
        let members = members.filter(|one| Family::of_address(one.address) == family);
        members.map(|one| Element::from(Key::from(*one))).collect()
    }

    /// How many sets there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The members of a set of addresses of Services.
pub(super) fn members_of<'a>(
    verdicts: &'a ServiceVerdicts,
    set: &ServiceSet,
) -> impl Iterator<Item = PeerMember> + 'a {
    let (family, members) = (set.family, if set.allowed { &verdicts.allowed } else { &verdicts.denied });
    members.iter().copied().filter(move |one| Family::of_address(one.address) == family)
}
