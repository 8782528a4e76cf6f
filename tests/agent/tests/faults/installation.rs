//! The plugin's files, its configuration and the agent's places on the node.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use testkit::Node;
use testkit::apiserver::ApiServer;

use crate::scene::FaultyNode;

pub(crate) fn no_conf_dir() -> FaultyNode {
    FaultyNode::healthy().injected(|node| std::fs::remove_dir_all(node.mesh.node.net_dir()).unwrap())
}

/// The agent sees a file system of its own at the directory, with the other component's configuration.
fn with_small_conf_dir() -> FaultyNode {
    let node = FaultyNode::prepared();
    let dir = node.mesh.node.net_dir().display().to_string();
    let mount = format!(
        "mount -t tmpfs -o size=64k none {dir} && printf %s \"$0\" >{dir}/10-calico.conflist && exec \"$@\""
    );
    let conflist = Node::foreign_conflist();
    let node = node.ready(|agent| agent.behind(&["unshare", "--mount", "sh", "-c", &mount, conflist]));
    let pid = node.agents[0].pid().to_string();
    node.asked_behind(&["nsenter", "--mount", "--target", &pid])
}

pub(crate) fn read_only_conf_dir() -> FaultyNode {
    with_small_conf_dir().injected(|node| {
        let dir = node.mesh.node.net_dir().display().to_string();
        assert!(node.in_mounts(&["mount", "-o", "remount,ro", &dir]));
    })
}

pub(crate) fn full_conf_dir() -> FaultyNode {
    with_small_conf_dir().injected(|node| {
        let fill = format!("cat /dev/zero >{}/filler", node.mesh.node.net_dir().display());
        assert!(!node.in_mounts(&["sh", "-c", &fill]), "the disk has no end");
    })
}

pub(crate) fn broken_conflist() -> FaultyNode {
    let write = |node: &FaultyNode| std::fs::write(node.mesh.node.conflist(), "{").unwrap();
    FaultyNode::healthy().without_agent().injected(write)
}

/// Its owner has written it anew, and no agent puts the plugin in again.
pub(crate) fn stomped_conflist() -> FaultyNode {
    let write =
        |node: &FaultyNode| std::fs::write(node.mesh.node.conflist(), Node::foreign_conflist()).unwrap();
    FaultyNode::healthy().without_agent().injected(write)
}

pub(crate) fn file_that_sorts_first() -> FaultyNode {
    FaultyNode::healthy().injected(|node| {
        let first = node.mesh.node.net_dir().join("00-other.json");
        std::fs::write(first, r#"{"cniVersion":"1.0.0","name":"other","type":"bridge"}"#).unwrap();
    })
}

pub(crate) fn truncated_plugin() -> FaultyNode {
    FaultyNode::healthy().without_agent().injected(|node| {
        let path = node.mesh.node.plugin();
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    })
}

/// It answers as a plugin, and says to be another release.
pub(crate) fn plugin_of_another_version() -> FaultyNode {
    const PROGRAM: &str = "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\necho 'CNI plugin istio-cni 0.0.1' >&2\n";
    FaultyNode::healthy().without_agent().injected(|node| {
        let path = node.mesh.node.plugin();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    })
}

pub(crate) fn no_kubeconfig() -> FaultyNode {
    let remove = |node: &FaultyNode| std::fs::remove_file(node.mesh.node.kubeconfig()).unwrap();
    FaultyNode::healthy().without_agent().injected(remove)
}

/// The service account's token says that it has ended (`{"exp":1}`), and the API server takes it no more.
pub(crate) fn expired_token() -> FaultyNode {
    FaultyNode::healthy().injected(|node| {
        std::fs::write(node.mesh.node.account().join("token"), "e30.eyJleHAiOjF9.c2ln").unwrap();
    })
}

/// The kubeconfig has the authority of another cluster.
pub(crate) fn wrong_authority() -> FaultyNode {
    FaultyNode::healthy().injected(|node| {
        let other = tempfile::tempdir().unwrap();
        ApiServer::start().unwrap().write_service_account(other.path()).unwrap();
        std::fs::copy(other.path().join("ca.crt"), node.mesh.node.account().join("ca.crt")).unwrap();
    })
}

pub(crate) fn no_socket() -> FaultyNode {
    let remove = |node: &FaultyNode| std::fs::remove_file(node.mesh.node.log_socket()).unwrap();
    FaultyNode::healthy().without_agent().injected(remove)
}

pub(crate) fn second_agent() -> FaultyNode {
    let mut node = FaultyNode::healthy();
    let second = node.launch("two").env("HEALTH_PORT", "8001").env("MONITORING_PORT", "15015").start();
    node.agents.push(second.unwrap());
    node
}

/// The test listens at the port of metrics, on all addresses.
pub(crate) fn taken_port() -> FaultyNode {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    FaultyNode::prepared().with(listener).ready(|agent| agent.env("MONITORING_PORT", &port))
}

pub(crate) fn wrong_node_name() -> FaultyNode {
    FaultyNode::prepared().started(|agent| agent.env("NODE_NAME", "elsewhere"))
}
