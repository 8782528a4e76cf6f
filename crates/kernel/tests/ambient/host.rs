//! The node's own rules.

use std::os::unix::fs::PermissionsExt;

use capture::ambient::{NodeOptions, PROBES_V4, PROBES_V6, ProbeSender, SET_COMMENT, plan_host};
use kernel::iptables::{Iptables, Variant};
use kernel::{Change, Difference};
use ruleset::Backend;
use testkit::TestNetns;

use crate::support::{Way, made, sh, state};

const TABLE: &str = "inet istio-ambient-nat";

/// A namespace with the sets that iptables needs before the rules.
fn node() -> TestNetns {
    let ns = TestNetns::new().unwrap();
    sh(
        &ns,
        &format!(
            "ipset create {PROBES_V4} hash:ip comment; ipset create {PROBES_V6} hash:ip family inet6 comment"
        ),
    );
    ns
}

#[test]
fn the_nodes_rule_is_first_and_goes_without_a_trace() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let way = Way::Iptables(variant);
        let (ns, plan) = (node(), way.host_plan(&NodeOptions::default()));
        way.shell(
            &ns,
            "iptables -t nat -A POSTROUTING -j MASQUERADE; ip6tables -t nat -A POSTROUTING -j MASQUERADE; \
             iptables -t nat -N ISTIO_OUTPUT; iptables -t nat -N ISTIO_PRERT; iptables -t nat -A OUTPUT -j ISTIO_OUTPUT",
        );
        let before = way.shell(&ns, "iptables -t nat -S; ip6tables -t nat -S");
        let iptables = || way.iptables().on_the_node();
        assert_eq!(way.apply_by(&ns, &plan, &iptables()).unwrap().rules, Change::Fresh, "{way:?}");
        for program in ["iptables", "ip6tables"] {
            let first = way.shell(&ns, &format!("{program} -t nat -S POSTROUTING 1"));
            assert_eq!(first, "-A POSTROUTING -j ISTIO_POSTRT\n");
        }
        assert_eq!(way.observe(&ns, &plan), []);
        assert_eq!(way.apply_by(&ns, &plan, &iptables()).unwrap().rules, Change::None);
        // Somebody else puts himself before it: that is no place for ours any more.
        way.shell(&ns, "iptables -t nat -D POSTROUTING -j ISTIO_POSTRT");
        way.shell(&ns, "iptables -t nat -A POSTROUTING -j ISTIO_POSTRT; iptables -t nat -F ISTIO_POSTRT");
        assert_eq!(way.apply_by(&ns, &plan, &iptables()).unwrap().rules, Change::Replaced);
        assert_eq!(way.shell(&ns, "iptables -t nat -S POSTROUTING 1"), "-A POSTROUTING -j ISTIO_POSTRT\n");
        assert_eq!(way.cleanup(&ns, &plan), Change::Fresh);
        assert_eq!(way.shell(&ns, "iptables -t nat -S; ip6tables -t nat -S"), before, "{way:?}");
        assert_eq!(way.cleanup(&ns, &plan), Change::None);
        assert_eq!(sh(&ns, "ipset list -n").lines().count(), 2, "the sets are not ours to remove");
    }
}

#[test]
fn elements_survive_whatever_happens_to_the_rules() {
    let (ns, options) = (TestNetns::new().unwrap(), NodeOptions::default());
    let plan = Way::Nft.host_plan(&options);
    ns.nft(&format!(
        "add table {TABLE}\nadd set {TABLE} {PROBES_V4} {{ type ipv4_addr ; comment \"{SET_COMMENT}\" ; }}\n\
         add element {TABLE} {PROBES_V4} {{ 10.0.0.1 comment \"one\", 10.0.0.2 }}"
    ))
    .unwrap();
    assert_eq!(Way::Nft.apply(&ns, &plan).unwrap().rules, Change::Fresh);
    let sets = sh(&ns, "nft list sets");
    assert!(sets.contains("10.0.0.1 comment \"one\"") && sets.contains("10.0.0.2"), "{sets}");
    assert!(
        sets.contains(PROBES_V6) && sets.matches(SET_COMMENT).count() == 2,
        "the missing set is made: {sets}"
    );
    let good = ns.nft_text().unwrap();
    // Elements are no difference.
    ns.nft(&format!("add element {TABLE} {PROBES_V6} {{ fd00::5 }}")).unwrap();
    assert_eq!(Way::Nft.observe(&ns, &plan), []);
    assert_eq!(Way::Nft.apply(&ns, &plan).unwrap().rules, Change::None);
    ns.nft(&format!("delete element {TABLE} {PROBES_V6} {{ fd00::5 }}")).unwrap();
    for drift in [
        format!("flush table {TABLE}"),
        format!("add rule {TABLE} postrouting accept"),
        format!("add chain {TABLE} more\nadd rule {TABLE} postrouting jump more"),
        format!("delete chain {TABLE} postrouting"),
        format!("add set {TABLE} others {{ type ipv4_addr ; }}"),
        format!("flush table {TABLE}\ndelete set {TABLE} {PROBES_V6}"),
        "add table inet istio-ambient-raw".to_owned(),
    ] {
        ns.nft(&drift).unwrap();
        assert_ne!(Way::Nft.observe(&ns, &plan), [], "{drift}");
        assert_ne!(Way::Nft.apply(&ns, &plan).unwrap().rules, Change::None, "{drift}");
        assert_eq!(Way::Nft.observe(&ns, &plan), [], "{drift}");
        assert_eq!(ns.nft_text().unwrap(), good, "{drift}");
    }
    // Without IPv6 the set of that family goes with its rule, and the other one keeps what it has.
    let v4 = NodeOptions { ipv6: false, ..options };
    assert_eq!(Way::Nft.apply(&ns, &Way::Nft.host_plan(&v4)).unwrap().rules, Change::Replaced);
    let sets = sh(&ns, "nft list sets");
    assert!(sets.contains("10.0.0.1") && !sets.contains(PROBES_V6), "{sets}");
    assert_eq!(Way::Nft.cleanup(&ns, &plan), Change::Fresh);
    assert_eq!(sh(&ns, "nft list tables inet"), "");
}

#[test]
fn a_set_of_another_type_is_replaced() {
    let ns = TestNetns::new().unwrap();
    ns.nft(&format!(
        "add table {TABLE}\nadd set {TABLE} {PROBES_V4} {{ type ipv4_addr ; flags interval ; }}\n\
         add set {TABLE} {PROBES_V6} {{ type ipv6_addr ; }}\nadd element {TABLE} {PROBES_V6} {{ fd00::1 }}"
    ))
    .unwrap();
    let plan = Way::Nft.host_plan(&NodeOptions::default());
    let different = Way::Nft.observe(&ns, &plan);
    assert!(
        different.iter().any(|d| matches!(d, Difference::DifferentSet { how: "is of another type", .. }))
    );
    Way::Nft.apply(&ns, &plan).unwrap();
    assert_eq!(Way::Nft.observe(&ns, &plan), []);
    assert!(sh(&ns, "nft list sets").contains("fd00::1"));
}

#[test]
fn a_dormant_table_wakes_up() {
    let (ns, plan) = (TestNetns::new().unwrap(), Way::Nft.host_plan(&NodeOptions::default()));
    Way::Nft.apply(&ns, &plan).unwrap();
    let good = ns.nft_text().unwrap();
    ns.nft(&format!("add table {TABLE} {{ flags dormant ; }}")).unwrap();
    assert_ne!(Way::Nft.observe(&ns, &plan), []);
    Way::Nft.apply(&ns, &plan).unwrap();
    assert_eq!(ns.nft_text().unwrap(), good);
}

#[test]
fn without_its_sets_iptables_refuses_the_rules_and_leaves_nothing() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let way = Way::Iptables(variant);
        let ns = TestNetns::new().unwrap();
        let _ = state(&ns);
        let before = state(&ns);
        let error = format!("{:#}", way.apply(&ns, &way.host_plan(&NodeOptions::default())).unwrap_err());
        assert!(error.contains(PROBES_V4), "{error}");
        assert_eq!(made(&state(&ns)), made(&before));
    }
}

/// Whole tables are written by legacy programs: on the node they must wait for kube-proxy's, in pods nobody else writes.
#[test]
fn on_the_node_the_legacy_programs_take_the_common_lock() {
    let programs = std::env::temp_dir().join(format!("kernel-ambient-lock-{}", std::process::id()));
    std::fs::create_dir(&programs).unwrap();
    for name in ["iptables", "ip6tables"] {
        let save = format!("{name}-legacy-save");
        std::os::unix::fs::symlink(format!("/usr/sbin/{save}"), programs.join(save)).unwrap();
        let restore = programs.join(format!("{name}-legacy-restore"));
        let text = format!(
            "#!/bin/sh\necho \"$* $XTABLES_LOCKFILE $(/usr/bin/readlink /proc/self/ns/mnt)\" >>{}/log\n\
             exec /usr/sbin/{name}-legacy-restore \"$@\"\n",
            programs.display()
        );
        std::fs::write(&restore, text).unwrap();
        std::fs::set_permissions(&restore, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let way = Way::Iptables(Variant::Legacy);
    let log = |iptables: Iptables| {
        let (ns, plan) = (node(), way.host_plan(&NodeOptions::default()));
        way.apply_by(&ns, &plan, &iptables.searching(vec![programs.clone()])).unwrap();
        let log = std::fs::read_to_string(programs.join("log")).unwrap();
        std::fs::remove_file(programs.join("log")).unwrap();
        log
    };
    let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    let on_the_node = log(Iptables::forced(Variant::Legacy).on_the_node());
    let lines = on_the_node
        .lines()
        .filter(|line| line.starts_with("--noflush --wait=30  mnt:") && line.ends_with(&ours));
    assert_eq!((lines.count(), on_the_node.lines().count()), (2, 2), "{on_the_node}");
    let in_a_pod = log(Iptables::forced(Variant::Legacy));
    let lines = in_a_pod.lines().filter(|line| line.contains("xtables.lock") && !line.ends_with(&ours));
    assert_eq!((lines.count(), in_a_pod.contains("--wait")), (2, false), "{in_a_pod}");
    std::fs::remove_dir_all(&programs).unwrap();
}

/// What the node has of others does not make ours slow: a nat table as kube-proxy makes it for two thousand services.
#[test]
fn thousands_of_rules_of_others_are_no_burden() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let way = Way::Iptables(variant);
        let (ns, options) = (node(), NodeOptions::default());
        let chains: String = (0..4000).map(|n| format!("-N KUBE-SVC-{n}\n")).collect();
        let rules: String = (0..4000)
            .map(|n| {
                format!("-A KUBE-SVC-{n} -d 10.96.{}.{}/32 -p tcp --dport 80 -j RETURN\n", n / 250, n % 250)
            })
            .collect();
        let listed = match variant {
            Variant::Nft => testkit::rules::Variant::Nft,
            Variant::Legacy => testkit::rules::Variant::Legacy,
        };
        let text = format!("*nat\n{chains}{rules}COMMIT\n");
        ns.iptables_restore(listed, testkit::rules::Family::V4, &text).unwrap();
        let plan = plan_host(&options, ProbeSender::AnySocket, Backend::Iptables);
        let start = std::time::Instant::now();
        way.apply_by(&ns, &plan, &Iptables::forced(variant).on_the_node()).unwrap();
        assert_eq!(way.observe(&ns, &plan), []);
        assert_eq!(way.cleanup(&ns, &plan), Change::Fresh);
        println!("{way:?}: set up, observed and cleaned up in {:?}", start.elapsed());
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
