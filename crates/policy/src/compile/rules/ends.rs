//! The ends of a rule as conditions.

use std::collections::BTreeSet;

use facts::networkpolicy::{Entries, PolicyProtocol};
use ipnet::IpNet;
use ruleset::{Family, Match, Rule, Side};

use super::super::blocks;
use super::super::conditions::{RuleCondition, anything, inverted, is_in, own_side, side};
use super::super::left::LeftOutReason;
use super::super::parts::{PeerParts, PortParts};
use super::{CompiledRule, Compiler, key_type};
use crate::index::PeerSet;
use crate::terms::{PeerTerm, PodTerm, RuleTerms};

impl Compiler<'_> {
    /// What the policy's own pods call these ports.
    pub(super) fn own_names(
        &mut self,
        ports: &PortParts<'_>,
        place: &mut CompiledRule,
    ) -> Vec<RuleCondition> {
        let set = |(name, of): &(&str, PolicyProtocol)| PeerSet::OwnPorts((*name).into(), *of);
        ports.names.iter().flat_map(|named| self.kept(&set(named), Side::Destination, place)).collect()
    }

    /// What peers call these ports; the sets say already who a peer is that is a pod.
    pub(super) fn peers_names(
        &mut self,
        ports: &PortParts<'_>,
        peers: &PeerParts<'_>,
        blocks: &[RuleCondition],
        place: &mut CompiledRule,
    ) -> Vec<Rule> {
        let mut found = Vec::new();
        for (name, of) in &ports.names {
            for term in &peers.pods {
                let set = PeerSet::Ports(Some((*term).clone()), (*name).into(), *of);
                let named = self.kept(&set, Side::Destination, place);
                found.extend(place.all(&named, &anything()));
            }
            if !blocks.is_empty() {
                let named = self.kept(&PeerSet::Ports(None, (*name).into(), *of), Side::Destination, place);
                found.extend(place.all(&named, blocks));
            }
        }
        found
    }

    /// The conditions of the policy's own pods that a rule is about.
    pub(super) fn own(
        &mut self,
        own: &Entries<PeerTerm>,
        place: &mut CompiledRule,
        room: &mut usize,
    ) -> Vec<RuleCondition> {
        let (parts, side) = (PeerParts::of(own, room), own_side(place.direction));
        if parts.has_less {
            place.left_out.insert(LeftOutReason::Prefixes);
        }
        let mut found = self.pods(&parts.pods, side, place);
        found.extend(self.blocks(&parts, side, place));
        found
    }

    /// The conditions of peers that are no pods.
    pub(super) fn blocks(
        &mut self,
        peers: &PeerParts<'_>,
        side: Side,
        place: &mut CompiledRule,
    ) -> Vec<RuleCondition> {
        if peers.any {
            return anything();
        }
        let mut found: Vec<RuleCondition> = Vec::new();
        for (number, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let within = self.block(family, &peers.blocks[number], side, false, place);
            found.extend(within.map(|within| (Some(family), vec![within])));
        }
        for inside in &peers.outside {
            let pods = self.kept(&PeerSet::Pods(PodTerm::everything()), side, place);
            for (family, mut matches) in pods {
                matches = matches.into_iter().map(inverted).collect();
                let prefixes =
                    inside.iter().filter(|net| family.is_none_or(|family| Family::of(net) == family));
                let prefixes = prefixes.copied().collect();
                let family = family.unwrap_or(Family::V4);
                matches.extend(self.block(family, &prefixes, side, true, place));
                found.push((Some(family), matches));
            }
        }
        found
    }

    /// A packet is in some prefixes, or not in them; nothing where there are none, or the set of them cannot be there.
    fn block(
        &mut self,
        family: Family,
        prefixes: &BTreeSet<IpNet>,
        side: Side,
        not: bool,
        place: &mut CompiledRule,
    ) -> Option<Match> {
        if prefixes.is_empty() {
            return None;
        }
        let set = blocks::set(family, prefixes);
        let (name, keys) = (set.name.to_string(), set.keys);
        if *self.blocks.entry(name.clone()).or_insert_with(|| set.clone()) != set {
            place.left_out.insert(LeftOutReason::NameTaken);
            return None;
        }
        Some(is_in(side, name, keys, not))
    }

    /// The conditions of a rule's peers, whatever its ports; `room` is how many prefixes there may be.
    pub(in super::super) fn peers(
        &mut self,
        rule: &RuleTerms,
        place: &mut CompiledRule,
        room: &mut usize,
    ) -> Vec<RuleCondition> {
        let peers = PeerParts::of(&rule.peers, room);
        let side = side(place.direction);
        let mut found = self.pods(&peers.pods, side, place);
        found.extend(self.blocks(&peers, side, place));
        found
    }

    pub(super) fn pods(
        &mut self,
        pods: &BTreeSet<&PodTerm>,
        side: Side,
        place: &mut CompiledRule,
    ) -> Vec<RuleCondition> {
        pods.iter().flat_map(|term| self.kept(&PeerSet::Pods((*term).clone()), side, place)).collect()
    }

    /// A packet is in a set; never, if the index does not have it.
    fn kept(&mut self, set: &PeerSet, side: Side, place: &mut CompiledRule) -> Vec<RuleCondition> {
        let Some(set) = self.index.set(set).cloned() else {
            place.left_out.insert(LeftOutReason::NameTaken);
            return Vec::new();
        };
        self.kept.insert(set.clone());
        let families = [Family::V4, Family::V6].into_iter();
        families
            .map(|family| {
                (Some(family), vec![is_in(side, set.kernel_name(family), key_type(&set, family), false)])
            })
            .collect()
    }
}
