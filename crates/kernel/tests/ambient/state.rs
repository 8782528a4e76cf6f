//! What is there after creating, repairing and removing a pod's rules.

use std::os::unix::fs::PermissionsExt;

use capture::ambient::{NodeOptions, PodOptions, ProbeSender, plan_host};
use kernel::iptables::{Iptables, Variant};
use kernel::{Change, Difference};
use ruleset::{Backend, Family, Plan, Transaction};
use testkit::TestNetns;
use testkit::rules::Variant as Listed;

use crate::support::{Way, made, sh, state, variants};

#[test]
fn the_text_loads_in_both_variants_and_not_twice() {
    let plan = Way::Iptables(Variant::Nft).pod_plan(&NodeOptions::default(), &PodOptions::default());
    for variant in [Listed::Legacy, Listed::Nft] {
        let ns = TestNetns::new().unwrap();
        for (family, listed) in
            [(Family::V4, testkit::rules::Family::V4), (Family::V6, testkit::rules::Family::V6)]
        {
            let text = ruleset::iptables::render(&plan.layers, family).unwrap();
            ns.iptables_restore(variant, listed, &text).unwrap();
            let error = format!("{:#}", ns.iptables_restore(variant, listed, &text).unwrap_err());
            // The legacy variant says no more than where.
            assert!(error.contains("exists") || error.contains("line 2 failed"), "{error}");
        }
        let way = Way::Iptables(if variant == Listed::Nft { Variant::Nft } else { Variant::Legacy });
        assert_eq!(rule_differences(way, &ns, &plan), []);
    }
}

#[test]
fn the_text_loads_in_nft_and_a_second_time_changes_nothing() {
    for (node, pod) in variants() {
        let ns = TestNetns::new().unwrap();
        let plan = Way::Nft.pod_plan(&node, &pod);
        let text = ruleset::nft::render(&Transaction::Replace(&plan.layers));
        ns.nft(&text).unwrap();
        let once = ns.nft_text().unwrap();
        ns.nft(&text).unwrap();
        assert_eq!(ns.nft_text().unwrap(), once);
        // What the program made of the text is what we mean, instruction by instruction.
        assert_eq!(rule_differences(Way::Nft, &ns, &plan), []);
    }
    let ns = TestNetns::new().unwrap();
    for sender in [ProbeSender::AnySocket, ProbeSender::Uid(1000)] {
        let plan = plan_host(&NodeOptions::default(), sender, Backend::Nftables);
        ns.nft(&ruleset::nft::render(&Transaction::Replace(&plan.layers))).unwrap();
        assert_eq!(rule_differences(Way::Nft, &ns, &plan), []);
    }
}

fn rule_differences(way: Way, ns: &TestNetns, plan: &Plan) -> Vec<Difference> {
    let all = way.observe(ns, plan).into_iter();
    all.filter(|difference| !matches!(difference, Difference::MissingRouting { .. })).collect()
}

#[test]
fn a_second_time_no_program_writes() {
    // Programs that read as usual and fail when they are to write.
    let programs = tempfile_dir();
    for name in ["iptables", "ip6tables"] {
        for variant in ["nft", "legacy"] {
            let save = format!("{name}-{variant}-save");
            std::os::unix::fs::symlink(format!("/usr/sbin/{save}"), programs.join(save)).unwrap();
            let restore = programs.join(format!("{name}-{variant}-restore"));
            let version =
                format!("[ \"$1\" != --version ] || exec /usr/sbin/{name}-{variant}-restore --version");
            std::fs::write(&restore, format!("#!/bin/sh\n{version}\nexit 7\n")).unwrap();
            std::fs::set_permissions(&restore, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    for variant in [Variant::Nft, Variant::Legacy] {
        let way = Way::Iptables(variant);
        for (node, pod) in variants() {
            let ns = TestNetns::new().unwrap();
            let plan = way.pod_plan(&node, &pod);
            let idle = Iptables::forced(variant).searching(vec![programs.clone()]);
            assert!(way.apply_by(&ns, &plan, &idle).is_err(), "{way:?}: these programs cannot write");
            assert_eq!(way.apply(&ns, &plan).unwrap().rules, Change::Fresh, "{way:?}");
            let before = state(&ns);
            let again = way.apply_by(&ns, &plan, &idle).unwrap();
            assert_eq!((again.rules, again.routing, again.warning), (Change::None, 0, None), "{way:?}");
            assert_eq!(state(&ns), before, "{way:?}");
        }
    }
    std::fs::remove_dir_all(&programs).unwrap();
}

fn tempfile_dir() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("kernel-ambient-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn what_is_created_is_removed_without_a_trace() {
    for way in Way::ALL {
        for (node, pod) in variants() {
            let ns = TestNetns::new().unwrap();
            // The lists themselves make built-in tables.
            let _ = state(&ns);
            let before = state(&ns);
            let plan = way.pod_plan(&node, &pod);
            assert_eq!(way.apply(&ns, &plan).unwrap().rules, Change::Fresh, "{way:?} {node:?} {pod:?}");
            assert_eq!(way.observe(&ns, &plan), []);
            assert!(state(&ns).contains("32764:\tfrom all fwmark 0x111/0xfff lookup 100"));
            // What is removed does not hang on the options.
            assert_eq!(way.remove(&ns), Change::Fresh, "{way:?} {node:?} {pod:?}");
            let after = state(&ns);
            assert!(
                !after.contains("ISTIO") && !after.contains("istio") && !after.contains("32764"),
                "{after}"
            );
            assert_eq!(made(&after), made(&before), "{way:?}");
        }
    }
}

#[test]
fn a_tampered_chain_is_repaired_in_place() {
    let (node, pod) = (NodeOptions::default(), PodOptions::default());
    let drifts = [
        "iptables -t nat -D ISTIO_OUTPUT 2",
        "iptables -t nat -I ISTIO_PRERT -j RETURN",
        "iptables -t nat -F ISTIO_OUTPUT",
        "iptables -t nat -D PREROUTING -j ISTIO_PRERT",
        "iptables -t mangle -F",
        "iptables -t raw -F; iptables -t raw -X",
        "ip6tables -t mangle -D ISTIO_OUTPUT 1",
        // An older layout: without DNS the raw table has the chains all the same, here with other rules.
        "ip6tables -t raw -F ISTIO_OUTPUT; ip6tables -t raw -A ISTIO_OUTPUT -p udp --dport 53 -j CT --zone 7",
    ];
    for way in [Way::Iptables(Variant::Nft), Way::Iptables(Variant::Legacy)] {
        let (ns, plan) = (TestNetns::new().unwrap(), way.pod_plan(&node, &pod));
        way.apply(&ns, &plan).unwrap();
        let good = state(&ns);
        for drift in drifts {
            way.shell(&ns, drift);
            assert_ne!(way.observe(&ns, &plan), [], "{way:?}: {drift}");
            assert_eq!(way.apply(&ns, &plan).unwrap().rules, Change::Replaced, "{way:?}: {drift}");
            assert_eq!(way.observe(&ns, &plan), [], "{way:?}: {drift}");
            let after = state(&ns);
            assert!(!after.contains("DROP"), "no guardrails: {after}");
            assert_eq!(sorted(&after), sorted(&good), "{way:?}: {drift}");
        }
    }
    let (ns, plan) = (TestNetns::new().unwrap(), Way::Nft.pod_plan(&node, &pod));
    Way::Nft.apply(&ns, &plan).unwrap();
    let good = ns.nft_text().unwrap();
    for drift in [
        "flush chain inet istio-ambient-nat istio-output",
        "delete table inet istio-ambient-mangle",
        "add rule inet istio-ambient-nat istio-prerouting accept",
        "add chain inet istio-ambient-raw more",
    ] {
        ns.nft(drift).unwrap();
        assert_eq!(Way::Nft.apply(&ns, &plan).unwrap().rules, Change::Replaced, "{drift}");
        assert_eq!(Way::Nft.observe(&ns, &plan), [], "{drift}");
        assert_eq!(ns.nft_text().unwrap(), good, "{drift}");
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn rules_of_others_survive() {
    let foreign = [
        "iptables -t nat -A OUTPUT -d 198.51.100.1/32 -p udp -m udp --dport 53 -j ACCEPT",
        "iptables -t nat -A PREROUTING -i eth7 -j ACCEPT",
        "iptables -t nat -A OUTPUT -j ACCEPT",
        "iptables -t filter -N ISTIO_TEST",
        "iptables -t filter -A OUTPUT -j ISTIO_TEST",
        "iptables -t mangle -N OTHER",
        "ip6tables -t raw -A OUTPUT -j NOTRACK",
        "ip rule add fwmark 0x111 lookup 100 priority 32000",
        "ip route add 10.99.0.0/16 dev lo table 100",
        "nft add table inet others",
        "nft add table ip istio-ambient-nat",
    ];
    for way in Way::ALL {
        let (ns, node) = (TestNetns::new().unwrap(), NodeOptions::default());
        for line in foreign {
            way.shell(&ns, line);
        }
        let _ = state(&ns);
        let of_others = |text: String| -> Vec<String> {
            let of_ours = |line: &&str| {
                line.contains("ISTIO_PRERT")
                    || line.contains("ISTIO_OUTPUT")
                    || line.contains("0x111/0xfff")
                    || line.starts_with("local default")
            };
            // The text of nft has iptables' rules in its own words.
            let foreign = text.lines().filter(|line| line.starts_with(['-', '3', '1', ':']));
            foreign.filter(|line| !of_ours(line)).map(str::to_owned).collect()
        };
        let before = of_others(state(&ns));
        let silent = PodOptions { dns_capture: Some(false), ..PodOptions::default() };
        for pod in [PodOptions::default(), silent] {
            way.apply(&ns, &way.pod_plan(&node, &pod)).unwrap();
            let with_ours = of_others(state(&ns));
            assert!(before.iter().all(|line| with_ours.contains(line)), "{way:?}: {with_ours:?} {before:?}");
        }
        assert_eq!(way.remove(&ns), Change::Fresh);
        let after = of_others(state(&ns));
        assert!(before.iter().all(|line| after.contains(line)), "{way:?}: {after:?} {before:?}");
        assert!(sh(&ns, "nft list tables").contains("table inet others\n"));
        assert!(sh(&ns, "nft list tables").contains("table ip istio-ambient-nat\n"));
    }
}

#[test]
fn only_the_v6_rule_is_missing() {
    for way in Way::ALL {
        let ns = TestNetns::new().unwrap();
        let plan = way.pod_plan(&NodeOptions::default(), &PodOptions::default());
        assert_eq!(way.apply(&ns, &plan).unwrap().routing, 4);
        sh(&ns, "ip -6 rule del priority 32764");
        assert!(matches!(way.observe(&ns, &plan)[..], [Difference::MissingRouting { .. }]));
        let again = way.apply(&ns, &plan).unwrap();
        assert_eq!((again.rules, again.routing), (Change::None, 1), "{way:?}");
        assert_eq!(sh(&ns, "ip -4 rule; ip -6 rule").matches("32764:").count(), 2);
    }
}

#[test]
fn removing_what_is_not_there_succeeds_and_changes_nothing() {
    for way in Way::ALL {
        let ns = TestNetns::new().unwrap();
        sh(&ns, "nft add table inet others; iptables-nft -t nat -A OUTPUT -j ACCEPT");
        let before = state(&ns);
        assert_eq!(way.remove(&ns), Change::None, "{way:?}");
        assert_eq!(state(&ns), before);
    }
}

/// The original leaves its raw table behind where DNS was captured once; we do not, with either backend.
#[test]
fn without_dns_no_raw_table_of_earlier_stays() {
    for way in Way::ALL {
        let (ns, node) = (TestNetns::new().unwrap(), NodeOptions::default());
        way.apply(&ns, &way.pod_plan(&node, &PodOptions::default())).unwrap();
        assert!(state(&ns).contains("zone"));
        let silent = PodOptions { dns_capture: Some(false), ..PodOptions::default() };
        let plan = way.pod_plan(&node, &silent);
        assert_eq!(way.apply(&ns, &plan).unwrap().rules, Change::Replaced, "{way:?}");
        assert!(!state(&ns).contains("zone"), "{way:?}: {}", state(&ns));
        assert_eq!(way.observe(&ns, &plan), []);
    }
}

/// Another backend than before: its rules go when the new ones are in.
#[test]
fn rules_move_from_one_backend_to_the_other() {
    let (node, pod) = (NodeOptions::default(), PodOptions::default());
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)].map(|(a, b)| (Way::ALL[a], Way::ALL[b])) {
        let ns = TestNetns::new().unwrap();
        from.apply(&ns, &from.pod_plan(&node, &pod)).unwrap();
        let plan = to.pod_plan(&node, &pod);
        let applied = to.apply(&ns, &plan).unwrap();
        assert_eq!(
            (applied.rules, applied.moved, applied.routing),
            (Change::Fresh, true, 0),
            "{from:?} {to:?}"
        );
        assert_eq!(to.observe(&ns, &plan), []);
    }
}

#[test]
fn without_ipv6_nothing_of_it_is_written() {
    let node = NodeOptions { ipv6: false, ..NodeOptions::default() };
    for way in Way::ALL {
        let ns = TestNetns::new().unwrap();
        way.apply(&ns, &way.pod_plan(&node, &PodOptions::default())).unwrap();
        let v6 = sh(
            &ns,
            "ip -6 rule; ip -6 route show table 100 2>/dev/null || true; cat /proc/thread-self/net/ip6_tables_names; \
             nft list tables ip6",
        );
        assert!(!v6.contains("32764") && !v6.contains("default"), "{way:?}: {v6}");
        assert!(!v6.contains("nat") && !v6.contains("mangle") && !v6.contains("raw"), "{way:?}: {v6}");
        if way == Way::Nft {
            assert!(!ns.nft_text().unwrap().contains("ip6"));
        }
    }
}

#[test]
fn a_loopback_without_ipv6_needs_no_route() {
    for way in Way::ALL {
        let ns = TestNetns::new().unwrap();
        ns.set_sysctl("net.ipv6.conf.lo.disable_ipv6", "1").unwrap();
        let plan = way.pod_plan(&NodeOptions::default(), &PodOptions::default());
        assert_eq!(way.apply(&ns, &plan).unwrap().routing, 3, "{way:?}: two rules and a route");
        assert!(sh(&ns, "ip -6 rule").contains("32764:"));
        assert_eq!(sh(&ns, "ip -6 route show table 100 2>/dev/null || true"), "");
        assert_eq!(way.observe(&ns, &plan), [], "{way:?}");
        assert_eq!(way.remove(&ns), Change::Fresh);
        assert_eq!(way.remove(&ns), Change::None);
        assert!(!sh(&ns, "ip -4 rule; ip -6 rule").contains("32764"));
    }
}
