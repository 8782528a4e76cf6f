//! Plans of several layers in real namespaces: all of them or none, and a layer that is as planned is not touched. Needs root and `nft`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::UdpSocket;
use std::process::Command;

use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::{Applied, Change, Choice, Difference, Kernel};
use ruleset::eval::{Owner, Packet, evaluate};
use ruleset::{
    ALL_BITS, Action, Backend, Base, Chain, ChainKind, Family, Hook, KeyType, Match, NoMembers, Plan,
    Protocol, Rule, Ruleset, Set, Table, TableKind,
};
use testkit::TestNetns;

const ONE: &str = "istio-one";
const TWO: &str = "istio-two";
const PORT: u16 = 4242;

fn udp(mut matches: Vec<Match>, action: Action) -> Rule {
    matches.insert(0, Match::Protocol(Protocol::Udp));
    Rule::new(matches, action, "a test")
}

fn mark(mark: u32) -> Match {
    Match::Mark { mark, mask: ALL_BITS, not: false }
}

/// A layer with one base chain, and a set that somebody else fills.
fn layer(owner: &'static str, kind: TableKind, priority: i32, rules: Vec<Rule>) -> Ruleset {
    let chain = if kind == TableKind::Nat { ChainKind::Nat } else { ChainKind::Filter };
    let base = Some(Base { kind: chain, hook: Hook::Output, priority });
    let chains = vec![Chain { name: "output".into(), base, rules, leading: 0 }];
    let sets = vec![Set::kept("members", KeyType::Address(Family::V4))];
    let tables = vec![Table { kind, sets, chains }];
    Ruleset { owner: owner.into(), known_chains: Vec::new().into(), ipv6: true, tables }
}

fn filter(owner: &'static str, priority: i32, rules: Vec<Rule>) -> Ruleset {
    layer(owner, TableKind::Filter, priority, rules)
}

fn plan(layers: Vec<Ruleset>) -> Plan {
    Plan { backend: Backend::Nftables, routing: Vec::new(), layers }
}

fn apply(ns: &TestNetns, layers: &[Ruleset]) -> Result<Applied, kernel::Error> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    ns.enter(|inside| kernel.apply(inside, Choice::Only(Backend::Nftables), |_| plan(layers.to_vec())))
        .unwrap()
}

fn observe(ns: &TestNetns, layers: &[Ruleset]) -> Vec<Difference> {
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    ns.enter(|inside| kernel.observe(inside, &plan(layers.to_vec()))).unwrap().unwrap()
}

/// A table with its handles, its elements and what its counters have counted; empty where it is not there.
fn table(ns: &TestNetns, name: &str) -> String {
    let command = format!("nft -a list table inet {name} 2>/dev/null || true");
    ns.run(Command::new("sh").args(["-ec", &command])).unwrap()
}

fn send(ns: &TestNetns) {
    ns.enter(|_| UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", PORT)).unwrap())
        .unwrap();
}

fn packet() -> Packet {
    let to = |port| ([127, 0, 0, 1], port).into();
    Packet {
        out_interface: "lo".to_owned(),
        owner: Some(Owner { uid: 0, gid: 0 }),
        listening: false,
        ..Packet::new(Protocol::Udp, to(40_000), to(PORT))
    }
}

/// How many packets each rule of a table has counted, in order.
fn counted(ns: &TestNetns, name: &str) -> Vec<u32> {
    let text = table(ns, name);
    let counters = text.split("counter packets ").skip(1);
    counters.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// The same by the evaluator, of one packet.
fn evaluated(layers: &[Ruleset], owner: &str) -> Vec<u32> {
    let outcome = evaluate(layers, Backend::Nftables, &packet(), Hook::Output, true, &NoMembers);
    let of_owner = |index| outcome.trace.iter().any(|place| place.owner == owner && place.index == index);
    let layer = layers.iter().find(|layer| layer.owner == owner).unwrap();
    (0..layer.tables[0].chains[0].rules.len()).map(|index| u32::from(of_owner(index))).collect()
}

#[test]
fn a_layer_that_is_refused_leaves_the_others_as_they_were() {
    let refused = filter(TWO, 10, vec![Rule::new(vec![], Action::Jump("nowhere".into()), "refused")]);
    let ns = TestNetns::new().unwrap();
    ns.nft("add table inet others").unwrap();
    let error =
        apply(&ns, &[filter(ONE, 0, vec![udp(vec![], Action::Accept)]), refused.clone()]).unwrap_err();
    assert!(fault::chain(&error).contains("table inet istio-two-filter"), "{error}");
    assert_eq!(ns.nft_text().unwrap(), "table inet others {\n}\n");

    let old = [
        filter(ONE, 0, vec![udp(vec![], Action::Accept)]),
        filter(TWO, 10, vec![udp(vec![], Action::Accept)]),
    ];
    assert_eq!(apply(&ns, &old).unwrap().rules, Change::Fresh);
    send(&ns);
    let before = [table(&ns, "istio-one-filter"), table(&ns, "istio-two-filter")];
    apply(&ns, &[filter(ONE, 0, vec![udp(vec![mark(1)], Action::Drop)]), refused]).unwrap_err();
    assert_eq!([table(&ns, "istio-one-filter"), table(&ns, "istio-two-filter")], before);
    assert_eq!(observe(&ns, &old), []);
}

#[test]
fn a_change_of_one_layer_touches_no_other() {
    let ns = TestNetns::new().unwrap();
    let count = |n: u16| {
        let port = |n| Match::DestinationPort { ports: ruleset::Ports::One(PORT + n), not: false };
        (0..=n).map(|n| udp(vec![port(n)], Action::Accept)).collect::<Vec<_>>()
    };
    let layers = |one, two| [filter(ONE, 0, count(one)), filter(TWO, 10, count(two))];
    assert_eq!(apply(&ns, &layers(0, 0)).unwrap().rules, Change::Fresh);
    for name in ["istio-one-filter", "istio-two-filter"] {
        ns.nft(&format!("add element inet {name} members {{ 10.0.0.1 }}")).unwrap();
    }
    send(&ns);
    for (changed, same, next) in [("two", "one", layers(0, 1)), ("one", "two", layers(1, 1))] {
        let name = |which| format!("istio-{which}-filter");
        let (before, of_changed) = (table(&ns, &name(same)), table(&ns, &name(changed)));
        assert!(before.contains("counter packets 1") && before.contains("10.0.0.1"), "{before}");
        let differences = observe(&ns, &next);
        let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert!(!texts.is_empty() && texts.iter().all(|text| text.contains(&name(changed))), "{texts:?}");
        assert_eq!(apply(&ns, &next).unwrap().rules, Change::Replaced);
        assert_eq!(observe(&ns, &next), []);
        assert_eq!(table(&ns, &name(same)), before, "handles, counters and elements");
        assert_ne!(table(&ns, &name(changed)), of_changed);
        assert!(table(&ns, &name(changed)).contains("10.0.0.1"), "a kept set keeps its members");
        assert_eq!(apply(&ns, &next).unwrap().rules, Change::None);
        // The next one changes the layer that was left alone here, and its twin has counted nothing yet.
        send(&ns);
    }
}

/// Also after a change of one of them: what has to stay before it is attached anew.
#[test]
fn layers_at_one_place_run_in_their_order() {
    let one = |more: bool| {
        let mut rules = vec![udp(vec![mark(0)], Action::SetMark(1)), udp(vec![mark(2)], Action::Accept)];
        rules.truncate(1 + usize::from(more));
        rules
    };
    let two = |more: bool| {
        let mut rules = vec![udp(vec![mark(1)], Action::SetMark(2)), udp(vec![mark(2)], Action::Accept)];
        rules.truncate(1 + usize::from(more));
        rules
    };
    for (kind, priority) in [(TableKind::Filter, 0), (TableKind::Mangle, -150)] {
        let layers = |a, b| [layer(ONE, kind, priority, one(a)), layer(TWO, kind, priority, two(b))];
        let ns = TestNetns::new().unwrap();
        let names = [ONE, TWO].map(|owner| kind.nft_table(owner));
        // The second alone, both, another first, another second.
        let steps = [
            layers(false, false)[1..].to_vec(),
            layers(false, false).to_vec(),
            layers(true, false).to_vec(),
            layers(true, true).to_vec(),
        ];
        for step in steps {
            apply(&ns, &step).unwrap();
            assert_eq!(observe(&ns, &step), []);
            ns.nft("reset counters").unwrap();
            let before = names.clone().map(|name| counted(&ns, &name));
            send(&ns);
            for ((owner, name), before) in [ONE, TWO].into_iter().zip(&names).zip(before) {
                let now = counted(&ns, name);
                let more: Vec<u32> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
                if step.iter().any(|layer| layer.owner == owner) {
                    assert_eq!(more, evaluated(&step, owner), "{kind} {owner}: {step:?}");
                }
            }
        }
    }
}

#[test]
fn of_two_layers_that_redirect_the_first_does() {
    let to = |port| vec![udp(vec![], Action::Redirect { port })];
    let ns = TestNetns::new().unwrap();
    let behind = |port| {
        let port = Match::DestinationPort { ports: ruleset::Ports::One(port), not: false };
        filter("istio-three", 50, vec![udp(vec![port], Action::Accept)])
    };
    for (first, second) in [(5001, 5002), (5001, 5003), (5004, 5003)] {
        let nat = |owner, port| layer(owner, TableKind::Nat, -100, to(port));
        let layers = [nat(ONE, first), nat(TWO, second), behind(first)];
        apply(&ns, &layers).unwrap();
        let names = [(ONE, "istio-one-nat"), (TWO, "istio-two-nat"), ("istio-three", "istio-three-filter")];
        let before = names.map(|(_, name)| counted(&ns, name));
        send(&ns);
        for ((owner, name), before) in names.into_iter().zip(before) {
            let more: Vec<u32> =
                counted(&ns, name).iter().zip(&before).map(|(now, before)| now - before).collect();
            assert_eq!(more, evaluated(&layers, owner), "{owner} {first} {second}");
        }
    }
}

#[test]
fn a_cleanup_removes_every_layer_and_nothing_else() {
    let ns = TestNetns::new().unwrap();
    ns.nft("add table inet istio-three-filter\nadd table ip istio-one-filter\nadd table inet others")
        .unwrap();
    let before = ns.nft_text().unwrap();
    let layers = [
        filter(ONE, 0, vec![udp(vec![], Action::Accept)]),
        layer(TWO, TableKind::Nat, -100, vec![udp(vec![], Action::Accept)]),
    ];
    apply(&ns, &layers).unwrap();
    // Of a layer, what an earlier plan had is its own too.
    ns.nft("add table inet istio-two-raw").unwrap();
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let (exists, clean) = ns
        .enter(|inside| {
            (kernel.exists(inside, &plan(layers.to_vec())), kernel.cleanup(inside, &plan(layers.to_vec())))
        })
        .unwrap();
    assert!(exists.unwrap());
    assert_eq!(clean.unwrap(), Change::Fresh);
    assert_eq!(ns.nft_text().unwrap(), before);
}

/// A record has all layers, and says of which one something is gone.
#[test]
fn a_record_covers_all_layers() {
    let ns = TestNetns::new().unwrap();
    let layers = [
        filter(ONE, 0, vec![udp(vec![], Action::Accept)]),
        layer(TWO, TableKind::Nat, -100, vec![udp(vec![], Action::Accept)]),
    ]
    .map(|mut layer| {
        layer.tables[0].sets.clear();
        layer
    });
    let owners: Vec<Ruleset> =
        layers.iter().map(|layer| Ruleset { tables: Vec::new(), ..layer.clone() }).collect();
    apply(&ns, &layers).unwrap();
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let record = kernel.record(&plan(layers.to_vec())).unwrap();
    let record = kernel::Record::from_bytes(&record.to_bytes()).unwrap();
    assert_eq!(record.owners, [ONE, TWO]);
    let look =
        || ns.enter(|inside| kernel.observe_record(inside, &record, &owners)).unwrap().unwrap().unwrap();
    assert_eq!(look(), []);
    ns.nft("flush table inet istio-two-nat").unwrap();
    let found: Vec<String> = look().iter().map(ToString::to_string).collect();
    assert!(found.len() == 1 && found[0].contains("istio-two-nat"), "{found:?}");
}

/// With iptables the layers share built-in chains, and each table is one commit.
mod shared_chains {
    use kernel::RuleStore;
    use kernel::iptables::Variant;
    use ruleset::KnownChain;
    use testkit::rules::{Family as Of, Variant as Listed};

    use super::*;

    const VARIANTS: [(Variant, Listed); 2] = [(Variant::Legacy, Listed::Legacy), (Variant::Nft, Listed::Nft)];

    /// Jumps from OUTPUT of a table, the first `leading` before others' rules, to chains with a rule for the port each.
    fn jumping(owner: &'static str, kind: TableKind, leading: usize, ports: &[u16]) -> Ruleset {
        let name = |port: &u16| format!("{owner}-{port}");
        let jump = |port| udp(vec![], Action::Jump(name(port).into()));
        let port = |port: &u16| Match::DestinationPort { ports: ruleset::Ports::One(*port), not: false };
        let own = |of: &u16| Chain {
            name: name(of).into(),
            base: None,
            rules: vec![udp(vec![port(of)], Action::Return)],
            leading: 0,
        };
        let base =
            Base { kind: ChainKind::Filter, hook: Hook::Output, priority: kind.priority(Hook::Output) };
        let output = Chain {
            name: "output".into(),
            base: Some(base),
            rules: ports.iter().map(jump).collect(),
            leading,
        };
        let chains = std::iter::once(output).chain(ports.iter().map(own)).collect();
        let tables = vec![Table { kind, sets: Vec::new(), chains }];
        let known_chains = vec![KnownChain::beginning(kind, owner)].into();
        Ruleset { owner: owner.into(), known_chains, ipv6: false, tables }
    }

    fn setup(ns: &TestNetns, variant: Variant, layers: &[Ruleset]) -> Result<Change, String> {
        let iptables = Iptables::forced(variant);
        ns.enter(|inside| iptables.setup(inside, layers).map_err(|error| fault::chain(&error))).unwrap()
    }

    fn look(ns: &TestNetns, variant: Variant, layers: &[Ruleset]) -> Vec<Difference> {
        ns.enter(|inside| Iptables::forced(variant).observe(inside, layers)).unwrap().unwrap()
    }

    /// The targets of OUTPUT's rules, in order.
    fn targets(ns: &TestNetns, variant: Listed) -> String {
        let saved = ns.iptables_save(variant, Of::V4).unwrap();
        let rules = saved.lines().filter_map(|line| line.strip_prefix("-A OUTPUT ")?.rsplit(' ').next());
        rules.map(|target| target.trim_start_matches("ISTIO_")).collect::<Vec<_>>().join(" ")
    }

    /// Counters of the rules of one layer's chains.
    fn counters(ns: &TestNetns, variant: &str, owner: &str) -> Vec<String> {
        let text = ns.run(Command::new(format!("iptables-{variant}-save")).arg("-c")).unwrap();
        let owner = owner.to_uppercase().replace('-', "_");
        text.lines()
            .filter(|line| line.starts_with('[') && line.contains(&owner))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_change_of_one_layer_keeps_the_order_and_touches_no_other() {
        for (variant, listed) in VARIANTS {
            let (ns, kind) = (TestNetns::new().unwrap(), TableKind::Mangle);
            let (text, lead) = (variant.to_string(), |ports: &[u16]| jumping(TWO, kind, 1, ports));
            ns.run(
                Command::new(format!("iptables-{text}"))
                    .args(["-t", "mangle", "-A", "OUTPUT", "-j", "ACCEPT"]),
            )
            .unwrap();
            let all = |one: &[u16], two: &[u16], three: &[u16]| {
                [jumping(ONE, kind, 1, one), lead(two), jumping("istio-three", kind, 0, three)]
            };
            // Leading rules first, then those of others, then the rest, all by layers; PORT is what is sent.
            let before = targets(&ns, listed);
            assert_eq!(setup(&ns, variant, &all(&[PORT, 2], &[3, 4], &[5])), Ok(Change::Fresh));
            assert_eq!(targets(&ns, listed), format!("ONE_{PORT} TWO_3 {before} ONE_2 TWO_4 THREE_5"));
            send(&ns);
            for (layers, order) in [
                (all(&[PORT, 2], &[6, 7], &[5]), format!("ONE_{PORT} TWO_6 {before} ONE_2 TWO_7 THREE_5")),
                (all(&[PORT, 2], &[6, 7], &[8]), format!("ONE_{PORT} TWO_6 {before} ONE_2 TWO_7 THREE_8")),
            ] {
                let counted = counters(&ns, &text, ONE);
                assert!(counted.iter().any(|line| line.starts_with("[1:")), "{counted:?}");
                let found: Vec<String> =
                    look(&ns, variant, &layers).iter().map(ToString::to_string).collect();
                assert!(!found.is_empty() && found.iter().all(|text| !text.contains(ONE)), "{found:?}");
                assert!(found.iter().all(|text| text.contains("of istio-t")), "{found:?}");
                assert_eq!(setup(&ns, variant, &layers), Ok(Change::Replaced));
                assert_eq!((targets(&ns, listed), counters(&ns, &text, ONE)), (order, counted), "{text}");
                assert_eq!(look(&ns, variant, &layers), []);
                assert_eq!(setup(&ns, variant, &layers), Ok(Change::None));
            }
            // The first layer, one that is new between others, and one that goes.
            let two_of = |layers: &[Ruleset; 3]| [layers[0].clone(), layers[2].clone()];
            let last = all(&[1, 9], &[6, 7], &[8]);
            let gone = [last[0].clone(), Ruleset { tables: Vec::new(), ..last[1].clone() }, last[2].clone()];
            setup(&ns, variant, &last).unwrap();
            assert_eq!(targets(&ns, listed), format!("ONE_1 TWO_6 {before} ONE_9 TWO_7 THREE_8"));
            setup(&ns, variant, &gone).unwrap();
            assert_eq!(targets(&ns, listed), format!("ONE_1 {before} ONE_9 THREE_8"));
            assert_eq!(look(&ns, variant, &two_of(&last)), []);
            setup(&ns, variant, &last).unwrap();
            assert_eq!(targets(&ns, listed), format!("ONE_1 TWO_6 {before} ONE_9 TWO_7 THREE_8"));
        }
    }

    /// The first layer's table is committed before the second is refused, and is taken back.
    #[test]
    fn a_layer_that_is_refused_leaves_the_others_as_they_were() {
        for (variant, listed) in VARIANTS {
            let ns = TestNetns::new().unwrap();
            let layers = |one: u16, two: u16| {
                [jumping(ONE, TableKind::Filter, 0, &[one]), jumping(TWO, TableKind::Raw, 0, &[two])]
            };
            let refused = |one: u16, two: u16| {
                let mut layers = layers(one, two);
                layers[1].tables[0].chains[1].rules.push(udp(vec![], Action::Jump("nowhere".into())));
                layers
            };
            setup(&ns, variant, &refused(1, 2)).unwrap_err();
            assert_eq!(targets(&ns, listed), "");
            assert!(!ns.iptables_save(listed, Of::V4).unwrap().contains("ISTIO"));
            setup(&ns, variant, &layers(1, 2)).unwrap();
            let before = ns.iptables_save(listed, Of::V4).unwrap();
            for next in [refused(3, 2), refused(3, 4)] {
                setup(&ns, variant, &next).unwrap_err();
                assert_eq!(ns.iptables_save(listed, Of::V4).unwrap(), before, "{variant}");
            }
            assert_eq!(look(&ns, variant, &layers(1, 2)), []);
        }
    }

    #[test]
    fn a_cleanup_removes_every_layer_and_nothing_else() {
        for (variant, listed) in VARIANTS {
            let ns = TestNetns::new().unwrap();
            let program = format!("iptables-{variant}");
            ns.run(Command::new(&program).args(["-N", "ISTIO_FOREIGN"])).unwrap();
            ns.run(Command::new(&program).args(["-A", "OUTPUT", "-j", "ISTIO_FOREIGN"])).unwrap();
            let layers = [jumping(ONE, TableKind::Filter, 1, &[1]), jumping(TWO, TableKind::Filter, 0, &[2])];
            let before = ns.iptables_save(listed, Of::V4).unwrap();
            setup(&ns, variant, &layers).unwrap();
            assert_eq!(targets(&ns, listed), "ONE_1 FOREIGN TWO_2");
            assert_eq!(
                ns.enter(|inside| Iptables::forced(variant).cleanup(inside, &layers)).unwrap().unwrap(),
                Change::Fresh
            );
            assert_eq!(ns.iptables_save(listed, Of::V4).unwrap(), before);
        }
    }

    /// What ends a built-in chain ends it for all layers: the kernel counts what the evaluator says.
    #[test]
    fn what_ends_a_shared_chain_is_as_the_evaluator_says() {
        let direct = |owner: &'static str, leading, action: Action| {
            let mut layer = jumping(owner, TableKind::Mangle, leading, &[PORT]);
            layer.tables[0].chains[0].rules.push(udp(vec![], action));
            layer
        };
        let two = |leading| jumping(TWO, TableKind::Mangle, leading, &[PORT]);
        for (variant, _) in VARIANTS {
            for (action, leading) in
                [(Action::Return, 0), (Action::Return, 1), (Action::Accept, 0), (Action::SetMark(0), 0)]
            {
                let ns = TestNetns::new().unwrap();
                let layers = [direct(ONE, 0, action.clone()), two(leading)];
                setup(&ns, variant, &layers).unwrap();
                send(&ns);
                let outcome = evaluate(&layers, Backend::Iptables, &packet(), Hook::Output, true, &NoMembers);
                for owner in [ONE, TWO] {
                    let met = outcome.trace.iter().any(|place| place.owner == owner);
                    let counted =
                        counters(&ns, &variant.to_string(), owner).iter().any(|line| line.starts_with("[1:"));
                    assert_eq!(counted, met, "{variant} {action:?} {leading} {owner}");
                }
            }
        }
    }
}
