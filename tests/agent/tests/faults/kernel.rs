//! What the kernel lacks, or what it has too little of.

use std::net::UdpSocket;
use std::process::Command;

use testkit::plugin::WITHOUT_NFTABLES;

use crate::scene::FaultyNode;

/// The kernel refuses sockets of the netfilter kind, as one without nf_tables does; the modules that are named are on disk.
pub(crate) fn no_nf_tables() -> FaultyNode {
    let kernel = ["python3", "-c", WITHOUT_NFTABLES];
    let node = FaultyNode::prepared().injected(|node| {
        let release = Command::new("uname").arg("-r").output().unwrap().stdout;
        let dir = node.mesh.root().join("lib/modules").join(String::from_utf8(release).unwrap().trim());
        std::fs::create_dir_all(&dir).unwrap();
        let modules = ["nf_tables", "nft_chain_nat", "nft_redir", "nft_ct", "nft_tproxy"];
        let list: String =
            modules.iter().map(|name| format!("kernel/net/netfilter/{name}.ko.zst:\n")).collect();
        std::fs::write(dir.join("modules.dep"), list).unwrap();
    });
    node.started(|agent| agent.behind(&kernel)).asked_behind(&kernel)
}

/// No program of iptables is on the node, and its configuration asks for iptables.
pub(crate) fn no_iptables() -> FaultyNode {
    let hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /usr/sbin && exec \"$@\"", "hidden"];
    let node = FaultyNode::prepared();
    node.started(|agent| agent.env("NATIVE_NFTABLES", "false").behind(&hidden)).asked_behind(&hidden)
}

/// In the node's network namespace IPv6 is switched off, and ambient mode is to capture it.
pub(crate) fn ipv6_off() -> FaultyNode {
    let node = FaultyNode::ambient(|agent| agent.env("AMBIENT_IPV6", "true"));
    let ztunnel = node.mesh.ztunnel().unwrap();
    node.mesh.host.set_sysctl("net.ipv6.conf.all.disable_ipv6", "1").unwrap();
    let netns = format!("--net={}", node.mesh.host.path().display());
    // The API server of the test is in another namespace.
    node.with(ztunnel).asked_behind(&["nsenter", &netns]).only(&["kernel"])
}

/// Real connections are tracked in the node's network namespace; how many may be is the machine's, so that file is another's for agent and tool.
pub(crate) fn conntrack_nearly_full() -> FaultyNode {
    const MOUNT: &str = "mount --bind \"$0\" /proc/sys/net/netfilter/nf_conntrack_max && exec \"$@\"";
    let mut node = FaultyNode::prepared();
    let host = &node.mesh.host;
    host.ip(&["link set lo up"]).unwrap();
    host.nft("table ip t { chain o { type filter hook output priority 0; ct state new accept; }; }").unwrap();
    host.set_sysctl("net.netfilter.nf_conntrack_udp_timeout", "600").unwrap();
    host.enter(|_| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in 1..=19 {
            // The answer to one may be told by the next.
            let _ = socket.send_to(b"x", ("127.0.0.1", port));
        }
    })
    .unwrap();
    let most = node.mesh.node.dir().join("nf_conntrack_max");
    std::fs::write(&most, "20\n").unwrap();
    let (netns, most) = (format!("--net={}", host.path().display()), most.display().to_string());
    let own = format!("--net=/proc/{}/ns/net", std::process::id());
    let bound = ["nsenter", &netns, "unshare", "--mount", "sh", "-c", MOUNT, &most];
    let agent = [&bound[..], &["nsenter", &own]].concat();
    node = FaultyNode::asked_behind(node, &bound).only(&["kernel"]);
    let launch = node.launch("one").env("ALLOW_SWITCH_TO_HOST_NS", "true").behind(&agent);
    let agent = launch.ready().unwrap();
    node.agents.push(agent);
    node
}

/// The runtime's unit has a low limit.
pub(crate) fn few_files() -> FaultyNode {
    FaultyNode::prepared().ready(|agent| agent.behind(&["prlimit", "--nofile=512:512"]))
}
