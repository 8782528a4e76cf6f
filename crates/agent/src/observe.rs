//! What the parts tell becomes log lines, metrics and readiness.

use std::sync::Arc;

use cluster::daemonset::decide;
use cluster::kind::NetworkTenants;
use cluster::{Event as ClusterEvent, Kind as _, Source, Store, WatchError, WatchName};
use enforcement::Policies;
use install::InstallEvent;

use crate::health::{HealthPart, Notice};
use crate::run::Agent;
use crate::shutdown;

/// Listens to the installer, on its thread.
pub(crate) struct Installation {
    agent: Arc<Agent>,
}

impl Installation {
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

impl install::Observer for Installation {
    fn event(&mut self, event: &InstallEvent<'_>) {
        let Agent { log, health, metrics, sidecars, .. } = &*self.agent;
        match event {
            InstallEvent::Ready { .. } => sidecars.plugin_is_in_place(),
            InstallEvent::NotReady { .. } => sidecars.plugin_is_in_doubt(),
            InstallEvent::ConfigWritten { was_in: false, .. } | InstallEvent::Unused { .. } => {
                sidecars.plugin_is_missing();
            }
            _ => {}
        }
        match event {
            InstallEvent::Ready { .. } => {
                metrics.installed("SUCCESS");
                metrics.install_ready(true);
                health.ready(HealthPart::Install);
            }
            InstallEvent::NotReady { reason } => {
                metrics.install_ready(false);
                health.pending(HealthPart::Install, reason);
            }
            InstallEvent::Waiting { waiting } => health.pending(HealthPart::Install, *waiting),
            InstallEvent::Failed { error, .. } => {
                metrics.install_ready(false);
                if let Some(result) = error.result() {
                    metrics.installed(result);
                }
                health.pending(HealthPart::Install, *error);
            }
            InstallEvent::Overwritten { component, .. } => metrics.overwritten(component),
            _ => {}
        }
        match event {
            InstallEvent::Failed { .. } => log.error(event, &[]),
            InstallEvent::NotReady { .. } => log.debug(event, &[]),
            event if event.is_warning() => log.warn(event, &[]),
            event => log.info(event, &[]),
        }
    }
}

/// Follows the cluster until the task is aborted.
pub(crate) async fn cluster(agent: Arc<Agent>, source: Source, stores: Vec<Store>) {
    let observer = |event: ClusterEvent| told(&agent, &stores, event);
    cluster::watch::run(source, agent.cluster.clone(), observer).await;
}

fn told(agent: &Agent, stores: &[Store], event: ClusterEvent) {
    let Agent { log, metrics, .. } = agent;
    match event {
        ClusterEvent::Synced => synced(agent, stores),
        ClusterEvent::Changed(pods) => {
            metrics.cluster_changes(pods.len());
            metrics.known_pods(agent.cluster.index().pods().count());
            stores.iter().for_each(|store| store.changed(&pods));
            agent.ambient.changed(&pods);
            agent.sidecars.changed(&pods);
            agent.verifier.changed();
        }
        ClusterEvent::NamespacesChanged(names) => {
            agent.policies.iter().for_each(|policies| policies.namespaces_changed(names.clone()));
        }
        ClusterEvent::Listed { what } => listed(agent, what),
        ClusterEvent::Told(told) => agent.ambient.told(&told),
        ClusterEvent::Outlook(outlook) => shutdown::tell(agent, &outlook),
        ClusterEvent::WatchFailed { what, error, failing_for, retry_in } => {
            watch_failed(agent, what, &error);
            let (for_s, in_s) = (failing_for.as_secs(), format!("{:.1}", retry_in.as_secs_f64()));
            log.warn(&error, &[("watch", &what.name()), ("failing_for_s", &for_s), ("retry_in_s", &in_s)]);
        }
        ClusterEvent::WatchRestored { what, failed_for } => {
            if what.is_own() {
                shutdown::tell(agent, &decide(&agent.cluster.seen()));
            }
            log.info(
                "the watch works again",
                &[("watch", &what.name()), ("failed_for_s", &failed_for.as_secs())],
            );
        }
        ClusterEvent::ServerAway { error } => server_away(agent, &error),
        ClusterEvent::ServerBack { away_for } => {
            metrics.api_server_up(true);
            agent.health.settled(Notice::ApiServer);
            log.info("the API server answers again", &[("away_for_s", &away_for.as_secs())]);
        }
        ClusterEvent::Relisted { what } => log.info("everything is listed anew", &[("watch", &what.name())]),
        // Their grants are missing for the same reason.
        ClusterEvent::KindAbsent { what } if what == NetworkTenants::WATCH => {
            let text = "the API server does not have this kind, so there are no tenants; its definition comes with the chart's tenants.enabled";
            log.info(text, &[("kind", &what.name())]);
        }
        ClusterEvent::KindAbsent { what } => {
            log.debug("the API server does not have this kind", &[("kind", &what.name())]);
        }
        ClusterEvent::Unreadable { what, error } => {
            metrics.watch_failure(what.name());
            log.warn(&error, &[("watch", &what.name())]);
        }
    }
}

fn synced(agent: &Agent, stores: &[Store]) {
    agent.policies.iter().for_each(Policies::listed);
    agent.health.ready(HealthPart::Cluster);
    if agent.writer.is_some() {
        agent.metrics.api_server_up(true);
    }
    stores.iter().for_each(Store::synced);
    // Where that cannot be written, it was said at the start.
    let _ = agent.kept_facts.boot.facts_are_known();
    agent.ambient.synced();
    let pods = agent.cluster.index().pods().count();
    agent.log.info("the pods of this node are known", &[("pods", &pods)]);
    agent.metrics.known_pods(pods);
    agent.sidecars.all_changed();
}

/// Until pods and namespaces are known it is said what is waited for, unless an error says more.
fn listed(agent: &Agent, what: WatchName) {
    agent.log.debug("all objects are listed", &[("watch", &what.name())]);
    agent.policies.iter().for_each(Policies::listed);
    let state = agent.cluster.state();
    if !state.synced && state.last_error.is_none() {
        let names: Vec<_> = state.pending().into_iter().map(WatchName::name).collect();
        agent.health.pending(HealthPart::Cluster, &format!("not listed yet: {}", names.join(", ")));
    }
}

fn watch_failed(agent: &Agent, what: WatchName, error: &WatchError) {
    agent.metrics.watch_failure(what.name());
    if let WatchError::Api(error) = error {
        agent.metrics.api_server_failure(error.reason());
    }
    if what.is_own() {
        shutdown::tell_refusal(agent, error);
    } else if !agent.cluster.state().synced {
        // What was listed once stays good for the pods that it is of; readiness needs the first list only.
        agent.health.pending(HealthPart::Cluster, error);
    }
}

fn server_away(agent: &Agent, error: &cluster::Error) {
    agent.metrics.api_server_failure(error.reason());
    agent.metrics.api_server_up(false);
    let text = if agent.writer.is_some() {
        if !agent.cluster.state().synced {
            agent.health.pending(HealthPart::Cluster, error);
        }
        "the API server is away; the last known facts of pods stay in use"
    } else {
        "the API server is away; pods come from manifests, which do not need it"
    };
    agent.health.notice(Notice::ApiServer, error);
    agent.log.warn(text, &[("error", error)]);
}
