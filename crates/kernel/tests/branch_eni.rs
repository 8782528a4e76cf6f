//! Rules for the probes of pods with a branch network interface.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::process::Command;

use kernel::branch_eni::{add, is_relevant, remove};
use netns::Host;
use testkit::TestNetns;

fn rules(netns: &TestNetns, family: &str) -> String {
    netns.run(Command::new("ip").args([family, "rule"])).unwrap()
}

#[test]
fn branch_rules_come_and_go_and_only_for_branch_interfaces() {
    let netns = TestNetns::new().unwrap();
    netns
        .ip(&[
            "link add vlan.eth.1 type veth peer name far",
            "link set vlan.eth.1 up",
            "link set far up",
            "rule add pref 10 iif vlan.eth.1 lookup 101",
            "route add 10.0.0.7/32 dev vlan.eth.1 table 101",
            "route add fd00::7/128 dev vlan.eth.1 table 101",
        ])
        .unwrap();
    let rule = ["-6", "rule", "add", "pref", "10", "iif", "vlan.eth.1", "lookup", "101"];
    netns.run(Command::new("ip").args(rule)).unwrap();
    let host = Host::open(netns.path()).unwrap();
    for (ip, family) in [("10.0.0.7", "-4"), ("fd00::7", "-6")] {
        let ip: IpAddr = ip.parse().unwrap();
        let before = rules(&netns, family);
        let branch = host.enter(|inside| add(inside, ip)).unwrap().unwrap().unwrap();
        assert_eq!((branch.table, branch.priority), (101, 9));
        let text = rules(&netns, family);
        for part in
            [format!("512:\tfrom all to {ip} lookup 101"), "9:\tfrom all iif vlan.eth.1 lookup local".into()]
        {
            assert!(text.contains(&part), "{part} is not in {text}");
        }
        host.enter(|inside| add(inside, ip)).unwrap().unwrap();
        assert_eq!(rules(&netns, family), text, "they are there once");
        host.enter(|inside| remove(inside, &branch)).unwrap().unwrap();
        assert_eq!(rules(&netns, family), before);
        host.enter(|inside| remove(inside, &branch)).unwrap().unwrap();
        let other: IpAddr = if ip.is_ipv4() { "10.0.0.8" } else { "fd00::8" }.parse().unwrap();
        assert_eq!(host.enter(|inside| add(inside, other)).unwrap().unwrap(), None);
        assert_eq!(rules(&netns, family), before);
    }
}

#[test]
fn early_demultiplexing_needs_no_branch_rules() {
    let proc = tempfile::tempdir().unwrap();
    assert!(!is_relevant(proc.path()));
    let dir = proc.path().join("sys/net/ipv4");
    std::fs::create_dir_all(&dir).unwrap();
    for (text, relevant) in [("1\n", false), ("0\n", true), ("", false)] {
        std::fs::write(dir.join("tcp_early_demux"), text).unwrap();
        assert_eq!(is_relevant(proc.path()), relevant, "{text:?}");
    }
}

/// A rule for everything but an interface says nothing about a pod behind it; an address may come in IPv6's notation.
#[test]
fn inverted_rules_say_nothing_and_mapped_addresses_are_ipv4() {
    let netns = TestNetns::new().unwrap();
    netns
        .ip(&[
            "link add vlan.eth.1 type veth peer name far",
            "link set vlan.eth.1 up",
            "route add 10.0.0.7/32 dev vlan.eth.1 table 101",
            "rule add pref 10 not iif vlan.eth.1 lookup 101",
        ])
        .unwrap();
    let host = Host::open(netns.path()).unwrap();
    let find = |text: &str| host.enter(|inside| add(inside, text.parse().unwrap())).unwrap().unwrap();
    assert_eq!(find("10.0.0.7"), None);
    netns.ip(&["rule add pref 0 iif vlan.eth.1 lookup 101"]).unwrap();
    let branch = find("::ffff:10.0.0.7").unwrap();
    assert_eq!((branch.ip, branch.priority), (IpAddr::from([10, 0, 0, 7]), 0));
    assert!(rules(&netns, "-4").contains("512:\tfrom all to 10.0.0.7 lookup 101"));
}

/// What other programs added with the same content is theirs or ours alike: there already is success.
#[test]
fn rules_that_are_there_already_are_no_failure() {
    let netns = TestNetns::new().unwrap();
    netns
        .ip(&[
            "link add vlan.eth.1 type veth peer name far",
            "link set vlan.eth.1 up",
            "rule add pref 10 iif vlan.eth.1 lookup 101",
            "route add 10.0.0.7/32 dev vlan.eth.1 table 101",
            "rule add pref 512 to 10.0.0.7 lookup 101 protocol 0",
        ])
        .unwrap();
    let host = Host::open(netns.path()).unwrap();
    let ip = IpAddr::from([10, 0, 0, 7]);
    host.enter(|inside| add(inside, ip)).unwrap().unwrap().unwrap();
    let text = rules(&netns, "-4");
    assert_eq!(text.matches("to 10.0.0.7").count(), 1, "{text}");
    assert!(text.contains("9:\tfrom all iif vlan.eth.1 lookup local"), "{text}");
}
