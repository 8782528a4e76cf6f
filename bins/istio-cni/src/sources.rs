//! Where a pod's facts come from, and in which order.
//!
//! The node agent knows them from its watch and answers in a fraction of a millisecond. Without it the API server is asked. Where neither
//! answers, what the agent left on disk is used, for the same incarnation of the pod only, and last what the runtime hands over itself. So pods
//! start, captured as they should be, while either is away.
//!
//! A node that has just started has no agent yet and nothing that one left; there the agent is waited for.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use capture::Pod;
use cni::PluginConf;
use facts::PodRef;
use podsource::{AgentSource, Annotations, Cause, Error, Kubernetes, LastKnown, Manifests, PodSource};
use telemetry::{Level, Logger};

use crate::progress::Progress;

/// How long the API server is asked while other facts are at hand, and while it refuses the token and no agent is there to renew it. The whole
/// call then ends within 2 s.
const PATIENCE: Duration = Duration::from_millis(1800);
/// How long it is asked before parts of a pod are assumed, unless it refuses the token and no agent is there.
const PATIENCE_BEFORE_ASSUMING: Duration = Duration::from_secs(10);
/// How long the API server is asked for the namespace's labels when the pod's facts have taken all of the time.
const LAST_QUESTION: Duration = Duration::from_secs(1);
/// How often it is looked whether an agent has come.
const POLL: Duration = Duration::from_millis(100);

/// Names of the sources, in the log and in metrics.
const AGENT: &str = "agent";
const API: &str = "api";
const LAST_KNOWN: &str = "last-known";
pub(crate) const ANNOTATIONS: &str = "annotations";
const MANIFESTS: &str = "manifests";

/// The sources of one call.
pub(crate) struct Sources<'a> {
    pub(crate) conf: &'a PluginConf,
    pub(crate) log: &'a Logger,
    pub(crate) progress: &'a Progress,
    /// When everything that is asked for has to be had: `facts_timeout` after the agent, which answers at once or not at all, was asked first.
    end: OnceCell<Instant>,
}

/// The facts of a pod.
pub(crate) struct FoundPod {
    pub(crate) pod: Pod,
    /// The API server refuses what the agent left, and no agent is there: it will not come by itself.
    pub(crate) abandoned: bool,
}

/// No source had the facts.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", text(.main, *.abandoned), texts(.others))]
pub(crate) struct NoFacts {
    /// What the source said that should have had them.
    main: Error,
    /// See [`FoundPod`].
    abandoned: bool,
    /// What the others said.
    others: Vec<Error>,
}

fn text(main: &Error, abandoned: bool) -> String {
    if !abandoned {
        return main.to_string();
    }
    // A token that an agent renewed would be good; rights may be missing whether there is one or not.
    let rights = if main.is_forbidden() { "allow the identity in the kubeconfig to do that; " } else { "" };
    format!(
        "{}; {rights}no node agent is here to renew the kubeconfig: start it (DaemonSet istio-cni-node), or, if it was uninstalled, run `cnictl uninstall` on \
         this node",
        main.brief()
    )
}

fn texts(errors: &[Error]) -> String {
    errors.iter().map(|error| format!("; another source failed too: {error}")).collect()
}

/// Facts that are used where neither the agent nor the API server has them.
struct Fallback {
    pod: Pod,
    source: &'static str,
    /// Not all of it is known.
    assumed: bool,
}

/// The reason for which the last failed try was told of.
#[derive(Default)]
struct Told(RefCell<Option<(String, Instant, Duration)>>);

impl Told {
    /// Pause before the same is told again.
    const PAUSE: Duration = Duration::from_secs(10);

    fn wants(&self, text: &str) -> bool {
        let (mut told, now) = (self.0.borrow_mut(), Instant::now());
        let pause = match told.as_ref().filter(|(before, ..)| before == text) {
            Some((_, next, _)) if now < *next => return false,
            Some((.., pause)) => *pause * 2,
            None => Self::PAUSE,
        };
        *told = Some((text.to_owned(), now + pause, pause));
        true
    }
}

/// The node agent, as long as it is worth asking.
struct Inquiry<'a> {
    id: &'a PodRef,
    agent: RefCell<Option<AgentSource>>,
    /// What it said last.
    error: RefCell<Option<Error>>,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(conf: &'a PluginConf, log: &'a Logger, progress: &'a Progress) -> Self {
        Self { conf, log, progress, end: OnceCell::new() }
    }

    fn left(&self) -> Duration {
        let end = self.end.get_or_init(|| Instant::now() + self.conf.facts_timeout);
        end.saturating_duration_since(Instant::now())
    }

    /// The facts, from the first source that has them; the progress notes which one it was.
    pub(crate) fn pod(&self, id: &PodRef) -> Result<FoundPod, NoFacts> {
        let (pod, source, abandoned) = match &self.conf.pod_source {
            cni::PodSourceConfig::Manifests(dir) => {
                self.progress.wait_for("the pod's manifest");
                let pod = Manifests::new(dir).pod(id);
                let pod = pod.map_err(|main| NoFacts { main, abandoned: false, others: Vec::new() })?;
                (pod, MANIFESTS, false)
            }
            cni::PodSourceConfig::Kubernetes => self.of_cluster(id)?,
        };
        self.progress.set_facts_source(source);
        Ok(FoundPod { pod, abandoned })
    }

    /// The labels of a pod's namespace, where the pod's facts do not have them. An agent that comes meanwhile knows them, too.
    pub(crate) fn namespace_labels(&self, id: &PodRef) -> Result<BTreeMap<String, String>, Error> {
        if let cni::PodSourceConfig::Manifests(dir) = &self.conf.pod_source {
            return Manifests::new(dir).namespace_labels(&id.namespace);
        }
        let (told, of_agent) = (Told::default(), RefCell::new(None));
        let inquiry = Inquiry { id, agent: RefCell::new(agent(self.conf)), error: RefCell::new(None) };
        let api = self.api(self.left().max(LAST_QUESTION)).with_on_retry(|error, attempt, pause| {
            self.log_retry(&told, error, attempt, pause);
            *of_agent.borrow_mut() = inquiry.ask(self.log).and_then(|pod| pod.namespace_labels);
            if of_agent.borrow().is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let asked = api.namespace_labels(&id.namespace);
        drop(api);
        asked.or_else(|error| of_agent.into_inner().ok_or(error))
    }

    /// Whether facts could be had, as far as it can be told without asking anything outside this machine.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        match &self.conf.pod_source {
            cni::PodSourceConfig::Manifests(dir) => Manifests::new(dir).ready(),
            cni::PodSourceConfig::Kubernetes => {
                // The file first: an agent that hangs takes time.
                self.api(self.conf.facts_timeout).ready().or_else(|no_kubeconfig| {
                    let answer = agent(self.conf).map(|agent| agent.ready());
                    answer.and_then(Result::ok).ok_or(no_kubeconfig)
                })
            }
        }
    }

    fn of_cluster(&self, id: &PodRef) -> Result<(Pod, &'static str, bool), NoFacts> {
        self.progress.wait_for("the pod's facts from the node agent");
        let inquiry = Inquiry { id, agent: RefCell::new(agent(self.conf)), error: RefCell::new(None) };
        if let Some(pod) = inquiry.ask(self.log) {
            return Ok((pod, AGENT, false));
        }
        let (fallback, mut others) = self.fallback(id);
        if fallback.as_ref().is_none_or(|fallback| fallback.assumed)
            && let Some(pod) = self.wait_for_agent(&inquiry)
        {
            return Ok((pod, AGENT, false));
        }
        let result = self.ask_api(&inquiry, self.left(), fallback.as_ref());
        let main = match result {
            Ok((pod, source)) => return Ok((pod, source, false)),
            Err(main) => main,
        };
        let agent_error = inquiry.error.into_inner();
        let abandoned = main.is_refusal() && agent_error.as_ref().is_some_and(Error::is_absence);
        if let Some(Fallback { pod, source, assumed }) = fallback {
            self.log.warn(&format!("{main}; going on with other facts"), &[("facts_source", &source)]);
            if assumed {
                self.log.warn(Annotations::ASSUMED, &[]);
                self.progress.set_assumed(Annotations::ASSUMED);
            }
            return Ok((pod, source, abandoned));
        }
        others.extend(agent_error.filter(|_| !abandoned));
        Err(NoFacts { main, abandoned, others })
    }

    /// What the agent left of the pod, or what its annotations tell; and why these are of no use.
    fn fallback(&self, id: &PodRef) -> (Option<Fallback>, Vec<Error>) {
        let mut errors = Vec::new();
        for dir in [run_dir(self.conf), absolute(&self.conf.state_dir)].into_iter().flatten() {
            match LastKnown::new(dir).pod(id) {
                Ok(pod) => return (Some(Fallback { pod, source: LAST_KNOWN, assumed: false }), errors),
                // As after a restart of the machine, which empties the one and not the other.
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    errors.push(error);
                    break;
                }
            }
        }
        // kubelet gives every pod some, so a runtime that hands over nothing does not know them.
        if let Some(annotations) = self.conf.pod_annotations.as_ref().filter(|map| !map.is_empty()) {
            let labels_decide = self.conf.ambient_enabled && !self.conf.enablement_selectors.is_empty();
            let annotations = Annotations::new(annotations).labels_decide(labels_decide);
            match annotations.pod(id) {
                Ok(pod) => {
                    let assumed = annotations.assumes();
                    return (Some(Fallback { pod, source: ANNOTATIONS, assumed }), errors);
                }
                Err(error) => errors.push(error),
            }
        }
        (None, errors)
    }

    /// Waits where an agent can come and nothing is there that one left, as after the start of the node; gives the pod if the agent has it.
    fn wait_for_agent(&self, inquiry: &Inquiry<'_>) -> Option<Pod> {
        let kubeconfig = run_dir(self.conf)?.join(rundir::KUBECONFIG);
        let mut told = false;
        while !kubeconfig.exists() && POLL < self.left() {
            if !std::mem::replace(&mut told, true) {
                self.progress.wait_for("the node agent, which has not come yet");
                self.log.info("no node agent has been here yet; waiting for it", &[]);
            }
            std::thread::sleep(POLL);
            if let Some(pod) = inquiry.ask(self.log) {
                return Some(pod);
            }
        }
        None
    }

    /// Asks the API server until it answers, and the agent again before each try.
    fn ask_api(
        &self,
        inquiry: &Inquiry<'_>,
        left: Duration,
        fallback: Option<&Fallback>,
    ) -> Result<(Pod, &'static str), Error> {
        self.progress.wait_for("the pod's facts from the API server");
        let began = Instant::now();
        let limit = match fallback {
            Some(fallback) if fallback.assumed => PATIENCE_BEFORE_ASSUMING.min(left),
            Some(_) => PATIENCE.min(left),
            None => left,
        };
        let of_agent = RefCell::new(None);
        let go_on = |error: &Error, pause: Duration| {
            *of_agent.borrow_mut() = inquiry.ask(self.log);
            if of_agent.borrow().is_some() {
                return false;
            }
            match fallback {
                _ if !error.is_refusal() => true,
                Some(fallback) if !fallback.assumed => false,
                // Where there is an agent, it may have to renew the token, or its rights are on their way; or the next one is, in an upgrade.
                _ if !inquiry.is_absent() => true,
                _ => began.elapsed() + pause < PATIENCE,
            }
        };
        let told = Told::default();
        let api = self.api(limit).with_on_retry(|error, attempt, pause| {
            self.log_retry(&told, error, attempt, pause);
            if go_on(error, pause) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let asked = api.pod(inquiry.id);
        drop(api);
        match (asked, of_agent.into_inner()) {
            (Ok(pod), _) => Ok((pod, API)),
            (Err(_), Some(pod)) => Ok((pod, AGENT)),
            (Err(error), None) => Err(error),
        }
    }

    /// Each reason once, then after pauses that double, with the number of the try: a pod that is gone from the API is asked for many times.
    fn log_retry(&self, told: &Told, error: &Error, attempt: u32, pause: Duration) {
        let labels: [telemetry::Label<'_>; 2] = [("try", &attempt), ("pause_ms", &pause.as_millis())];
        let text = error.to_string();
        let level = if told.wants(&text) { Level::Warn } else { Level::Debug };
        self.log.log(level, &text, &labels);
    }

    fn api(&self, limit: Duration) -> Kubernetes<'_> {
        let kubeconfig = self.conf.cni_agent_run_dir.join(rundir::KUBECONFIG);
        Kubernetes::new(kubeconfig, env!("CARGO_PKG_VERSION")).with_timeout(limit)
    }
}

impl Inquiry<'_> {
    /// The pod, if the agent has it. One that hangs or is not to be trusted is asked no more.
    fn ask(&self, log: &Logger) -> Option<Pod> {
        let mut agent = self.agent.borrow_mut();
        let error = match agent.as_ref()?.pod(self.id) {
            Ok(pod) => return Some(pod),
            Err(error) => error,
        };
        let is_useless = error.is_hung() || matches!(*error.cause, Cause::ForeignAgent { .. });
        if self.error.borrow().is_none() {
            log.debug(&error.to_string(), &[]);
        }
        *self.error.borrow_mut() = Some(error);
        if is_useless {
            *agent = None;
        }
        None
    }

    /// Whether no process listens on the agent's socket.
    fn is_absent(&self) -> bool {
        self.error.borrow().as_ref().is_none_or(Error::is_absence)
    }
}

/// The node agent, if there can be one.
pub(crate) fn agent(conf: &PluginConf) -> Option<AgentSource> {
    run_dir(conf).map(|run_dir| AgentSource::new(run_dir, env!("CARGO_PKG_VERSION")))
}

/// The run directory, where the agent listens and leaves facts.
pub(crate) fn run_dir(conf: &PluginConf) -> Option<&Path> {
    absolute(&conf.cni_agent_run_dir)
}

/// A plugin's working directory is not its own, so a relative path is not used.
pub(crate) fn absolute(dir: &Path) -> Option<&Path> {
    Some(dir).filter(|dir| dir.is_absolute())
}

/// Whether the agent never left anything about this pod, which is the usual case and explains nothing.
fn is_absent(error: &Error) -> bool {
    matches!(&*error.cause, Cause::Unreadable { path, .. } if !path.exists())
}
