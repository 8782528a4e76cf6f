//! The CNI plugin under test, called as a container runtime calls it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testkit::{Pod, PodObject};

use crate::bootstrap::Mode;
use crate::user::User;

const PLUGIN: &str = "istio-cni";
const NAMESPACE: &str = "default";
const NAME: &str = "app";

/// What holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables.
    Nftables,
    /// iptables and ip6tables.
    Iptables,
}

/// What a pod's manifest says about its capture; everything else is as the injector leaves it.
#[derive(Debug, Clone)]
pub struct Manifest {
    mode: Mode,
    annotations: BTreeMap<String, String>,
    proxy_env: BTreeMap<String, String>,
}

/// The plugin.
#[derive(Debug)]
pub struct Plugin {
    program: PathBuf,
}

impl Manifest {
    /// A pod that is captured and says no more about how than the mode.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, annotations: BTreeMap::new(), proxy_env: BTreeMap::new() }
            .annotate("sidecar.istio.io/status", "{}")
            .annotate("sidecar.istio.io/interceptionMode", mode.annotation())
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of the proxy's container.
    #[must_use]
    pub fn proxy_env(mut self, name: &str, value: &str) -> Self {
        self.proxy_env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn to_json(&self) -> Value {
        let proxy = User::proxy(self.mode);
        let env: Vec<Value> =
            self.proxy_env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        PodObject::named(NAME)
            .in_namespace(NAMESPACE)
            .uid("1")
            .sidecar()
            .with("/metadata/annotations", json!(self.annotations))
            .with("/spec/containers/1/env", env)
            .with(
                "/spec/containers/1/securityContext",
                json!({"runAsUser": proxy.uid, "runAsGroup": proxy.gid}),
            )
            .json()
    }
}

impl Plugin {
    /// The plugin under test, see [`testkit::programs`].
    ///
    /// # Errors
    /// When it is not there.
    pub fn find() -> Result<Self> {
        let program = testkit::programs().join(PLUGIN);
        ensure!(program.is_file(), "no plugin at {} (see ISTIO_CNI_BIN_DIR)", program.display());
        Ok(Self { program })
    }

    /// Calls `ADD` for the pod, with its facts from a directory that has the manifest.
    ///
    /// # Errors
    /// When the plugin refuses; the message has its error and its log.
    pub fn add(&self, pod: &Pod, manifest: &Manifest, backend: Backend) -> Result<()> {
        let dir = tempfile::Builder::new().prefix("capture-").tempdir()?;
        let (manifests, run_dir) = (dir.path().join("manifests"), dir.path().join("run"));
        fs::create_dir(&manifests)?;
        fs::create_dir(&run_dir)?;
        fs::write(manifests.join(format!("{NAMESPACE}_{NAME}.json")), manifest.to_json().to_string())?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "mesh",
            "type": PLUGIN,
            "cni_agent_run_dir": run_dir,
            "pod_source": {"manifests": manifests},
            "native_nftables": backend == Backend::Nftables,
            "prevResult": previous_result(pod),
        });
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "envoy-test")
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.program.parent().unwrap_or(Path::new("/")))
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={NAME};K8S_POD_UID=1"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that stops early closes its end; what it says about that is in the output.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ADD failed ({}): {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// What the plugin before ours in a chain would have answered.
fn previous_result(pod: &Pod) -> Value {
    let interfaces: Vec<Value> = pod
        .interfaces()
        .iter()
        .map(|interface| json!({"name": interface.name, "sandbox": pod.path()}))
        .collect();
    let ips: Vec<Value> = pod
        .ips()
        .iter()
        .map(|ip| {
            let bits = if matches!(ip, IpAddr::V4(_)) { 24 } else { 64 };
            json!({"address": format!("{ip}/{bits}"), "interface": 0})
        })
        .collect();
    json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips})
}
