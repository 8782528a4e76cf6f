//! The agent is killed after each act that a plan can have. What the kernel, the node's sets, the ztunnel and the API server have then is what the act says
//! ([`intent::Have::after`]), and the next agent comes to the same end.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use intent::{Act, Birth, Have, Look, Observation, Probes, RedirectionMark, Rules, Want, steps};
use serde_json::json;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::ztunnel::{Answer, Request, Script, Ztunnel};
use testkit::{Agent, PATIENCE, at_most, eventually};

use crate::mesh::{wait_in, wait_out};

/// Keeps connection tracking strict: traffic of guests has no socket in the pod that would show whether something is open.
const GUESTS: &str = "istio.io/reroute-virtual-interfaces";

/// An act, and what the pod has after it.
type Done = (Act, Have);

/// The acts that lead to `want`, plan after plan. `have` becomes what there is in the end.
fn acts(want: &Want, have: &mut Have, birth: Birth) -> Vec<Done> {
    let mut done = Vec::new();
    loop {
        let plan = steps(want, have, birth);
        for act in &plan {
            have.begin(act);
            have.after(act, 1);
            done.push((act.clone(), have.clone()));
        }
        if !plan.contains(&Act::Locate) {
            return done;
        }
    }
}

fn way_in(pod: &MeshPod) -> (Vec<Done>, Have) {
    let mut have = Have::new();
    let done = acts(&Want::In { addresses: vec![pod.ip] }, &mut have, Birth::Running);
    (done, have)
}

/// Its annotation comes after the answer to the plugin.
fn way_in_of_a_new_pod(pod: &MeshPod) -> Vec<Done> {
    let mut have = Have::new();
    let mut done = acts(&Want::In { addresses: vec![pod.ip] }, &mut have, Birth::New);
    done.extend(acts(&Want::Held { addresses: Vec::new() }, &mut have, Birth::Running));
    done
}

fn way_out(pod: &MeshPod, want: &Want) -> Vec<Done> {
    acts(want, &mut way_in(pod).1, Birth::Running)
}

/// With connection tracking that was made strict, only the acts that concern it.
fn way_out_of_a_strict_pod(pod: &MeshPod) -> Vec<Done> {
    let mut have = way_in(pod).1;
    have.see(Observation::Strict);
    let all = acts(&Want::Out, &mut have, Birth::Running);
    all.into_iter().filter(|(act, _)| *act == Act::RestoreTracking).collect()
}

/// A new pod that its ztunnel refuses.
fn given_up(pod: &MeshPod) -> Vec<Done> {
    let mut have = Have::new();
    for (act, after) in way_in_of_a_new_pod(pod) {
        if act == Act::TellZtunnel {
            break;
        }
        have = after;
    }
    have.begin(&Act::TellZtunnel);
    have.failed(&Act::TellZtunnel, false);
    acts(&Want::GivenUp, &mut have, Birth::New)
}

fn repair(pod: &MeshPod) -> Vec<Done> {
    let mut have = way_in(pod).1;
    have.see(Observation::Rules(Look::Unknown));
    acts(&Want::Verified, &mut have, Birth::Running)
}

/// Another address; the other acts of it are acts of the way in, too.
fn move_to(pod: &MeshPod, ip: &str) -> Vec<Done> {
    let want = Want::Held { addresses: vec![ip.parse().unwrap()] };
    let all = acts(&want, &mut way_in(pod).1, Birth::Running);
    all.into_iter().filter(|(act, _)| *act == Act::RemoveStaleProbes).collect()
}

/// Whether the namespace has been told not to pick up connections that it has not seen begin.
fn is_strict(pod: &MeshPod) -> Result<bool> {
    let loose = pod.netns.run(Command::new("cat").arg("/proc/sys/net/netfilter/nf_conntrack_tcp_loose"))?;
    Ok(loose.trim() == "0")
}

/// Compares what there is with what is said.
fn compare(mesh: &Mesh, pod: &MeshPod, ztunnel: &Ztunnel, (act, have): &Done) {
    let when = format!("after {act} of {}: {have:?}", pod.name);
    let record = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
    // Of an act that changes nothing outside nothing is on disk before the next one.
    assert!(
        *act == Act::Locate || *act == Act::TakeAddresses(vec![pod.ip]) || record.exists() == have.recorded,
        "{when}"
    );
    let (rules_loaded, redirected) = (pod.has_rules().unwrap(), pod.is_redirected().unwrap());
    match have.rules {
        Rules::Capture(_) => assert!(rules_loaded && redirected, "{when}"),
        Rules::Drain { .. } => assert!(rules_loaded && !redirected, "{when}"),
        // What is forgotten with its sandbox has its rules until that goes.
        Rules::None | Rules::Rest => assert!(!rules_loaded || !have.recorded, "{when}"),
        Rules::Maybe | Rules::Reload { .. } => panic!("no act ends so: {when}"),
    }
    assert!(!have.strict || is_strict(pod).unwrap(), "{when}");
    assert!(*act != Act::RestoreTracking || !is_strict(pod).unwrap(), "{when}");
    let probes = mesh.probes().unwrap();
    match have.probes {
        Probes::In => assert_eq!(probes.get(&pod.ip.to_string()), Some(&pod.uid), "{when}"),
        Probes::None => assert_eq!(probes.get(&pod.ip.to_string()), None, "{when}"),
        // The address of before is gone, and the new one not there yet.
        Probes::Maybe => assert!(*act == Act::RemoveStaleProbes && probes.is_empty(), "{when}: {probes:?}"),
    }
    let served = ztunnel.workloads().contains_key(&pod.uid);
    match have.ztunnel {
        intent::Ztunnel::Taken => assert!(served, "{when}"),
        intent::Ztunnel::None => assert!(!served, "{when}"),
        intent::Ztunnel::Listed | intent::Ztunnel::Refused | intent::Ztunnel::Unlisted => {
            panic!("no act ends so: {when}")
        }
    }
    let mark = match have.mark {
        Some(RedirectionMark::Enabled) => Some("enabled"),
        Some(RedirectionMark::Pending) => Some("pending"),
        None => None,
    };
    if mesh.node.api.object(testkit::apiserver::Resource::Pods, &pod.namespace, &pod.name).is_some() {
        assert_eq!(mesh.annotation(pod).as_deref(), mark, "{when}");
    }
}

/// An agent that ends after this act, and the ztunnel that it has.
fn agent_that_ends_after(mesh: &Mesh, act: &Act, script: Script) -> (Agent, Ztunnel) {
    let agent = mesh.agent().env("ISTIO_CNI_FAILPOINT", act.name()).env("AMBIENT_VERIFY_INTERVAL", "300ms");
    let agent = agent.ready().unwrap();
    let ztunnel = mesh.ztunnel_that(script.reconnecting()).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    (agent, ztunnel)
}

fn wait_killed(agent: Agent) {
    let ended = agent.ended_by_itself().unwrap();
    assert!(ended.status.code().is_none(), "killed, not ended: {ended:?}");
}

/// Nothing is left of the pod at the node, its ztunnel and the API server.
fn wait_let_go(mesh: &Mesh, pod: &MeshPod, ztunnel: &Ztunnel) {
    let record = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
    eventually("the pod is let go of", PATIENCE, || {
        ensure!(mesh.probes()?.is_empty() && ztunnel.workloads().is_empty());
        ensure!(mesh.annotation(pod).is_none() && !record.exists());
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// As many runs as the plan has acts; each makes its own node and pod.
fn each(plan: impl Fn(&MeshPod) -> Vec<Done> + Sync, run: impl Fn(&Mesh, MeshPod, &Done) + Sync) {
    let start = || {
        let mesh = Mesh::new().unwrap();
        let pod = mesh.sandbox("mesh", "web").unwrap();
        (mesh, pod)
    };
    let acts = plan(&start().1).len();
    assert!(acts > 0);
    at_most(4, 0..acts, |number| {
        let (mesh, pod) = start();
        let done = plan(&pod).swap_remove(number);
        run(&mesh, pod, &done);
    });
}

#[test]
fn every_act_is_one_of_these() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    let plans = [
        way_in(&pod).0,
        way_in_of_a_new_pod(&pod),
        way_out(&pod, &Want::Out),
        way_out(&pod, &Want::Ended),
        way_out(&pod, &Want::Gone),
        way_out_of_a_strict_pod(&pod),
        given_up(&pod),
        repair(&pod),
        move_to(&pod, "10.9.9.9"),
    ];
    let killed: BTreeSet<&str> = plans.iter().flatten().map(|(act, _)| act.name()).collect();
    let all: BTreeSet<&str> = Act::KINDS.iter().map(Act::name).collect();
    assert_eq!(killed, all);
}

#[test]
fn killed_at_each_act_of_a_running_pods_way_in() {
    each(
        |pod| way_in(pod).0,
        |mesh, pod, done| {
            let (agent, ztunnel) = agent_that_ends_after(mesh, &done.0, Script::default());
            mesh.run(&pod).unwrap();
            mesh.node.api.set_pod(pod.object(&[], true));
            wait_killed(agent);
            compare(mesh, &pod, &ztunnel, done);
            let _agent = mesh.start().unwrap();
            wait_in(mesh, &pod).unwrap_or_else(|error| panic!("{}: {error:#}", done.0));
            eventually("ztunnel has it", PATIENCE, || {
                ensure!(ztunnel.workloads().contains_key(&pod.uid));
                Ok(())
            })
            .unwrap();
            assert_eq!(ztunnel.violations(), Vec::<String>::new(), "{}", done.0);
        },
    );
}

#[test]
fn killed_at_each_act_of_a_new_pods_way_in() {
    each(way_in_of_a_new_pod, |mesh, mut pod, done| {
        let (agent, ztunnel) = agent_that_ends_after(mesh, &done.0, Script::default());
        mesh.node.api.set_pod(pod.object(&[], false));
        let answered = mesh.announce(&pod).is_ok();
        assert!(!answered || matches!(done.0, Act::Annotate(_)), "{}: nobody answers", done.0);
        wait_killed(agent);
        compare(mesh, &pod, &ztunnel, done);
        let _agent = mesh.start().unwrap();
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        mesh.new_sandbox(&mut pod).unwrap();
        eventually("the next sandbox is taken", PATIENCE, || {
            let reply = mesh.announce(&pod)?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error:#}", done.0));
        wait_in(mesh, &pod).unwrap_or_else(|error| panic!("{}: {error:#}", done.0));
        assert_eq!(ztunnel.violations(), Vec::<String>::new(), "{}", done.0);
    });
}

/// A pod that is in the mesh, with an agent that ends after this act.
fn in_mesh(mesh: &Mesh, pod: &MeshPod, act: &Act) -> (Agent, Ztunnel) {
    let (agent, ztunnel) = agent_that_ends_after(mesh, act, Script::default());
    mesh.run(pod).unwrap();
    mesh.node.api.set_pod(pod.object(&[], true));
    wait_in(mesh, pod).unwrap();
    (agent, ztunnel)
}

#[test]
fn killed_at_each_act_of_the_way_out() {
    each(
        |pod| way_out(pod, &Want::Out),
        |mesh, pod, done| {
            let (agent, ztunnel) = in_mesh(mesh, &pod, &done.0);
            mesh.node.api.set_namespace("mesh", &[]);
            wait_killed(agent);
            compare(mesh, &pod, &ztunnel, done);
            let _agent = mesh.start().unwrap();
            wait_out(mesh, &pod).unwrap_or_else(|error| panic!("{}: {error:#}", done.0));
            wait_let_go(mesh, &pod, &ztunnel);
        },
    );
}

#[test]
fn killed_when_connection_tracking_is_as_before() {
    each(way_out_of_a_strict_pod, |mesh, pod, done| {
        let (agent, ztunnel) = agent_that_ends_after(mesh, &done.0, Script::default());
        mesh.run(&pod).unwrap();
        let mut object = pod.object(&[(MODE, "ambient")], true);
        object["metadata"]["annotations"] = json!({ GUESTS: "net1" });
        mesh.node.api.set_pod(object.clone());
        wait_in(mesh, &pod).unwrap();
        assert!(is_strict(&pod).unwrap(), "nothing would be to restore");
        object["metadata"]["labels"] = json!({ MODE: "none" });
        mesh.node.api.set_pod(object);
        wait_killed(agent);
        compare(mesh, &pod, &ztunnel, done);
        let _agent = mesh.start().unwrap();
        wait_out(mesh, &pod).unwrap();
        wait_let_go(mesh, &pod, &ztunnel);
    });
}

#[test]
fn killed_at_each_act_when_a_pod_has_ended() {
    each(
        |pod| way_out(pod, &Want::Ended),
        |mesh, pod, done| {
            let (agent, ztunnel) = in_mesh(mesh, &pod, &done.0);
            let mut object = pod.object(&[], true);
            object["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": "enabled" });
            object["status"]["phase"] = json!("Succeeded");
            mesh.node.api.set_pod(object);
            wait_killed(agent);
            compare(mesh, &pod, &ztunnel, done);
            let _agent = mesh.start().unwrap();
            wait_let_go(mesh, &pod, &ztunnel);
        },
    );
}

#[test]
fn killed_at_each_act_when_a_pod_is_gone() {
    // Of a pod that the API server does not know the annotation is nobody's.
    let without_mark = |pod: &MeshPod| way_out(pod, &Want::Gone);
    each(without_mark, |mesh, pod, done| {
        let (agent, ztunnel) = in_mesh(mesh, &pod, &done.0);
        mesh.node.api.delete_pod(&pod.namespace, &pod.name);
        wait_killed(agent);
        compare(mesh, &pod, &ztunnel, done);
        mesh.stop(&pod).unwrap();
        let _agent = mesh.start().unwrap();
        wait_let_go(mesh, &pod, &ztunnel);
    });
}

#[test]
fn killed_at_each_act_of_giving_up() {
    each(given_up, |mesh, mut pod, done| {
        let refuse = |request: &Request| match request {
            Request::Add { .. } => Answer::Nack("no room".to_owned()),
            _ => Answer::Ack,
        };
        let (agent, ztunnel) = agent_that_ends_after(mesh, &done.0, Script::answering(refuse));
        mesh.node.api.set_pod(pod.object(&[], false));
        assert!(mesh.announce(&pod).is_err(), "{}: nobody answers", done.0);
        wait_killed(agent);
        compare(mesh, &pod, &ztunnel, done);
        mesh.stop(&pod).unwrap();
        ztunnel.close();
        let _agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "300ms").ready().unwrap();
        let ztunnel = mesh.ztunnel().unwrap();
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        wait_let_go(mesh, &pod, &ztunnel);
        mesh.new_sandbox(&mut pod).unwrap();
        assert_eq!(mesh.announce(&pod).unwrap().status, 200, "{}", done.0);
        wait_in(mesh, &pod).unwrap();
    });
}

#[test]
fn killed_when_rules_are_put_right() {
    each(repair, |mesh, pod, done| {
        let (agent, ztunnel) = in_mesh(mesh, &pod, &done.0);
        pod.netns.run(Command::new("nft").args(["flush", "table", "inet", "istio-ambient-nat"])).unwrap();
        wait_killed(agent);
        compare(mesh, &pod, &ztunnel, done);
        let _agent = mesh.start().unwrap();
        wait_in(mesh, &pod).unwrap();
        assert!(pod.is_redirected().unwrap());
    });
}

#[test]
fn killed_when_an_address_of_before_is_gone() {
    const NEXT: &str = "10.9.9.9";
    each(
        |pod| move_to(pod, NEXT),
        |mesh, pod, done| {
            let (agent, ztunnel) = in_mesh(mesh, &pod, &done.0);
            let mut object = pod.object(&[], true);
            object["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": "enabled" });
            object["status"]["podIP"] = json!(NEXT);
            object["status"]["podIPs"] = json!([{ "ip": NEXT }]);
            pod.netns.address(NEXT).unwrap();
            mesh.node.api.set_pod(object);
            wait_killed(agent);
            compare(mesh, &pod, &ztunnel, done);
            let _agent = mesh.start().unwrap();
            eventually("the new address is there alone", PATIENCE, || {
                let probes = mesh.probes()?;
                ensure!(probes.len() == 1 && probes.contains_key(NEXT), "{probes:?}");
                Ok(())
            })
            .unwrap();
        },
    );
}
