//! Everything in the tables of iptables, whoever put it there.

use std::time::Duration;

use ruleset::Family;
use ruleset::listed::{self, ListedTable, Lister};

use super::child::{self, Surroundings};
use super::error::Error;
use super::probe::Present;
use super::program::Variant;
use super::{FAMILIES, Iptables, VARIANTS};
use crate::{Listing, nft};

/// How long a program may take to print what others have.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of it that are read.
const MAX_OUTPUT: usize = 1 << 20;

impl Iptables {
    /// The tables of both variants and families. What cannot be read is a note.
    pub(super) fn list_all(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for family in FAMILIES {
            let present = Present::ask(family)?;
            for variant in VARIANTS.into_iter().filter(|variant| present.has(*variant)) {
                match self.list(family, variant) {
                    Ok(tables) => listing.tables.extend(tables),
                    Err(why) => {
                        listing.notes.push(format!("what {variant} iptables has is not looked at: {why}"));
                    }
                }
            }
        }
        Ok(listing)
    }

    fn list(&self, family: Family, variant: Variant) -> Result<Vec<ListedTable>, String> {
        let lister = match variant {
            Variant::Legacy => Lister::IptablesLegacy,
            Variant::Nft => Lister::IptablesNft,
        };
        if variant == Variant::Nft
            && !nft::others::iptables_within_bounds(family).map_err(|e| e.to_string())?
        {
            return Err("it has more rules than are looked at".to_owned());
        }
        let around = Surroundings { timeout: TIMEOUT.min(self.timeout), ..self.surroundings() };
        let programs = self.search.programs_of(family, variant, &around).map_err(|e| fault::chain(&e))?;
        let output = child::run(&programs.save, &[], None, &around)
            .map_err(|(cause, said)| format!("{}: {cause} {said}", programs.save.display()))?;
        if output.len() > MAX_OUTPUT {
            return Err("it has more rules than are looked at".to_owned());
        }
        Ok(listed::parse_tables(&output, family, lister))
    }
}
