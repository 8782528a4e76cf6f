//! What ambient mode left on a node where it is off: rules and annotations of pods, records, the node's own rules and sets. Where this agent may
//! enter pods they leave the mesh as always, with their time to drain; where it may not, it says what is left until that is gone.
//!
//! Nothing of it is urgent, so an annotation goes first in any case: a pod whose annotation cannot be changed keeps its rules.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use facts::PodRef;
use rundir::EVENT_SOCKET_NAME;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use zds::Listener;

use super::Ambient;
use super::desired::{self, REDIRECTION};
use super::failure::AmbientFailure;
use super::host::{self, HostSide};
use super::members::MemberState;
use super::waiting::WaitCause;
use crate::health::{HealthPart, Notice, count_and_names};
use crate::pods;
use crate::rights;
use serve::UnixSocket;

/// How often it is looked what is left.
const LOOK: Duration = Duration::from_millis(500);
/// The same where nothing can be done about it; also the pause after a failure in the node's own namespace.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a socket's server may take to be asked who it is.
const CONNECT_TIME: Duration = Duration::from_secs(1);

impl Ambient {
    /// Lets everything of ambient mode go, or says why that cannot be. Ends when nothing is left.
    pub(super) async fn let_go(self: Arc<Self>) {
        if !self.is_listed() {
            self.life.synced.notified().await;
        }
        self.wait_for_other_agent().await;
        match rights::lack(&self.config.proc_root()) {
            Some(lack) => self.tell_what_stays(lack).await,
            None => self.take_all_out().await,
        }
    }

    /// Waits while another agent takes pods into the mesh on this node, which is the original's: what pods have is that one's, and nothing is left
    /// over. One of ours holds the lock of the node, and this one would not be here.
    async fn wait_for_other_agent(&self) {
        let socket = self.kept.run_dir.join(EVENT_SOCKET_NAME);
        while UnixSocket::is_served(&socket) {
            let text = format!(
                "ambient mode is off in this agent, and another agent is in ambient mode on this node: {} listens at {}. Its pods are left alone; remove one of the two DaemonSets, or set ambient.enabled of this one's chart",
                server(&socket).await,
                socket.display()
            );
            if self.telling.notices.notice(Notice::Leftovers, &text) {
                self.log.warn(&text, &[]);
            }
            tokio::time::sleep(PERIOD).await;
        }
        self.telling.notices.settled(Notice::Leftovers);
    }

    /// Says what is left, until it is gone without this agent.
    async fn tell_what_stays(self: &Arc<Self>, lack: &str) {
        let recorded = self.recorded().await;
        let why = format!(
            "this agent has no right to enter pods ({lack}); delete these pods, or give it the right (agent.takePodsOutOfAmbient of the chart)"
        );
        loop {
            let left = self.left(&recorded);
            self.show_left(&left, &why);
            if left.is_empty() {
                return;
            }
            let message = format!(
                "ambient mode is off on this node, and the pod has rules or an annotation of it: {why}"
            );
            for key in &left {
                self.tell_removal(key, &message).await;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn take_all_out(self: &Arc<Self>) {
        let recorded = self.recorded().await;
        if recorded.is_empty() && self.left(&recorded).is_empty() && !self.has_node_rules().await {
            return;
        }
        self.open_host().await;
        let mut lost = self.known_before().await;
        lost.retain(|member| member.netns.is_none());
        self.find_lost(lost).await;
        let pods = self.left(&HashSet::new()).len();
        self.log.warn("ambient mode is off: its leftovers on this node are removed", &[("pods", &pods)]);
        // A ztunnel that runs still lets go of the pods by it. Where its directory is not mounted there is none to tell.
        let listener = Listener::bind(&self.config.ztunnel_address);
        let listener = listener.inspect_err(|error| self.log.debug(error, &[])).ok();
        let serve = async {
            match listener {
                Some(listener) => listener.serve(self.pods.ztunnels.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serve => {}
            () = self.work_until_none_is_left() => {}
        }
        // From here on there is nothing to stop.
        self.telling.health.pending(HealthPart::Ambient, &"nothing is left to do");
        self.clean_host().await;
        self.kept.records.close();
        self.show_left(&[], "");
        self.log.info("nothing of ambient mode is left on this node", &[]);
    }

    /// Lets the workers take pods out, until there is none any more. It stays when it is told to stop, as what it serves is needed until the end.
    async fn work_until_none_is_left(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(pods::work(self.clone()));
        tasks.spawn(self.clone().tell_waiting());
        self.telling.health.ready(HealthPart::Ambient);
        self.push_all();
        let done = async {
            let mut looked = tokio::time::Instant::now();
            loop {
                let left = self.left(&HashSet::new());
                if left.is_empty() {
                    return;
                }
                self.show_left(&left, &self.why_left());
                self.tell_refusals(&left).await;
                if looked.elapsed() >= self.config.verify_every {
                    self.look_again().await;
                    looked = tokio::time::Instant::now();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let stopped = tokio::select! {
            () = done => false,
            () = self.life.stop.notified() => true,
        };
        tasks.shutdown().await;
        if stopped {
            self.life.stopped.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// The uids of which an earlier agent kept a record, where the pod is still there.
    async fn recorded(self: &Arc<Self>) -> HashSet<String> {
        let ambient = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (records, errors) = ambient.kept.records.read();
            errors.iter().for_each(|error| ambient.log.warn(error, &[]));
            records.into_iter().map(|record| record.uid).collect()
        });
        read.await.unwrap_or_else(|error| {
            self.log.error(AmbientFailure::from(error), &[]);
            HashSet::new()
        })
    }

    /// Pods that have something of ambient mode, as far as it is known.
    fn left(&self, recorded: &HashSet<String>) -> Vec<PodRef> {
        let mut left: Vec<PodRef> = self.pods.members.all().into_iter().map(|member| member.key).collect();
        let known: HashSet<String> = left.iter().map(|key| key.uid.clone()).collect();
        let index = self.cluster.index();
        let marked = index.pods().filter(|pod| {
            let uid = pod.uid().unwrap_or_default();
            let shown = pod.annotation(REDIRECTION).is_some_and(desired::claims);
            !known.contains(uid) && !pod.is_terminal() && (shown || recorded.contains(uid))
        });
        left.extend(marked.map(|pod| pod.pod_ref()));
        left.sort_unstable();
        left
    }

    fn why_left(&self) -> String {
        if let Some((_, error)) = self.telling.waiting.of(WaitCause::ApiServer) {
            return format!("they cannot be taken out: {error}");
        }
        match self.pods.members.count(MemberState::Draining) {
            0 => "they are being taken out".to_owned(),
            pods => format!("they are being taken out; {pods} drain (DRAIN_TIMEOUT)"),
        }
    }

    /// Shows in the metric, in `/readyz?verbose` and, when it is news, in the log how many pods are left.
    fn show_left(&self, left: &[PodRef], why: &str) {
        self.metrics.leftover_pods(left.len());
        if left.is_empty() {
            self.telling.notices.settled(Notice::Leftovers);
            return;
        }
        let names = count_and_names(&left.iter().map(PodRef::to_string).collect::<Vec<_>>());
        let text =
            format!("ambient mode is off, and pods have rules or annotations of it still: {names}; {why}");
        if self.telling.notices.notice(Notice::Leftovers, &text) {
            self.log.warn(&text, &[]);
        }
    }

    /// The API server does not let go of an annotation: the pod's own event says so, too.
    async fn tell_refusals(&self, left: &[PodRef]) {
        let Some((_, error)) = self.telling.waiting.of(WaitCause::ApiServer) else { return };
        for key in left {
            if self.telling.waiting.wants_event(&key.uid, std::time::Instant::now()) {
                let message = format!(
                    "ambient mode is off on this node, and the pod cannot be taken out of it: {error}"
                );
                self.tell_removal(key, &message).await;
            }
        }
    }

    async fn has_node_rules(&self) -> bool {
        let config = self.config.clone();
        let found = tokio::task::spawn_blocking(move || host::has_rules(&config)).await;
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                self.log.warn(&error, &[]);
                false
            }
            Err(error) => {
                self.log.error(AmbientFailure::from(error), &[]);
                false
            }
        }
    }

    /// Opens the node's namespace without making anything there.
    async fn open_host(&self) {
        loop {
            let (config, backends, log) = (self.config.clone(), self.node.backends.clone(), self.log.clone());
            let opened = tokio::task::spawn_blocking(move || HostSide::open(config, backends, log)).await;
            let error: String = match opened {
                Ok(Ok(host)) => {
                    let _ = self.node.host.set(host);
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.tell_node(&error);
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Removes the node's own rules and sets, which pods need no longer.
    async fn clean_host(self: &Arc<Self>) {
        loop {
            let ambient = self.clone();
            let cleaned =
                self.in_kernel(move || ambient.host().map(HostSide::clean_up).unwrap_or_default()).await;
            match cleaned {
                Ok(errors) if errors.is_empty() => return,
                Ok(errors) => self.tell_node(&errors.join("; ")),
                Err(error) => self.tell_node(&error.to_string()),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    fn tell_node(&self, error: &str) {
        let text =
            format!("ambient mode is off, and its rules in the node's network namespace stay: {error}");
        if self.telling.notices.notice(Notice::Leftovers, &text) {
            self.log.error(&text, &[]);
        }
    }
}

/// Who listens at a socket, as far as this process may see.
async fn server(socket: &Path) -> String {
    let connect = tokio::time::timeout(CONNECT_TIME, UnixStream::connect(socket));
    let peer = connect.await.ok().and_then(Result::ok).and_then(|stream| stream.peer_cred().ok());
    // In another namespace of processes it has the number 0.
    let Some(pid) = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0) else {
        return "a process that is not seen from here".to_owned();
    };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim().escape_debug())
}
