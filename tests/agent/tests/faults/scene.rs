//! A node that has everything that `cnictl doctor` looks at, and is healthy until something is done to it.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::mesh::Mesh;
use testkit::{Agent, Launch, PATIENCE, PodObject, eventually};

/// Longest time of a look, whatever is wrong.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "istio-system";

/// A node with its agents, and how `cnictl` is called there.
pub(crate) struct FaultyNode {
    pub(crate) mesh: Mesh,
    pub(crate) agents: Vec<Agent>,
    wrapper: Vec<String>,
    sections: &'static [&'static str],
    kept: Vec<Box<dyn Send>>,
}

/// What is wrong, by id and text.
pub(crate) type Wrong = Vec<(String, String)>;

impl FaultyNode {
    /// Without an agent: a runtime that listens, whose configuration names the node's directories.
    pub(crate) fn prepared() -> Self {
        let mesh = Mesh::new().unwrap();
        let root = mesh.root();
        for dir in ["etc/containerd", "run/containerd"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        let (conf, bin) = (mesh.node.net_dir(), mesh.node.bin_target());
        let config =
            format!("[cni]\n  conf_dir = \"{}\"\n  bin_dir = \"{}\"\n", conf.display(), bin.display());
        std::fs::write(root.join("etc/containerd/config.toml"), config).unwrap();
        let runtime = UnixListener::bind(root.join("run/containerd/containerd.sock")).unwrap();
        let node = Self { mesh, agents: Vec::new(), wrapper: Vec::new(), sections: &[], kept: Vec::new() };
        node.with(runtime)
    }

    /// With a ready agent of sidecar mode.
    pub(crate) fn healthy() -> Self {
        Self::prepared().ready(|agent| agent)
    }

    /// With a ready agent of ambient mode, and no ztunnel yet.
    pub(crate) fn ambient(change: impl Fn(Launch<'_>) -> Launch<'_>) -> Self {
        let mut node = Self::prepared();
        let agent = change(checking(node.mesh.agent())).ready().unwrap();
        node.agents.push(agent);
        node
    }

    /// The same with a ztunnel that does what it should.
    pub(crate) fn served() -> Self {
        let node =
            Self::ambient(|agent| agent.env("CONFLICT_RESOLUTION", "off").env("VERIFY_INTERVAL", "1s"));
        let ztunnel = node.mesh.ztunnel().unwrap();
        node.with(ztunnel)
    }

    /// An agent of sidecar mode in a pod of its own.
    pub(crate) fn launch(&self, name: &str) -> Launch<'_> {
        let pod = PodObject::named(name).in_namespace(NAMESPACE).uid(&format!("uid-of-{name}"));
        self.mesh.node.api.set_pod(pod.on_node("n1").container("install-cni"));
        let launch = checking(self.mesh.node.agent()).env("HOST_ROOT", &self.mesh.root().to_string_lossy());
        let launch = launch.env("CLEANUP_ON_EXIT", "never").env("POD_NAME", name);
        launch.env("POD_NAMESPACE", NAMESPACE).env("VERIFY_INTERVAL", "1s")
    }

    /// Starts an agent and waits until it is ready.
    pub(crate) fn ready(mut self, change: impl FnOnce(Launch<'_>) -> Launch<'_>) -> Self {
        let agent = change(self.launch("one")).ready().unwrap();
        self.agents.push(agent);
        self
    }

    /// Starts one that is not to become ready.
    pub(crate) fn started(mut self, change: impl FnOnce(Launch<'_>) -> Launch<'_>) -> Self {
        let agent = change(self.launch("one")).start().unwrap();
        self.agents.push(agent);
        self
    }

    /// Kills the agents, so that they heal nothing and leave everything.
    pub(crate) fn without_agent(mut self) -> Self {
        self.agents.drain(..).for_each(|agent| drop(agent.kill().unwrap()));
        self
    }

    /// Does something to it.
    pub(crate) fn injected(self, inject: impl FnOnce(&Self)) -> Self {
        inject(&self);
        self
    }

    /// Keeps something as long as the node.
    pub(crate) fn with(mut self, kept: impl Send + 'static) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    /// `cnictl` is started by these words.
    pub(crate) fn asked_behind(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Only these sections are looked at.
    pub(crate) fn only(mut self, sections: &'static [&'static str]) -> Self {
        self.sections = sections;
        self
    }

    /// Runs a program in the mount namespace of the agent.
    pub(crate) fn in_mounts(&self, words: &[&str]) -> bool {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.agents[0].pid().to_string()]).args(words);
        command.stderr(std::process::Stdio::null()).status().unwrap().success()
    }

    /// `cnictl` on this node.
    pub(crate) fn cnictl(&self, words: &[&str]) -> Command {
        let (program, node) = (testkit::programs().join("cnictl"), &self.mesh.node);
        let mut command = match self.wrapper.as_slice() {
            [wrapper, args @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(program);
                command
            }
            [] => Command::new(program),
        };
        command.args(words).arg("--net-dir").arg(node.net_dir()).arg("--run-dir").arg(node.run_dir());
        command.arg("--bin-dir").arg(node.bin_target()).env("HOST_ROOT", self.mesh.root());
        command
    }

    /// What `cnictl doctor` finds wrong. Each hint leads into the document.
    pub(crate) fn wrong(&self) -> Result<Wrong> {
        let mut command = self.cnictl(&["doctor", "-o", "json"]);
        for section in self.sections {
            command.args(["--section", section]);
        }
        let begun = Instant::now();
        let output = command.output()?;
        ensure!(begun.elapsed() < LONGEST_LOOK, "a look took {:?}", begun.elapsed());
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let items = report["items"].as_array().context("no items")?;
        let is_wrong = |item: &&Value| item["state"] == "failed" || item["state"] == "warning";
        let text = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
        let wrong = items.iter().filter(is_wrong).map(|item| {
            ensure!(text(item, "more").starts_with("docs/troubleshooting.md#"), "{item}");
            Ok((text(item, "id"), text(item, "text")))
        });
        wrong.collect()
    }

    /// Waits until nothing is wrong.
    pub(crate) fn wait_well(&self) {
        eventually("nothing is wrong", PATIENCE, || {
            let wrong = self.wrong()?;
            ensure!(wrong.is_empty(), "{wrong:#?}");
            Ok(())
        })
        .unwrap();
    }
}

/// Its checks are made each second.
fn checking(launch: Launch<'_>) -> Launch<'_> {
    launch.env("HEALTH_CONFIG_INTERVAL", "1s").env("HEALTH_CONNECTIVITY_INTERVAL", "1s")
}
