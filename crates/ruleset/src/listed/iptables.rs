//! What `iptables-save` prints, as far as it can be read.

mod words;

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Condition, Field, ListedAct, ListedChain, ListedRule, ListedTable, Lister, OWN_ADDRESS, names_from,
    number_of, number_of_name, state,
};
use words::Words;

use crate::rule::{Base, ChainKind, Families, Family, Hook, TableKind};

const KINDS: [TableKind; 4] = [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw];
const HOOKS: [(&str, Hook); 5] = [
    ("PREROUTING", Hook::Prerouting),
    ("INPUT", Hook::Input),
    ("FORWARD", Hook::Forward),
    ("OUTPUT", Hook::Output),
    ("POSTROUTING", Hook::Postrouting),
];
/// Targets that do nothing to a packet's way.
const HARMLESS: [&str; 16] = [
    "LOG",
    "NFLOG",
    "ULOG",
    "TRACE",
    "SET",
    "CONNSECMARK",
    "SECMARK",
    "CLASSIFY",
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "TCPMSS",
    "AUDIT",
    "CHECKSUM",
    "TEE",
];

/// The tables of a family in the output of `iptables-save`, without those of other kinds than [`TableKind`] has. Names of the legacy
/// variant's tables say so.
#[must_use]
pub fn parse_tables(output: &str, family: Family, lister: Lister) -> Vec<ListedTable> {
    let mut tables: Vec<ListedTable> = Vec::new();
    let mut kind = None;
    for line in output.lines() {
        if let Some(name) = line.strip_prefix('*') {
            kind = KINDS.into_iter().find(|kind| kind.name() == name.trim());
            tables.extend(kind.map(|kind| empty(kind, family, lister)));
        } else if let (Some(kind), Some(table)) = (kind, tables.last_mut()) {
            parse_table_line(table, kind, line, family);
        }
    }
    tables
}

/// A table of iptables without chains.
#[must_use]
pub fn empty(kind: TableKind, family: Family, lister: Lister) -> ListedTable {
    let prefix = if family == Family::V4 { "ip" } else { "ip6" };
    let label = if lister == Lister::IptablesLegacy { " (legacy)" } else { "" };
    let name = format!("{prefix} {}{label}", kind.name());
    ListedTable { lister, ..ListedTable::nft(name, Families::Only(family)) }
}

fn parse_table_line(table: &mut ListedTable, kind: TableKind, line: &str, family: Family) {
    if let Some((name, rest)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) {
        let chain = chain_of(table, kind, name);
        chain.drops = rest.starts_with("DROP");
    } else if let Some((name, text)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) {
        let rule = parse_line(text, family);
        chain_of(table, kind, name).rules.push(rule);
    }
}

/// The chain of a name, made if it is not there.
pub fn chain_of<'t>(table: &'t mut ListedTable, kind: TableKind, name: &str) -> &'t mut ListedChain {
    let at = table.chains.iter().position(|chain| chain.name == name).unwrap_or_else(|| {
        let hook = HOOKS.iter().find(|(known, _)| *known == name).map(|(_, hook)| *hook);
        let of = |hook| match (kind, hook) {
            (TableKind::Nat, _) => ChainKind::Nat,
            // What changes the mark here changes the route (iptable_mangle.c).
            (TableKind::Mangle, Hook::Output) => ChainKind::Route,
            _ => ChainKind::Filter,
        };
        let base = hook.map(|hook| Base { kind: of(hook), hook, priority: kind.priority(hook) });
        table.chains.push(ListedChain { name: name.to_owned(), base, drops: false, rules: Vec::new() });
        table.chains.len() - 1
    });
    &mut table.chains[at]
}

/// A rule without `-A CHAIN`.
#[must_use]
pub fn parse_line(text: &str, family: Family) -> ListedRule {
    let mut words = Words(text);
    let mut rule = ListedRule { text: Cow::Owned(text.to_owned()), ..ListedRule::default() };
    let mut extension = String::new();
    let mut not = false;
    while let Some(word) = words.next() {
        match &*word {
            "!" => {
                not = true;
                continue;
            }
            "-m" => {
                extension = words.next().unwrap_or_default();
                // Some extensions ask for something without an option.
                let quiet = [
                    "tcp",
                    "udp",
                    "sctp",
                    "comment",
                    "multiport",
                    "owner",
                    "mark",
                    "connmark",
                    "conntrack",
                    "state",
                    "addrtype",
                ];
                if !quiet.contains(&&*extension) {
                    rule.conditions.push(Condition::Unread);
                }
            }
            "-j" | "-g" => {
                let target = words.next().unwrap_or_default();
                rule.acts = acts(&target, word == "-g", &mut words);
                return rule;
            }
            option => {
                let known = condition(&extension, option, not, family, &mut words);
                match known {
                    Some(Some(condition)) => rule.conditions.push(condition),
                    Some(None) => {}
                    None => {
                        rule.conditions.push(Condition::Unread);
                        words.skip_values();
                    }
                }
            }
        }
        not = false;
    }
    rule
}

/// `None`: unknown. `Some(None)`: known, and nothing to ask for.
fn condition(
    extension: &str,
    option: &str,
    not: bool,
    family: Family,
    words: &mut Words<'_>,
) -> Option<Option<Condition>> {
    let asks = |field, mask, ranges| Some(Some(Condition::In { field, mask, ranges, not }));
    let all = u128::MAX;
    match (extension, option) {
        ("comment", "--comment") => {
            words.next();
            Some(None)
        }
        (_, "-i") => asks(Field::InInterface, all, vec![interface(&words.next()?)]),
        (_, "-o") => asks(Field::OutInterface, all, vec![interface(&words.next()?)]),
        (_, "-s") => asks(Field::Source(family), all, vec![net(&words.next()?)?]),
        (_, "-d") => asks(Field::Destination(family), all, vec![net(&words.next()?)?]),
        (_, "-p") => {
            let number = protocol(&words.next()?)?;
            if number == 0 && !not { Some(None) } else { asks(Field::Protocol, all, vec![(number, number)]) }
        }
        ("multiport", "--dports") => asks(Field::DestinationPort, all, ports(&words.next()?)?),
        ("multiport", "--sports") => asks(Field::SourcePort, all, ports(&words.next()?)?),
        // Of the protocol, whose name iptables prints before it; ours stand after whichever extension.
        (_, "--dport") => asks(Field::DestinationPort, all, ports(&words.next()?)?),
        (_, "--sport") => asks(Field::SourcePort, all, ports(&words.next()?)?),
        ("owner", "--uid-owner") => asks(Field::Uid, all, vec![range(&words.next()?, '-')?]),
        ("owner", "--gid-owner") => asks(Field::Gid, all, vec![range(&words.next()?, '-')?]),
        ("owner", "--socket-exists") => asks(Field::Socket, all, vec![(1, 1)]),
        ("addrtype", "--dst-type") => {
            let local = words.next()? == "LOCAL" && words.take_if("--limit-iface-in");
            local.then(|| asks(Field::DestinationType, all, vec![(OWN_ADDRESS, OWN_ADDRESS)]))?
        }
        ("mark", "--mark") => {
            let (value, mask) = masked(&words.next()?)?;
            asks(Field::Mark, mask.into(), vec![(value.into(), value.into())])
        }
        ("connmark", "--mark") => {
            let (value, mask) = masked(&words.next()?)?;
            asks(Field::CtMark, mask.into(), vec![(value.into(), value.into())])
        }
        ("conntrack", "--ctorigdst") => {
            asks(Field::OriginalDestination(family), all, vec![net(&words.next()?)?])
        }
        ("conntrack", "--ctorigdstport") => asks(Field::OriginalPort, all, ports(&words.next()?)?),
        ("conntrack", "--ctdir") => {
            let reply = u128::from(words.next()? == "REPLY");
            asks(Field::Reply, all, vec![(reply, reply)])
        }
        ("conntrack", "--ctstate") | ("state", "--state") => {
            let bits = states(&words.next()?)?;
            asks(Field::CtState, all, vec![(bits, bits)])
        }
        _ => None,
    }
}

fn acts(target: &str, goto: bool, words: &mut Words<'_>) -> Vec<ListedAct> {
    let chain = target.to_owned();
    match target {
        _ if goto => vec![ListedAct::Goto(chain)],
        "ACCEPT" => vec![ListedAct::Accept],
        "DROP" | "REJECT" => vec![ListedAct::Drop],
        "RETURN" => vec![ListedAct::Return],
        "NOTRACK" => vec![ListedAct::Notrack],
        "CT" => match words.next().as_deref() {
            Some("--notrack") => vec![ListedAct::Notrack],
            Some("--zone") => {
                words.next().and_then(|zone| zone.parse().ok()).map(ListedAct::SetZone).into_iter().collect()
            }
            _ => Vec::new(),
        },
        "REDIRECT" => {
            let port = words.value_of("--to-ports");
            vec![ListedAct::Redirect { port: port.and_then(|port| first_port(&port)) }]
        }
        "DNAT" => {
            let to = words.value_of("--to-destination").unwrap_or_default();
            let (to, port) = translated(&to);
            vec![ListedAct::Dnat { to, port }]
        }
        "SNAT" => {
            let to = words.value_of("--to-source").unwrap_or_default();
            vec![ListedAct::Snat { to: translated(&to).0 }]
        }
        "MASQUERADE" => vec![ListedAct::Masquerade],
        "TPROXY" => tproxy(words),
        "MARK" => match (words.next().as_deref(), words.next().and_then(|value| masked(&value))) {
            (Some("--set-xmark" | "--set-mark"), Some((xor, mask))) => {
                vec![ListedAct::SetMark { keep: !mask, xor }]
            }
            _ => vec![ListedAct::Unread],
        },
        "CONNMARK" => connmark(words),
        target if HARMLESS.contains(&target) => Vec::new(),
        // A chain, or a target that is not known: the table tells.
        _ => vec![ListedAct::Jump(chain)],
    }
}

fn tproxy(words: &mut Words<'_>) -> Vec<ListedAct> {
    let (mut port, mut mark) = (None, None);
    while let Some(word) = words.next() {
        match &*word {
            "--on-port" => port = words.next().and_then(|port| port.parse().ok()),
            "--tproxy-mark" => mark = words.next().and_then(|value| masked(&value)),
            _ => {
                words.next();
            }
        }
    }
    let mark = mark.map(|(xor, mask)| ListedAct::SetMark { keep: !mask, xor });
    [Some(ListedAct::Tproxy { port }), mark, Some(ListedAct::Accept)].into_iter().flatten().collect()
}

fn connmark(words: &mut Words<'_>) -> Vec<ListedAct> {
    let act = match words.next().as_deref() {
        Some("--set-xmark" | "--set-mark") => {
            let mark = words.next().and_then(|value| masked(&value));
            mark.map_or(ListedAct::Unread, |(xor, mask)| ListedAct::SetCtMark { keep: !mask, xor })
        }
        Some("--save-mark") => ListedAct::SaveMark,
        Some("--restore-mark") => ListedAct::RestoreMark,
        _ => ListedAct::Unread,
    };
    let mut whole = true;
    while let Some(word) = words.next() {
        if matches!(&*word, "--nfmask" | "--ctmask" | "--mask") {
            whole &= words.next().and_then(|mask| number(&mask)) == Some(u32::MAX);
        }
    }
    vec![if whole { act } else { ListedAct::Unread }]
}

/// `10.0.0.1`, `10.0.0.1:80`, `:80`, `[fd00::1]:80`, and the first of a range.
fn translated(text: &str) -> (Option<IpAddr>, Option<u16>) {
    let (address, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(address, port)| (address, Some(port))),
    };
    let to = address.split('-').next().and_then(|address| address.parse::<IpAddr>().ok());
    (to, port.and_then(first_port))
}

fn first_port(text: &str) -> Option<u16> {
    text.split(['-', '/']).next()?.parse().ok()
}

fn interface(name: &str) -> (u128, u128) {
    match name.strip_suffix('+') {
        Some(prefix) => names_from(prefix.as_bytes()),
        None => (number_of_name(name), number_of_name(name)),
    }
}

fn net(text: &str) -> Option<(u128, u128)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((number_of(address), number_of(address)));
    }
    let net: IpNet = text.parse().ok()?;
    Some((number_of(net.network()), number_of(net.broadcast())))
}

fn protocol(name: &str) -> Option<u128> {
    let known =
        [("tcp", 6), ("udp", 17), ("icmp", 1), ("ipv6-icmp", 58), ("icmpv6", 58), ("sctp", 132), ("all", 0)];
    let of_name = known.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    of_name.or_else(|| name.parse::<u8>().ok().map(u128::from))
}

fn ports(text: &str) -> Option<Vec<(u128, u128)>> {
    text.split(',').map(|part| range(part, ':')).collect()
}

fn range(text: &str, between: char) -> Option<(u128, u128)> {
    let (low, high) = text.split_once(between).unwrap_or((text, text));
    let number = |text: &str| text.parse::<u32>().ok().map(u128::from);
    Some((number(low)?, number(high)?))
}

/// `0x1`, `0x1/0xff`.
fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn states(text: &str) -> Option<u128> {
    text.split(',').try_fold(0, |bits, name| {
        let bit = match name {
            "INVALID" => state::INVALID,
            "ESTABLISHED" => state::ESTABLISHED,
            "RELATED" => state::RELATED,
            "NEW" => state::NEW,
            "UNTRACKED" => state::UNTRACKED,
            _ => return None,
        };
        Some(bits | bit)
    })
}
