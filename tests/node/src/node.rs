//! The node as tests see it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use testkit::Wait;

use crate::calls::{Call, Recorder};
use crate::cri::{CniStatus, Cri, CriError, Outcome, Sandbox, SandboxStatus};
use crate::image::{APP, PAUSE, output, write_images};
use crate::machine::{Machine, cgroup_dirs, remove_cgroups};
use crate::pod::PodSpec;
use crate::program::Program;

const READY_LIMIT: Duration = Duration::from_secs(30);
/// The kubelet's own limit for a sandbox is four minutes; ours start in a tenth of a second.
const SANDBOX_LIMIT: Duration = Duration::from_secs(50);
const EXEC_LIMIT: Duration = Duration::from_secs(20);

/// A private machine that runs containerd with one CNI chain. Dropping it ends and removes all of it.
#[derive(Debug)]
pub struct Node {
    machine: Machine,
    background: Mutex<Vec<Child>>,
    cri: Cri,
    recorder: Recorder,
    cgroup: String,
    dir: TempDir,
}

impl Node {
    /// Starts a node whose pods get their network from `conflist`. `plugins` adds binaries by type to the reference plugins;
    /// each plugin that the conflist names is called through the recorder.
    ///
    /// # Errors
    /// When not root, a package is missing (the message names it), or containerd does not come up.
    pub fn start(conflist: &Value, plugins: &[(&str, &Path)]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("node-").tempdir().context("make a node's directory")?;
        let recorder = Recorder::install(dir.path(), &dir.path().join("bin"), conflist, plugins)?;
        let net = dir.path().join("net.d");
        fs::create_dir(&net)?;
        fs::write(net.join("10-chain.conflist"), serde_json::to_vec_pretty(conflist)?)?;
        let images = write_images(dir.path())?;
        fs::write(dir.path().join("containerd.toml"), containerd_config(dir.path()))?;
        let cgroup = dir.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let cri = Cri::new(&dir.path().join("containerd.sock"), &format!("/{cgroup}"))?;
        let machine = Machine::boot(dir.path())?;
        let mut node = Self { machine, background: Mutex::default(), cri, recorder, cgroup, dir };
        node.wait_until_up()?;
        for archive in &images {
            node.import(archive)?;
        }
        node.wait_for("the imported images", |node| {
            let known = node.cri.images()?;
            Ok([PAUSE, APP].iter().all(|tag| known.iter().any(|k| k == tag)))
        })?;
        Ok(node)
    }

    /// Runs a pod: the sandbox with its CNI chain, then each container.
    ///
    /// # Errors
    /// A [`CriError`] with the text that the kubelet would show.
    pub fn run_pod(&self, spec: &PodSpec) -> Result<Sandbox, CriError> {
        self.run_pod_within(spec, SANDBOX_LIMIT)
    }

    /// [`Node::run_pod`] with the kubelet's deadline for the sandbox.
    ///
    /// # Errors
    /// A [`CriError`] with the text that the kubelet would show.
    pub fn run_pod_within(&self, spec: &PodSpec, deadline: Duration) -> Result<Sandbox, CriError> {
        let mut sandbox = self.cri.run_sandbox(spec, deadline)?;
        for container in &spec.containers {
            self.cri.start_container(&mut sandbox, container)?;
        }
        Ok(sandbox)
    }

    /// StopPodSandbox: ends the containers, calls DEL, removes the network namespace. May be repeated.
    ///
    /// # Errors
    /// A [`CriError`], for instance when a plugin's DEL failed.
    pub fn stop_pod(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        self.cri.stop(&sandbox.id)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// A [`CriError`], for instance when the pod could not be stopped.
    pub fn remove_pod(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        self.cri.remove(&sandbox.id)
    }

    /// What the runtime says of a pod.
    ///
    /// # Errors
    /// When the runtime does not know it.
    pub fn status(&self, sandbox: &Sandbox) -> Result<SandboxStatus> {
        self.cri.status(&sandbox.id)
    }

    /// Ids of all pods that the runtime knows, running or not.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub fn pods(&self) -> Result<Vec<String>, CriError> {
        self.cri.list()
    }

    /// Runs a program in a container, as the container's user.
    ///
    /// # Errors
    /// When the container is unknown or the program took longer than 20 s.
    pub fn exec_sync(&self, sandbox: &Sandbox, container: &str, command: &[&str]) -> Result<Outcome> {
        let id = sandbox.containers.get(container).with_context(|| format!("no container {container}"))?;
        Ok(self.cri.exec_sync(id, command, EXEC_LIMIT)?)
    }

    /// Runs a program of the host's in the node's namespaces.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the outcome.
    pub fn exec(&self, command: &[&str]) -> Result<Outcome> {
        run(self.command(None, command)?)
    }

    /// Runs a program of the host's in the node's namespaces, but in the pod's network namespace.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the outcome.
    pub fn exec_in_pod(&self, sandbox: &Sandbox, command: &[&str]) -> Result<Outcome> {
        run(self.command(Some(&self.enter_pod(sandbox)?), command)?)
    }

    /// Starts a program in the node that runs until the node ends, or reboots.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn serve(&self, command: &[&str]) -> Result<()> {
        let child = self.command(None, command)?.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        self.background.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        Ok(())
    }

    /// Starts a program in the node that the test ends itself. `output` gets both of its streams.
    ///
    /// # Errors
    /// When it cannot be started or ends at once.
    pub fn spawn(&self, command: &[&str], env: &[(&str, &str)], output: File) -> Result<Program> {
        let mut command = self.command(None, command)?;
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Program::new(command.spawn().context("run nsenter: install the package util-linux")?)
    }

    /// The pod's network namespace as a file that the host can open.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn enter_pod(&self, sandbox: &Sandbox) -> Result<PathBuf> {
        let status = self.status(sandbox)?;
        Ok(self.path(&status.netns))
    }

    /// A path inside the node (`/run`, `/var/lib/cni`), as the host can open it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        // /var/run is an absolute link, which would lead back to the host's /run.
        match inside.strip_prefix("/var/run") {
            Some(rest) => self.machine.path(&format!("/run{rest}")),
            None => self.machine.path(inside),
        }
    }

    /// The directory of CNI configurations, which containerd watches; the same path inside and outside, until something is mounted there.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    /// The directory of CNI plugins; the same path inside and outside, until something is mounted there.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// The CNI configuration that containerd has loaded.
    ///
    /// # Errors
    /// When it has none.
    pub fn cni_config(&self) -> Result<Value> {
        self.cri.cni_config()
    }

    /// What containerd has loaded of the CNI configurations, and how the last try went.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub fn cni_status(&self) -> Result<CniStatus> {
        self.cri.cni_status()
    }

    /// The node's directory on the host; its name is unique and names the pods' cgroup too.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process 1 of the node, as the host numbers it.
    #[must_use]
    pub fn init_pid(&self) -> u32 {
        self.machine.init()
    }

    /// The cgroup directories that exist for this node's pods.
    #[must_use]
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_dirs(&self.cgroup)
    }

    /// All CNI calls since the start or the last [`Node::forget_calls`], oldest first.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn calls(&self) -> Result<Vec<Call>> {
        self.recorder.read()
    }

    /// The calls of one plugin with one verb.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn calls_of(&self, plugin: &str, verb: &str) -> Result<Vec<Call>> {
        let all = self.calls()?;
        Ok(all.into_iter().filter(|c| c.plugin == plugin && c.verb() == verb).collect())
    }

    /// Drops the records so far.
    ///
    /// # Errors
    /// When a record cannot be removed.
    pub fn forget_calls(&self) -> Result<()> {
        self.recorder.forget()
    }

    /// Has `plugin` refuse `verb` with the error JSON `answer` until told otherwise with `None`.
    ///
    /// # Errors
    /// When the note for the recorder cannot be written.
    pub fn refuse(&self, plugin: &str, verb: &str, answer: Option<&str>) -> Result<()> {
        self.recorder.refuse(plugin, verb, answer)
    }

    /// Kills containerd; it is started again and answers when this returns. Pods go on running.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart_containerd(&mut self) -> Result<()> {
        let pid = self.containerd_pid()?;
        self.exec(&["kill", "-KILL", &pid])?;
        self.wait_for("containerd's new process", |node| Ok(node.containerd_pid()? != pid))?;
        self.wait_until_up()
    }

    /// A power failure: every process, namespace and runtime file is lost, what is on disk stays; then a new start.
    ///
    /// # Errors
    /// When the node does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.machine.halt();
        self.reap_background();
        remove_cgroups(&self.cgroup)?;
        self.machine = Machine::boot(self.dir.path())?;
        self.wait_until_up()
    }

    /// The number of containerd's process inside the node.
    ///
    /// # Errors
    /// When it has not been started.
    pub fn containerd_pid(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("containerd.pid"))?.trim().to_owned())
    }

    fn command(&self, netns: Option<&Path>, command: &[&str]) -> Result<Command> {
        let (program, args) = command.split_first().context("an empty command")?;
        let mut built = self.machine.command(netns, program);
        built.args(args);
        Ok(built)
    }

    fn import(&self, archive: &Path) -> Result<()> {
        let socket = self.dir.path().join("containerd.sock");
        let mut ctr = self.machine.command(None, "ctr");
        ctr.arg("-a").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(archive);
        output(&mut ctr).map(drop)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        self.wait_for("containerd to answer", |node| Ok(node.cri.version().is_ok()))
    }

    fn wait_for(&mut self, what: &str, met: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let wait = Wait::new(what, READY_LIMIT);
        while !met(self)? {
            let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
            let seen = || {
                let log = read("containerd.log");
                let last = log.lines().rev().take(15).collect::<Vec<_>>().join("\n");
                format!("{}\ncontainerd's last lines, newest first:\n{last}", read("node.log"))
            };
            ensure!(self.machine.is_up(), "wait for {what}: {}", seen());
            sleep(wait.pause(seen)?);
        }
        Ok(())
    }

    fn reap_background(&self) {
        for mut child in self.background.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.machine.halt();
        self.reap_background();
        if let Err(error) = remove_cgroups(&self.cgroup) {
            eprintln!("remove cgroups named {}: {error}", self.cgroup);
        }
    }
}

fn run(mut command: Command) -> Result<Outcome> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    Ok(Outcome {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}

fn containerd_config(dir: &Path) -> String {
    let dir = dir.display();
    // restrict_oom_score_adj: a root without CAP_SYS_RESOURCE may not lower a score.
    format!(
        r#"version = 2
root = "{dir}/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
[ttrpc]
address = "{dir}/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/bin"
conf_dir = "{dir}/net.d"
max_conf_num = 1
"#
    )
}
