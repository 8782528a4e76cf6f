//! Pods from the node agent: over its socket, or from the last facts that it left on disk.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capture::Pod;
use facts::{Facts, PodRef};
use http1::unix::Passing;
use http1::{Connection, Deadline};
use rundir::denials::{DenialsReport, MAX_DENIALS_BYTES};
use rundir::pods::{ConflictsReport, MAX_PODS_BYTES, PodsReport, RestoreReport, RestoreRequest};
use rundir::policy::{MAX_POLICY_STATE, PolicyStateReport, PrepareAnswer, PrepareRequest, ReleaseRequest};
use rundir::recent::{MAX_RECENT_BYTES, RecentReport};
use rundir::{
    AgentStatus, CHECKS_PATH, CONFLICTS_PATH, DENIALS_PATH, FACTS_DIR, FACTS_PATH, PODS_PATH,
    POLICY_STATE_PATH, PREPARE_PATH, RECENT_PATH, RELEASE_PATH, REPORT_PATH, RESTORE_PATH, SOCKET_NAME,
    STATUS_PATH, facts_file,
};
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use trusted::Links;

use crate::error::{Cause, Error};
use crate::{PodSource, json, segment};

/// Longest wait for the agent. It answers from memory, in well under a millisecond; an agent that takes longer is asked no more.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The same where it is only asked whether it is there, by somebody who has to answer a runtime within 50 ms.
const READY_TIMEOUT: Duration = Duration::from_millis(20);
/// Largest answer and file, in bytes: a trimmed object is some kilobytes, its annotations at most 256 KiB.
const MAX_FACTS: usize = 1 << 20;
/// Path of the levels of the agent's log.
pub const LOG_LEVELS_PATH: &str = "/v1/log/levels";
/// Largest status, in bytes: some lines of text.
const MAX_STATUS: usize = 64 << 10;
/// Largest answer to a report, in bytes; it is empty.
const MAX_ANSWER: usize = 4 << 10;

/// The node agent that listens in a run directory.
#[derive(Debug, Clone)]
pub struct AgentSource {
    socket: PathBuf,
    user_agent: String,
}

/// What the node agent knew last, as files in a run directory. Read when the agent does not answer; a pod's facts are used only for the
/// incarnation that they are of.
#[derive(Debug, Clone)]
pub struct LastKnown {
    dir: PathBuf,
}

// === impl AgentSource ===

impl AgentSource {
    /// Nothing is connected before the first question. `version` goes into the user agent.
    pub fn new(run_dir: &Path, version: &str) -> Self {
        Self { socket: run_dir.join(SOCKET_NAME), user_agent: format!("istio-cni/{version}") }
    }

    /// Hands over a report.
    ///
    /// # Errors
    /// The agent is not there, is another user's, or did not take it within `limit`.
    pub fn report(&self, report: &rundir::OperationReport, limit: Duration) -> Result<(), Error> {
        let failed = |cause| Error::new("report an operation to the node agent", self.origin(), cause);
        let body = serde_json::to_vec(report).map_err(|e| failed(Cause::NotThePod(e.to_string())))?;
        let answer = self.exchange("POST", REPORT_PATH, Some(&body), MAX_ANSWER, limit).map_err(failed)?;
        if (200..300).contains(&answer.status) { Ok(()) } else { Err(failed(refusal(&answer))) }
    }

    /// Has it put the policies of a pod into force that is about to start; `netns` is the pod's network namespace.
    ///
    /// # Errors
    /// The agent is not there, is another user's, or has not done so within `limit`.
    pub fn prepare(
        &self,
        request: &PrepareRequest,
        netns: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<PrepareAnswer, Error> {
        let failed =
            |cause| Error::new("have the node agent put the pod's policies into force", self.origin(), cause);
        let unwritten = |e: serde_json::Error| failed(Cause::NotThePod(e.to_string()));
        let mut body = serde_json::to_vec(request).map_err(unwritten)?;
        if body.len() > rundir::MAX_REPORT {
            // The agent knows so many labels by itself, or not at all.
            let request = PrepareRequest { labels: None, ..request.clone() };
            body = serde_json::to_vec(&request).map_err(unwritten)?;
        }
        let deadline = Deadline::within(limit);
        let mut connection = Passing::new(self.connect(deadline).map_err(failed)?, netns);
        let request = self.request("POST", PREPARE_PATH, Some(&body));
        let answer = http1::exchange(&mut connection, &request, None, MAX_STATUS, deadline);
        let answer = answer.map_err(|error| failed(error.into()))?;
        if answer.status != 200 {
            return Err(failed(status(&answer)));
        }
        json::from_slice(&answer.body).map_err(|misfit| failed(Cause::NotThePod(misfit.reason)))
    }

    /// Tells it of pods that are gone; what policies had of them is gone when this returns.
    ///
    /// # Errors
    /// The agent is not there, is another user's, or has not done so within `limit`.
    pub fn release(&self, request: &ReleaseRequest, limit: Duration) -> Result<(), Error> {
        let failed = |cause| Error::new("tell the node agent of pods that are gone", self.origin(), cause);
        let body = serde_json::to_vec(request).map_err(|e| failed(Cause::NotThePod(e.to_string())))?;
        let answer = self.exchange("POST", RELEASE_PATH, Some(&body), MAX_ANSWER, limit).map_err(failed)?;
        if answer.status == 200 { Ok(()) } else { Err(failed(status(&answer))) }
    }

    /// How the agent is.
    ///
    /// # Errors
    /// The agent is not there, is another user's, or does not say within `limit`.
    pub fn status(&self, limit: Duration) -> Result<AgentStatus, Error> {
        self.question("get the status", ("GET", STATUS_PATH), None, MAX_STATUS, limit)
    }

    /// What it knows of the pods of its node; `fresh`: after it has looked at each of them again.
    ///
    /// # Errors
    /// As [`Self::status`]; an agent of an earlier version does not know the question.
    pub fn pods(&self, fresh: bool, limit: Duration) -> Result<PodsReport, Error> {
        let path = if fresh { format!("{PODS_PATH}?fresh=1") } else { PODS_PATH.to_owned() };
        self.question("get the pods", ("GET", &path), None, MAX_PODS_BYTES, limit)
    }

    /// What its checks of the node came to last.
    ///
    /// # Errors
    /// As [`Self::pods`].
    pub fn checks<T: DeserializeOwned>(&self, limit: Duration) -> Result<T, Error> {
        self.question("get the checks", ("GET", CHECKS_PATH), None, MAX_STATUS, limit)
    }

    /// The levels of its log, after a change to `levels` where some are given; none in them puts back those of its start.
    ///
    /// # Errors
    /// As [`Self::pods`]; they mean nothing.
    pub fn log_levels(&self, levels: Option<&str>, limit: Duration) -> Result<String, Error> {
        let method = if levels.is_some() { "POST" } else { "GET" };
        self.question(
            "set the levels of the log",
            (method, LOG_LEVELS_PATH),
            levels.map(str::as_bytes),
            MAX_STATUS,
            limit,
        )
    }

    /// Has it repair a pod once, now.
    ///
    /// # Errors
    /// As [`Self::pods`].
    pub fn restore(&self, request: &RestoreRequest, limit: Duration) -> Result<RestoreReport, Error> {
        let failed = |e: serde_json::Error| {
            Error::new("restore a pod", self.origin(), Cause::NotThePod(e.to_string()))
        };
        let body = serde_json::to_vec(request).map_err(failed)?;
        self.question("restore a pod", ("POST", RESTORE_PATH), Some(&body), MAX_STATUS, limit)
    }

    /// The conflicts that it knows of.
    ///
    /// # Errors
    /// As [`Self::pods`].
    pub fn conflicts(&self, limit: Duration) -> Result<ConflictsReport, Error> {
        self.question("get the conflicts", ("GET", CONFLICTS_PATH), None, MAX_PODS_BYTES, limit)
    }

    /// What it knows of policies.
    ///
    /// # Errors
    /// As [`Self::pods`].
    pub fn policies(&self, limit: Duration) -> Result<PolicyStateReport, Error> {
        self.question("get the policies", ("GET", POLICY_STATE_PATH), None, MAX_POLICY_STATE, limit)
    }

    /// What it has heard of denied packets; only records with a higher number than `after`.
    ///
    /// # Errors
    /// As [`Self::pods`]; one that enforces no policies knows of none.
    pub fn denials(&self, after: u64, limit: Duration) -> Result<DenialsReport, Error> {
        let path = format!("{DENIALS_PATH}?after={after}");
        self.question("get what was denied", ("GET", &path), None, MAX_DENIALS_BYTES, limit)
    }

    /// What has happened on the node lately.
    ///
    /// # Errors
    /// As [`Self::pods`].
    pub fn recent(&self, limit: Duration) -> Result<RecentReport, Error> {
        self.question("get what has happened", ("GET", RECENT_PATH), None, MAX_RECENT_BYTES, limit)
    }

    fn question<T: DeserializeOwned>(
        &self,
        operation: &str,
        (method, path): (&str, &str),
        body: Option<&[u8]>,
        max: usize,
        limit: Duration,
    ) -> Result<T, Error> {
        let failed = |cause| Error::new(operation, self.origin(), cause);
        let answer = self.exchange(method, path, body, max, limit).map_err(failed)?;
        if answer.status != 200 {
            return Err(failed(status(&answer)));
        }
        json::from_slice(&answer.body).map_err(|misfit| failed(Cause::NotThePod(misfit.reason)))
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        max: usize,
        limit: Duration,
    ) -> Result<http1::Response, Cause> {
        let deadline = Deadline::within(limit);
        let mut connection = self.connect(deadline)?;
        let request = self.request(method, path, body);
        Ok(http1::exchange(&mut connection, &request, None, max, deadline)?)
    }

    fn connect(&self, deadline: Deadline) -> Result<Connection<UnixStream>, Cause> {
        let connection = http1::unix::connect(&self.socket, deadline).map_err(Cause::NoAgent)?;
        let peer = http1::unix::peer_uid(&connection).map_err(Cause::NoAgent)?;
        // Facts decide over capture, and answers over policies, so no other user may give them.
        if peer != 0 && peer != geteuid().as_raw() {
            return Err(Cause::ForeignAgent { uid: peer });
        }
        Ok(connection)
    }

    fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
        let mut headers = vec![("User-Agent", self.user_agent.as_str())];
        headers.extend(body.map(|_| ("Content-Type", "application/json")));
        http1::request(method, "unix", path, &headers, body)
    }

    fn origin(&self) -> String {
        format!("the node agent at {}", self.socket.display())
    }

    fn ask(&self, id: &PodRef) -> Result<Pod, Cause> {
        let mut path = format!("{FACTS_PATH}/{}/{}", segment(&id.namespace), segment(&id.name));
        if let Some(uid) = id.known_uid() {
            path += &format!("?uid={}", segment(uid));
        }
        let answer = self.exchange("GET", &path, None, MAX_FACTS, TIMEOUT)?;
        if answer.status != 200 {
            return Err(refusal(&answer));
        }
        pod(&answer.body, id)
    }
}

impl PodSource for AgentSource {
    fn pod(&self, id: &PodRef) -> Result<Pod, Error> {
        self.ask(id).map_err(|cause| Error::new(operation(id), self.origin(), cause))
    }

    fn ready(&self) -> Result<(), Error> {
        // A stopped process still has its connections accepted, by the kernel.
        if self.status(READY_TIMEOUT)?.synced {
            return Ok(());
        }
        let cause = Cause::Unaware("the pods of this node are not listed yet".into());
        Err(Error::new("serve pods", self.origin(), cause))
    }
}

// === impl LastKnown ===

impl LastKnown {
    /// Nothing is read before the first question.
    pub fn new(run_dir: &Path) -> Self {
        Self { dir: run_dir.join(FACTS_DIR) }
    }

    fn look(&self, id: &PodRef) -> Result<Pod, Cause> {
        let name = facts_file(&id.namespace, &id.name);
        let path = self.dir.join(name.ok_or_else(|| Cause::InvalidName(id.name.clone()))?);
        let text = trusted::read(&path, Links::Refused, MAX_FACTS)?;
        pod(&text, id)
    }
}

impl PodSource for LastKnown {
    fn pod(&self, id: &PodRef) -> Result<Pod, Error> {
        let origin = format!("the last known facts in {}", self.dir.display());
        self.look(id).map_err(|cause| Error::new(operation(id), origin, cause))
    }

    fn ready(&self) -> Result<(), Error> {
        Ok(())
    }
}

// === both ===

fn operation(id: &PodRef) -> String {
    format!("get pod {id}")
}

/// The pod of [`Facts`]. What somebody kept may be of an older pod of the same name, so both sides must have a uid and agree in it; only a
/// manifest has none, which is no copy of anything.
fn pod(text: &[u8], id: &PodRef) -> Result<Pod, Cause> {
    let facts: Facts = json::from_slice(text).map_err(|misfit| Cause::NotThePod(misfit.reason))?;
    if !facts.pod.metadata.as_ref().is_some_and(|metadata| metadata.names(&id.namespace, &id.name)) {
        return Err(Cause::NotThePod("describes no pod or another pod".into()));
    }
    if let (Some(found), None) = (facts.pod.uid(), id.known_uid()) {
        return Err(Cause::UnknownIncarnation { found: found.to_owned() });
    }
    let pod = Arc::unwrap_or_clone(facts.pod).into_pod(id)?;
    Ok(Pod { namespace_labels: facts.namespace_labels, ..pod })
}

fn refusal(answer: &http1::Response) -> Cause {
    if answer.status == 404 {
        return Cause::Unaware(http1::clean(&answer.body, 300));
    }
    status(answer)
}

fn status(answer: &http1::Response) -> Cause {
    Cause::Status {
        code: answer.status,
        reason: answer.reason(),
        message: http1::clean(&answer.body, 300),
        retry_after: answer.retry_after,
    }
}
