//! The kinds of conflicts. Each is found by evidence: by packets that are taken through everything that is there ([`packets`]), or by what
//! was read of routing, sysctls, processes and programs. Names of chains only tell whose they are.

mod filter;
mod hosts;
mod marks;
mod meshes;
mod nat;
mod packets;
mod probes;
mod processes;
mod programs;
mod routing;
mod sysctls;
mod tracking;
mod view;

use ruleset::Plan;

use crate::follow::VerdictCause;
use crate::{Conflict, ConflictId, ConflictPlace, LiveRule, NetnsScope, ObservedNetns, Resolution, Severity};
use packets::Hits;
use view::NetnsView;

/// The most conflicts of one kind that are kept.
const MAX_OF_A_KIND: usize = 16;
/// Bytes of advice to which no more is added.
const MAX_ADVICE: usize = 600;

/// What was found in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Examined {
    /// Conflicts, worst first.
    pub conflicts: Vec<Conflict>,
    /// What was not looked at, and why.
    pub not_looked_at: Vec<String>,
    /// What cannot be seen from where the one who looks is, and why: no later look shows it.
    pub out_of_sight: Vec<String>,
}

/// What is in the way of a plan in a namespace that has its rules, worst first.
#[must_use]
pub fn conflicts(observed: &ObservedNetns, plan: &Plan) -> Vec<Conflict> {
    examine(observed, plan).conflicts
}

/// The same, and what was not looked at.
#[must_use]
pub fn examine(observed: &ObservedNetns, plan: &Plan) -> Examined {
    let view = NetnsView::new(observed, plan);
    let mut found = Found { not_looked_at: observed.not_looked_at.clone(), ..Found::default() };
    match observed.scope {
        NetnsScope::Pod => {
            let hits = Hits::of(&view);
            found.not_looked_at.extend(hits.too_many.clone());
            nat::find(&view, &hits, &mut found);
            filter::find(&view, &hits, &mut found);
            tracking::find(&hits, &mut found);
            marks::find(&hits, &mut found);
            meshes::find(&view, &mut found);
            sysctls::find_in_pod(&view, &mut found);
            processes::find(&view, &mut found);
        }
        NetnsScope::Node => {
            probes::find(&view, &mut found);
            hosts::find(&view, &mut found);
            sysctls::find_on_node(&view, &mut found);
        }
    }
    routing::find(&view, &mut found);
    programs::find(&view, &mut found);
    found.sorted()
}

/// Conflicts as they are found.
#[derive(Debug, Default)]
struct Found {
    conflicts: Vec<Conflict>,
    not_looked_at: Vec<String>,
    out_of_sight: Vec<String>,
}

impl Found {
    /// Adds a conflict. Of one rule, the worst of a kind is kept, with the advice for all of its packets.
    fn add(&mut self, conflict: Conflict) {
        let same = |known: &&mut Conflict| {
            known.id == conflict.id && known.place == conflict.place && known.foreign == conflict.foreign
        };
        if let Some(known) = self.conflicts.iter_mut().find(same) {
            if known.severity < conflict.severity {
                *known = conflict;
            } else if !known.advice.contains(&conflict.advice) && known.advice.len() < MAX_ADVICE {
                known.advice = format!("{}; {}", known.advice, conflict.advice);
            }
            return;
        }
        let of_kind = self.conflicts.iter().filter(|known| known.id == conflict.id).count();
        if of_kind < MAX_OF_A_KIND {
            self.conflicts.push(conflict);
            return;
        }
        let more = format!("there are more conflicts of kind {} than are told", conflict.id);
        if !self.not_looked_at.contains(&more) {
            self.not_looked_at.push(more);
        }
    }

    fn sorted(mut self) -> Examined {
        self.conflicts.sort_by_key(|conflict| (std::cmp::Reverse(conflict.severity), conflict.id));
        let Self { conflicts, not_looked_at, out_of_sight } = self;
        Examined { conflicts, not_looked_at, out_of_sight }
    }
}

impl Conflict {
    /// One by a setting, which is no rule.
    fn of_setting(
        id: ConflictId,
        severity: Severity,
        foreign: impl Into<String>,
        affects: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            id,
            severity,
            place: ConflictPlace::default(),
            foreign: foreign.into(),
            affects: affects.into(),
            culprit: None,
            resolution: Resolution::None,
            advice: advice.into(),
        }
    }

    /// A setting that may change something.
    fn warning(
        id: ConflictId,
        foreign: impl Into<String>,
        affects: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::of_setting(id, Severity::Warning, foreign, affects, advice)
    }

    /// One by a rule, or by the policy of a chain.
    fn of_cause(
        id: ConflictId,
        severity: Severity,
        by: &VerdictCause<'_>,
        affects: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let LiveRule { place, text, .. } = by.told();
        Self { place, ..Self::of_setting(id, severity, text, affects, advice) }
    }
}

#[cfg(test)]
mod tests;
