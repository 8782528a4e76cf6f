//! Lists with any content.

use super::super::{list, read, uapi};
use crate::fuzz::{Open, Read};
use crate::netlink::wire::Attribute;

/// Most objects that are asked for.
const MOST: usize = 100;

/// Every list of nf_tables' objects. A bound holds whatever the list has.
pub(crate) fn read(open: Open<'_>) -> Vec<Read> {
    let tables = list::tables(&mut open(), 0).map(|found| found.len());
    let chains = list::chains(&mut open()).map(|found| found.len());
    let mut socket = open();
    let sets = list::sets(&mut socket, "t", (1 << 20, MOST), |_| true).map(|(found, _)| found);
    if let Ok(sets) = &sets {
        let elements: usize = sets.iter().map(|set| set.elements.len()).sum();
        assert!(elements <= MOST, "{elements} elements");
    }
    let rules = list::rules(&mut open(), Some("t"), MOST).map(|(found, _)| {
        assert!(found.len() <= MOST, "{} rules", found.len());
        let found = list::read_rules(found.iter(), sets.as_deref().unwrap_or_default());
        found.iter().map(ToString::to_string).filter(|text| !text.is_empty()).count()
    });
    vec![tables.ok(), chains.ok(), sets.ok().map(|sets| sets.len()), rules.ok(), of_others(open)]
}

/// Rules and sets of others, which are read in another way. What stands for so many conditions and acts.
fn of_others(open: Open<'_>) -> Read {
    let (mut found, sets) = (0, read::SetRanges::new());
    open()
        .dump(&[], |message| {
            let Some(message) = message else { return };
            let attributes = message.attributes(list::HEADER);
            if let Some(parts) = attributes.find(uapi::rule::EXPRESSIONS) {
                let rule = read::rule(parts.nested(), &sets);
                found += rule.conditions.len() + rule.acts.len();
            }
            let items: Vec<Attribute<'_>> = attributes
                .find(uapi::element::LIST_ELEMENTS)
                .into_iter()
                .flat_map(|list| list.nested())
                .collect();
            for flags in [0, uapi::set::INTERVAL] {
                found += read::members(flags, &items).map_or(0, |members| members.len());
            }
        })
        .ok()?;
    Some(found)
}
