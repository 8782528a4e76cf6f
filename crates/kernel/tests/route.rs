//! Routing in real namespaces. Needs root and the program `ip`.

use std::net::IpAddr;
use std::process::Command;

use kernel::route;
use ruleset::{Family, Routing};
use testkit::TestNetns;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const MARK: u32 = 1337;
const TABLE: u32 = 133;

fn steps() -> [Routing; 5] {
    let rule = |family| Routing::Rule { family, mark: MARK, mask: u32::MAX, table: TABLE, priority: 1000 };
    let route = |family| Routing::LocalRoute { family, table: TABLE };
    [
        Routing::LoopbackAddress("::6".parse().expect("an address")),
        rule(Family::V4),
        rule(Family::V6),
        route(Family::V4),
        route(Family::V6),
    ]
}

fn ip(ns: &TestNetns, arguments: &str) -> Result<String, Box<dyn std::error::Error>> {
    let text = ns.run(Command::new("ip").args(arguments.split(' ')))?;
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

#[test]
fn steps_are_done_once_and_undone() -> Outcome {
    let ns = TestNetns::new()?;
    let before = (ip(&ns, "rule")?, ip(&ns, "-6 rule")?, ip(&ns, "-6 addr show dev lo")?);
    for step in &steps() {
        assert!(ns.enter(|inside| route::missing(inside, step))??, "{step:?}");
        assert!(ns.enter(|inside| route::ensure(inside, step))??, "{step:?}");
        assert!(!ns.enter(|inside| route::ensure(inside, step))??, "{step:?}");
        assert!(!ns.enter(|inside| route::missing(inside, step))??, "{step:?}");
    }
    for family in ["-4", "-6"] {
        let rules = ip(&ns, &format!("{family} rule"))?;
        assert_eq!(rules.matches("from all fwmark 0x539 lookup 133").count(), 1, "{rules}");
    }
    assert_eq!(ip(&ns, "-4 route show table 133")?, "local default dev lo scope host\n");
    assert_eq!(ip(&ns, "-6 route show table 133")?, "local default dev lo metric 1024 pref medium\n");
    assert!(ip(&ns, "-6 addr show dev lo")?.contains("inet6 ::6/128 scope"), "::6 is on lo");

    for step in &steps() {
        assert!(ns.enter(|inside| route::remove(inside, step))??, "{step:?}");
        assert!(!ns.enter(|inside| route::remove(inside, step))??, "{step:?}");
        assert!(ns.enter(|inside| route::missing(inside, step))??, "{step:?}");
    }
    assert_eq!((ip(&ns, "rule")?, ip(&ns, "-6 rule")?, ip(&ns, "-6 addr show dev lo")?), before);
    Ok(())
}

#[test]
fn steps_of_ip_are_recognised_and_duplicates_removed() -> Outcome {
    let ns = TestNetns::new()?;
    // As the reference leaves them after three runs, and one made by hand at our priority.
    ns.ip(&[
        "rule add fwmark 1337 lookup 133 priority 32765",
        "rule add fwmark 1337 lookup 133 priority 32764",
        "rule add fwmark 1337 lookup 133 priority 32763",
        "rule add fwmark 1337 lookup 133 priority 1000",
        "route add local default dev lo table 133",
        "route add local ::/0 dev lo table 133",
    ])?;
    // Not ours: another mask, another selector, another table, inverted.
    let others = [
        "rule add fwmark 1337/0xfff lookup 133 priority 5000",
        "rule add fwmark 1337 iif lo lookup 133 priority 5001",
        "rule add fwmark 1337 lookup 134 priority 5002",
        "rule add not fwmark 1337 lookup 133 priority 5003",
        "rule add fwmark 1337 from 10.0.0.0/8 lookup 133 priority 5004",
        "rule add fwmark 1337 lookup 133 suppress_prefixlength 0 priority 5005",
    ];
    ns.ip(&others)?;
    let [_, rule, _, route4, route6] = steps();
    for step in [&rule, &route4, &route6] {
        assert!(!ns.enter(|inside| route::missing(inside, step))??, "{step:?}");
        assert!(!ns.enter(|inside| route::ensure(inside, step))??, "{step:?}");
        assert!(ns.enter(|inside| route::remove(inside, step))??, "{step:?}");
    }
    let rules = ip(&ns, "-4 rule")?;
    assert_eq!(rules.lines().filter(|l| l.contains("fwmark")).count(), others.len(), "{rules}");
    Ok(())
}

#[test]
fn another_default_route_is_not_replaced() -> Outcome {
    let ns = TestNetns::new()?;
    ns.ip(&["route add unreachable default table 133"])?;
    let [_, _, _, route4, _] = steps();
    let error = ns.enter(|inside| route::ensure(inside, &route4))?.expect_err("must be refused");
    assert!(matches!(error, route::Error::OtherRoute { table: 133, .. }), "{error}");
    assert!(!ns.enter(|inside| route::remove(inside, &route4))??);
    assert_eq!(ip(&ns, "-4 route show table 133")?, "unreachable default\n");
    Ok(())
}

#[test]
fn without_ipv6_an_address_is_refused_and_a_route_is_not_needed() -> Outcome {
    let ns = TestNetns::new()?;
    ns.set_sysctl("net.ipv6.conf.lo.disable_ipv6", "1")?;
    let [address, .., route6] = steps();
    let error = ns.enter(|inside| route::ensure(inside, &address))?.expect_err("must be refused");
    assert!(matches!(error, route::Error::NoIpv6 { .. }), "{error}: {error:?}");
    assert!(ns.enter(|inside| route::missing(inside, &address))??);
    assert!(!ns.enter(|inside| route::ensure(inside, &route6))??);
    assert!(!ns.enter(|inside| route::missing(inside, &route6))??);
    for step in [&address, &route6] {
        assert!(!ns.enter(|inside| route::remove(inside, step))??);
    }
    Ok(())
}

#[test]
fn a_mark_under_a_mask_is_another_rule_than_a_whole_mark() -> Outcome {
    let ns = TestNetns::new()?;
    ns.ip(&["rule add fwmark 0x111 lookup 100 priority 32764"])?;
    let (mark, mask, table, priority) = (0x111, 0xfff, 100, 32764);
    let step = Routing::Rule { family: Family::V4, mark, mask, table, priority };
    assert!(ns.enter(|inside| route::missing(inside, &step))??);
    assert!(ns.enter(|inside| route::ensure(inside, &step))??);
    assert!(!ns.enter(|inside| route::ensure(inside, &step))??);
    assert!(ip(&ns, "rule")?.contains("32764:\tfrom all fwmark 0x111/0xfff lookup 100\n"));
    assert!(ns.enter(|inside| route::remove(inside, &step))??);
    assert_eq!(ip(&ns, "rule")?.matches("0x111").count(), 1, "the other one is not ours");
    Ok(())
}

#[test]
fn lo_is_brought_up_once_and_again() -> Outcome {
    let ns = TestNetns::new()?;
    ns.ip(&["link set lo down"])?;
    for _ in 0..2 {
        ns.enter(route::raise_loopback)??;
        assert!(ip(&ns, "link show lo")?.contains("LOOPBACK,UP"), "{}", ip(&ns, "link show lo")?);
    }
    Ok(())
}

#[test]
fn addresses_come_in_the_kernels_order() -> Outcome {
    let ns = TestNetns::new()?;
    ns.ip(&[
        "link add name b type veth peer name a",
        "addr add 10.0.0.2/24 dev b",
        "addr add 10.0.0.1 peer 10.0.0.9 dev a",
        "addr add fd00::2/64 dev b nodad",
        "addr add fd00::1/64 dev a nodad",
    ])?;
    // The peer end is made first.
    let found = ns.enter(route::addresses)??;
    let expected = ["127.0.0.1", "10.0.0.1", "10.0.0.2", "::1", "fd00::1", "fd00::2"];
    let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().expect("an address")).collect();
    assert_eq!(found, expected);
    ns.ip(&["addr add 10.0.0.3/32 dev lo"])?;
    let of_links: Vec<IpAddr> = expected.into_iter().filter(|ip| !ip.is_loopback()).collect();
    assert_eq!(ns.enter(route::link_addresses)??, of_links);
    Ok(())
}
