//! Address translation of others beside ours.

use ruleset::listed::walk::{ListedPlace, PacketEnd, PacketState, TrackedConnection};
use ruleset::{Base, ChainKind, Hook};

use super::Found;
use super::packets::{Escape, Hit, Hits};
use super::view::{NetnsView, told};
use crate::follow::VerdictCause;
use crate::{Conflict, ConflictId, Resolution, Severity};

pub(super) fn find(view: &NetnsView<'_>, hits: &Hits<'_>, found: &mut Found) {
    for hit in &hits.all {
        for way in &hit.ways {
            match hit.escape(way) {
                Some(Escape::Translated(place)) => found.add(translated(view, hit, place)),
                Some(Escape::Unread(place)) if place.base.kind == ChainKind::Nat => {
                    found.add(unread(hit, place));
                }
                _ => {}
            }
        }
        later(view, hit, found);
    }
}

/// A rule of others takes what the plan captures.
fn translated(view: &NetnsView<'_>, hit: &Hit<'_>, place: ListedPlace<'_>) -> Conflict {
    let by = VerdictCause::Rule(place);
    let packet = told(&hit.packet);
    if is_own_service(view, hit, &place) {
        let affects = format!("{packet} goes where the pod itself leads it");
        return Conflict::of_cause(ConflictId::P1, Severity::Info, &by, affects, "nothing");
    }
    // The kernel does not show the order of chains of one priority; those of an older table most likely came before ours.
    let likely_ours = hit.ways.first().is_some_and(|way| hit.escape(way).is_none());
    if likely_ours && place.table.age.is_some() && hit.is_about_order() {
        let affects = format!("{packet} would go by this rule; ours are younger and come first");
        return Conflict::of_cause(ConflictId::P2, Severity::Info, &by, affects, "nothing");
    }
    let affects = format!("{packet} goes by this rule instead of to port {}", hit.port);
    let advice = "remove the rule, give its chain a priority greater than ours, or except what the mesh captures from it";
    let resolution = resolution(view, &place);
    Conflict { resolution, ..hit.by(ConflictId::P1, place, affects, advice) }
}

/// What ours can do to come first: in a chain of all, or among chains of one priority.
pub(super) fn resolution(view: &NetnsView<'_>, place: &ListedPlace<'_>) -> Resolution {
    // A shared table of iptables is not made anew.
    let ours = view.observed.tables.iter().filter(|table| table.is_only_ours());
    let mut bases = ours.flat_map(|table| &table.chains).filter_map(|chain| chain.base);
    let is_equal = |base: Base| {
        base.kind == ChainKind::Nat && base.hook == place.base.hook && base.priority == place.base.priority
    };
    match place.table.ours {
        true => Resolution::MoveToHead,
        false if bases.any(is_equal) => Resolution::Reregister,
        false => Resolution::None,
    }
}

/// The pod's own translation of an address that it does not have: nobody else would take what goes there.
fn is_own_service(view: &NetnsView<'_>, hit: &Hit<'_>, place: &ListedPlace<'_>) -> bool {
    let own: Vec<_> = view.observed.addresses.iter().map(|own| own.address).collect();
    let named = hit.ways.iter().filter_map(|way| way.taken).any(|(end, by)| {
        std::ptr::eq(by.rule, place.rule)
            && matches!(end, PacketEnd::Dnat { to: Some(to), named: true, .. } if !own.contains(&to))
    });
    named && !hit.packet.goes_to(&own)
}

fn unread(hit: &Hit<'_>, place: ListedPlace<'_>) -> Conflict {
    let affects = format!(
        "{} may go elsewhere than to port {}: the rule could not be read",
        told(&hit.packet),
        hit.port
    );
    let advice = "look at the rule with the program that made it";
    Conflict::of_cause(ConflictId::P1, Severity::Warning, &VerdictCause::Rule(place), affects, advice)
}

/// A rule of others after ours would take it.
fn later(view: &NetnsView<'_>, hit: &Hit<'_>, found: &mut Found) {
    if hit.ways.iter().any(|way| hit.escape(way).is_some()) {
        return;
    }
    let hook = if hit.packet.owner.is_some() { Hook::Output } else { Hook::Prerouting };
    let stations = view.foreign_stations(hook, hit.packet.family);
    for station in stations.iter().filter(|station| station.base.kind == ChainKind::Nat) {
        let mut state = PacketState::new(hit.packet.clone(), TrackedConnection::default());
        state.connection.track();
        state.pass(station, &mut |_| false);
        let Some(place) = state.taker.filter(|place| place.table.is_foreign(place.rule)) else { continue };
        let affects = format!("{} would go by this rule; ours comes first", told(&hit.packet));
        found.add(Conflict::of_cause(
            ConflictId::P2,
            Severity::Info,
            &VerdictCause::Rule(place),
            affects,
            "nothing",
        ));
    }
}

impl Hit<'_> {
    /// Whether its ways differ only because the order of chains is not shown.
    fn is_about_order(&self) -> bool {
        self.ways.iter().all(|way| matches!(way.doubt, None | Some(VerdictCause::Order(_))))
    }
}
