mod plain;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use facts::networkpolicy::{Entries, Port};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::compile::tests::node::FollowedNode;
use crate::terms::{NamespaceTerm, PeerTerm, PodTerm, RuleTerms, TrafficDirection};
use crate::tests::sample::{Labels, SampleFlow, SamplePod, SamplePolicy, SampleWorld};
use crate::{FlowRoute, PlainPod, PlainWorld, PolicyFlow, PolicyWorld as _, Traffic, verdict};

const DIRECTIONS: [TrafficDirection; 2] = [TrafficDirection::Egress, TrafficDirection::Ingress];

/// A change of one object.
#[derive(Debug, Clone)]
enum Event {
    Pod(usize, Option<SamplePod>),
    Namespace(&'static str, Option<Labels>),
    Policy(usize, Option<SamplePolicy>),
}

/// A world, the index that follows it, and what somebody has who applied the effects.
#[derive(Default)]
struct Followed {
    world: PlainWorld,
    index: PolicyIndex,
    policies: BTreeMap<usize, PolicyName>,
    sets: BTreeMap<Arc<PeerSet>, BTreeSet<PeerMember>>,
    pods: BTreeMap<LocalName, PodClasses>,
    /// Rules as they were when a pod or its class changed last; nothing where it is not isolated. Egress and ingress.
    rules: BTreeMap<LocalName, [Option<Vec<RuleTerms>>; 2]>,
    node: FollowedNode,
    /// What is looked at after each effect.
    flows: Vec<PolicyFlow>,
}

impl Followed {
    fn put_pod(&mut self, pod: PlainPod) {
        let name = LocalName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        self.change_pod(&name, Some(pod));
    }

    fn change_pod(&mut self, name: &LocalName, after: Option<PlainPod>) {
        let before = self.world.pod(&name.namespace, &name.name).cloned();
        let both = before.iter().chain(&after);
        let addresses: Vec<IpAddr> = both.flat_map(|pod| pod.facts.addresses.iter().copied()).collect();
        let own = after.clone().filter(|pod| &*pod.facts.node == "n1" && pod.facts.is_live());
        match after {
            Some(pod) => self.world.put_pod(pod),
            None => self.world.remove_pod(&name.namespace, &name.name),
        }
        let facts = own.map(|pod| crate::compiled::local_facts(&pod));
        let mut effects = self.index.local_pod(&self.world, name, facts);
        effects.extend(self.index.pod(&self.world, &addresses));
        self.apply(&effects);
    }

    fn put_policy(&mut self, number: usize, after: Option<PolicyTerms>) {
        // Another namespace makes it another policy.
        if let Some(before) = self.policies.remove(&number)
            && after.as_ref().is_none_or(|after| after.name != before)
        {
            self.world.remove_networkpolicy(&before.namespace, &before.name);
            let effects = self.index.policy(&self.world, &before, None);
            self.apply(&effects);
        }
        if let Some(after) = after {
            self.policies.insert(number, after.name.clone());
            self.world.put_policy(after.clone());
            let effects = self.index.policy(&self.world, &after.name.clone(), Some(after));
            self.apply(&effects);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Pod(number, pod) => {
                let pod = pod.map(|pod| pod.plain(number));
                let namespace = pod.as_ref().map(|pod| pod.namespace.clone());
                // Another namespace makes it another pod.
                for other in ["x", "y", "z"].into_iter().filter(|one| namespace.as_deref() != Some(*one)) {
                    let name = LocalName { namespace: other.into(), name: format!("p{number}").into() };
                    self.change_pod(&name, None);
                }
                pod.into_iter().for_each(|pod| self.put_pod(pod));
            }
            Event::Namespace(name, labels) => {
                match labels {
                    Some(labels) => self
                        .world
                        .put_namespace(name, facts::Namespace { labels: labels.into_iter().collect() }),
                    None => self.world.remove_namespace(name),
                }
                let effects = self.index.namespace(&self.world, name);
                self.apply(&effects);
            }
            Event::Policy(number, policy) => {
                let terms = policy.map(|policy| PolicyTerms::from(&policy.object(number)));
                self.put_policy(number, terms);
            }
        }
    }

    /// Applies an event's effects, those of pods and classes at once. What is allowed before and after it is allowed all the time.
    fn apply(&mut self, effects: &[PolicyEffect]) {
        self.node.apply(effects, &self.index, &self.flows);
        let is_of_rules = |effect: &PolicyEffect| effect.step() == 1;
        let mut seen = vec![self.allowed()];
        for transaction in effects.chunk_by(|one, other| is_of_rules(one) && is_of_rules(other)) {
            self.apply_at_once(transaction);
            seen.push(self.allowed());
        }
        let (first, last) = (&seen[0], &seen[seen.len() - 1]);
        for kept in first.intersection(last) {
            assert!(seen.iter().all(|allowed| allowed.contains(kept)), "{kept:?} is cut by {effects:?}");
        }
    }

    fn allowed(&self) -> BTreeSet<(LocalName, TrafficDirection, usize)> {
        let mut allowed = BTreeSet::new();
        for (number, flow) in self.flows.iter().enumerate() {
            for (pod, direction) in
                self.pods.keys().flat_map(|pod| DIRECTIONS.map(|direction| (pod, direction)))
            {
                if self.passes(pod, direction, flow) {
                    allowed.insert((pod.clone(), direction, number));
                }
            }
        }
        allowed
    }

    fn rules_of(&self, pod: &LocalName) -> [Option<Vec<RuleTerms>>; 2] {
        let PodClasses { egress, ingress } = &self.pods[pod];
        [egress, ingress].map(|class| {
            let class = class.as_ref().filter(|class| self.index.isolates(class))?;
            let terms = class.policies.iter().map(|name| self.index.terms(name).unwrap());
            Some(terms.flat_map(|terms| terms.direction(class.direction).rules.iter().cloned()).collect())
        })
    }

    fn apply_at_once(&mut self, effects: &[PolicyEffect]) {
        for effect in effects {
            match effect.clone() {
                PolicyEffect::SetAppears(set, members) => {
                    assert!(self.sets.insert(set, members.into_iter().collect()).is_none(), "it was there");
                }
                PolicyEffect::SetGains(set, added) => {
                    let members = self.sets.get_mut(&set).expect("the set is there");
                    added.into_iter().for_each(|one| assert!(members.insert(one), "{one:?} was there"));
                }
                PolicyEffect::SetLoses(set, removed) => {
                    let members = self.sets.get_mut(&set).expect("the set is there");
                    removed.iter().for_each(|one| assert!(members.remove(one), "{one:?} was not there"));
                }
                PolicyEffect::SetGoes(set) => drop(self.sets.remove(&set).expect("the set was there")),
                PolicyEffect::PodChanges { pod, classes, .. } => {
                    self.pods.insert(pod.clone(), classes);
                    let rules = self.rules_of(&pod);
                    self.rules.insert(pod, rules);
                }
                PolicyEffect::PodGoes(pod) => {
                    self.pods.remove(&pod).expect("the pod was there");
                    self.rules.remove(&pod);
                }
                PolicyEffect::ClassChanges(class) => {
                    let having = self.pods.iter().filter(|(_, pod)| pod.iter().any(|one| *one == class));
                    let having: Vec<LocalName> = having.map(|(name, _)| name.clone()).collect();
                    assert!(!having.is_empty(), "nobody has it");
                    for pod in having {
                        let rules = self.rules_of(&pod);
                        self.rules.insert(pod, rules);
                    }
                }
            }
        }
    }

    /// What there should be, found by looking at everything.
    fn check(&self) -> Result<(), TestCaseError> {
        let live = self
            .world
            .namespaces()
            .flat_map(|name| self.world.pods_in(name, &Selector::default()).collect::<Vec<_>>());
        let live: Vec<&PlainPod> = live.collect();
        let mut expected_pods = BTreeMap::new();
        for pod in live.iter().filter(|pod| &*pod.facts.node == "n1") {
            let selecting: Vec<&PolicyTerms> =
                self.world.policies().filter(|policy| self.world.selects(&policy.subjects, pod)).collect();
            let name = LocalName { namespace: pod.namespace.clone(), name: pod.name.clone() };
            expected_pods.insert(name, PodClasses::of(&selecting));
        }
        prop_assert_eq!(&self.pods, &expected_pods);
        let expected: BTreeMap<_, _> =
            self.pods.keys().map(|pod| (pod.clone(), self.rules_of(pod))).collect();
        prop_assert_eq!(&self.rules, &expected);
        let mut expected = BTreeMap::new();
        for class in expected_pods.values().flat_map(PodClasses::iter) {
            let policies = self.world.policies().filter(|terms| class.policies.contains(&terms.name));
            for set in policies.flat_map(|terms| wanted::of(terms, class.direction)) {
                let members = self.members(&set, &live);
                expected.insert(Arc::new(set), members);
            }
        }
        prop_assert_eq!(&self.sets, &expected);
        let held: BTreeMap<_, BTreeSet<_>> =
            self.index.sets().map(|(set, members)| (set.clone(), members.collect())).collect();
        prop_assert_eq!(&held, &expected);
        Ok(())
    }

    fn members(&self, set: &PeerSet, live: &[&PlainPod]) -> BTreeSet<PeerMember> {
        let is_local = |address| {
            live.iter().any(|pod| &*pod.facts.node == "n1" && pod.facts.addresses.contains(&address))
        };
        let mut members = BTreeSet::new();
        for address in live.iter().flat_map(|pod| pod.facts.addresses.iter().copied()) {
            let owner = self.world.pod_at(address).unwrap();
            let ports = |name: &str, protocol| -> Vec<PeerMember> {
                owner
                    .ports(name, protocol)
                    .map(|number| PeerMember { address, port: Some((protocol, number)) })
                    .collect()
            };
            match set {
                PeerSet::Pods(term) if self.world.selects(term, &owner) => {
                    members.extend([PeerMember { address, port: None }]);
                }
                PeerSet::Ports(term, name, protocol)
                    if term.as_ref().is_none_or(|term| self.world.selects(term, &owner)) =>
                {
                    members.extend(ports(name, *protocol));
                }
                PeerSet::OwnPorts(name, protocol) if is_local(address) => {
                    members.extend(ports(name, *protocol));
                }
                _ => {}
            }
        }
        members
    }

    /// Whether the rules of a pod's class let a flow pass, by what is in the sets.
    fn passes(&self, pod: &LocalName, direction: TrafficDirection, flow: &PolicyFlow) -> bool {
        let [egress, ingress] = &self.rules[pod];
        let rules = if direction == TrafficDirection::Egress { egress } else { ingress };
        let Some(rules) = rules else { return true };
        let peer = if direction == TrafficDirection::Egress { flow.destination } else { flow.source };
        let has = |set: PeerSet, address, port| {
            self.sets.get(&set).is_some_and(|members| members.contains(&PeerMember { address, port }))
        };
        rules.iter().any(|rule| {
            let peers: Vec<Option<&PeerTerm>> = match &rule.peers {
                Entries::Any => vec![None],
                Entries::Of(peers) => peers.iter().map(Some).collect(),
            };
            peers.into_iter().any(|one| {
                let term = match one {
                    Some(PeerTerm::Pods(term)) => Some(term),
                    _ => None,
                };
                let in_block = match one {
                    Some(PeerTerm::Block(block)) => block.contains(peer),
                    _ => true,
                };
                let is_peer = || term.is_none_or(|term| has(PeerSet::Pods(term.clone()), peer, None));
                let is_port = |port: &Port| match (port, flow.traffic) {
                    (_, Traffic::Portless) => false,
                    (Port::All(of), Traffic::Port(protocol, _)) => *of == protocol && is_peer(),
                    (Port::Range(of, (first, last)), Traffic::Port(protocol, number)) => {
                        *of == protocol && (*first..=*last).contains(&number) && is_peer()
                    }
                    (Port::Named(of, name), Traffic::Port(protocol, number)) => {
                        *of == protocol
                            && match direction {
                                TrafficDirection::Egress => has(
                                    PeerSet::Ports(term.cloned(), name.clone(), *of),
                                    peer,
                                    Some((protocol, number)),
                                ),
                                TrafficDirection::Ingress => {
                                    let own = PeerSet::OwnPorts(name.clone(), *of);
                                    has(own, flow.destination, Some((protocol, number))) && is_peer()
                                }
                            }
                    }
                };
                in_block
                    && match &rule.ports {
                        Entries::Any => is_peer(),
                        Entries::Of(ports) => ports.iter().any(is_port),
                    }
            })
        })
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let world = SampleWorld::any();
    // A world's objects one by one, then further ones over them, and some of them gone.
    vec(world, 1..=3).prop_map(|worlds| {
        let mut events = Vec::new();
        for world in worlds {
            let pods = world.pods.iter().cloned().enumerate();
            let policies = world.policies.iter().cloned().enumerate();
            let mut pods = pods.map(|(number, pod)| Event::Pod(number, Some(pod)));
            let mut policies = policies.map(|(number, policy)| Event::Policy(number, Some(policy)));
            let mut namespaces =
                world.namespaces.iter().map(|(name, labels)| Event::Namespace(name, Some(labels.clone())));
            for _ in 0..9 {
                events.extend(pods.next());
                events.extend(policies.next());
                events.extend(namespaces.next());
            }
            events.push(Event::Pod(0, None));
            events.push(Event::Policy(1, None));
            events.push(Event::Namespace("x", None));
        }
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any events the index has what looking at everything finds, so has who applied its effects, and by that the rules of each
    /// pod do what the verdict says.
    #[test]
    fn effects_add_up_to_what_the_objects_mean(
        events in events(),
        flows in vec(SampleFlow::any(), 20),
    ) {
        let flows = flows.iter().map(SampleFlow::flow).filter(|flow| flow.route != FlowRoute::Tunnel);
        let flows: Vec<PolicyFlow> = flows.map(|flow| PolicyFlow { route: FlowRoute::Service, ..flow }).collect();
        let mut followed = Followed { flows: flows.clone(), ..Followed::default() };
        for event in events {
            followed.take(event);
            followed.check()?;
        }
        for flow in flows {
            let found = verdict(&followed.world, &flow);
            let ends = [
                (flow.source, TrafficDirection::Egress, found.egress),
                (flow.destination, TrafficDirection::Ingress, found.ingress),
            ];
            for (address, direction, judgement) in ends {
                let Some(pod) = followed.world.pod_at(address) else { continue };
                let name = LocalName { namespace: pod.namespace.clone(), name: pod.name.clone() };
                if followed.pods.contains_key(&name) {
                    prop_assert_eq!(followed.passes(&name, direction, &flow), judgement.is_allowed(), "{:?} {}", flow, judgement);
                }
            }
        }
    }
}

#[test]
fn only_what_a_policy_of_this_node_can_select_is_kept() {
    let mut followed = Followed::default();
    let pod = |number: usize, namespace, node| {
        SamplePod {
            namespace,
            labels: Labels::from([("app", "a")]),
            addresses: vec![["10.0.0.1", "10.0.0.2", "10.0.1.1"][number]],
            node,
            phase: "Running",
            host_network: false,
            deleting: false,
            ports: vec![],
        }
        .plain(number)
    };
    let object = serde_json::json!({"metadata": {"namespace": "y", "name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]}});
    let policy: facts::NetworkPolicy = serde_json::from_value(object).unwrap();
    followed.put_policy(0, Some((&policy).into()));
    followed.put_pod(pod(0, "x", "n1"));
    followed.put_pod(pod(1, "y", "n2"));
    assert!(followed.sets.is_empty(), "no pod of this node is selected: {:?}", followed.sets);
    followed.put_pod(pod(2, "y", "n1"));
    let term = PodTerm { namespaces: NamespaceTerm::Named("y".into()), labels: selector_of(&policy) };
    assert_eq!(followed.sets.keys().map(|set| (**set).clone()).collect::<Vec<_>>(), [PeerSet::Pods(term)]);
    let name = LocalName { namespace: "y".into(), name: "p2".into() };
    followed.change_pod(&name, None);
    assert!(followed.sets.is_empty() && followed.index.sets().next().is_none());
}

fn selector_of(policy: &facts::NetworkPolicy) -> Selector {
    let terms = PolicyTerms::from(policy);
    let Entries::Of(peers) = &terms.ingress.rules[0].peers else { panic!("{terms:?}") };
    let PeerTerm::Pods(term) = &peers[0] else { panic!("{peers:?}") };
    term.labels.clone()
}
