//! A node as private directories, with the real plugin and the real agent.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use testkit::{Agent, Node};

use crate::{Files, Run};

/// Longest wait for the agent, which takes a fraction of a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
  {"type": "calico", "mtu": 1440},   {"type": "portmap", "snat": true}
]}
"#;

/// Name, content, mode and owner of each file of a directory.
pub(crate) type Snapshot = Vec<(String, Vec<u8>, u32, u32, u32)>;

pub(crate) struct Machine {
    pub(crate) files: Files,
    node: Node,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let node = Node::with_image().unwrap();
        fs::create_dir(node.run_dir()).unwrap();
        Self { files: Files::below(node.dir()), node }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    pub(crate) fn install_program(&self, name: &str) {
        testkit::copy_program(&testkit::programs().join("istio-cni"), &self.path(name)).unwrap();
    }

    /// `cnictl` with the node's directories; where a path of the node is printed, it begins with `NODE`.
    pub(crate) fn run(&self, line: &str) -> Run {
        self.seen(&self.command(line).output().unwrap())
    }

    /// What a call printed, by the same names.
    pub(crate) fn seen(&self, output: &Output) -> Run {
        let mut run = Run::of(output);
        let root = self.path("").display().to_string();
        for text in [&mut run.stdout, &mut run.stderr] {
            *text = text.replace(&root, "NODE/");
        }
        run
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        self.files.command(&format!("{line} --net-dir @net.d --bin-dir @bin --run-dir @run"))
    }

    /// The same for verbs that need no directory of programs.
    pub(crate) fn on_node(&self, line: &str) -> Run {
        let mut command = self.files.command(&format!("{line} --net-dir @net.d --run-dir @run"));
        self.seen(&command.output().unwrap())
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn agent(&self, more: &[&str]) -> Agent {
        self.agent_with(more, &[])
    }

    /// The same with more variables.
    pub(crate) fn agent_with(&self, more: &[&str], variables: &[(&str, &str)]) -> Agent {
        // In ambient mode the agent programs the network that it takes for the node's, which must not be this machine's.
        let launch = self.node.manifest_agent().behind(&["unshare", "--net"]);
        let launch = launch.arg(&format!("--ztunnel-uds-address={}", self.path("ztunnel.sock").display()));
        let launch = variables.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let agent = more.iter().fold(launch, |launch, option| launch.arg(option)).start().unwrap();
        let is_ready = || self.run("status -o json").stdout.contains("\"ready\": true");
        testkit::until("the agent is ready", PATIENCE, is_ready, || agent.log().text()).unwrap();
        agent
    }

    /// Starts one that enforces policies, with its state in `state` and the network namespace that it is in as the node's.
    pub(crate) fn policy_agent(&self, more: &[&str]) -> Agent {
        let state = self.path("state");
        fs::create_dir_all(&state).unwrap();
        let first_process = self.path("root/proc/1/ns");
        fs::create_dir_all(&first_process).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", first_process.join("net")).unwrap();
        let state = format!("--state-dir={}", state.display());
        let options = [&["--policy-enforcement=on", &*state], more].concat();
        self.agent_with(&options, &[("HOST_ROOT", &*self.path("root").display().to_string())])
    }

    pub(crate) fn snapshot(&self, dir: &str) -> Snapshot {
        let of = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap(), metadata.mode(), metadata.uid(), metadata.gid())
        };
        let mut files: Vec<_> =
            fs::read_dir(self.path(dir)).unwrap().map(|entry| of(&entry.unwrap().path())).collect();
        files.sort();
        files
    }

    pub(crate) fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}
