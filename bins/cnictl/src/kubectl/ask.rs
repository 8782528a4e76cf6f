//! Asks the agents' containers, by kubectl.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ClusterArgs;

/// Nodes that are asked at once.
const AT_ONCE: usize = 8;
/// The largest answer of a node, in bytes.
const MAX_ANSWER: u64 = 64 << 20;
/// How much is read of what kubectl says on standard error, in bytes.
const MAX_SAID: u64 = 16 << 10;
/// Pause between two looks whether kubectl has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// The node of an agent's pod that is on none yet.
const NOT_SCHEDULED: &str = "(not scheduled)";
/// Container of the agent in its pod.
const CONTAINER: &str = "install-cni";

/// kubectl with the user's own choice of cluster and user.
pub(super) struct Kubectl {
    flags: Vec<String>,
    namespace: String,
    limit: Duration,
}

/// An agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentPod {
    pub(super) node: String,
    pod: String,
    /// `status.phase`
    phase: String,
}

/// What a node says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeAnswer {
    pub(super) node: String,
    /// The agent's pod.
    pub(super) pod: String,
    /// Why it says nothing, or not all; empty where it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) error: String,
    #[serde(skip)]
    pub(crate) said: Option<Value>,
}

#[derive(Deserialize)]
struct PodList {
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

/// A program's output, and how it ended.
struct Said {
    stdout: Vec<u8>,
    stderr: String,
    succeeded: bool,
}

impl NodeAnswer {
    pub(super) fn answers(&self) -> bool {
        self.said.is_some()
    }

    /// Whether it answers, and knows all that was asked.
    pub(super) fn knows(&self) -> bool {
        self.answers() && self.error.is_empty()
    }
}

impl Kubectl {
    pub(super) fn of(args: &ClusterArgs) -> Self {
        let one =
            |flag: &str, value: &Option<String>| value.as_ref().map(|value| format!("--{flag}={value}"));
        let mut flags: Vec<String> = [
            one("kubeconfig", &args.kubeconfig),
            one("context", &args.context),
            one("as", &args.impersonate),
        ]
        .into_iter()
        .flatten()
        .collect();
        flags.extend(args.groups.iter().map(|group| format!("--as-group={group}")));
        Self { flags, namespace: args.agent_namespace.clone(), limit: args.timeout }
    }

    /// The agents' pods, by node.
    ///
    /// # Errors
    /// kubectl cannot be started, or may not list them.
    pub(super) fn agents(&self) -> Result<Vec<AgentPod>> {
        let line = ["get", "pods", "--selector=k8s-app=istio-cni-node", "--output=json"];
        let said = self.run(&line).context("list the agents' pods by kubectl")?;
        if !said.succeeded {
            bail!("kubectl cannot list the agents' pods in namespace {}: {}", self.namespace, said.stderr);
        }
        let list: PodList =
            serde_json::from_slice(&said.stdout).context("read the list of the agents' pods")?;
        let agent =
            |pod: Pod| AgentPod { node: pod.spec.node_name, pod: pod.metadata.name, phase: pod.status.phase };
        let mut agents: Vec<AgentPod> = list.items.into_iter().map(agent).collect();
        agents.retain(|agent| agent.phase != "Succeeded");
        // One that is not scheduled is of a node without an agent.
        for agent in agents.iter_mut().filter(|agent| agent.node.is_empty()) {
            agent.node = NOT_SCHEDULED.to_owned();
        }
        agents.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
        Ok(agents)
    }

    /// Runs cnictl in the container of each, some at once; the answers by node.
    pub(super) fn ask_all(&self, agents: &[AgentPod], line: &[&str]) -> Vec<NodeAnswer> {
        let left = Mutex::new(agents.iter());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let turn = || {
            let mut answers = Vec::new();
            while let Some(agent) = next() {
                answers.push(self.ask(agent, line));
            }
            answers
        };
        let mut answers: Vec<NodeAnswer> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE.min(agents.len())).map(|_| scope.spawn(turn)).collect();
            let done = threads.into_iter().flat_map(|thread| thread.join());
            done.flatten().collect()
        });
        answers.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
        answers
    }

    fn ask(&self, agent: &AgentPod, line: &[&str]) -> NodeAnswer {
        let answer =
            NodeAnswer { node: agent.node.clone(), pod: agent.pod.clone(), error: String::new(), said: None };
        if agent.phase != "Running" {
            return NodeAnswer {
                error: format!("its agent's pod {} is {}", agent.pod, agent.phase),
                ..answer
            };
        }
        let mut words = vec!["exec", &*agent.pod, "--container", CONTAINER, "--", "cnictl"];
        words.extend(line);
        match self.run(&words) {
            // One that finds something wrong ends with another code than 0, and says it all the same.
            Ok(said) => match serde_json::from_slice::<Value>(&said.stdout) {
                Ok(value) if value.is_object() => {
                    let gap = value["gaps"][0].as_str().map(|gap| format!("not everything is known: {gap}"));
                    NodeAnswer { error: gap.unwrap_or_default(), said: Some(value), ..answer }
                }
                _ => {
                    let why = said.stderr.trim();
                    let why =
                        if why.is_empty() { "cnictl in its agent's container answers nothing" } else { why };
                    NodeAnswer { error: why.to_owned(), ..answer }
                }
            },
            Err(error) => NodeAnswer { error: format!("{error:#}"), ..answer },
        }
    }

    fn run(&self, words: &[&str]) -> Result<Said> {
        let mut command = Command::new("kubectl");
        command.args(&self.flags).arg(format!("--namespace={}", self.namespace)).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().context("start kubectl; it has to be in the PATH")?;
        finish(child, self.limit)
    }
}

/// Reads what it says to its end, within the time.
fn finish(mut child: Child, limit: Duration) -> Result<Said> {
    let end = Instant::now() + limit;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read(stdout, MAX_ANSWER));
        let stderr = scope.spawn(|| read(stderr, MAX_SAID));
        let status = loop {
            match child.try_wait().context("wait for kubectl")? {
                Some(status) => break Some(status),
                None if Instant::now() >= end => break None,
                None => std::thread::sleep(PAUSE),
            }
        };
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        let Some(status) = status else { bail!("no answer in {} s (--timeout)", limit.as_secs_f64()) };
        Ok(Said {
            stdout,
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
            succeeded: status.success(),
        })
    })
}

fn read(from: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.by_ref().take(most).read_to_end(&mut bytes);
        // What is too much is read away, so that the other side can end.
        let _ = std::io::copy(&mut from, &mut std::io::sink());
    }
    bytes
}
