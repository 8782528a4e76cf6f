//! A packet's way from hook to hook.

use std::cell::OnceCell;

use ruleset::listed::address_of;
use ruleset::listed::walk::{PacketEnd, Station};
use ruleset::{ChainKind, Family, Hook};

use super::branch::{BranchEnd, PacketBranch, VerdictCause};
use super::order::{Group, Meeting, groups};
use super::routing::{Asked, Routed, route};
use crate::ObservedNetns;

/// The loopback interface.
const LOOPBACK: &str = "lo";
/// The most ways through one base chain, and through a hook, that are tried.
const MAX_WAYS: usize = 128;
const MAX_BRANCHES: usize = 64;
/// The most rules that all ways together meet: some ten milliseconds of work.
const MAX_MEETINGS: usize = 1_000_000;

/// A namespace through which packets are taken.
pub(crate) struct NetnsScene<'a> {
    observed: &'a ObservedNetns,
    /// By hook and family, as they are asked for.
    groups: [[OnceCell<Vec<Group<'a>>>; 2]; 5],
}

impl<'a> NetnsScene<'a> {
    pub(crate) fn new(observed: &'a ObservedNetns) -> Self {
        Self { observed, groups: Default::default() }
    }

    /// What packets of the family meet at a hook.
    fn groups(&self, hook: Hook, family: Family) -> &[Group<'a>] {
        let known = &self.groups[hook as usize][usize::from(family == Family::V6)];
        known.get_or_init(|| groups(self.observed, hook, family))
    }

    /// Every way that a packet may take, each with its outcome, at least one; and how many rules were met.
    pub(crate) fn branches(&self, start: PacketBranch<'a>) -> (Vec<PacketBranch<'a>>, usize) {
        let mut way = Way { scene: self, observed: self.observed, met: 0 };
        let branches = match start.interfaces.0.is_empty() {
            true => way.is_sent(start),
            false => way.arrives(vec![start], false),
        };
        (branches, way.met)
    }
}

/// A packet's ways through a namespace.
struct Way<'a, 's> {
    scene: &'s NetnsScene<'a>,
    observed: &'a ObservedNetns,
    /// Rules that were met on all ways.
    met: usize,
}

impl<'a> Way<'a, '_> {
    fn is_sent(&mut self, mut start: PacketBranch<'a>) -> Vec<PacketBranch<'a>> {
        if start.interfaces.1.is_empty() {
            match self.routed(&start, LOOPBACK) {
                Routed::Local => LOOPBACK.clone_into(&mut start.interfaces.1),
                Routed::Out(interface) => start.interfaces.1 = interface,
                Routed::Gone(why) => {
                    return vec![start.ended(BranchEnd::Dropped(VerdictCause::Kernel(why.into())))];
                }
                Routed::Unknown(why) => {
                    return vec![start.ended(BranchEnd::Unknown(VerdictCause::Kernel(why.into())))];
                }
            }
        }
        let sent = self.pass(vec![start], Hook::Output);
        let sent = sent.into_iter().map(|branch| match branch.taken {
            // No socket takes it there.
            Some((PacketEnd::Tproxy(_), by)) => branch.ended(BranchEnd::Dropped(VerdictCause::Rule(by))),
            _ => branch,
        });
        let sent = self.pass(sent.collect(), Hook::Postrouting);
        let (here, left): (Vec<_>, Vec<_>) =
            sent.into_iter().partition(|branch| branch.outcome.is_none() && branch.interfaces.1 == LOOPBACK);
        let mut ends: Vec<_> = left.into_iter().map(|branch| branch.ended(BranchEnd::Left)).collect();
        if !here.is_empty() {
            let here = here.into_iter().map(|mut branch| {
                branch.interfaces.0 = std::mem::take(&mut branch.interfaces.1);
                branch.state.packet.owner = None;
                branch
            });
            ends.extend(self.arrives(here.collect(), true));
        }
        ends
    }

    /// `looped`: it was sent here, and its route is known.
    fn arrives(&mut self, branches: Vec<PacketBranch<'a>>, looped: bool) -> Vec<PacketBranch<'a>> {
        let arrived: Vec<_> = branches.into_iter().map(|branch| self.with_redirect(branch)).collect();
        let arrived = self.pass(arrived, Hook::Prerouting);
        let (mut here, mut passed_on) = (Vec::new(), Vec::new());
        for mut branch in arrived {
            if branch.outcome.is_some() || looped {
                here.push(branch);
                continue;
            }
            let interface = branch.interfaces.0.clone();
            match self.destined(&branch, &interface) {
                Routed::Local => here.push(branch),
                Routed::Out(interface) => {
                    if branch.interfaces.1.is_empty() || branch.taken.is_some() {
                        branch.interfaces.1 = interface;
                    }
                    passed_on.push(branch);
                }
                Routed::Gone(why) => {
                    here.push(branch.ended(BranchEnd::Dropped(VerdictCause::Kernel(why.into()))));
                }
                Routed::Unknown(why) => {
                    here.push(branch.ended(BranchEnd::Unknown(VerdictCause::Kernel(why.into()))));
                }
            }
        }
        let come_in = self.pass(here, Hook::Input).into_iter().map(|branch| {
            let port = match branch.taken {
                Some((PacketEnd::Tproxy(port), _)) => port,
                _ => branch.state.packet.destination_port,
            };
            branch.ended(BranchEnd::Socket { port })
        });
        let mut ends: Vec<_> = come_in.collect();
        let passed_on = self.pass(passed_on, Hook::Forward);
        let passed_on = self.pass(passed_on, Hook::Postrouting);
        ends.extend(passed_on.into_iter().map(|branch| branch.ended(BranchEnd::Left)));
        ends
    }

    /// What is redirected where it arrives goes to an address of its interface.
    fn with_redirect(&self, mut branch: PacketBranch<'a>) -> PacketBranch<'a> {
        let to = branch.destination();
        let is_own = self.observed.addresses.iter().any(|own| own.address == to);
        let first =
            self.observed.addresses_of(&branch.interfaces.0).find(|own| own.is_ipv6() == to.is_ipv6());
        branch.state.redirected_to = if to.is_ipv6() && is_own { Some(to) } else { first };
        branch
    }

    /// Where addresses were read, they say whether the destination is one of the interface by which the packet came in.
    fn tell_own_destination(&self, branch: &mut PacketBranch<'a>) {
        let to = branch.destination();
        let mut own = self.observed.addresses_of(&branch.interfaces.0).peekable();
        if own.peek().is_some() {
            branch.state.packet.own_destination = own.any(|address| address == to);
        }
    }

    fn routed(&self, branch: &PacketBranch<'_>, in_interface: &str) -> Routed {
        let packet = &branch.state.packet;
        let asked = Asked {
            source: address_of(packet.source, packet.family),
            destination: branch.destination(),
            mark: packet.mark,
            in_interface,
        };
        route(self.observed, &asked)
    }

    /// Whether loopback addresses may come in and leave by an interface.
    fn routes_localnet(&self, interface: &str) -> bool {
        let on = |name: &str| {
            self.observed.is_on(&format!("net/ipv4/conf/{name}/route_localnet")).unwrap_or(false)
        };
        on("all") || on(interface)
    }

    /// Where a packet that has arrived goes.
    fn destined(&self, branch: &PacketBranch<'_>, interface: &str) -> Routed {
        let on = |name: &str| self.observed.is_on(name);
        let to = branch.destination();
        if to.is_loopback() && interface != LOOPBACK {
            return match to.is_ipv4() {
                true if self.routes_localnet(interface) => Routed::Local,
                true => Routed::Gone(format!(
                    "a loopback address does not come in by {interface} without route_localnet"
                )),
                false => Routed::Unknown(format!("whether ::1 may come in by {interface}")),
            };
        }
        let forwarding = match branch.family() {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        match (self.routed(branch, interface), on(forwarding)) {
            (Routed::Out(_), Some(false)) => Routed::Gone(format!(
                "it is for elsewhere, and this namespace does not forward ({forwarding}=0)"
            )),
            (Routed::Out(_), None) => Routed::Unknown(format!("{forwarding} was not read")),
            (routed, _) => routed,
        }
    }

    /// Takes branches through all chains of a hook.
    fn pass(&mut self, branches: Vec<PacketBranch<'a>>, hook: Hook) -> Vec<PacketBranch<'a>> {
        let mut passed: Vec<PacketBranch<'a>> = Vec::new();
        for mut branch in branches {
            if branch.outcome.is_some() {
                passed.push(branch);
                continue;
            }
            self.tell_own_destination(&mut branch);
            branch.comes_to(hook);
            let (scene, mut ways) = (self.scene, vec![branch]);
            for group in scene.groups(hook, ways[0].family()) {
                ways = self.meet_group(&ways, hook, group);
            }
            for mut way in ways {
                way.leaves(hook);
                add(&mut passed, way);
            }
        }
        if passed.len() > MAX_BRANCHES {
            passed.truncate(1);
            passed[0].outcome =
                Some(BranchEnd::Unknown(VerdictCause::Kernel("there are more ways than are tried".into())));
        }
        passed
    }

    /// Takes branches through what has one priority, in each order that it may have.
    fn meet_group(
        &mut self,
        branches: &[PacketBranch<'a>],
        hook: Hook,
        group: &Group<'a>,
    ) -> Vec<PacketBranch<'a>> {
        let mut met = Vec::new();
        for (number, order) in group.orders.iter().enumerate() {
            let mut ways = branches.to_vec();
            if let Some(doubt) = group.doubt.as_ref().filter(|_| number > 0) {
                for way in ways.iter_mut().filter(|way| way.doubt.is_none()) {
                    way.doubt = Some(doubt.clone());
                }
            }
            for meeting in order {
                ways = self.meet(ways, hook, meeting);
            }
            ways.into_iter().for_each(|way| add(&mut met, way));
        }
        if let Some(doubt) = group.doubt.as_ref().filter(|_| group.too_many) {
            met.extend(met.first().cloned().map(|way| way.ended(BranchEnd::Unknown(doubt.clone()))));
        }
        met
    }

    fn meet(
        &mut self,
        branches: Vec<PacketBranch<'a>>,
        hook: Hook,
        meeting: &Meeting<'a>,
    ) -> Vec<PacketBranch<'a>> {
        let mut met = Vec::new();
        for mut branch in branches {
            if branch.outcome.is_some() || branch.state.end == PacketEnd::Dropped {
                met.push(branch);
                continue;
            }
            let before = (branch.state.packet.mark, branch.state.packet.destination);
            let (ways, routes) = match meeting {
                Meeting::Tracking => {
                    branch.state.connection.track();
                    (vec![branch], false)
                }
                Meeting::Chain(station) => {
                    (self.tries(branch, station), station.base.kind == ChainKind::Route)
                }
                Meeting::Nat(stations) => {
                    let mut ways = vec![branch];
                    for station in stations {
                        let through = ways.into_iter().flat_map(|way| match way.state.end {
                            PacketEnd::Dropped => vec![way],
                            _ => self.tries(way, station),
                        });
                        ways = through.collect();
                    }
                    (ways, true)
                }
            };
            for way in ways {
                let is_output = hook == Hook::Output;
                let after = (way.state.packet.mark, way.state.packet.destination);
                let changed = match meeting {
                    Meeting::Nat(_) => after.1 != before.1,
                    _ => after != before,
                };
                add(&mut met, if is_output && routes && changed { self.rerouted(way) } else { way });
            }
        }
        met
    }

    /// What is sent here is routed again when its destination changed, or in a chain that is for that its mark
    /// (`ip_route_me_harder` in net/ipv4/netfilter.c).
    fn rerouted(&self, mut branch: PacketBranch<'a>) -> PacketBranch<'a> {
        if branch.state.end == PacketEnd::Dropped {
            return branch;
        }
        let source = address_of(branch.state.packet.source, branch.family());
        match self.routed(&branch, LOOPBACK) {
            Routed::Local => branch.next_out = Some(LOOPBACK.to_owned()),
            // `__mkroute_output` in net/ipv4/route.c
            Routed::Out(name) if source.is_loopback() && source.is_ipv4() && !self.routes_localnet(&name) => {
                let why = format!("a loopback address does not leave by {name} without route_localnet");
                return branch.ended(BranchEnd::Dropped(VerdictCause::Kernel(why.into())));
            }
            Routed::Out(name) if name.is_empty() && branch.interfaces.1 != LOOPBACK => {}
            Routed::Out(name) => branch.next_out = Some(name),
            Routed::Gone(why) => return branch.ended(BranchEnd::Dropped(VerdictCause::Kernel(why.into()))),
            Routed::Unknown(why) => {
                return branch.ended(BranchEnd::Unknown(VerdictCause::Kernel(why.into())));
            }
        }
        branch
    }

    /// Each way through a base chain: of a rule whose condition could not be read, as if it held, and as if it did not.
    fn tries(&mut self, branch: PacketBranch<'a>, station: &Station<'a>) -> Vec<PacketBranch<'a>> {
        let mut found: Vec<PacketBranch<'a>> = Vec::new();
        let mut choices: Vec<bool> = Vec::new();
        for _ in 0..MAX_WAYS {
            let mut way = branch.clone();
            let (mut at, mut first) = (0, None);
            way.state.pass(station, &mut |place| {
                if at == choices.len() {
                    choices.push(false);
                }
                at += 1;
                if choices[at - 1] {
                    first.get_or_insert(place);
                }
                choices[at - 1]
            });
            self.met += way.state.met - branch.state.met;
            way.has_met();
            if let Some(place) = way.state.unread {
                return vec![way.ended(BranchEnd::Unknown(VerdictCause::Rule(place)))];
            }
            if way.doubt.is_none() {
                way.doubt = first.map(VerdictCause::Rule);
            }
            add(&mut found, way);
            while choices.last() == Some(&true) {
                choices.pop();
            }
            let Some(last) = choices.last_mut() else { return found };
            if self.met > MAX_MEETINGS {
                break;
            }
            *last = true;
        }
        let too_many =
            format!("chain {} has more rules that cannot be read than are tried", station.chain.name);
        vec![branch.ended(BranchEnd::Unknown(VerdictCause::Kernel(too_many.into())))]
    }
}

/// Adds a way, unless one goes on like it.
fn add<'a>(ways: &mut Vec<PacketBranch<'a>>, way: PacketBranch<'a>) {
    if !ways.iter().any(|known| known.goes_on_like(&way)) {
        ways.push(way);
    }
}
