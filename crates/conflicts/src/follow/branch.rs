//! One of the ways that a packet may take.

use std::borrow::Cow;
use std::net::IpAddr;

use ruleset::eval::{Owner, Packet, State};
use ruleset::listed::walk::{
    FirstPacket, ListedPlace, PacketEnd, PacketState, Station, TrackedConnection, Tracking,
};
use ruleset::listed::{ListedAct, ListedTable, address_of, number_of, number_of_name, state};
use ruleset::{ChainKind, Family, Hook};

use super::{Arrival, LiveStop};

/// Why something becomes of a packet.
#[derive(Debug, Clone)]
pub(crate) enum VerdictCause<'a> {
    /// A rule.
    Rule(ListedPlace<'a>),
    /// The policy of a base chain.
    Policy(Station<'a>),
    /// It is not shown whether this chain runs before or after others of its priority.
    Order(Station<'a>),
    /// The kernel, without a rule.
    Kernel(Cow<'static, str>),
}

impl<'a> VerdictCause<'a> {
    /// Whether somebody else's rule or policy is the cause.
    pub(crate) fn is_foreign(&self) -> bool {
        match self {
            Self::Rule(place) => place.table.is_foreign(place.rule),
            Self::Policy(station) => !station.table.is_only_ours(),
            Self::Order(_) | Self::Kernel(_) => false,
        }
    }

    /// The table that it is in.
    pub(crate) fn table(&self) -> Option<&'a ListedTable> {
        match self {
            Self::Rule(place) => Some(place.table),
            Self::Policy(station) | Self::Order(station) => Some(station.table),
            Self::Kernel(_) => None,
        }
    }

    /// The hook at which it happens.
    pub(crate) fn hook(&self) -> Option<Hook> {
        match self {
            Self::Rule(place) => Some(place.base.hook),
            Self::Policy(station) | Self::Order(station) => Some(station.base.hook),
            Self::Kernel(_) => None,
        }
    }
}

/// The end of a way.
#[derive(Debug, Clone)]
pub(crate) enum BranchEnd<'a> {
    Socket { port: u16 },
    Left,
    Dropped(VerdictCause<'a>),
    Unknown(VerdictCause<'a>),
}

/// A hook that was passed.
#[derive(Debug, Clone)]
pub(crate) struct Passed<'a> {
    hook: Hook,
    packet: FirstPacket,
    names: (String, String),
    pub(crate) held: Vec<ListedPlace<'a>>,
    policy: Option<Station<'a>>,
}

/// One of the ways that a packet may take.
#[derive(Debug, Clone)]
pub(crate) struct PacketBranch<'a> {
    pub(crate) state: PacketState<'a>,
    /// Names of the interfaces by which it came in and leaves.
    pub(crate) interfaces: (String, String),
    /// The interface by which it leaves after this hook.
    pub(crate) next_out: Option<String>,
    /// What translated it, or led it to a transparent socket.
    pub(crate) taken: Option<(PacketEnd, ListedPlace<'a>)>,
    /// The first choice between two ways.
    pub(crate) doubt: Option<VerdictCause<'a>>,
    pub(crate) outcome: Option<BranchEnd<'a>>,
    pub(crate) passed: Vec<Passed<'a>>,
}

impl<'a> PacketBranch<'a> {
    pub(crate) fn new(packet: &Packet) -> Self {
        let first = FirstPacket {
            family: packet.family(),
            source: number_of(packet.source),
            destination: number_of(packet.destination),
            protocol: packet.protocol.number(),
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            in_interface: 0,
            out_interface: 0,
            own_destination: packet.own_destination,
            owner: packet.owner.map(|Owner { uid, gid }| (uid, gid)),
            socket_given: false,
            mark: packet.mark,
        };
        let names = (packet.in_interface.clone(), packet.out_interface.clone());
        let original = packet.original.map(|to| (number_of(to.ip()), to.port()));
        let connection = TrackedConnection {
            tracking: Tracking::NotYet,
            state: match packet.state {
                State::New => state::NEW,
                State::Established => state::ESTABLISHED,
                State::Related => state::RELATED,
                State::Invalid => state::INVALID,
            },
            mark: packet.ct_mark,
            reply: packet.reply,
            original,
            translated: (false, false),
        };
        let mut branch = Self::begin(first, names);
        branch.state.connection = connection;
        branch.state.listening = packet.listening;
        branch
    }

    /// The first packet of a connection, and the names of the interfaces by which it came in and leaves.
    pub(crate) fn begin(packet: FirstPacket, interfaces: (String, String)) -> Self {
        Self {
            state: PacketState::new(packet, TrackedConnection::default()),
            interfaces,
            next_out: None,
            taken: None,
            doubt: None,
            outcome: None,
            passed: Vec::new(),
        }
    }

    pub(crate) fn ended(mut self, outcome: BranchEnd<'a>) -> Self {
        self.outcome.get_or_insert(outcome);
        self
    }

    /// Comes to a hook.
    pub(crate) fn comes_to(&mut self, hook: Hook) {
        let sees = |hooks: &[Hook], name: &str| if hooks.contains(&hook) { number_of_name(name) } else { 0 };
        let (in_name, out_name) = &self.interfaces;
        self.state.packet.in_interface = sees(&[Hook::Prerouting, Hook::Input, Hook::Forward], in_name);
        self.state.packet.out_interface = sees(&[Hook::Output, Hook::Postrouting, Hook::Forward], out_name);
        self.passed.push(Passed {
            hook,
            packet: self.state.packet.clone(),
            names: self.interfaces.clone(),
            held: Vec::new(),
            policy: None,
        });
    }

    /// Has passed a base chain.
    pub(crate) fn has_met(&mut self) {
        self.state.packet.socket_given |= matches!(self.state.end, PacketEnd::Tproxy(_));
        if let (PacketEnd::Redirect(_) | PacketEnd::Dnat { .. } | PacketEnd::Tproxy(_), Some(by)) =
            (self.state.end, self.state.taker)
        {
            self.taken.get_or_insert((self.state.end, by));
        }
    }

    /// Has passed all chains of a hook.
    pub(crate) fn leaves(&mut self, hook: Hook) {
        if let Some(stop) = self.passed.last_mut() {
            stop.held = std::mem::take(&mut self.state.held);
            stop.policy = self.state.dropped_by_policy_of;
        }
        if self.state.end == PacketEnd::Dropped && self.outcome.is_none() {
            let by = self
                .state
                .dropped_by_policy_of
                .map(VerdictCause::Policy)
                .or(self.state.taker.map(VerdictCause::Rule));
            self.outcome = by.map(BranchEnd::Dropped);
        }
        self.state.end = PacketEnd::Pass;
        self.state.taker = None;
        self.state.met = 0;
        let translated = &mut self.state.connection.translated;
        match hook {
            // What no rule translates stays as it is (`nf_nat_alloc_null_binding` in nf_nat_core.c).
            _ if self.state.connection.tracking != Tracking::Yes => {}
            Hook::Prerouting | Hook::Output => translated.0 = true,
            Hook::Input | Hook::Postrouting => translated.1 = true,
            Hook::Forward => {}
        }
        if let Some(out) = self.next_out.take() {
            self.interfaces.1 = out;
        }
    }

    /// Whether two ways are the same from here on.
    pub(crate) fn goes_on_like(&self, other: &Self) -> bool {
        let rule = |place: &Option<ListedPlace<'_>>| place.map(|place| std::ptr::from_ref(place.rule));
        self.outcome.is_none()
            && other.outcome.is_none()
            && self.state.packet == other.state.packet
            && self.state.connection == other.state.connection
            && self.state.end == other.state.end
            && (self.state.end == PacketEnd::Dropped || rule(&self.state.taker) == rule(&other.state.taker))
            && self.interfaces == other.interfaces
            && self.next_out == other.next_out
            && self.taken.map(|(end, _)| end) == other.taken.map(|(end, _)| end)
    }

    /// Whether a rule of ours leads it where it goes.
    pub(crate) fn is_taken_by_ours(&self) -> bool {
        self.taken.is_some_and(|(end, place)| {
            place.rule.why.is_some() && matches!(end, PacketEnd::Redirect(_) | PacketEnd::Tproxy(_))
        })
    }

    /// What keeps a packet, which is not captured, from being so. `wanted` tells whether rules of ours alone would capture it.
    pub(crate) fn kept_by(&self, wanted: impl FnOnce() -> bool) -> Option<VerdictCause<'a>> {
        if let Some((_, place)) = self.taken {
            return Some(VerdictCause::Rule(place));
        }
        let foreign = self.state.untracked_by.or(self.state.marked_by);
        if let Some(place) = foreign.filter(|place| place.rule.why.is_none() && wanted()) {
            return Some(VerdictCause::Rule(place));
        }
        let ends_chain = |place: &&ListedPlace<'a>| {
            let ends = place.rule.acts.iter().any(|act| matches!(act, ListedAct::Accept | ListedAct::Return));
            ends && place.rule.why.is_some()
        };
        let held = || self.passed.iter().flat_map(|stop| &stop.held).filter(ends_chain);
        let in_nat = held().rfind(|place| place.base.kind == ChainKind::Nat);
        in_nat.or_else(|| held().next_back()).map(|place| VerdictCause::Rule(*place))
    }

    pub(crate) fn arrival(&self) -> Arrival {
        match self.outcome {
            Some(BranchEnd::Socket { port }) => Arrival::Socket { port },
            Some(BranchEnd::Left) => Arrival::Left,
            Some(BranchEnd::Dropped(_)) => Arrival::Gone,
            Some(BranchEnd::Unknown(_)) | None => Arrival::Unknown,
        }
    }

    /// The packet as it is now; `like` has what rules do not change.
    pub(crate) fn packet(&self, like: &Packet) -> Packet {
        let packet = told(&self.state.packet, &self.interfaces, like);
        Packet { ct_mark: self.state.connection.mark, ..packet }
    }

    pub(crate) fn stops(&self, like: &Packet) -> Vec<LiveStop> {
        let stop = |passed: &Passed<'a>| {
            let rules = passed.held.iter().map(|place| VerdictCause::Rule(*place).told());
            let policy = passed.policy.map(|station| VerdictCause::Policy(station).told());
            LiveStop {
                hook: passed.hook,
                packet: told(&passed.packet, &passed.names, like),
                rules: rules.chain(policy).collect(),
            }
        };
        self.passed.iter().map(stop).collect()
    }

    pub(crate) fn destination(&self) -> IpAddr {
        address_of(self.state.packet.destination, self.family())
    }

    pub(crate) fn family(&self) -> Family {
        self.state.packet.family
    }
}

fn told(packet: &FirstPacket, (in_interface, out_interface): &(String, String), like: &Packet) -> Packet {
    Packet {
        source: address_of(packet.source, packet.family),
        destination: address_of(packet.destination, packet.family),
        destination_port: packet.destination_port,
        in_interface: in_interface.clone(),
        out_interface: out_interface.clone(),
        own_destination: packet.own_destination,
        owner: packet.owner.map(|(uid, gid)| Owner { uid, gid }),
        mark: packet.mark,
        ..like.clone()
    }
}
