//! What an event changes of a node's rules.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ruleset::{Backend, Chain, Family, Key, MapVerdict, Set, TableDelta};

use super::super::answer::ChainRole;
use super::class::{ClassRules, Leads, NodeClass};
use super::{LeadPlace, NodePod, NodeRules, base, family_of, lead, peer_names, peer_sets};
use crate::index::{LocalName, PolicyClass, PolicyEffect, PolicyIndex, TunnelJudge};
use crate::terms::TrafficDirection;

/// What the pods and classes of an event touch.
#[derive(Default)]
struct Touched {
    addresses: BTreeSet<IpAddr>,
    /// Those of the addresses that were a pod's before.
    local: BTreeSet<IpAddr>,
    /// Classes that pods come to or leave.
    classes: BTreeSet<Arc<PolicyClass>>,
    /// Classes with other rules.
    changed: BTreeSet<Arc<PolicyClass>>,
}

/// What an event changes, in order. What is about pods and their classes is one transaction of nf_tables. With ipsets it is in parts, of which each leaves
/// no pod open that is isolated: sets have what rules look for before these do, and lose it afterwards.
struct Phases {
    backend: Backend,
    gains: TableDelta,
    rules: TableDelta,
    isolation: TableDelta,
    losses: TableDelta,
    goes: TableDelta,
}

/// Chains by their names.
type NamedChains = BTreeMap<Cow<'static, str>, Chain>;

impl NodeRules {
    /// Takes the effects of one event, and gives the changes that do the same in the kernel, in order: first sets appear and gain members, then all that
    /// changes of pods and classes, then sets lose members, last sets go. nf_tables does each in one transaction. `index` is as it is after the event.
    pub fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex) -> Vec<TableDelta> {
        let mut phases = Phases::new(self.settings.backend);
        let Phases { gains, losses, goes, .. } = &mut phases;
        let mut touched = Touched::default();
        for effect in effects {
            match effect {
                PolicyEffect::SetAppears(set, members) | PolicyEffect::SetGains(set, members) => {
                    if let PolicyEffect::SetAppears(..) = effect {
                        gains.sets.extend(peer_sets(set));
                    }
                    let names = peer_names(set);
                    for member in members {
                        gains.of(&*names[family_of(member)]).add(Key::from(*member));
                    }
                }
                PolicyEffect::SetLoses(set, members) => {
                    let names = peer_names(set);
                    for member in members {
                        losses.of(&*names[family_of(member)]).remove(*member);
                    }
                }
                PolicyEffect::SetGoes(set) => {
                    goes.gone_sets.extend(peer_sets(set).map(|set| set.name.into_owned()));
                }
                PolicyEffect::ClassChanges(class) => drop(touched.changed.insert(class.clone())),
                PolicyEffect::PodChanges { pod, addresses, classes, tunnel } => {
                    let (addresses, classes) = (addresses.clone(), classes.clone());
                    let now = NodePod { addresses, classes, tunnel: *tunnel };
                    self.pod(pod, Some(now), &mut touched);
                }
                PolicyEffect::PodGoes(pod) => self.pod(pod, None, &mut touched),
            }
        }
        self.pods_and_classes(touched, index, &mut phases);
        phases.into_deltas()
    }

    fn pod(&mut self, name: &LocalName, now: Option<NodePod>, touched: &mut Touched) {
        let before = self.pods.remove(name);
        for address in before.iter().chain(&now).flat_map(|pod| &pod.addresses) {
            if touched.addresses.insert(*address) && self.claims.contains_key(address) {
                touched.local.insert(*address);
            }
        }
        if let Some(before) = before {
            for address in &before.addresses {
                if let Some(claimants) = self.claims.get_mut(address) {
                    claimants.remove(name);
                    if claimants.is_empty() {
                        self.claims.remove(address);
                    }
                }
            }
            for class in before.classes.iter() {
                touched.classes.insert(class.clone());
                if let Some(known) = self.classes.get_mut(class) {
                    known.pods -= 1;
                    known.tunnels -= usize::from(before.tunnel == TunnelJudge::Inside);
                }
            }
        }
        let Some(now) = now else { return };
        for address in &now.addresses {
            self.claims.entry(*address).or_default().insert(name.clone());
        }
        for class in now.classes.iter() {
            touched.classes.insert(class.clone());
            let known = self.classes.entry(class.clone()).or_default();
            known.pods += 1;
            known.tunnels += usize::from(now.tunnel == TunnelJudge::Inside);
        }
        self.pods.insert(name.clone(), now);
    }

    fn pods_and_classes(&mut self, mut touched: Touched, index: &PolicyIndex, phases: &mut Phases) {
        let classes = touched.classes.union(&touched.changed);
        let is_other = |class: &&Arc<PolicyClass>| {
            let is_changed = touched.changed.contains(*class);
            let known = self.classes.get(*class);
            known.is_some_and(|known| is_changed || known.pods == 0 || !known.has_its_rules())
        };
        let classes: Vec<Arc<PolicyClass>> = classes.filter(is_other).cloned().collect();
        let mut before = self.leading(&classes);
        let entries = self.entries_of(&classes);
        // Names become free before they are given.
        let leads: Vec<_> = classes.iter().map(|class| self.drop_rules(class, &mut before)).collect();
        let mut after = NamedChains::new();
        for (class, was) in classes.iter().zip(leads) {
            self.take_rules(class, index, &mut after, &mut phases.before_rules().sets);
            if was != self.classes.get(class).map(NodeClass::leads) {
                let pods = self.pods.values().filter(|pod| pod.classes.iter().any(|has| has == class));
                for address in pods.flat_map(|pod| &pod.addresses) {
                    if touched.addresses.insert(*address) {
                        touched.local.insert(*address);
                    }
                }
            }
        }
        after.extend(self.leading(&classes));
        let now = self.entries_of(&classes);
        phases.before_rules().sets.extend(now.difference(&entries).flat_map(|entry| base::entry_sets(entry)));
        let is_gone = |name: &&Cow<'static, str>| !after.contains_key(*name);
        phases.rules.gone_chains = before.keys().filter(is_gone).map(ToString::to_string).collect();
        let is_new = |(name, chain): &(Cow<'static, str>, Chain)| before.get(name) != Some(chain);
        phases.rules.chains = after.into_iter().filter(is_new).map(|(_, chain)| chain).collect();
        let unused = self.blocks.extract_if(.., |_, (_, classes)| *classes == 0);
        let gone = &mut phases.at_end().gone_sets;
        gone.extend(unused.map(|(name, _)| name.into_owned()));
        let sets = entries.difference(&now).flat_map(|entry| base::entry_sets(entry));
        gone.extend(sets.map(|set| set.name.into_owned()));
        self.addresses(&touched, phases);
    }

    /// The chains that lead to those of classes, if there are classes that may have other ones.
    fn leading(&self, classes: &[Arc<PolicyClass>]) -> NamedChains {
        let all = self.dispatches().filter(|_| !classes.is_empty());
        all.map(|chain| (chain.name.clone(), chain)).collect()
    }

    /// The chains by which these classes are entered, where a set leads to each.
    fn entries_of(&self, classes: &[Arc<PolicyClass>]) -> BTreeSet<Cow<'static, str>> {
        let classes = classes.iter().filter(|_| self.settings.backend == Backend::Iptables);
        classes.filter_map(|class| self.classes.get(class)).flat_map(NodeClass::entries).cloned().collect()
    }

    /// Takes the rules of a class away, and says where they led ([`NodeClass::leads`]).
    fn drop_rules(&mut self, class: &Arc<PolicyClass>, before: &mut NamedChains) -> Option<Leads> {
        let known = self.classes.get_mut(class)?;
        let leads = known.leads();
        if let Some(rules) = known.rules.take() {
            for set in &rules.blocks {
                if let Some((_, classes)) = self.blocks.get_mut(&set.name) {
                    *classes -= 1;
                }
            }
            self.names.remove(&class.hash());
            before.extend(rules.chains.into_iter().map(|chain| (chain.name.clone(), chain)));
        }
        Some(leads)
    }

    /// Gives a class that pods have its rules, if nothing else has a name of theirs.
    fn take_rules(
        &mut self,
        class: &Arc<PolicyClass>,
        index: &PolicyIndex,
        after: &mut NamedChains,
        new_sets: &mut Vec<Set>,
    ) {
        let Some(known) = self.classes.get_mut(class) else { return };
        if known.pods == 0 {
            self.classes.remove(class);
            return;
        }
        let of = ClassRules::of(class, index, self.settings, known.tunnels > 0);
        let Some(rules) = of else { return };
        let is_other = |set: &Set| self.blocks.get(&set.name).is_some_and(|(known, _)| known != set);
        if self.names.contains_key(&class.hash()) || rules.blocks.iter().any(is_other) {
            return;
        }
        self.names.insert(class.hash(), class.clone());
        for set in &rules.blocks {
            let (_, classes) = self.blocks.entry(set.name.clone()).or_insert_with(|| {
                new_sets.push(set.clone());
                (set.clone(), 0)
            });
            *classes += 1;
        }
        after.extend(rules.chains.iter().map(|chain| (chain.name.clone(), chain.clone())));
        known.rules = Some(rules);
    }

    /// What the event changes of where addresses lead and of the set of the node's pods.
    fn addresses(&mut self, touched: &Touched, phases: &mut Phases) {
        for address in &touched.addresses {
            let directions = [TrafficDirection::Egress, TrafficDirection::Ingress];
            let places = ChainRole::ALL.iter().flat_map(|role| directions.map(|of| (*role, of, *address)));
            for place in places {
                let now = self.lead_of(place);
                let before = match &now {
                    Some(now) => self.leads.insert(place, now.clone()),
                    None => self.leads.remove(&place),
                };
                if before != now {
                    phases.lead(place, before.as_ref(), now);
                }
            }
            let local = base::local_set(Family::of_address(*address));
            match (touched.local.contains(address), self.claims.contains_key(address)) {
                (false, true) => phases.before_rules().of(local).add(Key::from(*address)),
                (true, false) => phases.after_rules().of(local).remove(*address),
                _ => {}
            }
        }
    }
}

// === impl Phases ===

impl Phases {
    fn new(backend: Backend) -> Self {
        let [gains, rules, isolation, losses, goes] = <[TableDelta; 5]>::default();
        Self { backend, gains, rules, isolation, losses, goes }
    }

    /// What is to be there before the rules change.
    fn before_rules(&mut self) -> &mut TableDelta {
        if self.backend == Backend::Nftables { &mut self.rules } else { &mut self.gains }
    }

    /// What is to be there until they have changed.
    fn after_rules(&mut self) -> &mut TableDelta {
        if self.backend == Backend::Nftables { &mut self.rules } else { &mut self.losses }
    }

    /// Sets that rules look into until they have changed.
    fn at_end(&mut self) -> &mut TableDelta {
        if self.backend == Backend::Nftables { &mut self.rules } else { &mut self.goes }
    }

    /// An address leads elsewhere.
    fn lead(
        &mut self,
        (role, direction, address): LeadPlace,
        before: Option<&MapVerdict>,
        now: Option<MapVerdict>,
    ) {
        let (family, key) = (Family::of_address(address), Key::from(address));
        let isolated = base::isolated(role, direction, family);
        if self.backend == Backend::Nftables {
            match now {
                Some(now) => {
                    self.rules.of(isolated).add(lead(address, now));
                    if before.is_some() {
                        self.rules.replaced.entry(isolated.to_owned()).or_default().push(key);
                    }
                }
                None => self.rules.of(isolated).remove(address),
            }
            return;
        }
        match (before, &now) {
            (None, _) => self.isolation.of(isolated).add(key),
            (_, None) => self.isolation.of(isolated).remove(key),
            (Some(_), Some(_)) => {}
        }
        if let Some(now) = &now {
            self.gains.of(base::leads_by(direction, family, now)).add(key);
        }
        if let Some(before) = before {
            self.losses.of(base::leads_by(direction, family, before)).remove(key);
        }
    }

    fn into_deltas(self) -> Vec<TableDelta> {
        let Self { backend: _, gains, rules, isolation, losses, goes } = self;
        [gains, rules, isolation, losses, goes].into_iter().filter(|delta| !delta.is_empty()).collect()
    }
}
