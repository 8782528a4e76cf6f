//! A node as directories, and an installer that runs on it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use cni::conflist::{Document, PluginEntry};
use install::{
    Handle, InstallEvent, InstallMode, InstallOptions, Installer, KubeconfigOptions, Observer, ProgramAtEnd,
};
use testkit::PATIENCE;

/// A program that answers VERSION; `mark` tells one from another.
pub(crate) fn plugin(mark: &str) -> String {
    format!(
        "#!/bin/sh\n# {mark}\necho '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}}'\n"
    )
}

pub(crate) const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "calico", "datastore_type": "kubernetes", "mtu": 1440, "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}"#;

/// A node's directories.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["net.d", "bin", "image", "run", "account"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        node.program("image/istio-cni", &plugin("one"));
        fs::write(node.path("account/token"), "eyJhbGciOiJub25lIn0.e30.first").unwrap();
        fs::write(node.path("account/ca.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        node
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn net(&self, name: &str) -> PathBuf {
        self.path("net.d").join(name)
    }

    pub(crate) fn program(&self, name: &str, text: &str) {
        let path = self.path(name);
        let temp = path.with_file_name("temp");
        fs::write(&temp, text).unwrap();
        fs::set_permissions(&temp, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(temp, path).unwrap();
    }

    /// As a careful component writes it: aside, then renamed.
    pub(crate) fn replace(&self, name: &str, text: &str) {
        let temp = self.net("foreign-temp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, self.net(name)).unwrap();
    }

    pub(crate) fn options(&self) -> InstallOptions {
        InstallOptions {
            net_dir: self.path("net.d"),
            conf_name: None,
            mode: InstallMode::Chained,
            group_read: false,
            bin_source: self.path("image"),
            bin_targets: vec![self.path("bin")],
            run_dir: self.path("run"),
            kubeconfig: Some(KubeconfigOptions {
                protocol: "https".into(),
                host: "10.96.0.1".into(),
                port: "443".into(),
                ca_file: None,
                skip_tls_verify: false,
                service_account_dir: self.path("account"),
                mode: 0o600,
            }),
            entry: entry(),
            program_at_end: ProgramAtEnd::StaysWhileNamed {
                cache: self.path("cni"),
                on_node: self.path("cni"),
                sees_node: true,
            },
        }
    }

    pub(crate) fn start(&self) -> Running {
        Running::new(self.options())
    }

    /// Names in the directory of configurations.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.path("net.d"))
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.net(name)).unwrap()
    }

    pub(crate) fn document(&self, name: &str) -> Document {
        Document::parse(self.read(name).as_bytes()).unwrap()
    }

    pub(crate) fn has_entry(&self, name: &str) -> bool {
        let document = fs::read(self.net(name)).ok().and_then(|text| Document::parse(&text).ok());
        document.is_some_and(|document| document.holds(&entry()))
    }

    /// Every file below the node with content, mode and owner.
    pub(crate) fn snapshot(&self, folder: &str) -> Vec<(String, Vec<u8>, u32, u32, u32)> {
        let names = names(&self.path(folder)).into_iter();
        let names = names.filter(|name| self.path(folder).join(name).is_file());
        let files = names.map(|name| {
            let path = self.path(folder).join(&name);
            let metadata = fs::metadata(&path).unwrap();
            (name, fs::read(path).unwrap(), metadata.mode(), metadata.uid(), metadata.gid())
        });
        files.collect()
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The options of the reference files.
pub(crate) fn entry() -> PluginEntry {
    PluginEntry {
        plugin_log_level: "debug".into(),
        cni_agent_run_dir: "/path/to/kubeconfig".into(),
        pod_namespace: "my-namespace".into(),
        native_nftables: Some(false),
        ..PluginEntry::default()
    }
}

/// What an installer told, as texts; readiness as `READY` and `NOT READY: ...`.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<String>>>);

impl Observer for Told {
    fn event(&mut self, event: &InstallEvent<'_>) {
        let text = match event {
            InstallEvent::Ready { .. } => "READY".to_owned(),
            InstallEvent::NotReady { reason } => format!("NOT READY: {reason}"),
            InstallEvent::Overwritten { component, .. } => format!("OVERWRITTEN by {component}"),
            InstallEvent::Failed { error, .. } => format!("FAILED {:?}: {event}", error.result()),
            event => event.to_string(),
        };
        self.0.lock().unwrap().push(text);
    }
}

impl Told {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.all().iter().filter(|text| text.contains(part)).count()
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.count(part) > 0
    }

    pub(crate) fn is_ready(&self) -> bool {
        let all = self.all();
        let last = all.iter().rfind(|text| *text == "READY" || text.starts_with("NOT READY"));
        last.is_some_and(|text| text == "READY")
    }
}

/// An installer on its thread.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) told: Told,
    thread: Option<JoinHandle<Installer>>,
}

impl Running {
    pub(crate) fn new(options: InstallOptions) -> Self {
        let told = Told::default();
        let mut installer = Installer::new(options, Box::new(told.clone())).unwrap();
        let handle = installer.handle();
        let thread = std::thread::spawn(move || {
            installer.run();
            installer
        });
        Self { handle, told, thread: Some(thread) }
    }

    /// Waits; on failure shows what was told.
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        testkit::until(what, PATIENCE, holds, || self.told.all().join("\n")).unwrap();
    }

    pub(crate) fn until_ready(&self) {
        self.until("ready", || self.told.is_ready());
    }

    pub(crate) fn until_told(&self, part: &str) {
        self.until(part, || self.told.has(part));
    }

    pub(crate) fn stop(mut self) -> Installer {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
