//! Somebody deletes rules of running pods, of a sidecar's and of one of ambient mode. The agent puts them back and says who did it.
//!
//! The time is from the moment in which the deletion is seen to be done until the kernel lists as many rules as before.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use testkit::probe::{Listener, Listeners};
use testkit::rules::{Family, Variant};
use testkit::{Agent, Mesh, MeshPod, PATIENCE, PodCall, PodObject, eventually};

use crate::backend::Backend;
use crate::removal;

/// How long it may take where the kernel tells of the change.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often pods are looked at by turns, which is how a change by iptables-legacy is seen.
const INTERVAL: Duration = Duration::from_secs(2);
/// Ports of ztunnel: outbound, inbound in plain text, HBONE.
const ZTUNNEL: [u16; 3] = [15001, 15006, 15008];
/// The program of which the kernel tells nothing.
const LEGACY: &str = "iptables-legacy";
/// What the agent's log says of a repair.
const REPAIRED: &str = "the rules of a pod differed and are put right";

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct DriftReport {
    pub(crate) backend: Backend,
    /// What `cnictl verify` printed before somebody came.
    pub(crate) before: String,
    pub(crate) restored: Vec<Restored>,
    /// The same at the end.
    pub(crate) after: String,
    pub(crate) problems: Vec<String>,
}

/// A pod whose rules were deleted, and came back.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    pub(crate) pod: String,
    pub(crate) mode: &'static str,
    /// What somebody typed in the pod's namespace.
    pub(crate) command: String,
    pub(crate) pid: u32,
    pub(crate) ms: f64,
    /// What the kernel lists again.
    pub(crate) rules: usize,
    /// By the agent's log.
    pub(crate) log: String,
    /// By `cnictl verify`.
    pub(crate) culprit: String,
}

/// Everything that runs.
struct Scene {
    backend: Backend,
    mesh: Mesh,
    agent: Agent,
    pods: [(MeshPod, &'static str); 2],
    _ztunnel: Listeners,
}

/// Plays it.
///
/// # Errors
/// A step could not be done.
pub(crate) fn run(programs: &Path, backend: Backend) -> Result<DriftReport> {
    testkit::use_programs(programs);
    let mesh = Mesh::new()?;
    let native = if backend == Backend::Nftables { "true" } else { "false" };
    let agent = mesh.agent().env("NATIVE_NFTABLES", native);
    let agent = agent.env("VERIFY_INTERVAL", &format!("{}s", INTERVAL.as_secs())).ready()?;
    let ztunnel = mesh.ztunnel()?;
    let scene = Scene::new(mesh, agent, backend)?;
    let namespaces = scene.pods.iter().map(|(pod, _)| removal::inode(&pod.netns));
    let namespaces = namespaces.collect::<Result<Vec<u64>>>()?;
    let before = scene.wait_verified()?;
    let mut problems = Vec::new();
    let mut restored = Vec::new();
    for (pod, mode) in &scene.pods {
        restored.push(scene.rob(pod, mode, &mut problems)?);
    }
    let after = scene.wait_verified()?;
    problems.extend(scene.end()?);
    drop(ztunnel);
    problems.extend(removal::holders(&namespaces)?);
    Ok(DriftReport { backend, before, restored, after, problems })
}

// === impl Scene ===

impl Scene {
    fn new(mesh: Mesh, agent: Agent, backend: Backend) -> Result<Self> {
        let sidecar = mesh.sandbox("default", "shop")?;
        let object = PodObject::named(&sidecar.name).uid(&sidecar.uid).on_node(testkit::NODE_NAME);
        mesh.node.api.set_pod(object.sidecar().running(&[sidecar.ip]));
        let mut call = PodCall::new(&mesh.node, &sidecar.name, &sidecar.uid, sidecar.netns.path())?;
        call.conf["native_nftables"] = json!(backend == Backend::Nftables);
        call.add()?;
        mesh.run(&sidecar)?;
        let ambient = mesh.running("mesh", "cart", &[])?;
        mesh.wait_annotation(&ambient, Some("enabled"))?;
        // One in the sidecar pod that is not the proxy's user would be taken for an application on the proxy's ports.
        let listeners = Listeners::start(&ambient.netns, ZTUNNEL.map(Listener::tcp))?;
        let pods = [(sidecar, "sidecar"), (ambient, "ambient")];
        Ok(Self { backend, mesh, agent, pods, _ztunnel: listeners })
    }

    fn cnictl(&self, words: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(testkit::programs().join("cnictl"));
        command.args(words).arg("--net-dir").arg(self.mesh.node.net_dir());
        let output = self.mesh.host.output(&mut command)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let success = output.status.success();
        let error = if success { String::new() } else { text(&output.stderr) };
        Ok((success, text(&output.stdout) + &error))
    }

    /// What `cnictl verify` prints when it has nothing to say against any pod.
    fn wait_verified(&self) -> Result<String> {
        eventually("every pod is verified", PATIENCE, || {
            let (success, text) = self.cnictl(&["verify"])?;
            ensure!(success && text.matches(" verified ").count() == self.pods.len(), "{text}");
            Ok(text)
        })
    }

    /// Deletes rules of a pod, and waits until they are back.
    fn rob(&self, pod: &MeshPod, mode: &'static str, problems: &mut Vec<String>) -> Result<Restored> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let before = self.backend.count_rules(&pod.netns)?;
        let words = self.deletion(pod, mode);
        let mut program = Command::new(words[0]);
        let mut program = pod.netns.spawn(program.args(&words[1..]))?;
        let status = program.child().wait().with_context(|| format!("wait for {}", words[0]))?;
        let deleted = Instant::now();
        ensure!(status.success(), "{} has to delete rules, it ended with {status}", words.join(" "));
        let after = eventually(&format!("the rules of {name} are back"), PATIENCE, || {
            let now = self.backend.count_rules(&pod.netns)?;
            ensure!(now == before, "there were {before:?}, and are {now:?}");
            Ok(now)
        })?;
        let took = deleted.elapsed();
        let log = self.agent.log().wait_for(&[REPAIRED, &format!("pod={name}")], PATIENCE)?;
        let restored = Restored {
            mode,
            command: words.join(" "),
            pid: program.id(),
            ms: took.as_secs_f64() * 1000.0,
            rules: after.0,
            log,
            culprit: self.culprit(&name)?,
            pod: name,
        };
        problems.extend(restored.problems(took, words[0]));
        Ok(restored)
    }

    /// What somebody types who does not know what the rules are for.
    fn deletion(&self, pod: &MeshPod, mode: &str) -> Vec<&'static str> {
        let legacy = pod.netns.iptables_save(Variant::Legacy, Family::V4).unwrap_or_default();
        match (self.backend, mode) {
            (Backend::Nftables, "sidecar") => vec!["nft", "delete", "table", "inet", "istio-proxy-nat"],
            (Backend::Nftables, _) => vec!["nft", "delete", "table", "inet", "istio-ambient-nat"],
            (Backend::Iptables, _) if legacy.contains("ISTIO_") => vec![LEGACY, "-w", "-t", "nat", "-F"],
            (Backend::Iptables, _) => vec!["iptables-nft", "-w", "-t", "nat", "-F"],
        }
    }

    /// Who changed the pod last, by `cnictl verify` once it says that the pod is verified again.
    fn culprit(&self, pod: &str) -> Result<String> {
        let report = eventually(&format!("{pod} is verified"), PATIENCE, || {
            let (success, text) = self.cnictl(&["verify", pod, "-o", "json"])?;
            ensure!(success, "{text}");
            serde_json::from_str::<Value>(&text).with_context(|| format!("cnictl printed {text}"))
        })?;
        Ok(report["items"][0]["culprit"].as_str().unwrap_or_default().to_owned())
    }

    fn end(self) -> Result<Vec<String>> {
        let ended = self.agent.stop()?;
        let text = format!("SIGTERM has to end the agent with 0, it was {}", ended.status);
        Ok((!ended.status.success()).then_some(text).into_iter().collect())
    }
}

// === impl Restored ===

impl Restored {
    fn problems(&self, took: Duration, program: &str) -> Vec<String> {
        let Self { pod, pid, log, culprit, .. } = self;
        let mut problems = Vec::new();
        let limit = if program == LEGACY { AT_ONCE + INTERVAL } else { AT_ONCE };
        if took > limit {
            problems.push(format!("{pod}: its rules have to be back within {limit:?}, it took {took:?}"));
        }
        // The kernel tells numbers of its first pid namespace, and of iptables-legacy it tells nothing.
        let named = match is_first_pid_namespace() {
            _ if program == LEGACY => LEGACY.to_owned(),
            true => format!("{program} (pid {pid}"),
            false => format!("{program} (pid "),
        };
        for (place, said) in [("the agent's log", log), ("cnictl verify", culprit)] {
            if !said.contains(&named) {
                problems.push(format!("{pod}: {place} has to name {named}, it says {said:?}"));
            }
        }
        problems
    }
}

/// Whether pids of this process's namespace are those of the whole machine.
fn is_first_pid_namespace() -> bool {
    // PROC_PID_INIT_INO of include/linux/proc_ns.h.
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}
