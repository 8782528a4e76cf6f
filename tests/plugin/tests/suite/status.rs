//! STATUS: a runtime that is told no starts only pods of the node's own network.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::plugin::WITHOUT_NFTABLES;
use testkit::plugin::{Answer, Call};
use testkit::{Node, Pod, assert_says};

use crate::node_and_pod;

/// The longest that the call may take.
const IN_TIME: Duration = Duration::from_millis(50);
/// Runs its arguments behind the first, which names calls of the system that never end: a seccomp filter hands them to a listener that nobody
/// reads from. `directory`: `openat` with `O_DIRECTORY`; `netfilter`: `socket` with `NETLINK_NETFILTER`.
pub(crate) const HANGS: &str = r#"
import ctypes, os, platform, struct, sys
x86 = platform.machine() == "x86_64"
number, bits = {"directory": (257, 0x10000) if x86 else (56, 0x4000), "netfilter": (41 if x86 else 198, 12)}[sys.argv[1]]
load, equal, holds, answer = 0x20, 0x15, 0x45, 0x06
program = [(load, 0, 0, 0), (equal, 0, 3, number), (load, 0, 0, 32), (holds, 0, 1, bits), (answer, 0, 0, 0x7fc00000), (answer, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
libc = ctypes.CDLL(None, use_errno=True)
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
listener = libc.syscall(317 if x86 else 277, 1, 8, header)
assert listener >= 0, os.strerror(ctypes.get_errno())
os.set_inheritable(listener, True)
os.execv(sys.argv[2], sys.argv[2:])
"#;
/// Makes a file system of its own, in which the folder of iptables is empty, and runs its arguments there.
const WITHOUT_IPTABLES: [&str; 6] =
    ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /usr/sbin && exec \"$@\"", "hidden"];

/// A node whose pods come from the cluster, as before its agent has ever run.
fn fresh_node() -> (Node, Pod) {
    let (mut node, pod) = node_and_pod(&[]);
    let conf = node.conf.as_object_mut().unwrap();
    conf.remove("pod_source");
    conf.insert("cniVersion".into(), "1.1.0".into());
    (node, pod)
}

fn set(node: &mut Node, options: &[(&str, Value)]) {
    for (key, value) in options {
        node.conf[*key] = value.clone();
    }
}

fn status(node: &Node) -> Call {
    // As runtimes ask: of no pod.
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
        .iter()
        .fold(node.call("STATUS", "", Path::new("")), |call, name| call.without(name))
}

/// How long an answer may be asked for again on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Before all other work of the machine: what is measured here is what the plugin waits for.
const FIRST: [&str; 3] = ["chrt", "--fifo", "1"];

pub(crate) fn behind(call: &Call, wrapper: &[&str]) -> Answer {
    let mut command: Command = call.command_with(&[&FIRST[..], wrapper].concat());
    command.env("PATH", std::env::var_os("PATH").unwrap());
    call.run_as(command).unwrap()
}

/// The first answer that is as wanted. A look that a busy machine holds up proves nothing, and then the answer is another one.
#[track_caller]
fn sooner_or_later(call: &Call, wrapper: &[&str], wanted: impl Fn(&Answer) -> bool) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = behind(call, wrapper);
        if wanted(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "it only ever answers like this: {answer:#?}");
    }
}

/// An answer that says "not available", and why. Where nothing keeps the plugin from looking, each answer says the first.
#[track_caller]
fn assert_refused(call: &Call, wrapper: &[&str], parts: &[&str]) {
    let named = |answer: &Answer| {
        if wrapper.is_empty() {
            assert_not_available(answer, &[]);
        }
        answer.error().is_ok_and(|(_, text)| parts.iter().all(|part| text.contains(part)))
    };
    assert_not_available(&sooner_or_later(call, wrapper, named), parts);
}

#[track_caller]
fn assert_well(answer: &Answer) {
    assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""), "{answer:#?}");
}

#[track_caller]
fn assert_not_available(answer: &Answer, parts: &[&str]) {
    let (code, text) = answer.error().unwrap();
    assert_eq!(code, 50, "{text}");
    assert_says(&text, &["cannot serve ADD"]);
    assert_says(&text, parts);
}

/// An answer that came in time: had it waited for anything, none would.
#[track_caller]
fn in_time(call: &Call) -> Answer {
    sooner_or_later(call, &[], |answer| answer.took < IN_TIME)
}

/// The run directory is in memory. While STATUS said no for want of what the agent leaves there, the pod of the agent did not start.
#[test]
fn a_node_whose_run_directory_is_empty_starts_its_agent() {
    let (node, pod) = fresh_node();
    assert_well(&status(&node).run().unwrap());
    assert!(!node.run_dir().exists(), "a question leaves nothing behind");
    std::fs::create_dir(node.run_dir()).unwrap();
    assert_well(&status(&node).run().unwrap());
    assert_eq!(std::fs::read_dir(node.run_dir()).unwrap().count(), 0);
    let add = |namespace: &str, name: &str| {
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        node.call("ADD", name, pod.path()).env("CNI_ARGS", &args).run().unwrap()
    };
    for (namespace, name) in [("istio-system", "istio-cni-node-4xkq2"), ("kube-system", "coredns-1")] {
        let answer = add(namespace, name);
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
    }
    assert_says(&add("shop", "cart-1").error().unwrap().1, &["istio-cni-kubeconfig", "shop/cart-1"]);
}

/// All of this an agent, an administrator or another option can bring while the node is up.
#[test]
fn what_is_missing_now_counts_only_with_the_option() {
    let (mut node, _pod) = fresh_node();
    assert_well(&status(&node).run().unwrap());
    set(&mut node, &[("strict_status", json!(true))]);
    assert_refused(&status(&node), &[], &["istio-cni-kubeconfig", "No such file"]);

    let gone = node.manifests().join("gone");
    for (strict, parts) in [(false, None), (true, Some(gone.to_str().unwrap()))] {
        set(&mut node, &[("pod_source", json!({"manifests": gone})), ("strict_status", json!(strict))]);
        match parts {
            Some(part) => assert_refused(&status(&node), &[], &[part]),
            None => assert_well(&status(&node).run().unwrap()),
        }
    }

    let there = json!({"manifests": node.manifests()});
    set(&mut node, &[("pod_source", there)]);
    assert_well(&status(&node).run().unwrap());
    for (strict, backend, wrapper) in [
        (false, true, &["python3", "-c", WITHOUT_NFTABLES][..]),
        (true, true, &["python3", "-c", WITHOUT_NFTABLES][..]),
        (false, false, &WITHOUT_IPTABLES[..]),
        (true, false, &WITHOUT_IPTABLES[..]),
    ] {
        set(&mut node, &[("native_nftables", json!(backend)), ("strict_status", json!(strict))]);
        if strict {
            let part = if backend { "nf_tables" } else { "iptables" };
            assert_refused(&status(&node), wrapper, &[part]);
        } else {
            assert_well(&behind(&status(&node), wrapper));
        }
    }
}

#[test]
fn a_node_without_either_backend_can_never_serve() {
    let (mut node, _pod) = fresh_node();
    let neither = [&WITHOUT_IPTABLES[..], &["python3", "-c", WITHOUT_NFTABLES]].concat();
    for backend in [json!(null), json!(true), json!(false)] {
        for strict in [false, true] {
            set(&mut node, &[("native_nftables", backend.clone()), ("strict_status", json!(strict))]);
            let parts: &[&str] = if strict { &[] } else { &["nf_tables", "iptables"] };
            assert_refused(&status(&node), &neither, parts);
        }
    }
    // Programs that work by nf_tables are none without it.
    let only_nft = "mount -t tmpfs none /usr/sbin && cp /bin/false /usr/sbin/xtables-nft-multi && for kind in save restore; do \
                    ln -s xtables-nft-multi /usr/sbin/iptables-$kind; done && exec \"$@\"";
    let only_nft = ["unshare", "--mount", "sh", "-c", only_nft, "hidden"];
    for (backend, strict) in [(json!(null), false), (json!(null), true), (json!(false), true)] {
        set(&mut node, &[("native_nftables", backend), ("strict_status", json!(strict))]);
        let without = [&only_nft[..], &["python3", "-c", WITHOUT_NFTABLES]].concat();
        let parts: &[&str] = if strict { &[] } else { &["iptables-restore works by nf_tables"] };
        assert_refused(&status(&node), &without, parts);
        if !strict {
            assert_well(&behind(&status(&node), &only_nft));
        }
    }
    set(&mut node, &[("native_nftables", json!(null)), ("strict_status", json!(false))]);
    // Where no ADD fails for it, it is no obstacle. In ambient mode the agent has programs of its own.
    for (key, value, before) in [
        ("failure_policy", json!("open"), json!("closed")),
        ("capture", json!("disabled"), json!("enabled")),
        ("ambient_enabled", json!(true), json!(false)),
    ] {
        set(&mut node, &[(key, value)]);
        assert_well(&behind(&status(&node), &neither));
        set(&mut node, &[(key, before)]);
    }
}

#[test]
fn it_answers_in_time_whatever_hangs() {
    let (mut node, _pod) = fresh_node();
    std::fs::create_dir(node.run_dir()).unwrap();
    // The kernel accepts connections for a process that is stopped or hangs, and for an API server behind a black hole.
    let _hung = ["agent.sock", "log.sock"].map(|name| UnixListener::bind(node.run_dir().join(name)).unwrap());
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    let kubeconfig = node.run_dir().join("istio-cni-kubeconfig");
    let server = format!("https://{}", api.local_addr().unwrap());
    let text = json!({
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    for strict in [false, true] {
        set(&mut node, &[("strict_status", json!(strict))]);
        if strict {
            assert_refused(&status(&node), &[], &["istio-cni-kubeconfig", "No such file"]);
        }
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        assert_well(&in_time(&status(&node)));
        // Nobody ever writes into it.
        std::fs::remove_file(&kubeconfig).unwrap();
        assert!(Command::new("mkfifo").arg(&kubeconfig).status().unwrap().success());
        let answer = in_time(&status(&node));
        match strict {
            true => assert_refused(&status(&node), &[], &["istio-cni-kubeconfig", "not a regular file"]),
            false => assert_well(&answer),
        }
        std::fs::remove_file(&kubeconfig).unwrap();
    }
}

/// The wrapper's start is in the time, so what is shown is that nothing is waited for.
#[test]
fn a_directory_and_a_kernel_that_hang_are_not_waited_for() {
    let (mut node, _pod) = fresh_node();
    let manifests = json!({"manifests": node.manifests()});
    set(&mut node, &[("pod_source", manifests), ("native_nftables", json!(true))]);
    let directory = ["python3", "-c", HANGS, "directory"];
    let kernel = [&WITHOUT_IPTABLES[..], &["python3", "-c", HANGS, "netfilter"]].concat();
    for (wrapper, counts) in [(&directory[..], true), (&kernel[..], false)] {
        for strict in [false, true] {
            set(&mut node, &[("strict_status", json!(strict))]);
            let answer = behind(&status(&node), wrapper);
            if strict && counts {
                assert_not_available(&answer, &["facts", "within 25 ms"]);
            } else {
                assert_well(&answer);
            }
            assert!(answer.took < Duration::from_secs(5), "{strict} {wrapper:?}: {:?}", answer.took);
        }
    }
}
