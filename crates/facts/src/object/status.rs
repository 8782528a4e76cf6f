//! What kubelet says of a pod.

use std::net::IpAddr;

use serde::Deserialize;

/// `status` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: Option<String>,
    /// The pod's first address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All of its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    /// When kubelet took the pod up, as text; its sandbox is made after that.
    pub(super) start_time: Option<Box<str>>,
    /// Of these, [`SANDBOX_READY`] is kept while it holds.
    pub(super) conditions: Option<Vec<PodCondition>>,
    /// Of these, those that have ended well are kept.
    pub(super) init_container_statuses: Option<Vec<InitStatus>>,
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

/// One entry of `status.initContainerStatuses`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct InitStatus {
    pub(super) name: Option<Box<str>>,
    state: Option<InitState>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct InitState {
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Terminated {
    exit_code: Option<i32>,
}

/// One entry of `status.podIPs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// As text.
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

impl PodStatus {
    pub(super) fn trim(&mut self) {
        if let Some(conditions) = &mut self.conditions {
            conditions.retain(PodCondition::is_sandbox_ready);
        }
        if let Some(statuses) = &mut self.init_container_statuses {
            statuses.retain(InitStatus::has_completed);
        }
        let _ = self.conditions.take_if(|conditions| conditions.is_empty());
        let _ = self.init_container_statuses.take_if(|statuses| statuses.is_empty());
    }
}

impl PodCondition {
    pub(super) fn is_sandbox_ready(&self) -> bool {
        self.kind.as_deref() == Some(SANDBOX_READY) && self.status.as_deref() == Some("True")
    }
}

impl InitStatus {
    pub(super) fn has_completed(&self) -> bool {
        let ended = self.state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|terminated| terminated.exit_code == Some(0))
    }
}
