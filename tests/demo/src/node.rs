//! A private node: namespaces that nothing else is in, and a folder with its files.
//!
//! ```text
//!   pod ── veth ──┐
//!   pod ── veth ── cni0 ─ [ node ] ─ uplink ── eth0 ─ [ world ]
//!   pod ── veth ──┘
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{TestNetns, wait_until_up};

use crate::backend::Backend;
use crate::expectations::{PARTNER, WORLD, WORLD_V6};

/// The network's name in the conflist.
pub(crate) const NETWORK: &str = "istio-cni-demo";
/// The conflist that the runtime uses: `bridge` writes it, the agent puts the plugin into it.
pub(crate) const CONFLIST: &str = "net.d/10-bridge.conflist";
/// The plugin alone, for an ADD that repairs.
pub(crate) const ALONE: &str = "istio-cni-alone.conflist";
/// The reference plugins of Debian's package `containernetworking-plugins`.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// The manifests, in the program: the demo runs from any folder.
const MANIFESTS: &[(&str, &str)] = &[
    ("shop_plain", include_str!("../manifests/shop_plain.yaml")),
    ("shop_web", include_str!("../manifests/shop_web.yaml")),
    ("shop_payments", include_str!("../manifests/shop_payments.yaml")),
    ("shop_audit", include_str!("../manifests/shop_audit.yaml")),
    ("shop_dual", include_str!("../manifests/shop_dual.yaml")),
    ("kube-system_dns", include_str!("../manifests/kube-system_dns.yaml")),
];

/// The node and the world around it. All of it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) host: TestNetns,
    pub(crate) world: TestNetns,
    pub(crate) backend: Backend,
    /// Of `cnictl` and `istio-cni`.
    programs: PathBuf,
    dir: TempDir,
}

/// What a call of `cnictl` gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) report: Value,
    /// Why it failed.
    pub(crate) problem: Option<String>,
}

impl Node {
    /// Makes the namespaces and the files. `cni0` comes with the first pod.
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub(crate) fn new(backend: Backend, programs: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("demo-")
            .tempdir()
            .context("make a folder for the node's files")?;
        let programs = programs.to_owned();
        let node = Self { host: TestNetns::new()?, world: TestNetns::new()?, backend, programs, dir };
        node.write_files()?;
        node.connect_world()?;
        Ok(node)
    }

    /// A file or folder of the node.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The manifest of a pod.
    pub(crate) fn manifest(&self, namespace: &str, name: &str) -> PathBuf {
        self.path(&format!("manifests/{namespace}_{name}.yaml"))
    }

    fn write_files(&self) -> Result<()> {
        for folder in ["manifests", "run", "leases", "results", "net.d", "bin", "image"] {
            std::fs::create_dir(self.path(folder)).with_context(|| format!("make folder {folder}"))?;
        }
        for (name, text) in MANIFESTS {
            self.write(&format!("manifests/{name}.yaml"), text)?;
        }
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.path("leases"),
                "ranges": [[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd22::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        });
        // As in the agent's image: a folder with the plugin and nothing else.
        std::fs::copy(self.program("istio-cni"), self.path("image/istio-cni")).context("copy istio-cni")?;
        self.write_conflist(CONFLIST, &[&bridge])
    }

    /// Writes the conflist that has the plugin alone, with the options that the agent gave it.
    ///
    /// # Errors
    /// The agent has not installed it.
    pub(crate) fn write_alone(&self) -> Result<()> {
        let installed: Value = serde_json::from_slice(&std::fs::read(self.path(CONFLIST))?)?;
        let plugins = installed["plugins"].as_array().context("the conflist has no plugins")?;
        let istio =
            plugins.iter().find(|plugin| plugin["type"] == "istio-cni").context("istio-cni is missing")?;
        self.write_conflist(ALONE, &[istio])
    }

    /// A program of ours.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    fn write_conflist(&self, name: &str, plugins: &[&Value]) -> Result<()> {
        let conf = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins});
        self.write(name, &serde_json::to_string_pretty(&conf)?)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.path(name), text).with_context(|| format!("write {name}"))
    }

    fn connect_world(&self) -> Result<()> {
        for namespace in [&self.host, &self.world] {
            prepare(namespace)?;
        }
        self.host.ip(&[
            format!("link add uplink type veth peer name eth0 netns {}", self.world.path().display()),
            "link set uplink up".to_owned(),
            "address add 203.0.113.1/24 dev uplink".to_owned(),
            "address add 2001:db8::1/64 dev uplink nodad".to_owned(),
            format!("route add {PARTNER} via {WORLD}"),
        ])?;
        self.world.ip(&[
            "link set eth0 up".to_owned(),
            format!("address add {WORLD}/24 dev eth0"),
            format!("address add {WORLD_V6}/64 dev eth0 nodad"),
            format!("address add {PARTNER}/32 dev lo"),
            "route add default via 203.0.113.1".to_owned(),
            "route add default via 2001:db8::1".to_owned(),
        ])?;
        wait_until_up(&self.host, "uplink", true)?;
        wait_until_up(&self.world, "eth0", true)
    }

    /// Runs `cnictl` in the node's namespace, with JSON as its answer.
    ///
    /// # Errors
    /// It cannot be started, or its answer is no JSON.
    pub(crate) fn cnictl(&self, arguments: &[String]) -> Result<Answer> {
        let mut command = Command::new(self.program("cnictl"));
        command.args(arguments).args(["--output", "json"]);
        // Nothing of the caller's environment may decide what is captured.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let output = self.host.output(&mut command)?;
        let stderr = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ").to_owned();
        let problem = (!output.status.success()).then_some(stderr);
        let report = match (serde_json::from_slice(&output.stdout), &problem) {
            (Ok(report), _) => report,
            (Err(_), Some(problem)) => bail!("cnictl {}: {problem}", arguments.join(" ")),
            (Err(error), None) => bail!("cnictl {}: its answer is no JSON: {error}", arguments.join(" ")),
        };
        Ok(Answer { report, problem })
    }

    /// The arguments of a verb over the chain `conflist`; results are kept in the folder `results`.
    pub(crate) fn chain(&self, verb: &str, conflist: &str, manifest: &Path, results: &str) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let cni_path = format!("{}:{REFERENCE_PLUGINS}", self.path("bin").display());
        let words = [
            verb.to_owned(),
            "--conf".to_owned(),
            text(self.path(conflist)),
            "--pod".to_owned(),
            text(manifest.to_owned()),
            "--cni-path".to_owned(),
            cni_path,
            "--cache-dir".to_owned(),
            text(self.path(results)),
        ];
        words.into()
    }

    /// What the plugin's log says about a pod, last line first.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn log_of(&self, pod: &str) -> Result<Vec<Value>> {
        let file = self.path("run/istio-cni.log");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line["pod"] == pod).collect())
    }

    /// The interfaces of the node's namespace.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn links(&self) -> Result<Vec<String>> {
        links(|command| self.host.run(command))
    }

    /// Files that the plugins keep for pods that exist: leases of host-local, results of ADD.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub(crate) fn kept_files(&self) -> Result<Vec<String>> {
        let mut kept = Vec::new();
        for folder in [format!("leases/{NETWORK}"), "results".to_owned(), "repair".to_owned()] {
            let Ok(files) = std::fs::read_dir(self.path(&folder)) else { continue };
            for file in files {
                let name = file?.file_name().to_string_lossy().into_owned();
                // host-local's own: its lock, and where to continue
                if name != "lock" && !name.starts_with("last_reserved_ip.") {
                    kept.push(format!("{folder}/{name}"));
                }
            }
        }
        Ok(kept)
    }

    /// Where the node's files are.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }
}

/// Interfaces that come later in a namespace carry IPv6 at once: addresses are given here, so nobody has to ask for a router, or
/// whether somebody else has the address (which takes a second, and drops packets).
///
/// # Errors
/// A setting is missing: the kernel has no IPv6.
pub(crate) fn prepare(namespace: &TestNetns) -> Result<()> {
    for setting in ["accept_ra", "accept_dad", "dad_transmits"] {
        namespace.set_sysctl(&format!("net.ipv6.conf.default.{setting}"), "0")?;
    }
    Ok(())
}

/// Names of interfaces, by `ip` as `run` runs it.
///
/// # Errors
/// `ip` fails, or prints no JSON.
pub(crate) fn links(run: impl FnOnce(&mut Command) -> Result<String>) -> Result<Vec<String>> {
    let text = run(Command::new("ip").args(["-json", "link", "show"]))?;
    let list: Value = serde_json::from_str(&text).context("ip printed no JSON")?;
    let names = list.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}
