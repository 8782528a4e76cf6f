//! Every pod that should be captured is verified: at once when something changes in its namespace, and by turns. What differs is put right, without a
//! fight, and whoever did it is named.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kernel::watch::KeptSockets;
use rustix::process::Signal;
use testkit::mesh::{Mesh, MeshPod};
use testkit::rules::Comments;
use testkit::{Agent, Metrics, PATIENCE, assert_says, eventually};

use crate::mesh::wait_in;
use crate::mesh_render::cnictl;

/// Longer than any of these tests: nothing is found because its turn came.
const SELDOM: (&str, &str) = ("VERIFY_INTERVAL", "60s");
const NAT: &str = "istio-ambient-nat";

pub(crate) fn verified(agent: &Agent) -> Result<f64> {
    agent.metric("istio_cni_pods_verified{mode=\"ambient\"}")
}

/// Waits until that many pods are verified.
fn wait_verified(agent: &Agent, pods: f64) -> Result<()> {
    eventually("the pods are verified", 2 * PATIENCE, || {
        let now = verified(agent)?;
        ensure!(now == pods, "{now} are: {}", unverified(agent)?);
        Ok(())
    })
}

/// The series of pods that are not, for the text of a failure.
pub(crate) fn unverified(agent: &Agent) -> Result<String> {
    let metrics = agent.metrics()?;
    let series = metrics
        .series
        .iter()
        .filter(|(name, value)| name.starts_with("istio_cni_pods_unverified") && **value > 0.0);
    Ok(series.map(|(name, _)| name.clone()).collect::<Vec<_>>().join(", "))
}

fn drift(agent: &Agent, what: &str, action: &str) -> Result<f64> {
    agent.metric(&format!("istio_cni_drift_total{{action=\"{action}\",what=\"{what}\"}}"))
}

/// The expected pods are the verified ones and the others.
#[track_caller]
pub(crate) fn assert_all_are_counted(metrics: &Metrics) {
    for mode in ["ambient", "sidecar"] {
        let of_mode = format!("{{mode=\"{mode}\"");
        let unverified = format!("istio_cni_pods_unverified{of_mode}");
        let series = metrics.series.iter().filter(|(name, _)| name.starts_with(&unverified));
        let sum: f64 = series.map(|(_, pods)| pods).sum();
        let verified = metrics.value(&format!("istio_cni_pods_verified{of_mode}}}"));
        let expected = metrics.value(&format!("istio_cni_pods_expected{of_mode}}}"));
        assert_eq!(expected, verified + sum, "{mode}");
    }
}

/// Runs nft in a pod's namespace; gives its pid.
fn nft(pod: &MeshPod, words: &[&str]) -> u32 {
    let mut process = pod.netns.spawn(Command::new("nft").args(words)).unwrap();
    let pid = process.id();
    eventually("nft ends", PATIENCE, || {
        let status = process.ended()?;
        ensure!(status.is_some_and(|status| status.success()), "{status:?}");
        Ok(())
    })
    .unwrap();
    pid
}

/// What the next agent is to know of a pod.
fn kept(mesh: &Mesh, pod: &MeshPod) -> Result<String> {
    let file = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
    Ok(std::fs::read_to_string(file)?)
}

/// The generation of a namespace's nf_tables: one more for each commit.
fn generation(pod: &MeshPod) -> u32 {
    let netns = Arc::new(netns::Netns::open(pod.netns.path()).unwrap());
    KeptSockets::open(&netns).unwrap().generation().unwrap()
}

/// Descriptors that a process has open.
pub(crate) fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

#[test]
fn a_deleted_table_is_back_within_a_second_and_the_culprit_is_named() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let began = Instant::now();
    let pid = nft(&pod, &["delete", "table", "inet", NAT]);
    eventually("the table is back", PATIENCE, || {
        ensure!(pod.is_redirected()?, "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    let took = began.elapsed();
    println!("back after {took:?}, the program's own time included");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let line = agent
        .log()
        .wait_for(&["the rules of a pod differed and are put right", "pod=mesh/web"], PATIENCE)
        .unwrap();
    assert!(line.contains(&format!("nft (pid {pid}")), "{line}");
    wait_verified(&agent, 1.0).unwrap();
    // To the next agent it is a pod that was in, wherever this one ends.
    let record = kept(&mesh, &pod).unwrap();
    assert!(record.contains("\"state\":\"enrolled\""), "{record}");
    assert_eq!(drift(&agent, "rules", "repaired").unwrap(), 1.0);
    assert_eq!(agent.metric("istio_cni_drift_repair_duration_seconds_count").unwrap(), 1.0);
    let events = mesh.node.api.events();
    let told = events.iter().filter(|event| event["reason"] == "CaptureRestored");
    let types: Vec<&serde_json::Value> = told.map(|event| &event["type"]).collect();
    assert_eq!(types, ["Normal"], "{events:?}");
}

#[test]
fn who_deletes_the_table_again_and_again_is_not_fought() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let mut contended = false;
    while Instant::now() < end {
        let _ = pod.netns.output(Command::new("nft").args(["delete", "table", "inet", NAT])).unwrap();
        contended |= agent.metric("istio_cni_contended_pods").unwrap() == 1.0;
        std::thread::sleep(Duration::from_millis(100));
    }
    let repaired = drift(&agent, "rules", "repaired").unwrap();
    assert!(contended, "{}", agent.log().text());
    assert!((2.0..=5.0).contains(&repaired), "{repaired} repairs in 8 s");
    // The longest pause so far was four seconds.
    wait_verified(&agent, 1.0).unwrap();
    assert!(pod.is_redirected().unwrap());
    let events = mesh.node.api.events();
    let told: Vec<_> = events.iter().filter(|event| event["reason"] == "CaptureContended").collect();
    let [event] = told.as_slice() else { panic!("{events:?}") };
    // Which pod, who does it, and what helps.
    let (of, message) = (&event["involvedObject"], event["message"].as_str().unwrap_or_default());
    assert_eq!((&event["type"], &of["kind"], &of["name"]), (&"Warning".into(), &"Pod".into(), &"web".into()));
    assert!(of["namespace"] == "mesh" && of["uid"] == pod.uid, "{event}");
    assert_says(
        message,
        &["table istio-ambient-nat", "nft (pid ", "End what changes them, or take CAP_NET_ADMIN from it."],
    );
}

#[test]
fn what_the_agent_commits_itself_asks_for_no_look() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let looks = |agent: &Agent| -> f64 {
        let metrics = agent.metrics().unwrap();
        let of_events = metrics.series.iter().filter(|(name, _)| {
            name.starts_with("istio_cni_verifications_total") && name.contains("layer=\"event\"")
        });
        of_events.map(|(_, looks)| looks).sum()
    };
    let pods: Vec<MeshPod> =
        (0..5).map(|number| mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()).collect();
    pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
    wait_verified(&agent, 5.0).unwrap();
    // An interface has its addresses for good a second after it got them, which is a change, too.
    std::thread::sleep(Duration::from_secs(2));
    let before = looks(&agent);
    // New pods are looked at at once, so that both are heard of each: the route that comes with its rules, and its addresses.
    assert!(before <= 10.0, "their rules were loaded, and addresses came: {before}");
    nft(&pods[0], &["delete", "table", "inet", NAT]);
    agent.log().wait_for(&["the rules of a pod differed and are put right"], PATIENCE).unwrap();
    wait_verified(&agent, 5.0).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(looks(&agent) - before, 1.0, "the deletion, and not the repair");
}

#[test]
fn the_expected_pods_are_the_verified_and_the_others_at_every_scrape() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, "1s")).unwrap();
    let mut pods = Vec::new();
    for number in 0..40_u32 {
        // Some come, some go, some lose rules.
        match number % 4 {
            0 | 1 => pods.push(mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()),
            2 => {
                let pod = pods.swap_remove(number as usize % pods.len());
                mesh.delete(&pod).unwrap();
            }
            _ => {
                let pod = &pods[number as usize % pods.len()];
                let _ = pod.netns.output(Command::new("nft").args(["delete", "table", "inet", NAT])).unwrap();
            }
        }
        assert_all_are_counted(&agent.metrics().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_verified(&agent, pods.len() as f64).unwrap();
}

/// Kubelet makes a pod's sandbox anew, and no plugin tells of it.
#[test]
fn a_new_sandbox_of_the_same_pod_is_verified_and_the_old_one_is_let_go() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, "1s")).unwrap();
    let mut pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let before = descriptors(&agent);
    mesh.stop(&pod).unwrap();
    mesh.new_sandbox(&mut pod).unwrap();
    mesh.run(&pod).unwrap();
    eventually("the new sandbox has rules", PATIENCE, || {
        ensure!(pod.is_redirected()?, "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    wait_verified(&agent, 1.0).unwrap();
    eventually("the old namespace is let go", PATIENCE, || {
        let now = descriptors(&agent);
        ensure!(now <= before, "{now} descriptors, {before} before");
        Ok(())
    })
    .unwrap();
}

/// A container starts again, and the agent knew the pod's namespace by a process of the one before.
#[test]
fn a_pod_is_verified_when_the_process_has_ended_by_which_it_was_found() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, "1s")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let (next, cgroup) = (pod.pid() + 7000, format!("/kubepods/burstable/pod{}/{:064x}", pod.uid, 7));
    mesh.process(next, pod.netns.path(), &cgroup, 9000).unwrap();
    std::fs::remove_dir_all(mesh.root().join("proc").join(pod.pid().to_string())).unwrap();
    eventually("it is found by the other one", PATIENCE, || {
        let record = kept(&mesh, &pod)?;
        ensure!(record.contains(&format!("proc/{next}/")), "{record}");
        Ok(())
    })
    .unwrap();
    wait_verified(&agent, 1.0).unwrap();
    nft(&pod, &["delete", "table", "inet", NAT]);
    agent.log().wait_for(&["the rules of a pod differed and are put right"], PATIENCE).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    assert_eq!(agent.log().count(&["another sandbox"]), 0);
    assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())], "it was in all the time");
}

#[test]
fn what_differs_when_the_agent_is_killed_is_put_right_by_the_next() {
    let (mesh, agent, ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    // Between the event and the end of the quiet that is waited for.
    nft(&pod, &["delete", "table", "inet", NAT]);
    agent.kill().unwrap();
    drop(ztunnel);
    let robbed = !pod.is_redirected().unwrap();
    println!("killed before the repair: {robbed}");
    let agent = mesh.agent().env(SELDOM.0, SELDOM.1).ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    assert!(pod.is_redirected().unwrap());
    wait_verified(&agent, 1.0).unwrap();
}

#[test]
fn rules_that_are_left_deleted_come_back_when_an_operator_asks() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env(SELDOM.0, "1s").env("VERIFY_REPAIR", "off")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let before = pod.netns.nft_json(Comments::Keep).unwrap();
    nft(&pod, &["delete", "table", "inet", NAT]);
    agent.log().wait_for(&["the rules of a pod differ and are left so"], PATIENCE).unwrap();
    let (exit, text, error) = cnictl(&mesh, "restore mesh/web --dry-run").unwrap();
    assert!(exit == Some(1) && text.contains("is missing"), "{text}{error}");
    assert!(!pod.is_redirected().unwrap());
    let (exit, text, error) = cnictl(&mesh, "restore mesh/web --yes").unwrap();
    assert_eq!((exit, &*text), (Some(0), "pod mesh/web is as planned again\n"), "{error}");
    assert_eq!(pod.netns.nft_json(Comments::Keep).unwrap(), before);
    assert!(pod.is_redirected().unwrap());
    wait_verified(&agent, 1.0).unwrap();
    let (exit, text, _) = cnictl(&mesh, "restore mesh/web --yes").unwrap();
    assert_eq!((exit, &*text), (Some(0), "pod mesh/web is as planned; nothing to do\n"));
}

#[test]
fn differences_are_left_and_told_where_repair_is_off() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env(SELDOM.0, "1s").env("VERIFY_REPAIR", "off")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    nft(&pod, &["delete", "table", "inet", NAT]);
    let line = agent.log().wait_for(&["the rules of a pod differ and are left so"], PATIENCE).unwrap();
    assert!(line.contains("pod=mesh/web") && line.contains("nft (pid"), "{line}");
    let after = generation(&pod);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(generation(&pod), after, "something was written");
    assert!(!pod.is_redirected().unwrap());
    let drifted = "istio_cni_pods_unverified{mode=\"ambient\",reason=\"\",state=\"drifted\"}";
    assert_eq!((agent.metric(drifted).unwrap(), verified(&agent).unwrap()), (1.0, 0.0));
    assert_eq!(agent.metric("istio_cni_pod_rules{state=\"different\"}").unwrap(), 1.0);
    assert_eq!(
        (drift(&agent, "rules", "left").unwrap(), drift(&agent, "rules", "repaired").unwrap()),
        (1.0, 0.0)
    );
    assert_eq!(agent.log().count(&["the rules of a pod differ and are left so"]), 1);
    // All of it gone is told apart from some of it.
    for table in [NAT, "istio-ambient-mangle", "istio-ambient-raw"] {
        let _ = pod.netns.output(Command::new("nft").args(["delete", "table", "inet", table])).unwrap();
    }
    eventually("its rules count as missing", PATIENCE, || {
        ensure!(agent.metric("istio_cni_pod_rules{state=\"missing\"}")? == 1.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn no_pod_is_expected_while_capture_is_disabled() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, "1s")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    assert_eq!(agent.metric("istio_cni_capture_enabled").unwrap(), 1.0);
    agent.stop().unwrap();
    let agent = mesh.agent().env(SELDOM.0, "1s").env("CAPTURE", "disabled").ready().unwrap();
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.value("istio_cni_capture_enabled"), 0.0);
    assert_eq!(metrics.value("istio_cni_pods_expected{mode=\"ambient\"}"), 0.0);
    assert!(pod.is_redirected().unwrap(), "it stays as it is");
}

#[test]
fn the_short_names_of_the_pods_rules_are_there_where_they_are_asked_for() {
    for (asked, healthy) in [("true", 1.0), ("false", 0.0)] {
        let (mesh, agent, _ztunnel) =
            Mesh::served_by(|agent| agent.env("HEALTH_METRICS_SHORT_NAMES", asked)).unwrap();
        let pod = mesh.running("mesh", "web", &[]).unwrap();
        wait_in(&mesh, &pod).unwrap();
        wait_verified(&agent, 1.0).unwrap();
        let metrics = agent.metrics().unwrap();
        assert_eq!(metrics.value("pod_rules_healthy"), healthy);
        assert_eq!(metrics.series.contains_key("pod_rules_missing"), asked == "true");
        assert_eq!(metrics.value("istio_cni_pod_rules{state=\"healthy\"}"), 1.0);
    }
}

/// The kernel keeps some hundred events for a program that does not read them.
#[test]
fn what_changes_while_events_are_lost_is_found() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    let lost = "istio_cni_verification_events_lost_total";
    assert_eq!(agent.metric(lost).unwrap(), 0.0);
    agent.signal(Signal::STOP).unwrap();
    // Each line is a transaction.
    let mut lines = format!("delete table inet {NAT}\nadd table inet foreign\n");
    for number in 0..1500 {
        writeln!(lines, "add chain inet foreign c{number}").unwrap();
    }
    pod.netns.pipe(Command::new("nft").arg("-i").stdout(Stdio::null()), &lines).unwrap();
    assert!(!pod.is_redirected().unwrap());
    agent.signal(Signal::CONT).unwrap();
    eventually("the table is back", PATIENCE, || {
        ensure!(pod.is_redirected()?, "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    assert!(agent.metric(lost).unwrap() >= 1.0);
    wait_verified(&agent, 1.0).unwrap();
}

/// Without descriptors for sockets in each namespace, pods are entered when their turn comes.
#[test]
fn pods_are_verified_by_turns_where_descriptors_are_few() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env(SELDOM.0, "1s").behind(&["prlimit", "--nofile=514:514"])).unwrap();
    let pods: Vec<MeshPod> =
        (0..3).map(|number| mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()).collect();
    pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
    wait_verified(&agent, 3.0).unwrap();
    assert_eq!(agent.metric("istio_cni_verification_unwatched_pods").unwrap(), 3.0);
    nft(&pods[1], &["delete", "table", "inet", NAT]);
    let text = "the rules of a pod differed and are put right";
    let line = agent.log().wait_for(&[text, "pod=mesh/web-1"], PATIENCE).unwrap();
    assert!(line.contains("culprit=unknown"), "{line}");
    assert!(pods[1].is_redirected().unwrap());
}

/// Without numbers of transactions and without events: each look is a full comparison, and what others do is found by turns.
#[test]
fn pods_are_compared_in_full_by_turns_where_the_kernel_tells_nothing() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env(SELDOM.0, "1s").env("ISTIO_CNI_KERNEL_LACKS", "generation,events"))
            .unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    wait_verified(&agent, 1.0).unwrap();
    for what in ["generation", "events", "culprits"] {
        let tells = format!("istio_cni_verification_kernel_tells{{what=\"{what}\"}}");
        assert_eq!(agent.metric(&tells).unwrap(), 0.0, "{what}");
    }
    agent.log().wait_for(&["this kernel does not tell whether rules were changed"], PATIENCE).unwrap();
    let looks = |layer: &str, result: &str| {
        let of = format!("istio_cni_verifications_total{{layer=\"{layer}\",result=\"{result}\"}}");
        Ok::<_, anyhow::Error>(agent.metrics()?.value(&of))
    };
    let before = looks("full", "equal").unwrap();
    eventually("it is compared at each turn", PATIENCE, || {
        let full = looks("full", "equal")?;
        ensure!(full >= before + 2.0, "{full}");
        Ok(())
    })
    .unwrap();
    assert_eq!(looks("cheap", "equal").unwrap(), 0.0);
    nft(&pod, &["delete", "table", "inet", NAT]);
    let text = "the rules of a pod differed and are put right";
    let line = agent.log().wait_for(&[text, "pod=mesh/web"], PATIENCE).unwrap();
    assert!(line.contains("culprit=unknown") && pod.is_redirected().unwrap(), "{line}");
    wait_verified(&agent, 1.0).unwrap();
}

/// As many looks as nine hundred pods cost at the usual interval.
#[test]
fn pods_that_do_not_change_cost_little() {
    const PODS: u32 = 30;
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, "1s")).unwrap();
    let pods: Vec<MeshPod> =
        (0..PODS).map(|number| mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()).collect();
    pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
    wait_verified(&agent, f64::from(PODS)).unwrap();
    let looks = || agent.metric("istio_cni_verifications_total{layer=\"cheap\",result=\"equal\"}").unwrap();
    let (before, began) = ((looks(), processor_time(&agent)), Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    let (looked, spent) = (looks() - before.0, processor_time(&agent) - before.1);
    let share = spent.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{looked} looks in {:?}: {spent:?} of the processor, {:.2} %", began.elapsed(), 100.0 * share);
    assert!(looked >= f64::from(2 * PODS), "{looked} looks");
    assert!(share < 0.1, "{share}");
}

/// What the process has used, in steps of a hundredth of a second (`USER_HZ`).
pub(crate) fn processor_time(agent: &Agent) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // proc(5): utime and stime are the fields 14 and 15, the second of them the program's name.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}
