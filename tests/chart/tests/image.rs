//! The image: what is in it, and that its programs run with nothing else, under the rights that the chart gives. As root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use chart::{Objects, render_set, root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Every file of the image and its mode.
const FILES: &[(&str, u32)] = &[
    ("opt/cni/bin/istio-cni", 0o755),
    ("usr/local/bin/cnictl", 0o755),
    ("usr/local/bin/install-cni", 0o755),
    ("usr/local/bin/istio-iptables", 0o755),
    ("usr/share/doc/install-cni/LICENSE", 0o644),
    ("usr/share/doc/install-cni/sbom.cdx.json", 0o644),
];

const SBOM: &str = "{\"bomFormat\": \"CycloneDX\"}";

/// The image, unpacked.
struct Image {
    dir: TempDir,
    config: Value,
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [archive, parts, rootfs] = ["a.tar", "parts", "rootfs"].map(|name| dir.path().join(name));
        build(dir.path(), &archive);
        unpack(&archive, &parts);
        let read =
            |name: &str| -> Value { serde_json::from_slice(&fs::read(parts.join(name)).unwrap()).unwrap() };
        let manifest = read("manifest.json");
        assert_eq!(
            manifest[0]["RepoTags"],
            json!([concat!("localhost/install-cni:", env!("CARGO_PKG_VERSION"))])
        );
        for layer in manifest[0]["Layers"].as_array().unwrap() {
            unpack(&parts.join(layer.as_str().unwrap()), &rootfs);
        }
        let config = read(manifest[0]["Config"].as_str().unwrap());
        Self { dir, config }
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }
}

/// Builds the image into `archive` as `make image` does.
fn build(dir: &Path, archive: &Path) {
    let sbom = dir.join("sbom.json");
    fs::write(&sbom, SBOM).unwrap();
    let mut script = Command::new(root().join("scripts/build-image"));
    succeed(script.arg(testkit::programs()).args([&sbom, archive]));
}

/// Built once for the tests that run at the same time; gone with the last of them.
fn image() -> Arc<Image> {
    static SHARED: Mutex<Weak<Image>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let image = Arc::new(Image::new());
        *shared = Arc::downgrade(&image);
        image
    })
}

fn unpack(archive: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    succeed(Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(target));
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Files below `dir`, relative to it, with their modes.
fn list(dir: &Path, below: &Path, found: &mut BTreeMap<String, u32>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{}", path.display());
        if metadata.is_dir() {
            list(dir, &path, found);
        } else {
            assert!(metadata.is_file(), "{} is no regular file", path.display());
            let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            found.insert(name, metadata.permissions().mode() & 0o7777);
        }
    }
}

/// What an executable's header says: its machine, and whether it asks for a dynamic loader.
fn read_elf(path: &Path) -> (u16, bool) {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[..6], *b"\x7fELF\x02\x01", "{} is no 64-bit little-endian ELF file", path.display());
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let headers = usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (usize::from(u16_at(54)), usize::from(u16_at(56)));
    assert!(count > 0);
    (u16_at(18), (0..count).any(|n| u32_at(headers + n * size) == PT_INTERP))
}

#[test]
fn the_image_has_these_files_and_no_others() {
    let image = image();
    let mut found = BTreeMap::new();
    list(&image.rootfs(), &image.rootfs(), &mut found);
    let wanted: BTreeMap<String, u32> =
        FILES.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect();
    assert_eq!(found, wanted);
    assert_eq!(
        fs::read_to_string(image.rootfs().join("usr/share/doc/install-cni/sbom.cdx.json")).unwrap(),
        SBOM
    );
}

#[test]
fn its_programs_are_static_and_for_this_machine() {
    let image = image();
    let (own, _) = read_elf(&std::env::current_exe().unwrap());
    for (name, _) in FILES.iter().filter(|(_, mode)| *mode == 0o755) {
        assert_eq!(read_elf(&image.rootfs().join(name)), (own, false), "{name}");
    }
}

#[test]
fn its_settings_are_those_of_the_chart() {
    let image = image();
    let config = &image.config["config"];
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/install-cni"]));
    assert_eq!(config["Cmd"], Value::Null);
    assert_eq!(config["User"], "0:0");
    assert_eq!(config["Env"], json!(["PATH=/usr/local/bin"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
    assert_eq!(image.config["os"], "linux");
    let objects = render_set(&[]).unwrap();
    let ports = config["ExposedPorts"].as_object().unwrap();
    assert_eq!(ports.len(), 2);
    for port in [
        &objects.container()["ports"][0]["containerPort"],
        &objects.container()["readinessProbe"]["httpGet"]["port"],
    ] {
        assert!(ports.contains_key(&format!("{port}/tcp")), "{port}");
    }
}

#[test]
fn the_same_input_gives_the_same_image() {
    let (image, dir) = (image(), tempfile::tempdir().unwrap());
    build(dir.path(), &dir.path().join("a.tar"));
    let [first, second] = [image.dir.path(), dir.path()].map(|dir| fs::read(dir.join("a.tar")).unwrap());
    assert!(first == second);
}

/// A container of the image as the kubelet would start the chart's: its capabilities, mounts and read-only root.
fn write_bundle(dir: &Path, image: &Image, objects: &Objects, arguments: &[&str], variables: &[&str]) {
    let context = &objects.container()["securityContext"];
    let capabilities: Vec<String> = context["capabilities"]["add"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| format!("CAP_{}", name.as_str().unwrap()))
        .collect();
    let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
    for (n, mount) in objects.container()["volumeMounts"].as_array().unwrap().iter().enumerate() {
        let source = dir.join(format!("volume{n}"));
        fs::create_dir(&source).unwrap();
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        mounts
            .push(json!({"destination": mount["mountPath"], "source": source, "options": ["rbind", access]}));
    }
    let environment: Vec<&str> = image.config["config"]["Env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable.as_str().unwrap())
        .chain(variables.iter().copied())
        .collect();
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": arguments,
            "env": environment,
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": dir.join("rootfs"), "readonly": context["readOnlyRootFilesystem"]},
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn its_programs_run_with_the_rights_that_the_chart_gives() {
    let image = image();
    for values in [&[][..], &["repair.enabled=false"], &["ambient.enabled=true"]] {
        let objects = render_set(values).unwrap();
        let agent = objects.container()["command"][0].as_str().unwrap();
        for (n, (arguments, variables, wanted)) in [
            (&[agent, "--help"][..], &[][..], ""),
            (&["cnictl", "--version"], &[], env!("CARGO_PKG_VERSION")),
            (&["istio-iptables", "--help"], &[], "Usage"),
            (&["/opt/cni/bin/istio-cni"], &["CNI_COMMAND=VERSION"], "supportedVersions"),
        ]
        .into_iter()
        .enumerate()
        {
            let dir = tempfile::tempdir().unwrap();
            // A copy: runc makes the folders that are mounted onto.
            succeed(Command::new("cp").arg("-a").arg(image.rootfs()).arg(dir.path()));
            write_bundle(dir.path(), &image, &objects, arguments, variables);
            let name = format!("image-{}-{}-{n}", std::process::id(), values.len());
            let mut runc = Command::new("runc");
            runc.arg("--root")
                .arg(dir.path().join("state"))
                .args(["run", "--bundle"])
                .arg(dir.path())
                .arg(&name);
            let output = String::from_utf8(succeed(&mut runc).stdout).unwrap();
            assert!(output.contains(wanted), "{values:?} {arguments:?}: {output}");
        }
    }
}

/// A container that runs; it ends when dropped.
struct Container<'a> {
    dir: &'a Path,
    name: String,
}

impl Container<'_> {
    fn runc(&self, words: &[&str]) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.dir.join("state")).args(words);
        runc
    }

    /// As `kubectl exec` does: with the container's own variables.
    fn exec(&self, words: &[&str]) -> Output {
        self.runc(&["exec", &self.name]).args(words).output().unwrap()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.name]).output();
    }
}

/// The node's directories are elsewhere in the agent's container, and cnictl finds them there.
#[test]
fn cnictl_tells_the_truth_in_the_agents_container() {
    const CONFLIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [{"type": "calico"}]}"#;
    let (image, dir) = (image(), tempfile::tempdir().unwrap());
    let objects = render_set(&["agent.podSource=manifests:/etc/pods"]).unwrap();
    succeed(Command::new("cp").arg("-a").arg(image.rootfs()).arg(dir.path()));
    let variables = ["POD_SOURCE=manifests:/etc/pods", "CLEANUP_ON_EXIT=never", "POD_NAMESPACE=istio-system"];
    write_bundle(dir.path(), &image, &objects, &["install-cni"], &variables);
    let mounts = objects.container()["volumeMounts"].as_array().unwrap();
    let volume = mounts.iter().position(|mount| mount["mountPath"] == "/host/etc/cni/net.d").unwrap();
    fs::write(dir.path().join(format!("volume{volume}/10-calico.conflist")), CONFLIST).unwrap();
    let container = Container { dir: dir.path(), name: format!("status-{}", std::process::id()) };
    let log = fs::File::create(dir.path().join("agent.log")).unwrap();
    let mut run = container.runc(&["run", "--detach", "--bundle"]);
    run.arg(dir.path()).arg(&container.name).stdout(log.try_clone().unwrap()).stderr(log);
    assert!(run.status().unwrap().success());
    let output = testkit::eventually("cnictl finds the node well", 2 * testkit::PATIENCE, || {
        let output = container.exec(&["cnictl", "status"]);
        let log = fs::read_to_string(dir.path().join("agent.log"))?;
        anyhow::ensure!(output.status.success(), "{output:?}\n{log}");
        Ok(output)
    });
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [
        "/host/etc/cni/net.d/10-calico.conflist (chained)",
        "k8s-pod-network: calico, istio-cni",
        "/host/opt/cni/bin/istio-cni ",
        "pid 1, ready",
        "healthy: the plugin is installed and the agent answers\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // What the runtime no longer uses is a problem here, too.
    let first = r#"{"cniVersion": "1.0.0", "name": "first", "type": "bridge"}"#;
    fs::write(dir.path().join(format!("volume{volume}/05-first.json")), first).unwrap();
    let output = container.exec(&["cnictl", "status"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && text.contains("05-first.json"), "{output:?}");
}
