//! Policy routing of others.

use std::net::IpAddr;

use ruleset::{Family, Routing};

use super::Found;
use super::packets::{SOMEWHERE_V4, SOMEWHERE_V6};
use super::view::NetnsView;
use crate::follow::{Asked, Routed, deciding_rule, route};
use crate::{Conflict, ConflictId, NetnsScope, RoutingRule, RuleLookup, Severity};

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    // Each namespace has rules of policy routing: without any nothing was read.
    if view.observed.rules.is_empty() {
        return;
    }
    for step in &view.plan.routing {
        match *step {
            Routing::Rule { family, mark, mask, table, priority } => {
                let ours = |rule: &RoutingRule| {
                    rule.mark == Some((mark, mask)) && rule.lookup == RuleLookup::Table(table)
                };
                marked(view, family, mark, table, found);
                taken_preference(view, family, priority, ours, found);
            }
            Routing::LocalRoute { family, table } => other_routes(view, family, table, found),
            Routing::LoopbackAddress(_) => {}
        }
    }
}

fn id(view: &NetnsView<'_>) -> ConflictId {
    if view.observed.scope == NetnsScope::Node { ConflictId::H12 } else { ConflictId::P12 }
}

/// What has our mark is not led to our table.
fn marked(view: &NetnsView<'_>, family: Family, mark: u32, table: u32, found: &mut Found) {
    let destination: IpAddr = match family {
        Family::V4 => SOMEWHERE_V4.into(),
        Family::V6 => SOMEWHERE_V6.into(),
    };
    // Its source is the client's, who is elsewhere, too.
    let asked = Asked { source: destination, destination, mark, in_interface: "lo" };
    let severity = match route(view.observed, &asked) {
        Routed::Local => return,
        Routed::Unknown(_) => Severity::Warning,
        Routed::Out(_) | Routed::Gone(_) => Severity::Error,
    };
    // Without such a rule ours is missing, which is drift.
    let Some(rule) = deciding_rule(view.observed, &asked).filter(|_| has_ours(view, family, table)) else {
        return;
    };
    found.add(Conflict::of_setting(
        id(view),
        severity,
        format!("ip rule {}", rule.text),
        format!("packets with mark {mark:#x}, which are for the proxy, are routed by this rule instead of by table {table}"),
        "give the rule a preference greater than ours, or except the mark from it",
    ));
}

fn has_ours(view: &NetnsView<'_>, family: Family, table: u32) -> bool {
    view.observed.rules.iter().any(|rule| rule.family == family && rule.lookup == RuleLookup::Table(table))
}

/// Another rule has our preference.
fn taken_preference(
    view: &NetnsView<'_>,
    family: Family,
    priority: u32,
    ours: impl Fn(&RoutingRule) -> bool,
    found: &mut Found,
) {
    let mut same =
        view.observed.rules.iter().filter(|rule| rule.family == family && rule.preference == priority);
    if let Some(rule) = same.find(|rule| !ours(rule)) {
        found.add(Conflict::warning(id(view), format!("ip rule {}", rule.text),
            format!("it has preference {priority}, as ours: which of both is asked first depends on which came first"),
            "give the rule another preference",
        ));
    }
}

/// Our table has routes of others, which are more exact than ours.
fn other_routes(view: &NetnsView<'_>, family: Family, table: u32, found: &mut Found) {
    let mut routes =
        view.observed.routes.iter().filter(|route| route.family == family && route.table == table);
    if let Some(route) = routes.find(|route| !(route.local && route.to.1 == 0)) {
        let (address, length) = route.to;
        found.add(Conflict::warning(
            id(view),
            format!("ip route {address}/{length} dev {} table {table}", route.interface),
            format!("table {table} is ours, and packets of ours to this destination go by this route"),
            "use another routing table",
        ));
    }
}
