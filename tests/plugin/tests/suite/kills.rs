//! An ADD that is killed leaves all or none of our rules, and the next one succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};

use testkit::plugin::Call;
use testkit::rules::Comments;
use testkit::{Families, Node, Pod, PodObject};

use crate::{everything, node_and_pod};

/// What lies between start and kill, for each try.
fn delays(longest: Duration, tries: u32) -> impl Iterator<Item = Duration> {
    (0..tries).map(move |n| longest * n / tries)
}

/// How long an ADD into the emptied namespace takes here and now. It ends with the rules in place.
fn usual_time(node: &Node, pod: &Pod) -> Duration {
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            pod.nft("flush ruleset").unwrap();
            node.add("web", pod.path()).unwrap().took
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
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
    let took = usual_time(&node, &pod);
    let complete = pod.nft_json(Comments::Keep).unwrap();
    let (mut none, mut all, mut kills) = (0, 0, 0);
    for delay in delays(took * 3 / 2, 200) {
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
    // Which phases a delay hits is the machine's affair; the test below hits each by its system call.
    println!("200 tries, {kills} killed: none of the rules {none} times, all of them {all} times");
}

#[test]
fn nftables_at_every_system_call() {
    // The signal comes at the n-th call of each kind, so that no point between two changes is left out.
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    let complete = pod.nft_json(Comments::Keep).unwrap();
    pod.nft("flush ruleset").unwrap();
    let call = node.call("ADD", "web", pod.path());
    let trace = traced(&call, &[]).1;
    let (mut none, mut all, mut outlived) = (0, 0, 0);
    let points = points(&trace);
    for (name, n) in &points {
        pod.nft("flush ruleset").unwrap();
        let (exit, _) = traced(&call, &["-e", &format!("inject={name}:signal=KILL:when={n}")]);
        // How often memory is mapped depends on where the kernel puts it, so the last of such calls may not come this time.
        outlived += u32::from(exit.is_some());
        match pod.nft_json(Comments::Keep).unwrap() {
            rules if rules.is_empty() => none += 1,
            rules if rules == complete => all += 1,
            rules => panic!("killed at {name} number {n}: {rules:#?}"),
        }
        node.add("web", pod.path()).unwrap();
        assert_eq!(
            pod.nft_json(Comments::Keep).unwrap(),
            complete,
            "the next ADD after a kill at {name} number {n}"
        );
    }
    println!(
        "killed at {} system calls: none of the rules {none} times, all of them {all} times",
        points.len()
    );
    assert!(
        points.len() > 40 && none > 0 && all > 0 && outlived < 10,
        "{} points: {none}, {all}, {outlived}",
        points.len()
    );
}

/// Runs a call under strace and returns its exit code and the trace.
fn traced(call: &Call, options: &[&str]) -> (Option<i32>, String) {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut wrapper = vec!["strace", "-f", "-qq", "-o", trace.path().to_str().unwrap()];
    wrapper.extend(options);
    let mut command = call.command_with(&wrapper);
    command.env("PATH", "/usr/bin");
    let answer = call.run_as(command).unwrap();
    (answer.exit, std::fs::read_to_string(trace.path()).unwrap())
}

/// Every system call of a trace as its name and its number among those of that name in one thread, which is how strace counts.
/// The first of all, execve, belongs to the caller; exit ends a thread by itself.
fn points(trace: &str) -> BTreeSet<(String, u32)> {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut points = BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            || ["execve", "exit", "exit_group"].contains(&name)
        {
            continue;
        }
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        points.insert((name.to_owned(), *count));
    }
    points
}

#[test]
fn iptables_recovers() {
    // Each table of each family is a commit of its own. A supervisor finishes what a killed plugin began.
    let node = Node::bare().unwrap();
    let dual = PodObject::named("web").sidecar().proxy_env(&[("ISTIO_DUAL_STACK", "true")]);
    node.write_manifest(dual.annotation("sidecar.istio.io/interceptionMode", "TPROXY")).unwrap();
    let mut node = node;
    node.conf["native_nftables"] = false.into();
    let pod = Pod::new(Families::Dual).unwrap();
    let took = usual_time(&node, &pod);
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

    // What a delay may miss on a busy machine: before there is a supervisor, and beside it.
    pod.nft("flush ruleset").unwrap();
    let call = node.call("ADD", "web", pod.path());
    assert_eq!(traced(&call, &["-e", "inject=setns:signal=KILL:when=1"]).0, None);
    assert_eq!(settled(&pod, &complete).matches("ISTIO_").count(), 0, "killed on its way into the namespace");
    let gate = tempfile::tempdir().unwrap();
    let mut command = call.command();
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", gated_programs(gate.path())));
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&call.stdin).unwrap();
    let start = Instant::now();
    while !has_child(child.id()) {
        assert!(start.elapsed() < Duration::from_secs(60), "it starts no supervisor");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::write(gate.path().join("open"), "").unwrap();
    assert_eq!(settled(&pod, &complete), complete, "killed beside its supervisor");
}

/// Programs that wait until the folder has a file `open`, and then are the real ones; the folder as text.
fn gated_programs(folder: &std::path::Path) -> String {
    let folder = folder.display().to_string();
    let script = r#"for name in iptables ip6tables; do for kind in nft legacy; do
        program=$name-$kind-restore
        printf '%s\n' '#!/bin/sh' "while [ ! -e $0/open ]; do sleep 0.01; done" \
            "exec $(command -v $program) \"\$@\"" >"$0/$program"
        chmod +x "$0/$program"
    done; done"#;
    // A shell writes them: what this process has open for writing, the kernel starts no program from.
    let written = std::process::Command::new("sh").args(["-c", script, &folder]).status().unwrap();
    assert!(written.success());
    folder
}

/// Whether any thread of the process has started another process.
fn has_child(parent: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    tasks.flatten().any(|task| {
        std::fs::read_to_string(task.path().join("children")).is_ok_and(|children| !children.is_empty())
    })
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
