//! Istio's ztunnel as a process in a network namespace of its own, without a control plane.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{MeshPod, Process, TestNetns, eventually, http};

use crate::peer::Proxies;
use crate::town::{SERVICE_TARGET, service_ip, service_name};

/// Its own ports, ztunnel's defaults.
const STATS: u16 = 15020;
const READINESS: u16 = 15021;
/// How long connections may go on after the signal to end.
const DRAIN: &str = "10s";
/// How long its own ports may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What it logs when the agent breaks the protocol: a packet that it cannot read, or that must not come.
const COMPLAINTS: [&str; 3] = ["failed to read message", "failed to process message", "protocol mismatch"];
/// What such a line says when the agent was killed instead.
const NO_COMPLAINTS: [&str; 2] = ["EOF", "reset by peer"];

/// A running one; it is killed when dropped.
pub struct Real {
    process: Process,
    netns: TestNetns,
    dir: TempDir,
}

// === impl Real ===

impl Real {
    pub(crate) fn start(program: &Path, socket: &Path, pods: &[&MeshPod]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ztunnel-").tempdir()?;
        let netns = TestNetns::new()?;
        let known: Vec<Value> = pods.iter().map(|pod| workload(pod)).collect();
        let services: Vec<Value> = pods.iter().map(|pod| service(pod)).collect();
        let state = dir.path().join("state.yaml");
        // Every JSON is YAML, but for keys that are to be numbers.
        let text = json!({"workloads": known, "services": services}).to_string();
        std::fs::write(&state, text.replace("\"80\":", "80: "))?;
        let log = File::create(dir.path().join("log"))?;
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir.path());
        // No control plane, and a certificate authority of its own that every process of it shares.
        command.env("XDS_ADDRESS", "").env("FAKE_CA", "true").env("LOCAL_XDS_PATH", &state);
        command.env("PROXY_MODE", "shared").env("INPOD_UDS", socket).env("NODE_NAME", "n1");
        command.env("CONNECTION_TERMINATION_DEADLINE", DRAIN).env("RUST_LOG", "info,ztunnel::inpod=debug");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { process: netns.spawn(&mut command)?, netns, dir })
    }

    pub(crate) fn is_ready(&self) -> Result<bool> {
        Ok(self.get(READINESS, "/healthz/ready").is_ok_and(|reply| reply.status == 200))
    }

    pub(crate) fn proxies(&self) -> Result<Proxies> {
        let reply = self.get(STATS, "/metrics")?;
        let value = |name: &str| -> Result<usize> {
            let mut lines = reply.body.lines().filter_map(|line| line.split_once(' '));
            let (_, value) =
                lines.find(|(series, _)| *series == name).with_context(|| format!("no {name}"))?;
            Ok(value.parse()?)
        };
        Ok(Proxies {
            started: value("workload_manager_proxies_started_total")?,
            stopped: value("workload_manager_proxies_stopped_total")?,
        })
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        let log = self.log();
        let says = |line: &str, words: &[&str]| words.iter().any(|words| line.contains(words));
        let complaint = log.lines().find(|line| says(line, &COMPLAINTS) && !says(line, &NO_COMPLAINTS));
        ensure!(complaint.is_none(), "{complaint:?} in:\n{log}");
        Ok(())
    }

    pub(crate) fn drain(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.process.id())?).context("no process id")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    pub(crate) fn wait_end(&mut self, limit: Duration) -> Result<()> {
        let status = eventually("ztunnel ends", limit, || self.process.ended()?.context("it goes on"));
        let status = status.with_context(|| self.log())?;
        ensure!(status.success(), "ztunnel ended with {status}:\n{}", self.log());
        Ok(())
    }

    fn get(&self, port: u16, path: &str) -> Result<http::Reply> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = self.netns.enter(|_| TcpStream::connect_timeout(&to, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        http::exchange(stream, &http::request("GET", path, ""))
    }
}

/// A pod as the control plane describes it; those outside the mesh have no tunnels.
fn workload(pod: &MeshPod) -> Value {
    json!({
        "uid": format!("cluster1//v1/Pod/{}/{}", pod.namespace, pod.name),
        "name": pod.name,
        "namespace": pod.namespace,
        "serviceAccount": format!("sa-{}", pod.name),
        "workloadIps": [pod.ip],
        "protocol": if pod.namespace == "mesh" { "HBONE" } else { "TCP" },
        "node": "n1",
        "network": "",
        "services": {(format!("{}/{}", pod.namespace, service_name(pod))): {"80": SERVICE_TARGET}},
    })
}

/// A service that has the pod alone, on port 80.
fn service(pod: &MeshPod) -> Value {
    json!({
        "name": pod.name,
        "namespace": pod.namespace,
        "hostname": service_name(pod),
        "vips": [format!("/{}", service_ip(pod))],
        "ports": {"80": SERVICE_TARGET},
    })
}
