//! Real packets go where the evaluator says, which is told the members.

use std::net::SocketAddr;
use std::time::Duration;

use ruleset::eval::{Packet, Verdict, evaluate};
use ruleset::{
    Action, Contents, Element, Family, Hook, Key, KeyType, MapVerdict, Match, Protocol, Rule, Ruleset, Set,
    SetDelta, Side,
};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod};

use crate::content::Random;
use crate::support::{Way, delta, dropped, endpoint, leads, regular, ruleset};

const PORTS: [u16; 2] = [8080, 9090];
/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(150);

/// One attempt from the peer to the pod.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    v6: bool,
    protocol: Protocol,
    port: u16,
}

struct Lab {
    pod: Pod,
    _there: Listeners,
}

impl Lab {
    fn new() -> Self {
        let pod = Pod::new(Families::Dual).unwrap();
        let all = PORTS.into_iter().flat_map(|port| [Listener::tcp(port), Listener::udp(port)]);
        let there = Listeners::start(&pod, all).unwrap();
        Self { pod, _there: there }
    }

    fn all() -> Vec<Attempt> {
        let ways = [false, true].into_iter().flat_map(|v6| [Protocol::Tcp, Protocol::Udp].map(|p| (v6, p)));
        ways.flat_map(|(v6, protocol)| PORTS.map(|port| Attempt { v6, protocol, port })).collect()
    }

    fn to(&self, attempt: &Attempt) -> SocketAddr {
        (self.pod.ips()[usize::from(attempt.v6)], attempt.port).into()
    }

    /// Whether the pod answers.
    fn reaches(&self, attempt: &Attempt) -> bool {
        let flow = Flow::from(self.pod.peer()).patience(PATIENCE);
        let outcome = match attempt.protocol {
            Protocol::Tcp => flow.tcp(self.to(attempt)),
            _ => flow.udp(self.to(attempt)),
        };
        outcome.unwrap().port() == Some(attempt.port)
    }

    /// Whether the evaluator lets it pass.
    fn passes(&self, attempt: &Attempt, way: Way, rules: &Ruleset, members: &Contents) -> bool {
        let source = (self.pod.interfaces()[0].peer[usize::from(attempt.v6)], 40_000).into();
        let destination = (self.to(attempt).ip(), attempt.port).into();
        let packet =
            Packet { in_interface: "eth0".to_owned(), ..Packet::new(attempt.protocol, source, destination) };
        let layers = std::slice::from_ref(rules);
        evaluate(layers, way.backend(), &packet, Hook::Input, true, members).verdict == Verdict::Pass
    }
}

fn keys_of(lab: &Lab, keys: KeyType, random: &mut Random) -> Key {
    let attempts = Lab::all();
    let attempt = &attempts[usize::try_from(random.below(attempts.len() as u64)).unwrap()];
    let attempt = Attempt { v6: keys.family() == Family::V6, ..*attempt };
    let address = lab.to(&attempt).ip();
    match keys {
        KeyType::Address(_) => address.into(),
        KeyType::Prefix(_) => {
            let cut = u8::try_from(random.below(9)).unwrap();
            let whole = ipnet::IpNet::from(address);
            ipnet::IpNet::new(address, whole.prefix_len() - cut).unwrap().into()
        }
        KeyType::Endpoint(_) => endpoint(address, attempt.protocol, attempt.port),
        KeyType::Arrival(_) => unreachable!("no set of interfaces is among them"),
    }
}

#[test]
fn addresses_prefixes_and_ports() {
    let lab = Lab::new();
    for way in Way::ALL {
        let sets = crate::support::every_kind();
        let rules = sets.iter().map(|set| dropped(set, Side::Destination)).collect();
        let plan = ruleset(sets.clone(), rules, vec![]);
        let (mut kernel, _) = way.load(&lab.pod, &plan);
        let (mut members, mut random) = (Contents::default(), Random(7));
        let (mut reached, mut lost) = (0, 0);
        for step in 0..12 {
            // Mostly ports: an address hides everything else.
            let set = &sets[[2, 5, 2, 5, 1, 4, 2, 5, 0, 3, 2, 5][step]];
            let mut change =
                SetDelta::between(&members.of(&set.name).cloned().collect::<Vec<Element>>(), &[]);
            for _ in 0..=random.below(2) {
                change.add(keys_of(&lab, set.keys, &mut random));
            }
            kernel.change(&[(&set.name, &change)]).unwrap();
            members.apply(&set.name, &change);
            for attempt in Lab::all() {
                let expected = lab.passes(&attempt, way, &plan, &members);
                assert_eq!(lab.reaches(&attempt), expected, "{way:?} {attempt:?} {members:?}");
                *(if expected { &mut reached } else { &mut lost }) += 1;
            }
            if matches!(set.keys, KeyType::Address(_) | KeyType::Prefix(_)) {
                let clear = SetDelta::between(&members.of(&set.name).cloned().collect::<Vec<Element>>(), &[]);
                kernel.change(&[(&set.name, &clear)]).unwrap();
                members.apply(&set.name, &clear);
            }
        }
        println!("{way:?}: {reached} reached, {lost} lost");
        assert!(reached > 10 && lost > 10, "{way:?}");
        unload(way, &lab, &plan);
    }
}

/// A verdict map leads by address, and by address, protocol and port; in iptables a set for each chain says the same.
#[test]
fn each_class_has_its_chain() {
    let lab = Lab::new();
    let tcp_only = || {
        let not_tcp =
            Rule::new(vec![Match::Protocol(Protocol::Udp)], Action::Drop, "datagrams are not allowed");
        regular("istio-deltas-tcp", vec![not_tcp])
    };
    let nothing =
        || regular("istio-deltas-nothing", vec![Rule::new(vec![], Action::Drop, "nothing is allowed")]);
    let chains = ["istio-deltas-tcp", "istio-deltas-nothing"];
    for way in Way::ALL {
        for keys in
            [KeyType::Address(Family::V4), KeyType::Endpoint(Family::V4), KeyType::Endpoint(Family::V6)]
        {
            let (sets, rules) = match way {
                Way::Nft => {
                    let map = Set::kept("istio-np-class", keys).to_verdicts();
                    let look_up = Action::VerdictMap { map: map.name.clone(), keys, side: Side::Destination };
                    (vec![map], vec![Rule::new(vec![], look_up, "by class")])
                }
                Way::Iptables(_) => {
                    let of = |chain: &&'static str| {
                        let set = Set::kept(chain.replace("istio-deltas", "istio-np"), keys);
                        let in_set = Match::DestinationIn { set: set.name.clone(), keys, not: false };
                        (set, Rule::new(vec![in_set], Action::Jump((*chain).into()), "by class"))
                    };
                    chains.iter().map(of).unzip()
                }
            };
            let plan = ruleset(sets.clone(), rules, vec![tcp_only(), nothing()]);
            let (mut kernel, _) = way.load(&lab.pod, &plan);
            let (mut members, mut random) = (Contents::default(), Random(11));
            let (mut reached, mut lost) = (0, 0);
            for step in 0..6 {
                let key = keys_of(&lab, keys, &mut random);
                // The key goes from one class to the next, and out of all.
                let class = chains.get(step % 3);
                let changes: Vec<(&Set, SetDelta)> = match way {
                    Way::Nft => {
                        let jump = class.map(|chain| leads(key, MapVerdict::Jump((*chain).into())));
                        vec![(&sets[0], delta(jump, class.is_none().then_some(key)))]
                    }
                    Way::Iptables(_) => {
                        let is_in = |at: usize| class == chains.get(at);
                        let one =
                            |at: usize| delta(is_in(at).then(|| key.into()), (!is_in(at)).then_some(key));
                        sets.iter().enumerate().map(|(at, set)| (set, one(at))).collect()
                    }
                };
                let named: Vec<(&str, &SetDelta)> =
                    changes.iter().map(|(set, delta)| (set.name.as_ref(), delta)).collect();
                kernel.change(&named).unwrap();
                named.iter().for_each(|(set, delta)| members.apply(set, delta));
                for attempt in Lab::all() {
                    let expected = lab.passes(&attempt, way, &plan, &members);
                    assert_eq!(lab.reaches(&attempt), expected, "{way:?} {keys:?} {attempt:?} {members:?}");
                    *(if expected { &mut reached } else { &mut lost }) += 1;
                }
            }
            println!("{way:?} {keys:?}: {reached} reached, {lost} lost");
            assert!(reached > 10 && lost > 3, "{way:?} {keys:?}");
            unload(way, &lab, &plan);
        }
    }
}

fn unload(way: Way, lab: &Lab, plan: &Ruleset) {
    way.load(&lab.pod, &Ruleset { tables: vec![], ..plan.clone() });
    way.open(&lab.pod, plan, false).destroy().unwrap();
}
