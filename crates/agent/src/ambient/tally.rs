//! The original's count of what the API server tells and of what is tried again. It works through a queue of events, one for each change of a pod
//! or namespace; here the queue is one of pods, in which many changes are one item, so that changes are counted where they are heard.

use std::collections::BTreeMap;

use cluster::watch::{ObjectChange, Told};
use facts::PodRef;

use super::Ambient;

impl Ambient {
    /// The API server told of a pod or a namespace.
    pub(crate) fn told(&self, told: &Told) {
        if self.config.is_off {
            return;
        }
        self.metrics.reconciled(name(told.change), 1);
        let Some((namespace, before)) = &told.namespace else { return };
        // Those of the first lists are counted at their end, when their pods are known.
        if self.is_listed() && self.concerns_pods(told.change, namespace, before.as_ref()) {
            let pods = self.cluster.index().pods_in(namespace);
            self.count_updates(&pods);
        }
    }

    /// The first lists are complete. To the original each namespace is a new one then, which is an update of its pods.
    pub(super) fn count_listed(&self) {
        if self.config.is_off {
            return;
        }
        let pods: Vec<PodRef> = {
            let index = self.cluster.index();
            let of_known = index.pods().filter(|pod| index.has_namespace(pod.namespace()));
            of_known.map(|pod| pod.pod_ref()).collect()
        };
        self.count_updates(&pods);
    }

    /// Work on a pod that failed before is tried again.
    pub(super) fn count_retry(&self, pod_is_there: bool) {
        self.metrics
            .reconciled(name(if pod_is_there { ObjectChange::Updated } else { ObjectChange::Deleted }), 1);
    }

    /// Whether the original looks at the pods of a namespace again: at one that is new, and one that is in the mesh by its labels now and was not
    /// before, or the other way round.
    fn concerns_pods(
        &self,
        change: ObjectChange,
        namespace: &str,
        before: Option<&BTreeMap<String, String>>,
    ) -> bool {
        let now = self.cluster.index().labels(namespace);
        let rules = self.config.rules.now();
        let selected = |labels: &BTreeMap<String, String>| {
            rules.enrolment.selectors.selects_namespace(&|key| labels.get(key).map(String::as_str))
        };
        match (change, before, now.as_ref()) {
            (ObjectChange::Updated, Some(before), Some(now)) => selected(before) != selected(now),
            (ObjectChange::Added | ObjectChange::Updated, _, _) => true,
            (ObjectChange::Deleted, _, _) => false,
        }
    }

    /// The pods of ztunnel are never in the mesh and not counted.
    fn count_updates(&self, pods: &[PodRef]) {
        let rules = self.config.rules.now();
        let index = self.cluster.index();
        let counted = pods.iter().filter_map(|key| index.pod(&key.namespace, &key.name));
        let counted = counted.filter(|pod| !rules.is_ztunnel(pod)).count();
        self.metrics.reconciled(name(ObjectChange::Updated), counted as u64);
    }
}

/// The original's name of it.
fn name(change: ObjectChange) -> &'static str {
    match change {
        ObjectChange::Added => "add",
        ObjectChange::Updated => "update",
        ObjectChange::Deleted => "delete",
    }
}
