//! nft text: what `nft -f -` would load to get the same rules that the kernel crate loads over netlink.

use std::fmt::{self, Write};

use ipnet::IpNet;

use crate::plan::Transaction;
use crate::rule::{
    ALL_BITS, Action, Base, Chain, Counting, Families, Family, Limit, Match, Ports, Protocol, RejectWith,
    Rule, Ruleset, Table,
};
use crate::set::{Element, Key, KeyType, MapVerdict, Set, Side};

/// The longest comment of a rule in bytes: 128 with its end, `NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl.
pub const COMMENT_MAX: usize = 127;

/// The id that stands for "no user" in system calls (`setreuid(2)`), so that nobody has it.
pub const NOBODYS_ID: u32 = u32::MAX;

/// The commands of a transaction, one a line. Of chains with one hook and priority the kernel runs the one first that was attached last,
/// so the last layer comes first.
pub fn render(transaction: &Transaction<'_>) -> String {
    let mut out = String::with_capacity(8192);
    // Writing to a String cannot fail.
    let _ = match transaction {
        Transaction::Add(layers) => {
            layers.iter().rev().try_for_each(|layer| write_tables(&mut out, layer, false))
        }
        Transaction::Replace(layers) => {
            layers.iter().rev().try_for_each(|layer| write_tables(&mut out, layer, true))
        }
        Transaction::Delete { owner, tables } => tables.iter().try_for_each(|kind| {
            // "add" first, because a delete of what is not there fails the whole transaction.
            writeln!(out, "add table inet {owner}-{kind}\ndelete table inet {owner}-{kind}")
        }),
    };
    out
}

/// The chains that nf_tables gets: base chains and own chains with a rule or a jump to them; of a table with a verdict map all, because its
/// elements may lead to any.
pub fn chains(table: &Table) -> impl Iterator<Item = &Chain> {
    let maps = table.sets.iter().any(Set::is_map);
    let rules = || table.chains.iter().flat_map(|chain| &chain.rules);
    table.chains.iter().filter(move |chain| {
        maps || !chain.rules.is_empty() || rules().any(|rule| table.targets(rule).contains(&&chain.name))
    })
}

/// One rule without its chain.
pub fn render_rule(rule: &Rule) -> String {
    RuleText(rule).to_string()
}

/// What a rule matches and does, without its chain and its comment.
pub fn render_statements(rule: &Rule) -> String {
    Statements(rule).to_string()
}

/// The rule's reason as far as a comment holds it, cut at a character.
pub fn comment(rule: &Rule) -> &str {
    let mut end = rule.why.len().min(COMMENT_MAX);
    while !rule.why.is_char_boundary(end) {
        end -= 1;
    }
    &rule.why[..end]
}

fn write_tables(out: &mut String, ruleset: &Ruleset, replace: bool) -> fmt::Result {
    for table in &ruleset.tables {
        let name = ruleset.nft_table(table.kind);
        writeln!(out, "add table inet {name}")?;
        // Members of a set that are kept by somebody else must survive.
        let keep = table.sets.iter().any(Set::is_kept);
        if replace && !keep {
            writeln!(out, "delete table inet {name}\nadd table inet {name}")?;
        } else if replace {
            writeln!(out, "flush table inet {name}")?;
            // Flushing leaves sets as they are, and no set can be deleted that was not made.
            for set in table.sets.iter().filter(|set| !set.is_kept()) {
                write_set(out, &name, set)?;
                writeln!(out, "delete {} inet {name} {}", set_or_map(set), set.name)?;
            }
        }
        for set in &table.sets {
            write_set(out, &name, set)?;
        }
        for counter in table.counters() {
            writeln!(out, "add counter inet {name} {counter}")?;
        }
        for chain in chains(table) {
            match chain.base {
                Some(Base { kind, hook, priority }) => writeln!(
                    out,
                    "add chain inet {name} {} {{ type {} hook {} priority {priority} ; }}",
                    chain.name,
                    kind.name(),
                    hook.name(),
                )?,
                None => writeln!(out, "add chain inet {name} {}", chain.name)?,
            }
        }
        // The elements of a verdict map lead to chains.
        for set in &table.sets {
            write_elements(out, &name, set)?;
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                writeln!(out, "add rule inet {name} {} {}", chain.name, RuleText(rule))?;
            }
        }
    }
    Ok(())
}

fn set_or_map(set: &Set) -> &'static str {
    if set.is_map() { "map" } else { "set" }
}

fn write_set(out: &mut String, table: &str, set: &Set) -> fmt::Result {
    let what = set_or_map(set);
    let address = match set.keys {
        KeyType::Arrival(_) => "ifname",
        _ if set.family() == Family::V4 => "ipv4_addr",
        _ => "ipv6_addr",
    };
    write!(out, "add {what} inet {table} {} {{ type {address}", set.name)?;
    if let KeyType::Endpoint(_) = set.keys {
        out.write_str(" . inet_proto . inet_service")?;
    }
    if set.is_map() {
        out.write_str(" : verdict")?;
    }
    out.write_str(" ;")?;
    let constant = (!set.is_kept()).then_some("constant");
    let interval = matches!(set.keys, KeyType::Prefix(_)).then_some("interval");
    let flags: Vec<&str> = constant.into_iter().chain(interval).collect();
    if !flags.is_empty() {
        write!(out, " flags {} ;", flags.join(","))?;
    }
    if !set.comment.is_empty() {
        write!(out, " comment \"{}\" ;", set.comment)?;
    }
    out.write_str(" }\n")
}

fn write_elements(out: &mut String, table: &str, set: &Set) -> fmt::Result {
    let elements: Vec<String> = set.planned_elements().iter().map(render_element).collect();
    if elements.is_empty() {
        return Ok(());
    }
    writeln!(out, "add element inet {table} {} {{ {} }}", set.name, elements.join(", "))
}

/// An element of a set as nft has it.
pub fn render_element(element: &Element) -> String {
    let mut text = render_key(&element.key);
    if !element.comment.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, " comment \"{}\"", plain(&element.comment));
    }
    match &element.verdict {
        None => {}
        Some(MapVerdict::Accept) => text.push_str(" : accept"),
        Some(MapVerdict::Drop) => text.push_str(" : drop"),
        Some(MapVerdict::Jump(chain)) => drop(write!(text, " : jump {chain}")),
        Some(MapVerdict::Goto(chain)) => drop(write!(text, " : goto {chain}")),
    }
    text
}

fn render_key(key: &Key) -> String {
    match key {
        Key::Address(address) => address.to_string(),
        Key::Prefix(net) => net.to_string(),
        Key::Endpoint(endpoint) => {
            format!("{} . {} . {}", endpoint.address, endpoint.protocol.name(), endpoint.port)
        }
        Key::Arrival(key) => format!("\"{}\"", key.name),
    }
}

struct RuleText<'a>(&'a Rule);
struct Statements<'a>(&'a Rule);

impl fmt::Display for Statements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        if let Families::Only(family) = rule.families
            && !rule.names_family()
        {
            write!(f, "meta nfproto {} ", if family == Family::V4 { "ipv4" } else { "ipv6" })?;
        }
        for m in rule.matches.iter().filter(|m| **m != Match::WholeHeader) {
            write_match(f, m, rule.protocol())?;
            f.write_char(' ')?;
        }
        write_action(f, rule)
    }
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        Statements(rule).fmt(f)?;
        if rule.why.is_empty() {
            return Ok(());
        }
        f.write_str(" comment \"")?;
        write!(f, "{}\"", plain(comment(rule)))
    }
}

/// A text between quotes. nft knows no escapes in strings: a quote would end it, and a line's end the command.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c == '"' || c.is_control() { '\'' } else { c }).collect()
}

fn write_match(f: &mut fmt::Formatter<'_>, m: &Match, protocol: Option<Protocol>) -> fmt::Result {
    let ne = |not: &bool| if *not { "!= " } else { "" };
    match m {
        Match::InInterface { name, not } => write!(f, "iifname {}\"{name}\"", ne(not)),
        Match::OutInterface { name, not } => write!(f, "oifname {}\"{name}\"", ne(not)),
        Match::Protocol(protocol) => write!(f, "meta l4proto {}", protocol.name()),
        Match::Source { net, not } => write!(f, "{} saddr {}{net}", ip(net), ne(not)),
        Match::Destination { net, not } => write!(f, "{} daddr {}{net}", ip(net), ne(not)),
        Match::OwnDestination => f.write_str("fib daddr . iif type local"),
        Match::OwnSource => f.write_str("meta iif 0 fib saddr type local"),
        Match::SourceIn { set, keys, not } => {
            write!(f, "{} {}@{set}", looked_up(*keys, Side::Source), ne(not))
        }
        Match::DestinationIn { set, keys, not } => {
            write!(f, "{} {}@{set}", looked_up(*keys, Side::Destination), ne(not))
        }
        Match::SourcePort { ports, not } => {
            write!(f, "{} sport {}{}", transport(protocol), ne(not), PortsText(ports))
        }
        Match::DestinationPort { ports, not } => {
            write!(f, "{} dport {}{}", transport(protocol), ne(not), PortsText(ports))
        }
        Match::Uid { uid, not } => write!(f, "meta skuid {}{uid}", ne(not)),
        Match::Gid { gid, not } => write!(f, "meta skgid {}{gid}", ne(not)),
        Match::WholeHeader => Ok(()),
        // No user has this id; without a socket there is none to compare, and the rule ends (`NFT_BREAK` in nft_meta.c).
        Match::LocalSocket => write!(f, "meta skuid != {NOBODYS_ID}"),
        Match::Mark { mark, mask, not } => write_mark(f, "meta mark", *mark, *mask, *not),
        Match::CtMark { mark, mask, not } => write_mark(f, "ct mark", *mark, *mask, *not),
        Match::CtState(state) => write!(f, "ct state {}", state.name()),
        Match::Reply => f.write_str("ct direction reply"),
        Match::OriginalDestination { net, not } => {
            write!(f, "ct original {} daddr {}{net}", ip(net), ne(not))
        }
        Match::OriginalPort { ports, not } => {
            write!(f, "ct original proto-dst {}{}", ne(not), PortsText(ports))
        }
        Match::IcmpType { kind, code } => {
            let icmp = if protocol == Some(Protocol::Icmpv6) { "icmpv6" } else { "icmp" };
            write!(f, "{icmp} type {kind}")?;
            code.iter().try_for_each(|code| write!(f, " {icmp} code {code}"))
        }
    }
}

fn write_mark(f: &mut fmt::Formatter<'_>, what: &str, mark: u32, mask: u32, not: bool) -> fmt::Result {
    match (mask, not) {
        (ALL_BITS, false) => write!(f, "{what} {mark}"),
        (ALL_BITS, true) => write!(f, "{what} != {mark}"),
        (mask, not) => write!(f, "{what} & {mask:#x} {} {mark:#x}", if not { "!=" } else { "==" }),
    }
}

fn write_action(f: &mut fmt::Formatter<'_>, rule: &Rule) -> fmt::Result {
    if let Action::Tproxy { port, mark } = &rule.action {
        let ip = if rule.families == Families::Only(Family::V6) { "ip6" } else { "ip" };
        write!(f, "tproxy {ip} to :{port} meta mark set {mark} ")?;
    }
    if let Action::Log { limit: Some(Limit { per_second, burst }), .. } = &rule.action {
        write!(f, "limit rate {per_second}/second burst {burst} packets ")?;
    }
    match &rule.counting {
        Counting::Rule => f.write_str("counter ")?,
        Counting::Off => {}
        Counting::Named(name) => write!(f, "counter name {name} ")?,
    }
    match &rule.action {
        Action::Accept | Action::Tproxy { .. } => f.write_str("accept"),
        Action::Drop => f.write_str("drop"),
        Action::Reject(RejectWith::TcpReset) => f.write_str("reject with tcp reset"),
        Action::Reject(RejectWith::PortUnreachable) => f.write_str("reject with icmpx type port-unreachable"),
        Action::Reject(RejectWith::AdminProhibited) => f.write_str("reject with icmpx type admin-prohibited"),
        Action::Log { group, prefix, .. } => write!(f, "log prefix \"{prefix}\" group {group}"),
        Action::Return => f.write_str("return"),
        Action::Jump(chain) => write!(f, "jump {chain}"),
        Action::VerdictMap { map, keys, side } => write!(f, "{} vmap @{map}", looked_up(*keys, *side)),
        Action::Redirect { port } => write!(f, "redirect to :{port}"),
        Action::Snat { to } => write!(f, "snat {} to {to}", if to.is_ipv4() { "ip" } else { "ip6" }),
        Action::SetMark(mark) => write!(f, "meta mark set {mark}"),
        Action::SetCtMark { mark, mask: ALL_BITS } => write!(f, "ct mark set {mark}"),
        Action::SetCtMark { mark, mask } => write!(f, "ct mark set ct mark & {:#x} | {mark:#x}", !mask),
        Action::SaveMark => f.write_str("ct mark set meta mark"),
        Action::RestoreMark => f.write_str("meta mark set ct mark"),
        Action::SetZone(zone) => write!(f, "ct zone set {zone}"),
    }
}

fn transport(protocol: Option<Protocol>) -> &'static str {
    // "th" is nft's name for whichever transport header there is.
    protocol.map_or("th", Protocol::name)
}

/// The parts of a packet that are looked up in a set.
fn looked_up(keys: KeyType, side: Side) -> String {
    let ip = ip_of(keys.family());
    let (address, port) = match side {
        Side::Source => ("saddr", "sport"),
        Side::Destination => ("daddr", "dport"),
    };
    match keys {
        KeyType::Address(_) | KeyType::Prefix(_) => format!("{ip} {address}"),
        KeyType::Endpoint(_) => format!("{ip} {address} . meta l4proto . th {port}"),
        KeyType::Arrival(family) => {
            let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
            format!("meta nfproto {family} iifname")
        }
    }
}

fn ip(net: &IpNet) -> &'static str {
    ip_of(Family::of(net))
}

fn ip_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

struct PortsText<'a>(&'a Ports);

impl fmt::Display for PortsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ports::One(port) => write!(f, "{port}"),
            Ports::Range(first, last) => write!(f, "{first}-{last}"),
            Ports::AnyOf(ports) => {
                let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
                write!(f, "{{ {} }}", texts.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
