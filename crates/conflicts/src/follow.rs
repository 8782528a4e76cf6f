//! The path of a packet through everything that is there, ours and that of others.
//!
//! What is sent passes output and postrouting, and comes in again where it leaves by the loopback interface; what arrives passes prerouting
//! and then input, or forward and postrouting. At each hook the base chains of all tables come in the kernel's order (`order`).
//!
//! The answer is three-valued. Where a rule's condition could not be read, or the order of two chains is not shown, the packet takes each
//! of the ways, and if they do not end alike the end is unknown. A rule whose act could not be read may do anything.

mod branch;
mod order;
mod routing;
mod told;
mod way;

use ruleset::Hook;
use ruleset::eval::Packet;
use ruleset::listed::ListedAct;

use crate::{ConflictPlace, ObservedNetns};
pub(crate) use branch::{BranchEnd, PacketBranch, VerdictCause};
pub(crate) use routing::{Asked, Routed, deciding_rule, route};
pub(crate) use way::NetnsScene;

/// A packet's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivePath {
    /// Hooks in the order in which it passes them.
    pub stops: Vec<LiveStop>,
    /// What becomes of it.
    pub end: LiveEnd,
}

/// A hook that the packet passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveStop {
    /// Hook.
    pub hook: Hook,
    /// The packet as it comes to the hook.
    pub packet: Packet,
    /// Every rule that matches it, in order. A policy that drops is the last.
    pub rules: Vec<LiveRule>,
}

/// A rule on the way, a chain's policy, or a decision of the kernel's routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRule {
    /// Where it is; without a table it is the kernel's routing.
    pub place: ConflictPlace,
    /// In its own notation, or in words.
    pub text: String,
    /// The reason that the plan gives, which may be empty; absent of what is foreign.
    pub why: Option<String>,
    /// What it does with the packet; absent where that is unknown from here, and where it goes on.
    pub verdict: Option<ListedAct>,
    /// Whether the rule could be read wholly. What one does that could not is not known.
    pub read: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveEnd {
    /// A rule of ours leads it to the proxy.
    Captured {
        /// The proxy's port.
        port: u16,
    },
    /// A rule, ours or foreign, keeps it from rules that would capture it, or takes it elsewhere.
    Bypass {
        /// The rule.
        by: LiveRule,
    },
    /// It is gone.
    Dropped {
        /// By this.
        by: LiveRule,
    },
    /// It goes where it was going, and no rule was for it.
    Delivered,
    /// It cannot be told.
    Unknown {
        /// Because of this.
        by: LiveRule,
    },
}

/// Where a packet is at the end, whoever led it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// At a socket of this namespace, if one listens there.
    Socket {
        /// The port.
        port: u16,
    },
    /// Outside.
    Left,
    /// Nowhere.
    Gone,
    /// It cannot be told.
    Unknown,
}

/// Takes a packet through everything that is there. Without an incoming interface it is sent here.
#[must_use]
pub fn follow(observed: &ObservedNetns, packet: &Packet) -> LivePath {
    let scene = NetnsScene::new(observed);
    let (branches, _) = scene.branches(PacketBranch::new(packet));
    let ends: Vec<LiveEnd> = branches.iter().map(|branch| end_of(observed, packet, branch)).collect();
    let unknown = ends.iter().find(|end| matches!(end, LiveEnd::Unknown { .. }));
    let differs = ends.iter().any(|end| !end.is_like(&ends[0]));
    let end = match (unknown, branches.iter().find_map(|branch| branch.doubt.as_ref())) {
        (Some(unknown), _) => unknown.clone(),
        (None, Some(doubt)) if differs => LiveEnd::Unknown { by: doubt.told() },
        // Ways differ only where there is a doubt, and there is always one way.
        (None, _) => ends.into_iter().next().unwrap_or(LiveEnd::Delivered),
    };
    LivePath { stops: branches.first().map(|branch| branch.stops(packet)).unwrap_or_default(), end }
}

/// Where a packet is at the end, and the packet as it is then. Ways that lead it to other destinations are not alike.
#[must_use]
pub fn arrival(observed: &ObservedNetns, packet: &Packet) -> (Arrival, Packet) {
    let scene = NetnsScene::new(observed);
    let (branches, _) = scene.branches(PacketBranch::new(packet));
    let end = |branch: &PacketBranch<'_>| {
        let last = branch.packet(packet);
        // What is gone is nowhere.
        let to =
            Some((last.destination, last.destination_port)).filter(|_| branch.arrival() != Arrival::Gone);
        (branch.arrival(), to)
    };
    let same = branches.iter().all(|branch| end(branch) == end(&branches[0]));
    match branches.first() {
        Some(first) if same => (first.arrival(), first.packet(packet)),
        _ => (Arrival::Unknown, packet.clone()),
    }
}

fn end_of(observed: &ObservedNetns, packet: &Packet, branch: &PacketBranch<'_>) -> LiveEnd {
    match &branch.outcome {
        Some(BranchEnd::Unknown(cause)) => LiveEnd::Unknown { by: cause.told() },
        Some(BranchEnd::Dropped(cause)) => LiveEnd::Dropped { by: cause.told() },
        Some(BranchEnd::Socket { port }) if branch.is_taken_by_ours() => LiveEnd::Captured { port: *port },
        Some(BranchEnd::Socket { .. } | BranchEnd::Left) | None => {
            match branch.kept_by(|| would_capture(observed, packet)) {
                Some(cause) => LiveEnd::Bypass { by: cause.told() },
                None => LiveEnd::Delivered,
            }
        }
    }
}

/// Whether rules of ours alone would capture the packet.
fn would_capture(observed: &ObservedNetns, packet: &Packet) -> bool {
    let ours = observed.without_others();
    let scene = NetnsScene::new(&ours);
    let (branches, _) = scene.branches(PacketBranch::new(packet));
    let captured = |branch: &PacketBranch<'_>| {
        branch.is_taken_by_ours() && matches!(branch.outcome, Some(BranchEnd::Socket { .. }))
    };
    branches.iter().any(captured)
}

impl LiveEnd {
    /// Whether the same becomes of the packet, whichever rule does it.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Captured { port }, Self::Captured { port: other }) => port == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

#[cfg(test)]
mod tests;
