use super::*;

use proptest::prelude::*;
use std::slice::from_ref;

use crate::plan::tests::families_without_own_chain;
use ruleset::eval::{Owner, Packet, State, Verdict, evaluate, translations_last};
use ruleset::{Backend, NoMembers, Routing, Ruleset, check, iptables, nft};

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];
const POD: [u8; 4] = [10, 0, 0, 5];
const OTHER: [u8; 4] = [10, 0, 0, 9];

fn pod(node: &NodeOptions, pod: &PodOptions, backend: Backend) -> Ruleset {
    only(plan_pod(node, pod, backend))
}

fn only(plan: ruleset::Plan) -> Ruleset {
    let [rules] = <[Ruleset; 1]>::try_from(plan.layers).expect("a plan has one layer");
    rules
}

fn parse(annotations: &[(&str, &str)]) -> (PodOptions, Vec<String>) {
    let owned = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    PodOptions::parse(&owned.collect())
}

#[test]
fn annotations_are_read_and_what_cannot_be_used_counts_as_absent() {
    let nothing = PodOptions::default();
    assert_eq!(parse(&[]), (nothing.clone(), vec![]));
    for yes in ["1", "t", "T", "TRUE", "true", "True"] {
        let (options, warnings) = parse(&[(INGRESS, yes), (DNS, yes)]);
        assert_eq!((options.ingress, options.dns_capture), (true, Some(true)), "{yes}");
        assert!(warnings.is_empty());
    }
    for no in ["0", "f", "F", "FALSE", "false", "False"] {
        let (options, warnings) = parse(&[(INGRESS, no), (DNS, no)]);
        assert_eq!((options.ingress, options.dns_capture), (false, Some(false)), "{no}");
        assert!(warnings.is_empty());
    }
    for bad in ["", "yes", " true", "tRUE", "2"] {
        let (options, warnings) = parse(&[(INGRESS, bad), (DNS, bad)]);
        assert_eq!(options, nothing, "{bad:?}");
        assert!(warnings.len() == 2 && warnings[0].contains(INGRESS) && warnings[1].contains(DNS));
    }
    let (options, warnings) = parse(&[(INTERFACES, " net1 ,,docker0, ,net1,")]);
    assert_eq!(
        (options.virtual_interfaces, warnings),
        (vec!["net1".to_owned(), "docker0".to_owned()], vec![])
    );
}

#[test]
fn a_bad_interface_name_is_left_out_and_reaches_no_rule() {
    for bad in [
        "asd^&&*",
        "a b",
        "net1\n-A OUTPUT -j DROP",
        "a/b",
        "a\0b",
        "a\"b",
        "a'b",
        "sixteen-bytes-xx",
        "!",
        "eth+",
        "-j",
        "ünicode",
    ] {
        let (options, warnings) = parse(&[(INTERFACES, &format!("net1,{bad},net2"))]);
        assert_eq!(options.virtual_interfaces, ["net1", "net2"], "{bad:?}");
        assert!(warnings.len() == 1 && warnings[0].contains("that name is left out"), "{bad:?} {warnings:?}");
        assert!(!warnings[0].contains(['\n', '\0']));
    }
    let long = "x,".repeat(MAX_LIST_BYTES);
    let (options, warnings) = parse(&[(INTERFACES, &long)]);
    assert!(options.virtual_interfaces.is_empty() && warnings.len() == 1);
    let many: String = (0..MAX_INTERFACES + 5).map(|n| format!("if{n},")).collect();
    let (options, warnings) = parse(&[(INTERFACES, &many)]);
    assert_eq!((options.virtual_interfaces.len(), warnings.len()), (MAX_INTERFACES, 1));
}

#[test]
fn the_order_in_the_nat_chains_is_that_of_the_original() {
    // By the first letters of the reasons' subjects.
    let node = NodeOptions { ipv6: false, ..NodeOptions::default() };
    let options = PodOptions { virtual_interfaces: vec!["net1".to_owned()], ..PodOptions::default() };
    let rules = pod(&node, &options, Backend::Nftables);
    let actions = |chain: &str| -> Vec<String> {
        let chain = rules.table(TableKind::Nat).unwrap().chain(chain).unwrap();
        chain.rules.iter().map(nft::render_statements).collect()
    };
    assert_eq!(
        actions("istio-prerouting"),
        [
            "iifname \"net1\" meta l4proto tcp counter redirect to :15001",
            "iifname \"net1\" meta l4proto tcp counter return",
            "meta l4proto tcp ip saddr 169.254.7.127/32 counter accept",
            "ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006",
        ]
    );
    assert_eq!(
        actions("istio-output"),
        [
            "meta l4proto tcp ip daddr 169.254.7.127/32 counter accept",
            "oifname != \"lo\" meta mark & 0xfff != 0x539 meta l4proto udp udp dport 53 counter redirect to :15053",
            "ip daddr != 127.0.0.1/32 meta l4proto tcp tcp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053",
            "meta l4proto tcp meta mark & 0xfff == 0x111 counter accept",
            "oifname \"lo\" ip daddr != 127.0.0.1/32 counter accept",
            "meta l4proto tcp ip daddr != 127.0.0.1/32 meta mark & 0xfff != 0x539 counter redirect to :15001",
        ]
    );
}

#[test]
fn without_ipv6_the_plan_has_nothing_of_it() {
    let node = NodeOptions { ipv6: false, ..NodeOptions::default() };
    for plan in BACKENDS.into_iter().flat_map(|backend| {
        let host = plan_host(&node, ProbeSender::AnySocket, backend);
        [plan_pod(&node, &PodOptions::default(), backend), host]
    }) {
        let text = nft::render(&ruleset::Transaction::Replace(&plan.layers));
        assert!(!text.contains("ip6") && !text.contains("ipv6"), "{text}");
        assert!(plan.layers.iter().all(|rules| rules.families() == [Family::V4]));
        let of_v6 = |step: &Routing| match step {
            Routing::Rule { family, .. } | Routing::LocalRoute { family, .. } => *family == Family::V6,
            _ => false,
        };
        assert!(!plan.routing.iter().any(of_v6));
    }
}

#[test]
fn routing_is_planned_in_each_family() {
    let plan = plan_pod(&NodeOptions::default(), &PodOptions::default(), Backend::Iptables);
    let rule = |family| Routing::Rule { family, mark: 0x111, mask: 0xfff, table: 100, priority: 32764 };
    let route = |family| Routing::LocalRoute { family, table: 100 };
    assert_eq!(plan.routing, [route(Family::V4), rule(Family::V4), route(Family::V6), rule(Family::V6)]);
}

#[test]
fn what_is_removed_is_all_that_could_be_there() {
    for backend in BACKENDS {
        let all = plan_of_everything(backend);
        let everything = &all.layers[0];
        for (dns_capture, ipv6, ingress) in
            [(true, true, true), (false, false, false), (true, false, true), (false, true, false)]
        {
            let node = NodeOptions { dns_capture, ipv6, ..NodeOptions::default() };
            let options = PodOptions { ingress, virtual_interfaces: vec!["x".to_owned()], dns_capture: None };
            let plan = plan_pod(&node, &options, backend);
            assert!(plan.routing.iter().all(|step| all.routing.contains(step)));
            for table in &only(plan).tables {
                for chain in &table.chains {
                    assert!(everything.table(table.kind).unwrap().chain(&chain.name).is_some());
                    let known = everything
                        .known_chains
                        .iter()
                        .any(|known| known.table == table.kind && known.name == chain.name);
                    assert_eq!(known, chain.base.is_none(), "{} {}", table.kind, chain.name);
                }
            }
        }
    }
}

#[test]
fn the_host_plan_says_who_sends_probes_and_comes_before_masquerading() {
    let node = NodeOptions { ipv6: false, ..NodeOptions::default() };
    let nft = |sender| {
        let plan = plan_host(&node, sender, Backend::Nftables);
        nft::render(&ruleset::Transaction::Replace(&plan.layers))
    };
    let set = "ip daddr @istio-inpod-probes-v4 counter snat ip to 169.254.7.127";
    assert!(nft(ProbeSender::Uid(1000)).contains(&format!("meta l4proto tcp meta skuid 1000 {set}")));
    assert!(
        nft(ProbeSender::AnySocket).contains(&format!("meta l4proto tcp meta skuid != 4294967295 {set}"))
    );
    let plan = plan_host(&node, ProbeSender::Uid(1000), Backend::Iptables);
    assert_eq!(
        iptables::render(&plan.layers, Family::V4).unwrap(),
        "*nat\n-N ISTIO_POSTRT\n-I POSTROUTING 1 -j ISTIO_POSTRT\n\
         -A ISTIO_POSTRT -p tcp -m owner --socket-exists -m set --match-set istio-inpod-probes-v4 dst \
         -j SNAT --to-source 169.254.7.127\nCOMMIT\n"
    );
}

fn packet(source: [u8; 4], destination: [u8; 4], port: u16) -> Packet {
    Packet::new(Protocol::Tcp, (source, 40_000).into(), (destination, port).into())
}

fn inward(source: [u8; 4], port: u16) -> Packet {
    Packet { in_interface: "eth0".to_owned(), ..packet(source, POD, port) }
}

fn outward(destination: [u8; 4], port: u16) -> Packet {
    let out_interface = if destination == OTHER { "eth0" } else { "lo" }.to_owned();
    let owner = Some(Owner { uid: 1000, gid: 1000 });
    Packet { out_interface, owner, ..packet(POD, destination, port) }
}

fn udp(packet: Packet) -> Packet {
    Packet { protocol: Protocol::Udp, ..packet }
}

fn by_ztunnel(packet: Packet) -> Packet {
    Packet { mark: ZTUNNEL_MARK, ..packet }
}

/// What happens to first packets, by both backends' rules.
#[test]
fn what_becomes_of_packets() {
    let to = |port| Verdict::Redirect { port };
    let ingress = PodOptions { ingress: true, ..PodOptions::default() };
    let guests = PodOptions { virtual_interfaces: vec!["net1".to_owned()], ..PodOptions::default() };
    let silent = PodOptions { dns_capture: Some(false), ..PodOptions::default() };
    let usual = PodOptions::default();
    let by = |name: &str, packet: Packet| Packet { in_interface: name.to_owned(), ..packet };
    let probe = PROBE_V4.octets();
    let cases = [
        (&usual, Hook::Prerouting, inward(OTHER, 80), to(15006)),
        (&usual, Hook::Prerouting, inward(OTHER, HBONE_PORT), Verdict::Pass),
        (&usual, Hook::Prerouting, inward(probe, 80), Verdict::Pass),
        (&usual, Hook::Prerouting, by_ztunnel(inward(OTHER, 80)), Verdict::Pass),
        (&usual, Hook::Prerouting, udp(inward(OTHER, 80)), Verdict::Pass),
        (&usual, Hook::Output, outward(OTHER, 80), to(15001)),
        (&usual, Hook::Output, by_ztunnel(outward(OTHER, 80)), Verdict::Pass),
        (&usual, Hook::Output, outward(POD, 80), Verdict::Pass),
        (&usual, Hook::Output, outward([127, 0, 0, 1], 80), Verdict::Pass),
        (&usual, Hook::Output, outward(probe, 80), Verdict::Pass),
        (&usual, Hook::Output, outward(OTHER, 53), to(15053)),
        (&usual, Hook::Output, udp(outward(OTHER, 53)), to(15053)),
        (&usual, Hook::Output, udp(by_ztunnel(outward(OTHER, 53))), Verdict::Pass),
        (&usual, Hook::Output, udp(outward([127, 0, 0, 1], 53)), Verdict::Pass),
        (&usual, Hook::Output, udp(outward(OTHER, 80)), Verdict::Pass),
        (&silent, Hook::Output, outward(OTHER, 53), to(15001)),
        (&silent, Hook::Output, udp(outward(OTHER, 53)), Verdict::Pass),
        (&ingress, Hook::Prerouting, inward(OTHER, 80), Verdict::Pass),
        (&ingress, Hook::Output, outward(OTHER, 80), to(15001)),
        (&guests, Hook::Prerouting, by("net1", inward(OTHER, 80)), to(15001)),
        (&guests, Hook::Prerouting, by("net1", udp(inward(OTHER, 80))), Verdict::Pass),
        (&guests, Hook::Prerouting, by("net10", inward(OTHER, 80)), to(15006)),
    ];
    for (options, hook, packet, expected) in cases {
        for backend in BACKENDS {
            let rules = pod(&NodeOptions::default(), options, backend);
            let outcome = evaluate(from_ref(&rules), backend, &packet, hook, true, &NoMembers);
            assert_eq!(outcome.verdict, expected, "{backend} {hook:?} {packet:?}");
        }
    }
}

/// A pod that translates itself: first what is for an address of the interface, and the rest after all others.
#[test]
fn a_translating_pod_is_captured_in_two_steps() {
    let (node, usual) = (NodeOptions::default(), PodOptions::default());
    let to = |port| Verdict::Redirect { port };
    let elsewhere = |packet: Packet| Packet { own_destination: false, ..packet };
    let probe = PROBE_V4.octets();
    let cases = [
        (inward(OTHER, 80), to(15006), to(15006)),
        (elsewhere(inward(OTHER, 80)), Verdict::Pass, to(15006)),
        (elsewhere(inward(OTHER, HBONE_PORT)), Verdict::Pass, Verdict::Pass),
        (inward(probe, 80), Verdict::Pass, Verdict::Pass),
        (elsewhere(inward(probe, 80)), Verdict::Pass, Verdict::Pass),
        (elsewhere(by_ztunnel(inward(OTHER, 80))), Verdict::Pass, Verdict::Pass),
    ];
    for backend in BACKENDS {
        let whole = only(plan_translating_pod(&node, &usual, backend));
        let mut first = whole.clone();
        for table in &mut first.tables {
            table.chains.retain(|chain| !chain.is_late());
        }
        for (packet, before, after) in &cases {
            for (rules, expected) in [(&first, before), (&whole, after)] {
                let outcome = evaluate(from_ref(rules), backend, packet, Hook::Prerouting, true, &NoMembers);
                assert_eq!(outcome.verdict, *expected, "{backend} {packet:?}");
            }
        }
        let nat = whole.table(TableKind::Nat).unwrap();
        let priority = |name| nat.chain(name).unwrap().base.unwrap().priority;
        assert_eq!((priority("prerouting"), priority("prerouting-late")), (-199, i32::MAX));
        // Everything else is as in other pods, and a gateway that takes plain text itself has nothing to capture.
        let ordinary = pod(&node, &usual, backend);
        assert!(
            whole
                .tables
                .iter()
                .filter(|table| table.kind != TableKind::Nat)
                .all(|t| ordinary.tables.contains(t))
        );
        let ingress = PodOptions { ingress: true, ..PodOptions::default() };
        assert_eq!(plan_translating_pod(&node, &ingress, backend), plan_pod(&node, &ingress, backend));
    }
    let rules = plan_translating_pod(&NodeOptions { ipv6: false, ..node }, &usual, Backend::Iptables);
    let text = iptables::render(&rules.layers, Family::V4).unwrap();
    let ends = ["-I PREROUTING 1 -j ISTIO_PRERT\n", "-A PREROUTING -j ISTIO_PREROUTING_LATE\n"];
    assert!(ends.iter().all(|line| text.contains(line)), "{text}");
}

#[test]
fn ztunnels_connections_and_questions_are_marked() {
    for backend in BACKENDS {
        let rules = pod(&NodeOptions::default(), &PodOptions::default(), backend);
        let see =
            |packet: &Packet, hook| evaluate(from_ref(&rules), backend, packet, hook, false, &NoMembers);
        let to_application = Packet { ct_mark: 0x5000, ..by_ztunnel(inward(OTHER, 80)) };
        assert_eq!(see(&to_application, Hook::Prerouting).ct_mark, 0x5111);
        assert_eq!(see(&inward(OTHER, 80), Hook::Prerouting).ct_mark, 0);
        let answer = Packet { ct_mark: 0x5111, ..outward(OTHER, 40_000) };
        assert_eq!(see(&answer, Hook::Output).mark, 0x5111);
        assert_eq!(see(&outward(OTHER, 40_000), Hook::Output).mark, 0);
        let question = udp(by_ztunnel(outward(OTHER, 53)));
        assert_eq!(see(&question, Hook::Output).zone, Some(1));
        assert_eq!(see(&udp(outward(OTHER, 53)), Hook::Output).zone, None);
        let answer = Packet { source_port: 53, ..udp(inward(OTHER, 40_000)) };
        assert_eq!(see(&answer, Hook::Prerouting).zone, Some(1));
        let other = Packet { source_port: 54, ..answer };
        assert_eq!(see(&other, Hook::Prerouting).zone, None);
    }
}

/// While a pod drains, everything new goes past ztunnel, and what ztunnel has goes on.
#[test]
fn a_drain_redirects_nothing_and_keeps_what_was_redirected() {
    let guests = PodOptions { virtual_interfaces: vec!["net1".to_owned()], ..PodOptions::default() };
    for (backend, options) in
        BACKENDS.into_iter().flat_map(|backend| [(backend, PodOptions::default()), (backend, guests.clone())])
    {
        let plan = plan_drain(&NodeOptions::default(), &options, backend);
        let layers = &plan.layers;
        let by_guest = Packet { in_interface: "net1".to_owned(), ..inward(OTHER, 80) };
        let new = [
            (Hook::Prerouting, inward(OTHER, 80)),
            (Hook::Prerouting, by_guest),
            (Hook::Prerouting, inward(PROBE_V4.octets(), 80)),
            (Hook::Output, outward(OTHER, 80)),
            (Hook::Output, outward(OTHER, 53)),
            (Hook::Output, udp(outward(OTHER, 53))),
        ];
        for (hook, packet) in new {
            let outcome = evaluate(layers, backend, &packet, hook, true, &NoMembers);
            assert_eq!((outcome.verdict, outcome.mark), (Verdict::Pass, 0), "{backend} {hook:?} {packet:?}");
        }
        let answer = Packet { ct_mark: REPLY_MARK, state: State::Established, ..outward(OTHER, 40_000) };
        assert_eq!(evaluate(layers, backend, &answer, Hook::Output, false, &NoMembers).mark, REPLY_MARK);
        for family in [Family::V4, Family::V6] {
            assert!(translations_last(layers, backend, family), "{backend} {family:?}");
            assert!(translations_last(
                &plan_pod(&NodeOptions::default(), &options, backend).layers,
                backend,
                family
            ));
            assert!(!translations_last(&[no_rules()], backend, family));
        }
        // What differs from a pod in the mesh is one table: with iptables each is a transaction of its own.
        let mesh = pod(&NodeOptions::default(), &options, backend);
        let differs = layers[0].tables.iter().filter(|table| !mesh.tables.contains(table));
        assert_eq!(differs.map(|table| table.kind).collect::<Vec<_>>(), [TableKind::Nat]);
        assert_eq!(plan.routing, plan_pod(&NodeOptions::default(), &options, backend).routing);
    }
    let v4_only = NodeOptions { ipv6: false, ..NodeOptions::default() };
    for (backend, v6) in [(Backend::Nftables, true), (Backend::Iptables, false)] {
        let plan = plan_drain(&v4_only, &PodOptions::default(), backend);
        let last = |family| translations_last(&plan.layers, backend, family);
        assert_eq!((last(Family::V4), last(Family::V6)), (true, v6), "{backend}");
    }
}

proptest! {
    #[test]
    fn every_plan_is_valid(
        flags in any::<[bool; 4]>(),
        dns in any::<Option<bool>>(),
        names in prop::collection::vec("[a-z][a-z0-9]{0,14}", 0..4),
    ) {
        let [dns_capture, ipv6, ingress, uid] = flags;
        let node = NodeOptions { dns_capture, ipv6, ..NodeOptions::default() };
        let options = PodOptions { ingress, dns_capture: dns, virtual_interfaces: names };
        let sender = if uid { ProbeSender::Uid(0) } else { ProbeSender::AnySocket };
        for backend in BACKENDS {
            let plans = [
                plan_pod(&node, &options, backend),
                plan_translating_pod(&node, &options, backend),
                plan_drain(&node, &options, backend),
                plan_host(&node, sender, backend),
            ];
            for plan in plans {
                let rules = only(plan);
                prop_assert_eq!(check(&rules), Ok(()));
                // Where no backend of iptables loads it, nothing has to be found by its names.
                let lost = families_without_own_chain(&rules);
                prop_assert!(backend == Backend::Nftables || lost.is_empty(), "{lost:?} of {rules:?}");
                let all = rules.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
                for rule in all {
                    prop_assert!(!rule.why.is_empty() && rule.why.len() <= nft::COMMENT_MAX, "{}", rule.why);
                }
            }
        }
    }

    #[test]
    fn no_annotation_makes_more_than_a_warning(text in ".{0,40}", list in "[a-z ,\\n\"+^]{0,60}") {
        let (options, _) = parse(&[(INGRESS, &text), (DNS, &text), (INTERFACES, &list)]);
        for backend in BACKENDS {
            prop_assert_eq!(check(&pod(&NodeOptions::default(), &options, backend)), Ok(()));
        }
    }
}
