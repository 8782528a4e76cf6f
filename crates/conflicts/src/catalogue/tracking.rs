//! Connection tracking: what it is kept from, and its zones.

use ruleset::listed::ListedAct;

use super::Found;
use super::packets::{Escape, Hit, Hits};
use super::view::told;
use crate::follow::VerdictCause;
use crate::{Conflict, ConflictId, Severity};

pub(super) fn find(hits: &Hits<'_>, found: &mut Found) {
    for hit in &hits.all {
        for way in &hit.ways {
            let Some(Escape::Untracked(place)) = hit.escape(way) else { continue };
            let affects = format!(
                "{} is not tracked, so that no rule translates it: it goes on instead of to port {}",
                told(&hit.packet),
                hit.port
            );
            let advice = "remove the rule, or except what the mesh captures from it";
            found.add(hit.by(ConflictId::P5, place, affects, advice));
        }
        zones(hit, found);
    }
}

/// The packet's connection is looked up in a zone of others.
fn zones(hit: &Hit<'_>, found: &mut Found) {
    let held = hit.ways.iter().flat_map(|way| &way.passed).flat_map(|stop| &stop.held);
    let sets_zone = |act: &ListedAct| matches!(act, ListedAct::SetZone(_));
    for place in held {
        if !place.table.is_foreign(place.rule) || !place.rule.acts.iter().any(sets_zone) {
            continue;
        }
        let affects = format!(
            "the connection of {} is in a zone of its own: answers that are in another are not led back",
            told(&hit.packet)
        );
        let advice = "give both directions of a connection the same zone";
        found.add(Conflict::of_cause(
            ConflictId::P14,
            Severity::Warning,
            &VerdictCause::Rule(*place),
            affects,
            advice,
        ));
    }
}
