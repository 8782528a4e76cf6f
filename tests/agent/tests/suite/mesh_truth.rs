//! Ambient mode: a pod counts as in the mesh when that was seen, and not because somebody said so: neither an annotation, nor a ztunnel that was
//! told to keep it, nor this agent's own success of before.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::mesh::{MODE, Mesh, MeshPod, REDIRECTION};
use testkit::ztunnel::{Answer, Request, Script};
use testkit::{Agent, PATIENCE, at_once, eventually};

use crate::mesh::wait_in;

/// Pods in a state, by the agent's metrics.
fn pods(agent: &Agent, state: &str) -> f64 {
    agent.metric(&format!("istio_cni_ambient_pods{{state=\"{state}\"}}")).unwrap()
}

/// Pods that should be in and are not, for a reason.
fn outside(agent: &Agent, reason: &str) -> Result<f64> {
    agent.metric(&format!("istio_cni_ambient_pods_outside{{reason=\"{reason}\"}}"))
}

/// What Events say about a pod.
fn events(mesh: &Mesh, pod: &MeshPod) -> Vec<String> {
    let events = mesh.node.api.events().into_iter();
    let of_pod = events.filter(|event| event["involvedObject"]["uid"] == json!(pod.uid));
    of_pod.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

fn wait_event(mesh: &Mesh, pod: &MeshPod, part: &str) {
    eventually("an Event", PATIENCE, || {
        let events = events(mesh, pod);
        ensure!(events.iter().any(|text| text.contains(part)), "{part:?} is not in {events:?}");
        Ok(())
    })
    .unwrap();
}

fn annotated(mut object: Value, value: &str) -> Value {
    object["metadata"]["annotations"][REDIRECTION] = json!(value);
    object
}

/// Whoever writes a pod's template writes its annotations. What cannot be taken in does not keep such a one, whatever hinders it, and whether it
/// was there before the agent or not.
#[test]
fn an_annotation_alone_does_not_make_a_pod_a_member() {
    at_once([false, true], |before| {
        let mesh = Mesh::new().unwrap();
        let lost = mesh.sandbox("mesh", "lost").unwrap();
        let kata = mesh.sandbox("mesh", "kata").unwrap();
        mesh.run(&kata).unwrap();
        let none = mesh.running("mesh", "none", &[(MODE, "none")]).unwrap();
        let empty = mesh.sandbox("mesh", "empty").unwrap();
        let mut of_kata = kata.object(&[], true);
        of_kata["spec"]["runtimeClassName"] = json!("kata-clh");
        let forged = [
            (&lost, lost.object(&[], true)),
            (&kata, of_kata),
            (&none, none.object(&[(MODE, "none")], true)),
            (&empty, empty.object(&[], false)),
        ];
        let forge = || {
            forged.iter().for_each(|(_, object)| {
                mesh.node.api.set_pod(annotated(object.clone(), "enabled"));
            });
        };
        let _ztunnel;
        let agent;
        if before {
            forge();
            agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "300ms").ready().unwrap();
            _ztunnel = mesh.ztunnel().unwrap();
        } else {
            agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "300ms").ready().unwrap();
            _ztunnel = mesh.ztunnel().unwrap();
            forge();
        }
        for (pod, _) in &forged {
            mesh.wait_annotation(pod, None).unwrap_or_else(|e| panic!("{before} {}: {e:#}", pod.name));
            eventually("nothing is in its namespace", PATIENCE, || {
                ensure!(pod.is_clean()?, "{}", pod.name);
                Ok(())
            })
            .unwrap();
        }
        wait_event(&mesh, &lost, "no process of it");
        wait_event(&mesh, &kata, "Kata Containers");
        eventually("they are counted", PATIENCE, || {
            let counted = (outside(&agent, "no-namespace")?, outside(&agent, "sandbox")?);
            ensure!(counted == (1.0, 1.0), "{counted:?}");
            ensure!(pods(&agent, "enrolled") == 0.0 && pods(&agent, "pending") >= 2.0);
            Ok(())
        })
        .unwrap();
        // Once it can be had, it is in.
        mesh.run(&lost).unwrap();
        mesh.node.api.set_pod(lost.object(&[("changed", "yes")], true));
        wait_in(&mesh, &lost).unwrap();
    });
}

/// A static pod's processes are in cgroups by the hash of its manifest; the API server's copy of it says which. Another pod that says the same of
/// itself gets nothing by it.
#[test]
fn a_static_pod_is_found_and_nobody_else_in_its_place() {
    let (mesh, _agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "300ms")).unwrap();
    let hash = "c0ffee00c0ffee00c0ffee00c0ffee00";
    let (pod, thief) = (mesh.sandbox("mesh", "api-n1").unwrap(), mesh.sandbox("mesh", "thief").unwrap());
    let cgroup = format!("/kubepods.slice/kubepods-pod{hash}.slice/cri-containerd-{:064x}.scope", 7);
    mesh.process(pod.pid(), pod.netns.path(), &cgroup, 7).unwrap();
    for pod in [&thief, &pod] {
        let mut object = pod.object(&[], true);
        object["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
        mesh.node.api.set_pod(object);
    }
    wait_in(&mesh, &pod).unwrap();
    wait_event(&mesh, &thief, "none of its addresses");
    assert!(thief.is_clean().unwrap());
    assert_eq!(mesh.annotation(&thief), None);
}

/// Other values are other people's: an older agent's way to opt out.
#[test]
fn pods_that_are_opted_out_are_left_alone() {
    let mesh = Mesh::new().unwrap();
    let plain = mesh.running("default", "plain", &[]).unwrap();
    let excluded = mesh.running("kube-system", "excluded", &[]).unwrap();
    for pod in [&plain, &excluded] {
        mesh.node.api.set_pod(annotated(pod.object(&[], true), "disabled"));
    }
    let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "100ms").ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    let witness = mesh.running("mesh", "witness", &[]).unwrap();
    wait_in(&mesh, &witness).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    for pod in [&plain, &excluded] {
        assert_eq!(mesh.patches(pod), []);
        assert_eq!(mesh.annotation(pod).as_deref(), Some("disabled"));
    }
    assert_eq!((pods(&agent, "leaving"), pods(&agent, "enrolled")), (0.0, 1.0));
}

/// A ztunnel that comes anew may refuse what the one before had taken.
#[test]
fn a_pod_that_the_next_ztunnel_refuses_is_not_in() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let first = mesh.ztunnel().unwrap();
    let (pod, other) =
        (mesh.running("mesh", "web", &[]).unwrap(), mesh.running("mesh", "other", &[]).unwrap());
    wait_in(&mesh, &pod).unwrap();
    wait_in(&mesh, &other).unwrap();
    drop(first);
    let refuses = Arc::new(AtomicBool::new(true));
    let (asked, refused) = (refuses.clone(), pod.uid.clone());
    let script = Script::answering(move |request| match request {
        Request::Add { uid, .. } if *uid == refused && asked.load(Ordering::SeqCst) => {
            Answer::Nack("cannot bind 127.0.0.1:15001: address in use".to_owned())
        }
        _ => Answer::Ack,
    });
    let second = mesh.ztunnel_that(script).unwrap();
    mesh.wait_annotation(&pod, Some("pending")).unwrap();
    wait_event(&mesh, &pod, "address in use");
    assert_eq!(outside(&agent, "ztunnel").unwrap(), 1.0);
    assert_eq!((pods(&agent, "pending"), pods(&agent, "enrolled")), (1.0, 1.0));
    assert!(pod.has_rules().unwrap(), "nothing gets past ztunnel meanwhile");
    // The same words again and again are one Event.
    let is_add = |request: &Request| matches!(request, Request::Add { uid, .. } if *uid == pod.uid);
    let tries = || second.requests().iter().filter(|(_, request)| is_add(request)).count();
    let before = tries();
    eventually("it is tried again", PATIENCE, || {
        ensure!(tries() > before + 2);
        Ok(())
    })
    .unwrap();
    assert_eq!(events(&mesh, &pod).len(), 1, "{:?}", events(&mesh, &pod));
    refuses.store(false, Ordering::SeqCst);
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(pods(&agent, "enrolled"), 2.0);
    assert_eq!(mesh.patches(&other), [Some("enabled".to_owned())], "the other one was in all the time");
}

/// What was in stays so for others while the agent comes again and no ztunnel is there; the agent itself does not count it before it has seen it.
#[test]
fn a_restart_takes_back_nothing_and_counts_what_it_saw() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    agent.kill().unwrap();
    drop(ztunnel);
    let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "100ms").ready().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((pods(&agent, "unconfirmed"), pods(&agent, "enrolled")), (1.0, 0.0));
    assert_eq!(outside(&agent, "unconfirmed").unwrap(), 1.0);
    assert_eq!(mesh.annotation(&pod).as_deref(), Some("enabled"));
    let ztunnel = mesh.ztunnel().unwrap();
    eventually("it is seen", PATIENCE, || {
        ensure!((pods(&agent, "unconfirmed"), pods(&agent, "enrolled")) == (0.0, 1.0));
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.adds(&pod.uid), 1);
    // Nor does a ztunnel that restarts change anything.
    drop(ztunnel);
    std::thread::sleep(Duration::from_millis(300));
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())]);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// A ztunnel that is told to keep a pod of which it knows nothing says yes.
#[test]
fn a_pod_that_is_kept_blindly_is_not_in() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    agent.kill().unwrap();
    drop(ztunnel);
    mesh.stop(&pod).unwrap();
    let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "200ms").ready().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.kept(), std::slice::from_ref(&pod.uid));
    mesh.wait_annotation(&pod, None).unwrap();
    wait_event(&mesh, &pod, "no process of it");
    assert_eq!((pods(&agent, "enrolled"), pods(&agent, "pending")), (0.0, 1.0));
    mesh.run(&pod).unwrap();
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(pods(&agent, "enrolled"), 1.0);
}

/// A tenant with NET_ADMIN puts a table of our name in the place of ours and keeps it for itself: nobody else may change it.
#[test]
fn a_repair_that_the_pod_hinders_is_told() {
    let (mesh, agent, ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "200ms")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let mut nft = Command::new("nft");
    nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = pod.netns.enter(|_| nft.spawn()).unwrap().unwrap();
    let mut input = owner.stdin.take().unwrap();
    std::io::Write::write_all(
        &mut input,
        b"flush ruleset\nadd table inet istio-ambient-nat { flags owner; }\n",
    )
    .unwrap();
    mesh.wait_annotation(&pod, None).unwrap();
    wait_event(&mesh, &pod, "another program keeps table istio-ambient-nat for itself");
    // The kernel's refusal as people read it: the cause first, then what was being done, last what helps. The Event is about the pod, whose name it need not
    // say, and a line of the log has it as its label.
    let event = events(&mesh, &pod).into_iter().find(|text| text.contains("another program")).unwrap();
    assert!(event.starts_with("another program keeps table istio-ambient-nat for itself: "), "{event}");
    assert!(
        event.contains("(program the network namespace of the pod); end that program, or delete the pod"),
        "{event}"
    );
    assert!(event.len() <= 300 && !event.contains("web") && !event.contains(&pod.uid), "{event}");
    let log = agent.log().text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("another program keeps table")).collect();
    assert!(
        lines.iter().any(|line| line.contains(&event) && line.matches("mesh/web").count() == 1),
        "{lines:?}"
    );
    assert_eq!(outside(&agent, "rules").unwrap(), 1.0);
    assert_eq!((pods(&agent, "enrolled"), pods(&agent, "pending")), (0.0, 1.0));
    assert!(ztunnel.workloads().contains_key(&pod.uid), "what is left of the rules still leads there");
    drop(input);
    owner.wait().unwrap();
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(pods(&agent, "enrolled"), 1.0);
}

/// Programs of iptables that fail in the pod's namespace from some moment on.
#[test]
fn a_verification_that_fails_is_told() {
    let mesh = Mesh::new().unwrap();
    let dir = mesh.node.dir().join("broken");
    std::fs::create_dir_all(&dir).unwrap();
    let flag = dir.join("flag");
    let variants = ["", "-nft", "-legacy"].into_iter();
    let names = variants.flat_map(|variant| {
        ["iptables", "ip6tables"]
            .into_iter()
            .flat_map(move |family| ["save", "restore"].map(|action| format!("{family}{variant}-{action}")))
    });
    for name in names {
        let script = format!(
            "#!/bin/sh\nif [ -e {} ] && [ \"$1\" != --version ]; then echo 'Memory allocation problem' >&2; exit 4; fi\n\
             exec /usr/sbin/{name} \"$@\"\n",
            flag.display()
        );
        std::fs::write(dir.join(&name), script).unwrap();
        std::fs::set_permissions(dir.join(&name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let agent = mesh
        .agent()
        .env("NATIVE_NFTABLES", "false")
        .env("PATH", &path)
        .env("AMBIENT_VERIFY_INTERVAL", "300ms")
        .ready()
        .unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    std::fs::write(&flag, "").unwrap();
    mesh.wait_annotation(&pod, None).unwrap();
    wait_event(&mesh, &pod, "Memory allocation problem");
    assert_eq!((pods(&agent, "enrolled"), pods(&agent, "pending")), (0.0, 1.0));
    std::fs::remove_file(&flag).unwrap();
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    // In whichever variant the programs came back.
    let save = |program: &str| pod.netns.run(&mut Command::new(program)).unwrap();
    let saved = save("iptables-nft-save") + &save("iptables-legacy-save");
    assert!(saved.contains("ISTIO_"), "{}", agent.log().text());
}

/// Without reconciling, rules of another layout are left until the next verification; rules that are gone are not another layout.
#[test]
fn rules_that_are_left_as_they_are_do_not_count() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    let (gone, other) =
        (mesh.running("mesh", "gone", &[]).unwrap(), mesh.running("mesh", "other", &[]).unwrap());
    wait_in(&mesh, &gone).unwrap();
    wait_in(&mesh, &other).unwrap();
    agent.kill().unwrap();
    gone.netns.nft("flush ruleset").unwrap();
    other.netns.nft("add chain inet istio-ambient-nat of-another-version").unwrap();
    // Two pods are looked at after a third and two thirds of this, and it is enough for a slow machine to look in between.
    let first_round = "15s";
    let agent = mesh
        .agent()
        .env("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "false")
        .env("AMBIENT_VERIFY_INTERVAL", first_round)
        .ready()
        .unwrap();
    ztunnel.wait_served(2, PATIENCE).unwrap();
    eventually("the one is in again and the other not seen to be", PATIENCE, || {
        ensure!((pods(&agent, "enrolled"), pods(&agent, "unconfirmed")) == (1.0, 1.0));
        Ok(())
    })
    .unwrap();
    wait_in(&mesh, &gone).unwrap();
    let chains = || other.netns.run(Command::new("nft").args(["list", "chains"])).unwrap();
    assert!(chains().contains("of-another-version"));
    assert_eq!(mesh.patches(&other), [Some("enabled".to_owned())]);
    agent.kill().unwrap();
    let agent = mesh
        .agent()
        .env("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "false")
        .env("AMBIENT_VERIFY_INTERVAL", "100ms")
        .ready()
        .unwrap();
    eventually("both are in", PATIENCE, || {
        ensure!(pods(&agent, "enrolled") == 2.0 && !chains().contains("of-another-version"));
        Ok(())
    })
    .unwrap();
    assert_eq!(mesh.patches(&other), [Some("enabled".to_owned())]);
}

/// Rules for IPv4 do not see what a pod without an IPv4 address sends.
#[test]
fn a_pod_without_a_captured_family_is_refused() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env("AMBIENT_IPV6", "false")).unwrap();
    let pod = mesh.sandbox("mesh", "six").unwrap();
    pod.netns.address("fd00:9::6").unwrap();
    mesh.run(&pod).unwrap();
    let mut object = pod.object(&[], true);
    object["status"] = json!({"phase": "Running", "podIP": "fd00:9::6", "podIPs": [{"ip": "fd00:9::6"}]});
    mesh.node.api.set_pod(annotated(object.clone(), "enabled"));
    mesh.wait_annotation(&pod, None).unwrap();
    wait_event(&mesh, &pod, "AMBIENT_IPV6=false");
    assert_eq!(outside(&agent, "ipv6").unwrap(), 1.0);
    let mut event = mesh.event(&pod);
    event["IPs"][0]["Address"]["IP"] = json!("fd00:9::6");
    let reply = mesh.post(&event.to_string()).unwrap();
    assert_eq!(reply.status, 500, "{}", reply.body);
    assert!(reply.body.contains("only IPv6 addresses") && pod.is_clean().unwrap(), "{}", reply.body);
    // One that has both is in with the one, and says so.
    let both = mesh.sandbox("mesh", "both").unwrap();
    both.netns.address("fd00:9::7").unwrap();
    mesh.run(&both).unwrap();
    let mut object = both.object(&[], true);
    object["status"]["podIPs"] = json!([{"ip": both.ip.to_string()}, {"ip": "fd00:9::7"}]);
    mesh.node.api.set_pod(object);
    wait_in(&mesh, &both).unwrap();
    wait_event(&mesh, &both, "with IPv4 only");
    agent.kill().unwrap();
    let _agent = mesh.agent().env("AMBIENT_IPV6", "true").ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
}
