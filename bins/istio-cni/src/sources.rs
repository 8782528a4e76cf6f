//! Where a pod's facts come from, and in which order.
//!
//! The node agent knows them from its watch and answers in a fraction of a millisecond. Without it the API server is asked. Where neither
//! answers, what the agent left on disk is used, for the same incarnation of the pod only, and last what the runtime hands over itself. So pods
//! start, captured as they should be, while either is away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use capture::{Pod, PodId};
use cni::PluginConf;
use podsource::{
    Agent, Annotations, Cause, Error, KUBECONFIG_NAME, Kubernetes, LastKnown, Manifests, PodSource,
};
use telemetry::Logger;

use crate::progress::Progress;

/// How long the API server is tried while last known facts are at hand.
const API_TIME_WITH_LAST_KNOWN: Duration = Duration::from_secs(2);
/// How long it is tried while there are annotations, which tell less.
const API_TIME_WITH_ANNOTATIONS: Duration = Duration::from_secs(10);

/// Names of the sources, in the log and in metrics.
const AGENT: &str = "agent";
const API: &str = "api";
const LAST_KNOWN: &str = "last-known";
const ANNOTATIONS: &str = "annotations";
const MANIFESTS: &str = "manifests";

/// The sources of one call.
pub(crate) struct Sources<'a> {
    pub(crate) conf: &'a PluginConf,
    pub(crate) log: &'a Logger,
    pub(crate) progress: &'a Progress,
}

/// No source had the facts.
#[derive(Debug, thiserror::Error)]
#[error("{main}{}", texts(.others))]
pub(crate) struct NoFacts {
    /// What the source said that should have had them.
    main: Error,
    /// What the others said.
    others: Vec<Error>,
}

fn texts(errors: &[Error]) -> String {
    errors.iter().map(|error| format!("; nor was it had otherwise: {error}")).collect()
}

impl Sources<'_> {
    /// The facts, from the first source that has them; the progress notes which one it was.
    pub(crate) fn pod(&self, id: &PodId) -> Result<Pod, NoFacts> {
        let (pod, source) = match &self.conf.pod_source {
            cni::PodSource::Manifests(dir) => {
                self.progress.wait_for("the pod's manifest");
                let pod = Manifests::new(dir).pod(id);
                (pod.map_err(|main| NoFacts { main, others: Vec::new() })?, MANIFESTS)
            }
            cni::PodSource::Kubernetes => self.of_cluster(id)?,
        };
        self.progress.set_facts_source(source);
        Ok(pod)
    }

    /// Whether the facts that were had are from a source that knows labels.
    pub(crate) fn has_labels(&self) -> bool {
        self.progress.facts_source() != ANNOTATIONS
    }

    /// The labels of a namespace, where the pod's source does not know them. Manifests have no namespaces, and so no labels of any.
    pub(crate) fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, Error> {
        match &self.conf.pod_source {
            cni::PodSource::Manifests(_) => Ok(BTreeMap::new()),
            cni::PodSource::Kubernetes => self.api(self.conf.facts_timeout).namespace_labels(name),
        }
    }

    /// Whether facts could be had, as far as it can be told without asking anything outside this machine.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        match &self.conf.pod_source {
            cni::PodSource::Manifests(dir) => Manifests::new(dir).ready(),
            cni::PodSource::Kubernetes => {
                // The file first: an agent that hangs takes time.
                self.api(self.conf.facts_timeout).ready().or_else(|no_kubeconfig| {
                    let answer = agent(self.conf).map(|agent| agent.ready());
                    answer.and_then(Result::ok).ok_or(no_kubeconfig)
                })
            }
        }
    }

    fn of_cluster(&self, id: &PodId) -> Result<(Pod, &'static str), NoFacts> {
        let end = Instant::now() + self.conf.facts_timeout;
        let mut others = Vec::new();
        self.progress.wait_for("the pod's facts from the node agent");
        match agent(self.conf).map(|agent| agent.pod(id)) {
            Some(Ok(pod)) => return Ok((pod, AGENT)),
            Some(Err(error)) => {
                self.log.debug(&error.to_string(), &[]);
                others.push(error);
            }
            None => {}
        }
        let last_known = run_dir(self.conf).map(LastKnown::new);
        let annotations = self.conf.pod_annotations.as_ref().map(Annotations::new);
        let first_limit = match () {
            () if last_known.as_ref().is_some_and(|source| source.has(id)) => API_TIME_WITH_LAST_KNOWN,
            () if annotations.is_some() => API_TIME_WITH_ANNOTATIONS,
            () => self.conf.facts_timeout,
        };
        self.progress.wait_for("the pod's facts from the API server");
        let first_limit = first_limit.min(self.conf.facts_timeout);
        let main = match self.api(first_limit).pod(id) {
            Ok(pod) => return Ok((pod, API)),
            Err(error) => error,
        };
        let fallbacks: [(&'static str, Option<&dyn PodSource>); 2] = [
            (LAST_KNOWN, last_known.as_ref().map(|source| source as &dyn PodSource)),
            (ANNOTATIONS, annotations.as_ref().map(|source| source as &dyn PodSource)),
        ];
        for (name, source) in fallbacks {
            match source.map(|source| source.pod(id)) {
                Some(Ok(pod)) => {
                    self.log.warn(&format!("{main}; going on with other facts"), &[("facts_source", &name)]);
                    if name == ANNOTATIONS {
                        self.log.warn(Annotations::ASSUMED, &[]);
                    }
                    return Ok((pod, name));
                }
                Some(Err(error)) if !is_absent(&error) => others.push(error),
                Some(Err(_)) | None => {}
            }
        }
        // Less time than there is was spent on the API server in the hope for the fallbacks.
        let left = end.saturating_duration_since(Instant::now());
        if first_limit == self.conf.facts_timeout || left.is_zero() || main.retry() == podsource::Retry::Never
        {
            return Err(NoFacts { main, others });
        }
        self.api(left).pod(id).map(|pod| (pod, API)).map_err(|main| NoFacts { main, others })
    }

    fn api(&self, limit: Duration) -> Kubernetes<'_> {
        let on_retry = |error: &Error, attempt: u32, pause: Duration| {
            let labels: [telemetry::Label<'_>; 2] = [("try", &attempt), ("pause_ms", &pause.as_millis())];
            self.log.warn(&error.to_string(), &labels);
        };
        let kubeconfig = self.conf.cni_agent_run_dir.join(KUBECONFIG_NAME);
        Kubernetes::new(kubeconfig, env!("CARGO_PKG_VERSION")).with_timeout(limit).with_on_retry(on_retry)
    }
}

/// The node agent, if there can be one.
pub(crate) fn agent(conf: &PluginConf) -> Option<Agent> {
    run_dir(conf).map(|run_dir| Agent::new(run_dir, env!("CARGO_PKG_VERSION")))
}

/// The run directory, where the agent listens and leaves facts. A plugin's working directory is not its own, so a relative one is none.
pub(crate) fn run_dir(conf: &PluginConf) -> Option<&Path> {
    Some(&*conf.cni_agent_run_dir).filter(|run_dir| run_dir.is_absolute())
}

/// Whether the agent never left anything about this pod, which is the usual case and explains nothing.
fn is_absent(error: &Error) -> bool {
    matches!(&*error.cause, Cause::Unreadable { path, .. } if !path.exists())
}
