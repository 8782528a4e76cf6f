//! All that a comparison reads of nf_tables, as one number: what was once found as planned need not be understood again where the kernel answers the
//! same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use ruleset::{Ruleset, Set};

use super::list;
use super::uapi::{element, family, message, rule, set};
use crate::netlink::wire::{Attributes, MessageWriter};
use crate::netlink::{Error, NetlinkSocket};

/// Bytes of answers that are read. Of more, each comparison tells for itself.
const MOST: usize = 1 << 20;

/// Reads the answers.
struct Reader<'a> {
    socket: &'a mut NetlinkSocket,
    hasher: DefaultHasher,
    left: usize,
}

/// The number; absent where there is too much. Chains are those of all families, so that it tells of those of iptables, too.
pub(super) fn hash(socket: &mut NetlinkSocket, layers: &[Ruleset]) -> Result<Option<u64>, Error> {
    let mut tables = Vec::new();
    let mut reader = Reader { socket, hasher: crate::keyed::hasher(), left: MOST };
    let mut whole = reader.read(family::INET, message::GET_TABLE, &[], |a| {
        tables.push(list::text(a, super::uapi::table::NAME));
    })?;
    whole &= reader.read(0, message::GET_CHAIN, &[], |_| {})?;
    let is_ours = |name: &&String| layers.iter().any(|layer| super::is_owners(&layer.owner, name));
    let ours: Vec<&String> = tables.iter().filter(is_ours).collect();
    // All of them in one go where there are no others.
    if ours.len() == tables.len() {
        whole &= reader.read_tables(layers, None)?;
    } else {
        for table in ours {
            whole &= reader.read_tables(layers, Some(table))?;
        }
    }
    Ok(whole.then(|| reader.hasher.finish()))
}

impl Reader<'_> {
    /// The sets and rules of a table, or of all tables.
    fn read_tables(&mut self, layers: &[Ruleset], table: Option<&str>) -> Result<bool, Error> {
        let mut sets = Vec::new();
        let of = |kind| table.map(|table| (kind, table));
        let mut whole = self.read(family::INET, message::GET_SET, of(set::TABLE).as_slice(), |a| {
            sets.push((list::text(a, set::TABLE), list::text(a, set::NAME)));
        })?;
        whole &= self.read(family::INET, message::GET_RULE, of(rule::TABLE).as_slice(), |_| {})?;
        for (table, name) in sets {
            // What is in those changes without us.
            if !is_kept(layers, &table, &name) {
                let of = [(element::LIST_TABLE, &*table), (element::LIST_SET, &*name)];
                whole &= self.read(family::INET, message::GET_ELEMENTS, &of, |_| {})?;
            }
        }
        Ok(whole)
    }

    /// One list, narrowed by such attributes. Whether it was read to its end.
    fn read(
        &mut self,
        family: u8,
        kind: u16,
        of: &[(u16, &str)],
        mut each: impl FnMut(Attributes<'_>),
    ) -> Result<bool, Error> {
        let narrow = |w: &mut MessageWriter| of.iter().for_each(|(kind, name)| w.text(*kind, name));
        let (hasher, left) = (&mut self.hasher, &mut self.left);
        kind.hash(hasher);
        list::dump(self.socket, family, kind, narrow, |part| {
            let Some((family, attributes)) = part else { return ControlFlow::Continue(()) };
            let bytes = attributes.bytes();
            let Some(rest) = left.checked_sub(bytes.len()) else { return ControlFlow::Break(()) };
            *left = rest;
            (family, bytes).hash(hasher);
            each(attributes);
            ControlFlow::Continue(())
        })
    }
}

/// Whether somebody else keeps the members of a set.
fn is_kept(layers: &[Ruleset], table: &str, name: &str) -> bool {
    let tables = layers.iter().flat_map(|layer| layer.tables.iter().map(move |table| (layer, table)));
    let mut of_table = tables.filter(|(layer, planned)| layer.nft_table(planned.kind) == table);
    of_table.any(|(_, planned)| planned.sets.iter().any(|set: &Set| set.name == name && set.is_kept()))
}
