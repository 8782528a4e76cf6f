//! The kubelet's side of the container runtime interface, as blocking calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec, Int64Value,
    KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListImagesRequest, ListPodSandboxRequest, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest, VersionRequest,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::image::APP;
use crate::pod::{ContainerSpec, PodSpec};

/// No call of ours takes longer on a machine that works.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// The runtime's refusal, in the words that a user reads in `kubectl describe pod`.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CriError {
    /// The call's name in the CRI definitions.
    pub call: &'static str,
    /// The runtime's message.
    pub message: String,
}

/// A pod that the runtime runs.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The runtime's id, 64 hexadecimal digits.
    pub id: String,
    /// Ids of its containers by name.
    pub containers: BTreeMap<String, String>,
    config: PodSandboxConfig,
}

/// What the runtime says of a pod.
#[derive(Debug, Clone)]
pub struct SandboxStatus {
    /// Whether the pause container runs.
    pub ready: bool,
    /// The pod's first address, empty when it has none.
    pub ip: String,
    /// The pause process, as numbered inside the node; 0 when there is none.
    pub pid: u64,
    /// Path of the network namespace, as seen inside the node.
    pub netns: String,
    /// The result of the CNI chain as the runtime keeps it.
    pub cni_result: Value,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A connection to one runtime.
#[derive(Debug)]
pub(crate) struct Cri {
    runtime: Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    cgroup_parent: String,
}

/// The runtime's CNI configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct CniStatus {
    /// The networks, as the runtime prints its own types; the loopback network comes first.
    pub networks: Vec<Value>,
    /// `OK`, or why the directory could not be loaded.
    pub last_load: String,
}

impl Cri {
    /// Prepares a connection, which is made at the first call.
    pub(crate) fn new(socket: &Path, cgroup_parent: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self {
            pods: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            runtime,
            cgroup_parent: cgroup_parent.to_owned(),
        })
    }

    fn call<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CriError> {
        let said = self.runtime.block_on(async { tokio::time::timeout(CALL_LIMIT, answer).await });
        match said {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CriError { call, message: status.message().to_owned() }),
            Err(_) => Err(CriError { call, message: format!("no answer within {CALL_LIMIT:?}") }),
        }
    }

    /// Whether the runtime answers at all.
    pub(crate) fn version(&self) -> Result<String, CriError> {
        let mut client = self.pods.clone();
        let answer = self.call("Version", client.version(VersionRequest { version: "v1".into() }))?;
        Ok(answer.runtime_version)
    }

    /// The CNI configuration that the runtime has loaded, as it stood in the file.
    pub(crate) fn cni_config(&self) -> Result<Value> {
        // The loopback network, which the runtime adds, comes first.
        let networks = self.cni_status()?.networks;
        let source = networks.last().and_then(|network| network["Source"].as_str());
        serde_json::from_str(source.context("the runtime has loaded no network")?)
            .context("parse the loaded network")
    }

    /// What the runtime has loaded, and how the last try went.
    pub(crate) fn cni_status(&self) -> Result<CniStatus> {
        let mut client = self.pods.clone();
        let answer = self.call("Status", client.status(StatusRequest { verbose: true }))?;
        let info =
            |key: &str| answer.info.get(key).with_context(|| format!("Status answered without `{key}`"));
        let mut loaded: Value = serde_json::from_str(info("cniconfig")?).context("parse `cniconfig`")?;
        let networks = loaded["Networks"].as_array_mut().map(std::mem::take).unwrap_or_default();
        Ok(CniStatus {
            networks: networks.into_iter().map(|mut network| network["Config"].take()).collect(),
            last_load: info("lastCNILoadStatus")?.clone(),
        })
    }

    /// Tags of the images that the runtime can use.
    pub(crate) fn images(&self) -> Result<Vec<String>, CriError> {
        let mut client = self.images.clone();
        let answer = self.call("ListImages", client.list_images(ListImagesRequest { filter: None }))?;
        Ok(answer.images.into_iter().flat_map(|i| i.repo_tags).collect())
    }

    /// RunPodSandbox alone: namespaces, CNI chain and pause process. `deadline` travels to the runtime, as the kubelet's does.
    pub(crate) fn run_sandbox(&self, spec: &PodSpec, deadline: Duration) -> Result<Sandbox, CriError> {
        let config = self.sandbox_config(spec);
        let mut request =
            Request::new(RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() });
        request.set_timeout(deadline);
        let mut client = self.pods.clone();
        let answer = self.call("RunPodSandbox", client.run_pod_sandbox(request))?;
        Ok(Sandbox { id: answer.pod_sandbox_id, containers: BTreeMap::new(), config })
    }

    /// CreateContainer and StartContainer.
    pub(crate) fn start_container(
        &self,
        sandbox: &mut Sandbox,
        spec: &ContainerSpec,
    ) -> Result<(), CriError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(container_config(spec)),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let mut client = self.pods.clone();
        let container_id = self.call("CreateContainer", client.create_container(request))?.container_id;
        sandbox.containers.insert(spec.name.clone(), container_id.clone());
        self.call("StartContainer", client.start_container(StartContainerRequest { container_id }))?;
        Ok(())
    }

    pub(crate) fn stop(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.pods.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", client.stop_pod_sandbox(request)).map(drop)
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.pods.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", client.remove_pod_sandbox(request)).map(drop)
    }

    /// Ids of all sandboxes, ready or not.
    pub(crate) fn list(&self) -> Result<Vec<String>, CriError> {
        let mut client = self.pods.clone();
        let request = ListPodSandboxRequest { filter: None };
        let answer = self.call("ListPodSandbox", client.list_pod_sandbox(request))?;
        Ok(answer.items.into_iter().map(|s| s.id).collect())
    }

    pub(crate) fn status(&self, id: &str) -> Result<SandboxStatus> {
        let mut client = self.pods.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.call("PodSandboxStatus", client.pod_sandbox_status(request))?;
        let status = answer.status.context("PodSandboxStatus answered without a status")?;
        let info = answer.info.get("info").context("PodSandboxStatus answered without `info`")?;
        let info: Value = serde_json::from_str(info).context("parse the sandbox's verbose info")?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let netns = namespaces
            .and_then(|all| all.iter().find(|ns| ns["type"] == "network"))
            .and_then(|ns| ns["path"].as_str())
            .unwrap_or_default();
        Ok(SandboxStatus {
            ready: status.state == PodSandboxState::SandboxReady as i32,
            ip: status.network.map(|n| n.ip).unwrap_or_default(),
            pid: info["pid"].as_u64().unwrap_or(0),
            netns: netns.to_owned(),
            cni_result: info["cniResult"].clone(),
        })
    }

    pub(crate) fn exec_sync(
        &self,
        container: &str,
        command: &[&str],
        limit: Duration,
    ) -> Result<Outcome, CriError> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|w| (*w).to_owned()).collect(),
            timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        };
        let mut client = self.pods.clone();
        let answer = self.call("ExecSync", client.exec_sync(request))?;
        Ok(Outcome {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    fn sandbox_config(&self, spec: &PodSpec) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: spec.name.clone(),
                uid: spec.uid.clone(),
                namespace: spec.namespace.clone(),
                attempt: 0,
            }),
            hostname: spec.name.clone(),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                // As kubelet names it: by this the agent finds the pod of a process.
                cgroup_parent: format!("{}/pod{}", self.cgroup_parent, spec.uid),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid_namespace()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn container_config(spec: &ContainerSpec) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: 0 }),
        image: Some(ImageSpec { image: APP.to_owned(), ..Default::default() }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.env.iter().map(|(k, v)| KeyValue { key: k.clone(), value: v.clone() }).collect(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_user: Some(Int64Value { value: spec.user }),
                run_as_group: Some(Int64Value { value: spec.user }),
                namespace_options: Some(own_pid_namespace()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The kubelet's default: the pod shares its network, each container has its own processes.
fn own_pid_namespace() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() }
}
