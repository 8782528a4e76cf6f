//! A chain of a reference plugin and ours, in namespaces that stand for a node and a pod.

use std::process::Command;

use serde_json::{Value, json};
use testkit::TestNetns;

use crate::{Files, Run, cni_path, row};

/// A node: its namespace, its files, a pod's namespace.
pub(crate) struct Node {
    pub(crate) host: TestNetns,
    pod: TestNetns,
    pub(crate) files: Files,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node =
            Self { host: TestNetns::new().unwrap(), pod: TestNetns::new().unwrap(), files: Files::new() };
        for dir in ["manifests", "run", "leases"] {
            std::fs::create_dir(node.files.path(dir)).unwrap();
        }
        node.files.write("manifests/shop_web.yaml", crate::WEB);
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "ptp", "ipam": {
                "type": "host-local", "dataDir": node.files.path("leases"),
                "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            }},
            {"type": "istio-cni", "native_nftables": true, "cni_agent_run_dir": node.files.path("run"),
             "pod_source": {"manifests": node.files.path("manifests")}, "facts_timeout": "1s"},
        ]});
        node.files.write("net.conflist", &conf.to_string());
        node
    }

    fn run(&self, verb: &str, more: &str) -> Run {
        let path = cni_path(testkit::programs());
        let line = format!("{verb} --conf @net.conflist --pod @web.yaml --cni-path {path} {more}");
        Run::of(&self.host.output(&mut self.files.command(&line)).unwrap())
    }

    fn add(&self, more: &str) -> Run {
        self.run("add", &format!("--netns {} {more}", self.pod.path().display()))
    }

    fn links(&self) -> String {
        self.pod.run(Command::new("ip").args(["-o", "link"])).unwrap()
    }

    /// Addresses that host-local has given away.
    pub(crate) fn leases(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.files.path("leases/net")).into_iter().flatten();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.88.")).collect()
    }
}

#[test]
fn a_pod_is_attached_checked_and_detached() {
    let node = Node::new();
    node.pod.run(Command::new("ip").args(["link", "set", "lo", "down"])).unwrap();
    let run = node.add("-o json");
    assert!(
        node.links().contains("<LOOPBACK,UP,LOWER_UP>"),
        "lo is up, as runtimes leave it: {}",
        node.links()
    );
    let report: Value = serde_json::from_str(&run.ok()).unwrap();
    assert_eq!(report["result"]["ips"][0]["address"], "10.88.0.2/24", "{report}");
    for plugin in report["plugins"].as_array().unwrap() {
        assert!(plugin["duration_ms"].as_f64().unwrap() > 0.1, "{plugin}");
        let peak = plugin["peak_rss_kib"].as_u64().unwrap();
        assert!((300..60_000).contains(&peak), "{plugin}");
    }
    assert!(node.pod.nft_text().unwrap().contains("redirect to :15001"));
    assert!(node.links().contains("eth0"));
    node.run("check", "").ok();

    node.pod.nft("flush chain inet istio-proxy-nat istio-output").unwrap();
    node.run("check", "").fails(1, &["plugin type=\"istio-cni\" failed (check): ", "istio-output"]);

    let text = node.run("del", "--stats").ok();
    assert!(row(&text, "PLUGIN").contains("PEAK-RSS"), "{text}");
    let order: Vec<&str> = text.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(order, ["istio-cni", "ptp"]);
    assert!(!node.links().contains("eth0"));
    assert!(node.leases().is_empty(), "{:?}", node.leases());
    node.run("del", "").ok();
}

#[test]
fn an_add_that_our_plugin_refuses_leaves_nothing_of_the_others() {
    let node = Node::new();
    std::fs::remove_file(node.files.path("manifests/shop_web.yaml")).unwrap();
    node.add("").fails(1, &["plugin type=\"istio-cni\" failed (add): ", "shop/web"]);
    assert!(!node.links().contains("eth0"), "{}", node.links());
    assert!(node.leases().is_empty(), "{:?}", node.leases());
    // the next one succeeds
    node.files.write("manifests/shop_web.yaml", crate::WEB);
    node.add("").ok();
    node.run("del", "").ok();
}
