//! iptables-restore text.
//!
//! Written for `iptables-restore --noflush`: own chains are declared, built-in chains are only appended to or inserted into, and
//! there are no policy lines (with them the nft variant takes ten times as long).

mod parse;

use std::fmt::{self, Write};

use crate::rule::{Action, Base, Chain, CtState, Family, Hook, Match, Ports, Rule, Ruleset, Table};

pub use parse::{canonical, parse_rule};

/// A part of the rule language that iptables lacks, found while planning.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("iptables cannot express {what} (rule: {why}); use the nftables backend")]
pub struct Unsupported {
    /// What it is.
    pub what: &'static str,
    /// The reason of the rule that asked for it.
    pub why: String,
}

/// The whole input of one `iptables-restore` (or `ip6tables-restore`) run; empty when the family has no rules.
///
/// # Errors
/// A rule uses what iptables does not have.
pub fn render(ruleset: &Ruleset, family: Family) -> Result<String, Unsupported> {
    let mut out = String::with_capacity(4096);
    // Alphabetical like iptables-save, so that the two can be laid side by side.
    let mut tables: Vec<&Table> = ruleset.tables.iter().collect();
    tables.sort_by_key(|table| table.kind.name());
    for table in tables {
        render_table(&mut out, table, family)?;
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

/// `istio-output` → `ISTIO_OUTPUT`.
pub fn own_chain_name(name: &str) -> String {
    name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }).collect()
}

/// One rule without chain and position: matches and target.
///
/// # Errors
/// The rule uses what iptables does not have.
pub fn render_rule(rule: &Rule) -> Result<String, Unsupported> {
    let mut out = String::with_capacity(96);
    let mut matches: Vec<&Match> = rule.matches.iter().collect();
    matches.sort_by_key(|m| order(m));
    for m in matches {
        render_match(&mut out, m, rule)?;
    }
    // Writing to a String cannot fail.
    let _ = write!(out, "-j {}", Target(&rule.action));
    Ok(out)
}

fn render_table(out: &mut String, table: &Table, family: Family) -> Result<(), Unsupported> {
    let rules = render_rules(table, family)?;
    if rules.is_empty() {
        return Ok(());
    }
    let _ = writeln!(out, "*{}", table.kind.name());
    for chain in own_chains(table, family) {
        let _ = writeln!(out, "-N {}", chain_name(chain));
    }
    out.push_str(&rules);
    out.push_str("COMMIT\n");
    Ok(())
}

/// The lines of a table that add its rules to chains that exist; empty when the family has none.
///
/// # Errors
/// A rule uses what iptables does not have.
pub fn render_rules(table: &Table, family: Family) -> Result<String, Unsupported> {
    let mut out = String::new();
    if table.chains.iter().all(|chain| rules(chain, family).next().is_none()) {
        return Ok(out);
    }
    if let Some(set) = table.sets.first() {
        return Err(Unsupported { what: "a named set", why: set.name.to_string() });
    }
    for chain in &table.chains {
        let name = chain_name(chain);
        let mut position = 0;
        for (index, rule) in chain.rules.iter().enumerate().filter(|(_, r)| r.families.contains(family)) {
            let text = render_rule(rule)?;
            if index < chain.leading {
                position += 1;
                let _ = writeln!(out, "-I {name} {position} {text}");
            } else {
                let _ = writeln!(out, "-A {name} {text}");
            }
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

/// iptables loads `-m` extensions in the order of the text; this is the order that upstream's rules list. A list of ports comes
/// after a single one: once its extension is loaded, `--dport` would be taken for a short form of its `--dports`.
fn order(m: &Match) -> u8 {
    match m {
        Match::Source { .. } | Match::SourceIn { .. } => 0,
        Match::Destination { .. } | Match::DestinationIn { .. } => 1,
        Match::InInterface { .. } => 2,
        Match::OutInterface { .. } => 3,
        Match::Protocol(_) => 4,
        Match::SourcePort { ports: Ports::One(_), .. } => 5,
        Match::DestinationPort { ports: Ports::One(_), .. } => 6,
        Match::SourcePort { .. } => 7,
        Match::DestinationPort { .. } => 8,
        Match::CtState(_) => 9,
        Match::Mark { .. } | Match::CtMark { .. } => 10,
        Match::Uid { .. } | Match::Gid { .. } => 11,
    }
}

fn render_match(out: &mut String, m: &Match, rule: &Rule) -> Result<(), Unsupported> {
    let bang = |not: &bool| if *not { "! " } else { "" };
    let _ = match m {
        Match::InInterface { name, not } => write!(out, "{}-i {name} ", bang(not)),
        Match::OutInterface { name, not } => write!(out, "{}-o {name} ", bang(not)),
        Match::Protocol(protocol) => write!(out, "-p {} ", protocol.name()),
        Match::Source { net, not } => write!(out, "{}-s {net} ", bang(not)),
        Match::Destination { net, not } => write!(out, "{}-d {net} ", bang(not)),
        Match::SourcePort { ports, not } => write!(out, "{}", PortMatch { side: "sport", ports, not: *not }),
        Match::DestinationPort { ports, not } => {
            write!(out, "{}", PortMatch { side: "dport", ports, not: *not })
        }
        Match::Uid { uid, not } => write!(out, "-m owner {}--uid-owner {uid} ", bang(not)),
        Match::Gid { gid, not } => write!(out, "-m owner {}--gid-owner {gid} ", bang(not)),
        Match::Mark { mark, not } => write!(out, "-m mark {}--mark {mark} ", bang(not)),
        Match::CtMark { mark, not } => write!(out, "-m connmark {}--mark {mark} ", bang(not)),
        Match::CtState(state) => write!(out, "-m conntrack --ctstate {} ", ct_state(*state)),
        Match::SourceIn { .. } | Match::DestinationIn { .. } => {
            return Err(Unsupported { what: "a named set", why: rule.why.to_string() });
        }
    };
    Ok(())
}

fn ct_state(state: CtState) -> &'static str {
    match state {
        CtState::Invalid => "INVALID",
        CtState::RelatedOrEstablished => "RELATED,ESTABLISHED",
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

struct Target<'a>(&'a Action);

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Accept => f.write_str("ACCEPT"),
            Action::Drop => f.write_str("DROP"),
            Action::Return => f.write_str("RETURN"),
            Action::Jump(chain) => f.write_str(&own_chain_name(chain)),
            Action::Redirect { port } => write!(f, "REDIRECT --to-ports {port}"),
            Action::Tproxy { port, mark } => {
                write!(f, "TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
            }
            Action::SetMark(mark) => write!(f, "MARK --set-mark {mark}"),
            Action::SaveMark => f.write_str("CONNMARK --save-mark"),
            Action::RestoreMark => f.write_str("CONNMARK --restore-mark"),
            Action::SetZone(zone) => write!(f, "CT --zone {zone}"),
        }
    }
}
