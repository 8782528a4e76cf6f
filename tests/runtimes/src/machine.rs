//! The node.

use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::{ApiServer, Resource};
use testkit::{Launch, Mesh};

use crate::libcni::{Libcni, List};
use crate::pod::{PodSpec, now, status};

/// Where Debian's `containernetworking-plugins` puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// Processes of pods have this number or a higher one.
const FIRST_PID: u32 = 5000;

static NEXT_PID: AtomicU32 = AtomicU32::new(0);

/// A node with the reference plugins, a configuration that gives pods addresses, and a cluster. It has no runtime of its own.
pub struct Machine {
    /// Directories, API server and network namespace, as the agent's container sees them.
    pub mesh: Mesh,
}

impl Machine {
    /// A node whose pods get an address from `bridge`, by a list of this `cniVersion`.
    ///
    /// # Errors
    /// When not root, or the package `containernetworking-plugins` is missing.
    pub fn new(version: &str) -> Result<Self> {
        let machine = Self { mesh: Mesh::new()? };
        std::fs::create_dir(machine.netns_dir())?;
        // Plugins run in the node's network namespace, the agent in that of the test.
        machine.mesh.host.enter(|_| machine.api().listen_here())??;
        machine.install_reference_plugins()?;
        machine.write_conflist(version)?;
        let seen = machine.seen_netns_dir()?;
        std::fs::create_dir_all(seen.parent().context("no parent")?)?;
        symlink(machine.netns_dir(), seen)?;
        Ok(machine)
    }

    /// Takes the paths of pods' namespaces away from the agent, which is in a mount namespace of its own.
    ///
    /// # Errors
    /// They were taken away already.
    pub fn hide_namespaces(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.seen_netns_dir()?)?)
    }

    /// Where the agent, which has the node's root elsewhere, looks for [`Self::netns_dir`].
    fn seen_netns_dir(&self) -> Result<PathBuf> {
        Ok(self.mesh.root().join(self.netns_dir().strip_prefix("/")?))
    }

    fn install_reference_plugins(&self) -> Result<()> {
        let bin = self.mesh.node.bin_target();
        symlink(REFERENCE_PLUGINS, bin.join("reference"))?;
        for plugin in ["host-local", "portmap"] {
            let program = Path::new(REFERENCE_PLUGINS).join(plugin);
            ensure!(program.is_file(), "no {}: install containernetworking-plugins", program.display());
            symlink(program, bin.join(plugin))?;
        }
        std::fs::write(bin.join("bridge"), include_str!("bridge.sh"))?;
        Ok(std::fs::set_permissions(bin.join("bridge"), PermissionsExt::from_mode(0o755))?)
    }

    /// Takes the base network's configuration away, as on a node that has just joined.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_conflist(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.mesh.node.conflist())?)
    }

    /// Writes the base network's configuration, without our plugin, as the component that owns it does.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_conflist(&self, version: &str) -> Result<()> {
        let file = self.mesh.node.conflist();
        std::fs::write(&file, self.base_conflist(version))
            .with_context(|| format!("write {}", file.display()))
    }

    /// The text of that configuration.
    pub fn base_conflist(&self, version: &str) -> String {
        let bridge = json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": self.mesh.node.dir().join("leases"),
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        json!({"cniVersion": version, "name": "mesh", "plugins": [bridge]}).to_string()
    }

    /// The addresses that are leased.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn leases(&self) -> Result<Vec<String>> {
        let dir = self.mesh.node.dir().join("leases/mesh");
        // It is not there before the first ADD.
        let Ok(files) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
        let names = files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.retain(|name| name.starts_with("10."));
        names.sort();
        Ok(names)
    }

    /// An agent that takes sidecars only.
    pub fn agent(&self) -> Launch<'_> {
        self.mesh.node.agent().env("POD_NAMESPACE", "istio-system")
    }

    /// An agent in ambient mode.
    pub fn ambient_agent(&self) -> Launch<'_> {
        self.mesh.agent()
    }

    /// The cluster.
    pub fn api(&self) -> &ApiServer {
        &self.mesh.node.api
    }

    /// Adds pods to the API that do not run yet.
    pub fn schedule<'a>(&self, pods: impl IntoIterator<Item = &'a PodSpec>) {
        for pod in pods {
            self.api().set_pod(pod.object());
        }
    }

    /// The kubelet tells the cluster that a pod runs; its process is seen on the node.
    pub(crate) fn runs(
        &self,
        pod: &PodSpec,
        addresses: &[IpAddr],
        netns: &Path,
        taken_up: &str,
    ) -> Result<()> {
        let pid = FIRST_PID + NEXT_PID.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/kubepods/burstable/pod{}/{pid:064x}", pod.uid);
        self.mesh.process(pid, netns, &cgroup, u64::from(pid))?;
        let status = status(addresses, taken_up, &now()?);
        self.api().change_object(Resource::Pods, &pod.namespace, &pod.name, |object| {
            object["status"] = status;
        });
        Ok(())
    }

    /// Everything in memory goes: the run directory, processes, paths of namespaces, and what the node's own namespace has.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn lose_memory(&self) -> Result<()> {
        let run_dir = self.mesh.node.run_dir();
        if run_dir.exists() {
            std::fs::remove_dir_all(&run_dir)?;
        }
        for link in std::fs::read_dir(self.netns_dir())? {
            std::fs::remove_file(link?.path())?;
        }
        for process in std::fs::read_dir(self.mesh.root().join("proc"))? {
            let process = process?;
            let pid = process.file_name().to_string_lossy().parse().unwrap_or(0);
            if pid >= FIRST_PID {
                std::fs::remove_dir_all(process.path())?;
            }
        }
        let host = &self.mesh.host;
        host.run(Command::new("nft").args(["flush", "ruleset"]))?;
        host.run(Command::new("ip").args(["link", "delete", "cni0"]))?;
        Ok(())
    }

    pub(crate) fn libcni(&self) -> Libcni<'_> {
        let node = &self.mesh.node;
        Libcni::new(vec![node.bin_target()], node.cache_dir(), &self.mesh.host)
    }

    /// Where the paths of pods' namespaces are.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.mesh.node.dir().join("netns")
    }

    /// The lists of the configuration directory that can be read, by name of the file.
    pub(crate) fn lists(&self) -> Vec<List> {
        let Ok(files) = std::fs::read_dir(self.mesh.node.net_dir()) else { return Vec::new() };
        let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "conflist"));
        files.sort();
        files.iter().filter_map(|file| List::read(file).ok()).collect()
    }

    /// Our entry in the first list.
    ///
    /// # Errors
    /// There is none.
    pub fn entry(&self) -> Result<Value> {
        self.mesh.node.entry()
    }
}
