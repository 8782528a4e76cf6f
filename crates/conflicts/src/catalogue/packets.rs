//! Packets that the plan captures, and what becomes of them with everything that is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ruleset::listed::samples::Samples;
use ruleset::listed::walk::{FirstPacket, ListedPlace};
use ruleset::listed::{Condition, Field, address_of};
use ruleset::{Family, Hook};

use super::view::{NetnsView, SOMEBODY};
use crate::follow::{BranchEnd, NetnsScene, PacketBranch, VerdictCause};
use crate::{Conflict, ConflictId, Severity};

/// Addresses that no pod has (RFC 5737, RFC 3849).
pub(super) const SOMEWHERE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
pub(super) const SOMEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x4d);
/// Ports that packets of each kind go to, beside those that the plan names.
const PORTS: [u16; 3] = [41_234, 80, 443];
/// The most values of the plan's conditions, and the most packets of a hook and family that others are made of.
const MAX_VALUES: usize = 8;
const MAX_BASES: usize = 12;
/// The most packets of a hook and family.
const MAX_PACKETS: usize = 2_000;
/// The most rules that all packets meet: some ten milliseconds of work.
const MAX_MEETINGS: usize = 2_000_000;

/// A packet that the plan captures, and the ways that it may take instead.
pub(super) struct Hit<'a> {
    pub(super) packet: FirstPacket,
    /// The port to which the plan leads it.
    pub(super) port: u16,
    /// The ways that it may take.
    pub(super) ways: Vec<PacketBranch<'a>>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Hits<'a> {
    pub(super) all: Vec<Hit<'a>>,
    /// There are more than are tried.
    pub(super) too_many: Option<String>,
}

/// What becomes of a packet on one way instead of being captured.
pub(super) enum Escape<'a> {
    /// A rule translates it to elsewhere, or takes it to another socket.
    Translated(ListedPlace<'a>),
    /// A rule keeps connection tracking from it.
    Untracked(ListedPlace<'a>),
    /// A rule changes its mark.
    Marked(ListedPlace<'a>),
    /// It is dropped: after the plan's rules led it to the proxy, or before.
    Dropped { by: VerdictCause<'a>, after: bool },
    /// A rule could not be read, which may do anything.
    Unread(ListedPlace<'a>),
}

impl<'a> Hits<'a> {
    /// Takes packets of each kind that the plan captures, and such as each rule of others would meet, through everything that is there.
    pub(super) fn of(view: &NetnsView<'a>) -> Self {
        let mut hits = Self::default();
        // Where there are rules of ours only, what they capture is captured.
        if !view.observed.has_rules_of_others() {
            return hits;
        }
        let (everything, ours) = (NetnsScene::new(view.observed), NetnsScene::new(view.ours()));
        let mut met = 0;
        for (hook, family) in [Hook::Output, Hook::Prerouting]
            .into_iter()
            .flat_map(|hook| [Family::V4, Family::V6].map(|family| (hook, family)))
        {
            let bases = bases(view, &ours, hook, family);
            let stations = view.foreign_stations(hook, family);
            let mut samples = Samples::new(&bases, MAX_PACKETS);
            for station in stations.iter().filter(|_| !bases.is_empty()) {
                samples.of_chain(station.table, &station.chain.rules, &mut Vec::new());
            }
            let mut whole = !samples.full;
            for packet in samples.packets {
                whole &= met <= MAX_MEETINGS;
                let Some(port) = captured(view, &ours, &packet).filter(|_| met <= MAX_MEETINGS) else {
                    continue;
                };
                let (ways, rules) = everything.branches(view.start(&packet));
                met += rules;
                hits.all.push(Hit { packet, port, ways });
            }
            if !whole {
                hits.too_many = Some("there are more rules than packets are made up for".to_owned());
            }
        }
        hits
    }
}

impl NetnsView<'_> {
    pub(super) fn start<'b>(&self, packet: &FirstPacket) -> PacketBranch<'b> {
        let interface = self.interface.clone();
        let names = match packet.owner {
            Some(_) => (String::new(), interface),
            None => (interface, String::new()),
        };
        PacketBranch::begin(packet.clone(), names)
    }
}

/// The port to which rules of ours alone lead a packet.
fn captured(view: &NetnsView<'_>, ours: &NetnsScene<'_>, packet: &FirstPacket) -> Option<u16> {
    let (ways, _) = ours.branches(view.start(packet));
    match ways.as_slice() {
        [way] if way.is_taken_by_ours() => match way.outcome {
            Some(BranchEnd::Socket { port }) => Some(port),
            _ => None,
        },
        _ => None,
    }
}

/// Packets of each kind that the plan captures.
fn bases(view: &NetnsView<'_>, ours: &NetnsScene<'_>, hook: Hook, family: Family) -> Vec<FirstPacket> {
    let Some(own) = view.addresses(family).next() else { return Vec::new() };
    let somewhere: IpAddr = match family {
        Family::V4 => SOMEWHERE_V4.into(),
        Family::V6 => SOMEWHERE_V6.into(),
    };
    let mut ports = PORTS.to_vec();
    ports.extend(values(view, Field::DestinationPort).into_iter().map(|port| port as u16));
    let mut destinations = vec![somewhere];
    let named = values(view, Field::Destination(family));
    destinations.extend(named.into_iter().map(|number| address_of(number, family)));
    let mut packets = Vec::new();
    if hook == Hook::Output {
        packets.push(FirstPacket { protocol: 17, ..view.sent(own, (somewhere, 53), SOMEBODY) });
    }
    for port in ports {
        match hook {
            Hook::Output => {
                packets.extend(destinations.iter().map(|to| view.sent(own, (*to, port), SOMEBODY)));
            }
            _ => packets.push(view.received(somewhere, (own, port))),
        }
    }
    packets.retain(|packet| captured(view, ours, packet).is_some());
    packets.truncate(MAX_BASES);
    packets
}

/// Numbers of a field that conditions of ours name, some for each condition.
fn values(view: &NetnsView<'_>, wanted: Field) -> Vec<u128> {
    let chains = view.ours().tables.iter().flat_map(|table| &table.chains);
    let conditions = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.conditions);
    let mut found: Vec<u128> = Vec::new();
    for condition in conditions {
        let Condition::In { field, mask: u128::MAX, ranges, .. } = condition else { continue };
        // The first address of a network is seldom a host's.
        let inside = ranges.iter().map(|(low, high)| if high > low { low + 1 } else { *low });
        let new: Vec<u128> = inside.filter(|value| *field == wanted && !found.contains(value)).collect();
        found.extend(new);
    }
    found.truncate(MAX_VALUES);
    found
}

impl<'a> Hit<'a> {
    /// What becomes of the packet on a way instead of being captured; absent where it is, and where rules of ours drop it.
    pub(super) fn escape(&self, way: &PacketBranch<'a>) -> Option<Escape<'a>> {
        let foreign =
            |place: Option<ListedPlace<'a>>| place.filter(|place| place.table.is_foreign(place.rule));
        let ours = way.is_taken_by_ours();
        match &way.outcome {
            Some(BranchEnd::Socket { port }) if ours && *port == self.port => return None,
            Some(BranchEnd::Unknown(VerdictCause::Rule(place))) => return Some(Escape::Unread(*place)),
            Some(BranchEnd::Dropped(by)) if by.is_foreign() => {
                return Some(Escape::Dropped { by: by.clone(), after: ours });
            }
            Some(BranchEnd::Dropped(VerdictCause::Rule(_) | VerdictCause::Policy(_))) => return None,
            _ => {}
        }
        foreign(way.taken.map(|(_, place)| place))
            .map(Escape::Translated)
            .or_else(|| foreign(way.state.untracked_by).map(Escape::Untracked))
            .or_else(|| foreign(way.state.marked_by).map(Escape::Marked))
    }

    /// The conflict by a rule that lets the packet escape.
    pub(super) fn by(
        &self,
        id: ConflictId,
        place: ListedPlace<'_>,
        affects: String,
        advice: &str,
    ) -> Conflict {
        let severity = self.severity(Severity::Error);
        Conflict::of_cause(id, severity, &VerdictCause::Rule(place), affects, advice)
    }

    /// How bad it is, which is certain only where the packet escapes on every way and each is known.
    pub(super) fn severity(&self, worst: Severity) -> Severity {
        let certain = |way: &PacketBranch<'a>| {
            !matches!(way.outcome, Some(BranchEnd::Unknown(_)) | None) && self.escape(way).is_some()
        };
        if self.ways.iter().all(certain) { worst } else { worst.min(Severity::Warning) }
    }
}
