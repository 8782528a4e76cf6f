//! What kubelet says of a pod.

use std::net::IpAddr;

use capture::decide::PROXY_CONTAINER;
use serde::{Deserialize, Serialize};

use super::Object;

/// `status` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The pod's first address.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
    /// All of its addresses.
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pub pod_ips: Option<Vec<PodIp>>,
    /// When kubelet took the pod up, as text; its sandbox is made after that.
    #[serde(skip_serializing)]
    pub(super) start_time: Option<Box<str>>,
    /// Of these, [`SANDBOX_READY`] is kept while it holds.
    #[serde(skip_serializing)]
    pub(super) conditions: Option<Vec<PodCondition>>,
    /// Of these, those that have ended at least once are kept, and the proxy's.
    #[serde(skip_serializing)]
    pub(super) init_container_statuses: Option<Vec<ContainerStatus>>,
    /// Of these, the proxy's is kept.
    #[serde(skip_serializing)]
    pub(super) container_statuses: Option<Vec<ContainerStatus>>,
}

/// One entry of `status.conditions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    kind: Option<Box<str>>,
    status: Option<Box<str>>,
    pub(super) last_transition_time: Option<Box<str>>,
}

/// One entry of `status.initContainerStatuses` or `status.containerStatuses`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ContainerStatus {
    pub(crate) name: Option<Box<str>>,
    state: Option<ContainerState>,
    last_state: Option<ContainerState>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<Running>,
    terminated: Option<Terminated>,
}

/// That it runs; since when is nobody's concern.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Running {}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Terminated {
    pub(crate) exit_code: Option<i32>,
    reason: Option<Box<str>>,
    pub(crate) message: Option<Box<str>>,
    /// RFC 3339.
    pub(crate) started_at: Option<Box<str>>,
}

/// One entry of `status.podIPs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// As text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// The addresses of `podIPs`, or else that of `podIP`. What is no address is left out.
pub(crate) fn addresses(all: Option<&[PodIp]>, one: Option<&str>) -> Vec<IpAddr> {
    let parse = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let all: Vec<IpAddr> = all.into_iter().flatten().filter_map(|one| parse(one.ip.as_deref()?)).collect();
    if all.is_empty() { one.and_then(parse).into_iter().collect() } else { all }
}

/// The pod's sandbox exists and has its network (Kubernetes `pkg/kubelet/types/constants.go`).
const SANDBOX_READY: &str = "PodReadyToStartContainers";

/// What kubelet says of the pod.
impl Object {
    /// Whether all of its containers have ended for good (`status.phase`).
    pub fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// `status.phase`, empty where nobody says it.
    pub fn phase(&self) -> &str {
        self.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// Whether one of its containers has failed for good (`status.phase`).
    pub fn is_failed(&self) -> bool {
        self.phase() == "Failed"
    }

    /// Whether at least one of its containers has started and not all have ended (`status.phase`).
    pub fn is_running(&self) -> bool {
        self.phase() == "Running"
    }

    /// Its addresses: `status.podIPs`, else `status.podIP`. What is no address is left out.
    pub fn ips(&self) -> Vec<IpAddr> {
        let Some(status) = &self.status else { return Vec::new() };
        addresses(status.pod_ips.as_deref(), status.pod_ip.as_deref())
    }

    /// When kubelet took the pod up (`status.startTime`, RFC 3339); its sandbox is made after that.
    pub fn start_time(&self) -> Option<&str> {
        self.status.as_ref()?.start_time.as_deref()
    }

    /// Since when its sandbox has its network, RFC 3339; kubelet tells from Kubernetes 1.29 on, and anew with each sandbox.
    pub fn sandbox_ready_time(&self) -> Option<&str> {
        let conditions = self.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.is_sandbox_ready())?.last_transition_time.as_deref()
    }

    /// Whether an init container of this name has ended with exit code 0.
    pub fn has_completed(&self, init_container: &str) -> bool {
        let its = |status: &ContainerStatus| status.name.as_deref() == Some(init_container);
        self.init_statuses().any(|status| its(status) && status.has_completed())
    }

    /// Whether the proxy's container runs, be it a regular one or one that starts first.
    pub fn proxy_runs(&self) -> bool {
        let status = self.status.iter();
        let all = status.flat_map(|status| [&status.init_container_statuses, &status.container_statuses]);
        all.flatten().flatten().any(|status| status.is_of_the_proxy() && status.is_running())
    }

    pub(crate) fn init_statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        let statuses = self.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
        statuses.into_iter().flatten()
    }
}

impl PodStatus {
    pub(super) fn trim(&mut self) {
        if let Some(conditions) = &mut self.conditions {
            conditions.retain(PodCondition::is_sandbox_ready);
        }
        if let Some(statuses) = &mut self.init_container_statuses {
            statuses.retain(|status| status.has_ended() || status.is_of_the_proxy());
        }
        if let Some(statuses) = &mut self.container_statuses {
            statuses.retain(ContainerStatus::is_of_the_proxy);
        }
        let _ = self.conditions.take_if(|conditions| conditions.is_empty());
        for statuses in [&mut self.init_container_statuses, &mut self.container_statuses] {
            let _ = statuses.take_if(|statuses| statuses.is_empty());
        }
    }
}

impl PodCondition {
    pub(super) fn is_sandbox_ready(&self) -> bool {
        self.kind.as_deref() == Some(SANDBOX_READY) && self.status.as_deref() == Some("True")
    }
}

impl ContainerStatus {
    /// Its end, where it does not run now.
    pub(crate) fn ended(&self) -> Option<&Terminated> {
        self.state.as_ref()?.terminated.as_ref()
    }

    /// Its end before it was started the last time.
    pub(crate) fn ended_before(&self) -> Option<&Terminated> {
        self.last_state.as_ref()?.terminated.as_ref()
    }

    pub(super) fn has_completed(&self) -> bool {
        self.ended().is_some_and(|terminated| terminated.exit_code == Some(0))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.running.is_some())
    }

    pub(super) fn is_of_the_proxy(&self) -> bool {
        self.name.as_deref() == Some(PROXY_CONTAINER)
    }

    fn has_ended(&self) -> bool {
        self.ended().or(self.ended_before()).is_some()
    }
}

impl Terminated {
    /// As the original tells a success.
    pub(crate) fn is_success(&self) -> bool {
        self.exit_code == Some(0) || self.reason.as_deref() == Some("Completed")
    }
}
