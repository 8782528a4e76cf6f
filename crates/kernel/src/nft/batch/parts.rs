//! Transactions that change a part of a table.

use ruleset::{Element, KeptMembers, Table, TableDelta};

use super::super::set::{self as sets, WireElement};
use super::super::uapi::{chain, message, rule as rule_uapi, set};
use super::{Batch, BatchObject, TableOf, write_chain};
use crate::netlink::flags;

impl<'a> Batch<'a> {
    /// Adds the members of a table's kept sets, which are empty.
    pub(in crate::nft) fn fill(&mut self, of: TableOf<'a>, table: &'a Table, contents: &dyn KeptMembers) {
        for set in table.sets.iter().filter(|set| set.is_kept()) {
            let elements: Vec<WireElement> =
                contents.of(&set.name).flat_map(|member| WireElement::of(&member)).collect();
            self.change_elements(of, &set.name, &elements, true);
        }
    }

    /// Changes a table that is there. Of elements, chains and sets, what goes is what nothing refers to by then.
    pub(in crate::nft) fn change_table(&mut self, of: TableOf<'a>, delta: &'a TableDelta) {
        let name = of.name();
        let new: Vec<_> = delta.sets.iter().map(|set| (set, self.add_set(of, &name, set))).collect();
        for chain in &delta.chains {
            self.message(BatchObject::AddChain(of, chain), message::NEW_CHAIN, flags::CREATE, |w| {
                write_chain(w, &name, chain);
            });
        }
        for (set, id) in new {
            let elements = sets::fixed(set);
            self.add_elements(BatchObject::AddElements(of, &set.name), &name, &set.name, id, &elements);
        }
        let changed = delta.chains.iter().map(|chain| &*chain.name);
        for chain in changed.chain(delta.gone_chains.iter().map(String::as_str)) {
            self.message(BatchObject::DeleteRulesOf(of, chain), message::DEL_RULE, 0, |w| {
                w.text(rule_uapi::TABLE, &name);
                w.text(rule_uapi::CHAIN, chain);
            });
        }
        for (set, change) in &delta.members {
            let replaced = delta.replaced.get(set).into_iter().flatten().copied();
            let gone = change.removed().chain(replaced).flat_map(|key| WireElement::of(&Element::from(key)));
            self.change_elements(of, set, &gone.collect::<Vec<_>>(), false);
        }
        for (set, change) in &delta.members {
            let elements: Vec<WireElement> =
                change.added().flat_map(|member| WireElement::of(&member)).collect();
            self.change_elements(of, set, &elements, true);
        }
        for chain in &delta.chains {
            for rule in &chain.rules {
                self.add_rule(of, &name, chain, rule);
            }
        }
        for gone in &delta.gone_chains {
            self.message(BatchObject::DeleteChain(of, gone), message::DEL_CHAIN, 0, |w| {
                w.text(chain::TABLE, &name);
                w.text(chain::NAME, gone);
            });
        }
        for gone in &delta.gone_sets {
            self.message(BatchObject::DeleteSet(of, gone), message::DEL_SET, 0, |w| {
                w.text(set::TABLE, &name);
                w.text(set::NAME, gone);
            });
        }
    }

    fn change_elements(&mut self, of: TableOf<'a>, set: &'a str, elements: &[WireElement], adds: bool) {
        let name = of.name();
        let (object, kind, extra) = match adds {
            true => (BatchObject::AddElements(of, set), message::NEW_ELEMENTS, flags::CREATE),
            false => (BatchObject::DeleteElements(of, set), message::DEL_ELEMENTS, 0),
        };
        for part in elements.chunks(sets::AT_A_TIME) {
            self.message(object, kind, extra, |w| sets::write_elements(w, &name, set, part));
        }
    }
}
