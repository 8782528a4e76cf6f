//! The rules of a node.

use std::collections::BTreeMap;

use ruleset::eval::{Owner, State};
use ruleset::{MapVerdict, Members as _, TableDelta};

use super::*;
use crate::FlowVerdict;
use crate::index::PolicyEffect;
use crate::terms::PolicyTerms;

pub(super) const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

pub(super) fn settings(backend: Backend) -> EnforcementSettings {
    EnforcementSettings { backend, ..EnforcementSettings::default() }
}

/// An index of the node `n1`, to whose pods only those addresses are given that are theirs.
pub(super) fn indexed_by_owner(world: &PlainWorld) -> PolicyIndex {
    let mut index = PolicyIndex::default();
    for policy in world.policies() {
        index.policy(world, &policy.name, Some(policy.clone()));
    }
    for pod in world.live_on("n1") {
        let addresses = pod.facts.addresses.iter().copied();
        let addresses = addresses.filter(|one| world.pod_at(*one) == Some(pod)).collect();
        let facts = LocalFacts { addresses, ..crate::compiled::local_facts(pod) };
        index.local_pod(world, &name_of(pod), Some(facts));
    }
    index
}

/// A connection's first packet as the node sees it, and the hook where its pods' ends are judged.
pub(super) fn on_node(world: &PlainWorld, flow: &PolicyFlow) -> (Packet, Hook) {
    let is_node = |address: IpAddr| {
        world.pod_at(address).is_none() && NODES[0].1.iter().any(|one| one.parse() == Ok(address))
    };
    let mut packet = packet(flow, TrafficDirection::Egress);
    packet.in_interface = "veth1".into();
    if is_node(flow.source) {
        packet.in_interface.clear();
        packet.own_source = true;
        // Not each packet of a socket has it still, but the first one has.
        if packet.destination_port == 80 {
            packet.state = State::Established;
        } else {
            packet.owner = Some(Owner { uid: 1000, gid: 1000 });
        }
    }
    let hook = if is_node(flow.destination) { Hook::Input } else { Hook::Postrouting };
    (packet, hook)
}

/// Whether the ends of a flow that are pods of the node deny it.
pub(super) fn is_denied_here(world: &PlainWorld, flow: &PolicyFlow, said: &FlowVerdict) -> bool {
    let is_local = |address| world.pod_at(address).is_some_and(|pod| &*pod.facts.node == "n1");
    is_local(flow.source) && !said.egress.is_allowed()
        || is_local(flow.destination) && !said.ingress.is_allowed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a node's rules do to the first packet is what the verdict says of the ends that are its pods.
    #[test]
    fn a_nodes_rules_do_what_the_verdict_says(world in SampleWorld::any()) {
        let (world, flows) = (world.plain(), flows());
        let index = indexed_by_owner(&world);
        let nodes = BACKENDS.map(|backend| compile_node(&index, settings(backend)));
        for node in &nodes {
            prop_assert_eq!((ruleset::check(&node.rules), &*node.left_out, &*node.refused), (Ok(()), &[][..], &[][..]));
        }
        for family in [Family::V4, Family::V6] {
            prop_assert!(ruleset::iptables::render(std::slice::from_ref(&nodes[1].rules), family).is_ok());
        }
        for flow in &flows {
            let expected = verdict(&world, flow);
            let denied = is_denied_here(&world, flow, &expected);
            let (packet, hook) = on_node(&world, flow);
            for (node, backend) in nodes.iter().zip(BACKENDS) {
                let layers = std::slice::from_ref(&node.rules);
                let found = evaluate(layers, backend, &packet, hook, false, &node.contents);
                let decided_by = found.decided_by;
                prop_assert_eq!(found.verdict == Verdict::Drop, denied, "{} {:?} {}: {:?}", backend, flow, expected, decided_by);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// A node's rules for the tunnel and those of pods for what is inside come to the verdict together, in both backends.
    #[test]
    fn tunnels_are_judged_by_node_and_pod_together(world in SampleWorld::any()) {
        let world = world.plain();
        let index = indexed_by_owner(&world);
        let nodes = BACKENDS.map(|backend| compile_node(&index, settings(backend)));
        for node in &nodes {
            prop_assert_eq!(ruleset::check(&node.rules), Ok(()));
        }
        let local = |address| world.pod_at(address).filter(|pod| &*pod.facts.node == "n1");
        let tunnelled = flows().into_iter().filter(|flow| {
            let ends = [flow.source, flow.destination].map(|one| world.pod_at(one).is_some_and(|pod| pod.is_enrolled));
            ends == [true; 2] && matches!(flow.traffic, Traffic::Port(PolicyProtocol::Tcp, _))
        });
        let pods = BACKENDS.map(|backend| CompiledPods::inner(&world, backend));
        for flow in tunnelled.map(|flow| PolicyFlow { route: FlowRoute::Tunnel, ..flow }) {
            if world.pod_at(flow.source) == world.pod_at(flow.destination) {
                continue;
            }
            let expected = verdict(&world, &flow);
            let (mut packet, hook) = on_node(&world, &flow);
            packet.destination_port = crate::TUNNEL_PORT;
            let taken = local(flow.destination).is_some_and(|pod| world.is_own_node(&pod, flow.source));
            for ((pods, node), backend) in pods.iter().zip(&nodes).zip(BACKENDS) {
                let layers = std::slice::from_ref(&node.rules);
                let found = evaluate(layers, backend, &packet, hook, false, &node.contents);
                let inside = [pods.egress(&flow, None), pods.ingress(&flow)];
                let ends = [(flow.source, &expected.egress), (flow.destination, &expected.ingress)];
                let is_wrong = |((address, judged), inside): &((IpAddr, &crate::Judgement), &crate::compiled::PointVerdict)| {
                    local(*address).is_some() && !judged.is_allowed() && inside.is_allowed && found.verdict == Verdict::Pass
                };
                let wrong: Vec<_> = ends.into_iter().zip(&inside).filter(is_wrong).collect();
                prop_assert!(wrong.is_empty() || taken, "{:?} {:?}: {:?}", flow, wrong, found.decided_by);
                if ends.iter().all(|(address, judged)| local(*address).is_none() || judged.is_allowed()) {
                    let passes = found.verdict == Verdict::Pass && inside.iter().all(|one| one.is_allowed);
                    let is_far = ends.iter().any(|(address, judged)| local(*address).is_none() && !judged.is_allowed());
                    prop_assert!(passes || is_far, "{:?} {:?} {:?}", flow, found.decided_by, inside);
                }
            }
        }
    }
}

fn policy(namespace: &str, name: &str, spec: serde_json::Value) -> PolicyTerms {
    let mut object = serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
    object["spec"] = spec;
    (&serde_json::from_value::<facts::NetworkPolicy>(object).unwrap()).into()
}

/// A pod of a node without other pods, and what its policies come to.
fn isolated(settings: EnforcementSettings) -> CompiledNode {
    let (world, mut index) = (PlainWorld::default(), PolicyIndex::default());
    let terms =
        policy("x", "p", serde_json::json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    index.policy(&world, &terms.name.clone(), Some(terms));
    let pod = LocalName { namespace: "x".into(), name: "a".into() };
    let addresses = ["10.0.0.1", "fd00::1"].map(|one| one.parse().unwrap()).into();
    index.local_pod(
        &world,
        &pod,
        Some(LocalFacts { labels: facts::LabelSet::default(), addresses, tunnel: Default::default() }),
    );
    compile_node(&index, settings)
}

fn tcp(source: &str, destination: &str) -> Packet {
    let at = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
    let packet = Packet::new(Protocol::Tcp, at(source, 40000), at(destination, 80));
    Packet { in_interface: "veth1".into(), ..packet }
}

fn is_dropped((node, backend): &(CompiledNode, Backend), packet: &Packet, hook: Hook) -> bool {
    let layers = std::slice::from_ref(&node.rules);
    evaluate(layers, *backend, packet, hook, false, &node.contents).verdict == Verdict::Drop
}

#[test]
fn what_is_never_judged_and_what_settings_say() {
    for backend in BACKENDS {
        is_judged_by_settings(backend);
    }
}

fn is_judged_by_settings(backend: Backend) {
    let [cut, keep, free] = [
        settings(backend),
        EnforcementSettings { established: Established::Keep, ..settings(backend) },
        EnforcementSettings { egress_to_own_node: EgressToOwnNode::Allow, ..settings(backend) },
    ]
    .map(|settings| (isolated(settings), backend));
    let new = tcp("10.0.0.1", "203.0.113.9");
    let open = Packet { state: State::Established, ..new.clone() };
    let answer = Packet { reply: true, ..open.clone() };
    let error = Packet { state: State::Related, ..new.clone() };
    let found = [&cut, &keep, &free]
        .map(|node| [&new, &open, &answer, &error].map(|one| is_dropped(node, one, Hook::Postrouting)));
    assert_eq!(found[0], [true, true, false, false]);
    assert_eq!(found[1], [true, false, false, false]);
    assert_eq!(found[2], found[0]);
    let to_node = tcp("10.0.0.1", "192.0.2.1");
    assert_eq!([&cut, &keep, &free].map(|node| is_dropped(node, &to_node, Hook::Input)), [true, true, false]);
    let discovery = Packet {
        protocol: Protocol::Icmpv6,
        icmp: (135, 0),
        source: "fd00::1".parse().unwrap(),
        destination: "fd00::9".parse().unwrap(),
        ..new
    };
    assert_eq!([Hook::Postrouting, Hook::Input].map(|hook| is_dropped(&cut, &discovery, hook)), [false; 2]);
}

#[test]
fn the_own_node_is_who_sends_from_it_and_is_no_pod() {
    for backend in BACKENDS {
        is_own_node(backend);
    }
}

fn is_own_node(backend: Backend) {
    let node = (isolated(settings(backend)), backend);
    let from = |source, in_interface: &str, own_source, owner: Option<u32>| {
        let owner = owner.map(|uid| Owner { uid, gid: uid });
        let packet = tcp(source, "10.0.0.1");
        let packet = Packet { in_interface: in_interface.to_owned(), own_source, owner, ..packet };
        is_dropped(&node, &packet, Hook::Postrouting)
    };
    assert!(!from("10.0.0.254", "", true, Some(0)), "kubelet");
    assert!(!from("10.0.0.254", "", true, Some(1000)), "another user's kubelet");
    let lost = Packet {
        in_interface: String::new(),
        own_source: true,
        state: State::Established,
        ..tcp("10.0.0.254", "10.0.0.1")
    };
    assert!(!is_dropped(&node, &lost, Hook::Postrouting), "a packet that has lost its socket");
    assert!(from("10.0.0.254", "veth2", true, None), "a pod that takes the node's address");
    assert!(!from("203.0.113.9", "", false, Some(0)), "a transparent proxy of the node's");
    assert!(from("10.0.0.254", "eth0", false, None), "another node");
    assert!(from("203.0.113.9", "", false, None), "what IPVS sends on");
    assert!(from("10.0.0.1", "", true, Some(0)), "a pod's address that the node has too");
}

#[test]
fn a_denial_is_counted_and_logged_with_its_class() {
    for backend in BACKENDS {
        is_logged(backend);
    }
}

fn is_logged(backend: Backend) {
    let node = isolated(settings(backend));
    let layers = std::slice::from_ref(&node.rules);
    let packet = tcp("203.0.113.9", "10.0.0.1");
    let found = evaluate(layers, backend, &packet, Hook::Postrouting, false, &node.contents);
    let [.., log, drop] = &found.trace[..] else { panic!("{:?}", found.trace) };
    assert_eq!(drop.rule.why, "no ingress rule allows it of x/p");
    assert!(drop.rule.counting == ruleset::Counting::Rule);
    let text = ruleset::nft::render_statements(log.rule);
    let chain = drop.chain.name.strip_prefix("istio-np-").unwrap().strip_suffix("-n").unwrap();
    assert_eq!(
        text,
        format!("limit rate 10/second burst 50 packets counter log prefix \"ic1:{chain}\" group 115")
    );
    let class = u64::from_str_radix(chain, 16).unwrap();
    for (beginning, fate, role) in [
        ("ic1:", LoggedFate::Dropped, "np"),
        ("ic1a:", LoggedFate::Passed, "np"),
        ("ic1r:", LoggedFate::Answered, "nr"),
    ] {
        let mark = LogMark { class, fate };
        assert_eq!(LogMark::read(&format!("{beginning}{chain}")), Some(mark));
        assert_eq!(
            (mark.chain(), is_denying_chain(&mark.chain())),
            (format!("istio-{role}-{chain}-n"), true)
        );
    }
    // Tenants deny in chains of their own.
    assert!(is_denying_chain(&format!("istio-np-{chain}-t")));
    for other in [
        "",
        "ic1:",
        "ic1b:0123456789abcdef",
        "ic1:r0123456789abcdef",
        "ic1:0123",
        "ic1:0123456789abcdeg",
        "ic1:ic1a:56789abcdef0",
    ] {
        assert_eq!(LogMark::read(other), None, "{other}");
    }
}

#[test]
fn a_class_whose_name_another_has_denies_everything() {
    let (world, mut index) = (PlainWorld::default(), PolicyIndex::default());
    let mut classes = Vec::new();
    for (namespace, address) in [("x", "10.0.0.1"), ("y", "10.0.0.2")] {
        let terms = policy(namespace, "p", serde_json::json!({"podSelector": {}, "ingress": [{}]}));
        index.policy(&world, &terms.name.clone(), Some(terms));
        let pod = LocalName { namespace: namespace.into(), name: "a".into() };
        let addresses = [address.parse().unwrap()].into();
        index.local_pod(
            &world,
            &pod,
            Some(LocalFacts { labels: facts::LabelSet::default(), addresses, tunnel: Default::default() }),
        );
        classes.push(index.classes_of(&pod).unwrap().ingress.clone().unwrap());
    }
    let pods: Vec<PolicyEffect> = index
        .pods()
        .map(|(pod, facts, classes)| PolicyEffect::PodChanges {
            pod: pod.clone(),
            addresses: facts.addresses.clone(),
            classes: classes.clone(),
            tunnel: facts.tunnel,
        })
        .collect();
    let following = |backend| {
        let mut node = NodeRules::new(settings(backend));
        node.claim_name_for_test(&classes[1], &classes[0]);
        let deltas = node.apply(&pods, &index);
        assert_eq!(node.refused().collect::<Vec<_>>(), [&classes[1]]);
        deltas
    };
    let deltas = following(Backend::Nftables);
    let ways: BTreeMap<Key, Option<MapVerdict>> =
        deltas[0].members["istio-np-ingress-v4"].added().map(|one| (one.key, one.verdict)).collect();
    let at = |text: &str| ways[&Key::Address(text.parse().unwrap())].clone();
    assert!(matches!(at("10.0.0.1"), Some(MapVerdict::Jump(_))));
    assert_eq!(at("10.0.0.2"), Some(MapVerdict::Drop));
    let deltas = following(Backend::Iptables);
    let closed = deltas[0].members["istio-np-ingress-closed-v4"].added().map(|one| one.key);
    assert_eq!(closed.collect::<Vec<_>>(), [Key::Address("10.0.0.2".parse().unwrap())]);
}

/// What somebody has who loads a node's rules and then only what each event changes, in each backend.
pub(crate) struct FollowedNode([FollowedRules; 2]);

fn local_addresses(index: &PolicyIndex) -> Vec<IpAddr> {
    index.pods().flat_map(|(_, facts, _)| facts.addresses.to_vec()).collect()
}

struct FollowedRules {
    settings: EnforcementSettings,
    node: NodeRules,
    table: Table,
    contents: Contents,
}

impl Default for FollowedNode {
    fn default() -> Self {
        Self(BACKENDS.map(|backend| {
            // With all chains that there may be.
            let settings = EnforcementSettings { answer: DenialAnswer::Always, ..settings(backend) };
            let node = NodeRules::new(settings);
            let table = node.rules(&PolicyIndex::default()).tables.remove(0);
            FollowedRules { settings, node, table, contents: Contents::default() }
        }))
    }
}

impl FollowedNode {
    /// Does what an event changes, as the kernel would, which refuses what does not fit. After each step all is allowed of `flows` that is allowed before and
    /// after the event, and nothing that is neither.
    pub(crate) fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex, flows: &[PolicyFlow]) {
        for node in &mut self.0 {
            node.apply(effects, index, flows);
        }
    }
}

impl FollowedRules {
    fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex, flows: &[PolicyFlow]) {
        let deltas = self.node.apply(effects, index);
        // Of two pods each end is for itself: one may open before the other closes.
        let local = local_addresses(index);
        let is_local = |address: &IpAddr| self.is_local(*address) || local.contains(address);
        let flows: Vec<PolicyFlow> = flows
            .iter()
            .filter(|flow| !(is_local(&flow.source) && is_local(&flow.destination)))
            .copied()
            .collect();
        let mut steps = vec![self.allowed(&flows)];
        for delta in deltas {
            self.transaction(&delta);
            steps.push(self.allowed(&flows));
        }
        let (first, last) = (&steps[0], &steps[steps.len() - 1]);
        for (number, flow) in flows.iter().enumerate().filter(|(number, _)| first[*number] == last[*number]) {
            let is_kept = steps.iter().all(|step| step[number] == first[number]);
            assert!(is_kept, "{}: {flow:?} is changed on the way by {effects:?}", self.settings.backend);
        }
        let wanted = compile_node(index, self.settings);
        let Table { sets, chains, .. } = &wanted.rules.tables[0];
        let named = |table: &[Set]| {
            table.iter().map(|set| (set.name.clone(), set.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(named(&self.table.sets), named(sets));
        let named = |table: &[Chain]| {
            table.iter().map(|chain| (chain.name.clone(), chain.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(named(&self.table.chains), named(chains));
        for set in sets {
            assert_eq!(
                self.contents.of(&set.name).collect::<Vec<_>>(),
                wanted.contents.of(&set.name).collect::<Vec<_>>(),
                "{}",
                set.name
            );
        }
    }

    fn rules(&self) -> Ruleset {
        Ruleset {
            owner: POLICY_OWNER.into(),
            known_chains: KNOWN_CHAINS.into(),
            ipv6: true,
            tables: vec![self.table.clone()],
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        let sets = self.table.sets.iter().filter(|set| set.name.starts_with("istio-np-local-"));
        sets.into_iter().any(|set| self.contents.contains(set, &Key::Address(address)))
    }

    fn allowed(&self, flows: &[PolicyFlow]) -> Vec<bool> {
        let rules = [self.rules()];
        let passes = |(number, flow): (usize, &PolicyFlow)| {
            let packet = packet(flow, TrafficDirection::Egress);
            let packet = Packet { in_interface: "veth1".into(), ..packet };
            let backend = self.settings.backend;
            let at = |hook| evaluate(&rules, backend, &packet, hook, false, &self.contents);
            let is_dropped = at(Hook::Postrouting).verdict == Verdict::Drop;
            // Some of them, because it takes its time.
            if !is_dropped && number % 5 == 0 {
                let forwarded = at(Hook::Forward);
                let is_answered = forwarded.verdict.is_end() || forwarded.mark != 0;
                assert!(!is_answered, "{backend}: {flow:?} is answered and not denied");
            }
            !is_dropped
        };
        flows.iter().enumerate().map(passes).collect()
    }

    fn transaction(&mut self, delta: &TableDelta) {
        for set in &delta.sets {
            assert!(self.table.sets.iter().all(|known| known.name != set.name), "{} is there", set.name);
        }
        for (name, change) in &delta.members {
            let all = self.table.sets.iter().chain(&delta.sets);
            let set = all.into_iter().find(|set| *set.name == **name).expect("the set is there");
            let has = |key: &Key| {
                if set.is_map() {
                    self.contents.verdict(set, key).is_some()
                } else {
                    self.contents.contains(set, key)
                }
            };
            assert!(change.removed().all(|key| has(&key)), "{name}: something is not there");
            let replaced = delta.replaced.get(name).map(Vec::as_slice).unwrap_or_default();
            assert!(
                change.added().all(|one| has(&one.key) == replaced.contains(&one.key)),
                "{name}: something is there"
            );
        }
        delta.apply(&mut self.table, &mut self.contents);
        assert_eq!(ruleset::check_for(&self.rules(), self.settings.backend), Ok(()));
        for set in self.table.sets.iter().filter(|set| set.is_map()) {
            for verdict in self.contents.of(&set.name).filter_map(|one| one.verdict.as_ref()?.chain()) {
                assert!(self.table.chain(verdict).is_some(), "{verdict} is not there");
            }
        }
    }
}
