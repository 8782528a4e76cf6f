//! Which programs to use, what they find, and what therefore is to do.

use std::path::{Path, PathBuf};

use ruleset::iptables::{Names, rules};
use ruleset::{Chain, Family, Ruleset, TableKind};

use super::change::TableSide;
use super::error::{Error, Failure};
use super::job::save_arguments;
use super::probe::Present;
use super::program::{CandidateName, Programs, Variant};
use super::saved::{Saved, SavedTable};
use super::{FAMILIES, Iptables, KINDS, Order, VARIANTS, child};

/// A side with the programs for it.
pub(super) struct Work<'a> {
    pub(super) side: TableSide<'a>,
    pub(super) programs: Programs,
    /// Whether the variant has no table here yet, so that nobody has shown that it works.
    pub(super) unproven: bool,
}

impl Iptables {
    fn candidates(&self, present: &Present) -> &'static [CandidateName] {
        use CandidateName::{Named, Unsuffixed};
        use Variant::{Legacy, Nft};
        match (self.forced, &present.nft, present.legacy) {
            (Some(Legacy), ..) => &[Named(Legacy)],
            (Some(Nft), ..) => &[Named(Nft)],
            (None, None, _) => &[Named(Legacy), Unsuffixed],
            (None, Some(_), true) => &[Named(Legacy), Named(Nft), Unsuffixed],
            (None, Some(_), false) => &[Named(Nft), Unsuffixed, Named(Legacy)],
        }
    }

    /// The first usable candidate that has not failed yet, and what it finds where something of ours can be.
    pub(super) fn choose(
        &self,
        layers: &[Ruleset],
        family: Family,
        present: &Present,
        failed: &[(Family, PathBuf)],
    ) -> Result<(Programs, Option<Saved>), Error> {
        let mut problem = None;
        for candidate in self.candidates(present) {
            let found = self.programs_for(*candidate, family, present).and_then(|programs| {
                let listed = must_be_listed(layers, present, programs.variant);
                let saved = listed.then(|| self.save(layers, &programs)).transpose()?;
                Ok((programs, saved))
            });
            match found {
                Ok((programs, _)) if failed.contains(&(family, end_of_links(&programs.restore))) => {}
                Ok(found) => {
                    // That a host has its programs under another name is no problem.
                    let same = !present.legacy || found.0.variant == Variant::Legacy;
                    if let Some(problem) = problem.filter(|problem: &Error| !(same && problem.is_missing())) {
                        self.warn(format!("{problem}; using {} instead", found.0.restore.display()));
                    }
                    return Ok(found);
                }
                // It says more than that a program is not there.
                Err(error @ Error::NoNftables { .. }) => problem = Some(error),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(|| Error::Missing {
            program: "another variant of iptables".to_owned(),
            searched: self.search.joined(),
        }))
    }

    /// On a kernel without nf_tables the programs of the nft variant can only fail, so they are not started.
    fn programs_for(
        &self,
        candidate: CandidateName,
        family: Family,
        present: &Present,
    ) -> Result<Programs, Error> {
        let around = self.surroundings();
        let programs = match self.forced {
            Some(variant) => self.search.programs_of(family, variant, &around),
            None => self.search.programs(family, candidate, &around),
        }?;
        match programs.variant {
            Variant::Nft if present.nft.is_none() => Err(Error::NoNftables { program: programs.restore }),
            _ => Ok(programs),
        }
    }

    fn save(&self, layers: &[Ruleset], programs: &Programs) -> Result<Saved, Error> {
        let arguments = save_arguments(&kinds(layers));
        let output =
            child::run(&programs.save, &arguments, None, &self.surroundings()).map_err(|(cause, said)| {
                Failure { program: programs.save.clone(), cause, said, left: Vec::new() }
            })?;
        Ok(Saved::parse(&output))
    }

    /// Everything that may have to change to get to the layers: first what is planned, then what is left over.
    pub(super) fn works<'a>(
        &'a self,
        layers: &'a [Ruleset],
        failed: &[(Family, PathBuf)],
        order: Order,
    ) -> Result<Vec<Work<'a>>, Error> {
        let (mut planned, mut left_over) = (Vec::new(), Vec::new());
        for family in FAMILIES {
            let present = Present::ask(family)?;
            let mut main = None;
            if has_rules(layers, family) {
                let (programs, saved) = self.choose(layers, family, &present, failed)?;
                main = Some(programs.variant);
                let unproven = !present.has(programs.variant);
                let side = TableSide {
                    ordered: order == Order::Leading,
                    before: &self.before,
                    ..side(layers, family, true, saved, "")
                };
                planned.push(Work { side, programs, unproven });
            }
            for variant in VARIANTS.into_iter().filter(|variant| Some(*variant) != main) {
                match self.left_over(layers, family, &present, variant) {
                    Ok(work) => left_over.extend(work),
                    Err(e) => self.warn(format!("what {variant} iptables may hold of ours stays: {e}")),
                }
            }
        }
        planned.append(&mut left_over);
        Ok(planned)
    }

    /// What is of ours in a family and variant where nothing should be.
    pub(super) fn left_over<'a>(
        &'a self,
        layers: &'a [Ruleset],
        family: Family,
        present: &Present,
        variant: Variant,
    ) -> Result<Option<Work<'a>>, Error> {
        if !may_hold_ours(layers, family, present, variant) {
            return Ok(None);
        }
        let programs = self.search.programs_of(family, variant, &self.surroundings())?;
        let label = match variant {
            Variant::Legacy => " (legacy)",
            Variant::Nft => " (nft)",
        };
        let saved = self.save(layers, &programs)?;
        let side = TableSide { before: &self.before, ..side(layers, family, false, Some(saved), label) };
        Ok(side.holds_ours().then_some(Work { side, programs, unproven: false }))
    }

    /// What came of [`Self::left_over`], but legacy tables on a host without the legacy programs are only warned of. Anybody may have made
    /// them, by a mere look, and nothing says that rules of ours are in them. Chains of the nft variant are known by name.
    pub(super) fn if_known<'a>(
        &self,
        variant: Variant,
        left_over: Result<Option<Work<'a>>, Error>,
    ) -> Result<Option<Work<'a>>, Error> {
        match left_over {
            Err(e @ (Error::Missing { .. } | Error::WrongVariant { .. })) if variant == Variant::Legacy => {
                self.warn(format!("cannot look whether {variant} iptables holds rules of ours: {e}"));
                Ok(None)
            }
            result => result,
        }
    }
}

/// The tables that may have rules of the owners.
fn kinds(layers: &[Ruleset]) -> Vec<TableKind> {
    let is_owners = |kind: &TableKind| {
        layers.iter().any(|layer| {
            layer.table(*kind).is_some() || layer.known_chains.iter().any(|known| known.table == *kind)
        })
    };
    KINDS.into_iter().filter(is_owners).collect()
}

fn has_rules(layers: &[Ruleset], family: Family) -> bool {
    let of_family = layers.iter().filter(|layer| layer.families().contains(&family));
    let tables = of_family.flat_map(|layer| &layer.tables);
    tables.flat_map(|table| &table.chains).any(|chain| rules(chain, family).next().is_some())
}

fn side<'a>(
    layers: &'a [Ruleset],
    family: Family,
    planned: bool,
    saved: Option<Saved>,
    label: &'static str,
) -> TableSide<'a> {
    TableSide { layers, before: &[], family, planned, saved, ordered: false, label }
}

/// For nft this is exact for chains; legacy does not name its chains without a program.
pub(super) fn may_hold_ours(layers: &[Ruleset], family: Family, present: &Present, variant: Variant) -> bool {
    if variant == Variant::Legacy {
        return present.legacy;
    }
    let tables = KINDS.into_iter().map(|kind| {
        let chains = present.nft_chains().iter().filter(|(table, _)| table == kind.name());
        SavedTable { kind, chains: chains.map(|(_, chain)| chain.clone()).collect(), rules: Vec::new() }
    });
    side(layers, family, false, Some(Saved { tables: tables.collect() }), "").holds_ours()
}

/// Whether the rules that are there tell a setup anything. In the nft variant they do not where no chain has a name that a chain of the owner
/// has, also in a table or beside chains by which it is somebody else's: a setup must not take that for its own later. So a layer that has rules in
/// built-in chains only would not be found again: every layer has a chain of its own in each family of which it has rules.
fn must_be_listed(layers: &[Ruleset], present: &Present, variant: Variant) -> bool {
    if variant == Variant::Legacy {
        return present.legacy;
    }
    let names = layers.iter().flat_map(|layer| KINDS.map(|kind| Names::of(layer, kind)));
    let names: Vec<Names> = names.collect();
    present.nft_chains().iter().any(|(_, chain)| names.iter().any(|names| names.contain(chain)))
}

pub(super) fn end_of_links(program: &Path) -> PathBuf {
    program.canonicalize().unwrap_or_else(|_| program.to_owned())
}

/// The layers with all of their rules in built-in chains before those of others, but for those that come after them.
pub(super) fn all_leading(layers: &[Ruleset]) -> Vec<Ruleset> {
    let mut layers = layers.to_vec();
    let chains = layers.iter_mut().flat_map(|layer| &mut layer.tables).flat_map(|table| &mut table.chains);
    let leads = |chain: &&mut Chain| chain.base.is_some() && !chain.is_late();
    chains.filter(leads).for_each(|chain| chain.leading = chain.rules.len());
    layers
}
