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
    /// How many are of IPv4.
    v4: usize,
}

// === impl BookedSets ===

impl BookedSets {
    /// A pod is to have these rules. A set that none had before has the members that the index knows.
    pub(super) fn take(&mut self, rules: &CompiledPod, index: &PolicyIndex) {
        for (.., set) in &rules.kept {
            let known = self.0.entry(set.clone());
            known.or_insert_with(|| BookedSet::of(index.members(set))).uses += 1;
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
        *booked = BookedSet { uses: booked.uses, ..BookedSet::of(index.members(set)) };
        true
    }

    /// Members come or go. Whether rules of a pod look into the set.
    pub(super) fn change(&mut self, set: &Arc<PeerSet>, members: &[PeerMember], is_there: bool) -> bool {
        let Some(booked) = self.0.get_mut(set) else { return false };
        for member in members {
            let of_v4 = usize::from(member.address.is_ipv4());
            match is_there {
                true if booked.members.insert(*member) => booked.v4 += of_v4,
                false if booked.members.remove(member) => booked.v4 -= of_v4,
                _ => {}
            }
        }
        true
    }

    /// The members of a set that are of a family, as elements.
    pub(super) fn of(&self, set: &PeerSet, family: Family) -> Vec<Element> {
        let members = self.0.get(set).into_iter().flat_map(|booked| &booked.members);
        let members = members.filter(|one| Family::of_address(one.address) == family);
        members.map(|one| Element::from(Key::from(*one))).collect()
    }

    /// How many members of a set are of a family.
    pub(super) fn count(&self, set: &PeerSet, family: Family) -> usize {
        self.0.get(set).map_or(0, |booked| match family {
            Family::V4 => booked.v4,
            Family::V6 => booked.members.len() - booked.v4,
        })
    }

    /// How many sets there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl BookedSet {
    fn of(members: impl Iterator<Item = PeerMember>) -> Self {
        let members: BTreeSet<PeerMember> = members.collect();
        let v4 = members.iter().filter(|member| member.address.is_ipv4()).count();
        Self { uses: 0, members, v4 }
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
