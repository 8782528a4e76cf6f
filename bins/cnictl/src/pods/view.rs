//! The pods that are meant, and by what evidence something is said about them: the agent's, or a look of this program.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use podsource::{AgentSource, Cause};
use rundir::pods::{PodReport, PodsReport};
use serde::Serialize;

use super::listing::ago;
use super::locate::proc_root;
use super::own::{LookedPod, OwnLook, OwnLooked, now};
use super::select::SelectArgs;
use crate::configuration::{AGENT_PATIENCE, ConfigurationArgs};
use crate::output::one_line;
use crate::subject::{Decider, DecisionArgs};

/// How long the agent may take where it looks at all pods first.
pub(super) const PATIENCE_FOR_A_LOOK: Duration = Duration::from_secs(30);

/// Who says it, and when.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EvidenceSource {
    /// `agent`, `cnictl`, `manifests` or `snapshot`.
    pub(crate) by: &'static str,
    /// In seconds since 1970.
    pub(crate) at: f64,
    /// Version of the agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) agent_version: String,
    /// Why the agent does not say it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) without_agent: String,
}

/// What a list begins with: by what evidence it is, and what could not be looked at.
#[derive(Serialize)]
pub(crate) struct ListHead<'a> {
    pub(crate) evidence: &'a EvidenceSource,
    pub(crate) not_looked_at: &'a [String],
}

/// What is known of the pods that are meant.
#[derive(Debug)]
pub(crate) struct NodeView {
    pub(crate) evidence: EvidenceSource,
    pub(crate) pods: Vec<PodReport>,
    /// What is not known, besides states of single pods.
    pub(crate) gaps: Vec<String>,
    /// The time was over before all was known.
    pub(crate) out_of_time: bool,
}

/// Asks the agent, or looks.
#[derive(Debug)]
pub(crate) struct Viewer {
    pub(super) decider: Decider,
    pub(crate) fresh: bool,
    pub(crate) timeout: Option<Duration>,
}

impl EvidenceSource {
    /// The agent says it, now.
    pub(crate) fn of_agent(version: String, at: f64) -> Self {
        Self { by: "agent", at, agent_version: version, without_agent: String::new() }
    }

    /// This program says it, for want of the agent.
    pub(super) fn own(why: &str) -> Self {
        Self::of_files("cnictl", now(), why.to_owned())
    }

    /// Files say it: `manifests`, or `snapshot` for what an agent has left, as old as `at`.
    pub(crate) fn of_files(by: &'static str, at: f64, without_agent: String) -> Self {
        Self { by, at, agent_version: String::new(), without_agent }
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        match self.by {
            "agent" if self.agent_version.is_empty() => "evidence: the agent".to_owned(),
            "agent" => format!("evidence: the agent, version {}", self.agent_version),
            "manifests" => "evidence: manifests".to_owned(),
            "snapshot" if self.without_agent.is_empty() => {
                format!("evidence: a snapshot of policies, written {}", ago(self.at))
            }
            "snapshot" => {
                let why = one_line(&self.without_agent);
                format!("evidence: the snapshot of policies, written {}: {why}", ago(self.at))
            }
            _ => format!("evidence: looked at by cnictl itself: {}", one_line(&self.without_agent)),
        }
    }
}

impl Viewer {
    /// Reads the node's configuration.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn new(
        configuration: &ConfigurationArgs,
        fresh: bool,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        let decider = DecisionArgs::of_the_node(configuration.clone()).load()?;
        Ok(Self { decider, fresh, timeout })
    }

    /// The agent.
    pub(super) fn agent(&self) -> AgentSource {
        self.decider.configuration.agent()
    }

    /// What is known of the pods that are meant.
    ///
    /// # Errors
    /// This user may not ask and not look.
    pub(crate) fn view(&self, select: &SelectArgs) -> Result<NodeView> {
        let deadline = self.deadline();
        Ok(match self.asked()? {
            Ok(report) => NodeView::of_agent(report, select),
            Err(why) => {
                let looked = self.own_look(deadline, &[], false).look(select)?;
                NodeView::of_look(looked, &why).0
            }
        })
    }

    /// The same, and each pod after a look of this program, which is the only one where the agent does not answer.
    ///
    /// # Errors
    /// As [`Self::view`], or nothing can be looked at.
    pub(crate) fn view_deeply(&self, select: &SelectArgs) -> Result<(NodeView, Vec<LookedPod>)> {
        let deadline = self.deadline();
        Ok(match self.asked()? {
            Ok(report) => {
                let looked = self.own_look(None, &report.pods, true).look(select)?.pods;
                (NodeView::of_agent(report, select), looked)
            }
            Err(why) => NodeView::of_look(self.own_look(deadline, &[], true).look(select)?, &why),
        })
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }

    /// What the agent says, or why it does not.
    ///
    /// # Errors
    /// This user may not ask.
    fn asked(&self) -> Result<Result<PodsReport, String>> {
        let usual = if self.fresh { PATIENCE_FOR_A_LOOK } else { AGENT_PATIENCE };
        let limit = self.timeout.map_or(usual, |timeout| timeout.min(usual));
        match self.agent().pods(self.fresh, limit) {
            Ok(report) => Ok(Ok(report)),
            Err(error) => {
                refuse_if_denied(&error)?;
                Ok(Err(error.to_string()))
            }
        }
    }

    /// Each pod that is meant after a look of this program, which takes from the agent, where it answers, only where the pods are.
    ///
    /// # Errors
    /// Nothing can be looked at.
    pub(crate) fn look_deeply(&self, select: &SelectArgs) -> Result<Vec<LookedPod>> {
        Ok(self.own_look(None, &self.known()?, true).look(select)?.pods)
    }

    /// The same of all pods, until a deadline, and without what their namespaces hold.
    ///
    /// # Errors
    /// As [`Self::look_deeply`].
    pub(crate) fn look_until(&self, deadline: Instant) -> Result<Vec<LookedPod>> {
        Ok(self.own_look(Some(deadline), &self.known()?, false).look(&SelectArgs::default())?.pods)
    }

    /// What the agent says of pods; nothing where it does not answer.
    fn known(&self) -> Result<Vec<PodReport>> {
        match self.agent().pods(false, AGENT_PATIENCE) {
            Ok(report) => Ok(report.pods),
            Err(error) => {
                refuse_if_denied(&error)?;
                Ok(Vec::new())
            }
        }
    }

    fn own_look<'a>(
        &'a self,
        deadline: Option<Instant>,
        known: &'a [PodReport],
        keeps_observed: bool,
    ) -> OwnLook<'a> {
        OwnLook { decider: &self.decider, proc_root: proc_root(), deadline, known, keeps_observed }
    }
}

/// A user who may not ask the agent may not look into namespaces either: half an answer would look like a whole one.
///
/// # Errors
/// That is so.
pub(crate) fn refuse_if_denied(error: &podsource::Error) -> Result<()> {
    match &*error.cause {
        Cause::NoAgent(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!("{error}; run cnictl as root")
        }
        _ => Ok(()),
    }
}

impl NodeView {
    /// `why`: why the agent does not say it.
    fn of_look(looked: OwnLooked, why: &str) -> (Self, Vec<LookedPod>) {
        let OwnLooked { pods, unusable: gaps, out_of_time } = looked;
        let reports = pods.iter().map(|pod| pod.report.clone()).collect();
        (Self { evidence: EvidenceSource::own(why), pods: reports, gaps, out_of_time }, pods)
    }

    fn of_agent(report: PodsReport, select: &SelectArgs) -> Self {
        let PodsReport { version, at, synced, mut pods, .. } = report;
        pods.retain(|pod| select.selects_report(pod));
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        let evidence = EvidenceSource::of_agent(version, at);
        let unlisted = "the agent has not listed the pods of this node yet, so some may be missing";
        let gaps = if synced { Vec::new() } else { vec![unlisted.to_owned()] };
        Self { evidence, pods, gaps, out_of_time: false }
    }
}
