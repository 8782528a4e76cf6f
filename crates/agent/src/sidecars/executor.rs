//! Acts for a start are carried out one by one, and each is written down once: [`intent::sidecar::Started`] says what it does.

use std::io;
use std::path::PathBuf;

use facts::PodRef;
use fault::{Fault, Retry};
use intent::sidecar::{Aim, Capture, Hindrance, Step, steps};

use super::record::{Start, StartEvidence, StartRecords};

/// How often the API server may refuse an Event before it counts as a right that the chart does not give.
const TRIES: u32 = 5;

/// What is asked of the outside.
pub(super) trait SidecarPorts {
    /// Deletes the pod.
    fn delete(&self, pod: &PodRef) -> impl Future<Output = Result<(), WriteRefused>> + Send;

    /// Gives the pod the label.
    fn label(&self, pod: &PodRef) -> impl Future<Output = Result<(), WriteRefused>> + Send;

    /// Gives the pod its Event.
    fn tell(&self, pod: &PodRef, start: &Start) -> impl Future<Output = Result<(), WriteRefused>> + Send;

    /// Lets this agent and the next know that the start is done with.
    fn settle(&self, pod: &PodRef, start: &Start) -> Result<(), MarkFailure>;
}

/// What the API server says to a label or an Event that it does not take.
#[derive(Debug)]
pub(super) enum WriteRefused {
    /// The pod is gone or on its way, another one has its name, or it is not without capture any more.
    Gone,
    /// There is no right to it.
    NoRight(cluster::Error),
    /// It may be taken another time.
    Other(cluster::Error),
}

/// Why a pod is not marked yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkFailure {
    /// The API server.
    #[error(transparent)]
    Api(#[from] cluster::Error),
    /// It gives no right for Events yet.
    #[error(transparent)]
    NoRight(cluster::Error),
    /// A note stays.
    #[error("remove the note {path}: {cause}", path = path.display())]
    Note {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

// === impl WriteRefused ===

impl From<cluster::Error> for WriteRefused {
    fn from(error: cluster::Error) -> Self {
        match error.status() {
            Some(404 | 409) => Self::Gone,
            Some(403) => Self::NoRight(error),
            _ => Self::Other(error),
        }
    }
}

// === impl MarkFailure ===

impl MarkFailure {
    /// Whether the others would fail alike: the server has not answered about this pod.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Api(error) => !matches!(error.status(), Some(400 | 403 | 413 | 422)),
            Self::NoRight(_) | Self::Note { .. } => false,
        }
    }

    /// Whether the log says nothing of it: only some features of the chart bring the right.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self, Self::NoRight(_))
    }
}

impl Fault for MarkFailure {
    fn retry(&self) -> Retry {
        match self {
            Self::Api(error) | Self::NoRight(error) => error.retry(),
            Self::Note { .. } => Retry::Backoff,
        }
    }
}

/// Carries out what leads from what is known of a start to what is wanted, each act planned from what came of the one before.
pub(super) async fn carry_out<P: SidecarPorts>(
    ports: &P,
    records: &StartRecords,
    pod: &PodRef,
    mut start: Start,
    wanted: Aim,
) -> Result<(), MarkFailure> {
    while let Some(act) = steps(wanted, &start.have).first().copied() {
        let came = match act {
            Step::Delete => deleted(ports.delete(pod).await),
            Step::Label => labelled(ports.label(pod).await, &start),
            Step::Tell => told(ports.tell(pod, &start).await, &start),
            Step::Settle => ports.settle(pod, &start).map(|()| None),
        };
        let known = records.change(pod, &start.evidence, |start| match &came {
            Ok(Some(hindrance)) => start.have.see(*hindrance),
            Ok(None) => start.have.after(act),
            Err(failure) => start.refused += u32::from(failure.is_quiet()),
        });
        came?;
        // One that is forgotten meanwhile is gone, or captured after all.
        let Some(known) = known else { return Ok(()) };
        start = known;
    }
    Ok(())
}

/// What was seen where a pod was not deleted.
fn deleted(answer: Result<(), WriteRefused>) -> Result<Option<Hindrance>, MarkFailure> {
    match answer {
        Ok(()) => Ok(None),
        Err(WriteRefused::Gone) => Ok(Some(Hindrance::Gone)),
        Err(WriteRefused::NoRight(error) | WriteRefused::Other(error)) => Err(error.into()),
    }
}

/// What was seen where a label was not given.
fn labelled(answer: Result<(), WriteRefused>, start: &Start) -> Result<Option<Hindrance>, MarkFailure> {
    match answer {
        Ok(()) => Ok(None),
        Err(WriteRefused::Gone) => Ok(Some(Hindrance::Gone)),
        // Only some features of the chart bring the right to label; the policy `open` does.
        Err(WriteRefused::NoRight(_)) if start.evidence == StartEvidence::Times => {
            Ok(Some(Hindrance::NoLabels))
        }
        Err(WriteRefused::NoRight(error) | WriteRefused::Other(error)) => Err(error.into()),
    }
}

/// What was seen where an Event was not written.
fn told(answer: Result<(), WriteRefused>, start: &Start) -> Result<Option<Hindrance>, MarkFailure> {
    let is_older = start.evidence == StartEvidence::Times;
    match answer {
        Ok(()) => Ok(None),
        Err(WriteRefused::Gone) => Ok(Some(Hindrance::Gone)),
        // What was done about the pod is done, with an Event or without.
        Err(_) if !start.evidence.is_hearsay() => Ok(Some(Hindrance::NoEvents)),
        Err(WriteRefused::NoRight(error)) if is_older && start.refused < TRIES => {
            Err(MarkFailure::NoRight(error))
        }
        // The chart gives the right for Events only with repair, ambient mode or the policy `open`.
        Err(WriteRefused::NoRight(_)) if is_older || start.have.capture == Capture::Part => {
            Ok(Some(Hindrance::NoEvents))
        }
        Err(WriteRefused::NoRight(error) | WriteRefused::Other(error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
