//! Events and tables with any content.

use ruleset::Family;

use super::events::noticed;
use super::legacy::mask_counters;
use crate::fuzz::{Open, Read};

/// What is heard, and a table of iptables-legacy of each family. A table keeps its length, and what is masked stays so.
pub(crate) fn read(open: Open<'_>, input: &[u8]) -> Vec<Read> {
    let heard = open().hearing().hear().ok();
    let commits = heard.map(|heard| noticed(&heard, &heard).commits.len());
    let masked = [Family::V4, Family::V6].map(|family| {
        let mut table = input.to_vec();
        mask_counters(family, &mut table);
        let once = table.clone();
        mask_counters(family, &mut table);
        assert_eq!(once, table);
        assert_eq!(table.len(), input.len());
        Some(usize::from(table != input))
    });
    [&[commits], &masked[..]].concat()
}
