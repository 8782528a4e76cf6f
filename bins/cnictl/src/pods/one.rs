//! Verbs that are about one pod of the node.

use anyhow::{Result, bail};
use podsource::AgentSource;
use rundir::pods::PodReport;

use super::listing::NOTHING;
use super::own::LookedPod;
use super::select::SelectArgs;
use super::view::Viewer;
use crate::configuration::ConfigurationArgs;
use crate::output::VerbAnswer;

#[derive(Debug, clap::Args)]
pub(crate) struct OnePodArgs {
    /// The pod, as NAMESPACE/NAME, or its name with -n
    #[arg(value_name = "POD")]
    pod: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    pub(super) configuration: ConfigurationArgs,
}

impl OnePodArgs {
    /// The node's agent.
    ///
    /// # Errors
    /// The node's configuration cannot be used.
    pub(super) fn agent(&self) -> Result<AgentSource> {
        Ok(self.configuration.load()?.agent())
    }

    /// The pod after a look of this program; or what is said where there is none that should be captured.
    ///
    /// # Errors
    /// Nothing can be looked at, or several have this name.
    pub(super) fn look(&self) -> Result<Result<LookedPod, VerbAnswer>> {
        let viewer = Viewer::new(&self.configuration, false, None)?;
        let looked = viewer.look_at_one(&self.select())?;
        Ok(looked.and_then(|looked| {
            if looked.report.is_wanted() { Ok(looked) } else { Err(not_wanted(&looked.report)) }
        }))
    }

    /// The pod as a selection.
    fn select(&self) -> SelectArgs {
        SelectArgs::named(&self.pod, self.namespace.clone())
    }

    /// The pod among others; or what is said where there is none that should be captured.
    ///
    /// # Errors
    /// Several have this name.
    pub(super) fn find<'a>(&self, pods: &'a [PodReport]) -> Result<Result<&'a PodReport, VerbAnswer>> {
        let select = self.select();
        let mut found = pods.iter().filter(|pod| select.selects(&pod.pod(), &pod.labels));
        Ok(match (found.next(), found.next()) {
            (None, _) => Err(nobody(&select)),
            (Some(pod), None) if pod.is_wanted() => Ok(pod),
            (Some(pod), None) => Err(not_wanted(pod)),
            (Some(_), Some(_)) => bail!("several pods are named {}; name one as NAMESPACE/NAME", self.pod),
        })
    }
}

impl Viewer {
    /// The one pod that is meant, after a look of this program; or what is said where there is none.
    ///
    /// # Errors
    /// Nothing can be looked at, or several are meant.
    pub(crate) fn look_at_one(&self, select: &SelectArgs) -> Result<Result<LookedPod, VerbAnswer>> {
        let mut looked = self.look_deeply(select)?;
        Ok(match (looked.pop(), looked.is_empty()) {
            (None, _) => Err(nobody(select)),
            (Some(pod), true) => Ok(pod),
            (Some(pod), false) => {
                bail!("several pods are named {}; name one as NAMESPACE/NAME", pod.report.name)
            }
        })
    }
}

fn nobody(select: &SelectArgs) -> VerbAnswer {
    nothing(format!("no pod is known on this node{}", select.text()))
}

fn not_wanted(pod: &PodReport) -> VerbAnswer {
    nothing(format!("pod {} should not be captured: {}", pod.pod(), pod.decision))
}

fn nothing(problem: String) -> VerbAnswer {
    VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) }
}
