//! The node agent on the private node: it installs the plugin, heals what others overwrite, and is killed.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use testkit::{PATIENCE, Process, eventually, http};

use crate::backend::Backend;
use crate::node::{CONFLIST, Node};

/// The agent's ports, on loopback of the node's own namespace.
const HEALTH_PORT: u16 = 8000;
const METRICS_PORT: u16 = 15014;

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Process,
    /// What it says.
    log: File,
}

/// What was seen of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct AgentReport {
    pub(crate) steps: Vec<String>,
    pub(crate) problems: Vec<String>,
}

/// The conflist as its owner wrote it.
#[derive(Debug)]
pub(crate) struct Original {
    bytes: Vec<u8>,
    mode: u32,
}

impl Agent {
    /// Starts it on the embedded default: pods are manifests, there is no cluster.
    ///
    /// # Errors
    /// It does not become ready.
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let log = File::options().append(true).create(true).open(node.path("agent.log"))?;
        let option = |name: &str, value: &std::path::Path| format!("--{name}={}", value.display());
        let mut command = Command::new(node.program("install-cni"));
        command
            .args([
                option("mounted-cni-net-dir", &node.path("net.d")),
                option("mounted-cni-bin-dirs", &node.path("bin")),
                option("cni-bin-source-dir", &node.path("image")),
                option("cni-agent-run-dir", &node.path("run")),
                option("state-dir", &node.path("state")),
                format!("--pod-source=manifests:{}", node.path("manifests").display()),
                format!("--listen-address={}", Ipv4Addr::LOCALHOST),
            ])
            .env_clear()
            .env("EXCLUDE_NAMESPACES", "kube-system")
            .env("HOST_ROOT", "/")
            .env("NATIVE_NFTABLES", (node.backend == Backend::Nftables).to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        let agent = Self { process: node.host.spawn(&mut command).context("start install-cni")?, log };
        wait_for("the agent to be ready", || Ok(get(node, HEALTH_PORT, "/readyz")?.0 == 200))
            .with_context(|| said(node))?;
        Ok(agent)
    }

    /// Another component writes its own configuration over the one that has the plugin in it.
    ///
    /// # Errors
    /// The agent does not heal it.
    pub(crate) fn stomp(&self, node: &Node, original: &Original, report: &mut AgentReport) -> Result<()> {
        let start = Instant::now();
        std::fs::write(node.path(CONFLIST), &original.bytes)?;
        wait_for("the conflist to be healed", || has_plugin(node)).with_context(|| said(node))?;
        let took = start.elapsed();
        let mut line = String::new();
        wait_for("the agent to say that the conflist was overwritten", || {
            let text = said(node);
            let found = text.lines().find(|line| line.contains("was overwritten"));
            line = found.unwrap_or_default().to_owned();
            Ok(found.is_some())
        })?;
        let columns: Vec<&str> = line.split('\t').skip(2).collect();
        report.step(format!(
            "somebody overwrites the conflist; {} ms later the plugin is in it again, and the log says: {}",
            took.as_millis(),
            columns.last().copied().unwrap_or_default().replace(&node.path("").display().to_string(), "")
        ));
        Ok(())
    }

    /// What the plugin told the agent so far.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(crate) fn counted(&self, node: &Node, report: &mut AgentReport) -> Result<()> {
        let (_, metrics) = get(node, METRICS_PORT, "/metrics")?;
        let of = |result: &str| {
            let name = format!("istio_cni_operations_total{{operation=\"add\",result=\"{result}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u32>().ok()).unwrap_or(0)
        };
        let (captured, skipped) = (of("captured"), of("skipped"));
        if captured + skipped == 0 {
            report.problems.push("the agent has counted no ADD".to_owned());
        }
        report.step(format!("its metrics have counted {captured} pods as captured, {skipped} as left alone"));
        Ok(())
    }

    /// SIGKILL: no tidying up.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn kill(mut self, report: &mut AgentReport) -> Result<()> {
        self.process.child().kill()?;
        self.process.child().wait()?;
        report.step(
            "it is killed; what it installed stays, and the pods from here on start without it".to_owned(),
        );
        Ok(())
    }

    /// SIGTERM, and what is left afterwards.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn end(mut self, node: &Node, original: &Original, report: &mut AgentReport) -> Result<()> {
        let pid = Pid::from_child(self.process.child());
        kill_process(pid, Signal::TERM)?;
        wait_for("the agent to end", || Ok(self.process.ended()?.is_some()))?;
        let status = self.process.child().wait()?;
        if !status.success() {
            report.problems.push(format!("SIGTERM has to end the agent with 0, it was {status}"));
        }
        let restored =
            Original::of(node)? == *original && std::fs::read_dir(node.path("net.d"))?.count() == 1;
        if !restored || node.path("bin/istio-cni").exists() {
            report.problems.push("the node is not as it was before the agent".to_owned());
        } else {
            report.step(
                "started again and ended by SIGTERM: the conflist is back to the byte, the plugin is gone"
                    .to_owned(),
            );
        }
        drop(self.log);
        Ok(())
    }
}

impl AgentReport {
    fn step(&mut self, text: String) {
        self.steps.push(text);
    }

    /// What it has installed.
    ///
    /// # Errors
    /// The conflist cannot be read.
    pub(crate) fn installed(&mut self, node: &Node) -> Result<()> {
        ensure!(has_plugin(node)?, "the agent is ready, and its plugin is not in {CONFLIST}");
        let names = |folder: &str| -> Result<String> {
            let entries = std::fs::read_dir(node.path(folder))?.flatten();
            let mut names: Vec<String> =
                entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(names.join(", "))
        };
        self.step(format!(
            "install-cni is ready: {CONFLIST} now ends in istio-cni; bin: {}; run: {}",
            names("bin")?,
            names("run")?
        ));
        Ok(())
    }
}

impl Original {
    /// As it is now.
    ///
    /// # Errors
    /// The conflist cannot be read.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let path = node.path(CONFLIST);
        Ok(Self { bytes: std::fs::read(&path)?, mode: std::fs::metadata(&path)?.mode() })
    }
}

impl PartialEq for Original {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.mode == other.mode
    }
}

/// Whether the conflist has the plugin, as its last one. Half a file is no conflist yet.
fn has_plugin(node: &Node) -> Result<bool> {
    let text = std::fs::read(node.path(CONFLIST))?;
    let list: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    Ok(list["plugins"]
        .as_array()
        .and_then(|plugins| plugins.last())
        .is_some_and(|last| last["type"] == "istio-cni"))
}

/// What the agent has written to its log.
fn said(node: &Node) -> String {
    std::fs::read_to_string(node.path("agent.log")).unwrap_or_default()
}

/// Status and body of an answer of the agent.
fn get(node: &Node, port: u16, path: &str) -> Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let reply = node.host.enter(|_| http::get(address, path))?;
    Ok(reply.map_or((0, String::new()), |reply| (reply.status, reply.body)))
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    // What fails is not waited for.
    eventually(what, PATIENCE, || match done() {
        Ok(false) => bail!("it is not so"),
        ended => Ok(ended),
    })?
    .map(drop)
}
