//! Looks at everything of ours on a node and in the cluster, again and again while something changes.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::NAME;
use super::agent::{Agent, Launch};
use super::mesh::{Mesh, MeshPod};
use crate::apiserver::Resource;
use crate::ztunnel::{Script, Ztunnel};
use crate::{PATIENCE, PodObject, eventually};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Namespace of the agent and its DaemonSet.
pub const NAMESPACE: &str = "istio-system";
/// The DaemonSet's name.
pub const DAEMONSET: &str = "istio-cni-node";
/// The agent's own pod.
pub const AGENT_POD: &str = "istio-cni-node-x7k2p";

/// A node in a cluster: the agent's DaemonSet, pod and node are objects, and pods are in the mesh.
pub struct Scene {
    /// The node.
    pub mesh: Mesh,
    /// Pods in the mesh.
    pub pods: Vec<MeshPod>,
    _ztunnel: Ztunnel,
}

/// The agent's own pod, of its DaemonSet.
pub fn agent_pod() -> PodObject {
    let pod = PodObject::named(AGENT_POD).in_namespace(NAMESPACE).of_daemonset(DAEMONSET);
    pod.on_node(NAME).container("install-cni")
}

/// What was there at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Since the first look.
    pub at: Duration,
    /// The plugin's program.
    pub plugin: bool,
    /// Our entry in the configuration.
    pub entry: bool,
    /// The plugin's kubeconfig.
    pub kubeconfig: bool,
    /// Each pod's annotation, and whether what is new is redirected.
    pub pods: Vec<(Option<String>, bool)>,
}

// === impl Scene ===

impl Scene {
    /// A scene with so many running pods in the mesh, and the agent that took them in.
    ///
    /// # Errors
    /// The pods do not come into the mesh.
    pub fn new(pods: usize) -> Result<(Self, Agent)> {
        let mesh = Mesh::new()?;
        // The node's directory of libcni's results, as the agent's container sees it: no pod needs the program any more.
        let cache = mesh.node.cache_dir();
        std::fs::create_dir_all(mesh.root().join(cache.strip_prefix("/")?).join("results"))?;
        let api = &mesh.node.api;
        let labels = json!({"kubernetes.io/os": "linux", "pool": "mesh"});
        api.set_object(Resource::Nodes, json!({"metadata": {"name": NAME, "labels": labels}}));
        api.set_pod(agent_pod());
        api.bind_token(NAMESPACE, AGENT_POD);
        let names: Vec<String> = (0..pods).map(|number| format!("web-{number}")).collect();
        let pods: Vec<MeshPod> =
            names.iter().map(|name| mesh.running("mesh", name, &[])).collect::<Result<_>>()?;
        set_daemonset(&mesh, &json!({}));
        let agent = launch(&mesh).ready()?;
        let ztunnel = mesh.ztunnel_that(Script::default().reconnecting())?;
        let scene = Self { mesh, pods, _ztunnel: ztunnel };
        scene.wait_installed()?;
        let foresees = || {
            let watched = scene.mesh.node.api.watches();
            ensure!(watched == 4, "{watched} watches");
            Ok(())
        };
        eventually("the agent watches its DaemonSet and its node", PATIENCE, foresees)?;
        Ok((scene, agent))
    }

    /// Another agent of this node.
    pub fn agent(&self) -> Launch<'_> {
        launch(&self.mesh)
    }

    /// Makes or changes the DaemonSet; `spec` is that of its pods.
    pub fn set_daemonset(&self, spec: &Value) {
        set_daemonset(&self.mesh, spec);
    }

    /// Deletes the DaemonSet, as at the end of a deletion.
    pub fn delete_daemonset(&self) {
        self.mesh.node.api.delete_object(Resource::DaemonSets, NAMESPACE, DAEMONSET);
    }

    /// Takes every right from the agent, as when its roles are deleted.
    pub fn delete_roles(&self) {
        for resource in ["pods", "pods/status", "namespaces", "nodes", "daemonsets", "events"] {
            self.mesh.node.api.deny(resource, &["get", "list", "watch", "create", "patch"]);
        }
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    /// Something is not.
    pub fn wait_installed(&self) -> Result<()> {
        eventually("everything is there", PATIENCE, || {
            let look = self.look(Instant::now());
            ensure!(look.is_whole(), "{look:?}");
            Ok(())
        })
    }

    /// Waits until nothing is left.
    ///
    /// # Errors
    /// Something is.
    pub fn wait_removed(&self) -> Result<()> {
        eventually("nothing is left", PATIENCE, || {
            let look = self.look(Instant::now());
            ensure!(look.is_nothing(), "{look:?}");
            for pod in &self.pods {
                ensure!(pod.is_clean()?, "{} is not clean", pod.name);
            }
            Ok(())
        })
    }

    /// Everything as it is now.
    pub fn look(&self, began: Instant) -> Look {
        let node = &self.mesh.node;
        // What a change may have come in between is looked at twice.
        let entry = node.entry().is_ok();
        let plugin = node.plugin().exists();
        let entry = entry && (plugin || node.entry().is_ok());
        let pods = self.pods.iter().map(|pod| {
            let before = is_redirected(pod);
            let annotation = self.mesh.annotation(pod);
            (annotation, before || is_redirected(pod))
        });
        Look {
            at: began.elapsed(),
            plugin,
            entry,
            kubeconfig: node.kubeconfig().exists(),
            pods: pods.collect(),
        }
    }

    /// Does something while everything is looked at, at least twice.
    ///
    /// # Panics
    /// As `act` does.
    pub fn looking<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<Look>) {
        let (began, over) = (Instant::now(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut looks = Vec::new();
                while looks.len() < 2 || !over.load(Ordering::Relaxed) {
                    looks.push(self.look(began));
                    std::thread::sleep(PAUSE);
                }
                looks.push(self.look(began));
                looks
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            over.store(true, Ordering::Relaxed);
            let looks = looks.join();
            match (result, looks) {
                (Ok(result), Ok(looks)) => (result, looks),
                (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Look {
    /// Whether everything is there: the plugin, its entry, its kubeconfig; every pod annotated and captured.
    pub fn is_whole(&self) -> bool {
        let captured =
            |(annotation, ruled): &(Option<String>, bool)| annotation.as_deref() == Some("enabled") && *ruled;
        self.plugin && self.entry && self.kubeconfig && self.pods.iter().all(captured)
    }

    /// Whether nothing is there.
    pub fn is_nothing(&self) -> bool {
        let out = |(annotation, ruled): &(Option<String>, bool)| annotation.is_none() && !ruled;
        !self.plugin && !self.entry && !self.kubeconfig && self.pods.iter().all(out)
    }

    /// Whether nothing is broken: no pod says that it is in the mesh without being captured, and no runtime is told to call a plugin
    /// that is not there.
    pub fn is_sound(&self) -> bool {
        let sound =
            |(annotation, ruled): &(Option<String>, bool)| annotation.as_deref() != Some("enabled") || *ruled;
        (self.plugin || !self.entry) && self.pods.iter().all(sound)
    }
}

fn launch(mesh: &Mesh) -> Launch<'_> {
    mesh.agent().env("CLEANUP_ON_EXIT", "auto").env("POD_NAME", AGENT_POD)
}

fn set_daemonset(mesh: &Mesh, spec: &Value) {
    mesh.node.api.set_object(
        Resource::DaemonSets,
        json!({"metadata": {"namespace": NAMESPACE, "name": DAEMONSET}, "spec": {"template": {"spec": spec}}}),
    );
}

fn is_redirected(pod: &MeshPod) -> bool {
    let rules = pod.netns.run(Command::new("nft").args(["list", "ruleset"]));
    rules.is_ok_and(|rules| rules.contains("15001"))
}
