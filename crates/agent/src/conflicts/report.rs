//! Conflicts in words, and for those who ask the agent.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use ::conflicts::{Conflict, Severity};
use rundir::pods::{ConflictGap, ConflictReport, ConflictsReport};

use super::Conflicts;
use super::known::KnownConflict;

/// The longest text of an Event and a line: the API server takes 1024 bytes.
const MAX_BYTES: usize = 1000;

/// A conflict in a line: kind, place, rule, effect and advice.
pub(super) fn words(conflict: &Conflict) -> String {
    let Conflict { id, place, foreign, affects, culprit, advice, .. } = conflict;
    let mut text = format!("{id}: {affects}");
    // Writing to a String cannot fail.
    if !foreign.is_empty() {
        let _ = write!(text, ", by \"{foreign}\"");
    }
    if !place.table.is_empty() {
        let _ = write!(text, " in chain {} of table {}", place.chain, place.table);
    }
    let _ = culprit.iter().try_for_each(|culprit| write!(text, ", from {culprit}"));
    if !advice.is_empty() {
        let _ = write!(text, "; {advice}");
    }
    let end = (0..=MAX_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

impl Conflicts {
    /// The worst conflict that is known in a pod's namespace, in words; those that only tell do not count.
    pub(crate) fn worst_in(&self, uid: &str) -> Option<String> {
        let known = self.known();
        let of_pod = known.values().filter(|of| of.pod.as_ref().is_some_and(|pod| pod.uid == uid));
        let there = of_pod.flat_map(|of| &of.findings).filter(|finding| !finding.gone);
        let conflicts = there.map(|finding| &finding.conflict);
        let bad = conflicts.filter(|conflict| conflict.severity != Severity::Info);
        bad.max_by_key(|conflict| conflict.severity == Severity::Error).map(words)
    }

    /// All that are known, those that are gone with them.
    pub(crate) fn report(&self) -> ConflictsReport {
        let mut report = ConflictsReport { at: seconds(SystemTime::now()), ..ConflictsReport::default() };
        for namespace in self.known().values() {
            for finding in &namespace.findings {
                report.conflicts.push(ConflictReport { pod: namespace.pod.clone(), ..of(finding) });
            }
            let gap = |text: &String, standing| {
                let (pod, text) = (namespace.pod.clone(), text.clone());
                ConflictGap { pod, text, standing }
            };
            report.not_looked_at.extend(namespace.not_looked_at.iter().map(|text| gap(text, false)));
            report.not_looked_at.extend(namespace.out_of_sight.iter().map(|text| gap(text, true)));
        }
        report
    }
}

fn of(finding: &KnownConflict) -> ConflictReport {
    ConflictReport {
        resolved: finding.resolved.unwrap_or_default().to_owned(),
        first_seen: Some(seconds(finding.first_seen)),
        last_seen: Some(seconds(finding.last_seen)),
        gone: finding.gone,
        ..finding.conflict.clone().into()
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
