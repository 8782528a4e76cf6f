//! Layers as text that a later version of this program can read, whatever it would plan then: the record of what was applied.
//!
//! The lines are those of iptables-restore, so that they are read by what reads `iptables-save`. Rules of both families are apart, and a
//! comment before each has its reason.

use std::fmt::Write;

use super::{chain_name, own_chain_name, own_chains, parse::own_name, parse_rule, render_rule};
use crate::rule::{Base, Chain, ChainKind, Families, Family, Hook, Rule, Ruleset, Table, TableKind};

const FAMILIES: [(&str, Family); 2] = [("4", Family::V4), ("6", Family::V6)];
const KINDS: [TableKind; 4] = [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw];
/// The line between two layers, with the end of the one before it: a reason may end with the same word.
const NEXT_LAYER: &str = "\nlayer\n";
const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

/// Writes what iptables gets of the layers.
#[must_use]
pub fn write_record(layers: &[Ruleset]) -> String {
    let mut out = String::with_capacity(8192);
    for (number, layer) in layers.iter().enumerate() {
        if number > 0 {
            // The end of the line before is there.
            out.push_str(NEXT_LAYER.trim_start());
        }
        write_layer(&mut out, layer);
    }
    out
}

fn write_layer(out: &mut String, ruleset: &Ruleset) {
    for (name, family) in FAMILIES.into_iter().filter(|(_, family)| ruleset.families().contains(family)) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "family {name}");
        for table in &ruleset.tables {
            let _ = writeln!(out, "*{}", table.kind.name());
            for chain in own_chains(table, family) {
                let _ = writeln!(out, "-N {}", chain_name(chain));
            }
            for chain in &table.chains {
                for (index, rule) in chain.rules.iter().enumerate() {
                    if rule.families.contains(family) {
                        let why: String =
                            rule.why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                        let how = if index < chain.leading { "-I" } else { "-A" };
                        let _ = writeln!(
                            out,
                            "# {why}\n{how} {} {}",
                            chain_name(chain),
                            render_rule(rule, family)
                        );
                    }
                }
            }
        }
    }
}

/// Reads such a text. `owners` say whose layers they are, in their order: they have the names and the known chains. Absent: not such a
/// text, one of other layers, or one with rules that this version does not know.
#[must_use]
pub fn read_record(text: &str, owners: &[Ruleset]) -> Option<Vec<Ruleset>> {
    let texts: Vec<&str> = text.split(NEXT_LAYER).collect();
    let same = texts.len() == owners.len();
    let layers = texts.into_iter().zip(owners).map(|(text, owner)| read_layer(text, owner));
    layers.collect::<Option<Vec<_>>>().filter(|_| same)
}

fn read_layer(text: &str, owner: &Ruleset) -> Option<Ruleset> {
    let mut ruleset = Ruleset { ipv6: false, tables: Vec::new(), ..owner.clone() };
    let (mut family, mut kind, mut why) = (None, None, String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("family ") {
            family = FAMILIES.iter().find(|(known, _)| *known == name).map(|(_, family)| *family);
            ruleset.ipv6 |= family? == Family::V6;
        } else if let Some(name) = line.strip_prefix('*') {
            kind = KINDS.into_iter().find(|kind| kind.name() == name);
            table_of(&mut ruleset, kind?);
        } else if let Some(text) = line.strip_prefix("# ") {
            text.clone_into(&mut why);
        } else if let Some(name) = line.strip_prefix("-N ") {
            chain_of(table_of(&mut ruleset, kind?), name)?;
        } else {
            let (how, rest) = line.split_once(' ')?;
            let (chain, rule) = rest.split_once(' ')?;
            let rule = Rule {
                families: Families::Only(family?),
                why: std::mem::take(&mut why).into(),
                ..parse_rule(rule)?
            };
            let chain = chain_of(table_of(&mut ruleset, kind?), chain)?;
            match how {
                "-A" => chain.rules.push(rule),
                "-I" => {
                    chain.rules.insert(chain.leading, rule);
                    chain.leading += 1;
                }
                _ => return None,
            }
        }
    }
    family.map(|_| ruleset)
}

fn table_of(ruleset: &mut Ruleset, kind: TableKind) -> &mut Table {
    let at = ruleset.tables.iter().position(|table| table.kind == kind).unwrap_or_else(|| {
        ruleset.tables.push(Table { kind, sets: Vec::new(), chains: Vec::new() });
        ruleset.tables.len() - 1
    });
    &mut ruleset.tables[at]
}

fn chain_of<'t>(table: &'t mut Table, name: &str) -> Option<&'t mut Chain> {
    let hook = HOOKS.into_iter().find(|hook| own_chain_name(hook.name()) == name);
    let nft_name = match hook {
        Some(hook) => hook.name().to_owned(),
        None => own_name(name)?,
    };
    let at = table.chains.iter().position(|chain| chain.name == nft_name).unwrap_or_else(|| {
        let kind = if table.kind == TableKind::Nat { ChainKind::Nat } else { ChainKind::Filter };
        let base = hook.map(|hook| Base { kind, hook, priority: table.kind.priority(hook) });
        table.chains.push(Chain { name: nft_name.into(), base, rules: Vec::new(), leading: 0 });
        table.chains.len() - 1
    });
    table.chains.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Action;

    /// A reason may be any text, also one that ends as the line between layers.
    #[test]
    fn layers_are_read_as_they_were_written() {
        let layer = |owner: &'static str, why: &'static str| {
            let rules = vec![Rule::new(vec![], Action::Drop, why)];
            let base = Base { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
            let chain = Chain { name: "output".into(), base: Some(base), rules, leading: 0 };
            let table = Table { kind: TableKind::Filter, sets: Vec::new(), chains: vec![chain] };
            Ruleset { owner: owner.into(), known_chains: Vec::new().into(), ipv6: false, tables: vec![table] }
        };
        let layers = [layer("one", "of another layer"), layer("two", "layer"), layer("three", "last")];
        for number in 1..=layers.len() {
            let layers = &layers[..number];
            let read = read_record(&write_record(layers), layers).expect("it is read");
            let whys = |layers: &[Ruleset]| -> Vec<String> {
                layers.iter().map(|layer| layer.tables[0].chains[0].rules[0].why.to_string()).collect()
            };
            assert_eq!(whys(&read), whys(layers));
            assert_eq!(read_record(&write_record(layers), &layers[1..]), None, "of other layers");
        }
    }
}
