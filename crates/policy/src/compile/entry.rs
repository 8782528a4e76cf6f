//! Where packets of pods enter the node, before anything else judges them: an interface brings its pod's source addresses only, and datagrams that
//! were sent to see whether packets of a pod come by here are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use ruleset::{
    Action, ArrivalKey, Base, Chain, ChainKind, Contents, Element, Family, Hook, InterfaceName, Key, KeyType,
    MapVerdict, Match, Ports, Protocol, Rule, Ruleset, Set, Side, Table, TableDelta, TableKind,
};

use super::{KNOWN_CHAINS, POLICY_OWNER};
use crate::index::LocalName;

/// The kind of the table that has these rules.
pub const ENTRY_TABLE: TableKind = TableKind::Raw;
/// The chain that packets come to.
pub const ENTRY_CHAIN: &str = "prerouting";
/// Before connection tracking, and before what other programs usually do there.
const PRIORITY: i32 = -310;

/// By the interface that a packet comes in by: the chain that knows its addresses.
const MAPS: [(Family, &str); 2] =
    [(Family::V4, "istio-np-interfaces-v4"), (Family::V6, "istio-np-interfaces-v6")];
/// Addresses of the link itself, by which neighbours find one another.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
/// From where an interface asks whether an address is free that it means to take.
const NO_ADDRESS: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 128);

/// The node's end of a pod's interface, by which no other pod's packets come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryInterface {
    /// Its name.
    pub name: InterfaceName,
    /// Its number.
    pub index: u32,
    /// The addresses that the pod may send from.
    pub addresses: Box<[IpAddr]>,
}

/// A datagram that shows whether a pod's packets come by here: nothing answers at its destination, which documents keep for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryProbe {
    /// By which interface it comes in.
    pub interface: InterfaceName,
    /// From which port.
    pub source_port: u16,
    /// Where to.
    pub destination: Ipv4Addr,
    /// To which port.
    pub port: u16,
}

/// The interfaces of a node's pods, kept up to date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEntry {
    pods: BTreeMap<LocalName, EntryInterface>,
}

// === impl EntryProbe ===

impl EntryProbe {
    /// The packet, from this address.
    pub fn packet(&self, source: Ipv4Addr) -> [u8; 28] {
        let mut packet = [0; 28];
        // Version and length of the header; length; time to live, which takes it nowhere else; UDP.
        (packet[0], packet[3], packet[8], packet[9]) = (0x45, 28, 1, 17);
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&self.destination.octets());
        let sum: u32 =
            packet[..20].chunks_exact(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        // The rest is less than 2¹⁶.
        let checksum = !u16::try_from(folded).unwrap_or_default();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet[20..22].copy_from_slice(&self.source_port.to_be_bytes());
        packet[22..24].copy_from_slice(&self.port.to_be_bytes());
        // Of the header alone; without a checksum.
        packet[25] = 8;
        packet
    }

    fn rule(&self) -> Rule {
        let matches = vec![
            Match::InInterface { name: self.interface.to_string().into(), not: false },
            Match::Destination { net: IpNet::from(IpAddr::V4(self.destination)), not: false },
            Match::Protocol(Protocol::Udp),
            Match::SourcePort { ports: Ports::One(self.source_port), not: false },
            Match::DestinationPort { ports: Ports::One(self.port), not: false },
        ];
        Rule::new(matches, Action::Drop, "packets of a pod come by here")
    }
}

// === impl NodeEntry ===

impl NodeEntry {
    /// Whether there is no interface.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The interface that a pod was said to have.
    pub fn of(&self, pod: &LocalName) -> Option<&EntryInterface> {
        self.pods.get(pod)
    }

    /// The pods that have one.
    pub fn pods(&self) -> impl Iterator<Item = &LocalName> {
        self.pods.keys()
    }

    /// Says which interface is a pod's, if that is known, and gives the transaction that does the same in the kernel. Whoever was said to have that
    /// interface before has it no more.
    pub fn set(&mut self, pod: &LocalName, now: Option<EntryInterface>) -> TableDelta {
        let mut delta = TableDelta::default();
        if self.pods.get(pod) == now.as_ref() {
            return delta;
        }
        let is_same = |one: &EntryInterface| {
            now.as_ref().is_some_and(|now| one.name == now.name || one.index == now.index)
        };
        let gone: Vec<EntryInterface> =
            self.pods.extract_if(.., |name, one| name == pod || is_same(one)).map(|(_, one)| one).collect();
        let chains: BTreeSet<String> = gone.iter().map(EntryInterface::chain).collect();
        let kept = now.as_ref().map(EntryInterface::chain);
        delta.gone_chains = chains.into_iter().filter(|chain| Some(chain) != kept.as_ref()).collect();
        for (family, map) in MAPS {
            for one in &gone {
                let key = one.key(family);
                match &now {
                    Some(now) if now.name == one.name && now.index == one.index => {}
                    Some(now) if now.name == one.name => {
                        delta.replaced.entry(map.to_owned()).or_default().push(key);
                    }
                    _ => delta.of(map).remove(key),
                }
            }
            if let Some(now) = &now
                && !gone.iter().any(|one| one.name == now.name && one.index == now.index)
            {
                delta.of(map).add(now.element(family));
            }
        }
        if let Some(now) = now {
            delta.chains.push(now.rules());
            self.pods.insert(pod.clone(), now);
        }
        delta
    }

    /// The rules.
    pub fn rules(&self) -> Ruleset {
        let sets = MAPS.map(|(family, map)| Set::kept(map, KeyType::Arrival(family)).to_verdicts());
        let chains = std::iter::once(arrival(&[])).chain(self.pods.values().map(EntryInterface::rules));
        let tables = vec![Table { kind: ENTRY_TABLE, sets: sets.into(), chains: chains.collect() }];
        Ruleset { owner: POLICY_OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: true, tables }
    }

    /// Where the maps lead.
    pub fn contents(&self) -> Contents {
        let (mut contents, mut delta) = (Contents::default(), TableDelta::default());
        for (family, map) in MAPS {
            self.pods.values().for_each(|one| delta.of(map).add(one.element(family)));
        }
        delta.members.iter().for_each(|(map, members)| contents.apply(map, members));
        contents
    }

    /// The transaction after which these datagrams are counted and dropped, each by the rule of its number in [`ENTRY_CHAIN`]; without any, the one
    /// that ends it.
    pub fn expect(probes: &[EntryProbe]) -> TableDelta {
        TableDelta { chains: vec![arrival(probes)], ..TableDelta::default() }
    }
}

/// Where packets arrive.
fn arrival(probes: &[EntryProbe]) -> Chain {
    let base = Some(Base { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: PRIORITY });
    let maps = MAPS.map(|(family, map)| {
        let (map, keys) = (map.into(), KeyType::Arrival(family));
        Rule::new(Vec::new(), Action::VerdictMap { map, keys, side: Side::Source }, "interfaces of pods")
    });
    let rules = probes.iter().map(EntryProbe::rule).chain(maps).collect();
    Chain { name: ENTRY_CHAIN.into(), base, rules, leading: 0 }
}

// === impl EntryInterface ===

impl EntryInterface {
    /// By its number: a name may have more than a chain's can.
    fn chain(&self) -> String {
        format!("istio-np-i{}", self.index)
    }

    fn key(&self, family: Family) -> Key {
        ArrivalKey { family, name: self.name }.into()
    }

    fn element(&self, family: Family) -> Element {
        let verdict = Some(MapVerdict::Jump(self.chain().into()));
        Element { verdict, ..Element::from(self.key(family)) }
    }

    fn rules(&self) -> Chain {
        let from = |net: IpNet| Match::Source { net, not: false };
        let accept = |matches, why: &'static str| Rule::new(matches, Action::Accept, why).uncounted();
        let own = self
            .addresses
            .iter()
            .map(|address| accept(vec![from(IpNet::from(*address))], "the pod's address"));
        let mut rules: Vec<Rule> = own.collect();
        rules.push(accept(vec![from(LINK_LOCAL.into())], "neighbours find one another"));
        let asks = vec![from(NO_ADDRESS.into()), Match::Protocol(Protocol::Icmpv6)];
        rules.push(accept(asks, "asks whether an address is free"));
        rules.push(Rule::new(
            Vec::new(),
            Action::Drop,
            format!("not an address of the pod behind {}", self.name),
        ));
        Chain { name: self.chain().into(), base: None, rules, leading: 0 }
    }
}
