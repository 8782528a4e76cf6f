//! The agent as a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::log::Log;
use super::metrics::Metrics;
use super::{NAME, Node};
use crate::http::{self, Reply};
use crate::{PATIENCE, Process, eventually};

/// Port of /healthz and /readyz, the original's.
const HEALTH_PORT: u16 = 8000;
/// Port of /metrics, the original's.
const METRICS_PORT: u16 = 15014;

/// An agent that is to be started, with the environment of its container and no other.
pub struct Launch<'a> {
    node: &'a Node,
    wrapper: Vec<String>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

/// A running agent. It is killed when dropped.
pub struct Agent {
    process: Process,
    health: SocketAddr,
    metrics: SocketAddr,
    log: Log,
}

/// How an agent ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// From the signal to the end.
    pub took: Duration,
    /// Everything it printed.
    pub log: Log,
}

// === impl Launch ===

impl<'a> Launch<'a> {
    pub(crate) fn new(node: &'a Node) -> Self {
        let api = node.api.address();
        let launch = Self::of_directories(node)
            .env("CNI_CACHE_DIR", &node.cache_dir().to_string_lossy())
            .env("HOST_ROOT", "/")
            .env("SERVICE_ACCOUNT_DIR", &node.account().to_string_lossy())
            .env("KUBERNETES_SERVICE_HOST", &api.ip().to_string())
            .env("KUBERNETES_SERVICE_PORT", &api.port().to_string());
        launch
            .env("LISTEN_ADDRESS", &node.address().to_string())
            .env("NODE_NAME", NAME)
            .env("NATIVE_NFTABLES", "true")
            .env("FACTS_TIMEOUT", "1s")
    }

    pub(crate) fn of_manifests(node: &'a Node) -> Self {
        let source = format!("manifests:{}", node.manifests().display());
        let launch = Self::of_directories(node).env("POD_SOURCE", &source);
        launch.env("MONITORING_PORT", "0").env("HEALTH_PORT", "0").env("CLEANUP_ON_EXIT", "never")
    }

    fn of_directories(node: &'a Node) -> Self {
        let launch = Self { node, wrapper: Vec::new(), args: Vec::new(), env: BTreeMap::new() };
        launch
            .env("MOUNTED_CNI_NET_DIR", &node.net_dir().to_string_lossy())
            .env("CNI_BIN_SOURCE_DIR", &node.bin_source().to_string_lossy())
            .env("MOUNTED_CNI_BIN_DIRS", &node.bin_target().to_string_lossy())
            .env("CNI_AGENT_RUN_DIR", &node.run_dir().to_string_lossy())
            .env("STATE_DIR", &node.state_dir().to_string_lossy())
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Starts it by a program that becomes the agent, such as `unshare -m`.
    #[must_use]
    pub fn behind(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts it as if the machine had started with this number of the kernel's, random(4): in a mount namespace of its own.
    ///
    /// # Errors
    /// The number cannot be written.
    pub fn booted(self, id: &str) -> Result<Self> {
        const MOUNT: &str = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let file = self.node.dir().join(format!("boot-{id}"));
        std::fs::write(&file, format!("{id}\n"))?;
        Ok(self.behind(&["unshare", "--mount", "sh", "-c", MOUNT, &file.to_string_lossy()]))
    }

    fn command(&self) -> Command {
        let program = crate::programs().join("install-cni");
        let mut command = match self.wrapper.as_slice() {
            [wrapper, args @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(program);
                command
            }
            [] => Command::new(program),
        };
        command.args(&self.args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(self) -> Result<Agent> {
        let mut process = Process::new(self.command().spawn().context("start install-cni")?);
        let log = Log::default();
        let (out, err) = (process.child().stdout.take(), process.child().stderr.take());
        log.read(out.context("no stdout")?);
        log.read(err.context("no stderr")?);
        let at = |variable: &str, default: u16| {
            let port = self.env.get(variable).and_then(|port| port.parse().ok()).unwrap_or(default);
            SocketAddr::from((self.node.address(), port))
        };
        let (health, metrics) = (at("HEALTH_PORT", HEALTH_PORT), at("MONITORING_PORT", METRICS_PORT));
        Ok(Agent { process, health, metrics, log })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn ready(self) -> Result<Agent> {
        let mut agent = self.start()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Runs it to its end, which has to come by itself.
    ///
    /// # Errors
    /// It cannot be started, or goes on.
    pub fn run(self) -> Result<Output> {
        let mut child = self.command().spawn().context("start install-cni")?;
        let ended = eventually("install-cni ends", PATIENCE, || child.try_wait()?.context("it goes on"));
        if let Err(error) = ended {
            child.kill()?;
            bail!("{error:#}: {:?}", child.wait_with_output()?);
        }
        Ok(child.wait_with_output()?)
    }
}

// === impl Agent ===

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// `/readyz`.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn readyz(&self) -> Result<Reply> {
        http::get(self.health, "/readyz")
    }

    /// Any path of the health port.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn health(&self, path: &str) -> Result<Reply> {
        http::get(self.health, path)
    }

    /// Address of `/readyz`.
    pub fn health_address(&self) -> SocketAddr {
        self.health
    }

    /// Address of `/metrics`.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// `/metrics`.
    ///
    /// # Errors
    /// Nobody answers, or with something else.
    pub fn metrics(&self) -> Result<Metrics> {
        let reply = http::get(self.metrics, "/metrics")?;
        ensure!(reply.status == 200, "{reply:?}");
        Metrics::parse(&reply.body)
    }

    /// One series; 0 if it is not there.
    ///
    /// # Errors
    /// As [`Agent::metrics`].
    pub fn metric(&self, series: &str) -> Result<f64> {
        Ok(self.metrics()?.value(series))
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// It does not, or the agent ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        eventually("the agent is ready", PATIENCE, || {
            if let Some(status) = self.process.ended()? {
                bail!("the agent has ended: {status}\n{}", self.log.text());
            }
            let reply = self.readyz()?;
            ensure!(reply.status == 200, "{reply:?}\n{}", self.log.text());
            Ok(())
        })
    }

    /// Waits until `/readyz` refuses and its body has all of these parts; gives the body.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_unready(&self, parts: &[&str]) -> Result<String> {
        eventually("the agent is not ready", PATIENCE, || {
            let reply = self.readyz()?;
            ensure!(reply.status == 503, "{reply:?}\n{}", self.log.text());
            ensure!(
                parts.iter().all(|part| reply.body.contains(part)),
                "{parts:?} are not in {}\n{}",
                reply.body,
                self.log.text()
            );
            Ok(reply.body)
        })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.own_pid()?, signal)?;
        if signal == Signal::STOP {
            // Its threads stop one after the other, and until then it answers.
            eventually("the agent stops", PATIENCE, || {
                let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()))?;
                for task in tasks {
                    let stat = std::fs::read_to_string(task?.path().join("stat"))?;
                    // proc(5): field 3, behind the name in parentheses, is the state.
                    ensure!(
                        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')),
                        "{stat}"
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Kills it without giving it time for anything.
    ///
    /// # Errors
    /// It does not go.
    pub fn kill(self) -> Result<Ended> {
        self.end(Signal::KILL)
    }

    /// Ends it as kubelet does.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(self) -> Result<Ended> {
        self.end(Signal::TERM)
    }

    /// Waits for an end that comes by itself.
    ///
    /// # Errors
    /// It goes on.
    pub fn ended_by_itself(mut self) -> Result<Ended> {
        let start = Instant::now();
        let status = eventually("the agent ends", PATIENCE, || {
            self.process.ended()?.with_context(|| format!("it goes on\n{}", self.log.text()))
        })?;
        Ok(Ended { status, took: start.elapsed(), log: self.log.clone() })
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(self, signal: Signal) -> Result<Ended> {
        self.signal(signal)?;
        self.ended_by_itself()
    }

    /// Local addresses of the TCP sockets on which it listens.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn listens(&self) -> Result<Vec<String>> {
        let mut sockets = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            // A descriptor may be gone by now.
            let Ok(link) = std::fs::read_link(entry?.path()) else { continue };
            sockets.extend(inode(&link));
        }
        let mut found = Vec::new();
        for table in ["tcp", "tcp6"] {
            let text = std::fs::read_to_string(format!("/proc/{}/net/{table}", self.pid()))?;
            for line in text.lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                // proc(5): column 1 is the local address, 3 the state with 0A for LISTEN, 9 the inode
                if columns[3] == "0A" && sockets.iter().any(|socket| socket == columns[9]) {
                    found.push(columns[1].to_owned());
                }
            }
        }
        Ok(found)
    }

    fn own_pid(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.pid())?).context("no process id")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A stopped process does not even take its end.
        if let Ok(pid) = self.own_pid() {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

/// The number in `socket:[number]`.
fn inode(link: &Path) -> Option<String> {
    let text = link.to_str()?;
    Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
}
