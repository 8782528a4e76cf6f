//! Whether other rules keep packets from a plan that captures them.
//!
//! Packets are made up from the plan and from the rules that are there: for each rule, such as it would meet. Those that the plan alone
//! captures are taken through everything that is there. One that comes out otherwise has escaped, and the rule that did it is named. A
//! packet that is dropped has not escaped.
//!
//! What is concluded is proven only if each rule on the way could be read, and in every order in which the kernel may have put chains of
//! equal priority. Everything else is possible, and said to be no more.

use std::fmt;
use std::net::IpAddr;

use super::samples::Samples;
use super::walk::{Fate, FirstPacket, PacketEnd, Station, StationKey, arrange, stations, walk};
use super::{Condition, Field, ListedRule, ListedTable, address_of, number_of, number_of_name};
use crate::rule::{Family, Hook};

/// Addresses that no pod has (RFC 5737, RFC 3849), and numbers that nobody else is likely to ask for.
const SOMEWHERE_V4: u32 = 0xc633_644d;
const SOMEWHERE_V6: u128 = 0x2001_0db8_0000_0000_0000_0000_0000_004d;
const SOME_ID: u32 = 65_533;
const SOME_PORT: u16 = 41_234;
/// The most values of a plan's conditions, and the most packets of a hook, that others are made of.
const MAX_VALUES: usize = 24;
const MAX_BASES: usize = 24;
/// The most rules that packets meet for a hook and a family, all together: some ten milliseconds of work.
const MAX_MEETINGS: usize = 1_000_000;
/// The most packets of a hook and a family.
const MAX_PACKETS: usize = 4_000;
/// The most findings that are kept.
const MAX_FINDINGS: usize = 16;

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The plan's tables alone.
    pub plan: &'a [ListedTable],
    /// All tables of the namespace, those with the plan's rules among them.
    pub present: &'a [ListedTable],
    /// The pod's own addresses. What comes to others is not the pod's.
    pub addresses: &'a [IpAddr],
    /// The pod's interface.
    pub interface: &'a str,
}

/// A rule by which packets escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// The rule.
    pub rule: String,
    /// What it does to which packet.
    pub why: String,
    /// Whether that is certain.
    pub proven: bool,
}

/// Everything that was found, and whether that may not be all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// One for each rule.
    pub found: Vec<Finding>,
    /// There are too many rules to look at each.
    pub incomplete: bool,
}

/// Looks for rules by which packets escape that the plan captures.
#[must_use]
pub fn find(scene: &Scene<'_>) -> Findings {
    let mut findings = Findings::default();
    for hook in [Hook::Output, Hook::Prerouting] {
        for family in [Family::V4, Family::V6] {
            let look = Look::new(scene, hook, family);
            let bases = look.bases();
            if !bases.is_empty() {
                look.judge(&bases, &mut findings);
            }
        }
    }
    findings
}

struct Look<'a> {
    scene: &'a Scene<'a>,
    hook: Hook,
    family: Family,
    plan: Vec<Station<'a>>,
    /// What is there, in every order that may be.
    orders: Vec<Vec<Station<'a>>>,
}

impl<'a> Look<'a> {
    fn new(scene: &'a Scene<'a>, hook: Hook, family: Family) -> Self {
        let plan = stations(scene.plan, hook, family);
        let (ours_first, others_first) = orders(&stations(scene.present, hook, family));
        let orders = match others_first {
            Some(others_first) => vec![ours_first, others_first],
            None => vec![ours_first],
        };
        Self { scene, hook, family, plan, orders }
    }

    /// The port to which the plan takes a packet.
    fn captured(&self, packet: &FirstPacket) -> Option<u16> {
        let fate = walk(&self.plan, packet);
        match fate.end {
            PacketEnd::Redirect(port) | PacketEnd::Tproxy(port) if fate.unread.is_none() => Some(port),
            _ => None,
        }
    }

    /// Packets of each kind that the plan captures.
    fn bases(&self) -> Vec<FirstPacket> {
        let values = |wanted: fn(&Field) -> bool| self.values_of_plan(wanted);
        let somewhere = match self.family {
            Family::V4 => SOMEWHERE_V4.into(),
            Family::V6 => SOMEWHERE_V6,
        };
        let own = self.scene.addresses.iter().filter(|a| a.is_ipv4() == (self.family == Family::V4));
        let own: Vec<u128> = own.map(|address| number_of(*address)).collect();
        // A pod without an address of the family neither sends nor gets any such packet.
        if own.is_empty() {
            return Vec::new();
        }
        let inbound = self.hook == Hook::Prerouting;
        let (sources, mut destinations) =
            if inbound { (vec![somewhere], own) } else { (own, vec![somewhere]) };
        if !inbound {
            destinations.extend(values(|field| matches!(field, Field::Destination(_))));
        }
        let mut ports = vec![u128::from(SOME_PORT)];
        ports.extend(values(|field| *field == Field::DestinationPort));
        let groups = [vec![u128::from(SOME_ID)], values(|field| *field == Field::Gid)].concat();
        let interface = number_of_name(self.scene.interface);
        let mut bases = Vec::new();
        let mut add = |protocol: u8, destination: u128, port: u128, gid: u128| {
            let packet = FirstPacket {
                family: self.family,
                source: sources.first().copied().unwrap_or(somewhere),
                destination,
                protocol,
                source_port: SOME_PORT - 1,
                destination_port: port as u16,
                in_interface: if inbound { interface } else { 0 },
                out_interface: if inbound { 0 } else { interface },
                own_destination: inbound,
                socket_given: false,
                owner: (!inbound).then_some((SOME_ID, gid as u32)),
                mark: 0,
            };
            if bases.len() < MAX_BASES && !bases.contains(&packet) && self.captured(&packet).is_some() {
                bases.push(packet);
            }
        };
        for gid in groups {
            for destination in &destinations {
                add(6, *destination, SOME_PORT.into(), gid);
            }
            for port in &ports {
                for destination in destinations.iter().take(2) {
                    add(6, *destination, *port, gid);
                }
            }
            for destination in &destinations {
                add(17, *destination, 53, gid);
            }
        }
        bases
    }

    /// Numbers that conditions of the plan name.
    fn values_of_plan(&self, wanted: fn(&Field) -> bool) -> Vec<u128> {
        let chains = self.scene.plan.iter().flat_map(|table| &table.chains);
        let conditions = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.conditions);
        let mut found = Vec::new();
        for condition in conditions {
            let Condition::In { field, mask: u128::MAX, ranges, .. } = condition else { continue };
            let right_family = match field {
                Field::Source(family) | Field::Destination(family) => *family == self.family,
                _ => true,
            };
            if right_family && wanted(field) {
                for (low, high) in ranges {
                    // The first address of a network is seldom a host's.
                    let value = if high > low { low + 1 } else { *low };
                    if found.len() < MAX_VALUES && !found.contains(&value) {
                        found.push(value);
                    }
                }
            }
        }
        found
    }

    fn judge(&self, bases: &[FirstPacket], findings: &mut Findings) {
        let chains = self.scene.present.iter().flat_map(|table| &table.chains);
        let rules: usize = chains.map(|chain| chain.rules.len()).sum();
        let most = (MAX_MEETINGS / rules.max(1)).min(MAX_PACKETS);
        let mut samples = Samples::new(bases, most);
        for station in self.orders.iter().flatten().take(64) {
            samples.of_chain(station.table, &station.chain.rules, &mut Vec::new());
        }
        findings.incomplete |= samples.full;
        let mut met = 0;
        for packet in &samples.packets {
            if met > MAX_MEETINGS {
                findings.incomplete = true;
                break;
            }
            let Some(port) = self.captured(packet) else { continue };
            let fates: Vec<Fate<'_>> = self.orders.iter().map(|order| walk(order, packet)).collect();
            met += fates.iter().map(|fate| fate.met).sum::<usize>();
            let escaped = |fate: &&Fate<'_>| self.escapes(packet, fate, port);
            let certain = |fate: &Fate<'_>| escaped(&fate) && fate.unread.is_none();
            let fate = fates.iter().find(escaped);
            // By a rule of the plan's own nothing escapes: it would only have been read otherwise than the plan.
            let foreign = fate.and_then(|fate| fate.by).is_none_or(|place| !self.is_planned(place.rule));
            let proven = foreign && fates.iter().all(certain);
            let by = match fate {
                Some(fate) => fate.by.or(fate.unread),
                None => fates.iter().find_map(|fate| fate.unread),
            };
            let Some(place) = by else { continue };
            let why = Why { packet, port, end: fate.map(|fate| fate.end), proven };
            findings.add(Finding {
                table: place.table.name.clone(),
                chain: place.chain.name.clone(),
                rule: place.rule.to_string(),
                why: why.to_string(),
                proven,
            });
        }
    }

    fn is_planned(&self, rule: &ListedRule) -> bool {
        let chains = self.scene.plan.iter().flat_map(|table| &table.chains);
        chains
            .flat_map(|chain| &chain.rules)
            .any(|own| own.conditions == rule.conditions && own.acts == rule.acts)
    }

    fn escapes(&self, packet: &FirstPacket, fate: &Fate<'_>, wanted: u16) -> bool {
        let addresses = self.scene.addresses;
        match fate.end {
            PacketEnd::Dropped => false,
            PacketEnd::Redirect(port) | PacketEnd::Tproxy(port) => port != wanted,
            PacketEnd::Pass => true,
            PacketEnd::Dnat { to, port, named } => {
                let here = to.is_none_or(|to| to.is_loopback() || addresses.contains(&to));
                let elsewhere = to.is_some_and(|to| number_of(to) != packet.destination);
                // The pod's own translation of an address that it does not have: nobody else would take what goes there.
                let own_service = named && elsewhere && !packet.goes_to(addresses);
                !(own_service || here && port == wanted)
            }
        }
    }
}

/// The order with chains of the plan's tables before others of equal priority, unless those are known to be younger; and the other one,
/// where that differs. The kernel puts the chain that came last before those of equal priority (`nf_hook_entries_grow`); a chain can be
/// younger than its table.
fn orders<'a>(stations: &[Station<'a>]) -> (Vec<Station<'a>>, Option<Vec<Station<'a>>>) {
    let ours: Vec<Station<'_>> = stations.iter().copied().filter(|station| station.table.ours).collect();
    let youngest = |station: &Station<'_>| {
        let others = ours.iter().filter(|own| own.order == station.order && own.table != station.table);
        others.map(|own| own.table.age).max()
    };
    // Whether a chain of others is younger for certain, or perhaps; of the plan's own it is neither.
    let younger = |station: &Station<'_>| match youngest(station) {
        Some(own) if !station.table.ours => match (own, station.table.age) {
            (Some(own), Some(age)) if age > own => (true, true),
            _ => (false, true),
        },
        _ => (false, false),
    };
    let rank = |first: bool, station: &Station<'_>| match (first, station.table.ours) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    };
    let mut keys: [Vec<StationKey>; 2] = [Vec::new(), Vec::new()];
    for station in stations {
        let (certain, perhaps) = younger(station);
        keys[0].push((station.order, rank(certain, station)));
        keys[1].push((station.order, rank(perhaps, station)));
    }
    let (first, second) = (arrange(stations, &keys[0]), arrange(stations, &keys[1]));
    let same = first.iter().zip(&second).all(|(a, b)| std::ptr::eq(a.chain, b.chain));
    (first, (!same).then_some(second))
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        let same =
            |f: &Finding| f.table == finding.table && f.chain == finding.chain && f.rule == finding.rule;
        match self.found.iter().position(same) {
            Some(at) if finding.proven && !self.found[at].proven => self.found[at] = finding,
            Some(_) => {}
            None if self.found.len() < MAX_FINDINGS => self.found.push(finding),
            None => self.incomplete = true,
        }
    }
}

/// A reason in words.
struct Why<'a> {
    packet: &'a FirstPacket,
    port: u16,
    end: Option<PacketEnd>,
    proven: bool,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FirstPacket { family, destination, destination_port, protocol, owner, .. } = self.packet;
        let name = if *protocol == 6 { "TCP" } else { "UDP" };
        let way = if owner.is_some() { "" } else { "that comes in " };
        let address = std::net::SocketAddr::new(address_of(*destination, *family), *destination_port);
        write!(f, "{name} {way}to {address}")?;
        if let Some((uid, gid)) = owner.filter(|owner| *owner != (SOME_ID, SOME_ID)) {
            write!(f, " from uid {uid}, gid {gid}")?;
        }
        f.write_str(if self.proven { "" } else { " perhaps" })?;
        match self.end {
            Some(PacketEnd::Redirect(port) | PacketEnd::Tproxy(port)) => write!(f, " goes to port {port}")?,
            Some(PacketEnd::Dnat { to: Some(to), port, .. }) => write!(f, " goes to {to}, port {port},")?,
            Some(PacketEnd::Dnat { to: None, .. }) => f.write_str(" goes elsewhere")?,
            _ => f.write_str(" goes on")?,
        }
        write!(f, " instead of to port {}", self.port)
    }
}
