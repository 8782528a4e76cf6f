//! The tables that others have in the namespace, within bounds: whoever plants ten thousand rules must not hold a look at ours up.

use std::collections::HashMap;
use std::ops::ControlFlow;

use ruleset::iptables::Names;
use ruleset::listed::{ListedAct, ListedChain, ListedRule, ListedTable};
use ruleset::{ChainKind, Hook, Ruleset, TableKind};

use super::list::{self, HEADER};
use super::read::{self, SetRanges};
use super::uapi::{chain, element, expr, family, header, message, rule, set, table};
use crate::netlink::wire::{Attribute, Message, MessageWriter, Messages};
use crate::netlink::{Error, NetlinkSocket, flags};
use crate::order::{AttachPoint, Neighbour};
use crate::shadow::Listing;

/// Bytes of answers that are read: of tables and chains each, of the rules and of the sets of all tables together. A rule has some hundred.
const MAX_LIST: usize = 256 << 10;
const MAX_RULES: usize = 1 << 20;
const MAX_SETS: usize = 1 << 20;
/// Tables of others that are read.
const MAX_TABLES: usize = 64;
/// The tables of iptables-nft, which its own programs print.
const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What is read of a table before its rules.
struct Found {
    family: u8,
    name: String,
    chains: Vec<ListedChain>,
}

/// Everything that is not of iptables and not the owners'.
pub(super) fn list(owners: &[Ruleset]) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    let socket = &mut NetlinkSocket::netfilter()?;
    let mut found = tables(socket, owners, &mut listing)?;
    if found.is_empty() {
        return Ok(listing);
    }
    chains(socket, &mut found, &mut listing)?;
    let (mut rules_left, mut sets_left) = (MAX_RULES, MAX_SETS);
    for table in found.into_iter().filter(|table| table.chains.iter().any(|chain| chain.base.is_some())) {
        let (families, prefix) = match read::families(table.family) {
            Some(of) => of,
            None => continue,
        };
        let name = format!("{prefix} {}", table.name);
        let mut bytes = Vec::new();
        let of_table = Some((rule::TABLE, &*table.name));
        let whole = dump(socket, (table.family, message::GET_RULE, of_table), rules_left, |m| {
            // As it came: what it means needs the sets that it asks for.
            bytes.extend_from_slice(&whole_message(m));
        })?;
        rules_left = rules_left.saturating_sub(bytes.len());
        let sets = match asks_sets(&bytes) {
            true => sets(socket, table.family, &table.name, &mut sets_left)?,
            false => SetRanges::new(),
        };
        let mut chains = table.chains;
        for message in Messages::new(&bytes) {
            let a = message.attributes(HEADER);
            let of = list::text(a, rule::CHAIN);
            if let (Some(chain), Some(parts)) =
                (chains.iter_mut().find(|chain| chain.name == of), a.find(rule::EXPRESSIONS))
            {
                let handle = list::handle(a, rule::HANDLE);
                chain.rules.push(ListedRule { handle, ..read::rule(parts.nested(), &sets) });
            }
        }
        if !whole {
            listing.notes.push(format!("table {name} has more rules than are looked at"));
        }
        let age = listing.age(&name);
        listing.tables.push(ListedTable { age, chains, ..ListedTable::nft(name, families) });
    }
    Ok(listing)
}

fn tables(
    socket: &mut NetlinkSocket,
    owners: &[Ruleset],
    listing: &mut Listing,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let whole = dump(socket, (0, message::GET_TABLE, None), MAX_LIST, |m| {
        let (family, a) = (family_of(m), m.attributes(HEADER));
        let name = list::text(a, table::NAME);
        let Some((_, prefix)) = read::families(family) else { return };
        let age = list::handle(a, table::HANDLE);
        listing.ages.extend(age.map(|age| (format!("{prefix} {name}"), age)));
        let ours = family == family::INET && owners.iter().any(|owner| super::is_owners(&owner.owner, &name));
        if ours {
            if let Some(port) = a.find(table::OWNER).and_then(|a| a.be32()) {
                listing.notes.push(format!(
                    "table {name} belongs to another program (netlink port {port}): it goes when that ends, and nobody else can change it"
                ));
            }
            return;
        }
        let of_iptables = family != family::INET && OF_IPTABLES.contains(&&*name);
        listing.has_iptables |= of_iptables;
        let dormant = list::number(a, table::FLAGS) & table::DORMANT != 0;
        if !of_iptables && !dormant && found.len() < MAX_TABLES {
            found.push(Found { family, name, chains: Vec::new() });
        } else if found.len() >= MAX_TABLES {
            listing.crowded = true;
        }
    })?;
    listing.has_iptables |= !whole;
    if !whole || listing.crowded {
        listing.notes.push("there are more tables than are looked at".to_owned());
    }
    Ok(found)
}

fn chains(socket: &mut NetlinkSocket, found: &mut [Found], listing: &mut Listing) -> Result<(), Error> {
    let whole = dump(socket, (0, message::GET_CHAIN, None), MAX_LIST, |m| {
        let (family, a) = (family_of(m), m.attributes(HEADER));
        let of = list::text(a, chain::TABLE);
        let Some(table) = found.iter_mut().find(|table| table.family == family && table.name == of) else {
            return;
        };
        let base = list::base(a);
        table.chains.push(ListedChain {
            name: list::text(a, chain::NAME),
            drops: base.as_ref().is_some_and(|(.., policy)| *policy != chain::POLICY_ACCEPT),
            base: base.and_then(|(kind, hook, priority, _)| read::base(&kind, hook, priority)),
            rules: Vec::new(),
        });
    })?;
    if !whole {
        listing.notes.push("there are more chains than are looked at".to_owned());
    }
    Ok(())
}

/// The base chains of others at these places, those of iptables-nft among them. Without nf_tables there is none.
pub(crate) fn attached_at(
    _: &netns::Inside,
    places: &[AttachPoint],
    owners: &[Ruleset],
) -> Result<Vec<Neighbour>, super::Error> {
    let failed = |e| super::question("list the base chains of others", e);
    let Some(mut socket) = super::open_if_supported()? else { return Ok(Vec::new()) };
    let tables = list::tables(&mut socket, 0).map_err(failed)?;
    let chains = list::attached(&mut socket).map_err(failed)?;
    let of_others = |chain: &list::AttachedChain| {
        let table = tables.iter().find(|table| table.family == chain.family && table.name == chain.table)?;
        let (families, _) = read::families(chain.family)?;
        let (kind, hook, priority, _) = &chain.base;
        let base = read::base(kind, *hook, *priority)?;
        let ours = chain.family == family::INET
            && owners.iter().any(|owner| super::is_owners(&owner.owner, &table.name));
        let here = places.iter().any(|place| {
            let together = ruleset::Families::overlap(families, place.families);
            together && (place.base.hook, place.base.priority) == (base.hook, base.priority)
        });
        (here && !ours).then_some(Neighbour::Chain { table: table.handle, chain: chain.handle })
    };
    Ok(chains.iter().filter_map(of_others).collect())
}

/// Whether others have a rule in a nat chain that what comes in passes. A jump to chains of ours that iptables has is none.
pub(crate) fn translate(_: &netns::Inside, owners: &[Ruleset]) -> Result<bool, super::Error> {
    let failed = |e| super::question("list the nat chains of others", e);
    let Some(mut socket) = super::open_if_supported()? else { return Ok(false) };
    let names: Vec<Names> = owners.iter().map(|owner| Names::of(owner, TableKind::Nat)).collect();
    let mut found = false;
    for chain in list::attached(&mut socket).map_err(failed)? {
        let (kind, hook, priority, _) = &chain.base;
        let base = read::base(kind, *hook, *priority);
        let is_nat = base.is_some_and(|base| (base.kind, base.hook) == (ChainKind::Nat, Hook::Prerouting));
        let ours = chain.family == family::INET
            && owners.iter().any(|owner| super::is_owners(&owner.owner, &chain.table));
        if !is_nat || ours || read::families(chain.family).is_none() {
            continue;
        }
        let leads_to_ours = |act: &ListedAct| matches!(act, ListedAct::Jump(to) if names.iter().any(|names| names.contain(to)));
        let take = |acts: Vec<ListedAct>| {
            found |= !acts.iter().any(leads_to_ours);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        list::acts_in(&mut socket, &chain, take).map_err(failed)?;
        if found {
            break;
        }
    }
    Ok(found)
}

/// Whether a rule looks something up.
fn asks_sets(rules: &[u8]) -> bool {
    let is_lookup =
        |item: Attribute<'_>| item.nested().find(expr::NAME).is_some_and(|name| name.text() == "lookup");
    Messages::new(rules).any(|m| {
        let parts = m.attributes(HEADER).find(rule::EXPRESSIONS);
        parts.into_iter().flat_map(|parts| parts.nested()).any(is_lookup)
    })
}

fn sets(socket: &mut NetlinkSocket, family: u8, table: &str, left: &mut usize) -> Result<SetRanges, Error> {
    let mut found: HashMap<String, u32> = HashMap::new();
    dump(socket, (family, message::GET_SET, Some((set::TABLE, table))), *left, |m| {
        let a = m.attributes(HEADER);
        found.insert(list::text(a, set::NAME), list::number(a, set::FLAGS));
    })?;
    let mut sets = SetRanges::new();
    for (name, flags) in found {
        let mut bytes = Vec::new();
        let whole = *left > 0
            && elements(socket, (family, table, &name), *left, |m| {
                bytes.extend_from_slice(&whole_message(m));
            })?;
        *left = left.saturating_sub(bytes.len());
        let items: Vec<Attribute<'_>> = Messages::new(&bytes)
            .filter_map(|m| m.attributes(HEADER).find(element::LIST_ELEMENTS))
            .flat_map(|a| a.nested())
            .collect();
        sets.insert(name, if whole { read::members(flags, &items) } else { None });
    }
    Ok(sets)
}

fn elements(
    socket: &mut NetlinkSocket,
    (family, table, name): (u8, &str, &str),
    limit: usize,
    take: impl FnMut(&Message<'_>),
) -> Result<bool, Error> {
    let mut request = MessageWriter::default();
    request.message(message::GET_ELEMENTS, flags::REQUEST | flags::DUMP, 1, &header(family), |w| {
        w.text(element::LIST_TABLE, table);
        w.text(element::LIST_SET, name);
    });
    socket.dump_some(request.bytes(), limit, take)
}

/// Lists objects of a family and kind, those of a table or all.
fn dump(
    socket: &mut NetlinkSocket,
    (family, kind, table): (u8, u16, Option<(u16, &str)>),
    limit: usize,
    take: impl FnMut(&Message<'_>),
) -> Result<bool, Error> {
    if limit == 0 {
        return Ok(false);
    }
    let mut request = MessageWriter::default();
    request.message(kind, flags::REQUEST | flags::DUMP, 1, &header(family), |w| {
        if let Some((attribute, name)) = table {
            w.text(attribute, name);
        }
    });
    socket.dump_some(request.bytes(), limit, take)
}

fn family_of(message: &Message<'_>) -> u8 {
    message.payload.first().copied().unwrap_or_default()
}

/// A message as bytes that [`Messages`] reads.
fn whole_message(message: &Message<'_>) -> Vec<u8> {
    let mut writer = MessageWriter::default();
    writer.message(message.kind, message.flags, message.sequence, message.payload, |_| {});
    writer.bytes().to_vec()
}

/// The number of rules in the tables of iptables-nft of a family, if it is within the bounds of what is read.
pub(crate) fn iptables_within_bounds(family: ruleset::Family) -> Result<bool, Error> {
    let number = if family == ruleset::Family::V4 { family::IPV4 } else { family::IPV6 };
    let socket = &mut NetlinkSocket::netfilter()?;
    for table in OF_IPTABLES {
        match dump(socket, (number, message::GET_RULE, Some((rule::TABLE, table))), MAX_RULES, |_| {}) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // No such table.
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
