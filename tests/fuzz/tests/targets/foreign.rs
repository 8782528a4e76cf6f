//! Rules and settings of others in a pod's namespace: whatever they are, they are judged, and what could not be read is never more than a
//! warning.

use std::net::SocketAddr;

use capture::ambient::{NodeOptions, PodOptions, plan_pod};
use conflicts::{LiveEnd, ObservedAddress, ObservedNetns, Severity, examine, follow};
use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use proptest::sample::select;
use ruleset::eval::{Owner, Packet};
use ruleset::listed::{
    Condition, ListedAct, ListedChain, ListedTable, Lister, parse_line, parse_tables, planned,
};
use ruleset::{Backend, Base, ChainKind, Families, Family, Hook, Protocol};

const KINDS: [(&str, ChainKind); 3] =
    [("nat", ChainKind::Nat), ("filter", ChainKind::Filter), ("route", ChainKind::Route)];
const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

const WORDS: &[&str] = &[
    "@nft ",
    "@chain ",
    "@sysctl ",
    "nat ",
    "filter ",
    "route ",
    "output ",
    "prerouting ",
    "input ",
    "forward ",
    "postrouting ",
    "drop",
    "-100",
    "-101",
    "-300",
    "-200",
    "-150",
    "0",
    "100",
    "*nat\n",
    "*filter\n",
    "*mangle\n",
    "*raw\n",
    "COMMIT\n",
    ":OUTPUT DROP [0:0]\n",
    ":A - [0:0]\n",
    "-A OUTPUT ",
    "-A PREROUTING ",
    "-A INPUT ",
    "-A A ",
    "-j A",
    "-g A",
    "-j ACCEPT",
    "-j DROP",
    "-j RETURN",
    "-j REDIRECT --to-ports 9",
    "-j DNAT --to-destination 10.0.0.1:9",
    "-j TPROXY --on-port 9 --tproxy-mark 0x1/0xff",
    "-j CT --notrack",
    "-j CT --zone 7",
    "-j MARK --set-xmark 0x539/0xfff",
    "-j CONNMARK --restore-mark",
    "-j MASQUERADE",
    "-j SNAT --to-source 10.0.0.1",
    "-j MYSTERY",
    "-p tcp ",
    "-p udp ",
    "-m tcp --dport 80 ",
    "-m tcp --dport 15001 ",
    "-d 10.0.0.0/8 ",
    "-s 192.0.2.0/24 ",
    "! ",
    "-i lo ",
    "-o eth0 ",
    "-m mark --mark 0x539/0xfff ",
    "-m owner --uid-owner 0 ",
    "-m conntrack --ctstate NEW ",
    "-m string --string x ",
    "-m limit --limit 5/sec ",
    "-m addrtype --dst-type LOCAL --limit-iface-in ",
    "net/ipv4/ip_forward=1",
    "net/ipv4/ip_local_port_range=1024 65535",
    "PROXY_INIT_OUTPUT",
    "DOCKER",
];

fn generate() -> BoxedStrategy<Vec<u8>> {
    let rule = prop::collection::vec(select(WORDS[43..].to_vec()), 0..3);
    let target = select(WORDS[30..46].to_vec());
    let rules = prop::collection::vec((rule, target), 0..4);
    let chain =
        (select(vec!["nat", "filter", "route"]), select(&HOOKS[..]), -301..=101_i32, any::<bool>(), rules);
    let chains = prop::collection::vec(chain, 0..3).prop_map(|chains| {
        let mut text = String::new();
        for (kind, hook, priority, drops, rules) in chains {
            text += &format!("@nft {kind} {} {priority}{}\n", hook.name(), if drops { " drop" } else { "" });
            for (conditions, target) in rules {
                text += &format!("{}{target}\n", conditions.concat());
            }
        }
        text.into_bytes()
    });
    chains.boxed()
}

/// A pod in ambient mode beside what the input says that others have.
fn observed(input: &str) -> (ObservedNetns, ruleset::Plan) {
    let plan = plan_pod(&NodeOptions::default(), &PodOptions::default(), Backend::Nftables);
    let address = |interface: &str, text: &str| ObservedAddress {
        interface: interface.to_owned(),
        address: text.parse().unwrap(),
        prefix: 24,
    };
    let mut observed = ObservedNetns {
        addresses: vec![address("lo", "127.0.0.1"), address("eth0", "10.0.0.9"), address("eth0", "fd00::9")],
        ..ObservedNetns::default()
    };
    for family in [Family::V4, Family::V6] {
        let own = planned(&plan.layers, family).into_iter();
        observed.tables.extend(own.map(|table| ListedTable { lister: Lister::Nft, age: Some(10), ..table }));
    }
    let (mut nft, mut iptables): (Vec<ListedTable>, String) = (Vec::new(), String::new());
    for line in input.lines() {
        if let Some(rest) = line.strip_prefix("@nft ") {
            nft.extend(table(rest, nft.len()));
        } else if let Some((name, value)) =
            line.strip_prefix("@sysctl ").and_then(|rest| rest.split_once('='))
        {
            observed.sysctls.insert(name.to_owned(), value.to_owned());
        } else if let (Some(table), false) =
            (nft.last_mut(), line.starts_with(['*', ':', '-']) && !iptables.is_empty())
        {
            match line.strip_prefix("@chain ") {
                Some(name) => table.chains.push(ListedChain {
                    name: name.to_owned(),
                    base: None,
                    drops: false,
                    rules: Vec::new(),
                }),
                None => table
                    .chains
                    .iter_mut()
                    .next_back()
                    .into_iter()
                    .for_each(|chain| chain.rules.push(parse_line(line, Family::V4))),
            }
        } else {
            iptables += line;
            iptables.push('\n');
        }
    }
    observed.tables.extend(nft);
    for lister in [Lister::IptablesNft, Lister::IptablesLegacy] {
        observed.tables.extend(parse_tables(&iptables, Family::V4, lister));
    }
    (observed, plan)
}

/// `nat output -100 drop`.
fn table(text: &str, number: usize) -> Option<ListedTable> {
    let mut words = text.split_whitespace();
    let (kind, hook, priority) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == kind)?;
    let hook = HOOKS.into_iter().find(|known| known.name() == hook)?;
    let chain = ListedChain {
        name: hook.name().to_owned(),
        base: Some(Base { kind, hook, priority }),
        drops: words.next() == Some("drop"),
        rules: Vec::new(),
    };
    let age = [Some(5), Some(15), None][number % 3];
    Some(ListedTable {
        chains: vec![chain],
        age,
        ..ListedTable::nft(format!("ip x{number}"), Families::Only(Family::V4))
    })
}

fn packet(to: &str, incoming: bool) -> Packet {
    let to: SocketAddr = to.parse().unwrap();
    let packet = Packet::new(Protocol::Tcp, "10.0.0.9:40000".parse().unwrap(), to);
    match incoming {
        true => Packet { in_interface: "eth0".to_owned(), ..packet },
        false => Packet { out_interface: "eth0".to_owned(), owner: Some(Owner { uid: 0, gid: 0 }), ..packet },
    }
}

/// Whether nothing of others could be read wholly.
fn is_unread(observed: &ObservedNetns) -> bool {
    let tables = observed.tables.iter().filter(|table| !table.is_only_ours());
    let mut chains = tables.flat_map(|table| &table.chains);
    chains.all(|chain| {
        let unread = |rule: &ruleset::listed::ListedRule| {
            rule.conditions.contains(&Condition::Unread) || rule.acts.contains(&ListedAct::Unread)
        };
        !chain.drops && chain.rules.iter().all(unread)
    })
}

fn run(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let (observed, plan) = observed(&text);
    let examined = examine(&observed, &plan);
    let rules = |id: &str| (1..=6).any(|number| id == format!("CF-P{number}"));
    let errors = examined
        .conflicts
        .iter()
        .filter(|found| found.severity == Severity::Error && rules(&found.id.to_string()));
    if is_unread(&observed) {
        assert_eq!(errors.count(), 0, "an error of what could not be read: {:?}", examined.conflicts);
    }
    let ends = [packet("203.0.113.9:80", false), packet("10.0.0.9:80", true)].map(|packet| {
        match follow(&observed, &packet).end {
            LiveEnd::Captured { port } => {
                assert!([15001, 15006, 15053].contains(&port), "captured by port {port}");
                "captured"
            }
            LiveEnd::Bypass { .. } => "bypass",
            LiveEnd::Dropped { .. } => "dropped",
            LiveEnd::Delivered => "delivered",
            LiveEnd::Unknown { .. } => "unknown",
        }
    });
    let found = examined.conflicts.iter().map(|found| of_text(&format!("{} {}", found.id, found.severity)));
    Outcome::of(found.chain(ends.map(of_text)).collect::<Vec<Outcome>>())
}

#[test]
fn fuzz_foreign() {
    Target {
        name: "foreign",
        package: env!("CARGO_PKG_NAME"),
        dictionary: WORDS,
        max_len: 4096,
        memory: 16 << 20,
        generate,
        run,
    }
    .fuzz();
}
