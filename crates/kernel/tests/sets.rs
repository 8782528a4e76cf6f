//! The node's sets of addresses, against what `nft` and `ipset` list.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use capture::ambient::{NodeOptions, PROBES_V4, PROBES_V6, ProbeSender, plan_host};
use kernel::RuleStore;
use kernel::nft::Nftables;
use kernel::sets::{Error, ProbeSets, Removed, SetMember, exists_in_ipset};
use netns::Host;
use ruleset::Backend;
use testkit::TestNetns;

const BOTH: [Backend; 2] = [Backend::Nftables, Backend::Iptables];
const TABLE: &str = "istio-ambient-nat";

fn open(netns: &TestNetns, backend: Backend, ipv6: bool) -> ProbeSets {
    let host = Host::open(netns.path()).unwrap();
    let node = NodeOptions { ipv6, ..NodeOptions::default() };
    let opened = host.enter(|inside| {
        if backend == Backend::Nftables {
            let plan = plan_host(&node, ProbeSender::AnySocket, backend);
            Nftables.setup(inside.inside(), &plan.layers).unwrap();
        }
        ProbeSets::open(inside, backend, TABLE, PROBES_V4, ipv6.then_some(PROBES_V6)).unwrap()
    });
    let mut sets = opened.unwrap();
    sets.ensure().unwrap();
    sets.ensure().unwrap();
    sets
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn run(netns: &TestNetns, line: &str) -> String {
    let mut words = line.split(' ');
    netns.run(Command::new(words.next().unwrap()).args(words)).unwrap()
}

/// The list of the backend's own program.
fn listed(netns: &TestNetns, backend: Backend, set: &str) -> String {
    match backend {
        Backend::Nftables => run(netns, &format!("nft list set inet {TABLE} {set}")),
        Backend::Iptables => run(netns, &format!("ipset list {set}")),
    }
}

#[test]
fn addresses_come_change_hands_and_go() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, true);
        assert!(sets.upsert(ip("10.0.0.1"), "uid-a").unwrap());
        assert!(!sets.upsert(ip("10.0.0.1"), "uid-a").unwrap(), "it was so");
        assert!(sets.upsert(ip("::ffff:10.0.0.2"), "uid-a").unwrap());
        assert!(sets.upsert(ip("fd00::1"), "uid-b").unwrap());
        let (v4, v6) = (listed(&netns, backend, PROBES_V4), listed(&netns, backend, PROBES_V6));
        for part in ["10.0.0.1 comment \"uid-a\"", "10.0.0.2 comment \"uid-a\""] {
            assert!(v4.contains(part), "{backend}: {v4}");
        }
        assert!(v6.contains("fd00::1 comment \"uid-b\""), "{backend}: {v6}");
        // An address that another pod has by now is that one's.
        assert!(sets.upsert(ip("10.0.0.1"), "uid-c").unwrap());
        let v4 = listed(&netns, backend, PROBES_V4);
        assert!(
            v4.contains("10.0.0.1 comment \"uid-c\"") && !v4.contains("10.0.0.1 comment \"uid-a\""),
            "{v4}"
        );
        assert_eq!(sets.remove(ip("10.0.0.1"), "uid-a").unwrap(), Removed::OwnedBy("uid-c".into()));
        assert_eq!(sets.remove(ip("10.0.0.2"), "uid-a").unwrap(), Removed::Gone);
        assert_eq!(sets.remove(ip("10.0.0.2"), "uid-a").unwrap(), Removed::NotThere);
        let mut all = sets.list().unwrap();
        all.sort_by_key(|member| member.ip);
        let wanted = [("10.0.0.1", "uid-c"), ("fd00::1", "uid-b")]
            .map(|(text, uid)| SetMember { ip: ip(text), uid: uid.into() });
        assert_eq!(all, wanted, "{backend}");
    }
}

#[test]
fn without_ipv6_its_addresses_are_passed_over() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, false);
        assert!(!sets.upsert(ip("fd00::1"), "uid").unwrap());
        assert_eq!(sets.remove(ip("fd00::1"), "uid").unwrap(), Removed::NotThere);
        let wanted = [(ip("fd00::1"), "uid".to_owned()), (ip("10.0.0.1"), "uid".to_owned())];
        assert_eq!(sets.reconcile(&wanted).unwrap(), 1);
        assert_eq!(sets.list().unwrap().len(), 1);
    }
}

/// A sync leaves exactly the pods' addresses, whatever else was in the set.
#[test]
fn reconciling_adds_corrects_and_removes() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, true);
        sets.upsert(ip("10.0.0.1"), "keeps").unwrap();
        sets.upsert(ip("10.0.0.2"), "old").unwrap();
        match backend {
            Backend::Nftables => {
                run(&netns, &format!("nft add element inet {TABLE} {PROBES_V4} {{ 10.0.0.66 }}"));
                run(
                    &netns,
                    &format!("nft add element inet {TABLE} {PROBES_V6} {{ fd00::66 comment \"stray\" }}"),
                );
            }
            Backend::Iptables => {
                run(&netns, &format!("ipset add {PROBES_V4} 10.0.0.66"));
                run(&netns, &format!("ipset add {PROBES_V6} fd00::66 comment stray"));
            }
        }
        let pair = |text: &str, uid: &str| (ip(text), uid.to_owned());
        let wanted = [pair("10.0.0.1", "keeps"), pair("10.0.0.2", "new"), pair("fd00::3", "more")];
        assert_eq!(sets.reconcile(&wanted).unwrap(), 4, "{backend}");
        assert_eq!(sets.reconcile(&wanted).unwrap(), 0, "{backend}");
        let mut all: Vec<_> =
            sets.list().unwrap().into_iter().map(|member| (member.ip, member.uid)).collect();
        all.sort();
        assert_eq!(all, wanted, "{backend}");
        assert!(sets.upsert(ip("10.0.0.66"), "again").unwrap());
        assert_eq!(sets.reconcile(&[]).unwrap(), 4);
    }
}

#[test]
fn uids_that_fit_no_comment() {
    let netns = TestNetns::new().unwrap();
    let mut sets = open(&netns, Backend::Nftables, false);
    assert!(sets.upsert(ip("10.0.0.1"), &"u".repeat(127)).unwrap());
    for uid in ["", &"u".repeat(128), "a\0b"] {
        assert!(matches!(sets.upsert(ip("10.0.0.2"), uid), Err(Error::Uid { .. })));
    }
}

/// The sets are those that upstream's commands make.
#[test]
fn the_sets_are_the_originals() {
    let (ours, theirs) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    let _sets = open(&ours, Backend::Nftables, true);
    theirs.nft(&format!("add table inet {TABLE}")).unwrap();
    for (set, kind) in [(PROBES_V4, "ipv4_addr"), (PROBES_V6, "ipv6_addr")] {
        let comment = "UUID of the pods that are part of ambient mesh";
        theirs
            .nft(&format!("add set inet {TABLE} {set} {{ type {kind} ; comment \"{comment}\" ; }}"))
            .unwrap();
        assert_eq!(listed(&ours, Backend::Nftables, set), listed(&theirs, Backend::Nftables, set));
    }
    let (ours, theirs) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    let _sets = open(&ours, Backend::Iptables, true);
    for (set, family) in [(PROBES_V4, "inet"), (PROBES_V6, "inet6")] {
        run(&theirs, &format!("ipset create {set} hash:ip family {family} comment"));
        let types = |netns: &TestNetns| {
            let text = listed(netns, Backend::Iptables, set);
            let header = text.lines().find(|line| line.starts_with("Header")).unwrap().to_owned();
            header.split(" bucketsize").next().unwrap().to_owned()
        };
        assert_eq!(types(&ours), types(&theirs));
        assert!(listed(&ours, Backend::Iptables, set).contains("comment"));
    }
}

#[test]
fn the_sets_of_an_earlier_iptables_agent_are_seen() {
    let netns = TestNetns::new().unwrap();
    let host = Host::open(netns.path()).unwrap();
    let exists = || host.enter(|inside| exists_in_ipset(inside, &[PROBES_V4, PROBES_V6])).unwrap().unwrap();
    assert!(!exists());
    run(&netns, &format!("ipset create {PROBES_V6} hash:ip family inet6"));
    assert!(exists());
    // Of another type than ours: said so, and left alone.
    let opened =
        host.enter(|inside| ProbeSets::open(inside, Backend::Iptables, TABLE, PROBES_V4, Some(PROBES_V6)));
    let error = fault::chain(&opened.unwrap().unwrap().ensure().unwrap_err());
    assert!(error.contains(PROBES_V6) && error.contains("another type"), "{error}");
    run(&netns, "ipset destroy");
    assert!(!exists());
}

#[test]
fn destroyed_sets_are_gone_and_none_are_no_error() {
    let netns = TestNetns::new().unwrap();
    let mut sets = open(&netns, Backend::Iptables, true);
    sets.upsert(ip("10.0.0.1"), "uid").unwrap();
    netns
        .run(Command::new("iptables").args(["-A", "INPUT", "-m", "set", "--match-set", PROBES_V4, "dst"]))
        .unwrap();
    let error = fault::chain(&sets.destroy().unwrap_err());
    assert!(error.contains("a rule still looks"), "{error}");
    netns.run(Command::new("iptables").args(["-F", "INPUT"])).unwrap();
    sets.destroy().unwrap();
    sets.destroy().unwrap();
    assert_eq!(run(&netns, "ipset list -n").trim(), "");
}

#[test]
fn ten_thousand_addresses() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, true);
        let wanted: Vec<(IpAddr, String)> = (0..10_000_u32)
            .map(|n| {
                (IpAddr::from((0x0a00_0000 + n).to_be_bytes()), format!("{n:08}-0000-4000-8000-000000000000"))
            })
            .collect();
        let start = Instant::now();
        assert_eq!(sets.reconcile(&wanted).unwrap(), wanted.len());
        let all = start.elapsed();
        let start = Instant::now();
        for n in 0..50_u32 {
            let one = IpAddr::from((0x0b00_0000 + n).to_be_bytes());
            assert!(sets.upsert(one, "one").unwrap());
            assert_eq!(sets.remove(one, "one").unwrap(), Removed::Gone);
        }
        println!("{backend}: 10000 at once {all:?}; one there and back {:?}", start.elapsed() / 50);
        assert_eq!(sets.list().unwrap().len(), wanted.len());
    }
}

/// What others do to a set is seen: another agent during an update, or a person with `ipset flush`.
#[test]
fn changes_by_others_are_seen() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let (mut one, mut other) = (open(&netns, backend, true), open(&netns, backend, true));
        for text in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            assert!(one.upsert(ip(text), "uid-a").unwrap());
        }
        // Between two processes: the address went to another pod while this one looked away.
        assert!(other.upsert(ip("10.0.0.1"), "uid-b").unwrap());
        assert_eq!(
            one.remove(ip("10.0.0.1"), "uid-a").unwrap(),
            Removed::OwnedBy("uid-b".into()),
            "{backend}"
        );
        assert_eq!(other.remove(ip("10.0.0.2"), "uid-a").unwrap(), Removed::Gone, "{backend}");
        assert_eq!(one.remove(ip("10.0.0.2"), "uid-a").unwrap(), Removed::NotThere, "{backend}");
        match backend {
            Backend::Nftables => run(&netns, &format!("nft flush set inet {TABLE} {PROBES_V4}")),
            Backend::Iptables => run(&netns, &format!("ipset flush {PROBES_V4}")),
        };
        assert!(one.upsert(ip("10.0.0.3"), "uid-a").unwrap(), "{backend}: it had gone");
        assert!(listed(&netns, backend, PROBES_V4).contains("10.0.0.3 comment \"uid-a\""), "{backend}");
        assert!(other.upsert(ip("10.0.0.3"), "uid-b").unwrap());
        one.upsert(ip("10.0.0.3"), "uid-a").unwrap();
        assert!(listed(&netns, backend, PROBES_V4).contains("10.0.0.3 comment \"uid-a\""), "{backend}");
    }
}

/// A set that upstream's agent or a person made is taken over with what it holds.
#[test]
fn sets_of_the_ipset_program_are_taken_over() {
    let netns = TestNetns::new().unwrap();
    for (set, family) in [(PROBES_V4, "inet"), (PROBES_V6, "inet6")] {
        run(&netns, &format!("ipset create {set} hash:ip family {family} comment"));
    }
    let long = "c".repeat(255);
    run(&netns, &format!("ipset add {PROBES_V4} 10.0.0.1 comment {long}"));
    let mut sets = open(&netns, Backend::Iptables, true);
    assert_eq!(sets.list().unwrap(), [SetMember { ip: ip("10.0.0.1"), uid: long.clone() }]);
    assert_eq!(sets.remove(ip("10.0.0.1"), "uid").unwrap(), Removed::OwnedBy(long));
    assert!(sets.upsert(ip("10.0.0.1"), "uid").unwrap());
    assert_eq!(sets.remove(ip("10.0.0.1"), "uid").unwrap(), Removed::Gone);
}

/// Where a rule is left that keeps the set, it finds no address in it.
#[test]
fn a_set_that_cannot_be_destroyed_is_empty() {
    let netns = TestNetns::new().unwrap();
    let mut sets = open(&netns, Backend::Iptables, false);
    sets.upsert(ip("10.0.0.1"), "uid").unwrap();
    run(&netns, &format!("iptables -A INPUT -m set --match-set {PROBES_V4} dst"));
    sets.destroy().unwrap_err();
    assert!(!listed(&netns, Backend::Iptables, PROBES_V4).contains("10.0.0.1"));
}

/// All at once get another comment: the time must not grow with the square.
#[test]
fn ten_thousand_addresses_change_hands() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, false);
        let of = |uid: &str| -> Vec<(IpAddr, String)> {
            (0..10_000_u32).map(|n| (IpAddr::from((0x0a00_0000 + n).to_be_bytes()), uid.to_owned())).collect()
        };
        assert_eq!(sets.reconcile(&of("a")).unwrap(), 10_000);
        let start = Instant::now();
        assert_eq!(sets.reconcile(&of("b")).unwrap(), 10_000);
        let took = start.elapsed();
        println!("{backend}: 10000 changed hands in {took:?}");
        assert!(sets.list().unwrap().iter().all(|member| member.uid == "b"), "{backend}");
        assert!(took.as_secs() < 2, "{backend}: {took:?}");
    }
}

/// A node's usual number of pods; numbers for people.
#[test]
fn one_address_among_a_nodes_pods() {
    for backend in BOTH {
        let netns = TestNetns::new().unwrap();
        let mut sets = open(&netns, backend, true);
        let wanted: Vec<_> = (0..250_u8)
            .map(|n| (IpAddr::from([10, 0, 0, n]), format!("{n:08}-0000-4000-8000-000000000000")))
            .collect();
        sets.reconcile(&wanted).unwrap();
        let one = ip("10.9.9.9");
        let (mut add, mut replace, mut same, mut remove) = <(u128, u128, u128, u128)>::default();
        for _ in 0..500 {
            let time = |sum: &mut u128, f: &mut dyn FnMut()| {
                let start = Instant::now();
                f();
                *sum += start.elapsed().as_nanos();
            };
            time(&mut add, &mut || assert!(sets.upsert(one, "a").unwrap()));
            time(&mut replace, &mut || assert!(sets.upsert(one, "b").unwrap()));
            time(&mut same, &mut || assert!(!sets.upsert(one, "b").unwrap()));
            time(&mut remove, &mut || assert_eq!(sets.remove(one, "b").unwrap(), Removed::Gone));
        }
        let [add, replace, same, remove] = [add, replace, same, remove].map(|sum| sum / 500 / 1000);
        println!("{backend}, 250 pods, µs: add {add}, replace {replace}, nothing {same}, remove {remove}");
    }
}
