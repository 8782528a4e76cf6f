//! Pods that translate destinations of what comes in themselves: real packets in each order, and which pods these are.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use capture::ambient::{INBOUND_PORT, NodeOptions, PodOptions, no_rules, plan_pod, plan_translating_pod};
use kernel::iptables::Variant;
use kernel::observed::others_translate;
use kernel::{Change, Difference, give_way};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod, TestNetns};

use crate::support::Way;

/// The pod's second address, which nobody else has.
const SECOND: &str = "100.64.0.5";
const SECOND_V6: &str = "2001:db8:64::5";
const APP: u16 = 8080;
/// A port of the pod's own address that it redirects to its application.
const OWN: u16 = 9090;

fn translates(ns: &TestNetns) -> bool {
    ns.enter(|inside| others_translate(inside, &[no_rules()])).unwrap().unwrap()
}

/// Puts the pod's rules into its namespace: a DNAT of its second addresses, and one more that wants what is captured.
fn translate(way: Way, pod: &Pod, how: &str) {
    let mut lines = String::new();
    for (program, second, to) in [
        ("iptables ", SECOND, format!("{}:{APP}", Pod::V4)),
        ("ip6tables ", SECOND_V6, format!("[{}]:{APP}", Pod::V6)),
    ] {
        let own = if second == SECOND { Pod::V4 } else { Pod::V6 };
        lines.push_str(&format!(
            "{program} -t nat {how} PREROUTING -d {second} -p tcp --dport 443 -j DNAT --to-destination {to}\n\
             {program} -t nat {how} PREROUTING -d {own} -p tcp --dport {OWN} -j REDIRECT --to-ports {APP}\n"
        ));
    }
    let lines = if way == Way::Nft { lines.replace("tables ", "tables-nft ") } else { lines };
    way.shell(pod, &lines);
}

fn reaches(pod: &Pod, to: (IpAddr, u16), port: u16, what: &str) {
    let outcome = Flow::from(pod.peer()).patience(Duration::from_secs(3)).tcp(SocketAddr::from(to)).unwrap();
    assert_eq!(outcome.port(), Some(port), "{what} to {to:?}: {outcome}");
}

/// The pod's translation of its second address works, and nothing else comes past ztunnel.
fn is_captured_but_for_its_own(pod: &Pod, what: &str) {
    for (second, own) in [(SECOND, Pod::V4), (SECOND_V6, Pod::V6)] {
        let second: IpAddr = second.parse().unwrap();
        reaches(pod, (second, 443), APP, what);
        reaches(pod, (second, 80), INBOUND_PORT, what);
        reaches(pod, (own, APP), INBOUND_PORT, what);
        reaches(pod, (own, OWN), INBOUND_PORT, what);
    }
}

/// Behind the rules of others, which are untouched, before the programs of iptables have come to load the other plan.
#[test]
fn rules_of_ours_give_way_at_once_to_a_translation_that_comes_later() {
    let way = Way::Iptables(Variant::Nft);
    let (node, options) = (NodeOptions::default(), PodOptions::default());
    let pod = Pod::new(Families::Dual).unwrap();
    pod.ip(&[format!("address add {SECOND}/32 dev lo"), format!("address add {SECOND_V6}/128 dev lo")])
        .unwrap();
    let routes = [(SECOND, Pod::V4), (SECOND_V6, Pod::V6)];
    pod.peer().ip(&routes.map(|(to, by)| format!("route add {to} via {by}"))).unwrap();
    let _there = Listeners::start(&pod, [INBOUND_PORT, APP].map(Listener::tcp)).unwrap();
    let gives_way = || pod.enter(|inside| give_way(inside, &[no_rules()])).unwrap().unwrap();
    assert!(!gives_way(), "there is no rule of ours");
    let plan = plan_pod(&node, &options, way.backend());
    way.apply(&pod, &plan).unwrap();
    assert!(!gives_way(), "there is no rule of others");
    translate(way, &pod, "-I");
    assert!(!gives_way(), "it is before ours");
    translate(way, &pod, "-A");
    for second in [SECOND, SECOND_V6] {
        reaches(&pod, (second.parse().unwrap(), 443), APP, "inserted before");
    }
    translate(way, &pod, "-D");
    for second in [SECOND, SECOND_V6] {
        reaches(&pod, (second.parse().unwrap(), 443), INBOUND_PORT, "appended");
    }
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = sorted(crate::support::state(&pod));
    let began = std::time::Instant::now();
    assert!(gives_way());
    println!("rules of ours gave way within {:?}", began.elapsed());
    assert_eq!(sorted(crate::support::state(&pod)), before, "the same rules are there");
    assert!(!gives_way());
    for second in [SECOND, SECOND_V6] {
        let second: IpAddr = second.parse().unwrap();
        reaches(&pod, (second, 443), APP, "after ours gave way");
        reaches(&pod, (second, 80), INBOUND_PORT, "after ours gave way");
    }
    assert_eq!(way.observe(&pod, &plan), [], "it is the plan still");
    way.apply(&pod, &plan_translating_pod(&node, &options, way.backend())).unwrap();
    is_captured_but_for_its_own(&pod, "by the plan of a pod that translates");
    translate(way, &pod, "-A");
    assert!(!gives_way(), "rules before and behind those of others stay there");
}

#[test]
fn a_pods_own_translation_works_and_nothing_else_comes_past_ztunnel_whoever_came_first() {
    let (node, options) = (NodeOptions::default(), PodOptions::default());
    for way in Way::ALL {
        let plan = plan_translating_pod(&node, &options, way.backend());
        for first in [true, false] {
            let pod = Pod::new(Families::Dual).unwrap();
            pod.ip(&[
                format!("address add {SECOND}/32 dev lo"),
                format!("address add {SECOND_V6}/128 dev lo"),
            ])
            .unwrap();
            let routes = [(SECOND, Pod::V4), (SECOND_V6, Pod::V6)];
            pod.peer().ip(&routes.map(|(to, by)| format!("route add {to} via {by}"))).unwrap();
            let _there = Listeners::start(&pod, [INBOUND_PORT, APP].map(Listener::tcp)).unwrap();
            assert!(!translates(&pod), "{way:?}");
            if first {
                translate(way, &pod, "-A");
            }
            way.apply(&pod, &plan).unwrap();
            assert_eq!(translates(&pod), first, "{way:?}");
            if !first {
                // Beside the plan of other pods it is the same.
                way.apply(&pod, &plan_pod(&node, &options, way.backend())).unwrap();
                assert!(!translates(&pod), "{way:?}");
                translate(way, &pod, "-A");
                assert!(translates(&pod), "{way:?}");
                assert_eq!(way.apply(&pod, &plan).unwrap().rules, Change::Replaced, "{way:?}");
            }
            assert_eq!(way.observe(&pod, &plan), [], "{way:?}");
            is_captured_but_for_its_own(&pod, &format!("{way:?} {first}"));
            for how in ["-I", "-A"] {
                translate(way, &pod, how);
                let differs = |differences: &[Difference]| match (way, how) {
                    // Chains of their own have their places by priority.
                    (Way::Nft, _) => differences.is_empty(),
                    (_, "-I") => {
                        matches!(differences, [Difference::Preceded { .. }, Difference::Preceded { .. }])
                    }
                    _ => matches!(differences, [Difference::Followed { .. }, Difference::Followed { .. }]),
                };
                let found = way.observe(&pod, &plan);
                assert!(differs(&found), "{way:?} {how} {found:?}");
                way.apply(&pod, &plan).unwrap();
                is_captured_but_for_its_own(&pod, &format!("{way:?} {first} after {how}"));
            }
            way.put_first(&pod, &plan);
            assert_eq!(way.observe(&pod, &plan), [], "{way:?}");
            is_captured_but_for_its_own(&pod, &format!("{way:?} {first} put first"));
            way.remove(&pod);
            assert!(translates(&pod) && way.observe(&pod, &plan_nothing(way)).is_empty(), "{way:?}");
        }
    }
}

fn plan_nothing(way: Way) -> ruleset::Plan {
    let layers = vec![no_rules()];
    ruleset::Plan { backend: way.backend(), routing: Vec::new(), layers }
}
