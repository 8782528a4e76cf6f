//! Whether rules of others keep packets from a plan: everything in the namespace, read within bounds and judged by
//! [`ruleset::listed::shadow`].

use std::net::IpAddr;

use netns::Inside;
use ruleset::listed::ListedTable;
use ruleset::listed::shadow::{Scene, find};
use ruleset::{Backend, Ruleset};

use crate::{Difference, Error, Kernel, Record};

/// The tables of a backend, as far as they could be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Tables.
    pub tables: Vec<ListedTable>,
    /// What could not be looked at.
    pub notes: Vec<String>,
    /// A number for each nf_tables table that is greater for those made later.
    pub(crate) ages: Vec<(String, u64)>,
    /// There are too many of them.
    pub(crate) crowded: bool,
    /// Of nf_tables: there are tables of the names that iptables-nft gives its own, or may be.
    pub(crate) has_iptables: bool,
}

impl Listing {
    pub(crate) fn age(&self, table: &str) -> Option<u64> {
        self.ages.iter().find(|(name, _)| name == table).map(|(_, age)| *age)
    }
}

/// What shadows a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shadows {
    /// Packets escape for certain: [`Difference::Shadowed`].
    pub proven: Vec<Difference>,
    /// They may, or it could not be looked at.
    pub possible: Vec<String>,
}

impl Kernel<'_> {
    /// The record's rules in the form that rules of others have; `None` for a record of another version.
    #[must_use]
    pub fn tables(&self, record: &Record, owners: &[Ruleset]) -> Option<Vec<ListedTable>> {
        self.store(record.backend).tables(owners, record.rules())
    }

    /// Looks for rules of others by which packets escape that the record's rules capture. Whether those are all there is what
    /// [`Kernel::observe_record`] tells. `addresses` are the pod's own, `interface` is that by which it is reached. `take_out` removes what is
    /// ours beside the record's rules ([`ruleset::listed::beside`]).
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn shadows(
        &self,
        inside: &Inside,
        record: &Record,
        owners: &[Ruleset],
        addresses: &[IpAddr],
        interface: &str,
        take_out: &dyn Fn(&mut Vec<ListedTable>),
    ) -> Result<Shadows, Error> {
        let Some(plan) = self.tables(record, owners) else {
            return Ok(Shadows::default());
        };
        let mut nft = self.nftables.others(inside, owners)?;
        let mut iptables = self.iptables.others(inside, owners)?;
        take_out(&mut nft.tables);
        take_out(&mut iptables.tables);
        let mut shadows =
            Shadows { proven: Vec::new(), possible: [&nft.notes[..], &iptables.notes].concat() };
        for table in &mut iptables.tables {
            table.age = nft.age(&table.name);
            table.ours = record.backend == Backend::Iptables && has_chains_of(&plan, table);
        }
        let rules = |tables: &[ListedTable]| {
            tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum::<usize>()
        };
        let nothing_else = match record.backend {
            Backend::Nftables => iptables.tables.is_empty(),
            Backend::Iptables => rules(&iptables.tables) <= rules(&plan),
        };
        if nft.tables.is_empty() && nothing_else {
            return Ok(shadows);
        }
        let mut present: Vec<ListedTable> = Vec::new();
        if record.backend == Backend::Nftables {
            present
                .extend(plan.iter().cloned().map(|table| ListedTable { age: nft.age(&table.name), ..table }));
        }
        present.extend(nft.tables);
        present.extend(iptables.tables);
        let addresses = match addresses {
            [] => own_addresses(inside)?,
            given => given.to_vec(),
        };
        let findings = find(&Scene { plan: &plan, present: &present, addresses: &addresses, interface });
        if findings.incomplete {
            shadows.possible.push("there are more rules than are looked at".to_owned());
        }
        for finding in findings.found {
            let shadowed = Difference::Shadowed {
                table: finding.table,
                chain: finding.chain,
                rule: finding.rule,
                why: finding.why,
            };
            if finding.proven {
                shadows.proven.push(shadowed);
            } else {
                shadows.possible.push(shadowed.to_string());
            }
        }
        Ok(shadows)
    }
}

/// The addresses of the namespace that others reach.
fn own_addresses(inside: &Inside) -> Result<Vec<IpAddr>, Error> {
    let mut addresses = crate::route::addresses(inside)?;
    addresses.retain(|address| !address.is_loopback() && *address != IpAddr::V6(std::net::Ipv6Addr::from(6)));
    Ok(addresses)
}

/// Whether a table has chains that rules of the plan are in, and not only those that every table of its kind has.
fn has_chains_of(plan: &[ListedTable], table: &ListedTable) -> bool {
    let of_plan = |name: &str| {
        let same = plan.iter().filter(|own| table.name.starts_with(&own.name));
        same.flat_map(|own| &own.chains).any(|chain| chain.base.is_none() && chain.name == name)
    };
    table.chains.iter().any(|chain| chain.base.is_none() && of_plan(&chain.name))
}
