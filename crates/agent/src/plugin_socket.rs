//! What plugins ask and tell: facts about pods, and how their calls ended.

use std::sync::Arc;
use std::time::Duration;

use checks::CheckReport;
use cluster::Cluster;
use facts::{Facts, PodRef};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode};
use podsource::LOG_LEVELS_PATH;
use rundir::pods::RestoreRequest;
use rundir::recent::RecentReport;
use rundir::{
    AgentStatus, CHECKS_PATH, CONFLICTS_PATH, DENIALS_PATH, FACTS_PATH, MAX_REPORT, OperationReport,
    PODS_PATH, POLICY_STATE_PATH, PREPARE_PATH, RECENT_PATH, RELEASE_PATH, REPORT_PATH, RESTORE_PATH,
    SOCKET_NAME, STATUS_PATH,
};
use serde::Serialize;
use telemetry::{Journal, Levels, Scope};

use crate::ambient::Ambient;
use crate::backend::NodeBackend;
use crate::health::Health;
use crate::pods_report::PodsReporter;
use crate::policy_socket::PolicySocket;
use crate::samples::PodsSamples;
use crate::sidecars::Sidecars;
use crate::verification::PodVerifier;
use metrics::Metrics;
use serve::{Descriptor, Handler, ServedAnswer, text};

/// Only root and the agent's own user may ask: facts are parts of objects that not everybody on the node may see.
pub(crate) const MODE: u32 = 0o600;
/// How long the API server is asked for a pod that is not known. A plugin waits a second for an answer here, and asks the API server itself when it
/// gets none.
const FETCH_LIMIT: Duration = Duration::from_millis(500);

/// Answers plugins.
pub(crate) struct PluginSocket {
    pub(crate) cluster: Cluster,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) sidecars: Arc<Sidecars>,
    pub(crate) backend: Arc<NodeBackend>,
    pub(crate) ambient: Arc<Ambient>,
    pub(crate) verifier: Arc<PodVerifier>,
    pub(crate) pods: PodsReporter,
    pub(crate) policies: PolicySocket,
    pub(crate) samples: Arc<PodsSamples>,
    pub(crate) journal: Journal,
    pub(crate) log: Scope,
}

impl Handler for PluginSocket {
    const NAME: &'static str = SOCKET_NAME;
    const MAX_BODY: usize = MAX_REPORT;
    /// The network namespace of a pod whose policies are to be put into force.
    const TAKES_DESCRIPTORS: bool = true;

    async fn answer(&self, request: &Request<()>, body: Bytes) -> ServedAnswer {
        let uri = request.uri();
        let pod =
            uri.path().strip_prefix(FACTS_PATH).and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
        match (request.method(), pod) {
            (&Method::GET, Some((namespace, name))) => {
                self.facts(namespace, name, uri.query().unwrap_or_default()).await
            }
            (&Method::POST, None) if uri.path() == REPORT_PATH => self.report(&body),
            (&Method::GET, None) if uri.path() == STATUS_PATH => self.status(),
            (&Method::GET | &Method::POST, None) if uri.path() == LOG_LEVELS_PATH => {
                self.log_levels(request.method(), &body)
            }
            (&Method::GET, None) if uri.path() == CHECKS_PATH => {
                answer(&CheckReport::new(self.health.all_check_results()))
            }
            (&Method::GET, None) if uri.path() == CONFLICTS_PATH => {
                answer(&self.verifier.known_conflicts().report())
            }
            (&Method::GET, None) if uri.path() == PODS_PATH => answer(&match uri.query() {
                Some("fresh=1") => self.pods.fresh().await,
                _ => self.pods.report(),
            }),
            (&Method::POST, None) if uri.path() == RESTORE_PATH => self.restore(&body).await,
            (&Method::POST, None) if uri.path() == PREPARE_PATH => {
                self.policies.prepare(&body, request.extensions().get::<Descriptor>().cloned()).await
            }
            (&Method::GET, None) if uri.path() == DENIALS_PATH => {
                self.policies.denials(uri.query().unwrap_or_default())
            }
            (&Method::GET, None) if uri.path() == RECENT_PATH => {
                answer(&RecentReport { samples: self.samples.all(), log: self.journal.recent() })
            }
            (&Method::GET, None) if uri.path() == POLICY_STATE_PATH => self.policies.state().await,
            (&Method::POST, None) if uri.path() == RELEASE_PATH => self.policies.release(&body).await,
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }
}

impl PluginSocket {
    /// Names and uids of Kubernetes need no percent-encoding; what does is none of them, and unknown.
    async fn facts(&self, namespace: &str, name: &str, query: &str) -> ServedAnswer {
        let mut id = PodRef::named(namespace, name);
        let uid = query.split('&').find_map(|pair| pair.strip_prefix("uid=")).filter(|uid| !uid.is_empty());
        id.uid = uid.unwrap_or_default().to_owned();
        let (mut result, mut answer) = self.known(&id);
        if matches!(result, "unknown" | "stale") {
            // What goes wrong with that is why the plugin asks the API server itself then.
            let _ = self.cluster.fetch(namespace, name, FETCH_LIMIT).await;
            (result, answer) = self.known(&id);
        }
        self.metrics.facts_request(result);
        answer
    }

    fn known(&self, id: &PodRef) -> (&'static str, ServedAnswer) {
        let found = {
            let index = self.cluster.index();
            // What an earlier agent kept is in its files, where the plugin looks after it has asked the API server itself.
            let remembered = index.is_remembered(&id.namespace, &id.name);
            index.facts(&id.namespace, &id.name).filter(|_| !remembered)
        };
        match found {
            Some(facts) => Self::found(id, &facts),
            None if self.cluster.state().synced => {
                ("unknown", text(StatusCode::NOT_FOUND, "no such pod on this node\n"))
            }
            None => ("unsynced", text(StatusCode::NOT_FOUND, "the pods of this node are not listed yet\n")),
        }
    }

    fn found(id: &PodRef, facts: &Facts) -> (&'static str, ServedAnswer) {
        if let Err(error) = facts.pod.check(id) {
            return ("stale", text(StatusCode::NOT_FOUND, format!("{error}\n")));
        }
        match serde_json::to_vec(facts) {
            Ok(body) => ("found", json(body)),
            Err(error) => {
                ("failed", text(StatusCode::INTERNAL_SERVER_ERROR, format!("write the facts: {error}\n")))
            }
        }
    }

    fn report(&self, body: &[u8]) -> ServedAnswer {
        let report: OperationReport = match serde_json::from_slice(body) {
            Ok(report) => report,
            Err(error) => {
                self.log.warn("a plugin's report cannot be read", &[("error", &error)]);
                return text(StatusCode::BAD_REQUEST, format!("{error}\n"));
            }
        };
        self.metrics.operation(&report);
        self.backend.heard(&report);
        if report.operation == "del" {
            self.ambient.sandbox_ends(&report.namespace, &report.name);
        }
        if report.wants_note()
            && let Err(error) = self.sidecars.note(&report)
        {
            self.log.error(
                "cannot note that a pod started without all of its capture",
                &[("pod", &report.name), ("error", &error)],
            );
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
        }
        text(StatusCode::OK, "")
    }

    /// The levels of the log, after a change where one is asked for.
    fn log_levels(&self, method: &Method, body: &[u8]) -> ServedAnswer {
        if method == Method::POST {
            let levels = String::from_utf8_lossy(body);
            match Levels::parse(&levels) {
                Ok(parsed) => {
                    let unknown = self.journal.unknown_scopes(&parsed).join(", ");
                    if !unknown.is_empty() {
                        let known = self.journal.levels();
                        return text(
                            StatusCode::BAD_REQUEST,
                            format!("there is no scope {unknown}; scopes and their levels are {known}\n"),
                        );
                    }
                    // Before, or a change that silences the log would be in no log.
                    self.log.sum_up("the levels of the log are changed", &[("levels", &levels)]);
                    self.journal.set_levels(&parsed);
                }
                Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            }
        }
        answer(&self.journal.levels())
    }

    async fn restore(&self, body: &[u8]) -> ServedAnswer {
        let request: RestoreRequest = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        self.log.info("a repair of a pod is asked for", &[("uid", &request.uid)]);
        match self.pods.restore(&request.uid).await {
            Some(report) => answer(&report),
            None => text(StatusCode::NOT_FOUND, "no pod of this uid should be captured here\n"),
        }
    }

    fn status(&self) -> ServedAnswer {
        let state = self.cluster.state();
        let pending = self.health.missing();
        let status = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: pending.is_empty(),
            pending,
            notices: self.health.notices(),
            synced: state.synced,
            pods: self.cluster.index().pods().count(),
            last_error: state.last_error.unwrap_or_default(),
            ambient: self.ambient.options_in_force(),
        };
        answer(&status)
    }
}

pub(crate) fn answer(value: &impl Serialize) -> ServedAnswer {
    match serde_json::to_vec(value) {
        Ok(body) => json(body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn json(body: Vec<u8>) -> ServedAnswer {
    let mut answer = text(StatusCode::OK, body);
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    answer
}
