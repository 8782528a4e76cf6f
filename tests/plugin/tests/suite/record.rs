//! What was applied is kept, and CHECK compares with that: not with what today's facts would make, and never failing for want of them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use capture::PlanInputs;
use capture::settings::PortChoice;
use serde_json::json;
use testkit::plugin::Answer;
use testkit::{Node, Pod, PodObject, assert_says};

use crate::node_and_pod;
use crate::status::{HANGS, behind};

const BACKENDS: [bool; 2] = [true, false];

fn record(node: &Node) -> PathBuf {
    node.run_dir().join("applied/attachment-0123456789abcdef,eth0")
}

fn check(node: &Node, pod: &Pod) -> Answer {
    node.call("CHECK", "web", pod.path()).run().unwrap()
}

#[track_caller]
fn passes(node: &Node, pod: &Pod, says: &[&str]) {
    let answer = check(node, pod);
    assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""), "{}", answer.stderr);
    assert_says(&answer.stderr, says);
}

#[track_caller]
fn fails(node: &Node, pod: &Pod, says: &[&str]) {
    let (code, text) = check(node, pod).error().unwrap();
    assert_eq!(code, 999);
    assert_says(&text, says);
    assert_says(&text, &["pod default/web is not captured as planned: "]);
}

/// Removes a rule of ours.
fn break_rules(pod: &Pod, nft: bool) {
    if nft {
        pod.nft("flush chain inet istio-proxy-nat istio-in-redirect").unwrap();
    } else {
        pod.run(Command::new("iptables-nft").args(["-t", "nat", "-F", "ISTIO_IN_REDIRECT"])).unwrap();
    }
}

/// What the plan was made from is kept beside the rules, so that whoever comes later can make it again.
#[test]
fn the_settings_in_force_are_kept_with_the_rules() {
    let annotations = [
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "9090"),
        ("sidecar.istio.io/interceptionMode", "TPROXY"),
    ];
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&annotations);
        node.conf["native_nftables"] = json!(nft);
        node.add("web", pod.path()).unwrap();
        let kept = &applied::attachments(&node.run_dir()).unwrap()[0].read().unwrap().unwrap();
        let inputs = PlanInputs::from_text(&kept.inputs).unwrap();
        assert_eq!(inputs.settings.mode, capture::settings::Mode::Tproxy);
        assert_eq!(inputs.settings.outbound_ports_excluded, PortChoice::Only(vec![9090]));
        let iptables = kernel::iptables::Iptables::new();
        let kernel = kernel::Kernel { nftables: &kernel::nft::Nftables, iptables: &iptables };
        let plan = inputs.plan();
        assert_eq!(kernel.record(&plan), kept.record, "{}", kept.inputs);
        assert_eq!(pod.enter(|inside| kernel.observe(inside, &plan)).unwrap().unwrap(), []);
    }
}

#[test]
fn what_changed_in_the_facts_since_the_add_is_no_difference() {
    let annotations = [
        ("traffic.sidecar.istio.io/excludeInboundPorts", "7000,7001,7002"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.20.0.0/14,192.0.2.7/32"),
        ("sidecar.istio.io/interceptionMode", "TPROXY"),
    ];
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&annotations);
        node.conf["native_nftables"] = json!(nft);
        node.add("web", pod.path()).unwrap();
        passes(&node, &pod, &[]);
        // Other annotations, another backend, an excluded namespace.
        let web = PodObject::named("web").sidecar();
        node.write_manifest(web.annotation("traffic.sidecar.istio.io/excludeOutboundPorts", "9000")).unwrap();
        passes(&node, &pod, &[]);
        node.conf["native_nftables"] = json!(!nft);
        passes(&node, &pod, &[]);
        node.conf["exclude_namespaces"] = json!(["default"]);
        passes(&node, &pod, &[]);
        // The object is gone altogether, and so is where it was.
        std::fs::remove_dir_all(node.manifests()).unwrap();
        passes(&node, &pod, &[]);
        break_rules(&pod, nft);
        fails(&node, &pod, &["lacks the rule", "inbound, to the proxy"]);
    }
}

#[test]
fn lost_routing_is_lost_capture() {
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
        node.conf["native_nftables"] = json!(nft);
        node.add("web", pod.path()).unwrap();
        pod.run(Command::new("ip").args(["route", "flush", "table", "133"])).unwrap();
        fails(&node, &pod, &["routing is missing", "table 133"]);
    }
}

/// Which variant of iptables a setup would take today says nothing about the rules that are there.
#[test]
fn a_look_by_the_other_iptables_loses_nothing() {
    for program in ["iptables-legacy", "ip6tables-legacy", "iptables-nft"] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = json!(false);
        if program == "iptables-nft" {
            pod.run(Command::new("iptables-legacy").args(["-t", "nat", "-L"])).unwrap();
        }
        node.add("web", pod.path()).unwrap();
        pod.run(Command::new(program).args(["-t", "nat", "-L"])).unwrap();
        passes(&node, &pod, &[]);
        pod.run(Command::new(program).args(["-t", "filter", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"]))
            .unwrap();
        passes(&node, &pod, &[]);
    }
}

#[test]
fn without_a_record_nothing_is_proven() {
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = json!(nft);
        passes(&node, &pod, &["\"level\":\"warn\"", "no record", "by today's facts, "]);
        node.add("web", pod.path()).unwrap();
        let kept = std::fs::read(record(&node)).unwrap();
        break_rules(&pod, nft);
        std::fs::remove_file(record(&node)).unwrap();
        passes(&node, &pod, &["no record of what was applied", "lacks the rule"]);
        // A pod that starts before its object is known, and one without facts within the time.
        std::fs::remove_dir_all(node.manifests()).unwrap();
        passes(&node, &pod, &["is not known"]);
        // The record of another namespace, or of another pod: the kernel gives the number of a namespace again.
        for (from, to) in [("pod default/web", "pod default/other"), ("netns ", "netns 1")] {
            let text = String::from_utf8_lossy(&kept).replacen(from, to, 1);
            std::fs::write(record(&node), text.as_bytes()).unwrap();
            passes(&node, &pod, &["is not known"]);
        }
        std::fs::write(record(&node), &kept[..20]).unwrap();
        passes(&node, &pod, &["cannot be read", "is not known"]);
        std::fs::write(record(&node), kept).unwrap();
        fails(&node, &pod, &["lacks the rule"]);
    }
}

/// A record of another version says that rules were applied, and not which.
#[test]
fn a_record_that_cannot_be_read_proves_the_loss_of_everything() {
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = json!(nft);
        node.add("web", pod.path()).unwrap();
        let kept = std::fs::read(record(&node)).unwrap();
        let other = [&kept[..], b"what comes later"].concat();
        let head = String::from_utf8_lossy(&kept).replacen("\nbackend ", "\nbackend x", 1);
        for bytes in [other, head.into_bytes()] {
            std::fs::write(record(&node), bytes).unwrap();
            passes(&node, &pod, &["of another version"]);
        }
        if nft {
            pod.nft("flush ruleset").unwrap();
        } else {
            for program in ["iptables-nft", "ip6tables-nft"] {
                for arguments in [["-t", "nat", "-F"], ["-t", "nat", "-X"]] {
                    pod.run(Command::new(program).args(arguments)).unwrap();
                }
            }
        }
        fails(&node, &pod, &["is missing"]);
    }
}

#[test]
fn a_source_that_hangs_holds_a_check_for_a_second_at_most() {
    let (mut node, pod) = node_and_pod(&[]);
    std::fs::create_dir_all(node.run_dir()).unwrap();
    let agent = std::os::unix::net::UnixListener::bind(node.run_dir().join("agent.sock")).unwrap();
    node.conf.as_object_mut().unwrap().remove("pod_source");
    node.conf["facts_timeout"] = json!("30s");
    let began = Instant::now();
    passes(&node, &pod, &["is not known"]);
    // The agent that hangs is told nothing; what is left is the start of a program.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(agent);
}

/// Nothing is proven by a kernel that does not answer, and a runtime does not wait for it for ever.
#[test]
fn a_kernel_that_hangs_holds_a_check_for_some_seconds() {
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    break_rules(&pod, true);
    let answer = behind(&node.call("CHECK", "web", pod.path()), &["python3", "-c", HANGS, "netfilter"]);
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["is not known", "did not answer within 5 s"]);
    assert!((5..9).contains(&answer.took.as_secs()), "{:?}", answer.took);
    fails(&node, &pod, &["lacks the rule"]);
}

#[test]
fn records_go_with_their_attachments() {
    let (mut node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    assert!(record(&node).exists());
    let del = node.call("DEL", "web", pod.path());
    for call in [del.clone(), del.env("CNI_NETNS", "")] {
        assert_eq!(call.run().unwrap().exit, Some(0));
        assert!(!record(&node).exists());
    }
    node.add("web", pod.path()).unwrap();
    node.conf["cniVersion"] = json!("1.1.0");
    let gc = |node: &Node| assert_eq!(node.call("GC", "web", pod.path()).run().unwrap().exit, Some(0));
    gc(&node);
    assert!(record(&node).exists(), "nothing was said of any");
    node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "0123456789abcdef", "ifname": "eth0"}]);
    gc(&node);
    assert!(record(&node).exists());
    node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "0123456789abcdef", "ifname": "net1"}]);
    gc(&node);
    assert!(!record(&node).exists());
}

/// A sandbox with two interfaces: the second ADD may find other annotations, and what it applied is what is there.
#[test]
fn the_last_add_of_a_sandbox_counts() {
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    let web = PodObject::named("web").sidecar();
    node.write_manifest(web.annotation("traffic.sidecar.istio.io/excludeInboundPorts", "7000")).unwrap();
    let second = node.call("ADD", "web", pod.path()).env("CNI_IFNAME", "net1").run().unwrap();
    assert_eq!(second.exit, Some(0), "{second:#?}");
    passes(&node, &pod, &[]);
    let other = node.call("CHECK", "web", pod.path()).env("CNI_IFNAME", "net1");
    assert_eq!(other.run().unwrap().exit, Some(0));
    break_rules(&pod, true);
    fails(&node, &pod, &["lacks the rule"]);
    assert_eq!(other.run().unwrap().exit, Some(1));
}

#[test]
fn a_record_that_cannot_be_written_or_removed_stops_nothing() {
    let (node, pod) = node_and_pod(&[]);
    std::fs::create_dir_all(node.run_dir()).unwrap();
    std::fs::write(node.run_dir().join("applied"), "in the way").unwrap();
    let answer = node.add("web", pod.path()).unwrap();
    assert_says(&answer.stderr, &["\"level\":\"warn\"", "CHECK will not know", "pod is captured"]);
    passes(&node, &pod, &[]);
    for verb in ["CHECK", "DEL"] {
        let answer = node.call(verb, "web", pod.path()).run().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
    }
}

/// Whoever may write into the folder but is not root tells us nothing.
#[test]
fn a_record_of_another_user_is_not_used() {
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    pod.nft("flush chain inet istio-proxy-nat istio-redirect").unwrap();
    fails(&node, &pod, &["lacks the rule"]);
    std::os::unix::fs::chown(record(&node), Some(4242), None).unwrap();
    passes(&node, &pod, &["only files of root are trusted", "is not known"]);
}

/// The text is bounded, whatever was planted.
#[test]
fn a_failure_is_short() {
    for nft in BACKENDS {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = json!(nft);
        node.add("web", pod.path()).unwrap();
        let rules: String = (0..500).map(|port| plant(nft, port)).collect();
        if nft {
            pod.nft(&rules).unwrap();
        } else {
            let text = format!("*nat\n{rules}COMMIT\n");
            let mut script = Command::new("sh");
            script.args(["-c", "printf '%s' \"$0\" | iptables-nft-restore --noflush", &text]);
            pod.run(&mut script).unwrap();
        }
        let answer = check(&node, &pod);
        let json = answer.json().unwrap();
        let message = json["msg"].as_str().unwrap();
        assert_says(message, &["500 differences: ", "; and 498 more"]);
        assert!(message.len() < 700, "{}: {message}", message.len());
        let details = json["details"].as_str().unwrap();
        assert!(details.len() < 1100 && details.split("; ").count() == 4, "{details}");
        assert!(details.split("; ").all(|line| !message.contains(line)), "told twice: {details}");
    }
}

/// However many rules somebody plants in chains of ours, hardly more of them are read than make the difference.
#[test]
fn many_planted_rules_do_not_delay() {
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    let mut read = Vec::new();
    for part in [0..4000_u32, 4000..24_000] {
        let rules: String = part.map(|port| plant(true, port)).collect();
        pod.nft(&rules).unwrap();
        fails(
            &node,
            &pod,
            &[
                " differences: table istio-proxy-nat has much more in it than is planned; not all of it is read",
                "chain istio-output of table istio-proxy-nat lacks the rule",
            ],
        );
        read.push(received(&node, &pod));
    }
    let [few, many] = read[..] else { panic!("{read:?}") };
    // Six times as many rules, of some two hundred bytes each; the kernel answers with up to 32 KiB at a time.
    assert!(few > 100_000 && many < few + 100_000, "{read:?}");
}

/// Bytes that a CHECK receives from the kernel.
fn received(node: &Node, pod: &Pod) -> u64 {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let call = node.call("CHECK", "web", pod.path());
    let path = trace.path().to_str().unwrap();
    let command = call.command_with(&["strace", "-f", "-qq", "-e", "trace=recvfrom", "-o", path]);
    assert_eq!(call.run_as(command).unwrap().exit, Some(1));
    let trace = std::fs::read_to_string(path).unwrap();
    trace.lines().filter_map(|line| line.rsplit_once(" = ")?.1.parse::<u64>().ok()).sum()
}

fn plant(nft: bool, port: u32) -> String {
    let port = port + 2000;
    if nft {
        format!("insert rule inet istio-proxy-nat istio-output tcp dport {port} accept\n")
    } else {
        format!("-I ISTIO_OUTPUT -p tcp -m tcp --dport {port} -j ACCEPT\n")
    }
}
