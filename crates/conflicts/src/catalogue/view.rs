//! A namespace and a plan, with what all kinds of conflicts ask of them.

use std::cell::OnceCell;
use std::net::IpAddr;

use ruleset::listed::walk::{FirstPacket, Station, stations};
use ruleset::listed::{ListedChain, ListedRule, ListedTable, address_of, number_of, number_of_name};
use ruleset::{Action, Family, Hook, Plan};

use crate::{ObservedNetns, PlannedProxy};

/// Ids that nobody else is likely to ask for.
pub(super) const SOMEBODY: (u32, u32) = (65_533, 65_533);
/// A port that nobody else is likely to ask for.
const SOURCE_PORT: u16 = 41_233;

/// A namespace and a plan.
pub(super) struct NetnsView<'a> {
    pub(super) observed: &'a ObservedNetns,
    pub(super) plan: &'a Plan,
    /// A copy of what is ours, which few namespaces need.
    ours: OnceCell<ObservedNetns>,
    /// The interface by which the pod is reached.
    pub(super) interface: String,
    /// Where the plan leads packets, and by what it knows the proxy's own.
    pub(super) proxy: PlannedProxy,
    /// Source addresses that the plan gives to probes.
    pub(super) probe_sources: Vec<IpAddr>,
}

impl<'a> NetnsView<'a> {
    pub(super) fn new(observed: &'a ObservedNetns, plan: &'a Plan) -> Self {
        let chains = plan.layers.iter().flat_map(|layer| &layer.tables).flat_map(|table| &table.chains);
        let sources = chains.flat_map(|chain| &chain.rules).filter_map(|rule| match rule.action {
            Action::Snat { to } => Some(to),
            _ => None,
        });
        Self {
            observed,
            plan,
            ours: OnceCell::new(),
            interface: interface(observed),
            proxy: PlannedProxy::of(plan),
            probe_sources: sources.collect(),
        }
    }

    /// What is there without what others have.
    pub(super) fn ours(&self) -> &ObservedNetns {
        self.ours.get_or_init(|| self.observed.without_others())
    }

    /// Every chain, with its table.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&'a ListedTable, &'a ListedChain)> + use<'a> {
        self.observed.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
    }

    /// Every rule of others, with its chain and table.
    pub(super) fn foreign_rules(
        &self,
    ) -> impl Iterator<Item = (&'a ListedTable, &'a ListedChain, &'a ListedRule)> + use<'a> {
        self.chains().flat_map(|(table, chain)| {
            let rules = chain.rules.iter().filter(|rule| table.is_foreign(rule));
            rules.map(move |rule| (table, chain, rule))
        })
    }

    /// The base chains at a hook in which others may have rules.
    pub(super) fn foreign_stations(&self, hook: Hook, family: Family) -> Vec<Station<'a>> {
        let mut all = stations(&self.observed.tables, hook, family);
        all.retain(|station| !station.table.is_only_ours());
        all
    }

    /// The namespace's addresses of a family, as others reach it.
    pub(super) fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        let of_interface = self.observed.addresses_of(&self.interface);
        of_interface.filter(move |own| Family::of_address(*own) == family && !is_link_local(*own))
    }

    /// A TCP packet that a process of this user and group sends.
    pub(super) fn sent(&self, source: IpAddr, to: (IpAddr, u16), owner: (u32, u32)) -> FirstPacket {
        let out_interface = number_of_name(&self.interface);
        FirstPacket { out_interface, owner: Some(owner), ..packet(source, to) }
    }

    /// A TCP packet that comes in.
    pub(super) fn received(&self, source: IpAddr, to: (IpAddr, u16)) -> FirstPacket {
        FirstPacket { in_interface: number_of_name(&self.interface), ..packet(source, to) }
    }
}

fn packet(source: IpAddr, (to, port): (IpAddr, u16)) -> FirstPacket {
    FirstPacket {
        family: Family::of_address(to),
        source: number_of(source),
        destination: number_of(to),
        protocol: 6,
        source_port: SOURCE_PORT,
        destination_port: port,
        in_interface: 0,
        out_interface: 0,
        own_destination: false,
        socket_given: false,
        owner: None,
        mark: 0,
    }
}

/// The first interface with an address that others reach.
fn interface(observed: &ObservedNetns) -> String {
    let reached = |address: IpAddr| !address.is_loopback() && !is_link_local(address);
    let mut own = observed.addresses.iter().filter(|own| own.interface != "lo" && reached(own.address));
    own.next().map_or_else(|| "eth0".to_owned(), |own| own.interface.clone())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// A packet in words.
pub(super) fn told(packet: &FirstPacket) -> String {
    let name = match packet.protocol {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        other => format!("protocol {other}"),
    };
    let way = if packet.owner.is_some() { "" } else { "that comes in " };
    let to =
        std::net::SocketAddr::new(address_of(packet.destination, packet.family), packet.destination_port);
    let from = match packet.owner {
        Some((uid, gid)) if (uid, gid) != SOMEBODY => format!(" from uid {uid}, gid {gid}"),
        _ => String::new(),
    };
    format!("{name} {way}to {to}{from}")
}
