use super::shadow::{Scene, find};
use super::*;
use crate::rule::{ChainKind, Hook, TableKind};

fn acts(line: &str) -> Vec<ListedAct> {
    parse_line(line, Family::V4).acts
}

fn conditions(line: &str) -> Vec<Condition> {
    parse_line(line, Family::V4).conditions
}

fn within(field: Field, ranges: &[(u128, u128)]) -> Condition {
    Condition::In { field, mask: u128::MAX, ranges: ranges.to_vec(), not: false }
}

#[test]
fn conditions_of_iptables() {
    let tcp = || Condition::is(Field::Protocol, 6);
    for (line, wanted) in [
        ("-p tcp -m tcp --dport 80:90 -j ACCEPT", vec![tcp(), within(Field::DestinationPort, &[(80, 90)])]),
        (
            "-d 10.0.0.0/8 -i eth+ -m comment --comment \"say \\\"no\\\" -j DROP\" -j ACCEPT",
            vec![
                within(Field::Destination(Family::V4), &[(0x0a00_0000, 0x0aff_ffff)]),
                within(Field::InInterface, &[names_from(b"eth")]),
            ],
        ),
        (
            "-p 6 -m multiport --dports 1,5:7 -m owner --uid-owner 5-9 -j ACCEPT",
            vec![tcp(), within(Field::DestinationPort, &[(1, 1), (5, 7)]), within(Field::Uid, &[(5, 9)])],
        ),
        ("-m addrtype --dst-type LOCAL -j ACCEPT", vec![Condition::Unread]),
        (
            "-m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT",
            vec![Condition::is(Field::DestinationType, OWN_ADDRESS)],
        ),
        ("-m socket -j ACCEPT", vec![Condition::Unread]),
        ("-p tcp -m tcp --tcp-flags FIN,SYN SYN -j ACCEPT", vec![tcp(), Condition::Unread]),
        ("-m conntrack --ctstate NEW,RELATED -j ACCEPT", vec![within(Field::CtState, &[(12, 12)])]),
        ("-m conntrack --ctstate DNAT -j ACCEPT", vec![Condition::Unread]),
        (
            "-p sctp -m sctp --dport 7 -m conntrack --ctorigdstport 80:90 -m conntrack --ctdir REPLY -j ACCEPT",
            vec![
                Condition::is(Field::Protocol, 132),
                Condition::is(Field::DestinationPort, 7),
                within(Field::OriginalPort, &[(80, 90)]),
                Condition::is(Field::Reply, 1),
            ],
        ),
        (
            "-m conntrack --ctorigdst 10.0.0.0/8 -j ACCEPT",
            vec![within(Field::OriginalDestination(Family::V4), &[(0x0a00_0000, 0x0aff_ffff)])],
        ),
        ("-m limit --limit 10/sec -j NFLOG --nflog-group 7", vec![Condition::Unread, Condition::Unread]),
        (
            "-p icmp -m icmp --icmp-type 8 -j ACCEPT",
            vec![Condition::is(Field::Protocol, 1), Condition::Unread, Condition::Unread],
        ),
        ("-p all -j ACCEPT", vec![]),
        ("", vec![]),
        ("-s", vec![Condition::Unread]),
    ] {
        assert_eq!(conditions(line), wanted, "{line}");
    }
    let Condition::In { mask: 0xf0, not: true, .. } = &conditions("-m mark ! --mark 0x10/0xf0 -j ACCEPT")[0]
    else {
        panic!("a mark");
    };
}

#[test]
fn acts_of_iptables() {
    let dnat = |to: &str, port| vec![ListedAct::Dnat { to: to.parse().ok(), port }];
    for (line, wanted) in [
        ("-j DNAT --to-destination 10.0.0.1:80", dnat("10.0.0.1", Some(80))),
        ("-j DNAT --to-destination :80-90", dnat("", Some(80))),
        ("-j DNAT --to-destination [fd00::1]:8 --persistent", dnat("fd00::1", Some(8))),
        ("-j DNAT --to-destination fd00::1-fd00::9", dnat("fd00::1", None)),
        ("-p tcp -j REDIRECT", vec![ListedAct::Redirect { port: None }]),
        ("-p tcp -j REDIRECT --to-ports 5-9 --random", vec![ListedAct::Redirect { port: Some(5) }]),
        ("-j CT --notrack", vec![ListedAct::Notrack]),
        ("-j CT --zone 4", vec![ListedAct::SetZone(4)]),
        ("-j SNAT --to-source 10.0.0.1:1024-2048", vec![ListedAct::Snat { to: "10.0.0.1".parse().ok() }]),
        ("-o eth0 -j MASQUERADE --random", vec![ListedAct::Masquerade]),
        ("-g OTHER", vec![ListedAct::Goto("OTHER".to_owned())]),
        ("-j NFQUEUE --queue-num 1", vec![ListedAct::Jump("NFQUEUE".to_owned())]),
        ("-j MARK --set-xmark 0x5/0xff", vec![ListedAct::SetMark { keep: !0xff, xor: 5 }]),
        ("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", vec![ListedAct::RestoreMark]),
        ("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", vec![ListedAct::Unread]),
        (
            "-p tcp -j TPROXY --on-port 7 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
            vec![
                ListedAct::Tproxy { port: Some(7) },
                ListedAct::SetMark { keep: !1, xor: 1 },
                ListedAct::Accept,
            ],
        ),
        ("-j LOG --log-prefix \"-j DROP\"", vec![]),
    ] {
        assert_eq!(acts(line), wanted, "{line}");
    }
}

#[test]
fn a_whole_table() {
    let text = "# by x\n*nat\n:OUTPUT DROP [0:0]\n:MINE - [0:0]\n-A OUTPUT -j MINE\n-A MINE -j RETURN\nCOMMIT\n*security\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j DROP\n";
    let [table] = &parse_tables(text, Family::V6, Lister::IptablesLegacy)[..] else { panic!("one table") };
    assert_eq!((table.name.as_str(), table.chains.len()), ("ip6 nat (legacy)", 2));
    let base = Base { kind: ChainKind::Nat, hook: Hook::Output, priority: -100 };
    assert_eq!((table.chains[0].base, table.chains[0].drops), (Some(base), true));
    assert_eq!((table.chains[1].base, table.chains[1].rules.len()), (None, 1));
}

fn table(name: &str, ours: bool, priority: i32, rules: &[&str]) -> ListedTable {
    let base = Base { kind: ChainKind::Nat, hook: Hook::Output, priority };
    let rules = rules.iter().map(|line| parse_line(line, Family::V4)).collect();
    let chain = ListedChain { name: "OUTPUT".to_owned(), base: Some(base), drops: false, rules };
    ListedTable {
        ours,
        chains: vec![chain],
        name: name.to_owned(),
        ..empty(TableKind::Nat, Family::V4, Lister::IptablesNft)
    }
}

fn proven(plan: &[&str], others: &[ListedTable]) -> Vec<String> {
    let plan = [table("ours", true, -100, plan)];
    let present = [&plan[..], others].concat();
    let addresses = ["10.0.0.9".parse().unwrap()];
    let scene = Scene { plan: &plan, present: &present, addresses: &addresses, interface: "eth0" };
    find(&scene).found.into_iter().filter(|f| f.proven).map(|f| format!("{}: {}", f.rule, f.why)).collect()
}

/// Only packets that the plan captures can escape.
#[test]
fn what_the_plan_leaves_alone_does_not_escape() {
    let plan = ["-p tcp -m tcp --dport 80 -j RETURN", "-d 10.1.0.0/16 -p tcp -j REDIRECT --to-ports 15001"];
    let of = |rule: &str| proven(&plan, &[table("x", false, -101, &[rule])]);
    assert_eq!(of("-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 1"), [""; 0]);
    assert_eq!(of("-d 192.0.2.0/24 -p tcp -j REDIRECT --to-ports 1"), [""; 0]);
    assert_eq!(of("-p udp -j REDIRECT --to-ports 1"), [""; 0]);
    assert_eq!(of("-p tcp -m tcp --dport 81 -j REDIRECT --to-ports 15001"), [""; 0]);
    let found = of("-d 10.1.2.0/24 -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 1");
    assert_eq!(
        found,
        [
            "-d 10.1.2.0/24 -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 1: TCP to 10.1.2.1:81 goes to port 1 instead of to port 15001"
        ]
    );
}

/// Chains that call one another over and over are followed only so far.
#[test]
fn chains_that_fan_out() {
    let mut table = table("x", false, -101, &["-j C0"]);
    for n in 0..15 {
        let jump = format!("-p tcp -m tcp --dport {n} -j C{}", n + 1);
        let rules = std::iter::repeat_n(parse_line(&jump, Family::V4), 30);
        let open = std::iter::repeat_n(parse_line(&format!("-j C{}", n + 1), Family::V4), 30);
        let rules = rules.chain(open).collect();
        table.chains.push(ListedChain { name: format!("C{n}"), base: None, drops: false, rules });
    }
    table.chains.push(ListedChain { name: "C15".to_owned(), base: None, drops: false, rules: Vec::new() });
    let plan = [self::table("ours", true, -100, &["-p tcp -j REDIRECT --to-ports 15001"])];
    let present = [plan[0].clone(), table];
    let addresses = ["10.0.0.9".parse().unwrap()];
    let findings = find(&Scene { plan: &plan, present: &present, addresses: &addresses, interface: "eth0" });
    assert!(findings.incomplete && findings.found.iter().all(|found| !found.proven), "{findings:?}");
}
