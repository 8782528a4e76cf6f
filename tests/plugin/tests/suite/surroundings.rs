//! What the machine has or lacks: programs, kernel features, namespaces without addresses.

use testkit::TestNetns;

use crate::{assert_says, everything, node_and_pod};

#[test]
fn nftables_starts_no_program() {
    let (node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    let trace = tempfile::NamedTempFile::new().unwrap();
    let call = node.call("ADD", "web", pod.path());
    let mut command = call.command_with(&[
        "strace",
        "-f",
        "-o",
        trace.path().to_str().unwrap(),
        "-e",
        "trace=execve,execveat,fork,vfork",
    ]);
    command.env("PATH", "/usr/bin");
    let answer = call.run_as(command).unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    let trace = std::fs::read_to_string(trace.path()).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.contains('(')).collect();
    println!("{}", calls.join("\n"));
    assert!(calls.len() == 1 && calls[0].contains("execve(") && calls[0].contains("istio-cni"), "{trace}");
}

#[test]
fn a_namespace_without_addresses_is_refused() {
    let (node, _) = node_and_pod(&[]);
    let bare = TestNetns::new().unwrap();
    let (code, text) = node.call("ADD", "web", bare.path()).run().unwrap().error().unwrap();
    assert_eq!(code, 999);
    assert_says(&text, &["no valid local IP address found", "default/web"]);
}

#[test]
fn missing_iptables_is_named() {
    let (mut node, pod) = node_and_pod(&[]);
    node.conf["native_nftables"] = false.into();
    let before = everything(&pod);
    let call = node.call("ADD", "web", pod.path());
    // A mount namespace in which the folder of iptables is empty.
    let hide = "mount -t tmpfs none /usr/sbin && exec \"$@\"";
    let command = call.command_with(&["unshare", "--mount", "sh", "-c", hide, "hidden"]);
    let (code, text) = call.run_as(command).unwrap().error().unwrap();
    assert_eq!(code, 999);
    assert_says(&text, &["iptables", "/usr/sbin", "install the iptables package", "nftables backend"]);
    assert_eq!(before, everything(&pod));
}

#[test]
fn a_kernel_without_nftables() {
    // strace plays the kernel: the netfilter socket, which is the second netlink socket of an ADD, is refused.
    let refuse =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=socket:error=EPROTONOSUPPORT:when=2+"];
    let (mut node, pod) = node_and_pod(&[]);
    let call = node.call("ADD", "web", pod.path());
    let mut command = call.command_with(&refuse);
    command.env("PATH", "/usr/bin");
    let (code, text) = call.run_as(command).unwrap().error().unwrap();
    assert_eq!(code, 999);
    assert_says(&text, &["nf_tables", "default/web"]);
    assert!(pod.nft_json(testkit::rules::Comments::Keep).unwrap().is_empty());
    // Without a choice in the configuration, iptables is taken then, and the log says so.
    node.conf.as_object_mut().unwrap().remove("native_nftables");
    let answer = node.add("web", pod.path()).unwrap();
    assert_says(&answer.stderr, &["\"backend\":\"nftables\""]);
}
