//! The path of a packet through the hooks of one network namespace.
//!
//! What is sent passes output and postrouting. If it leaves by the loopback interface, because it is for this namespace, was redirected or
//! has a mark that is routed here, it arrives by it: it keeps its mark and its connection's, and loses its socket. What arrives passes
//! prerouting and input, or is passed on by forward and postrouting.
//!
//! A connection is translated once in each direction: the destination on output or prerouting, whichever comes first, the source on
//! postrouting or input (`nf_nat_inet_fn` in nf_nat_core.c). The nat chains of the second half of the loopback do not see it.

use crate::eval::{Evaluation, Packet, RulePlace, Verdict, evaluate};
use crate::plan::{Plan, Routing};
use crate::rule::Hook;
use crate::set::Members;

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// A hook that the packet passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop<'a> {
    /// Hook.
    pub hook: Hook,
    /// The packet when it came to the hook.
    pub packet: Packet,
    /// What became of it there.
    pub outcome: Evaluation<'a>,
}

/// The hooks in order, and the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path<'a> {
    /// Hooks in order.
    pub stops: Vec<Stop<'a>>,
    /// Where it ends.
    pub end: End,
    /// The packet at the end.
    pub packet: Packet,
}

/// Where a path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A rule took the packet away.
    Gone,
    /// It has left the namespace.
    Left,
    /// It comes to a socket of the namespace, if one listens there.
    Socket {
        /// The port: that of a rule, or the destination's.
        port: u16,
    },
}

/// Follows a packet through a namespace that has what the plan says: all layers, and marks that its routing leads here. Without an
/// incoming interface the packet is sent here, without an outgoing one it is for this namespace, with both it is passed on. `members` knows
/// what is in kept sets.
#[must_use]
pub fn follow<'a>(plan: &'a Plan, packet: Packet, members: &dyn Members) -> Path<'a> {
    let mut walk = Walk { plan, members, stops: Vec::new(), packet };
    let end = match (walk.packet.in_interface.is_empty(), walk.packet.out_interface.is_empty()) {
        (true, _) => walk.is_sent(),
        (false, true) => walk.arrives(true),
        (false, false) => walk.is_passed_on(),
    };
    Path { stops: walk.stops, end: end.unwrap_or(End::Gone), packet: walk.packet }
}

struct Walk<'a, 'm> {
    plan: &'a Plan,
    members: &'m dyn Members,
    stops: Vec<Stop<'a>>,
    packet: Packet,
}

impl Walk<'_, '_> {
    /// The verdict at a hook, and the packet as it is then; absent where it is gone.
    fn pass(&mut self, hook: Hook, nat: bool) -> Option<Verdict> {
        let Plan { backend, layers, .. } = self.plan;
        let outcome = evaluate(layers, *backend, &self.packet, hook, nat, self.members);
        let verdict = outcome.verdict;
        let mut next = match verdict {
            Verdict::Redirect { port } => self.packet.redirected(hook, port),
            Verdict::Snat { to } => Packet { source: to, ..self.packet.clone() },
            _ => self.packet.clone(),
        };
        (next.mark, next.ct_mark) = (outcome.mark, outcome.ct_mark);
        let packet = std::mem::replace(&mut self.packet, next);
        self.stops.push(Stop { hook, packet, outcome });
        (!verdict.is_end()).then_some(verdict)
    }

    fn is_sent(&mut self) -> Option<End> {
        match self.pass(Hook::Output, true)? {
            // No socket takes it there.
            Verdict::Tproxy { .. } => return None,
            Verdict::Redirect { .. } => LOOPBACK.clone_into(&mut self.packet.out_interface),
            Verdict::Pass if self.is_routed_here() => LOOPBACK.clone_into(&mut self.packet.out_interface),
            _ => {}
        }
        self.pass(Hook::Postrouting, true)?;
        if self.packet.out_interface != LOOPBACK {
            return Some(End::Left);
        }
        self.packet.in_interface = std::mem::take(&mut self.packet.out_interface);
        self.packet.owner = None;
        self.arrives(false)
    }

    /// `nat` says whether this is the packet's first way into the namespace.
    fn arrives(&mut self, nat: bool) -> Option<End> {
        let verdict = self.pass(Hook::Prerouting, nat)?;
        self.comes_in(verdict, nat)
    }

    fn comes_in(&mut self, verdict: Verdict, nat: bool) -> Option<End> {
        self.pass(Hook::Input, nat)?;
        let port = if let Verdict::Tproxy { port } = verdict { port } else { self.packet.destination_port };
        Some(End::Socket { port })
    }

    fn is_passed_on(&mut self) -> Option<End> {
        let out = std::mem::take(&mut self.packet.out_interface);
        self.packet.own_destination = false;
        let arrived = self.pass(Hook::Prerouting, true)?;
        if matches!(arrived, Verdict::Redirect { .. } | Verdict::Tproxy { .. }) {
            return self.comes_in(arrived, true);
        }
        self.packet.out_interface = out;
        self.pass(Hook::Forward, true)?;
        self.packet.in_interface.clear();
        self.pass(Hook::Postrouting, true)?;
        Some(End::Left)
    }

    fn is_routed_here(&self) -> bool {
        self.plan.routing.iter().any(|routing| {
            matches!(routing, Routing::Rule { family, mark, mask, .. }
                if *mark == self.packet.mark & mask && *family == self.packet.family())
        })
    }
}

// === impl Path ===

impl<'a> Path<'a> {
    /// The first verdict that changes anything; a packet that was redirected and is then dropped is gone.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let verdicts = || self.stops.iter().map(|stop| stop.outcome.verdict);
        let end = verdicts().find(Verdict::is_end);
        end.or_else(|| verdicts().find(|verdict| *verdict != Verdict::Pass)).unwrap_or(Verdict::Pass)
    }

    /// The rule that gave the verdict, and the rules by whose jumps the packet came to it, outermost first.
    #[must_use]
    pub fn decided_by(&self) -> Option<(RulePlace<'a>, &[RulePlace<'a>])> {
        let verdict = self.verdict();
        let mut outcomes = self.stops.iter().map(|stop| &stop.outcome);
        outcomes.find_map(|outcome| {
            let place = outcome.decided_by.filter(|_| outcome.verdict == verdict)?;
            Some((place, &outcome.callers[..]))
        })
    }

    /// Every rule that matched, with its hook.
    pub fn trace(&self) -> impl Iterator<Item = (Hook, RulePlace<'a>)> {
        self.stops.iter().flat_map(|stop| stop.outcome.trace.iter().map(|place| (stop.hook, *place)))
    }
}

#[cfg(test)]
mod tests;
