//! An ADD that is killed leaves all or none of our rules, and the next one succeeds.

use std::io::Write;
use std::time::{Duration, Instant};

use plugin_tests::{Call, Node};
use testkit::rules::Comments;
use testkit::{Families, Pod};

use crate::{everything, node_and_pod};

/// What lies between start and kill, for each try.
fn delays(longest: Duration, tries: u32) -> impl Iterator<Item = Duration> {
    (0..tries).map(move |n| longest * n / tries)
}

/// Starts the call and kills the plugin after `delay`, unless it is faster.
fn killed(call: &Call, delay: Duration) -> bool {
    let start = Instant::now();
    let mut child = call.command().spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(&call.stdin);
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn nftables_is_all_or_nothing() {
    let (node, pod) = node_and_pod(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    let took = node.add("web", pod.path()).unwrap().took;
    let complete = pod.nft_json(Comments::Keep).unwrap();
    let (mut none, mut all, mut kills) = (0, 0, 0);
    for delay in delays(took * 2, 200) {
        pod.nft("flush ruleset").unwrap();
        kills += u32::from(killed(&node.call("ADD", "web", pod.path()), delay));
        match pod.nft_json(Comments::Keep).unwrap() {
            rules if rules.is_empty() => none += 1,
            rules if rules == complete => all += 1,
            rules => panic!("after {delay:?}: {rules:#?}"),
        }
        node.add("web", pod.path()).unwrap();
        assert_eq!(pod.nft_json(Comments::Keep).unwrap(), complete, "the next ADD after {delay:?}");
    }
    println!("200 tries, {kills} killed: none of the rules {none} times, all of them {all} times");
    assert!(none > 0 && all > 0 && kills > 50, "the kills did not hit every phase: {none}, {all}, {kills}");
}

#[test]
fn nftables_at_every_system_call() {
    // The signal comes at the n-th system call of each thread, so that no point between two changes is left out.
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    let complete = pod.nft_json(Comments::Keep).unwrap();
    let call = node.call("ADD", "web", pod.path());
    let (mut survived, mut tries) = (0, 0);
    for n in 1..400 {
        pod.nft("flush ruleset").unwrap();
        let inject = format!("inject=all:signal=KILL:when={n}");
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = call.command_with(&["strace", "-f", "-qq", "-o", trace.path().to_str().unwrap(), "-e", &inject]);
        command.env("PATH", "/usr/bin");
        let answer = call.run_as(command).unwrap();
        let rules = pod.nft_json(Comments::Keep).unwrap();
        assert!(rules.is_empty() || rules == complete, "killed at call {n}: {rules:#?}");
        node.add("web", pod.path()).unwrap();
        assert_eq!(pod.nft_json(Comments::Keep).unwrap(), complete, "the next ADD after a kill at call {n}");
        tries += 1;
        survived = if answer.exit == Some(0) { survived + 1 } else { 0 };
        // Beyond the last call of the longest thread nothing is hit any more.
        if survived == 3 {
            break;
        }
    }
    println!("killed at {tries} points");
    assert!(tries > 40 && survived == 3, "{tries} tries, {survived} survived at the end");
}

#[test]
fn iptables_recovers() {
    // Each table of each family is a commit of its own. A supervisor finishes what a killed plugin began.
    let node = Node::new().unwrap();
    let mut dual = plugin_tests::sidecar_pod("web");
    dual["spec"]["containers"][1]["env"] = serde_json::json!([{"name": "ISTIO_DUAL_STACK", "value": "true"}]);
    dual["metadata"]["annotations"]["sidecar.istio.io/interceptionMode"] = serde_json::json!("TPROXY");
    node.pod(&dual).unwrap();
    let mut node = node;
    node.conf["native_nftables"] = false.into();
    let pod = Pod::new(Families::Dual).unwrap();
    let took = node.add("web", pod.path()).unwrap().took;
    let complete = everything(&pod);
    let (mut none, mut all, mut kills) = (0, 0, 0);
    for delay in delays(took * 3 / 2, 60) {
        pod.nft("flush ruleset").unwrap();
        kills += u32::from(killed(&node.call("ADD", "web", pod.path()), delay));
        // What the supervisor has begun it ends within milliseconds.
        let rules = settled(&pod, &complete);
        match rules.matches("ISTIO_").count() {
            0 => none += 1,
            _ if rules == complete => all += 1,
            _ => panic!("after {delay:?}: {rules}"),
        }
        node.add("web", pod.path()).unwrap();
        assert_eq!(everything(&pod), complete, "the next ADD after {delay:?}");
    }
    println!("60 tries, {kills} killed: none of the rules {none} times, all of them {all} times");
    assert!(none > 0 && all > 0 && kills > 10, "the kills did not hit every phase: {none}, {all}, {kills}");
}

/// The rules when they are complete, or when they have not changed for a while.
fn settled(pod: &Pod, complete: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut last = everything(pod);
    let mut same = 0;
    while last != complete && same < 3 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        let now = everything(pod);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}
