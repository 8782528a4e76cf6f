//! Everything in a network namespace that can change what becomes of a packet, ours and that of others, within bounds.
//!
//! Rules of ours come from the plan: whether they are there is what [`crate::Kernel::observe`] tells. What others have is read from the kernel,
//! and what cannot be read is said to be so.

mod filters;
mod links;
mod processes;
mod programs;
mod routing;
mod settings;
mod sockets;

use std::path::Path;

use conflicts::{LookedAt, NetnsScope, ObservedNetns, PlannedProxy};
use netns::Inside;
use ruleset::iptables::Names;
use ruleset::listed::beside::{only_judges, take_out};
use ruleset::listed::{ListedTable, Lister, attribute, planned};
use ruleset::{Backend, Family, Plan, Ruleset, TableKind};

use crate::netlink::NetlinkSocket;
use crate::watch::{Fingerprint, LegacySocket};
use crate::{Error, Kernel, Listing, iptables, nft, route};

pub use processes::{PodProcesses, scan_processes};

/// Whose namespace is looked at, and what is known of it besides.
#[derive(Debug, Clone, Copy)]
pub struct ObservedSubject<'a> {
    /// Whose it is.
    pub scope: NetnsScope,
    /// What is planned there.
    pub plan: &'a Plan,
    /// Owners of rules of ours that stand beside the plan's ([`ruleset::listed::beside`]): they are left out.
    pub beside: &'a [Ruleset],
    /// The processes in it; of the node's own there is no need to know them.
    pub processes: &'a PodProcesses,
    /// The node's `/proc`.
    pub proc_root: &'a Path,
    /// The mark, and its mask, of sockets in the namespace whose process is elsewhere: those of ztunnel. To set it takes `CAP_NET_ADMIN`.
    pub proxy_mark: Option<(u32, u32)>,
    /// The tables of legacy iptables that were there before rules of ours, such as `ip nat (legacy)`; others came later. The kernel does not tell: absent
    /// where nobody knows.
    pub older: Option<&'a [String]>,
    /// The rules before anything was read, where that was asked: what they say of tables of legacy iptables is not asked again.
    pub rules: Option<&'a Fingerprint>,
}

impl Kernel<'_> {
    /// Reads the namespace.
    ///
    /// # Errors
    /// The kernel could not be asked for rules, routes or interfaces.
    pub fn observed(&self, inside: &Inside, subject: &ObservedSubject<'_>) -> Result<ObservedNetns, Error> {
        let mut not_looked_at = Vec::new();
        let tables = self.everybodys_tables(inside, subject, &mut not_looked_at)?;
        let socket = &mut route_socket(inside)?;
        let links = links::links(socket)?;
        let names = links::names(&links);
        let observed_routing = routing::read(socket, &names, subject.plan)?;
        if !observed_routing.whole {
            not_looked_at.push("there are more routes than are looked at".to_owned());
        }
        let listeners = sockets::listeners(inside).unwrap_or_else(|error| {
            not_looked_at.push(fault::chain(&error));
            Vec::new()
        });
        let proxy = PlannedProxy::of(subject.plan);
        let listeners = subject.processes.attribute(listeners, &proxy, subject);
        let programs = match subject.scope {
            NetnsScope::Pod => programs::of_control_groups(subject.processes, subject.proc_root),
            NetnsScope::Node => LookedAt::Not("programs of the node's own namespace".to_owned()),
        };
        let filters = match subject.scope {
            NetnsScope::Pod => filters::of_links(socket, &links),
            // Nearly every node has some.
            NetnsScope::Node => LookedAt::Not("filters of the node's own interfaces".to_owned()),
        };
        Ok(ObservedNetns {
            scope: subject.scope,
            tables,
            rules: observed_routing.rules,
            routes: observed_routing.routes,
            sysctls: settings::read(socket, subject.scope, &links, &proxy),
            addresses: links::addresses(socket, &names)?,
            links: links.into_iter().map(|link| link.observed).collect(),
            processes: subject.processes.observed(&listeners, &proxy),
            listeners,
            programs,
            filters,
            probed: Vec::new(),
            not_looked_at,
        })
    }

    /// Tables of everybody; those of the plan as it has them.
    fn everybodys_tables(
        &self,
        inside: &Inside,
        subject: &ObservedSubject<'_>,
        not_looked_at: &mut Vec<String>,
    ) -> Result<Vec<ListedTable>, Error> {
        let plan = subject.plan;
        let mut nft = self.nftables.others(inside, &plan.layers)?;
        let has_legacy = match subject.rules {
            Some(rules) => rules.has_legacy(),
            None => !legacy_tables(inside)?.is_empty(),
        };
        let mut iptables = match nft.has_iptables || has_legacy {
            true => self.iptables.others(inside, &plan.layers)?,
            false => Listing::default(),
        };
        let is_of_ours = match subject.scope {
            NetnsScope::Pod => only_judges,
            // Nobody but the node's own administrators can take names there.
            NetnsScope::Node => |_: &_| true,
        };
        take_out(&mut nft.tables, subject.beside, is_of_ours);
        take_out(&mut iptables.tables, subject.beside, is_of_ours);
        not_looked_at.extend([&nft.notes[..], &iptables.notes].concat());
        for table in &mut iptables.tables {
            table.age = match (table.lister, subject.older) {
                (Lister::IptablesLegacy, None) => None,
                (Lister::IptablesLegacy, Some(older)) if older.contains(&table.name) => Some(0),
                (Lister::IptablesLegacy, Some(_)) => Some(u64::MAX),
                _ => nft.age(&table.name),
            };
        }
        let mut tables = match plan.backend {
            Backend::Iptables => {
                for family in [Family::V4, Family::V6] {
                    attribute(&mut iptables.tables, &planned(&plan.layers, family));
                }
                Vec::new()
            }
            Backend::Nftables => {
                let record = self.nftables.recorded(&plan.layers);
                self.nftables.tables(&plan.layers, &record).unwrap_or_default()
            }
        };
        for table in &mut tables {
            table.age = nft.age(&table.name);
        }
        tables.extend(nft.tables);
        tables.extend(iptables.tables);
        Ok(tables)
    }
}

/// The tables of legacy iptables in the namespace, named as listed tables are.
///
/// # Errors
/// They could not be asked for.
pub fn legacy_tables(_: &Inside) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (family, prefix) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        found.extend(
            iptables::legacy_tables(family)?.into_iter().map(|name| format!("{prefix} {name} (legacy)")),
        );
    }
    Ok(found)
}

/// Whether others in the namespace translate destinations of what comes in: whether they have a rule in a nat chain at prerouting, of nf_tables or of
/// either variant of iptables. `owners` are whose rules are ours. No program is started, and nothing is made by the question.
///
/// # Errors
/// The kernel could not be asked.
pub fn others_translate(inside: &Inside, owners: &[Ruleset]) -> Result<bool, Error> {
    if nft::others::translate(inside, owners)? {
        return Ok(true);
    }
    let names: Vec<Names> = owners.iter().map(|owner| Names::of(owner, TableKind::Nat)).collect();
    for family in [Family::V4, Family::V6] {
        if iptables::legacy_tables(family)?.iter().any(|table| table == TableKind::Nat.name()) {
            let is_ours = |chain: &str| names.iter().any(|names| names.contain(chain));
            if LegacySocket::open(inside)?.others_translate(family, is_ours)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Asks for links, addresses and routing of the calling thread's namespace.
fn route_socket(_: &Inside) -> Result<NetlinkSocket, Error> {
    let failed = |source| route::unlisted("ask for the interfaces and the routing of the namespace", source);
    Ok(NetlinkSocket::open(None).map_err(failed)?)
}
