//! iptables-restore text.
//!
//! Written for `iptables-restore --noflush`: own chains are declared, built-in chains are only appended to or inserted into, and
//! there are no policy lines (with them the nft variant takes ten times as long).

pub mod ipset;
mod parse;
mod record;

use std::borrow::Borrow;
use std::fmt::{self, Write};

use crate::rule::{
    ALL_BITS, Action, Base, Chain, Counting, Family, Hook, Match, Ports, Protocol, Rule, Ruleset, Table,
    TableKind,
};
use crate::set::KeyType;

pub use parse::{canonical, parse_rule};
pub use record::{read_record, write_record};

/// Chains whose names in nf_tables and iptables are not the same word.
const SHORTENED: [(&str, &str); 2] =
    [("istio-prerouting", "ISTIO_PRERT"), ("istio-postrouting", "ISTIO_POSTRT")];

/// A part of the rule language that iptables lacks, found while planning.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("iptables cannot express {what} (rule: {why}); nf_tables can")]
pub struct Unsupported {
    /// What it is.
    pub what: &'static str,
    /// The reason of the rule that asked for it.
    pub why: String,
}

/// The whole input of one `iptables-restore` (or `ip6tables-restore`) run; empty when the family has no rules. Each table is one commit,
/// with what all layers have in it.
///
/// # Errors
/// A rule uses what iptables does not have.
pub fn render(layers: &[Ruleset], family: Family) -> Result<String, Unsupported> {
    let mut out = String::with_capacity(4096);
    // Alphabetical like iptables-save, so that the two can be laid side by side.
    for kind in [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw] {
        let layers = layers.iter().filter(|layer| layer.families().contains(&family));
        let tables: Vec<&Table> = layers.filter_map(|layer| layer.table(kind)).collect();
        render_table(&mut out, kind, &tables, family)?;
    }
    Ok(out)
}

/// The chains of ours that the family's table has: those with a rule and those that a rule jumps to.
pub fn own_chains(table: &Table, family: Family) -> impl Iterator<Item = &Chain> {
    table.chains.iter().filter(move |chain| {
        chain.base.is_none() && (rules(chain, family).next().is_some() || is_jumped_to(table, chain, family))
    })
}

/// The rules of a chain that look at packets of the family.
pub fn rules(chain: &Chain, family: Family) -> impl Iterator<Item = &Rule> {
    chain.rules.iter().filter(move |rule| rule.families.contains(family))
}

/// The name that iptables shows for a chain.
pub fn chain_name(chain: &Chain) -> String {
    match chain.base {
        Some(Base { hook, .. }) => hook_name(hook).to_owned(),
        None => own_chain_name(&chain.name),
    }
}

/// `istio-output` → `ISTIO_OUTPUT`; where upstream's names are shorter in iptables, those.
pub fn own_chain_name(name: &str) -> String {
    if let Some((_, short)) = SHORTENED.iter().find(|(long, _)| *long == name) {
        return (*short).to_owned();
    }
    name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }).collect()
}

/// Names of chains as iptables shows them.
#[derive(Debug, Default)]
pub struct Names(Vec<(String, bool)>);

impl Names {
    /// Those of an owner's regular chains in a table: the planned ones, and the others that it may have.
    pub fn of(ruleset: &Ruleset, kind: TableKind) -> Self {
        let planned = ruleset.table(kind).map_or(&[][..], |table| &table.chains);
        let planned = planned.iter().filter(|chain| chain.base.is_none()).map(|chain| (&chain.name, false));
        let known = ruleset.known_chains.iter().filter(|known| known.table == kind);
        let known = known.map(|known| (&known.name, known.beginning));
        Self(planned.chain(known).map(|(name, beginning)| (own_chain_name(name), beginning)).collect())
    }

    /// Whether a chain is among them.
    pub fn contain(&self, chain: &str) -> bool {
        self.0.iter().any(|(name, beginning)| chain == name || *beginning && chain.starts_with(name))
    }

    /// Takes one out.
    pub fn remove(&mut self, chain: &str) {
        self.0.retain(|(name, _)| name != chain);
    }
}

/// One rule without chain and position, as a family has it: matches and target. A set is taken for an ipset; that it is none is found with the table,
/// by [`render_rules`].
pub fn render_rule(rule: &Rule, family: Family) -> String {
    let mut out = String::with_capacity(96);
    let protocol = rule.protocol();
    for m in in_order(&rule.matches, protocol) {
        render_match(&mut out, m, protocol);
    }
    if let Counting::Named(name) = &rule.counting {
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "-m comment --comment {name} ");
    }
    // The last of all, so that it counts nothing that another condition keeps from the target.
    if let Action::Log { limit: Some(limit), .. } = &rule.action {
        let _ = write!(out, "-m limit --limit {}/sec --limit-burst {} ", limit.per_second, limit.burst);
    }
    let _ = write!(out, "-j {}", Target(&rule.action, family));
    out
}

fn render_table(
    out: &mut String,
    kind: TableKind,
    tables: &[&Table],
    family: Family,
) -> Result<(), Unsupported> {
    let mut rules = String::new();
    for (number, table) in tables.iter().enumerate() {
        let leading_after = |chain: &Chain| leading_in(&tables[..number], chain, family);
        let place = |chain: &Chain| Placement { leading_after: leading_after(chain), rest_after: None };
        rules.push_str(&render_rules(table, family, place)?);
    }
    if rules.is_empty() {
        return Ok(());
    }
    let _ = writeln!(out, "*{}", kind.name());
    for chain in tables.iter().flat_map(|table| own_chains(table, family)) {
        let _ = writeln!(out, "-N {}", chain_name(chain));
    }
    out.push_str(&rules);
    out.push_str("COMMIT\n");
    Ok(())
}

/// How many rules at the beginning of a built-in chain are those of earlier layers.
fn leading_in(earlier: &[&Table], chain: &Chain, family: Family) -> usize {
    if chain.base.is_none() {
        return 0;
    }
    let same =
        earlier.iter().filter_map(|table| table.chain(&chain.name)).filter(|chain| chain.base.is_some());
    same.map(|chain| leading(chain, family)).sum()
}

/// How many of a chain's first rules precede those of others in the family, see [`Chain::leading`].
pub fn leading(chain: &Chain, family: Family) -> usize {
    chain.rules.iter().take(chain.leading).filter(|rule| rule.families.contains(family)).count()
}

/// Where rules go in a chain that has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// How many rules stay before those that precede the rules of others ([`Chain::leading`]).
    pub leading_after: usize,
    /// How many stay before the others then; absent: all.
    pub rest_after: Option<usize>,
}

/// The lines of a table that add its rules to chains that exist; empty when the family has none. `place` says where in a chain.
///
/// # Errors
/// A rule uses what iptables does not have.
pub fn render_rules(
    table: &Table,
    family: Family,
    place: impl Fn(&Chain) -> Placement,
) -> Result<String, Unsupported> {
    let mut out = String::new();
    if table.chains.iter().all(|chain| rules(chain, family).next().is_none()) {
        return Ok(out);
    }
    if let Some(map) = table.sets.iter().find(|set| set.is_map()) {
        return Err(Unsupported { what: "a verdict map", why: map.name.to_string() });
    }
    for chain in &table.chains {
        let name = chain_name(chain);
        let Placement { mut leading_after, mut rest_after } = place(chain);
        for (index, rule) in chain.rules.iter().enumerate().filter(|(_, r)| r.families.contains(family)) {
            let text = render_rule(rule, family);
            let position = if index < chain.leading { Some(&mut leading_after) } else { rest_after.as_mut() };
            let _ = match position {
                Some(position) => {
                    *position += 1;
                    writeln!(out, "-I {name} {position} {text}")
                }
                None => writeln!(out, "-A {name} {text}"),
            };
        }
    }
    Ok(out)
}

fn is_jumped_to(table: &Table, chain: &Chain, family: Family) -> bool {
    table.chains.iter().flat_map(|c| rules(c, family)).any(|r| r.action == Action::Jump(chain.name.clone()))
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Forward => "FORWARD",
        Hook::Output => "OUTPUT",
        Hook::Postrouting => "POSTROUTING",
    }
}

/// iptables loads `-m` extensions in the order of the text; this is the order that upstream's rules list: marks before UDP's
/// ports, but after TCP's. A list of ports comes after a single one: once its extension is loaded, `--dport` would be taken for
/// a short form of its `--dports`.
fn order(m: &Match, protocol: Option<Protocol>) -> u8 {
    let late = if protocol == Some(Protocol::Udp) { 10 } else { 0 };
    match m {
        Match::Source { .. } => 0,
        Match::Destination { .. } => 1,
        Match::InInterface { .. } => 2,
        Match::OutInterface { .. } => 3,
        Match::Protocol(_) => 4,
        Match::WholeHeader => 5 + late,
        Match::SourcePort { ports: Ports::AnyOf(_), .. } => 8 + late,
        Match::DestinationPort { ports: Ports::AnyOf(_), .. } => 9 + late,
        Match::SourcePort { .. } | Match::IcmpType { .. } => 6 + late,
        Match::DestinationPort { .. } => 7 + late,
        Match::CtState(_) => 10,
        Match::Reply | Match::OriginalDestination { .. } | Match::OriginalPort { .. } => 12,
        Match::Mark { .. } | Match::CtMark { .. } => 11,
        Match::OwnDestination | Match::OwnSource => 13,
        Match::Uid { .. } | Match::Gid { .. } | Match::LocalSocket => 20,
        Match::SourceIn { .. } | Match::DestinationIn { .. } => 21,
    }
}

/// Matches in the order of the text, those of one place as they were. A rule has a handful, and each instance of the standard library's sorting
/// is some kilobytes of the plugin.
fn in_order<M: Borrow<Match>>(matches: impl IntoIterator<Item = M>, protocol: Option<Protocol>) -> Vec<M> {
    let place = |m: &M| order(m.borrow(), protocol);
    let mut sorted: Vec<M> = Vec::new();
    for m in matches {
        let at = sorted.iter().take_while(|before| place(before) <= place(&m)).count();
        sorted.insert(at, m);
    }
    sorted
}

fn render_match(out: &mut String, m: &Match, protocol: Option<Protocol>) {
    let bang = |not: &bool| if *not { "! " } else { "" };
    // Writing to a String cannot fail.
    let _ = match m {
        Match::InInterface { name, not } => write!(out, "{}-i {name} ", bang(not)),
        Match::OutInterface { name, not } => write!(out, "{}-o {name} ", bang(not)),
        Match::Protocol(protocol) => write!(out, "-p {} ", protocol.name()),
        Match::Source { net, not } => write!(out, "{}-s {net} ", bang(not)),
        Match::Destination { net, not } => write!(out, "{}-d {net} ", bang(not)),
        Match::WholeHeader => protocol.map_or(Ok(()), |protocol| write!(out, "-m {} ", protocol.name())),
        Match::SourcePort { ports, not } => {
            write!(out, "{}", PortMatch { side: "sport", ports, not: *not })
        }
        Match::DestinationPort { ports, not } => {
            write!(out, "{}", PortMatch { side: "dport", ports, not: *not })
        }
        Match::Uid { uid, not } => write!(out, "-m owner {}--uid-owner {uid} ", bang(not)),
        Match::Gid { gid, not } => write!(out, "-m owner {}--gid-owner {gid} ", bang(not)),
        Match::LocalSocket => write!(out, "-m owner --socket-exists "),
        Match::OwnDestination => write!(out, "-m addrtype --dst-type LOCAL --limit-iface-in "),
        Match::OwnSource => write!(out, "-m addrtype --src-type LOCAL "),
        Match::Mark { mark, mask, not } => {
            write!(out, "-m mark {}--mark {} ", bang(not), Masked(*mark, *mask))
        }
        Match::CtMark { mark, mask, not } => {
            write!(out, "-m connmark {}--mark {} ", bang(not), Masked(*mark, *mask))
        }
        Match::CtState(state) => {
            write!(out, "-m conntrack --ctstate {} ", state.name().to_ascii_uppercase())
        }
        Match::Reply => write!(out, "-m conntrack --ctdir REPLY "),
        Match::OriginalDestination { net, not } => {
            // As the program prints it: it takes the same address with its length for another one.
            let whole = net.prefix_len() == net.max_prefix_len();
            let text = if whole { net.addr().to_string() } else { net.to_string() };
            write!(out, "-m conntrack {}--ctorigdst {text} ", bang(not))
        }
        Match::OriginalPort { ports, not } => {
            write!(out, "-m conntrack {}", PortMatch { side: "ctorigdstport", ports, not: *not })
        }
        Match::IcmpType { kind, code } => {
            let six = protocol == Some(Protocol::Icmpv6);
            let _ =
                write!(out, "{} {kind}", if six { "-m icmp6 --icmpv6-type" } else { "-m icmp --icmp-type" });
            code.iter().try_for_each(|code| write!(out, "/{code}")).and_then(|()| write!(out, " "))
        }
        Match::SourceIn { set, keys, not } => {
            write!(out, "-m set {}--match-set {set} {} ", bang(not), parts("src", *keys))
        }
        Match::DestinationIn { set, keys, not } => {
            write!(out, "-m set {}--match-set {set} {} ", bang(not), parts("dst", *keys))
        }
    };
}

/// The same side for each part of a set's keys.
fn parts(side: &str, keys: KeyType) -> String {
    match keys {
        KeyType::Address(_) | KeyType::Prefix(_) | KeyType::Arrival(_) => side.to_owned(),
        KeyType::Endpoint(_) => format!("{side},{side}"),
    }
}

/// A mark, with its mask where that has not all bits.
struct Masked(u32, u32);

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            ALL_BITS => write!(f, "{}", self.0),
            mask => write!(f, "{:#x}/{mask:#x}", self.0),
        }
    }
}

struct PortMatch<'a> {
    side: &'static str,
    ports: &'a Ports,
    not: bool,
}

impl fmt::Display for PortMatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bang = if self.not { "! " } else { "" };
        match self.ports {
            Ports::One(port) => write!(f, "{bang}--{} {port} ", self.side),
            Ports::Range(first, last) => write!(f, "{bang}--{} {first}:{last} ", self.side),
            Ports::AnyOf(ports) => {
                write!(f, "-m multiport {bang}--{}s ", self.side)?;
                for (i, port) in ports.iter().enumerate() {
                    write!(f, "{}{port}", if i == 0 { "" } else { "," })?;
                }
                f.write_char(' ')
            }
        }
    }
}

struct Target<'a>(&'a Action, Family);

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Accept => f.write_str("ACCEPT"),
            Action::Drop => f.write_str("DROP"),
            Action::Reject(with) => write!(f, "REJECT --reject-with {}", with.iptables_name(self.1)),
            Action::Log { group, prefix, .. } => {
                write!(f, "NFLOG --nflog-prefix \"{prefix}\" --nflog-group {group}")
            }
            Action::Return => f.write_str("RETURN"),
            Action::Jump(chain) => f.write_str(&own_chain_name(chain)),
            // For people: rules of a table with a verdict map are refused.
            Action::VerdictMap { map, .. } => write!(f, "the verdicts of {map}"),
            Action::Redirect { port } => write!(f, "REDIRECT --to-ports {port}"),
            Action::Tproxy { port, mark } => {
                write!(f, "TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
            }
            Action::Snat { to } => write!(f, "SNAT --to-source {to}"),
            Action::SetMark(mark) => write!(f, "MARK --set-mark {mark}"),
            Action::SetCtMark { mark, mask } => write!(f, "CONNMARK --set-xmark {mark:#x}/{mask:#x}"),
            Action::SaveMark => f.write_str("CONNMARK --save-mark"),
            Action::RestoreMark => f.write_str("CONNMARK --restore-mark"),
            Action::SetZone(zone) => write!(f, "CT --zone {zone}"),
        }
    }
}
