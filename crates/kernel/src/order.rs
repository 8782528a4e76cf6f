//! Who else is attached where rules of ours are.
//!
//! Of base chains at one hook with one priority the kernel runs the one first that was attached last (`nf_hook_entries_grow` in
//! netfilter/core.c), and it does not tell the order. So who has to be the first notes who was there when it was attached: whoever comes later
//! runs before.

use std::collections::BTreeSet;

use netns::Inside;
use ruleset::{Backend, Base, Families, Family, Plan, Ruleset};

use crate::{Change, Error, Kernel, iptables, nft};

/// What others have at the hooks and priorities of a plan in nf_tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours(BTreeSet<Neighbour>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    /// A base chain. The kernel gives each number of a table only once, and so those of the chains in it.
    Chain { table: u64, chain: u64 },
    /// A table of legacy iptables.
    Legacy { family: Family, table: &'static str },
}

/// Where a base chain is attached.
pub(crate) struct AttachPoint {
    pub(crate) families: Families,
    pub(crate) base: Base,
    /// The table of iptables that is attached there, too.
    legacy: &'static str,
}

impl Neighbours {
    /// Whether all of these were there before.
    #[must_use]
    pub fn are_among(&self, before: &Self) -> bool {
        self.0.is_subset(&before.0)
    }
}

impl Kernel<'_> {
    /// What others have at the places of the plan. Only nf_tables has such an order; in iptables it is that of the rules in a chain.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn neighbours(&self, inside: &Inside, plan: &Plan) -> Result<Neighbours, Error> {
        if plan.backend == Backend::Iptables {
            return Ok(Neighbours::default());
        }
        let places: Vec<AttachPoint> = plan.layers.iter().flat_map(places).collect();
        let mut found: BTreeSet<Neighbour> =
            nft::others::attached_at(inside, &places, &plan.layers)?.into_iter().collect();
        for family in [Family::V4, Family::V6] {
            for name in iptables::legacy_tables(family)? {
                let at = places.iter().find(|place| place.legacy == name && place.families.contains(family));
                found.extend(at.map(|place| Neighbour::Legacy { family, table: place.legacy }));
            }
        }
        Ok(Neighbours(found))
    }

    /// Loads the plan's rules anew, before those of others at the same places. Open connections go on.
    ///
    /// # Errors
    /// The rules could not be loaded; those from before are in force.
    pub fn put_first(&self, inside: &Inside, plan: &Plan) -> Result<Change, Error> {
        self.store(plan.backend).put_first(inside, &plan.layers)
    }
}

/// Puts rules of ours behind those of others where iptables-nft translates what comes in, in a millisecond: whoever comes later to a chain of iptables is
/// behind ours, and in nf_tables would be before. The plan of a pod that translates can follow after that. What legacy iptables has is left: nobody hears
/// when it changes. Whether there was something to do.
///
/// # Errors
/// The kernel refused; the rules are where they were.
pub fn give_way(inside: &Inside, owners: &[Ruleset]) -> Result<bool, Error> {
    Ok(nft::behind::put_behind(inside, owners)?)
}

fn places(layer: &Ruleset) -> impl Iterator<Item = AttachPoint> {
    let families = if layer.ipv6 { Families::Both } else { Families::Only(Family::V4) };
    layer.tables.iter().flat_map(move |table| {
        let bases = ruleset::nft::chains(table).filter_map(|chain| chain.base);
        bases.map(move |base| AttachPoint { families, base, legacy: table.kind.name() })
    })
}
