//! The conflicts of the pods that are meant: the agent's, or those of a look of this program.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use facts::PodRef;
use netns::Netns;
use rundir::pods::{ConflictGap, ConflictReport, ConflictsReport};

use super::own::{LookedPod, PodConflicts};
use super::select::SelectArgs;
use super::view::{EvidenceSource, Viewer, refuse_if_denied};
use crate::configuration::AGENT_PATIENCE;

/// What this program does not look at.
const NODE: &str =
    "rules of others: the agent looks at the node's own network namespace, and does not answer";

/// Conflicts, and by what evidence.
#[derive(Debug)]
pub(crate) struct ConflictsView {
    pub(crate) evidence: EvidenceSource,
    pub(crate) conflicts: Vec<ConflictReport>,
    /// What could not be looked at, and why.
    pub(crate) not_looked_at: Vec<ConflictGap>,
}

impl Viewer {
    /// The conflicts of the pods that are meant, and where no pod is named, of the node; only of that with `node`.
    ///
    /// # Errors
    /// This user may not ask and not look.
    pub(crate) fn conflicts(&self, select: &SelectArgs, node: bool) -> Result<ConflictsView> {
        match self.agent().conflicts(AGENT_PATIENCE) {
            Ok(report) => self.told(report, select, node),
            Err(error) => {
                refuse_if_denied(&error)?;
                self.seen(select, node, &error.to_string())
            }
        }
    }

    /// The directory of the agent's files.
    pub(crate) fn run_dir(&self) -> &Path {
        self.decider.configuration.run_dir()
    }

    /// The namespace of a pod, for a change in it.
    ///
    /// # Errors
    /// It is not found, or the node's is meant.
    pub(crate) fn netns_of(&self, pod: Option<&PodRef>) -> Result<Arc<Netns>> {
        let Some(pod) = pod else {
            bail!("rules of the node itself are not deleted by this program; do it by hand")
        };
        let select = SelectArgs::named(&pod.to_string(), None);
        let found = self.look_deeply(&select)?.into_iter().find_map(|looked| looked.place);
        let place = found.with_context(|| format!("the network namespace of pod {pod} is not found"))?;
        Ok(place.netns)
    }

    fn told(&self, report: ConflictsReport, select: &SelectArgs, node: bool) -> Result<ConflictsView> {
        let ConflictsReport { at, mut conflicts, mut not_looked_at } = report;
        if !select.is_everything() {
            let known =
                self.agent().pods(false, AGENT_PATIENCE).context("ask the agent which pods are meant")?;
            let meant = known.pods.iter().filter(|pod| select.selects_report(pod));
            let meant: HashSet<PodRef> = meant.map(rundir::pods::PodReport::pod).collect();
            conflicts.retain(|conflict| conflict.pod.as_ref().is_some_and(|pod| meant.contains(pod)));
            not_looked_at.retain(|gap| gap.pod.as_ref().is_some_and(|pod| meant.contains(pod)));
        }
        if node {
            conflicts.retain(|conflict| conflict.pod.is_none());
            not_looked_at.retain(|gap| gap.pod.is_none());
        }
        let evidence = EvidenceSource::of_agent(String::new(), at);
        Ok(ConflictsView { evidence, conflicts, not_looked_at })
    }

    fn seen(&self, select: &SelectArgs, node: bool, why: &str) -> Result<ConflictsView> {
        let mut view = ConflictsView {
            evidence: EvidenceSource::own(why),
            conflicts: Vec::new(),
            not_looked_at: Vec::new(),
        };
        if node || select.is_everything() {
            view.not_looked_at.push(ConflictGap { text: NODE.to_owned(), ..ConflictGap::default() });
        }
        if !node {
            let looked = self.look_deeply(select)?;
            looked.into_iter().filter(|looked| looked.report.is_wanted()).for_each(|looked| view.add(looked));
        }
        Ok(view)
    }
}

impl ConflictsView {
    fn add(&mut self, looked: LookedPod) {
        let pod = looked.report.pod();
        match looked.conflicts {
            Some(PodConflicts { conflicts, not_looked_at, out_of_sight }) => {
                self.conflicts.extend(conflicts);
                let gap = |text, standing| ConflictGap { pod: Some(pod.clone()), text, standing };
                self.not_looked_at.extend(not_looked_at.into_iter().map(|text| gap(text, false)));
                self.not_looked_at.extend(out_of_sight.into_iter().map(|text| gap(text, true)));
            }
            None => {
                let text = looked.report.problem;
                self.not_looked_at.push(ConflictGap { pod: Some(pod), text, standing: false });
            }
        }
    }
}
