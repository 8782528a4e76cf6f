//! What the machine has or lacks: programs, kernel features, namespaces without addresses.

use testkit::plugin::WITHOUT_NFTABLES;
use testkit::{PodObject, TestNetns, assert_says};

use crate::{everything, node_and_pod};

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
    assert_says(
        &text,
        &[
            "iptables",
            "/usr/sbin",
            "install the iptables package",
            "asks for iptables only",
            "NATIVE_NFTABLES=auto",
        ],
    );
    assert_eq!(before, everything(&pod));
}

#[test]
fn a_kernel_without_nftables() {
    let (mut node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    let run = |call: &testkit::plugin::Call| {
        let mut command = call.command_with(&["python3", "-c", WITHOUT_NFTABLES]);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        call.run_as(command).unwrap()
    };
    let before = everything(&pod);
    let (code, text) = run(&node.call("ADD", "web", pod.path())).error().unwrap();
    assert_eq!(code, 999);
    assert_says(&text, &["nf_tables", "default/web", "asks for nftables only", "NATIVE_NFTABLES=auto"]);
    assert_eq!(before, everything(&pod));
    // Without a choice in the configuration, iptables is taken, and the log says so, without a warning: each pod would have it.
    node.conf.as_object_mut().unwrap().remove("native_nftables");
    let answer = run(&node.call("ADD", "web", pod.path()));
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["\"no_nftables\":\"cannot speak to nf_tables", "\"backend\":\"iptables\""]);
    assert!(!answer.stderr.contains("\"level\":\"warn\""), "{}", answer.stderr);
    assert_says(&everything(&pod), &["ISTIO_OUTPUT", "fwmark 0x539 lookup 133"]);
    assert_eq!(run(&node.call("CHECK", "web", pod.path())).exit, Some(0));
    // With nf_tables again, the rules move.
    assert_says(&node.add("web", pod.path()).unwrap().stderr, &["\"backend\":\"nftables\""]);
    assert!(!everything(&pod).contains("-A ISTIO_OUTPUT"), "{}", everything(&pod));
}

/// The choice is left to the node, and nothing works: both causes are told, and nothing is advised that cannot help.
#[test]
fn a_node_without_either_backend() {
    let (mut node, pod) = node_and_pod(&[]);
    node.conf.as_object_mut().unwrap().remove("native_nftables");
    let before = everything(&pod);
    // All programs of iptables are gone, or only those are there that work by nf_tables.
    let only_nft = "mount -t tmpfs none /usr/sbin && cp /bin/false /usr/sbin/xtables-nft-multi && for p in iptables ip6tables; do \
                    for k in save restore; do ln -s xtables-nft-multi /usr/sbin/$p-$k; done; done && exec \"$@\"";
    for (hide, cause) in [
        ("mount -t tmpfs none /usr/sbin && exec \"$@\"", "cannot find iptables-legacy-restore in"),
        (only_nft, "iptables-restore works by nf_tables, which this kernel does not have"),
    ] {
        let wrapper = ["unshare", "--mount", "sh", "-c", hide, "hidden", "python3", "-c", WITHOUT_NFTABLES];
        let mut command = node.call("ADD", "web", pod.path()).command_with(&wrapper);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        let answer = node.call("ADD", "web", pod.path()).run_as(command).unwrap();
        let (code, text) = answer.error().unwrap();
        assert_eq!(code, 999);
        let both = [
            "default/web",
            "neither backend works here: nf_tables: cannot speak to nf_tables",
            "; iptables: ",
            cause,
        ];
        assert_says(&text, &both);
        assert!(!text.contains("asks for") && !text.contains("backend;"), "{text}");
        assert_eq!(before, everything(&pod));
    }
}

/// A kernel before Linux 3.17 has no `/proc/thread-self`.
#[test]
fn a_kernel_that_is_too_old_is_named() {
    let (node, pod) = node_and_pod(&[]);
    let hide = "mount -t tmpfs none /proc && exec \"$@\"";
    let command =
        node.call("ADD", "web", pod.path()).command_with(&["unshare", "--mount", "sh", "-c", hide, "hidden"]);
    let (code, text) = node.call("ADD", "web", pod.path()).run_as(command).unwrap().error().unwrap();
    assert_eq!(code, 8, "{text}");
    assert_says(&text, &["/proc/thread-self/ns/net", "Linux 3.17"]);
}

#[test]
fn a_wrong_variable_of_the_runtime_stops_only_the_pods_that_it_is_for() {
    let (mut node, pod) = node_and_pod(&[]);
    node.write_manifest(PodObject::named("plain").annotation("sidecar.istio.io/status", "{}")).unwrap();
    let with =
        |call: testkit::plugin::Call| call.env("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "bad").run().unwrap();
    assert_eq!(with(node.call("ADD", "plain", pod.path())).exit, Some(0));
    let (code, _) = with(node.call("ADD", "web", pod.path())).error().unwrap();
    assert_eq!(code, 999);
    node.conf["cniVersion"] = "1.1.0".into();
    assert_eq!(with(node.call("STATUS", "web", pod.path())).exit, Some(0));
    node.conf["strict_status"] = true.into();
    let (code, text) = with(node.call("STATUS", "web", pod.path())).error().unwrap();
    assert_eq!(code, 50);
    assert_says(&text, &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "\"bad\""]);
}

/// What a process of the pod, or any user of the node, can hold on to: the namespace's own file by flock(2), and addresses of abstract sockets.
#[test]
fn locks_of_unprivileged_processes_delay_nothing() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    for nft in [true, false] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = nft.into();
        let mut holder = std::process::Command::new("setpriv");
        holder.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
        holder.args(["flock", "/proc/self/ns/net", "sleep", "60"]);
        let _lock = pod.spawn(&mut holder).unwrap();
        let own = || pod.run(std::process::Command::new("flock").args(["-n", "/proc/self/ns/net", "true"]));
        let held = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            own().is_err()
        });
        assert!(held, "the process holds no lock");
        let _address = pod
            .netns()
            .enter(|_| {
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name("istio-cni/iptables").unwrap())
            })
            .unwrap()
            .unwrap();
        for verb in ["ADD", "ADD", "CHECK"] {
            let answer = node.call(verb, "web", pod.path()).run().unwrap();
            assert_eq!(answer.exit, Some(0), "{answer:#?}");
            assert!(!answer.stderr.contains("lock") && !answer.stderr.contains("at work"), "{answer:#?}");
            // Each wait was a quarter of a second at least, and up to ten.
            assert!(answer.took < std::time::Duration::from_secs(8), "{verb} nft {nft}: {:?}", answer.took);
        }
    }
}

#[test]
fn an_iptables_table_without_its_programs_does_not_stop_nftables() {
    let (node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    // Looking at a table of the legacy variant makes the kernel create it, empty.
    pod.run(std::process::Command::new("iptables-legacy").args(["-t", "nat", "-L"])).unwrap();
    let call = node.call("ADD", "web", pod.path());
    let hide = "mount -t tmpfs none /usr/sbin && exec \"$@\"";
    let command = call.command_with(&["unshare", "--mount", "sh", "-c", hide, "hidden"]);
    let answer = call.run_as(command).unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&everything(&pod), &["istio-proxy-mangle", "fwmark 0x539 lookup 133"]);
}
