//! Plans as text, for a dry run: comments aside, what `nft -f -` or `iptables-restore --noflush` would load.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use ruleset::iptables::Unsupported;
use ruleset::{ALL_BITS, Backend, Family, Plan, Routing, TableKind, Transaction, iptables, nft};

/// What applying the plan loads.
///
/// # Errors
/// iptables cannot express it.
pub(crate) fn plan(plan: &Plan) -> Result<String, Unsupported> {
    let mut out = String::new();
    plan.routing.iter().for_each(|step| routing(&mut out, "add", step));
    rules(&mut out, plan)?;
    Ok(out)
}

/// What a cleanup removes. iptables-restore cannot say "if it is there", so for iptables this is a description.
pub(crate) fn cleanup(plan: &Plan) -> String {
    let mut out = String::new();
    for (kind, chains) in capture::plan::CHAINS {
        let names: Vec<String> = chains
            .iter()
            .map(|name| iptables::own_chain_name(name))
            .filter(|name| name.starts_with("ISTIO_"))
            .collect();
        let _ = writeln!(
            out,
            "# iptables, ip6tables: in table {kind}, chains {} and jumps to them",
            names.join(", ")
        );
    }
    let tables: Vec<TableKind> = capture::plan::CHAINS.iter().map(|(kind, _)| *kind).collect();
    out.push_str("# nft -f -\n");
    out.push_str(&nft::render(&Transaction::Delete { owner: capture::plan::OWNER, tables: &tables }));
    for step in plan.routing.iter().rev() {
        routing(&mut out, "del", step);
    }
    out
}

fn rules(out: &mut String, plan: &Plan) -> Result<(), Unsupported> {
    match plan.backend {
        Backend::Nftables => {
            out.push_str("# nft -f -\n");
            out.push_str(&nft::render(&Transaction::Replace(&plan.layers)));
        }
        Backend::Iptables => {
            let has = |family: &Family| plan.layers.iter().any(|layer| layer.families().contains(family));
            for family in [Family::V4, Family::V6].into_iter().filter(has) {
                let program = if family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
                let _ = writeln!(out, "# {program} --noflush");
                out.push_str(&iptables::render(&plan.layers, family)?);
            }
        }
    }
    Ok(())
}

fn routing(out: &mut String, verb: &str, step: &Routing) {
    let ip = |family: &Family| if *family == Family::V4 { "ip" } else { "ip -6" };
    // Writing to a String cannot fail.
    let _ = match step {
        Routing::LoopbackAddress(address) => writeln!(out, "# ip address {verb} {address}/128 dev lo"),
        Routing::Rule { family, mark, mask, table, priority } => {
            let mask = if *mask == ALL_BITS { String::new() } else { format!("/{mask:#x}") };
            writeln!(
                out,
                "# {} rule {verb} priority {priority} fwmark {mark}{mask} lookup {table}",
                ip(family)
            )
        }
        Routing::LocalRoute { family, table } => {
            writeln!(out, "# {} route {verb} local default dev lo table {table}", ip(family))
        }
    };
}
