//! The container runtime: whether one is here, and whether its directories are ours.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use checks::{CheckFinding, CheckResult, catalogue};

use crate::{NodeFiles, installation, timed};

/// Where runtimes listen, below `/run`.
const SOCKETS: [(&str, &str); 4] = [
    ("containerd", "containerd/containerd.sock"),
    ("CRI-O", "crio/crio.sock"),
    ("containerd of k3s", "k3s/containerd/containerd.sock"),
    ("cri-dockerd", "cri-dockerd.sock"),
];
/// Files with runtimes' own configuration, below `/etc`, and the keys of their directories.
const FILES: [&str; 2] = ["containerd/config.toml", "crio/crio.conf"];
const CRIO_DROP_INS: &str = "crio/crio.conf.d";
const MAX_DROP_INS: usize = 64;
/// Largest configuration that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a runtime's configuration says, as far as it concerns the plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RuntimeOptions {
    conf_dirs: Vec<String>,
    bin_dirs: Vec<String>,
    sandboxes: Vec<&'static str>,
}

/// All checks of the runtime.
pub fn look(node: &NodeFiles) -> Vec<CheckResult> {
    let options = read(&node.etc);
    vec![
        timed(&catalogue::RUNTIME, || sockets(&node.run)),
        timed(&catalogue::RUNTIME_DIRS, || directories(options.as_ref(), node)),
        timed(&catalogue::SECURITY_MODULE, || security_module(&node.sys)),
        timed(&catalogue::BIN_DIR, || installation::bin_dir(node)),
        timed(&catalogue::SANDBOXES, || sandboxes(options.as_ref())),
    ]
}

fn sockets(run: &Path) -> CheckFinding {
    let there = SOCKETS.iter().filter(|(_, path)| run.join(path).exists());
    let (mut answer, mut silent) = (Vec::new(), Vec::new());
    for (name, path) in there {
        match UnixStream::connect(run.join(path)) {
            Ok(_) => answer.push(*name),
            Err(error) => silent.push(format!("{name} ({error})")),
        }
    }
    match (answer.is_empty(), silent.is_empty()) {
        (false, _) => CheckFinding::ok(format!("{} listens", answer.join(", "))),
        (true, false) => CheckFinding::failed(
            format!("the container runtime does not listen: {}", silent.join(", ")),
            "look at the runtime's service (systemctl status containerd)",
        ),
        (true, true) => CheckFinding::unknown("no socket of a container runtime that is known is here"),
    }
}

fn directories(options: Option<&RuntimeOptions>, node: &NodeFiles) -> CheckFinding {
    let Some(options) = options else {
        return CheckFinding::skipped("no configuration of a runtime is here, so its defaults count");
    };
    let other = |dirs: &[String], ours: &mut dyn Iterator<Item = &Path>| {
        let ours: Vec<&Path> = ours.collect();
        let is_ours = |dir: &String| ours.iter().any(|ours| is_same(Path::new(dir), ours));
        (!dirs.is_empty() && !dirs.iter().any(is_ours)).then(|| dirs.join(", "))
    };
    let conf = other(&options.conf_dirs, &mut std::iter::once(node.net_dir.as_path()));
    let bin = other(&options.bin_dirs, &mut node.bin_dirs.iter().map(AsRef::as_ref));
    let advice = "set cniConfDir and cniBinDir of the chart to the runtime's directories";
    match (conf, bin) {
        (Some(conf), _) => {
            let text =
                format!("the runtime reads configurations from {conf}, not from {}", node.net_dir.display());
            CheckFinding::failed(text, advice)
        }
        (None, Some(bin)) => CheckFinding::failed(
            format!("the runtime starts plugins from {bin}, where ours is not placed"),
            advice,
        ),
        (None, None) => CheckFinding::ok("the runtime's directories are those where the plugin is"),
    }
}

/// In the agent's container the node's directories are below another one; links lead to the same place.
fn is_same(runtime: &Path, ours: &Path) -> bool {
    let trimmed = Path::new(runtime.to_str().map_or("", |text| text.trim_start_matches('/')));
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    runtime.components().eq(ours.components())
        || ours.strip_prefix("/host").is_ok_and(|ours| ours.components().eq(trimmed.components()))
        || real(runtime).is_some_and(|runtime| real(ours) == Some(runtime))
}

fn read(etc: &Path) -> Option<RuntimeOptions> {
    let mut paths: Vec<_> = FILES.iter().map(|file| etc.join(file)).collect();
    let drop_ins = std::fs::read_dir(etc.join(CRIO_DROP_INS)).into_iter().flatten().flatten();
    let mut drop_ins: Vec<_> = drop_ins.map(|entry| entry.path()).take(MAX_DROP_INS).collect();
    drop_ins.sort();
    paths.extend(drop_ins);
    let texts: Vec<String> = paths.iter().filter_map(|path| read_text(path)).collect();
    (!texts.is_empty()).then(|| parse(&texts.join("\n")))
}

fn read_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The keys that matter, whichever table of TOML they are in: their names are nobody else's.
fn parse(text: &str) -> RuntimeOptions {
    let mut options = RuntimeOptions::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.split('#').next().unwrap_or_default();
        for (word, name) in [("runsc", "gVisor"), ("kata", "Kata Containers")] {
            if line.contains(word) && !options.sandboxes.contains(&name) {
                options.sandboxes.push(name);
            }
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let mut value = value.to_owned();
        while value.contains('[') && !value.contains(']') {
            let Some(more) = lines.next() else { break };
            value.push_str(more);
        }
        let mut quoted =
            value.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/')).map(str::to_owned);
        match key.trim() {
            "conf_dir" | "network_dir" => options.conf_dirs = quoted.next().into_iter().collect(),
            "bin_dir" => options.bin_dirs = quoted.next().into_iter().collect(),
            "bin_dirs" | "plugin_dirs" => options.bin_dirs = quoted.collect(),
            _ => {}
        }
    }
    options
}

fn security_module(sys: &Path) -> CheckFinding {
    let is = |path: &str, word: &str| {
        std::fs::read_to_string(sys.join(path)).is_ok_and(|text| text.trim() == word)
    };
    if is("fs/selinux/enforce", "1") {
        CheckFinding::ok("SELinux enforces")
    } else if sys.join("fs/selinux/enforce").exists() {
        CheckFinding::ok("SELinux only reports")
    } else if is("module/apparmor/parameters/enabled", "Y") {
        CheckFinding::ok("AppArmor is on; it does not confine the agent unless a profile is set")
    } else {
        CheckFinding::ok("neither SELinux nor AppArmor is on")
    }
}

fn sandboxes(options: Option<&RuntimeOptions>) -> CheckFinding {
    match options.map(|options| options.sandboxes.join(", ")) {
        None => CheckFinding::skipped("no configuration of a runtime is here"),
        Some(names) if names.is_empty() => {
            CheckFinding::ok("the runtime has no sandbox with a network stack of its own")
        }
        Some(names) => CheckFinding::ok(format!(
            "the runtime has {names}: pods of it have a network stack of their own, and are refused"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::path::PathBuf;

    use checks::CheckState;

    use super::*;

    const CONTAINERD: &str = r#"
version = 3
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/x'] # single quotes are not read, so nothing is said
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
  max_conf_num = 1
[plugins.x.runtimes.runsc]
  runtime_type = "io.containerd.runsc.v1"
"#;
    const CRIO: &str = "[crio.network]\nnetwork_dir = \"/etc/cni/other/\"\nplugin_dirs = [\n\t\"/opt/cni/bin/\",\n\t\"/usr/libexec/cni\",\n]\n";

    fn node() -> NodeFiles {
        let none = PathBuf::from("/none");
        NodeFiles {
            net_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            run_dir: none.clone(),
            etc: none.clone(),
            proc: none.clone(),
            sys: none.clone(),
            modules: none.clone(),
            run: none,
        }
    }

    #[test]
    fn a_runtimes_directories_are_compared_with_ours() {
        let found = parse(CONTAINERD);
        assert_eq!((found.conf_dirs.len(), found.sandboxes.as_slice()), (1, &["gVisor"][..]));
        let crio = parse(CRIO);
        assert_eq!(crio.bin_dirs, ["/opt/cni/bin/", "/usr/libexec/cni"]);
        for (options, state, part) in [
            (&found, CheckState::Ok, "are those"),
            (&crio, CheckState::Failed, "/etc/cni/other/"),
            (
                &RuntimeOptions { bin_dirs: vec!["/x".into()], ..RuntimeOptions::default() },
                CheckState::Failed,
                "/x",
            ),
            (&RuntimeOptions::default(), CheckState::Ok, "are those"),
        ] {
            let finding = directories(Some(options), &node());
            assert_eq!(finding.state, state, "{finding}");
            assert!(finding.text.contains(part), "{finding}");
        }
        let mounted = NodeFiles {
            net_dir: "/host/etc/cni/net.d".into(),
            bin_dirs: vec!["/host/opt/cni/bin".into()],
            ..node()
        };
        assert_eq!(directories(Some(&found), &mounted).state, CheckState::Ok);
        assert_eq!(directories(None, &node()).state, CheckState::Skipped);
    }

    #[test]
    fn a_runtime_that_does_not_listen_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sockets(dir.path()).state, CheckState::Unknown);
        std::fs::create_dir(dir.path().join("containerd")).unwrap();
        let path = dir.path().join("containerd/containerd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(sockets(dir.path()).state, CheckState::Ok);
        drop(listener);
        assert_eq!(sockets(dir.path()).state, CheckState::Failed);
    }
}
