#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

const NETWORK: &str =
    r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}OURS]}"#;

/// A node in a directory.
struct TestNode {
    _dir: tempfile::TempDir,
    node: NodeFiles,
}

impl TestNode {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let node = NodeFiles {
            net_dir: at("net.d"),
            bin_dirs: vec![at("bin")],
            run_dir: at("run"),
            etc: at("etc"),
            proc: at("proc"),
            sys: at("sys"),
            modules: at("modules"),
            run: at("run"),
        };
        for dir in [&node.net_dir, &node.bin_dirs[0], &node.run_dir] {
            std::fs::create_dir(dir).unwrap();
        }
        Self { _dir: dir, node }
    }

    fn healthy() -> Self {
        let node = Self::new();
        node.conflist("10-net.conflist", r#",{"type":"istio-cni"}"#);
        node.program(env!("CARGO_PKG_VERSION"));
        node.kubeconfig(3600);
        node
    }

    fn conflist(&self, name: &str, ours: &str) {
        std::fs::write(self.node.net_dir.join(name), NETWORK.replace("OURS", ours)).unwrap();
    }

    fn program(&self, version: &str) {
        let text = format!(
            "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}}'\necho 'CNI plugin istio-cni {version}' >&2\n"
        );
        let path = self.node.bin_dirs[0].join(PLUGIN);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Its token is good for so many seconds from now.
    fn kubeconfig(&self, seconds: i64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(r#"{{"exp":{}}}"#, now.saturating_add_signed(seconds));
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let path = self.node.run_dir.join(rundir::KUBECONFIG);
        std::fs::write(&path, format!("users:\n- user:\n    token: {token}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn look(&self) -> InstallationLook {
        look(&self.node, None)
    }
}

/// A fault, as it is injected into a node that is healthy.
type Inject = fn(&TestNode);

#[test]
fn each_fault_is_named_by_its_check_and_by_no_other() {
    assert_eq!(wrong(&TestNode::healthy().look()), Vec::<String>::new());
    assert_eq!(TestNode::healthy().look().state, ConfigState::Healthy);
    let faults: [(&str, Inject, &str, &str, ConfigState); 13] = [
        (
            "conf dir missing",
            |node| std::fs::remove_dir_all(&node.node.net_dir).unwrap(),
            "installation.conf-dir",
            "is not there",
            ConfigState::Missing,
        ),
        (
            "no conflist",
            |node| std::fs::remove_file(node.node.net_dir.join("10-net.conflist")).unwrap(),
            "installation.conflist",
            "no CNI configuration yet",
            ConfigState::Missing,
        ),
        (
            "stomped",
            |node| node.conflist("10-net.conflist", ""),
            "installation.conflist",
            "is not in it",
            ConfigState::Missing,
        ),
        (
            "sorted first",
            |node| node.conflist("05-other.conflist", ""),
            "installation.conflist",
            "05-other.conflist",
            ConfigState::Missing,
        ),
        (
            "broken",
            |node| std::fs::write(node.node.net_dir.join("10-net.conflist"), "{").unwrap(),
            "installation.conflist",
            "10-net.conflist",
            ConfigState::Invalid,
        ),
        (
            "not last",
            |node| node.conflist("10-net.conflist", r#",{"type":"istio-cni"},{"type":"portmap"}"#),
            "installation.conflist",
            "portmap comes behind",
            ConfigState::Invalid,
        ),
        (
            "twice",
            |node| node.conflist("10-net.conflist", r#",{"type":"istio-cni"},{"type":"istio-cni"}"#),
            "installation.conflist",
            "2 times",
            ConfigState::Invalid,
        ),
        (
            "truncated",
            |node| std::fs::write(node.node.bin_dirs[0].join(PLUGIN), "\x7fELF").unwrap(),
            "installation.plugin",
            "does not run",
            ConfigState::Error,
        ),
        (
            "program gone",
            |node| std::fs::remove_file(node.node.bin_dirs[0].join(PLUGIN)).unwrap(),
            "installation.plugin",
            "is not there",
            ConfigState::Error,
        ),
        (
            "other version",
            |node| node.program("0.0.1"),
            "installation.plugin",
            "of version 0.0.1",
            ConfigState::Healthy,
        ),
        (
            "kubeconfig gone",
            |node| std::fs::remove_file(node.node.run_dir.join(rundir::KUBECONFIG)).unwrap(),
            "installation.kubeconfig",
            "is not there",
            ConfigState::Error,
        ),
        (
            "token expired",
            |node| node.kubeconfig(-600),
            "installation.kubeconfig",
            "has expired 10 min ago",
            ConfigState::Error,
        ),
        ("token ends", |node| node.kubeconfig(60), "installation.kubeconfig", "s only", ConfigState::Healthy),
    ];
    for (name, inject, id, part, state) in faults {
        let node = TestNode::healthy();
        inject(&node);
        let found = node.look();
        let wrong = wrong(&found);
        let named = wrong.iter().filter(|text| text.starts_with(id) && text.contains(part)).count();
        assert_eq!(named, 1, "{name}: {wrong:?}");
        assert_eq!(wrong.len(), 1, "{name}: {wrong:?}");
        assert_eq!(found.state, state, "{name}");
    }
}

/// What is wrong, by id and text.
fn wrong(installation: &InstallationLook) -> Vec<String> {
    let wrong = installation.results.iter().filter(|result| result.state.is_wrong());
    wrong.map(|result| format!("{}: {}", result.id, result.text)).collect()
}

#[test]
fn a_program_of_other_content_than_the_image_is_found() {
    let node = TestNode::healthy();
    let source = tempfile::tempdir().unwrap();
    std::fs::copy(node.node.bin_dirs[0].join(PLUGIN), source.path().join(PLUGIN)).unwrap();
    assert_eq!(wrong(&look(&node.node, Some(source.path()))), Vec::<String>::new());
    std::fs::write(source.path().join(PLUGIN), "another").unwrap();
    let found = wrong(&look(&node.node, Some(source.path())));
    assert!(found.len() == 1 && found[0].contains("other content"), "{found:?}");
}
